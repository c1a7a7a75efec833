//! A scalar subquery: one row, which is the only row of its input, or NULLs while that has none.

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::common::{exec_err, internal_err};
use datafusion::error::Result;

use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};

/// The one row.
#[derive(Debug)]
pub struct Single {
    schema: SchemaRef,
    /// The rows of the input, each as often as its weight says.
    input: Delta,
    row: RecordBatch,
    prepared: Option<(Delta, RecordBatch)>,
}

impl Single {
    /// NULLs.
    pub fn new(schema: SchemaRef) -> Result<Single> {
        let row = nulls(&schema)?;
        Ok(Single { input: Delta::empty(&schema), schema, row, prepared: None })
    }
}

fn nulls(schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    Ok(RecordBatch::try_new_with_options(SchemaRef::clone(schema), columns, &options)?)
}

#[async_trait]
impl Operator for Single {
    async fn start(&mut self, _: &Run<'_>) -> Result<Delta> {
        Ok(Delta::of_new(self.row.clone()))
    }

    async fn prepare(&mut self, inputs: &[Delta], _: &Run<'_>) -> Result<()> {
        self.prepared = None;
        let [delta] = inputs else { return internal_err!("a subquery has one input") };
        let input = Delta::concat(&self.schema, &[self.input.clone(), delta.clone()])?.consolidate()?;
        let row = match input.weights.values().as_ref() {
            [] => nulls(&self.schema)?,
            [1] => input.rows.clone(),
            _ => return exec_err!("a subquery that must give one value gives more than one row"),
        };
        self.prepared = Some((input, row));
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some((input, row)) = self.prepared.take() else { return internal_err!("nothing was prepared") };
        let changed = Delta::of_change(&self.row, &row)?.consolidate()?;
        (self.input, self.row) = (input, row);
        Ok(changed)
    }

    fn advance(&mut self, _: &[i64]) -> Result<()> {
        Ok(())
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Single { schema: _, input, row, prepared: _ } = self;
        saver.mark("a single row")?;
        input.save(saver)?;
        saver.rows(row);
        Ok(())
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("a single row")?;
        self.input = Delta::load(loader, &self.schema)?;
        self.row = loader.rows(&self.schema)?;
        Ok(())
    }

    fn held_rows(&self) -> usize {
        0
    }

    fn bytes(&self) -> usize {
        self.input.rows.get_array_memory_size() + self.row.get_array_memory_size()
    }
}
