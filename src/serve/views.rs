//! The views over HTTP: what they are, and a page of one's rows. A page is cut from one immutable snapshot.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices, take_record_batch};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::snapshot::{FailureStatus, Published, Reader, ViewSnapshot};

use super::json::{self, ColumnInfo, column_list};
use super::problem::Problem;

/// Rows of a page that asks for no number.
const LIMIT_DEFAULT: usize = 1_000;

/// Most rows of a page.
const LIMIT_MAX: usize = 100_000;

/// Pages made at one time; more wait.
const PAGES_MAX: usize = 8;

#[derive(Clone)]
pub(super) struct Views {
    published: Reader,
    pages: Arc<Semaphore>,
}

impl Views {
    pub(super) fn new(published: Reader) -> Self {
        Views { published, pages: Arc::new(Semaphore::new(PAGES_MAX)) }
    }
}

#[derive(Serialize)]
struct ViewList {
    epoch: u64,
    views: Vec<ViewEntry>,
}

#[derive(Serialize)]
struct ViewEntry {
    name: String,
    columns: Vec<ColumnInfo>,
    key: Vec<String>,
    mode: &'static str,
    topic: Option<String>,
    rows: usize,
    epoch: u64,
    changed_at: Option<String>,
    /// Since when and why it shows its last good rows, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<FailureStatus>,
}

pub(super) async fn list(State(views): State<Views>) -> Response {
    let published = views.published.borrow().clone();
    let failed = &published.status.failed_views;
    let entry = |view: &Arc<ViewSnapshot>| ViewEntry {
        name: view.info.name.clone(),
        columns: column_list(&view.info.schema),
        key: view.info.key.clone(),
        mode: view.info.mode,
        topic: view.info.topic.clone(),
        rows: view.total_rows(),
        epoch: view.epoch,
        changed_at: view.changed_at.map(rfc3339),
        failed: failed.iter().find(|failed| failed.view == view.info.name).cloned(),
    };
    let list = ViewList { epoch: published.epoch, views: published.views.values().map(entry).collect() };
    ([(CACHE_CONTROL, "no-cache")], Json(list)).into_response()
}

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    sort: Option<String>,
    order: Option<Order>,
    limit: Option<usize>,
    #[serde(default)]
    offset: usize,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

fn find(published: &Published, name: &str) -> Result<Arc<ViewSnapshot>, Problem> {
    published.views.get(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = published.views.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none yet".into() } else { known.join(", ") };
        Problem::new(StatusCode::NOT_FOUND, format!("there is no view {name:?}; the views are: {known}"))
    })
}

/// How a view is kept up to date, as `tally check` prints it.
pub(super) async fn plan(State(views): State<Views>, Path(name): Path<String>) -> Result<Response, Problem> {
    let view = find(&views.published.borrow(), &name)?;
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], view.info.plan.clone()).into_response())
}

pub(super) async fn read(
    State(views): State<Views>,
    Path(name): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(page) = page?;
    let published = views.published.borrow().clone();
    let view = find(&published, &name)?;
    page.check()?;
    let format = Format::accepted(&headers);
    let etag = etag(&view, format, &published.status.started_at);
    let caching = [(ETAG, etag.clone()), (CACHE_CONTROL, "no-cache".into()), (VARY, "accept".into())];
    if is_not_modified(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let _permit = views.pages.acquire().await.expect("invariant: the semaphore is never closed");
    // A large view takes long to sort: not on a thread that answers others.
    let made = tokio::task::spawn_blocking(move || render(&view, &page, format)).await;
    let body = made.map_err(|e| {
        tracing::error!("making a page of view {name}: {e}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "this page can't be made; the server's log says why")
    })??;
    Ok((caching, [(CONTENT_TYPE, format.media_type())], body).into_response())
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Json,
    Csv,
    Arrow,
}

impl Format {
    const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

    /// JSON unless the client names another one.
    fn accepted(headers: &HeaderMap) -> Self {
        let accepts = |media_type: &str| {
            headers.get_all(ACCEPT).iter().any(|v| v.to_str().is_ok_and(|v| v.contains(media_type)))
        };
        match () {
            () if accepts(Format::ARROW_STREAM) => Format::Arrow,
            () if accepts("text/csv") => Format::Csv,
            () => Format::Json,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8; header=present",
            Format::Arrow => Format::ARROW_STREAM,
        }
    }
}

/// Weak, as the body may be compressed. The epoch alone would not do: it may be the same after a restart,
/// or after an edit of the view.
fn etag(view: &ViewSnapshot, format: Format, started_at: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (started_at, view.changed_at, view.total_rows(), format).hash(&mut hasher);
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

impl Page {
    fn check(&self) -> Result<(), Problem> {
        match self.limit {
            Some(limit) if limit > LIMIT_MAX => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                format!("limit is {limit}; at most {LIMIT_MAX} rows come at once: page with offset"),
            )),
            _ => Ok(()),
        }
    }

    /// The rows of the page. Equal rows keep the view's order, so that pages neither overlap nor miss any.
    fn cut(&self, batch: &RecordBatch) -> Result<RecordBatch, Problem> {
        let rows = batch.num_rows();
        let offset = self.offset.min(rows);
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT).min(rows - offset);
        let Some(sort) = &self.sort else { return Ok(batch.slice(offset, limit)) };
        let (column, order) = match sort.rsplit_once(':') {
            Some((column, "desc")) => (column, Order::Desc),
            Some((column, "asc")) => (column, Order::Asc),
            _ => (sort.as_str(), self.order.unwrap_or(Order::Asc)),
        };
        let values = batch.column_by_name(column).cloned().ok_or_else(|| {
            let known: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
            let detail =
                format!("there is no column {column:?} to sort by; the columns are: {}", known.join(", "));
            Problem::new(StatusCode::BAD_REQUEST, detail)
        })?;
        let options = SortOptions { descending: order == Order::Desc, nulls_first: false };
        let by_place = UInt32Array::from_iter_values((0..rows).map(|row| row as u32));
        let columns = [
            SortColumn { values, options: Some(options) },
            SortColumn { values: Arc::new(by_place), options: None },
        ];
        let indices = lexsort_to_indices(&columns, Some(offset + limit)).map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, format!("column {column:?} can't be sorted by: {e}"))
        })?;
        Ok(take_record_batch(batch, &indices.slice(offset, limit)).map_err(DataFusionError::from)?)
    }
}

#[derive(Serialize)]
struct Head<'a> {
    view: &'a str,
    epoch: u64,
    total_rows: usize,
    columns: Vec<ColumnInfo>,
}

fn render(view: &ViewSnapshot, page: &Page, format: Format) -> Result<Vec<u8>, Problem> {
    let batch = view.batch()?;
    let rows = page.cut(&batch)?;
    let head = Head {
        view: &view.info.name,
        epoch: view.epoch,
        total_rows: batch.num_rows(),
        columns: column_list(&view.info.schema),
    };
    let body = match format {
        Format::Json => json::body(&head, &[rows]),
        Format::Csv => csv(&rows),
        Format::Arrow => arrow_stream(&rows),
    };
    Ok(body.map_err(DataFusionError::from)?)
}

fn csv(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow_csv::Writer::new(Vec::new());
    writer.write(batch)?;
    Ok(writer.into_inner())
}

fn arrow_stream(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.into_inner()
}
