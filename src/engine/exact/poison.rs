//! One value among others that an expression can't take: it is left out of the views that ask for it, and of no other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::datasource::MemTable;

use crate::catalog::Catalog;
use crate::engine::oracle::cells;
use crate::engine::{Applied, Engine, session};
use crate::queries::QueryFile;

const SOURCE: &str = "CREATE UNBOUNDED EXTERNAL TABLE s (id BIGINT, i BIGINT, m BIGINT, n INT, u BIGINT UNSIGNED, w BIGINT UNSIGNED,
    neg BIGINT, z BIGINT, big BIGINT, c BIGINT, d DECIMAL(38, 0), e DECIMAL(38, 19), g DECIMAL(20, 0), f DOUBLE, h DOUBLE,
    late TIMESTAMP, early TIMESTAMP, day DATE, t VARCHAR, q VARCHAR, hex VARCHAR, pattern VARCHAR)
    STORED AS KAFKA LOCATION 's'";
/// A row that every expression takes.
const GOOD: &str = "1, 1, 1, 5, 5, 1, 1, 1, 65, 1, 1, 1, 1.0, 1.0, '2024-01-01', '2024-01-01', '2024-01-01', '1', '2024-01-01', '00', 'a'";
/// And one that none takes.
const POISON: &str = "9223372036854775807, -9223372036854775808, 2147483647, 18446744073709551615, 0, -1, 0, 30, 55296,
    '99999999999999999999999999999999999999', '0.0000000000000000001', '99999999999999999999', 1e300, -1.0, '2262-04-11T23:47:10',
    '1677-09-21T00:12:44', '5000-01-01', 'x', 'y', 'zz', '['";

const EXPRESSIONS: [&str; 68] = [
    "i + 1",
    "m - 1",
    "i * 2",
    "-m",
    "n + n",
    "n * n",
    "i + i",
    "w - CAST(1 AS BIGINT UNSIGNED)",
    "u + CAST(1 AS BIGINT UNSIGNED)",
    "u * u",
    "m / neg",
    "i / z",
    "i % z",
    "1 / z",
    "abs(m)",
    "CASE WHEN id > 0 THEN i + 1 ELSE 0 END",
    "d + 1",
    "d * 10",
    "g * g",
    "d / e",
    "d * d",
    "d - CAST(-1 AS DECIMAL(38, 0))",
    "CAST(f AS BIGINT)",
    "CAST(i AS INT)",
    "CAST(neg AS BIGINT UNSIGNED)",
    "CAST(t AS INT)",
    "CAST(q AS TIMESTAMP)",
    "CAST(d AS DECIMAL(37, 0))",
    "CAST(n AS SMALLINT)",
    "CAST(d AS BIGINT)",
    "CAST(i AS DECIMAL(5, 0))",
    "CAST(f AS DECIMAL(38, 0))",
    "arrow_cast(i, 'Int8')",
    "CAST(day AS TIMESTAMP)",
    "late + INTERVAL '1 day'",
    "early - INTERVAL '1 day'",
    "late + INTERVAL '200 years'",
    "early - INTERVAL '1 month'",
    "late - early",
    "arrow_cast(i, 'Duration(Nanosecond)') + arrow_cast(i, 'Duration(Nanosecond)')",
    "date_trunc('day', early)",
    "date_trunc('year', early)",
    "date_bin(INTERVAL '1 day', early)",
    "date_bin(INTERVAL '1 month', early)",
    "to_timestamp(f)",
    "to_timestamp(i)",
    "to_timestamp_seconds(f)",
    "make_date(n, 1, 1)",
    "to_date(q)",
    "to_char(CAST(q AS DATE), '%Y')",
    "regexp_match(t, pattern)",
    "regexp_like(t, pattern)",
    "t ~ pattern",
    "split_part(t, 'y', z)",
    "chr(neg)",
    "chr(c)",
    "decode(hex, 'hex')",
    "substr(t, 1, neg)",
    "factorial(big)",
    "gcd(m, m)",
    "lcm(i, m)",
    "make_array(1, 2)[m]",
    "repeat(t, i)",
    "lpad(t, i)",
    "rpad(t, i, 'ab')",
    "array_repeat(t, i)",
    "array_resize(make_array(1), i)",
    "overlay(t placing 'y' from z)",
];

const AGGREGATES: [&str; 9] = [
    "SUM(i)",
    "SUM(m - 1)",
    "SUM(u)",
    "SUM(d)",
    "SUM(i) FILTER (WHERE id > 0)",
    "SUM(DISTINCT i)",
    "AVG(d)",
    "AVG(arrow_cast(i, 'Duration(Nanosecond)'))",
    "SUM(n * n)",
];

struct Setup {
    engine: Engine,
    catalog: Catalog,
}

impl Setup {
    async fn new(views: &[(String, String)]) -> Setup {
        let mut text = SOURCE.to_string();
        for (name, query) in views {
            text += &format!(";\nCREATE MATERIALIZED VIEW {name} AS {query}");
        }
        let files = [QueryFile { path: PathBuf::from("poison.sql"), text }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        let mut engine = Engine::plan(&catalog, &[]).await.unwrap();
        engine.start().await.unwrap();
        Setup { engine, catalog }
    }

    async fn rows(&self, rows: &[&str]) -> RecordBatch {
        let schema = Arc::clone(&self.catalog.sources["s"].schema);
        let session = session::batch(session::base_config());
        let empty = MemTable::try_new(Arc::clone(&schema), vec![vec![]]).unwrap();
        session.register_table("s", Arc::new(empty)).unwrap();
        for (id, row) in rows.iter().enumerate() {
            let insert = format!("INSERT INTO s VALUES ({}, {row})", id + 1);
            session.sql(&insert).await.unwrap().collect().await.unwrap();
        }
        concat_batches(&schema, &session.table("s").await.unwrap().collect().await.unwrap()).unwrap()
    }

    async fn apply(&mut self, rows: &[&str]) -> (Applied, BTreeMap<String, Vec<Vec<String>>>) {
        let rows = self.rows(rows).await;
        let applied = self.engine.apply("s", rows, None).await.unwrap();
        let shown = applied.changes.iter();
        let shown = shown.map(|change| (change.info.name.clone(), cells(&change.rows.batch().unwrap())));
        let shown = shown.collect();
        (applied, shown)
    }
}

fn views() -> Vec<(String, String)> {
    let mut views = Vec::new();
    for (i, expression) in EXPRESSIONS.iter().enumerate() {
        views.push((format!("passed_{i}"), format!("SELECT id, {expression} AS x FROM s")));
        views.push((
            format!("grouped_{i}"),
            format!("SELECT id % 1 AS k, array_agg({expression}) AS x, COUNT(*) AS n FROM s GROUP BY 1"),
        ));
    }
    for (i, aggregate) in AGGREGATES.iter().enumerate() {
        views.push((
            format!("aggregate_{i}"),
            format!("SELECT id % 1 AS k, {aggregate} AS x, COUNT(*) AS n FROM s GROUP BY 1"),
        ));
    }
    views.push(("counted".into(), "SELECT COUNT(*) AS n FROM s".into()));
    views
}

#[tokio::test]
async fn a_value_is_left_out_of_the_views_that_cannot_take_it() {
    let views = views();
    let mut setup = Setup::new(&views).await;
    let (applied, shown) = setup.apply(&[GOOD, GOOD, GOOD, POISON, GOOD, GOOD, GOOD]).await;
    let mut wrong = Vec::new();
    for (name, query) in &views {
        let errors: Vec<_> = applied.errors.iter().filter(|error| &error.view == name).collect();
        let rows: Vec<_> = errors.iter().map(|error| error.row).collect();
        let expected = if name == "counted" { vec![] } else { vec![Some(3)] };
        if rows != expected {
            wrong.push(format!(
                "{query}: {rows:?}, {:?}, {:?}",
                errors.first().map(|error| &error.reason),
                shown.get(name)
            ));
            continue;
        }
        let counted = match shown.get(name).map(Vec::as_slice) {
            Some([row]) => row.last().cloned().unwrap_or_default(),
            Some(rows) => rows.len().to_string(),
            None => String::new(),
        };
        if counted != if name == "counted" { "7" } else { "6" } {
            wrong.push(format!("{query}: {:?}", shown.get(name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(setup.engine.failures().is_empty(), "{:?}", setup.engine.failures());
}

#[tokio::test]
async fn the_views_go_on_after_it() {
    let views = views();
    let mut setup = Setup::new(&views).await;
    setup.apply(&[POISON]).await;
    let (applied, shown) = setup.apply(&[GOOD, GOOD]).await;
    let errors: Vec<_> = applied.errors.iter().filter(|error| !error.view.starts_with("aggregate")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    // A sum that is as large as it can be takes no more.
    for (name, query) in views.iter().filter(|(name, _)| !name.starts_with("aggregate")) {
        let rows = shown.get(name).unwrap_or_else(|| panic!("{query} stands still"));
        if name.starts_with("passed") {
            assert_eq!(rows.len(), 2, "{query}: {rows:?}");
        } else if name.starts_with("grouped") {
            assert_eq!(rows[0].last().unwrap(), "2", "{query}: {rows:?}");
        }
    }
    assert_eq!(shown["counted"], [["3"]]);
}
