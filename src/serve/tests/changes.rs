//! Pushed changes, as a browser reads them.

use super::*;

/// An event: its id, its name, its data.
type Event = (String, String, Value);

struct Reader {
    response: Response,
    text: String,
}

impl Reader {
    async fn open(request: RequestBuilder) -> Reader {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Reader { response, text: String::new() }
    }

    /// The next event; comments and the greeting are none.
    async fn next(&mut self) -> Event {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name))?;
                    line.strip_prefix(": ").map(str::to_string)
                };
                let found = (field("id"), field("event"), field("data"));
                self.text = rest.to_string();
                if let (Some(id), Some(name), Some(data)) = found {
                    return (id, name, serde_json::from_str(&data).unwrap());
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.response.chunk()).await;
            let chunk = chunk.expect("an event").unwrap().expect("more");
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }
}

/// A view of votes by candidate, and one that does not change.
fn votes(epoch: u64, votes: &[(&str, i64)]) -> Arc<Published> {
    let mut published = Published::clone(&published(epoch, true));
    published.views.remove("votes_per_candidate");
    let rows = batch(vec![
        ("candidate_id", Arc::new(StringArray::from_iter_values(votes.iter().map(|(name, _)| name)))),
        ("votes", Arc::new(Int64Array::from_iter_values(votes.iter().map(|(_, votes)| *votes)))),
    ]);
    let (name, snapshot) = view("votes", rows, epoch);
    published.views.insert(name, snapshot);
    Arc::new(published)
}

/// A server of which a release is there.
async fn serve_votes(rows: &[(&str, i64)]) -> Server {
    let server = serve(|_| {}).await;
    server.publish.send(votes(8, rows)).unwrap();
    server.released(8).await;
    server
}

#[tokio::test]
async fn first_the_rows_then_what_changes() {
    let server = serve_votes(&[("c1", 1), ("c2", 2), ("c3", 3)]).await;
    let mut reader = Reader::open(server.get("/api/views/votes/changes")).await;
    let (id, name, data) = reader.next().await;
    assert_eq!((name.as_str(), &data["epoch"]), ("snapshot", &json!(8)));
    assert!(id.starts_with(&format!("{}.", data["release"])), "{id}");
    assert!(data["at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        data["views"],
        json!({ "votes": {
            "columns": [{ "name": "candidate_id", "type": "VARCHAR" }, { "name": "votes", "type": "BIGINT" }],
            "total_rows": 3,
            "rows": [{ "candidate_id": "c1", "votes": 1 }, { "candidate_id": "c2", "votes": 2 },
                     { "candidate_id": "c3", "votes": 3 }],
        } })
    );
    server.publish.send(votes(9, &[("c1", 1), ("c2", 20), ("c4", 4)])).unwrap();
    let (_, name, data) = reader.next().await;
    assert_eq!((name.as_str(), &data["epoch"]), ("changes", &json!(9)));
    assert_eq!(
        data["views"],
        json!({ "votes": { "changes": [
            { "op": "update", "row": { "candidate_id": "c2", "votes": 20 } },
            { "op": "insert", "row": { "candidate_id": "c4", "votes": 4 } },
            { "op": "delete", "row": { "candidate_id": "c3", "votes": 3 } },
        ] } })
    );
}

#[tokio::test]
async fn several_views_and_all_in_one_stream() {
    let server = serve_votes(&[("c1", 1)]).await;
    let names = async |path: &str| {
        let (_, _, data) = Reader::open(server.get(path)).await.next().await;
        data["views"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names("/api/changes").await, ["numbers", "votes"]);
    assert_eq!(names("/api/changes?views=votes,%20numbers,votes").await, ["numbers", "votes"]);
    assert_eq!(names("/api/changes?views=numbers").await, ["numbers"]);
    for (path, code) in
        [("/api/changes?views=none", 404), ("/api/views/none/changes", 404), ("/api/changes?x=1", 400)]
    {
        assert_eq!(problem(server.get(path).send().await.unwrap()).await.0, code, "{path}");
    }
}

#[tokio::test]
async fn who_comes_back_gets_what_changed_since() {
    let server = serve_votes(&[("c1", 1)]).await;
    let mut follower = Reader::open(server.get("/api/changes")).await;
    let (first, _, _) = follower.next().await;
    for n in 2..5 {
        server.publish.send(votes(7 + n as u64, &[("c1", n)])).unwrap();
        follower.next().await;
    }
    let back = async |id: &str| Reader::open(server.get("/api/changes").header("last-event-id", id)).await;
    let mut reader = back(&first).await;
    for n in 2..5 {
        let (_, name, data) = reader.next().await;
        assert_eq!(name, "changes");
        assert_eq!(data["views"]["votes"]["changes"][0]["row"]["votes"], n);
    }
    let other_run = format!("{}.7", first.split_once('.').unwrap().0);
    for id in [other_run.as_str(), "nonsense", "99"] {
        let (_, name, data) = back(id).await.next().await;
        assert_eq!(
            (name.as_str(), &data["views"]["votes"]["rows"][0]["votes"]),
            ("snapshot", &json!(4)),
            "{id}"
        );
    }
    for n in 5..200 {
        server.publish.send(votes(7 + n as u64, &[("c1", n)])).unwrap();
        follower.next().await;
    }
    let (_, name, _) = back(&first).await.next().await;
    assert_eq!(name, "snapshot", "what is so long ago is not held");
}

#[tokio::test]
async fn the_operator_follows_epochs_and_the_public_no_view_of_his() {
    let server = serve(|app| app.policy.interval = Duration::from_secs(3600)).await;
    server.json("/api/views").await;
    server.publish.send(published_with(8, Access::Operator)).unwrap();
    let path = "/api/changes?views=ballots,numbers";
    assert_eq!(problem(server.get(path).send().await.unwrap()).await.0, 401);
    let mut reader = Reader::open(server.get(path).bearer_auth(TOKEN)).await;
    let (id, _, data) = reader.next().await;
    assert!(id.starts_with("8.") && data["release"] == 1, "{id} {data}");
    server.publish.send(published_with(9, Access::Operator)).unwrap();
    server.publish.send(published_with(10, Access::Operator)).unwrap();
    let (_, _, data) = Reader::open(server.get("/api/changes")).await.next().await;
    assert_eq!(
        data["views"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["numbers", "votes_per_candidate"]
    );
}

#[tokio::test]
async fn a_stream_ends_with_the_server() {
    let server = serve_votes(&[("c1", 1)]).await;
    let mut reader = Reader::open(server.get("/api/changes")).await;
    reader.next().await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(3), server.task)
        .await
        .expect("no stream holds it up")
        .unwrap()
        .unwrap();
}
