//! What came of a source, row by row, and when each row's windows were final, from the definition: event time
//! has come as far as the newest row before it in the same partition, less the watermark's delay and the
//! allowed lateness; or, at the end of the last micro-batch, as far as the partition that is furthest behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt64Array, new_null_array,
};
use arrow::compute::{cast, concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};

use super::rows::cells;
use crate::catalog::{MILLISECOND, SourceDef};

/// Hidden columns of a recount: a row's position among all rows of all sources, …
pub const POSITION: &str = "oracle_position";
/// … until when groups were final as it came, in nanoseconds since 1970, …
pub const FINAL_UNTIL: &str = "oracle_final_until";
/// … when it happened, …
pub const TIME: &str = "oracle_time";
/// … and, of a row in a window that goes by event time, when that ends, in nanoseconds since 1970.
pub const WINDOW_END: &str = "oracle_window_end";
/// How many those are.
pub const HIDDEN: usize = 4;

/// The rows of a source in the order in which they came.
pub struct Arrivals {
    schema: SchemaRef,
    /// The column of the event time, where the source has a watermark.
    time: Option<String>,
    behind: i64,
    batches: Vec<RecordBatch>,
    rows: Vec<Arrival>,
    /// Of each of these rows, whether it was not taken back.
    is_there: Vec<bool>,
    /// Of a source that takes rows back, where those that are there stand among its rows.
    places: Option<BTreeMap<Vec<String>, Vec<usize>>>,
    newest: BTreeMap<i32, i64>,
    /// After each micro-batch, until when groups are final.
    final_after: Vec<Option<i64>>,
}

/// What is known of a row besides its columns.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Position among all rows of all sources.
    pub position: u64,
    /// Until when groups were final as it came.
    pub final_until: Option<i64>,
    /// How often reference tables had changed before.
    pub era: usize,
}

impl Arrivals {
    /// No row yet.
    pub fn new(source: &SourceDef) -> Self {
        let delay = source.watermark_delay_ms;
        Arrivals {
            schema: Arc::clone(&source.schema),
            // What can be taken back is never final.
            time: source.event_time.clone().filter(|_| delay.is_some() && !source.retracts()),
            behind: (delay.unwrap_or(0) + source.allowed_lateness_ms) * MILLISECOND,
            batches: Vec::new(),
            rows: Vec::new(),
            is_there: Vec::new(),
            places: source.retracts().then(BTreeMap::new),
            newest: BTreeMap::new(),
            final_after: Vec::new(),
        }
    }

    /// Adds a micro-batch of rows that come, of weight 1, and of rows that go, of weight -1; `partitions` is that of
    /// each row, `first` the position of the first.
    pub fn push(&mut self, rows: &RecordBatch, weights: &[i64], partitions: &[i32], first: u64, era: usize) {
        let columns: Vec<_> = (0..self.schema.fields().len()).collect();
        let rows = &rows.project(&columns).unwrap();
        let texts = self.places.as_ref().map(|_| cells(rows));
        let closed = self.closed();
        let times = self.time.as_ref().map(|time| nanoseconds(rows.column_by_name(time).unwrap()));
        for (row, partition) in partitions.iter().enumerate() {
            if let (Some(places), Some(texts)) = (&mut self.places, &texts) {
                let places = places.entry(texts[row].clone()).or_default();
                if weights[row] < 0 {
                    self.is_there[places.pop().expect("a row goes that is not there")] = false;
                    continue;
                }
                places.push(self.rows.len());
            }
            self.is_there.push(true);
            let newest = self.newest.get(partition).copied();
            let time = times.as_ref().and_then(|times| times.is_valid(row).then(|| times.value(row)));
            let own = newest.map(|newest| newest - self.behind).filter(|_| self.time.is_some());
            let position = first + row as u64;
            self.rows.push(Arrival { position, final_until: own.max(closed), era });
            if let Some(time) = time {
                self.newest.insert(*partition, newest.map_or(time, |newest| newest.max(time)));
            }
        }
        self.final_after.push(self.newest.values().min().map(|slowest| slowest - self.behind));
        let came: BooleanArray = weights.iter().map(|weight| Some(*weight > 0)).collect();
        self.batches.push(filter_record_batch(rows, &came).unwrap());
    }

    /// Groups that end until then are final now, and for good.
    pub fn closed(&self) -> Option<i64> {
        self.final_after.iter().flatten().max().copied()
    }

    /// The event time's column, where there is a watermark.
    pub fn time(&self) -> Option<&str> {
        self.time.as_deref()
    }

    /// Every row that is there, and what is known of it.
    pub fn all(&self) -> (RecordBatch, Vec<Arrival>) {
        let rows = concat_batches(&self.schema, &self.batches).unwrap();
        let there = BooleanArray::from(self.is_there.clone());
        let known = self.rows.iter().zip(&self.is_there).filter(|(_, is_there)| **is_there);
        (filter_record_batch(&rows, &there).unwrap(), known.map(|(row, _)| *row).collect())
    }
}

/// The rows with the hidden columns, last; `time` is the column of the event time, if there is a watermark.
pub fn with_hidden(
    rows: &RecordBatch,
    of_row: &[Arrival],
    time: Option<&str>,
    ends: Vec<Option<i64>>,
) -> RecordBatch {
    let time: ArrayRef = match time {
        Some(time) => Arc::clone(rows.column_by_name(time).unwrap()),
        None => new_null_array(&DataType::Timestamp(TimeUnit::Nanosecond, None), rows.num_rows()),
    };
    let hidden: [(&str, ArrayRef); HIDDEN] = [
        (POSITION, Arc::new(UInt64Array::from_iter_values(of_row.iter().map(|row| row.position)))),
        (FINAL_UNTIL, Arc::new(Int64Array::from_iter(of_row.iter().map(|row| row.final_until)))),
        (TIME, time),
        (WINDOW_END, Arc::new(Int64Array::from(ends))),
    ];
    let (mut fields, mut columns) =
        (rows.schema().fields().iter().cloned().collect::<Vec<_>>(), rows.columns().to_vec());
    for (name, column) in hidden {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// A column of times in nanoseconds since 1970.
pub fn nanoseconds(column: &ArrayRef) -> Int64Array {
    let zone = match column.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        other => panic!("{other} is no time"),
    };
    let exact = cast(column, &DataType::Timestamp(TimeUnit::Nanosecond, zone)).unwrap();
    cast(&exact, &DataType::Int64).unwrap().as_primitive::<Int64Type>().clone()
}
