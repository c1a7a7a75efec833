//! Micro-batches of messages: the newest ones, endlessly, or a bounded range of offsets. From Kafka, or from
//! memory, where a test says what goes wrong.
//!
//! A source never fails once it is open. While nothing can be received it waits, says so in its state, and
//! goes on by itself.

mod batch;
mod client;
mod first_look;
mod history;
mod kafka;
mod memory;
mod newest;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use batch::{MessageRef, Origin, RawBatch};
pub use history::{History, KafkaHistory};
pub use kafka::{KafkaSource, KafkaTopics};
pub use memory::{MemoryHistory, MemoryMessage, MemorySource, MemoryTopic};
pub use newest::newest_message;

pub use crate::outage::Outage;

/// Reads one topic. Polled by one thread.
pub trait Source: Send {
    /// Waits for messages, at most `wait` long and at most `rows_max` of them. What comes after some quiet
    /// is given at once, so that a quiet topic is not slowed by the wait.
    fn poll(&mut self, rows_max: usize, wait: Duration) -> Polled;

    /// Tells the topic from another one of its name; 0 if nothing does.
    fn topic_id(&self) -> u128 {
        0
    }
}

/// Topics that can be read up to now.
pub trait Topics: Send + Sync {
    /// A bounded source of what the topic still has.
    fn read(&self, topic: &str) -> crate::error::Result<Box<dyn Source>>;
}

/// Where the counting of a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The first offset that was counted.
    pub first: i64,
    /// The next to be counted.
    pub next: i64,
}

/// [`Position`] by partition.
pub type Positions = BTreeMap<i32, Position>;

/// What a poll gave.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// The messages, maybe none.
    pub batch: RawBatch,
    /// Where the source is after them.
    pub state: SourceState,
}

/// Where a source is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// By partition.
    pub partitions: BTreeMap<i32, PartitionState>,
    /// Whether every message that was there when the source was opened has been read.
    pub caught_up: bool,
    /// Whether a bounded source has given all that it ever gives.
    pub ended: bool,
    /// Why nothing can be received, while that is so.
    pub outage: Option<Outage>,
}

/// Where a source is in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    /// Where reading began. More than 0: the topic's beginning was lost.
    pub first: i64,
    /// Messages (at most; some may have been marks of transactions) that were gone before they could be read.
    pub lost: i64,
    /// The next offset to read.
    pub next: i64,
    /// Up to where it can be read: the last stable offset.
    pub end: i64,
    /// Up to where messages are written: what is behind `end` waits for an open transaction.
    pub high: i64,
}

impl SourceState {
    /// Messages that can be read and are not yet.
    pub fn lag(&self) -> u64 {
        self.sum(|p| p.end - p.next)
    }

    /// Messages that are written and not read yet, those behind an open transaction included.
    pub fn lag_to_high_watermark(&self) -> u64 {
        self.sum(|p| p.high.max(p.end) - p.next)
    }

    /// Messages that were gone before they could be read; 0 if the topic was and stayed whole.
    pub fn lost_messages(&self) -> u64 {
        self.sum(|p| p.lost)
    }

    /// Whether the topic had lost messages that were not read: the count is not of all that were written.
    pub fn lost_beginning(&self) -> bool {
        self.lost_messages() > 0
    }

    /// Partitions that have messages which are not read yet.
    pub fn unread(&self) -> BTreeSet<i32> {
        self.partitions.iter().filter(|(_, p)| p.next < p.end).map(|(partition, _)| *partition).collect()
    }

    fn sum(&self, of: impl Fn(&PartitionState) -> i64) -> u64 {
        self.partitions.values().map(|p| of(p).max(0) as u64).sum()
    }
}

/// How far to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Go on as messages arrive.
    Endless,
    /// Up to the end that each partition has when the source is opened.
    UntilNow,
}

pub use crate::catalog::Start;
