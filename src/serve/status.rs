//! How the engine is doing, and whether the process serves and is ready. What it says comes from the newest
//! snapshot alone.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};

use crate::snapshot::Reader;

use super::problem::Problem;

pub(super) async fn status(State(published): State<Reader>) -> Response {
    let status = published.borrow().status.clone();
    ([(CACHE_CONTROL, "no-store")], Json(&*status)).into_response()
}

/// Alive: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: what the topics held at the start is counted, so the views are no partial result.
pub(super) async fn readyz(State(published): State<Reader>) -> Result<&'static str, Problem> {
    if published.borrow().status.ready {
        return Ok("ready\n");
    }
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the topics' history is still being read; /api/status shows the lag",
    )
    .retry_after_s(1))
}
