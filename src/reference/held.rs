//! The reference tables in memory: the needed columns of each, and an index of the keys that rules refer
//! to, built once per reading.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use sqlx::PgPool;

use super::{KeyIndex, TableDef, load, lookup};
use crate::decode::ForeignKeys;
use crate::error::{Error, Result};
use crate::snapshot::ReferenceStatus;

/// All tables that a view or a rule needs.
pub struct References {
    pool: PgPool,
    pg_schema: String,
    tables: BTreeMap<String, Held>,
}

struct Held {
    def: TableDef,
    columns: Vec<String>,
    batches: Vec<RecordBatch>,
    indexes: Vec<KeyIndex>,
    read_at: Instant,
    error: Option<String>,
}

impl References {
    /// Reads the `needed` columns of each table, and indexes each of `keys`, (table, columns).
    pub async fn open(
        pool: PgPool,
        pg_schema: &str,
        defs: &[TableDef],
        needed: &BTreeMap<String, BTreeSet<String>>,
        keys: &[(String, Vec<String>)],
    ) -> Result<References> {
        let mut references = References { pool, pg_schema: pg_schema.into(), tables: BTreeMap::new() };
        for (name, columns) in needed {
            let Some(def) = defs.iter().find(|def| def.name == *name) else {
                return Err(Error::Config(format!("table {name} is not in schema {pg_schema}")));
            };
            let indexes = keys.iter().filter(|(table, _)| table == name);
            let held = Held {
                columns: columns.iter().cloned().collect(),
                batches: Vec::new(),
                indexes: indexes
                    .map(|(_, columns)| KeyIndex::new(&def.schema, columns))
                    .collect::<Result<_>>()?,
                read_at: Instant::now(),
                error: None,
                def: def.clone(),
            };
            references.tables.insert(name.clone(), held);
            references.read(name).await?;
        }
        Ok(references)
    }

    /// Names of the tables that are held.
    pub fn names(&self) -> BTreeSet<String> {
        self.tables.keys().cloned().collect()
    }

    /// A table's rows, of the needed columns.
    pub fn batches(&self, table: &str) -> Vec<RecordBatch> {
        self.tables.get(table).map(|held| held.batches.clone()).unwrap_or_default()
    }

    /// Reads a table again. If Postgres does not answer, what is held stays in use, and the status says so.
    pub async fn reload(&mut self, table: &str) -> bool {
        match self.read(table).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("reference table {table} is {} s old: {error}", self.age_s(table));
                if let Some(held) = self.tables.get_mut(table) {
                    held.error = Some(error.to_string());
                }
                false
            }
        }
    }

    /// Looks the given key values up in Postgres and adds the rows that it has. Their number.
    pub async fn fetch_missing(
        &mut self,
        table: &str,
        key: &[String],
        values: &RecordBatch,
    ) -> Result<usize> {
        let Some(held) = self.tables.get_mut(table) else { return Ok(0) };
        let found = lookup(&self.pool, &self.pg_schema, &held.def, &held.columns, key, values).await?;
        let rows = found.iter().map(RecordBatch::num_rows).sum();
        for batch in found.into_iter().filter(|batch| batch.num_rows() > 0) {
            held.add(batch)?;
        }
        Ok(rows)
    }

    /// Tables that were read longer ago than `age_s` seconds.
    pub fn older_than(&self, age_s: u64) -> Vec<String> {
        self.tables.keys().filter(|name| self.age_s(name) >= age_s).cloned().collect()
    }

    /// What `/api/status` says of them.
    pub fn status(&self) -> Vec<ReferenceStatus> {
        let status = |(name, held): (&String, &Held)| ReferenceStatus {
            name: name.clone(),
            rows: held.batches.iter().map(RecordBatch::num_rows).sum(),
            bytes: held.batches.iter().map(RecordBatch::get_array_memory_size).sum(),
            columns: held.columns.clone(),
            age_s: held.read_at.elapsed().as_secs(),
            error: held.error.clone(),
        };
        self.tables.iter().map(status).collect()
    }

    fn age_s(&self, table: &str) -> u64 {
        self.tables.get(table).map_or(0, |held| held.read_at.elapsed().as_secs())
    }

    async fn read(&mut self, table: &str) -> Result<()> {
        let Some(held) = self.tables.get_mut(table) else { return Ok(()) };
        let batches = load(&self.pool, &self.pg_schema, &held.def, &held.columns).await?;
        held.batches.clear();
        held.indexes.iter_mut().for_each(KeyIndex::clear);
        for batch in batches {
            held.add(batch)?;
        }
        held.read_at = Instant::now();
        held.error = None;
        Ok(())
    }
}

impl Held {
    fn add(&mut self, batch: RecordBatch) -> Result<()> {
        for index in &mut self.indexes {
            index.add(&batch)?;
        }
        self.batches.push(batch);
        Ok(())
    }
}

impl ForeignKeys for References {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        let index = self
            .tables
            .get(table)
            .and_then(|held| held.indexes.iter().find(|index| index.columns == columns));
        match index {
            Some(index) => index.contains(values),
            None => Err(Error::Config(format!("table {table} is not indexed by {}", columns.join(", ")))),
        }
    }
}
