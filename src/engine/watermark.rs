//! How far a source has come in event time. Judged by partition, so that a row is late or not whatever
//! was read of other partitions before it: the answer does not depend on how messages are interleaved.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::error::Result;

use crate::catalog::{MILLISECOND, SourceDef};
use crate::checkpoint::{Loader, Saver};
use crate::source::Origin;

/// A source's watermark: the newest event time, less the delay that its declaration grants.
#[derive(Debug)]
pub struct Watermark {
    column: String,
    delay: i64,
    lateness: i64,
    /// It follows event time no further than this after the broker's timestamp: a producer whose clock is wrong must
    /// not end the windows of all others.
    max_future: i64,
    newest: BTreeMap<i32, i64>,
    unread: BTreeSet<i32>,
    idle: BTreeSet<i32>,
    /// Groups that end until then have been final since a micro-batch ended.
    closed: Option<i64>,
}

impl Watermark {
    /// The watermark of a source that declares one.
    pub fn new(source: &SourceDef) -> Option<Watermark> {
        Some(Watermark {
            column: source.event_time.clone()?,
            delay: source.watermark_delay_ms?.saturating_mul(MILLISECOND),
            lateness: source.allowed_lateness_ms.saturating_mul(MILLISECOND),
            max_future: source.max_future_ms.saturating_mul(MILLISECOND),
            newest: BTreeMap::new(),
            unread: BTreeSet::new(),
            idle: BTreeSet::new(),
            closed: None,
        })
    }

    /// Gives how far it has come to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Watermark { column: _, delay: _, lateness: _, max_future: _, newest, unread, idle, closed } =
            self;
        saver.value(&(newest, unread, idle, closed))
    }

    /// Goes on from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        (self.newest, self.unread, self.idle, self.closed) = loader.value()?;
        Ok(())
    }

    /// Takes the rows in; of each, when it happened, and up to when groups were final as it came, by its own partition
    /// or, if that was silent while others went on, since the last micro-batch: null if none was. `origins` is that of each row; none: all are of one partition.
    pub fn advance(
        &mut self,
        rows: &RecordBatch,
        origins: Option<&[Origin]>,
    ) -> Result<(Int64Array, Int64Array)> {
        let Some(column) = rows.column_by_name(&self.column) else {
            return datafusion::common::internal_err!("column {} is not held", self.column);
        };
        let times = nanoseconds(column)?;
        let final_until = (0..times.len()).map(|row| {
            let origin = origins.map(|origins| origins[row]);
            let partition = origin.map_or(0, |origin| origin.partition);
            let newest = self.newest.get(&partition).copied();
            if times.is_valid(row) {
                let timestamp = origin.and_then(|origin| origin.timestamp_ms);
                let latest = timestamp
                    .map_or(i64::MAX, |ms| ms.saturating_mul(MILLISECOND).saturating_add(self.max_future));
                let time = times.value(row).min(latest);
                self.newest.insert(partition, newest.map_or(time, |newest| newest.max(time)));
            }
            let own = newest.map(|newest| newest.saturating_sub(self.delay).saturating_sub(self.lateness));
            own.max(self.closed)
        });
        let final_until = Int64Array::from_iter(final_until.collect::<Vec<_>>());
        Ok((times, final_until))
    }

    /// These partitions have messages that are not read yet: there is no watermark before each has had a row
    /// or is read to its end.
    pub fn wait_for(&mut self, unread: BTreeSet<i32>) {
        self.unread = unread;
    }

    /// These partitions have been silent for so long that they hold the watermark back no longer, until they are
    /// not among these again.
    pub fn set_idle(&mut self, idle: BTreeSet<i32>) {
        self.idle = idle;
    }

    /// The watermark: that of the partition that is furthest behind. A partition that is empty does not count, nor
    /// one that is idle, if not all are: then it is that of the one that is furthest ahead.
    pub fn now(&self) -> Option<i64> {
        if self.awaited().is_some() {
            return None;
        }
        let newest = self.furthest_behind().map(|(_, newest)| newest);
        Some(newest.or_else(|| self.newest.values().copied().max())?.saturating_sub(self.delay))
    }

    /// The partition that holds the watermark back: the first that has not had a row yet and is waited for, or the one
    /// that is furthest behind.
    pub fn holder(&self) -> Option<i32> {
        self.awaited().or_else(|| self.furthest_behind().map(|(partition, _)| partition))
    }

    fn awaited(&self) -> Option<i32> {
        self.unread.iter().copied().find(|partition| !self.newest.contains_key(partition))
    }

    fn furthest_behind(&self) -> Option<(i32, i64)> {
        let active = self.newest.iter().filter(|(partition, _)| !self.idle.contains(partition));
        active.map(|(partition, newest)| (*partition, *newest)).min_by_key(|(_, newest)| *newest)
    }

    /// Ends a micro-batch: what is final now, is so for all rows that come.
    pub fn close(&mut self) -> Option<i64> {
        self.closed = self.closed.max(self.final_until());
        self.closed
    }

    /// Groups that end until then are final.
    pub fn final_until(&self) -> Option<i64> {
        Some(self.now()?.saturating_sub(self.lateness))
    }
}

/// A timestamp column as nanoseconds since 1970.
pub fn nanoseconds(column: &ArrayRef) -> Result<Int64Array> {
    let zone = match column.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let exact = cast(column, &DataType::Timestamp(TimeUnit::Nanosecond, zone))?;
    Ok(cast(&exact, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}
