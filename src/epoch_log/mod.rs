//! The epoch log: a record for each epoch says what it was made of and what came of it. It is committed together with
//! the epoch's outputs, so an epoch has happened if, and only if, its record is there.
//!
//! It is a topic of one partition. A record with the key `entry` is an [`Entry`] as JSON; before it stand, with the key
//! `tables`, the changes of reference tables that it took into use, as bytes (`tables.rs`), cut into pieces. Each entry
//! has the hash of the one before, so that nothing can be changed or left out unnoticed.

mod definitions;
mod offsets;
mod read;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::definitions::{Definitions, SourceEntry};
pub use self::offsets::OffsetSet;
pub use self::read::{Counted, LogReader, Logged, Summary, summarize};
pub use self::tables::{LoggedTables, TableChange, apply};
use crate::decode::Reject;
use crate::error::{Error, Result};
use crate::hash::{hash, hash_parts, hex};
use crate::sink::{ENTRY_KEY, LOG_PARTITION, Record};
use crate::source::RawBatch;

/// Version of what is written here; a later one is not read.
pub const FORMAT: u32 = 1;
/// Key of the records with pieces of tables' rows.
pub const TABLES_KEY: &[u8] = b"tables";
/// Most bytes of such a piece; a broker's default limit of a record is twice as much.
const PIECE_BYTES: usize = 500_000;

/// The topic of the engine with that id.
pub fn topic(engine_id: &str) -> String {
    format!("tally_epochs_{engine_id}")
}

/// What an entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An engine was started. Those before it write no more.
    #[default]
    Run,
    /// The count begins, with these tables and nothing counted. What stands before it is of no use any more.
    Start,
    /// A micro-batch was counted.
    Batch,
    /// Tables or definitions have changed.
    Change,
    /// Views that had failed were tried again.
    Retry,
    /// All rows were compared with what the topics had, and what differed was written.
    Rows,
    /// Records of new views were written; nothing was executed.
    Written,
}

/// One record of the log. What is absent is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`FORMAT`].
    pub v: u32,
    /// Hash of the entry before, in hexadecimal; empty in the first.
    pub prev: String,
    /// What happened.
    pub kind: Kind,
    /// Which start of the engine wrote it.
    pub run: String,
    /// Number of the epoch.
    pub epoch: u64,
    /// Whether the topics have the rows of the views with state; not so while history is counted for the first time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub written: bool,
    /// The micro-batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchEntry>,
    /// Changed tables, whose rows stand before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableEntry>,
    /// What is counted and how, if that has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<Definitions>,
    /// Of each view with changed rows, their hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
}

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, OffsetSet>;

/// A micro-batch and what became of it. Its messages are taken partition after partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchEntry {
    /// Name of the source.
    pub source: String,
    /// Of each partition the first offset that it took, and the one after the last.
    pub ranges: BTreeMap<i32, (i64, i64)>,
    /// Partitions that had further messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<i32>,
    /// Partitions that had been silent for the source's `idle_timeout`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<i32>,
    /// Number of messages that keep every rule.
    pub counted: u64,
    /// The others, by the rule that they broke.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, Offsets>,
    /// Messages that were counted and that a view goes on without, by view and reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, BTreeMap<String, Offsets>>,
}

/// A changed reference table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableEntry {
    /// Its name.
    pub table: String,
    /// Its version after the change: number of the reading, and of lookups since.
    pub version: (u64, u64),
    /// Key columns of the lookup that found rows; none: the table was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<Vec<String>>,
    /// How many bytes of the pieces are its.
    pub bytes: usize,
}

/// Where the log is: makes its records.
pub struct Chain {
    topic: Arc<str>,
    run: String,
    prev: String,
}

impl Chain {
    /// Goes on after the newest entry, as it was read.
    pub fn after(engine_id: &str, newest: Option<&[u8]>) -> Chain {
        Chain {
            topic: topic(engine_id).into(),
            run: uuid::Uuid::from_u128(rand::random()).to_string(),
            prev: newest.map(|bytes| hex(&hash(bytes))).unwrap_or_default(),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Hash of the newest entry, in hexadecimal; empty if there is none.
    pub fn newest(&self) -> &str {
        &self.prev
    }

    /// The records of an entry, those of the tables' rows first.
    pub fn records(&mut self, mut entry: Entry, changes: &[Vec<u8>]) -> Result<Vec<Record>> {
        (entry.v, entry.run, entry.prev) = (FORMAT, self.run.clone(), self.prev.clone());
        let record = |key: &[u8], value: Vec<u8>| Record {
            topic: Arc::clone(&self.topic),
            partition: Some(LOG_PARTITION),
            key: Some(key.into()),
            value: Some(value),
            headers: [].into(),
            may_be_cut: false,
        };
        let pieces = changes.concat();
        let mut records: Vec<_> =
            pieces.chunks(PIECE_BYTES).map(|piece| record(TABLES_KEY, piece.into())).collect();
        let value = serde_json::to_vec(&entry)
            .map_err(|error| Error::Log(format!("epoch {} can't be written: {error}", entry.epoch)))?;
        self.prev = hex(&hash(&value));
        records.push(record(ENTRY_KEY, value));
        Ok(records)
    }
}

impl BatchEntry {
    /// Of the messages of a source, of which `counted` keep every rule.
    pub fn of(source: &str, raw: &RawBatch, counted: usize, rejects: &[Reject]) -> BatchEntry {
        let mut entry = BatchEntry {
            source: source.into(),
            ranges: raw.ranges(),
            counted: counted as u64,
            ..BatchEntry::default()
        };
        for reject in rejects {
            let by_rule = match &reject.view {
                Some(view) => entry.left_out.entry(view.clone()).or_default(),
                None => &mut entry.rejected,
            };
            let origin = raw.origin(reject.message);
            let offsets = by_rule.entry(reject.rule.clone()).or_default();
            offsets.entry(origin.partition).or_default().insert(origin.offset);
        }
        entry
    }
}

/// The hash of a view's changed rows as they are written, whatever their order.
pub fn output_hash(records: &[Record]) -> String {
    let of = |record: &Record| {
        let hash = hash_parts([record.key.as_deref(), record.value.as_deref(), record.header("op")]);
        hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    };
    format!("{:016x}", records.iter().map(of).fold(0, u64::wrapping_add))
}
