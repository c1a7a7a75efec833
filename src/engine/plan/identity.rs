//! What makes two stateful nodes the same one, which several views then share.

use std::sync::Arc;

use datafusion::logical_expr::LogicalPlan;

use crate::catalog::ViewDef;
use crate::engine::slot::{Kind, SlotTable};
use crate::engine::split;

/// Equal nodes have equal texts. Held rows are shared only by views that hold the same number.
pub fn fingerprint(plan: &LogicalPlan, def: &ViewDef) -> String {
    let hold = if matches!(plan, LogicalPlan::Aggregate(_)) { None } else { def.hold };
    format!("{}\n{hold:?}", plan.display_indent_schema())
}

/// The table of an equal node that is there already, or a new one.
pub fn shared_table(
    node: &LogicalPlan,
    def: &ViewDef,
    found: &mut Vec<(String, Arc<SlotTable>)>,
) -> Arc<SlotTable> {
    let print = fingerprint(node, def);
    if let Some((_, table)) = found.iter().find(|(known, _)| *known == print) {
        return Arc::clone(table);
    }
    let kind = if matches!(node, LogicalPlan::Aggregate(_)) { "aggregate" } else { "held" };
    let name = format!("{kind}_{}", found.len());
    let table = SlotTable::new(name, Kind::State, split::positional_schema(node));
    found.push((print, Arc::clone(&table)));
    table
}
