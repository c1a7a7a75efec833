//! The two equalities of the dataflow. Keys are the same as SQL has it: −0.0 is 0.0, NaN is NaN. Rows are the same,
//! when one is taken back, if all their values are, bit by bit. Rows that are the same either way have one hash.

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, make_comparator};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{SortOptions, take};
use arrow::datatypes::DataType;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::utils::normalize_float_zero;
use datafusion::error::Result;

/// Some columns of rows, to find rows by.
#[derive(Clone, Debug)]
pub struct Keys {
    columns: Vec<ArrayRef>,
    hashes: Vec<u32>,
    valid: Option<NullBuffer>,
}

impl Keys {
    /// These columns of the rows. Without columns all rows have the same key.
    pub fn of(rows: &RecordBatch, columns: &[usize]) -> Result<Keys> {
        let columns: Vec<ArrayRef> =
            columns.iter().map(|column| normalize_float_zero(rows.column(*column))).collect();
        let hashes = hash(&columns, rows.num_rows())?;
        let valid = columns.iter().map(|column| column.logical_nulls());
        let valid = valid.fold(None, |all, nulls| NullBuffer::union(all.as_ref(), nulls.as_ref()));
        Ok(Keys { columns, hashes, valid: valid.filter(|valid| valid.null_count() > 0) })
    }

    /// The keys at some positions.
    pub fn select(&self, rows: &UInt32Array) -> Result<Keys> {
        let columns = self.columns.iter().map(|column| Ok(take(column, rows, None)?));
        Ok(Keys {
            columns: columns.collect::<Result<_>>()?,
            hashes: rows.values().iter().map(|row| self.hashes[*row as usize]).collect(),
            valid: self.valid.as_ref().map(|valid| {
                NullBuffer::from_iter(rows.values().iter().map(|row| valid.is_valid(*row as usize)))
            }),
        })
    }

    /// All columns of the rows, as keys are compared.
    pub fn normalized(rows: &RecordBatch) -> Vec<ArrayRef> {
        rows.columns().iter().map(normalize_float_zero).collect()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The columns, in which no zero is negative.
    pub fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// A hash of each row.
    pub fn hashes(&self) -> &[u32] {
        &self.hashes
    }

    /// Which rows have no NULL in their key; nothing if all.
    pub fn without_null(&self) -> Option<&NullBuffer> {
        self.valid.as_ref()
    }
}

/// A hash of each row of the columns, of which there may be none.
pub fn hash(columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
    let mut hashes = vec![0u64; rows];
    create_hashes(columns, &RandomState::with_seed(0), &mut hashes)?;
    Ok(hashes.into_iter().map(|hash| (hash ^ (hash >> 32)) as u32).collect())
}

/// Which rows of the two are the same, bit by bit; NULL is NULL.
pub fn same(left: &[ArrayRef], right: &[ArrayRef], rows: usize) -> Result<BooleanBuffer> {
    let mut all: Option<BooleanBuffer> = None;
    for (left, right) in left.iter().zip(right) {
        let same = same_values(left, right)?;
        all = Some(match all {
            Some(all) => &all & same.values(),
            None => same.values().clone(),
        });
    }
    Ok(all.unwrap_or_else(|| BooleanBuffer::new_set(rows)))
}

/// Without NULLs.
fn same_values(left: &ArrayRef, right: &ArrayRef) -> Result<BooleanArray> {
    let leaf = match left.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        leaf => leaf,
    };
    if !leaf.is_nested() && !matches!(leaf, DataType::Dictionary(..) | DataType::RunEndEncoded(..)) {
        return Ok(not_distinct(left, right)?);
    }
    let compare = make_comparator(left, right, SortOptions::default())?;
    Ok((0..left.len()).map(|row| Some(compare(row, row).is_eq())).collect())
}
