//! Reference tables in memory, which fail when told to: for tests of everything that Postgres may do to the
//! engine, in milliseconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::store::{ANYTHING, ReferenceStore, StoreError};
use super::{KeyIndex, TableDef};

/// Names that may wait for their reader.
const NAMES_AHEAD_MAX: usize = 256;

/// What the store does to every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It answers.
    #[default]
    None,
    /// It can't be reached.
    Away,
    /// It refuses, for this reason.
    Refuses(String),
    /// It answers after this time.
    Slow(Duration),
    /// It does not answer while this is its fault.
    Hangs,
}

/// Tables in memory; clones share them.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    faults: watch::Sender<Faults>,
}

#[derive(Default)]
struct Faults {
    of_all: Fault,
    of_table: BTreeMap<String, Fault>,
}

impl Faults {
    fn of(&self, table: Option<&str>) -> Fault {
        let own = table.and_then(|table| self.of_table.get(table));
        own.filter(|fault| **fault != Fault::None).unwrap_or(&self.of_all).clone()
    }
}

#[derive(Default)]
struct Inner {
    tables: BTreeMap<String, Table>,
    listeners: Vec<mpsc::Sender<String>>,
    loads: usize,
    lookups: usize,
}

struct Table {
    def: TableDef,
    rows: RecordBatch,
    has_trigger: bool,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore { inner: Arc::default(), faults: watch::Sender::new(Faults::default()) }
    }
}

impl MemoryStore {
    /// No tables yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a table its rows, and announces the change.
    pub fn set(&self, table: &str, rows: RecordBatch) {
        self.set_table(table, rows, true);
        self.announce(table);
    }

    /// As [`MemoryStore::set`], for a table without a change trigger: nobody is told.
    pub fn set_silently(&self, table: &str, rows: RecordBatch) {
        self.set_table(table, rows, false);
    }

    /// From now on every call, those that wait included, meets this fault.
    pub fn set_fault(&self, fault: Fault) {
        self.faults.send_modify(|faults| faults.of_all = fault);
    }

    /// As [`MemoryStore::set_fault`], of the calls about one table.
    pub fn set_fault_of(&self, table: &str, fault: Fault) {
        self.faults.send_modify(|faults| drop(faults.of_table.insert(table.to_owned(), fault)));
    }

    /// Tells that a table has changed.
    pub fn announce(&self, table: &str) {
        // A full queue has told its reader enough.
        self.lock().listeners.retain(|listener| !listener.is_closed());
        self.lock().listeners.iter().for_each(|listener| drop(listener.try_send(table.to_owned())));
    }

    /// What listeners hear after a connection was lost and is there again.
    pub fn lose_connection(&self) {
        self.announce(ANYTHING);
    }

    /// Ends every listener, as a closed server does.
    pub fn stop_listening(&self) {
        self.lock().listeners.clear();
    }

    /// How many loads were begun.
    pub fn loads(&self) -> usize {
        self.lock().loads
    }

    /// How many lookups were begun.
    pub fn lookups(&self) -> usize {
        self.lock().lookups
    }

    fn set_table(&self, table: &str, rows: RecordBatch, has_trigger: bool) {
        let schema: SchemaRef = rows.schema();
        let types = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let def = TableDef { name: table.into(), schema, primary_key: Vec::new(), types };
        self.lock().tables.insert(table.into(), Table { def, rows, has_trigger });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the call may be answered.
    async fn meet_fault(&self, action: &str, table: Option<&str>) -> Result<(), StoreError> {
        let mut faults = self.faults.subscribe();
        loop {
            let now = faults.borrow_and_update().of(table);
            match now {
                Fault::None => return Ok(()),
                Fault::Away => return Err(StoreError::away(action, "connection refused")),
                Fault::Refuses(reason) => return Err(StoreError::refused(action, reason)),
                Fault::Slow(time) => {
                    tokio::time::sleep(time).await;
                    return Ok(());
                }
                Fault::Hangs => {
                    // The sender is in `self`, so this ends only by another fault.
                    let _ = faults.changed().await;
                }
            }
        }
    }

    fn rows(&self, table: &TableDef, action: &str) -> Result<RecordBatch, StoreError> {
        let inner = self.lock();
        let known = inner.tables.get(&table.name);
        known.map(|t| t.rows.clone()).ok_or_else(|| StoreError::refused(action, "there is no such table"))
    }
}

#[async_trait]
impl ReferenceStore for MemoryStore {
    async fn tables(&self) -> Result<Vec<TableDef>, StoreError> {
        self.meet_fault("listing the tables", None).await?;
        Ok(self.lock().tables.values().map(|table| table.def.clone()).collect())
    }

    async fn load(&self, table: &TableDef, columns: &[String]) -> Result<Vec<RecordBatch>, StoreError> {
        let action = format!("reading table {}", table.name);
        self.lock().loads += 1;
        self.meet_fault(&action, Some(&table.name)).await?;
        let rows = self.rows(table, &action)?;
        let positions = columns.iter().map(|c| table.index_of(c)).collect::<Result<Vec<_>, _>>()?;
        let rows = rows.project(&positions).map_err(|e| StoreError::refused(action, e))?;
        Ok(vec![rows])
    }

    async fn lookup(
        &self,
        table: &TableDef,
        columns: &[String],
        key: &[String],
        values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let action = format!("looking up rows of table {}", table.name);
        self.lock().lookups += 1;
        self.meet_fault(&action, Some(&table.name)).await?;
        let rows = self.rows(table, &action)?;
        let found = || -> crate::error::Result<RecordBatch> {
            let mut wanted = KeyIndex::new(&table.schema, key)?;
            wanted.add_values(values.columns())?;
            let keys: Vec<ArrayRef> = key
                .iter()
                .map(|c| Ok(rows.column(rows.schema().index_of(c)?).clone()))
                .collect::<crate::error::Result<_>>()?;
            let found = filter_record_batch(&rows, &wanted.contains(&keys)?)?;
            let positions: Vec<usize> =
                columns.iter().map(|c| found.schema().index_of(c)).collect::<Result<_, _>>()?;
            Ok(found.project(&positions)?)
        };
        Ok(vec![found().map_err(|e| StoreError::refused(action, e))?])
    }

    async fn changes(&self) -> Result<mpsc::Receiver<String>, StoreError> {
        self.meet_fault("listening", None).await?;
        let (sender, receiver) = mpsc::channel(NAMES_AHEAD_MAX);
        self.lock().listeners.push(sender);
        Ok(receiver)
    }

    async fn without_trigger(&self, tables: &[String]) -> Result<Vec<String>, StoreError> {
        self.meet_fault("looking for triggers", None).await?;
        let inner = self.lock();
        let silent = |name: &&String| inner.tables.get(*name).is_some_and(|table| !table.has_trigger);
        Ok(tables.iter().filter(silent).cloned().collect())
    }
}
