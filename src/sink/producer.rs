//! A producer that loses nothing silently: a full queue waits, and a record that Kafka did not take is an
//! error at the next flush.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};

use crate::error::{Error, Result};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
const FLUSH_POLL: Duration = Duration::from_millis(1);
/// A broker that takes longer than this is looked for less often.
const FLUSH_SOON: Duration = Duration::from_millis(200);
const FLUSH_POLL_LATER: Duration = Duration::from_millis(20);
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(20);

/// Records of one key stay in order; each is stored once by all replicas.
pub struct CheckedProducer {
    producer: BaseProducer<Deliveries>,
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
            failed.get_or_insert_with(|| format!("topic {}: {error}", message.topic()));
        }
    }
}

impl CheckedProducer {
    /// Opens a producer; of `defaults`, those that the user has not set are used.
    pub fn open(mut client: ClientConfig, defaults: &[(&str, &str)]) -> Result<CheckedProducer> {
        for (name, value) in [("enable.idempotence", "true"), ("acks", "all")].iter().chain(defaults) {
            if client.get(name).is_none() {
                client.set(*name, *value);
            }
        }
        let deliveries = Deliveries::default();
        let producer = client.create_with_context(deliveries.clone());
        Ok(CheckedProducer {
            producer: producer.map_err(|e| Error::kafka("opening the producer", e))?,
            deliveries,
        })
    }

    /// Queues a record.
    pub fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<()> {
        let mut record: BaseRecord<[u8], [u8]> = BaseRecord::to(topic);
        record.key = key;
        record.payload = payload;
        record.headers = headers;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    self.producer.poll(FULL_QUEUE_WAIT);
                    self.check()?;
                    record = again;
                }
                Err((error, _)) => return Err(Error::kafka(format!("writing to topic {topic}"), error)),
            }
        }
    }

    /// Waits until Kafka has every queued record.
    pub fn flush(&self) -> Result<()> {
        wait_until_sent(&self.producer)?;
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
}

/// Waits until Kafka has answered for every queued record. The client's own `flush` looks only every
/// tenth of a second.
pub fn wait_until_sent<C: ProducerContext>(producer: &BaseProducer<C>) -> Result<()> {
    let begun = Instant::now();
    while producer.in_flight_count() > 0 {
        if begun.elapsed() > FLUSH_TIMEOUT {
            let reason = format!("no answer within {} s; are the brokers running?", FLUSH_TIMEOUT.as_secs());
            return Err(Error::kafka("writing", reason));
        }
        producer.poll(if begun.elapsed() < FLUSH_SOON { FLUSH_POLL } else { FLUSH_POLL_LATER });
    }
    Ok(())
}
