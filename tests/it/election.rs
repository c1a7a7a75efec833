//! One election from the register to the published totals, checked against Postgres and the topics.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use indicatif::ProgressBar;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use tally::config::Config;
use tally::election::{self, Habits, Pace, SeedOptions, VOTES_TOPIC, VoteOptions};
use tally::pipeline::Pipeline;
use tally::serve;
use tally::shutdown::Shutdown;
use tally::snapshot::{Reader, SourceStatus};
use tally::source::{Bounds, KafkaSource, Source, Start};
use tally::{clients, commands};

const TOKEN: &str = "operator";
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine and its server, running.
struct Running {
    url: String,
    reader: Reader,
    stop: Shutdown,
    task: tokio::task::JoinHandle<tally::error::Result<()>>,
    http: reqwest::Client,
}

impl Running {
    async fn start(config: &Config) -> Running {
        rustls::crypto::ring::default_provider().install_default().ok();
        let (listener, address) = serve::bind("127.0.0.1:0").await.unwrap();
        let pipeline = Pipeline::open(config.clone()).await.unwrap();
        let stop = Shutdown::new();
        let reader = pipeline.reader();
        let (config, shutdown) = (config.clone(), stop.clone());
        let program = serve::SqlProgram::new(env!("CARGO_BIN_EXE_tally"), ["sql-worker"]);
        let run = async move {
            commands::run_engine(pipeline, &config, listener, TOKEN.into(), program, shutdown).await
        };
        let task = tokio::spawn(run);
        Running { url: format!("http://{address}"), reader, stop, task, http: reqwest::Client::new() }
    }

    /// Waits until so many messages were received, and gives back what became of them.
    async fn received(&mut self, messages: u64) -> SourceStatus {
        let all = |published: &std::sync::Arc<tally::snapshot::Published>| {
            let status = &published.status;
            status.ready && status.sources.first().is_some_and(|source| source.received >= messages)
        };
        let published = tokio::time::timeout(PATIENCE, self.reader.wait_for(all)).await;
        let published =
            published.unwrap_or_else(|_| panic!("fewer than {messages} messages arrived")).unwrap();
        published.status.sources[0].clone()
    }

    /// As the operator gets it: the newest epoch.
    async fn get(&self, path: &str) -> Value {
        self.http
            .get(format!("{}{path}", self.url))
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    async fn sql(&self, query: &str, token: Option<&str>) -> (u16, Value) {
        let mut request = self.http.post(format!("{}/api/sql", self.url)).json(&json!({ "query": query }));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Seeds, votes with faults, and checks every total that is published.
pub async fn is_counted_exactly(config: &Config) {
    let pool = clients::postgres(config).await.unwrap();
    let (bar, never) = (ProgressBar::hidden(), Shutdown::new());
    let people = SeedOptions { voters: 2_000, candidates: 3, seed: 7 };
    election::seed(config, &pool, &people, &bar, &never).await.unwrap();
    let again = election::seed(config, &pool, &people, &bar, &never).await.unwrap();
    assert_eq!((again.stored, again.announced), (0, 0), "a second run has nothing to do");

    let mut running = Running::start(config).await;
    let habits = Habits { turnout: 0.7, faulty: 0.1, revote: 0.0 };
    let voting = VoteOptions { pace: Pace::Unlimited, habits, seed: 7, follow: false };
    let report = election::vote(config, &pool, &voting, &bar, &never).await.unwrap();
    assert!(report.faults.len() == 6 && report.late > 0, "{report}");
    let again = election::vote(config, &pool, &voting, &bar, &never).await.unwrap();
    assert_eq!((again.cast, again.messages()), (0, 0), "nobody votes twice: {again}");

    let mut messages = report.messages();
    let source = running.received(messages).await;
    assert_eq!((source.received, source.counted), (messages, report.cast), "{source:?}");
    assert_eq!(source.rejected, report.faults.values().sum::<u64>());
    assert_eq!(source.rejected_by_reason.len(), 6, "{source:?}");
    totals_agree(config, &pool, &running).await;
    ad_hoc_sql_counts_the_same(&running, report.cast).await;

    messages += newcomers_vote(config, &pool).await;
    let source = running.received(messages).await;
    assert_eq!((source.received, source.counted), (messages, report.cast + 2), "{source:?}");
    totals_agree(config, &pool, &running).await;
    let before = running.get("/api/views/votes_per_candidate").await["rows"].clone();
    running.stop().await;

    // What was counted is executed once more, and the topics end the same.
    let mut running = Running::start(config).await;
    running.received(messages).await;
    assert_eq!(running.get("/api/views/votes_per_candidate").await["rows"], before);
    totals_agree(config, &pool, &running).await;
    running.stop().await;
}

/// With queries by which the last vote counts: some vote again.
pub async fn is_counted_by_the_last_votes(config: &Config) {
    let pool = clients::postgres(config).await.unwrap();
    let (bar, never) = (ProgressBar::hidden(), Shutdown::new());
    let people = SeedOptions { voters: 2_000, candidates: 3, seed: 8 };
    election::seed(config, &pool, &people, &bar, &never).await.unwrap();
    let habits = Habits { turnout: 0.7, faulty: 0.1, revote: 0.3 };
    let voting = VoteOptions { pace: Pace::Unlimited, habits, seed: 8, follow: false };
    let first_counts = Config { queries: None, ..config.clone() };
    let refused = election::vote(&first_counts, &pool, &voting, &bar, &never).await.unwrap_err().to_string();
    assert!(refused.contains("'on_conflict' 'replace'"), "{refused}");

    let mut running = Running::start(config).await;
    let report = election::vote(config, &pool, &voting, &bar, &never).await.unwrap();
    assert!(report.again > report.cast / 5, "{report}");
    let source = running.received(report.messages()).await;
    let repeated: u64 =
        report.faults.iter().filter(|(fault, _)| fault.name() == "second vote").map(|(_, count)| count).sum();
    assert!(repeated > 0, "{report}");
    assert_eq!(source.counted, report.cast + report.again + repeated, "{source:?}");
    assert_eq!(source.received, source.counted + source.rejected, "{source:?}");
    totals_agree(config, &pool, &running).await;
    running.stop().await;
}

/// A voter who registers while the engine runs, and one whose vote is the reference's message, with all
/// fields of voter and candidate.
async fn newcomers_vote(config: &Config, pool: &PgPool) -> u64 {
    let candidate: String =
        sqlx::query_scalar("SELECT min(candidate_id) FROM candidates").fetch_one(pool).await.unwrap();
    let producer: FutureProducer = clients::kafka(config).create().unwrap();
    for (voter, extra) in [
        ("newcomer", json!({})),
        (
            "reference",
            json!({
                "voter_name": "Jane Doe", "gender": "female", "registered_age": 40, "email": "jane@example.org",
                "address": { "street": "1 High Street", "city": "Norwich", "state": "Norfolk", "postcode": "NR1 1AA" },
                "candidate_name": "Somebody", "party_affiliation": "Some Party", "photo_url": "/x.svg",
            }),
        ),
    ] {
        sqlx::query(
            "INSERT INTO voters SELECT $1, voter_name, date_of_birth, gender, nationality, registration_number,
                 address_street, address_city, address_state, address_country, address_postcode, email, phone_number,
                 cell_number, picture, registered_age FROM voters ORDER BY voter_id LIMIT 1",
        )
        .bind(voter)
        .execute(pool)
        .await
        .unwrap();
        sqlx::query("INSERT INTO votes VALUES ($1, $2, '2026-05-07 12:00:00', 1)")
            .bind(voter)
            .bind(&candidate)
            .execute(pool)
            .await
            .unwrap();
        let mut vote = json!({
            "voter_id": voter, "candidate_id": candidate, "voting_time": "2026-05-07 12:00:00", "vote": 1,
        });
        vote.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let payload = vote.to_string();
        producer.send(FutureRecord::to(VOTES_TOPIC).key(voter).payload(&payload), PATIENCE).await.unwrap();
    }
    2
}

/// Postgres, HTTP and the output topic say the same.
async fn totals_agree(config: &Config, pool: &PgPool, running: &Running) {
    for (view, key, total, query) in [
        (
            "votes_per_candidate",
            "candidate_id",
            "total_votes",
            "SELECT c.candidate_id, count(v.voter_id) FROM candidates c LEFT JOIN votes v USING (candidate_id) GROUP BY 1",
        ),
        (
            "turnout_by_location",
            "state",
            "count",
            "SELECT r.address_state, count(v.voter_id) FROM voters r LEFT JOIN votes v USING (voter_id) GROUP BY 1",
        ),
        ("turnout_by_region", "city", "registered", "SELECT address_city, count(*) FROM voters GROUP BY 1"),
    ] {
        let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
        let truth: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let of = |row: &Value| (row[key].as_str().unwrap().to_string(), row[total].as_i64().unwrap());

        let agrees = |answer: &Value| {
            let rows = answer["rows"].as_array().unwrap();
            rows.iter().map(of).collect::<BTreeMap<_, _>>() == truth
        };
        let answer = eventually(running, view, &agrees).await;
        assert_eq!(answer["total_rows"], truth.len());

        let topic = answer["topic"].as_str().map(Into::into).unwrap_or(format!("aggregated_{view}"));
        let last: BTreeMap<_, _> = read(config, &topic).into_values().map(|row| of(&row)).collect();
        assert_eq!(last, truth, "topic {topic}");
    }
    let summary = running.get("/api/views/election_summary").await["rows"][0].clone();
    let cast: i64 = sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(pool).await.unwrap();
    assert_eq!(summary["votes_cast"], cast, "{summary}");
    let over_time = running.get("/api/views/votes_over_time").await;
    let votes: i64 =
        over_time["rows"].as_array().unwrap().iter().map(|row| row["votes"].as_i64().unwrap()).sum();
    // A vote that says an hour ago came after its minute was final: it is counted everywhere else.
    let late = &running.get("/api/status").await["sources"][0]["late_by_view"];
    assert_eq!(votes + late["votes_over_time"].as_i64().unwrap_or(0), cast, "{late}");
}

/// A view's answer once it holds; a change of a reference table takes a moment to arrive.
async fn eventually(running: &Running, view: &str, holds: &dyn Fn(&Value) -> bool) -> Value {
    let mut reader = running.reader.clone();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = running.get(&format!("/api/views/{view}")).await;
        if holds(&answer) {
            return answer;
        }
        let changed = tokio::time::timeout_at(deadline, reader.changed()).await;
        changed.unwrap_or_else(|_| panic!("{view} stays {answer}")).unwrap();
    }
}

/// The newest value of each key of a topic; a tombstone takes the key away.
fn read(config: &Config, topic: &str) -> HashMap<Vec<u8>, Value> {
    let mut rows = HashMap::new();
    let mut source = KafkaSource::open(config, topic, Bounds::UntilNow, Start::Earliest).unwrap();
    let mut ended = false;
    while !ended {
        let polled = source.poll(10_000, Duration::from_millis(100));
        ended = polled.state.ended;
        let batch = polled.batch;
        for message in (0..batch.len() as u32).map(|i| batch.get(i)) {
            let key = message.key.unwrap().to_vec();
            match message.payload {
                Some(value) => drop(rows.insert(key, serde_json::from_slice(value).unwrap())),
                None => drop(rows.remove(&key)),
            }
        }
    }
    rows
}

async fn ad_hoc_sql_counts_the_same(running: &Running, cast: u64) {
    let (status, answer) =
        running.sql("SELECT SUM(total_votes) AS n FROM votes_per_candidate", Some(TOKEN)).await;
    assert_eq!((status, &answer["rows"][0]["n"]), (200, &json!(cast)), "{answer}");
    let raw = "SELECT COUNT(*) AS n, COUNT(DISTINCT voter_id) AS d FROM votes";
    let (status, answer) = running.sql(raw, None).await;
    assert_eq!(status, 401, "SQL needs the token: {answer}");
    let plain = "SELECT MAX(place) AS n FROM ranked_candidates";
    let (status, answer) = running.sql(plain, Some(TOKEN)).await;
    assert_eq!((status, &answer["rows"][0]["n"]), (200, &json!(3)), "a plain view can be asked: {answer}");
    let (status, answer) = running.sql(raw, Some(TOKEN)).await;
    assert_eq!((status, &answer["rows"][0]), (200, &json!({ "n": cast, "d": cast })), "{answer}");
    let joined = "SELECT COUNT(*) AS n FROM votes b JOIN voters v ON v.voter_id = b.voter_id WHERE v.nationality = 'British'";
    let (status, answer) = running.sql(joined, Some(TOKEN)).await;
    assert_eq!((status, &answer["rows"][0]["n"]), (200, &json!(cast)), "{answer}");
    let (status, answer) = running.sql("SELECT COUNT(*) AS n FROM pg.votes", Some(TOKEN)).await;
    assert_eq!((status, &answer["rows"][0]["n"]), (200, &json!(cast)), "{answer}");
}
