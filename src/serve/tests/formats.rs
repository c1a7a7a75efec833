//! The forms that rows are asked in, and which rows.

use super::*;

#[tokio::test]
async fn each_format_by_accept() {
    let server = serve(|_| {}).await;
    let get = async |accept: &str| {
        let request = server.get("/api/views/votes_per_candidate?limit=2").header("accept", accept);
        let response = request.send().await.unwrap();
        (response.headers()["content-type"].to_str().unwrap().to_owned(), response.bytes().await.unwrap())
    };
    let (content_type, csv) = get("text/csv").await;
    assert!(content_type.starts_with("text/csv"));
    let csv = std::str::from_utf8(&csv).unwrap();
    assert!(csv.starts_with("candidate_id,total_votes,share,score,at\nc1,10,37.50,1.5,"), "{csv}");
    let (content_type, stream) = get("application/vnd.apache.arrow.stream").await;
    assert_eq!(content_type, "application/vnd.apache.arrow.stream");
    let batches: Vec<_> = StreamReader::try_new(&stream[..], None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches, [candidates().slice(0, 2)]);
    let (content_type, file) = get("application/vnd.apache.parquet").await;
    assert_eq!(content_type, "application/vnd.apache.parquet");
    let batches: Vec<_> =
        ParquetRecordBatchReader::try_new(file, 1_000).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches, [candidates().slice(0, 2)]);
    let (content_type, _) = get("text/html,*/*;q=0.8").await;
    assert_eq!(content_type, "application/json");
}

#[tokio::test]
async fn a_format_may_be_named_in_the_path_or_by_a_parameter() {
    let server = serve(|_| {}).await;
    let csv = "candidate_id,total_votes,share,score,at\nc1,10,37.50,1.5,1970-01-01T00:00:00Z\n";
    for path in ["votes_per_candidate.csv?limit=1", "votes_per_candidate?limit=1&format=csv"] {
        let response = server.get(&format!("/api/views/{path}")).send().await.unwrap();
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/csv"), "{path}");
        assert_eq!(response.text().await.unwrap(), csv, "{path}");
    }
    let arrow = server.get("/api/views/numbers.arrow").send().await.unwrap().bytes().await.unwrap();
    assert_eq!(StreamReader::try_new(&arrow[..], None).unwrap().next().unwrap().unwrap().num_rows(), 1_000);
    assert_eq!(server.json("/api/views/numbers.json").await["total_rows"], 5_000);
    let (status, body) = problem(server.get("/api/views/numbers?format=xml").send().await.unwrap()).await;
    assert_eq!(status, 400);
    assert!(detail(&body).contains("json, csv, arrow, parquet"), "{body}");
}

#[tokio::test]
async fn rows_are_chosen_by_their_values() {
    let server = serve(|_| {}).await;
    for (parameters, expected) in [
        ("candidate_id=c2", vec!["c2"]),
        ("candidate_id=c2&candidate_id=c4&sort=candidate_id:desc", vec!["c4", "c2"]),
        ("total_votes=10", vec!["c1", "c4"]),
        ("total_votes=10&candidate_id=c4", vec!["c4"]),
        ("total_votes=", vec!["c3"]),
        ("total_votes=10&total_votes=", vec!["c1", "c3", "c4"]),
        ("share=-0.25", vec!["c2"]),
        ("at=1970-01-01T00:00:01.5Z", vec!["c2"]),
        ("candidate_id=nobody", vec![]),
        ("candidate_id=", vec![]),
    ] {
        let page = server.json(&format!("/api/views/votes_per_candidate?{parameters}")).await;
        let rows = page["rows"].as_array().unwrap();
        let ids: Vec<&str> = rows.iter().map(|row| row["candidate_id"].as_str().unwrap()).collect();
        assert_eq!(
            (ids.len(), ids),
            (page["total_rows"].as_u64().unwrap() as usize, expected),
            "{parameters}"
        );
    }
    let mut published = Published::clone(&published(8, true));
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("")]));
    published.views.extend([view("names", batch(vec![("name", names)]), 8)]);
    server.publish.send(Arc::new(published)).unwrap();
    server.released(8).await;
    assert_eq!(server.json("/api/views/names?name=").await["total_rows"], 2, "NULL and no text");
    let page = server.json("/api/views/votes_per_candidate?total_votes=10&limit=1").await;
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["total_rows"]), (1, &json!(2)));
    let bad = server.get("/api/views/votes_per_candidate?total_votes=many").send().await.unwrap();
    let (status, body) = problem(bad).await;
    assert_eq!(status, 400);
    assert!(detail(&body).contains("\"total_votes\" is BIGINT, and \"many\" is none"), "{body}");
}
