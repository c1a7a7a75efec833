//! Tells the consumer group how far has been counted, for tools that show lag. Nothing is read back from it: where a
//! start goes on, the epoch log says.
//!
//! It is told after the commit and without waiting, not in the transaction: there librdkafka (2.12.1) waits without end
//! for the group's coordinator if that froze at the wrong moment (`rd_kafka_coord_req_fsm` has no timer of its own).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::clients;
use crate::config::Config;

/// The engine's consumer group. Nobody is in it.
pub(super) struct Group(BaseConsumer<Told>);

/// Logs what the client tells; that offsets are not taken, once.
struct Told {
    group: String,
    warned: AtomicBool,
}

impl Group {
    pub(super) fn open(config: &Config) -> KafkaResult<Group> {
        let group = format!("tally-{}", config.engine_id);
        let mut client = clients::kafka(config);
        client.set("group.id", &group).set("enable.auto.commit", "false");
        Ok(Group(client.create_with_context(Told { group, warned: AtomicBool::new(false) })?))
    }

    /// Has the group know the next offsets that will be counted: topic, partition, offset. Does not wait.
    pub(super) fn tell(&self, next: &[(String, i32, i64)]) {
        let mut list = TopicPartitionList::new();
        let added = next.iter().try_for_each(|(topic, partition, next)| {
            list.add_partition_offset(topic, *partition, Offset::Offset(*next))
        });
        let told = added.and_then(|()| match next {
            [] => Ok(()),
            _ => self.0.commit(&list, CommitMode::Async),
        });
        if let Err(error) = told {
            self.0.context().warn(&error);
        }
        // Takes the answers to what was told before.
        if let Some(Err(error)) = self.0.poll(Duration::ZERO) {
            tracing::debug!("consumer group {}: {error}", self.0.context().group);
        }
    }
}

impl Told {
    fn warn(&self, error: &KafkaError) {
        if !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                "consumer group {} is not told what has been counted, so that tools that show its lag are wrong: {error}",
                self.group
            );
        }
    }
}

impl ClientContext for Told {
    fn log(&self, _level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!("librdkafka: {fac} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Told {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) => self.warned.store(false, Relaxed),
            Err(error) => self.warn(&error),
        }
    }
}
