//! Joins with tables that are a moment behind, or never have the row.

use super::*;

const SHOP: &str = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR, choice VARCHAR, weight BIGINT)
  STORED AS KAFKA LOCATION 'votes';
CREATE MATERIALIZED VIEW by_voter AS
  SELECT v.id, SUM(b.weight) AS n FROM votes b JOIN voters v ON v.id = b.id WHERE b.weight > 0 GROUP BY v.id;";

async fn start() -> (World, Running) {
    let world = World::new();
    let running = world.start_with(SHOP, 0).await;
    (world, running)
}

fn unmatched(published: &Published) -> Option<u64> {
    published.status.sources[0].unmatched_by_view.get("by_voter")?.get("voters (id)").copied()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_nobody_announced_is_looked_up_for_a_join() {
    let (world, mut running) = start().await;
    world.vote(0, "a", "1", 1);
    running.received(1).await;
    assert_eq!(world.store.lookups(), 0, "what is held is not asked for");
    world.store.set_silently("voters", voters(&["a", "new"]));
    world.vote(0, "new", "1", 2);
    let published = running.received(2).await;
    assert_eq!(published.views["by_voter"].batch().unwrap().num_rows(), 2);
    assert_eq!((unmatched(&published), world.store.lookups()), (None, 1));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_match_are_counted_by_view_and_join() {
    let (world, mut running) = start().await;
    world.vote(0, "nobody", "1", 1);
    world.vote(0, "a", "1", 1);
    world.vote(0, "no one", "1", -1); // does not come to the join
    let published = running.received(3).await;
    assert_eq!(unmatched(&published), Some(1));
    assert_eq!(published.status.sources[0].counted, 3, "the source's rules are kept");
    world.vote(0, "nobody", "1", 1);
    assert_eq!(unmatched(&*running.received(4).await), Some(2));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_that_gets_no_answer_pauses_the_count_and_says_why() {
    let (world, mut running) = start().await;
    world.store.set_silently("voters", voters(&["late"]));
    for (fault, reason) in [
        (Fault::Away, "connection refused"),
        (Fault::Refuses("permission denied".into()), "permission denied"),
    ] {
        world.store.set_fault(fault);
        world.vote(0, reason, "1", 1);
        let published = running.until("a pause", |published| !published.status.paused.is_empty()).await;
        let pause = &published.status.paused[0];
        assert_eq!(pause.what, "looking up rows in Postgres");
        assert!(pause.ends_by_itself);
        assert!(pause.reason.contains(reason), "{}", pause.reason);
        world.store.set_fault(Fault::None);
        running.until("the end of the pause", |published| published.status.paused.is_empty()).await;
    }
    assert_eq!(unmatched(&*running.received(2).await), Some(2));
    running.stop().await.unwrap();
}
