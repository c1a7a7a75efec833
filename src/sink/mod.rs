//! Records out: what came of an epoch, in one transaction. To Kafka, or to memory, where a test says what goes wrong.
//!
//! A sink never fails once it is open. While nothing can be sent it keeps what it was given, in order, says so,
//! and goes on by itself; what the other side will never take is *refused*: told, counted, and left out.

mod deliveries;
mod group;
mod json;
mod kafka;
mod memory;
mod producer;
mod queued;
mod records;
mod refusals;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use json::{keys, rows};
pub use kafka::KafkaSink;
pub use memory::{MemorySink, MemoryTopics, Step};
pub use producer::{CheckedProducer, wait_until_sent};
pub use records::{changelog, cut, dead_letter, op_headers};

use crate::outage::Outage;

/// The partition of the epoch log that is written.
pub const LOG_PARTITION: i32 = 0;
/// Key of its records that stand for an epoch each.
pub const ENTRY_KEY: &[u8] = b"entry";

/// Takes epochs. Used by one thread.
pub trait Sink: Send {
    /// Begins to write an epoch. The one before must be committed.
    fn begin(&mut self, transaction: Transaction);

    /// Goes on with it until it is committed, at most `wait` long.
    fn poll(&mut self, wait: Duration) -> Progress;
}

/// Takes nothing: for who only reads.
pub struct NoSink;

impl Sink for NoSink {
    fn begin(&mut self, _transaction: Transaction) {}

    fn poll(&mut self, _wait: Duration) -> Progress {
        Progress { fenced: true, ..Progress::default() }
    }
}

/// What is committed together: readers of committed records see all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// In the order in which those of one key are stored. The last one, if any is, is that of the epoch log, by which
    /// the sink finds out what became of a transaction that it got no answer about.
    pub records: Vec<Record>,
    /// Next offsets of what the epoch has read: topic, partition, offset. The engine's consumer group is told them
    /// once the records are committed, for tools that show its lag.
    pub offsets: Vec<(String, i32, i64)>,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; none: that of the key.
    pub partition: Option<i32>,
    /// The key. A compacted topic needs one.
    pub key: Option<Vec<u8>>,
    /// The value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, which many records share.
    pub headers: Arc<[Header]>,
    /// Whether a value that is too large may be cut (see [`cut`]): a dead letter's, whose headers say where
    /// the whole message is.
    pub may_be_cut: bool,
}

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

impl Record {
    /// The value of its first header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name)?.value.as_deref()
    }

    /// Bytes that it takes in a topic, before compression and without what goes round it.
    pub fn bytes(&self) -> usize {
        let of = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|header| header.name.len() + of(&header.value));
        of(&self.key) + of(&self.value) + headers.sum::<usize>()
    }
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Header {
        Header { name: name.into(), value: Some(value.into()) }
    }
}

/// How far a sink is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether nothing is left to do.
    pub committed: bool,
    /// Records that were refused since the last poll.
    pub refused: Vec<Refused>,
    /// Why nothing can be sent, while that is so.
    pub outage: Option<Outage>,
    /// Whether another engine of the same id has taken over: nothing is ever committed any more.
    pub fenced: bool,
}

/// Records of a topic that will never be taken, and are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The topic.
    pub topic: Arc<str>,
    /// How many, for this reason.
    pub records: u64,
    /// Why, and what to do about it.
    pub reason: String,
}

/// Adds a record that was refused to those of its topic and reason.
fn refuse(refused: &mut Vec<Refused>, topic: &Arc<str>, reason: String) {
    match refused.iter_mut().find(|known| known.topic == *topic && known.reason == reason) {
        Some(known) => known.records += 1,
        None => refused.push(Refused { topic: Arc::clone(topic), records: 1, reason }),
    }
}
