//! The views over HTTP: what they are, and a page of one's rows. A page is cut from one immutable snapshot.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use datafusion::error::DataFusionError;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::release::Past;
use crate::snapshot::{FailureStatus, ViewSnapshot};

use super::auth::Caller;
use super::formats::Format;
use super::json::{self, ColumnInfo, column_list, rfc3339};
use super::page::Page;
use super::problem::Problem;
use super::readers::Readers;

/// Pages made at one time; more wait.
const PAGES_MAX: usize = 8;

#[derive(Clone)]
pub(super) struct Views {
    readers: Readers,
    pages: Arc<Semaphore>,
}

impl Views {
    pub(super) fn new(readers: Readers) -> Self {
        Views { readers, pages: Arc::new(Semaphore::new(PAGES_MAX)) }
    }
}

#[derive(Serialize)]
struct ViewList {
    release: u64,
    epoch: u64,
    views: Vec<ViewEntry>,
}

#[derive(Serialize)]
struct ViewEntry {
    name: String,
    columns: Vec<ColumnInfo>,
    key: Vec<String>,
    mode: &'static str,
    access: String,
    sql: String,
    topic: Option<String>,
    rows: usize,
    epoch: u64,
    changed_at: Option<String>,
    /// Since when and why it shows its last good rows, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<FailureStatus>,
}

pub(super) async fn list(State(views): State<Views>, caller: Caller) -> Response {
    let seen = views.readers.see(caller);
    let failed = &seen.published.status.failed_views;
    let entry = |view: &Arc<ViewSnapshot>| ViewEntry {
        name: view.info.name.clone(),
        columns: column_list(&view.info.schema),
        key: view.info.key.clone(),
        mode: view.info.mode,
        access: view.info.disclosure.access.to_string(),
        sql: view.info.sql.clone(),
        topic: view.info.topic.clone(),
        rows: view.total_rows(),
        epoch: view.epoch,
        changed_at: view.changed_at.map(rfc3339),
        failed: failed
            .iter()
            .find(|failed| failed.view == view.info.name)
            .map(|failed| if seen.operator { failed.clone() } else { failed.without_values() }),
    };
    let list = ViewList {
        release: seen.release,
        epoch: seen.published.epoch,
        views: seen.published.views.values().map(entry).collect(),
    };
    ([(CACHE_CONTROL, "no-cache"), (VARY, "authorization")], Json(list)).into_response()
}

/// How a view is kept up to date, as `tally check` prints it.
pub(super) async fn plan(
    State(views): State<Views>,
    Path(name): Path<String>,
    caller: Caller,
) -> Result<Response, Problem> {
    let view = views.readers.see(caller).find(&name)?;
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], view.info.plan.clone()).into_response())
}

#[derive(Serialize)]
struct Lines<'a> {
    view: &'a str,
    columns: Vec<ColumnInfo>,
    releases: Vec<PastRelease>,
}

#[derive(Serialize)]
struct PastRelease {
    release: u64,
    at: String,
    rows: Box<RawValue>,
}

/// How a view was in earlier releases, the newest one included.
pub(super) async fn history(
    State(views): State<Views>,
    Path(name): Path<String>,
    caller: Caller,
) -> Result<Response, Problem> {
    let view = views.readers.see(caller).find(&name)?;
    if view.info.disclosure.history.is_none() {
        let detail = format!("view {name} keeps no history; its option history = '300' would");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let past = views.readers.released.borrow().history.of(&name).unwrap_or_default();
    let _permit = views.pages.acquire().await.expect("invariant: the semaphore is never closed");
    let made = tokio::task::spawn_blocking(move || -> Result<Vec<u8>, Problem> {
        let release = |past: &Past| -> Result<PastRelease, Problem> {
            let rows = json::rows_json(std::slice::from_ref(&past.rows)).map_err(DataFusionError::from)?;
            let rows = String::from_utf8(rows)
                .map_err(|e| e.to_string())
                .and_then(|rows| RawValue::from_string(rows).map_err(|e| e.to_string()));
            let rows = rows.map_err(not_made(&name))?;
            Ok(PastRelease { release: past.release, at: rfc3339(past.at), rows })
        };
        let releases = past.iter().map(release).collect::<Result<_, _>>()?;
        let lines = Lines { view: &name, columns: column_list(&view.info.schema), releases };
        serde_json::to_vec(&lines).map_err(|e| not_made(&name)(e.to_string()))
    });
    let body = made.await.map_err(|e| not_made("")(e.to_string()))??;
    let headers = [(CACHE_CONTROL, "no-cache"), (VARY, "authorization"), (CONTENT_TYPE, "application/json")];
    Ok((headers, body).into_response())
}

/// What is answered where a page fails to be made.
fn not_made(view: &str) -> impl Fn(String) -> Problem + '_ {
    move |error| {
        tracing::error!("making a page of view {view}: {error}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "this page can't be made; the server's log says why")
    }
}

pub(super) async fn read(
    State(views): State<Views>,
    Path(name): Path<String>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters?;
    let seen = views.readers.see(caller);
    let (bare, of_path) = Format::split(&name);
    // A view's own name may end so.
    let (name, of_path) = match seen.has(&name) {
        true => (name.as_str(), None),
        false => (bare, of_path),
    };
    let view = seen.find(name)?;
    let page = Page::new(parameters)?;
    page.check(&view.info.schema)?;
    let format = page.format(of_path, &headers);
    let release = seen.release;
    let etag = etag(&view, release, format, &seen.published.status.started_at);
    let vary = "accept, authorization".into();
    let caching = [(ETAG, etag.clone()), (CACHE_CONTROL, "no-cache".into()), (VARY, vary)];
    if is_not_modified(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let _permit = views.pages.acquire().await.expect("invariant: the semaphore is never closed");
    // A large view takes long to sort: not on a thread that answers others.
    let made = tokio::task::spawn_blocking(move || render(&view, release, &page, format)).await;
    let body = made.map_err(|e| not_made(name)(e.to_string()))??;
    Ok((caching, [(CONTENT_TYPE, format.media_type())], body).into_response())
}

/// Weak, as the body may be compressed. The epoch alone would not do: it may be the same after a restart,
/// or after an edit of the view.
fn etag(view: &ViewSnapshot, release: u64, format: Format, started_at: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (started_at, view.changed_at, view.total_rows(), release, format).hash(&mut hasher);
    view.info.schema.hash(&mut hasher);
    format!("W/\"{}-{:x}\"", view.epoch, hasher.finish())
}

/// Whether the client holds what `etag` stands for.
pub(super) fn is_not_modified(headers: &HeaderMap, etag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || strong(tag) == strong(etag))
}

#[derive(Serialize)]
struct Head<'a> {
    view: &'a str,
    release: u64,
    epoch: u64,
    total_rows: usize,
    columns: Vec<ColumnInfo>,
}

fn render(view: &ViewSnapshot, release: u64, page: &Page, format: Format) -> Result<Vec<u8>, Problem> {
    let batch = view.batch()?;
    let (total_rows, rows) = page.cut(&batch)?;
    let head = Head {
        view: &view.info.name,
        release,
        epoch: view.epoch,
        total_rows,
        columns: column_list(&view.info.schema),
    };
    let schema = rows.schema();
    Ok(format.body(&head, &schema, &[rows]).map_err(DataFusionError::from)?)
}
