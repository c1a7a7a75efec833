//! Timestamps from their spelling.

use arrow::array::timezone::Tz;
use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::{DataType, TimeUnit};

use chrono::{DateTime, NaiveDate};

use super::column::text;
use super::number;
use crate::catalog::{EVENT_TIME_YEARS, TimestampFormat};

/// Reads the timestamps of one column.
#[derive(Clone, Copy, Debug)]
pub struct Timestamps {
    format: TimestampFormat,
    unit: TimeUnit,
    zone: Tz,
    /// In the column's unit, the last not among them.
    allowed: Option<(i64, i64)>,
}

impl Timestamps {
    /// For a column of `unit` and `zone`; the time of a text that names no zone is that of the column's, and
    /// UTC if the column has none.
    pub fn new(format: TimestampFormat, unit: TimeUnit, zone: Option<&str>) -> Result<Self, String> {
        let zone = zone.unwrap_or("+00:00");
        let zone = zone.parse().map_err(|_| format!("the time zone {zone} is not known"))?;
        Ok(Timestamps { format, unit, zone, allowed: None })
    }

    /// Reads no time that is no event time.
    pub fn of_events(self) -> Self {
        let begins = |year| {
            let day = NaiveDate::from_ymd_opt(year, 1, 1).unwrap_or_default();
            day.and_time(Default::default()).and_utc()
        };
        let (first, last) = EVENT_TIME_YEARS;
        let allowed = self.in_unit(begins(first)).zip(self.in_unit(begins(last)));
        Timestamps { allowed, ..self }
    }

    /// What is read, for people.
    pub fn expected(&self, data_type: &DataType) -> String {
        let spelled = match self.format {
            TimestampFormat::Iso => format!("{data_type} such as \"2026-05-07 21:59:59\""),
            other => format!("{data_type} as {}", other.name()),
        };
        match self.allowed {
            Some(_) => {
                format!("event time from {} to {}: {spelled}", EVENT_TIME_YEARS.0, EVENT_TIME_YEARS.1 - 1)
            }
            None => spelled,
        }
    }

    /// In the column's unit; what is finer is cut.
    pub fn read(&self, json: &str) -> Option<i64> {
        let time = self.read_any(json)?;
        self.allowed.is_none_or(|(first, last)| first <= time && time < last).then_some(time)
    }

    fn in_unit<Z: chrono::TimeZone>(&self, time: DateTime<Z>) -> Option<i64> {
        match self.unit {
            TimeUnit::Second => Some(time.timestamp()),
            TimeUnit::Millisecond => Some(time.timestamp_millis()),
            TimeUnit::Microsecond => Some(time.timestamp_micros()),
            TimeUnit::Nanosecond => time.timestamp_nanos_opt(),
        }
    }

    fn read_any(&self, json: &str) -> Option<i64> {
        match self.format {
            TimestampFormat::Iso => self.in_unit(string_to_datetime(&self.zone, &text(json)?).ok()?),
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
