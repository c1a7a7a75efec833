//! Writes what changed to Kafka: each view's changelog, and the messages that broke a rule.

mod json;
mod producer;

use rdkafka::message::{Header, OwnedHeaders};

pub use json::{keys, rows};
pub use producer::{CheckedProducer, wait_until_sent};

use crate::clients;
use crate::config::Config;
use crate::decode::Reject;
use crate::engine::{Op, ViewChange};
use crate::error::Result;
use crate::source::MessageRef;

/// A producer of changelogs and dead letters.
pub struct KafkaSink {
    producer: CheckedProducer,
}

impl KafkaSink {
    /// Opens the producer.
    pub fn open(config: &Config) -> Result<KafkaSink> {
        let defaults = [("linger.ms", "2"), ("compression.type", "lz4")];
        Ok(KafkaSink { producer: CheckedProducer::open(clients::kafka(config), &defaults)? })
    }

    /// Queues a view's changed rows, keyed by the view's key, for its topic. A deleted row is a tombstone.
    pub fn write_changes(&self, change: &ViewChange, epoch: u64) -> Result<()> {
        let Some(topic) = &change.info.topic else { return Ok(()) };
        if change.changelog.ops.is_empty() {
            return Ok(());
        }
        let keys = keys(&change.changelog.rows, &change.info.key)?;
        let values = rows(&change.changelog.rows)?;
        let epoch = epoch.to_string();
        for ((op, key), value) in change.changelog.ops.iter().zip(&keys).zip(&values) {
            let headers = OwnedHeaders::new()
                .insert(Header { key: "op", value: Some(op.as_str()) })
                .insert(Header { key: "epoch", value: Some(&epoch) });
            let payload = (*op != Op::Delete || key.is_none()).then_some(value.as_slice());
            self.producer.send(topic, key.as_deref(), payload, Some(headers))?;
        }
        Ok(())
    }

    /// Queues a message that broke a rule, as it was received; the headers say where it stood and why.
    pub fn write_dead_letter(
        &self,
        topic: &str,
        from: &str,
        message: MessageRef,
        reject: &Reject,
    ) -> Result<()> {
        let (partition, offset) = (message.partition.to_string(), message.offset.to_string());
        let timestamp = message.timestamp_ms.map(|ms| ms.to_string());
        let headers = [
            ("rule", Some(reject.rule.as_str())),
            ("reason", Some(reject.reason.as_str())),
            ("topic", Some(from)),
            ("partition", Some(&partition)),
            ("offset", Some(&offset)),
            ("timestamp", timestamp.as_deref()),
        ];
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: *value }));
        self.producer.send(topic, message.key, message.payload, Some(headers))
    }

    /// Waits until Kafka has every queued record.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush()
    }
}
