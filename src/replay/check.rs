//! `tally check`: what a folder of queries declares, and how each view is kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use serde::Serialize;

use super::files::read_tables;
use crate::catalog::{Catalog, Format, Rule, RuleKind, SourceDef};
use crate::decode;
use crate::engine::upkeep::ViewUpkeep;
use crate::engine::{Disclosure, Engine, ViewInfo, session};
use crate::error::Result;
use crate::queries::QueryFile;
use crate::reference;

/// What `tally check` says of a folder.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its sources.
    pub sources: Vec<SourceReport>,
    /// Its views, each after those that it reads.
    pub views: Vec<ViewReport>,
    /// What is to be known of reference tables.
    pub notes: Vec<String>,
}

/// A source.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Its columns with their types.
    pub columns: Vec<String>,
    /// Those that are kept of a message.
    pub kept: Vec<String>,
    /// What is kept so that a message can take a row back.
    pub takes_back: Option<String>,
    /// The rules that a message must keep.
    pub rules: Vec<String>,
    /// How far in the future a message may be.
    pub future: Option<String>,
    /// What is not certain.
    pub warnings: Vec<String>,
}

/// A view.
#[derive(Debug, Serialize)]
pub struct ViewReport {
    /// Its name.
    pub name: String,
    /// Its columns with their types.
    pub columns: Vec<String>,
    /// Columns that tell its rows apart; none: all.
    pub key: Vec<String>,
    /// Its output mode.
    pub mode: &'static str,
    /// The topic of its changelog.
    pub topic: Option<String>,
    /// Who reads it, and what is not told apart in it.
    pub access: String,
    /// What keeping it up to date takes.
    pub upkeep: ViewUpkeep,
    /// What to know about it.
    pub warnings: Vec<String>,
    /// Its operators and plans.
    pub plan: String,
}

/// Plans a folder's views without any server. `known` are tables with their columns that are declared nowhere else.
///
/// # Errors
/// All that can't be used, each with its file and line.
pub async fn check(
    files: &[QueryFile],
    tables: &[(String, PathBuf)],
    known: Vec<reference::TableDef>,
) -> Result<Report> {
    let planning = session::continuous().state();
    let catalog = Catalog::parse(files, &planning).await?;
    let mut schemas: BTreeMap<String, SchemaRef> =
        known.iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
    schemas.extend(catalog.table_schemas());
    for table in read_tables(&catalog.table_schemas(), tables)? {
        schemas.insert(table.name, table.schema);
    }
    let engine = Engine::plan(&catalog, &schemas.into_iter().collect::<Vec<_>>()).await?;
    let mut sources = Vec::new();
    for source in catalog.sources.values() {
        let read = engine.source_columns(&source.name);
        let (decoder, _) = decode::of_source(source, Some(read), &planning)?;
        // A key by which rows are replaced refuses none.
        let judges = |rule: &&Rule| !source.retracts() || !matches!(rule.kind, RuleKind::PrimaryKey(_));
        let rules: BTreeSet<_> = source.rules.iter().filter(judges).map(|rule| rule.name.clone()).collect();
        let seconds = source.max_future_ms / 1_000;
        sources.push(SourceReport {
            name: source.name.clone(),
            topic: source.topic.clone(),
            columns: columns(&source.schema),
            kept: decoder.kept().fields().iter().map(|field| field.name().clone()).collect(),
            takes_back: source.retracts().then(|| takes_back(source)),
            rules: rules.into_iter().collect(),
            future: source
                .event_time
                .as_ref()
                .map(|time| format!("{time} at most {seconds} s after the message's timestamp")),
            warnings: of_order(source).into_iter().collect(),
        });
    }
    let view = |info: &ViewInfo| ViewReport {
        name: info.name.clone(),
        columns: columns(&info.schema),
        key: info.key.clone(),
        mode: info.mode,
        topic: info.topic.clone(),
        access: of_disclosure(&info.disclosure),
        upkeep: info.upkeep.clone(),
        warnings: info.disclosure.warnings.iter().cloned().chain(info.upkeep.warnings()).collect(),
        plan: info.plan.clone(),
    };
    let views = engine.views().map(|info| view(info)).collect();
    let mut notes = Vec::new();
    for table in &known {
        let needed = engine.reference_columns().get(&table.name);
        notes.extend(needed.map(|columns| table.notes(columns)).unwrap_or_default());
    }
    Ok(Report { sources, views, notes })
}

impl Report {
    /// For people; `plans`: with each view's operators and plans.
    pub fn text(&self, plans: bool) -> String {
        let mut text = String::new();
        for source in &self.sources {
            let others =
                if source.kept.len() < source.columns.len() { "; the others are only judged" } else { "" };
            text += &format!("source {} ← {}\n", source.name, source.topic);
            text += &format!("  columns: {}\n", source.columns.join(", "));
            text += &format!("  kept: {}{others}\n", source.kept.join(", "));
            text += &lines("takes back", &source.takes_back);
            text += &format!("  rules: {}\n", source.rules.join(", "));
            text += &lines("future", &source.future);
            text += &lines("warning", &source.warnings);
            text.push('\n');
        }
        for view in &self.views {
            let key = if view.key.is_empty() {
                "none, rows are compared whole".into()
            } else {
                view.key.join(", ")
            };
            let topic = view.topic.as_deref().unwrap_or("none, only served");
            text += &format!("view {} {}\n", view.name, view.upkeep);
            text += &format!("  columns: {}\n  key: {key}\n", view.columns.join(", "));
            text += &format!("  mode: {}\n  topic: {topic}\n  access: {}\n", view.mode, view.access);
            text += &lines("warning", &view.warnings);
            if plans {
                text += &view.plan.lines().map(|line| format!("  {line}\n")).collect::<String>();
            }
            text.push('\n');
        }
        text + &self.notes.iter().map(|note| format!("note: {note}\n")).collect::<String>()
    }
}

fn lines<'a>(name: &str, said: impl IntoIterator<Item = &'a String>) -> String {
    said.into_iter().map(|said| format!("  {name}: {said}\n")).collect()
}

/// What a source keeps so that a message can take a row back.
fn takes_back(source: &SourceDef) -> String {
    match (source.primary_key().map(|key| key.join(", ")), source.format) {
        (Some(key), Format::Json) => format!(
            "keeps the newest row of each {key}; a later message replaces it, an empty message with that key deletes it"
        ),
        (Some(key), Format::DebeziumJson) => {
            format!("keeps the newest row of each {key}; `after` replaces it, op d deletes it")
        }
        (None, _) => {
            "keeps every row, whole: `before` takes back a row with the same values, also where no query \
                      reads them; with a PRIMARY KEY the needed columns would do"
                .into()
        }
    }
}

/// What makes it certain which message came first: a declaration can't see how a topic is keyed.
fn of_order(source: &SourceDef) -> Option<String> {
    let topic = &source.topic;
    let told = "keys_in_two_partitions in /api/status counts";
    Some(match source.primary_key().map(|key| key.join(", ")) {
        Some(key) if source.retracts() => format!(
            "{topic} need not be keyed by {key}: of two messages with one {key} in two partitions the newest by the \
             broker's timestamp counts, which need not be the one that was meant. Key the topic by {key}; {told} those \
             that were not"
        ),
        Some(key) => format!(
            "{topic} need not be keyed by {key}: of two messages with one {key} the first by the broker's timestamp \
             counts, which is certain only where both are in one partition. Key the topic by {key}; {told} those that \
             were not"
        ),
        None if source.retracts() => format!(
            "{topic} needs one partition, or a PRIMARY KEY: a message that takes a row back may come before the row \
             from another partition, and is then refused; {told} the rows that came in two"
        ),
        None => return None,
    })
}

/// Who reads a view, and what is not told apart in it.
fn of_disclosure(disclosure: &Disclosure) -> String {
    let mut text = disclosure.access.to_string();
    if let Some(secret) = &disclosure.secret {
        let by = if secret.by.is_empty() { "nothing".into() } else { secret.by.join(", ") };
        text += &format!("; secret by {by}, counted in {}", secret.counted_in);
    }
    if let Some(column) = &disclosure.complete_when {
        text += &format!("; the count is complete when {column}");
    }
    if let Some(releases) = disclosure.history {
        text += &format!("; keeps {releases} releases");
    }
    text
}

fn columns(schema: &Schema) -> Vec<String> {
    let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
    schema.fields().iter().map(column).collect()
}
