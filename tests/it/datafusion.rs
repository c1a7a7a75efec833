//! What the engine relies on in DataFusion and that no document of it promises: one test each, so that an upgrade
//! fails here, by name, and not in a count.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::datasource::MemTable;
use datafusion::execution::TaskContext;
use datafusion::functions_aggregate::{count::count_udaf, sum::sum_udaf};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::optimizer::Optimizer;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{
    ExecutionPlan, SendableRecordBatchStream, collect, collect_partitioned, displayable,
};
use datafusion::prelude::SessionContext;
use tally::engine::session;

/// A table that counts how often it is read, and may have other rows each time.
#[derive(Debug)]
struct Swapped {
    schema: SchemaRef,
    rows: Mutex<RecordBatch>,
    reads: AtomicUsize,
}

impl PartitionStream for Swapped {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let rows = self.rows.lock().unwrap().clone();
        Box::pin(MemoryStream::try_new(vec![rows], Arc::clone(&self.schema), None).unwrap())
    }
}

fn rows(values: &[(&str, i64)]) -> RecordBatch {
    let schema =
        Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("x", DataType::Int64, true)]);
    let k = StringArray::from_iter_values(values.iter().map(|value| value.0));
    let x = Int64Array::from_iter_values(values.iter().map(|value| value.1));
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(k), Arc::new(x)]).unwrap()
}

fn add(session: &SessionContext, name: &str, rows: RecordBatch) -> Arc<Swapped> {
    let schema = rows.schema();
    let table =
        Arc::new(Swapped { schema: Arc::clone(&schema), rows: Mutex::new(rows), reads: AtomicUsize::new(0) });
    let streaming = StreamingTable::try_new(schema, vec![Arc::clone(&table) as _]).unwrap();
    session.register_table(name, Arc::new(streaming)).unwrap();
    table
}

async fn plan(session: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    session.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
}

fn find<T: ExecutionPlan>(plan: &Arc<dyn ExecutionPlan>) -> Option<&T> {
    plan.downcast_ref::<T>().or_else(|| plan.children().into_iter().find_map(|child| find::<T>(child)))
}

fn text(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(true).to_string()
}

async fn count_of(plan: &Arc<dyn ExecutionPlan>, session: &SessionContext) -> usize {
    let batches = collect(Arc::clone(plan), session.task_ctx()).await.unwrap();
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[tokio::test]
async fn a_hash_join_keeps_its_build_side_until_it_is_reset() {
    let session = session::continuous();
    let build = add(&session, "build", rows(&[("a", 1)]));
    let probe = add(&session, "probe", rows(&[("a", 1), ("b", 2)]));
    let plan = plan(&session, "SELECT * FROM build JOIN probe ON build.k = probe.k").await;
    assert!(find::<HashJoinExec>(&plan).is_some(), "{}", text(&plan));
    assert_eq!(count_of(&plan, &session).await, 1);
    *build.rows.lock().unwrap() = rows(&[("a", 1), ("b", 1)]);
    *probe.rows.lock().unwrap() = rows(&[("b", 1), ("a", 2), ("a", 3)]);
    assert_eq!(count_of(&plan, &session).await, 2, "the old build side, the new probe side");
    assert_eq!(build.reads.load(Ordering::Relaxed), 1);
    assert_eq!(probe.reads.load(Ordering::Relaxed), 2);
    let plan = reset_plan_states(plan).unwrap();
    assert_eq!(count_of(&plan, &session).await, 3);
    assert_eq!(build.reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_smaller_side_by_statistics_is_the_build_side() {
    let session = session::continuous();
    let many: Vec<(&str, i64)> = (0..10_000).map(|i| ("a", i)).collect();
    for (name, rows) in [("small", rows(&[("a", 1)])), ("large", rows(&many))] {
        let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
        session.register_table(name, Arc::new(table)).unwrap();
    }
    for sql in [
        "SELECT s.x, l.x FROM small s JOIN large l ON s.k = l.k",
        "SELECT s.x, l.x FROM large l JOIN small s ON s.k = l.k",
        "SELECT s.x, l.x FROM large l LEFT JOIN small s ON s.k = l.k",
    ] {
        let plan = plan(&session, sql).await;
        let join = find::<HashJoinExec>(&plan).unwrap_or_else(|| panic!("{}", text(&plan)));
        assert_eq!(count_of(join.left(), &session).await, 1, "{sql}\n{}", text(&plan));
    }
}

#[tokio::test]
async fn with_one_partition_an_aggregate_is_one_step_and_nothing_is_repartitioned() {
    let session = session::continuous();
    add(&session, "t", rows(&[("a", 1)]));
    for sql in ["SELECT k, SUM(x) FROM t GROUP BY k", "SELECT SUM(x), COUNT(DISTINCT k) FROM t"] {
        let plan = plan(&session, sql).await;
        let aggregate = find::<AggregateExec>(&plan).unwrap();
        assert!(matches!(aggregate.mode(), AggregateMode::Single), "{sql}\n{}", text(&plan));
        assert!(!text(&plan).contains("Repartition"), "{}", text(&plan));
    }
}

#[tokio::test]
async fn a_distinct_aggregate_stays_one_aggregate_without_the_rule_that_is_left_out() {
    let name = "single_distinct_aggregation_to_group_by";
    assert!(Optimizer::new().rules.iter().any(|rule| rule.name() == name), "the rule has another name");
    let session = session::continuous();
    add(&session, "t", rows(&[("a", 1)]));
    let plan = plan(&session, "SELECT k, COUNT(DISTINCT x) FROM t GROUP BY k").await;
    assert_eq!(text(&plan).matches("AggregateExec").count(), 1, "{}", text(&plan));
}

#[tokio::test]
async fn no_operator_of_a_continuous_plan_keeps_a_filter_from_an_earlier_run() {
    let session = session::continuous();
    let t = add(&session, "t", rows(&[("a", 1), ("b", 2)]));
    add(&session, "u", rows(&[("a", 1), ("b", 2)]));
    let top = plan(&session, "SELECT x FROM t ORDER BY x LIMIT 1").await;
    let join = plan(&session, "SELECT t.x FROM u JOIN t ON t.k = u.k").await;
    for plan in [&top, &join] {
        assert!(!text(plan).contains("DynamicFilter"), "{}", text(plan));
    }
    assert_eq!(count_of(&top, &session).await, 1);
    // A filter left by the first run would let nothing above 1 through.
    *t.rows.lock().unwrap() = rows(&[("a", 5)]);
    let top = reset_plan_states(top).unwrap();
    assert_eq!(count_of(&top, &session).await, 1);
}

#[tokio::test]
async fn a_union_has_its_inputs_partitions_in_their_order() {
    let session = session::continuous();
    add(&session, "t", rows(&[("a", 1)]));
    add(&session, "u", rows(&[("b", 2)]));
    let plan = plan(&session, "SELECT k FROM t UNION ALL SELECT k FROM u UNION ALL SELECT k FROM t").await;
    for _ in 0..20 {
        let batches = collect_partitioned(Arc::clone(&plan), session.task_ctx()).await.unwrap().concat();
        let keys = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter());
        assert_eq!(keys.flatten().collect::<String>(), "aba");
    }
}

fn sum() -> Box<dyn GroupsAccumulator> {
    accumulator(sum_udaf())
}

fn accumulator(function: Arc<datafusion::logical_expr::AggregateUDF>) -> Box<dyn GroupsAccumulator> {
    let schema = rows(&[]).schema();
    let built = AggregateExprBuilder::new(function, vec![col("x", &schema).unwrap()]);
    let built = built.schema(schema).alias("answer").build().unwrap();
    assert!(built.groups_accumulator_supported());
    built.create_groups_accumulator().unwrap()
}

fn numbers(values: &[i64]) -> Vec<ArrayRef> {
    vec![Arc::new(Int64Array::from(values.to_vec()))]
}

fn as_numbers(array: &ArrayRef) -> Vec<Option<i64>> {
    array.as_primitive::<Int64Type>().iter().collect()
}

#[test]
fn taking_the_state_of_all_groups_empties_an_accumulator() {
    let mut accumulator = sum();
    accumulator.update_batch(&numbers(&[1, 2, 4]), &[0, 1, 0], None, 2).unwrap();
    let state = accumulator.state(EmitTo::All).unwrap();
    assert_eq!(as_numbers(&state[0]), [Some(5), Some(2)]);
    assert!(accumulator.state(EmitTo::All).unwrap()[0].is_empty());
}

#[test]
fn states_merge_into_groups_and_new_rows_add_to_them() {
    for (function, answer) in [(sum_udaf(), [Some(12), Some(5)]), (count_udaf(), [Some(3), Some(1)])] {
        let mut old = accumulator(Arc::clone(&function));
        old.update_batch(&numbers(&[1, 4]), &[0, 0], None, 1).unwrap();
        let state = old.state(EmitTo::All).unwrap();
        let mut new = accumulator(function);
        new.merge_batch(&state, &[0], 1).unwrap();
        new.update_batch(&numbers(&[7, 5]), &[0, 1], None, 2).unwrap();
        assert_eq!(as_numbers(&new.evaluate(EmitTo::All).unwrap()), answer);
    }
}

#[test]
fn a_group_whose_rows_are_all_filtered_out_is_null_and_not_zero() {
    let mut accumulator = sum();
    let none = BooleanArray::from(vec![false]);
    accumulator.update_batch(&numbers(&[3]), &[0], Some(&none), 1).unwrap();
    assert_eq!(as_numbers(&accumulator.evaluate(EmitTo::All).unwrap()), [None]);
}

#[test]
fn groups_are_numbered_densely_and_known_ones_keep_their_number() {
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true)]));
    let mut groups = new_group_values(schema, &GroupOrdering::None).unwrap();
    let keys = |of: &[&str]| -> Vec<ArrayRef> { vec![Arc::new(StringArray::from(of.to_vec()))] };
    let mut first = Vec::new();
    groups.intern(&keys(&["a", "b", "a", "c"]), &mut first).unwrap();
    assert_eq!((first[0], groups.len()), (first[2], 3));
    let mut sorted = first.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted, [0, 1, 2]);
    let mut second = Vec::new();
    groups.intern(&keys(&["c", "d"]), &mut second).unwrap();
    assert_eq!(second, [first[3], 3], "the ids are those of this call alone");
    let emitted = groups.emit(EmitTo::All).unwrap();
    assert_eq!(emitted[0].len(), 4, "all keys, by number");
    assert_eq!(emitted[0].as_string::<i32>().value(first[1]), "b");
    assert!(groups.is_empty());
}

#[test]
fn both_zeros_are_one_group() {
    let schema = Arc::new(Schema::new(vec![Field::new("f", DataType::Float64, true)]));
    let mut groups = new_group_values(schema, &GroupOrdering::None).unwrap();
    let mut ids = Vec::new();
    let zeros: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0]));
    groups.intern(&[zeros], &mut ids).unwrap();
    assert_eq!(ids, [0, 0]);
}

#[tokio::test]
async fn plans_that_only_look_alike_are_not_equal() {
    let session = session::continuous();
    add(&session, "t", rows(&[("a", 1)]));
    add(&session, "u", rows(&[("a", 1)]));
    let values = |last: &str| format!("SELECT * FROM (VALUES (1), (2), (3), (4), (5), ({last}))");
    for (one, other) in [
        (values("6"), values("7")),
        (
            "SELECT t.x FROM t JOIN u ON t.k = u.k".into(),
            "SELECT t.x FROM t JOIN u ON t.k IS NOT DISTINCT FROM u.k".into(),
        ),
    ] {
        let optimized = async |sql: &str| session.sql(sql).await.unwrap().into_optimized_plan().unwrap();
        let (plan, same) = (optimized(&one).await, optimized(&one).await);
        assert_eq!(plan, same);
        assert_ne!(plan, optimized(&other).await, "{one}\n{other}");
    }
}
