//! What a delta costs, printed: `cargo test --release --lib flow::aggregate::cost -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use arrow::array::{Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::logical_expr::AggregateUDF;
use datafusion::prelude::SessionContext;

use super::*;
use crate::engine::input::{Inputs, Runner};
use crate::engine::session;

const ROWS: usize = 1_000_000;
const BATCH: usize = 1_000;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("c0", DataType::Int64, true),
        Field::new("c1", DataType::Int64, true),
        Field::new("c2", DataType::Float64, true),
    ]))
}

fn scattered(i: usize) -> usize {
    i.wrapping_mul(2_654_435_761) >> 7
}

fn batch(from: usize, groups: usize) -> RecordBatch {
    let range = from..from + BATCH;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(range.clone().map(|i| (scattered(i) % groups) as i64))),
        Arc::new(Int64Array::from_iter_values(range.clone().map(|i| (scattered(i * 7) % ROWS) as i64))),
        Arc::new(Float64Array::from_iter_values(range.map(|i| scattered(i * 3) as f64 / 3.0))),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

async fn cost(what: &str, groups: usize, functions: &[(&str, usize, bool)]) {
    let session: SessionContext = session::continuous();
    let (runner, inputs) = (Runner::new(&session), Inputs::default());
    let run = Run { runner: &runner, inputs: &inputs, watermarks: &std::collections::BTreeMap::new() };
    let udaf = |name: &str| match session.state().aggregate_functions().get(name) {
        Some(function) => Arc::<AggregateUDF>::clone(function),
        None if name == "max" => max_udaf(),
        None => count_udaf(),
    };
    let specs = functions.iter().map(|(name, column, distinct)| FunctionSpec {
        function: udaf(name),
        arguments: if *name == "count" && !distinct { vec![] } else { vec![*column] },
        filter: None,
        distinct: *distinct,
    });
    let mut fields = vec![Field::new("k", DataType::Int64, true)];
    fields.extend(functions.iter().enumerate().map(|(i, (name, column, _))| {
        let float = *column == 2 && *name != "count";
        Field::new(format!("f{i}"), if float { DataType::Float64 } else { DataType::Int64 }, true)
    }));
    let mut operator = Aggregate::new(AggregateSpec {
        schema: Arc::new(Schema::new(fields)),
        input: input(),
        keys: vec![0],
        grouping_sets: None,
        functions: specs.collect(),
        bound: None,
    })
    .unwrap();
    operator.start(&run).await.unwrap();
    let mut times = Vec::new();
    for from in (0..ROWS).step_by(BATCH) {
        let delta = Delta::of_new(batch(from, groups));
        let start = Instant::now();
        operator.prepare(&[delta], &run).await.unwrap();
        operator.commit().unwrap();
        times.push(start.elapsed());
    }
    let full = operator.bytes();
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2].as_micros()
    };
    let worst = times.iter().max().unwrap().as_micros();
    let mut gone = Vec::new();
    for from in (0..ROWS / 10).step_by(BATCH) {
        let mut delta = Delta::of_new(batch(from, groups));
        delta.weights = Int64Array::from_value(-1, BATCH);
        let start = Instant::now();
        operator.prepare(&[delta], &run).await.unwrap();
        operator.commit().unwrap();
        gone.push(start.elapsed());
    }
    println!(
        "{what}, {groups} groups: µs a batch of {BATCH} at 1e5 rows {}, at 1e6 {}, worst {worst}; taken back {}; {} bytes a group",
        median(&times[80..120]),
        median(&times[960..]),
        median(&gone),
        full / operator.groups.len().max(1),
    );
}

#[tokio::test]
#[ignore = "it measures"]
async fn a_batch() {
    let functions = [("count", 0, false), ("sum", 1, false), ("avg", 2, false)];
    for groups in [1_000, 1_000_000] {
        cost("COUNT, SUM(int), AVG(float)", groups, &functions).await;
        cost("COUNT", groups, &functions[..1]).await;
        cost("MAX", groups, &[("max", 1, false)]).await;
        cost("COUNT(DISTINCT)", groups, &[("count", 1, true)]).await;
        cost("VAR_POP", groups, &[("var_pop", 2, false)]).await;
    }
    cost("MAX", 1, &[("max", 1, false)]).await;
    cost("SUM(float)", 1, &[("sum", 2, false)]).await;
}
