//! Reads the statements of `queries/`: sources and their rules, views and their options. Knows what is
//! declared, not how it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::{CreateExternalTable, DFParser, Statement};
use datafusion::sql::sqlparser::ast::{
    ColumnOption, CreateTableOptions, CreateView, Expr, Ident, ObjectName, Spanned, SqlOption,
    Statement as SqlStatement, TableConstraint, Value,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::held::Hold;
use super::watermark::MILLISECOND;
use crate::error::{Error, Result};
use crate::queries::QueryFile;

const SOURCE_OPTIONS: [&str; 6] =
    ["format", "timestamp_format", "event_time", "watermark", "allowed_lateness", "dead_letter_topic"];
const TIMESTAMP_FORMATS: [(&str, TimestampFormat); 5] = [
    ("iso", TimestampFormat::Iso),
    ("epoch_s", TimestampFormat::Epoch(TimeUnit::Second)),
    ("epoch_ms", TimestampFormat::Epoch(TimeUnit::Millisecond)),
    ("epoch_us", TimestampFormat::Epoch(TimeUnit::Microsecond)),
    ("epoch_ns", TimestampFormat::Epoch(TimeUnit::Nanosecond)),
];
const VIEW_OPTIONS: [&str; 6] = ["topic", "key", "mode", "hold_rows", "hold_for", "ring_rows"];
/// Newest rows of an append view that stay readable, unless it says otherwise.
const RING_ROWS: usize = 10_000;

/// Where a statement stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line and column of the name that the statement declares, from 1.
    pub line: u64,
    /// See `line`.
    pub column: u64,
}

impl Place {
    /// An error here.
    pub fn error(&self, reason: impl ToString) -> Error {
        Error::Query {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
            reason: reason.to_string(),
        }
    }

    /// An error of DataFusion's, at the position that it names if it names one.
    pub fn explain(&self, error: DataFusionError) -> Error {
        let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
        let (line, column) = span.map_or((self.line, self.column), |s| (s.start.line, s.start.column));
        let reason = error.strip_backtrace();
        Error::Query { file: self.file.clone(), line, column, reason }
    }

    fn at(file: &Path, span: Span) -> Place {
        Place { file: file.to_path_buf(), line: span.start.line.max(1), column: span.start.column.max(1) }
    }
}

/// A rule for the rows of a source. Its name is what rejected messages are counted by.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The declared constraint's name, or one made of the rule, such as `check(vote = 1)`.
    pub name: String,
    /// What must hold.
    pub kind: RuleKind,
}

/// What a rule demands.
#[derive(Clone, Debug)]
pub enum RuleKind {
    /// The column has a value.
    NotNull(String),
    /// The expression is not false.
    Check(Box<Expr>),
    /// The values of `columns` are those of a row of the reference table.
    ForeignKey {
        /// Columns of the source.
        columns: Vec<String>,
        /// The reference table.
        table: String,
        /// Its columns, in the same order.
        referred: Vec<String>,
    },
    /// No earlier row that kept every rule has the same values.
    PrimaryKey(Vec<String>),
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
    fn named(name: &str) -> Option<Self> {
        TIMESTAMP_FORMATS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, format)| *format)
    }

    /// Its name in a declaration.
    pub fn name(self) -> &'static str {
        TIMESTAMP_FORMATS.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
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
    /// How its messages spell a timestamp.
    pub timestamp_format: TimestampFormat,
    /// The column that says when the event happened.
    pub event_time: Option<String>,
    /// How far the watermark stays behind the newest event time, in milliseconds; without it there is no
    /// watermark, and nothing is ever final.
    pub watermark_delay_ms: Option<i64>,
    /// How much longer a group takes rows after the watermark has passed its end, in milliseconds.
    pub allowed_lateness_ms: i64,
    /// Topic for the messages that break a rule.
    pub dead_letter_topic: Option<String>,
}

/// A declared reference table: for `tally check` and `tally replay`, which ask no Postgres.
#[derive(Clone, Debug)]
pub struct TableDef {
    /// Its name in SQL.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
    /// Its columns.
    pub schema: SchemaRef,
}

/// When a view's rows are written, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The rows that changed, after each micro-batch.
    Update,
    /// All rows, after each micro-batch that changed one.
    Complete,
    /// Each row once, when it is final.
    Append,
}

impl Mode {
    /// As written in `queries/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Update => "update",
            Mode::Complete => "complete",
            Mode::Append => "append",
        }
    }
}

/// A declared view.
#[derive(Clone, Debug)]
pub struct ViewDef {
    /// Its name in SQL.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
    /// The statement's query, with window functions in FROM as they stand there.
    pub query: Statement,
    /// Kept up to date and served; otherwise only a name for a query.
    pub materialized: bool,
    /// Topic that receives its changelog.
    pub topic: Option<String>,
    /// Columns that tell its rows apart, as declared.
    pub key: Vec<String>,
    /// When rows are written; `None`: as its query suggests.
    pub mode: Option<Mode>,
    /// How many rows of streams it may hold, and for how long.
    pub hold: Option<Hold>,
    /// Newest rows that stay readable, if it is an append view without state.
    pub ring_rows: usize,
}

/// All that `queries/` declares.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By name.
    pub sources: BTreeMap<String, SourceDef>,
    /// By name.
    pub views: BTreeMap<String, ViewDef>,
    /// By name.
    pub tables: BTreeMap<String, TableDef>,
}

impl Catalog {
    /// Parses every file; the error is that of all statements that can't be used. `session` is used to turn SQL
    /// types into Arrow types only.
    pub async fn parse(files: &[QueryFile], session: &SessionState) -> Result<Catalog> {
        let mut catalog = Catalog::default();
        let mut errors = Vec::new();
        for file in files {
            let start = Place { file: file.path.clone(), line: 1, column: 1 };
            let statements = DFParser::parse_sql(&file.text).unwrap_or_else(|e| {
                errors.push(parse_error(&start, e));
                Default::default()
            });
            for statement in statements {
                errors.extend(catalog.add(&file.path, statement, session).await.err());
            }
        }
        Error::all(errors)?;
        Ok(catalog)
    }

    /// Topics of the declared sources, dead letters and views; each with whether it is a changelog that
    /// may be compacted by key.
    pub fn topics(&self) -> BTreeMap<String, bool> {
        let sources = self.sources.values().flat_map(|s| {
            std::iter::once((s.topic.clone(), false)).chain(s.dead_letter_topic.clone().map(|t| (t, false)))
        });
        let views = self.views.values().filter_map(|v| v.topic.clone().map(|t| (t, !v.key.is_empty())));
        sources.chain(views).collect()
    }

    /// The tables and columns that foreign keys refer to.
    pub fn foreign_keys(&self) -> Vec<(String, Vec<String>)> {
        let rules = self.sources.values().flat_map(|source| &source.rules);
        rules
            .filter_map(|rule| match &rule.kind {
                RuleKind::ForeignKey { table, referred, .. } => Some((table.clone(), referred.clone())),
                _ => None,
            })
            .collect()
    }

    async fn add(&mut self, file: &Path, statement: Statement, session: &SessionState) -> Result<()> {
        match statement {
            Statement::CreateExternalTable(table) => {
                let place = Place::at(file, name_span(&table.name));
                if !table.unbounded {
                    let name = bare_name(&table.name, &place)?;
                    let schema = schema(&table, session, &place).await?;
                    self.unique(&name, &place)?;
                    self.tables.insert(name.clone(), TableDef { name, place, schema });
                    return Ok(());
                }
                let source = source(place, table, session).await?;
                self.unique(&source.name, &source.place)?;
                self.sources.insert(source.name.clone(), source);
            }
            Statement::Statement(sql) => match *sql {
                SqlStatement::CreateView(view) => {
                    let view = self::view(Place::at(file, name_span(&view.name)), view)?;
                    self.unique(&view.name, &view.place)?;
                    self.views.insert(view.name.clone(), view);
                }
                other => return Err(not_a_declaration(Place::at(file, other.span()), &other.to_string())),
            },
            other => {
                let place = Place { file: file.to_path_buf(), line: 1, column: 1 };
                return Err(not_a_declaration(place, &other.to_string()));
            }
        }
        Ok(())
    }

    fn unique(&self, name: &str, place: &Place) -> Result<()> {
        let other =
            self.sources.get(name).map(|s| &s.place).or_else(|| self.views.get(name).map(|v| &v.place));
        let other = other.or_else(|| self.tables.get(name).map(|t| &t.place));
        match other {
            Some(other) => Err(place.error(format!(
                "`{name}` is declared already, in {}:{}; give one of them another name",
                other.file.display(),
                other.line
            ))),
            None => Ok(()),
        }
    }
}

fn not_a_declaration(place: Place, statement: &str) -> Error {
    let start: String = statement.chars().take(60).collect();
    place.error(format!(
        "`{start}` declares nothing; a file of queries/ holds CREATE UNBOUNDED EXTERNAL TABLE, \
         CREATE MATERIALIZED VIEW and CREATE VIEW statements"
    ))
}

/// The parser gives the position only in its text: "… at Line: 3, Column: 7".
fn parse_error(start: &Place, error: DataFusionError) -> Error {
    let text = error.strip_backtrace();
    let number_after = |marker: &str| -> Option<u64> {
        let rest = &text[text.rfind(marker)? + marker.len()..];
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    };
    let place = Place {
        file: start.file.clone(),
        line: number_after("Line: ").unwrap_or(1),
        column: number_after("Column: ").unwrap_or(1),
    };
    place.error(text)
}

fn name_span(name: &ObjectName) -> Span {
    Span::union_iter(name.0.iter().map(Spanned::span))
}

/// An unquoted identifier is lower-cased, as DataFusion does.
pub fn normalize(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn bare_name(name: &ObjectName, place: &Place) -> Result<String> {
    match name.0.as_slice() {
        [part] => match part.as_ident() {
            Some(ident) => Ok(normalize(ident)),
            None => Err(place.error(format!("`{name}` is no plain name"))),
        },
        _ => {
            Err(place
                .error(format!("`{name}`: declare it without a schema, as `{}`", name.0[name.0.len() - 1])))
        }
    }
}

async fn source(place: Place, table: CreateExternalTable, session: &SessionState) -> Result<SourceDef> {
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
    if let Some(format) = options.get("format").filter(|format| !format.eq_ignore_ascii_case("json")) {
        return Err(place.error(format!("format '{format}' is not known; write 'json'")));
    }
    let timestamp_format = match options.get("timestamp_format") {
        Some(name) => TimestampFormat::named(name).ok_or_else(|| {
            let known = TIMESTAMP_FORMATS.map(|(name, _)| name).join(", ");
            place.error(format!("timestamp_format '{name}' is not known; it is one of {known}"))
        })?,
        None => TimestampFormat::default(),
    };
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
    Ok(SourceDef {
        name,
        schema,
        topic: topic.clone(),
        rules,
        timestamp_format,
        event_time,
        watermark_delay_ms,
        allowed_lateness_ms: allowed_lateness_ms.unwrap_or(0),
        dead_letter_topic: options.remove("dead_letter_topic"),
        place,
    })
}

/// The columns as Arrow types; the rules are taken off first, since DataFusion plans only some of them.
async fn schema(table: &CreateExternalTable, session: &SessionState, place: &Place) -> Result<SchemaRef> {
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

fn rules(table: &CreateExternalTable, place: &Place) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for column in &table.columns {
        for option in &column.options {
            let name = option.name.as_ref().map(normalize);
            let own = || vec![normalize(&column.name)];
            match &option.option {
                ColumnOption::Null => {}
                ColumnOption::NotNull => rules.push(rule(name, RuleKind::NotNull(normalize(&column.name)))),
                ColumnOption::PrimaryKey(_) => rules.push(rule(name, RuleKind::PrimaryKey(own()))),
                ColumnOption::Check(check) => rules.push(rule(name, RuleKind::Check(check.expr.clone()))),
                ColumnOption::ForeignKey(key) => {
                    rules.push(foreign_key(name, own(), &key.foreign_table, &key.referred_columns, place)?);
                }
                other => {
                    return Err(place.error(format!("column {}: `{other}` is not known here", column.name)));
                }
            }
        }
    }
    for constraint in &table.constraints {
        match constraint {
            TableConstraint::PrimaryKey(key) => {
                let columns = key.columns.iter().map(|c| match &c.column.expr {
                    Expr::Identifier(ident) => Ok(normalize(ident)),
                    other => Err(place.error(format!("PRIMARY KEY ({other}): only columns can be a key"))),
                });
                let kind = RuleKind::PrimaryKey(columns.collect::<Result<_>>()?);
                rules.push(rule(key.name.as_ref().map(normalize), kind));
            }
            TableConstraint::Check(check) => {
                rules.push(rule(check.name.as_ref().map(normalize), RuleKind::Check(check.expr.clone())));
            }
            TableConstraint::ForeignKey(key) => {
                let columns = key.columns.iter().map(normalize).collect();
                let name = key.name.as_ref().map(normalize);
                rules.push(foreign_key(name, columns, &key.foreign_table, &key.referred_columns, place)?);
            }
            other => {
                return Err(place.error(format!(
                    "`{other}`: a source knows NOT NULL, CHECK, FOREIGN KEY and PRIMARY KEY"
                )));
            }
        }
    }
    rules.sort_by_key(|rule| match rule.kind {
        RuleKind::NotNull(_) => 0,
        RuleKind::Check(_) => 1,
        RuleKind::ForeignKey { .. } => 2,
        RuleKind::PrimaryKey(_) => 3,
    });
    if rules.iter().filter(|rule| matches!(rule.kind, RuleKind::PrimaryKey(_))).count() > 1 {
        return Err(place.error("a source has at most one PRIMARY KEY"));
    }
    Ok(rules)
}

fn rule(name: Option<String>, kind: RuleKind) -> Rule {
    let name = name.unwrap_or_else(|| match &kind {
        RuleKind::NotNull(column) => format!("not_null({column})"),
        RuleKind::Check(expr) => format!("check({expr})"),
        RuleKind::ForeignKey { columns, .. } => format!("foreign_key({})", columns.join(", ")),
        RuleKind::PrimaryKey(columns) => format!("primary_key({})", columns.join(", ")),
    });
    Rule { name, kind }
}

fn foreign_key(
    name: Option<String>,
    columns: Vec<String>,
    table: &ObjectName,
    referred: &[Ident],
    place: &Place,
) -> Result<Rule> {
    let referred: Vec<_> = referred.iter().map(normalize).collect();
    if referred.len() != columns.len() {
        return Err(
            place.error(format!("FOREIGN KEY ({}): name as many columns of {table}", columns.join(", ")))
        );
    }
    Ok(rule(name, RuleKind::ForeignKey { columns, table: bare_name(table, place)?, referred }))
}

fn view(place: Place, view: CreateView) -> Result<ViewDef> {
    let name = bare_name(&view.name, &place)?;
    let mut def = ViewDef {
        name,
        query: Statement::Statement(Box::new(SqlStatement::Query(view.query))),
        materialized: view.materialized,
        topic: None,
        key: Vec::new(),
        mode: None,
        hold: None,
        ring_rows: RING_ROWS,
        place,
    };
    let mut hold_for = None;
    let options = match &view.options {
        CreateTableOptions::None => &[][..],
        CreateTableOptions::With(options) => options,
        other => return Err(def.place.error(format!("`{other}`: write a view's options as WITH (…)"))),
    };
    if !def.materialized && !options.is_empty() {
        return Err(def.place.error("only a MATERIALIZED view has options"));
    }
    if !view.columns.is_empty() {
        return Err(def.place.error("name the columns in the SELECT, with AS"));
    }
    for option in options {
        let SqlOption::KeyValue { key, value: Expr::Value(value) } = option else {
            return Err(def.place.error(format!("`{option}`: write an option as name = 'value'")));
        };
        let value =
            literal(&value.value).ok_or_else(|| def.place.error(format!("option {key} must be text")))?;
        match normalize(key).as_str() {
            "topic" => def.topic = Some(value),
            "key" => def.key = value.split(',').map(|column| column.trim().to_string()).collect(),
            "mode" => {
                let modes = [Mode::Update, Mode::Complete, Mode::Append];
                def.mode = modes.into_iter().find(|mode| value.eq_ignore_ascii_case(mode.as_str()));
                if def.mode.is_none() {
                    let reason =
                        format!("mode '{value}' is not known; there are update, complete and append");
                    return Err(def.place.error(reason));
                }
            }
            "hold_rows" => {
                def.hold = Some(Hold { rows: number(&def.place, "hold_rows", &value)?, duration: None })
            }
            "ring_rows" => def.ring_rows = number(&def.place, "ring_rows", &value)?,
            "hold_for" => match duration_ms(&value).filter(|duration| *duration > 0) {
                Some(duration) => hold_for = Some(duration.saturating_mul(MILLISECOND)),
                None => {
                    return Err(def
                        .place
                        .error(format!("hold_for '{value}' is no duration such as '1 hour'")));
                }
            },
            other => {
                let known = VIEW_OPTIONS.join(", ");
                return Err(def.place.error(format!("unknown option '{other}'; a view knows {known}")));
            }
        }
    }
    match &mut def.hold {
        Some(hold) => hold.duration = hold_for,
        None if hold_for.is_some() => {
            return Err(def.place.error("hold_for needs hold_rows, the most rows that may be held"));
        }
        None => {}
    }
    Ok(def)
}

fn number(place: &Place, option: &str, text: &str) -> Result<usize> {
    let number = text.replace('_', "").parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| place.error(format!("{option} '{text}' is no number of rows such as 1000000")))
}

fn literal(value: &Value) -> Option<String> {
    match value {
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) | Value::Number(text, _) => {
            Some(text.clone())
        }
        Value::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

fn duration_ms(text: &str) -> Option<i64> {
    let interval = parse_interval_month_day_nano(text).ok()?;
    let milliseconds = i64::from(interval.days) * 86_400_000 + interval.nanoseconds / 1_000_000;
    (interval.months == 0 && milliseconds >= 0).then_some(milliseconds)
}
