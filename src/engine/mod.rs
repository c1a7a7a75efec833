//! The engine: keeps the views of `queries/` up to date. Rows come in as record batches, one micro-batch
//! at a time; what changed in each view goes out as record batches. It does no I/O and reads no clock.

mod aggregate;
pub mod catalog;
mod plan;
pub mod session;
pub mod slot;
mod split;
mod store;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::common::exec_datafusion_err;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use tokio::task::JoinSet;

use self::aggregate::{AggregateState, Delta};
use self::catalog::Place;
use self::slot::SlotTable;
use self::view::ViewRows;
pub use self::view::{Changelog, Op};
use crate::error::{Error, Result};
use crate::snapshot::{RowSource, ViewInfo};

/// Plans and state of every materialized view.
pub struct Engine {
    session: SessionContext,
    streams: BTreeMap<String, Arc<SlotTable>>,
    references: BTreeMap<String, Arc<SlotTable>>,
    /// Columns of each reference table that a view or a rule reads.
    needed: BTreeMap<String, BTreeSet<String>>,
    aggregates: Vec<AggregateNode>,
    views: Vec<View>,
}

/// An aggregate that one or more views share.
struct AggregateNode {
    /// What it computes, as text: equal aggregates are kept once.
    fingerprint: String,
    streams: Vec<String>,
    references: BTreeSet<String>,
    /// Stands for its rows in finishing plans.
    table: Arc<SlotTable>,
    state: AggregateState,
}

/// A view's finishing plan and rows.
struct View {
    info: Arc<ViewInfo>,
    place: Place,
    finishing: Arc<dyn ExecutionPlan>,
    row_wise: bool,
    folded: Vec<(LogicalPlan, Arc<SlotTable>)>,
    aggregates: Vec<usize>,
    references: BTreeSet<String>,
    rows: ViewRows,
    /// Whether the query says in which order its rows are read; otherwise that of the key.
    is_ordered: bool,
    /// The newest rows in the query's order.
    ordered: Option<RecordBatch>,
}

/// What changed in one view.
#[derive(Debug)]
pub struct ViewChange {
    /// The view.
    pub info: Arc<ViewInfo>,
    /// Its changed rows; may be none.
    pub changelog: Changelog,
    /// All its rows now.
    pub rows: Arc<dyn RowSource>,
}

impl Engine {
    /// The views.
    pub fn views(&self) -> impl Iterator<Item = &Arc<ViewInfo>> {
        self.views.iter().map(|view| &view.info)
    }

    /// Each reference table that a view or a rule reads, with the columns needed of it.
    pub fn reference_columns(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.needed
    }

    /// Bytes of the aggregates' and views' state.
    pub fn state_bytes(&self) -> usize {
        let aggregates: usize = self.aggregates.iter().map(|aggregate| aggregate.state.bytes()).sum();
        aggregates + self.views.iter().map(|view| view.rows.bytes()).sum::<usize>()
    }

    /// Gives a reference table its rows, of the needed columns. [`Engine::refresh`] takes them into use.
    pub fn set_reference(&self, table: &str, batches: Vec<RecordBatch>) {
        if let Some(slot) = self.references.get(table) {
            slot.set(batches);
        }
    }

    /// Recomputes the views that read one of `tables`, from the aggregates as they are. Rows counted
    /// before keep the reference rows they met; later rows meet the new ones.
    pub async fn refresh(&mut self, tables: &BTreeSet<String>) -> Result<Vec<ViewChange>> {
        for aggregate in &mut self.aggregates {
            if !aggregate.references.is_disjoint(tables) {
                aggregate.state.reset()?;
            }
        }
        let mut changes = Vec::new();
        for i in 0..self.views.len() {
            if self.views[i].references.is_disjoint(tables) {
                continue;
            }
            for (plan, table) in &self.views[i].folded {
                let state = self.session.state();
                let plan = state.query_planner().create_physical_plan(plan, &state).await?;
                let batches = collect(plan, self.session.task_ctx()).await?;
                table.set(batches.into_iter().map(|batch| positional(batch, table)).collect::<Result<_>>()?);
            }
            changes.push(self.recompute(i).await?);
        }
        Ok(changes)
    }

    /// Computes every view for the first time, over no row of any stream.
    pub async fn start(&mut self) -> Result<Vec<ViewChange>> {
        let all: BTreeSet<_> = self.references.keys().cloned().collect();
        let mut changes = self.refresh(&all).await?;
        for i in 0..self.views.len() {
            if self.views[i].references.is_disjoint(&all) {
                changes.push(self.recompute(i).await?);
            }
        }
        Ok(changes)
    }

    /// Every row of every view, as if it were new.
    pub fn all_rows(&self) -> Result<Vec<ViewChange>> {
        let all = |view: &View| {
            let rows = view.rows.snapshot().batch()?;
            Ok(view.change(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows }))
        };
        self.views.iter().map(all).collect()
    }

    /// Adds a micro-batch of `source`: only rows that keep its rules, with the source's schema.
    pub async fn apply(&mut self, source: &str, batch: RecordBatch) -> Result<Vec<ViewChange>> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let Some(stream) = self.streams.get(source) else { return Ok(Vec::new()) };
        stream.set(vec![batch]);
        let deltas = apply_all(&mut self.aggregates, source, self.session.task_ctx()).await;
        stream.set(Vec::new());
        let deltas = deltas?;
        let mut changes = Vec::new();
        for i in 0..self.views.len() {
            let touched = |node: &usize| deltas.get(node).is_some_and(|delta| delta.after.num_rows() > 0);
            let view = &self.views[i];
            if !view.aggregates.iter().any(touched) {
                continue;
            }
            let change = match view.aggregates.as_slice() {
                [node] if view.row_wise => self.finish_touched(i, &deltas[node]).await?,
                _ => self.recompute(i).await?,
            };
            changes.push(change);
        }
        Ok(changes)
    }

    /// Runs a row-wise finishing plan over the touched groups, as they were and as they are.
    async fn finish_touched(&mut self, view: usize, delta: &Delta) -> Result<ViewChange> {
        let table = Arc::clone(&self.aggregates[self.views[view].aggregates[0]].table);
        let context = self.session.task_ctx();
        let view = &mut self.views[view];
        table.set(vec![delta.before.clone()]);
        let before = view.finish(&context).await?;
        table.set(vec![delta.after.clone()]);
        let after = view.finish(&context).await?;
        let changelog = view.rows.update(&before, &after).map_err(|e| view.place.explain(e))?;
        Ok(view.change(changelog))
    }

    /// Runs a finishing plan over all groups.
    async fn recompute(&mut self, view: usize) -> Result<ViewChange> {
        for node in &self.views[view].aggregates {
            let aggregate = &self.aggregates[*node];
            aggregate.table.set(vec![aggregate.state.rows()?]);
        }
        let context = self.session.task_ctx();
        let view = &mut self.views[view];
        let rows = view.finish(&context).await?;
        let changelog = view.rows.replace(&rows).map_err(|e| view.place.explain(e))?;
        view.ordered = view.is_ordered.then_some(rows);
        Ok(view.change(changelog))
    }
}

impl View {
    async fn finish(&mut self, context: &Arc<TaskContext>) -> Result<RecordBatch> {
        // Joins cache one side: over other rows it must be built again.
        self.finishing = reset_plan_states(Arc::clone(&self.finishing))?;
        let batches = collect(Arc::clone(&self.finishing), Arc::clone(context))
            .await
            .map_err(|e| self.place.explain(e))?;
        let columns = batches.iter().map(|batch| batch.clone().with_schema(Arc::clone(&self.info.schema)));
        Ok(concat_batches(&self.info.schema, &columns.collect::<Result<Vec<_>, _>>()?)?)
    }

    fn change(&self, changelog: Changelog) -> ViewChange {
        let rows = match &self.ordered {
            Some(batch) => Arc::new(batch.clone()),
            None => self.rows.snapshot(),
        };
        ViewChange { info: Arc::clone(&self.info), changelog, rows }
    }
}

/// Runs every aggregate that reads `source`, at the same time, and gives their deltas by position.
async fn apply_all(
    aggregates: &mut Vec<AggregateNode>,
    source: &str,
    context: Arc<TaskContext>,
) -> Result<BTreeMap<usize, Delta>> {
    let mut running = JoinSet::new();
    let mut nodes: Vec<Option<AggregateNode>> = std::mem::take(aggregates).into_iter().map(Some).collect();
    for (i, slot) in nodes.iter_mut().enumerate() {
        if let Some(mut node) = slot.take_if(|node| node.streams.iter().any(|stream| stream == source)) {
            let context = Arc::clone(&context);
            running.spawn(async move {
                let delta = node.state.apply(context).await;
                (i, node, delta)
            });
        }
    }
    let mut deltas = BTreeMap::new();
    let mut failed = None;
    while let Some(done) = running.join_next().await {
        let (i, node, delta) = done.map_err(|e| exec_datafusion_err!("an aggregate stopped: {e}"))?;
        nodes[i] = Some(node);
        match delta {
            Ok(delta) => drop(deltas.insert(i, delta)),
            Err(error) => failed = Some(error),
        }
    }
    aggregates.extend(nodes.into_iter().flatten());
    match failed {
        Some(error) => Err(Error::DataFusion(error)),
        None => Ok(deltas),
    }
}

/// The batch with the positional column names of the table that stands for its plan.
fn positional(batch: RecordBatch, table: &SlotTable) -> Result<RecordBatch> {
    use datafusion::catalog::TableProvider;
    Ok(RecordBatch::try_new(table.schema(), batch.columns().to_vec())?)
}
