//! The rows of a view, by its key. A change costs its rows; a snapshot for readers is a cheap clone that later changes do
//! not disturb, and is sorted by the key when somebody reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::exec_err;
use datafusion::error::Result;

use super::flow::{Arrangement, Keys, NIL, Snapshot};
use super::view::{Changelog, Op, RowSource};
use crate::batches;

/// The rows of a view as of now.
#[derive(Debug)]
pub struct ViewRows {
    schema: SchemaRef,
    /// Positions of the key columns; all columns where no key was declared.
    key: Vec<usize>,
    keyed: bool,
    key_converter: Arc<RowConverter>,
    row_converter: RowConverter,
    rows: Arrangement,
}

impl ViewRows {
    /// An empty view. `key` names columns of `schema`.
    pub fn new(schema: SchemaRef, key: &[String]) -> Result<Self> {
        let positions: Vec<usize> = match key {
            [] => (0..schema.fields().len()).collect(),
            names => names.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<_>>()?,
        };
        let fields = |columns: &mut dyn Iterator<Item = usize>| -> Vec<SortField> {
            columns.map(|i| SortField::new(schema.field(i).data_type().clone())).collect()
        };
        Ok(ViewRows {
            key_converter: Arc::new(RowConverter::new(fields(&mut positions.iter().copied()))?),
            row_converter: RowConverter::new(fields(&mut (0..schema.fields().len())))?,
            keyed: !key.is_empty(),
            rows: Arrangement::new(Arc::clone(&schema), positions.clone(), true, true),
            key: positions,
            schema,
        })
    }

    /// Columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Replaces the whole content.
    pub fn replace(&mut self, now: &RecordBatch) -> Result<Changelog> {
        let before = self.rows.gather(&self.rows.slots(), None)?;
        self.update(&before, now)
    }

    /// A snapshot that later changes leave alone.
    pub fn snapshot(&self) -> Arc<dyn RowSource> {
        Arc::new(Sorted {
            rows: self.rows.snapshot(),
            schema: Arc::clone(&self.schema),
            key: self.key.clone(),
            converter: Arc::clone(&self.key_converter),
        })
    }

    /// Number of rows.
    pub fn total(&self) -> usize {
        self.rows.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    fn encode(&self, batch: &RecordBatch) -> Result<(Rows, Rows)> {
        let keys: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(batch.column(*i))).collect();
        Ok((self.key_converter.convert_columns(&keys)?, self.row_converter.convert_columns(batch.columns())?))
    }

    /// Replaces the rows `before`, which must be in the view, by `after`; the difference.
    ///
    /// # Errors
    /// Two rows have one key. Nothing is changed then.
    pub fn update(&mut self, before: &RecordBatch, after: &RecordBatch) -> Result<Changelog> {
        if before.num_rows() == 0 && !self.keyed {
            let rows = after.clone().with_schema(Arc::clone(&self.schema))?;
            self.rows.insert(&rows)?;
            return Ok(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows });
        }
        let (old_keys, old_rows) = self.encode(before)?;
        let (new_keys, new_rows) = self.encode(after)?;
        // By key: the rows that leave and those that come.
        let mut net: BTreeMap<&[u8], (Vec<u32>, Vec<u32>)> = BTreeMap::new();
        let keys = (0..before.num_rows()).map(|row| (old_keys.row(row).data(), row as u32, true));
        let keys = keys.chain((0..after.num_rows()).map(|row| (new_keys.row(row).data(), row as u32, false)));
        for (key, row, leaves) in keys {
            let (leaving, coming) = net.entry(key).or_default();
            if leaves { leaving.push(row) } else { coming.push(row) }
        }
        let (mut ops, mut came, mut went, mut deleted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut new = Vec::new();
        for (mut leaving, mut coming) in net.into_values() {
            if self.keyed {
                if coming.len() > 1 {
                    return self.ambiguous(after, coming[0]);
                }
                match (leaving.as_slice(), coming.as_slice()) {
                    ([old], [row]) if old_rows.row(*old as usize) == new_rows.row(*row as usize) => continue,
                    ([], [row]) => new.push(*row),
                    _ => {}
                }
            } else {
                // All of them are the same row.
                let same = leaving.len().min(coming.len());
                leaving.truncate(leaving.len() - same);
                coming.truncate(coming.len() - same);
            }
            let op = if leaving.is_empty() { Op::Insert } else { Op::Update };
            ops.extend(coming.iter().map(|_| op));
            if coming.is_empty() {
                deleted.extend_from_slice(&leaving);
            }
            went.extend(leaving);
            came.extend(coming);
        }
        if self.keyed && !new.is_empty() {
            let keys = Keys::of(after, &self.key)?.select(&UInt32Array::from(new.clone()))?;
            let there = self.rows.first(&keys, |_| true)?;
            if let Some(i) = there.iter().position(|slot| *slot != NIL) {
                return self.ambiguous(after, new[i]);
            }
        }
        let slots = self.find(before, &old_rows, &went)?;
        let came =
            take_record_batch(after, &UInt32Array::from(came))?.with_schema(Arc::clone(&self.schema))?;
        ops.extend(std::iter::repeat_n(Op::Delete, deleted.len()));
        let gone =
            take_record_batch(before, &UInt32Array::from(deleted))?.with_schema(Arc::clone(&self.schema))?;
        let changed = concat_batches(&self.schema, [&came, &gone])?;
        self.rows.delete(&slots)?;
        self.rows.insert(&came)?;
        Ok(Changelog { ops, rows: changed })
    }

    /// Where rows are that leave. Equal ones are looked for together.
    fn find(&self, before: &RecordBatch, encoded: &Rows, rows: &[u32]) -> Result<Vec<u32>> {
        let mut counts: BTreeMap<&[u8], (u32, u32)> = BTreeMap::new();
        for row in rows {
            counts.entry(encoded.row(*row as usize).data()).or_insert((*row, 0)).1 += 1;
        }
        let (rows, counts): (Vec<u32>, Vec<u32>) = counts.into_values().unzip();
        let rows = take_record_batch(before, &UInt32Array::from(rows))?;
        self.rows.find(&rows, &counts)
    }

    /// All rows, for output mode `complete`: `diff` says which of them are new, and which have gone.
    pub fn complete(&self, diff: &Changelog) -> Result<Changelog> {
        let (keys, _) = self.encode(&diff.rows)?;
        let inserted: BTreeSet<&[u8]> = (0..diff.ops.len())
            .filter(|row| diff.ops[*row] == Op::Insert)
            .map(|row| keys.row(row).data())
            .collect();
        let all = sorted(&self.rows.snapshot(), &self.schema, &self.key, &self.key_converter)?;
        let (all_keys, _) = self.encode(&all)?;
        let op = |row: usize| match inserted.contains(all_keys.row(row).data()) {
            true => Op::Insert,
            false => Op::Update,
        };
        let mut ops: Vec<Op> = (0..all.num_rows()).map(op).collect();
        let gone: BooleanArray = diff.ops.iter().map(|op| Some(*op == Op::Delete)).collect();
        let gone = filter_record_batch(&diff.rows, &gone)?;
        ops.extend(std::iter::repeat_n(Op::Delete, gone.num_rows()));
        Ok(Changelog { ops, rows: concat_batches(&self.schema, [&all, &gone])? })
    }

    fn ambiguous(&self, after: &RecordBatch, row: u32) -> Result<Changelog> {
        let columns: Vec<_> = self.key.iter().map(|i| self.schema.field(*i).name().as_str()).collect();
        let value =
            |i: &usize| arrow::util::display::array_value_to_string(after.column(*i), row as usize).ok();
        let values: Vec<_> = self.key.iter().filter_map(value).collect();
        exec_err!(
            "two rows have the key ({}) = ({}); give the view a `key` that tells its rows apart",
            columns.join(", "),
            values.join(", ")
        )
    }
}

/// Rows that are sorted by their key when somebody reads them.
#[derive(Debug)]
struct Sorted {
    rows: Snapshot,
    schema: SchemaRef,
    key: Vec<usize>,
    converter: Arc<RowConverter>,
}

impl RowSource for Sorted {
    fn total(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        Ok(sorted(&self.rows, &self.schema, &self.key, &self.converter)?)
    }
}

fn sorted(
    rows: &Snapshot,
    schema: &SchemaRef,
    key: &[usize],
    converter: &RowConverter,
) -> Result<RecordBatch> {
    let rows = concat_batches(schema, &rows.batches().collect::<Result<Vec<_>>>()?)?;
    let keys: Vec<ArrayRef> = key.iter().map(|i| Arc::clone(rows.column(*i))).collect();
    if keys.is_empty() {
        return Ok(rows);
    }
    batches::sorted(&rows, &keys, converter)
}
