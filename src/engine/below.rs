//! What runs on the rows of one micro-batch: an ordinary plan, kept from batch to batch.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::{ExecutionPlan, collect_partitioned};

use super::input::{InputExec, Kind};
use crate::guard;

/// A plan that runs again and again, each time on other rows.
#[derive(Debug)]
pub struct Below {
    plan: Arc<dyn ExecutionPlan>,
    reusable: bool,
}

impl Below {
    /// Takes a plan; finds out what it caches.
    pub fn new(plan: Arc<dyn ExecutionPlan>) -> Self {
        Below { reusable: caches_only_reference(&plan), plan }
    }

    /// Columns of its rows.
    pub fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    #[cfg(test)]
    /// Whether it keeps its hash tables of reference tables from one micro-batch to the next.
    pub fn keeps_lookups(&self) -> bool {
        self.reusable
    }

    /// Its rows for the micro-batch of `context`, always in the same order. A panic in a function is an error.
    pub async fn run(&mut self, context: Arc<TaskContext>) -> Result<RecordBatch> {
        if !self.reusable {
            self.reset()?;
        }
        // Partition by partition, as those of a UNION ALL: as they come they would be in no order.
        let batches = guard::catch_async(collect_partitioned(Arc::clone(&self.plan), context)).await?;
        Ok(concat_batches(&self.plan.schema(), &batches.concat())?)
    }

    /// Forgets what it has cached of the reference tables.
    pub fn reset(&mut self) -> Result<()> {
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        Ok(())
    }
}

/// Whether the plan may run again without a reset: true if all that it caches is a hash table of
/// reference rows. A join that cached rows of the stream would go on with old ones, silently.
fn caches_only_reference(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let children = plan.children();
    let caches_reference_only = match children.as_slice() {
        [build, _] => plan.is::<HashJoinExec>() && !reads_stream(build),
        _ => true,
    };
    caches_reference_only
        && plan.name() != "ScalarSubqueryExec"
        && children.into_iter().all(caches_only_reference)
}

fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<InputExec>().is_some_and(|scan| scan.kind() == Kind::Stream)
        || plan.children().into_iter().any(reads_stream)
}
