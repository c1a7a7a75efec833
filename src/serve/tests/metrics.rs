//! What Prometheus reads, and that the dashboard in `docs/` asks for nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::snapshot::{
    BatchStatus, CheckpointStatus, FailureStatus, ReferenceStatus, RefusedStatus, RejectSample, SourceStatus,
    StageStatus,
};

const DASHBOARD: &str = include_str!("../../../docs/grafana.json");

/// A status in which everything happens.
fn eventful() -> Status {
    let counts = |name: &str| BTreeMap::from([(name.to_string(), 3)]);
    Status {
        ready: true,
        paused: vec![PauseStatus {
            what: "reading topic votes".into(),
            paused_since: "2024-01-01T00:00:00Z".into(),
            reason: "the broker gives no answer".into(),
            ends_by_itself: true,
        }],
        failed_views: vec![FailureStatus {
            view: "broken".into(),
            epoch: 1,
            since: "2024-01-01T00:00:00Z".into(),
            reason: "1 / 0".into(),
            file: "broken.sql".into(),
            line: 1,
        }],
        refused_records: vec![RefusedStatus { topic: "out".into(), records: 2, reason: "too large".into() }],
        sources: vec![SourceStatus {
            name: "votes".into(),
            received: 10,
            counted: 7,
            rejected: 3,
            rejected_by_reason: counts("foreign_key(\"voter\")"),
            late_by_view: counts("over_time"),
            errors_by_view: counts("broken"),
            unmatched_by_view: BTreeMap::from([("by_city".into(), counts("voters(voter_id)"))]),
            lag: 5,
            watermark: Some("1970-01-01T00:00:01.500Z".into()),
            reject_samples: vec![RejectSample {
                rule: "json".into(),
                reason: "no JSON".into(),
                view: None,
                partition: 0,
                offset: 1,
                at: None,
                value: Some("a ballot".into()),
            }],
            ..SourceStatus::default()
        }],
        batches: BatchStatus {
            count: 4,
            stages: BTreeMap::from([(
                "execute",
                StageStatus { runs: 4, total_s: 0.5, ..StageStatus::default() },
            )]),
            ..BatchStatus::default()
        },
        reference_tables: vec![ReferenceStatus {
            name: "voters".into(),
            rows: 1,
            bytes: 2,
            columns: vec!["voter_id".into()],
            age_s: 3,
            error: Some("away".into()),
        }],
        state_bytes_by_view: BTreeMap::from([("by_city".into(), 9)]),
        checkpoint: Some(CheckpointStatus { age_s: Some(5), bytes: 8, ..CheckpointStatus::default() }),
        seconds_by_view: BTreeMap::from([("by_city".into(), 1.5)]),
        ..Status::starting(SystemTime::now())
    }
}

async fn eventful_server() -> Server {
    let server = serve(|_| {}).await;
    let mut published = published(7, true);
    Arc::make_mut(&mut published).status = Arc::new(eventful());
    server.publish.send(published).unwrap();
    server
}

#[tokio::test]
async fn the_status_is_told_as_metrics() {
    let server = eventful_server().await;
    assert_eq!(server.get("/api/views").send().await.unwrap().status(), 200);
    let response = server.get("/metrics").send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    for line in [
        "# TYPE tally_messages_rejected counter",
        r#"tally_messages_rejected_total{source="votes",reason="foreign_key(\"voter\")"} 3.0"#,
        r#"tally_rows_late_total{source="votes",view="over_time"} 3.0"#,
        r#"tally_lag_messages{source="votes"} 5.0"#,
        r#"tally_watermark_timestamp_seconds{source="votes"} 1.5"#,
        r#"tally_stage_seconds_total{stage="execute"} 0.5"#,
        r#"tally_paused{what="reading topic votes"} 1.0"#,
        r#"tally_http_requests_total{method="GET",path="/api/views",status="200"} 1"#,
        "tally_ready 1.0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("ballot"));
}

#[tokio::test]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    let server = eventful_server().await;
    server.get("/api/views").send().await.unwrap();
    let text = server.get("/metrics").bearer_auth(TOKEN).send().await.unwrap().text().await.unwrap();
    for line in
        ["tally_checkpoint_age_seconds 5.0", "tally_checkpoint_bytes 8.0", "tally_checkpoint_failed 0.0"]
    {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let there: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split([' ', '{']).next())
        .collect();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let words =
                target["expr"].as_str().unwrap().split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            asked.extend(words.filter(|word| word.starts_with("tally_") || word.starts_with("process_")));
        }
    }
    assert!(asked.len() > 20, "{asked:?}");
    let unknown: Vec<_> = asked.difference(&there).collect();
    assert!(unknown.is_empty(), "{unknown:?} are none of {there:?}");
}

#[tokio::test]
async fn only_the_operator_sees_rejected_messages() {
    let server = eventful_server().await;
    assert!(!server.json("/api/status").await.to_string().contains("a ballot"));
    let response = server.get("/api/status").bearer_auth(TOKEN).send().await.unwrap();
    let status: Value = response.json().await.unwrap();
    assert_eq!(status["sources"][0]["reject_samples"][0]["value"], "a ballot", "{status}");
}
