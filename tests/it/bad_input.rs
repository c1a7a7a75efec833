//! What each kind of message gets, on a real Kafka: counted, rejected by which rule, and its dead letter. Each is
//! sent by itself; `scripts/bad-input` prints the table.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tally::clients;
use tally::config::Config;
use tally::embedded::Postgres;
use tally::pipeline::Pipeline;
use tally::shutdown::Shutdown;
use tally::snapshot::{Reader, SourceStatus};

use crate::kafka::{Kafka, PATIENCE};

const VOTERS: usize = 150;
const LARGE: usize = 20_000_000;

/// A message and what it should get: `counted`, the beginning of a rule's name, or `not received`.
struct Case {
    kind: &'static str,
    payload: Option<Vec<u8>>,
    gets: &'static str,
    sent: Sent,
}

enum Sent {
    Plainly,
    Compressed(&'static str),
    WithHeaders(usize),
    AtMillisecond(i64),
    InAbortedTransaction,
}

fn case(kind: &'static str, payload: impl Into<Vec<u8>>, gets: &'static str) -> Case {
    Case { kind, payload: Some(payload.into()), gets, sent: Sent::Plainly }
}

/// Gives each valid vote a voter of its own.
struct Votes(usize);

impl Votes {
    fn voter(&mut self) -> String {
        self.0 += 1;
        assert!(self.0 <= VOTERS);
        format!("voter{}", self.0)
    }

    fn with(&mut self, vote: &str, time: &str, more: &str) -> String {
        let voter = self.voter();
        format!(r#"{{"voter_id":"{voter}","candidate_id":"c1","voting_time":{time},"vote":{vote}{more}}}"#)
    }

    fn good(&mut self) -> String {
        self.with("1", TIME, "")
    }

    fn vote(&mut self, vote: &str) -> String {
        self.with(vote, TIME, "")
    }

    fn at(&mut self, time: &str) -> String {
        self.with("1", time, "")
    }

    fn more(&mut self, more: &str) -> String {
        self.with("1", TIME, more)
    }

    fn of(voter: &str) -> String {
        format!(r#"{{"voter_id":{voter},"candidate_id":"c1","voting_time":{TIME},"vote":1}}"#)
    }
}

const TIME: &str = r#""2026-05-07 12:00:00""#;

fn not_json(v: &mut Votes) -> Vec<Case> {
    let mut inside = v.good().into_bytes();
    inside[14] = 0xff;
    let cut = v.good();
    let utf_16: Vec<u8> = v.good().encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        case("empty", "", "json"),
        Case { payload: None, ..case("tombstone", "", "json") },
        case("not UTF-8", [0xff, 0xfe, 0x00], "json"),
        case("not UTF-8 inside", inside, "json"),
        case("truncated", &cut[..cut.len() - 3], "json"),
        case("1,000,000 times [", vec![b'['; 1_000_000], "json"),
        case(
            "{\"voter_id\": and 1,000,000 times [",
            [b"{\"voter_id\":".to_vec(), vec![b'['; 1_000_000]].concat(),
            "json",
        ),
        case("20 MB of [", vec![b'['; LARGE], "json"),
        case("lone surrogate", Votes::of(r#""\ud800""#), "json"),
        case("raw control character", Votes::of("\"a\u{1}b\""), "json"),
        case("array at the top", format!("[{}]", v.good()), "json"),
        case("text at the top", "\"vote\"", "json"),
        case("number at the top", "1", "json"),
        case("two objects", format!("{} {}", v.good(), v.good()), "json"),
        case("trailing comma", v.more(","), "json"),
        case("trailing garbage", format!("{}x", v.good()), "json"),
        case("trailing NUL", format!("{}\0", v.good()), "json"),
        case("byte order mark", format!("\u{feff}{}", v.good()), "json"),
        case("comment", v.more("/* */"), "json"),
        case("UTF-16", utf_16, "json"),
        case("bad JSON in an undeclared field", v.more(r#","more":[1,}"#), "json"),
    ]
}

fn wrong_values(v: &mut Votes) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, vote) in [
        ("vote 1e400", "1e400"),
        ("vote 1.5", "1.5"),
        ("vote 1e100000", "1e100000"),
        ("vote 1e-999999999999", "1e-999999999999"),
        ("vote 4294967297", "4294967297"),
        ("vote NaN", "NaN"),
        ("vote Infinity", "Infinity"),
        ("vote as text", "\"1\""),
        ("vote true", "true"),
    ] {
        cases.push(case(kind, v.vote(vote), "json"));
    }
    for (kind, time) in [
        ("31 February", r#""2026-02-31 12:00:00""#),
        ("year 9999", r#""9999-01-01 00:00:00""#),
        ("year 1", r#""0001-01-01 00:00:00""#),
        ("the first nanosecond, 1677", r#""1677-09-21T00:12:43.145224193""#),
        ("the last nanosecond, 2262", r#""2262-04-11T23:47:16.854775807""#),
        ("time as a number", "1778155200"),
        ("time as an empty text", "\"\""),
    ] {
        cases.push(case(kind, v.at(time), "json"));
    }
    cases.extend([
        case("number as VARCHAR", Votes::of("7"), "json"),
        case("vote -1", v.vote("-1"), "check"),
        case("vote 2", v.vote("2"), "check"),
        case("vote null", v.vote("null"), "not_null"),
        case("voter null", Votes::of("null"), "not_null"),
        case("other case of keys", v.good().replace("voter_id", "Voter_ID"), "not_null"),
        case("voter ''", Votes::of("\"\""), "foreign_key"),
        case("voter NUL", Votes::of(r#""voter1\u0000""#), "foreign_key"),
        case("voter with a blank", Votes::of("\"voter1 \""), "foreign_key"),
        case("SQL as voter", Votes::of(r#""'; DROP TABLE voters; --""#), "foreign_key"),
        case("1,000,000 bytes as voter", Votes::of(&format!("\"{}\"", "x".repeat(1_000_000))), "foreign_key"),
        case("voted before", Votes::of("\"first\""), "primary_key"),
        case("next year", v.at(r#""2027-12-31 12:00:00""#), "future"),
    ]);
    cases
}

fn good(v: &mut Votes) -> Vec<Case> {
    let deep = |n, open: &str, close: &str| format!(",\"more\":{}1{}", open.repeat(n), close.repeat(n));
    let mut cases = vec![
        case("10,000 arrays deep, undeclared", v.more(&deep(10_000, "[", "]")), "counted"),
        case("1,000,000 objects deep, undeclared", v.more(&deep(1_000_000, "{\"a\":", "}")), "counted"),
        case("vote 1.0", v.vote("1.0"), "counted"),
        case("vote 1e0", v.vote("1e0"), "counted"),
        case("white space around", format!(" \r\n\t{}\n ", v.good()), "counted"),
        case("escaped key", v.good().replace("voter_id", r"\u0076oter_id"), "counted"),
        case("more fields", v.more(r#","email":"a@b","n":{"x":[]}"#), "counted"),
        case("key twice, the last is good", v.good().replacen('{', "{\"vote\":7,", 1), "counted"),
        case("leap second", v.at(r#""2016-12-31 23:59:60""#), "counted"),
        case("time with zone", v.at(r#""2026-05-07T12:00:00+02:00""#), "counted"),
        case("candidate null: a NULL key", v.good().replace("\"c1\"", "null"), "counted"),
        case("1/0 in one view", v.more(r#","weight":0"#), "counted"),
        case("20 MB, good", v.more(&format!(",\"more\":\"{}\"", "x".repeat(LARGE))), "counted"),
        case("voted once", Votes::of("\"first\""), "counted"),
    ];
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        cases.push(Case { sent: Sent::Compressed(codec), ..case(codec, v.good(), "counted") });
    }
    for (kind, sent, gets) in [
        ("1,000 headers", Sent::WithHeaders(1000), "counted"),
        ("Kafka's timestamp in year 9999", Sent::AtMillisecond(253_370_764_800_000), "counted"),
        ("Kafka's timestamp 1 ms", Sent::AtMillisecond(1), "future"),
        ("aborted transaction", Sent::InAbortedTransaction, "not received"),
    ] {
        cases.push(Case { sent, ..case(kind, v.good(), gets) });
    }
    cases.push(Case { sent: Sent::WithHeaders(3), ..case("bad JSON with headers", "{", "json") });
    cases
}

fn queries(topic: &str, letters: &str, changes: &str) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE ballots (
           voter_id VARCHAR NOT NULL, candidate_id VARCHAR, voting_time TIMESTAMP NOT NULL, vote INT NOT NULL,
           weight INT, PRIMARY KEY (voter_id), CHECK (vote = 1),
           FOREIGN KEY (voter_id) REFERENCES voters (voter_id)
         ) STORED AS KAFKA LOCATION '{topic}'
         OPTIONS ('event_time' 'voting_time', 'watermark' '1 minute', 'dead_letter_topic' '{letters}');
         CREATE MATERIALIZED VIEW by_candidate WITH (topic = '{changes}', key = 'candidate_id') AS
         SELECT candidate_id, COUNT(*) AS votes FROM ballots GROUP BY candidate_id;
         CREATE MATERIALIZED VIEW shares AS SELECT 100 / weight AS share FROM ballots;
         CREATE MATERIALIZED VIEW by_minute AS
         SELECT window_start, COUNT(*) AS votes FROM tumble(ballots, voting_time, INTERVAL '1 minute')
         GROUP BY window_start;"
    )
}

fn send(kafka: &Kafka, topic: &str, case: &Case) {
    let mut settings = vec![("message.max.bytes", "60000000")];
    match case.sent {
        Sent::Compressed(codec) => settings.push(("compression.type", codec)),
        Sent::InAbortedTransaction => settings.push(("transactional.id", topic)),
        _ => {}
    }
    let producer: BaseProducer = kafka.producer(&settings);
    let mut record: BaseRecord<[u8], [u8]> = BaseRecord::to(topic).key(b"key");
    record.payload = case.payload.as_deref();
    match case.sent {
        Sent::WithHeaders(count) => {
            let add = |all: OwnedHeaders, i: usize| {
                all.insert(Header { key: &format!("h{i}"), value: Some(&i.to_string()) })
            };
            record.headers = Some((0..count).fold(OwnedHeaders::new(), add));
        }
        Sent::AtMillisecond(ms) => record.timestamp = Some(ms),
        _ => {}
    }
    if let Sent::InAbortedTransaction = case.sent {
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
        producer.abort_transaction(PATIENCE).unwrap();
    } else {
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    }
}

/// The source's status once so many messages were received.
async fn received(reader: &mut Reader, messages: u64) -> SourceStatus {
    let all = |published: &std::sync::Arc<tally::snapshot::Published>| {
        published.status.sources.first().is_some_and(|source| source.received >= messages)
    };
    let published = tokio::time::timeout(PATIENCE, reader.wait_for(all)).await;
    let published = published.unwrap_or_else(|_| panic!("message {messages} was never received")).unwrap();
    published.status.sources[0].clone()
}

/// What the message that came between two states got.
fn got(before: &SourceStatus, after: &SourceStatus) -> String {
    assert_eq!(after.received, after.counted + after.rejected);
    if after.counted > before.counted {
        return "counted".into();
    }
    let new = |(rule, count): &(&String, &u64)| before.rejected_by_reason.get(*rule).unwrap_or(&0) < *count;
    after.rejected_by_reason.iter().find(new).map_or("nothing".into(), |(rule, _)| rule.clone())
}

async fn postgres(config: &mut Config) -> Postgres {
    let postgres = Postgres::start(&|_| {}).await.unwrap();
    config.postgres_url = postgres.url().into();
    let pool = clients::postgres(config).await.unwrap();
    sqlx::query("CREATE TABLE voters (voter_id text PRIMARY KEY)").execute(&pool).await.unwrap();
    let fill = format!("INSERT INTO voters SELECT 'voter' || i FROM generate_series(1, {VOTERS}) i");
    sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&pool).await.unwrap();
    sqlx::query("INSERT INTO voters VALUES ('first'), ('control')").execute(&pool).await.unwrap();
    postgres
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_message_gets_what_it_should_and_ends_nothing() {
    let Some(kafka) = Kafka::new() else { return };
    let mut config = kafka.config.clone();
    let server = postgres(&mut config).await;
    // The source takes what the dead-letter topic does not, and whatever time a producer names.
    let lenient =
        [("max.message.bytes", "64000000"), ("message.timestamp.after.max.ms", "9223372036854775807")];
    let topic = kafka.topic("bad_input", 1, &lenient).await;
    let letters = kafka.topic("bad_input_letters", 1, &[]).await;
    let changes = kafka.topic("bad_input_changes", 1, &[("cleanup.policy", "compact")]).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ballots.sql"), queries(&topic, &letters, &changes)).unwrap();
    config.queries = Some(dir.path().to_owned());
    config.engine_id = crate::kafka::unique();
    // Partly fetched large messages need room.
    config.kafka.insert("fetch.message.max.bytes".into(), "64000000".into());
    config.kafka.insert("receive.message.max.bytes".into(), "100000000".into());
    let pipeline = Pipeline::open(config.clone()).await.unwrap();
    let (mut reader, stop) = (pipeline.reader(), Shutdown::new());
    let engine = tokio::spawn(pipeline.run(stop.clone()));

    let mut votes = Votes(0);
    let mut cases = good(&mut votes);
    cases.extend(not_json(&mut votes));
    cases.extend(wrong_values(&mut votes));
    let (mut messages, mut wrong, mut rows, mut rejected) = (0, Vec::new(), Vec::new(), Vec::new());
    let mut before = received(&mut reader, 0).await;
    for case in &cases {
        send(&kafka, &topic, case);
        let got = if case.gets == "not received" {
            tokio::time::sleep(Duration::from_millis(500)).await; // nothing tells that nothing comes
            let now = reader.borrow().status.sources[0].received;
            if now == messages { "not received".to_string() } else { "received".into() }
        } else {
            messages += 1;
            let after = received(&mut reader, messages).await;
            let got = got(&before, &after);
            before = after;
            got
        };
        if got != "counted" && got != "not received" {
            rejected.push(case);
        }
        if !got.starts_with(case.gets) {
            wrong.push(format!("{}: {got}, and should be {}", case.kind, case.gets));
        }
        rows.push((case.kind, got));
    }
    assert!(!engine.is_finished(), "the engine goes on");
    stop.cancel();
    engine.await.unwrap().unwrap();
    server.stop().await.unwrap();

    let written = kafka.read(&letters);
    let text = |headers: &BTreeMap<String, Vec<u8>>, name: &str| {
        headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    };
    let (of_views, of_rules): (Vec<_>, Vec<_>) = written.into_iter().partition(|(_, _, headers)| {
        let rule = text(headers, "rule");
        rule.starts_with("error(") || rule == "late"
    });
    let errors = of_views.iter().filter(|(_, _, headers)| text(headers, "rule") == "error(shares)").count();
    if errors != 1 {
        wrong.push(format!("1/0 in a view: {errors} dead letters, and should be 1"));
    }
    if of_rules.len() != rejected.len() {
        wrong.push(format!("{} rejected, and {} dead letters", rejected.len(), of_rules.len()));
    }
    let mut letters_of = BTreeMap::new();
    for (case, (key, value, headers)) in rejected.iter().zip(&of_rules) {
        let cut = headers.contains_key("cut_from_bytes");
        let same = match (&case.payload, value) {
            (Some(sent), Some(kept)) if cut => {
                sent.starts_with(kept) && text(headers, "cut_from_bytes") == sent.len().to_string()
            }
            (sent, kept) => sent == kept,
        };
        let with_headers = !matches!(case.sent, Sent::WithHeaders(_)) || text(headers, "h2") == "2";
        if !same || !with_headers || key.as_deref() != Some(b"key") || text(headers, "topic") != topic {
            wrong.push(format!("{}: its dead letter is another: {headers:?}", case.kind));
        }
        letters_of.insert(case.kind, if cut { "cut, says where the whole is" } else { "as received" });
    }
    let null_key = kafka.read(&changes).iter().any(|(key, ..)| key.as_deref() == Some(b"null"));
    if !null_key {
        wrong.push("the NULL key is not on the compacted topic".into());
    }
    println!("| {:<40} | {:<22} | {:<28} |", "message", "gets", "dead letter");
    println!("|{:-<42}|{:-<24}|{:-<30}|", "", "", "");
    for (kind, got) in &rows {
        println!("| {kind:<40} | {got:<22} | {:<28} |", letters_of.get(kind).unwrap_or(&""));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
