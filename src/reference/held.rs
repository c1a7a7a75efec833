//! The versions of the reference tables that are in use. Clones are cheap and share the rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion::common::exec_datafusion_err;
use tokio::time::Instant;

use super::{Health, ReferenceStore, ReferenceTable, StoreError, Version, Wanted};
use crate::checkpoint::{Loader, Saver};
use crate::decode::ForeignKeys;
use crate::error::{Error, Result};
use crate::row_index::RowIndex;
use crate::snapshot::ReferenceStatus;

/// All tables that a view or a rule needs, each in one version.
#[derive(Clone, Debug, Default)]
pub struct References {
    tables: BTreeMap<String, Arc<ReferenceTable>>,
}

impl References {
    /// Takes a version into use. Whether its rows may be others than before.
    pub fn set(&mut self, table: Arc<ReferenceTable>) -> bool {
        let version = table.version;
        let before = self.tables.insert(table.name().to_owned(), table);
        before.is_none_or(|before| before.version != version)
    }

    /// A table as it is in use.
    pub fn get(&self, table: &str) -> Option<&Arc<ReferenceTable>> {
        self.tables.get(table)
    }

    /// The tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<ReferenceTable>> {
        self.tables.values()
    }

    /// A table's rows, of the needed columns.
    pub fn batches(&self, table: &str) -> Vec<RecordBatch> {
        self.tables.get(table).map(|table| table.batches()).unwrap_or_default()
    }

    /// Which version of each table is in use.
    pub fn versions(&self) -> BTreeMap<String, Version> {
        self.tables.iter().map(|(name, table)| (name.clone(), table.version)).collect()
    }

    /// Bytes of all rows and indexes.
    pub fn bytes(&self) -> usize {
        self.tables.values().map(|table| table.bytes()).sum()
    }

    /// What `/api/status` says of them, with how their reading goes.
    pub fn status(&self, health: &BTreeMap<String, Health>) -> Vec<ReferenceStatus> {
        let status = |(name, table): (&String, &Arc<ReferenceTable>)| {
            let health = health.get(name);
            let read_at = health.and_then(|health| health.read_at).unwrap_or(table.read_at);
            ReferenceStatus {
                name: name.clone(),
                rows: table.rows(),
                bytes: table.bytes(),
                columns: table.wanted().columns.clone(),
                age_s: read_at.elapsed().as_secs(),
                error: health.and_then(|health| health.error.clone()),
            }
        };
        self.tables.iter().map(status).collect()
    }

    /// Asks `store` for the rows of a table with these key values, each of them once.
    pub async fn look_up(
        &self,
        store: &dyn ReferenceStore,
        table: &str,
        key: &[String],
        values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let Some(held) = self.tables.get(table) else { return Ok(Vec::new()) };
        let wanted = held.wanted();
        let action = || format!("looking up rows of table {table}");
        let values = distinct(values).map_err(|e| StoreError::refused(action(), e))?;
        store.lookup(&wanted.def, &wanted.columns, key, &values).await
    }

    /// Takes rows into use that were read before, as the version that they had.
    pub fn restore(&mut self, wanted: &Arc<Wanted>, rows: Vec<RecordBatch>, version: Version) -> Result<()> {
        let table = ReferenceTable::new(Arc::clone(wanted), rows, version.reading, Instant::now())?;
        self.set(Arc::new(table.with_version(version)));
        Ok(())
    }

    /// Gives the tables to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let References { tables } = self;
        saver.value(&tables.len())?;
        for (name, table) in tables {
            saver.mark(name)?;
            saver.value(&(table.version.reading, table.version.lookups))?;
            saver.batches(&table.batches())?;
        }
        Ok(())
    }

    /// Takes the rows of these tables from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let count: usize = loader.value()?;
        let wanted: Vec<_> = self.tables.values().map(|table| table.wanted()).collect();
        if count != wanted.len() {
            return Err(exec_datafusion_err!("it has {count} reference tables, not {}", wanted.len()).into());
        }
        for wanted in wanted {
            loader.mark(&wanted.def.name)?;
            let (reading, lookups) = loader.value()?;
            self.restore(&wanted, loader.batches()?, Version { reading, lookups })?;
        }
        Ok(())
    }

    /// Gives a table's rows another version.
    pub fn set_version(&mut self, table: &str, version: Version) {
        if let Some(held) = self.tables.get_mut(table) {
            *held = Arc::new(held.with_version(version));
        }
    }

    /// Adds rows that a lookup by `key` has found, and that are not held. Whether there are any.
    pub fn add(&mut self, table: &str, key: &[String], found: &[RecordBatch]) -> Result<bool> {
        let Some(held) = self.tables.get_mut(table) else { return Ok(false) };
        match held.with_rows(key, found)? {
            Some(version) => {
                *held = Arc::new(version);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl ForeignKeys for References {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        match self.tables.get(table) {
            Some(table) => table.contains(columns, values),
            None => Err(Error::Config(format!("no rows for table {table}"))),
        }
    }
}

/// Each row once.
fn distinct(rows: &RecordBatch) -> Result<RecordBatch> {
    let types: Vec<_> = rows.columns().iter().map(|column| column.data_type().clone()).collect();
    let mut seen = RowIndex::new(&types)?;
    let encoded = seen.encode(rows.columns())?;
    let mut is_first = BooleanBufferBuilder::new(rows.num_rows());
    seen.insert(&encoded, |_, _, is_new| is_first.append(is_new))?;
    Ok(filter_record_batch(rows, &is_first.finish().into())?)
}
