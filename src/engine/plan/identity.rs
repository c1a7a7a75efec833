//! What makes two parts of the engine the same one, which several views then share.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;

use crate::engine::input::{InputTable, Kind};
use crate::engine::split;

/// What a node computes, and of what. Plans are compared and not their texts, which leave out rows of VALUES and
/// whether NULLs join.
#[derive(Clone, Debug)]
pub struct Identity {
    plan: LogicalPlan,
    /// Plans are equal if they scan tables of one name: these are the tables themselves.
    tables: Vec<Arc<dyn TableProvider>>,
    terms: Terms,
}

/// On what terms rows count and are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Only the final rows of nodes count.
    pub only_final: bool,
    /// How long rows of streams are kept, in nanoseconds of event time; none: as long as they are needed.
    pub hold_ns: Option<i64>,
    /// Rows of streams count only if event time had not passed them as they came.
    pub on_time: bool,
}

impl Identity {
    /// That of what computes the rows of `plan`.
    pub fn of(plan: &LogicalPlan, terms: Terms) -> Result<Identity> {
        let mut tables = Vec::new();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                tables.push(source_as_provider(&scan.source)?);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(Identity { plan: plan.clone(), tables, terms })
    }

    /// The terms.
    pub fn terms(&self) -> Terms {
        self.terms
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        let address = |table: &Arc<dyn TableProvider>| Arc::as_ptr(table).cast::<()>();
        self.terms == other.terms
            && self.tables.iter().map(address).eq(other.tables.iter().map(address))
            && self.plan == other.plan
    }
}

/// The table of an equal node that is there already, or a new one.
pub fn shared_table(
    node: &LogicalPlan,
    terms: Terms,
    found: &mut Vec<(Identity, Arc<InputTable>)>,
) -> Result<Arc<InputTable>> {
    let identity = Identity::of(node, terms)?;
    if let Some((_, table)) = found.iter().find(|(known, _)| *known == identity) {
        return Ok(Arc::clone(table));
    }
    let kind = if matches!(node, LogicalPlan::Aggregate(_)) { "aggregate" } else { "rows" };
    let name = format!("{kind}_{}", found.len());
    let table = InputTable::new(name, Kind::State, split::positional_schema(node));
    found.push((identity, Arc::clone(&table)));
    Ok(table)
}
