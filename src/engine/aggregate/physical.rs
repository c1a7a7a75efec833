//! Takes DataFusion's plan of an aggregate apart: its functions and keys go into the state, its input is run on
//! each micro-batch.

use std::sync::Arc;

use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;

/// The operator that aggregates the rows themselves, and what it reads. GROUPING SETS and unions are planned
/// in two steps, and subqueries in expressions stand around the aggregate: they go with what it reads.
pub fn own_rows(plan: &Arc<dyn ExecutionPlan>) -> Result<(&AggregateExec, Arc<dyn ExecutionPlan>)> {
    if let Some(exec) = plan.downcast_ref::<AggregateExec>()
        && matches!(
            exec.mode(),
            AggregateMode::Single | AggregateMode::SinglePartitioned | AggregateMode::Partial
        )
    {
        return Ok((exec, Arc::clone(exec.input())));
    }
    let children = plan.children();
    let Some((first, others)) = children.split_first() else {
        return plan_err!("{} where an aggregate was expected", plan.name());
    };
    let (exec, below) = own_rows(first)?;
    if others.is_empty() {
        return Ok((exec, below));
    }
    let mut inputs = vec![below];
    inputs.extend(others.iter().map(|other| Arc::clone(other)));
    Ok((exec, replace_children_if_necessary(Arc::clone(plan), inputs)?))
}
