//! Deltas: rows that came and rows that went.

use std::collections::HashMap;

use arrow::array::{Int64Array, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::exec_err;
use datafusion::error::Result;

use crate::batches;
use crate::checkpoint::{Loader, Saver};

/// What changed in the rows of one edge of a dataflow (a Z-set, as DBSP has it).
#[derive(Clone, Debug)]
pub struct Delta {
    /// The rows.
    pub rows: RecordBatch,
    /// Of each row, how often it came (positive) or went (negative); never NULL.
    pub weights: Int64Array,
}

impl Delta {
    /// No change.
    pub fn empty(schema: &SchemaRef) -> Delta {
        Delta::of_new(RecordBatch::new_empty(SchemaRef::clone(schema)))
    }

    /// Rows that came, once each.
    pub fn of_new(rows: RecordBatch) -> Delta {
        let weights = Int64Array::from_value(1, rows.num_rows());
        Delta { rows, weights }
    }

    /// Rows `before` went and rows `after` came. Both have the same columns.
    pub fn of_change(before: &RecordBatch, after: &RecordBatch) -> Result<Delta> {
        if before.num_rows() == 0 {
            return Ok(Delta::of_new(after.clone()));
        }
        let rows = concat_batches(&after.schema(), [before, after])?;
        let weights = std::iter::repeat_n(-1, before.num_rows());
        let weights = weights.chain(std::iter::repeat_n(1, after.num_rows()));
        Ok(Delta { rows, weights: weights.collect() })
    }

    /// Gives it to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Delta { rows, weights } = self;
        saver.rows(rows);
        saver.value(&**weights.values())
    }

    /// One of a checkpoint.
    pub fn load(loader: &mut Loader, schema: &SchemaRef) -> Result<Delta> {
        let (rows, weights) = (loader.rows(schema)?, loader.value::<Vec<i64>>()?);
        if rows.num_rows() != weights.len() {
            return exec_err!("a change has {} rows and {} weights", rows.num_rows(), weights.len());
        }
        Ok(Delta { rows, weights: weights.into() })
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.rows.num_rows() == 0
    }

    /// Several deltas of one edge, one after the other.
    pub fn concat(schema: &SchemaRef, deltas: &[Delta]) -> Result<Delta> {
        if let [one] = deltas {
            return Ok(one.clone());
        }
        let weights = deltas.iter().flat_map(|delta| delta.weights.values().iter().copied());
        Ok(Delta {
            rows: concat_batches(schema, deltas.iter().map(|delta| &delta.rows))?,
            weights: weights.collect(),
        })
    }

    /// The rows of a change that takes none away, each as often as it came.
    pub fn repeated(&self) -> Result<RecordBatch> {
        let weights = self.weights.values();
        if weights.iter().all(|weight| *weight == 1) {
            return Ok(self.rows.clone());
        }
        let rows =
            (0..).zip(weights).flat_map(|(row, weight)| std::iter::repeat_n(row, (*weight).max(0) as usize));
        Ok(batches::take(&self.rows, &UInt32Array::from_iter_values(rows))?)
    }

    /// Whether a row went.
    pub fn retracts(&self) -> bool {
        self.weights.values().iter().any(|weight| *weight < 0)
    }

    /// The same change with each row once: what came and went alike is left out. Rows are the same if all their
    /// values are, bit by bit. In the order in which each row was first met.
    pub fn consolidate(self) -> Result<Delta> {
        if !self.retracts() {
            return Ok(self);
        }
        if self.rows.num_columns() == 0 {
            let sum: i64 = self.weights.values().iter().sum();
            let rows = self.rows.slice(0, usize::from(sum != 0));
            return Ok(Delta { weights: Int64Array::from_value(sum, rows.num_rows()), rows });
        }
        let fields = self.rows.schema();
        let fields = fields.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let encoded = RowConverter::new(fields)?.convert_columns(self.rows.columns())?;
        let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(self.rows.num_rows());
        let (mut first, mut sums) = (Vec::new(), Vec::new());
        for (row, weight) in self.weights.values().iter().enumerate() {
            let data = encoded.row(row).data();
            let place = *places.entry(data).or_insert_with(|| {
                first.push(row as u32);
                sums.push(0i64);
                sums.len() - 1
            });
            sums[place] += weight;
        }
        let kept = (0..first.len()).filter(|place| sums[*place] != 0).collect::<Vec<_>>();
        if kept.len() == self.rows.num_rows() {
            return Ok(self);
        }
        let rows = UInt32Array::from_iter_values(kept.iter().map(|place| first[*place]));
        let weights = kept.iter().map(|place| sums[*place]).collect();
        Ok(Delta { rows: batches::take(&self.rows, &rows)?, weights })
    }
}
