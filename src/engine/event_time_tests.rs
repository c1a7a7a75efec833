//! What event time makes final: judged here by the definition, from the values that plain DataFusion gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use super::oracle::{cells, sorted};
use super::*;
use crate::queries::QueryFile;

const SECOND: i64 = 1_000_000_000;
const DELAY_S: i64 = 60;
/// 2023-12-30, a Saturday.
const BASE_S: i64 = 1_703_894_400;
const ROWS: i64 = 240;

fn schema(zone: Option<&str>) -> SchemaRef {
    let at = DataType::Timestamp(TimeUnit::Nanosecond, zone.map(Into::into));
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("at", at, true)]))
}

fn rows(seconds: &[i64], zone: Option<&str>) -> RecordBatch {
    let at = TimestampNanosecondArray::from_iter_values(seconds.iter().map(|at| at * SECOND));
    let ids = Int64Array::from_iter_values(0..seconds.len() as i64);
    let at = at.with_timezone_opt(zone.map(Arc::from));
    RecordBatch::try_new(schema(zone), vec![Arc::new(ids), Arc::new(at)]).unwrap()
}

fn source(options: &str, zone: Option<&str>) -> String {
    let at = if zone.is_some() { "TIMESTAMP WITH TIME ZONE" } else { "TIMESTAMP" };
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at {at}) STORED AS KAFKA LOCATION 'events'
         OPTIONS ('event_time' 'at', 'watermark' '{DELAY_S} seconds'{options});"
    )
}

async fn plan_with(text: &str, tables: &[(String, SchemaRef)]) -> Result<Engine> {
    let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text: text.into() }];
    let catalog = crate::catalog::Catalog::parse(&files, &session::continuous().state()).await?;
    Engine::plan(&catalog, tables).await
}

async fn started(text: &str) -> Engine {
    let mut engine = plan_with(text, &[]).await.unwrap();
    engine.start().await.unwrap();
    engine
}

/// Of each row the value of an expression, as DataFusion spells it.
async fn values(expr: &str, rows: &RecordBatch) -> Vec<String> {
    let session = SessionContext::new_with_config(session::base_config());
    windows::register(&session);
    let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).unwrap();
    session.register_table("events", Arc::new(table)).unwrap();
    let answer = session.sql(&format!("SELECT {expr} FROM events ORDER BY id")).await.unwrap();
    answer.collect().await.unwrap().iter().flat_map(cells).map(|mut row| row.remove(0)).collect()
}

/// Event times of eight days in a rough order: some of a day, a few far behind.
fn event_times() -> Vec<i64> {
    let time = |i: i64| {
        let behind = match i % 7 {
            0 => 9 * 3600,
            2..4 => 50 * 60,
            _ => i * 104_729 % 40,
        };
        BASE_S + i * 2880 - behind + i * 31 % 60
    };
    (0..ROWS).map(time).collect()
}

/// A row is late if the watermark, as it came, had passed every event time that has its value.
async fn late_by_definition(expr: &str, times: &[i64], zone: Option<&str>) -> (Vec<i64>, Vec<String>) {
    let every_second: Vec<i64> = (BASE_S - 8 * 86_400..BASE_S + 16 * 86_400).step_by(10).collect();
    let mut end = BTreeMap::new();
    for (value, at) in values(expr, &rows(&every_second, zone)).await.into_iter().zip(&every_second) {
        end.insert(value, at + 10);
    }
    let of_rows = values(expr, &rows(times, zone)).await;
    let (mut late, mut newest) = (Vec::new(), i64::MIN);
    for (i, value) in of_rows.iter().enumerate() {
        if newest > i64::MIN && end[value] <= newest - DELAY_S {
            late.push(i as i64);
        }
        newest = newest.max(times[i]);
    }
    (late, of_rows)
}

async fn late_in_the_engine(
    engine: &mut Engine,
    times: &[i64],
    zone: Option<&str>,
) -> (Vec<i64>, RecordBatch) {
    let (mut late, mut shown) = (Vec::new(), None);
    let all = rows(times, zone);
    for first in (0..times.len()).step_by(7) {
        let part = all.slice(first, 7.min(times.len() - first));
        let applied = engine.apply("events", part, None).await.unwrap();
        late.extend(applied.late.iter().map(|(row, _)| first as i64 + i64::from(*row)));
        shown = applied.changes.last().map(|change| change.rows.batch().unwrap()).or(shown);
    }
    (late, shown.unwrap())
}

#[tokio::test]
async fn a_row_is_late_by_what_its_key_keeps_of_event_time_and_by_no_more() {
    let times = event_times();
    for expr in [
        "CAST(at AS DATE)",
        "at::DATE + INTERVAL '1 day'",
        "CAST(CAST(at AS DATE) AS TIMESTAMP)",
        "date_trunc('day', at)",
        "date_trunc('week', at)",
        "date_trunc('hour', at - INTERVAL '90 minutes')",
        "date_bin(INTERVAL '1 hour', at)",
        "date_bin(INTERVAL '1 hour', at) + INTERVAL '1 hour'",
        "INTERVAL '3 days' + date_bin(INTERVAL '6 hours', at)",
        "date_bin(INTERVAL '1 hour', at, TIMESTAMP '2001-01-01T00:20:00')",
        "date_bin(INTERVAL '1 hour', CAST(at AS DATE))",
        "date_bin(INTERVAL '3 days', CAST(at AS DATE))",
        "date_bin(INTERVAL '1 hour', CAST(at AS TIMESTAMP(0)))",
        "CAST(date_bin(INTERVAL '1 minute', at) AS TIMESTAMP(0))",
        "date_trunc('day', date_bin(INTERVAL '1 hour', at))",
        "date_bin(INTERVAL '1 hour', at AT TIME ZONE 'UTC')",
    ] {
        let (expected, of_rows) = late_by_definition(expr, &times, None).await;
        assert!(!expected.is_empty(), "{expr}: a test of nothing");
        let view = format!(
            "CREATE MATERIALIZED VIEW v AS SELECT {expr} AS k, COUNT(*) AS n FROM events GROUP BY 1;"
        );
        let mut engine = started(&format!("{} {view}", source("", None))).await;
        let (late, shown) = late_in_the_engine(&mut engine, &times, None).await;
        assert_eq!(late, expected, "{expr}");
        let mut counts = BTreeMap::new();
        for (i, value) in of_rows.iter().enumerate().filter(|(i, _)| !expected.contains(&(*i as i64))) {
            *counts.entry(value.clone()).or_insert(0) += i64::from(i < times.len());
        }
        let counts: Vec<_> = counts.into_iter().map(|(value, n)| vec![value, n.to_string()]).collect();
        assert_eq!(sorted(&[shown]), counts, "{expr}");
    }
}

#[tokio::test]
async fn where_it_is_not_certain_when_a_key_is_final_it_never_is() {
    let times = event_times();
    let naive = [
        "at AT TIME ZONE 'Asia/Tokyo'",
        "date_bin(INTERVAL '1 hour', at AT TIME ZONE 'America/New_York')",
        "CAST(at AT TIME ZONE 'Asia/Tokyo' AS DATE)",
        "date_trunc('month', at)",
        "date_trunc('day', at AT TIME ZONE 'Europe/Berlin')",
        "CAST(at AS TIME)",
        "date_part('hour', at)",
        "extract(epoch FROM at)",
        "date_bin(INTERVAL '7 hours', date_bin(INTERVAL '5 hours', at))",
        "date_bin(INTERVAL '1 month', at)",
        "CASE WHEN id > 0 THEN at END",
    ];
    let zoned = [
        "CAST(at AT TIME ZONE 'America/New_York' AS DATE)",
        "date_trunc('day', at AT TIME ZONE 'Asia/Tokyo')",
    ];
    let zone = Some("+00:00");
    let all = naive.iter().map(|expr| (expr, None)).chain(zoned.iter().map(|expr| (expr, zone)));
    for (expr, zone) in all {
        let view = format!(
            "CREATE MATERIALIZED VIEW v AS SELECT {expr} AS k, COUNT(*) AS n FROM events GROUP BY 1;"
        );
        let mut engine = started(&format!("{} {view}", source("", zone))).await;
        assert!(!engine.nodes[0].node.bounds_time(), "{expr}");
        let (late, shown) = late_in_the_engine(&mut engine, &times, zone).await;
        assert_eq!(late, [0; 0], "{expr}");
        let counted: i64 = shown.column(1).as_primitive::<Int64Type>().iter().flatten().sum();
        assert_eq!(counted, ROWS, "{expr}");
    }
}

/// An instant is the same in every zone, and so is the time after it.
#[tokio::test]
async fn an_instant_in_another_zone_bounds_time_as_it_does() {
    let (times, zone) = (event_times(), Some("+00:00"));
    for expr in ["date_bin(INTERVAL '1 hour', at AT TIME ZONE 'Asia/Tokyo')", "CAST(at AS DATE)"] {
        let (expected, _) = late_by_definition(expr, &times, zone).await;
        let view = format!(
            "CREATE MATERIALIZED VIEW v AS SELECT {expr} AS k, COUNT(*) AS n FROM events GROUP BY 1;"
        );
        let mut engine = started(&format!("{} {view}", source("", zone))).await;
        assert_eq!(late_in_the_engine(&mut engine, &times, zone).await.0, expected, "{expr}");
        assert!(!expected.is_empty());
    }
}

#[tokio::test]
async fn the_narrowest_key_says_when_a_group_is_final() {
    let times = event_times();
    let (expected, _) = late_by_definition("date_bin(INTERVAL '1 hour', at)", &times, None).await;
    let view = "CREATE MATERIALIZED VIEW v AS SELECT CAST(at AS DATE) AS day, date_bin(INTERVAL '1 hour', at) AS hour,
                COUNT(*) AS n FROM events GROUP BY 1, 2;";
    let mut engine = started(&format!("{} {view}", source("", None))).await;
    assert_eq!(late_in_the_engine(&mut engine, &times, None).await.0, expected);
}

#[tokio::test]
async fn a_reference_table_with_a_streams_name_makes_nothing_final() {
    let view = "CREATE MATERIALIZED VIEW v AS SELECT date_bin(INTERVAL '1 hour', p.at) AS k, COUNT(*) AS n
                FROM events e JOIN pg.events p ON p.id = e.id GROUP BY 1;";
    let tables = [("events".to_string(), schema(None))];
    let engine = plan_with(&format!("{} {view}", source("", None)), &tables).await.unwrap();
    assert!(!engine.nodes[0].node.bounds_time());
}

#[tokio::test]
async fn sessions_of_another_time_than_the_event_time_are_never_final() {
    let view = |time: &str| {
        format!(
            "CREATE MATERIALIZED VIEW v AS SELECT window_start, COUNT(*) AS n
             FROM session(events, {time}, INTERVAL '1 hour') GROUP BY window_start;"
        )
    };
    for (time, bounds) in [("at", true), ("at + INTERVAL '1 day'", false), ("date_trunc('day', at)", false)] {
        let engine = started(&format!("{} {}", source("", None), view(time))).await;
        assert_eq!(engine.nodes[0].node.bounds_time(), bounds, "{time}");
    }
}

#[tokio::test]
async fn an_event_time_after_the_brokers_timestamp_does_not_end_the_windows_of_others() {
    let view = "CREATE MATERIALIZED VIEW v AS SELECT date_bin(INTERVAL '1 minute', at) AS k, COUNT(*) AS n
                FROM events GROUP BY 1;";
    let mut engine = started(&format!("{} {view}", source(", 'max_future' '10 minutes'", None))).await;
    let times = [BASE_S, BASE_S + 200 * 365 * 86_400, BASE_S + 1];
    let origin = |at: i64| Origin { timestamp_ms: Some(at * 1000), ..Origin::default() };
    let origins = [origin(BASE_S), origin(BASE_S), origin(BASE_S + 1)];
    let applied = engine.apply("events", rows(&times[..2], None), Some(&origins[..2])).await.unwrap();
    assert!(applied.late.is_empty());
    assert_eq!(engine.watermark("events"), Some((BASE_S + 600 - DELAY_S) * SECOND));
    let applied = engine.apply("events", rows(&[BASE_S + 600], None), Some(&origins[2..])).await.unwrap();
    assert!(applied.late.is_empty(), "an honest row");
}

#[tokio::test]
async fn an_idle_partition_holds_no_window_open_and_the_holder_is_named() {
    let view = "CREATE MATERIALIZED VIEW v WITH (mode = 'append') AS
                SELECT date_bin(INTERVAL '1 minute', at) AS k, COUNT(*) AS n FROM events GROUP BY 1;";
    let mut engine = started(&format!("{} {view}", source(", 'idle_timeout' '30 seconds'", None))).await;
    let of = |partition| [Origin { partition, ..Origin::default() }];
    assert_eq!(engine.watermark_holder("events"), None);
    engine.wait_for("events", BTreeSet::from([0, 1, 2]));
    engine.apply("events", rows(&[BASE_S], None), Some(&of(0))).await.unwrap();
    assert_eq!((engine.watermark("events"), engine.watermark_holder("events")), (None, Some(1)));
    engine.wait_for("events", BTreeSet::new());
    engine.apply("events", rows(&[BASE_S + 600], None), Some(&of(1))).await.unwrap();
    let mark = |at: i64| Some((at - DELAY_S) * SECOND);
    assert_eq!((engine.watermark("events"), engine.watermark_holder("events")), (mark(BASE_S), Some(0)));
    engine.set_idle("events", BTreeSet::from([0]));
    assert_eq!(
        (engine.watermark("events"), engine.watermark_holder("events")),
        (mark(BASE_S + 600), Some(1))
    );
    let applied = engine.apply("events", rows(&[BASE_S + 601], None), Some(&of(1))).await.unwrap();
    assert_eq!(applied.changes[0].rows.batch().unwrap().num_rows(), 1, "the window of the silent partition");
    engine.set_idle("events", BTreeSet::from([0, 1]));
    assert_eq!(engine.watermark("events"), mark(BASE_S + 601), "if all are silent, what was there counts");
    engine.set_idle("events", BTreeSet::new());
    assert_eq!(engine.watermark_holder("events"), Some(0), "it speaks again");
    let applied = engine.apply("events", rows(&[BASE_S + 1], None), Some(&of(0))).await.unwrap();
    assert_eq!(applied.late.len(), 1, "too late, and told so");
}

#[tokio::test]
async fn keys_of_final_sessions_are_forgotten() {
    let view = "CREATE MATERIALIZED VIEW v WITH (mode = 'append') AS SELECT id, window_start, COUNT(*) AS n
                FROM session(events, at, INTERVAL '100 seconds', id) GROUP BY id, window_start;";
    let mut engine = started(&format!("{} {view}", source("", None))).await;
    let (mut most, mut counted) = (0, 0);
    for first in (0..40_000i64).step_by(500) {
        // Each key has two rows, of which the second comes with the next batch, after many keys were forgotten.
        let ids = (first..first + 500).chain((first - 500).max(0)..first);
        let (ids, at): (Vec<i64>, Vec<i64>) = ids.map(|id| (id, (BASE_S + first + id % 50) * SECOND)).unzip();
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(Int64Array::from(ids)), Arc::new(TimestampNanosecondArray::from(at))];
        let applied =
            engine.apply("events", RecordBatch::try_new(schema(None), columns).unwrap(), None).await.unwrap();
        assert!(applied.late.is_empty());
        most = most.max(engine.nodes[0].node.bytes());
        let log = applied.changes.first().map(|change| change.changelog.rows.clone());
        counted += log.map_or(0, |rows| rows.column(2).as_primitive::<Int64Type>().iter().flatten().sum());
    }
    assert!(most < 1 << 20, "{most} bytes");
    let open = engine.nodes[0].node.rows().unwrap();
    counted += open.column(2).as_primitive::<Int64Type>().iter().flatten().sum::<i64>();
    assert_eq!(counted, 2 * 40_000 - 500);
}

#[test]
fn event_times_have_room_for_the_longest_window() {
    let (first, last) = crate::catalog::EVENT_TIME_YEARS;
    for year in [first, last] {
        let begins =
            chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_time(Default::default()).and_utc();
        let nanoseconds = begins.timestamp_nanos_opt().unwrap();
        assert!(nanoseconds.checked_add(window_functions::WINDOW_MAX).is_some(), "{year}");
        assert!(nanoseconds.checked_sub(window_functions::WINDOW_MAX).is_some(), "{year}");
    }
}

#[test]
fn times_of_any_unit_and_dates_are_nanoseconds_since_1970() {
    let days: arrow::array::ArrayRef = Arc::new(arrow::array::Date32Array::from(vec![1, 200_000]));
    let times = watermark::nanoseconds(&days).unwrap();
    assert_eq!(
        times.iter().collect::<Vec<_>>(),
        [Some(86_400 * SECOND), None],
        "none where they can't hold it"
    );
    let seconds = cast(&days, &DataType::Timestamp(TimeUnit::Second, None)).unwrap();
    assert_eq!(
        watermark::nanoseconds(&seconds).unwrap().iter().collect::<Vec<_>>(),
        [Some(86_400 * SECOND), None]
    );
}

/// The row of [`late_of`] that is the first of another partition: it is late by the others.
const OF_ANOTHER_PARTITION: usize = 13;

/// Rows of `seconds`, each a micro-batch; positions of those that a view told to be late.
async fn late_of(view: &str, seconds: &[i64]) -> (Vec<i64>, Vec<Vec<String>>) {
    let mut engine = started(&format!("{} CREATE MATERIALIZED VIEW v {view};", source("", None))).await;
    let (mut late, mut shown) = (Vec::new(), Vec::new());
    let times: Vec<i64> = seconds.iter().map(|second| BASE_S + second).collect();
    let all = rows(&times, None);
    for row in 0..times.len() {
        let partition = i32::from(row == OF_ANOTHER_PARTITION);
        let origin = Origin { timestamp_ms: None, partition, offset: row as i64 };
        let applied = engine.apply("events", all.slice(row, 1), Some(&[origin])).await.unwrap();
        late.extend(applied.late.iter().map(|_| row as i64));
        if let Some(change) = applied.changes.last() {
            shown = sorted(&[change.rows.batch().unwrap()]);
        }
    }
    assert!(engine.failures().is_empty());
    (late, shown)
}

/// What a window leaves out must not depend on whether its rows are held.
#[tokio::test]
async fn windows_over_held_rows_leave_out_the_same_rows_as_those_of_an_aggregate() {
    let seconds = [1, 11, 2, 12, 130, 71, 69, 80, 200, 150, 100, 131, 300, 190, 260, 241];
    for window in [
        "session(events, at, INTERVAL '3 seconds')",
        "session(events, at, INTERVAL '45 seconds')",
        "tumble(events, at, INTERVAL '10 seconds')",
        "hop(events, at, INTERVAL '10 seconds', INTERVAL '40 seconds')",
    ] {
        let query = |condition: &str| {
            format!(
                "SELECT window_start, window_end, COUNT(*) AS n FROM {window} {condition} GROUP BY window_start, window_end"
            )
        };
        let (expected, of_aggregate) = late_of(&format!("AS {}", query("")), &seconds).await;
        assert!(!expected.is_empty(), "{window}: a test of nothing");
        // A subquery over the stream, or a filter over sessions, needs the rows themselves.
        let condition = "WHERE id >= (SELECT MIN(id) FROM events)";
        let (late, shown) =
            late_of(&format!("WITH (hold_rows = 100) AS {}", query(condition)), &seconds).await;
        assert_eq!(late, expected, "{window}");
        assert_eq!(shown, of_aggregate, "{window}");
        let view = format!(
            "WITH (hold_rows = 100) AS SELECT window_start, window_end, MAX(r) AS n FROM (SELECT window_start, window_end,
             ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY at) AS r FROM {window})
             GROUP BY window_start, window_end"
        );
        let (late, shown) = late_of(&view, &seconds).await;
        assert_eq!((late, shown), (expected.clone(), of_aggregate.clone()), "{window}");
        let view = format!(
            "WITH (hold_rows = 100) AS SELECT x.window_start, x.window_end, COUNT(*) AS n FROM {window} x
             JOIN events e ON e.id = x.id GROUP BY x.window_start, x.window_end"
        );
        let (late, shown) = late_of(&view, &seconds).await;
        assert_eq!((late, shown), (expected, of_aggregate), "{window}");
    }
}

#[tokio::test]
async fn a_window_over_a_join_of_streams_has_no_final_rows_and_says_so() {
    let text = format!(
        "{} CREATE MATERIALIZED VIEW v WITH (mode = 'append', hold_rows = 100) AS SELECT x.window_start, COUNT(*) AS n
         FROM tumble(events, at, INTERVAL '1 minute') x JOIN events e ON e.id = x.id GROUP BY x.window_start;",
        source("", None)
    );
    let error = plan_with(&text, &[]).await.err().unwrap().to_string();
    assert!(error.contains("could change later"), "{error}");
    assert!(error.contains("use mode update"), "{error}");
}

#[tokio::test]
async fn a_grouped_window_of_each_kind_finds_its_key() {
    let view = |name: &str, window: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} AS SELECT window_start, id, MAX(at) AS m FROM {window} GROUP BY window_start, id;"
        )
    };
    let views = [
        view("a", "hop(events, at, INTERVAL '15 seconds', INTERVAL '30 seconds')"),
        view("b", "tumble(events, at, INTERVAL '15 seconds')"),
        view("c", "session(events, at, INTERVAL '15 seconds', id)"),
        // What is unnested of grouped rows is not told apart by their key.
        "CREATE MATERIALIZED VIEW d AS SELECT id, UNNEST(m) AS u FROM
         (SELECT id, ARRAY_AGG(at ORDER BY at) AS m FROM events GROUP BY id);"
            .into(),
        "CREATE MATERIALIZED VIEW e AS SELECT id, u, COUNT(*) AS n FROM (SELECT id, UNNEST(m) AS u FROM
         (SELECT id, ARRAY_AGG(at ORDER BY at) AS m FROM events GROUP BY id)) GROUP BY id, u;"
            .into(),
    ];
    let engine = started(&format!("{} {}", source("", None), views.concat())).await;
    let keys: Vec<_> = engine.views().map(|info| info.key.join(", ")).collect();
    assert_eq!(keys, ["window_start, id", "window_start, id", "window_start, id", "", ""]);
    let mut engine = engine;
    let mut ops = Vec::new();
    for second in [0, 1] {
        let applied = engine.apply("events", rows(&[BASE_S + second], None), None).await.unwrap();
        ops.push(applied.changes[0].changelog.ops.clone());
    }
    assert_eq!(ops, [[Op::Insert; 2], [Op::Update; 2]]);
}

#[tokio::test]
async fn only_the_columns_that_are_read_are_held_of_the_rows_of_windows() {
    for window in ["session(events, at, INTERVAL '1 minute')", "tumble(events, at, INTERVAL '1 minute')"] {
        let view = format!(
            "CREATE MATERIALIZED VIEW v WITH (hold_rows = 100) AS
             SELECT window_start, ROW_NUMBER() OVER (ORDER BY window_end, window_start) AS r FROM {window};"
        );
        let engine = started(&format!("{} {view}", source("", None))).await;
        assert_eq!(engine.source_columns("events"), BTreeSet::from(["at".to_string()]), "{window}");
    }
}

#[tokio::test]
async fn a_join_by_an_interval_holds_what_it_can_still_meet() {
    let within = "a.at BETWEEN b.at AND b.at + INTERVAL '10 seconds'";
    // A row is held until the watermark, a minute behind, has passed what it can meet.
    for (condition, left, right) in [
        (within, 60, 70),
        ("b.at >= a.at - INTERVAL '10 seconds' AND b.at <= a.at", 60, 70),
        ("b.at + INTERVAL '10 seconds' > a.at AND a.at > b.at - INTERVAL '5 seconds'", 65, 70),
        ("a.at - b.at <= INTERVAL '10 seconds' AND a.at - b.at >= INTERVAL '0 seconds'", 60, 70),
        ("a.at = b.at", 60, 60),
        ("a.at > b.at", 480, 480),
        ("a.at >= b.at AND a.id < b.id", 480, 480),
    ] {
        for kind in ["JOIN", "LEFT JOIN", "FULL JOIN"] {
            let view = format!(
                "CREATE MATERIALIZED VIEW v AS SELECT a.id AS a, b.id AS b FROM events a {kind} events b
                 ON a.id % 7 = b.id % 7 AND {condition};"
            );
            let mut engine = started(&format!("{} {view}", source("", None))).await;
            for first in [0, 240] {
                let seconds: Vec<i64> = (first..first + 240).map(|second| BASE_S + second).collect();
                engine.apply("events", rows(&seconds, None), None).await.unwrap();
            }
            let held = engine.graph.held_rows(0..engine.graph.len());
            let expected = left + right;
            assert!(
                (expected - 2..=expected + 2).contains(&held),
                "{kind} {condition}: {held}, not {expected}"
            );
        }
    }
}
