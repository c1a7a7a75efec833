//! What is read from JSON, what is refused, and which rows keep the rules.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};

use super::*;
use crate::engine::catalog::{Catalog, SourceDef, TimestampFormat};
use crate::engine::session;
use crate::error::Result;
use crate::queries::QueryFile;

/// The table `candidates` with the ids `a` and `b`.
struct Candidates;

impl ForeignKeys for Candidates {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        assert_eq!((table, columns), ("candidates", &["candidate_id".to_string()][..]));
        let ids = values[0].as_string::<i32>();
        Ok(ids.iter().map(|id| Some(id == Some("a") || id == Some("b"))).collect())
    }
}

async fn source(columns: &str) -> SourceDef {
    let text = format!("CREATE UNBOUNDED EXTERNAL TABLE s ({columns}) STORED AS KAFKA LOCATION 't';");
    let files = [QueryFile { path: PathBuf::from("s.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
    catalog.sources["s"].clone()
}

async fn decode(columns: &str, messages: &[&str]) -> (RecordBatch, Vec<Reject>) {
    let decoder = JsonDecoder::new(source(columns).await.schema, TimestampFormat::Iso).unwrap();
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
    assert!(reason.contains("column b"), "{reason}");
    assert_eq!(source("i INT").await.schema.field(0).data_type(), &DataType::Int32);
}

const RULES: &str =
    "voter_id VARCHAR NOT NULL, candidate_id VARCHAR, vote INT, CONSTRAINT one_vote CHECK (vote = 1),
    PRIMARY KEY (voter_id), FOREIGN KEY (candidate_id) REFERENCES candidates (candidate_id)";

/// Judges `messages`, cut into batches of `size`: the voters that are counted, and the rules broken.
async fn judge(messages: &[String], size: usize) -> (Vec<String>, Vec<String>) {
    let source = source(RULES).await;
    let decoder = JsonDecoder::new(Arc::clone(&source.schema), source.timestamp_format).unwrap();
    let mut rules = RuleSet::new(&source, &session::continuous().state()).unwrap();
    let (mut counted, mut broken) = (Vec::new(), Vec::new());
    for part in messages.chunks(size) {
        let payloads: Vec<_> = part.iter().map(|message| Some(message.as_bytes())).collect();
        let (decoded, _) = decoder.decode(&payloads).unwrap();
        let (judged, mut rejects) = rules.judge(decoded, &Candidates).unwrap();
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
    let Err(error) = RuleSet::new(&source, &session::continuous().state()) else { panic!("it was taken") };
    assert!(error.to_string().contains("must be true or false"), "{error}");
}
