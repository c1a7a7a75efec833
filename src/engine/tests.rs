//! The oracle: at every micro-batch boundary each view equals the same SELECT run by plain DataFusion over
//! all rows so far, and the accumulated changelog equals the view.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::datasource::MemTable;
use proptest::prelude::*;

use super::oracle::{Consumer, cells, sorted};
use super::*;
use crate::error::Error;
use crate::queries::QueryFile;

const SOURCE: &str =
    "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, place VARCHAR, amount BIGINT, at TIMESTAMP)
    STORED AS KAFKA LOCATION 'events';";

/// Views of the supported shapes: row-wise and recomputed finishing, joins below and above, several
/// aggregates, global ones, with and without key.
const VIEWS: [(&str, &str, &str); 16] = [
    ("by_place", "place", "SELECT place, COUNT(*) AS n, SUM(amount) AS s, AVG(amount) AS a FROM events GROUP BY place"),
    ("extremes", "place", "SELECT place, MIN(amount) AS lo, MAX(amount) AS hi, MAX(at) AS last FROM events GROUP BY place"),
    ("filtered", "place", "SELECT place, SUM(amount) FILTER (WHERE amount > 3) AS s FROM events WHERE amount <> 1 GROUP BY place"),
    ("large", "place", "SELECT place, SUM(amount) AS s FROM events GROUP BY place HAVING SUM(amount) % 3 = 1"),
    ("total", "", "SELECT COUNT(*) AS n, SUM(amount) AS s FROM events"),
    ("named", "name", "SELECT p.name, COUNT(*) AS n FROM events e JOIN places p ON p.place = e.place GROUP BY p.name"),
    ("left_named", "", "SELECT p.name, COUNT(*) AS n FROM events e LEFT JOIN places p ON p.place = e.place GROUP BY p.name"),
    ("all_places", "place", "SELECT p.place, p.name, COALESCE(t.n, 0) AS n FROM places p
        LEFT JOIN (SELECT place, COUNT(*) AS n FROM events GROUP BY place) t ON t.place = p.place"),
    ("ranked", "place", "SELECT place, n, ROW_NUMBER() OVER (ORDER BY n DESC, place) AS r
        FROM (SELECT place, COUNT(*) AS n FROM events WHERE place IS NOT NULL GROUP BY place)"),
    ("top", "place", "SELECT place, SUM(amount) AS s FROM events GROUP BY place ORDER BY s DESC NULLS LAST, place LIMIT 2"),
    ("of_aggregates", "", "SELECT MAX(n) AS most, COUNT(*) AS places FROM (SELECT place, COUNT(*) AS n FROM events GROUP BY place)"),
    ("two", "place", "SELECT a.place, a.n, b.s FROM (SELECT place, COUNT(*) AS n FROM events GROUP BY place) a
        JOIN (SELECT place, SUM(amount) AS s FROM events WHERE amount > 2 GROUP BY place) b ON a.place = b.place"),
    ("distinct_places", "", "SELECT DISTINCT place FROM events"),
    ("distinct_amounts", "place", "SELECT place, COUNT(DISTINCT amount) AS d FROM events GROUP BY place"),
    ("per_minute", "minute", "SELECT date_bin(INTERVAL '1 minute', at) AS minute, COUNT(*) AS n FROM events GROUP BY 1"),
    ("view_on_view", "", "SELECT SUM(n) AS n FROM by_place WHERE n > 1"),
];

#[derive(Clone, Debug)]
struct Event {
    id: i64,
    place: Option<String>,
    amount: Option<i64>,
    at: i64,
}

fn source_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("place", DataType::Utf8, true),
        Field::new("amount", DataType::Int64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
    ]))
}

fn events(events: &[Event]) -> RecordBatch {
    let at = TimestampMicrosecondArray::from_iter_values(events.iter().map(|e| e.at * 1_000_000));
    let at = arrow::compute::cast(&at, &DataType::Timestamp(TimeUnit::Nanosecond, None)).unwrap();
    RecordBatch::try_new(
        source_schema(),
        vec![
            Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.id))),
            Arc::new(StringArray::from_iter(events.iter().map(|e| e.place.as_deref()))),
            Arc::new(Int64Array::from_iter(events.iter().map(|e| e.amount))),
            at,
        ],
    )
    .unwrap()
}

fn places(names: &[(&str, &str)]) -> RecordBatch {
    let column = |values: Vec<&str>| Arc::new(StringArray::from(values)) as _;
    let schema = ["place", "name"].map(|name| Field::new(name, DataType::Utf8, true));
    RecordBatch::try_new(
        Arc::new(Schema::new(schema.to_vec())),
        vec![column(names.iter().map(|n| n.0).collect()), column(names.iter().map(|n| n.1).collect())],
    )
    .unwrap()
}

async fn plan(text: &str) -> Result<Engine> {
    let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text: text.into() }];
    let catalog = crate::catalog::Catalog::parse(&files, &session::continuous().state()).await?;
    let places = places(&[]);
    Engine::plan(&catalog, &[("places".into(), places.schema())]).await
}

async fn engine() -> Engine {
    let views = VIEWS.iter().map(|(name, key, query)| {
        let key = if key.is_empty() { String::new() } else { format!("WITH (key = '{key}')") };
        format!("CREATE MATERIALIZED VIEW {name} {key} AS {query};")
    });
    plan(&format!("{SOURCE}\n{}", views.collect::<Vec<_>>().join("\n"))).await.unwrap()
}

async fn batch_answer(query: &str, all: &[RecordBatch], reference: &RecordBatch) -> Vec<Vec<String>> {
    let context = session::batch(session::base_config());
    context
        .register_table("events", Arc::new(MemTable::try_new(source_schema(), vec![all.to_vec()]).unwrap()))
        .unwrap();
    let places = MemTable::try_new(reference.schema(), vec![vec![reference.clone()]]).unwrap();
    context.register_table("places", Arc::new(places)).unwrap();
    let by_place = context.sql(VIEWS[0].2).await.unwrap().into_view();
    context.register_table("by_place", by_place).unwrap();
    sorted(&context.sql(query).await.unwrap().collect().await.unwrap())
}

async fn check(batches: &[Vec<Event>]) {
    let mut engine = engine().await;
    let mut reference = places(&[("a", "Aachen"), ("b", "Bonn"), ("z", "Zeitz")]);
    engine.set_reference("places", vec![reference.clone()]);
    let mut consumers: BTreeMap<String, Consumer> = BTreeMap::new();
    let mut shown = BTreeMap::new();
    let mut take = |changes: Vec<ViewChange>, shown: &mut BTreeMap<String, Vec<Vec<String>>>| {
        for change in changes {
            consumers.entry(change.info.name.clone()).or_default().take(&change);
            shown.insert(change.info.name.clone(), sorted(&[change.rows.batch().unwrap()]));
            assert_eq!(consumers[&change.info.name].rows(), shown[&change.info.name], "{}", change.info.name);
        }
    };
    take(engine.start().await.unwrap(), &mut shown);
    let mut all = Vec::new();
    for (i, batch) in batches.iter().enumerate() {
        if i == 3 {
            // What is joined above the aggregates follows the table; places joined below stay as they were met.
            reference = places(&[("a", "Aachen"), ("b", "Bonn"), ("z", "Zeitz"), ("y", "Ypern")]);
            engine.set_reference("places", vec![reference.clone()]);
            take(engine.refresh(&BTreeSet::from(["places".into()])).await.unwrap(), &mut shown);
        }
        all.push(events(batch));
        take(engine.apply("events", events(batch), None).await.unwrap().changes, &mut shown);
        for (name, _, query) in VIEWS {
            assert_eq!(shown[name], batch_answer(query, &all, &reference).await, "{name} after batch {i}");
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let place = prop::option::weighted(0.9, prop::sample::select(vec!["a", "b", "c", "z", ""]));
    (0..50i64, place, prop::option::weighted(0.9, -3..9i64), 0..600i64)
        .prop_map(|(id, place, amount, at)| Event { id, place: place.map(Into::into), amount, at })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn views_equal_a_batch_recount(batches in prop::collection::vec(prop::collection::vec(event(), 0..12), 1..7)) {
        tokio::runtime::Runtime::new().unwrap().block_on(check(&batches));
    }
}

#[tokio::test]
async fn views_that_cannot_be_kept_are_refused_at_their_place() {
    for (query, reason) in [
        ("CREATE MATERIALIZED VIEW v AS SELECT id FROM events LIMIT 3;", "LIMIT without ORDER BY"),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT COUNT(*) AS n FROM events WHERE at < now();",
            "now() gives another answer",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (topik = 't') AS SELECT COUNT(*) AS n FROM events;",
            "a view knows topic, key, mode, hold_rows, hold_for, ring_rows",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (key = 'm') AS SELECT COUNT(*) AS n FROM events;",
            "key `m` is no column",
        ),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT COUNT(*) AS n, SUM(id) AS n FROM events;",
            "unique expression names",
        ),
        ("CREATE MATERIALIZED VIEW v AS SELECT COUNT(*) AS n FROM evnts;", "evnts"),
        ("CREATE VIEW w AS SELECT * FROM v; CREATE VIEW v AS SELECT * FROM w;", "circle: v → w → v"),
        ("SELECT 1;", "declares nothing"),
        ("CREATE MATERIALIZED VIEW v AS SELECT COUNT(*) AS n FROM events GROUP BY;", "Expected"),
        ("CREATE VIEW events AS SELECT 1;", "declared already"),
    ] {
        let Err(error) = plan(&format!("{SOURCE}\n\n{query}")).await else { panic!("{query} was taken") };
        let message = error.to_string();
        assert!(message.contains(reason), "{query}\n{message}");
        let Error::Query { line, .. } = error else { panic!("{query}: no place: {message}") };
        assert_eq!(line, 4, "{query}\n{message}");
    }
}

#[tokio::test]
async fn all_errors_are_told_at_once_and_none_that_another_causes() {
    let told = async |queries: &str| match plan(&format!("{SOURCE}\n{queries}")).await {
        Ok(_) => panic!("{queries} was taken"),
        Err(error) => error.to_string(),
    };
    let bad = told(
        "CREATE MATERIALIZED VIEW a AS SELECT nothing FROM events;
         CREATE MATERIALIZED VIEW b AS SELECT * FROM a;
         CREATE MATERIALIZED VIEW c AS SELECT COUNT(*) AS n FROM nowhere;
         CREATE MATERIALIZED VIEW d AS SELECT COUNT(*) AS n FROM events;",
    )
    .await;
    let places: Vec<_> = bad.lines().filter(|line| line.starts_with("queries/test.sql:")).collect();
    let [first, second] = places[..] else { panic!("{bad}") };
    assert!(first.contains(":3:") && first.contains("nothing"), "{bad}");
    assert!(second.contains(":5:") && second.contains("nowhere"), "{bad}");
    let bad = told("SELECT 1; CREATE VIEW events AS SELECT 1;").await;
    assert_eq!(bad.lines().count(), 2, "{bad}");
}

#[tokio::test]
async fn equal_aggregates_are_kept_once() {
    let engine = plan(&format!(
        "{SOURCE}
         CREATE MATERIALIZED VIEW a AS SELECT place, n FROM (SELECT place, COUNT(*) AS n FROM events GROUP BY place);
         CREATE MATERIALIZED VIEW b AS SELECT SUM(n) AS n FROM a;
         CREATE MATERIALIZED VIEW c AS SELECT place, n + 1 AS m FROM a;"
    ))
    .await
    .unwrap();
    assert_eq!((engine.views.len(), engine.nodes.len()), (3, 1));
}

#[tokio::test]
async fn a_key_that_does_not_tell_rows_apart_is_an_error_not_a_lost_row() {
    let text = format!(
        "{SOURCE} CREATE MATERIALIZED VIEW v WITH (key = 'n') AS SELECT COUNT(*) AS n FROM events GROUP BY place;"
    );
    let mut engine = plan(&text).await.unwrap();
    engine.start().await.unwrap();
    let event = |place: &str| Event { id: 1, place: Some(place.into()), amount: None, at: 0 };
    engine.apply("events", events(&[event("a"), event("b")]), None).await.unwrap();
    let reason = engine.failures().remove(0).reason;
    assert!(reason.contains("two rows have the key (n) = (1)"), "{reason}");
}

#[tokio::test]
async fn a_lookup_join_keeps_its_hash_table_between_micro_batches() {
    let engine = plan(&format!(
        "{SOURCE} CREATE MATERIALIZED VIEW v AS
         SELECT p.name, COUNT(*) AS n FROM events e JOIN places p ON p.place = e.place GROUP BY p.name;
         CREATE MATERIALIZED VIEW w AS
         SELECT p.name, COUNT(*) AS n FROM events e LEFT JOIN places p ON p.place = e.place GROUP BY p.name;"
    ))
    .await
    .unwrap();
    assert!(engine.nodes.iter().all(|node| node.node.keeps_lookups()));
}

#[tokio::test]
async fn rows_are_read_in_the_order_of_the_query_or_else_of_the_key() {
    let mut engine = plan(&format!(
        "{SOURCE}
         CREATE MATERIALIZED VIEW best AS SELECT place, SUM(amount) AS s FROM events GROUP BY place ORDER BY s DESC;
         CREATE MATERIALIZED VIEW named WITH (key = 'place') AS SELECT p.place, t.s FROM places p
         JOIN (SELECT place, SUM(amount) AS s FROM events GROUP BY place) t ON t.place = p.place;"
    ))
    .await
    .unwrap();
    engine.set_reference("places", vec![places(&[("c", "C"), ("a", "A"), ("b", "B")])]);
    engine.start().await.unwrap();
    let event = |place: &str, amount| Event { id: 1, place: Some(place.into()), amount: Some(amount), at: 0 };
    let batch = events(&[event("b", 1), event("a", 3), event("c", 2)]);
    let changes = engine.apply("events", batch, None).await.unwrap().changes;
    let order = |change: &ViewChange| {
        let rows = change.rows.batch().unwrap();
        let places = rows.column(0).as_any().downcast_ref::<StringArray>().unwrap().clone();
        places.iter().flatten().collect::<String>()
    };
    assert_eq!(changes.iter().map(order).collect::<Vec<_>>(), ["acb", "abc"]);
}

/// Partitions are read at different paces, the more so after a restart.
#[tokio::test]
async fn a_partition_that_is_read_later_makes_no_row_late() {
    let text = SOURCE.replace(
        "LOCATION 'events'",
        "LOCATION 'events' OPTIONS ('event_time' 'at', 'watermark' '1 minute')",
    );
    let text = format!(
        "{text} CREATE MATERIALIZED VIEW per_minute AS
         SELECT date_bin(INTERVAL '1 minute', at) AS minute, COUNT(*) AS n FROM events GROUP BY 1;"
    );
    let event = |minute: i64| Event { id: 1, place: None, amount: None, at: minute * 60 };
    for (waits, late, rows) in [(true, 0, "2"), (false, 1, "1")] {
        let mut engine = plan(&text).await.unwrap();
        engine.start().await.unwrap();
        if waits {
            engine.wait_for("events", BTreeSet::from([1]));
        }
        let of = |partition| [Origin { partition, ..Origin::default() }; 2];
        let ahead = engine.apply("events", events(&[event(0), event(10)]), Some(&of(0))).await.unwrap();
        assert!(ahead.late.is_empty());
        assert_eq!(engine.watermark("events").is_some(), !waits);
        // Late by no partition of its own, but its group was evicted if nothing waited for it.
        let behind = engine.apply("events", events(&[event(0), event(9)]), Some(&of(1))).await.unwrap();
        assert_eq!(behind.late.len(), late);
        let batch = behind.changes.last().unwrap().rows.batch().unwrap();
        assert_eq!(cells(&batch)[0][1], rows);
    }
}

#[tokio::test]
async fn final_windows_free_their_state_and_their_rows_stay() {
    let source = SOURCE.replace(
        "LOCATION 'events'",
        "LOCATION 'events' OPTIONS ('event_time' 'at', 'watermark' '1 minute')",
    );
    for (view, minutes) in [
        (
            "SELECT date_bin(INTERVAL '1 minute', at) AS minute, COUNT(*) AS n, COUNT(DISTINCT amount) AS d FROM events GROUP BY 1",
            1,
        ),
        (
            "SELECT window_start AS minute, COUNT(*) AS n, COUNT(DISTINCT amount) AS d
          FROM session(events, at, INTERVAL '100 seconds') GROUP BY window_start",
            2,
        ),
    ] {
        let mut engine =
            plan(&format!("{source} CREATE MATERIALIZED VIEW per_minute AS {view};")).await.unwrap();
        engine.start().await.unwrap();
        let (windows, mut shown) = (5000, None);
        for first in (0..windows).step_by(50) {
            // Two rows a window, of which the second comes after the first of the next.
            let row = |window: i64, second| Event {
                id: 1,
                place: None,
                amount: Some(second),
                at: window * minutes * 60 + second,
            };
            let batch: Vec<_> =
                (first..first + 50).flat_map(|w| [row(w, 1), row((w - 1).max(0), 20)]).collect();
            let applied = engine.apply("events", events(&batch), None).await.unwrap();
            assert!(applied.late.is_empty(), "{:?}", applied.late);
            shown = Some(applied.changes[0].rows.batch().unwrap());
        }
        let shown = shown.unwrap();
        assert_eq!(shown.num_rows() as i64, windows);
        assert_eq!(cells(&shown.slice(2000, 1))[0][1..], ["2", "2"]);
        assert!(engine.nodes[0].node.rows().unwrap().num_rows() < 10, "final groups are kept");
        assert!(engine.nodes[0].node.bytes() < 1 << 20, "{} bytes", engine.nodes[0].node.bytes());
    }
}

#[tokio::test]
async fn a_view_that_may_hold_no_more_rows_stops_and_says_which_it_is() {
    let text = format!(
        "{SOURCE} CREATE MATERIALIZED VIEW all_rows WITH (hold_rows = 2) AS SELECT id, at FROM events;"
    );
    let mut engine = plan(&text).await.unwrap();
    engine.start().await.unwrap();
    let event = |id| Event { id, place: None, amount: None, at: 0 };
    engine.apply("events", events(&[event(1), event(2)]), None).await.unwrap();
    engine.apply("events", events(&[event(3)]), None).await.unwrap();
    let failure = engine.failures().remove(0);
    assert_eq!((failure.view.as_str(), failure.place.line), ("all_rows", 2));
    assert!(failure.reason.contains("more than its hold_rows = 2 rows"), "{}", failure.reason);
}

#[tokio::test]
async fn the_work_of_a_view_is_told_with_that_of_its_nodes() {
    let mut engine = engine().await;
    engine.start().await.unwrap();
    let before = engine.seconds_by_view();
    let event = |id| Event { id, place: Some("a".into()), amount: Some(4), at: 0 };
    engine.apply("events", events(&[event(1), event(2)]), None).await.unwrap();
    let after = engine.seconds_by_view();
    // Of the node alone, of a dataflow over two, and of a view on a view.
    for view in ["by_place", "two", "view_on_view"] {
        assert!(after[view] > before[view], "{view}: {before:?} and then {after:?}");
    }
    engine.apply("nothing", events(&[event(3)]), None).await.unwrap();
    assert_eq!(engine.seconds_by_view(), after);
}

#[tokio::test]
async fn a_limit_on_row_number_keeps_the_first_rows_whatever_is_put_out() {
    let number = "ROW_NUMBER() OVER (PARTITION BY place ORDER BY amount, id) AS n";
    for query in [
        format!("SELECT * FROM (SELECT *, {number} FROM events) WHERE n <= 3"),
        format!("SELECT id, amount FROM (SELECT *, {number} FROM events) WHERE n <= 3"),
        format!("SELECT id FROM (SELECT *, {number} FROM events) WHERE n <= 3"),
        format!(
            "SELECT id + 1 AS next FROM (SELECT *, {number} FROM events) WHERE n <= 3 AND at IS NOT NULL"
        ),
        format!(
            "SELECT COUNT(*) AS c FROM (SELECT e.id, {} FROM events e JOIN events f ON f.id = e.id) WHERE n <= 3",
            number.replace("place", "f.place").replace("amount, id", "f.amount, e.id")
        ),
    ] {
        let engine = plan(&format!("{SOURCE} CREATE MATERIALIZED VIEW firsts AS {query};")).await.unwrap();
        let upkeep = engine.views[0].info.upkeep.to_string();
        assert!(upkeep.contains("the first 3 rows of each"), "{query}: {upkeep}");
    }
}
