//! What there is to know of a materialized view, and what a micro-batch changes in its rows.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;

use super::upkeep::ViewUpkeep;
use crate::catalog::Access;
use crate::checkpoint::{Loader, Saver};

/// What does not change about a view while the engine runs.
#[derive(Clone, Debug)]
pub struct ViewInfo {
    /// Its name in SQL and in URLs.
    pub name: String,
    /// Columns of its rows.
    pub schema: SchemaRef,
    /// Columns that tell its rows apart; empty: a row is known by all its columns.
    pub key: Vec<String>,
    /// Output mode: `update`, `complete` or `append`.
    pub mode: &'static str,
    /// Topic that receives its changelog.
    pub topic: Option<String>,
    /// What keeping it up to date takes.
    pub upkeep: ViewUpkeep,
    /// How it is kept up to date, for people: its plan below, state and finishing plan.
    pub plan: String,
    /// Who may read it, and what must not be told apart in it.
    pub disclosure: Disclosure,
    /// Its declaration, as it was written.
    pub sql: String,
}

/// Who may read a view over HTTP, and what must not be told apart in it. The engine only passes it on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disclosure {
    /// Who reads it.
    pub access: Access,
    /// Whose choices its rows count.
    pub secret: Option<Secret>,
    /// Column that is true in every row once all that is expected is counted; NULL: that is not known.
    pub complete_when: Option<String>,
    /// How many releases are kept of it; none: only the newest.
    pub history: Option<usize>,
    /// What whoever declared it should know.
    pub warnings: Vec<String>,
}

/// How a view counts what people chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Key columns that make a group of people; none: all are one group.
    pub by: Vec<String>,
    /// The other key columns: what was chosen.
    pub choice: Vec<String>,
    /// Integer column that says how many chose it.
    pub counted_in: String,
}

/// Makes the rows as one record batch, in the view's order. Called at most once per snapshot, by the first reader.
pub trait RowSource: Send + Sync + std::fmt::Debug {
    /// Number of rows.
    fn total(&self) -> usize;
    /// All rows, with the view's schema.
    fn batch(&self) -> crate::error::Result<RecordBatch>;
}

impl RowSource for RecordBatch {
    fn total(&self) -> usize {
        self.num_rows()
    }
    fn batch(&self) -> crate::error::Result<RecordBatch> {
        Ok(self.clone())
    }
}

const RING_BATCHES_MAX: usize = 64;

/// What a changelog record says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The row is new.
    Insert,
    /// Another row had its key.
    Update,
    /// The row has left the view; on the topic, a tombstone.
    Delete,
}

impl Op {
    /// As written in a record's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        }
    }
}

/// The rows that a micro-batch changed in a view. An unchanged row is not among them.
#[derive(Debug)]
pub struct Changelog {
    /// Of each row of `rows`, what happened to it.
    pub ops: Vec<Op>,
    /// New rows, and of deleted rows what they last were. All columns of the view.
    pub rows: RecordBatch,
}

impl Changelog {
    /// No change of a view with that schema.
    pub fn nothing(schema: &SchemaRef) -> Changelog {
        Changelog { ops: Vec::new(), rows: RecordBatch::new_empty(Arc::clone(schema)) }
    }
}

/// The newest rows of a view without state.
#[derive(Clone, Debug)]
pub struct Ring {
    schema: SchemaRef,
    rows_max: usize,
    batches: VecDeque<RecordBatch>,
}

impl Ring {
    /// Keeps at most `rows_max` rows.
    pub fn new(schema: SchemaRef, rows_max: usize) -> Self {
        Ring { schema, rows_max, batches: VecDeque::new() }
    }

    /// Columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds rows; the oldest make room.
    pub fn push(&mut self, rows: &RecordBatch) -> Result<()> {
        let newest = rows.num_rows().min(self.rows_max);
        self.batches.push_back(rows.slice(rows.num_rows() - newest, newest));
        let mut surplus = self.total().saturating_sub(self.rows_max);
        while surplus > 0
            && let Some(oldest) = self.batches.pop_front()
        {
            let gone = oldest.num_rows().min(surplus);
            surplus -= gone;
            if gone < oldest.num_rows() {
                self.batches.push_front(oldest.slice(gone, oldest.num_rows() - gone));
            }
        }
        // Many small batches would cost more each time they are read.
        if self.batches.len() > RING_BATCHES_MAX {
            let all = concat_batches(&self.schema, &self.batches)?;
            self.batches = VecDeque::from([all]);
        }
        Ok(())
    }

    /// Gives the rows to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Ring { schema: _, rows_max: _, batches } = self;
        saver.value(&batches.len())?;
        batches.iter().for_each(|rows| saver.rows(rows));
        Ok(())
    }

    /// Takes the rows of a checkpoint in place of its own.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let batches: usize = loader.value()?;
        self.batches = (0..batches).map(|_| loader.rows(&self.schema)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Bytes held, of whole batches.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }
}

impl RowSource for Ring {
    fn total(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        Ok(concat_batches(&self.schema, &self.batches)?)
    }
}
