//! Timestamps from their spelling.

use arrow::array::timezone::Tz;
use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::TimeUnit;

use super::column::text;
use super::number;
use crate::catalog::TimestampFormat;

/// Reads the timestamps of one column.
#[derive(Clone, Copy, Debug)]
pub struct Timestamps {
    format: TimestampFormat,
    unit: TimeUnit,
    zone: Tz,
}

impl Timestamps {
    /// For a column of `unit` and `zone`; the time of a text that names no zone is that of the column's, and
    /// UTC if the column has none.
    pub fn new(format: TimestampFormat, unit: TimeUnit, zone: Option<&str>) -> Result<Self, String> {
        let zone = zone.unwrap_or("+00:00");
        let zone = zone.parse().map_err(|_| format!("the time zone {zone} is not known"))?;
        Ok(Timestamps { format, unit, zone })
    }

    /// In the column's unit; what is finer is cut.
    pub fn read(&self, json: &str) -> Option<i64> {
        match self.format {
            TimestampFormat::Iso => {
                let time = string_to_datetime(&self.zone, &text(json)?).ok()?;
                match self.unit {
                    TimeUnit::Second => Some(time.timestamp()),
                    TimeUnit::Millisecond => Some(time.timestamp_millis()),
                    TimeUnit::Microsecond => Some(time.timestamp_micros()),
                    TimeUnit::Nanosecond => time.timestamp_nanos_opt(),
                }
            }
            TimestampFormat::Epoch(unit) => {
                let quoted = text(json);
                let nanos = number::units(quoted.as_deref().unwrap_or(json), 9 - places(unit))?;
                nanos.div_euclid(10i128.pow(9 - places(self.unit))).try_into().ok()
            }
        }
    }
}

/// Decimal places of a second.
fn places(unit: TimeUnit) -> u32 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}
