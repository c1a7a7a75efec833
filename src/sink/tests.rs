//! The Kafka sink on librdkafka's mock cluster, which can be told to fail. It shows what was aborted too, and
//! fences nobody: what depends on that is proved on a real Kafka.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

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
        partition: None,
        key: Some(b"k".to_vec()),
        value: Some(value.into()),
        headers: [Header::new("op", "insert")].into(),
        may_be_cut: false,
    }
}

const LOG: &str = "log";

/// Records, and the one of the epoch log that says so.
fn transaction(records: impl IntoIterator<Item = Record>, entry: &str) -> Transaction {
    let entry = Record { partition: Some(LOG_PARTITION), key: Some(ENTRY_KEY.into()), ..record(LOG, entry) };
    let records = records.into_iter().chain([entry]).collect();
    Transaction { records, offsets: vec![("votes".into(), 0, 7)] }
}

fn open(kafka: &Cluster) -> KafkaSink {
    KafkaSink::open(&kafka.config, LOG, BTreeMap::new()).unwrap().0
}

/// Polls until the transaction is committed; what was refused meanwhile.
fn settle(sink: &mut KafkaSink) -> Vec<Refused> {
    let deadline = Instant::now() + PATIENCE;
    let mut refused = Vec::new();
    loop {
        let progress = sink.poll(Duration::from_millis(100));
        refused.extend(progress.refused);
        if progress.committed {
            return refused;
        }
        assert!(!progress.fenced, "nobody has taken over");
        assert!(Instant::now() < deadline, "not committed: {:?}", progress.outage);
    }
}

fn write(sink: &mut KafkaSink, records: impl IntoIterator<Item = Record>, entry: &str) -> Vec<Refused> {
    sink.begin(transaction(records, entry));
    settle(sink)
}

#[test]
fn what_an_outage_held_back_is_written_in_order() {
    let kafka = Cluster::new(&["t", "votes", LOG]);
    let mut sink = open(&kafka);
    assert_eq!(write(&mut sink, [record("t", "0")], "1"), []);
    kafka.cluster.broker_down(1).unwrap();
    sink.begin(transaction((1..100).map(|i| record("t", i.to_string())), "2"));
    let deadline = Instant::now() + PATIENCE;
    while sink.poll(Duration::from_millis(100)).outage.is_none() {
        assert!(Instant::now() < deadline, "an outage is told");
    }
    kafka.cluster.broker_up(1).unwrap();
    assert_eq!(settle(&mut sink), []);
    assert_eq!(sink.poll(Duration::ZERO).outage, None);
    let values = kafka.read("t");
    let expected: Vec<_> = (0..100).map(|i| i.to_string()).collect();
    assert_eq!(values[values.len() - 99..], expected[1..], "{values:?}");
}

/// Its connection waits for an answer that does not come; others get theirs.
#[test]
fn a_client_without_progress_is_replaced() {
    let kafka = Cluster::new(&["t", "votes", LOG]);
    let mut sink = open(&kafka);
    write(&mut sink, [record("t", "before")], "1");
    kafka.cluster.broker_round_trip_time(1, 4 * PATIENCE).unwrap();
    sink.begin(transaction([record("t", "after")], "2"));
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        assert!(!sink.poll(Duration::from_millis(100)).committed);
    }
    kafka.cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert_eq!(settle(&mut sink), []);
    assert_eq!(kafka.read(LOG).last(), Some(&"2".to_string()));
}

/// Whatever a call of a transaction answers: each is told to fail, and all is written all the same.
#[test]
fn a_transaction_that_fails_is_written_whole_later() {
    use RDKafkaApiKey as Api;
    use RDKafkaRespErr as Code;
    let faults = [
        // They pass.
        (Api::Produce, Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION),
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS),
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS),
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE),
        // The transaction must be aborted.
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED),
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING),
        // The client can't go on.
        (Api::Produce, Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH),
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
    ];
    let kafka = Cluster::new(&["t", "votes", LOG]);
    let mut sink = open(&kafka);
    write(&mut sink, [record("t", "first")], "0");
    for (i, (api, code)) in faults.into_iter().enumerate() {
        let values = ["a", "b", "c"].map(|value| format!("{i}{value}"));
        let before = kafka.read("t").len();
        // This broker shows what was aborted: if a message can't be written, nor may the log's record.
        kafka.cluster.request_errors(api, &vec![code; if api == Api::Produce { 2 } else { 1 }]);
        let entry = (i + 1).to_string();
        let refused = write(&mut sink, values.iter().map(|value| record("t", value.as_str())), &entry);
        assert_eq!(refused, [], "{api:?} {code:?}");
        let written = kafka.read("t").split_off(before);
        assert!(written.ends_with(&values), "{api:?} {code:?}: {written:?}");
        assert_eq!(kafka.read(LOG).last(), Some(&entry), "{api:?} {code:?}");
    }
}

/// Whether it takes them or not, nothing waits for the consumer group.
#[test]
fn the_consumer_group_is_told_what_was_committed() {
    let kafka = Cluster::new(&["t", "votes", LOG]);
    let mut sink = open(&kafka);
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    kafka.cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[refusal]);
    write(&mut sink, [record("t", "refused")], "1");
    let mut client = crate::clients::kafka(&kafka.config);
    let group: BaseConsumer = client.set("group.id", "tally-tally").create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition("votes", 0);
    let deadline = Instant::now() + PATIENCE;
    for number in 2.. {
        write(&mut sink, [record("t", "told")], &number.to_string());
        let told = group.committed_offsets(asked.clone(), PATIENCE).unwrap();
        if told.elements()[0].offset() == Offset::Offset(7) {
            break;
        }
        assert!(Instant::now() < deadline, "the group was told {told:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_topic_does_not_take_is_refused_and_the_rest_is_written() {
    let kafka = Cluster::new(&["t", "small", "votes", LOG]);
    let bytes_max = BTreeMap::from([("t".to_string(), 1_000_000), ("small".to_string(), 10_000)]);
    let (mut sink, _) = KafkaSink::open(&kafka.config, LOG, bytes_max).unwrap();
    let records = [
        record("t", "before"),
        record("t", vec![b'x'; 2_000_000]),
        Record { may_be_cut: true, ..record("small", vec![b'['; 50_000]) },
        record("t", "after"),
    ];
    let refused = write(&mut sink, records, "1");
    let told: Vec<_> = refused.iter().map(|r| (&*r.topic, r.records)).collect();
    assert_eq!(told, [("t", 1)], "{refused:?}");
    assert_eq!(kafka.read("t"), ["before", "after"]);
    let [cut] = kafka.read("small").try_into().unwrap();
    assert!(cut.len() > 8_000 && cut.len() < 10_000, "{}", cut.len());
}
