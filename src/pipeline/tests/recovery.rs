//! Crashes at each step, and starts after them: the state is bit for bit what it was, and nothing is written twice.

use super::*;
use crate::sink::{Record, Step};

fn log(world: &World) -> Vec<serde_json::Value> {
    let entries = world.topics.of(&epoch_log::topic(ENGINE)).into_iter();
    let entries = entries.filter(|record| record.key.as_deref() == Some(crate::sink::ENTRY_KEY));
    entries.map(|record| serde_json::from_slice(&record.value.unwrap()).unwrap()).collect()
}

/// Everything that was written but the log.
fn written(world: &World) -> Vec<Record> {
    let log = epoch_log::topic(ENGINE);
    world.topics.records().into_iter().filter(|record| *record.topic != *log).collect()
}

/// Messages of a round.
const ROUND: u64 = 7;

/// Votes that are counted, and votes that are rejected for every reason. Each voter's are in one partition, so that
/// it does not depend on the reading which is the first.
fn cast(world: &World) {
    let votes =
        [("a", "1", 4), ("b", "2", 0), ("stranger", "1", 1), ("c", "x", 3), ("a", "3", 2), ("d", "2", 1)];
    for (id, choice, weight) in votes {
        world.vote(i32::from(!["a", "c"].contains(&id)), id, choice, weight);
    }
    world.votes.push_text(0, "no JSON");
}

impl World {
    /// Runs until all messages are counted and all letters and rows are there.
    async fn count_all(&self, messages: u64) {
        let mut running = self.start(0).await;
        running.received(messages).await;
        running.stop().await.unwrap();
    }

    async fn refusal(&self, queries: &str) -> String {
        match self.open(queries, 0, false).await {
            Err(error) => error.to_string(),
            Ok(pipeline) => pipeline.run(Shutdown::new()).await.unwrap_err().to_string(),
        }
    }
}

/// Each message that is not counted has one letter, and the topics have the rows of a count without a crash.
fn check(world: &World, expected: &World, what: &str) {
    let mut told = letters(world);
    told.sort();
    let mut once = letters(expected);
    once.sort();
    assert_eq!(told, once, "{what}: letters");
    for name in ["by_choice", "shares", "casts"] {
        assert_eq!(topic(world, name), topic(expected, name), "{what}: {name}");
    }
    let epochs: Vec<u64> = log(world).iter().map(|entry| entry["epoch"].as_u64().unwrap()).collect();
    let numbered: Vec<u64> = epochs.iter().copied().filter(|epoch| *epoch > 0).collect();
    assert!(numbered.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{what}: {epochs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_writes_nothing_and_goes_on() {
    let world = World::new();
    (0..3).for_each(|_| cast(&world));
    world.vote(1, "a", "1", 1);
    let mut first = world.start(0).await;
    let before = first.received(3 * ROUND + 1).await;
    first.stop().await.unwrap();
    let (rows, entries) = (written(&world), log(&world).len());
    let mut second = world.start(0).await;
    let after = second.received(3 * ROUND + 1).await;
    assert_eq!(written(&world), rows);
    assert_eq!(log(&world).len(), entries + 1, "only that it was started");
    let (a, b) = (&before.status.sources[0], &after.status.sources[0]);
    assert_eq!((a.counted, &a.rejected_by_reason), (b.counted, &b.rejected_by_reason));
    assert_eq!((a.keys_in_two_partitions, b.keys_in_two_partitions), (1, 1));
    for (name, view) in &before.views {
        assert_eq!(view.batch().unwrap(), after.views[name].batch().unwrap(), "{name}");
    }
    world.vote(0, "e", "1", 2);
    second.received(3 * ROUND + 2).await;
    assert_eq!(world.topics.offset("votes", 0), Some(13));
    assert_eq!(topic(&world, "by_choice")[0].1, r#"{"choice":"1","n":6}"#);
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_transaction_loses_and_doubles_nothing() {
    let expected = World::new();
    (0..4).for_each(|_| cast(&expected));
    expected.count_all(4 * ROUND).await;
    for (step, world) in [Step::BeforeCommit, Step::AfterCommit]
        .into_iter()
        .flat_map(|step| [(step, World::new as fn() -> World), (step, World::with_checkpoints)])
    {
        for transaction in 0..7 {
            let world = world();
            let what = format!("{step:?} {transaction}, checkpoints: {}", world.checkpoints.is_some());
            cast(&world);
            world.topics.crash(transaction + 1, step);
            let running = world.start(0).await;
            // Some come while it runs, so that there are several micro-batches.
            for _ in 1..4 {
                tokio::time::sleep(Duration::from_millis(8)).await;
                cast(&world);
            }
            let deadline = tokio::time::Instant::now() + Duration::from_millis(300);
            while !world.topics.has_crashed() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            running.task.abort();
            world.topics.connect();
            world.count_all(4 * ROUND).await;
            check(&world, &expected, &what);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_transactions_are_written_again_whole() {
    let (expected, world) = (World::new(), World::new());
    cast(&expected);
    expected.count_all(ROUND).await;
    world.topics.abort(5);
    cast(&world);
    world.count_all(ROUND).await;
    check(&world, &expected, "aborts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_engine_of_the_same_id_ends_the_first() {
    let world = World::new();
    let mut first = world.start(0).await;
    cast(&world);
    first.received(ROUND).await;
    let rows = written(&world);
    let mut second = world.start(0).await;
    second.until("readiness", |published| published.status.ready).await;
    world.vote(0, "e", "1", 1);
    let ended = tokio::time::timeout(Duration::from_secs(20), first.task).await.unwrap().unwrap();
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("engine_id test has taken over"), "{error}");
    assert_eq!(error.exit_code(), 3);
    second.received(ROUND + 1).await;
    assert_eq!(written(&world).len(), rows.len() + 2);
    assert_eq!(topic(&world, "by_choice")[0].1, r#"{"choice":"1","n":5}"#);
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_judged_and_joined_by_the_tables_as_they_were() {
    rows_are_joined_as_they_were(World::new()).await;
    rows_are_joined_as_they_were(World::with_checkpoints()).await;
}

async fn rows_are_joined_as_they_were(world: World) {
    let queries = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR NOT NULL, choice VARCHAR, weight BIGINT,
    FOREIGN KEY (id) REFERENCES voters (id))
  STORED AS KAFKA LOCATION 'votes' OPTIONS ('dead_letter_topic' 'rejected');
CREATE MATERIALIZED VIEW by_town WITH (topic = 'by_town', key = 'town') AS
  SELECT v.town, COUNT(*) AS n FROM votes b JOIN voters v ON v.id = b.id GROUP BY v.town;";
    let towns = |rows: &[(&str, &str)]| {
        let (ids, towns): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        let column = |values: Vec<&str>| Arc::new(StringArray::from(values)) as arrow::array::ArrayRef;
        RecordBatch::try_from_iter([("id", column(ids)), ("town", column(towns))]).unwrap()
    };
    world.store.set("voters", towns(&[("a", "Diss"), ("b", "Diss")]));
    let mut first = world.start_with(queries, 0).await;
    ["a", "stranger"].iter().for_each(|id| world.vote(0, id, "1", 1));
    first.received(2).await;
    // Looked up while the vote waits, and never read as a whole.
    world.store.set_silently("voters", towns(&[("a", "Diss"), ("b", "Diss"), ("new", "Cromer")]));
    world.vote(1, "new", "1", 1);
    let before = first.received(3).await;
    first.stop().await.unwrap();
    let rows = written(&world);
    // Whoever counts anew now would count the stranger, and nobody in Diss.
    world.store.set("voters", towns(&[("a", "Ely"), ("stranger", "Ely"), ("new", "Ely")]));
    let mut second = world.start_with(queries, 0).await;
    let after = second.received(3).await;
    let of = |published: &Published| published.views["by_town"].batch().unwrap();
    assert_eq!(of(&before), of(&after));
    assert_eq!((written(&world), after.status.sources[0].rejected), (rows, 1));
    world.vote(0, "a", "1", 1);
    second.received(4).await;
    let expected = [("Cromer", 1), ("Diss", 1), ("Ely", 1)];
    let expected: Vec<_> = expected.map(|(t, n)| (t.into(), format!(r#"{{"town":"{t}","n":{n}}}"#))).into();
    assert_eq!(topic(&world, "by_town"), expected);
    second.stop().await.unwrap();
    // And once more, over all of that.
    let mut third = world.start_with(queries, 0).await;
    third.received(4).await;
    assert_eq!(topic(&world, "by_town"), expected);
    third.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_queries_take_back_what_they_no_longer_say_and_say_what_is_new() {
    let world = World::new();
    cast(&world);
    world.count_all(ROUND).await;
    let untouched = world.topics.of("casts");
    let changed = QUERIES.replace("GROUP BY choice;\nCREATE MATERIALIZED VIEW shares", "GROUP BY choice HAVING SUM(weight) > 3;\nCREATE MATERIALIZED VIEW shares")
        + "CREATE MATERIALIZED VIEW heavy WITH (topic = 'heavy') AS SELECT id, weight FROM votes WHERE weight >= 0;
           CREATE MATERIALIZED VIEW per_id WITH (topic = 'per_id', key = 'id') AS SELECT id, COUNT(*) AS n FROM votes GROUP BY id;";
    assert_ne!(changed.find("HAVING"), None);
    let before = topic(&world, "by_choice");
    for _ in 0..2 {
        let mut running = world.start_with(&changed, 0).await;
        running.received(ROUND).await;
        running.stop().await.unwrap();
        let rows = topic(&world, "by_choice");
        assert!(rows.len() < before.len() && rows.iter().all(|row| before.contains(row)), "{rows:?}");
        assert_eq!(world.topics.of("casts"), untouched);
        assert_eq!(world.topics.of("heavy").len(), 3, "once");
        assert_eq!(topic(&world, "per_id").len(), 3);
    }
    let tombstones = world.topics.of("by_choice").into_iter().filter(|record| record.value.is_none()).count();
    assert_eq!(tombstones, before.len() - topic(&world, "by_choice").len(), "each once");
    // Back again.
    world.count_all(ROUND).await;
    assert_eq!(topic(&world, "by_choice"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_gone_on_with_is_refused_and_a_rebuild_counts_anew() {
    let world = World::new();
    cast(&world);
    world.count_all(ROUND).await;
    let stricter = QUERIES.replace("CHECK (10 / weight > 0)", "CHECK (weight > 1)");
    assert_ne!(stricter, QUERIES);
    let refused = world.refusal(&stricter).await;
    assert!(
        refused.contains("source votes is declared otherwise") && refused.contains("--rebuild"),
        "{refused}"
    );
    let rows = written(&world).len();

    // A rebuild over the same writes nothing.
    let mut running = world.open(QUERIES, 0, true).await.unwrap().run_now();
    running.received(ROUND).await;
    running.stop().await.unwrap();
    assert_eq!(written(&world).len(), rows);
    // Of other rules it writes what differs.
    let mut running = world.open(&stricter, 0, true).await.unwrap().run_now();
    let published = running.received(ROUND).await;
    running.stop().await.unwrap();
    let expected = World::new();
    cast(&expected);
    let mut running = expected.start_with(&stricter, 0).await;
    let fresh = running.received(ROUND).await;
    running.stop().await.unwrap();
    assert_eq!(published.status.sources[0].rejected_by_reason, fresh.status.sources[0].rejected_by_reason);
    assert_eq!(topic(&world, "by_choice"), topic(&expected, "by_choice"));

    world.votes.recreate();
    world.vote(0, "e", "9", 2);
    let refused = world.refusal(&stricter).await;
    assert!(refused.contains("created again") && refused.contains("--rebuild"), "{refused}");
    let mut running = world.open(&stricter, 0, true).await.unwrap().run_now();
    running.received(1).await;
    running.stop().await.unwrap();
    assert_eq!(topic(&world, "by_choice"), [("9".to_string(), r#"{"choice":"9","n":2}"#.to_string())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_agree_is_refused() {
    let world = World::new();
    cast(&world);
    world.count_all(ROUND).await;
    let name = epoch_log::topic(ENGINE);
    let whole = world.topics.records();
    let change = |from: &str, to: &str| {
        world.topics.tamper(|records| {
            *records = whole.clone();
            let entries = records.iter_mut().filter(|record| *record.topic == *name);
            for value in entries.filter_map(|record| record.value.as_mut()) {
                if let Ok(text) = std::str::from_utf8(value) {
                    *value = text.replace(from, to).into_bytes();
                }
            }
        });
    };
    change("\"kind\":\"batch\"", "\"kind\":\"batch\" ");
    let refused = world.refusal(QUERIES).await;
    assert!(refused.contains("the log was changed") && refused.contains("--rebuild"), "{refused}");
    change("{\"v\":1", "{\"v\":7");
    let refused = world.refusal(QUERIES).await;
    assert!(refused.contains("newer version of tally"), "{refused}");
    world.topics.tamper(|records| *records = whole.clone());
    // What was counted has other values now.
    world.votes.tamper(0, 0, r#"{"id": "a", "choice": "1", "weight": 3}"#);
    let refused = world.refusal(QUERIES).await;
    assert!(refused.contains("view ") && refused.contains("--rebuild"), "{refused}");
}
