//! Which path is answered by what, and what every answer has: security headers, compression, a trace.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;

use crate::error::Result;

use super::auth::Token;
use super::problem::Problem;
use super::sql::Sql;
use super::views::Views;
use super::{App, assets, embed, sql, status, views};

/// Longest request body.
const BODY_BYTES_MAX: usize = 64 << 10;

const CSP: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// All routes over an [`App`].
pub fn router(app: App) -> Result<Router> {
    let App { published, restricted, restricted_hint, prepare, token, web_dir, limits, extra } = app;
    let sql = Arc::new(Sql::new(
        published.clone(),
        restricted,
        restricted_hint,
        prepare,
        Token::new(token),
        limits,
    )?);
    let views = Router::new()
        .route("/api/views", get(views::list))
        .route("/api/views/{name}", get(views::read))
        .route("/api/views/{name}/plan", get(views::plan))
        .with_state(Views::new(published.clone()));
    let status = Router::new().route("/api/status", get(status::status)).with_state(published.clone());
    // Asked every second, and "not ready" is no error: they are not traced.
    let probes = Router::new()
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .with_state(published);
    let header = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value))
    };
    let traced = Router::new()
        .merge(views)
        .merge(status)
        .route("/api/sql", post(sql::sql).with_state(sql))
        .merge(extra)
        .fallback(move |request: Request| assets::file(web_dir.clone(), request))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(TraceLayer::new_for_http());
    Ok(traced
        .merge(probes)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CompressionLayer::new())
        .layer(CatchPanicLayer::custom(|_| {
            let detail = "this can't be answered; the server's log says why";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        }))
        .layer(header(CONTENT_SECURITY_POLICY, CSP))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header(REFERRER_POLICY, "no-referrer"))
        .layer(header(X_FRAME_OPTIONS, "DENY"))
        .layer(axum::middleware::from_fn(embed::allow)))
}

/// axum adds the `Allow` header.
async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} can't be asked with {method}; the Allow header says how", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
