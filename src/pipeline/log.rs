//! The epoch log from the loop's side: what it says of what was counted before, whether that can be gone on with, and
//! the records that are added to it.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use crate::epoch::Executor;
use crate::epoch_log::{
    self, Chain, Counted, Definitions, Entry, Kind, LogReader, LoggedTables, Summary, TableChange, summarize,
};
use crate::error::{Error, Result};
use crate::reference::References;
use crate::sink::{Record, Sink, Transaction};
use crate::source::{Positions, Source, Topics};

/// How long taking over may take.
const PATIENCE: Duration = Duration::from_secs(90);
const SLICE: Duration = Duration::from_millis(200);

/// What was counted before, and what is added to it.
pub struct Log {
    engine_id: String,
    chain: Chain,
    tables: LoggedTables,
    /// What is counted now.
    definitions: Definitions,
    summary: Summary,
    replay: Option<LogReader>,
}

/// Notes in the log that this engine writes from now on. `newest`: the log's newest entry. Blocks.
pub fn take_over(sink: &mut dyn Sink, engine_id: &str, newest: Option<&[u8]>) -> Result<Chain> {
    let mut chain = Chain::after(engine_id, newest);
    let records = chain.records(Entry { kind: Kind::Run, ..Entry::default() }, &[])?;
    sink.begin(Transaction { records, offsets: Vec::new() });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let progress = block_in_place(|| sink.poll(SLICE));
        if progress.committed {
            return Ok(chain);
        }
        if progress.fenced {
            return Err(Error::TakenOver(engine_id.into()));
        }
        if Instant::now() > deadline {
            let reason = progress.outage.map_or_else(|| "no answer".into(), |outage| outage.reason);
            return Err(Error::kafka(format!("writing to topic {}", epoch_log::topic(engine_id)), reason));
        }
    }
}

impl Log {
    /// Reads what was counted before; `rebuild`: it does not matter, and the count begins anew. Blocks.
    pub fn open(
        engine_id: &str,
        chain: Chain,
        topics: &dyn Topics,
        mut definitions: Definitions,
        rebuild: bool,
    ) -> Result<Log> {
        let topic = epoch_log::topic(engine_id);
        let summary = summarize(&mut *topics.read(&topic)?, &topic);
        let (summary, replay) = match summary {
            // Epochs go on being numbered: their numbers are on the topics.
            Ok(summary) if rebuild || summary.epochs == 0 => (Summary::anew(summary.epoch), None),
            Ok(summary) => {
                refuse_changed(&summary.definitions, &definitions)?;
                // Of a source that nobody reads at the moment it stays known how it was counted.
                for (name, source) in &summary.definitions.sources {
                    definitions.sources.entry(name.clone()).or_insert_with(|| source.clone());
                }
                let reader = LogReader::new(topics.read(&topic)?, &topic, &summary);
                (summary, Some(reader))
            }
            Err(error @ Error::Log(_)) if rebuild => {
                tracing::warn!("{error}");
                (Summary::default(), None)
            }
            Err(error) => return Err(error),
        };
        let engine_id = engine_id.into();
        Ok(Log { engine_id, chain, tables: LoggedTables::default(), definitions, summary, replay })
    }

    /// The engine's id.
    pub fn engine_id(&self) -> &str {
        &self.engine_id
    }

    /// Whether something else is counted now than was.
    pub fn is_changed(&self) -> bool {
        let (before, now) = (&self.summary.definitions, &self.definitions);
        now.views.len() != before.views.len()
            || now.views.keys().any(|view| !now.has_same_view(before, view))
            || now.sources.keys().any(|source| !before.sources.contains_key(source))
    }

    /// Where the count is.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Where the counting of a source is.
    pub fn positions(&self, source: &str) -> Positions {
        let counted: Option<&Counted> = self.summary.counted.get(source);
        counted.map(|counted| counted.positions.clone()).unwrap_or_default()
    }

    /// The reference tables with which the count began: of those that it did not have, as they are `read` now.
    pub fn first_references(&self, read: &References) -> Result<References> {
        let mut references = read.clone();
        for table in read.tables() {
            if let Some(first) = self.summary.first_tables.get(table.name()) {
                epoch_log::apply(&mut references, first.clone(), &table.wanted())?;
            }
        }
        Ok(references)
    }

    /// Takes in which topics are read, and refuses one that is another than was counted.
    pub(super) fn know_topics(&mut self, executor: &Executor, sources: &[Box<dyn Source>]) -> Result<()> {
        for (ingest, source) in executor.ingests().iter().zip(sources) {
            let name = &ingest.def.name;
            let id = match source.topic_id() {
                0 => String::new(),
                id => format!("{id:032x}"),
            };
            let before = self.summary.definitions.sources.get(name).map(|before| before.topic_id.as_str());
            if before.is_some_and(|before| !before.is_empty() && !id.is_empty() && *before != *id) {
                return Err(Error::Log(format!(
                    "topic {} was deleted and created again since it was counted: what was counted is not there any \
                     more. `tally run --rebuild` counts the new topic from its beginning, and takes back what \
                     only the old one had",
                    ingest.def.topic
                )));
            }
            if let Some(source) = self.definitions.sources.get_mut(name) {
                source.topic_id = id;
            }
        }
        Ok(())
    }

    /// What is counted now.
    pub(super) fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// What is to be executed once more.
    pub(super) fn take_replay(&mut self) -> Option<LogReader> {
        self.replay.take()
    }

    /// Reads the log once more, from where the count began.
    pub(super) fn reader(&self, topics: &dyn Topics) -> Result<LogReader> {
        let topic = epoch_log::topic(&self.engine_id);
        Ok(LogReader::new(topics.read(&topic)?, &topic, &self.summary))
    }

    /// Hash of the newest entry, in hexadecimal.
    pub(super) fn newest_entry(&self) -> &str {
        self.chain.newest()
    }

    /// The tables' rows as the log has them.
    pub(super) fn tables(&self) -> &LoggedTables {
        &self.tables
    }

    /// Goes on with these tables.
    pub(super) fn set_tables(&mut self, tables: LoggedTables) {
        self.tables = tables;
    }

    /// Whether the log has rows of a table.
    pub(super) fn has_table(&self, table: &str) -> bool {
        self.summary.readings.contains_key(table)
    }

    /// The records of an entry that takes these tables into use.
    pub(super) fn records(&mut self, entry: Entry, tables: &[TableChange]) -> Result<Vec<Record>> {
        let (tables, pieces) = self.tables.encode(tables)?;
        self.chain.records(Entry { tables, ..entry }, &pieces)
    }
}

/// Refuses what can't be counted on from what was: other sources, and columns that the log has no history of.
fn refuse_changed(before: &Definitions, now: &Definitions) -> Result<()> {
    let rebuild = "`tally run --rebuild` counts everything anew, over the tables as they are now";
    for (name, source) in &now.sources {
        let Some(known) = before.sources.get(name) else { continue };
        if (&known.topic, &known.declaration) != (&source.topic, &source.declaration) {
            return Err(Error::Log(format!(
                "source {name} is declared otherwise than when its messages were counted: which of them the new \
                 declaration rejects is not known. {rebuild}; with the old declaration the count goes on"
            )));
        }
    }
    for (table, columns) in &now.tables {
        let Some(known) = before.tables.get(table) else { continue };
        let new: Vec<_> = columns.iter().filter(|column| !known.contains(column)).cloned().collect();
        if !new.is_empty() {
            return Err(Error::Log(format!(
                "the queries read {} of table {table}, of which nobody knows what it was when rows were joined. \
                 {rebuild}",
                new.join(", ")
            )));
        }
    }
    Ok(())
}
