//! Random changes, and after each of them the operator's rows against plain DataFusion over all rows that are there.

use arrow::array::{Int32Array, TimestampSecondArray};
use arrow::datatypes::TimeUnit;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::engine::flow::testing::{Live, Operated, counts, query, rows, schema};

fn operated(spec: TopKSpec) -> Operated<TopK> {
    Operated::new(TopK::new(spec).unwrap())
}

fn order(columns: &[(usize, bool, bool)]) -> Vec<(usize, SortOptions)> {
    columns
        .iter()
        .map(|(column, desc, nulls_first)| (*column, SortOptions::new(*desc, *nulls_first)))
        .collect()
}

fn spec() -> TopKSpec {
    TopKSpec {
        schema: schema(),
        partition: vec![],
        order: vec![],
        by: Numbering::RowNumber,
        skip: 0,
        fetch: Some(3),
        numbers: vec![],
        append_only: false,
        bound: None,
    }
}

/// Changes rows at random, and compares with `sql` over them.
async fn check(spec: TopKSpec, sql: &str) {
    let (mut random, append_only) = (StdRng::seed_from_u64(11), spec.append_only);
    let mut operated = operated(spec);
    let (mut live, mut seen) = (Live::default(), 0);
    for step in 0..30 {
        let size = [0, 1, 3, 20, 80][random.random_range(0..5)];
        let delta = live.change(&mut random, size, append_only);
        // What was prepared and not committed leaves nothing.
        operated.prepare(&[Delta::of_new(rows(&mut random, 5))]).await.unwrap();
        operated.apply(&[delta]).await;
        let expected = query(sql, &[("t", live.rows())]).await;
        let expected = counts(&expected, &vec![1; expected.num_rows()]);
        assert!(operated.output == expected, "step {step}: {sql}");
        seen = seen.max(operated.output.len());
        if !append_only {
            assert_eq!(operated.operator.held_rows(), live.rows().num_rows());
        }
    }
    assert!(seen > 1, "{sql}");
}

const REST: &str = "c0 NULLS FIRST, c1 NULLS FIRST, c2 NULLS FIRST, c3 NULLS FIRST, c4 NULLS FIRST";

#[tokio::test]
async fn limit_and_offset() {
    for (skip, fetch) in
        [(0, Some(3)), (0, Some(40)), (5, Some(7)), (30, None), (0, Some(0)), (200, Some(50))]
    {
        for append_only in [false, true] {
            let fetched = fetch.map_or(String::new(), |fetch| format!("LIMIT {fetch}"));
            let sql =
                format!("SELECT * FROM t ORDER BY c1 DESC NULLS LAST, c3, {REST} {fetched} OFFSET {skip}");
            let order = order(&[(1, true, false), (3, false, false), (1, false, false)]);
            let spec = TopKSpec { order, skip, fetch, append_only, ..spec() };
            if fetch == Some(0) {
                let delta = Delta::of_new(rows(&mut StdRng::seed_from_u64(1), 9));
                assert!(operated(spec).apply(&[delta]).await.is_empty());
            } else {
                check(spec, &sql).await;
            }
        }
    }
}

fn numbered(function: &str, of: usize, numbers: &[&str], order: &str, condition: &str) -> String {
    let window = |function: &str| match function {
        "ROW_NUMBER" => format!("ROW_NUMBER() OVER (PARTITION BY c{of} ORDER BY {order}, {REST})"),
        other => format!("{other}() OVER (PARTITION BY c{of} ORDER BY {order})"),
    };
    let numbers = numbers.iter().map(|number| format!(", {} AS \"{number}\"", window(number)));
    let columns = numbers.collect::<String>();
    let inner = format!("SELECT *{columns}, {} AS n FROM t", window(function));
    format!("SELECT * EXCLUDE (n) FROM ({inner}) WHERE n {condition}")
}

#[tokio::test]
async fn rows_up_to_a_number_of_each_partition() {
    let names = [
        (Numbering::RowNumber, "ROW_NUMBER"),
        (Numbering::Rank, "RANK"),
        (Numbering::DenseRank, "DENSE_RANK"),
    ];
    for (by, function) in names {
        for (skip, fetch, condition) in
            [(0, Some(2), "<= 2"), (1, Some(3), "BETWEEN 2 AND 4"), (2, None, "> 2")]
        {
            for append_only in [false, true] {
                let order = order(&[(2, false, false), (1, true, true)]);
                let spec = TopKSpec { partition: vec![0], order, by, skip, fetch, append_only, ..spec() };
                let by = "c2, c1 DESC";
                check(spec.clone(), &numbered(function, 0, &[], by, condition)).await;
                let with = names.map(|(_, name)| name);
                let spec = TopKSpec { numbers: names.map(|(number, _)| number).to_vec(), ..spec };
                check(spec.clone(), &numbered(function, 0, &with, by, condition)).await;
                let spec = TopKSpec { numbers: vec![Numbering::Rank], ..spec };
                check(spec, &numbered(function, 0, &["RANK"], by, condition)).await;
            }
        }
    }
}

#[tokio::test]
async fn floats_and_nested_values_make_partitions() {
    for column in 1..5 {
        let by = if column < 3 { format!("c{column}, c0 NULLS FIRST") } else { "c0 NULLS FIRST".into() };
        let spec = TopKSpec {
            partition: vec![column],
            order: order(&[(column, true, true), (0, false, true)]),
            by: Numbering::Rank,
            ..spec()
        };
        check(spec, &numbered("RANK", column, &[], &by, "<= 3")).await;
    }
}

#[tokio::test]
async fn a_row_taken_back_that_is_not_there_is_an_error() {
    let mut random = StdRng::seed_from_u64(3);
    let mut operated = operated(TopKSpec { partition: vec![0], ..spec() });
    let held = rows(&mut random, 30);
    operated.apply(&[Delta::of_new(held.clone())]).await;
    let weights = |row: usize, weight: i64| {
        let rows = held.slice(row, 1);
        Delta { rows, weights: vec![weight].into() }
    };
    let before = operated.output.clone();
    for row in 0..30 {
        let error = operated.prepare(&[weights(row, -30)]).await.unwrap_err();
        assert!(error.to_string().contains("a row is taken back that is not there"), "{error}");
        assert!(operated.operator.commit().unwrap().is_empty(), "nothing is prepared");
    }
    for row in 0..30 {
        operated.apply(&[weights(row, -1)]).await;
    }
    assert!(!before.is_empty() && operated.output.is_empty() && operated.operator.held_rows() == 0);
}

#[tokio::test]
async fn rows_that_cannot_come_back_are_not_kept() {
    let mut random = StdRng::seed_from_u64(4);
    let (mut top, mut ranked) = (
        operated(TopKSpec { partition: vec![0], skip: 1, fetch: Some(2), append_only: true, ..spec() }),
        operated(TopKSpec {
            by: Numbering::Rank,
            order: order(&[(0, false, true)]),
            append_only: true,
            ..spec()
        }),
    );
    for _ in 0..50 {
        let delta = Delta::of_new(rows(&mut random, 40));
        top.apply(std::slice::from_ref(&delta)).await;
        ranked.apply(&[delta]).await;
    }
    assert_eq!(top.operator.held_rows(), 3 * 6);
    assert_eq!(ranked.operator.held_rows() as i64, ranked.output.values().sum::<i64>());
    let gone = Delta { weights: vec![-1].into(), rows: rows(&mut random, 1) };
    assert!(top.prepare(&[gone]).await.is_err());
}

#[tokio::test]
async fn final_partitions_are_freed() {
    let time = DataType::Timestamp(TimeUnit::Second, None);
    let schema = Schema::new(vec![Field::new("c0", DataType::Int32, true), Field::new("c1", time, true)]);
    let schema = Arc::new(schema);
    let bound = Some(Bound { key: 1, after: 1_000_000_000 });
    let mut operated =
        operated(TopKSpec { schema: Arc::clone(&schema), partition: vec![0, 1], bound, ..spec() });
    let times = [None, Some(-5), Some(0), Some(7), Some(8), Some(7)];
    let values = (0..6).map(|i| Some(i % 2)).collect::<Int32Array>();
    let columns: Vec<ArrayRef> = vec![Arc::new(values), Arc::new(TimestampSecondArray::from(times.to_vec()))];
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    let put_out = operated.apply(&[Delta::of_new(rows.clone())]).await;
    assert_eq!(put_out.weights.values().iter().sum::<i64>(), 6);
    for (until, held) in
        [(i64::MIN, 6), (-4_000_000_001, 6), (-4_000_000_000, 5), (7_999_999_999, 4), (8_000_000_000, 2)]
    {
        operated.operator.advance(&[until]).unwrap();
        assert_eq!(operated.operator.held_rows(), held, "{until}");
    }
    operated.operator.advance(&[i64::MAX]).unwrap();
    assert_eq!(operated.operator.held_rows(), 1, "a partition without a time is never final");
    let again = operated.apply(&[Delta::of_new(rows.slice(0, 1))]).await;
    assert_eq!(again.weights.values(), &[1]);
}

#[test]
fn what_it_cannot_hold_is_refused() {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    for nested in [dictionary.clone(), DataType::new_list(dictionary, true)] {
        let schema = Arc::new(Schema::new(vec![Field::new("c0", nested, true)]));
        let error = TopK::new(TopKSpec { schema, ..spec() }).unwrap_err();
        assert!(error.to_string().contains("rows in order with a column of type"), "{error}");
    }
    let error = TopK::new(TopKSpec { schema: Arc::new(Schema::empty()), ..spec() }).unwrap_err();
    assert!(error.to_string().contains("rows without columns"), "{error}");
}
