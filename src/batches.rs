//! Small helpers over record batches that several layers need.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::RowConverter;
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};

use crate::guard;

/// The columns of `schema` by name, in its order.
pub fn project(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Ok(Arc::clone(column)),
            None => internal_err!("column {} is not held", field.name()),
        })
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// The rows with the columns' names of `schema`.
pub fn renamed(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), rows.columns().to_vec(), &options)?)
}

/// The rows in the order of `keys`, which have a value for each of them; those with equal keys as they were.
pub fn sorted(rows: &RecordBatch, keys: &[ArrayRef], converter: &RowConverter) -> Result<RecordBatch> {
    let encoded = converter.convert_columns(keys)?;
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_by(|a, b| encoded.row(*a as usize).cmp(&encoded.row(*b as usize)));
    Ok(take(rows, &UInt32Array::from(order))?)
}

/// The rows at some positions. Of rows without columns too, which arrow's own refuses.
pub fn take(rows: &RecordBatch, positions: &UInt32Array) -> Result<RecordBatch, ArrowError> {
    let columns = rows.columns().iter().map(|column| compute::take(column, positions, None));
    let options = RecordBatchOptions::new().with_row_count(Some(positions.len()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect::<Result<_, _>>()?, &options)
}

/// An empty batch of `schema`.
pub fn empty(schema: &Schema) -> RecordBatch {
    RecordBatch::new_empty(Arc::new(schema.clone()))
}

/// A value that is only ever used by its owner, shared or not: it makes what is `Send` also `Sync`.
#[derive(Debug)]
pub struct Owned<T: ?Sized>(Mutex<T>);

impl<T> Owned<T> {
    /// Takes a value.
    pub fn new(value: T) -> Self {
        Owned(Mutex::new(value))
    }

    /// The value, to change.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from the value.
    pub fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs `work` over all rows. Where it fails or panics for several together, each half is tried by itself; so
/// only the rows that fail alone are handed to `done` as errors. Calls come in the order of the rows.
pub fn by_halves<T>(
    rows: &RecordBatch,
    work: impl Fn(&RecordBatch) -> Result<T>,
    mut done: impl FnMut(Range<usize>, Result<T>),
) {
    let mut parts: Vec<_> = std::iter::once(0..rows.num_rows()).collect();
    while let Some(part) = parts.pop() {
        let some = rows.slice(part.start, part.len());
        let result = guard::catch(|| work(&some));
        if result.is_err() && part.len() > 1 {
            parts.extend(halves(part));
        } else {
            done(part, result);
        }
    }
}

/// The halves of some rows as they go on a stack: the first one last.
pub fn halves(part: Range<usize>) -> [Range<usize>; 2] {
    let middle = part.start + part.len() / 2;
    [middle..part.end, part.start..middle]
}

/// An error's reason without the names of the layers that passed it on.
pub fn in_plain_words(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => error.to_string(),
        DataFusionError::Execution(reason) => reason.clone(),
        root => root.strip_backtrace(),
    }
}
