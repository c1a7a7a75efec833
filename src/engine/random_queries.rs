//! Random queries over random rows in random micro-batches, each compared with its oracle. A failure prints
//! the seed and the SQL; `TALLY_ORACLE_SEED` runs one seed, `TALLY_ORACLE_CASES` as many as wanted.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListBuilder, StringArray, StringBuilder, TimestampNanosecondArray};
use rand::prelude::*;
use rand::rngs::ChaCha8Rng;

use arrow::datatypes::{Schema, SchemaRef};

use super::oracle::{Pair, assert_same};
use super::*;

const CASES: u64 = 2000;
const BASE: i64 = 1_704_103_200_000_000_000;

fn declarations(watermark: bool) -> Vec<String> {
    let options = |delay: &str| match watermark {
        true => format!("OPTIONS ('event_time' 'at', 'watermark' '{delay}')"),
        false => String::new(),
    };
    vec![
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, k VARCHAR, g VARCHAR, x BIGINT, at TIMESTAMP, tags VARCHAR[])
             STORED AS KAFKA LOCATION 'events' {}",
            options("30 seconds")
        ),
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE clicks (id BIGINT, k VARCHAR, g VARCHAR, x BIGINT, at TIMESTAMP, tags VARCHAR[])
             STORED AS KAFKA LOCATION 'clicks' {}",
            options("30 seconds")
        ),
        "CREATE EXTERNAL TABLE places (k VARCHAR, name VARCHAR) STORED AS CSV LOCATION 'p.csv'".into(),
        "CREATE EXTERNAL TABLE sizes (g VARCHAR, size BIGINT) STORED AS CSV LOCATION 's.csv'".into(),
    ]
}

/// Draws SQL.
struct Draw(ChaCha8Rng);

impl Draw {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).expect("a choice")
    }

    fn chance(&mut self, of_ten: u32) -> bool {
        self.0.random_range(0..10) < of_ten
    }

    /// Some of the list, at least one, in its order.
    fn some(&mut self, of: &[&str], most: usize) -> Vec<String> {
        let count = self.0.random_range(1..=most.min(of.len()));
        let mut chosen: Vec<usize> = (0..of.len()).collect();
        chosen.shuffle(&mut self.0);
        chosen.truncate(count);
        chosen.sort();
        chosen.into_iter().map(|i| of[i].to_string()).collect()
    }

    /// A FROM item named `e` that has events' columns, and further columns to group by.
    fn from(&mut self) -> (String, Vec<&'static str>) {
        match self.0.random_range(0..12) {
            0 | 1 => ("events e".into(), vec![]),
            2 => ("events e JOIN places p ON p.k = e.k".into(), vec!["p.name"]),
            3 => ("events e LEFT JOIN places p ON p.k = e.k".into(), vec!["p.name"]),
            4 => (
                "events e JOIN places p ON p.k = e.k LEFT JOIN sizes s ON s.g = e.g".into(),
                vec!["p.name", "s.size"],
            ),
            5 => ("(SELECT * FROM events UNION ALL SELECT * FROM clicks) e".into(), vec![]),
            6 => ("(SELECT id, k, g, x, at, UNNEST(tags) AS tag FROM events) e".into(), vec!["e.tag"]),
            7 => ("tumble(events, at, INTERVAL '1 minute') e".into(), vec!["e.window_start", "e.window_end"]),
            8 => (
                "hop(events, at, INTERVAL '20 seconds', INTERVAL '50 seconds') e".into(),
                vec!["e.window_start"],
            ),
            9 => ("(SELECT * FROM events WHERE k IN (SELECT k FROM places)) e".into(), vec![]),
            10 => {
                let sql =
                    "(SELECT * FROM events v WHERE NOT EXISTS (SELECT 1 FROM places p WHERE p.k = v.k)) e";
                (sql.into(), vec![])
            }
            _ => ("events e LEFT SEMI JOIN sizes s ON s.g = e.g AND s.size > e.x".into(), vec![]),
        }
    }

    fn filter(&mut self) -> String {
        let conditions = [
            "e.x > 2",
            "e.k IS NOT NULL",
            "e.k LIKE '%a%'",
            "e.x IN (1, 2, 3, 5)",
            "e.x % 2 = 0 OR e.k = 'b'",
            "e.x BETWEEN 0 AND 6",
            "e.x > (SELECT MIN(size) FROM sizes)",
            "NOT (e.g = 'n')",
        ];
        if self.chance(4) { format!(" WHERE {}", self.one(&conditions)) } else { String::new() }
    }

    fn aggregates(&mut self) -> Vec<String> {
        let of = [
            "COUNT(*)",
            "COUNT(e.x)",
            "SUM(e.x)",
            "AVG(e.x)",
            "MIN(e.x)",
            "MAX(e.at)",
            "MIN(e.k)",
            "COUNT(DISTINCT e.x)",
            "SUM(DISTINCT e.x)",
            "COUNT(DISTINCT e.k)",
            "AVG(DISTINCT e.x)",
            "SUM(e.x) FILTER (WHERE e.x > 2)",
            "COUNT(*) FILTER (WHERE e.k = 'a')",
            "COUNT(DISTINCT e.x) FILTER (WHERE e.g = 'n')",
            "BOOL_OR(e.x > 4)",
            "BOOL_AND(e.x > 0)",
            "BIT_XOR(e.x)",
            "MEDIAN(e.x)",
            "ARRAY_AGG(e.id ORDER BY e.id)",
            "STRING_AGG(e.k, ',' ORDER BY e.id)",
            "VAR_POP(e.x)",
            "CORR(e.x, e.id)",
            "FIRST_VALUE(e.x ORDER BY e.id)",
            "LAST_VALUE(e.k ORDER BY e.id)",
            "MAX(e.x) - MIN(e.x)",
            "SUM(e.x * 2 + 1)",
            "APPROX_DISTINCT(e.x)",
        ];
        self.some(&of, 3).into_iter().enumerate().map(|(i, sql)| format!("{sql} AS a{i}")).collect()
    }

    /// An aggregate: SQL, names of its keys, and of its results.
    fn aggregate(&mut self) -> (String, Vec<String>, Vec<String>) {
        if self.chance(1) {
            let results = self.aggregates();
            let names = (0..results.len()).map(|i| format!("a{i}")).collect();
            let by = self.one(&["k", "k, g"]).to_string();
            let keys: Vec<String> = by.split(", ").map(String::from).collect();
            let mut columns: Vec<String> = keys.iter().map(|key| format!("e.{key} AS {key}")).collect();
            columns.push("e.window_start AS w".into());
            columns.extend(results);
            let sql = format!(
                "SELECT {} FROM session(events, at, INTERVAL '25 seconds', {by}) e GROUP BY e.window_start, {}",
                columns.join(", "),
                keys.iter().map(|key| format!("e.{key}")).collect::<Vec<_>>().join(", ")
            );
            return (sql, [keys, vec!["w".into()]].concat(), names);
        }
        let (from, more) = self.from();
        let mut keys = vec!["e.k", "e.g", "e.x % 3", "date_bin(INTERVAL '1 minute', e.at)", "e.k IS NULL"];
        keys.extend(more);
        let mut keys = if self.chance(1) { vec![] } else { self.some(&keys, 3) };
        let sets = keys.len() > 1 && self.chance(3);
        if sets {
            keys.truncate(2);
        }
        let results = self.aggregates();
        let names: Vec<String> = (0..results.len()).map(|i| format!("a{i}")).collect();
        let named: Vec<String> = keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}")).collect();
        let group = match keys.len() {
            0 => String::new(),
            _ if !sets => format!(" GROUP BY {}", keys.join(", ")),
            _ => match self.0.random_range(0..3) {
                0 => format!(" GROUP BY ROLLUP ({})", keys.join(", ")),
                1 => format!(" GROUP BY CUBE ({})", keys.join(", ")),
                _ => format!(" GROUP BY GROUPING SETS (({}), ({}))", keys[0], keys[1]),
            },
        };
        let having = match keys.len() {
            1.. if self.chance(2) => {
                format!(" HAVING {}", self.one(&["COUNT(*) > 1", "SUM(e.x) % 2 = 0", "MAX(e.x) > 3"]))
            }
            _ => String::new(),
        };
        let columns = [named, results].concat().join(", ");
        let keys: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
        (format!("SELECT {columns} FROM {from}{}{group}{having}", self.filter()), keys, names)
    }

    /// A view over aggregates.
    fn over_aggregates(&mut self) -> String {
        let (sql, keys, results) = self.aggregate();
        let all = [keys.clone(), results.clone()].concat().join(", ");
        let (first, key) = (&results[0], keys.first().cloned());
        match self.0.random_range(0..12) {
            0 => format!("SELECT *, RANK() OVER (ORDER BY {first}) AS r, COUNT(*) OVER () AS c FROM ({sql})"),
            1 => format!("SELECT COUNT(*) AS n, COUNT({first}) AS m, MIN({first}) AS lo FROM ({sql})"),
            2 => format!("{sql} ORDER BY {all} LIMIT 3"),
            3 => format!("SELECT DISTINCT {first} FROM ({sql})"),
            4 => match key {
                Some(key) => format!(
                    "SELECT p.k, p.name, t.{first} FROM places p LEFT JOIN ({sql}) t ON CAST(t.{key} AS VARCHAR) = p.k"
                ),
                None => format!("SELECT p.k, t.{first} FROM places p CROSS JOIN ({sql}) t"),
            },
            5 => format!(
                "SELECT CAST({first} AS VARCHAR) AS v FROM ({sql}) UNION ALL SELECT k FROM events GROUP BY k"
            ),
            6 => format!(
                "SELECT CAST({first} AS VARCHAR) AS v FROM ({sql}) EXCEPT SELECT CAST(x AS VARCHAR) FROM clicks"
            ),
            7 => format!(
                "WITH t AS ({sql}) SELECT a.{first} AS one, b.{first} AS other FROM t a JOIN t b ON a.{first} = b.{first}"
            ),
            8 => format!("SELECT * FROM ({sql}) WHERE {first} IS NOT NULL"),
            _ => sql,
        }
    }

    /// A view that passes rows on, or needs them held.
    fn over_rows(&mut self) -> (String, bool) {
        let (from, _) = self.from();
        let filter = self.filter();
        match self.0.random_range(0..9) {
            0..=2 => (format!("SELECT e.id, e.x + 1 AS y, e.k FROM {from}{filter}"), false),
            3 => (format!("SELECT e.id, c.id AS other FROM {from} JOIN clicks c ON c.k = e.k{filter}"), true),
            4 => (format!("SELECT e.id, ROW_NUMBER() OVER (PARTITION BY e.g ORDER BY e.x, e.id) AS r FROM {from}{filter}"), true),
            5 => (format!("SELECT e.id, e.x FROM {from}{filter} ORDER BY e.x DESC, e.id LIMIT 4"), true),
            6 => ("SELECT id, x FROM events WHERE x > (SELECT AVG(x) FROM events)".into(), true),
            7 => ("SELECT e.g, COUNT(*) AS n FROM events e LEFT JOIN clicks c ON c.k = e.k AND c.x < e.x GROUP BY e.g".into(), true),
            _ => ("SELECT id FROM events WHERE k IN (SELECT k FROM clicks GROUP BY k HAVING COUNT(*) > 1)".into(), true),
        }
    }

    fn view(&mut self) -> String {
        if self.chance(8) {
            return format!("CREATE MATERIALIZED VIEW v AS {}", self.over_aggregates());
        }
        let (sql, hold) = self.over_rows();
        let options = if hold { "WITH (hold_rows = 10000) " } else { "" };
        format!("CREATE MATERIALIZED VIEW v {options}AS {sql}")
    }

    /// Rows with NULLs, repeated values and times in no order.
    fn rows(&mut self, schema: &Schema, count: usize, next_id: &mut i64) -> RecordBatch {
        let mut text = |of: &[&str]| -> Option<String> {
            let known = self.0.random_range(0..10) > 0;
            known.then(|| of.choose(&mut self.0).expect("a choice").to_string())
        };
        let k: Vec<_> = (0..count).map(|_| text(&["a", "b", "c", "ba", ""])).collect();
        let g: Vec<_> = (0..count).map(|_| text(&["n", "s", "w"])).collect();
        let number =
            |draw: &mut ChaCha8Rng| (draw.random_range(0..10) > 0).then(|| draw.random_range(-2..9i64));
        let x: Vec<_> = (0..count).map(|_| number(&mut self.0)).collect();
        let mut tags = ListBuilder::new(StringBuilder::new());
        for _ in 0..count {
            for _ in 0..self.0.random_range(0..3) {
                tags.values().append_value(["red", "blue"][self.0.random_range(0..2)]);
            }
            tags.append(self.0.random_range(0..8) > 0);
        }
        let at: Vec<_> = (0..count)
            .map(|_| {
                let second = (*next_id / 2 + self.0.random_range(-40..20)) * 1_000_000_000;
                (self.0.random_range(0..12) > 0).then_some(BASE + second)
            })
            .collect();
        let ids: Vec<i64> = (0..count as i64).map(|i| *next_id + i).collect();
        *next_id += count as i64;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(ids)),
            Arc::new(StringArray::from(k)),
            Arc::new(StringArray::from(g)),
            Arc::new(Int64Array::from(x)),
            Arc::new(TimestampNanosecondArray::from(at)),
            arrow::compute::cast(&tags.finish(), schema.field(5).data_type()).unwrap(),
        ];
        RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap()
    }
}

fn text_table(schema: SchemaRef, rows: &[(&str, &str)]) -> RecordBatch {
    let column = |values: Vec<&str>, i: usize| {
        let text: ArrayRef = Arc::new(StringArray::from(values));
        arrow::compute::cast(&text, schema.field(i).data_type()).unwrap()
    };
    let columns =
        vec![column(rows.iter().map(|r| r.0).collect(), 0), column(rows.iter().map(|r| r.1).collect(), 1)];
    RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
}

async fn pair(view: &str, watermark: bool) -> Pair {
    let mut pair = Pair::new();
    let mut texts = declarations(watermark);
    texts.push(view.into());
    pair.declare(&texts.join(";\n")).await.unwrap_or_else(|e| panic!("{e}\n{view}"));
    let places = pair.schema("places").unwrap();
    pair.insert("places", text_table(places, &[("a", "Aachen"), ("b", "Bonn"), ("z", "Zeitz")])).await;
    let sizes = pair.schema("sizes").unwrap();
    pair.insert("sizes", text_table(sizes, &[("n", "3"), ("s", "5")])).await;
    pair
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("TALLY_ORACLE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TALLY_ORACLE_CASES").unwrap_or(CASES)).collect(),
    }
}

/// Runs the seeds on all cores; each failure says its seed.
fn for_each_seed(case: impl Fn(u64) -> futures::future::BoxFuture<'static, ()> + Sync) {
    let seeds = seeds();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed = std::thread::scope(|scope| {
        let part = |part: usize| {
            let (seeds, case) = (&seeds, &case);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let mut failed = Vec::new();
                for seed in seeds.iter().filter(|seed| **seed as usize % threads == part) {
                    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(case(*seed)));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        failed.push(format!(
                            "seed {seed}: {}",
                            panic.downcast_ref::<String>().cloned().unwrap_or_default()
                        ));
                    }
                }
                failed
            })
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(failed.is_empty(), "{} of {} failed; the first:\n{}", failed.len(), seeds.len(), failed[0]);
}

#[test]
fn random_views_equal_a_recount_after_every_micro_batch() {
    for_each_seed(|seed| {
        Box::pin(async move {
            let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
            let view = draw.view();
            let mut pair = pair(&view, false).await;
            let schema = pair.schema("events").unwrap();
            let mut next_id = 0;
            for _ in 0..draw.0.random_range(1..5) {
                let source = if draw.chance(7) { "events" } else { "clicks" };
                let count = draw.0.random_range(1..12);
                let rows = draw.rows(&schema, count, &mut next_id);
                pair.insert(source, rows).await;
                pair.check().await;
            }
        })
    });
}

/// With a watermark rows are late and windows become final: how the rows are cut must not matter.
#[test]
fn how_rows_are_cut_changes_no_answer() {
    for_each_seed(|seed| {
        Box::pin(async move {
            let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
            let view = draw.view();
            let mut whole = pair(&view, true).await;
            let schema = whole.schema("events").unwrap();
            let rows = draw.rows(&schema, 40, &mut 0);
            let mut cut = pair(&view, true).await;
            whole.insert("events", rows.clone()).await;
            let mut at = 0;
            while at < rows.num_rows() {
                let length = draw.0.random_range(1..9).min(rows.num_rows() - at);
                cut.insert("events", rows.slice(at, length)).await;
                at += length;
            }
            let ((ours, late), (theirs, late_cut)) = (whole.shown("v"), cut.shown("v"));
            assert_same(&view, &ours, &theirs);
            assert_eq!(late, late_cut, "{view}");
        })
    });
}
