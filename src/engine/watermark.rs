//! How far a source has come in event time. Judged by partition, so that a row is late or not whatever
//! was read of other partitions before it: the answer does not depend on how messages are interleaved.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::error::Result;

use crate::catalog::{MILLISECOND, SourceDef};

/// A source's watermark: the newest event time, less the delay that its declaration grants.
#[derive(Debug)]
pub struct Watermark {
    column: String,
    delay: i64,
    lateness: i64,
    newest: BTreeMap<i32, i64>,
    unread: BTreeSet<i32>,
}

impl Watermark {
    /// The watermark of a source that declares one.
    pub fn new(source: &SourceDef) -> Option<Watermark> {
        Some(Watermark {
            column: source.event_time.clone()?,
            delay: source.watermark_delay_ms?.saturating_mul(MILLISECOND),
            lateness: source.allowed_lateness_ms.saturating_mul(MILLISECOND),
            newest: BTreeMap::new(),
            unread: BTreeSet::new(),
        })
    }

    /// Takes the rows in; of each, when it happened, and up to when groups were final as it came: null
    /// before the first row of its partition. `partitions` is that of each row; none: all are of one.
    pub fn advance(
        &mut self,
        rows: &RecordBatch,
        partitions: Option<&[i32]>,
    ) -> Result<(Int64Array, Int64Array)> {
        let Some(column) = rows.column_by_name(&self.column) else {
            return datafusion::common::internal_err!("column {} is not held", self.column);
        };
        let times = nanoseconds(column)?;
        let final_until = (0..times.len()).map(|row| {
            let partition = partitions.map_or(0, |partitions| partitions[row]);
            let newest = self.newest.get(&partition).copied();
            if times.is_valid(row) {
                let time = times.value(row);
                self.newest.insert(partition, newest.map_or(time, |newest| newest.max(time)));
            }
            newest.map(|newest| newest.saturating_sub(self.delay).saturating_sub(self.lateness))
        });
        let final_until = Int64Array::from_iter(final_until.collect::<Vec<_>>());
        Ok((times, final_until))
    }

    /// These partitions have messages that are not read yet: there is no watermark before each has had a row
    /// or is read to its end.
    pub fn wait_for(&mut self, unread: BTreeSet<i32>) {
        self.unread = unread;
    }

    /// The watermark: that of the partition that is furthest behind. A partition that is empty does not count;
    /// one that falls silent holds the others back.
    pub fn now(&self) -> Option<i64> {
        if self.unread.iter().any(|partition| !self.newest.contains_key(partition)) {
            return None;
        }
        Some(self.newest.values().min()?.saturating_sub(self.delay))
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
