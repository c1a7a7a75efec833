//! The Kafka sink on librdkafka's mock cluster, which can be told to fail.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::config::Config;
use crate::source::{Bounds, KafkaSource, Source, Start};

const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    cluster: MockCluster<'static, DefaultProducerContext>,
    config: Config,
}

impl Cluster {
    fn new(topics: &[&str]) -> Cluster {
        let cluster = MockCluster::new(1).unwrap();
        for topic in topics {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let mut config = Config::default();
        config.kafka.insert("bootstrap.servers".into(), cluster.bootstrap_servers());
        config.kafka.insert("reconnect.backoff.max.ms".into(), "200".into());
        Cluster { cluster, config }
    }

    fn read(&self, topic: &str) -> Vec<String> {
        let mut source = KafkaSource::open(&self.config, topic, Bounds::UntilNow, Start::Earliest).unwrap();
        let mut values = Vec::new();
        loop {
            let polled = source.poll(1000, Duration::from_millis(50));
            let payloads = polled.batch.payloads();
            values
                .extend(payloads.iter().map(|p| String::from_utf8_lossy(p.unwrap_or_default()).into_owned()));
            if polled.state.ended {
                return values;
            }
        }
    }
}

fn record(topic: &str, value: impl Into<Vec<u8>>) -> Record {
    Record {
        topic: topic.into(),
        key: Some(b"k".to_vec()),
        value: Some(value.into()),
        headers: [Header::new("op", "insert")].into(),
        may_be_cut: false,
    }
}

/// Polls until nothing is pending; what was refused meanwhile.
fn settle(sink: &mut KafkaSink) -> Vec<Refused> {
    let deadline = Instant::now() + PATIENCE;
    let mut refused = Vec::new();
    loop {
        let progress = sink.poll(Duration::from_millis(100));
        refused.extend(progress.refused);
        if progress.pending == 0 {
            return refused;
        }
        assert!(Instant::now() < deadline, "{} are pending: {:?}", progress.pending, progress.outage);
    }
}

#[test]
fn what_an_outage_held_back_is_written_in_order() {
    let kafka = Cluster::new(&["t"]);
    let mut sink = KafkaSink::open(&kafka.config, BTreeMap::new()).unwrap();
    sink.send(record("t", "0"));
    assert_eq!(settle(&mut sink), []);
    kafka.cluster.broker_down(1).unwrap();
    (1..100).for_each(|i| sink.send(record("t", i.to_string())));
    let deadline = Instant::now() + PATIENCE;
    while sink.poll(Duration::from_millis(100)).outage.is_none() {
        assert!(Instant::now() < deadline, "an outage is told");
    }
    kafka.cluster.broker_up(1).unwrap();
    assert_eq!(settle(&mut sink), []);
    assert_eq!(sink.poll(Duration::ZERO).outage, None);
    let expected: Vec<_> = (0..100).map(|i| i.to_string()).collect();
    assert_eq!(kafka.read("t"), expected);
}

#[test]
fn a_client_that_can_not_go_on_is_replaced_and_the_last_value_stays_the_last() {
    let kafka = Cluster::new(&["t"]);
    let mut sink = KafkaSink::open(&kafka.config, BTreeMap::new()).unwrap();
    sink.send(record("t", "0"));
    settle(&mut sink);
    // An idempotent producer takes this for fatal.
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH; 1];
    kafka.cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    (1..50).for_each(|i| sink.send(record("t", i.to_string())));
    assert_eq!(settle(&mut sink), []);
    let values = kafka.read("t");
    assert_eq!(values.last().map(String::as_str), Some("49"), "{values:?}");
    let distinct: std::collections::BTreeSet<_> = values.iter().collect();
    assert_eq!(distinct.len(), 50, "{values:?}");
}

#[test]
fn what_a_topic_does_not_take_is_refused_and_the_rest_is_written() {
    let kafka = Cluster::new(&["t", "small"]);
    let bytes_max = BTreeMap::from([("t".to_string(), 1_000_000), ("small".to_string(), 10_000)]);
    let mut sink = KafkaSink::open(&kafka.config, bytes_max).unwrap();
    sink.send(record("t", "before"));
    sink.send(record("t", vec![b'x'; 2_000_000]));
    sink.send(record("no_such_topic", "v"));
    sink.send(Record { may_be_cut: true, ..record("small", vec![b'['; 50_000]) });
    sink.send(record("t", "after"));
    let refused = settle(&mut sink);
    let told: Vec<_> = refused.iter().map(|r| (&*r.topic, r.records)).collect();
    assert!(told.contains(&("t", 1)), "{refused:?}");
    // The mock broker creates unknown topics; a real one is in tests/it.
    assert_eq!(kafka.read("t"), ["before", "after"]);
    let [cut] = kafka.read("small").try_into().unwrap();
    assert!(cut.len() > 8_000 && cut.len() < 10_000, "{}", cut.len());
}
