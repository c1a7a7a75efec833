//! What only real transactions show: two engines of one id, a transaction that times out, a restart, an audit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer};
use tally::catalog::Catalog;
use tally::config::Config;
use tally::engine::session;
use tally::pipeline::Pipeline;
use tally::pipeline::audit::Checked;
use tally::queries;
use tally::rejects::{self, Listing};
use tally::shutdown::Shutdown;
use tally::sink::{ENTRY_KEY, KafkaSink, LOG_PARTITION, Record, Sink, Transaction};
use tally::snapshot::Status;

use crate::kafka::{Kafka, PATIENCE, record, unique, write};

/// Records, of which the last is the log's.
fn transaction(topic: &str, log: &str, value: &str) -> Vec<Record> {
    let entry = record(log, None, value.into());
    let entry = Record { partition: Some(LOG_PARTITION), key: Some(ENTRY_KEY.into()), ..entry };
    vec![record(topic, Some("k"), value.into()), entry]
}

fn values(kafka: &Kafka, topic: &str) -> Vec<String> {
    let text = |value: Option<Vec<u8>>| String::from_utf8(value.unwrap_or_default()).unwrap();
    kafka.read(topic).into_iter().map(|(_, value, _)| text(value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sink_takes_over_and_nothing_more_is_seen_of_the_first() {
    let Some(kafka) = Kafka::new() else { return };
    let (topic, log) = (kafka.topic("rows", 1, &[]).await, kafka.topic("log", 1, &[]).await);
    let config = Config { engine_id: unique(), ..kafka.config.clone() };
    let open = || KafkaSink::open(&config, &log, BTreeMap::new()).unwrap();
    let (mut first, newest) = open();
    assert_eq!(newest, None);
    write(&mut first, transaction(&topic, &log, "1"));
    // It has begun, and can't know yet.
    first.begin(Transaction { records: transaction(&topic, &log, "of the first"), offsets: Vec::new() });
    first.poll(Duration::ZERO);
    let (mut second, newest) = open();
    assert_eq!(newest.as_deref(), Some(&b"1"[..]));
    write(&mut second, transaction(&topic, &log, "2"));
    let deadline = Instant::now() + PATIENCE;
    while !first.poll(Duration::from_millis(100)).fenced {
        assert!(Instant::now() < deadline, "the first must see that it is fenced");
    }
    assert!(!first.poll(Duration::from_millis(100)).committed);
    write(&mut second, transaction(&topic, &log, "3"));
    assert_eq!(values(&kafka, &topic), ["1", "2", "3"]);
    assert_eq!(values(&kafka, &log), ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_times_out_is_written_again_whole_and_once() {
    let Some(kafka) = Kafka::new() else { return };
    let (topic, log) = (kafka.topic("rows", 1, &[]).await, kafka.topic("log", 1, &[]).await);
    let mut config = Config { engine_id: unique(), ..kafka.config.clone() };
    config.kafka.insert("transaction.timeout.ms".into(), "1000".into());
    let (mut sink, _) = KafkaSink::open(&config, &log, BTreeMap::new()).unwrap();
    write(&mut sink, transaction(&topic, &log, "1"));
    sink.begin(Transaction { records: transaction(&topic, &log, "2"), offsets: Vec::new() });
    // Sent, and not committed: as of an engine that the machine has stopped for a while.
    for _ in 0..3 {
        assert!(!sink.poll(Duration::ZERO).committed);
    }
    tokio::time::sleep(Duration::from_secs(13)).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let progress = sink.poll(Duration::from_millis(100));
        assert!(!progress.fenced, "there is no other engine");
        if progress.committed {
            break;
        }
        assert!(Instant::now() < deadline, "{progress:?}");
    }
    write(&mut sink, transaction(&topic, &log, "3"));
    assert_eq!(values(&kafka, &topic), ["1", "2", "3"]);
}

/// An engine that counts votes by choice.
struct Engine {
    kafka: Kafka,
    config: Config,
    votes: String,
    choices: String,
    rejected: String,
    _dir: tempfile::TempDir,
}

impl Engine {
    async fn new() -> Option<Engine> {
        let kafka = Kafka::new()?;
        let votes = kafka.topic("votes", 3, &[]).await;
        let choices = kafka.topic("choices", 2, &[("cleanup.policy", "compact")]).await;
        let rejected = kafka.topic("rejected", 1, &[]).await;
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR, choice VARCHAR NOT NULL, PRIMARY KEY (id))
               STORED AS KAFKA LOCATION '{votes}' OPTIONS ('dead_letter_topic' '{rejected}');
             CREATE MATERIALIZED VIEW choices WITH (topic = '{choices}', key = 'choice') AS
               SELECT choice, COUNT(*) AS n FROM votes GROUP BY choice;"
        );
        std::fs::write(dir.path().join("votes.sql"), text).unwrap();
        let config = Config {
            queries: Some(dir.path().to_owned()),
            engine_id: unique(),
            data_dir: dir.path().join("data").display().to_string(),
            checkpoint_interval_s: 1,
            ..kafka.config.clone()
        };
        Some(Engine { kafka, config, votes, choices, rejected, _dir: dir })
    }

    fn vote(&self, id: &str, choice: &str) {
        let producer = self.kafka.producer(&[]);
        let vote = format!(r#"{{"id": "{id}", "choice": "{choice}"}}"#);
        producer.send(BaseRecord::to(&self.votes).key(id).payload(&vote)).map_err(|(e, _)| e).unwrap();
        producer.flush(PATIENCE).unwrap();
    }

    /// Runs until so many messages are counted or rejected.
    async fn run(&self, messages: u64) -> Status {
        let pipeline = Pipeline::open(self.config.clone()).await.unwrap();
        let (mut reader, stop) = (pipeline.reader(), Shutdown::new());
        let engine = tokio::spawn(pipeline.run(stop.clone()));
        let done = reader.wait_for(|p| p.status.ready && p.status.sources[0].received >= messages);
        let status = tokio::time::timeout(PATIENCE, done).await.unwrap().unwrap().status.as_ref().clone();
        stop.cancel();
        engine.await.unwrap().unwrap();
        status
    }

    async fn audit(&self) -> Vec<Checked> {
        let (_, files) = queries::load(self.config.queries.as_deref()).unwrap();
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        let pipeline = Pipeline::open_to_audit(self.config.clone()).await.unwrap();
        pipeline.audit(&catalog).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_nothing_and_an_audit_finds_what_was_changed() {
    let Some(engine) = Engine::new().await else { return };
    (0..30).for_each(|i| engine.vote(&format!("voter {i}"), ["a", "b", "c"][i % 3]));
    engine.vote("voter 7", "a");
    let status = engine.run(31).await;
    assert_eq!((status.sources[0].counted, status.sources[0].rejected), (30, 1));
    let written = engine.kafka.read(&engine.choices).len();
    let status = engine.run(31).await;
    assert_eq!((status.sources[0].counted, status.sources[0].rejected), (30, 1));
    assert_eq!(engine.kafka.read(&engine.choices).len(), written);
    engine.vote("voter 30", "a");
    engine.run(32).await;
    assert_eq!(engine.kafka.read(&engine.choices).len(), written + 1);
    let letters = engine.kafka.read(&engine.rejected);
    assert_eq!(letters.len(), 1, "once, whatever was restarted");
    assert_eq!(letters[0].2["rule"], b"primary_key(id)");

    let checked = engine.audit().await;
    assert!(checked.iter().all(|checked| checked.differences == 0), "{checked:?}");
    let by_datafusion = checked.iter().any(|checked| checked.what.contains("plain DataFusion"));
    assert!(checked.len() >= 4 && by_datafusion, "{checked:?}");

    // Somebody else writes to the topics.
    let producer = engine.kafka.producer(&[]);
    let forged = BaseRecord::to(&engine.choices).key("b").payload(r#"{"choice":"b","n":99}"#);
    producer.send(forged).map_err(|(e, _)| e).unwrap();
    producer.send(BaseRecord::<str, str>::to(&engine.rejected).payload("x")).map_err(|(e, _)| e).unwrap();
    producer.flush(PATIENCE).unwrap();
    let checked = engine.audit().await;
    let differing: Vec<_> = checked.iter().filter(|checked| checked.differences > 0).collect();
    assert_eq!(differing.len(), 2, "{checked:?}");
    let view = differing.iter().find(|checked| checked.what.contains("view choices")).unwrap();
    assert_eq!((view.differences, view.first.as_deref()), (1, Some("key b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_sent_back_corrected() {
    let Some(engine) = Engine::new().await else { return };
    engine.vote("voter 1", "a");
    engine.vote("voter 1", "b");
    engine.kafka.write(&engine.votes, 2, &[r#"{"id": "voter 2"}"#]);
    engine.run(3).await;
    let list = async |listing: Listing| {
        let mut out = Vec::new();
        let told = rejects::list(&engine.config, &listing, &mut out, &Shutdown::new()).await.unwrap();
        (told, String::from_utf8(out).unwrap())
    };
    let (told, text) = list(Listing::default()).await;
    assert_eq!(told, 2);
    assert!(
        text.contains("primary_key(id): an earlier message") && text.contains(r#"{"id": "voter 2"}"#),
        "{text}"
    );
    let (told, line) =
        list(Listing { reason: Some("not_null".into()), json: true, ..Listing::default() }).await;
    assert_eq!(told, 1);
    let mut letter: rejects::Letter = serde_json::from_str(&line).unwrap();
    assert_eq!((letter.rule.as_str(), letter.partition.as_str()), ("not_null(choice)", "2"));
    letter.payload = Some(r#"{"id": "voter 2", "choice": "a"}"#.into());
    let corrected = serde_json::to_string(&letter).unwrap();
    assert_eq!(rejects::replay(&engine.config, corrected.as_bytes()).unwrap(), 1);
    let status = engine.run(4).await;
    assert_eq!((status.sources[0].counted, status.sources[0].rejected), (2, 2));
    letter.cut_from_bytes = Some("9000000".into());
    let cut = serde_json::to_string(&letter).unwrap();
    let refused = rejects::replay(&engine.config, cut.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("line 1: its payload is cut"), "{refused}");
}
