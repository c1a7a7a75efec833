//! Which path is answered by what, and what every answer has: security headers, compression, a trace.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, ETAG, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;

use crate::shutdown::Shutdown;

use super::auth::Guard;
use super::changes::Changes;
use super::hosts::{self, Hosts};
use super::metrics::{self, Requests};
use super::openapi::Routes;
use super::problem::Problem;
use super::readers::Readers;
use super::sql::Sql;
use super::views::Views;
use super::{App, assets, changes, describe, embed, sql, status, views};

/// Longest request body.
const BODY_BYTES_MAX: usize = 64 << 10;

const CSP: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// All routes over an [`App`], for requests to `hosts`. Answers that would go on for ever end at the shutdown.
pub fn router(app: App, hosts: Hosts, shutdown: Shutdown) -> Router {
    let App { published, policy, tables, program, token, web_dir, limits, extra, .. } = app;
    let readers = Readers::start(published.clone(), policy);
    let sql = Arc::new(Sql::new(readers.clone(), tables, program, limits));
    let views = Views::new(readers.clone());
    let changes = Changes::start(readers.clone(), shutdown);
    let of_changes =
        |handler: MethodRouter<Changes>| handler.with_state(changes.clone()).layer(readable_anywhere());
    let requests = Requests::new();
    let metrics = get(metrics::metrics).with_state((readers.clone(), requests.clone()));
    let of_views =
        |handler: MethodRouter<Views>| handler.with_state(views.clone()).layer(readable_anywhere());
    let (api, probes) = Routes::new()
        .route("/api/views", of_views(get(views::list)), describe::views())
        .route("/api/views/{name}", of_views(get(views::read)), describe::view())
        .route("/api/views/{name}/plan", of_views(get(views::plan)), describe::plan())
        .route("/api/views/{name}/history", of_views(get(views::history)), describe::history())
        .route("/api/views/{name}/changes", of_changes(get(changes::of_one)), describe::changes_of_one())
        .route("/api/changes", of_changes(get(changes::of_many)), describe::changes())
        .route("/api/sql", get(sql::get).post(sql::post).with_state(sql), describe::sql())
        .route("/api/status", get(status::status).with_state(readers), describe::status())
        // Asked every second, and "not ready" is no error: they are not traced.
        .probe("/metrics", metrics, describe::metrics())
        .probe("/healthz", get(status::healthz), describe::healthz())
        .probe("/readyz", get(status::readyz).with_state(published), describe::readyz())
        .finish();
    let header = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value))
    };
    let traced = api
        .merge(extra)
        .fallback(move |request: Request| assets::file(web_dir.clone(), request))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(TraceLayer::new_for_http());
    traced
        .merge(probes)
        .layer(Extension(Arc::new(Guard::new(token))))
        .layer(from_fn_with_state(requests, metrics::count))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(hosts, hosts::check))
        .layer(CompressionLayer::new())
        .layer(CatchPanicLayer::custom(|_| {
            let detail = "this can't be answered; the server's log says why";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        }))
        .layer(header(CONTENT_SECURITY_POLICY, CSP))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header(REFERRER_POLICY, "no-referrer"))
        .layer(header(X_FRAME_OPTIONS, "DENY"))
        .layer(from_fn(embed::allow))
}

/// What everybody may read, any web page may. It may not send the operator's token.
fn readable_anywhere() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD])
        .expose_headers([ETAG, RETRY_AFTER])
}

/// axum adds the `Allow` header.
async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} can't be asked with {method}; the Allow header says how", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
