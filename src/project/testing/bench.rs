//! The engine that a test speaks to: what was declared and told so far, and what there is now.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use roaring::RoaringTreemap;

use super::Project;
use crate::catalog::{Catalog, SourceDef};
use crate::decode;
use crate::engine::{RowSource, ViewChange, session};
use crate::epoch::{Counted, EpochOutput};
use crate::error::{Error, Result};
use crate::queries::QueryFile;
use crate::reference::{References, TableDef};
use crate::replay::{Replay, TableRows};
use crate::source::RawBatch;

/// The table of what was not counted, unless a project declares another one of that name.
pub const DEAD_LETTERS: &str = "dead_letters";
const NET_ROWS: usize = 1 << 16;

/// A project's engine, what it was told, and what came of that.
pub struct Bench {
    files: Vec<QueryFile>,
    /// Reference tables as they are at the start: those with rows, then those that are declared nowhere else.
    given: Vec<TableRows>,
    known: Vec<TableRows>,
    /// To be told again after a further declaration.
    events: Vec<Event>,
    state: State,
}

#[derive(Clone)]
enum Event {
    Messages { source: String, batch: RawBatch },
    Table { name: String, rows: Vec<RecordBatch> },
}

struct State {
    catalog: Catalog,
    replay: Replay,
    /// Of each source the messages that it counted.
    counted: BTreeMap<String, Vec<RawBatch>>,
    /// How many messages each source was told.
    received: BTreeMap<String, i64>,
    tables: BTreeMap<String, Vec<RecordBatch>>,
    views: BTreeMap<String, Arc<dyn RowSource>>,
    letters: Vec<DeadLetter>,
}

/// A message that its source did not count, or that a view left out.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The source.
    pub source: String,
    /// Its number among the source's messages, from 1.
    pub message: i64,
    /// The rule that it broke; `json`, `late` and `error(view)` too.
    pub rule: String,
    /// The view, if only that left it out.
    pub view: Option<String>,
    /// Why, for a person.
    pub reason: String,
    /// What it said.
    pub payload: String,
}

impl Bench {
    /// Nothing told yet; also what the views have before the first message. `tables` have rows from the start.
    pub async fn new(project: &Project, tables: Vec<TableRows>) -> Result<(Bench, EpochOutput)> {
        let empty = |table: &TableDef| {
            let (name, schema) = (table.name.clone(), Arc::clone(&table.schema));
            TableRows { name, schema, batches: Vec::new() }
        };
        let known: Vec<_> = project.known.iter().map(empty).collect();
        let files = project.files.clone();
        let (state, first) = State::new(&files, &tables, &known).await?;
        Ok((Bench { files, given: tables, known, events: Vec::new(), state }, first))
    }

    /// Adds declarations. All that was told so far is told to them too.
    pub async fn declare(&mut self, sql: &str) -> Result<()> {
        let mut files = self.files.clone();
        files.push(QueryFile { path: PathBuf::from("statement"), text: sql.into() });
        let (mut state, _) = State::new(&files, &self.given, &self.known).await?;
        for event in &self.events {
            state.apply(event.clone()).await?;
        }
        (self.files, self.state) = (files, state);
        Ok(())
    }

    /// Tells a source a micro-batch.
    pub async fn send(&mut self, source: &str, batch: RawBatch) -> Result<Option<EpochOutput>> {
        self.tell(Event::Messages { source: source.into(), batch }).await
    }

    /// Gives a reference table other rows.
    pub async fn set_table(&mut self, name: &str, rows: Vec<RecordBatch>) -> Result<Option<EpochOutput>> {
        self.tell(Event::Table { name: name.into(), rows }).await
    }

    async fn tell(&mut self, event: Event) -> Result<Option<EpochOutput>> {
        self.events.push(event.clone());
        self.state.apply(event).await
    }

    /// The engine.
    pub fn replay(&self) -> &Replay {
        &self.state.replay
    }

    /// The declaration of a source, by its name.
    pub fn source(&self, name: &str) -> Option<&SourceDef> {
        self.state.catalog.sources.get(name)
    }

    /// How many messages a source was told.
    pub fn received(&self, source: &str) -> i64 {
        self.state.received.get(source).copied().unwrap_or_default()
    }

    /// Columns of a source or reference table.
    pub fn schema(&self, name: &str) -> Result<SchemaRef> {
        let source = self.source(name).map(|source| Arc::clone(&source.schema));
        let found = source.or_else(|| self.state.replay.table_schemas().get(name).cloned());
        found.ok_or_else(|| {
            let known = self.tables().map(String::as_str).collect::<Vec<_>>().join(", ");
            Error::Test(format!("there is no source or reference table `{name}`; there are {known}"))
        })
    }

    /// The sources and the declared reference tables.
    fn tables(&self) -> impl Iterator<Item = &String> {
        let Catalog { sources, tables, .. } = &self.state.catalog;
        sources.keys().chain(tables.keys())
    }

    /// What a query can read, less the tables that nobody declares.
    pub fn names(&self) -> Vec<&str> {
        let names = self.state.catalog.views.keys().chain(self.tables()).map(String::as_str);
        names.chain([DEAD_LETTERS]).collect()
    }

    /// The rows of a reference table.
    pub fn table(&self, name: &str) -> Vec<RecordBatch> {
        self.state.tables.get(name).cloned().unwrap_or_default()
    }

    /// What was not counted.
    pub fn letters(&self) -> &[DeadLetter] {
        &self.state.letters
    }

    /// What `dead_letters` shows.
    pub fn letter_rows(&self) -> Result<RecordBatch> {
        let letters = &self.state.letters;
        let texts = |of: fn(&DeadLetter) -> &String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(letters.iter().map(of)))
        };
        let names = ["source", "rule", "view", "reason", "payload"];
        let fields = names.map(|name| Field::new(name, DataType::Utf8, true)).to_vec();
        let columns: Vec<ArrayRef> = vec![
            texts(|letter| &letter.source),
            texts(|letter| &letter.rule),
            Arc::new(letters.iter().map(|letter| letter.view.as_deref()).collect::<StringArray>()),
            texts(|letter| &letter.reason),
            texts(|letter| &letter.payload),
        ];
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// A session with the views as they are, the sources' counted rows, the reference tables, and `dead_letters`.
    pub async fn session(&self) -> Result<SessionContext> {
        let State { catalog, tables, views, .. } = &self.state;
        let session = session::batch(session::base_config());
        let register = |name: &str, schema: SchemaRef, batches: Vec<RecordBatch>| -> Result<()> {
            session.register_table(name, Arc::new(MemTable::try_new(schema, vec![batches])?))?;
            Ok(())
        };
        let letters = self.letter_rows()?;
        register(DEAD_LETTERS, letters.schema(), vec![letters])?;
        let replace = |name: &str| session.deregister_table(name).map(|_| ());
        for (name, schema) in self.state.replay.table_schemas() {
            replace(name)?;
            register(name, Arc::clone(schema), tables.get(name).cloned().unwrap_or_default())?;
        }
        for (name, source) in &catalog.sources {
            replace(name)?;
            let rows = self.state.rows_of(source)?;
            register(name, rows.schema(), vec![rows])?;
        }
        let failed = self.state.replay.failures();
        for (name, rows) in views {
            replace(name)?;
            // Its last good rows are not what was asked for.
            if !failed.iter().any(|failure| failure.view == *name) {
                let rows = rows.batch()?;
                register(name, rows.schema(), vec![rows])?;
            }
        }
        let plain = catalog.views.values().filter(|view| !view.materialized);
        let plain: Vec<_> = plain.map(|view| (view.name.clone(), view.query.to_string())).collect();
        session::register_plain_views(&session, &plain).await?;
        Ok(session)
    }
}

impl State {
    /// Also what the views have before the first message.
    async fn new(
        files: &[QueryFile],
        given: &[TableRows],
        known: &[TableRows],
    ) -> Result<(State, EpochOutput)> {
        let catalog = Catalog::parse(files, &session::continuous().state()).await?;
        let declared = catalog.table_schemas().into_iter();
        let declared = declared.map(|(name, schema)| TableRows { name, schema, batches: Vec::new() });
        let mut tables = given.to_vec();
        for table in declared.chain(known.iter().cloned()) {
            if !tables.iter().any(|there| there.name == table.name) {
                tables.push(table);
            }
        }
        let rows = tables.iter().map(|table| (table.name.clone(), table.batches.clone())).collect();
        let mut replay = Replay::over(&catalog, tables).await?;
        let first = replay.start().await?;
        let mut state = State {
            catalog,
            replay,
            counted: BTreeMap::new(),
            received: BTreeMap::new(),
            tables: rows,
            views: BTreeMap::new(),
            letters: Vec::new(),
        };
        state.take(&first.changes);
        Ok((state, first))
    }

    async fn apply(&mut self, event: Event) -> Result<Option<EpochOutput>> {
        let mut output = match event {
            Event::Messages { source, batch } => {
                *self.received.entry(source.clone()).or_default() += batch.len() as i64;
                let position = self.replay.source_of(&source)?;
                Some(self.replay.feed(position, batch).await?)
            }
            Event::Table { name, rows } => {
                self.tables.insert(name.clone(), rows.clone());
                self.replay.set_table(&name, rows).await?
            }
        };
        if let Some(output) = &mut output {
            if !self.replay.failures().is_empty() {
                output.changes.extend(self.replay.retry().await.changes);
            }
            self.take(&output.changes);
            if let Some(counted) = &output.counted {
                self.note(counted);
            }
        }
        Ok(output)
    }

    fn take(&mut self, changes: &[ViewChange]) {
        for change in changes {
            self.views.insert(change.info.name.clone(), Arc::clone(&change.rows));
        }
    }

    fn note(&mut self, counted: &Counted) {
        let source = &self.replay.source(counted.source).name;
        let mut rejected = RoaringTreemap::new();
        for reject in &counted.rejects {
            let message = counted.raw.get(reject.message);
            if reject.view.is_none() {
                rejected.insert(message.offset as u64);
            }
            self.letters.push(DeadLetter {
                source: source.clone(),
                message: message.offset,
                rule: reject.rule.clone(),
                view: reject.view.clone(),
                reason: reject.reason.clone(),
                payload: String::from_utf8_lossy(message.payload.unwrap_or_default()).into_owned(),
            });
        }
        let mut raw = counted.raw.clone();
        raw.retain(|origin| !rejected.contains(origin.offset as u64));
        self.counted.entry(source.clone()).or_default().push(raw);
    }

    /// The rows that a source has counted, less those that were taken back.
    fn rows_of(&self, source: &SourceDef) -> Result<RecordBatch> {
        let (decoder, mut rules) = decode::of_counted(source)?;
        let mut rows = Vec::new();
        for batch in self.counted.get(&source.name).into_iter().flatten() {
            let (decoded, _) = decoder.decode(batch)?;
            if source.retracts() {
                rules.judge(decoded, &|message| batch.origin(message), &References::default())?;
            } else {
                rows.push(decoded.rows);
            }
        }
        if source.retracts() {
            rules.net_rows(NET_ROWS, |batch| {
                rows.push(batch);
                true
            })?;
        }
        let schema = rows.first().map_or(Arc::clone(&source.schema), RecordBatch::schema);
        Ok(concat_batches(&schema, &rows)?)
    }
}
