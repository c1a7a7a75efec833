//! What is told to the engine: declarations, and rows with NULLs, repeated values, both zeros, and times in no order.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampNanosecondArray, UInt8Array,
};
use arrow::datatypes::SchemaRef;
use rand::prelude::*;

use super::draw::Draw;
use crate::engine::oracle::Messages;

/// The day of the events: they begin in the morning, or just before midnight.
const MORNING: i64 = 1_704_103_200;
const EVENING: i64 = 1_704_153_570;
const DAY: i64 = 86_400;

/// One thing that the engine is told.
#[derive(Clone, Debug)]
pub enum Step {
    /// A micro-batch of a source.
    Messages { source: &'static str, messages: Vec<Message> },
    /// A reference table has these rows now.
    Reference { table: &'static str, rows: Vec<(Option<&'static str>, &'static str)> },
}

/// A message of a source: a row that comes, one that is taken back, or both.
#[derive(Clone, Debug)]
pub struct Message {
    pub came: Option<Row>,
    pub back: Option<Row>,
    pub partition: i32,
}

/// A row of `events` or `clicks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: i64,
    pub k: Option<&'static str>,
    pub g: Option<&'static str>,
    pub x: Option<i64>,
    pub i: Option<i32>,
    pub u: Option<u8>,
    pub f: Option<f64>,
    /// In hundredths.
    pub d: Option<i128>,
    pub s: Option<&'static str>,
    /// Seconds.
    pub at: Option<i64>,
    pub z: Option<i64>,
    pub tags: Option<Vec<&'static str>>,
}

/// What the messages of a source say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows that come.
    Append,
    /// Rows that replace that of their key, or delete it.
    Replace,
    /// Debezium's envelopes, with a key.
    Debezium,
    /// Debezium's envelopes, of whole rows.
    DebeziumWhole,
}

/// The declarations of one engine.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    pub has_watermark: bool,
    pub has_lateness: bool,
    pub has_primary_key: bool,
    pub begins: i64,
    /// Of `events` and of `clicks`.
    pub kinds: [Kind; 2],
}

/// The sources.
pub const SOURCES: [&str; 2] = ["events", "clicks"];

impl Declared {
    /// Draws which sources there are.
    pub fn draw(draw: &mut Draw, has_watermark: bool) -> Declared {
        Declared {
            has_watermark,
            has_lateness: has_watermark && draw.chance(3),
            has_primary_key: draw.chance(2),
            begins: if draw.chance(7) { MORNING } else { EVENING },
            kinds: [Kind::Append; 2],
        }
    }

    /// The same with sources that take rows back, at least one.
    pub fn draw_taking_back(draw: &mut Draw) -> Declared {
        const KINDS: [Kind; 3] = [Kind::Replace, Kind::Debezium, Kind::DebeziumWhole];
        let has_watermark = draw.chance(3);
        let mut kinds = [0, 1].map(|_| *KINDS.choose(&mut draw.0).expect("a choice"));
        if draw.chance(3) {
            kinds[draw.0.random_range(0..2)] = Kind::Append;
        }
        Declared { kinds, ..Declared::draw(draw, has_watermark) }
    }

    /// What the messages of a source say.
    pub fn kind(&self, source: &str) -> Kind {
        self.kinds[usize::from(source != SOURCES[0])]
    }

    /// Whether a source takes rows back.
    pub fn takes_back(&self) -> bool {
        self.kinds.iter().any(|kind| *kind != Kind::Append)
    }

    fn has_key(&self, source: &str) -> bool {
        match self.kind(source) {
            Kind::Append => self.has_primary_key && source == SOURCES[0],
            Kind::Replace | Kind::Debezium => true,
            Kind::DebeziumWhole => false,
        }
    }

    /// As SQL.
    pub fn sql(&self) -> String {
        let source = |name: &str| {
            let mut options = Vec::new();
            if self.has_watermark {
                options.push("'event_time' 'at', 'watermark' '30 seconds'");
            }
            if self.has_lateness {
                options.push("'allowed_lateness' '20 seconds'");
            }
            match self.kind(name) {
                Kind::Append => {}
                Kind::Replace => options.push("'on_conflict' 'replace'"),
                Kind::Debezium | Kind::DebeziumWhole => options.push("'format' 'debezium-json'"),
            }
            let options = match options.as_slice() {
                [] => String::new(),
                some => format!(" OPTIONS ({})", some.join(", ")),
            };
            let key = if self.has_key(name) { ", PRIMARY KEY (id)" } else { "" };
            format!(
                "CREATE UNBOUNDED EXTERNAL TABLE {name} (id BIGINT, k VARCHAR, g VARCHAR, x BIGINT, i INT, \
                 u TINYINT UNSIGNED, f DOUBLE, d DECIMAL(12, 2), s VARCHAR, at TIMESTAMP, \
                 z TIMESTAMP WITH TIME ZONE, day DATE, tags VARCHAR[]{key}) \
                 STORED AS KAFKA LOCATION '{name}'{options}"
            )
        };
        [
            source(SOURCES[0]),
            source(SOURCES[1]),
            "CREATE EXTERNAL TABLE places (k VARCHAR, name VARCHAR) STORED AS CSV LOCATION 'p.csv'".into(),
            "CREATE EXTERNAL TABLE sizes (g VARCHAR, size BIGINT) STORED AS CSV LOCATION 's.csv'".into(),
        ]
        .join(";\n")
    }

    /// The reference tables at first, micro-batches, and changes of reference tables between them.
    pub fn steps(&self, draw: &mut Draw, batches: usize, partitions: i32) -> Vec<Step> {
        let mut steps = vec![draw.places(), draw.sizes()];
        let mut next_id = 0;
        for _ in 0..batches {
            if draw.chance(1) {
                steps.push(if draw.chance(5) { draw.places() } else { draw.sizes() });
            }
            let source = if draw.chance(7) { "events" } else { "clicks" };
            let count = draw.0.random_range(1..12);
            let rows = self.rows(draw, count, &mut next_id);
            let partitions: Vec<i32> = (0..count).map(|_| draw.0.random_range(0..partitions)).collect();
            steps.push(Step::Messages { source, messages: coming(rows, partitions) });
        }
        steps
    }

    /// Rows whose times go on by half a second a row, more or less.
    pub fn rows(&self, draw: &mut Draw, count: usize, next_id: &mut i64) -> Vec<Row> {
        (0..count).map(|_| self.row(draw, next_id)).collect()
    }

    /// The next row.
    pub fn row(&self, draw: &mut Draw, next_id: &mut i64) -> Row {
        let id = match self.has_primary_key && *next_id > 0 && draw.chance(2) {
            true => draw.0.random_range(0..*next_id),
            false => *next_id,
        };
        *next_id += 1;
        let at = self.begins + *next_id / 2 + draw.0.random_range(-40..20);
        Row {
            id,
            k: draw.maybe(&["a", "b", "c", "ba", ""]),
            g: draw.maybe(&["n", "s", "w"]),
            x: draw.maybe(&[-2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            i: draw.maybe(&[-1, 0, 1, 2, 3]),
            u: draw.maybe(&[0, 1, 7, 9]),
            f: draw.maybe(&[0.0, -0.0, 3.5, 4.25, -1.5, 1e15]),
            d: draw.maybe(&[0, 100, -250, 3333, 99999]),
            s: draw.maybe(&["0", "7", "12", "-3", "1.5", "x", ""]),
            at: draw.chance_of(11, 12).then_some(at),
            z: draw.maybe(&[at, at + 3600]),
            tags: draw.chance_of(7, 8).then(|| {
                let count = draw.0.random_range(0..3);
                (0..count).map(|_| ["red", "blue"][draw.0.random_range(0..2)]).collect()
            }),
        }
    }
}

/// A message for each row that comes.
pub fn coming(rows: Vec<Row>, partitions: Vec<i32>) -> Vec<Message> {
    let message = |(row, partition)| Message { came: Some(row), back: None, partition };
    rows.into_iter().zip(partitions).map(message).collect()
}

impl Draw {
    pub fn maybe<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (self.0.random_range(0..10) > 0).then(|| *of.choose(&mut self.0).expect("a choice"))
    }

    pub fn places(&mut self) -> Step {
        let mut rows = vec![(Some("a"), "Aachen"), (Some("b"), "Bonn"), (Some("z"), "Zeitz")];
        rows.extend(
            [(None, "Nowhere"), (Some(""), "Empty"), (Some("c"), "Celle")].iter().filter(|_| self.chance(5)),
        );
        rows.retain(|_| self.chance(9));
        Step::Reference { table: "places", rows }
    }

    pub fn sizes(&mut self) -> Step {
        let mut rows = vec![(Some("n"), "3"), (Some("s"), "5")];
        rows.extend([(Some("w"), "4"), (Some("q"), "0"), (Some("s"), "2")].iter().filter(|_| self.chance(3)));
        Step::Reference { table: "sizes", rows }
    }
}

/// The messages as the engine is told them.
pub fn told(messages: &[Message], schema: &SchemaRef) -> Messages {
    let rows = |of: fn(&Message) -> &Option<Row>| {
        let rows: Vec<Row> = messages.iter().filter_map(|message| of(message).clone()).collect();
        let places = (0..).zip(messages).filter(|(_, message)| of(message).is_some());
        (batch(&rows, schema), places.map(|(place, _)| place).collect())
    };
    let (came, of_came) = rows(|message| &message.came);
    let (back, of_back) = rows(|message| &message.back);
    Messages {
        came,
        of_came,
        back,
        of_back,
        partitions: messages.iter().map(|message| message.partition).collect(),
    }
}

/// The rows with the columns of their source.
fn batch(rows: &[Row], schema: &SchemaRef) -> RecordBatch {
    const SECOND: i64 = 1_000_000_000;
    let texts = |of: fn(&Row) -> Option<&'static str>| StringArray::from_iter(rows.iter().map(of));
    let mut tags = ListBuilder::new(StringBuilder::new());
    for row in rows {
        for tag in row.tags.iter().flatten() {
            tags.values().append_value(tag);
        }
        tags.append(row.tags.is_some());
    }
    let times = |of: fn(&Row) -> Option<i64>| {
        TimestampNanosecondArray::from_iter(rows.iter().map(|row| of(row).map(|s| s * SECOND)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
        Arc::new(texts(|row| row.k)),
        Arc::new(texts(|row| row.g)),
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.x))),
        Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.i))),
        Arc::new(UInt8Array::from_iter(rows.iter().map(|row| row.u))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.f))),
        Arc::new(
            Decimal128Array::from_iter(rows.iter().map(|row| row.d)).with_precision_and_scale(12, 2).unwrap(),
        ),
        Arc::new(texts(|row| row.s)),
        Arc::new(times(|row| row.at)),
        Arc::new(times(|row| row.z).with_timezone("+00:00")),
        Arc::new(Date32Array::from_iter(rows.iter().map(|row| row.at.map(|at| (at / DAY) as i32)))),
        Arc::new(tags.finish()),
    ];
    typed(columns, schema)
}

/// The rows of a reference table, of which each column is written as text.
pub fn table(rows: &[(Option<&'static str>, &'static str)], schema: &SchemaRef) -> RecordBatch {
    let first = StringArray::from_iter(rows.iter().map(|row| row.0));
    let second = StringArray::from_iter_values(rows.iter().map(|row| row.1));
    typed(vec![Arc::new(first), Arc::new(second)], schema)
}

fn typed(columns: Vec<ArrayRef>, schema: &SchemaRef) -> RecordBatch {
    let columns = columns.iter().zip(schema.fields());
    let typed = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()).unwrap());
    RecordBatch::try_new(Arc::clone(schema), typed.collect()).unwrap()
}
