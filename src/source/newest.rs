//! The newest committed message of a partition, found from its end.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::client::{Told, consumer};
use crate::config::Config;
use crate::error::{Error, Result};

/// So many offsets before the end are looked at first; marks of transactions take some, and aborted records.
const OFFSETS_FIRST: i64 = 32;
/// Then so many times as many.
const OFFSETS_FACTOR: i64 = 16;

/// The value of the newest committed message of a partition whose key is `key`; none if there is none. Blocks; Kafka is
/// away if it lets nothing be known for as long as `patience`.
pub fn newest_message(
    config: &Config,
    topic: &str,
    partition: i32,
    key: &[u8],
    patience: Duration,
) -> Result<Option<Vec<u8>>> {
    let failed = |reason: &dyn ToString| Error::kafka(format!("reading topic {topic}"), reason.to_string());
    let consumer = consumer(config, topic, Told::default())?;
    let (low, end) = consumer.fetch_watermarks(topic, partition, patience).map_err(|error| failed(&error))?;
    let mut offsets = OFFSETS_FIRST;
    loop {
        let from = low.max(end - offsets);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(from))
            .and_then(|()| consumer.assign(&assignment))
            .map_err(|error| failed(&error))?;
        let (mut newest, mut heard_at) = (None, Instant::now());
        loop {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    heard_at = Instant::now();
                    if message.key() == Some(key) {
                        newest = message.payload().map(<[u8]>::to_vec);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => tracing::debug!("reading topic {topic}: {error}"),
                None => {}
            }
            if heard_at.elapsed() > patience {
                return Err(failed(&format!("no answer within {} s", patience.as_secs())));
            }
        }
        if newest.is_some() || from == low {
            return Ok(newest);
        }
        offsets *= OFFSETS_FACTOR;
    }
}
