//! What SQL says of floats: the same to the last bit in any order, session and number of partitions.

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::Float64Type;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::engine::session;

type Pair = (Option<f64>, Option<f64>);

fn sessions() -> Vec<SessionContext> {
    let config = session::base_config;
    vec![
        session::continuous(),
        session::batch(config().with_target_partitions(1)),
        session::batch(config().with_target_partitions(4).with_batch_size(7)),
    ]
}

fn with_rows(session: &SessionContext, pairs: &[Pair], parts: usize) {
    let size = pairs.len().div_ceil(parts).max(1);
    let batches = pairs.chunks(size).map(|pairs| {
        let columns: [(&str, ArrayRef); 3] = [
            ("k", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|(x, _)| i64::from(x.is_some()))))),
            ("x", Arc::new(pairs.iter().map(|(x, _)| *x).collect::<Float64Array>())),
            ("y", Arc::new(pairs.iter().map(|(_, y)| *y).collect::<Float64Array>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    });
    let partitions: Vec<_> = batches.map(|batch| vec![batch]).collect();
    session.deregister_table("p").unwrap();
    let table = MemTable::try_new(partitions[0][0].schema(), partitions).unwrap();
    session.register_table("p", Arc::new(table)).unwrap();
}

async fn answers(session: &SessionContext, sql: &str) -> Vec<Vec<Option<u64>>> {
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    let row = |batch: &RecordBatch, row: usize| {
        let cell = |column: &ArrayRef| {
            let column = arrow::compute::cast(column, &DataType::Float64).unwrap();
            let value = column.is_valid(row).then(|| column.as_primitive::<Float64Type>().value(row));
            value.map(|value| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() })
        };
        batch.columns().iter().map(cell).collect()
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |i| row(batch, i))).collect()
}

fn draw(random: &mut ChaCha8Rng) -> Vec<Pair> {
    let specials = random.random_range(0..4) == 0;
    let scale = [1e-300, 1e-3, 1.0, 1e9, 1e150][random.random_range(0..5)];
    let value = |random: &mut ChaCha8Rng| match random.random_range(0..20) {
        0 => None,
        1 => Some(-0.0),
        2 => Some(random.random_range(-2..3) as f64),
        3 => Some(random.random_range(-1.0..1.0) * 1e16),
        4 if specials => Some([f64::NAN, f64::INFINITY, f64::NEG_INFINITY][random.random_range(0..3)]),
        _ => Some(random.random_range(-1.0..1.0) * scale),
    };
    let count = random.random_range(1..60);
    let mut pairs: Vec<Pair> = (0..count).map(|_| (value(random), value(random))).collect();
    pairs.extend(pairs.clone().into_iter().take(5));
    pairs
}

const FUNCTIONS: &str = "SUM(x), AVG(x), SUM(DISTINCT x), AVG(DISTINCT x), MIN(x), MAX(x), var_pop(x), var_samp(x), stddev(x),
    stddev_pop(DISTINCT x), covar_pop(x, y), covar_samp(x, y), corr(x, y), regr_slope(y, x), regr_intercept(y, x), regr_r2(y, x),
    regr_count(y, x), regr_avgx(y, x), regr_avgy(y, x), regr_sxx(y, x), regr_syy(y, x), regr_sxy(y, x), SUM(x) FILTER (WHERE y > 0)";

#[tokio::test]
async fn no_answer_depends_on_order_or_partitions() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..40 {
        let mut pairs = draw(&mut random);
        let mut first = None;
        for session in sessions() {
            for parts in [1, 3] {
                pairs.shuffle(&mut random);
                with_rows(&session, &pairs, parts);
                let all = answers(&session, &format!("SELECT {FUNCTIONS} FROM p")).await;
                let sql = format!("SELECT k, {FUNCTIONS} FROM p GROUP BY k ORDER BY k");
                let by_group = answers(&session, &sql).await;
                let answered = (all, by_group);
                assert_eq!(first.get_or_insert_with(|| answered.clone()), &answered, "{pairs:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_leaves_a_window_leaves_nothing_behind() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for _ in 0..20 {
        let pairs = draw(&mut random);
        let session = &sessions()[1];
        with_rows(session, &pairs, 1);
        let functions = ["SUM(x)", "AVG(x)", "var_pop(x)", "stddev(x)", "covar_pop(x, y)", "corr(x, y)"];
        let over = "OVER (ORDER BY i ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING)";
        let columns: Vec<_> = functions.iter().map(|function| format!("{function} {over}")).collect();
        let numbered = "(SELECT x, y, row_number() OVER () AS i FROM p)";
        let sql = format!("SELECT {} FROM {numbered} ORDER BY i", columns.join(", "));
        let slid = answers(session, &sql).await;
        for (i, slid) in slid.iter().enumerate() {
            let frame = &pairs[i.saturating_sub(2)..(i + 2).min(pairs.len())];
            let own = &sessions()[1];
            with_rows(own, frame, 1);
            let right = answers(own, &format!("SELECT {} FROM p", functions.join(", "))).await;
            assert_eq!(*slid, right[0], "row {i} of {pairs:?}");
        }
    }
}

async fn one(values: &str, expression: &str) -> f64 {
    let sql = format!("SELECT {expression} FROM (VALUES {values}) v(x, y) GROUP BY x IS NULL");
    let bits = answers(&sessions()[0], &sql).await[0][0];
    f64::from_bits(bits.unwrap())
}

#[tokio::test]
async fn answers_are_right() {
    let powers = "(1e16, 1), (1.0, 2), (-1e16, 3)";
    assert_eq!(one(powers, "SUM(x)").await, 1.0);
    assert_eq!(one(powers, "AVG(x)").await, 1.0 / 3.0);
    assert_eq!(one("(1e308, 1), (1e308, 1)", "SUM(x)").await, f64::INFINITY);
    assert_eq!(one("(1e308, 1), (1e308, 1)", "AVG(x)").await, 1e308);
    let far = "(1000000001.0, 2.0), (1000000002.0, 4.0), (1000000003.0, 6.0), (1000000004.0, 8.0)";
    for (expression, right) in [
        ("var_pop(x)", 1.25),
        ("var_samp(x)", 5.0 / 3.0),
        ("stddev_pop(x)", 1.25f64.sqrt()),
        ("covar_pop(x, y)", 2.5),
        ("covar_samp(x, y)", 10.0 / 3.0),
        ("corr(x, y)", 1.0),
        ("corr(x, -y)", -1.0),
        ("regr_slope(y, x)", 2.0),
        ("regr_intercept(y, x)", -2e9),
        ("regr_r2(y, x)", 1.0),
        ("regr_avgx(y, x)", 1000000002.5),
        ("regr_sxx(y, x)", 5.0),
        ("regr_syy(y, x)", 20.0),
        ("regr_sxy(y, x)", 10.0),
        ("regr_count(y, x)", 4.0),
        ("var_pop(y * 1e160)", f64::INFINITY),
        ("stddev_pop(y * 1e160)", f64::sqrt(5.0) * 1e160),
        ("var_pop(y * 0.0)", 0.0),
    ] {
        let answer = one(far, expression).await;
        let close = answer == right || (answer / right - 1.0).abs() < 1e-14;
        assert!(close, "{expression} is {answer:?}, not {right:?}");
    }
    // Of floats that are not near each other DataFusion keeps the wrong end.
    assert_eq!(one("(CAST('inf' AS DOUBLE), 1)", "MIN(x)").await, f64::INFINITY);
    assert_eq!(one("(CAST('-inf' AS DOUBLE), 1)", "MAX(x)").await, f64::NEG_INFINITY);
    for order in ["(CAST('NaN' AS DOUBLE), 1), (1.0, 1)", "(1.0, 1), (CAST('NaN' AS DOUBLE), 1)"] {
        assert_eq!(one(order, "MIN(x)").await, 1.0);
        assert!(one(order, "MAX(x)").await.is_nan());
    }
}

/// Printed: `cargo test --release --lib floats::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn speed() {
    use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

    // Time that this thread has run: others use the machine too.
    let cpu = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
        text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    const ROWS: usize = 1_000_000;
    const BATCH: usize = 8_000;
    let scattered = |i: usize| i.wrapping_mul(2_654_435_761) >> 7;
    let values: ArrayRef =
        Arc::new(Float64Array::from_iter_values((0..ROWS).map(|i| scattered(i) as f64 / 3.0)));
    for groups in [1, 1_000, 1_000_000] {
        let indices: Vec<usize> = (0..ROWS).map(|i| scattered(i * 3) % groups).collect();
        let time = |accumulator: &mut dyn GroupsAccumulator| {
            let start = cpu();
            for from in (0..ROWS).step_by(BATCH) {
                let rows = values.slice(from, BATCH);
                accumulator.update_batch(&[rows], &indices[from..from + BATCH], None, groups).unwrap();
            }
            let added = cpu() - start;
            let start = cpu();
            let state = accumulator.state(EmitTo::All).unwrap();
            let all: Vec<usize> = (0..groups).collect();
            accumulator.merge_batch(&state, &all, groups).unwrap();
            accumulator.evaluate(EmitTo::All).unwrap();
            let bytes: usize = state.iter().map(|column| column.get_array_memory_size()).sum();
            (added as f64 / ROWS as f64, (cpu() - start) / groups as u64, bytes / groups)
        };
        for _ in 0..3 {
            let add = |sum: &mut f64, value: f64| *sum += value;
            let mut plain = PrimitiveGroupsAccumulator::<Float64Type, _>::new(&DataType::Float64, add);
            let (plain, sum) = (time(&mut plain), time(&mut Totals::new(Answer::Sum)));
            let average = time(&mut Totals::new(Answer::Average));
            let variance = time(&mut crate::engine::exact::moments::Groups::new(
                crate::engine::exact::moments::Statistic::Variance { sample: false },
            ));
            println!(
                "{groups} groups: ns to add, ns of state, merge and answer, bytes of state: plain {plain:?}, SUM {sum:?}, AVG {average:?}, VAR_POP {variance:?}"
            );
        }
    }
}
