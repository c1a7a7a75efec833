//! Micro-batches of messages from Kafka: the newest ones, endlessly, or a bounded range of offsets.

mod kafka;

use std::collections::BTreeMap;
use std::ops::Range;

pub use kafka::{Bounds, KafkaReader};

/// Messages as they were received, with their bytes side by side in one buffer.
#[derive(Clone, Debug, Default)]
pub struct RawBatch {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// Of each partition that is in the batch, the next offset to read.
    pub next_offsets: BTreeMap<i32, i64>,
}

#[derive(Clone, Debug)]
struct Message {
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Range<usize>>,
    payload: Option<Range<usize>>,
}

/// Where a message came from, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// When it was produced, in milliseconds since 1970, if the broker knows.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub payload: Option<&'a [u8]>,
}

/// Where a message stands among all of its topic: by the broker's timestamp, then by partition and offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// When it was produced, in milliseconds since 1970, if that is known.
    pub timestamp_ms: Option<i64>,
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl RawBatch {
    /// Where the message at a position comes from.
    pub fn origin(&self, position: u32) -> Origin {
        let Message { timestamp_ms, partition, offset, .. } = self.messages[position as usize];
        Origin { timestamp_ms, partition, offset }
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The message at a position.
    pub fn get(&self, position: u32) -> MessageRef<'_> {
        let message = &self.messages[position as usize];
        let part = |range: &Option<Range<usize>>| range.clone().map(|range| &self.bytes[range]);
        MessageRef {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            key: part(&message.key),
            payload: part(&message.payload),
        }
    }

    /// The values of all messages.
    pub fn payloads(&self) -> Vec<Option<&[u8]>> {
        self.messages.iter().map(|message| message.payload.clone().map(|range| &self.bytes[range])).collect()
    }

    fn push(&mut self, message: MessageRef) {
        let mut part = |bytes: Option<&[u8]>| {
            bytes.map(|bytes| {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                start..self.bytes.len()
            })
        };
        let (key, payload) = (part(message.key), part(message.payload));
        self.next_offsets.insert(message.partition, message.offset + 1);
        self.messages.push(Message {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            key,
            payload,
        });
    }
}
