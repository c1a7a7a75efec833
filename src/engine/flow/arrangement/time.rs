//! When rows are no longer needed, by event time.

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Date64Type, Int64Type, SchemaRef, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;

/// A row is needed until event time is so long after the row's own time.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    column: usize,
    after_ns: i64,
}

impl Time {
    /// By a column that is a time, a date, or nanoseconds since 1970.
    pub fn new(schema: &SchemaRef, column: usize, after_ns: i64) -> Result<Time> {
        match schema.field(column).data_type() {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Int64 => {
                Ok(Time { column, after_ns })
            }
            other => plan_err!("{other} is no event time"),
        }
    }

    /// Until when each row is needed, in nanoseconds since 1970; NULL if for ever.
    fn ends(&self, rows: &RecordBatch) -> Result<PrimitiveArray<Int64Type>> {
        let times = rows.column(self.column);
        let day = 86_400_000_000_000;
        match times.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => {
                Ok(self.of::<TimestampSecondType>(times, 1_000_000_000))
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Ok(self.of::<TimestampMillisecondType>(times, 1_000_000))
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Ok(self.of::<TimestampMicrosecondType>(times, 1_000))
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Ok(self.of::<TimestampNanosecondType>(times, 1)),
            DataType::Date32 => Ok(self.of::<Date32Type>(times, day)),
            DataType::Date64 => Ok(self.of::<Date64Type>(times, 1_000_000)),
            DataType::Int64 => Ok(self.of::<Int64Type>(times, 1)),
            other => internal_err!("{other} is no event time"),
        }
    }

    fn of<T: ArrowPrimitiveType<Native: Into<i64>>>(
        &self,
        times: &ArrayRef,
        unit_ns: i64,
    ) -> PrimitiveArray<Int64Type> {
        let end = |time: T::Native| time.into().saturating_mul(unit_ns).saturating_add(self.after_ns);
        times.as_primitive::<T>().unary(end)
    }

    /// When the first of the rows is no longer needed; `i64::MAX` if none ever.
    pub fn first_end(&self, rows: &RecordBatch) -> Result<i64> {
        let ends = self.ends(rows)?;
        Ok(ends.iter().flatten().min().unwrap_or(i64::MAX))
    }

    /// The rows that `live` keeps and that have an end, with that, the first to end last.
    pub fn sorted(&self, rows: &RecordBatch, live: impl Fn(u32) -> bool) -> Result<Vec<(i64, u32)>> {
        let ends = self.ends(rows)?;
        let mut sorted: Vec<(i64, u32)> = (0..ends.len() as u32)
            .filter(|row| ends.is_valid(*row as usize) && live(*row))
            .map(|row| (ends.value(row as usize), row))
            .collect();
        sorted.sort_unstable_by(|one, other| other.cmp(one));
        Ok(sorted)
    }
}
