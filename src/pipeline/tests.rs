//! The loop over stages in memory, which fail as they are told: outages, restarts and dead letters in
//! milliseconds.

mod checkpoints;
mod lookups;
mod recovery;
mod taking_back;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use tokio::task::JoinHandle;

use super::*;
use crate::catalog::Catalog;
use crate::checkpoint::Objects;
use crate::engine::{Engine, session};
use crate::epoch::Executor;
use crate::epoch_log;
use crate::ingest::Ingest;
use crate::queries::QueryFile;
use crate::reference::{Fault, MemoryStore, Pace, ReferenceStore, Wanted};
use crate::sink::MemoryTopics;
use crate::snapshot::Published;
use crate::source::{Bounds, MemoryTopic};

const ENGINE: &str = "test";

const QUERIES: &str = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR NOT NULL, choice VARCHAR, weight BIGINT, PRIMARY KEY (id),
    FOREIGN KEY (id) REFERENCES voters (id), CHECK (10 / weight > 0))
  STORED AS KAFKA LOCATION 'votes' OPTIONS ('dead_letter_topic' 'rejected');
CREATE MATERIALIZED VIEW by_choice WITH (topic = 'by_choice', key = 'choice') AS
  SELECT choice, SUM(weight) AS n FROM votes GROUP BY choice;
CREATE MATERIALIZED VIEW shares WITH (topic = 'shares', key = 'choice') AS
  SELECT choice, 10 / (COUNT(*) - 2) AS share FROM votes GROUP BY choice;
CREATE MATERIALIZED VIEW casts WITH (topic = 'casts', key = 'number') AS
  SELECT CAST(choice AS BIGINT) AS number, COUNT(*) AS n FROM votes GROUP BY 1;";

/// Everything that is not the engine.
#[derive(Clone)]
struct World {
    votes: MemoryTopic,
    store: MemoryStore,
    topics: MemoryTopics,
    /// Where checkpoints go, one after each epoch, if they are taken.
    checkpoints: Option<Objects>,
}

struct Running {
    reader: Reader,
    stop: Shutdown,
    task: JoinHandle<Result<()>>,
}

fn voters(ids: &[&str]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("id", DataType::Utf8, true)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(StringArray::from(ids.to_vec()))]).unwrap()
}

fn pace() -> Pace {
    let millis = Duration::from_millis;
    Pace {
        refresh: Duration::from_secs(60),
        debounce: millis(1),
        retry_first: millis(1),
        retry_max: millis(5),
    }
}

impl World {
    fn new() -> World {
        let store = MemoryStore::new();
        store.set("voters", voters(&["a", "b", "c", "d", "e"]));
        World {
            votes: MemoryTopic::new("votes", 2),
            store,
            topics: MemoryTopics::default(),
            checkpoints: None,
        }
    }

    /// The same with a checkpoint after each epoch.
    fn with_checkpoints() -> World {
        let objects = Objects::of_store(Arc::new(object_store::memory::InMemory::new()));
        World { checkpoints: Some(objects), ..World::new() }
    }

    fn vote(&self, partition: i32, id: &str, choice: &str, weight: i64) {
        let vote = serde_json::json!({ "id": id, "choice": choice, "weight": weight });
        self.votes.push_text(partition, &vote.to_string());
    }

    /// Starts an engine that knows nothing yet.
    async fn start(&self, state_bytes_max: usize) -> Running {
        self.start_with(QUERIES, state_bytes_max).await
    }

    async fn start_with(&self, queries: &str, state_bytes_max: usize) -> Running {
        self.open(queries, state_bytes_max, false).await.unwrap().run_now()
    }

    /// An engine that goes on with what was counted; `rebuild`: that counts anew.
    async fn open(&self, queries: &str, state_bytes_max: usize, rebuild: bool) -> Result<Pipeline> {
        let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text: queries.into() }];
        let planning = session::continuous().state();
        let catalog = Catalog::parse(&files, &planning).await.unwrap();
        let store: Arc<dyn ReferenceStore> = Arc::new(self.store.clone());
        let defs = store.tables().await.unwrap();
        let schemas: Vec<_> = defs.iter().map(|def| (def.name.clone(), def.schema.clone())).collect();
        let engine = Engine::plan(&catalog, &schemas).await.unwrap();
        let wanted = Wanted::of(
            engine.reference_columns(),
            &defs,
            &[catalog.foreign_keys(), engine.lookup_keys()].concat(),
        );
        let definitions = Definitions::of(&catalog, &wanted);
        let mut sink = self.topics.sink();
        let newest = self.topics.of(&epoch_log::topic(ENGINE)).pop().and_then(|record| record.value);
        let chain = take_over(&mut sink, ENGINE, newest.as_deref())?;
        let log = Log::open(ENGINE, chain, &self.topics, definitions, rebuild)?;
        let readings = &log.summary().readings;
        let (reference_reader, references) =
            ReferenceReader::start(Arc::clone(&store), wanted, pace(), readings).await?;
        let def = Arc::new(catalog.sources["votes"].clone());
        let ingest = Ingest::new(def, Some(engine.source_columns("votes")), &planning).unwrap();
        let at = log.positions("votes");
        let stages = Stages {
            sources: vec![Box::new(self.votes.source_at(Bounds::Endless, &at))],
            histories: vec![Box::new(self.votes.history(&at))],
            store,
            reference_reader,
            executor: Executor::new(engine, vec![ingest], log.first_references(&references)?),
            references,
            log,
            topics: Arc::new(self.topics.clone()),
            sink: Box::new(sink),
            checkpoints: self.checkpoints.clone().map(|objects| Checkpoints::new(objects, Duration::ZERO)),
        };
        let limits = Limits { batch_rows: 100, trigger: Duration::from_millis(1), state_bytes_max };
        let counted = CountedMessages::new(stages.log.summary().counted.clone());
        Pipeline::new(stages, limits, counted, AdHocTables::default())
    }
}

impl Pipeline {
    fn run_now(self) -> Running {
        let (reader, stop) = (self.reader(), Shutdown::new());
        let task = tokio::spawn(self.run(stop.clone()));
        Running { reader, stop, task }
    }
}

impl Running {
    /// Waits until what is published is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Published) -> bool) -> Arc<Published> {
        let published = self.reader.wait_for(|published| wanted(published));
        let found = tokio::time::timeout(Duration::from_secs(20), published).await;
        let found = found.unwrap_or_else(|_| panic!("waited for: {what}"));
        match found {
            Ok(published) => Arc::clone(&published),
            Err(_) => panic!("waited for {what}, and the run has ended: {:?}", (&mut self.task).await),
        }
    }

    async fn received(&mut self, messages: u64) -> Arc<Published> {
        let all = |published: &Published| {
            published.status.ready && published.status.sources.first().is_some_and(|s| s.received >= messages)
        };
        let published = self.until("all messages", all).await;
        let source = &published.status.sources[0];
        assert_eq!(source.received, source.counted + source.rejected);
        published
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The newest value of each key of a topic.
fn topic(world: &World, name: &str) -> Vec<(String, String)> {
    let newest = world.topics.newest(name);
    newest.into_iter().map(|(key, value)| (text(&key), text(&value))).collect()
}

/// Rule and offset of each dead letter.
fn letters(world: &World) -> Vec<(String, String)> {
    let header = |record: &crate::sink::Record, name: &str| {
        let header = record.headers.iter().find(|header| header.name == name).unwrap();
        text(header.value.as_ref().unwrap())
    };
    let records = world.topics.of("rejected");
    records.iter().map(|record| (header(record, "rule"), header(record, "offset"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_counted_or_told_with_its_reason() {
    let world = World::new();
    let mut running = world.start(0).await;
    world.vote(0, "a", "1", 5);
    world.vote(0, "b", "x", 5);
    world.vote(0, "stranger", "1", 5);
    world.vote(0, "a", "2", 5);
    world.votes.push_text(0, "no JSON");
    world.vote(0, "c", "1", 0);
    let published = running.received(6).await;
    let source = &published.status.sources[0];
    assert_eq!((source.counted, source.rejected), (2, 4));
    assert_eq!(source.errors_by_view, BTreeMap::from([("casts".to_string(), 1)]));
    running.until("the letters", |_| world.topics.of("rejected").len() == 5).await;
    let letters = letters(&world);
    let rule =
        |offset: &str| letters.iter().find(|letter| letter.1 == offset).map(|letter| letter.0.as_str());
    assert_eq!(rule("1"), Some("error(casts)"));
    assert_eq!(rule("2"), Some("foreign_key(id)"));
    assert_eq!(rule("3"), Some("primary_key(id)"));
    assert_eq!(rule("4"), Some("json"));
    assert_eq!(rule("5"), Some("check(10 / weight > 0)"));
    assert_eq!(topic(&world, "casts"), [("1".to_string(), r#"{"number":1,"n":1}"#.to_string())]);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_away_the_loop_waits_says_so_and_goes_on() {
    let world = World::new();
    let mut running = world.start(0).await;
    world.vote(0, "a", "1", 1);
    running.received(1).await;
    world.votes.disconnect("the broker gives no answer");
    let published = running.until("a pause", |p| !p.status.paused.is_empty()).await;
    let pause = &published.status.paused[0];
    assert_eq!((pause.what.as_str(), pause.ends_by_itself), ("reading topic votes", true));
    assert_eq!(pause.reason, "the broker gives no answer");
    world.votes.connect();
    running.until("the end of the pause", |p| p.status.paused.is_empty()).await;

    world.topics.disconnect("no broker takes records");
    world.vote(0, "b", "1", 1);
    let published = running.until("a pause", |p| !p.status.paused.is_empty()).await;
    assert_eq!(published.status.paused[0].what, "writing to Kafka");
    assert_eq!(published.views["by_choice"].batch().unwrap().num_rows(), 1);
    world.topics.connect();
    running.received(2).await;
    running.until("the end of the pause", |p| p.status.paused.is_empty()).await;
    assert_eq!(topic(&world, "by_choice"), [("1".to_string(), r#"{"choice":"1","n":2}"#.to_string())]);
    assert!(!running.task.is_finished());
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_heard_while_nothing_can_be_written() {
    let world = World::new();
    let mut running = world.start(0).await;
    running.until("readiness", |p| p.status.ready).await;
    world.topics.disconnect("no broker takes records");
    world.vote(0, "a", "1", 1);
    running.until("a pause", |p| !p.status.paused.is_empty()).await;
    tokio::time::timeout(Duration::from_secs(5), running.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_of_a_new_voter_waits_for_postgres_and_is_counted() {
    let world = World::new();
    let mut running = world.start(0).await;
    running.until("readiness", |p| p.status.ready).await;
    world.store.set_silently("voters", voters(&["a", "b", "c", "d", "e", "new"]));
    world.store.set_fault(Fault::Hangs);
    world.vote(0, "new", "1", 1);
    let published = running.until("a pause", |p| !p.status.paused.is_empty()).await;
    assert_eq!(published.status.paused[0].what, "looking up rows in Postgres");
    assert_eq!(published.status.sources[0].received, 0);
    world.store.set_fault(Fault::None);
    let published = running.received(1).await;
    assert_eq!((published.status.sources[0].counted, published.status.sources[0].rejected), (1, 0));
    running.until("the end of the pause", |p| p.status.paused.is_empty()).await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_fails_is_told_with_its_place_and_comes_back() {
    let world = World::new();
    let mut running = world.start(0).await;
    world.vote(0, "a", "1", 1);
    running.received(1).await;
    world.vote(0, "b", "1", 1);
    let published = running.until("a failure", |p| !p.status.failed_views.is_empty()).await;
    let failed = &published.status.failed_views[0];
    assert_eq!((failed.view.as_str(), failed.file.as_str(), failed.line), ("shares", "queries/test.sql", 7));
    assert!(failed.reason.contains("Divide by zero") && failed.epoch > 0, "{failed:?}");
    assert_eq!(topic(&world, "shares"), [("1".to_string(), r#"{"choice":"1","share":-10}"#.to_string())]);
    world.vote(0, "c", "1", 1);
    let published = running.received(3).await;
    assert!(published.status.failed_views.is_empty());
    assert_eq!(topic(&world, "shares"), [("1".to_string(), r#"{"choice":"1","share":10}"#.to_string())]);
    assert_eq!(topic(&world, "by_choice")[0].1, r#"{"choice":"1","n":3}"#);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_topic_never_takes_is_told_and_ends_nothing() {
    let world = World::new();
    world.topics.refuse("by_choice", "there is no such topic");
    let mut running = world.start(0).await;
    world.vote(0, "a", "1", 1);
    let published = running.until("a refusal", |p| !p.status.refused_records.is_empty()).await;
    let refused = &published.status.refused_records[0];
    assert_eq!((refused.topic.as_str(), refused.reason.as_str()), ("by_choice", "there is no such topic"));
    world.vote(1, "b", "1", 1);
    running.received(2).await;
    assert_eq!(topic(&world, "casts")[0].1, r#"{"number":1,"n":2}"#);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_state_ends_the_run_and_names_the_views() {
    let world = World::new();
    let running = world.start(1).await;
    world.vote(0, "a", "1", 1);
    let ended = tokio::time::timeout(Duration::from_secs(20), running.task).await.unwrap().unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("state_bytes_max is 1") && error.contains("by_choice"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_is_an_epoch_of_its_own() {
    let world = World::new();
    let mut running = world.start(0).await;
    let before = running.until("readiness", |p| p.status.ready).await.epoch;
    world.store.set("voters", voters(&["a", "b", "new"]));
    running.until("the epoch", |p| p.epoch > before).await;
    world.vote(0, "new", "1", 1);
    let published = running.received(1).await;
    assert_eq!(published.status.sources[0].counted, 1);
    assert_eq!(world.store.lookups(), 0);
    running.stop().await.unwrap();
}
