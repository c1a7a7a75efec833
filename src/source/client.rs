//! The consumer of one topic, and what it tells by the way: its troubles, and the ends of partitions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use serde::Deserialize;

use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};

/// How often the client tells the ends of the partitions.
const STATISTICS_INTERVAL_MS: &str = "500";

pub(super) type KafkaConsumer = BaseConsumer<Context>;

/// What the client tells by the way.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<TellTale>>);

/// The newest of what it told.
#[derive(Default)]
pub(super) struct TellTale {
    pub(super) ends: Option<HashMap<i32, Ends>>,
    pub(super) trouble: Option<String>,
}

/// Keeps what the client tells, and its own log free of what is no error.
pub(super) struct Context {
    topic: String,
    told: Told,
}

/// The part of the client's statistics that is read here.
#[derive(Deserialize)]
struct Statistics {
    topics: HashMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: HashMap<i32, Ends>,
}

/// Ends of a partition.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct Ends {
    /// Last stable offset; negative while unknown.
    pub(super) ls_offset: i64,
    pub(super) hi_offset: i64,
    /// Where the client last was at an end, past the marks of transactions, which are no messages.
    pub(super) eof_offset: i64,
}

impl Told {
    pub(super) fn lock(&self) -> MutexGuard<'_, TellTale> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!("librdkafka: {fac} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(Code::PartitionEOF) {
            tracing::debug!("librdkafka: {error}: {reason}");
            self.told.lock().trouble = Some(reason.to_string());
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(mut statistics) => {
                let topic = statistics.topics.remove(&self.topic);
                self.told.lock().ends = topic.map(|topic| topic.partitions);
            }
            Err(error) => tracing::debug!("the client's statistics can't be read: {error}"),
        }
    }
}

impl ConsumerContext for Context {}

/// A consumer that is assigned nothing yet.
pub(super) fn consumer(config: &Config, topic: &str, told: Told) -> Result<KafkaConsumer> {
    let mut client = clients::kafka(config);
    // Offsets are ours to keep; the group's name only satisfies the client.
    client.set("group.id", "tally").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    // A commit elsewhere must not hide messages, nor an aborted transaction show any.
    client.set("isolation.level", "read_committed").set("auto.offset.reset", "error");
    // How soon an idle partition says that it has no more: half a second is librdkafka's default.
    for (name, value) in [("fetch.wait.max.ms", "100"), ("statistics.interval.ms", STATISTICS_INTERVAL_MS)] {
        if !config.kafka.contains_key(name) {
            client.set(name, value);
        }
    }
    let context = Context { topic: topic.into(), told };
    client.create_with_context(context).map_err(|e| Error::kafka(format!("reading topic {topic}"), e))
}
