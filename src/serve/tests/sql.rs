//! Ad-hoc SQL over the wire: what it answers, what it refuses, and its limits.

use super::*;

/// Runs for days and never waits for anything.
pub(super) const ENDLESS: &str =
    "SELECT SUM(a.value * b.value) FROM range(1000000) a CROSS JOIN range(1000000) b";

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
}

/// Doubles its rows 21 times before anything is counted: planning alone would take gigabytes.
fn doubling() -> String {
    let step = |n: usize| format!(", t{n} AS (SELECT * FROM t{0} UNION ALL SELECT * FROM t{0})", n - 1);
    let steps: String = (1..22).map(step).collect();
    format!("WITH t0 AS (SELECT 1 AS x){steps} SELECT COUNT(*) FROM t21")
}

/// Each call makes its value sixteen or more times as long.
fn replacing() -> String {
    let long = "x".repeat(32);
    (0..6).fold("'xxxxxxxxxxxxxxxx'".to_string(), |text, _| format!("replace({text}, 'x', '{long}')"))
}

#[tokio::test]
async fn a_query_that_takes_too_much_memory_ends_alone() {
    let server = serve(|app| app.limits.timeout = Duration::from_secs(20)).await;
    for query in [
        format!("SELECT length({})", replacing()),
        "SELECT length(repeat('x', 2000000000))".into(),
        "SELECT cardinality(range(0, 2000000000))".into(),
        "SELECT cardinality(generate_series(0, 2000000000))".into(),
        "SELECT cardinality(array_repeat(1, 2000000000))".into(),
        "SELECT cardinality(array_resize([1], 2000000000, 0))".into(),
        "SELECT string_agg(repeat('x', 1000), '') FROM range(0, 1000000)".into(),
    ] {
        let (status, body) = server.refused(&query).await;
        assert!([400, 422].contains(&status.as_u16()), "{query}: {body}");
    }
    let (status, body) = server.refused(&doubling()).await;
    assert!([422, 504].contains(&status.as_u16()), "{body}");
    assert_eq!(server.rows("SELECT repeat('x', 3) AS x").await, json!([{"x": "xxx"}]));
}

#[tokio::test]
async fn an_answer_is_limited_in_bytes() {
    let server = serve(|app| app.limits.bytes_max = 256 << 20).await;
    let large = "SELECT repeat('x', 20000000) AS x";
    let (status, body) = server.refused(large).await;
    assert_eq!(status, 422, "{body}");
    assert!(detail(&body).contains("the answer is larger than 8388608 bytes"), "{body}");
    assert_eq!(server.query(large).bearer_auth(TOKEN).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_query_is_gone_within_a_second_of_its_timeout() {
    let server = serve(|app| {
        app.limits.timeout = Duration::from_secs(1);
        app.limits.concurrency_max = 1;
    })
    .await;
    for query in [ENDLESS.to_string(), doubling()] {
        let (status, body) = server.refused(&query).await;
        assert!([422, 504].contains(&status.as_u16()), "{query}: {body}");
        // Its place becomes free only when its process has ended: one more query waits for that, up to a second.
        let next = server.query("SELECT 1").send().await.unwrap();
        assert_eq!(next.status(), 200, "after {query}");
    }
}

#[tokio::test]
async fn the_operator_has_places_of_his_own() {
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
    let operator = server.query("SELECT 1").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(operator.status(), 200);
    assert_eq!(server.json("/api/status").await["epoch"], 7, "the server answers meanwhile");
    // Whoever goes away frees a place.
    endless.abort();
    assert_eq!(server.query("SELECT 1").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn sql_is_the_operators_unless_it_is_public() {
    let server = serve(|app| app.limits.public = false).await;
    let (status, body) = server.refused("SELECT 1").await;
    assert_eq!(status, 401, "{body}");
    assert!(detail(&body).contains("public_sql"), "{body}");
    let url = server.get("/api/sql?query=SELECT%201");
    assert_eq!(problem(url.send().await.unwrap()).await.0, 401);
    assert_eq!(server.query("SELECT 1").bearer_auth(TOKEN).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn tables_can_be_listed_and_described() {
    let server = serve(|_| {}).await;
    let tables = server.rows("SHOW TABLES").await.to_string();
    assert!(tables.contains("numbers") && tables.contains("leaders"), "{tables}");
    assert!(!tables.contains("voters") && !tables.contains("register"), "{tables}");
    let columns = server.rows("DESCRIBE numbers").await;
    assert_eq!(columns[0]["column_name"], "n", "{columns}");
    let columns = server.rows("SHOW COLUMNS FROM numbers").await;
    assert_eq!(columns[0]["column_name"], "n", "{columns}");
    assert!(server.rows("SHOW FUNCTIONS LIKE '%date_bin%'").await.to_string().contains("date_bin"));
}

#[tokio::test]
async fn plain_views_can_be_asked_by_whoever_may_read_what_they_read() {
    let server = serve(|_| {}).await;
    assert_eq!(server.rows("SELECT votes FROM leaders_twice").await, json!([{"votes": 60}]));
    assert_eq!(server.refused("SELECT * FROM register").await.0, 400);
    let operator = server.query("SELECT voters FROM register").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(operator.json::<Value>().await.unwrap()["rows"], json!([{"voters": 1}]));
}

#[tokio::test]
async fn an_answer_has_the_format_that_is_asked_for() {
    let server = serve(|_| {}).await;
    let csv = "at,list\n1970-01-01T00:00:01.500Z,\"[1, 2]\"\n";
    let query = "SELECT at, [1, 2] AS list FROM votes_per_candidate WHERE candidate_id = 'c2'";
    let url = reqwest::Url::parse_with_params(
        &format!("{}/api/sql", server.url),
        [("query", query), ("format", "csv")],
    );
    let answer = server.client.get(url.unwrap()).send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/csv"));
    assert_eq!(answer.text().await.unwrap(), csv);
    let post = async |body: Value, accept: &str| {
        let request = server.client.post(format!("{}/api/sql", server.url)).header("accept", accept);
        request.json(&body).send().await.unwrap()
    };
    assert_eq!(post(json!({"query": query, "format": "csv"}), "*/*").await.text().await.unwrap(), csv);
    assert_eq!(post(json!({"query": query}), "text/csv").await.text().await.unwrap(), csv);
    let arrow = post(json!({"query": "SELECT n FROM numbers", "format": "arrow"}), "*/*").await;
    assert_eq!(arrow.headers()["tally-truncated"], "true");
    let bytes = arrow.bytes().await.unwrap();
    let rows: usize = StreamReader::try_new(&bytes[..], None).unwrap().map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(rows, 100);
    let query = "SELECT [n] AS list, INTERVAL '1 day' AS days FROM numbers WHERE n = ";
    for (n, expected) in [(2, 1), (-1, 0)] {
        let body = json!({"query": format!("{query}{n}"), "format": "parquet"});
        let file = post(body, "*/*").await.bytes().await.unwrap();
        let reader = ParquetRecordBatchReader::try_new(file, 1_000).unwrap();
        assert_eq!(reader.schema().field(1).data_type(), &DataType::Utf8, "Parquet has no such intervals");
        assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), expected);
    }
    let (status, body) = problem(post(json!({"query": query, "format": "xml"}), "*/*").await).await;
    assert_eq!(status, 400);
    assert!(detail(&body).contains("json, csv, arrow"), "{body}");
    let none = post(json!({"query": "SELECT n FROM numbers WHERE n < 0", "format": "csv"}), "*/*").await;
    assert_eq!(none.text().await.unwrap(), "n\n");
}

#[tokio::test]
async fn a_large_table_comes_whole() {
    let rows = Int64Array::from_iter_values(0..300_000);
    let server = serve(|_| {}).await;
    let mut published = published(8, true);
    let views = &mut Arc::make_mut(&mut published).views;
    views.extend([view(
        "large",
        batch(vec![("n", Arc::new(rows)), ("m", Arc::new(Int64Array::from_iter_values(0..300_000)))]),
        8,
    )]);
    server.publish.send(published).unwrap();
    let sums = "SELECT COUNT(*) AS c, SUM(a.n) AS s, COUNT(DISTINCT b.m) AS d FROM large a JOIN large b ON a.n = b.m";
    assert_eq!(server.rows(sums).await, json!([{"c": 300_000, "s": 44_999_850_000_i64, "d": 300_000}]));
    assert_eq!(server.rows("SELECT COUNT(*) AS c FROM large").await, json!([{"c": 300_000}]));
    assert_eq!(server.rows("SELECT m FROM large LIMIT 2").await, json!([{"m": 0}, {"m": 1}]));
}

#[tokio::test]
async fn windows_stand_in_from() {
    let server = serve(|_| {}).await;
    let query = "SELECT window_start, COUNT(*) AS c FROM tumble(votes_per_candidate, at, INTERVAL '1 second') GROUP BY 1 ORDER BY 1";
    let expected = json!([{"window_start": "1970-01-01T00:00:00Z", "c": 3}, {"window_start": "1970-01-01T00:00:01Z", "c": 1}]);
    assert_eq!(server.rows(query).await, expected);
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
