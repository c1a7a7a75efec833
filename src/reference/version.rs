//! One immutable version of a reference table: its rows, and an index of each key that rules and joins look
//! for. A version with looked-up rows shares all others with the one that it was made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not, or};
use tokio::time::Instant;

use super::{KeyIndex, TableDef};
use crate::error::{Error, Result};

/// Which rows a table had: those of the n-th reading, and of so many lookups since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Number of the reading that brought other rows than the one before.
    pub reading: u64,
    /// Lookups since then that found rows.
    pub lookups: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.lookups {
            0 => write!(f, "{}", self.reading),
            lookups => write!(f, "{}+{lookups}", self.reading),
        }
    }
}

/// What is wanted of a table.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The table.
    pub def: Arc<TableDef>,
    /// Its columns that are held.
    pub columns: Vec<String>,
    /// The keys that are looked for.
    pub keys: Vec<Vec<String>>,
}

impl Wanted {
    /// Of each table that is `needed` the named columns, and those of `keys`, (table, columns), that are its own.
    pub fn of(
        needed: &BTreeMap<String, BTreeSet<String>>,
        tables: &[TableDef],
        keys: &[(String, Vec<String>)],
    ) -> Vec<Wanted> {
        let wanted = |def: &TableDef| {
            let mut columns = needed.get(&def.name)?.clone();
            let mut own: Vec<Vec<String>> = Vec::new();
            for (_, key) in keys.iter().filter(|(table, _)| *table == def.name) {
                columns.extend(key.iter().cloned());
                if !own.contains(key) {
                    own.push(key.clone());
                }
            }
            Some(Wanted { def: Arc::new(def.clone()), columns: columns.into_iter().collect(), keys: own })
        };
        tables.iter().filter_map(wanted).collect()
    }
}

/// A table's rows at a time.
pub struct ReferenceTable {
    /// Which rows these are.
    pub version: Version,
    /// When they were asked for.
    pub read_at: Instant,
    wanted: Arc<Wanted>,
    /// The rows as read first, then those that were looked up: few large parts, each shared by later versions.
    parts: Vec<Arc<Part>>,
}

/// Some rows and their indexes, in the order of [`Wanted::keys`].
struct Part {
    batches: Vec<RecordBatch>,
    indexes: Vec<KeyIndex>,
    rows: usize,
    bytes: usize,
}

impl ReferenceTable {
    /// The rows of the `reading`-th reading. Indexes them, which takes a while for many.
    pub fn new(
        wanted: Arc<Wanted>,
        batches: Vec<RecordBatch>,
        reading: u64,
        read_at: Instant,
    ) -> Result<ReferenceTable> {
        let part = Part::new(&wanted, batches)?;
        Ok(ReferenceTable {
            version: Version { reading, lookups: 0 },
            read_at,
            wanted,
            parts: vec![Arc::new(part)],
        })
    }

    /// The same rows, read again.
    pub(super) fn read_again(&self, read_at: Instant) -> ReferenceTable {
        ReferenceTable { read_at, ..self.with_version(self.version) }
    }

    /// The same rows as another version.
    pub(super) fn with_version(&self, version: Version) -> ReferenceTable {
        let read_at = self.read_at;
        ReferenceTable { version, read_at, wanted: Arc::clone(&self.wanted), parts: self.parts.clone() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.wanted.def.name
    }

    /// What is held of it.
    pub fn wanted(&self) -> Arc<Wanted> {
        Arc::clone(&self.wanted)
    }

    /// Its rows, of the wanted columns.
    pub fn batches(&self) -> Vec<RecordBatch> {
        self.parts.iter().flat_map(|part| &part.batches).cloned().collect()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Bytes of the rows and the indexes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// For each row of `values` whether the table has it in the columns of `key`.
    pub fn contains(&self, key: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        let Some(index) = self.wanted.keys.iter().position(|known| known == key) else {
            let (table, key) = (self.name(), key.join(", "));
            return Err(Error::Config(format!("table {table} is not indexed by {key}")));
        };
        let mut found: Option<BooleanArray> = None;
        for part in self.parts.iter().filter(|part| part.rows > 0) {
            let here = part.indexes[index].contains(values)?;
            found = Some(match found {
                Some(before) => or(&before, &here)?,
                None => here,
            });
        }
        Ok(found.unwrap_or_else(|| vec![false; values.first().map_or(0, |column| column.len())].into()))
    }

    /// The version with the rows that a lookup by `key` has found; none if they add nothing. A row that is held
    /// already is not added: it may have been found by another key before, or by a value that only Postgres
    /// calls equal.
    pub fn with_rows(&self, key: &[String], found: &[RecordBatch]) -> Result<Option<ReferenceTable>> {
        let mut new = Vec::new();
        for batch in found {
            let held = self.held(key, batch)?;
            let batch = filter_record_batch(batch, &not(&held)?)?;
            if batch.num_rows() > 0 {
                new.push(batch);
            }
        }
        if new.is_empty() {
            return Ok(None);
        }
        let mut last = Part::new(&self.wanted, new)?;
        let mut parts = self.parts.clone();
        // Parts double in size, so that they stay few and each row is moved but a few times.
        while parts.len() > 1
            && let Some(before) = parts.pop_if(|before| before.rows <= 2 * last.rows)
        {
            last = Part::merged(&self.wanted, &before, &last)?;
        }
        parts.push(Arc::new(last));
        let version = Version { lookups: self.version.lookups + 1, ..self.version };
        Ok(Some(ReferenceTable { version, read_at: self.read_at, wanted: Arc::clone(&self.wanted), parts }))
    }

    /// Whether it has the same rows as read, and nothing was looked up since.
    pub fn has_rows(&self, batches: &[RecordBatch]) -> bool {
        matches!(self.parts.as_slice(), [part] if part.batches == batches)
    }

    /// Which rows of a batch are held: by the key they were found by, or by the table's own.
    fn held(&self, key: &[String], batch: &RecordBatch) -> Result<BooleanArray> {
        let mut held = BooleanArray::from(vec![false; batch.num_rows()]);
        let is_identity =
            |known: &&Vec<String>| known.as_slice() == key || **known == self.wanted.def.primary_key;
        for known in self.wanted.keys.iter().filter(is_identity) {
            let columns =
                known.iter().map(|name| Ok(ArrayRef::clone(batch.column(batch.schema().index_of(name)?))));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            held = or(&held, &self.contains(known, &columns)?)?;
        }
        Ok(held)
    }
}

impl fmt::Debug for ReferenceTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}: {} rows", self.name(), self.version, self.rows())
    }
}

impl Part {
    fn new(wanted: &Wanted, batches: Vec<RecordBatch>) -> Result<Part> {
        let mut indexes = Vec::with_capacity(wanted.keys.len());
        for key in &wanted.keys {
            let mut index = KeyIndex::new(&wanted.def.schema, key)?;
            batches.iter().try_for_each(|batch| index.add(batch))?;
            index.shrink();
            indexes.push(index);
        }
        Ok(Part::of(batches, indexes))
    }

    fn of(batches: Vec<RecordBatch>, indexes: Vec<KeyIndex>) -> Part {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let held: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        let bytes = held + indexes.iter().map(KeyIndex::bytes).sum::<usize>();
        Part { batches, indexes, rows, bytes }
    }

    fn merged(wanted: &Wanted, before: &Part, after: &Part) -> Result<Part> {
        let batches: Vec<_> = before.batches.iter().chain(&after.batches).cloned().collect();
        let batches = match batches.first() {
            Some(first) => vec![arrow::compute::concat_batches(&first.schema(), &batches)?],
            None => batches,
        };
        let mut indexes = Vec::with_capacity(wanted.keys.len());
        for (i, key) in wanted.keys.iter().enumerate() {
            let mut index = KeyIndex::new(&wanted.def.schema, key)?;
            index.extend(&before.indexes[i])?;
            index.extend(&after.indexes[i])?;
            indexes.push(index);
        }
        Ok(Part::of(batches, indexes))
    }
}
