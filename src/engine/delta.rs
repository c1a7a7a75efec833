//! What a micro-batch changes in a node's rows.

use std::collections::HashMap;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::row::{RowConverter, SortField};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;

/// What a micro-batch changed in a node. All batches have the columns of the node's rows (`c0, c1, …`).
#[derive(Clone, Debug)]
pub struct Delta {
    /// The touched rows as they were; those that are new are not among them.
    pub before: RecordBatch,
    /// The touched rows as they are: first those that were there before, in the same order.
    pub after: RecordBatch,
    /// Positions in the micro-batch of rows that came too late for their group.
    pub late: Vec<u32>,
}

impl Delta {
    /// Whether no row was touched.
    pub fn is_empty(&self) -> bool {
        self.before.num_rows() == 0 && self.after.num_rows() == 0
    }
}

/// Several deltas of one node, one after the other, as one. Rows are known by their first `key_columns`; none:
/// by their values.
pub fn merge(deltas: Vec<Delta>, key_columns: Option<usize>) -> Result<Delta> {
    let Some(first) = deltas.first() else { return Err(internal_datafusion_err!("no delta to merge")) };
    let schema = first.before.schema();
    let mut late: Vec<u32> = deltas.iter().flat_map(|delta| delta.late.iter().copied()).collect();
    late.sort_unstable();
    let Some(key_columns) = key_columns else {
        // What has come in one and gone in another counts for nothing.
        let before = concat_batches(&schema, deltas.iter().map(|delta| &delta.before))?;
        let after = concat_batches(&schema, deltas.iter().map(|delta| &delta.after))?;
        return Ok(Delta { before, after, late });
    };
    let keys = Keys::new(&first.before, key_columns)?;
    // Of each key that is there now, where its row is, and the row that it replaced.
    let mut now: HashMap<Vec<u8>, (usize, Option<usize>)> = HashMap::new();
    let mut order: Vec<Vec<u8>> = Vec::new();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (number, delta) in deltas.iter().enumerate() {
        let mut replaced = HashMap::new();
        for (row, key) in keys.of(&delta.before)?.into_iter().enumerate() {
            let old = match now.remove(&key) {
                Some((_, old)) => old,
                None => {
                    before.push((number, row));
                    Some(before.len() - 1)
                }
            };
            replaced.insert(key, old);
        }
        for (row, key) in keys.of(&delta.after)?.into_iter().enumerate() {
            after.push((number, row));
            let old = replaced.remove(&key).flatten();
            now.insert(key.clone(), (after.len() - 1, old));
            order.push(key);
        }
    }
    let mut pairs: Vec<(Option<usize>, usize)> = Vec::new();
    for key in order {
        if let Some((row, old)) = now.remove(&key) {
            pairs.push((old, row));
        }
    }
    // Those that were there before first, in the order of `before`.
    pairs.sort_by_key(|(old, _)| old.unwrap_or(usize::MAX));
    let gather = |side: fn(&Delta) -> &RecordBatch, places: &[(usize, usize)]| -> Result<RecordBatch> {
        let batches: Vec<&RecordBatch> = deltas.iter().map(side).collect();
        match places {
            [] => Ok(RecordBatch::new_empty(schema.clone())),
            places => Ok(interleave_record_batch(&batches, places)?),
        }
    };
    let after: Vec<_> = pairs.iter().map(|(_, row)| after[*row]).collect();
    Ok(Delta { before: gather(|d| &d.before, &before)?, after: gather(|d| &d.after, &after)?, late })
}

/// Encodes the leading columns of rows.
struct Keys {
    columns: usize,
    converter: RowConverter,
}

impl Keys {
    fn new(rows: &RecordBatch, columns: usize) -> Result<Keys> {
        let schema = rows.schema();
        let fields = schema.fields().iter().take(columns);
        let fields = fields.map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Keys { columns, converter: RowConverter::new(fields)? })
    }

    fn of(&self, rows: &RecordBatch) -> Result<Vec<Vec<u8>>> {
        if self.columns == 0 {
            // One group of all rows.
            return Ok(vec![Vec::new(); rows.num_rows()]);
        }
        let columns: Vec<ArrayRef> = rows.columns().iter().take(self.columns).cloned().collect();
        let encoded = self.converter.convert_columns(&columns)?;
        Ok(encoded.iter().map(|row| row.data().to_vec()).collect())
    }
}
