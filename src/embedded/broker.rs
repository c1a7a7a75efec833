//! A Kafka broker inside this process: librdkafka's own mock cluster, which speaks Kafka's protocol on a
//! loopback port, so that any client can read along. It stands in for Kafka; it does not replace it:
//!
//! - A partition keeps its newest 5 MiB (as compressed by the producer) and drops the rest silently:
//!   size topics with [`partitions_for`], and compare the low watermark before trusting history.
//! - Transactions are faked: the calls succeed, but aborted records are visible and offsets sent to a
//!   transaction aren't stored. Nothing about exactly-once may be proved on it.
//! - The admin API does not answer: create topics with [`Broker::create_topic`].
//! - `offsets_for_times` always answers "end"; a group's first join takes seconds; nothing survives a stop.

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};

use crate::error::{Error, Result};

/// What a partition keeps: fixed in librdkafka (`rdkafka_mock.c`, `max_size`).
const PARTITION_BYTES: u64 = 5 << 20;
/// Few enough that a fetch still brings thousands of rows, many enough that every core has some.
const PARTITIONS_MIN: u64 = 4;
/// Beyond this, a fetch of every partition's few rows costs more than the history is worth.
const PARTITIONS_MAX: u64 = 256;

/// The partitions a topic needs so that [`Broker`] drops none of `messages` of `bytes_each` bytes, with room
/// for keys that hash unevenly; at most 256, which is 1.25 GiB.
pub fn partitions_for(messages: u64, bytes_each: u64) -> i32 {
    // Twice the room: of 256 partitions under random keys the fullest is a few percent above the mean, and
    // a producer's batches have headers of their own.
    let needed = messages.saturating_mul(bytes_each).saturating_mul(2).div_ceil(PARTITION_BYTES);
    needed.clamp(PARTITIONS_MIN, PARTITIONS_MAX) as i32
}

/// A running broker; dropping it stops it and forgets its topics.
pub struct Broker {
    // A `MockCluster` of its own could not be sent between threads; one that belongs to a client can be
    // asked for anew on each call.
    client: BaseProducer,
    bootstrap_servers: String,
}

impl Broker {
    /// Starts a broker on a free loopback port.
    pub fn start() -> Result<Broker> {
        let client: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            // The client only keeps the cluster alive; its own connection is of no interest.
            .set("log_level", "0")
            .create()
            .map_err(|e| Error::kafka("starting the built-in broker", e))?;
        let bootstrap_servers = cluster(&client)?.bootstrap_servers();
        Ok(Broker { client, bootstrap_servers })
    }

    /// The broker's address, HOST:PORT.
    pub fn bootstrap_servers(&self) -> String {
        self.bootstrap_servers.clone()
    }

    /// Creates a topic. One that already exists is an error.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        cluster(&self.client)?
            .create_topic(name, partitions, 1)
            .map_err(|e| Error::kafka(format!("creating topic {name} with {partitions} partitions"), e))
    }
}

fn cluster(client: &BaseProducer) -> Result<MockCluster<'_, DefaultProducerContext>> {
    client.client().mock_cluster().ok_or_else(|| {
        Error::kafka("starting the built-in broker", "this librdkafka was built without its mock cluster")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Message;
    use rdkafka::producer::BaseRecord;
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;

    #[test]
    fn any_client_can_produce_and_consume() {
        let broker = Broker::start().expect("start");
        broker.create_topic("votes_topic", 4).expect("create");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap_servers()).set("group.id", "test");

        let producer: BaseProducer = config.create().expect("producer");
        producer.send(BaseRecord::to("votes_topic").key("v1").payload("{}").partition(2)).expect("send");
        producer.flush(Duration::from_secs(5)).expect("flush");

        let consumer: BaseConsumer = config.create().expect("consumer");
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset("votes_topic", 2, Offset::Beginning).expect("partition");
        consumer.assign(&partitions).expect("assign");
        let message = consumer.poll(Duration::from_secs(10)).expect("a message").expect("no error");
        assert_eq!(message.key(), Some(&b"v1"[..]));
        let metadata =
            consumer.fetch_metadata(Some("votes_topic"), Duration::from_secs(5)).expect("metadata");
        assert_eq!(metadata.topics()[0].partitions().len(), 4);
    }

    #[test]
    fn a_topic_has_room_for_what_is_coming() {
        assert_eq!(partitions_for(0, 300), 4);
        assert_eq!(partitions_for(1_000, 860), 4);
        let partitions = partitions_for(1_000_000, 300);
        assert!(partitions as u64 * PARTITION_BYTES >= 600_000_000, "{partitions}");
        assert_eq!(partitions_for(u64::MAX, 860), 256);
    }

    #[test]
    fn it_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Broker>();
    }
}
