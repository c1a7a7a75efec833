//! The rule `future`: no event happens long after the broker got its message. The engine reads no clock, so the
//! broker's is the measure, the same at every recount.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use chrono::{DateTime, SecondsFormat};

use crate::error::Result;

/// Its name.
pub const FUTURE: &str = "future";

/// For each row whether its event time is not further after the message's timestamp than `max_future_ms`. True
/// without either of them.
pub fn is_in_time(
    times: &ArrayRef,
    timestamp_ms: impl Fn(usize) -> Option<i64>,
    max_future_ms: i64,
) -> Result<BooleanArray> {
    let per_second = match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => 1,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000_000,
        _ => 1_000_000_000,
    };
    let milliseconds = |time: i64| match per_second {
        1 => time.saturating_mul(1_000),
        units => time.div_euclid(units / 1_000),
    };
    let numbers = cast(times, &DataType::Int64)?;
    let numbers = numbers.as_primitive::<Int64Type>();
    let in_time = |row: usize| match timestamp_ms(row) {
        Some(timestamp) if numbers.is_valid(row) => {
            milliseconds(numbers.value(row)) <= timestamp.saturating_add(max_future_ms)
        }
        _ => true,
    };
    Ok((0..numbers.len()).map(|row| Some(in_time(row))).collect())
}

/// Why a row with this event time is refused.
pub fn reason(column: &str, time: &str, timestamp_ms: Option<i64>, max_future_ms: i64) -> String {
    let received = timestamp_ms.and_then(DateTime::from_timestamp_millis);
    let received = received.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)).unwrap_or_default();
    format!(
        "{column} {time} is more than {} s after {received}, the timestamp of the message (option 'max_future')",
        max_future_ms / 1_000
    )
}
