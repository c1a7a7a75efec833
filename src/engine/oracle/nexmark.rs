//! Nexmark's queries kept live, over events that come out of order, some of them too late for their window.

#[path = "../../../benches/nexmark/events.rs"]
mod events;

use self::events::{Events, Pace, side_input};
use super::Pair;

const MICRO_BATCHES: usize = 8;
const EVENTS: usize = 250;

#[tokio::test]
async fn each_query_equals_a_recount_at_each_micro_batch() {
    run(Pair::new()).await;
}

#[tokio::test]
async fn each_query_equals_a_recount_when_each_micro_batch_meets_a_restored_engine() {
    run(Pair::restarting()).await;
}

async fn run(mut pair: Pair) {
    pair.declare(&super::statements_of("tests/nexmark")).await.unwrap();
    pair.set("side_input", vec![side_input()]).await;
    // Over fourteen seconds of event time in another order; the watermark allows for four.
    let mut events = Events::new(23, Pace { per_second: 25, out_of_order: 350 });
    for _ in 0..MICRO_BATCHES {
        for (stream, rows) in events.take(EVENTS) {
            pair.insert(stream, rows).await;
        }
        pair.check().await;
    }
    let shown = pair.shown();
    assert_eq!(shown.len(), 23);
    assert!(shown.values().any(|(_, late)| !late.is_empty()), "no row is late");
    for (view, (rows, _)) in shown {
        assert!(!rows.is_empty(), "{view} finds nothing");
    }
}
