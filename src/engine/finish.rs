//! Finishing plans: an ordinary plan over the rows of a view's nodes, and the rows that it gave last.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::catalog::TableProvider;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;

use super::delta::Delta;
use super::input::{InputTable, Inputs, Runner};
use super::node::split;
use super::schedule::Stateful;
use super::split::Maintenance;
use super::view::{Changelog, RowSource, ViewInfo, ViewRows};
use crate::guard;

/// A finishing plan and its rows.
pub struct Finish {
    plan: Arc<dyn ExecutionPlan>,
    maintenance: Maintenance,
    /// Parts that read reference tables only, each with the table that stands for its rows.
    folded: Vec<(LogicalPlan, Arc<InputTable>)>,
    folded_rows: Vec<RecordBatch>,
    /// The nodes that it reads.
    pub nodes: Vec<usize>,
    rows: ViewRows,
    /// Whether the query says in which order its rows are read; otherwise that of the key.
    is_ordered: bool,
    /// The newest rows in the query's order.
    ordered: Option<RecordBatch>,
}

impl Finish {
    /// A plan that has not run. `is_ordered`: whether the query itself orders its rows.
    pub fn new(
        plan: Arc<dyn ExecutionPlan>,
        maintenance: Maintenance,
        folded: Vec<(LogicalPlan, Arc<InputTable>)>,
        nodes: Vec<usize>,
        rows: ViewRows,
        is_ordered: bool,
    ) -> Finish {
        Finish { plan, maintenance, folded, folded_rows: Vec::new(), nodes, rows, is_ordered, ordered: None }
    }

    /// Whether each of its rows depends on one row of its node.
    pub fn is_row_wise(&self) -> bool {
        self.maintenance == Maintenance::ByRow
    }

    /// Bytes held for rows.
    pub fn bytes(&self) -> usize {
        let ordered = self.ordered.as_ref().map_or(0, RecordBatch::get_array_memory_size);
        let folded = self.folded_rows.iter().map(RecordBatch::get_array_memory_size);
        self.rows.bytes() + ordered + folded.sum::<usize>()
    }

    /// The rows in the order in which they are read.
    pub fn shown(&self) -> Arc<dyn RowSource> {
        match &self.ordered {
            Some(batch) => Arc::new(batch.clone()),
            None => self.rows.snapshot(),
        }
    }

    /// All rows, for output mode `complete`.
    pub fn complete(&self, changelog: &Changelog) -> Result<Changelog> {
        self.rows.complete(changelog)
    }

    /// Runs the parts that read reference tables only.
    pub async fn fold(&mut self, runner: &Runner, inputs: &Inputs, session: &SessionContext) -> Result<()> {
        let state = session.state();
        let mut rows = Vec::new();
        for (plan, table) in &self.folded {
            let plan = state.query_planner().create_physical_plan(plan, &state).await?;
            let schema = plan.schema();
            let batches = guard::catch_async(collect(plan, runner.context(inputs.clone()))).await?;
            let batch = concat_batches(&schema, &batches)?;
            // The table names its columns by position.
            rows.push(RecordBatch::try_new(table.schema(), batch.columns().to_vec())?);
        }
        self.folded_rows = rows;
        Ok(())
    }

    /// Follows the touched rows of its node, as they were and as they are.
    pub async fn follow(
        &mut self,
        delta: &Delta,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        info: &ViewInfo,
    ) -> Result<Changelog> {
        let before = self.run(vec![vec![delta.before.clone()]], nodes, runner, inputs, info).await?;
        let after = self.run(vec![vec![delta.after.clone()]], nodes, runner, inputs, info).await?;
        self.rows.update(&before, &after)
    }

    /// Adds the rows that have become final; the reasons of those that the plan can't take, which are left out.
    pub async fn add_final(
        &mut self,
        evicted: &RecordBatch,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        info: &ViewInfo,
    ) -> Result<(Changelog, Vec<String>)> {
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        let mut parts: Vec<_> = std::iter::once(0..evicted.num_rows()).collect();
        while let Some(part) = parts.pop() {
            let rows = evicted.slice(part.start, part.len());
            match self.run(vec![vec![rows]], nodes, runner, inputs, info).await {
                Ok(rows) => good.push(rows),
                Err(error) => parts.extend(split(part, error, &mut failed)),
            }
        }
        let after = concat_batches(&info.schema, &good)?;
        let changelog = self.rows.update(&after.slice(0, 0), &after)?;
        Ok((changelog, failed.into_iter().map(|error| error.reason).collect()))
    }

    /// Runs over all rows of its nodes, or over those that are final.
    pub async fn recompute(
        &mut self,
        nodes: &[Stateful],
        only_final: bool,
        runner: &Runner,
        inputs: &Inputs,
        info: &ViewInfo,
    ) -> Result<Changelog> {
        let of_node = |node: &usize| {
            let node = &nodes[*node];
            let mut rows = node.finals.as_ref().map(|finals| finals.batches()).unwrap_or_default();
            if !only_final {
                rows.push(node.node.rows()?);
            }
            Ok(rows)
        };
        let rows = self.nodes.iter().map(of_node).collect::<Result<Vec<_>>>()?;
        let rows = self.run(rows, nodes, runner, inputs, info).await?;
        let changelog = self.rows.replace(&rows)?;
        self.ordered = self.is_ordered.then_some(rows);
        Ok(changelog)
    }

    /// Runs the plan over these rows of its nodes.
    async fn run(
        &mut self,
        rows: Vec<Vec<RecordBatch>>,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        info: &ViewInfo,
    ) -> Result<RecordBatch> {
        let mut inputs = inputs.clone();
        for (node, rows) in self.nodes.iter().zip(rows) {
            inputs = inputs.with(&nodes[*node].table, rows);
        }
        for ((_, table), rows) in self.folded.iter().zip(&self.folded_rows) {
            inputs = inputs.with(table, vec![rows.clone()]);
        }
        // Joins cache one side: over other rows it must be built again.
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        let run = collect(Arc::clone(&self.plan), runner.context(inputs));
        let batches = guard::catch_async(run).await?;
        let columns = batches.into_iter().map(|batch| batch.with_schema(Arc::clone(&info.schema)));
        Ok(concat_batches(&info.schema, &columns.collect::<Result<Vec<_>, _>>()?)?)
    }
}
