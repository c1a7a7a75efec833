//! The Kafka source on librdkafka's mock cluster: what passes, and what a test on a real Kafka would take long for.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use std::time::Instant;

use super::*;
use crate::config::Config;

const PATIENCE: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_millis(50);

struct Cluster {
    cluster: MockCluster<'static, DefaultProducerContext>,
    config: Config,
    producer: BaseProducer,
}

impl Cluster {
    fn new(topic: &str, partitions: i32) -> Cluster {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(topic, partitions, 1).unwrap();
        let mut config = Config::default();
        config.kafka.insert("bootstrap.servers".into(), cluster.bootstrap_servers());
        // A connection that broke is tried again soon.
        config.kafka.insert("reconnect.backoff.max.ms".into(), "200".into());
        let producer = crate::clients::kafka(&config).create().unwrap();
        Cluster { cluster, config, producer }
    }

    fn write(&self, topic: &str, partition: i32, payload: &[u8]) {
        let record: BaseRecord<[u8], [u8]> = BaseRecord::to(topic).partition(partition).payload(payload);
        self.producer.send(record).unwrap();
        self.producer.flush(PATIENCE).unwrap();
    }

    fn source(&self, topic: &str) -> KafkaSource {
        KafkaSource::open(&self.config, topic, Bounds::Endless, Start::Earliest).unwrap()
    }
}

/// Polls until the state is as wanted; the messages that came meanwhile.
fn until(source: &mut KafkaSource, what: &str, wanted: impl Fn(&Polled, usize) -> bool) -> (Polled, usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut received = 0;
    loop {
        let polled = source.poll(1000, WAIT);
        received += polled.batch.len();
        if wanted(&polled, received) {
            return (polled, received);
        }
        assert!(Instant::now() < deadline, "never {what}: {:?}", polled.state);
    }
}

#[test]
fn a_client_that_gives_nothing_although_there_is_more_is_replaced() {
    let kafka = Cluster::new("votes", 2);
    kafka.write("votes", 0, b"before");
    let mut source = kafka.source("votes");
    until(&mut source, "received", |_, received| received == 1);
    source.hold_up();
    kafka.write("votes", 0, b"after");
    let (polled, received) = until(&mut source, "received again", |_, received| received > 0);
    assert_eq!((received, polled.batch.payloads()), (1, vec![Some(&b"after"[..])]));
}

#[test]
fn a_broker_that_is_away_is_an_outage_and_nothing_is_lost() {
    let kafka = Cluster::new("votes", 2);
    kafka.write("votes", 0, b"before");
    let mut source = kafka.source("votes");
    until(&mut source, "received", |_, received| received == 1);
    kafka.cluster.broker_down(1).unwrap();
    let (polled, received) = until(&mut source, "in an outage", |polled, _| polled.state.outage.is_some());
    assert_eq!(received, 0);
    assert!(polled.state.outage.unwrap().ends_by_itself);
    kafka.cluster.broker_up(1).unwrap();
    kafka.write("votes", 1, b"after");
    let (polled, _) =
        until(&mut source, "received", |polled, received| received == 1 && polled.state.outage.is_none());
    assert_eq!((polled.state.lag(), polled.state.lost_messages()), (0, 0));
}

#[test]
fn what_the_broker_drops_before_it_is_read_is_never_skipped_silently() {
    let kafka = Cluster::new("votes", 1);
    kafka.write("votes", 0, b"first");
    let mut source = kafka.source("votes");
    until(&mut source, "received", |_, received| received == 1);
    // The broker keeps 5 MiB of a partition; the client has room for less than comes.
    let whole = vec![b'x'; 900_000];
    kafka.cluster.broker_down(1).unwrap();
    kafka.cluster.broker_up(1).unwrap();
    for _ in 0..12 {
        kafka.write("votes", 0, &whole);
    }
    let open = |start| KafkaSource::open(&kafka.config, "votes", Bounds::Endless, start);
    let error = open(Start::Earliest).err().expect("a topic without its beginning is refused").to_string();
    assert!(error.contains("earliest_available"), "{error}");
    let mut rest = open(Start::EarliestAvailable).unwrap();
    let (polled, received) = until(&mut rest, "caught up", |polled, _| polled.state.caught_up);
    assert!(polled.state.lost_beginning(), "{:?}", polled.state);
    assert_eq!(polled.state.lost_messages() + received as u64, 13);
}

#[test]
fn a_quiet_topic_does_not_wait_for_the_micro_batch_to_fill() {
    let kafka = Cluster::new("votes", 4);
    let mut source = kafka.source("votes");
    until(&mut source, "caught up", |polled, _| polled.state.caught_up);
    let mut waits: Vec<Duration> = (0..20)
        .map(|i| {
            source.poll(1000, WAIT);
            let record: BaseRecord<[u8], [u8]> = BaseRecord::to("votes").partition(i % 4).payload(b"x");
            kafka.producer.send(record).unwrap();
            kafka.producer.flush(PATIENCE).unwrap();
            let begun = Instant::now();
            // Many times the wait: what ends it is the message.
            let polled = source.poll(1000, PATIENCE);
            assert_eq!(polled.batch.len(), 1);
            begun.elapsed()
        })
        .collect();
    waits.sort();
    assert!(waits[18] < Duration::from_millis(500), "{waits:?}");
}

#[test]
fn an_empty_topic_is_caught_up_and_a_missing_one_says_what_to_do() {
    let kafka = Cluster::new("votes", 3);
    let mut source = kafka.source("votes");
    assert!(source.poll(10, WAIT).state.caught_up);
    let open = KafkaSource::open(&kafka.config, "nothing", Bounds::Endless, Start::Earliest);
    let error = open.err().expect("there is no such topic").to_string();
    assert!(error.contains("`tally topics` creates it"), "{error}");
}
