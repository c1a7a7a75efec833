//! Writes what changed to Kafka: each view's changelog, and the messages that broke a rule.

mod json;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

pub use json::{keys, rows};

use crate::clients;
use crate::config::Config;
use crate::decode::Reject;
use crate::engine::{Op, ViewChange};
use crate::error::{Error, Result};
use crate::source::MessageRef;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(20);

/// A producer of changelogs and dead letters. Records of one key stay in order.
pub struct KafkaSink {
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
}

/// Remembers the first record that Kafka did not take.
#[derive(Clone, Default)]
struct Deliveries {
    failed: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if let Err((error, message)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            failed.get_or_insert_with(|| format!("{}: {error}", message.topic()));
        }
    }
}

impl KafkaSink {
    /// A producer that waits for all replicas and repeats nothing twice.
    pub fn open(config: &Config) -> Result<KafkaSink> {
        let deliveries = Deliveries::default();
        let mut client = clients::kafka(config);
        for (name, value) in
            [("enable.idempotence", "true"), ("acks", "all"), ("linger.ms", "5"), ("compression.type", "lz4")]
        {
            if !config.kafka.contains_key(name) {
                client.set(name, value);
            }
        }
        let producer = client
            .create_with_context(deliveries.clone())
            .map_err(|e| Error::kafka("opening the producer", e))?;
        Ok(KafkaSink { producer, deliveries })
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
            self.send(topic, key.as_deref(), payload, headers)?;
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
        self.send(topic, message.key, message.payload, headers)
    }

    /// Waits until Kafka has every queued record.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush(FLUSH_TIMEOUT).map_err(|e| Error::kafka("writing", e))?;
        self.check()
    }

    fn check(&self) -> Result<()> {
        let failed = self.deliveries.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match failed.as_ref() {
            Some(reason) => {
                Err(Error::kafka("writing", format!("{reason}; `tally topics` creates missing topics")))
            }
            None => Ok(()),
        }
    }

    fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> Result<()> {
        let mut record: BaseRecord<[u8], [u8]> = BaseRecord::to(topic).headers(headers);
        record.key = key;
        record.payload = payload;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    self.check()?;
                    std::thread::sleep(FULL_QUEUE_WAIT);
                    record = again;
                }
                Err((error, _)) => return Err(Error::kafka(format!("writing to topic {topic}"), error)),
            }
        }
    }
}
