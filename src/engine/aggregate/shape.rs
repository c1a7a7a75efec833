//! What stands where in a stored group.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::Result;

use crate::batches::empty;
use crate::checkpoint::Saver;
use crate::engine::function::Function;
use crate::engine::node::Groups;
use crate::engine::store::Store;

/// Where in a stored row its key and its results are.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Leading columns that are the key.
    pub key_columns: usize,
    /// The column of each function's result.
    results: Vec<usize>,
    /// Columns of the node's rows.
    pub schema: SchemaRef,
    has_float_key: bool,
}

impl Shape {
    /// Of rows with so many key columns and these functions; `schema` is that of the node's rows.
    pub fn new(key_columns: usize, functions: &[Function], schema: SchemaRef) -> Self {
        let mut next = key_columns;
        let results = functions.iter().map(|function| {
            next += function.stored_columns();
            next - 1
        });
        let has_float_key = schema.fields().iter().take(key_columns).any(|key| has_float(key.data_type()));
        Shape { key_columns, results: results.collect(), schema, has_float_key }
    }

    /// Whether two keys of one group can differ, as 0.0 and −0.0.
    pub fn has_float_key(&self) -> bool {
        self.has_float_key
    }

    /// Keys and results, without the states between them.
    pub fn output(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        if columns.is_empty() {
            return Ok(empty(&self.schema));
        }
        let results = self.results.iter().map(|column| &columns[*column]);
        let kept = columns[..self.key_columns].iter().chain(results);
        let typed = kept
            .zip(self.schema.fields())
            .map(|(column, field)| Ok(cast(column, field.data_type())?))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), typed, &options)?)
    }
}

fn has_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => has_float(values),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_float(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_float(field.data_type())),
        data_type => data_type.is_floating(),
    }
}

/// The groups at some time.
#[derive(Debug)]
pub struct StoredGroups {
    /// Their rows.
    pub store: Store,
    /// What stands where in them.
    pub shape: Shape,
}

impl Groups for StoredGroups {
    fn len(&self) -> usize {
        self.store.written()
    }

    fn rows(&self) -> Result<RecordBatch> {
        self.shape.output(&self.store.read_all()?, self.store.written())
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        self.store.save(saver)
    }
}
