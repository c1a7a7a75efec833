//! What runs on the rows of one micro-batch, or on what changed in a dataflow: an ordinary plan, kept from run to run.
//!
//! Each run leaves its metrics in the plan (DataFusion's sets of metrics only grow), a kilobyte for each of its parts: so
//! the plan is renewed after some runs, those that keep hash tables after so many that making these anew costs little.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::{ExecutionPlan, collect_partitioned};

use super::input::{InputExec, Inputs, Kind};
use crate::guard;

/// A plan that runs again and again, each time on other rows.
#[derive(Debug)]
pub struct Below {
    plan: Arc<dyn ExecutionPlan>,
    reusable: bool,
    /// Whether it keeps hash tables.
    keeps_tables: bool,
    /// How often it has run since it was renewed, …
    runs: usize,
    /// … and after how often it is.
    runs_max: usize,
}

/// Runs of a plan that keeps nothing, until it is renewed.
const RUNS_MAX: usize = 64;
/// Of one that keeps hash tables at least so many, …
const RUNS_MIN_OF_TABLES: usize = 1_024;
/// … and at most; …
const RUNS_MAX_OF_TABLES: usize = 16_384;
/// … between, one for so many rows of reference tables.
const ROWS_A_RUN: usize = 64;

impl Below {
    /// Takes a plan; finds out what it caches.
    pub fn new(plan: Arc<dyn ExecutionPlan>) -> Self {
        let keeps_tables = keeps_tables(&plan);
        Below { reusable: caches_only_reference(&plan), keeps_tables, plan, runs: 0, runs_max: RUNS_MAX }
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
        if !self.reusable || self.runs >= self.runs_max {
            self.reset()?;
        }
        if self.runs == 0 && self.keeps_tables {
            let inputs = context.session_config().get_extension::<Inputs>();
            let rows = inputs.map_or(0, |inputs| inputs.reference_rows());
            self.runs_max = (rows / ROWS_A_RUN).clamp(RUNS_MIN_OF_TABLES, RUNS_MAX_OF_TABLES);
        }
        self.runs += 1;
        // Partition by partition, as those of a UNION ALL: as they come they would be in no order.
        let batches = guard::catch_async(collect_partitioned(Arc::clone(&self.plan), context)).await?;
        Ok(concat_batches(&self.plan.schema(), &batches.concat())?)
    }

    /// Forgets what it has cached of the reference tables.
    pub fn reset(&mut self) -> Result<()> {
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        self.runs = 0;
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

fn keeps_tables(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<HashJoinExec>() || plan.children().into_iter().any(keeps_tables)
}

fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<InputExec>().is_some_and(|scan| scan.kind() == Kind::Stream)
        || plan.children().into_iter().any(reads_stream)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::engine::input::{InputTable, Runner};
    use crate::engine::session;

    fn metrics(plan: &Arc<dyn ExecutionPlan>) -> usize {
        let own = plan.metrics().map_or(0, |metrics| metrics.iter().count());
        own + plan.children().into_iter().map(metrics).sum::<usize>()
    }

    /// A plan that runs a million times must not hold what it measured each time.
    #[tokio::test]
    async fn what_runs_leave_in_a_plan_does_not_grow() {
        let session = session::continuous();
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
        let stream = InputTable::new("stream", Kind::Stream, Arc::clone(&schema));
        let table = InputTable::new("ref", Kind::Reference, Arc::clone(&schema));
        session.register_table("stream", Arc::clone(&stream) as _).unwrap();
        session.register_table("ref", Arc::clone(&table) as _).unwrap();
        let rows = |values: Vec<i64>| {
            let column = Arc::new(Int64Array::from(values));
            RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()
        };
        let mut inputs = Inputs::default();
        inputs.set_reference(&table, vec![rows(vec![1, 2])]);
        for (query, runs_max) in [
            ("SELECT k + 1 AS k FROM stream WHERE k > 0", RUNS_MAX),
            ("SELECT s.k FROM stream s JOIN ref r ON r.k = s.k", RUNS_MIN_OF_TABLES),
        ] {
            let plan = session.sql(query).await.unwrap().create_physical_plan().await.unwrap();
            let mut below = Below::new(plan);
            let runner = Runner::new(&session);
            let mut of_one = 0;
            for run in 0..3 * RUNS_MIN_OF_TABLES {
                let context = runner.context(inputs.clone().with(&stream, vec![rows(vec![1, 2, 3])]));
                let expected = if query.contains("JOIN") { 2 } else { 3 };
                assert_eq!(below.run(context).await.unwrap().num_rows(), expected);
                if run == 0 {
                    of_one = metrics(&below.plan);
                }
            }
            assert!(of_one > 0 && metrics(&below.plan) <= runs_max * of_one, "{query}");
        }
    }
}
