//! Reads the statements of `queries/`: sources and their rules, views and their options. Knows what is
//! declared, not how it runs.

mod disclosure;
mod place;
mod rule;
mod source;
mod text;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use arrow::datatypes::SchemaRef;
use datafusion::execution::session_state::SessionState;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName, Spanned, Statement as SqlStatement, Value};
use datafusion::sql::sqlparser::tokenizer::Span;

pub use self::disclosure::{Access, DisclosureDef};
pub use self::place::Place;
use self::place::parse_error;
pub use self::rule::{Rule, RuleKind};
pub use self::source::{EVENT_TIME_YEARS, Format, OnConflict, SourceDef, Start, TimestampFormat};
use self::source::{schema, source};
pub use self::view::{Hold, Mode, ViewDef};
use crate::engine::session;
use crate::error::{Error, Result};
use crate::queries::{self, QueryFile};

/// Nanoseconds of a millisecond.
pub const MILLISECOND: i64 = 1_000_000;

/// A declared reference table: for `tally check` and `tally replay`, which ask no Postgres.
#[derive(Clone, Debug)]
pub struct TableDef {
    /// Its name in SQL.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
    /// Its columns.
    pub schema: SchemaRef,
    /// A file that may have its rows, as the declaration names it.
    pub location: PathBuf,
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicUse {
    /// Its messages are read, from the first: it must keep all of them.
    Source,
    /// As a source, but of messages with one key the newest tells all.
    NewestByKey,
    /// It gets the messages that are not counted: the only place where they are told.
    DeadLetters,
    /// It gets a record of each epoch, by which a start knows what was counted: one partition, kept for ever.
    EpochLog,
    /// It gets a view's changed rows.
    Changelog {
        /// Whether they have keys, so that Kafka may forget all but the newest row of each key.
        keyed: bool,
    },
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
    /// All that the `.sql` files of a folder declare; without one, those of `queries/` here or the built-in ones
    /// (`queries::load`).
    pub async fn load(folder: Option<&Path>) -> Result<Catalog> {
        let (_, files) = queries::load(folder)?;
        Catalog::parse(&files, &session::continuous().state()).await
    }

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
            let texts = text::statements(&file.text);
            for (i, statement) in statements.into_iter().enumerate() {
                let text = texts.get(i).copied().unwrap_or_default();
                errors.extend(catalog.add(&file.path, statement, text, session).await.err());
            }
        }
        Error::all(errors)?;
        Ok(catalog)
    }

    /// Topics of the declared views, dead letters and sources. One that is several of these is the last.
    pub fn topics(&self) -> BTreeMap<String, TopicUse> {
        let views = self.views.values().filter_map(|v| {
            v.topic.clone().map(|topic| (topic, TopicUse::Changelog { keyed: !v.key.is_empty() }))
        });
        let letters = self.sources.values().filter_map(|s| s.dead_letter_topic.clone());
        let sources = self.sources.values().map(|s| {
            let is_by_key = s.retracts() && s.primary_key().is_some();
            (s.topic.clone(), if is_by_key { TopicUse::NewestByKey } else { TopicUse::Source })
        });
        views.chain(letters.map(|topic| (topic, TopicUse::DeadLetters))).chain(sources).collect()
    }

    /// The columns of the declared reference tables, by table.
    pub fn table_schemas(&self) -> BTreeMap<String, SchemaRef> {
        self.tables.iter().map(|(name, table)| (name.clone(), Arc::clone(&table.schema))).collect()
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

    async fn add(
        &mut self,
        file: &Path,
        statement: Statement,
        text: &str,
        session: &SessionState,
    ) -> Result<()> {
        match statement {
            Statement::CreateExternalTable(table) => {
                let place = Place::at(file, name_span(&table.name));
                if !table.unbounded {
                    let name = bare_name(&table.name, &place)?;
                    let schema = schema(&table, session, &place).await?;
                    self.unique(&name, &place)?;
                    let location = table.locations.first().map(PathBuf::from).unwrap_or_default();
                    self.tables.insert(name.clone(), TableDef { name, place, schema, location });
                    return Ok(());
                }
                let source = source(place, table, session).await?;
                self.unique(&source.name, &source.place)?;
                self.sources.insert(source.name.clone(), source);
            }
            Statement::Statement(sql) => match *sql {
                SqlStatement::CreateView(view) => {
                    let view = view::view(Place::at(file, name_span(&view.name)), view, text)?;
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
