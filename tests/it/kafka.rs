//! What only a real Kafka does: retention, added partitions, transactions, a topic that is created again,
//! compacted topics, limits of a record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tally::catalog::TopicUse;
use tally::clients;
use tally::config::Config;
use tally::pipeline::Pipeline;
use tally::shutdown::Shutdown;
use tally::sink::{Header, KafkaSink, Record, Refused, Sink, Transaction};
use tally::source::{Bounds, KafkaSource, Polled, Source, Start};
use tally::topics::{self, Outcome};

use crate::real::servers;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_millis(50);

/// A record of a topic: key, value and headers.
pub(crate) type Written = (Option<Vec<u8>>, Option<Vec<u8>>, BTreeMap<String, Vec<u8>>);

/// A real Kafka, and names of topics that nobody else has.
pub(crate) struct Kafka {
    pub(crate) config: Config,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    pub(crate) fn new() -> Option<Kafka> {
        let [kafka] = servers(["TALLY_TEST_KAFKA"])?;
        let mut config = Config { data_dir: String::new(), ..Config::default() };
        config.kafka.insert("bootstrap.servers".into(), kafka);
        let admin = clients::kafka(&config).create().unwrap();
        Some(Kafka { config, admin })
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
        let name = format!("{name}_{}", unique());
        self.create(&name, partitions, settings).await;
        name
    }

    async fn create(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let created = self.admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    /// A sink of an engine that nobody else is.
    async fn sink(&self, bytes_max: BTreeMap<String, usize>) -> KafkaSink {
        let log = self.topic("log", 1, &[]).await;
        let config = Config { engine_id: unique(), ..self.config.clone() };
        KafkaSink::open(&config, &log, bytes_max).unwrap().0
    }

    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> BaseProducer {
        let mut client = clients::kafka(&self.config);
        for (key, value) in settings {
            client.set(*key, *value);
        }
        client.create().unwrap()
    }

    pub(crate) fn write(&self, topic: &str, partition: i32, payloads: &[&str]) {
        let producer = self.producer(&[]);
        send(&producer, topic, partition, payloads);
        producer.flush(PATIENCE).unwrap();
    }

    /// Forgets a partition's messages before `offset`, as retention does.
    async fn forget(&self, topic: &str, partition: i32, offset: i64) {
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        self.admin.delete_records(&before, &AdminOptions::new()).await.unwrap();
    }

    fn open(&self, topic: &str, start: Start) -> tally::error::Result<KafkaSource> {
        KafkaSource::open(&self.config, topic, Bounds::Endless, start)
    }

    fn source(&self, topic: &str) -> KafkaSource {
        self.open(topic, Start::Earliest).unwrap()
    }

    /// The records of a topic: key and value, with the names and values of their headers.
    pub(crate) fn read(&self, topic: &str) -> Vec<Written> {
        let mut source =
            KafkaSource::open(&self.config, topic, Bounds::UntilNow, Start::EarliestAvailable).unwrap();
        let mut records = Vec::new();
        loop {
            let polled = source.poll(1000, WAIT);
            for i in 0..polled.batch.len() as u32 {
                let message = polled.batch.get(i);
                let headers = polled.batch.headers(i);
                let headers =
                    headers.map(|(name, value)| (name.to_string(), value.unwrap_or_default().to_vec()));
                let bytes = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
                records.push((bytes(message.key), bytes(message.payload), headers.collect()));
            }
            if polled.state.ended {
                return records;
            }
        }
    }
}

/// A part of a name that nobody else has.
pub(crate) fn unique() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, payloads: &[&str]) {
    for payload in payloads {
        producer.send(BaseRecord::<str, str>::to(topic).partition(partition).payload(payload)).unwrap();
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
        assert!(Instant::now() < deadline, "never {what}; {received} received: {:?}", polled.state);
    }
}

pub(crate) fn record(topic: &str, key: Option<&str>, value: Vec<u8>) -> Record {
    Record {
        topic: topic.into(),
        partition: None,
        key: key.map(Into::into),
        value: Some(value),
        headers: [Header::new("op", "insert")].into(),
        may_be_cut: false,
    }
}

/// Writes records in one transaction; what was refused.
pub(crate) fn write(sink: &mut KafkaSink, records: Vec<Record>) -> Vec<Refused> {
    sink.begin(Transaction { records, offsets: Vec::new() });
    let deadline = Instant::now() + PATIENCE;
    let mut refused = Vec::new();
    loop {
        let progress = sink.poll(Duration::from_millis(100));
        refused.extend(progress.refused);
        if progress.committed {
            return refused;
        }
        assert!(Instant::now() < deadline, "not committed: {:?}", progress.outage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_lost_its_beginning_is_refused_or_taken_as_asked() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("retention", 2, &[]).await;
    kafka.write(&topic, 0, &["a", "b", "c"]);
    kafka.write(&topic, 1, &["d"]);
    let mut whole = kafka.source(&topic);
    until(&mut whole, "received", |_, received| received == 4);
    kafka.forget(&topic, 0, 2).await;
    let error = kafka.open(&topic, Start::Earliest).err().expect("it is refused").to_string();
    assert!(error.contains("begins at offset 2") && error.contains("earliest_available"), "{error}");
    let mut rest = kafka.open(&topic, Start::EarliestAvailable).unwrap();
    let (polled, received) = until(&mut rest, "caught up", |polled, _| polled.state.caught_up);
    assert_eq!((received, polled.state.lost_messages()), (2, 2), "{:?}", polled.state);
    // Whoever has read it all loses nothing.
    kafka.write(&topic, 0, &["e"]);
    let (polled, _) = until(&mut whole, "received", |_, received| received == 1);
    assert_eq!((polled.state.lost_messages(), polled.state.outage), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_deleted_before_they_were_read_stop_the_source_with_a_reason() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("deleted_ahead", 1, &[]).await;
    let mut source = kafka.source(&topic);
    let mut lenient = kafka.open(&topic, Start::EarliestAvailable).unwrap();
    until(&mut source, "at the end", |polled, _| polled.state.caught_up);
    // More than a client fetches ahead, and gone before it is polled again.
    let payload = "x".repeat(100_000);
    let payloads: Vec<&str> = (0..1500).map(|_| payload.as_str()).collect();
    kafka.write(&topic, 0, &payloads);
    kafka.forget(&topic, 0, 1490).await;
    let (polled, received) = until(&mut source, "stopped", |polled, _| {
        polled.state.outage.as_ref().is_some_and(|outage| !outage.ends_by_itself)
    });
    let outage = polled.state.outage.unwrap();
    assert!(outage.reason.contains("has lost messages up to offset 1490"), "{}", outage.reason);
    assert_eq!(polled.state.partitions[&0].next, received as i64, "nothing is skipped");
    let (polled, received) =
        until(&mut lenient, "at the end", |polled, _| polled.state.partitions[&0].next == 1500);
    assert_eq!(polled.state.lost_messages() + received as u64, 1500);
    assert!(polled.state.lost_beginning());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_while_running_are_read_from_their_beginning() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("added", 1, &[]).await;
    kafka.write(&topic, 0, &["a"]);
    let mut source = kafka.source(&topic);
    until(&mut source, "received", |_, received| received == 1);
    let more = kafka.admin.create_partitions([&NewPartitions::new(&topic, 3)], &AdminOptions::new()).await;
    assert!(more.unwrap().iter().all(Result::is_ok));
    tokio::time::sleep(Duration::from_millis(500)).await; // until the broker has made them
    kafka.write(&topic, 2, &["b", "c"]);
    kafka.write(&topic, 0, &["d"]);
    let (polled, _) = until(&mut source, "received", |_, received| received == 3);
    assert_eq!(polled.state.partitions.len(), 3);
    let (polled, _) = until(&mut source, "without lag", |polled, _| polled.state.lag() == 0);
    assert_eq!((polled.state.lost_messages(), polled.state.outage), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_created_again_is_not_mixed_with_the_one_that_was_read() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("recreated", 1, &[]).await;
    kafka.write(&topic, 0, &["a", "b"]);
    let mut source = kafka.source(&topic);
    until(&mut source, "received", |_, received| received == 2);
    kafka.admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    let (polled, _) = until(&mut source, "in an outage", |polled, _| polled.state.outage.is_some());
    let reason = polled.state.outage.unwrap().reason;
    assert!(reason.contains("was it deleted"), "{reason}");
    kafka.create(&topic, 1, &[]).await;
    kafka.write(&topic, 0, &["of another topic", "d", "e"]);
    let (polled, received) = until(&mut source, "stopped", |polled, _| {
        polled.state.outage.as_ref().is_some_and(|outage| !outage.ends_by_itself)
    });
    assert_eq!(received, 0, "nothing of the new topic is taken for the old one's");
    assert!(polled.state.outage.unwrap().reason.contains("restart"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_an_open_transaction_is_seen_as_lag() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("transaction", 1, &[]).await;
    let producer = kafka.producer(&[("transactional.id", &topic)]);
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, &["in the transaction"]);
    producer.flush(PATIENCE).unwrap();
    kafka.write(&topic, 0, &["behind it"]);
    let mut source = kafka.source(&topic);
    let (polled, received) =
        until(&mut source, "told", |polled, _| polled.state.lag_to_high_watermark() == 2);
    assert_eq!((received, polled.state.lag()), (0, 0), "{:?}", polled.state);
    assert!(polled.state.caught_up, "an open transaction holds up nobody's start");
    producer.commit_transaction(PATIENCE).unwrap();
    until(&mut source, "received", |_, received| received == 2);
    // The mark of the commit is no message.
    until(&mut source, "without lag", |polled, _| polled.state.lag_to_high_watermark() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_taken_by_a_compacted_topic_and_what_is_not_taken_ends_nothing() {
    let Some(kafka) = Kafka::new() else { return };
    let topic = kafka.topic("compacted", 1, &[("cleanup.policy", "compact")]).await;
    let mut sink = kafka.sink(BTreeMap::new()).await;
    // NULL, the text 'null' and the empty text, as `sink::keys` writes them.
    let keys = ["null", "\"null\"", "\"\"", "Norfolk"];
    let mut records: Vec<_> = keys.iter().map(|key| record(&topic, Some(key), b"old".to_vec())).collect();
    records.push(record(&topic, None, b"without a key".to_vec()));
    records.push(record(&topic, Some("Norfolk"), b"new".to_vec()));
    records.push(record("no_such_topic", Some("k"), b"v".to_vec()));
    records.push(record(&topic, Some("last"), b"v".to_vec()));
    let refused = write(&mut sink, records);
    let reasons: BTreeMap<_, _> = refused.iter().map(|r| (&*r.topic, r.reason.as_str())).collect();
    assert!(reasons[topic.as_str()].contains("without a key"), "{reasons:?}");
    assert!(reasons["no_such_topic"].contains("tally topics"), "{reasons:?}");
    assert_eq!(refused.iter().map(|r| r.records).sum::<u64>(), 2);
    let rows: BTreeMap<_, _> = kafka.read(&topic).into_iter().map(|(key, value, _)| (key, value)).collect();
    let newest = |key: &str| rows[&Some(key.into())].clone().unwrap();
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert_eq!((newest("null"), newest("Norfolk")), (b"old".to_vec(), b"new".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_dead_letter_is_written_whole_or_cut_as_its_topic_takes_it() {
    let Some(kafka) = Kafka::new() else { return };
    let whole = kafka.topic("letters", 1, &[]).await;
    let small = kafka.topic("small_letters", 1, &[("max.message.bytes", "100000")]).await;
    let uses =
        BTreeMap::from([(whole.clone(), TopicUse::DeadLetters), (small.clone(), TopicUse::DeadLetters)]);
    let checked = topics::check(&kafka.config, &uses).await.unwrap();
    assert_eq!((checked.bytes_max[&whole], checked.bytes_max[&small]), (1_048_588, 100_000));
    assert!(checked.warnings.iter().any(|warning| warning.contains("retention.ms")), "{checked:?}");
    let mut sink = kafka.sink(checked.bytes_max).await;
    // Not compressible, so that what counts is its size.
    let payload: Vec<u8> = (0..1_000_000).map(|_| rand::random()).collect();
    let letter = |topic: &str| Record { may_be_cut: true, ..record(topic, None, payload.clone()) };
    let row = record(&small, Some("row"), payload.clone());
    let refused = write(&mut sink, vec![letter(&whole), letter(&small), row]);
    assert_eq!(refused.len(), 1, "a row is refused, never cut: {refused:?}");
    assert!(refused[0].reason.contains("max.message.bytes"), "{refused:?}");
    assert_eq!(kafka.read(&whole)[0].1.as_deref(), Some(payload.as_slice()));
    let (_, cut, headers) = kafka.read(&small).remove(0);
    let cut = cut.unwrap();
    assert!(cut.len() > 90_000 && payload.starts_with(&cut), "{}", cut.len());
    assert_eq!(headers["cut_from_bytes"], b"1000000");

    // A limit that was lowered afterwards is found out.
    let lower = AlterConfig::new(ResourceSpecifier::Topic(&small)).set("max.message.bytes", "5000");
    kafka.admin.alter_configs([&lower], &AdminOptions::new()).await.unwrap();
    assert_eq!(write(&mut sink, vec![letter(&small)]), []);
    assert!(kafka.read(&small).last().unwrap().1.as_ref().unwrap().len() < 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_read_are_created_to_keep_all() {
    let Some(kafka) = Kafka::new() else { return };
    let source = format!("kept_{}", unique());
    let uses = BTreeMap::from([(source.clone(), TopicUse::Source)]);
    let created = topics::create(&kafka.config, &uses).await.unwrap();
    assert_eq!(created, [(source.clone(), Outcome::Created)]);
    // At once: what is not known everywhere yet is waited for.
    let checked = topics::check(&kafka.config, &uses).await.unwrap();
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    kafka.source(&source);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_on_a_quiet_topic_is_on_the_result_topic_soon() {
    let Some(kafka) = Kafka::new() else { return };
    let (topic, result) = (kafka.topic("quiet", 4, &[]).await, kafka.topic("quiet_result", 1, &[]).await);
    let dir = tempfile::tempdir().unwrap();
    let queries = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE s (v INT) STORED AS KAFKA LOCATION '{topic}';
         CREATE MATERIALIZED VIEW n WITH (topic = '{result}') AS SELECT v, COUNT(*) AS n FROM s GROUP BY v;"
    );
    std::fs::write(dir.path().join("s.sql"), queries).unwrap();
    let config = Config { queries: Some(dir.path().to_owned()), engine_id: unique(), ..kafka.config.clone() };
    let pipeline = Pipeline::open(config).await.unwrap();
    let (mut reader, stop) = (pipeline.reader(), Shutdown::new());
    let engine = tokio::spawn(pipeline.run(stop.clone()));
    reader.wait_for(|published| published.status.ready).await.unwrap();
    let (mut output, producer) = (kafka.source(&result), kafka.producer(&[("linger.ms", "0")]));
    let took = tokio::task::spawn_blocking(move || {
        let mut took: Vec<Duration> = (0..30)
            .map(|i| {
                // Not in step with anything.
                output.poll(1000, Duration::from_millis(100 + 37 * (i % 7)));
                let begun = Instant::now();
                send(&producer, &topic, (i % 4) as i32, &[&format!("{{\"v\":{i}}}")]);
                until(&mut output, "written", |_, received| received == 1);
                begun.elapsed()
            })
            .collect();
        took.sort();
        took
    });
    let took = took.await.unwrap();
    println!("message to result topic: p50 {:?}, p90 {:?}, most {:?}", took[15], took[27], took[29]);
    // 422 ms while the ends of partitions were asked for on the polling thread; a busy machine adds to it.
    assert!(took[27] < Duration::from_millis(150), "{took:?}");
    stop.cancel();
    engine.await.unwrap().unwrap();
}
