//! What the public sees, and the operator, and waiting for it.

use super::*;

#[tokio::test]
async fn the_public_sees_the_release_and_the_operator_the_epoch() {
    let server = serve(|app| app.policy.interval = Duration::from_secs(3600)).await;
    server.json("/api/views").await;
    server.publish.send(published_with(8, Access::Operator)).unwrap();
    let operators = async |path: &str| {
        let answer = server.get(path).bearer_auth(TOKEN).send().await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    let list = server.json("/api/views").await;
    assert_eq!((&list["release"], &list["epoch"]), (&json!(1), &json!(7)));
    let own = operators("/api/views").await;
    assert_eq!((&own["release"], &own["epoch"]), (&json!(1), &json!(8)));
    let names = |list: &Value| {
        list["views"].as_array().unwrap().iter().map(|v| v["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&list), ["numbers", "votes_per_candidate"]);
    assert_eq!(list["views"][0]["sql"], "CREATE MATERIALIZED VIEW numbers AS SELECT 1");
    assert_eq!(names(&own), ["ballots", "numbers", "votes_per_candidate"]);
    let path = "/api/views/votes_per_candidate";
    assert_eq!(server.json(path).await["epoch"], 7);
    assert_eq!(operators(path).await["epoch"], 8);
    let (status, body) = problem(server.get("/api/views/ballots").send().await.unwrap()).await;
    assert_eq!(status, 401, "{body}");
    assert_eq!(problem(server.get("/api/views/ballots/plan").send().await.unwrap()).await.0, 401);
    assert_eq!(operators("/api/views/ballots").await["total_rows"], 4);
    let (status, body) = server.refused("SELECT * FROM ballots").await;
    assert_eq!(status, 400, "no such table for the public: {body}");
}

#[tokio::test]
async fn a_status_can_be_waited_for() {
    let server = serve(|_| {}).await;
    let wait = tokio::spawn(server.get("/api/status?after=7").send());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!wait.is_finished());
    server.publish.send(published(8, true)).unwrap();
    let status: Value = wait.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(status["epoch"], 8);
    assert_eq!(server.json("/api/status?after=7").await["epoch"], 8, "what is there is not waited for");
    assert_eq!(problem(server.get("/api/status?after=x").send().await.unwrap()).await.0, 400);
}

#[tokio::test]
async fn a_view_with_history_tells_how_it_was_in_each_release() {
    let server = serve(|_| {}).await;
    server.released(7).await;
    for (epoch, n) in [(8, 1), (9, 1), (10, 2)] {
        let mut published = Published::clone(&published(epoch, true));
        let rows = batch(vec![("n", Arc::new(Int64Array::from(vec![n])))]);
        published.views.extend([view("numbers", rows, epoch)]);
        server.publish.send(Arc::new(published)).unwrap();
        server.released(epoch).await;
    }
    let answer = server.json("/api/views/numbers/history").await;
    assert_eq!(answer["columns"], json!([{ "name": "n", "type": "BIGINT" }]));
    let told = |release: &Value| {
        (
            release["release"].clone(),
            release["rows"].as_array().unwrap().len(),
            release["rows"][0]["n"].clone(),
        )
    };
    let releases: Vec<_> = answer["releases"].as_array().unwrap().iter().map(told).collect();
    let expected = [(1, 5_000, 0), (2, 1, 1), (4, 1, 2)];
    assert_eq!(releases, expected.map(|(release, rows, n)| (json!(release), rows, json!(n))));
    assert!(answer["releases"][0]["at"].as_str().unwrap().ends_with('Z'));
    let (status, body) =
        problem(server.get("/api/views/votes_per_candidate/history").send().await.unwrap()).await;
    assert_eq!(status, 404);
    assert!(detail(&body).contains("history = '300'"), "{body}");
}
