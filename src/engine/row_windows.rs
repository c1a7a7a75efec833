//! Windows of rows that no aggregate takes. As in an aggregate, a row that comes after its window was final is left
//! out.

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, UInt32Type};
use datafusion::common::internal_err;
use datafusion::error::Result;

use super::bound::{SessionRows, TimeWindow};
use super::input::{FINAL_UNTIL, ROW, TIME};

/// The windows that rows are in.
#[derive(Debug, Default)]
pub struct RowWindows {
    /// Tumbling and hopping ones of event time.
    pub windows: Vec<TimeWindow>,
    /// Sessions.
    pub sessions: Option<SessionRows>,
}

impl RowWindows {
    /// Whether they are of event time, and become final: then rows need the columns that no query sees.
    pub fn are_timed(&self) -> bool {
        !self.windows.is_empty() || self.sessions.as_ref().is_some_and(|sessions| sessions.is_timed)
    }

    /// The rows that are not too late for all windows of theirs, and positions in the micro-batch of those that are
    /// for one.
    pub fn split_late(&self, rows: &RecordBatch) -> Result<(RecordBatch, Vec<u32>)> {
        if !self.are_timed() {
            return Ok((rows.clone(), Vec::new()));
        }
        let [times, final_until] = [TIME, FINAL_UNTIL].map(|name| rows.column_by_name(name));
        let (Some(times), Some(final_until), Some(positions)) =
            (times, final_until, rows.column_by_name(ROW))
        else {
            return internal_err!("rows of windows without event time");
        };
        let (times, final_until) =
            (times.as_primitive::<Int64Type>(), final_until.as_primitive::<Int64Type>());
        let positions = positions.as_primitive::<UInt32Type>();
        let (mut late, mut keep) = (Vec::new(), Vec::with_capacity(rows.num_rows()));
        for row in 0..rows.num_rows() {
            let ends = match times.is_valid(row) && final_until.is_valid(row) {
                true => self.ends(times.value(row)),
                false => None,
            };
            let is_final = |end: i64| end <= final_until.value(row);
            if ends.is_some_and(|(first, _)| is_final(first)) {
                late.push(positions.value(row));
            }
            keep.push(!ends.is_some_and(|(_, last)| is_final(last)));
        }
        if late.is_empty() {
            return Ok((rows.clone(), late));
        }
        Ok((filter_record_batch(rows, &BooleanArray::from(keep))?, late))
    }

    /// When the first and the last of a time's windows end; of several kinds of windows, the first of any and that of
    /// which a row is left out first.
    fn ends(&self, time: i64) -> Option<(i64, i64)> {
        let session = self.sessions.as_ref().filter(|sessions| sessions.is_timed).and_then(|sessions| {
            let end = time.checked_add(sessions.gap)?;
            Some((end, end))
        });
        let windows = self.windows.iter().filter_map(|window| window.ends(time));
        windows.chain(session).reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)))
    }
}

impl TimeWindow {
    /// When the first and the last of the windows that a time is in end; none if it is in none.
    fn ends(self, time: i64) -> Option<(i64, i64)> {
        let last = time.checked_sub(time.rem_euclid(self.slide))?;
        // How many windows begin before the last one and still have the time.
        let before = self.size.checked_sub(1)?.checked_sub(time - last)?.checked_div_euclid(self.slide)?;
        if before < 0 {
            return None;
        }
        let first = last.checked_sub(before.checked_mul(self.slide)?)?;
        Some((first.checked_add(self.size)?, last.checked_add(self.size)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_of_a_time_end_from_the_first_to_the_last() {
        let hop = |slide, size, time| TimeWindow { slide, size }.ends(time);
        assert_eq!(hop(5, 10, 10), Some((15, 20)));
        assert_eq!(hop(5, 10, -1), Some((0, 5)));
        assert_eq!(hop(5, 12, 7), Some((12, 17)));
        assert_eq!(hop(5, 12, 11), Some((12, 22)));
        assert_eq!(hop(5, 2, 4), None, "between two windows");
        assert_eq!(hop(60, 60, 61), Some((120, 120)));
        assert_eq!(hop(60, 60, i64::MAX), None);
    }
}
