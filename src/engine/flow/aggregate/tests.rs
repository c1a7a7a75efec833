//! Rows that come and go at random, counted by the operator and anew by plain DataFusion.

use std::collections::BTreeMap;

use arrow::array::Int64Array;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Aggregate as LogicalAggregate, Expr, ExprSchemable, LogicalPlan};
use datafusion::prelude::SessionContext;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::engine::input::{Inputs, Runner};
use crate::engine::session;
use crate::hash_bits::FewHashes;

/// Columns: keys, then arguments. All can be NULL.
fn schema() -> SchemaRef {
    let columns = [
        ("k", DataType::Utf8),
        ("n", DataType::Int32),
        ("z", DataType::Float64),
        ("t", DataType::Timestamp(TimeUnit::Nanosecond, None)),
        ("b", DataType::Boolean),
        ("i8", DataType::Int8),
        ("i16", DataType::Int16),
        ("i32", DataType::Int32),
        ("i64", DataType::Int64),
        ("u8", DataType::UInt8),
        ("u64", DataType::UInt64),
        ("d", DataType::Decimal128(10, 2)),
        ("e", DataType::Decimal128(38, 0)),
        ("f32", DataType::Float32),
        ("f", DataType::Float64),
        ("g", DataType::Float64),
        ("s", DataType::Utf8),
        ("w", DataType::Duration(TimeUnit::Nanosecond)),
    ];
    let fields = columns.map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(Schema::new(fields.to_vec()))
}

type Row = Vec<ScalarValue>;

fn float(random: &mut ChaCha8Rng, specials: bool) -> f64 {
    match random.random_range(0..if specials { 16 } else { 12 }) {
        0 => -0.0,
        1 => 0.0,
        2 => random.random_range(-3..3) as f64,
        3 => random.random_range(-1.0..1.0) * 1e300,
        4 => random.random_range(-1.0..1.0) * 1e-300,
        12 => f64::NAN,
        13 => -f64::NAN,
        14 => f64::INFINITY,
        15 => f64::NEG_INFINITY,
        _ => random.random_range(-1e6..1e6),
    }
}

fn draw(random: &mut ChaCha8Rng, specials: bool) -> Row {
    let nulls = random.random_range(0..3) == 0;
    let types = schema();
    let value = |random: &mut ChaCha8Rng, field: &Field| {
        if nulls && random.random_range(0..3) == 0 {
            return ScalarValue::try_from(field.data_type()).unwrap();
        }
        let small = random.random_range(-100..100i64);
        match (field.name().as_str(), field.data_type()) {
            ("k", _) => ScalarValue::from(["", "a", "b", "cc"][random.random_range(0..4)]),
            ("n", _) => ScalarValue::Int32(Some(random.random_range(0..3))),
            ("z", _) => {
                let keys = [0.0, -0.0, 1.5, f64::NAN, -f64::NAN, f64::INFINITY];
                ScalarValue::Float64(Some(keys[random.random_range(0..keys.len())]))
            }
            ("s", _) => ScalarValue::from(format!("{}", small % 20).as_str()),
            (_, DataType::Boolean) => ScalarValue::from(random.random_range(0..8) > 0),
            (_, DataType::Timestamp(..)) => {
                ScalarValue::TimestampNanosecond(Some(small * 1_000_000_000), None)
            }
            (_, DataType::Duration(_)) => ScalarValue::DurationNanosecond(Some(small)),
            (_, DataType::Int8) => ScalarValue::Int8(Some(small as i8)),
            (_, DataType::Int16) => ScalarValue::Int16(Some(small as i16)),
            (_, DataType::Int32) => ScalarValue::Int32(Some(small as i32)),
            (_, DataType::Int64) => ScalarValue::Int64(Some(small * 10_000_000_000_000)),
            (_, DataType::UInt8) => ScalarValue::UInt8(Some(small.unsigned_abs() as u8)),
            (_, DataType::UInt64) => ScalarValue::UInt64(Some(small.unsigned_abs() << 40)),
            (_, DataType::Decimal128(p, s)) => ScalarValue::Decimal128(Some(i128::from(small)), *p, *s),
            (_, DataType::Float32) => ScalarValue::Float32(Some(float(random, specials) as f32)),
            _ => ScalarValue::Float64(Some(float(random, specials))),
        }
    };
    types.fields().iter().map(|field| value(random, field)).collect()
}

fn batch(rows: &[&Row]) -> RecordBatch {
    if rows.is_empty() {
        return RecordBatch::new_empty(schema());
    }
    let column = |i: usize| ScalarValue::iter_to_array(rows.iter().map(|row| row[i].clone())).unwrap();
    let columns = (0..schema().fields().len()).map(column).collect();
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// An aggregate of SQL, as the operator takes it and as DataFusion runs it.
struct Case {
    session: SessionContext,
    aggregate: LogicalAggregate,
    /// What is below the operator: keys, arguments and filters.
    columns: Vec<Expr>,
    operator: Aggregate,
    /// What was put out, by row.
    rows: BTreeMap<Vec<String>, i64>,
    keys: usize,
}

async fn plan(session: &SessionContext, sql: &str) -> LogicalAggregate {
    session.register_batch("r", RecordBatch::new_empty(schema())).unwrap();
    let state = session.state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {}).unwrap();
    let mut found = None;
    plan.apply(|node| {
        if let LogicalPlan::Aggregate(aggregate) = node {
            found = Some(aggregate.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    found.unwrap_or_else(|| panic!("no aggregate in {sql}"))
}

impl Case {
    async fn new(sql: &str) -> Case {
        Case::with_hashes(sql, false).await
    }

    async fn with_hashes(sql: &str, short: bool) -> Case {
        let session = session::batch(session::base_config().with_target_partitions(1));
        let aggregate = plan(&session, sql).await;
        let mut columns = Vec::new();
        let (keys, grouping_sets) = keys_and_sets(&aggregate.group_expr);
        let mut at = |expr: &Expr| {
            columns.push(expr.clone());
            columns.len() - 1
        };
        let keys = keys.iter().map(&mut at).collect();
        let functions = aggregate.aggr_expr.iter().map(|expr| {
            assert!(supports(expr, aggregate.input.schema()), "{expr}");
            let Expr::AggregateFunction(function) = expr.clone().unalias() else {
                panic!("{expr} is no aggregate function")
            };
            let params = &function.params;
            FunctionSpec {
                function: Arc::clone(&function.func),
                arguments: params.args.iter().map(&mut at).collect(),
                filter: params.filter.as_deref().map(&mut at),
                distinct: params.distinct,
            }
        });
        let functions = functions.collect();
        let input = aggregate.input.schema();
        let fields = columns
            .iter()
            .enumerate()
            .map(|(i, expr)| Field::new(format!("c{i}"), expr.get_type(input).unwrap(), true));
        let spec = AggregateSpec {
            input: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            schema: Arc::new(aggregate.schema.as_arrow().clone()),
            keys,
            grouping_sets,
            functions,
            bound: None,
        };
        let keys = aggregate.schema.fields().len() - aggregate.aggr_expr.len();
        let few = short.then(FewHashes::begin);
        let operator = Aggregate::new(spec).unwrap();
        drop(few);
        let mut case = Case { session, aggregate, columns, operator, rows: BTreeMap::new(), keys };
        let (runner, inputs) = (Runner::new(&case.session), Inputs::default());
        let start = case
            .operator
            .start(&Run { runner: &runner, inputs: &inputs, watermarks: &std::collections::BTreeMap::new() })
            .await
            .unwrap();
        case.take(&start);
        case
    }

    fn project(&self, rows: &RecordBatch) -> RecordBatch {
        let state = self.session.state();
        let input = self.aggregate.input.schema();
        let column = |expr: &Expr| {
            let physical = state.create_physical_expr(expr.clone(), input).unwrap();
            physical.evaluate(rows).unwrap().into_array(rows.num_rows()).unwrap()
        };
        let columns = self.columns.iter().map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.operator.spec.input), columns, &options).unwrap()
    }

    async fn prepare(&mut self, rows: &[(&Row, i64)]) -> Result<()> {
        let (runner, inputs) = (Runner::new(&self.session), Inputs::default());
        let weights: Int64Array = rows.iter().map(|(_, weight)| Some(*weight)).collect();
        let rows: Vec<_> = rows.iter().map(|(row, _)| *row).collect();
        let delta = Delta { rows: self.project(&batch(&rows)), weights };
        self.operator
            .prepare(
                &[delta],
                &Run { runner: &runner, inputs: &inputs, watermarks: &std::collections::BTreeMap::new() },
            )
            .await
    }

    async fn apply(&mut self, rows: &[(&Row, i64)]) -> Delta {
        self.prepare(rows).await.unwrap();
        let delta = self.operator.commit().unwrap();
        self.take(&delta);
        delta
    }

    fn take(&mut self, delta: &Delta) {
        for (row, weight) in self.texts(&delta.rows).into_iter().zip(delta.weights.values()) {
            let count = self.rows.entry(row.clone()).or_default();
            *count += weight;
            if *count == 0 {
                self.rows.remove(&row);
            }
        }
    }

    /// Each value as its bits; of a key 0.0 for −0.0.
    fn texts(&self, rows: &RecordBatch) -> Vec<Vec<String>> {
        let cell = |row: usize, column: usize| match ScalarValue::try_from_array(rows.column(column), row)
            .unwrap()
        {
            ScalarValue::Float64(Some(value)) if value.is_nan() && column >= self.keys => "NaN".to_string(),
            ScalarValue::Float64(Some(value)) => {
                let value = if column < self.keys { value + 0.0 } else { value };
                format!("{value:?} {:x}", value.to_bits())
            }
            value => format!("{value:?}"),
        };
        let row = |row: usize| (0..rows.num_columns()).map(|column| cell(row, column)).collect();
        (0..rows.num_rows()).map(row).collect()
    }

    async fn recount(&self, live: &[Row]) -> BTreeMap<Vec<String>, i64> {
        let rows = batch(&live.iter().collect::<Vec<_>>());
        let table = MemTable::try_new(schema(), vec![vec![rows]]).unwrap();
        let session = session::batch(session::base_config().with_target_partitions(1));
        session.register_table("r", Arc::new(table)).unwrap();
        let scan = session.table("r").await.unwrap().into_unoptimized_plan();
        let mut aggregate = self.aggregate.clone();
        aggregate.input = Arc::new(scan);
        let frame = session.execute_logical_plan(LogicalPlan::Aggregate(aggregate)).await.unwrap();
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await.unwrap();
        for (field, made) in schema.fields().iter().zip(self.operator.spec.schema.fields()) {
            assert_eq!(field.data_type(), made.data_type());
        }
        let rows = match batches.first() {
            Some(first) => concat_batches(&first.schema(), &batches).unwrap(),
            None => RecordBatch::new_empty(schema),
        };
        self.texts(&rows).into_iter().map(|row| (row, 1)).collect()
    }
}

const FUNCTIONS: [&str; 12] = [
    "COUNT(*), COUNT(i64), COUNT(s) FILTER (WHERE b), COUNT(DISTINCT s), COUNT(DISTINCT f), COUNT(DISTINCT t)",
    "SUM(i8), SUM(i16) FILTER (WHERE b), SUM(i32), SUM(i64), SUM(u8), SUM(u64), SUM(DISTINCT i32), SUM(w)",
    "SUM(d), AVG(d), SUM(e), AVG(e), SUM(DISTINCT d), AVG(DISTINCT d), MIN(d), MAX(e), AVG(w)",
    "SUM(f), SUM(f32), AVG(f), AVG(f) FILTER (WHERE b), AVG(i32), SUM(DISTINCT f), AVG(DISTINCT f), AVG(u64)",
    "MIN(f), MAX(f), MIN(f32), MAX(f32), MIN(z), MAX(z)",
    "MIN(i8), MAX(i16), MIN(i32), MAX(i64), MIN(u8), MAX(u64), MIN(t), MAX(t), MIN(w)",
    "MIN(s), MAX(s), MIN(b), MAX(b), MAX(s) FILTER (WHERE b), MIN(DISTINCT s)",
    "bool_and(b), bool_or(b), bool_and(b) FILTER (WHERE i8 > 0)",
    "bit_xor(i8), bit_xor(i64), bit_xor(u8), bit_xor(DISTINCT i32)",
    "var_pop(f), var_samp(f), stddev(f), stddev_pop(f) FILTER (WHERE b), var_pop(i32), stddev(DISTINCT i8)",
    "covar_samp(f, g), covar_pop(f, g), corr(f, g), regr_count(f, g), regr_slope(f, g), regr_intercept(f, g)",
    "regr_r2(f, g), regr_avgx(f, g), regr_avgy(f, g), regr_sxx(f, g), regr_syy(f, g), regr_sxy(f, g)",
];

const GROUP_BY: [&str; 8] = [
    "",
    "GROUP BY k",
    "GROUP BY z",
    "GROUP BY k, n",
    "GROUP BY t, z, b",
    "GROUP BY ROLLUP (k, n)",
    "GROUP BY CUBE (n, z)",
    "GROUP BY GROUPING SETS ((k), (n, b), ())",
];

async fn same_as_a_recount(functions: &str, group_by: &str, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sql = format!("SELECT {functions} FROM r {group_by}");
    let mut case = Case::with_hashes(&sql, seed % 2 == 1).await;
    let specials = random.random_range(0..3) == 0;
    let mut live: Vec<Row> = Vec::new();
    assert_eq!(case.rows, case.recount(&live).await, "{functions} {group_by}");
    for step in 0..12 {
        let mut changes: Vec<(Row, i64)> = Vec::new();
        let (new, gone) = match random.random_range(0..5) {
            0 => (0, live.len()),
            1 => (0, 0),
            2 => (1, 0),
            _ => (random.random_range(0..60), random.random_range(0..=live.len())),
        };
        for _ in 0..gone {
            let row = live.swap_remove(random.random_range(0..live.len()));
            changes.push((row, -1));
        }
        for _ in 0..new {
            let row = draw(&mut random, specials);
            let times = if random.random_range(0..5) == 0 { 3 } else { 1 };
            live.extend(std::iter::repeat_n(row.clone(), times));
            changes.push((row, times as i64));
        }
        // What comes and goes at once is nothing, in any order.
        for _ in 0..random.random_range(0..4) {
            let row = draw(&mut random, specials);
            changes.push((row.clone(), -2));
            changes.push((row, 2));
        }
        for i in (1..changes.len()).rev() {
            changes.swap(i, random.random_range(0..=i));
        }
        let changes: Vec<_> = changes.iter().map(|(row, weight)| (row, *weight)).collect();
        if random.random_range(0..3) == 0 {
            // Prepared and never committed.
            let half = changes.iter().filter(|(_, weight)| *weight > 0).copied().collect::<Vec<_>>();
            case.prepare(&half).await.unwrap();
        }
        let delta = case.apply(&changes).await;
        let (rows, weights) = (case.texts(&delta.rows), delta.weights.values());
        let unchanged = rows.iter().zip(weights).any(|(row, weight)| {
            *weight > 0 && rows.iter().zip(weights).any(|(other, weight)| *weight < 0 && other == row)
        });
        // The sign of a zero is not seen here.
        assert!(!unchanged || group_by.contains('z'), "{functions} {group_by}: {rows:?}");
        assert_eq!(case.rows, case.recount(&live).await, "{functions} {group_by}, seed {seed}, step {step}");
    }
}

#[tokio::test]
async fn all_functions_of_rows_that_come_and_go() {
    for (i, functions) in FUNCTIONS.iter().enumerate() {
        for (j, group_by) in GROUP_BY.iter().enumerate() {
            for seed in 0..2 {
                same_as_a_recount(functions, group_by, (i * 100 + j * 10 + seed) as u64).await;
            }
        }
    }
}

fn row(k: &str, i64: i64, f: f64) -> Row {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut row = draw(&mut random, false);
    let names: Vec<_> = schema().fields().iter().map(|field| field.name().clone()).collect();
    for (name, value) in [
        ("k", ScalarValue::from(k)),
        ("i64", ScalarValue::from(i64)),
        ("f", ScalarValue::from(f)),
        ("b", ScalarValue::from(true)),
        ("e", ScalarValue::Decimal128(Some(i128::from(i64) * 10i128.pow(19)), 38, 0)),
    ] {
        row[names.iter().position(|other| other == name).unwrap()] = value;
    }
    row
}

#[tokio::test]
async fn a_row_that_is_not_there_is_not_taken_back() {
    for functions in
        ["COUNT(*)", "SUM(i64)", "MIN(i64)", "COUNT(DISTINCT f)", "AVG(f)", "bool_or(b)", "var_pop(f)"]
    {
        let mut case = Case::new(&format!("SELECT {functions} FROM r GROUP BY k")).await;
        case.apply(&[(&row("a", 1, 1.0), 1), (&row("b", 2, 2.0), 1)]).await;
        let before = case.rows.clone();
        for gone in [
            &[(&row("c", 1, 1.0), -1)][..],
            &[(&row("a", 1, 1.0), -2)],
            &[(&row("b", 2, 2.0), -1), (&row("b", 2, 2.0), -1)],
        ] {
            let error = case.prepare(gone).await.unwrap_err().to_string();
            assert!(error.contains("a row is taken back that is not there"), "{functions}: {error}");
            assert!(case.operator.commit().is_err(), "nothing was prepared");
        }
        // And nothing of it is left.
        assert!(case.apply(&[]).await.is_empty());
        assert_eq!(case.rows, before);
        case.apply(&[(&row("a", 1, 1.0), -1), (&row("b", 2, 2.0), -1)]).await;
        assert!(case.rows.is_empty(), "{functions}: {:?}", case.rows);
        assert_eq!(case.operator.groups.len(), 0);
    }
}

#[tokio::test]
async fn a_sum_too_large_is_an_error_in_any_order() {
    let large = i64::MAX / 2;
    for functions in ["SUM(i64)", "SUM(e)"] {
        let mut case = Case::new(&format!("SELECT {functions} FROM r GROUP BY k")).await;
        let rows = [row("a", large, 0.0), row("a", large, 0.0), row("a", large, 0.0)];
        case.apply(&[(&rows[0], 1), (&rows[1], 1)]).await;
        let more: Vec<_> = (0..20).map(|_| (&rows[2], 1)).collect();
        let error = case.prepare(&more).await.unwrap_err().to_string();
        assert!(error.contains("a sum is too large for its type"), "{functions}: {error}");
        // On the way to what fits nothing is too large.
        let mut through = more.clone();
        through.extend((0..20).map(|_| (&rows[2], -1)));
        assert!(case.apply(&through).await.is_empty());
    }
}

#[tokio::test]
async fn final_groups_are_freed_and_their_rows_stay() {
    let second = 1_000_000_000;
    let mut case = Case::new("SELECT MIN(s), SUM(f), COUNT(DISTINCT i64) FROM r GROUP BY t").await;
    case.operator.spec.bound = Some(Bound { key: 0, after: 10 * second });
    let at = |seconds: Option<i64>| {
        let mut row = row("a", 1, 1.5);
        row[3] = ScalarValue::TimestampNanosecond(seconds.map(|seconds| seconds * second), None);
        row
    };
    let rows = [Some(0), Some(5), Some(7), Some(20), None].map(at);
    let all: Vec<_> = rows.iter().map(|row| (row, 1)).collect();
    case.apply(&all).await;
    let put_out = case.rows.clone();
    case.operator.advance(&[i64::MIN]).unwrap();
    assert_eq!(case.operator.groups.len(), 5);
    // A group that went is not freed again, and its number is another's.
    case.apply(&[(&rows[2], -1)]).await;
    case.apply(&[(&at(Some(30)), 1)]).await;
    case.operator.advance(&[15 * second]).unwrap();
    assert_eq!(case.operator.groups.len(), 3, "20, 30 and NULL");
    case.apply(&[(&at(Some(30)), -1), (&rows[2], 1)]).await;
    assert_eq!(case.rows, put_out);
    case.operator.advance(&[i64::MAX]).unwrap();
    assert_eq!(case.operator.groups.len(), 1, "without a time it is never final");
    case.apply(&[(&rows[4], -1)]).await;
    assert_eq!(case.operator.groups.len(), 0);
}
