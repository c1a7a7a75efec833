//! Reads the epoch log: once to know where the count is, and once more to replay it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tables::LoggedTables;
use super::{Entry, FORMAT, Kind, Offsets, TABLES_KEY, TableChange};
use crate::error::{Error, Result};
use crate::hash::{hash, hex};
use crate::sink::ENTRY_KEY;
use crate::source::{Position, RawBatch, Source};

const POLL_ROWS: usize = 1000;
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Which messages of a source were counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// Of each partition where it began, and the next offset.
    pub positions: BTreeMap<i32, Position>,
    /// Messages in between that broke a rule.
    pub rejected: Offsets,
}

impl Counted {
    /// Adds a micro-batch.
    pub fn add(&mut self, ranges: &BTreeMap<i32, (i64, i64)>, rejected: &BTreeMap<String, Offsets>) {
        for (partition, (from, to)) in ranges {
            let first = Position { first: *from, next: *to };
            self.positions.entry(*partition).or_insert(first).next = *to;
        }
        for (partition, offsets) in rejected.values().flatten() {
            self.rejected.entry(*partition).or_default().extend(offsets);
        }
    }
}

/// Where the count is.
#[derive(Debug, Default)]
pub struct Summary {
    /// Number of the newest epoch.
    pub epoch: u64,
    /// Epochs since the count began, which a replay executes; 0: there is no count to go on with.
    pub epochs: u64,
    /// Position among all entries of the one with which the count began.
    start: u64,
    /// What was counted, by source.
    pub counted: BTreeMap<String, Counted>,
    /// How the newest epochs were counted.
    pub definitions: super::Definitions,
    /// Each reference table as it was first: so it is taken to have been from the start.
    pub first_tables: BTreeMap<String, TableChange>,
    /// Number of each reference table's newest reading.
    pub readings: BTreeMap<String, u64>,
    /// Whether the topics have the views' rows.
    pub written: bool,
}

impl Summary {
    /// Nothing is counted, and epochs are numbered after this one.
    pub fn anew(epoch: u64) -> Summary {
        Summary { epoch, ..Summary::default() }
    }
}

/// Reads the whole log, whose hashes must fit together since the count began.
pub fn summarize(log: &mut dyn Source, topic: &str) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut entries = Entries::new(log, topic);
    let (mut number, mut damage) = (0, None);
    loop {
        let (entry, pieces) = match entries.next() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            // What stands before the beginning of a count does not matter to it.
            Err(error) => {
                damage.get_or_insert(error);
                continue;
            }
        };
        let Entry { kind, epoch, written, batch, tables, definitions, .. } = entry;
        match kind {
            Kind::Run => {}
            Kind::Start => {
                damage = None;
                summary = Summary { start: number, epochs: 1, epoch: summary.epoch, ..Summary::default() };
            }
            _ if summary.epochs == 0 => {
                let lost = format!("topic {topic} has lost the beginning of the count");
                damage.get_or_insert(Error::Log(format!("{lost}; `tally run --rebuild` counts anew")));
            }
            _ => summary.epochs += 1,
        }
        (summary.epoch, number) = (summary.epoch.max(epoch), number + 1);
        summary.written |= written;
        if let Some(batch) = batch {
            summary.counted.entry(batch.source).or_default().add(&batch.ranges, &batch.rejected);
        }
        let mut pieces = &pieces[..];
        for table in tables {
            let (own, rest) = pieces.split_at_checked(table.bytes).unwrap_or((pieces, &[]));
            pieces = rest;
            if !summary.first_tables.contains_key(&table.table) {
                summary.first_tables.insert(table.table.clone(), TableChange::decode(&table, own, &[])?);
            }
            summary.readings.insert(table.table, table.version.0);
        }
        summary.definitions = definitions.unwrap_or(summary.definitions);
    }
    damage.map_or(Ok(summary), Err)
}

/// An entry, with the tables that it takes into use.
pub struct Logged {
    /// The entry.
    pub entry: Entry,
    /// Changed reference tables.
    pub tables: Vec<TableChange>,
}

/// Reads the log from where the count began.
pub struct LogReader {
    log: Box<dyn Source>,
    topic: String,
    start: u64,
    passed: u64,
    passed_to: BTreeMap<String, BTreeMap<i32, i64>>,
    polled: Polled,
    tables: LoggedTables,
}

impl LogReader {
    /// Over the log of which `summary` was made.
    pub fn new(log: Box<dyn Source>, topic: &str, summary: &Summary) -> LogReader {
        LogReader {
            log,
            topic: topic.into(),
            start: summary.start,
            passed: 0,
            passed_to: BTreeMap::new(),
            polled: Polled::default(),
            tables: LoggedTables::default(),
        }
    }

    /// The next entry of the count; none at its end.
    pub fn next_entry(&mut self) -> Result<Option<Logged>> {
        let Some((entry, pieces)) = self.next_entry_raw()? else { return Ok(None) };
        let tables = self.tables.take(&entry.tables, &pieces)?;
        Ok(Some(Logged { entry, tables }))
    }

    fn next_entry_raw(&mut self) -> Result<Option<(Entry, Vec<u8>)>> {
        loop {
            let mut entries =
                Entries { log: &mut *self.log, topic: &self.topic, polled: std::mem::take(&mut self.polled) };
            let next = entries.next();
            self.polled = entries.polled;
            if self.start > 0 {
                self.start -= u64::from(next.is_ok());
                continue;
            }
            return next;
        }
    }

    /// Passes over the entries up to the one with that hash, in hexadecimal; false if it is not there.
    pub fn skip_to(&mut self, hash: &str) -> Result<bool> {
        while let Some((entry, _)) = self.next_entry_raw()? {
            self.passed += u64::from(entry.kind != Kind::Run);
            if let Some(batch) = entry.batch {
                let next = batch.ranges.into_iter().map(|(partition, (_, to))| (partition, to));
                self.passed_to.entry(batch.source).or_default().extend(next);
            }
            if self.polled.prev.as_deref() == Some(hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Epochs that were passed over.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Of a source, by partition, the next offset after those of the entries that were passed over.
    pub fn passed_to(&self, source: &str) -> BTreeMap<i32, i64> {
        self.passed_to.get(source).cloned().unwrap_or_default()
    }

    /// The tables' rows as they were where it is.
    pub fn set_tables(&mut self, tables: LoggedTables) {
        self.tables = tables;
    }

    /// The tables' rows as the log has them at its end.
    pub fn into_tables(self) -> LoggedTables {
        self.tables
    }
}

/// What was polled of the log and not yet taken.
#[derive(Default)]
struct Polled {
    batch: RawBatch,
    next: u32,
    ended: bool,
    /// Hash of the entry that was read last.
    prev: Option<String>,
}

/// The entries of a log, each with the bytes of its tables.
struct Entries<'a> {
    log: &'a mut dyn Source,
    topic: &'a str,
    polled: Polled,
}

impl<'a> Entries<'a> {
    fn new(log: &'a mut dyn Source, topic: &'a str) -> Entries<'a> {
        Entries { log, topic, polled: Polled::default() }
    }

    fn next(&mut self) -> Result<Option<(Entry, Vec<u8>)>> {
        let mut pieces = Vec::new();
        loop {
            let polled = &mut self.polled;
            if polled.next as usize == polled.batch.len() {
                if polled.ended {
                    return Ok(None);
                }
                let next = self.log.poll(POLL_ROWS, POLL_WAIT);
                (polled.batch, polled.next, polled.ended) = (next.batch, 0, next.state.ended);
                continue;
            }
            let message = polled.batch.get(polled.next);
            polled.next += 1;
            let (place, value) = (message.offset, message.payload.unwrap_or_default());
            let refused = |reason: String| {
                Error::Log(format!(
                    "topic {}, offset {place}: {reason}; `tally run --rebuild` counts anew",
                    self.topic
                ))
            };
            match message.key {
                Some(TABLES_KEY) => pieces.extend_from_slice(value),
                Some(ENTRY_KEY) => {
                    let prev = polled.prev.take();
                    let entry = parse(value).map_err(refused)?;
                    if prev.is_some_and(|prev| prev != entry.prev) {
                        return Err(refused(
                            "this is not what followed the entry before: the log was changed".into(),
                        ));
                    }
                    polled.prev = Some(hex(&hash(value)));
                    return Ok(Some((entry, pieces)));
                }
                _ => return Err(refused("this is no record of an epoch log".into())),
            }
        }
    }
}

fn parse(value: &[u8]) -> Result<Entry, String> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let version = serde_json::from_slice::<Version>(value).map_err(|error| error.to_string())?;
    if version.v > FORMAT {
        return Err(format!(
            "it was written by a newer version of tally (format {}, this one reads {FORMAT}): run that one",
            version.v
        ));
    }
    serde_json::from_slice(value).map_err(|error| error.to_string())
}
