//! Which rows of streams must come on time: those that a join pairs by an interval of their event times. A row that event
//! time has passed as it comes is late for the join, and what could only meet late rows is let go.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;

use crate::engine::bound;
use crate::engine::flow::{Finality, traced};
use crate::engine::input::InputTable;
use crate::engine::interval::intervals;

/// The plans of rows, among `nodes`, that a join of `finishing` pairs by an interval, where event time tells of both
/// sides when rows come no more.
pub fn rows_of_intervals(
    finishing: &LogicalPlan,
    nodes: &[(LogicalPlan, Arc<InputTable>)],
    event_time: impl Fn(&str) -> Option<String> + Copy,
) -> Result<Vec<LogicalPlan>> {
    let mut on_time: Vec<LogicalPlan> = Vec::new();
    let seen = RefCell::new(Vec::new());
    let known = |after: i64| Finality { after, streams: BTreeSet::new() };
    let of = |table: &InputTable, column: usize| {
        let (plan, _) = nodes.iter().find(|(_, known)| std::ptr::eq(known.as_ref(), table))?;
        match plan {
            LogicalPlan::Aggregate(aggregate) => {
                let bound = bound::bound(aggregate, event_time)?;
                (bound.key == column).then_some(known(bound.after))
            }
            plan if bound::windows_of_rows(plan, event_time).ok()?.is_empty() => {
                let after = (*bound::time_columns(plan, event_time).get(column)?)?;
                seen.borrow_mut().push(plan.clone());
                Some(known(after))
            }
            plan => bound::window_columns(plan, event_time).get(column)?.map(known),
        }
    };
    finishing.apply_with_subqueries(|node| {
        let LogicalPlan::Join(join) = node else { return Ok(TreeNodeRecursion::Continue) };
        for interval in intervals(join) {
            seen.borrow_mut().clear();
            let sides = [(&join.left, interval.left), (&join.right, interval.right)];
            if sides.into_iter().all(|(side, column)| traced(side, column, &of).is_some()) {
                on_time.extend(seen.take());
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(on_time)
}
