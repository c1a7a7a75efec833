//! What is read from JSON, what is refused, and which rows keep the rules.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};

use super::*;
use crate::catalog::{Catalog, SourceDef, TimestampFormat};
use crate::engine::session;
use crate::error::Result;
use crate::queries::QueryFile;
use crate::source::{MessageRef, Origin, RawBatch};

/// The table `candidates` with the ids `a` and `b`.
struct Candidates;

impl ForeignKeys for Candidates {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        assert_eq!((table, columns), ("candidates", &["candidate_id".to_string()][..]));
        let ids = values[0].as_string::<i32>();
        Ok(ids.iter().map(|id| Some(id == Some("a") || id == Some("b"))).collect())
    }
}

/// Messages of one partition, one after the other.
fn by_position(message: u32) -> Origin {
    Origin { offset: message.into(), ..Origin::default() }
}

/// Messages of one partition.
fn raw(messages: &[&str]) -> RawBatch {
    let mut raw = RawBatch::default();
    for (offset, message) in (0..).zip(messages) {
        raw.push(MessageRef { offset, payload: Some(message.as_bytes()), ..MessageRef::default() });
    }
    raw
}

async fn declare(columns: &str, options: &str) -> Result<SourceDef> {
    let text =
        format!("CREATE UNBOUNDED EXTERNAL TABLE s ({columns}) STORED AS KAFKA LOCATION 't' {options};");
    let files = [QueryFile { path: PathBuf::from("s.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    Ok(catalog.sources["s"].clone())
}

async fn source(columns: &str) -> SourceDef {
    declare(columns, "").await.unwrap()
}

async fn decode(columns: &str, messages: &[&str]) -> (RecordBatch, Vec<Reject>) {
    decode_as(source(columns).await.schema, TimestampFormat::Iso, messages)
}

fn decode_as(schema: SchemaRef, format: TimestampFormat, messages: &[&str]) -> (RecordBatch, Vec<Reject>) {
    let decoder = JsonDecoder::new(schema, format).unwrap();
    let payloads: Vec<_> = messages.iter().map(|message| Some(message.as_bytes())).collect();
    let (decoded, rejects) = decoder.decode(&payloads).unwrap();
    let positions: BTreeSet<u32> =
        decoded.messages.iter().copied().chain(rejects.iter().map(|r| r.message)).collect();
    assert_eq!(positions.len(), messages.len(), "each message is a row or a reject");
    (decoded.rows, rejects)
}

/// The rows as JSON, so that a value can be compared with how it was spelled.
fn json(rows: &RecordBatch) -> String {
    let mut writer = arrow_json::ArrayWriter::new(Vec::new());
    writer.write(rows).unwrap();
    writer.finish().unwrap();
    String::from_utf8(writer.into_inner()).unwrap()
}

#[tokio::test]
async fn every_declared_type_is_read_and_other_fields_are_skipped() {
    let columns = "i INT, b BIGINT, f DOUBLE, d DECIMAL(12, 3), t BOOLEAN, s VARCHAR, day DATE, at TIMESTAMP,
                   address STRUCT<city VARCHAR, n INT>, tags VARCHAR[]";
    let (rows, rejects) = decode(
        columns,
        &[r#"{"other": {"deep": [1, {"x": null}]}, "i": -1, "b": 9007199254740993, "f": 1.5, "d": 123456789.125, "t": true,
             "s": "gr\u00fc\u00dfe \ud83d\ude00", "day": "1969-12-31", "at": "2026-05-07 12:34:56", "address": {"city": "York", "n": 3, "x": 1},
             "tags": ["a", null, "b"], "i": 7}"#, r#"{}"#, r#"{"address": null, "tags": [], "at": "2026-05-07T12:34:56.5Z", "f": 2}"#],
    )
    .await;
    assert_eq!(rejects, []);
    assert_eq!(
        json(&rows),
        r#"[{"i":7,"b":9007199254740993,"f":1.5,"d":123456789.125,"t":true,"s":"grüße 😀","day":"1969-12-31","at":"2026-05-07T12:34:56","address":{"city":"York","n":3},"tags":["a",null,"b"]},{},{"f":2.0,"at":"2026-05-07T12:34:56.500","tags":[]}]"#
    );
    let address = rows.column_by_name("address").unwrap().as_struct();
    assert!(address.is_null(1) && address.column(0).is_null(1), "no child value under a null struct");
}

#[tokio::test]
async fn numbers_times_maps_and_bytes_are_read_as_declared() {
    let columns = "small TINYINT, unsigned BIGINT UNSIGNED, float REAL, d DECIMAL(60, 20), clock TIME, bytes BYTEA,
                   counts MAP(VARCHAR, INT), deep MAP(VARCHAR, MAP(VARCHAR, BIGINT[])), pair INT[2], at TIMESTAMP(3)";
    let messages = [
        r#"{"small": -128, "unsigned": 18446744073709551615, "float": 0.1, "d": "-123456789012345678901234567890.00000000000000000001",
            "clock": "23:59:58.5", "bytes": "aGFsbG8=", "counts": {"z": 1, "a": null, "\u0061b": 70e-1}, "deep": {"x": {"y": [1, 2]}, "n": null},
            "pair": [1, null], "at": "2026-05-07T14:34:56.789+02:00"}"#,
        r#"{"counts": {}, "deep": null, "pair": null, "bytes": ""}"#,
    ];
    let (rows, rejects) = decode(columns, &messages).await;
    assert_eq!(rejects, []);
    assert_eq!(
        json(&rows),
        r#"[{"small":-128,"unsigned":18446744073709551615,"float":0.1,"d":-123456789012345678901234567890.00000000000000000001,"clock":"23:59:58.500","bytes":"68616c6c6f","counts":{"z":1,"ab":7},"deep":{"x":{"y":[1,2]}},"pair":[1,null],"at":"2026-05-07T12:34:56.789"},{"bytes":"","counts":{}}]"#
    );
    let counts = rows.column_by_name("counts").unwrap().as_map().value(0);
    let keys: Vec<_> = counts.column(0).as_string::<i32>().iter().flatten().collect();
    assert_eq!(keys, ["z", "a", "ab"], "in the order of the message");
}

#[tokio::test]
async fn an_object_or_array_is_the_text_of_a_varchar_letter_by_letter() {
    let messages = [
        r#"{"s": {"b":  1.50, "a": "\u00e9"} }"#,
        r#"{"s": [ ]}"#,
        r#"{"s": "{}"}"#,
        r#"{"s": 1}"#,
        r#"{"s": true}"#,
    ];
    let (rows, rejects) = decode("s VARCHAR", &messages).await;
    let texts: Vec<_> = rows.column(0).as_string::<i32>().iter().flatten().collect();
    assert_eq!(texts, [r#"{"b":  1.50, "a": "\u00e9"}"#, "[ ]", "{}"]);
    assert_eq!(rejects.len(), 2, "a number or boolean is no text");
}

#[tokio::test]
async fn an_event_time_has_room_for_windows_whether_it_is_kept_or_not() {
    for columns in ["at TIMESTAMP, other TIMESTAMP, n INT", "at TIMESTAMP(3), other TIMESTAMP, n INT"] {
        let source = declare(columns, "OPTIONS ('event_time' 'at', 'timestamp_format' 'iso')").await.unwrap();
        let planning = session::continuous().state();
        for read in [None, Some(BTreeSet::from(["n".to_string()]))] {
            let (decoder, _) = of_source(&source, read, &planning).unwrap();
            let accepted = |message: &str| {
                let (decoded, rejects) = decoder.decode(&raw(&[message])).unwrap();
                assert_eq!(decoded.messages.len() + rejects.len(), 1);
                rejects.first().map(|reject| (reject.rule.clone(), reject.reason.clone()))
            };
            for year in ["1700-01-01T00:00:00", "2239-12-31T23:59:59.999"] {
                assert_eq!(accepted(&format!(r#"{{"at": "{year}"}}"#)), None);
            }
            for year in [
                "1699-12-31T23:59:59.999",
                "2240-01-01T00:00:00",
                "1677-09-21T00:12:44",
                "9999-01-01T00:00:00",
            ] {
                let (rule, reason) = accepted(&format!(r#"{{"at": "{year}"}}"#)).unwrap();
                assert_eq!(rule, "json");
                assert!(reason.contains("is no event time from 1700 to 2239"), "{reason}");
            }
            assert_eq!(accepted(r#"{"other": "2262-04-11T00:00:00"}"#), None, "no event time");
        }
    }
}

#[tokio::test]
async fn timestamps_are_spelled_as_the_source_says() {
    let source = declare("at TIMESTAMP(3)", "OPTIONS ('timestamp_format' 'epoch_s')").await.unwrap();
    assert_eq!(source.timestamp_format, TimestampFormat::Epoch(TimeUnit::Second));
    assert_eq!(self::source("at TIMESTAMP").await.timestamp_format, TimestampFormat::Iso);
    let error = declare("at TIMESTAMP", "OPTIONS ('timestamp_format' 'rfc')").await.unwrap_err().to_string();
    let known = "'rfc' is not known; it is one of iso, epoch_s, epoch_ms, epoch_us, epoch_ns";
    assert!(error.contains(known), "{error}");

    let read = |timestamps, zone: Option<&str>, values: &[&str]| {
        let at = DataType::Timestamp(TimeUnit::Millisecond, zone.map(Into::into));
        let messages: Vec<_> = values.iter().map(|value| format!(r#"{{"at": {value}}}"#)).collect();
        let messages: Vec<_> = messages.iter().map(String::as_str).collect();
        let schema = Arc::new(Schema::new(vec![Field::new("at", at, true)]));
        let (rows, rejects) = decode_as(schema, timestamps, &messages);
        let times = arrow::compute::cast(rows.column(0), &DataType::Int64).unwrap();
        let times: Vec<i64> = times.as_primitive::<Int64Type>().values().to_vec();
        (times, rejects.into_iter().map(|reject| reject.reason).collect::<Vec<_>>())
    };
    let values = ["1", "\"2\"", "1.5", "-0.0005", "1e3", "\"1970-01-01 00:00:00\"", "true", "1e17"];
    let (times, refused) = read(TimestampFormat::Epoch(TimeUnit::Second), None, &values);
    assert_eq!(times, [1000, 2000, 1500, -1, 1_000_000]);
    assert_eq!(refused.len(), 3);
    assert_eq!(refused[0], r#"field at: "1970-01-01 00:00:00" is no Timestamp(ms) as epoch_s"#);
    for (unit, value) in [
        (TimeUnit::Millisecond, "1778155200123"),
        (TimeUnit::Microsecond, "1778155200123456"),
        (TimeUnit::Nanosecond, "\"1778155200123456789\""),
    ] {
        assert_eq!(read(TimestampFormat::Epoch(unit), Some("+02:00"), &[value]).0, [1_778_155_200_123]);
    }
    // A text that names no zone is in the column's, or in UTC.
    let texts = ["\"2026-05-07T12:00:00\"", "\"2026-05-07 12:00:00.123Z\"", "\"2026-05-07T12:00:00-01:00\""];
    let utc = [1_778_155_200_000, 1_778_155_200_123, 1_778_158_800_000];
    assert_eq!(read(TimestampFormat::Iso, None, &texts).0, utc);
    assert_eq!(read(TimestampFormat::Iso, Some("+02:00"), &texts).0, [1_778_148_000_000, utc[1], utc[2]]);
    assert_eq!(
        read(TimestampFormat::Iso, Some("Europe/London"), &texts).0,
        [1_778_151_600_000, utc[1], utc[2]]
    );
    let (_, refused) = read(TimestampFormat::Iso, None, &["1778155200"]);
    assert_eq!(refused, [r#"field at: 1778155200 is no Timestamp(ms) such as "2026-05-07 21:59:59""#]);
}

#[tokio::test]
async fn only_the_columns_asked_for_are_judged() {
    let schema = source("i INT, n INT, s VARCHAR").await.schema;
    let messages = [
        r#"{"i": "wrong", "n": 1, "s": "\ud800", "x": "\udc00"}"#,
        r#"{"i": 2, "n": 3}"#,
        r#"{"i": nothing, "n": 4}"#,
        r#"{"i": "\x", "n": 5}"#,
    ];
    let (rows, rejects) = decode_as(Arc::new(schema.project(&[1]).unwrap()), TimestampFormat::Iso, &messages);
    assert_eq!(json(&rows), r#"[{"n":1},{"n":3}]"#);
    assert_eq!(rejects.iter().map(|reject| reject.message).collect::<Vec<_>>(), [2, 3]);
    let (rows, rejects) = decode_as(Arc::new(Schema::empty()), TimestampFormat::Iso, &messages);
    assert_eq!((rows.num_rows(), rejects.len()), (2, 2), "rows without columns are counted");
}

/// arrow-json takes or cuts most of these: `oracle::translate` has the whole list.
#[tokio::test]
async fn what_would_change_a_value_in_silence_is_refused() {
    for (column, value, reason) in [
        ("INT", r#""1""#, r#"field v: "1" is no Int32"#),
        ("INT", "1.5", "field v: 1.5 is no Int32"),
        ("BIGINT", "9223372036854775808", "is no Int64"),
        ("DOUBLE", r#""1.5""#, "is no Float64"),
        ("DOUBLE", "1e400", "field v: 1e400 is no Float64"),
        ("DECIMAL(5, 2)", "1.255", "field v: 1.255 is no Decimal128(5, 2)"),
        ("DECIMAL(5, 2)", "1000", "is no Decimal128"),
        ("DATE", "20000", "field v: 20000 is no Date32"),
        ("DATE", r#""2026-02-30""#, "is no Date32"),
        ("TIME", r#""5""#, "is no Time64"),
        ("TIMESTAMP", r#""2026-05-07 25:00:00""#, "is no Timestamp"),
        ("BYTEA", r#""68616c6c6f!""#, "is no base64"),
        ("BYTEA", r#""aGFsbG8""#, "is no base64"),
        ("BOOLEAN", "1", "field v: 1 is no Boolean"),
        ("VARCHAR", r#""\ud800""#, "is no VARCHAR"),
        ("MAP(VARCHAR, INT)", r#"{"a": 1, "\u0061": 2}"#, r#"field v: the key "a" comes twice"#),
        ("MAP(VARCHAR, INT)", r#"{"a": {}}"#, r#"field v["a"]: an object is no Int32"#),
        ("MAP(VARCHAR, INT)", "[1]", "field v: an array is no MAP"),
        ("INT[2]", "[1, 2, 3]", "field v: 3 items are not 2"),
        ("STRUCT<a INT, b VARCHAR[]>", r#"{"a": 1, "b": ["x", 5]}"#, "field v.b[1]: 5 is no VARCHAR"),
        ("STRUCT<a INT>", "[1]", "field v: an array is no STRUCT"),
    ] {
        let bad = format!(r#"{{"v": {value}}}"#);
        let (rows, rejects) = decode(&format!("v {column}"), &["{}", &bad, r#"{"v": null}"#]).await;
        assert_eq!((rows.num_rows(), rejects.len()), (2, 1), "{column}: {bad} is refused by itself");
        assert!(rejects[0].reason.contains(reason), "{}", rejects[0].reason);
    }
    // Of a key that comes twice the last value counts, and only that is judged.
    let (rows, _) = decode("v INT", &[r#"{"v": "x", "v": 1}"#, r#"{"v": 1, "v": null}"#]).await;
    assert_eq!(json(&rows), r#"[{"v":1},{}]"#);
}

#[tokio::test]
async fn what_is_no_json_is_refused_also_where_it_is_skipped() {
    let good = r#"[] {} [[],{}] "\u00e9\n\/" -0.0e+1 1E5 [1,2] {"a":{"b":[null,true]}} "a_long_text_without_escapes" "é😀""#;
    let bad = r#"[1,] [,1] {,} {"a"} {"a":} {"a":1,} {"a"1} {1:2} [1"2"] [} {] 01 1. .5 - +1 1e nul nulll tru NaN 'a'
        "\x" "\u12g4" "open 1} [1]] [1} {"a":1] [{"a":1]} [[1}]"#;
    let control = ["", "\"\u{1}\"", "\"a text with a tab\tand more text\""];
    let good: Vec<_> = good.split_whitespace().chain(["[ 1 ,\n2 ] "]).collect();
    let bad: Vec<_> = bad.split_whitespace().chain(control).collect();
    let wrap = |value: &str| [format!(r#"{{"x": {value}, "i": 1}}"#), format!(r#"{{"i": 1, "x": {value}}}"#)];
    for (values, refused) in [(good, 0), (bad, 2)] {
        for value in values {
            let messages = wrap(value);
            let (rows, rejects) = decode("i INT", &[&messages[0], &messages[1], r#"{"i": 1, "x": 1}"#]).await;
            assert_eq!((rows.num_rows(), rejects.len()), (3 - refused, refused), "{value}: {rejects:?}");
        }
    }
    // However deep: serde_json steps over what the scanner does not.
    for depth in [1, 61, 62, 63, 64, 65, 10_000] {
        let arrays = wrap(&format!("{}1{}", "[".repeat(depth), "]".repeat(depth)));
        let objects = wrap(&format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth)));
        let [open_array, open_object] =
            [&arrays[0], &objects[1]].map(|message| message.replacen('1', "[", 1));
        let (rows, rejects) = decode("i INT", &[&arrays[0], &objects[1], &open_array, &open_object]).await;
        assert_eq!((rows.num_rows(), rejects.len()), (2, 2), "{depth} deep");
    }
    let decoder = JsonDecoder::new(source("i INT").await.schema, TimestampFormat::Iso).unwrap();
    let (_, rejects) = decoder.decode(&[None, Some(b"{\"x\": \"\xff\"}")]).unwrap();
    assert_eq!(rejects[0].reason, "the message has no payload");
    assert!(rejects[1].reason.contains("invalid utf-8"), "{}", rejects[1].reason);
}

#[tokio::test]
async fn a_message_that_does_not_fit_is_refused_by_itself_with_the_reason() {
    let messages = [
        (r#"{"i": 1, "at": "2026-05-07 00:00:00"}"#, ""),
        (r#"{"i": 1.5}"#, "field i: 1.5 is no Int32"),
        (r#"{"i": 3000000000}"#, "field i: 3000000000 is no Int32"),
        (r#"{"i": "x"}"#, "field i: \"x\" is no Int32"),
        (r#"{"i": true}"#, "field i: true is no Int32"),
        (r#"{"i": {}}"#, "an object is no Int32"),
        (r#"{"at": "tomorrow"}"#, "field at: \"tomorrow\" is no Timestamp"),
        (r#"{"s": 5}"#, "field s: 5 is no VARCHAR"),
        (r#"{"i": 1"#, "EOF"),
        (r#"{"i": 1} {"i": 2}"#, "trailing characters"),
        (r#"[1]"#, "a JSON object"),
        ("", "EOF"),
        (r#"{"s": "fine"}"#, ""),
    ];
    let (rows, rejects) =
        decode("i INT, at TIMESTAMP, s VARCHAR", &messages.map(|(message, _)| message)).await;
    assert_eq!(rows.num_rows(), 2);
    let mut reasons = rejects.iter();
    for (position, (message, reason)) in
        messages.iter().enumerate().filter(|(_, (_, reason))| !reason.is_empty())
    {
        let reject = reasons.next().unwrap();
        assert_eq!((reject.message as usize, reject.rule.as_str()), (position, "json"));
        assert!(reject.reason.contains(reason), "{message}: {}", reject.reason);
    }
}

#[tokio::test]
async fn many_messages_are_decoded_in_order_on_several_threads() {
    let messages: Vec<String> = (0..20_000)
        .map(|i| if i % 1000 == 7 { "broken".into() } else { format!(r#"{{"i": {i}}}"#) })
        .collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let (rows, rejects) = decode("i BIGINT", &messages).await;
    let values = rows.column(0).as_primitive::<Int64Type>().values();
    assert!(values.iter().copied().eq((0..20_000).filter(|i| i % 1000 != 7)));
    assert!(rejects.iter().map(|reject| reject.message).eq((0..20).map(|i| i * 1000 + 7)));
}

#[tokio::test]
async fn a_type_that_json_has_no_form_for_is_refused_when_declared() {
    let reason = JsonDecoder::new(source("b INTERVAL").await.schema, TimestampFormat::Iso).unwrap_err();
    assert!(reason.contains("column b: Interval") && reason.contains("declare it VARCHAR"), "{reason}");
    let keys = source("m MAP(INT, INT)").await.schema;
    let reason = JsonDecoder::new(keys, TimestampFormat::Iso).unwrap_err();
    assert!(reason.contains("column m: a MAP's keys are VARCHAR"), "{reason}");
    assert_eq!(source("i INT").await.schema.field(0).data_type(), &DataType::Int32);
}

#[tokio::test]
async fn columns_that_nobody_needs_are_judged_and_not_kept() {
    let declared = "v VARCHAR NOT NULL, note VARCHAR, age INT, n INT, tags VARCHAR[], CHECK (n > 0)";
    let source = source(declared).await;
    let session = session::continuous().state();
    let names = |schema: &Schema| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    let (all, mut all_rules) = of_source(&source, None, &session).unwrap();
    let (some, mut rules) = of_source(&source, Some(BTreeSet::new()), &session).unwrap();
    let message = |i: usize| {
        let age = if i.is_multiple_of(7) { "\"old\"".to_string() } else { i.to_string() };
        let tags = if i.is_multiple_of(11) { "3".to_string() } else { format!("[\"{i}\"]") };
        format!(r#"{{"v": "{i}", "note": "a\u00e9b", "age": {age}, "tags": {tags}, "n": {}}}"#, i % 3)
    };
    // Several threads, and more than is judged at once.
    let messages: Vec<_> = (0..10_000).map(message).collect();
    let messages = raw(&messages.iter().map(String::as_str).collect::<Vec<_>>());
    let (of_all, refused_by_all) = all.decode(&messages).unwrap();
    let (of_some, refused) = some.decode(&messages).unwrap();
    assert_eq!(refused, refused_by_all);
    assert_eq!(refused.len(), (0..10_000).filter(|i| i % 7 == 0 || i % 11 == 0).count());
    assert_eq!(of_some.messages, of_all.messages);
    assert_eq!(names(&of_some.rows.schema()), ["v", "n"]);
    for name in ["v", "n"] {
        assert_eq!(of_some.rows.column_by_name(name), of_all.rows.column_by_name(name));
    }
    let (judged_all, broken_all) = all_rules.judge(of_all, &by_position, &Candidates).unwrap();
    let (judged, broken) = rules.judge(of_some, &by_position, &Candidates).unwrap();
    assert_eq!((judged.messages, broken), (judged_all.messages, broken_all));
}

const RULES: &str =
    "voter_id VARCHAR NOT NULL, candidate_id VARCHAR, vote INT, CONSTRAINT one_vote CHECK (vote = 1),
    PRIMARY KEY (voter_id), FOREIGN KEY (candidate_id) REFERENCES candidates (candidate_id)";

/// Judges `messages`, cut into batches of `size`: the voters that are counted, and the rules broken.
async fn judge(messages: &[String], size: usize) -> (Vec<String>, Vec<String>) {
    let source = source(RULES).await;
    let decoder = JsonDecoder::new(Arc::clone(&source.schema), source.timestamp_format).unwrap();
    let mut rules = RuleSet::new(&source, None, &session::continuous().state()).unwrap();
    let (mut counted, mut broken) = (Vec::new(), Vec::new());
    for part in messages.chunks(size) {
        let payloads: Vec<_> = part.iter().map(|message| Some(message.as_bytes())).collect();
        let (decoded, _) = decoder.decode(&payloads).unwrap();
        let (judged, mut rejects) = rules.judge(decoded, &by_position, &Candidates).unwrap();
        let rows = judged.rows;
        counted.extend(rows.column(0).as_string::<i32>().iter().flatten().map(String::from));
        rejects.sort_by_key(|reject| reject.message);
        broken.extend(rejects.into_iter().map(|reject| reject.rule));
    }
    (counted, broken)
}

#[tokio::test]
async fn a_row_is_judged_the_same_however_the_batches_are_cut() {
    let vote = |voter: &str, candidate: &str, vote: &str| {
        format!(r#"{{"voter_id": {voter}, "candidate_id": {candidate}, "vote": {vote}}}"#)
    };
    let messages = [
        vote(r#""v1""#, r#""nobody""#, "1"), // refused, so v1 has not voted yet
        vote(r#""v1""#, r#""a""#, "1"),
        vote(r#""v1""#, r#""b""#, "1"), // a second vote
        vote("null", r#""a""#, "1"),
        vote(r#""v2""#, r#""a""#, "2"),
        vote(r#""v2""#, r#""b""#, "1"),
        vote(r#""v3""#, "null", "null"), // as in SQL: NULL refers to nothing, and is not false
        vote(r#""v3""#, r#""a""#, "1"),
    ];
    for size in 1..=messages.len() {
        let (counted, broken) = judge(&messages, size).await;
        assert_eq!(counted, ["v1", "v2", "v3"], "batches of {size}");
        let rules = [
            "foreign_key(candidate_id)",
            "primary_key(voter_id)",
            "not_null(voter_id)",
            "one_vote",
            "primary_key(voter_id)",
        ];
        assert_eq!(broken, rules, "batches of {size}");
    }
}

#[tokio::test]
async fn a_check_that_is_no_condition_is_refused() {
    let source = source("vote INT, CHECK (vote + 1)").await;
    let Err(error) = RuleSet::new(&source, None, &session::continuous().state()) else {
        panic!("it was taken")
    };
    assert!(error.to_string().contains("must be true or false"), "{error}");
}
