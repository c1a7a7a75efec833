//! How a view follows its nodes: what a micro-batch changes in it, and what becomes of it when its query fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::common::exec_datafusion_err;
use datafusion::error::{DataFusionError, Result};

use super::below::Below;
use super::flow::{Changes, FlowView, Graph};
use super::input::{Inputs, Runner};
use super::node::{RowError, plain, split};
use super::row_wise::RowView;
use super::schedule::{NodeChange, Stateful};
use super::view::{Changelog, Op, Ring, RowSource, ViewInfo};
use super::{Applied, Failure, MicroBatch, ViewChange, ViewError};
use crate::catalog::{Mode, Place};
use crate::checkpoint::{Loader, Saver};

/// A view, and how it follows its nodes.
pub struct View {
    /// What does not change about it.
    pub info: Arc<ViewInfo>,
    /// Where it is declared.
    pub place: Place,
    /// The reference tables that it reads.
    pub references: BTreeSet<String>,
    /// Its output mode.
    pub mode: Mode,
    /// How it follows.
    pub work: Work,
    /// While it shows its last good rows: why.
    pub failed: Option<Failed>,
    /// How long it has worked above its nodes and parts.
    pub busy: Duration,
}

/// What keeps a view's rows.
pub enum Work {
    /// There is no state: its rows are those of the micro-batch.
    Append {
        /// The whole query.
        below: Below,
        /// The streams that it reads.
        streams: Vec<String>,
        /// Its newest rows.
        ring: Ring,
    },
    /// Its rows are each made of one group of a node.
    RowView {
        /// The node.
        node: usize,
        /// Expressions over it.
        view: RowView,
    },
    /// Its rows are those of a dataflow over its nodes and reference tables.
    Flow {
        /// The nodes.
        nodes: Vec<usize>,
        /// The end of the dataflow.
        view: Box<FlowView>,
    },
}

/// A view whose query has failed.
#[derive(Debug)]
pub struct Failed {
    reason: String,
    /// Rows of its nodes that have changed since it was last tried to bring it back.
    owed: usize,
}

/// Trying to bring a view back costs as much as all its groups: it is worth that once so many have changed, a
/// share of all of them.
const RETRY_SHARE: usize = 4;

impl View {
    /// A view without rows.
    pub fn new(info: ViewInfo, place: Place, references: BTreeSet<String>, mode: Mode, work: Work) -> View {
        View { info: Arc::new(info), place, references, mode, work, failed: None, busy: Duration::ZERO }
    }

    /// The nodes that it reads.
    pub fn nodes(&self) -> &[usize] {
        match &self.work {
            Work::Append { .. } => &[],
            Work::RowView { node, .. } => std::slice::from_ref(node),
            Work::Flow { nodes, .. } => nodes,
        }
    }

    /// The parts of the graph of dataflows that it reads.
    pub fn parts(&self) -> impl Iterator<Item = usize> + '_ {
        let view = match &self.work {
            Work::Flow { view, .. } => Some(view),
            _ => None,
        };
        view.into_iter().flat_map(|view| view.parts.iter().copied())
    }

    /// Bytes of its own rows.
    pub fn own_bytes(&self) -> usize {
        match &self.work {
            Work::Append { ring, .. } => ring.bytes(),
            Work::RowView { .. } => 0,
            Work::Flow { view, .. } => view.bytes(),
        }
    }

    /// Whether it shows its last good rows and not the present ones.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether it has stopped since it may hold no more rows.
    pub fn is_over_limit(&self) -> bool {
        matches!(&self.work, Work::Flow { view, .. } if view.is_over)
    }

    /// Why it does.
    pub fn failure(&self) -> Option<Failure> {
        let Failed { reason, .. } = self.failed.as_ref()?;
        Some(Failure { view: self.info.name.clone(), place: self.place.clone(), reason: reason.clone() })
    }

    /// Its rows, if it keeps them or can make them anew: the last good ones, if it has failed.
    pub fn shown(&self) -> Option<Arc<dyn RowSource>> {
        match &self.work {
            Work::Append { .. } => None,
            Work::RowView { view, .. } => view.shown(),
            Work::Flow { view, .. } => Some(view.shown()),
        }
    }

    /// Whether what it has said it can't say again.
    pub fn is_stateless(&self) -> bool {
        match &self.work {
            Work::Append { .. } => true,
            Work::RowView { .. } => false,
            Work::Flow { view, .. } => view.forgets(),
        }
    }

    /// Gives its rows to a checkpoint, and why it shows its last good ones, if it does.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let View { info, place: _, references: _, mode: _, work, failed, busy: _ } = self;
        saver.mark(&info.name)?;
        saver.value(&failed.as_ref().map(|Failed { reason, owed }| (reason, owed)))?;
        match work {
            Work::Append { below: _, streams: _, ring } => ring.save(saver),
            Work::RowView { node: _, view } => view.save(saver, failed.is_some()),
            Work::Flow { nodes: _, view } => view.save(saver),
        }
    }

    /// Takes its rows from a checkpoint, as `nodes` and `graph` have; what it shows then.
    pub fn load(&mut self, loader: &mut Loader, nodes: &[Stateful], graph: &Graph) -> Result<ViewChange> {
        loader.mark(&self.info.name)?;
        let failed: Option<(String, usize)> = loader.value()?;
        self.failed = failed.map(|(reason, owed)| Failed { reason, owed });
        match &mut self.work {
            Work::Append { ring, .. } => ring.load(loader)?,
            Work::RowView { node, view } => view.load(loader, nodes[*node].node.as_ref())?,
            Work::Flow { view, .. } => view.load(loader, graph)?,
        }
        let empty = || Arc::new(RecordBatch::new_empty(Arc::clone(&self.info.schema))) as _;
        let rows = match &self.work {
            Work::Append { ring, .. } => Arc::new(ring.clone()) as _,
            _ => self.shown().unwrap_or_else(empty),
        };
        Ok(self.change(Changelog::nothing(&self.info.schema), rows))
    }

    /// A change of this view.
    pub fn change(&self, changelog: Changelog, rows: Arc<dyn RowSource>) -> ViewChange {
        ViewChange { info: Arc::clone(&self.info), changelog, rows, stateless: self.is_stateless() }
    }

    /// Shows it for the first time; `changes` are those of the dataflows as they start.
    pub fn start(&mut self, changes: &Changes, nodes: &[Stateful], graph: &Graph) -> ViewChange {
        let empty = RecordBatch::new_empty(Arc::clone(&self.info.schema));
        let outcome = match &mut self.work {
            Work::Append { .. } => Ok(None),
            Work::RowView { .. } => self.compute(nodes).map(Some),
            Work::Flow { .. } => self.follow_flow(changes, graph),
        };
        // A view that fails at once is there, without rows.
        let change = self.settle(outcome, 0);
        change.unwrap_or_else(|| self.change(Changelog::nothing(&self.info.schema), Arc::new(empty)))
    }

    /// Follows what changed in the dataflows when a reference table did, or when they are tried again.
    pub fn refresh(&mut self, changes: &Changes, graph: &Graph) -> Result<Option<ViewChange>> {
        match &mut self.work {
            Work::Append { below, .. } => {
                below.reset()?;
                Ok(None)
            }
            // It reads no table above its node: rows counted before keep those that they met.
            Work::RowView { .. } => Ok(None),
            Work::Flow { .. } => {
                let outcome = self.follow_flow(changes, graph);
                Ok(self.settle(outcome, 0))
            }
        }
    }

    /// Tries to bring a failed view back.
    pub fn retry(&mut self, changes: &Changes, nodes: &[Stateful], graph: &Graph) -> Option<ViewChange> {
        if self.incomplete(nodes).is_some() {
            return None;
        }
        let outcome = match &self.work {
            Work::Append { .. } => return None,
            Work::RowView { .. } => self.compute(nodes).map(Some),
            Work::Flow { .. } => self.follow_flow(changes, graph),
        };
        self.settle(outcome, 0)
    }

    /// Follows a micro-batch: what changed in its nodes, or in its dataflow.
    pub async fn follow(
        &mut self,
        batch: &MicroBatch<'_>,
        changed: &BTreeMap<usize, NodeChange>,
        nodes: &[Stateful],
        (flows, graph): (&Changes, &Graph),
        (runner, inputs): (&Runner, &Inputs),
        applied: &mut Applied,
    ) {
        let name = self.info.name.clone();
        let mut touched_rows = 0;
        for change in self.nodes().iter().filter_map(|node| changed.get(node)) {
            touched_rows += change.delta.after.num_rows();
            applied.late.extend(change.delta.late.iter().map(|row| (*row, name.clone())));
            applied.errors.extend(change.errors.iter().map(|error| ViewError::of(&name, error)));
        }
        let outcome = match &self.work {
            Work::Append { streams, .. } if !streams.iter().any(|stream| stream == batch.source) => return,
            Work::Append { .. } => self.append(batch, runner, inputs, &mut applied.errors).await.map(Some),
            _ => match self.incomplete(nodes) {
                Some(reason) => Err(exec_datafusion_err!("{reason}")),
                None => self.follow_nodes(changed, touched_rows, nodes, flows, graph),
            },
        };
        if let Work::Flow { view, .. } = &self.work {
            let left_out = graph.left_out(&view.parts).map(|reason| ViewError {
                row: None,
                view: name.clone(),
                reason: reason.clone(),
            });
            applied.errors.extend(left_out);
        }
        applied.changes.extend(self.settle(outcome, touched_rows));
    }

    fn follow_nodes(
        &mut self,
        changed: &BTreeMap<usize, NodeChange>,
        touched_rows: usize,
        nodes: &[Stateful],
        flows: &Changes,
        graph: &Graph,
    ) -> Result<Option<ViewChange>> {
        match &mut self.work {
            Work::Append { .. } => Ok(None),
            Work::RowView { .. } if self.failed.is_some() => self.come_back(touched_rows, nodes),
            Work::RowView { node, view } => {
                let is_news = |change: &&NodeChange| !change.delta.is_empty() || change.evicted.is_some();
                let Some(news) = changed.get(node).filter(is_news) else { return Ok(None) };
                let Some(groups) = nodes[*node].node.snapshot() else { return Ok(None) };
                let changelog = view.update(&news.delta, groups)?;
                Ok(view.shown().map(|rows| self.change(changelog, rows)))
            }
            Work::Flow { .. } => self.follow_flow(flows, graph),
        }
    }

    fn follow_flow(&mut self, flows: &Changes, graph: &Graph) -> Result<Option<ViewChange>> {
        let has_failed = self.has_failed();
        let Work::Flow { view, .. } = &mut self.work else { return Ok(None) };
        match view.follow(flows, graph)? {
            Some(changelog) => self.emit(changelog).map(Some),
            // It has come back to what it showed.
            None if has_failed => self.emit(Changelog::nothing(&self.info.schema)).map(Some),
            None => Ok(None),
        }
    }

    /// A failed view is computed anew, though not at each micro-batch if it has many groups.
    fn come_back(&mut self, touched_rows: usize, nodes: &[Stateful]) -> Result<Option<ViewChange>> {
        let groups = match &self.work {
            Work::RowView { node, .. } => nodes[*node].node.snapshot().map_or(0, |groups| groups.len()),
            _ => 0,
        };
        if let Some(failed) = &mut self.failed {
            failed.owed += touched_rows;
            if failed.owed * RETRY_SHARE < groups {
                return Ok(None);
            }
            failed.owed = 0;
        }
        self.compute(nodes).map(Some)
    }

    /// Computes it over all rows of its node.
    fn compute(&mut self, nodes: &[Stateful]) -> Result<ViewChange> {
        let Work::RowView { node, view } = &mut self.work else {
            return Err(exec_datafusion_err!("only a view over groups is computed anew"));
        };
        let groups = nodes[*node].node.snapshot();
        let groups = groups.ok_or_else(|| exec_datafusion_err!("a node without a snapshot"))?;
        let changelog = view.replace(groups)?;
        let rows = view.shown().ok_or_else(|| exec_datafusion_err!("a view without rows"))?;
        Ok(self.change(changelog, rows))
    }

    /// Runs a query without state over the micro-batch; rows that it can't take are left out.
    async fn append(
        &mut self,
        batch: &MicroBatch<'_>,
        runner: &Runner,
        inputs: &Inputs,
        errors: &mut Vec<ViewError>,
    ) -> Result<ViewChange> {
        let schema = Arc::clone(&self.info.schema);
        let Work::Append { below, ring, .. } = &mut self.work else {
            return Err(exec_datafusion_err!("a view with state"));
        };
        let context = |rows: RecordBatch| runner.context(inputs.clone().with(batch.stream, vec![rows]));
        let rows = match below.run(context(batch.rows.clone())).await {
            Ok(rows) => rows,
            Err(error) => {
                // A join may have kept the error of its other side.
                if below.run(context(batch.rows.slice(0, 0))).await.is_err() {
                    below.reset()?;
                    below.run(context(batch.rows.slice(0, 0))).await?;
                }
                let (mut good, mut failed) = (Vec::new(), Vec::new());
                let mut parts = split(0..batch.rows.num_rows(), error, &mut failed);
                while let Some(part) = parts.pop() {
                    match below.run(context(batch.rows.slice(part.start, part.len()))).await {
                        Ok(rows) => good.push(rows),
                        Err(error) => parts.extend(split(part, error, &mut failed)),
                    }
                }
                errors.extend(failed.iter().map(|error| ViewError::of(&self.info.name, error)));
                concat_batches(&below.schema(), &good)?
            }
        };
        let rows = rows.with_schema(schema)?;
        ring.push(&rows)?;
        let newest = Arc::new(ring.clone());
        Ok(self.change(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows }, newest))
    }

    fn incomplete(&self, nodes: &[Stateful]) -> Option<String> {
        self.nodes().iter().find_map(|node| nodes[*node].incomplete())
    }

    /// Notes whether the view could follow.
    fn settle(&mut self, outcome: Result<Option<ViewChange>>, touched_rows: usize) -> Option<ViewChange> {
        match outcome {
            Ok(Some(change)) => {
                self.failed = None;
                Some(change)
            }
            Ok(None) => None,
            Err(error) => {
                self.failed = Some(Failed { reason: plain(&error), owed: touched_rows });
                None
            }
        }
    }

    /// The change of a dataflow's rows as the view's output mode has it.
    fn emit(&self, changelog: Changelog) -> Result<ViewChange, DataFusionError> {
        let Work::Flow { view, .. } = &self.work else {
            return Err(exec_datafusion_err!("a view without a dataflow"));
        };
        let complete = self.mode == Mode::Complete && !changelog.ops.is_empty();
        let changelog = if complete { view.complete(&changelog)? } else { changelog };
        Ok(self.change(changelog, view.shown()))
    }
}

impl ViewError {
    fn of(view: &str, error: &RowError) -> ViewError {
        ViewError { row: Some(error.row), view: view.into(), reason: error.reason.clone() }
    }
}
