//! Held rows: the rows of a stream that a view needs themselves, since what it asks can't be kept up to
//! date from less. The view says how many it may hold.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef};
use async_trait::async_trait;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::TaskContext;

use super::below::Below;
use super::delta::Delta;
use super::held_windows::HeldWindows;
use super::input::{TIME, is_hidden};
use super::node::{Groups, Node};
use crate::batches::empty;
use crate::catalog::Hold;
use crate::guard;

/// The rows of one stream, less columns and rows that the view does not need.
#[derive(Debug)]
pub struct HeldRows {
    below: Below,
    schema: SchemaRef,
    hold: Hold,
    batches: Vec<RecordBatch>,
    /// Position of the event time among the columns of `batches`, which have it last.
    time: Option<usize>,
    rows: usize,
    /// The windows that the rows are in.
    windows: HeldWindows,
    /// Rows that are added, and positions in the micro-batch of those that come too late.
    prepared: Option<(RecordBatch, Vec<u32>)>,
    /// Rows up to this event time were let go at the limit: those held are complete once it is out of
    /// `hold.duration`, and never without one.
    lost_until: Option<i64>,
}

impl HeldRows {
    /// Holds the rows of `below`, which are in `windows`, as rows of `schema` in the finishing plan.
    pub fn new(below: Below, windows: HeldWindows, schema: SchemaRef, hold: Hold) -> Result<Self> {
        let time = match hold.duration {
            Some(_) => Some(below.schema().index_of(TIME)?),
            None => None,
        };
        let (batches, prepared) = (Vec::new(), None);
        Ok(HeldRows { below, schema, hold, batches, time, rows: 0, windows, prepared, lost_until: None })
    }

    /// At the limit all rows go: an answer over some of them would be wrong.
    fn enforce_limit(&mut self, oldest: i64) {
        if self.lost_until.is_some_and(|lost| lost < oldest) {
            self.lost_until = None;
        }
        if self.rows <= self.hold.rows {
            return;
        }
        let newest = |time: usize| {
            let times = self.batches.iter().map(|batch| batch.column(time).as_primitive::<Int64Type>());
            times.flat_map(|times| times.iter()).map(|time| time.unwrap_or(i64::MAX)).max()
        };
        self.lost_until = self.lost_until.max(Some(self.time.and_then(newest).unwrap_or(i64::MAX)));
        self.batches.clear();
        self.rows = 0;
    }

    fn visible(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let schema = batch.schema();
        let visible = |i: &usize| !is_hidden(schema.field(*i).name());
        let columns = (0..batch.num_columns()).filter(visible).map(|i| Arc::clone(batch.column(i)));
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.collect(), &options)?)
    }
}

#[async_trait]
impl Node for HeldRows {
    async fn prepare(&mut self, context: Arc<TaskContext>) -> Result<()> {
        self.prepared = None;
        let rows = self.below.run(context).await?;
        self.prepared = Some(self.windows.split_late(&rows)?);
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some((rows, late)) = self.prepared.take() else { return internal_err!("nothing was prepared") };
        let after = self.visible(&rows)?;
        if rows.num_rows() > 0 {
            self.rows += rows.num_rows();
            self.batches.push(rows);
        }
        // Many small batches would cost more each time they are read.
        while let [.., before, last] = self.batches.as_slice()
            && last.num_rows() * 2 >= before.num_rows()
            && let Ok(merged) = guard::catch(|| Ok(concat_batches(&before.schema(), [before, last])?))
        {
            self.batches.truncate(self.batches.len() - 2);
            self.batches.push(merged);
        }
        Ok(Delta { before: empty(&self.schema), after, late })
    }

    fn evict(&mut self, watermark: i64) -> Result<Option<RecordBatch>> {
        let (Some(duration), Some(time)) = (self.hold.duration, self.time) else {
            self.enforce_limit(i64::MIN);
            return Ok(None);
        };
        let oldest = watermark.saturating_sub(duration);
        let mut evicted = false;
        for batch in &mut self.batches {
            let times = batch.column(time).as_primitive::<Int64Type>().clone();
            let keep = |i: usize| times.is_null(i) || times.value(i) >= oldest;
            if (0..times.len()).all(keep) {
                continue;
            }
            let keep = BooleanArray::from_iter((0..times.len()).map(|i| Some(keep(i))));
            self.rows -= batch.num_rows() - keep.true_count();
            *batch = filter_record_batch(batch, &keep)?;
            evicted = true;
        }
        self.batches.retain(|batch| batch.num_rows() > 0);
        self.enforce_limit(oldest);
        Ok(evicted.then(|| empty(&self.schema)))
    }

    fn rows(&self) -> Result<RecordBatch> {
        let Some(first) = self.batches.first() else { return Ok(empty(&self.schema)) };
        let rows = concat_batches(&first.schema(), &self.batches)?;
        self.visible(&self.windows.with_sessions(rows)?)
    }

    fn snapshot(&self) -> Option<Arc<dyn Groups>> {
        None
    }

    fn reset(&mut self) -> Result<()> {
        self.below.reset()
    }

    fn bytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    fn key_columns(&self) -> Option<usize> {
        None
    }

    fn incomplete(&self) -> Option<String> {
        self.lost_until?;
        let again = match self.hold.duration {
            Some(_) => "; it comes back once they are older than hold_for",
            None => "",
        };
        Some(format!(
            "it needs more than its hold_rows = {} rows of the stream{again}; allow more, or let old ones go with \
             hold_for, or ask for an aggregate, which holds no rows",
            self.hold.rows
        ))
    }

    fn bounds_time(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        let duration = self.hold.duration.map(|ns| format!(", {} s of event time", ns / 1_000_000_000));
        format!(
            "at most {} rows{}; each micro-batch costs as much as the rows held",
            self.hold.rows,
            duration.unwrap_or_default()
        )
    }

    #[cfg(test)]
    fn keeps_lookups(&self) -> bool {
        self.below.keeps_lookups()
    }
}
