//! Views kept up to date, beside plain DataFusion on the same rows in the same run: `cargo bench --bench engine`.
//! A view's time is all of it: aggregate, finishing plan, comparison, changelog. Elements are rows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::datasource::MemTable;
use tally::catalog::Catalog;
use tally::engine::{Engine, session};
use tally::queries::QueryFile;
use tokio::runtime::Runtime;

const SOURCE: &str = "CREATE UNBOUNDED EXTERNAL TABLE votes (k VARCHAR, vote BIGINT, weight DOUBLE)
    STORED AS KAFKA LOCATION 'votes';";
const GROUP_BY: &str = "SELECT k, SUM(vote) AS s, COUNT(*) AS n, AVG(weight) AS a FROM votes GROUP BY k";
const LOOKUP: &str =
    "SELECT r.place, COUNT(*) AS n FROM votes v JOIN registered r ON r.k = v.k GROUP BY r.place";

/// Rows over so many groups, in no order.
fn rows(from: usize, count: usize, groups: usize) -> RecordBatch {
    let group = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) % groups;
    let column = |i: usize| format!("voter-{:07}", group(i));
    let range = from..from + count;
    let columns: [(&str, ArrayRef); 3] = [
        ("k", Arc::new(StringArray::from_iter_values(range.clone().map(column)))),
        ("vote", Arc::new(Int64Array::from_iter_values(range.clone().map(|i| i as i64 % 7)))),
        ("weight", Arc::new(Float64Array::from_iter_values(range.map(|i| i as f64 / 3.0)))),
    ];
    let fields = columns.into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(fields).expect("columns of one length")
}

fn batches(total: usize, size: usize, groups: usize) -> Vec<RecordBatch> {
    (0..total / size).map(|i| rows(i * size, size, groups)).collect()
}

fn registered(count: usize) -> RecordBatch {
    let k = StringArray::from_iter_values((0..count).map(|i| format!("voter-{i:07}")));
    let place = StringArray::from_iter_values((0..count).map(|i| format!("place-{}", i % 50)));
    let columns: [(&str, ArrayRef); 2] = [("k", Arc::new(k)), ("place", Arc::new(place))];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .expect("columns of one length")
}

async fn engine(view: &str, tables: &[(String, SchemaRef)]) -> Engine {
    let text = format!("{SOURCE} CREATE MATERIALIZED VIEW v AS {view};");
    let files = [QueryFile { path: PathBuf::from("bench.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await.expect("declared");
    Engine::plan(&catalog, tables).await.expect("planned")
}

/// Time of all micro-batches on a new engine.
async fn keep_up(batches: &[RecordBatch]) -> Duration {
    let mut engine = engine(GROUP_BY, &[]).await;
    engine.start().await.expect("started");
    let start = Instant::now();
    for batch in batches {
        engine.apply("votes", batch.clone(), None).await.expect("applied");
    }
    start.elapsed()
}

/// Time of one GROUP BY over all rows.
async fn plain(batches: &[RecordBatch]) -> Duration {
    let context = session::batch(session::base_config().with_target_partitions(1));
    let table = MemTable::try_new(batches[0].schema(), vec![batches.to_vec()]).expect("a table");
    context.register_table("votes", Arc::new(table)).expect("registered");
    let start = Instant::now();
    context.sql(GROUP_BY).await.expect("planned").collect().await.expect("run");
    start.elapsed()
}

fn group_by(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for groups in [3, 1_000, 1_000_000] {
        let mut group = criterion.benchmark_group(format!("{groups} groups"));
        group.sample_size(10);
        for size in [100, 10_000, 100_000] {
            let batches = batches(if size == 100 { 100_000 } else { 1_000_000 }, size, groups);
            group.throughput(Throughput::Elements((batches.len() * size) as u64));
            let custom = |times: u64, run: &dyn Fn() -> Duration| (0..times).map(|_| run()).sum::<Duration>();
            group.bench_function(BenchmarkId::new("view", size), |bencher| {
                bencher.iter_custom(|times| custom(times, &|| runtime.block_on(keep_up(&batches))));
            });
            group.bench_function(BenchmarkId::new("plain batch", size), |bencher| {
                bencher.iter_custom(|times| custom(times, &|| runtime.block_on(plain(&batches))));
            });
        }
    }
}

/// A micro-batch of 100 rows where a million groups live.
fn few_rows(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut engine = runtime.block_on(engine(GROUP_BY, &[]));
    runtime.block_on(engine.start()).expect("started");
    for batch in batches(3_000_000, 100_000, 1_000_000) {
        runtime.block_on(engine.apply("votes", batch, None)).expect("applied");
    }
    let batches = batches(100_000, 100, 1_000_000);
    let mut next = 0;
    criterion.bench_function("100 rows on 1000000 groups", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % batches.len();
            runtime.block_on(engine.apply("votes", batches[next].clone(), None)).expect("applied")
        });
    });
}

/// A lookup join of a micro-batch: its time must not grow with the reference table.
fn lookup(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for (count, size) in [(10_000, 1_000), (10_000, 1_000_000), (100_000, 1_000_000)] {
        let batch = rows(0, count, 1_000);
        let mut group = criterion.benchmark_group(format!("lookup join of {count} rows"));
        group.throughput(Throughput::Elements(count as u64));
        let table = registered(size);
        let mut engine = runtime.block_on(engine(LOOKUP, &[("registered".into(), table.schema())]));
        engine.set_reference("registered", vec![table.clone()]);
        runtime.block_on(engine.start()).expect("started");
        group.bench_function(BenchmarkId::new("view", size), |bencher| {
            bencher.iter(|| runtime.block_on(engine.apply("votes", batch.clone(), None)).expect("applied"));
        });
        let context = session::batch(session::base_config().with_target_partitions(1));
        for (name, rows) in [("votes", &batch), ("registered", &table)] {
            let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).expect("a table");
            context.register_table(name, Arc::new(table)).expect("registered");
        }
        group.bench_function(BenchmarkId::new("plain batch", size), |bencher| {
            let run = async || context.sql(LOOKUP).await?.collect().await;
            bencher.iter(|| runtime.block_on(run()).expect("run"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = group_by, few_rows, lookup
}
criterion_main!(benches);
