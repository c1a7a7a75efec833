//! An index of the keys that rules refer to: which values a table has.

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, SortField};
use hashbrown::HashSet;

use crate::error::Result;

/// The values that a table has in some columns.
pub struct KeyIndex {
    /// The columns.
    pub columns: Vec<String>,
    types: Vec<arrow::datatypes::DataType>,
    converter: RowConverter,
    values: HashSet<Box<[u8]>>,
}

impl KeyIndex {
    /// An empty index over `columns` of a table with that schema.
    pub fn new(schema: &Schema, columns: &[String]) -> Result<Self> {
        let types = columns.iter().map(|c| Ok(schema.field_with_name(c)?.data_type().clone()));
        let types = types.collect::<Result<Vec<_>>>()?;
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect())?;
        Ok(KeyIndex { columns: columns.to_vec(), types, converter, values: HashSet::new() })
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.values.clear();
    }

    /// Adds the values of a batch that has the columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns =
            self.columns.iter().map(|name| Ok(batch.column(batch.schema().index_of(name)?).clone()));
        let rows = self.converter.convert_columns(&columns.collect::<Result<Vec<_>>>()?)?;
        self.values.reserve(rows.num_rows());
        self.values.extend(rows.iter().map(|row| Box::from(row.data())));
        Ok(())
    }

    /// For each row of `values` whether the table has it.
    pub fn contains(&self, values: &[ArrayRef]) -> Result<BooleanArray> {
        let typed = values.iter().zip(&self.types).map(|(column, t)| Ok(cast(column, t)?));
        let rows = self.converter.convert_columns(&typed.collect::<Result<Vec<_>>>()?)?;
        Ok(BooleanArray::from_iter(rows.iter().map(|row| Some(self.values.contains(row.data())))))
    }
}
