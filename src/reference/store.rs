//! Where reference tables are: what the engine asks of Postgres, as a trait, so that outages are tested
//! without one.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use tokio::sync::mpsc;

use super::TableDef;
use crate::error::Error;

/// Sent instead of a name when changes may have been missed.
pub const ANYTHING: &str = "*";

/// Tables that change while they are read. Every call may fail or hang; none is made with a lock held.
#[async_trait]
pub trait ReferenceStore: Send + Sync {
    /// Every table with its columns.
    async fn tables(&self) -> Result<Vec<TableDef>, StoreError>;

    /// All rows of a table, of these columns in this order.
    async fn load(&self, table: &TableDef, columns: &[String]) -> Result<Vec<RecordBatch>, StoreError>;

    /// The rows whose `key` columns are among `values`, which has one column for each, in the same order. A
    /// value that the key's type can't take has no row.
    async fn lookup(
        &self,
        table: &TableDef,
        columns: &[String],
        key: &[String],
        values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError>;

    /// The names of changed tables from now on, and [`ANYTHING`] after a lost connection. Ends when nothing
    /// more will be told; ask again then.
    async fn changes(&self) -> Result<mpsc::Receiver<String>, StoreError>;

    /// Those of `tables` whose changes [`ReferenceStore::changes`] does not tell: nothing announces them.
    async fn without_trigger(&self, tables: &[String]) -> Result<Vec<String>, StoreError>;
}

/// Why a store gave no answer, by what can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached now, or is too busy: the same question will be answered later.
    #[error("postgres: {action}: {reason}")]
    Away {
        /// What was being done, with the table.
        action: String,
        /// The server's reason, and what to do about it.
        reason: String,
    },
    /// It refuses this question and would refuse it again: a right, a table, a column, a value.
    #[error("postgres: {action}: {reason}")]
    Refused {
        /// What was being done, with the table.
        action: String,
        /// The server's reason, and what to do about it.
        reason: String,
        /// Postgres's code of the error, where it has one.
        sqlstate: Option<String>,
    },
}

impl StoreError {
    /// An error that will pass.
    pub fn away(action: impl Into<String>, reason: impl ToString) -> Self {
        StoreError::Away { action: action.into(), reason: reason.to_string() }
    }

    /// An error that will not pass by itself.
    pub fn refused(action: impl Into<String>, reason: impl ToString) -> Self {
        StoreError::Refused { action: action.into(), reason: reason.to_string(), sqlstate: None }
    }

    /// Whether asking again later will help.
    pub fn is_away(&self) -> bool {
        matches!(self, StoreError::Away { .. })
    }

    /// Whether it is a value of the question that the column's type can't take.
    pub(super) fn is_of_a_value(&self) -> bool {
        matches!(self, StoreError::Refused { sqlstate: Some(code), .. } if code.starts_with("22"))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Away { action, reason } | StoreError::Refused { action, reason, .. } => {
                Error::Postgres { action, reason }
            }
        }
    }
}

/// No tables at all: for queries that read none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

#[async_trait]
impl ReferenceStore for NoStore {
    async fn tables(&self) -> Result<Vec<TableDef>, StoreError> {
        Ok(Vec::new())
    }

    async fn load(&self, table: &TableDef, _columns: &[String]) -> Result<Vec<RecordBatch>, StoreError> {
        Err(no_tables(table))
    }

    async fn lookup(
        &self,
        table: &TableDef,
        _columns: &[String],
        _key: &[String],
        _values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        Err(no_tables(table))
    }

    async fn changes(&self) -> Result<mpsc::Receiver<String>, StoreError> {
        Ok(mpsc::channel(1).1)
    }

    async fn without_trigger(&self, _tables: &[String]) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }
}

fn no_tables(table: &TableDef) -> StoreError {
    StoreError::refused(format!("reading table {}", table.name), "no Postgres is in use")
}
