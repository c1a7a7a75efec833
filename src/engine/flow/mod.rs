//! The dataflow of deltas: what stands above a view's streams, aggregates and tables, kept up to date by
//! operators that stack in any order. An operator takes what changed in its inputs, and says what that changes
//! in its rows; its cost follows the change, not what it holds.

mod aggregate;
mod arrangement;
mod by_key;
mod cut;
mod delta;
mod equality;
mod finality;
mod graph;
mod held_join;
mod join;
mod lower;
mod numbering;
mod output;
mod segment;
mod single;
mod sorted_rows;
#[cfg(test)]
mod testing;
mod top_k;

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;
use datafusion::error::Result;

pub use self::aggregate::keys_and_sets;
pub use self::arrangement::{Arrangement, NIL, Snapshot};
pub use self::cut::Cut;
pub use self::delta::Delta;
pub use self::equality::Keys;
pub use self::finality::{Finality, traced};
pub use self::graph::{Changes, Graph, Source};
pub use self::lower::add;
pub use self::output::{FlowView, Order, Shown, with_order};
use super::input::{Inputs, Runner};
use super::watermark::Watermark;
use crate::checkpoint::{Loader, Saver};

/// What an operator needs to run a plan.
pub struct Run<'a> {
    /// Makes the task contexts.
    pub runner: &'a Runner,
    /// The rows of the reference tables.
    pub inputs: &'a Inputs,
    /// How far event time is, by source.
    pub watermarks: &'a BTreeMap<String, Watermark>,
}

/// A part of a dataflow that keeps state. Its inputs are told apart by position. A change is made in two steps:
/// `prepare` runs every expression and may fail; `commit` makes what was prepared count.
#[async_trait]
pub trait Operator: Debug + Send + Sync {
    /// Its rows over no rows of its inputs: one for an aggregate without GROUP BY, none for most. Called once,
    /// before any delta.
    async fn start(&mut self, run: &Run<'_>) -> Result<Delta>;

    /// Prepares one delta for each input; some may be empty. Nothing that was prepared before and not committed
    /// is left, and nothing is changed that a later call would see.
    ///
    /// # Errors
    /// What an expression says of a value; a row taken back that is not there.
    async fn prepare(&mut self, inputs: &[Delta], run: &Run<'_>) -> Result<()>;

    /// Makes the prepared deltas count: what they change in the operator's rows.
    fn commit(&mut self) -> Result<Delta>;

    /// Frees what no later row can meet, by the times until which each input is final, in nanoseconds since 1970
    /// (`i64::MIN`: it never is). What was put out stays.
    fn advance(&mut self, final_until: &[i64]) -> Result<()>;

    /// Gives its state to a checkpoint: what is committed.
    fn save(&self, saver: &mut Saver) -> Result<()>;

    /// Takes its state from a checkpoint, in place of [`Operator::start`] and all that came after it.
    fn load(&mut self, loader: &mut Loader) -> Result<()>;

    /// Number of rows of its inputs that it holds.
    fn held_rows(&self) -> usize;

    /// Bytes held.
    fn bytes(&self) -> usize;
}
