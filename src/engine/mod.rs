//! The engine: keeps the views of `queries/` up to date. Rows come in as record batches, one micro-batch
//! at a time; what changed in each view goes out as record batches. It does no I/O, and reads a clock only to tell
//! how long its parts have worked.
//!
//! Nothing that a value does ends it: a row that an expression can't take is left out of the views that ask
//! for it; a view whose finishing plan fails keeps its last good rows and says why, until it can go on.

mod aggregate;
mod below;
mod bound;
mod dedup;
mod delta;
#[cfg(test)]
mod event_time_tests;
mod exact;
mod flow;
mod function;
mod grain;
mod hidden;
pub mod input;
mod interval;
mod lookup;
mod node;
mod operands;
#[cfg(test)]
mod oracle;
mod plan;
#[cfg(test)]
mod random_queries;
mod row_windows;
mod row_wise;
mod saved;
mod schedule;
pub mod session;
mod session_groups;
mod session_rows;
mod split;
mod store;
mod stream_rows;
#[cfg(test)]
mod tests;
mod types;
#[cfg(test)]
mod unstoppable;
pub mod upkeep;
mod view;
mod view_rows;
mod watermark;
mod window_functions;
pub mod windows;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, UInt32Array};
use datafusion::prelude::SessionContext;

use self::flow::{Graph, Run, Source};
use self::input::{InputTable, Inputs, Runner};
pub use self::lookup::Unmatched;
use self::lookup::ViewLookup;
pub use self::plan::{in_dependency_order, reads_other_tables};
use self::schedule::{Stateful, add_to_all};
pub use self::view::{Changelog, Disclosure, Op, RowSource, Secret, ViewInfo};
pub use self::view_rows::ViewRows;
use self::watermark::Watermark;
use self::work::View;
use crate::catalog::Place;
use crate::error::Result;
use crate::source::Origin;

/// Plans and state of every materialized view.
pub struct Engine {
    session: SessionContext,
    runner: Runner,
    /// The rows of the reference tables.
    inputs: Inputs,
    streams: BTreeMap<String, Arc<InputTable>>,
    watermarks: BTreeMap<String, Watermark>,
    references: BTreeMap<String, Arc<InputTable>>,
    /// Columns of each reference table that a view or a rule reads.
    needed: BTreeMap<String, BTreeSet<String>>,
    /// Columns of each source that a view or its watermark reads.
    read: BTreeMap<String, BTreeSet<String>>,
    nodes: Vec<Stateful>,
    /// The dataflows above the nodes.
    graph: Graph,
    /// The rows of the reference tables that the dataflows have taken.
    shown_tables: BTreeMap<String, Vec<RecordBatch>>,
    views: Vec<View>,
    /// Joins of the views with reference tables, made as rows are counted.
    lookups: Vec<ViewLookup>,
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
    /// Whether the view tells each row once and forgets it: what it has said it will not say again.
    pub stateless: bool,
}

/// What a micro-batch did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Views whose rows may have changed.
    pub changes: Vec<ViewChange>,
    /// Rows of the batch, by position, that came after their group of a view was final.
    pub late: Vec<(u32, String)>,
    /// Rows that an expression of a view could not take: that view goes on without them.
    pub errors: Vec<ViewError>,
}

/// A row that a view goes on without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewError {
    /// Its position in the micro-batch; none for a row of a final group, which no message stands for.
    pub row: Option<u32>,
    /// The view.
    pub view: String,
    /// What the expression said.
    pub reason: String,
}

/// Why a view shows its last good rows and not the present ones.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The view.
    pub view: String,
    /// Where it is declared.
    pub place: Place,
    /// What its query said.
    pub reason: String,
}

impl Engine {
    /// The views.
    pub fn views(&self) -> impl Iterator<Item = &Arc<ViewInfo>> {
        self.views.iter().map(|view| &view.info)
    }

    /// The views that only pass rows on, and can't say later what they have said.
    pub fn stateless_views(&self) -> impl Iterator<Item = &Arc<ViewInfo>> {
        self.views.iter().filter(|view| view.is_stateless()).map(|view| &view.info)
    }

    /// The reference tables that a view reads.
    pub fn view_tables(&self, view: &str) -> impl Iterator<Item = &String> {
        self.views.iter().filter(move |known| known.info.name == view).flat_map(|view| &view.references)
    }

    /// The views that have failed and have not come back.
    pub fn failures(&self) -> Vec<Failure> {
        self.views.iter().filter_map(View::failure).collect()
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
            + self.graph.bytes(0..self.graph.len())
            + self.views.iter().map(View::own_bytes).sum::<usize>()
    }

    /// Of each view, bytes of its rows and of its nodes, which others may share.
    pub fn state_bytes_by_view(&self) -> BTreeMap<String, usize> {
        let of = |view: &View| {
            let nodes: usize = view.nodes().iter().map(|node| self.nodes[*node].bytes()).sum();
            (view.info.name.clone(), view.own_bytes() + nodes + self.graph.bytes(view.parts()))
        };
        self.views.iter().map(of).collect()
    }

    /// Of each view, seconds that it and its nodes, which others may share, have worked since the start. Nodes work at
    /// the same time, so they may be more than have passed.
    pub fn seconds_by_view(&self) -> BTreeMap<String, f64> {
        let of = |view: &View| {
            let nodes: Duration = view.nodes().iter().map(|node| self.nodes[*node].busy).sum();
            let busy = view.busy + nodes + self.graph.busy(view.parts());
            (view.info.name.clone(), busy.as_secs_f64())
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

    /// Says which partitions of a source have been silent for its `idle_timeout`: they hold its windows open no
    /// longer. What that makes final is told with the next micro-batch.
    pub fn set_idle(&mut self, source: &str, idle: BTreeSet<i32>) {
        if let Some(watermark) = self.watermarks.get_mut(source) {
            watermark.set_idle(idle);
        }
    }

    /// The partition that holds a source's watermark back.
    pub fn watermark_holder(&self, source: &str) -> Option<i32> {
        self.watermarks.get(source)?.holder()
    }

    /// Gives a reference table its rows, of the needed columns. [`Engine::refresh`] takes them into use.
    pub fn set_reference(&mut self, table: &str, batches: Vec<RecordBatch>) {
        if let Some(table) = self.references.get(table) {
            self.inputs.set_reference(table, batches);
        }
    }

    /// Takes the new rows of `tables` into use: what has changed in them goes through the dataflows that read them.
    /// Rows of streams counted before keep the reference rows they met; later rows meet the new ones.
    pub async fn refresh(&mut self, tables: &BTreeSet<String>) -> Result<Vec<ViewChange>> {
        for node in &mut self.nodes {
            if !node.references.is_disjoint(tables) {
                node.node.reset()?;
            }
        }
        let changes = self.table_changes(tables)?;
        let run = Run { runner: &self.runner, inputs: &self.inputs, watermarks: &self.watermarks };
        let changes = self.graph.step(changes, true, &run).await;
        let mut changed = Vec::new();
        for view in &mut self.views {
            if !view.references.is_disjoint(tables) || view.has_failed() {
                changed.extend(view.refresh(&changes, &self.graph)?);
            }
        }
        Ok(changed)
    }

    /// Computes every view for the first time, over no row of any stream.
    pub async fn start(&mut self) -> Result<Vec<ViewChange>> {
        let tables = self.references.keys().cloned().collect();
        let mut changes = self.table_changes(&tables)?;
        let run = Run { runner: &self.runner, inputs: &self.inputs, watermarks: &self.watermarks };
        for (node, stateful) in self.nodes.iter().enumerate() {
            // A total is there before the first row.
            let rows = stateful.node.rows()?;
            for vertex in self.graph.fed_by(&Source::Node(node)) {
                changes.insert(vertex, flow::Delta::of_new(rows.clone()));
            }
        }
        let changes = self.graph.start(changes, &run).await;
        let (nodes, graph) = (&self.nodes, &self.graph);
        Ok(self.views.iter_mut().map(|view| view.start(&changes, nodes, graph)).collect())
    }

    /// Tries to bring the failed views back: for when no micro-batch comes. Costs as much as their groups.
    pub async fn retry(&mut self) -> Vec<ViewChange> {
        if !self.views.iter().any(View::has_failed) {
            return Vec::new();
        }
        let run = Run { runner: &self.runner, inputs: &self.inputs, watermarks: &self.watermarks };
        let changes = self.graph.step(flow::Changes::new(), true, &run).await;
        let (nodes, graph) = (&self.nodes, &self.graph);
        let failed = self.views.iter_mut().filter(|view| view.has_failed());
        failed.filter_map(|view| view.retry(&changes, nodes, graph)).collect()
    }

    /// What a view alone held that may hold no more is let go.
    fn shut_views_over_their_limit(&mut self) {
        if !self.views.iter().any(View::is_over_limit) {
            return;
        }
        let used = self.views.iter().filter(|view| !view.is_over_limit()).flat_map(View::parts);
        let used: BTreeSet<usize> = used.collect();
        let over = self.views.iter().filter(|view| view.is_over_limit()).flat_map(View::parts);
        let parts = over.filter(|part| !used.contains(part)).collect();
        self.graph.shut(&parts);
    }

    /// What has changed in reference tables since the dataflows took their rows.
    fn table_changes(&mut self, tables: &BTreeSet<String>) -> Result<flow::Changes> {
        let mut changes = flow::Changes::new();
        for name in tables {
            let Some(table) = self.references.get(name) else { continue };
            let now = self.inputs.reference(table);
            let before = self.shown_tables.get(name).map_or(&[][..], Vec::as_slice);
            changes.extend(self.graph.table_changes(name, before, now)?);
            self.shown_tables.insert(name.clone(), now.to_vec());
        }
        Ok(changes)
    }

    /// Every row of every view with state, as if it were new. Of a failed view, its last good rows.
    pub fn all_rows(&self) -> Result<Vec<ViewChange>> {
        let mut all = Vec::new();
        for view in &self.views {
            let Some(rows) = view.shown() else { continue };
            let batch = rows.batch()?;
            let changelog = Changelog { ops: vec![Op::Insert; batch.num_rows()], rows: batch };
            all.push(view.change(changelog, rows));
        }
        Ok(all)
    }

    /// Adds a micro-batch of `source`: only rows that keep its rules, with at least the columns of
    /// [`Engine::source_columns`]. `origins` is that of each row; none: all are of one partition.
    ///
    /// # Errors
    /// If the rows are not those of the source; never for what a value is.
    pub async fn apply(
        &mut self,
        source: &str,
        rows: RecordBatch,
        origins: Option<&[Origin]>,
    ) -> Result<Applied> {
        if rows.num_rows() == 0 {
            return Ok(Applied::default());
        }
        let Some(stream) = self.streams.get(source).cloned() else { return Ok(Applied::default()) };
        let rows = match self.watermarks.get_mut(source) {
            Some(watermark) => {
                let (times, final_until) = watermark.advance(&rows, origins)?;
                with_times(&rows, times, final_until)?
            }
            None => rows,
        };
        let final_until = self.watermarks.get_mut(source).and_then(Watermark::close);
        let batch = MicroBatch { source, stream: &stream, rows: &rows, final_until };
        let changed = add_to_all(&mut self.nodes, &batch, &self.runner, &self.inputs).await;
        let mut changes = flow::Changes::new();
        for (node, change) in &changed {
            for vertex in self.graph.fed_by(&Source::Node(*node)) {
                changes.insert(vertex, flow::Delta::of_change(&change.delta.before, &change.delta.after)?);
            }
            for vertex in self.graph.fed_by(&Source::Final(*node)) {
                let rows = change.evicted.clone();
                changes.extend(rows.map(|rows| (vertex, flow::Delta::of_new(rows))));
            }
        }
        let run = Run { runner: &self.runner, inputs: &self.inputs, watermarks: &self.watermarks };
        let changes = self.graph.step(changes, false, &run).await;
        self.graph.free(&|stream| self.watermarks.get(stream)?.final_until())?;
        let mut applied = Applied::default();
        for view in &mut self.views {
            let flows = (&changes, &self.graph);
            let plans = (&self.runner, &self.inputs);
            let begun = Instant::now();
            view.follow(&batch, &changed, &self.nodes, flows, plans, &mut applied).await;
            view.busy += begun.elapsed();
        }
        self.shut_views_over_their_limit();
        applied.late.sort();
        applied.late.dedup();
        applied.errors.sort();
        applied.errors.dedup();
        Ok(applied)
    }
}

/// Rows of one source that are added together.
struct MicroBatch<'a> {
    source: &'a str,
    /// The table that stands for the source in plans.
    stream: &'a Arc<InputTable>,
    rows: &'a RecordBatch,
    /// Groups that end until then are final, in nanoseconds since 1970.
    final_until: Option<i64>,
}

/// The rows with what is known of their times.
fn with_times(rows: &RecordBatch, times: Int64Array, final_until: Int64Array) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(times));
    columns.push(Arc::new(final_until));
    columns.push(Arc::new(UInt32Array::from_iter_values(0..rows.num_rows() as u32)));
    Ok(RecordBatch::try_new(input::with_time_fields(&rows.schema()), columns)?)
}
