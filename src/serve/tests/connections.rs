//! Connections over the wire: slow and silent ones, too many, and those that ask for another's name.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap()
}

/// What comes until the server closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection that is reset has ended too.
    stream.read_to_end(&mut bytes).await.ok();
    String::from_utf8(bytes).unwrap()
}

/// Asks on an open connection, and leaves it open.
async fn ask(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 12];
    stream.write_all(REQUEST).await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && &answer == b"HTTP/1.1 200"
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let server = serve(|app| app.connections.head_timeout = Duration::from_millis(300)).await;
    let begun = Instant::now();
    let silent = connect(&server).await;
    let mut half = connect(&server).await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: local").await.unwrap();
    let mut kept = connect(&server).await;
    assert!(ask(&mut kept).await);
    for stream in [silent, half, kept] {
        rest(stream).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_body_that_does_not_come_ends_its_request() {
    let server = serve(|_| {}).await;
    let mut slow = connect(&server).await;
    let head = "POST /api/sql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(15), rest(slow)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come in time"), "{answer}");
}

#[tokio::test]
async fn silent_connections_make_room_for_new_ones() {
    let server = serve(|app| app.connections.max = 3).await;
    let mut old = Vec::new();
    for _ in 0..30 {
        let mut stream = connect(&server).await;
        stream.write_all(b"GET /").await.unwrap();
        old.push(stream);
    }
    let mut new = connect(&server).await;
    assert!(ask(&mut new).await, "whoever asks is answered");
    let closed = rest(old.swap_remove(0));
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap(), "");
}

#[tokio::test]
async fn a_busy_connection_is_not_closed_for_a_new_one() {
    let server = serve(|app| {
        app.connections.max = 1;
        app.limits.timeout = Duration::from_secs(1);
    })
    .await;
    let busy = tokio::spawn(server.query(sql::ENDLESS).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut refused = connect(&server).await;
    assert!(!ask(&mut refused).await);
    assert_eq!(busy.await.unwrap().unwrap().status(), 504, "it was answered");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_left() {
    let server = serve(|app| {
        app.connections.write_timeout = Duration::from_millis(300);
        let endless = || async { axum::body::Body::from(vec![b'x'; 64 << 20]) };
        app.extra = axum::Router::new().route("/large", get(endless));
    })
    .await;
    let mut slow = connect(&server).await;
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    // Long enough for a busy machine to begin.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(rest_bytes(slow).await < 64 << 20, "the rest was not sent");
}

async fn rest_bytes(mut stream: TcpStream) -> usize {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok();
    bytes.len()
}

#[tokio::test]
async fn another_name_is_refused() {
    let server = serve(|app| app.hosts = vec!["election.example".into()]).await;
    let ask = async |host: &str| server.get("/api/status").header("host", host).send().await.unwrap();
    let (status, body) = problem(ask("evil.example").await).await;
    assert_eq!(status, 421);
    assert!(detail(&body).contains("evil.example"), "{body}");
    assert_eq!(ask("localhost:1").await.status(), 200);
    assert_eq!(ask("election.example").await.status(), 200);
}

#[tokio::test]
async fn wrong_tokens_are_slowed() {
    let server = serve(|_| {}).await;
    let begun = Instant::now();
    let guesses: Vec<_> = (0..4)
        .map(|n| tokio::spawn(server.query("SELECT 1").bearer_auth(format!("guess{n}")).send()))
        .collect();
    for guess in guesses {
        assert_eq!(problem(guess.await.unwrap().unwrap()).await.0, 401);
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "one after the other: {:?}", begun.elapsed());
    let begun = Instant::now();
    let right = server.query("EXPLAIN numbers").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(right.status(), 200);
    assert!(begun.elapsed() < Duration::from_millis(400), "the right one is not");
}
