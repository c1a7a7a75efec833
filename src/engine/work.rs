//! How a view follows its nodes: what a micro-batch changes in it, and what becomes of it when its query fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::common::exec_datafusion_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;

use super::below::Below;
use super::finish::Finish;
use super::input::{Inputs, Runner};
use super::node::{RowError, plain, split};
use super::row_wise::RowView;
use super::schedule::{NodeChange, Stateful};
use super::view::{Changelog, Op, Ring, RowSource, ViewInfo};
use super::{Applied, Failure, MicroBatch, ViewChange, ViewError};
use crate::catalog::{Mode, Place};

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
    /// Its rows are those of a plan over its nodes.
    Finish(Finish),
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
        View { info: Arc::new(info), place, references, mode, work, failed: None }
    }

    /// The nodes that it reads.
    pub fn nodes(&self) -> &[usize] {
        match &self.work {
            Work::Append { .. } => &[],
            Work::RowView { node, .. } => std::slice::from_ref(node),
            Work::Finish(finish) => &finish.nodes,
        }
    }

    /// Bytes of its own rows.
    pub fn own_bytes(&self) -> usize {
        match &self.work {
            Work::Append { ring, .. } => ring.bytes(),
            Work::RowView { .. } => 0,
            Work::Finish(finish) => finish.bytes(),
        }
    }

    /// Whether it shows its last good rows and not the present ones.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
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
            Work::Finish(finish) => Some(finish.shown()),
        }
    }

    /// A change of this view.
    pub fn change(&self, changelog: Changelog, rows: Arc<dyn RowSource>) -> ViewChange {
        let stateless = matches!(self.work, Work::Append { .. });
        ViewChange { info: Arc::clone(&self.info), changelog, rows, stateless }
    }

    /// Computes it for the first time.
    pub async fn start(
        &mut self,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        session: &SessionContext,
    ) -> Option<ViewChange> {
        let empty = RecordBatch::new_empty(Arc::clone(&self.info.schema));
        if let Work::Append { .. } = self.work {
            return Some(self.change(Changelog::nothing(&self.info.schema), Arc::new(empty)));
        }
        let folded = self.fold(runner, inputs, session).await;
        let outcome = match folded {
            Ok(()) => self.compute(nodes, runner, inputs).await.map(Some),
            Err(error) => Err(error),
        };
        let change = self.settle(outcome, 0);
        // A view that fails at once is there, without rows.
        change.or_else(|| Some(self.change(Changelog::nothing(&self.info.schema), Arc::new(empty))))
    }

    /// Follows a reference table that has changed.
    pub async fn refresh(
        &mut self,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        session: &SessionContext,
    ) -> Result<Option<ViewChange>> {
        match &mut self.work {
            Work::Append { below, .. } => {
                below.reset()?;
                return Ok(None);
            }
            Work::RowView { .. } => return Ok(None),
            // It reads no table above its node: rows counted before keep those that they met.
            Work::Finish(finish) if finish.is_row_wise() => return Ok(None),
            Work::Finish(_) => {}
        }
        let outcome = match self.fold(runner, inputs, session).await {
            Ok(()) => self.compute(nodes, runner, inputs).await.map(Some),
            Err(error) => Err(error),
        };
        Ok(self.settle(outcome, 0))
    }

    /// Tries to bring a failed view back.
    pub async fn retry(
        &mut self,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
    ) -> Option<ViewChange> {
        if matches!(self.work, Work::Append { .. }) || self.incomplete(nodes).is_some() {
            return None;
        }
        let outcome = self.compute(nodes, runner, inputs).await;
        self.settle(outcome.map(Some), 0)
    }

    /// Follows its nodes over a micro-batch.
    pub async fn follow(
        &mut self,
        batch: &MicroBatch<'_>,
        changed: &BTreeMap<usize, NodeChange>,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
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
                None if self.has_failed() => self.come_back(touched_rows, nodes, runner, inputs).await,
                None => self.follow_nodes(changed, nodes, runner, inputs, &mut applied.errors).await,
            },
        };
        applied.changes.extend(self.settle(outcome, touched_rows));
    }

    async fn follow_nodes(
        &mut self,
        changed: &BTreeMap<usize, NodeChange>,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
        errors: &mut Vec<ViewError>,
    ) -> Result<Option<ViewChange>> {
        let is_append = self.mode == Mode::Append;
        let is_news = |change: &&NodeChange| match is_append {
            true => change.evicted.is_some(),
            false => !change.delta.is_empty() || change.evicted.is_some(),
        };
        let mut news = self.nodes().iter().filter_map(|node| changed.get(node)).filter(is_news);
        let Some(news) = news.next() else { return Ok(None) };
        match &mut self.work {
            Work::Append { .. } => Ok(None),
            Work::RowView { node, view } => {
                let Some(groups) = nodes[*node].node.snapshot() else { return Ok(None) };
                let changelog = view.update(&news.delta, groups)?;
                Ok(view.shown().map(|rows| self.change(changelog, rows)))
            }
            Work::Finish(finish) if finish.is_row_wise() && is_append => {
                let Some(evicted) = &news.evicted else { return Ok(None) };
                let (changelog, failed) =
                    finish.add_final(evicted, nodes, runner, inputs, &self.info).await?;
                errors.extend(failed.into_iter().map(|reason| ViewError {
                    row: None,
                    view: self.info.name.clone(),
                    reason,
                }));
                self.emit(changelog).map(Some)
            }
            Work::Finish(finish) if finish.is_row_wise() => {
                let changelog = finish.follow(&news.delta, nodes, runner, inputs, &self.info).await?;
                self.emit(changelog).map(Some)
            }
            Work::Finish(_) => self.compute(nodes, runner, inputs).await.map(Some),
        }
    }

    /// A failed view is computed anew, though not at each micro-batch if it has many groups.
    async fn come_back(
        &mut self,
        touched_rows: usize,
        nodes: &[Stateful],
        runner: &Runner,
        inputs: &Inputs,
    ) -> Result<Option<ViewChange>> {
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
        self.compute(nodes, runner, inputs).await.map(Some)
    }

    /// Computes it over all rows of its nodes.
    async fn compute(&mut self, nodes: &[Stateful], runner: &Runner, inputs: &Inputs) -> Result<ViewChange> {
        match &mut self.work {
            Work::Append { .. } => Err(exec_datafusion_err!("a view without state can't be computed anew")),
            Work::RowView { node, view } => {
                let groups = nodes[*node].node.snapshot();
                let groups = groups.ok_or_else(|| exec_datafusion_err!("a node without a snapshot"))?;
                let changelog = view.replace(groups)?;
                let rows = view.shown().ok_or_else(|| exec_datafusion_err!("a view without rows"))?;
                Ok(self.change(changelog, rows))
            }
            Work::Finish(finish) => {
                let only_final = self.mode == Mode::Append;
                let changelog = finish.recompute(nodes, only_final, runner, inputs, &self.info).await?;
                self.emit(changelog)
            }
        }
    }

    async fn fold(&mut self, runner: &Runner, inputs: &Inputs, session: &SessionContext) -> Result<()> {
        match &mut self.work {
            Work::Finish(finish) => finish.fold(runner, inputs, session).await,
            _ => Ok(()),
        }
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

    /// The change of a finishing plan's rows as the view's output mode has it.
    fn emit(&self, changelog: Changelog) -> Result<ViewChange, DataFusionError> {
        let Work::Finish(finish) = &self.work else {
            return Err(exec_datafusion_err!("a view without a finishing plan"));
        };
        let complete = self.mode == Mode::Complete && !changelog.ops.is_empty();
        let changelog = if complete { finish.complete(&changelog)? } else { changelog };
        Ok(self.change(changelog, finish.shown()))
    }
}

impl ViewError {
    fn of(view: &str, error: &RowError) -> ViewError {
        ViewError { row: Some(error.row), view: view.into(), reason: error.reason.clone() }
    }
}
