//! Over the wire: each test serves hand-made snapshots on a port of its own.

mod changes;
mod connections;
mod formats;
mod metrics;
mod releases;
mod sql;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int64Array, RecordBatch, RecordBatchReader, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use arrow::ipc::reader::StreamReader;
use axum::routing::get;
use datafusion::catalog::{MemTable, TableProvider};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::catalog::Access;
use crate::engine::{Disclosure, ViewInfo};
use crate::release::Policy;
use crate::shutdown::Shutdown;
use crate::snapshot::{PauseStatus, Published, Status, ViewSnapshot};

const TOKEN: &str = "open sesame";

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
        .unwrap()
}

fn candidates() -> RecordBatch {
    let shares = Decimal128Array::from(vec![Some(3750), Some(-25), None, Some(0)]);
    batch(vec![
        ("candidate_id", Arc::new(StringArray::from(vec!["c1", "c2", "c3", "c4"]))),
        ("total_votes", Arc::new(Int64Array::from(vec![Some(10), Some(30), None, Some(10)]))),
        ("share", Arc::new(shares.with_precision_and_scale(10, 2).unwrap())),
        ("score", Arc::new(Float64Array::from(vec![1.5, f64::NAN, f64::INFINITY, 0.0]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000, 0, 0]))),
    ])
}

/// A view by its name; `numbers` keeps releases.
fn view(name: &str, batch: RecordBatch, epoch: u64) -> (String, Arc<ViewSnapshot>) {
    let info = ViewInfo {
        name: name.into(),
        schema: batch.schema(),
        key: batch.column_by_name("candidate_id").map(|_| "candidate_id".into()).into_iter().collect(),
        mode: "update",
        upkeep: Default::default(),
        plan: "finishing: incremental\n  Aggregate".into(),
        topic: Some(format!("aggregated_{name}")),
        disclosure: Disclosure { history: (name == "numbers").then_some(4), ..Disclosure::default() },
        sql: format!("CREATE MATERIALIZED VIEW {name} AS SELECT 1"),
    };
    let changed_at = UNIX_EPOCH + Duration::from_millis(epoch);
    (name.into(), Arc::new(ViewSnapshot::new(Arc::new(info), epoch, Some(changed_at), Arc::new(batch))))
}

/// The same, with one more view, which is read by those.
fn published_with(epoch: u64, access: Access) -> Arc<Published> {
    let mut published = Published::clone(&published(epoch, true));
    let (name, mut snapshot) = view("ballots", candidates(), epoch);
    let info = Arc::make_mut(&mut Arc::get_mut(&mut snapshot).unwrap().info);
    info.disclosure.access = access;
    published.views.insert(name, snapshot);
    Arc::new(published)
}

fn published(epoch: u64, ready: bool) -> Arc<Published> {
    let numbers = batch(vec![("n", Arc::new(Int64Array::from_iter_values(0..5_000)))]);
    Arc::new(Published {
        epoch,
        views: BTreeMap::from([
            view("votes_per_candidate", candidates(), epoch),
            view("numbers", numbers, 1),
        ]),
        status: Arc::new(Status {
            epoch,
            ready,
            started_at: "2024-01-01T00:00:00Z".into(),
            ..Status::starting(SystemTime::now())
        }),
    })
}

/// This program, told to run one test, which runs the query.
fn program() -> SqlProgram {
    SqlProgram::new("/proc/self/exe", ["serve::tests::sql_process", "--exact", "--ignored", "--nocapture"])
}

#[test]
#[ignore = "no test: the process of a query, which the server of a test starts"]
fn sql_process() {
    sql_worker();
}

struct Server {
    url: String,
    client: reqwest::Client,
    publish: watch::Sender<Arc<Published>>,
    shutdown: Shutdown,
    task: JoinHandle<Result<()>>,
}

/// A client. Built with another dependency's feature, reqwest wants a TLS provider even for plain HTTP.
async fn client() -> reqwest::Client {
    // A second test finds it installed.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::new()
}

/// A server with the changes that a test needs.
async fn serve(change: impl FnOnce(&mut App)) -> Server {
    let (publish, published) = watch::channel(published(7, true));
    let voters = batch(vec![("voter_id", Arc::new(StringArray::from(vec!["secret-voter"])))]);
    let voters: Arc<dyn TableProvider> =
        Arc::new(MemTable::try_new(voters.schema(), vec![vec![voters.clone()]]).unwrap());
    let names = ["voters", "pg.voters", "votes_rejected", "numbers"];
    let mut app = App {
        published,
        policy: Policy { interval: Duration::ZERO, rows_min: 1, quiet: Duration::ZERO, cell_min: 1 },
        tables: SqlTables {
            restricted: names.iter().map(|name| (name.to_string(), voters.clone())).collect(),
            restricted_hint: "a ballot is secret",
            plain_views: vec![
                ("leaders_twice".into(), "SELECT total_votes * 2 AS votes FROM leaders".into()),
                (
                    "leaders".into(),
                    "SELECT total_votes FROM votes_per_candidate WHERE total_votes > 10".into(),
                ),
                ("register".into(), "SELECT COUNT(*) AS voters FROM voters".into()),
            ],
        },
        program: program(),
        token: TOKEN.into(),
        web_dir: None,
        limits: SqlLimits {
            public: true,
            timeout: Duration::from_secs(60),
            rows_max: 100,
            bytes_max: 64 << 20,
            concurrency_max: 2,
            public_concurrency_max: 2,
        },
        connections: ConnectionLimits::of(1_000),
        hosts: Vec::new(),
        extra: axum::Router::new(),
    };
    change(&mut app);
    let (listener, address) = bind("127.0.0.1:0").await.unwrap();
    let shutdown = Shutdown::new();
    let task = tokio::spawn(run(listener, app, shutdown.clone()));
    Server { url: format!("http://{address}"), client: client().await, publish, shutdown, task }
}

impl Server {
    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    fn query(&self, query: &str) -> RequestBuilder {
        self.client.post(format!("{}/api/sql", self.url)).json(&json!({ "query": query }))
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    /// Waits until the public sees that epoch.
    async fn released(&self, epoch: u64) {
        while self.json("/api/status").await["release"]["epoch"] != epoch {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The answer's rows; the query must succeed.
    async fn rows(&self, query: &str) -> Value {
        let response = self.query(query).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{query}: {body}");
        body["rows"].clone()
    }

    /// The problem that a query meets, as status and body.
    async fn refused(&self, query: &str) -> (StatusCode, Value) {
        problem(self.query(query).send().await.unwrap()).await
    }
}

async fn problem(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{status}");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status.as_u16());
    assert!(body["type"].is_string() && body["title"].is_string() && body["detail"].is_string(), "{body}");
    (status, body)
}

fn detail(body: &Value) -> &str {
    body["detail"].as_str().unwrap()
}

#[tokio::test]
async fn views_are_listed_with_what_they_are() {
    let server = serve(|_| {}).await;
    let list = server.json("/api/views").await;
    assert_eq!(list["epoch"], 7);
    let entry = &list["views"][1];
    assert_eq!(entry["name"], "votes_per_candidate");
    assert_eq!(entry["columns"][1], json!({"name": "total_votes", "type": "BIGINT"}));
    assert_eq!(entry["columns"][2]["type"], "DECIMAL(10, 2)");
    assert_eq!((&entry["key"], &entry["mode"]), (&json!(["candidate_id"]), &json!("update")));
    assert_eq!(entry["topic"], "aggregated_votes_per_candidate");
    assert_eq!((&entry["rows"], &entry["epoch"]), (&json!(4), &json!(7)));
    assert_eq!(entry["changed_at"], "1970-01-01T00:00:00.007Z");
}

#[tokio::test]
async fn a_view_answers_its_rows_in_plain_json() {
    let server = serve(|_| {}).await;
    let view = server.json("/api/views/votes_per_candidate").await;
    assert_eq!(
        (&view["view"], &view["epoch"], &view["total_rows"]),
        (&json!("votes_per_candidate"), &json!(7), &json!(4))
    );
    let first = json!({"candidate_id": "c1", "total_votes": 10, "share": 37.5, "score": 1.5, "at": "1970-01-01T00:00:00Z"});
    assert_eq!(view["rows"][0], first);
    assert_eq!(view["rows"][1]["share"], -0.25);
    assert_eq!(view["rows"][1]["at"], "1970-01-01T00:00:01.500Z");
    assert_eq!((&view["rows"][1]["score"], &view["rows"][2]["score"]), (&Value::Null, &Value::Null));
    assert_eq!(view["rows"][2]["total_votes"], Value::Null);
}

#[tokio::test]
async fn pages_are_sorted_and_cut() {
    let server = serve(|_| {}).await;
    for (parameters, expected) in [
        ("sort=total_votes:desc", vec!["c2", "c1", "c4", "c3"]),
        ("sort=total_votes&order=desc", vec!["c2", "c1", "c4", "c3"]),
        ("sort=total_votes", vec!["c1", "c4", "c2", "c3"]),
        ("sort=total_votes&limit=1&offset=1", vec!["c4"]),
        ("limit=2", vec!["c1", "c2"]),
        ("offset=3&limit=9", vec!["c4"]),
        ("offset=99", vec![]),
        ("limit=0&sort=share", vec![]),
    ] {
        let page = server.json(&format!("/api/views/votes_per_candidate?{parameters}")).await;
        let ids: Vec<&str> =
            page["rows"].as_array().unwrap().iter().map(|r| r["candidate_id"].as_str().unwrap()).collect();
        assert_eq!((ids, &page["total_rows"]), (expected, &json!(4)), "{parameters}");
    }
    let numbers = server.json("/api/views/numbers").await;
    assert_eq!((numbers["rows"].as_array().unwrap().len(), &numbers["total_rows"]), (1_000, &json!(5_000)));
}

#[tokio::test]
async fn a_view_says_how_it_is_kept() {
    let server = serve(|_| ()).await;
    let list = server.json("/api/views").await;
    let name = list["views"][0]["name"].as_str().unwrap();
    let text = server.get(&format!("/api/views/{name}/plan")).send().await.unwrap().text().await.unwrap();
    assert_eq!(text, "finishing: incremental\n  Aggregate");
    let rows = server.rows(&format!("explain {name};")).await;
    assert_eq!(rows[1]["plan"], "  Aggregate", "{rows}");
}

#[tokio::test]
async fn wrong_names_are_answered_with_the_right_ones() {
    let server = serve(|_| {}).await;
    for (path, status, part) in [
        ("/api/views/votes", 404, "the views are: numbers, votes_per_candidate"),
        ("/api/views/numbers?sort=m", 400, "the columns are: n"),
        ("/api/views/numbers?limt=3", 400, "limt"),
        ("/api/views/numbers?limit=-1", 400, "limit"),
        ("/api/views/numbers?limit=1000000", 400, "at most 100000"),
        ("/api/nothing", 404, "/api/nothing"),
        ("/nothing", 404, "/nothing"),
        ("/api/sql", 400, "query"),
    ] {
        let (got, body) = problem(server.get(path).send().await.unwrap()).await;
        assert_eq!(got, status, "{path}");
        assert!(detail(&body).contains(part), "{path}: {body}");
    }
    let response = server.client.post(format!("{}/api/views", server.url)).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    assert_eq!(problem(response).await.0, 405);
}

#[tokio::test]
async fn an_unchanged_view_is_not_sent_again() {
    let server = serve(|_| {}).await;
    let path = "/api/views/votes_per_candidate";
    let etag = server.get(path).send().await.unwrap().headers()["etag"].clone();
    assert!(etag.to_str().unwrap().starts_with("W/\"7-"));
    let again = async || server.get(path).header("if-none-match", &etag).send().await.unwrap();
    let response = again().await;
    assert_eq!((response.status(), &response.headers()["etag"]), (StatusCode::NOT_MODIFIED, &etag));
    let csv =
        server.get(path).header("accept", "text/csv").header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(csv.status(), 200, "another format is another body");
    server.publish.send(published(8, true)).unwrap();
    server.released(8).await;
    assert_eq!(again().await.status(), 200);
}

#[tokio::test]
async fn any_web_page_may_read_the_views_and_nothing_else() {
    let server = serve(|_| {}).await;
    let ask =
        async |path: &str| server.get(path).header("origin", "https://paper.example").send().await.unwrap();
    for path in ["/api/views", "/api/views/numbers", "/api/views/numbers.csv"] {
        assert_eq!(ask(path).await.headers()["access-control-allow-origin"], "*", "{path}");
    }
    for path in ["/api/sql?query=SELECT%201", "/api/status", "/metrics"] {
        assert!(!ask(path).await.headers().contains_key("access-control-allow-origin"), "{path}");
    }
    let preflight = server
        .client
        .request(reqwest::Method::OPTIONS, format!("{}/api/views", server.url))
        .header("origin", "https://paper.example")
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization");
    let preflight = preflight.send().await.unwrap();
    assert!(!preflight.headers().contains_key("access-control-allow-headers"), "the token may not be sent");
}

#[tokio::test]
async fn the_document_names_routes_that_there_are() {
    let server = serve(|_| {}).await;
    let document = server.json("/api/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 9, "{document}");
    for (path, operations) in paths {
        let path = path.replace("{name}", "numbers");
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse().unwrap();
            let url = format!("{}{path}", server.url);
            let status = server.client.request(method, url).send().await.unwrap().status();
            assert!(![404, 405].contains(&status.as_u16()), "{path}: {status}");
        }
    }
}

#[tokio::test]
async fn ready_when_history_is_counted() {
    let server = serve(|_| {}).await;
    server.publish.send(published(1, false)).unwrap();
    assert_eq!(server.get("/healthz").send().await.unwrap().status(), 200);
    assert_eq!(problem(server.get("/readyz").send().await.unwrap()).await.0, 503);
    server.publish.send(published(2, true)).unwrap();
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200);
    let mut paused = published(2, true);
    let status = Arc::make_mut(&mut Arc::make_mut(&mut paused).status);
    status.paused.push(PauseStatus {
        what: "reading topic votes".into(),
        paused_since: "2024-01-01T00:00:00Z".into(),
        reason: "the broker gives no answer".into(),
        ends_by_itself: true,
    });
    server.publish.send_replace(paused);
    let (code, problem) = problem(server.get("/readyz").send().await.unwrap()).await;
    assert_eq!(code, 503);
    assert!(problem.to_string().contains("reading topic votes"), "{problem}");
    let status = server.json("/api/status").await;
    assert_eq!((&status["epoch"], &status["ready"]), (&json!(2), &json!(true)));
}

#[tokio::test]
async fn the_dashboard_is_built_in() {
    let server = serve(|_| {}).await;
    for (path, kind) in
        [("/", "text/html"), ("/js/main.js", "text/javascript"), ("/css/base.css", "text/css")]
    {
        let answer = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(kind), "{path}");
    }
}

#[tokio::test]
async fn only_the_embedded_result_may_be_framed() {
    let server = serve(|_| {}).await;
    for (path, framed) in [("/embed.html", true), ("/", false), ("/console.html", false)] {
        let headers = server.get(path).send().await.unwrap().headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert_eq!(policy.contains("frame-ancestors 'none'"), !framed, "{path}: {policy}");
        assert_eq!(headers.contains_key("x-frame-options"), !framed, "{path}");
        assert!(policy.contains("default-src 'self'"), "{path}: {policy}");
    }
}

#[tokio::test]
async fn the_dashboard_comes_from_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("index.html"), "<title>Tally</title>").unwrap();
    std::fs::write(dir.path().join("app.js"), "export {}").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link.txt")).unwrap();
    let web_dir = dir.path().to_owned();
    let server = serve(|app| app.web_dir = Some(web_dir)).await;
    let index = server.get("/").send().await.unwrap();
    assert_eq!(
        (index.status(), &index.headers()["content-type"]),
        (StatusCode::OK, &"text/html".parse().unwrap())
    );
    assert_eq!(index.text().await.unwrap(), "<title>Tally</title>");
    let script = server.get("/app.js").send().await.unwrap();
    assert_eq!(script.headers()["content-type"], "text/javascript");
    for outside in
        ["/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "/missing.js", "/api/app.js", "/link.txt"]
    {
        let (status, body) = problem(server.get(outside).send().await.unwrap()).await;
        assert_eq!(status, 404, "{outside}: {body}");
    }
    let post = server.client.post(format!("{}/", server.url)).send().await.unwrap();
    assert_eq!(problem(post).await.0, 405);
}

#[tokio::test]
async fn every_answer_is_guarded_even_after_a_panic() {
    async fn broken() -> &'static str {
        panic!("a bug")
    }
    let server = serve(|app| app.extra = axum::Router::new().route("/broken", get(broken))).await;
    for (path, status) in [("/api/views", 200), ("/api/none", 404), ("/broken", 500), ("/api/sql", 400)] {
        let response = server.get(path).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-security-policy").starts_with("default-src 'self'"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("x-frame-options"), "DENY");
    }
    let zipped = server.get("/api/views/numbers").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(zipped.headers()["content-encoding"], "gzip");
}

#[tokio::test]
async fn a_taken_port_is_explained() {
    let (_listener, address) = bind("127.0.0.1:0").await.unwrap();
    let error = bind(&address.to_string()).await.unwrap_err().to_string();
    assert!(error.contains("taken") && error.contains("--listen 127.0.0.1:0"), "{error}");
}

#[tokio::test]
async fn shutdown_ends_the_server() {
    let server = serve(|_| {}).await;
    server.json("/api/status").await;
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
}
