//! Gives a micro-batch to every stateful node that reads its source, on all cores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::error::Result;
use tokio::task::JoinSet;

use super::MicroBatch;
use super::delta::Delta;
use super::input::{InputTable, Inputs, Runner};
use super::node::{self, Node, RowError, plain};
use super::plan::Identity;
use super::upkeep::Upkeep;
use crate::checkpoint::{Loader, Saver};
use crate::guard;

/// A stateful node that one or more views share.
pub struct Stateful {
    /// What it computes: equal nodes are kept once.
    pub identity: Identity,
    /// Its plan, for people.
    pub below: String,
    /// What it keeps, if it keeps anything.
    pub upkeep: Option<Upkeep>,
    /// The streams that it reads.
    pub streams: Vec<String>,
    /// The reference tables that it reads.
    pub references: BTreeSet<String>,
    /// Stands for its rows in finishing plans.
    pub table: Arc<InputTable>,
    /// Its state.
    pub node: Box<dyn Node>,
    /// Whether its rows only come.
    pub append_only: bool,
    /// Why it misses rows for good, if it does.
    pub broken: Option<String>,
    /// How long it has worked.
    pub busy: Duration,
}

/// What a micro-batch did to one node.
pub struct NodeChange {
    /// The touched rows.
    pub delta: Delta,
    /// The rows that have become final.
    pub evicted: Option<RecordBatch>,
    /// Rows that are left out.
    pub errors: Vec<RowError>,
}

impl Stateful {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.node.bytes()
    }

    /// Why the views over it can't be shown as they are.
    pub fn incomplete(&self) -> Option<String> {
        self.broken.clone().or_else(|| self.node.incomplete())
    }

    /// Gives its state to a checkpoint. It may not be broken.
    pub fn save(&mut self, saver: &mut Saver) -> Result<()> {
        let Stateful {
            identity: _,
            below: _,
            upkeep: _,
            streams: _,
            references: _,
            table: _,
            node,
            append_only: _,
            broken: _,
            busy: _,
        } = self;
        node.save(saver)
    }

    /// Takes its state from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.node.load(loader)
    }

    async fn add(&mut self, rows: &Rows) -> Result<NodeChange> {
        let (delta, errors) =
            node::add(self.node.as_mut(), &rows.stream, &rows.rows, &rows.runner, &rows.inputs).await?;
        // What two streams feed is final when both say so: never, for now.
        let final_until = if self.streams.len() == 1 { rows.final_until } else { None };
        let evicted = self.node.evict(final_until.unwrap_or(i64::MIN))?;
        Ok(NodeChange { delta, evicted, errors })
    }

    /// A node that fails as a whole misses these rows: its views can't be right any more.
    async fn add_or_break(&mut self, rows: &Rows) -> Option<NodeChange> {
        let begun = Instant::now();
        let added = guard::catch_async(self.add(rows)).await;
        self.busy += begun.elapsed();
        match added {
            Ok(change) => Some(change),
            Err(error) => {
                let reason = plain(&error);
                self.broken = Some(format!("{reason}; rows are missing since then, a restart counts them"));
                None
            }
        }
    }
}

/// A micro-batch as a task of its own has it.
#[derive(Clone)]
struct Rows {
    stream: Arc<InputTable>,
    rows: RecordBatch,
    final_until: Option<i64>,
    runner: Runner,
    inputs: Inputs,
}

/// Adds the micro-batch to every node that reads its source, at the same time; what changed, by position.
pub async fn add_to_all(
    nodes: &mut Vec<Stateful>,
    batch: &MicroBatch<'_>,
    runner: &Runner,
    inputs: &Inputs,
) -> BTreeMap<usize, NodeChange> {
    let rows = Rows {
        stream: Arc::clone(batch.stream),
        rows: batch.rows.clone(),
        final_until: batch.final_until,
        runner: runner.clone(),
        inputs: inputs.clone(),
    };
    let reads =
        |node: &Stateful| node.broken.is_none() && node.streams.iter().any(|stream| stream == batch.source);
    let readers: Vec<usize> = (0..nodes.len()).filter(|i| reads(&nodes[*i])).collect();
    if let [i] = readers[..] {
        // A task of its own would cost more than it brings.
        let change = nodes[i].add_or_break(&rows).await;
        return change.into_iter().map(|change| (i, change)).collect();
    }
    let mut running = JoinSet::new();
    let mut places: Vec<Option<Stateful>> = std::mem::take(nodes).into_iter().map(Some).collect();
    for (i, place) in places.iter_mut().enumerate() {
        if let Some(mut node) = place.take_if(|node| reads(node)) {
            let rows = rows.clone();
            running.spawn(async move {
                let change = node.add_or_break(&rows).await;
                (i, node, change)
            });
        }
    }
    let mut changed = BTreeMap::new();
    while let Some(done) = running.join_next().await {
        let (i, node, change) = done.expect("invariant: a node's panics are caught inside its task");
        places[i] = Some(node);
        changed.extend(change.map(|change| (i, change)));
    }
    nodes.extend(places.into_iter().flatten());
    changed
}
