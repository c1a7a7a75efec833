//! `CREATE UNBOUNDED EXTERNAL TABLE`: a stream, its columns and options.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::{CreateExternalTable, Statement};

use super::rule::rules;
use super::{Place, Rule, RuleKind, bare_name, duration_ms, literal};
use crate::error::Result;

const SOURCE_OPTIONS: [&str; 10] = [
    "format",
    "on_conflict",
    "timestamp_format",
    "event_time",
    "watermark",
    "allowed_lateness",
    "max_future",
    "idle_timeout",
    "dead_letter_topic",
    "start",
];
const FORMATS: [(&str, Format); 2] = [("json", Format::Json), ("debezium-json", Format::DebeziumJson)];
const ON_CONFLICT: [(&str, OnConflict); 2] =
    [("reject", OnConflict::Reject), ("replace", OnConflict::Replace)];
const STARTS: [(&str, Start); 2] =
    [("earliest", Start::Earliest), ("earliest_available", Start::EarliestAvailable)];
/// Event times must be in these years, the last not among them: nanoseconds hold them with room for windows.
pub const EVENT_TIME_YEARS: (i32, i32) = (1700, 2240);
/// Clocks of producers and brokers differ by less, unless the source says otherwise.
const MAX_FUTURE_MS: i64 = 5 * 60 * 1000;
const TIMESTAMP_FORMATS: [(&str, TimestampFormat); 5] = [
    ("iso", TimestampFormat::Iso),
    ("epoch_s", TimestampFormat::Epoch(TimeUnit::Second)),
    ("epoch_ms", TimestampFormat::Epoch(TimeUnit::Millisecond)),
    ("epoch_us", TimestampFormat::Epoch(TimeUnit::Microsecond)),
    ("epoch_ns", TimestampFormat::Epoch(TimeUnit::Nanosecond)),
];

/// What a message of a source says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A row.
    #[default]
    Json,
    /// What happened to a row: how it was before, how it is after, as Debezium writes it.
    DebeziumJson,
}

/// What becomes of a row whose primary key an earlier row has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// It is rejected: the first counts.
    #[default]
    Reject,
    /// It takes the place of the earlier one: the newest counts. An empty message deletes.
    Replace,
}

/// How the messages of a source spell a timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampFormat {
    /// ISO 8601, or `YYYY-MM-DD HH:MM:SS[.f]`. A text that names no zone is in the column's, or in UTC if the
    /// column has none.
    #[default]
    Iso,
    /// A number, in quotes or not, of these units since 1970 in UTC.
    Epoch(TimeUnit),
}

impl TimestampFormat {
    /// Its name in a declaration.
    pub fn name(self) -> &'static str {
        TIMESTAMP_FORMATS.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// Where the reading of a source begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At its first message ever. A topic that no longer has it is refused: the count would be of less.
    #[default]
    Earliest,
    /// At the oldest message that the topic still has; what is lost is told in the status.
    EarliestAvailable,
}

/// A declared stream.
#[derive(Clone, Debug)]
pub struct SourceDef {
    /// Its name in SQL.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
    /// Columns, all nullable: what NOT NULL demands is a rule.
    pub schema: SchemaRef,
    /// The topic it reads.
    pub topic: String,
    /// In the order in which they are judged: the primary key last, so that a refused row claims no key.
    pub rules: Vec<Rule>,
    /// What its messages say.
    pub format: Format,
    /// What becomes of a row whose primary key an earlier row has.
    pub on_conflict: OnConflict,
    /// How its messages spell a timestamp.
    pub timestamp_format: TimestampFormat,
    /// The column that says when the event happened.
    pub event_time: Option<String>,
    /// How far the watermark stays behind the newest event time, in milliseconds; without it there is no
    /// watermark, and nothing is ever final.
    pub watermark_delay_ms: Option<i64>,
    /// How much longer a group takes rows after the watermark has passed its end, in milliseconds.
    pub allowed_lateness_ms: i64,
    /// How far an event time may be after the broker's timestamp of its message, in milliseconds.
    pub max_future_ms: i64,
    /// How long a partition may be silent until it holds the watermark back no longer, in milliseconds; without it,
    /// for ever.
    pub idle_timeout_ms: Option<i64>,
    /// Topic for the messages that break a rule.
    pub dead_letter_topic: Option<String>,
    /// Where its reading begins.
    pub start: Start,
}

impl SourceDef {
    /// Whether a message can take a row back that was counted.
    pub fn retracts(&self) -> bool {
        self.format == Format::DebeziumJson || self.on_conflict == OnConflict::Replace
    }

    /// Columns of the primary key, if it has one.
    pub fn primary_key(&self) -> Option<&[String]> {
        self.rules.iter().find_map(|rule| match &rule.kind {
            RuleKind::PrimaryKey(columns) => Some(columns.as_slice()),
            _ => None,
        })
    }
}

pub(super) async fn source(
    place: Place,
    table: CreateExternalTable,
    session: &SessionState,
) -> Result<SourceDef> {
    let name = bare_name(&table.name, &place)?;
    if !table.file_type.eq_ignore_ascii_case("KAFKA") {
        return Err(
            place.error("a source is a CREATE UNBOUNDED EXTERNAL TABLE … STORED AS KAFKA LOCATION 'topic'")
        );
    }
    let [topic] = table.locations.as_slice() else {
        return Err(place.error("a source reads one topic: write one LOCATION"));
    };
    let rules = rules(&table, &place)?;
    let schema = schema(&table, session, &place).await?;
    let column = |column: &String| -> Result<()> {
        if schema.index_of(column).is_ok() {
            return Ok(());
        }
        let known: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        Err(place.error(format!("`{name}` has no column `{column}`; it has {}", known.join(", "))))
    };
    for rule in &rules {
        match &rule.kind {
            RuleKind::NotNull(c) => column(c)?,
            RuleKind::PrimaryKey(columns) | RuleKind::ForeignKey { columns, .. } => {
                columns.iter().try_for_each(column)?
            }
            RuleKind::Check(_) => {}
        }
    }
    let mut options = BTreeMap::new();
    for (key, value) in &table.options {
        if !SOURCE_OPTIONS.contains(&key.as_str()) {
            return Err(
                place.error(format!("unknown option '{key}'; a source knows {}", SOURCE_OPTIONS.join(", ")))
            );
        }
        options.insert(
            key.clone(),
            literal(value).ok_or_else(|| place.error(format!("option '{key}' must be text")))?,
        );
    }
    let format: Format = named("format", &options, &FORMATS, &place)?;
    let on_conflict: OnConflict = named("on_conflict", &options, &ON_CONFLICT, &place)?;
    let timestamp_format = named("timestamp_format", &options, &TIMESTAMP_FORMATS, &place)?;
    let start = named("start", &options, &STARTS, &place)?;
    let has_key = rules.iter().any(|rule| matches!(rule.kind, RuleKind::PrimaryKey(_)));
    if options.contains_key("on_conflict") && !has_key {
        return Err(place.error("'on_conflict' needs a PRIMARY KEY, which says what a row replaces"));
    }
    if options.contains_key("on_conflict") && format == Format::DebeziumJson {
        return Err(
            place.error("a message of 'debezium-json' says what it replaces: leave 'on_conflict' out")
        );
    }
    let event_time = options.remove("event_time");
    if let Some(time) = &event_time {
        column(time)?;
        let data_type = schema.field_with_name(time)?.data_type();
        if !matches!(data_type, DataType::Timestamp(..)) {
            return Err(place.error(format!("event_time '{time}' is {data_type}; it must be a TIMESTAMP")));
        }
    }
    let duration = |option: &str| match options.get(option) {
        Some(text) => match duration_ms(text) {
            Some(duration) => Ok(Some(duration)),
            None => Err(place.error(format!("{option} '{text}' is no duration such as '1 minute'"))),
        },
        None => Ok(None),
    };
    let (watermark_delay_ms, allowed_lateness_ms) = (duration("watermark")?, duration("allowed_lateness")?);
    if watermark_delay_ms.is_some() && event_time.is_none() {
        return Err(place.error("'watermark' needs 'event_time', the column it follows"));
    }
    if allowed_lateness_ms.is_some() && watermark_delay_ms.is_none() {
        return Err(place.error("'allowed_lateness' needs 'watermark', which it adds to"));
    }
    let (max_future_ms, idle_timeout_ms) = (duration("max_future")?, duration("idle_timeout")?);
    if max_future_ms.is_some() && event_time.is_none() {
        return Err(place.error("'max_future' needs 'event_time', the column it judges"));
    }
    if idle_timeout_ms.is_some() && watermark_delay_ms.is_none() {
        return Err(place.error("'idle_timeout' needs 'watermark', which a silent partition holds back"));
    }
    if idle_timeout_ms == Some(0) {
        return Err(place.error("idle_timeout must be longer than nothing; leave it out to wait for ever"));
    }
    Ok(SourceDef {
        name,
        schema,
        topic: topic.clone(),
        rules,
        format,
        on_conflict,
        timestamp_format,
        event_time,
        watermark_delay_ms,
        allowed_lateness_ms: allowed_lateness_ms.unwrap_or(0),
        max_future_ms: max_future_ms.unwrap_or(MAX_FUTURE_MS),
        idle_timeout_ms,
        dead_letter_topic: options.remove("dead_letter_topic"),
        start,
        place,
    })
}

/// The value that an option names; without it, the usual one.
fn named<T: Copy + Default>(
    option: &str,
    options: &BTreeMap<String, String>,
    known: &[(&str, T)],
    place: &Place,
) -> Result<T> {
    let Some(name) = options.get(option) else { return Ok(T::default()) };
    let found = known.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known = known.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
        place.error(format!("{option} '{name}' is not known; it is one of {known}"))
    })
}

/// The columns as Arrow types; the rules are taken off first, since DataFusion plans only some of them.
pub(super) async fn schema(
    table: &CreateExternalTable,
    session: &SessionState,
    place: &Place,
) -> Result<SchemaRef> {
    let mut bare = table.clone();
    bare.constraints.clear();
    bare.options.clear();
    for column in &mut bare.columns {
        column.options.clear();
    }
    let plan = session
        .statement_to_plan(Statement::CreateExternalTable(bare))
        .await
        .map_err(|e| place.explain(e))?;
    let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(created)) = plan else {
        return Err(place.error("this CREATE EXTERNAL TABLE can't be planned"));
    };
    if created.schema.fields().is_empty() {
        return Err(place.error("a source must declare its columns"));
    }
    Ok(SchemaRef::new(created.schema.as_arrow().clone()))
}
