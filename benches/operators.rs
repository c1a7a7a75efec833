//! What operators cost: a micro-batch of 1000 rows after 1e5 and after 1e6 rows, beside plain DataFusion over all of
//! them. `cargo bench --bench operators [-- [--rows N] [--exact] NAME…]` runs those whose name has one of the words, or is
//! one of them. `scripts/bench-join` runs the join beside differential-dataflow's.
//!
//! Time is that of the processor, on one thread. Rows meet as many others at all times, anywhere in the history: what
//! grows is what history costs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use cpu_time::ProcessTime;
use datafusion::datasource::MemTable;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tally::catalog::Catalog;
use tally::engine::input::WEIGHT;
use tally::engine::{Engine, session};
use tally::queries::QueryFile;

const MICRO_BATCH: usize = 1000;
/// Micro-batches whose mean is told.
const MEASURED: usize = 50;

/// Two streams; `id` tells their rows apart. The rows of each can only come, or be taken back.
const APPEND_ONLY: &str = "
CREATE UNBOUNDED EXTERNAL TABLE a (id BIGINT, k BIGINT, v BIGINT, w DOUBLE) STORED AS KAFKA LOCATION 'a';
CREATE UNBOUNDED EXTERNAL TABLE b (id BIGINT, k BIGINT, v BIGINT, w DOUBLE) STORED AS KAFKA LOCATION 'b';";
const RETRACTING: &str = "
CREATE UNBOUNDED EXTERNAL TABLE a (id BIGINT PRIMARY KEY, k BIGINT, v BIGINT, w DOUBLE) STORED AS KAFKA LOCATION 'a'
OPTIONS ('on_conflict' 'replace');
CREATE UNBOUNDED EXTERNAL TABLE b (id BIGINT PRIMARY KEY, k BIGINT, v BIGINT, w DOUBLE) STORED AS KAFKA LOCATION 'b'
OPTIONS ('on_conflict' 'replace');";

/// Which keys rows have.
#[derive(Clone, Copy)]
enum Keys {
    /// Those of `a` are all different; each of `b` is one of `a` so far.
    OneToMany,
    /// Of 100,000.
    Fixed,
    /// Four rows have each key, at all times.
    OfFour,
    /// All rows have one.
    One,
}

struct Case {
    name: &'static str,
    keys: Keys,
    query: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "join",
        keys: Keys::OneToMany,
        query: "SELECT b.id, a.v AS av, b.v FROM a JOIN b ON b.k = a.k",
    },
    Case {
        name: "left join",
        keys: Keys::OneToMany,
        query: "SELECT a.id AS a_id, b.id, b.v FROM a LEFT JOIN b ON b.k = a.k",
    },
    Case { name: "semi join", keys: Keys::OneToMany, query: "SELECT id FROM a WHERE k IN (SELECT k FROM b)" },
    Case {
        name: "anti join",
        keys: Keys::OneToMany,
        query: "SELECT id FROM a WHERE k NOT IN (SELECT k FROM b)",
    },
    Case {
        name: "top 3 by key",
        keys: Keys::Fixed,
        query: "SELECT id, k, v FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY k ORDER BY v, id) AS n FROM a) WHERE n <= 3",
    },
    Case { name: "top 100", keys: Keys::Fixed, query: "SELECT id, v FROM a ORDER BY v, id LIMIT 100" },
    Case {
        name: "join of aggregates",
        keys: Keys::Fixed,
        query: "SELECT x.k, x.s, y.n FROM (SELECT k, SUM(v) AS s FROM a GROUP BY k) x
                JOIN (SELECT k, COUNT(*) AS n FROM b GROUP BY k) y ON y.k = x.k",
    },
    Case {
        name: "aggregate of aggregate",
        keys: Keys::Fixed,
        query: "SELECT n, COUNT(*) AS keys FROM (SELECT k, COUNT(*) AS n FROM a GROUP BY k) GROUP BY n",
    },
    Case {
        name: "rank within a key",
        keys: Keys::OfFour,
        query: "SELECT id, k, RANK() OVER (PARTITION BY k ORDER BY v) AS r FROM a",
    },
    Case {
        name: "COUNT, SUM, AVG(float)",
        keys: Keys::Fixed,
        query: "SELECT k, COUNT(*) AS n, SUM(v) AS s, AVG(w) AS a FROM a GROUP BY k",
    },
    Case { name: "MAX", keys: Keys::Fixed, query: "SELECT k, MAX(v) AS m FROM a GROUP BY k" },
    Case { name: "MAX of all", keys: Keys::One, query: "SELECT MAX(v) AS m FROM a" },
    Case {
        name: "COUNT(DISTINCT)",
        keys: Keys::Fixed,
        query: "SELECT k, COUNT(DISTINCT v) AS n FROM a GROUP BY k",
    },
    Case { name: "VAR_POP", keys: Keys::Fixed, query: "SELECT k, VAR_POP(w) AS s FROM a GROUP BY k" },
];

/// Measured by one row, where each side has 100,000.
const CHAIN: Case = Case {
    name: "join, aggregate, top 10",
    keys: Keys::OneToMany,
    query: "SELECT k, s FROM (SELECT a.k, SUM(b.v) AS s FROM a JOIN b ON b.k = a.k GROUP BY a.k)
            ORDER BY s DESC, k LIMIT 10",
};
const CHAIN_ROWS: usize = 100_000;
const HOT: Case =
    Case { name: "join at one key", keys: Keys::One, query: "SELECT a.id FROM a JOIN b ON b.k = a.k" };

/// Rows that come, of both streams.
struct Rows {
    random: ChaCha8Rng,
    keys: Keys,
    made: usize,
}

impl Rows {
    fn new(keys: Keys) -> Rows {
        Rows { random: ChaCha8Rng::seed_from_u64(1), keys, made: 0 }
    }

    fn next(&mut self, count: usize) -> [(&'static str, RecordBatch); 2] {
        let ids = self.made..self.made + count;
        self.made += count;
        ["a", "b"].map(|stream| {
            let key = |id: usize| match self.keys {
                Keys::OneToMany if stream == "a" => id,
                Keys::OneToMany => self.random.random_range(0..ids.end),
                Keys::Fixed => self.random.random_range(0..100_000),
                Keys::OfFour => self.random.random_range(0..id / 4 + 1),
                Keys::One => 0,
            } as i64;
            let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(ids.clone().map(key)));
            let values = ids.clone().map(|_| self.random.random_range(0..1_000_000));
            let columns: [(&str, ArrayRef); 4] = [
                ("id", Arc::new(Int64Array::from_iter_values(ids.clone().map(|id| id as i64)))),
                ("k", keys),
                ("v", Arc::new(Int64Array::from_iter_values(values))),
                ("w", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 3.0)))),
            ];
            let columns = columns.map(|(name, column)| (name, column, true));
            (stream, RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length"))
        })
    }
}

fn weighted(rows: &RecordBatch, weight: i64) -> RecordBatch {
    let weights: ArrayRef = Arc::new(Int64Array::from_value(weight, rows.num_rows()));
    let schema = rows.schema();
    let columns =
        schema.fields().iter().map(|field| field.name().as_str()).zip(rows.columns().iter().cloned());
    let columns = columns.chain([(WEIGHT, weights)]).map(|(name, column)| (name, column, name != WEIGHT));
    RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length")
}

async fn engine(tables: &str, query: &str) -> Result<Engine> {
    let text = format!("{tables} CREATE MATERIALIZED VIEW v AS {query};");
    let files = [QueryFile { path: PathBuf::from("operators.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    let mut engine = Engine::plan(&catalog, &[]).await?;
    engine.start().await?;
    Ok(engine)
}

/// What a micro-batch takes.
async fn apply(engine: &mut Engine, rows: &[(&'static str, RecordBatch)]) -> Result<Duration> {
    let start = ProcessTime::now();
    for (stream, rows) in rows {
        engine.apply(stream, rows.clone(), None).await?;
    }
    Ok(start.elapsed())
}

fn mean(times: &[Duration]) -> f64 {
    times.iter().map(Duration::as_secs_f64).sum::<f64>() * 1e6 / times.len().max(1) as f64
}

async fn grow(case: &Case, retracts: bool, rows: usize) -> Result<()> {
    let tables = if retracts { RETRACTING } else { APPEND_ONLY };
    let mut engine = engine(tables, case.query).await?;
    let (mut made, mut times, mut all) = (Rows::new(case.keys), Vec::new(), Vec::new());
    for _ in 0..rows / MICRO_BATCH {
        let batch = made.next(MICRO_BATCH);
        all.push(batch.clone());
        let batch = if retracts { batch.map(|(stream, rows)| (stream, weighted(&rows, 1))) } else { batch };
        times.push(apply(&mut engine, &batch).await?);
    }
    if let Some(failure) = engine.failures().first() {
        bail!("{}: {}", case.name, failure.reason);
    }
    let bytes = engine.state_bytes() / (2 * rows);
    let mut back = Vec::new();
    if retracts {
        for batch in all.iter().step_by((all.len() / MEASURED).max(1)) {
            let batch = batch.clone().map(|(stream, rows)| (stream, weighted(&rows, -1)));
            back.push(apply(&mut engine, &batch).await?);
        }
    }
    let plain = plain(case.query, &all).await?;
    let tenth = times.len() / 10;
    let early = mean(&times[tenth.saturating_sub(MEASURED / 2)..(tenth + MEASURED / 2).min(times.len())]);
    let late = mean(&times[times.len().saturating_sub(MEASURED)..]);
    let worst = times.iter().max().map_or(0, Duration::as_micros);
    println!(
        "{:24} {:>10} {early:>9.0} {late:>9.0} {:>6.2} {worst:>9} {:>9} {:>7.2} {:>9.2} {bytes:>9}",
        case.name,
        if retracts { "retracts" } else { "append" },
        late / early,
        if retracts { format!("{:.0}", mean(&back)) } else { String::new() },
        times.iter().sum::<Duration>().as_secs_f64(),
        plain.as_secs_f64(),
    );
    Ok(())
}

/// Plain DataFusion, once over all rows.
async fn plain(query: &str, all: &[[(&'static str, RecordBatch); 2]]) -> Result<Duration> {
    let context = session::batch(session::base_config().with_target_partitions(1));
    for stream in 0..2 {
        let (name, first) = &all.first().context("no rows")?[stream];
        let batches: Vec<_> = all.iter().map(|batch| batch[stream].1.clone()).collect();
        let table = MemTable::try_new(first.schema(), vec![batches])?;
        context.register_table(*name, Arc::new(table))?;
    }
    let start = ProcessTime::now();
    let rows = context.sql(query).await?.collect().await?;
    drop(rows);
    Ok(start.elapsed())
}

/// Micro-batches of one row.
async fn one_row(case: &Case, retracts: bool) -> Result<()> {
    let tables = if retracts { RETRACTING } else { APPEND_ONLY };
    let mut engine = engine(tables, case.query).await?;
    let mut made = Rows::new(case.keys);
    let with_weights = |(stream, rows): (&'static str, RecordBatch), weight: i64| {
        (stream, if retracts { weighted(&rows, weight) } else { rows })
    };
    let [a, b] = made.next(CHAIN_ROWS);
    let first_of_b = (b.0, b.1.slice(0, if matches!(case.keys, Keys::One) { 1 } else { CHAIN_ROWS }));
    apply(&mut engine, &[with_weights(a.clone(), 1), with_weights(first_of_b, 1)]).await?;
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for i in 0..MEASURED * 10 {
        // At one key a row of `a` meets one of `b`; a row of `b` would meet all of `a`.
        let (place, rows) = if matches!(case.keys, Keys::One) { (0, &a) } else { (1, &b) };
        let [one_a, one_b] = made.next(1);
        let one = if place == 0 { one_a } else { one_b };
        came.push(apply(&mut engine, &[with_weights(one, 1)]).await?);
        if retracts {
            let old = (rows.0, rows.1.slice(i * 7, 1));
            went.push(apply(&mut engine, &[with_weights(old, -1)]).await?);
        }
    }
    let kind = if retracts { "retracts" } else { "append" };
    let gone = if retracts { format!(", one that goes {:.0} µs", mean(&went)) } else { String::new() };
    println!("{:24} {kind:>10}: a row that comes {:.0} µs{gone}", case.name, mean(&came));
    Ok(())
}

fn main() -> Result<()> {
    let (mut rows, mut exact, mut words) = (1_000_000, false, Vec::new());
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rows" => rows = args.next().context("a number is missing")?.parse()?,
            "--exact" => exact = true,
            _ => words.push(arg),
        }
    }
    let is_meant =
        |case: &Case, word: &String| if exact { case.name == word } else { case.name.contains(word) };
    let is_wanted = |case: &&Case| words.is_empty() || words.iter().any(|word| is_meant(case, word));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    println!("{rows} rows of each stream; µs of a micro-batch of {MICRO_BATCH} of each, s of all");
    println!(
        "{:24} {:>10} {:>9} {:>9} {:>6} {:>9} {:>9} {:>7} {:>9} {:>9}",
        "", "", "at 1/10", "at end", "times", "worst", "taken back", "all", "plain", "bytes/row"
    );
    for case in CASES.iter().filter(is_wanted) {
        for retracts in [false, true] {
            runtime.block_on(grow(case, retracts, rows))?;
        }
    }
    let of_one_row: Vec<_> = [&CHAIN, &HOT].into_iter().filter(is_wanted).collect();
    if !of_one_row.is_empty() {
        println!("micro-batches of one row, after {CHAIN_ROWS} of each stream");
    }
    for case in of_one_row {
        for retracts in [false, true] {
            runtime.block_on(one_row(case, retracts))?;
        }
    }
    Ok(())
}
