//! Messages that take rows back, from their bytes to weighted rows, cut into micro-batches of any size.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::Int64Type;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::catalog::Catalog;
use crate::decode::{Decoder, ForeignKeys, RuleSet, of_source};
use crate::engine::session;
use crate::queries::QueryFile;
use crate::source::{MessageRef, RawBatch};

const REPLACE: &str = "('on_conflict' 'replace')";
const DEBEZIUM: &str = "('format' 'debezium-json')";

/// Knows the choices `a`, `b` and `c`.
struct Choices;

impl ForeignKeys for Choices {
    fn contains(&self, _: &str, _: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        let ids = values[0].as_string::<i32>();
        Ok(ids.iter().map(|id| Some(id.is_some_and(|id| ["a", "b", "c"].contains(&id)))).collect())
    }
}

#[derive(Clone, Default)]
struct Message {
    partition: i32,
    timestamp_ms: i64,
    key: Option<String>,
    payload: Option<String>,
}

fn row(payload: &str) -> Message {
    Message { payload: Some(payload.into()), ..Message::default() }
}

fn tombstone(key: &str) -> Message {
    Message { key: Some(key.into()), ..Message::default() }
}

async fn declare(columns: &str, options: &str) -> Result<SourceDef> {
    let text = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE s ({columns}) STORED AS KAFKA LOCATION 't' OPTIONS {options};"
    );
    let files = [QueryFile { path: PathBuf::from("s.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    Ok(catalog.sources["s"].clone())
}

fn cells(rows: &RecordBatch) -> Vec<Vec<String>> {
    let cell = |column: &ArrayRef, row: usize| match column.is_null(row) {
        true => "NULL".to_string(),
        false => array_value_to_string(column, row).unwrap(),
    };
    (0..rows.num_rows()).map(|row| rows.columns().iter().map(|column| cell(column, row)).collect()).collect()
}

/// A source, and what came of its messages.
struct Run {
    decoder: Decoder,
    rules: RuleSet,
    /// The rows that are there, by their weights.
    net: BTreeMap<Vec<String>, i64>,
    /// Every weighted row, in its order.
    changes: Vec<(i64, Vec<String>)>,
    received: usize,
    counted: usize,
    /// Position, rule and reason of each message that is not counted.
    rejects: BTreeMap<usize, (String, String)>,
}

impl Run {
    async fn new(columns: &str, options: &str, read: Option<&[&str]>) -> Run {
        let source = declare(columns, options).await.unwrap();
        let read = read.map(|read| read.iter().map(|name| name.to_string()).collect());
        let (decoder, rules) = of_source(&source, read, &session::continuous().state()).unwrap();
        Run {
            decoder,
            rules,
            net: BTreeMap::new(),
            changes: Vec::new(),
            received: 0,
            counted: 0,
            rejects: BTreeMap::new(),
        }
    }

    /// Feeds messages, in micro-batches of `size`.
    fn feed(&mut self, messages: &[Message], size: usize) {
        for part in messages.chunks(size) {
            let mut raw = RawBatch::default();
            for message in part {
                raw.push(MessageRef {
                    partition: message.partition,
                    offset: raw.len() as i64,
                    timestamp_ms: Some(message.timestamp_ms),
                    key: message.key.as_ref().map(|key| key.as_bytes()),
                    payload: message.payload.as_ref().map(|payload| payload.as_bytes()),
                });
            }
            let (decoded, refused) = self.decoder.decode(&raw).unwrap();
            let origin = |message| raw.origin(message);
            let (judged, broken) = self.rules.judge(decoded, &origin, &Choices).unwrap();
            for reject in refused.into_iter().chain(broken) {
                let position = self.received + reject.message as usize;
                let twice = self.rejects.insert(position, (reject.rule, reject.reason));
                assert_eq!(twice, None, "message {position} is rejected once");
            }
            let weights = judged.rows.column_by_name(WEIGHT).unwrap().as_primitive::<Int64Type>().clone();
            let columns: Vec<_> = (0..judged.rows.num_columns() - 1).collect();
            let rows = cells(&judged.rows.project(&columns).unwrap());
            assert!(judged.messages.is_sorted() && judged.messages.len() == rows.len());
            for (row, weight) in rows.into_iter().zip(weights.values()) {
                let times = self.net.entry(row.clone()).or_default();
                *times += weight;
                assert!(*times >= 0, "{row:?} went more often than it came");
                if *times == 0 {
                    self.net.remove(&row);
                }
                self.changes.push((*weight, row));
            }
            self.received += part.len();
            self.counted += judged.counted;
            assert_eq!(self.received, self.counted + self.rejects.len());
            self.check_rows();
        }
    }

    /// What is kept is what the changes say.
    fn check_rows(&self) {
        let mut kept: BTreeMap<Vec<String>, i64> = BTreeMap::new();
        let take = |rows: RecordBatch| {
            assert!(rows.num_rows() <= 3);
            cells(&rows).into_iter().for_each(|row| *kept.entry(row).or_default() += 1);
            true
        };
        self.rules.net_rows(3, take).unwrap();
        assert_eq!(kept, self.net);
    }

    /// The rows that are there, each as one text.
    fn rows(&self) -> Vec<String> {
        let repeated = self.net.iter().flat_map(|(row, times)| vec![row.join(" "); *times as usize]);
        repeated.collect()
    }

    fn broken(&self) -> Vec<(usize, &str)> {
        self.rejects.iter().map(|(message, (rule, _))| (*message, rule.as_str())).collect()
    }
}

const VOTES: &str = "id VARCHAR NOT NULL, choice VARCHAR, n INT, PRIMARY KEY (id), CHECK (n > 0),
    FOREIGN KEY (choice) REFERENCES choices (id)";

fn vote(id: &str, choice: &str, n: i32) -> Message {
    row(&serde_json::json!({ "id": id, "choice": choice, "n": n }).to_string())
}

#[tokio::test]
async fn the_last_vote_counts_and_an_empty_message_takes_it_back() {
    let messages = [
        vote("v1", "a", 1),
        vote("v2", "a", 1),
        vote("v1", "b", 2),
        vote("v1", "stranger", 3), // refused: what was there stays
        vote("v2", "b", 0),
        tombstone("v2"),
        tombstone("v2"),
        tombstone(r#"{"id": "v1"}"#),
        vote("v1", "c", 4),
        Message::default(),
        row("no JSON"),
        row(""),
    ];
    for size in 1..=messages.len() {
        let mut run = Run::new(VOTES, REPLACE, None).await;
        run.feed(&messages, size);
        assert_eq!(run.rows(), ["v1 c 4"]);
        let broken = [
            (3, "foreign_key(choice)"),
            (4, "check(n > 0)"),
            (6, "retraction"),
            (9, "json"),
            (10, "json"),
            (11, "json"),
        ];
        assert_eq!(run.broken(), broken);
        assert_eq!(run.rejects[&6].1, "no row is there to take back with id v2");
        let changes: Vec<_> = run.changes.iter().map(|(weight, row)| (*weight, row.join(" "))).collect();
        let expected = [(1, "v1 a 1"), (1, "v2 a 1"), (-1, "v1 a 1"), (1, "v1 b 2"), (-1, "v2 a 1")];
        let expected = expected.into_iter().chain([(-1, "v1 b 2"), (1, "v1 c 4")]);
        assert_eq!(changes, expected.map(|(weight, row)| (weight, row.to_string())).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn only_the_needed_columns_are_kept_and_the_same_messages_refused() {
    let messages =
        [vote("v1", "a", 1), vote("v1", "b", 1), vote("v2", "a", 0), tombstone("v3"), vote("v2", "c", 1)];
    let mut whole = Run::new(VOTES, REPLACE, None).await;
    let mut choices = Run::new(VOTES, REPLACE, Some(&["choice"])).await;
    let mut keys = Run::new(VOTES, REPLACE, Some(&[])).await;
    for run in [&mut whole, &mut choices, &mut keys] {
        run.feed(&messages, 2);
    }
    assert_eq!((choices.broken(), keys.broken()), (whole.broken(), whole.broken()));
    assert_eq!(choices.rows(), ["v1 b", "v2 c"]);
    assert_eq!(keys.rows(), ["v1", "v2"]);
    assert!(keys.rules.bytes() < choices.rules.bytes() && choices.rules.bytes() < whole.rules.bytes());
}

#[tokio::test]
async fn a_message_that_is_older_than_what_counted_comes_and_goes() {
    let at = |message: Message, partition, timestamp_ms| Message { partition, timestamp_ms, ..message };
    let mut run = Run::new(VOTES, REPLACE, None).await;
    run.feed(&[at(vote("v1", "a", 1), 0, 20), at(vote("v1", "b", 1), 1, 10)], 1);
    assert_eq!((run.rows(), run.counted), (vec!["v1 a 1".to_string()], 2));
    let last: Vec<_> = run.changes[1..].iter().map(|(weight, row)| (*weight, row[1].as_str())).collect();
    assert_eq!(last, [(1, "b"), (-1, "b")]);
    assert_eq!(run.rules.keys_in_two_partitions(), 1);
}

fn envelope(op: &str, before: Option<&str>, after: Option<&str>) -> Message {
    let part = |row: Option<&str>| row.unwrap_or("null").to_string();
    row(&format!(r#"{{"op": "{op}", "before": {}, "after": {}}}"#, part(before), part(after)))
}

#[tokio::test]
async fn debezium_with_a_key_needs_no_more_than_the_key_of_what_was_before() {
    let (one, two) = (r#"{"id": "1", "choice": "a", "n": 1}"#, r#"{"id": "1", "choice": "b", "n": 2}"#);
    let messages = [
        envelope("r", None, Some(one)),
        envelope("u", None, Some(two)),                                    // 1
        envelope("u", Some(r#"{"id": null, "choice": null}"#), Some(one)), // 2
        envelope("u", Some(one), Some(r#"{"id": "2", "choice": "c", "n": 3}"#)), // 3: another key
        envelope("u", Some(one), Some(r#"{"id": "3", "choice": "c", "n": 3}"#)), // 4: there is no 1
        envelope("u", Some(r#"{"id": "2"}"#), Some(r#"{"id": "2", "n": 0}"#)), // 5: refused
        envelope("c", None, Some(one)),
        envelope("c", None, Some(two)), // 7: told again
        envelope("d", Some(r#"{"id": "1", "choice": null, "n": 0}"#), None),
        Message::default(),                                        // 9: follows the deletion
        envelope("d", Some(r#"{"id": "1"}"#), None),               // 10
        envelope("d", Some(r#"{"choice": "a"}"#), None),           // 11
        envelope("d", Some(r#"{"id": 1}"#), None),                 // 12
        envelope("u", Some(r#"{"id": 1}"#), Some(r#"{"id": 2}"#)), // 13: both are wrong
    ];
    for size in [1, 2, 5, messages.len()] {
        let mut run = Run::new(VOTES, DEBEZIUM, None).await;
        run.feed(&messages, size);
        assert_eq!(run.rows(), ["2 c 3"]);
        let broken = [
            (4, "retraction"),
            (5, "check(n > 0)"),
            (10, "retraction"),
            (11, "json"),
            (12, "json"),
            (13, "json"),
        ];
        assert_eq!(run.broken(), broken);
        assert_eq!(run.rejects[&11].1, "before: a column of the PRIMARY KEY is missing or null");
        assert_eq!(run.rejects[&12].1, "before: field id: 1 is no VARCHAR");
        assert_eq!(run.rejects[&13].1, "after: field id: 2 is no VARCHAR");
    }
}

const ROWS: &str = "a INT, b VARCHAR, tags VARCHAR[], CHECK (a < 9)";

#[tokio::test]
async fn debezium_without_a_key_takes_back_one_row_with_the_same_values() {
    let (x, y) = (r#"{"a": 1, "b": "x", "tags": ["t"]}"#, r#"{"a": 1, "b": "y"}"#);
    let messages = [
        envelope("c", None, Some(x)),
        envelope("c", None, Some(x)),
        envelope("u", Some(x), Some(y)),
        envelope("d", Some(r#"{"a": 1, "b": "x"}"#), None), // 3: with other tags
        envelope("u", Some(y), Some(r#"{"a": 9}"#)),        // 4: refused, so y stays
        envelope("u", Some(r#"{"a": 9}"#), Some(x)),        // 5: what was refused is not there
        envelope("u", None, Some(x)),                       // 6
        envelope("d", Some(x), None),
        envelope("d", Some(x), None), // 8
        Message::default(),
        envelope("c", None, None), // 10
    ];
    for read in [None, Some(&["a"][..])] {
        for size in [1, 3, messages.len()] {
            let mut run = Run::new(ROWS, DEBEZIUM, read).await;
            run.feed(&messages, size);
            assert_eq!(run.rows(), ["1 y NULL"]);
            let broken = [
                (3, "retraction"),
                (4, "check(a < 9)"),
                (5, "retraction"),
                (6, "json"),
                (8, "retraction"),
                (10, "json"),
            ];
            assert_eq!(run.broken(), broken, "whatever a query reads");
            assert_eq!(run.rejects[&5].1, "no row is there to take back with a 9, b NULL, tags NULL");
        }
    }
}

#[tokio::test]
async fn random_messages_leave_the_same_rows_however_they_are_cut() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..6 {
        let (mut replacing, mut whole) = (Vec::new(), Vec::new());
        let mut newest: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut times: BTreeMap<(i32, String), u32> = BTreeMap::new();
        for n in 0..300 {
            let id = format!("v{}", random.random_range(0..25));
            if random.random_bool(0.3) {
                replacing.push(tombstone(&id));
                newest.remove(&id);
            } else {
                replacing.push(vote(&id, "a", n + 1));
                newest.insert(id.clone(), vec![id, "a".into(), (n + 1).to_string()]);
            }
            let mut any = || (random.random_range(0..4), format!("b{}", random.random_range(0..4)));
            let json = |(a, b): &(i32, String)| format!(r#"{{"a": {a}, "b": "{b}"}}"#);
            let (before, after) = (any(), any());
            let op = ["c", "u", "d"][random.random_range(0..3)];
            let (before_json, after_json) = (json(&before), json(&after));
            whole.push(envelope(
                op,
                (op != "c").then_some(&*before_json),
                (op != "d").then_some(&*after_json),
            ));
            let is_there = times.get(&before).is_some_and(|times| *times > 0);
            if op != "c" && !is_there {
                continue;
            }
            if op != "c" {
                *times.entry(before).or_default() -= 1;
            }
            if op != "d" {
                *times.entry(after).or_default() += 1;
            }
        }
        let rows = times.iter().flat_map(|((a, b), times)| vec![format!("{a} {b} NULL"); *times as usize]);
        let rows: Vec<_> = rows.collect();
        for size in [1, 7, 300] {
            let mut run = Run::new(VOTES, REPLACE, None).await;
            run.feed(&replacing, size);
            assert_eq!(run.net, newest.values().map(|row| (row.clone(), 1)).collect());
            let mut run = Run::new(ROWS, DEBEZIUM, None).await;
            run.feed(&whole, size);
            assert_eq!(run.rows(), rows);
        }
    }
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused() {
    for (columns, options, reason) in [
        ("a INT", REPLACE, "'on_conflict' needs a PRIMARY KEY"),
        (
            "a INT PRIMARY KEY",
            "('on_conflict' 'update')",
            "on_conflict 'update' is not known; it is one of reject, replace",
        ),
        (
            "a INT PRIMARY KEY",
            "('format' 'debezium-json', 'on_conflict' 'replace')",
            "leave 'on_conflict' out",
        ),
        ("a INT", "('format' 'avro')", "format 'avro' is not known; it is one of json, debezium-json"),
    ] {
        let error = declare(columns, options).await.unwrap_err().to_string();
        assert!(error.starts_with("s.sql:1:") && error.contains(reason), "{error}");
    }
    assert!(!declare("a INT PRIMARY KEY", "('on_conflict' 'reject')").await.unwrap().retracts());
}
