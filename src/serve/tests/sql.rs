//! Ad-hoc SQL over the wire: what it answers, what it refuses, and its limits.

use super::*;

/// Runs for days and never waits for anything.
const ENDLESS: &str = "SELECT COUNT(*) FROM range(0, 100000000) a CROSS JOIN range(0, 100000000) b WHERE a.value % 7 < b.value % 11";

#[tokio::test]
async fn sql_reads_one_epoch_of_the_views() {
    let server = serve(|_| {}).await;
    let response =
        server.query("SELECT SUM(total_votes) AS votes FROM votes_per_candidate").send().await.unwrap();
    let body: Value = response.json().await.unwrap();
    let expected = json!({"epoch": 7, "columns": [{"name": "votes", "type": "BIGINT"}], "truncated": false, "rows": [{"votes": 50}]});
    assert_eq!(body, expected);
    for (query, expected) in [
        (
            "SELECT a.n, b.n FROM numbers a JOIN numbers b ON a.n = b.n WHERE a.n = 3",
            json!([{"n": 3, "n_2": 3}]),
        ),
        ("WITH t AS (SELECT MAX(share) AS m FROM votes_per_candidate) SELECT m FROM t", json!([{"m": 37.5}])),
        ("SELECT INTERVAL '1 day' AS i, NULL AS x", json!([{"i": "1 days", "x": null}])),
        ("SELECT n FROM numbers WHERE n < 0", json!([])),
        ("WITH voters AS (SELECT 1 AS x) SELECT x FROM voters", json!([{"x": 1}])),
        ("SELECT COUNT(*) AS c FROM generate_series(1, 3)", json!([{"c": 3}])),
    ] {
        assert_eq!(server.rows(query).await, expected, "{query}");
    }
    assert!(server.rows("EXPLAIN SELECT 1").await.as_array().is_some_and(|rows| !rows.is_empty()));
}

#[tokio::test]
async fn an_sql_error_has_its_position() {
    let server = serve(|_| {}).await;
    let (status, body) = server.refused("SELECT *\n  FORM numbers").await;
    assert_eq!((status, &body["line"]), (StatusCode::BAD_REQUEST, &json!(2)), "{body}");
    assert!(body["column"].is_u64() && !detail(&body).contains("backtrace"));
    let (_, body) = server.refused("SELECT n,\n       m FROM numbers").await;
    assert_eq!((&body["line"], &body["column"]), (&json!(2), &json!(8)), "{body}");
    let (_, body) = server.refused("SELECT * FROM nowhere").await;
    assert!(detail(&body).contains("nowhere"), "{body}");
    assert_eq!(server.refused("SELECT 1 / 0").await.0, 400);
}

#[tokio::test]
async fn only_queries_run() {
    let server = serve(|_| {}).await;
    for query in [
        "CREATE TABLE t AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE numbers",
        "INSERT INTO numbers VALUES (1)",
        "UPDATE numbers SET n = 1",
        "DELETE FROM numbers",
        "COPY (SELECT 1) TO '/tmp/stolen.csv' STORED AS CSV",
        "EXPLAIN COPY (SELECT 1) TO '/tmp/stolen.csv' STORED AS CSV",
        "EXPLAIN ANALYZE INSERT INTO numbers VALUES (1)",
        "SET datafusion.execution.target_partitions = 64",
        "SHOW ALL",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT 1 INTO t",
        "WITH x AS (DELETE FROM numbers) SELECT 1",
        "",
    ] {
        let (status, body) = server.refused(query).await;
        assert_eq!(status, 400, "{query}: {body}");
    }
    assert_eq!(server.rows("SELECT COUNT(*) AS c FROM numbers").await, json!([{"c": 5000}]));
}

#[tokio::test]
async fn restricted_tables_need_the_token() {
    let server = serve(|_| {}).await;
    for query in [
        "SELECT * FROM voters",
        "SELECT * FROM pg.voters",
        "SELECT * FROM datafusion.public.voters",
        "SELECT * FROM Voters",
        "SELECT n FROM numbers WHERE n IN (SELECT 1 FROM votes_rejected)",
        "EXPLAIN SELECT * FROM voters",
    ] {
        let response = server.query(query).send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"tally\"");
        let (status, body) = problem(response).await;
        assert_eq!(status, 401, "{query}");
        assert!(detail(&body).contains("token"));
        let allowed = server.query(query).bearer_auth(TOKEN).send().await.unwrap();
        assert_eq!(allowed.status(), 200, "{query}");
    }
    let public = server.rows("SELECT table_name FROM information_schema.tables UNION SELECT column_name FROM information_schema.columns UNION SELECT schema_name FROM information_schema.schemata").await;
    let public = public.to_string();
    assert!(
        public.contains("numbers") && !public.contains("voter_id") && !public.contains("voters"),
        "{public}"
    );
    assert!(!public.contains("\"pg\""), "{public}");
    let all = server.query("SELECT voter_id FROM pg.voters").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(all.json::<Value>().await.unwrap()["rows"], json!([{"voter_id": "secret-voter"}]));
    let view = server.query("SELECT MAX(n) AS n FROM numbers").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(view.json::<Value>().await.unwrap()["rows"], json!([{"n": 4999}]), "the view is meant");
    for wrong in ["open sesam", "open sesame!", "", "OPEN SESAME"] {
        let response = server.query("SELECT 1").bearer_auth(wrong).send().await.unwrap();
        assert_eq!(problem(response).await.0, 401, "{wrong:?}");
    }
}

#[tokio::test]
async fn without_a_token_set_none_is_right() {
    let server = serve(|app| app.token = String::new()).await;
    let response =
        server.query("SELECT * FROM voters").header("authorization", "Bearer ").send().await.unwrap();
    assert_eq!(problem(response).await.0, 401);
}

#[tokio::test]
async fn answers_are_limited_in_rows_and_memory() {
    let server = serve(|app| app.limits.bytes_max = 4 << 20).await;
    let response = server.query("SELECT n FROM numbers ORDER BY n").send().await.unwrap();
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["truncated"], body["rows"].as_array().unwrap().len()), (&json!(true), 100));
    let exactly = server.query("SELECT n FROM numbers LIMIT 100").send().await.unwrap();
    assert_eq!(exactly.json::<Value>().await.unwrap()["truncated"], false);
    let (status, body) =
        server.refused("SELECT value * 7 % 9999991 AS v, COUNT(*) FROM range(0, 9000000) GROUP BY v").await;
    assert_eq!(status, 422, "{body}");
    for amplifying in [
        "SELECT repeat('x', 2000000000)",
        "SELECT range(0, 2000000000)",
        "SELECT generate_series(0, 2000000000)",
        "SELECT array_repeat(1, 2000000000)",
        "SELECT list_repeat(1, 2000000000)",
        "SELECT array_resize([1], 2000000000, 0)",
        "SELECT list_resize([1], 2000000000, 0)",
        "SELECT lpad('x', 2000000000)",
    ] {
        let response = server.query(amplifying).send().await.unwrap();
        assert_eq!(response.status(), 400, "{amplifying}");
        let (status, body) = problem(response).await;
        assert_eq!(status, 400, "{amplifying}: {body}");
    }
    let allowed = server.query("SELECT repeat('x', 3) AS x").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(allowed.json::<Value>().await.unwrap()["rows"], json!([{"x": "xxx"}]));
}

#[tokio::test]
async fn a_query_stops_at_the_timeout() {
    let server = serve(|app| {
        app.limits.timeout = Duration::from_millis(50);
        app.limits.concurrency_max = 1;
    })
    .await;
    let (status, body) = server.refused(ENDLESS).await;
    assert_eq!(status, 504, "{body}");
    assert!(detail(&body).contains("0.05 s"));
    // Its place becomes free only when it has really stopped.
    stops(&server).await;
}

/// Returns when a query finds a free place.
async fn stops(server: &Server) {
    while server.query("SELECT 1").send().await.unwrap().status() == 429 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn queries_beyond_the_most_are_refused_and_a_caller_who_leaves_frees_a_place() {
    let server = serve(|app| app.limits.concurrency_max = 1).await;
    let endless = tokio::spawn(server.query(ENDLESS).send());
    let response = loop {
        let response = server.query("SELECT 1").send().await.unwrap();
        if response.status() == 429 {
            break response;
        }
    };
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(detail(&problem(response).await.1).contains("1 ad-hoc queries"));
    assert_eq!(server.json("/api/status").await["epoch"], 7, "the server answers meanwhile");
    endless.abort();
    stops(&server).await;
}

#[tokio::test]
async fn a_body_that_is_no_query_is_refused() {
    let server = serve(|_| {}).await;
    let url = format!("{}/api/sql", server.url);
    let post = |content_type: &str, body: String| {
        server.client.post(&url).header("content-type", content_type).body(body).send()
    };
    let large = json!({"query": format!("SELECT '{}'", "x".repeat(70_000))}).to_string();
    assert_eq!(problem(post("application/json", large).await.unwrap()).await.0, 413);
    assert_eq!(problem(post("application/json", "{".into()).await.unwrap()).await.0, 400);
    assert_eq!(problem(post("application/json", "{}".into()).await.unwrap()).await.0, 422);
    assert_eq!(problem(post("text/plain", "{}".into()).await.unwrap()).await.0, 415);
}

#[tokio::test]
async fn a_statement_can_be_prepared_by_the_caller() {
    let server = serve(|app| {
        app.prepare = Some(Arc::new(|context, _| {
            context.deregister_udf("upper");
            Ok(())
        }));
    })
    .await;
    assert_eq!(server.refused("SELECT upper('a')").await.0, 400);
    assert_eq!(server.rows("SELECT lower('A') AS x").await, json!([{"x": "a"}]));
}

#[tokio::test]
async fn a_deep_query_does_not_end_the_process() {
    let server = serve(|app| app.limits.timeout = Duration::from_secs(2)).await;
    for (start, operator) in [("SELECT 1", "+1"), ("SELECT ", "("), ("SELECT 'a'", "||'a'")] {
        let query = start.to_owned() + &operator.repeat(16_000 / operator.len());
        // Whether it is answered or stopped is a matter of time; the server must live on.
        assert_ne!(server.query(&query).send().await.unwrap().status(), 413);
    }
    let long = format!("SELECT '{}'", "x".repeat(17_000));
    assert_eq!(server.refused(&long).await.0, 413);
    assert_eq!(server.get("/healthz").send().await.unwrap().status(), 200);
}
