//! What makes two stateful nodes the same one, which several views then share.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;

use crate::catalog::{Hold, ViewDef};
use crate::engine::input::{InputTable, Kind};
use crate::engine::split;

/// What a node computes, and of what. Plans are compared and not their texts, which leave out rows of VALUES and
/// whether NULLs join.
#[derive(Clone, Debug)]
pub struct Identity {
    plan: LogicalPlan,
    /// Plans are equal if they scan tables of one name: these are the tables themselves.
    tables: Vec<Arc<dyn TableProvider>>,
    /// How much is held. Held rows are shared only by views that hold the same number.
    hold: Option<Hold>,
}

impl Identity {
    /// That of the node `plan` of a view.
    pub fn new(plan: &LogicalPlan, def: &ViewDef) -> Result<Identity> {
        let mut tables = Vec::new();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                tables.push(source_as_provider(&scan.source)?);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let hold = if matches!(plan, LogicalPlan::Aggregate(_)) { None } else { def.hold };
        Ok(Identity { plan: plan.clone(), tables, hold })
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        let address = |table: &Arc<dyn TableProvider>| Arc::as_ptr(table).cast::<()>();
        self.hold == other.hold
            && self.tables.iter().map(address).eq(other.tables.iter().map(address))
            && self.plan == other.plan
    }
}

/// The table of an equal node that is there already, or a new one.
pub fn shared_table(
    node: &LogicalPlan,
    def: &ViewDef,
    found: &mut Vec<(Identity, Arc<InputTable>)>,
) -> Result<Arc<InputTable>> {
    let identity = Identity::new(node, def)?;
    if let Some((_, table)) = found.iter().find(|(known, _)| *known == identity) {
        return Ok(Arc::clone(table));
    }
    let kind = if matches!(node, LogicalPlan::Aggregate(_)) { "aggregate" } else { "held" };
    let name = format!("{kind}_{}", found.len());
    let table = InputTable::new(name, Kind::State, split::positional_schema(node));
    found.push((identity, Arc::clone(&table)));
    Ok(table)
}
