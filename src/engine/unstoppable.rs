//! What a value or a query that fails does to the engine: nothing but to its own view, and no longer than it must.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

use super::oracle::{Consumer, cells};
use super::*;
use crate::catalog::Catalog;
use crate::queries::QueryFile;

const SOURCE: &str = "CREATE UNBOUNDED EXTERNAL TABLE s (k VARCHAR, v BIGINT, t TIMESTAMP) STORED AS KAFKA
    LOCATION 's' OPTIONS ('event_time' 't', 'watermark' '0 seconds');\n";

/// Rows of a key, a value and seconds.
fn rows(rows: &[(&str, i64, i64)]) -> RecordBatch {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let fields = [("k", DataType::Utf8), ("v", DataType::Int64), ("t", time)];
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
    let seconds = rows.iter().map(|row| row.2 * 1_000_000_000);
    RecordBatch::try_new(
        Arc::new(Schema::new(fields.to_vec())),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(TimestampNanosecondArray::from_iter_values(seconds)),
        ],
    )
    .unwrap()
}

/// An engine and what readers and a consumer see of it.
struct Watched {
    engine: Engine,
    shown: BTreeMap<String, Vec<Vec<String>>>,
    consumers: BTreeMap<String, Consumer>,
}

impl Watched {
    async fn new(views: &str) -> Watched {
        let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text: format!("{SOURCE}{views}") }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        let mut engine = Engine::plan(&catalog, &[]).await.unwrap();
        let changes = engine.start().await.unwrap();
        let mut watched = Watched { engine, shown: BTreeMap::new(), consumers: BTreeMap::new() };
        watched.take(changes);
        watched
    }

    async fn apply(&mut self, batch: &[(&str, i64, i64)]) -> Applied {
        let mut applied = self.engine.apply("s", rows(batch), None).await.unwrap();
        self.take(std::mem::take(&mut applied.changes));
        applied
    }

    fn take(&mut self, changes: Vec<ViewChange>) {
        for change in changes {
            let name = change.info.name.clone();
            self.consumers.entry(name.clone()).or_default().take(&change);
            self.shown.insert(name, cells(&change.rows.batch().unwrap()));
        }
    }

    fn reason(&self, view: &str) -> Option<String> {
        self.engine.failures().into_iter().find(|failure| failure.view == view).map(|failure| failure.reason)
    }

    /// A view's rows, which its changelog must add up to.
    fn rows(&self, view: &str) -> Vec<Vec<String>> {
        let mut rows = self.shown[view].clone();
        rows.sort();
        assert_eq!(self.consumers[view].rows(), rows, "the changelog of {view}");
        rows
    }
}

fn view(name: &str, query: &str) -> String {
    format!("CREATE MATERIALIZED VIEW {name} AS {query};\n")
}

#[tokio::test]
async fn a_row_that_an_expression_cannot_take_is_left_out_of_that_view_only() {
    let views = [
        ("divided", "SELECT k, SUM(10 / v) AS x FROM s GROUP BY k"),
        ("enriched", "SELECT k, 10 / v AS x FROM s"),
        ("counted", "SELECT COUNT(*) AS n FROM s"),
        (
            "panicking",
            "SELECT array_repeat(k, CASE WHEN v < 0 THEN 9223372036854775807 ELSE 1 END) AS p, COUNT(*) AS n FROM s GROUP BY 1",
        ),
        ("windowed", "SELECT date_bin(INTERVAL '1 minute', t) AS m, SUM(10 / v) AS x FROM s GROUP BY 1"),
    ];
    let mut watched = Watched::new(&views.map(|(name, query)| view(name, query)).concat()).await;
    let applied = watched.apply(&[("a", 1, 0), ("a", 0, 1), ("b", 2, 2), ("b", -2, 3), ("a", 5, 4)]).await;
    let of = |name: &str| applied.errors.iter().filter(|e| e.view == name).map(|e| e.row).collect::<Vec<_>>();
    for name in ["divided", "enriched", "windowed"] {
        assert_eq!(of(name), [Some(1)], "{name}");
    }
    assert_eq!(of("panicking"), [Some(3)]);
    assert!(of("counted").is_empty());
    assert!(applied.errors.iter().any(|error| error.reason.contains("Divide by zero")), "{applied:?}");
    assert_eq!(watched.rows("divided"), [["a", "12"], ["b", "0"]]);
    assert_eq!(watched.rows("counted"), [["5"]]);
    assert_eq!(watched.rows("windowed")[0][1], "12");
    assert_eq!(watched.consumers["enriched"].rows(), [["a", "10"], ["a", "2"], ["b", "-5"], ["b", "5"]]);
    assert!(watched.engine.failures().is_empty());
    let applied = watched.apply(&[("b", 10, 5)]).await;
    assert!(applied.errors.is_empty());
    assert_eq!(watched.rows("divided"), [["a", "12"], ["b", "1"]]);
}

#[tokio::test]
async fn a_batch_of_bad_rows_alone_changes_nothing() {
    let mut watched = Watched::new(&view("divided", "SELECT k, SUM(10 / v) AS x FROM s GROUP BY k")).await;
    let applied = watched.apply(&[("a", 0, 0), ("b", 0, 1), ("a", 0, 2)]).await;
    assert_eq!(applied.errors.len(), 3);
    assert_eq!(watched.rows("divided"), Vec::<Vec<String>>::new());
    // The keys of rows that failed are no groups, and become groups as others do.
    watched.apply(&[("c", 1, 3), ("b", 2, 4)]).await;
    assert_eq!(watched.rows("divided"), [["b", "5"], ["c", "10"]]);
    watched.apply(&[("a", 5, 5)]).await;
    assert_eq!(watched.rows("divided"), [["a", "2"], ["b", "5"], ["c", "10"]]);
}

#[tokio::test]
async fn a_value_that_was_seen_in_a_row_that_failed_counts_as_new_later() {
    let query = "SELECT k, COUNT(DISTINCT v) AS d, SUM(10 / (v - 1)) AS x FROM s GROUP BY k";
    let mut watched = Watched::new(&view("d", query)).await;
    watched.apply(&[("a", 2, 0), ("a", 1, 1), ("a", 3, 2)]).await;
    assert_eq!(watched.rows("d"), [["a", "2", "15"]]);
    watched.apply(&[("a", 3, 3), ("a", 2, 4)]).await;
    assert_eq!(watched.rows("d"), [["a", "2", "30"]]);
}

#[tokio::test]
async fn a_session_is_as_if_the_row_that_failed_had_not_come() {
    let query = "SELECT window_start, window_end, SUM(10 / v) AS x
        FROM session(s, t, INTERVAL '10 seconds') GROUP BY window_start, window_end";
    let mut watched = Watched::new(&view("w", query)).await;
    // The row at 8 would bind the two sessions together.
    watched.apply(&[("a", 1, 0), ("a", 0, 8), ("a", 2, 16)]).await;
    assert_eq!(watched.rows("w").iter().map(|row| row[2].clone()).collect::<Vec<_>>(), ["10", "5"]);
}

#[tokio::test]
async fn rows_of_a_session_change_their_window_also_beside_a_row_that_failed() {
    let text = "CREATE VIEW inverse AS SELECT k, 10 / v AS x, t FROM s;
        CREATE MATERIALIZED VIEW w AS
        SELECT x, window_end - window_start AS length FROM session(inverse, t, INTERVAL '10 seconds');";
    let mut watched = Watched::new(text).await;
    watched.apply(&[("a", 10, 0)]).await;
    let applied = watched.apply(&[("a", 0, 3), ("a", 5, 8)]).await;
    assert_eq!(applied.errors.iter().map(|error| error.row).collect::<Vec<_>>(), [Some(0)]);
    let rows = watched.rows("w");
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(rows[0][1], rows[1][1], "both are in one session");
}

#[tokio::test]
async fn having_protects_the_select_list() {
    let query = "SELECT k, 100 / SUM(v) AS r FROM s GROUP BY k HAVING SUM(v) <> 0";
    let mut watched = Watched::new(&view("share", query)).await;
    watched.apply(&[("a", 0, 0), ("b", 4, 1)]).await;
    assert_eq!(watched.rows("share"), [["b", "25"]]);
    watched.apply(&[("a", 10, 2), ("b", -4, 3)]).await;
    assert_eq!(watched.rows("share"), [["a", "10"]]);
    assert!(watched.engine.failures().is_empty());
}

#[tokio::test]
async fn a_finishing_plan_that_fails_before_the_first_row_comes_back_with_it() {
    let query = "SELECT 100 * SUM(v) / COUNT(*) AS percent FROM s HAVING 100 / COUNT(*) >= 0";
    let mut watched = Watched::new(&(view("p", query) + &view("n", "SELECT COUNT(*) AS n FROM s"))).await;
    assert!(watched.reason("p").unwrap().contains("Divide by zero"));
    assert_eq!(watched.rows("p"), Vec::<Vec<String>>::new());
    watched.apply(&[("a", 1, 0), ("a", 2, 1)]).await;
    assert_eq!(watched.reason("p"), None);
    assert_eq!(watched.rows("p"), [["150"]]);
    assert_eq!(watched.rows("n"), [["2"]]);
}

#[tokio::test]
async fn a_view_that_fails_keeps_its_last_good_rows_and_catches_up_when_it_can() {
    for query in [
        "SELECT k, 100 / SUM(v) AS r FROM s GROUP BY k",
        "SELECT k, 100 / SUM(v) AS r FROM s GROUP BY k ORDER BY k LIMIT 10",
        "SELECT a.k, 100 / a.n AS r FROM (SELECT k, SUM(v) AS n FROM s GROUP BY k) a
         JOIN (SELECT k, COUNT(*) AS m FROM s GROUP BY k) b ON a.k = b.k",
    ] {
        let mut watched = Watched::new(&(view("r", query) + &view("n", "SELECT COUNT(*) AS n FROM s"))).await;
        watched.apply(&[("a", 10, 0), ("b", 5, 1)]).await;
        watched.apply(&[("a", -10, 2), ("c", 1, 3)]).await;
        assert!(watched.reason("r").unwrap().contains("Divide by zero"), "{query}");
        assert_eq!(watched.rows("r"), [["a", "10"], ["b", "20"]], "{query}");
        watched.apply(&[("b", 5, 4)]).await;
        assert!(watched.reason("r").is_some(), "{query}");
        assert_eq!(watched.rows("n"), [["5"]]);
        watched.apply(&[("a", 20, 5)]).await;
        assert_eq!(watched.reason("r"), None, "{query}");
        assert_eq!(watched.rows("r"), [["a", "5"], ["b", "10"], ["c", "100"]], "{query}");
    }
}

#[tokio::test]
async fn two_rows_of_one_key_take_down_their_view_until_they_differ() {
    let text = "CREATE MATERIALIZED VIEW u WITH (key = 'x') AS
        SELECT n AS x, k || '' AS k FROM (SELECT k, SUM(v) AS n FROM s GROUP BY k);
        CREATE MATERIALIZED VIEW n AS SELECT COUNT(*) AS n FROM s;";
    let mut watched = Watched::new(text).await;
    watched.apply(&[("a", 1, 0)]).await;
    watched.apply(&[("b", 1, 1)]).await;
    assert!(watched.reason("u").unwrap().contains("two rows have the key (x) = (1)"));
    assert_eq!(
        (watched.rows("u"), watched.rows("n")),
        (vec![vec!["1".into(), "a".into()]], vec![vec!["2".into()]])
    );
    watched.apply(&[("b", 1, 2)]).await;
    assert_eq!((watched.reason("u"), watched.rows("u").len()), (None, 2));
}

#[tokio::test]
async fn a_view_that_would_hold_too_many_rows_stops_and_holds_none() {
    let text = "CREATE MATERIALIZED VIEW h WITH (hold_rows = 3) AS
        SELECT k, v, ROW_NUMBER() OVER (ORDER BY v) AS r FROM s;
        CREATE MATERIALIZED VIEW n AS SELECT COUNT(*) AS n FROM s;";
    let mut watched = Watched::new(text).await;
    watched.apply(&[("a", 1, 0), ("a", 2, 1)]).await;
    let mut bytes = Vec::new();
    for t in 2..200 {
        watched.apply(&[("a", 3, t)]).await;
        bytes.push(watched.engine.state_bytes());
    }
    assert!(watched.reason("h").unwrap().contains("hold_rows = 3"));
    assert_eq!((watched.rows("h").len(), watched.rows("n")), (3, vec![vec!["200".into()]]));
    assert!(bytes[197] <= bytes[0], "it goes on holding rows: {bytes:?}");
}

#[tokio::test]
async fn hold_for_lets_rows_of_a_join_go_and_takes_no_result_back() {
    let text = "CREATE MATERIALIZED VIEW pairs WITH (hold_rows = 100, hold_for = '10 seconds') AS
        SELECT a.v AS one, b.v AS other FROM s a JOIN s b ON a.k = b.k AND a.v < b.v;";
    let mut watched = Watched::new(text).await;
    watched.apply(&[("a", 1, 0), ("a", 2, 1)]).await;
    watched.apply(&[("a", 3, 4)]).await;
    assert_eq!(watched.rows("pairs"), [["1", "2"], ["1", "3"], ["2", "3"]]);
    watched.apply(&[("b", 0, 12)]).await;
    // The rows of the first micro-batch are gone, and what they made stays.
    watched.apply(&[("a", 4, 13)]).await;
    assert_eq!(watched.rows("pairs"), [["1", "2"], ["1", "3"], ["2", "3"], ["3", "4"]]);
    for round in 1..30 {
        let batch: Vec<_> = (0..50).map(|i| ("c", 7, round * 20 + i / 10)).collect();
        watched.apply(&batch).await;
    }
    assert_eq!(watched.reason("pairs"), None, "old rows are not let go");
}

#[tokio::test]
async fn hold_for_is_told_of_the_rows_that_it_frees_only() {
    let held = |name: &str, from: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} WITH (hold_rows = 9, hold_for = '10 seconds') AS SELECT a.k FROM {from};"
        )
    };
    let groups = "(SELECT k, COUNT(*) AS n FROM s GROUP BY k)";
    let views = [
        held("rows", "s a JOIN s b ON a.k = b.k"),
        held("mixed", &format!("s a JOIN {groups} b ON a.k = b.k AND a.v < b.n")),
        held(
            "changing",
            &format!("{groups} a JOIN (SELECT k, SUM(v) AS n FROM s GROUP BY k) b ON a.n = b.n"),
        ),
    ];
    let watched = Watched::new(&views.concat()).await;
    let of = |name: &str| {
        let view = watched.engine.views().find(|info| info.name == name).unwrap();
        let join = view.upkeep.parts.iter().find(|part| part.keeps.contains("join")).unwrap();
        join.until.clone()
    };
    assert_eq!(of("rows").as_deref(), Some("event time is 10 s further (hold_for)"));
    assert_eq!(of("mixed").as_deref(), Some("event time is 10 s further (hold_for), where rows only come"));
    assert_eq!(of("changing"), None);
}

#[tokio::test]
async fn one_bad_row_among_many_is_found_by_halving() {
    let mut watched = Watched::new(&view("d", "SELECT k, SUM(10 / v) AS x FROM s GROUP BY k")).await;
    let mut batch: Vec<_> = (0..50_000).map(|i| ("a", 10, i / 10_000)).collect();
    batch[31_415].1 = 0;
    let applied = watched.apply(&batch).await;
    assert_eq!(applied.errors.iter().map(|error| error.row).collect::<Vec<_>>(), [Some(31_415)]);
    assert_eq!(watched.rows("d"), [["a", "49999"]]);
}

#[tokio::test]
async fn a_view_that_comes_back_still_has_its_final_rows() {
    let query = "SELECT date_bin(INTERVAL '1 minute', t) AS m, 100 / SUM(v) AS x FROM s GROUP BY 1";
    let mut watched = Watched::new(&view("w", query)).await;
    watched.apply(&[("a", 10, 0)]).await;
    watched.apply(&[("a", 5, 70)]).await;
    watched.apply(&[("a", -5, 71)]).await;
    assert!(watched.reason("w").unwrap().contains("Divide by zero"));
    // The first minute is final, the second becomes so while the view has failed.
    watched.apply(&[("a", 4, 72), ("a", 50, 130)]).await;
    assert_eq!(watched.reason("w"), None);
    assert_eq!(watched.rows("w").iter().map(|row| row[1].clone()).collect::<Vec<_>>(), ["10", "25", "2"]);
}

#[tokio::test]
async fn a_changed_reference_table_takes_no_final_row_back() {
    let text = format!(
        "CREATE EXTERNAL TABLE places (k VARCHAR) STORED AS CSV LOCATION 'places';\n{}",
        view(
            "w",
            "SELECT date_bin(INTERVAL '1 minute', t) AS m, COUNT(*) AS n FROM s JOIN places USING (k) GROUP BY 1"
        )
    );
    let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text: format!("{SOURCE}{text}") }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
    let places = rows(&[("a", 0, 0)]).project(&[0]).unwrap();
    let mut engine = Engine::plan(&catalog, &[("places".into(), places.schema())]).await.unwrap();
    engine.set_reference("places", vec![places.clone()]);
    let changes = engine.start().await.unwrap();
    let mut watched = Watched { engine, shown: BTreeMap::new(), consumers: BTreeMap::new() };
    watched.take(changes);
    watched.apply(&[("a", 1, 0), ("a", 1, 70)]).await;
    watched.engine.set_reference("places", vec![places.slice(0, 0)]);
    let changes = watched.engine.refresh(&BTreeSet::from(["places".to_string()])).await.unwrap();
    watched.take(changes);
    assert_eq!(watched.rows("w").iter().map(|row| row[1].clone()).collect::<Vec<_>>(), ["1", "1"]);
}
