//! Random changes, and after each of them the operator's rows against plain DataFusion over all rows that are there.

use arrow::array::{ArrayRef, Int32Array, TimestampSecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::engine::flow::testing::{Live, Operated, counts, query, rows, schema};
use crate::engine::input::Kind;
use crate::engine::session;
use crate::hash_bits::FewHashes;

/// A query over the tables `t`, `u`, …, each with its key.
async fn operator(sql: &str, schema: &SchemaRef, keys: &[&[usize]], append_only: bool) -> ByKey {
    let session = session::continuous();
    let mut inputs = Vec::new();
    for (name, key) in ["t", "u"].iter().zip(keys) {
        let table = InputTable::new(*name, Kind::State, Arc::clone(schema));
        session.register_table(*name, Arc::clone(&table) as Arc<dyn TableProvider>).unwrap();
        inputs.push(KeyedInput { table, key: key.to_vec(), append_only, bound: None });
    }
    let plan = session.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    let fields = plan.schema();
    let fields = fields.fields().iter().enumerate();
    let fields = fields.map(|(i, field)| Field::new(format!("c{i}"), field.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    ByKey::new(ByKeySpec { name: "a test".into(), plan, schema, inputs }).unwrap()
}

/// Changes rows at random, and compares with the query over them.
async fn check(sql: &str, keys: &[&[usize]]) {
    for (collides, append_only) in [(false, false), (true, false), (false, true)] {
        let mut random = StdRng::seed_from_u64(17);
        let few = collides.then(FewHashes::begin);
        let operator = operator(sql, &schema(), keys, append_only).await;
        drop(few);
        let mut operated = Operated::new(operator);
        operated.start().await;
        let mut live = [Live::default(), Live::default()];
        let mut seen = 0;
        for step in 0..20 {
            let mut deltas = Vec::new();
            for live in live.iter_mut().take(keys.len()) {
                let size = [0, 1, 3, 20, 40][random.random_range(0..5)];
                deltas.push(live.change(&mut random, size, append_only));
            }
            // What was prepared and not committed leaves nothing.
            let other = Delta::of_new(rows(&mut random, 5));
            operated.prepare(&vec![other; keys.len()]).await.unwrap();
            operated.apply(&deltas).await;
            let expected = query(sql, &[("t", live[0].rows()), ("u", live[1].rows())]).await;
            let expected = counts(&expected, &vec![1; expected.num_rows()]);
            assert!(operated.output == expected, "step {step}: {sql}");
            seen = seen.max(expected.len());
            let held = live[..keys.len()].iter().map(|live| live.rows().num_rows()).sum::<usize>();
            assert_eq!(operated.operator.held_rows(), held);
        }
        assert!(seen > 0, "{sql}");
    }
}

/// Tells any two rows apart that are not the same.
const ALL: &str = "c0, c1, c3, c4 IS NULL, c4['a'], c2";

#[tokio::test]
async fn window_functions() {
    check(
        &format!(
            "SELECT *, SUM(c0) OVER (PARTITION BY c2 ORDER BY {ALL}), LAG(c0) OVER (PARTITION BY c2 ORDER BY {ALL}),
             COUNT(*) OVER (PARTITION BY c2), RANK() OVER (PARTITION BY c2 ORDER BY c0) FROM t"
        ),
        &[&[2]],
    )
    .await;
    check("SELECT c1, RANK() OVER (PARTITION BY c1 ORDER BY c0) FROM t", &[&[1]]).await;
    check("SELECT c0, COUNT(*) OVER (PARTITION BY c0, c3) FROM t", &[&[0, 3]]).await;
}

#[tokio::test]
async fn distinct_on_and_aggregates() {
    check("SELECT DISTINCT ON (c2) * FROM t ORDER BY c2, c0, c1, c3, c4 IS NULL, c4['a']", &[&[2]]).await;
    check("SELECT c2, MAX(c0), COUNT(DISTINCT c1), array_agg(c0 ORDER BY c0) FROM t GROUP BY c2", &[&[2]])
        .await;
    check("SELECT c1, COUNT(*), MIN(c2) FROM t GROUP BY c1", &[&[1]]).await;
    check("SELECT c4, COUNT(*) FROM t GROUP BY c4", &[&[4]]).await;
}

#[tokio::test]
async fn several_inputs() {
    let both = "SELECT t.c1, u.c2 FROM t FULL JOIN u ON t.c0 = u.c0 AND t.c2 < u.c2";
    check(both, &[&[0], &[0]]).await;
    check("SELECT c0, c2 FROM t EXCEPT SELECT c0, c2 FROM u", &[&[0, 2], &[0, 2]]).await;
    check(
        "SELECT t.c0, x.n FROM t JOIN (SELECT c0, COUNT(*) n FROM u GROUP BY c0) x ON t.c0 = x.c0",
        &[&[0], &[0]],
    )
    .await;
}

#[tokio::test]
async fn all_anew() {
    check("SELECT COUNT(*), SUM(c0) FROM t", &[&[]]).await;
    check("SELECT c0, c1 FROM t WHERE c0 NOT IN (SELECT c0 FROM u WHERE c0 > 3)", &[&[], &[]]).await;
    check(&format!("SELECT *, ROW_NUMBER() OVER (ORDER BY {ALL}) FROM t"), &[&[]]).await;
    let recursive = "WITH RECURSIVE r AS (SELECT DISTINCT c0 AS n FROM t UNION SELECT n + 1 FROM r WHERE n < 7) \
                     SELECT n, COUNT(*) FROM r GROUP BY n";
    check(recursive, &[&[]]).await;
}

#[tokio::test]
async fn what_fails_changes_nothing() {
    let sql = "SELECT c0, MAX(100 / (c0 - 3)) FROM t GROUP BY c0";
    let mut random = StdRng::seed_from_u64(5);
    for key in [&[0usize] as &[usize], &[]] {
        let mut operated = Operated::new(operator(sql, &schema(), &[key], false).await);
        operated.start().await;
        let bad = |rows: &RecordBatch, is: bool| {
            let c0 = rows.column(0).as_any().downcast_ref::<Int32Array>().unwrap();
            filter_record_batch(rows, &c0.iter().map(|c0| Some((c0 == Some(3)) == is)).collect()).unwrap()
        };
        let some = rows(&mut random, 60);
        operated.apply(&[Delta::of_new(bad(&some, false))]).await;
        let (held, output) = (operated.operator.held_rows(), operated.output.clone());
        let error = operated.prepare(&[Delta::of_new(some.clone())]).await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("divide by zero"), "{error}");
        assert!(operated.operator.commit().unwrap().is_empty());
        let gone = Delta { weights: vec![-61].into(), rows: some.slice(0, 1) };
        let error = operated.prepare(&[gone]).await.unwrap_err();
        assert!(error.to_string().contains("a row is taken back that is not there"), "{error}");
        assert!(operated.operator.commit().unwrap().is_empty());
        assert_eq!((operated.operator.held_rows(), &operated.output), (held, &output));
        // The same row comes and goes: nothing has changed.
        let nothing = Delta::of_change(&bad(&some, true), &bad(&some, true)).unwrap();
        assert!(operated.apply(&[nothing]).await.is_empty());
        let all = Delta::of_change(&bad(&some, false), &some.slice(0, 0)).unwrap();
        operated.apply(&[all]).await;
        assert_eq!((operated.operator.held_rows(), operated.output.len()), (0, 0));
    }
    let global = "SELECT COUNT(*) FROM t";
    let mut wrong = Operated::new(operator(global, &schema(), &[&[0]], false).await);
    let run = wrong.try_start().await;
    assert!(run.unwrap_err().to_string().contains("does not fall apart by a key"));
}

#[tokio::test]
async fn final_keys_are_freed() {
    let time = DataType::Timestamp(TimeUnit::Second, None);
    let schema = Schema::new(vec![Field::new("c0", DataType::Int32, true), Field::new("c1", time, true)]);
    let schema = Arc::new(schema);
    let mut operator = operator("SELECT c1, COUNT(*) FROM t GROUP BY c1", &schema, &[&[1]], false).await;
    let table = Arc::clone(&operator.inputs[0].table);
    let bound = Some(Bound { key: 0, after: 1_000_000_000 });
    operator.inputs[0] = Input::new(KeyedInput { table, key: vec![1], append_only: false, bound }).unwrap();
    let mut operated = Operated::new(operator);
    let times = [None, Some(-5), Some(0), Some(7), Some(8), Some(7)];
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int32Array::from(vec![1; 6])), Arc::new(TimestampSecondArray::from(times.to_vec()))];
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    operated.apply(&[Delta::of_new(rows.clone())]).await;
    let output = operated.output.clone();
    for (until, held) in [(i64::MIN, 6), (-4_000_000_000, 5), (7_999_999_999, 4), (8_000_000_000, 2)] {
        operated.operator.advance(&[until]).unwrap();
        assert_eq!(operated.operator.held_rows(), held, "{until}");
    }
    // Only the key of the row that comes is told anew.
    operated.apply(&[Delta::of_new(rows.slice(4, 1))]).await;
    assert_eq!((operated.output.len(), output.len()), (5, 5));
    assert_eq!(operated.output.values().sum::<i64>(), 5);
    assert_eq!(output.iter().filter(|row| operated.output.get(row.0) == Some(row.1)).count(), 4);
}
