//! What joins cost, in CPU time (Linux). `cargo test --release --lib flow::join::measure -- --ignored --nocapture --test-threads 1`,
//! with this crate optimized.

use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use rand::prelude::*;

use super::*;
use crate::engine::input::{Inputs, Runner};

fn schema() -> SchemaRef {
    let fields = ["c0", "c1", "c2"].map(|name| Field::new(name, DataType::Int32, true));
    Arc::new(Schema::new(fields.to_vec()))
}

fn rows(keys: impl Iterator<Item = i32>, from: usize) -> RecordBatch {
    let keys = Int32Array::from_iter_values(keys);
    let from = from as i32;
    let id = Int32Array::from_iter_values(from..from + keys.len() as i32);
    let columns: [ArrayRef; 3] = [Arc::new(keys), Arc::new(id.clone()), Arc::new(id)];
    RecordBatch::try_new(schema(), columns.to_vec()).unwrap()
}

fn join(kind: JoinType, append_only: bool) -> Join {
    let side = || Side { schema: schema(), key: vec![0], append_only, time: None };
    let columns = match kind {
        JoinType::Inner | JoinType::Left => 6,
        _ => 3,
    };
    let (left, right, output) = (side(), side(), (0..columns).collect());
    Join::new(JoinSpec { kind, left, right, filter: None, nulls_equal: false, output }).unwrap()
}

/// How long this thread has run: the machine has other work too. Counted by the tick, so only sums mean something.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

async fn step(join: &mut Join, left: Delta, right: Delta) -> (usize, Duration) {
    let (runner, inputs) = (Runner::new(&SessionContext::new()), Inputs::default());
    let start = on_cpu();
    join.prepare(
        &[left, right],
        &Run { runner: &runner, inputs: &inputs, watermarks: &std::collections::BTreeMap::new() },
    )
    .await
    .unwrap();
    let out = join.commit().unwrap();
    (out.rows.num_rows(), on_cpu() - start)
}

fn minus(rows: RecordBatch) -> Delta {
    let weights = Int64Array::from_value(-1, rows.num_rows());
    Delta { rows, weights }
}

#[tokio::test]
#[ignore = "it measures"]
async fn a_million_rows_a_side() {
    let count = 1_000_000;
    let kinds = [JoinType::Inner, JoinType::Left, JoinType::LeftSemi, JoinType::LeftAnti];
    for (kind, append_only) in kinds.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut random = StdRng::seed_from_u64(1);
        let mut join = join(kind, append_only);
        let (mut out, mut times, mut sent) = (0, Vec::new(), Vec::new());
        for from in (0..count).step_by(1000) {
            let mut keys = || rows((0..1000).map(|_| random.random_range(0..count as i32)), from);
            let (left, right) = (keys(), keys());
            sent.push(left.clone());
            let (more, time) = step(&mut join, Delta::of_new(left), Delta::of_new(right)).await;
            out += more;
            times.push(time);
        }
        let all: Duration = times.iter().sum();
        let mean = |times: &[Duration]| times.iter().sum::<Duration>() / times.len() as u32;
        let [early, late] = [mean(&times[50..150]), mean(&times[900..])];
        let bytes = join.bytes() / join.held_rows().max(1);
        println!(
            "{kind}, append-only {append_only}: {all:?}, {out} rows out; a batch {early:?} after 1e5, {late:?} after \
             1e6; {} rows held, {bytes} bytes a row",
            join.held_rows()
        );
        if !append_only {
            let none = || Delta::empty(&schema());
            let mut times = Vec::new();
            for rows in sent.into_iter().take(800) {
                times.push(step(&mut join, minus(rows), none()).await.1);
            }
            println!("  1000 left rows taken back: {:?}", mean(&times));
        }
    }
}

#[tokio::test]
#[ignore = "it measures"]
async fn a_key_of_many_rows() {
    for kind in [JoinType::Inner, JoinType::Left, JoinType::LeftSemi] {
        let mut join = join(kind, false);
        let none = || Delta::empty(&schema());
        let hot = rows(std::iter::repeat_n(7, 100_000), 0);
        step(&mut join, Delta::of_new(hot.clone()), none()).await;
        let one = || rows(std::iter::once(7), 0);
        let (out, met) = step(&mut join, none(), Delta::of_new(one())).await;
        println!("{kind}: a row that 100,000 rows meet {met:?}, {out} rows out");
        let (out, again) = step(&mut join, none(), Delta::of_new(one())).await;
        println!("  the same again {again:?}, {out} rows out");
        let mut times = Vec::new();
        for i in 0..10_000 {
            times.push(step(&mut join, minus(hot.slice(i * 9, 1)), none()).await.1);
            times.push(step(&mut join, Delta::of_new(hot.slice(i * 9, 1)), none()).await.1);
        }
        println!(
            "  one of the 100,000 goes or comes {:?}",
            times.iter().sum::<Duration>() / times.len() as u32
        );
    }
}
