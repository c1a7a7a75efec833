//! Starts from checkpoints: as if the whole log had been executed, and in time that does not grow with it.

use std::path::Path;

use super::*;
use crate::sink::Record;

/// Votes of two rounds: some are rejected, and one view fails in between.
const VOTES: [(i32, &str, &str, i64); 6] = [
    (0, "a", "1", 4),
    (1, "b", "2", 2),
    (1, "stranger", "1", 1),
    (0, "c", "x", 3),
    (0, "a", "3", 2),
    (1, "d", "2", 1),
];

fn cast(world: &World) {
    VOTES.iter().for_each(|(partition, id, choice, weight)| world.vote(*partition, id, choice, *weight));
}

fn in_directory(directory: &Path) -> World {
    let objects = Objects::open(directory.to_str().unwrap(), ENGINE).unwrap();
    World { checkpoints: Some(objects), ..World::new() }
}

fn written(world: &World) -> Vec<Record> {
    let log = epoch_log::topic(ENGINE);
    world.topics.records().into_iter().filter(|record| *record.topic != *log).collect()
}

/// What was counted can't be counted once more: a start that executes it is refused.
fn forget_the_past(world: &World) {
    world.votes.tamper(0, 0, r#"{"id": "a", "choice": "1", "weight": 3}"#);
}

/// Everything that readers see and that does not depend on time.
fn seen(published: &Published) -> impl PartialEq + std::fmt::Debug {
    let source = &published.status.sources[0];
    let views = published.views.iter().map(|(name, view)| (name.clone(), view.batch().unwrap()));
    let failed: Vec<_> = published.status.failed_views.iter().map(|failed| failed.reason.clone()).collect();
    (
        views.collect::<BTreeMap<_, _>>(),
        (source.received, source.counted, source.rejected_by_reason.clone(), source.errors_by_view.clone()),
        (source.keys_in_two_partitions, source.reject_samples.clone(), failed),
    )
}

impl World {
    /// Counts what was cast, and stops; what readers saw last.
    async fn count(&self, messages: u64) -> Arc<Published> {
        let mut running = self.start(0).await;
        let published = running.received(messages).await;
        running.stop().await.unwrap();
        published
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_from_the_newest_checkpoint_and_executes_only_what_is_after_it() {
    let directory = tempfile::TempDir::new().unwrap();
    let world = in_directory(directory.path());
    cast(&world);
    let before = world.count(6).await;
    assert_eq!(before.status.failed_views.len(), 1, "a view that shows its last good rows is one of them");
    forget_the_past(&world);
    let rows = written(&world);
    let after = world.count(6).await;
    assert_eq!(seen(&before), seen(&after));
    assert_eq!(written(&world), rows, "nothing is written twice");
    // It goes on as one that never stopped, primary keys and failed views included.
    let (other, world) = (World::new(), world);
    cast(&other);
    let mut one = other.start(0).await;
    one.received(6).await;
    let mut again = world.start(0).await;
    again.received(6).await;
    for world in [&other, &world] {
        world.vote(0, "a", "1", 1);
        world.vote(1, "e", "2", 5);
        world.vote(1, "c", "1", 5);
    }
    let (one_seen, again_seen) = (one.received(9).await, again.received(9).await);
    let of = |published: &Published| published.views["by_choice"].batch().unwrap();
    assert_eq!(of(&one_seen), of(&again_seen));
    let counters = |published: &Published| {
        let source = published.status.sources[0].clone();
        (source.counted, source.rejected_by_reason, source.keys_in_two_partitions)
    };
    assert_eq!(counters(&one_seen), counters(&again_seen));
    one.stop().await.unwrap();
    again.stop().await.unwrap();
    let status = again_seen.status.checkpoint.clone().unwrap();
    assert!(status.epoch.is_some() && status.bytes > 0 && status.error.is_none(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_before_a_damaged_one_is_used_and_then_the_whole_log() {
    let directory = tempfile::TempDir::new().unwrap();
    let world = in_directory(directory.path());
    let mut running = world.start(0).await;
    for round in 1..4 {
        cast(&world);
        running.received(6 * round).await;
        let epoch = running.until("the epoch", |_| true).await.epoch;
        let is_written = |published: &Published| {
            published.status.checkpoint.as_ref().and_then(|checkpoint| checkpoint.epoch) >= Some(epoch)
        };
        running.until("a checkpoint of it", is_written).await;
    }
    let before = running.received(18).await;
    running.stop().await.unwrap();
    let manifests = || {
        let files = std::fs::read_dir(directory.path().join("checkpoints").join(ENGINE)).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.to_str().unwrap().contains("manifest"));
        files.sort();
        files
    };
    let rows = written(&world);
    assert_eq!(manifests().len(), 2);
    let newest = manifests().pop().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &whole[..whole.len() - 1]).unwrap();
    let after = world.count(18).await;
    assert_eq!(seen(&before), seen(&after));
    for manifest in manifests() {
        std::fs::write(manifest, "").unwrap();
    }
    let after = world.count(18).await;
    assert_eq!(seen(&before), seen(&after));
    assert_eq!(written(&world), rows, "nothing is written twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_other_queries_another_log_or_an_earlier_count_is_not_used() {
    let directory = tempfile::TempDir::new().unwrap();
    let world = in_directory(directory.path());
    cast(&world);
    world.count(6).await;
    // Other queries.
    let changed = format!(
        "{QUERIES} CREATE MATERIALIZED VIEW ids WITH (topic = 'ids', key = 'id') AS SELECT id, COUNT(*) AS n FROM votes GROUP BY id;"
    );
    let mut running = world.start_with(&changed, 0).await;
    let published = running.received(6).await;
    assert_eq!(published.views["ids"].batch().unwrap().num_rows(), 4);
    running.stop().await.unwrap();
    // The same queries again: their checkpoint is not of the log's newest definitions.
    let expected = world.count(6).await;
    assert!(!expected.views.contains_key("ids"));
    // An earlier count: the new one has other rules.
    let stricter = QUERIES.replace("CHECK (10 / weight > 0)", "CHECK (weight > 1)");
    let mut running = world.open(&stricter, 0, true).await.unwrap().run_now();
    let published = running.received(6).await;
    assert_eq!(published.status.sources[0].counted, 3);
    running.stop().await.unwrap();
    // Another log.
    let other = World { checkpoints: world.checkpoints.clone(), ..World::new() };
    other.vote(0, "e", "7", 1);
    let mut running = other.start_with(&stricter, 0).await;
    let published =
        running.until("all messages", |p| p.status.ready && p.status.sources[0].received == 1).await;
    assert_eq!(published.status.sources[0].rejected, 1);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_nothing_and_is_told_until_there_is_room() {
    let directory = tempfile::TempDir::new().unwrap();
    let mut world = in_directory(directory.path());
    world.checkpoints.as_mut().unwrap().free_bytes = Some(1000);
    let mut running = world.start(0).await;
    cast(&world);
    running.received(6).await;
    let full = |published: &Published| {
        let error = published.status.checkpoint.as_ref().and_then(|checkpoint| checkpoint.error.clone());
        error.is_some_and(|error| error.contains("make room"))
    };
    running.until("that the disk is full", full).await;
    cast(&world);
    let before = running.received(12).await;
    running.stop().await.unwrap();
    world.checkpoints.as_mut().unwrap().free_bytes = None;
    let after = world.count(12).await;
    assert_eq!(seen(&before), seen(&after));
    forget_the_past(&world);
    let after = world.count(12).await;
    assert_eq!(seen(&before), seen(&after));
}
