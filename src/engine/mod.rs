//! The engine: keeps the views of `queries/` up to date. Rows come in as record batches, one micro-batch
//! at a time; what changed in each view goes out as record batches. It does no I/O and reads no clock.

mod aggregate;
mod below;
mod bound;
mod dedup;
mod function;
pub mod held;
mod node;
#[cfg(test)]
mod oracle;
mod plan;
#[cfg(test)]
mod random_queries;
mod row_wise;
pub mod session;
mod session_groups;
pub mod slot;
mod split;
mod store;
#[cfg(test)]
mod tests;
mod types;
mod view;
mod watermark;
pub mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use datafusion::common::{exec_datafusion_err, internal_datafusion_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use tokio::task::JoinSet;

use self::below::Below;
use self::node::{Delta, Node};
use self::row_wise::Direct;
use self::slot::SlotTable;
use self::split::Reach;
pub use self::view::{Changelog, Op, RowSource, ViewInfo};
use self::view::{Ring, ViewRows};
use self::watermark::Watermark;
use crate::catalog::{Mode, Place};
use crate::error::Result;

/// Plans and state of every materialized view.
pub struct Engine {
    session: SessionContext,
    /// What plans run in: making one copies every function's name.
    context: Arc<TaskContext>,
    streams: BTreeMap<String, Arc<SlotTable>>,
    watermarks: BTreeMap<String, Watermark>,
    references: BTreeMap<String, Arc<SlotTable>>,
    /// Columns of each reference table that a view or a rule reads.
    needed: BTreeMap<String, BTreeSet<String>>,
    /// Columns of each source that a view or its watermark reads.
    read: BTreeMap<String, BTreeSet<String>>,
    nodes: Vec<Stateful>,
    views: Vec<View>,
}

/// A stateful node that one or more views share.
struct Stateful {
    /// What it keeps, as text: equal nodes are kept once.
    fingerprint: String,
    /// Its plan, for people.
    below: String,
    streams: Vec<String>,
    references: BTreeSet<String>,
    /// Stands for its rows in finishing plans.
    table: Arc<SlotTable>,
    node: Box<dyn Node>,
    /// Evicted rows that a finishing plan reads again; none where nobody does.
    finals: Option<Vec<RecordBatch>>,
}

/// A view, and how it follows its nodes.
struct View {
    info: Arc<ViewInfo>,
    place: Place,
    references: BTreeSet<String>,
    mode: Mode,
    work: Work,
}

enum Work {
    /// There is no state: its rows are those of the micro-batch.
    Append { below: Below, streams: Vec<String>, ring: Ring },
    /// Its rows are each made of one group of a node.
    Direct { node: usize, direct: Direct },
    /// Its rows are those of a plan over its nodes.
    Finish(Finish),
}

/// A finishing plan and its rows.
struct Finish {
    plan: Arc<dyn ExecutionPlan>,
    reach: Reach,
    folded: Vec<(LogicalPlan, Arc<SlotTable>)>,
    nodes: Vec<usize>,
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
    /// Whether the view has no state: what it has said it will not say again.
    pub stateless: bool,
}

/// What a micro-batch did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Views whose rows may have changed.
    pub changes: Vec<ViewChange>,
    /// Rows of the batch, by position, that came after their group of a view was final.
    pub late: Vec<(u32, String)>,
}

/// What a micro-batch did to one node.
struct NodeChange {
    delta: Delta,
    evicted: Option<RecordBatch>,
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

    /// Columns of a source that a view or its watermark reads.
    pub fn source_columns(&self, source: &str) -> BTreeSet<String> {
        self.read.get(source).cloned().unwrap_or_default()
    }

    /// Bytes of the nodes' state and the views' rows.
    pub fn state_bytes(&self) -> usize {
        self.nodes.iter().map(Stateful::bytes).sum::<usize>()
            + self.views.iter().map(View::own_bytes).sum::<usize>()
    }

    /// Of each view, bytes of its rows and of its nodes, which others may share.
    pub fn state_bytes_by_view(&self) -> BTreeMap<String, usize> {
        let of = |view: &View| {
            let nodes: usize = view.nodes().iter().map(|node| self.nodes[*node].bytes()).sum();
            (view.info.name.clone(), view.own_bytes() + nodes)
        };
        self.views.iter().map(of).collect()
    }

    /// Up to when a source is complete, in nanoseconds since 1970, if it declares a watermark.
    pub fn watermark(&self, source: &str) -> Option<i64> {
        self.watermarks.get(source)?.now()
    }

    /// Says which partitions of a source have messages that are not read yet: while one of them has had no row,
    /// nothing becomes final.
    pub fn wait_for(&mut self, source: &str, unread: BTreeSet<i32>) {
        if let Some(watermark) = self.watermarks.get_mut(source) {
            watermark.wait_for(unread);
        }
    }

    /// Gives a reference table its rows, of the needed columns. [`Engine::refresh`] takes them into use.
    pub fn set_reference(&self, table: &str, batches: Vec<RecordBatch>) {
        if let Some(slot) = self.references.get(table) {
            slot.set(batches);
        }
    }

    /// Recomputes the views that read one of `tables`, from the nodes as they are. Rows counted
    /// before keep the reference rows they met; later rows meet the new ones.
    pub async fn refresh(&mut self, tables: &BTreeSet<String>) -> Result<Vec<ViewChange>> {
        for node in &mut self.nodes {
            if !node.references.is_disjoint(tables) {
                node.node.reset()?;
            }
        }
        let mut changes = Vec::new();
        for i in 0..self.views.len() {
            if self.views[i].references.is_disjoint(tables) {
                continue;
            }
            match &mut self.views[i].work {
                Work::Append { below, .. } => below.reset()?,
                Work::Direct { .. } => {}
                Work::Finish(_) => {
                    self.fold(i).await?;
                    changes.push(self.recompute(i).await?);
                }
            }
        }
        Ok(changes)
    }

    /// Computes every view for the first time, over no row of any stream.
    pub async fn start(&mut self) -> Result<Vec<ViewChange>> {
        let mut changes = Vec::new();
        for i in 0..self.views.len() {
            match &self.views[i].work {
                Work::Append { .. } => changes.push(self.views[i].nothing()?),
                Work::Direct { node, .. } => {
                    let node = *node;
                    let after = self.nodes[node].node.rows()?;
                    let delta = Delta { before: after.slice(0, 0), after, late: Vec::new() };
                    changes.push(self.finish_directly(i, node, &delta)?);
                }
                Work::Finish(_) => {
                    self.fold(i).await?;
                    changes.push(self.recompute(i).await?);
                }
            }
        }
        Ok(changes)
    }

    /// Every row of every view with state, as if it were new.
    pub fn all_rows(&self) -> Result<Vec<ViewChange>> {
        let mut all = Vec::new();
        for view in &self.views {
            let rows: Arc<dyn RowSource> = match &view.work {
                Work::Append { .. } => continue,
                Work::Direct { node, direct } => direct.snapshot(self.groups(*node)?),
                Work::Finish(finish) => finish.shown(),
            };
            let batch = rows.batch()?;
            let changelog = Changelog { ops: vec![Op::Insert; batch.num_rows()], rows: batch };
            all.push(view.change(changelog, rows));
        }
        Ok(all)
    }

    /// Adds a micro-batch of `source`: only rows that keep its rules, with at least the columns of
    /// [`Engine::source_columns`]. `partitions` is that of each row; none: all are of one.
    pub async fn apply(
        &mut self,
        source: &str,
        rows: RecordBatch,
        partitions: Option<&[i32]>,
    ) -> Result<Applied> {
        if rows.num_rows() == 0 {
            return Ok(Applied::default());
        }
        let Some(stream) = self.streams.get(source).cloned() else { return Ok(Applied::default()) };
        let rows = match self.watermarks.get_mut(source) {
            Some(watermark) => {
                let (times, final_until) = watermark.advance(&rows, partitions)?;
                with_hidden(&rows, times, final_until)?
            }
            None => rows,
        };
        stream.set(vec![rows]);
        let applied = self.apply_to_all(source).await;
        stream.set(Vec::new());
        applied
    }

    async fn apply_to_all(&mut self, source: &str) -> Result<Applied> {
        let context = Arc::clone(&self.context);
        let final_until = self.watermarks.get(source).and_then(Watermark::final_until);
        let changed = apply_all(&mut self.nodes, source, final_until, &context).await?;
        for (node, change) in &changed {
            if let (Some(finals), Some(evicted)) = (&mut self.nodes[*node].finals, &change.evicted) {
                finals.push(evicted.clone());
            }
        }
        let mut applied = Applied::default();
        for i in 0..self.views.len() {
            let view = &mut self.views[i];
            let change = match &mut view.work {
                Work::Append { below, streams, ring } => {
                    if !streams.iter().any(|stream| stream == source) {
                        continue;
                    }
                    let rows = below.run(Arc::clone(&context)).await.map_err(|e| view.place.explain(e))?;
                    let rows = rows.with_schema(Arc::clone(&view.info.schema))?;
                    ring.push(&rows)?;
                    let newest = Arc::new(ring.clone());
                    view.change(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows }, newest)
                }
                Work::Direct { node, .. } => {
                    let node = *node;
                    match changed.get(&node) {
                        Some(change) if change.delta.after.num_rows() > 0 => {
                            self.finish_directly(i, node, &change.delta)?
                        }
                        _ => continue,
                    }
                }
                Work::Finish(finish) => {
                    let touched: Vec<_> = finish.nodes.iter().filter_map(|node| changed.get(node)).collect();
                    for change in &touched {
                        let name = |row: &u32| (*row, view.info.name.clone());
                        applied.late.extend(change.delta.late.iter().map(name));
                    }
                    let is_news = |change: &&&NodeChange| match view.mode {
                        Mode::Append => change.evicted.is_some(),
                        _ => change.delta.after.num_rows() > 0 || change.evicted.is_some(),
                    };
                    let Some(news) = touched.iter().find(is_news) else { continue };
                    match (finish.reach, view.mode) {
                        (Reach::Touched, Mode::Append) => self.finish_evicted(i, news).await?,
                        (Reach::Touched, _) => self.finish_touched(i, &news.delta).await?,
                        _ => self.recompute(i).await?,
                    }
                }
            };
            applied.changes.push(change);
        }
        applied.late.sort();
        applied.late.dedup();
        Ok(applied)
    }

    fn groups(&self, node: usize) -> Result<Arc<dyn node::Groups>> {
        let groups = self.nodes[node].node.snapshot();
        groups.ok_or_else(|| internal_datafusion_err!("a node without a snapshot").into())
    }

    fn finish_directly(&mut self, view: usize, node: usize, delta: &Delta) -> Result<ViewChange> {
        let groups = self.groups(node)?;
        let view = &mut self.views[view];
        let Work::Direct { direct, .. } = &mut view.work else {
            return Err(internal_datafusion_err!("a view that is not made of groups").into());
        };
        let changelog = direct.update(delta).map_err(|e| view.place.explain(e))?;
        let rows = direct.snapshot(groups);
        Ok(view.change(changelog, rows))
    }

    /// Runs the parts of a finishing plan that read reference tables only.
    async fn fold(&mut self, view: usize) -> Result<()> {
        let Work::Finish(finish) = &self.views[view].work else { return Ok(()) };
        for (plan, table) in &finish.folded {
            let state = self.session.state();
            let plan = state.query_planner().create_physical_plan(plan, &state).await?;
            let batches = collect(plan, Arc::clone(&self.context)).await?;
            table.set(batches.into_iter().map(|batch| positional(batch, table)).collect::<Result<_>>()?);
        }
        Ok(())
    }

    /// Runs a row-wise finishing plan over the touched rows of its node, as they were and as they are.
    async fn finish_touched(&mut self, view: usize, delta: &Delta) -> Result<ViewChange> {
        let context = Arc::clone(&self.context);
        let View { info, place, work: Work::Finish(finish), .. } = &mut self.views[view] else {
            return Err(internal_datafusion_err!("a view without a finishing plan").into());
        };
        let table = &self.nodes[finish.nodes[0]].table;
        table.set(vec![delta.before.clone()]);
        let before = finish.run(info, place, &context).await?;
        table.set(vec![delta.after.clone()]);
        let after = finish.run(info, place, &context).await?;
        table.set(Vec::new());
        let changelog = finish.rows.update(&before, &after).map_err(|e| place.explain(e))?;
        self.views[view].emit(changelog)
    }

    /// Runs a row-wise finishing plan over the rows that have become final.
    async fn finish_evicted(&mut self, view: usize, change: &NodeChange) -> Result<ViewChange> {
        let nothing = change.delta.before.slice(0, 0);
        let after = change.evicted.clone().unwrap_or_else(|| nothing.clone());
        self.finish_touched(view, &Delta { before: nothing, after, late: Vec::new() }).await
    }

    /// Runs a finishing plan over all rows of its nodes.
    async fn recompute(&mut self, view: usize) -> Result<ViewChange> {
        let context = Arc::clone(&self.context);
        let View { info, place, mode, work: Work::Finish(finish), .. } = &mut self.views[view] else {
            return Err(internal_datafusion_err!("a view without a finishing plan").into());
        };
        for node in &finish.nodes {
            let node = &self.nodes[*node];
            let mut rows = node.finals.clone().unwrap_or_default();
            if *mode != Mode::Append {
                rows.push(node.node.rows()?);
            }
            node.table.set(rows);
        }
        let rows = finish.run(info, place, &context).await;
        for node in &finish.nodes {
            self.nodes[*node].table.set(Vec::new());
        }
        let rows = rows?;
        let changelog = finish.rows.replace(&rows).map_err(|e| place.explain(e))?;
        finish.ordered = finish.is_ordered.then_some(rows);
        self.views[view].emit(changelog)
    }
}

impl Finish {
    /// The rows in the order in which they are read.
    fn shown(&self) -> Arc<dyn RowSource> {
        match &self.ordered {
            Some(batch) => Arc::new(batch.clone()),
            None => self.rows.snapshot(),
        }
    }

    async fn run(
        &mut self,
        info: &ViewInfo,
        place: &Place,
        context: &Arc<TaskContext>,
    ) -> Result<RecordBatch> {
        // Joins cache one side: over other rows it must be built again.
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        let batches =
            collect(Arc::clone(&self.plan), Arc::clone(context)).await.map_err(|e| place.explain(e))?;
        let columns = batches.iter().map(|batch| batch.clone().with_schema(Arc::clone(&info.schema)));
        Ok(concat_batches(&info.schema, &columns.collect::<Result<Vec<_>, _>>()?)?)
    }
}

impl View {
    fn nodes(&self) -> &[usize] {
        match &self.work {
            Work::Append { .. } => &[],
            Work::Direct { node, .. } => std::slice::from_ref(node),
            Work::Finish(finish) => &finish.nodes,
        }
    }

    fn own_bytes(&self) -> usize {
        match &self.work {
            Work::Append { ring, .. } => ring.bytes(),
            Work::Direct { .. } => 0,
            Work::Finish(finish) => finish.rows.bytes(),
        }
    }

    fn nothing(&self) -> Result<ViewChange> {
        let rows = RecordBatch::new_empty(Arc::clone(&self.info.schema));
        Ok(self.change(Changelog { ops: Vec::new(), rows: rows.clone() }, Arc::new(rows)))
    }

    /// The change of a finishing plan's rows as the view's output mode has it.
    fn emit(&self, changelog: Changelog) -> Result<ViewChange> {
        let Work::Finish(finish) = &self.work else { return self.nothing() };
        let complete = self.mode == Mode::Complete && !changelog.ops.is_empty();
        let changelog = if complete { finish.rows.complete(&changelog)? } else { changelog };
        Ok(self.change(changelog, finish.shown()))
    }

    fn change(&self, changelog: Changelog, rows: Arc<dyn RowSource>) -> ViewChange {
        let stateless = matches!(self.work, Work::Append { .. });
        ViewChange { info: Arc::clone(&self.info), changelog, rows, stateless }
    }
}

/// Runs every node that reads `source`, at the same time, and gives what changed by position.
async fn apply_all(
    nodes: &mut Vec<Stateful>,
    source: &str,
    final_until: Option<i64>,
    context: &Arc<TaskContext>,
) -> Result<BTreeMap<usize, NodeChange>> {
    let reads = |node: &Stateful| node.streams.iter().any(|stream| stream == source);
    let readers: Vec<usize> = (0..nodes.len()).filter(|i| reads(&nodes[*i])).collect();
    if let [i] = readers[..] {
        // A thread of its own would cost more than it brings.
        return Ok(BTreeMap::from([(i, nodes[i].apply(final_until, Arc::clone(context)).await?)]));
    }
    let mut running = JoinSet::new();
    let mut slots: Vec<Option<Stateful>> = std::mem::take(nodes).into_iter().map(Some).collect();
    for (i, slot) in slots.iter_mut().enumerate() {
        if let Some(mut node) = slot.take_if(|node| reads(node)) {
            let context = Arc::clone(context);
            running.spawn(async move {
                let change = node.apply(final_until, context).await;
                (i, node, change)
            });
        }
    }
    let mut changed = BTreeMap::new();
    let mut failed = None;
    while let Some(done) = running.join_next().await {
        let (i, node, change) = done.map_err(|e| exec_datafusion_err!("a node stopped: {e}"))?;
        slots[i] = Some(node);
        match change {
            Ok(change) => drop(changed.insert(i, change)),
            Err(error) => failed = Some(error),
        }
    }
    nodes.extend(slots.into_iter().flatten());
    match failed {
        Some(error) => Err(error),
        None => Ok(changed),
    }
}

impl Stateful {
    fn bytes(&self) -> usize {
        let finals = self.finals.iter().flatten().map(RecordBatch::get_array_memory_size);
        self.node.bytes() + finals.sum::<usize>()
    }

    async fn apply(&mut self, final_until: Option<i64>, context: Arc<TaskContext>) -> Result<NodeChange> {
        let delta = self.node.apply(context).await?;
        let evicted = match final_until {
            // What two streams feed is final when both say so: never, for now.
            Some(final_until) if self.streams.len() == 1 => self.node.evict(final_until)?,
            _ => None,
        };
        Ok(NodeChange { delta, evicted })
    }
}

/// The rows with the columns that no query sees.
fn with_hidden(rows: &RecordBatch, times: Int64Array, final_until: Int64Array) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(times));
    columns.push(Arc::new(final_until));
    columns.push(Arc::new(UInt32Array::from_iter_values(0..rows.num_rows() as u32)));
    Ok(RecordBatch::try_new(slot::with_hidden_fields(&rows.schema()), columns)?)
}

/// The batch with the positional column names of the table that stands for its plan.
fn positional(batch: RecordBatch, table: &SlotTable) -> Result<RecordBatch> {
    use datafusion::catalog::TableProvider;
    Ok(RecordBatch::try_new(table.schema(), batch.columns().to_vec())?)
}
