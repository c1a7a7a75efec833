//! What is saved of a state, in memory: tables of rows that never change, and small values. Each state gives its parts in
//! one order, and takes them in the same.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, LargeBinaryArray, PrimitiveArray, RecordBatch,
    RecordBatchOptions,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{exec_datafusion_err, exec_err};
use datafusion::error::{DataFusionError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Takes what is saved. Costs pointers for rows, and a copy for values.
#[derive(Clone, Debug, Default)]
pub struct Saver {
    tables: Vec<RecordBatch>,
    values: Vec<u8>,
}

/// Gives back what was saved.
pub struct Loader {
    tables: std::vec::IntoIter<RecordBatch>,
    values: Vec<u8>,
    /// Up to where they are taken.
    taken: usize,
}

impl Saver {
    /// Says whose parts come next: loading checks it.
    pub fn mark(&mut self, what: &str) -> Result<()> {
        self.value(what)
    }

    /// Saves rows. A table of the same arrays as one of the checkpoint before is not written again.
    pub fn rows(&mut self, rows: &RecordBatch) {
        self.tables.push(rows.clone());
    }

    /// Saves any number of tables.
    pub fn batches(&mut self, batches: &[RecordBatch]) -> Result<()> {
        self.tables.extend_from_slice(batches);
        self.value(&batches.len())
    }

    /// Saves columns, each of as many values.
    pub fn columns(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let fields = columns.iter().zip(0..);
        let fields = fields.map(|(column, i)| Field::new(format!("c{i}"), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        self.tables.push(RecordBatch::try_new(schema, columns)?);
        Ok(())
    }

    /// Saves a small value. Of its type nothing is noted: it is loaded as what it was.
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let values = std::mem::take(&mut self.values);
        self.values = postcard::to_extend(value, values)
            .map_err(|error| exec_datafusion_err!("a value can't be saved: {error}"))?;
        Ok(())
    }

    /// Tables and values.
    pub fn into_parts(self) -> (Vec<RecordBatch>, Vec<u8>) {
        (self.tables, self.values)
    }
}

impl Loader {
    /// Of what was saved.
    pub fn new(tables: Vec<RecordBatch>, values: Vec<u8>) -> Loader {
        Loader { tables: tables.into_iter(), values, taken: 0 }
    }

    /// Checks whose parts come next.
    ///
    /// # Errors
    /// They are another one's.
    pub fn mark(&mut self, what: &str) -> Result<()> {
        let found: String = self.value()?;
        if found == what {
            Ok(())
        } else {
            exec_err!("it has the state of {found} where that of {what} belongs")
        }
    }

    /// Rows of a schema.
    ///
    /// # Errors
    /// There are none left, or they have other columns.
    pub fn rows(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        let rows = self.any_rows()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), rows.columns().to_vec(), &options)?)
    }

    /// Rows as they were saved.
    pub fn any_rows(&mut self) -> Result<RecordBatch> {
        self.tables.next().ok_or_else(|| exec_datafusion_err!("it has too few tables"))
    }

    /// Any number of tables.
    pub fn batches(&mut self) -> Result<Vec<RecordBatch>> {
        let count: usize = self.value()?;
        (0..count).map(|_| self.any_rows()).collect()
    }

    /// So many columns.
    pub fn columns<const N: usize>(&mut self) -> Result<[ArrayRef; N]> {
        let columns = self.any_rows()?.columns().to_vec();
        columns
            .try_into()
            .map_err(|found: Vec<_>| exec_datafusion_err!("it has {} columns where {N} belong", found.len()))
    }

    /// A small value.
    pub fn value<T: DeserializeOwned>(&mut self) -> Result<T> {
        let (value, rest) = postcard::take_from_bytes(&self.values[self.taken..])
            .map_err(|error| exec_datafusion_err!("a value can't be read: {error}"))?;
        self.taken = self.values.len() - rest.len();
        Ok(value)
    }

    /// All must have been taken.
    pub fn finish(self) -> Result<()> {
        match (self.tables.len(), self.values.len() - self.taken) {
            (0, 0) => Ok(()),
            (tables, bytes) => {
                exec_err!("{tables} tables and {bytes} bytes of it are of nothing that is counted now")
            }
        }
    }
}

/// A column as one of numbers.
pub fn numbers<T: ArrowPrimitiveType>(column: &ArrayRef) -> Result<&PrimitiveArray<T>> {
    column.as_primitive_opt().ok_or_else(|| other_type(column, &T::DATA_TYPE))
}

/// A column as one of bytes.
pub fn bytes(column: &ArrayRef) -> Result<&LargeBinaryArray> {
    column.as_binary_opt().ok_or_else(|| other_type(column, &DataType::LargeBinary))
}

fn other_type(column: &ArrayRef, wanted: &DataType) -> DataFusionError {
    exec_datafusion_err!("it has a column of {} where one of {wanted} belongs", column.data_type())
}
