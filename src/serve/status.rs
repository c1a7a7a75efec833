//! How the engine is doing, and whether the process serves and is ready. What it says comes from the newest
//! snapshot alone.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, VARY};
use axum::response::{IntoResponse, Response};

use crate::snapshot::Reader;

use super::auth::Caller;
use super::problem::Problem;

pub(super) async fn status(State(published): State<Reader>, caller: Caller) -> Response {
    let status = published.borrow().status.clone();
    let no_store = [(CACHE_CONTROL, "no-store"), (VARY, "authorization")];
    match caller {
        Caller::Operator => (no_store, Json(&*status)).into_response(),
        Caller::Public => (no_store, Json(status.for_the_public())).into_response(),
    }
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
