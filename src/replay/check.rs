//! `tally check`: what a folder of queries declares, and how each view is kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};

use super::files::read_tables;
use crate::catalog::{Catalog, Format, Rule, RuleKind, SourceDef};
use crate::decode;
use crate::engine::{Disclosure, Engine, session};
use crate::error::Result;
use crate::queries::QueryFile;
use crate::reference;

/// What `tally check` says of a folder: its sources, and how each view is kept up to date. `known` are tables
/// with their columns that are declared nowhere else.
pub async fn check(
    files: &[QueryFile],
    tables: &[(String, PathBuf)],
    known: Vec<reference::TableDef>,
) -> Result<String> {
    let planning = session::continuous().state();
    let catalog = Catalog::parse(files, &planning).await?;
    let mut schemas: BTreeMap<String, SchemaRef> =
        known.iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
    for table in catalog.tables.values() {
        schemas.insert(table.name.clone(), Arc::clone(&table.schema));
    }
    for table in read_tables(&catalog, tables)? {
        schemas.insert(table.name, table.schema);
    }
    let engine = Engine::plan(&catalog, &schemas.into_iter().collect::<Vec<_>>()).await?;
    let mut text = String::new();
    for source in catalog.sources.values() {
        let read = engine.source_columns(&source.name);
        let (decoder, _) = decode::of_source(source, Some(read), &planning)?;
        let kept: Vec<_> = decoder.kept().fields().iter().map(|field| field.name().as_str()).collect();
        let others =
            if kept.len() < source.schema.fields().len() { "; the others are only judged" } else { "" };
        text +=
            &format!("source {} ← {}\n  columns: {}\n", source.name, source.topic, columns(&source.schema));
        text += &format!("  kept: {}{others}\n", kept.join(", "));
        if source.retracts() {
            text += &format!("  takes back: {}\n", takes_back(source));
        }
        // A key by which rows are replaced refuses none.
        let judges = |rule: &&Rule| !source.retracts() || !matches!(rule.kind, RuleKind::PrimaryKey(_));
        let rules: BTreeSet<_> = source.rules.iter().filter(judges).map(|rule| rule.name.as_str()).collect();
        text += &format!("  rules: {}\n", rules.into_iter().collect::<Vec<_>>().join(", "));
        if let Some(event_time) = &source.event_time {
            let seconds = source.max_future_ms / 1_000;
            text += &format!("  future: {event_time} at most {seconds} s after the message's timestamp\n");
        }
        if let Some(warning) = of_order(source) {
            text += &format!("  warning: {warning}\n");
        }
        text.push('\n');
    }
    for info in engine.views() {
        let key =
            if info.key.is_empty() { "none, rows are compared whole".into() } else { info.key.join(", ") };
        let topic = info.topic.as_deref().unwrap_or("none, only served");
        text += &format!("view {}\n  columns: {}\n", info.name, columns(&info.schema));
        text += &format!("  key: {key}\n  mode: {}\n  topic: {topic}\n", info.mode);
        text += &format!("  access: {}\n", of_disclosure(&info.disclosure));
        for warning in &info.disclosure.warnings {
            text += &format!("  warning: {warning}\n");
        }
        for line in info.plan.lines() {
            text += &format!("  {line}\n");
        }
        text += "\n";
    }
    for table in &known {
        let needed = engine.reference_columns().get(&table.name);
        let notes = needed.map(|columns| table.notes(columns)).unwrap_or_default();
        notes.into_iter().for_each(|note| text += &format!("note: {note}\n"));
    }
    Ok(text)
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
    text
}

fn columns(schema: &Schema) -> String {
    let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}
