//! An index of the keys that rules and joins look for: which values a table has.

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};

use crate::error::Result;
use crate::row_index::RowIndex;

/// The values that a table has in some columns. As in SQL, a value with a NULL in it equals none.
pub struct KeyIndex {
    /// The columns.
    pub columns: Vec<String>,
    types: Vec<DataType>,
    values: RowIndex,
}

impl KeyIndex {
    /// An empty index over `columns` of a table with that schema.
    pub fn new(schema: &Schema, columns: &[String]) -> Result<Self> {
        let types = columns.iter().map(|c| Ok(schema.field_with_name(c)?.data_type().clone()));
        let types = types.collect::<Result<Vec<_>>>()?;
        Ok(KeyIndex { columns: columns.to_vec(), values: RowIndex::new(&types)?, types })
    }

    /// Adds the values of a batch that has the columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns =
            self.columns.iter().map(|name| Ok(batch.column(batch.schema().index_of(name)?).clone()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        self.add_values(&columns)
    }

    /// Adds values, a column of them for each of the index's.
    pub fn add_values(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = self.values.encode(&self.typed(values)?)?;
        Ok(self.values.insert(&rows, |_, _, _| {})?)
    }

    /// Adds the values of another index over the same columns.
    pub fn extend(&mut self, other: &KeyIndex) -> Result<()> {
        Ok(self.values.extend(&other.values)?)
    }

    /// Gives back what growing has allocated too much.
    pub fn shrink(&mut self) {
        self.values.shrink();
    }

    /// For each row of `values` whether the table has it. A value that the column's type can't take is not
    /// there.
    pub fn contains(&self, values: &[ArrayRef]) -> Result<BooleanArray> {
        let values = self.typed(values)?;
        let rows = self.values.encode(&values)?;
        let nulls: Vec<_> = values.iter().filter(|column| column.null_count() > 0).collect();
        let has = |i: usize| {
            nulls.iter().all(|column| column.is_valid(i)) && self.values.find(rows.row(i)).is_some()
        };
        Ok(BooleanBuffer::collect_bool(rows.len(), has).into())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.values.size()
    }

    fn typed(&self, values: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let typed = values.iter().zip(&self.types).map(|(column, t)| match column.data_type() == t {
            true => Ok(ArrayRef::clone(column)),
            false => Ok(cast(column, t)?),
        });
        typed.collect()
    }
}
