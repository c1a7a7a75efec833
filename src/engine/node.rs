//! Stateful nodes: what a view remembers of the rows it has seen. One file for each kind; here, what all
//! of them can do.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::error::Result;
use datafusion::execution::TaskContext;

use crate::error;

/// What a micro-batch changed in a node. All batches have the columns of the node's rows (`c0, c1, …`).
#[derive(Debug)]
pub struct Delta {
    /// The touched rows as they were; those that are new are not among them.
    pub before: RecordBatch,
    /// The touched rows as they are.
    pub after: RecordBatch,
    /// Positions in the micro-batch of rows that came too late for their group.
    pub late: Vec<u32>,
}

/// The rows of a node as they were at some time.
pub trait Groups: Send + Sync + std::fmt::Debug {
    /// All of them, with the columns of the node's rows.
    fn rows(&self) -> Result<RecordBatch>;
}

/// A node of a view's plan that keeps state.
#[async_trait]
pub trait Node: Send {
    /// Adds the micro-batch that the stream's slot holds.
    async fn apply(&mut self, context: Arc<TaskContext>) -> error::Result<Delta>;

    /// Frees what the watermark, in nanoseconds since 1970, has made final; its rows, if there are any.
    fn evict(&mut self, watermark: i64) -> error::Result<Option<RecordBatch>>;

    /// All rows that are not evicted, in the order in which they were first seen.
    fn rows(&self) -> Result<RecordBatch>;

    /// The rows as they are now, to be read later; none if the rows of a delta are not in the order that
    /// [`Direct`](super::row_wise::Direct) needs.
    fn snapshot(&self) -> Option<Arc<dyn Groups>>;

    /// Forgets what is cached of the reference tables.
    fn reset(&mut self) -> Result<()>;

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// Whether every row, once there, may go only by eviction: its group is final then.
    fn bounds_time(&self) -> bool;

    /// What it keeps and what that costs, for people.
    fn describe(&self) -> String;

    #[cfg(test)]
    /// Whether the plan below keeps its hash tables from one micro-batch to the next.
    fn keeps_lookups(&self) -> bool;
}
