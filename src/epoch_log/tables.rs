//! Changes of reference tables as bytes, so that rows that were joined can be joined again. A table that was read again
//! is told by what it has in common with the version before: runs of its rows, and between them those that are new.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::TableEntry;
use crate::checkpoint::{Loader, Saver};
use crate::error::{Error, Result};
use crate::reference::{References, Version, Wanted};
use crate::row_index::{Encoded, RowEncoder};

/// Rows of a batch of a table that is put together again.
const BATCH_ROWS: usize = 64 << 10;

/// A reference table that an epoch takes into use.
#[derive(Clone, Debug)]
pub enum TableChange {
    /// It was read: these are all of its rows.
    Read {
        /// The table.
        table: String,
        /// Its version now.
        version: Version,
        /// Its rows, of the columns that are held.
        rows: Vec<RecordBatch>,
    },
    /// Rows were looked up that were not held.
    Found {
        /// The table.
        table: String,
        /// Its version with them.
        version: Version,
        /// The columns by which they were found.
        key: Vec<String>,
        /// What Postgres answered.
        rows: Vec<RecordBatch>,
    },
}

impl TableChange {
    /// The table.
    pub fn table(&self) -> &str {
        match self {
            TableChange::Read { table, .. } | TableChange::Found { table, .. } => table,
        }
    }

    /// As the log has it. `before`: the table's rows before.
    pub fn encode(&self, before: &[RecordBatch]) -> Result<(TableEntry, Vec<u8>)> {
        let (version, found_by, bytes) = match self {
            TableChange::Read { version, rows, .. } => (version, None, encode_read(before, rows)?),
            TableChange::Found { version, key, rows, .. } => (version, Some(key.clone()), stream(rows)?),
        };
        let version = (version.reading, version.lookups);
        Ok((TableEntry { table: self.table().into(), version, found_by, bytes: bytes.len() }, bytes))
    }

    /// From the log. `before`: the table's rows before.
    pub fn decode(entry: &TableEntry, bytes: &[u8], before: &[RecordBatch]) -> Result<TableChange> {
        let version = Version { reading: entry.version.0, lookups: entry.version.1 };
        let table = entry.table.clone();
        Ok(match &entry.found_by {
            Some(key) => TableChange::Found { table, version, key: key.clone(), rows: batches(bytes)?.0 },
            None => TableChange::Read { table, version, rows: decode_read(before, bytes)? },
        })
    }
}

/// The rows of the reference tables as the log last has them whole: what a later change is told by.
#[derive(Default)]
pub struct LoggedTables(BTreeMap<String, Vec<RecordBatch>>);

impl LoggedTables {
    /// Changes as the log has them: for the entry, and their bytes.
    pub fn encode(&mut self, changes: &[TableChange]) -> Result<(Vec<TableEntry>, Vec<Vec<u8>>)> {
        let (mut entries, mut pieces) = (Vec::new(), Vec::new());
        for change in changes {
            let held = self.0.entry(change.table().into()).or_default();
            let (entry, bytes) = change.encode(held)?;
            if let TableChange::Read { rows, .. } = change {
                *held = rows.clone();
            }
            entries.push(entry);
            pieces.push(bytes);
        }
        Ok((entries, pieces))
    }

    /// Gives the rows to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let LoggedTables(tables) = self;
        saver.value(&tables.len())?;
        for (name, rows) in tables {
            saver.mark(name)?;
            saver.batches(rows)?;
        }
        Ok(())
    }

    /// The rows of a checkpoint.
    pub fn load(loader: &mut Loader) -> Result<LoggedTables> {
        let count: usize = loader.value()?;
        let table = |_| Ok((loader.value()?, loader.batches()?));
        Ok(LoggedTables((0..count).map(table).collect::<Result<_>>()?))
    }

    /// Takes the changes of an entry, whose bytes are `pieces`.
    pub fn take(&mut self, entries: &[TableEntry], mut pieces: &[u8]) -> Result<Vec<TableChange>> {
        let mut changes = Vec::new();
        for entry in entries {
            let Some((own, rest)) = pieces.split_at_checked(entry.bytes) else {
                return Err(damaged(&entry.table, "its rows are not all there"));
            };
            pieces = rest;
            let held = self.0.entry(entry.table.clone()).or_default();
            let change = TableChange::decode(entry, own, held)?;
            if let TableChange::Read { rows, .. } = &change {
                *held = rows.clone();
            }
            changes.push(change);
        }
        Ok(changes)
    }
}

/// Takes a change of the log into use. Columns that are no longer wanted are left out.
pub fn apply(references: &mut References, change: TableChange, wanted: &Arc<Wanted>) -> Result<()> {
    match change {
        TableChange::Read { version, rows, .. } => {
            references.restore(wanted, project(&rows, wanted)?, version)
        }
        TableChange::Found { table, version, key, rows } => {
            references.add(&table, &key, &project(&rows, wanted)?)?;
            references.set_version(&table, version);
            Ok(())
        }
    }
}

fn project(rows: &[RecordBatch], wanted: &Wanted) -> Result<Vec<RecordBatch>> {
    let project = |batch: &RecordBatch| {
        let schema = batch.schema();
        let positions =
            wanted.columns.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>();
        let projected = positions.and_then(|positions| batch.project(&positions));
        projected.map_err(|e| damaged(&wanted.def.name, e))
    };
    rows.iter().map(project).collect()
}

fn damaged(table: &str, reason: impl ToString) -> Error {
    Error::Log(format!(
        "the rows of table {table} can't be read back: {}; `tally run --rebuild` counts anew",
        reason.to_string()
    ))
}

/// A length, the runs, and the new rows.
fn encode_read(before: &[RecordBatch], now: &[RecordBatch]) -> Result<Vec<u8>> {
    let (runs, new) = runs(before, now)?;
    let runs = stream(&[runs])?;
    Ok([&(runs.len() as u64).to_le_bytes()[..], &runs, &stream(&new)?].concat())
}

fn decode_read(before: &[RecordBatch], bytes: &[u8]) -> Result<Vec<RecordBatch>> {
    let short = || Error::Log("a table's rows are cut off; `tally run --rebuild` counts anew".into());
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length) as usize;
    let (runs, new) = rest.split_at_checked(length).ok_or_else(short)?;
    let (runs, _) = batches(runs)?;
    let (new, schema) = batches(new)?;
    let same_columns = before.first().is_none_or(|batch| batch.schema().fields() == schema.fields());
    let before = if same_columns { before } else { &[] };
    // Positions of rows: batch and row, those of `before` first.
    let starts = |batches: &[RecordBatch], first: usize| -> Vec<(usize, usize)> {
        let of = |(i, batch): (usize, &RecordBatch)| (0..batch.num_rows()).map(move |row| (first + i, row));
        batches.iter().enumerate().flat_map(of).collect()
    };
    let old_places = starts(before, 0);
    let mut new_places = starts(&new, before.len()).into_iter();
    let mut places = Vec::new();
    for batch in &runs {
        let (from, rows) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1));
        let rows = rows.as_primitive::<UInt32Type>();
        for i in 0..batch.num_rows() {
            let count = rows.value(i) as usize;
            match from.is_valid(i) {
                true => {
                    let from = from.value(i) as usize;
                    places.extend(old_places.get(from..from + count).ok_or_else(short)?);
                }
                false => places.extend(new_places.by_ref().take(count)),
            }
        }
    }
    if schema.fields().is_empty() {
        return Ok(new);
    }
    let all: Vec<RecordBatch> = before.iter().chain(&new).cloned().collect();
    let all: Vec<&RecordBatch> = all.iter().collect();
    let chunks = places.chunks(BATCH_ROWS);
    Ok(chunks.map(|chunk| interleave_record_batch(&all, chunk)).collect::<Result<_, _>>()?)
}

/// Which rows of `now` are which of `before`, as runs (position of the first, none: new rows; how many), and those that
/// are new.
fn runs(before: &[RecordBatch], now: &[RecordBatch]) -> Result<(RecordBatch, Vec<RecordBatch>)> {
    let schema = now.first().or(before.first()).map(|batch| batch.schema());
    let schema = schema.unwrap_or_else(|| Arc::new(Schema::empty()));
    let same_columns = before.first().is_none_or(|batch| batch.schema().fields() == schema.fields());
    let comparable = same_columns && !schema.fields().is_empty();
    let mut runs: Vec<(Option<u32>, u32)> = Vec::new();
    let mut fresh: Vec<(usize, usize)> = Vec::new();
    let types: Vec<_> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    let encode = |batches: &[RecordBatch]| -> Result<Vec<Encoded>> {
        let encoder = RowEncoder::new(&types)?;
        Ok(batches.iter().map(|batch| encoder.encode(batch.columns())).collect::<Result<_, _>>()?)
    };
    if comparable {
        let (old, new) = (encode(before)?, encode(now)?);
        let old: Vec<&[u8]> = rows_of(&old).collect();
        let mut positions = std::collections::HashMap::with_capacity(old.len());
        for (i, row) in old.iter().enumerate().rev() {
            positions.insert(*row, i as u32);
        }
        let places = now.iter().enumerate().flat_map(|(i, b)| (0..b.num_rows()).map(move |row| (i, row)));
        for (row, place) in rows_of(&new).zip(places) {
            let next = match runs.last() {
                Some((Some(from), rows)) => Some(from + rows),
                _ => None,
            };
            // A row that goes on where the last one was needs no run of its own.
            let found = next.filter(|next| old.get(*next as usize) == Some(&row));
            let found = found.or_else(|| positions.get(row).copied());
            match (runs.last_mut(), found) {
                (Some((Some(from), rows)), Some(found)) if *from + *rows == found => *rows += 1,
                (Some((None, rows)), None) => *rows += 1,
                _ => runs.push((found, 1)),
            }
            if found.is_none() {
                fresh.push(place);
            }
        }
    } else {
        runs = now.iter().map(|batch| (None, batch.num_rows() as u32)).collect();
    }
    let new = match (comparable, fresh.is_empty()) {
        (false, _) => now.to_vec(),
        (true, true) => vec![RecordBatch::new_empty(schema)],
        (true, false) => vec![interleave_record_batch(&now.iter().collect::<Vec<_>>(), &fresh)?],
    };
    let (from, rows): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    let fields =
        vec![Field::new("from", DataType::UInt32, true), Field::new("rows", DataType::UInt32, false)];
    let columns: Vec<Arc<dyn Array>> =
        vec![Arc::new(UInt32Array::from(from)), Arc::new(UInt32Array::from(rows))];
    Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?, new))
}

fn rows_of(encoded: &[Encoded]) -> impl Iterator<Item = &[u8]> {
    encoded.iter().flat_map(|rows| (0..rows.len()).map(move |i| rows.row(i)))
}

/// Batches as an Arrow IPC stream.
fn stream(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), |batch| batch.schema());
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    Ok(writer.into_inner()?)
}

fn batches(bytes: &[u8]) -> Result<(Vec<RecordBatch>, SchemaRef)> {
    let reader = StreamReader::try_new(bytes, None)?;
    let schema = reader.schema();
    Ok((reader.collect::<Result<_, _>>()?, schema))
}
