//! Messages that were read before, read again by their offsets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::client::{Context, KafkaConsumer, Told, consumer};
use super::kafka::push;
use super::{Position, RawBatch};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::outage::OutageLog;

/// Fetched ahead of each partition, in KiB.
const AHEAD_KB: &str = "16384";
const POLL: Duration = Duration::from_millis(100);
/// Without a message for so long, Kafka is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// At the end of a partition this long, what is missing will not come.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Reads a topic again. Each partition is read on from where it was read last.
pub trait History: Send {
    /// Begins at these offsets, by partition: those before are not needed. Only before the first reading.
    fn begin_at(&mut self, offsets: &BTreeMap<i32, i64>);

    /// Adds at most `rows_max` messages of a partition, those before offset `to`; whether these are all. The last of
    /// them must be there. Blocks, for as long as the broker is away.
    fn read(&mut self, partition: i32, to: i64, rows_max: usize, batch: &mut RawBatch) -> Result<bool>;
}

/// A topic of Kafka: all its partitions are fetched at the same time. Nothing is asked before the first reading.
pub struct KafkaHistory {
    config: Arc<Config>,
    topic: String,
    from: BTreeMap<i32, i64>,
    open: Option<Open>,
    outage: OutageLog,
}

struct Open {
    consumer: Arc<KafkaConsumer>,
    partitions: BTreeMap<i32, PartitionQueue<Context>>,
}

impl KafkaHistory {
    /// Of partitions, each from its first counted message.
    pub fn new(config: Arc<Config>, topic: &str, positions: &BTreeMap<i32, Position>) -> KafkaHistory {
        KafkaHistory {
            config,
            topic: topic.into(),
            from: positions.iter().map(|(partition, position)| (*partition, position.first)).collect(),
            open: None,
            outage: OutageLog::new(format!("reading topic {topic} again")),
        }
    }

    fn open(&self) -> Result<Open> {
        let failed = |error: KafkaError| Error::kafka(format!("reading topic {} again", self.topic), error);
        let mut config = Config::clone(&self.config);
        config.kafka.entry("queued.max.messages.kbytes".into()).or_insert_with(|| AHEAD_KB.into());
        let consumer = Arc::new(consumer(&config, &self.topic, Told::default())?);
        let mut assignment = TopicPartitionList::new();
        let mut partitions = BTreeMap::new();
        for (partition, from) in &self.from {
            assignment
                .add_partition_offset(&self.topic, *partition, Offset::Offset(*from))
                .map_err(failed)?;
            // Before it is assigned: then none of its messages goes to the queue of all.
            let queue = consumer.split_partition_queue(&self.topic, *partition);
            let queue = queue.ok_or_else(|| failed(KafkaError::Subscription(self.topic.clone())))?;
            partitions.insert(*partition, queue);
        }
        consumer.assign(&assignment).map_err(failed)?;
        Ok(Open { consumer, partitions })
    }

    fn missing(&self, partition: i32, to: i64) -> Error {
        Error::kafka(
            format!("reading topic {} again", self.topic),
            format!(
                "partition {partition} has no message at offset {} any more, which was counted: was the topic \
                 created again, compacted or cut? Restore it, or count what there is with `tally run --rebuild`",
                to - 1
            ),
        )
    }
}

impl History for KafkaHistory {
    fn begin_at(&mut self, offsets: &BTreeMap<i32, i64>) {
        self.from.extend(offsets);
    }

    fn read(&mut self, partition: i32, to: i64, rows_max: usize, batch: &mut RawBatch) -> Result<bool> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let Some(queue) = open.partitions.get(&partition) else { return Err(self.missing(partition, to)) };
        let (mut heard_at, mut ended_at) = (Instant::now(), None);
        let mut read = 0;
        while read < rows_max {
            match queue.poll(POLL) {
                Some(Ok(message)) => {
                    heard_at = Instant::now();
                    if message.offset() >= to {
                        return Err(self.missing(partition, to));
                    }
                    push(&message, batch);
                    read += 1;
                    if message.offset() == to - 1 {
                        self.outage.off();
                        drop(message);
                        self.open = Some(open);
                        return Ok(true);
                    }
                    continue;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended_at = Some(Instant::now()),
                Some(Err(error)) => self.take_error(&error, partition, to)?,
                None => {}
            }
            if let Some(Err(error)) = open.consumer.poll(Duration::ZERO) {
                self.take_error(&error, partition, to)?;
            }
            if ended_at.is_some_and(|at: Instant| at.elapsed() > END_PATIENCE) {
                return Err(self.missing(partition, to));
            }
            if heard_at.elapsed() > PATIENCE {
                self.outage.on("Kafka does not answer", true);
            }
        }
        self.open = Some(open);
        Ok(false)
    }
}

impl KafkaHistory {
    /// What is missing will not come; the client mends the rest by itself.
    fn take_error(&self, error: &KafkaError, partition: i32, to: i64) -> Result<()> {
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Err(self.missing(partition, to)),
            _ => {
                tracing::debug!("reading topic {} again: {error}", self.topic);
                Ok(())
            }
        }
    }
}
