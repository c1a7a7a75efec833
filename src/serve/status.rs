//! How the engine is doing, and whether the process serves and is ready. What it says comes from the newest
//! snapshot alone.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, VARY};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::snapshot::{Reader, Status};

use super::auth::Caller;
use super::problem::Problem;
use super::readers::{Readers, ReleaseStatus};

/// Longest that an answer waits for an epoch.
const AFTER_WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Wait for an epoch greater than this.
    after: Option<u64>,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    status: &'a Status,
    release: ReleaseStatus,
}

/// The status; with `after`, once an epoch greater than that is published, or at the end of the wait as it is then.
pub(super) async fn status(
    State(readers): State<Readers>,
    wait: Result<Query<Wait>, QueryRejection>,
    caller: Caller,
) -> Result<Response, Problem> {
    let Query(Wait { after }) = wait?;
    if let Some(after) = after {
        let mut published = readers.published.clone();
        let newer = published.wait_for(|published| published.epoch > after);
        // At the time out, and when the engine ends, the answer is what there is.
        tokio::time::timeout(AFTER_WAIT_MAX, newer).await.ok();
    }
    let status = readers.status(caller);
    let answer = Answer { status: &status, release: readers.release_status() };
    Ok(([(CACHE_CONTROL, "no-store"), (VARY, "authorization")], Json(answer)).into_response())
}

/// Alive: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: what the topics held at the start is counted, and nothing waits for Kafka or Postgres, so the views are
/// neither a partial nor an old result.
pub(super) async fn readyz(State(published): State<Reader>) -> Result<&'static str, Problem> {
    let status = published.borrow().status.clone();
    let reason = match status.paused.first() {
        Some(pause) => format!("{} is paused since {}: {}", pause.what, pause.paused_since, pause.reason),
        None if status.ready => return Ok("ready\n"),
        None => "the topics' history is still being read; /api/status shows the lag".into(),
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason).retry_after_s(1))
}
