//! Stateful nodes: what a view remembers of the rows it has seen. One file for each kind; here, what all
//! of them can do, and how a micro-batch is given to one.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;

use super::delta::{self, Delta};
use super::input::{InputTable, Inputs, Runner};
use crate::batches::halves;
use crate::checkpoint::{Loader, Saver};

/// The rows of a node as they were at some time.
pub trait Groups: Send + Sync + std::fmt::Debug {
    /// Number of rows that were ever there: reading them costs as much.
    fn len(&self) -> usize;

    /// All of them, with the columns of the node's rows.
    fn rows(&self) -> Result<RecordBatch>;

    /// Gives them to a checkpoint.
    fn save(&self, saver: &mut Saver) -> Result<()>;
}

/// A node of a view's plan that keeps state. A micro-batch is added in two steps: `prepare` runs every
/// expression and may fail; `commit` makes what was prepared count.
#[async_trait]
pub trait Node: Send + Sync {
    /// Prepares the rows of a run. Nothing that was prepared before and not committed is left.
    async fn prepare(&mut self, context: Arc<TaskContext>) -> Result<()>;

    /// Makes the prepared rows count. Without any, nothing changes.
    fn commit(&mut self) -> Result<Delta>;

    /// Frees what the watermark, in nanoseconds since 1970, has made final; its rows, if there are any.
    fn evict(&mut self, watermark: i64) -> Result<Option<RecordBatch>>;

    /// All rows that are not evicted, in the order in which they were first seen.
    fn rows(&self) -> Result<RecordBatch>;

    /// The rows as they are now, to be read later; none if the rows of a delta are not in the order that
    /// [`RowView`](super::row_wise::RowView) needs.
    fn snapshot(&self) -> Option<Arc<dyn Groups>> {
        None
    }

    /// Forgets what is cached of the reference tables.
    fn reset(&mut self) -> Result<()>;

    /// Gives its state to a checkpoint: what is committed.
    fn save(&mut self, saver: &mut Saver) -> Result<()>;

    /// Takes its state from a checkpoint. It must have none.
    fn load(&mut self, loader: &mut Loader) -> Result<()>;

    /// The rows of a snapshot in a checkpoint.
    fn load_snapshot(&self, _: &mut Loader) -> Result<Arc<dyn Groups>> {
        internal_err!("a node without snapshots")
    }

    /// What it keeps of each group besides numbers.
    fn values_kept(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// How many leading columns of its rows tell them apart; none: rows are known by their values.
    fn key_columns(&self) -> Option<usize> {
        None
    }

    /// Why the rows are not complete, while they are not: the views over them must not be shown.
    fn incomplete(&self) -> Option<String> {
        None
    }

    /// Whether every row, once there, may go only by eviction: its group is final then.
    fn bounds_time(&self) -> bool {
        false
    }

    /// Of each column of its rows: if rows with a value of it change no more once the watermark is so far behind
    /// it, how far, in nanoseconds.
    fn finality(&self) -> Vec<Option<i64>> {
        Vec::new()
    }

    #[cfg(test)]
    /// Whether the plan below keeps its hash tables from one micro-batch to the next.
    fn keeps_lookups(&self) -> bool;
}

/// A row that an expression could not take, by its position in the micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The position.
    pub row: u32,
    /// What the expression said.
    pub reason: String,
}

/// Adds a micro-batch to a node. Rows that fail are found by halving the batch, and left out; the halves are
/// committed from left to right, so that a row fails or not by what came before it, whatever the cut.
///
/// # Errors
/// If no row at all could be added, since what fails is not a row: a reference table's, for example.
pub async fn add(
    node: &mut dyn Node,
    table: &InputTable,
    rows: &RecordBatch,
    runner: &Runner,
    inputs: &Inputs,
) -> Result<(Delta, Vec<RowError>)> {
    let context = |rows: RecordBatch| runner.context(inputs.clone().with(table, vec![rows]));
    let Err(error) = node.prepare(context(rows.clone())).await else {
        return Ok((node.commit()?, Vec::new()));
    };
    // A join may have kept the error of its other side.
    let nothing = rows.slice(0, 0);
    if node.prepare(context(nothing.clone())).await.is_err() {
        node.reset()?;
        node.prepare(context(nothing)).await?;
    }
    let (mut deltas, mut errors) = (vec![node.commit()?], Vec::new());
    let mut parts = split(0..rows.num_rows(), error, &mut errors);
    while let Some(part) = parts.pop() {
        match node.prepare(context(rows.slice(part.start, part.len()))).await {
            Ok(()) => deltas.push(node.commit()?),
            Err(error) => parts.extend(split(part, error, &mut errors)),
        }
    }
    Ok((delta::merge(deltas, node.key_columns())?, errors))
}

/// The halves of rows that failed together, the first one last; a single row is an error.
pub fn split(part: Range<usize>, error: DataFusionError, errors: &mut Vec<RowError>) -> Vec<Range<usize>> {
    if part.len() <= 1 {
        errors.push(RowError { row: part.start as u32, reason: plain(&error) });
        return Vec::new();
    }
    halves(part).into()
}

/// An error's text without DataFusion's wrappings.
pub fn plain(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let mut text = text.as_str();
    while let Some(rest) = ["Arrow error: ", "Execution error: ", "External error: ", "Compute error: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
    {
        text = rest;
    }
    text.to_string()
}
