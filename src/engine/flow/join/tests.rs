//! Joins against DataFusion's own over all rows that are there, under random changes.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{Column, NullEquality};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, Operator as Op, binary_expr, col, lit};
use datafusion::physical_expr::create_physical_expr;
use datafusion::prelude::{SessionConfig, SessionContext};
use rand::prelude::*;

use super::*;
use crate::engine::input::{Inputs, Runner};
use crate::hash_bits::FewHashes;

const KINDS: [JoinType; 10] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::RightSemi,
    JoinType::LeftAnti,
    JoinType::RightAnti,
    JoinType::LeftMark,
    JoinType::RightMark,
];

/// Two key columns, a value, a text.
type Row = (Option<i64>, Option<u64>, Option<i64>, Option<&'static str>);
/// Rows by their text, with their weights.
type Counts = BTreeMap<String, i64>;

fn schema() -> SchemaRef {
    let types = [DataType::Int64, DataType::Float64, DataType::Int64, DataType::Utf8];
    let fields = types.into_iter().enumerate().map(|(i, of)| Field::new(format!("c{i}"), of, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.0))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.1.map(f64::from_bits)))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.2))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.3))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn draw(random: &mut StdRng) -> Row {
    let floats = [None, Some(0.0), Some(-0.0), Some(f64::NAN), Some(1.5)];
    (
        (random.random_range(0..8) > 0).then(|| random.random_range(0..5)),
        floats[random.random_range(0..floats.len())].map(f64::to_bits),
        (random.random_range(0..8) > 0).then(|| random.random_range(0..4)),
        [None, Some("a"), Some("b")][random.random_range(0..3)],
    )
}

/// Some changes of the rows, in any order, some of which cancel out.
fn change(random: &mut StdRng, rows: &mut Vec<Row>, at_most: usize, append_only: bool) -> Delta {
    let mut changes: Vec<(Row, i64)> = Vec::new();
    for _ in 0..random.random_range(0..=at_most) {
        match random.random_range(0..10) {
            0..4 if !append_only && !rows.is_empty() => {
                let gone = rows.swap_remove(random.random_range(0..rows.len()));
                changes.push((gone, -1));
            }
            4 if !append_only => {
                let row = draw(random);
                changes.extend([(row, 1), (row, -1)]);
            }
            5 => {
                let row = draw(random);
                rows.extend([row; 3]);
                changes.push((row, 3));
            }
            _ => {
                let row = draw(random);
                rows.push(row);
                changes.push((row, 1));
            }
        }
    }
    changes.shuffle(random);
    let (rows, weights): (Vec<Row>, Vec<i64>) = changes.into_iter().unzip();
    Delta { rows: batch(&rows), weights: weights.into() }
}

/// A join of two inputs of four columns, in the two ways.
#[derive(Clone, Debug)]
struct Case {
    kind: JoinType,
    key: Vec<usize>,
    filter: Option<Expr>,
    nulls_equal: bool,
    append_only: [bool; 2],
    time: [Option<(usize, i64)>; 2],
}

impl Case {
    fn columns(&self) -> usize {
        match self.kind {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => 8,
            JoinType::LeftMark | JoinType::RightMark => 5,
            _ => 4,
        }
    }

    fn join(&self, output: Vec<usize>) -> Join {
        let side = |i: usize| Side {
            schema: schema(),
            key: self.key.clone(),
            append_only: self.append_only[i],
            time: self.time[i],
        };
        let filter = self.filter.clone().map(|filter| {
            let all = plan("l", batch(&[])).cross_join(plan("r", batch(&[])).build().unwrap());
            let all = all.unwrap().build().unwrap();
            create_physical_expr(&filter, all.schema(), &Default::default(), &Default::default()).unwrap()
        });
        let (kind, nulls_equal) = (self.kind, self.nulls_equal);
        Join::new(JoinSpec { kind, left: side(0), right: side(1), filter, nulls_equal, output }).unwrap()
    }

    /// The rows that DataFusion gives.
    async fn recount(&self, left: &[Row], right: &[Row]) -> Counts {
        let config = SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config(config);
        let keys = |of: &str| -> Vec<Column> {
            self.key.iter().map(|i| Column::new(Some(of), format!("c{i}"))).collect()
        };
        let nulls = match self.nulls_equal {
            true => NullEquality::NullEqualsNull,
            false => NullEquality::NullEqualsNothing,
        };
        let right = plan("r", batch(right)).build().unwrap();
        let keys = (keys("l"), keys("r"));
        let always = self.key.is_empty().then(|| lit(true));
        let filter = self.filter.clone().or(always);
        let joined = plan("l", batch(left)).join_detailed(right, self.kind, keys, filter, nulls);
        let frame = context.execute_logical_plan(joined.unwrap().build().unwrap()).await.unwrap();
        let mut counts = Counts::new();
        for batch in frame.collect().await.unwrap() {
            assert_eq!(batch.num_columns(), self.columns());
            let weights = Int64Array::from_value(1, batch.num_rows());
            add(&mut counts, &Delta { rows: batch, weights }, &(0..self.columns()).collect::<Vec<_>>());
        }
        counts
    }
}

fn plan(name: &str, rows: RecordBatch) -> LogicalPlanBuilder {
    let table = datafusion::datasource::MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
    let source = datafusion::datasource::provider_as_source(Arc::new(table));
    LogicalPlanBuilder::scan(name, source, None).unwrap()
}

/// Adds a delta, its columns in the order `columns` tells.
fn add(counts: &mut Counts, delta: &Delta, columns: &[usize]) {
    let options = FormatOptions::default().with_null("NULL");
    let rows = &delta.rows;
    let formats = rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap());
    let formats: Vec<_> = formats.collect();
    for row in 0..rows.num_rows() {
        let text: Vec<_> = columns.iter().map(|i| formats[*i].value(row).to_string()).collect();
        let count = counts.entry(text.join(", ")).or_default();
        *count += delta.weights.value(row);
        if *count == 0 {
            counts.remove(&text.join(", "));
        }
    }
}

struct Harness {
    runner: Runner,
    inputs: Inputs,
}

impl Harness {
    fn new() -> Harness {
        Harness { runner: Runner::new(&SessionContext::new()), inputs: Inputs::default() }
    }

    async fn step(&self, join: &mut Join, left: Delta, right: Delta) -> Result<Delta> {
        let run = Run {
            runner: &self.runner,
            inputs: &self.inputs,
            watermarks: &std::collections::BTreeMap::new(),
        };
        // What is prepared and not committed changes nothing.
        join.prepare(&[left.clone(), right.clone()], &run).await?;
        join.prepare(&[left, right], &run).await?;
        join.commit()
    }
}

fn filters() -> Vec<Option<Expr>> {
    let sum = binary_expr(col("l.c2"), Op::Plus, col("r.c2"));
    vec![None, Some(sum.gt(lit(3i64))), Some(col("l.c3").eq(lit("a"))), Some(lit(true))]
}

/// Whether some rows were left to compare at the end.
async fn check(case: &Case, seed: u64, steps: usize, at_most: usize) -> bool {
    let harness = Harness::new();
    let mut random = StdRng::seed_from_u64(seed);
    // The columns in another order.
    let mut order: Vec<usize> = (0..case.columns()).collect();
    order.shuffle(&mut random);
    let mut join = case.join(order.clone());
    let back: Vec<usize> = (0..order.len()).map(|i| order.iter().position(|o| *o == i).unwrap()).collect();
    let (mut left, mut right, mut counts) = (vec![], vec![], Counts::new());
    for step in 0..steps {
        let mut deltas = [
            change(&mut random, &mut left, at_most, case.append_only[0]),
            change(&mut random, &mut right, at_most, case.append_only[1]),
        ];
        // One side alone, at times.
        if let Some(alone) = [None, None, Some(0), Some(1)][random.random_range(0..4)] {
            let undo: Vec<i64> = deltas[alone].weights.values().to_vec();
            let rows = if alone == 0 { &mut left } else { &mut right };
            undo_change(rows, &deltas[alone], &undo);
            deltas[alone] = Delta::empty(&schema());
        }
        let [one, other] = deltas;
        let out = harness.step(&mut join, one, other).await.unwrap();
        assert_eq!(out.rows.schema(), *join.schema());
        add(&mut counts, &out, &back);
        if step % 4 == 3 {
            assert_eq!(counts, case.recount(&left, &right).await, "{case:?}, seed {seed}, step {step}");
        }
    }
    assert!(join.held_rows() <= left.len() + right.len());
    !counts.is_empty()
}

fn undo_change(rows: &mut Vec<Row>, delta: &Delta, weights: &[i64]) {
    let columns = delta.rows.columns();
    let texts = columns[3].as_any().downcast_ref::<StringArray>().unwrap();
    let floats = columns[1].as_any().downcast_ref::<Float64Array>().unwrap();
    let numbers = |i: usize| columns[i].as_any().downcast_ref::<Int64Array>().unwrap();
    // First those that went come back: some had come in the same delta.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|i| weights[*i]);
    for i in order {
        let text = texts.iter().nth(i).unwrap().map(|text| if text == "a" { "a" } else { "b" });
        let float = floats.iter().nth(i).unwrap().map(f64::to_bits);
        let row = (numbers(0).iter().nth(i).unwrap(), float, numbers(2).iter().nth(i).unwrap(), text);
        for _ in 0..weights[i].abs() {
            if weights[i] < 0 {
                rows.push(row);
            } else {
                let at = rows.iter().position(|other| *other == row).unwrap();
                rows.swap_remove(at);
            }
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        for key in [vec![], vec![0], vec![1, 0]] {
            for filter in filters() {
                for nulls_equal in [false, true] {
                    let case = Case {
                        kind,
                        key: key.clone(),
                        filter: filter.clone(),
                        nulls_equal,
                        append_only: [false; 2],
                        time: [None; 2],
                    };
                    cases.push(case);
                }
            }
        }
    }
    cases
}

#[tokio::test]
async fn every_kind_of_join_is_that_of_datafusion_under_random_changes() {
    let mut with_rows = 0;
    for (seed, case) in cases().into_iter().enumerate() {
        let at_most = if case.key.is_empty() { 8 } else { 30 };
        with_rows += usize::from(check(&case, seed as u64, 20, at_most).await);
    }
    assert!(with_rows > cases().len() * 9 / 10, "{with_rows}");
}

#[tokio::test]
async fn inputs_that_only_add_are_joined_alike() {
    for (seed, case) in cases().into_iter().enumerate() {
        let append_only = [[true, true], [true, false], [false, true]][seed % 3];
        let at_most = if case.key.is_empty() { 6 } else { 15 };
        check(&Case { append_only, ..case }, 1000 + seed as u64, 12, at_most).await;
    }
}

#[test]
fn hashes_that_collide_change_no_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _few = FewHashes::begin();
    for (seed, case) in cases().into_iter().enumerate().filter(|(_, case)| !case.key.is_empty()) {
        runtime.block_on(check(&case, 2000 + seed as u64, 12, 30));
    }
}

#[tokio::test]
async fn an_input_is_joined_with_itself() {
    let harness = Harness::new();
    for (seed, case) in cases().into_iter().enumerate() {
        let mut random = StdRng::seed_from_u64(3000 + seed as u64);
        let all: Vec<usize> = (0..case.columns()).collect();
        let (mut join, mut rows, mut counts) = (case.join(all.clone()), vec![], Counts::new());
        for _ in 0..6 {
            let delta = change(&mut random, &mut rows, 8, false);
            add(&mut counts, &harness.step(&mut join, delta.clone(), delta).await.unwrap(), &all);
        }
        assert_eq!(counts, case.recount(&rows, &rows).await, "{case:?}");
    }
}

fn plain(kind: JoinType, filter: Option<Expr>) -> Case {
    let (append_only, time) = ([false; 2], [None; 2]);
    Case { kind, key: vec![0], filter, nulls_equal: false, append_only, time }
}

#[tokio::test]
async fn a_row_that_is_not_there_or_a_filter_that_fails_is_an_error_and_changes_nothing() {
    let harness = Harness::new();
    let quotient = binary_expr(col("l.c2"), Op::Divide, col("r.c2"));
    for (kind, filter) in
        KINDS.into_iter().flat_map(|kind| [(kind, None), (kind, Some(quotient.clone().gt(lit(0i64))))])
    {
        let case = plain(kind, filter);
        let all: Vec<usize> = (0..case.columns()).collect();
        let (mut join, mut counts) = (case.join(all.clone()), Counts::new());
        let row = (Some(1), None, Some(4), Some("a"));
        let left = vec![row; 2];
        let first = harness.step(&mut join, Delta::of_new(batch(&left)), Delta::of_new(batch(&[row]))).await;
        add(&mut counts, &first.unwrap(), &all);
        let (held, bytes) = (join.held_rows(), join.bytes());

        let zero = (Some(1), None, Some(0), None);
        let minus = |rows: &[Row], weight: i64| Delta {
            rows: batch(rows),
            weights: Int64Array::from_value(weight, rows.len()),
        };
        for wrong in
            [minus(&[zero], -1), minus(&[row], -3), minus(&[(Some(1), None, Some(4), Some("b"))], -1)]
        {
            let error =
                harness.step(&mut join, wrong, Delta::empty(&schema())).await.unwrap_err().to_string();
            assert!(error.contains("a row is taken back that is not there"), "{error}");
        }
        if case.filter.is_some() {
            let error = harness.step(&mut join, minus(&[row], -1), Delta::of_new(batch(&[zero]))).await;
            assert!(error.unwrap_err().to_string().contains("ivide by zero"));
        }
        assert!(join.commit().is_err(), "what failed is not prepared");
        assert_eq!((join.held_rows(), join.bytes()), (held, bytes));
        let next = harness.step(&mut join, minus(&[row], -1), Delta::of_new(batch(&[row]))).await;
        add(&mut counts, &next.unwrap(), &all);
        assert_eq!(counts, case.recount(&[row], &[row, row]).await, "{case:?}");
    }
    let mut adds = Case { append_only: [true, false], ..plain(JoinType::Inner, None) }.join(vec![0]);
    let gone = Delta { rows: batch(&[draw(&mut StdRng::seed_from_u64(1))]), weights: vec![-1].into() };
    let error = harness.step(&mut adds, gone, Delta::empty(&schema())).await.unwrap_err().to_string();
    assert!(error.contains("of an input that says it never does"), "{error}");
}

#[tokio::test]
async fn rows_that_can_never_be_needed_are_not_kept() {
    let harness = Harness::new();
    let append_only = [true; 2];
    let one = |key: Option<i64>| (key, None, Some(1), None);
    let some: Vec<Row> = [None, None, Some(1), Some(1), Some(2)].map(one).to_vec();
    for kind in KINDS {
        let case = Case { append_only, ..plain(kind, None) };
        let mut join = case.join(vec![]);
        let step = harness.step(&mut join, Delta::of_new(batch(&some)), Delta::of_new(batch(&some[..4])));
        let out = step.await.unwrap();
        assert_eq!(out.rows.num_columns(), 0);
        let expected = case.recount(&some, &some[..4]).await.values().sum::<i64>();
        assert_eq!(out.weights.values().iter().sum::<i64>(), expected, "rows without columns are counted");
        // No NULL key; of semi, anti and mark joins only what may match yet, and one row of each key.
        let held = match kind {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => 5,
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => 2,
            _ => 2,
        };
        assert_eq!(join.held_rows(), held, "{kind}");
    }
}

/// Rows come in about the order of their time, `c2`; each side is final until some time.
async fn check_time(case: &Case, seed: u64, after: [i64; 2]) {
    let harness = Harness::new();
    let mut random = StdRng::seed_from_u64(seed);
    let all: Vec<usize> = (0..case.columns()).collect();
    let mut join = case.join(all.clone());
    let (mut rows, mut counts) = ([vec![], vec![]], Counts::new());
    let (mut final_until, mut most) = ([-1i64; 2], 0);
    for step in 0..60i64 {
        let mut deltas = Vec::new();
        for side in 0..2 {
            let mut changes: Vec<(Row, i64)> = Vec::new();
            for _ in 0..random.random_range(0..6) {
                let time = random.random_range(final_until[side] + 1..=final_until[side] + 6);
                let row = (Some(random.random_range(0..3)), None, Some(time), None);
                changes.push((row, 1));
                rows[side].push(row);
            }
            let open = |row: &Row| row.2.is_some_and(|time| time > final_until[side]);
            if let Some(at) = rows[side].iter().position(open)
                && random.random_bool(0.4)
            {
                changes.push((rows[side].swap_remove(at), -1));
            }
            let (changed, weights): (Vec<Row>, Vec<i64>) = changes.into_iter().unzip();
            deltas.push(Delta { rows: batch(&changed), weights: weights.into() });
        }
        let right = deltas.pop().unwrap();
        let out = harness.step(&mut join, deltas.pop().unwrap(), right).await.unwrap();
        add(&mut counts, &out, &all);
        // One side is behind the other.
        final_until = [step - 2, step.max(4) - 4];
        if step % 2 == 0 {
            // A side's rows go once no row of the other side can meet them, and none of their own is taken back.
            let until = |side: usize| final_until[1 - side].min(final_until[side] + after[side]);
            join.advance(&[until(0), until(1)]).unwrap();
            most = most.max(join.held_rows());
        }
        if step % 10 == 9 {
            let recount = case.recount(&rows[0], &rows[1]).await;
            assert_eq!(counts, recount, "{case:?}, {after:?}, seed {seed}, step {step}");
        }
    }
    assert!(most < 120, "{most} of {} rows", rows[0].len() + rows[1].len());
}

#[tokio::test]
async fn rows_that_time_makes_final_go_and_no_answer_changes() {
    let (left, right) = (|| col("l.c2"), || col("r.c2"));
    let interval = left().gt_eq(right()).and(left().lt_eq(binary_expr(right(), Op::Plus, lit(3i64))));
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let seed = seed as u64;
        // Windows joined on their window: the key has the time.
        let (key, time) = (vec![0, 2], [Some((2, 0)); 2]);
        check_time(&Case { key, time, ..plain(kind, None) }, 4000 + seed, [0, 0]).await;
        let time = [Some((2, 0)), Some((2, 3))];
        let case = Case { time, ..plain(kind, Some(interval.clone())) };
        check_time(&case, 5000 + seed, [0, 3]).await;
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let spec = |kind, key: Vec<usize>, output| JoinSpec {
        kind,
        left: Side { schema: schema(), key, append_only: true, time: None },
        right: Side { schema: schema(), key: vec![0], append_only: true, time: None },
        filter: None,
        nulls_equal: false,
        output,
    };
    let refused = |spec| Join::new(spec).unwrap_err().to_string();
    assert!(refused(spec(JoinType::Inner, vec![1], vec![])).contains("keys of different types"));
    assert!(refused(spec(JoinType::LeftSemi, vec![0], vec![4])).contains("has no column 4"));
    assert!(refused(spec(JoinType::LeftMark, vec![0], vec![5])).contains("has no column 5"));
    assert!(Join::new(spec(JoinType::LeftMark, vec![0], vec![4])).is_ok());
    let filter = create_physical_expr(
        &col("c0"),
        &datafusion::common::DFSchema::try_from(schema()).unwrap(),
        &Default::default(),
        &Default::default(),
    );
    let number = JoinSpec { filter: Some(filter.unwrap()), ..spec(JoinType::Inner, vec![0], vec![]) };
    assert!(refused(number).contains("no condition"));
}
