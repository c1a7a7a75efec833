//! The rows of streams as they come, for a dataflow: the plan below runs on each micro-batch, and nothing is kept.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef};
use async_trait::async_trait;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::TaskContext;

use super::below::Below;
use super::delta::Delta;
use super::input::{WEIGHT, is_hidden};
use super::node::Node;
use super::row_windows::RowWindows;
use crate::batches::empty;
use crate::checkpoint::{Loader, Saver};

/// The rows of a plan over streams.
#[derive(Debug)]
pub struct StreamRows {
    below: Below,
    schema: SchemaRef,
    /// The windows that the rows are in.
    windows: RowWindows,
    finality: Vec<Option<i64>>,
    prepared: Option<Delta>,
}

impl StreamRows {
    /// The rows of `below`, which are in `windows`, as rows of `schema` in the dataflow. `finality`: of each column, if
    /// it tells the window, how long after its value rows come.
    pub fn new(below: Below, windows: RowWindows, finality: Vec<Option<i64>>, schema: SchemaRef) -> Self {
        StreamRows { below, schema, windows, finality, prepared: None }
    }
}

/// The columns of rows that queries see.
pub fn visible(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let all = batch.schema();
    let visible = |i: &usize| !is_hidden(all.field(*i).name());
    let columns = (0..batch.num_columns()).filter(visible).map(|i| Arc::clone(batch.column(i)));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect(), &options)?)
}

/// The rows that went, and those that came.
pub fn by_weight(rows: RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
    let Some(weights) = rows.column_by_name(WEIGHT) else { return Ok((rows.slice(0, 0), rows)) };
    let weights = weights.as_primitive::<Int64Type>();
    let went = BooleanArray::from_unary(weights, |weight| weight < 0);
    let came = BooleanArray::from_unary(weights, |weight| weight > 0);
    Ok((filter_record_batch(&rows, &went)?, filter_record_batch(&rows, &came)?))
}

#[async_trait]
impl Node for StreamRows {
    async fn prepare(&mut self, context: Arc<TaskContext>) -> Result<()> {
        self.prepared = None;
        let rows = self.below.run(context).await?;
        let (rows, late) = self.windows.split_late(&rows)?;
        let (went, came) = by_weight(rows)?;
        let (before, after) = (visible(&went, &self.schema)?, visible(&came, &self.schema)?);
        self.prepared = Some(Delta { before, after, late });
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(delta) = self.prepared.take() else { return internal_err!("nothing was prepared") };
        Ok(delta)
    }

    fn evict(&mut self, _: i64) -> Result<Option<RecordBatch>> {
        Ok(None)
    }

    fn rows(&self) -> Result<RecordBatch> {
        Ok(empty(&self.schema))
    }

    fn save(&mut self, saver: &mut Saver) -> Result<()> {
        saver.mark("rows of a stream")
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("rows of a stream")
    }

    fn reset(&mut self) -> Result<()> {
        self.below.reset()
    }

    fn bytes(&self) -> usize {
        0
    }

    fn finality(&self) -> Vec<Option<i64>> {
        self.finality.clone()
    }

    #[cfg(test)]
    fn keeps_lookups(&self) -> bool {
        self.below.keeps_lookups()
    }
}
