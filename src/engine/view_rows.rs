//! The rows of a view, by its key. A change costs its rows; a snapshot for readers is a cheap clone that later changes do
//! not disturb, and is sorted by the key when somebody reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{exec_err, internal_datafusion_err};
use datafusion::error::Result;

use super::flow::{Arrangement, Delta, Keys, NIL, Snapshot};
use super::view::{Changelog, Op, RowSource};
use crate::batches::{self, renamed};
use crate::checkpoint::{Loader, Saver};

/// The rows of a view as of now.
#[derive(Debug)]
pub struct ViewRows {
    schema: SchemaRef,
    /// Positions of the key columns; all columns where no key was declared.
    key: Vec<usize>,
    keyed: bool,
    key_converter: Arc<RowConverter>,
    rows: Arrangement,
}

impl ViewRows {
    /// An empty view. `key` names columns of `schema`.
    pub fn new(schema: SchemaRef, key: &[String]) -> Result<Self> {
        let positions: Vec<usize> = match key {
            [] => (0..schema.fields().len()).collect(),
            names => names.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<_>>()?,
        };
        let fields = positions.iter().map(|i| SortField::new(schema.field(*i).data_type().clone()));
        Ok(ViewRows {
            key_converter: Arc::new(RowConverter::new(fields.collect())?),
            keyed: !key.is_empty(),
            rows: Arrangement::new(Arc::clone(&schema), looked_up(key, &positions), true, true),
            key: positions,
            schema,
        })
    }

    /// The same, still empty, of rows that only come: they are not found by their values.
    pub fn append_only(mut self) -> Self {
        self.rows = Arrangement::new(Arc::clone(&self.schema), self.rows.key().to_vec(), false, true);
        self
    }

    /// Columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Replaces the whole content.
    pub fn replace(&mut self, now: &RecordBatch) -> Result<Changelog> {
        let before = self.rows.gather(&self.rows.slots(), None)?;
        self.apply(&Delta::of_change(&before, now)?.consolidate()?)
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

    /// Gives the rows to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let ViewRows { schema: _, key: _, keyed: _, key_converter: _, rows } = self;
        rows.save(saver)
    }

    /// Takes the rows of a checkpoint into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.rows.load(loader).map(|_| ())
    }

    /// Number of rows.
    pub fn total(&self) -> usize {
        self.rows.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    fn encoded_keys(&self, rows: &RecordBatch) -> Result<Rows> {
        let keys: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(rows.column(*i))).collect();
        Ok(self.key_converter.convert_columns(&keys)?)
    }

    /// Takes a delta in that is consolidated, and whose rows that go are in the view; what that changes.
    ///
    /// # Errors
    /// Two rows have one key. Nothing is changed then.
    pub fn apply(&mut self, delta: &Delta) -> Result<Changelog> {
        let (rows, weights) = (renamed(&delta.rows, &self.schema)?, delta.weights.values());
        if !self.keyed && weights.iter().all(|weight| *weight == 1) {
            self.rows.insert(&rows)?;
            return Ok(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows });
        }
        let Changed { came, mut ops, deleted } =
            if self.keyed { self.by_key(&rows, weights)? } else { Changed::by_row(weights) };
        let went: Vec<u32> =
            (0..).zip(weights).filter(|(_, weight)| **weight < 0).map(|(row, _)| row).collect();
        let slots = if went.is_empty() {
            Vec::new()
        } else {
            let times = went.iter().map(|row| u32::try_from(-weights[*row as usize]));
            let times = times.collect::<Result<Vec<_>, _>>();
            let times = times.map_err(|_| internal_datafusion_err!("a row goes more often than it can"))?;
            self.rows.find(&take_record_batch(&rows, &UInt32Array::from(went))?, &times)?
        };
        let came = take_record_batch(&rows, &UInt32Array::from(came))?;
        ops.extend(std::iter::repeat_n(Op::Delete, deleted.len()));
        let gone = take_record_batch(&rows, &UInt32Array::from(deleted))?;
        let changed = concat_batches(&self.schema, [&came, &gone])?;
        self.rows.delete(&slots)?;
        self.rows.insert(&came)?;
        Ok(Changelog { ops, rows: changed })
    }

    /// A row that comes where one with its key goes is an update.
    fn by_key(&self, rows: &RecordBatch, weights: &[i64]) -> Result<Changed> {
        let keys = self.encoded_keys(rows)?;
        // The row that goes and the one that comes.
        let mut net: BTreeMap<&[u8], (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (row, weight) in (0..).zip(weights) {
            let comes = *weight > 0;
            let (went, came) = net.entry(keys.row(row as usize).data()).or_default();
            let place = if comes { came } else { went };
            if comes && (*weight > 1 || place.is_some()) {
                return self.ambiguous(rows, row);
            }
            *place = Some(row);
        }
        let new: Vec<u32> =
            net.values().filter(|(went, _)| went.is_none()).filter_map(|(_, came)| *came).collect();
        if !new.is_empty() {
            let sought = Keys::of(rows, &self.key)?.select(&UInt32Array::from(new.clone()))?;
            let there = self.rows.first(&sought, |_| true)?;
            if let Some(i) = there.iter().position(|slot| *slot != NIL) {
                return self.ambiguous(rows, new[i]);
            }
        }
        let mut changed = Changed::default();
        for (went, came) in net.into_values() {
            changed.came.extend(came);
            let op = if went.is_none() { Op::Insert } else { Op::Update };
            changed.ops.extend(came.map(|_| op));
            changed.deleted.extend(went.filter(|_| came.is_none()));
        }
        Ok(changed)
    }

    /// All rows, for output mode `complete`: `diff` says which of them are new, and which have gone.
    pub fn complete(&self, diff: &Changelog) -> Result<Changelog> {
        let keys = self.encoded_keys(&diff.rows)?;
        let inserted: BTreeSet<&[u8]> = (0..diff.ops.len())
            .filter(|row| diff.ops[*row] == Op::Insert)
            .map(|row| keys.row(row).data())
            .collect();
        let all = sorted(&self.rows.snapshot(), &self.schema, &self.key, &self.key_converter)?;
        let all_keys = self.encoded_keys(&all)?;
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

    fn ambiguous<T>(&self, after: &RecordBatch, row: u32) -> Result<T> {
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

/// What a delta makes of a view's rows, by position in it; the rows that only go are told last.
#[derive(Default)]
struct Changed {
    came: Vec<u32>,
    /// Of each of these, what it is.
    ops: Vec<Op>,
    /// The rows in whose place none comes.
    deleted: Vec<u32>,
}

impl Changed {
    /// Each row by itself.
    fn by_row(weights: &[i64]) -> Changed {
        let of_sign = |sign: i64| -> Vec<u32> {
            let times = |weight: &i64| (weight * sign).max(0) as usize;
            (0..).zip(weights).flat_map(|(row, weight)| std::iter::repeat_n(row, times(weight))).collect()
        };
        let came = of_sign(1);
        Changed { ops: vec![Op::Insert; came.len()], came, deleted: of_sign(-1) }
    }
}

/// The columns that rows are looked up by: none where they are known by their values.
fn looked_up(key: &[String], positions: &[usize]) -> Vec<usize> {
    if key.is_empty() { Vec::new() } else { positions.to_vec() }
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
