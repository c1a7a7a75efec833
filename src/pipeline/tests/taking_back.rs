//! Sources whose messages take rows back: counted or told, and the same after a restart.

use super::*;
use crate::source::MemoryMessage;

const REVOTING: &str = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR NOT NULL, choice VARCHAR, weight BIGINT, PRIMARY KEY (id),
    FOREIGN KEY (id) REFERENCES voters (id), CHECK (weight > 0))
  STORED AS KAFKA LOCATION 'votes' OPTIONS ('on_conflict' 'replace', 'dead_letter_topic' 'rejected');";

const CHANGES: &str = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR, choice VARCHAR, weight BIGINT)
  STORED AS KAFKA LOCATION 'votes' OPTIONS ('format' 'debezium-json', 'dead_letter_topic' 'rejected');";

fn delete(world: &World, partition: i32, key: &str) {
    world.votes.push(MemoryMessage { partition, key: Some(key.into()), ..MemoryMessage::default() });
}

/// The source's counters and dead letters of an engine that knows nothing and reads all.
async fn count(world: &World, queries: &str, messages: u64) -> (u64, BTreeMap<String, u64>, u64) {
    let mut running = world.start_with(queries, 0).await;
    let published = running.received(messages).await;
    let source = published.status.sources[0].clone();
    let rejected = source.rejected as usize;
    let before = world.topics.of("rejected").len();
    running.until("the letters", |_| world.topics.of("rejected").len() >= before.max(rejected)).await;
    running.stop().await.unwrap();
    (source.counted, source.rejected_by_reason, source.keys_in_two_partitions)
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_that_are_replaced_and_deleted_count_and_the_rest_is_told() {
    let world = World::new();
    world.vote(0, "a", "1", 1);
    world.vote(0, "a", "2", 1);
    world.vote(0, "a", "3", 0);
    world.vote(0, "stranger", "1", 1);
    delete(&world, 0, "a");
    delete(&world, 0, "a");
    delete(&world, 0, r#"{"id": "b"}"#);
    world.vote(1, "a", "1", 1);
    world.votes.push_text(0, "");
    let (counted, rejected, in_two) = count(&world, REVOTING, 9).await;
    assert_eq!((counted, in_two), (4, 1));
    let reasons = [("check(weight > 0)", 1), ("foreign_key(id)", 1), ("json", 1), ("retraction", 2)];
    assert_eq!(rejected, reasons.map(|(rule, times)| (rule.to_string(), times)).into());
    let mut told = letters(&world);
    told.sort_by_key(|(_, offset)| offset.clone());
    let rules: Vec<_> = told.iter().map(|(rule, offset)| (rule.as_str(), offset.as_str())).collect();
    let expected = [
        ("check(weight > 0)", "2"),
        ("foreign_key(id)", "3"),
        ("retraction", "5"),
        ("retraction", "6"),
        ("json", "7"),
    ];
    assert_eq!(rules, expected);
    let again = count(&world, REVOTING, 9).await;
    assert_eq!(again, (counted, rejected, in_two), "a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_table_count_and_what_was_not_there_is_told() {
    let world = World::new();
    let row = r#"{"id": "a", "choice": "1", "weight": 1}"#;
    world.votes.push_text(0, &format!(r#"{{"payload": {{"op": "c", "after": {row}}}}}"#));
    world.votes.push_text(0, &format!(r#"{{"op": "d", "before": {row}, "after": null}}"#));
    world.votes.push(MemoryMessage::default());
    world.votes.push_text(0, &format!(r#"{{"op": "d", "before": {row}, "after": null}}"#));
    let (counted, rejected, _) = count(&world, CHANGES, 4).await;
    assert_eq!((counted, rejected), (3, BTreeMap::from([("retraction".to_string(), 1)])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_the_votes_counts_as_state() {
    let world = World::new();
    (0..50).for_each(|_| world.vote(0, "a", "1", 1));
    let mut running = world.start_with(REVOTING, 0).await;
    let one = running.received(50).await.status.state_bytes;
    (0..50).for_each(|i| world.vote(0, ["b", "c", "d", "e"][i % 4], "1", 1));
    let five = running.received(100).await.status.state_bytes;
    assert!(one < five && five < one + 2000, "{one} {five}");
    running.stop().await.unwrap();
}
