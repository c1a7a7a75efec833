//! Rows that can't be judged together, keys that come twice, and event times from the future.

use std::path::PathBuf;
use std::time::Instant;

use arrow::array::{AsArray, Int64Array, StringArray, TimestampNanosecondArray, TimestampSecondArray};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};

use super::*;
use crate::catalog::Catalog;
use crate::engine::session;
use crate::error::Error;
use crate::queries::QueryFile;

struct NoTables;

impl ForeignKeys for NoTables {
    fn contains(&self, table: &str, _columns: &[String], _values: &[ArrayRef]) -> Result<BooleanArray> {
        Err(Error::Config(format!("there is no table {table}")))
    }
}

async fn declare(columns: &str, options: &str) -> Result<SourceDef> {
    let text =
        format!("CREATE UNBOUNDED EXTERNAL TABLE s ({columns}) STORED AS KAFKA LOCATION 't' {options};");
    let files = [QueryFile { path: PathBuf::from("s.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    Ok(catalog.sources["s"].clone())
}

/// A session with a function that panics at 13.
fn panicking_session() -> SessionState {
    let session = session::continuous();
    let explode = |arguments: &[ColumnarValue]| {
        let values = ColumnarValue::values_to_arrays(arguments)?;
        assert!(
            values[0].as_primitive::<Int64Type>().iter().all(|value| value != Some(13)),
            "it is thirteen"
        );
        Ok(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))))
    };
    let types = (vec![DataType::Int64], DataType::Boolean);
    session.register_udf(create_udf("lucky", types.0, types.1, Volatility::Immutable, Arc::new(explode)));
    session.state()
}

async fn rules(columns: &str, options: &str) -> RuleSet {
    RuleSet::new(&declare(columns, options).await.unwrap(), None, &panicking_session()).unwrap()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Decoded {
    let rows =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    Decoded::of_rows(rows.clone(), (0..rows.num_rows() as u32).collect())
}

fn numbers(values: impl IntoIterator<Item = i64>) -> Decoded {
    batch(vec![("x", Arc::new(Int64Array::from_iter_values(values)))])
}

fn by_position(message: u32) -> Origin {
    Origin { offset: message.into(), ..Origin::default() }
}

#[tokio::test]
async fn a_check_that_cannot_be_evaluated_is_broken_by_that_row_only() {
    for (check, bad, reason) in [
        ("100 / x > 1", 0, "100 / x > 1 can't be evaluated: Divide by zero error"),
        ("CAST(CASE WHEN x = 7 THEN 'seven' ELSE '1' END AS INT) = 1", 7, "Cannot cast string 'seven'"),
        ("x + 9223372036854775800 > 0 OR x < 0", i64::MAX, "verflow"),
        ("lucky(x)", 13, "lucky(x) can't be evaluated: a function failed: it is thirteen"),
    ] {
        let mut rules = rules(&format!("x BIGINT, CHECK ({check})"), "").await;
        let values = [1, 2, bad, 3, 4];
        let (judged, rejects) = rules.judge(numbers(values), &by_position, &NoTables).unwrap();
        assert_eq!(judged.messages, [0, 1, 3, 4], "{check}");
        assert_eq!((rejects.len(), rejects[0].message), (1, 2), "{check}");
        assert!(rejects[0].reason.contains(reason), "{check}: {}", rejects[0].reason);
        assert!(rejects[0].rule.starts_with("check("), "{}", rejects[0].rule);
    }
}

#[tokio::test]
async fn one_bad_row_among_many_costs_milliseconds() {
    let mut rules = rules("x BIGINT, CHECK (100 / x < 1000)", "").await;
    let values = (1..=50_000).map(|i| if i == 33_333 { 0 } else { i });
    let begun = Instant::now();
    let (judged, rejects) = rules.judge(numbers(values), &by_position, &NoTables).unwrap();
    assert_eq!((judged.rows.num_rows(), rejects.len(), rejects[0].message), (49_999, 1, 33_332));
    // It takes about one; a row by itself each time would take a hundred.
    assert!(begun.elapsed().as_millis() < 50, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_check_that_fails_for_every_row_refuses_every_row() {
    let mut rules = rules("x BIGINT, CHECK (1 / (x - x) = 1)", "").await;
    let (judged, rejects) = rules.judge(numbers(0..100), &by_position, &NoTables).unwrap();
    assert_eq!((judged.rows.num_rows(), rejects.len()), (0, 100));
    let (judged, _) = rules.judge(numbers([]), &by_position, &NoTables).unwrap();
    assert_eq!(judged.rows.num_rows(), 0);
}

#[tokio::test]
async fn a_check_whose_answer_changes_by_itself_is_refused() {
    for check in ["x < random()", "at < now()", "at < current_date", "CASE WHEN x > 0 THEN now() > at END"] {
        let source = declare(&format!("x BIGINT, at TIMESTAMP, CHECK ({check})"), "").await.unwrap();
        let Err(error) = RuleSet::new(&source, None, &session::continuous().state()) else {
            panic!("{check}")
        };
        let error = error.to_string();
        assert!(error.contains("another value each time") && error.starts_with("s.sql:1:"), "{error}");
    }
}

fn keyed(keys: &[&str]) -> Decoded {
    batch(vec![
        ("k", Arc::new(StringArray::from(keys.to_vec()))),
        ("x", Arc::new(Int64Array::from(vec![1; keys.len()]))),
    ])
}

#[tokio::test]
async fn the_first_message_of_a_key_is_the_first_by_timestamp_then_partition_and_offset() {
    let origin = |timestamp_ms, partition, offset| Origin { timestamp_ms, partition, offset };
    let origins = [
        origin(Some(20), 0, 5), // a, but later than the next
        origin(Some(10), 1, 7),
        origin(Some(10), 0, 9), // a at the same time, of a lower partition: the first
        origin(Some(30), 0, 1), // b
        origin(Some(30), 0, 0), // b, earlier in its partition: the first
        origin(None, 2, 0),     // c without a timestamp: before those that have one
        origin(Some(0), 0, 0),
    ];
    let mut rules = rules("k VARCHAR, x BIGINT, PRIMARY KEY (k)", "").await;
    let by_origin = |message: u32| origins[message as usize];
    let (judged, rejects) =
        rules.judge(keyed(&["a", "a", "a", "b", "b", "c", "c"]), &by_origin, &NoTables).unwrap();
    assert_eq!(judged.messages, [2, 4, 5]);
    assert_eq!(rejects.iter().map(|r| r.message).collect::<Vec<_>>(), [0, 1, 3, 6]);
    assert_eq!(rules.keys_in_two_partitions(), 2, "a and c");
    // What was counted stays so, whatever comes later.
    let earlier = |_: u32| origin(Some(-1), 5, 0);
    let (judged, _) = rules.judge(keyed(&["a", "b", "d"]), &earlier, &NoTables).unwrap();
    assert_eq!(judged.messages, [2]);
    assert_eq!(rules.keys_in_two_partitions(), 3, "each key is told once: a, b and c");
}

#[tokio::test]
async fn of_any_keys_exactly_the_first_of_each_is_kept() {
    for columns in ["k VARCHAR, x BIGINT, PRIMARY KEY (k)", "k VARCHAR, x BIGINT, PRIMARY KEY (k, x)"] {
        let mut rules = rules(columns, "").await;
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..20_u64 {
            let keys: Vec<String> =
                (0..2000).map(|i| format!("k{}", (i * 7919 + round * 104_729) % 9973 / 3)).collect();
            let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
            let (judged, _) = rules.judge(keyed(&texts), &by_position, &NoTables).unwrap();
            let expected: Vec<u32> = (0..2000).filter(|i| seen.insert(keys[*i as usize].clone())).collect();
            assert_eq!(judged.messages, expected, "{columns}");
        }
        assert!(rules.bytes() > seen.len() * 10);
        assert_eq!(rules.keys_in_two_partitions(), 0);
    }
}

#[tokio::test]
async fn a_key_with_null_is_a_key() {
    let mut rules = rules("k VARCHAR, x BIGINT, PRIMARY KEY (k)", "").await;
    let keys = StringArray::from(vec![Some(""), None, Some(""), None]);
    let rows = batch(vec![("k", Arc::new(keys)), ("x", Arc::new(Int64Array::from(vec![1; 4])))]);
    let (judged, _) = rules.judge(rows, &by_position, &NoTables).unwrap();
    assert_eq!(judged.messages, [0, 1]);
}

const IN_TIME: &str = "OPTIONS ('event_time' 'at')";

#[tokio::test]
async fn an_event_time_long_after_the_message_is_rejected_as_future() {
    let mut rules = rules("at TIMESTAMP, PRIMARY KEY (at)", IN_TIME).await;
    let received_ms = 1_700_000_000_000;
    let at_ms = [0, 300_000, 300_001, -1_000_000];
    let times: TimestampNanosecondArray =
        at_ms.iter().map(|ms| Some((received_ms + ms) * 1_000_000)).chain([None]).collect();
    let rows = || batch(vec![("at", Arc::new(times.clone()))]);
    let origin = |message| Origin { timestamp_ms: Some(received_ms), ..by_position(message) };
    let (judged, rejects) = rules.judge(rows(), &origin, &NoTables).unwrap();
    assert_eq!(judged.messages, [0, 1, 3, 4]);
    assert_eq!((rejects.len(), rejects[0].rule.as_str()), (1, "future"));
    let reason = "at 2023-11-14T22:18:20.001 is more than 300 s after 2023-11-14T22:13:20.000Z";
    assert!(rejects[0].reason.starts_with(reason), "{}", rejects[0].reason);
    // A line of a file has no timestamp, and a refused row has claimed no key.
    let (judged, rejects) = rules.judge(rows(), &by_position, &NoTables).unwrap();
    assert_eq!((judged.messages, rejects.len()), (vec![2], 4));
    assert!(rules.columns().any(|column| column == "at"), "it is kept for this rule");
}

#[tokio::test]
async fn how_far_ahead_an_event_may_be_is_an_option() {
    let options = "OPTIONS ('event_time' 'at', 'max_future' '1 day')";
    let mut rules = rules("at TIMESTAMP(0)", options).await;
    let times = TimestampSecondArray::from(vec![86_400, 86_401, i64::MAX]);
    assert_eq!(times.data_type(), &DataType::Timestamp(TimeUnit::Second, None));
    let rows = batch(vec![("at", Arc::new(times))]);
    let origin = |message| Origin { timestamp_ms: Some(0), ..by_position(message) };
    let (judged, _) = rules.judge(rows, &origin, &NoTables).unwrap();
    assert_eq!(judged.messages, [0]);
    let error = declare("at TIMESTAMP", "OPTIONS ('max_future' '1 day')").await.unwrap_err().to_string();
    assert!(error.contains("needs 'event_time'"), "{error}");
    let error =
        declare("at TIMESTAMP", "OPTIONS ('event_time' 'at', 'max_future' 'soon')").await.unwrap_err();
    assert!(error.to_string().contains("max_future 'soon' is no duration"), "{error}");
}
