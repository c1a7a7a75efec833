//! Reads a topic's partitions from given offsets, by assignment: the engine, not a consumer group, says
//! what is read, so that a bounded range can be read again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};

use super::{MessageRef, RawBatch};
use crate::clients::{self, CONNECT_TIMEOUT};
use crate::config::Config;
use crate::error::{Error, Result};

/// Most bytes of a micro-batch, so that large messages do not make a large one.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// How far to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Go on as messages arrive.
    Endless,
    /// Up to the end that each partition has when the reader is opened.
    UntilNow,
}

/// A reader of all partitions of one topic, from their beginning.
pub struct KafkaReader {
    topic: String,
    consumer: BaseConsumer<Context>,
    bounds: Bounds,
    /// End of each partition when the reader was opened.
    first_ends: BTreeMap<i32, i64>,
    next_offsets: BTreeMap<i32, i64>,
    /// Partitions that had no further message when last asked.
    at_end: BTreeSet<i32>,
}

/// Keeps the client's own log free of what is no error: that a partition has no further message.
struct Context;

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        if !matches!(error, KafkaError::Global(rdkafka::error::RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!("kafka: {error}: {reason}");
        }
    }
}

impl ConsumerContext for Context {}

/// The partitions of a topic; an error that says what to do if there is no such topic.
fn topic_partitions(consumer: &BaseConsumer<Context>, topic: &str) -> Result<Vec<i32>> {
    let action = || format!("reading topic {topic}");
    let metadata =
        consumer.fetch_metadata(Some(topic), CONNECT_TIMEOUT).map_err(|e| Error::kafka(action(), e))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions: Vec<i32> =
        found.map(|t| t.partitions().iter().map(|p| p.id()).collect()).unwrap_or_default();
    if partitions.is_empty() {
        return Err(Error::kafka(action(), "there is no such topic; `tally topics` creates it"));
    }
    Ok(partitions)
}

impl KafkaReader {
    /// Assigns every partition of `topic`, each from its oldest message. Blocks while the broker answers.
    pub fn open(config: &Config, topic: &str, bounds: Bounds) -> Result<KafkaReader> {
        let action = || format!("reading topic {topic}");
        let mut client = clients::kafka(config);
        // Offsets are ours to keep; the group's name only satisfies the client.
        client
            .set("group.id", "tally")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        // A commit elsewhere must not hide messages, nor an aborted transaction show any.
        client.set("isolation.level", "read_committed").set("auto.offset.reset", "error");
        // How soon an idle partition says that it has no more: half a second is librdkafka's default.
        if !config.kafka.contains_key("fetch.wait.max.ms") {
            client.set("fetch.wait.max.ms", "100");
        }
        let consumer: BaseConsumer<Context> =
            client.create_with_context(Context).map_err(|e| Error::kafka(action(), e))?;
        let mut assignment = TopicPartitionList::new();
        let mut first_ends = BTreeMap::new();
        let mut next_offsets = BTreeMap::new();
        for partition in topic_partitions(&consumer, topic)? {
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, CONNECT_TIMEOUT)
                .map_err(|e| Error::kafka(format!("asking for the offsets of {topic}/{partition}"), e))?;
            assignment
                .add_partition_offset(topic, partition, Offset::Offset(low))
                .map_err(|e| Error::kafka(action(), e))?;
            first_ends.insert(partition, high);
            next_offsets.insert(partition, low);
        }
        consumer.assign(&assignment).map_err(|e| Error::kafka(action(), e))?;
        let at_end =
            next_offsets.iter().filter(|(p, low)| first_ends[*p] <= **low).map(|(p, _)| *p).collect();
        Ok(KafkaReader { topic: topic.into(), consumer, bounds, first_ends, next_offsets, at_end })
    }

    /// Waits for messages, at most `wait` long and at most `rows_max` of them. A bounded reader ends with `None`.
    pub fn next(&mut self, rows_max: usize, wait: Duration) -> Result<Option<RawBatch>> {
        if self.bounds == Bounds::UntilNow && self.caught_up() {
            return Ok(None);
        }
        let deadline = Instant::now() + wait;
        let mut batch = RawBatch::default();
        while batch.len() < rows_max && batch.bytes() < BATCH_BYTES_MAX {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                None => break,
                Some(Ok(message)) => {
                    let partition = message.partition();
                    if self.bounds == Bounds::UntilNow && message.offset() >= self.first_ends[&partition] {
                        self.at_end.insert(partition);
                    } else {
                        self.at_end.remove(&partition);
                        self.next_offsets.insert(partition, message.offset() + 1);
                        batch.push(MessageRef {
                            partition,
                            offset: message.offset(),
                            timestamp_ms: message.timestamp().to_millis(),
                            key: message.key(),
                            payload: message.payload(),
                        });
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.at_end.insert(partition);
                }
                Some(Err(error)) => self.recover(error)?,
            }
            if self.bounds == Bounds::UntilNow && self.caught_up() {
                break;
            }
        }
        Ok(Some(batch))
    }

    /// Whether every message that was there when the reader was opened has been read.
    pub fn caught_up(&self) -> bool {
        self.first_ends.iter().all(|(p, end)| self.at_end.contains(p) || self.next_offsets[p] >= *end)
    }

    /// Of each partition, the next offset to read, and the offset at its end. Asks the broker.
    pub fn progress(&self) -> Result<BTreeMap<i32, (i64, i64)>> {
        let progress = |(partition, next): (&i32, &i64)| {
            let (_, end) = self
                .consumer
                .fetch_watermarks(&self.topic, *partition, CONNECT_TIMEOUT)
                .map_err(|e| Error::kafka(format!("asking for the end of {}/{partition}", self.topic), e))?;
            // Past the last message there may be marks of transactions, which are no messages.
            let end = if self.at_end.contains(partition) { *next } else { end.max(*next) };
            Ok((*partition, (*next, end)))
        };
        self.next_offsets.iter().map(progress).collect()
    }

    /// librdkafka mends what it can by itself and says so in errors; only what it can't mend ends the reading.
    fn recover(&self, error: KafkaError) -> Result<()> {
        use rdkafka::types::RDKafkaErrorCode as Code;
        let action = || format!("reading topic {} at {:?}", self.topic, self.next_offsets);
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Err(Error::kafka(
                action(),
                format!(
                    "{error}; the topic no longer holds messages that were not read: give it a longer retention"
                ),
            )),
            Some(Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopic) => {
                Err(Error::kafka(action(), format!("{error}; was the topic deleted?")))
            }
            Some(
                Code::Fatal
                | Code::Authentication
                | Code::TopicAuthorizationFailed
                | Code::SaslAuthenticationFailed,
            ) => Err(Error::kafka(action(), error)),
            _ => {
                tracing::warn!("{}: {error}; trying again", action());
                Ok(())
            }
        }
    }
}
