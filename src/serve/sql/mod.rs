//! Ad-hoc SQL: one read-only query over one epoch of the views and, for the operator, over the restricted
//! tables. Each query runs in a process of its own (`worker.rs`), which ends with it.

mod process;
mod wire;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::snapshot::Published;

use super::auth::Caller;
use super::formats::Format;
use super::json::{ColumnInfo, column_list};
use super::problem::Problem;
use super::readers::Readers;

use process::{Process, Rows};

pub use process::SqlProgram;
pub(super) use wire::TableFailed;
pub use worker::run as sql_worker;

/// Longest query of the public.
const PUBLIC_QUERY_BYTES_MAX: usize = 16 << 10;

/// Largest answer to the public, …
const PUBLIC_ANSWER_BYTES_MAX: usize = 8 << 20;

/// … and to the operator. It is held until it is sent.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Longest that a request's body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Callers who wait for a place, and how long they do: whoever asks again and again is slowed by it.
const WAITING_MAX: usize = 128;
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Says that an answer has not all rows.
const TRUNCATED: HeaderName = HeaderName::from_static("tally-truncated");

/// What ad-hoc queries may take, and whose they are.
#[derive(Clone, Debug)]
pub struct SqlLimits {
    /// Whether anybody may ask; otherwise the operator alone.
    pub public: bool,
    /// Longest a query may run.
    pub timeout: Duration,
    /// Most rows of an answer; a longer one is cut and says so.
    pub rows_max: usize,
    /// Most bytes of a query.
    pub bytes_max: usize,
    /// Most queries at one time, of the operator and of the public each; one more waits, but not for long.
    pub concurrency_max: usize,
    /// Most of the public, if that is less: while it asks, cores must be left to the count.
    pub public_concurrency_max: usize,
}

impl From<&Config> for SqlLimits {
    fn from(config: &Config) -> Self {
        SqlLimits {
            public: config.public_sql,
            timeout: Duration::from_secs(config.sql_timeout_s),
            rows_max: config.sql_rows_max,
            bytes_max: config.sql_bytes_max,
            concurrency_max: config.sql_concurrency_max,
            public_concurrency_max: half_of_the_cores(),
        }
    }
}

fn half_of_the_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

/// The tables of ad-hoc SQL beside the views.
#[derive(Clone, Default)]
pub struct SqlTables {
    /// For the operator alone: reference tables, raw streams, dead letters. A name may have a schema, as
    /// `pg.voters`. Where a view has the same name, the view is meant.
    pub restricted: Vec<(String, Arc<dyn TableProvider>)>,
    /// Why these are not public, for whoever asks without the token.
    pub restricted_hint: &'static str,
    /// Views that are only names for queries: name and query. Whoever may read what they read may read them.
    pub plain_views: Vec<(String, String)>,
}

pub(super) struct Sql {
    readers: Readers,
    tables: SqlTables,
    program: SqlProgram,
    limits: SqlLimits,
    operator: Places,
    public: Places,
}

/// Places of queries.
struct Places {
    number: usize,
    free: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Places {
    fn new(number: usize) -> Places {
        Places { number, free: Arc::new(Semaphore::new(number)), waiting: Semaphore::new(WAITING_MAX) }
    }

    /// A place, now or after a short wait.
    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(place);
        }
        let _waiting = self.waiting.try_acquire().ok()?;
        tokio::time::timeout(WAIT_MAX, Arc::clone(&self.free).acquire_owned()).await.ok()?.ok()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SqlRequest {
    query: String,
    /// Name of a format.
    format: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SqlParameters {
    format: Option<String>,
}

#[derive(Serialize)]
struct Head {
    epoch: u64,
    columns: Vec<ColumnInfo>,
    truncated: bool,
}

/// A query in a JSON body.
pub(super) async fn post(
    State(sql): State<Arc<Sql>>,
    caller: Caller,
    parameters: Result<Query<SqlParameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    sql.allow(caller)?;
    let Query(parameters) = parameters?;
    let headers = request.headers().clone();
    let body = tokio::time::timeout(BODY_TIMEOUT, Json::<SqlRequest>::from_request(request, &()));
    let body: Result<Json<SqlRequest>, JsonRejection> = body
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time"))?;
    let Json(mut request) = body?;
    request.format = parameters.format.or(request.format);
    sql.respond(request, &headers, caller).await
}

/// A query in the URL, for programs that read a URL.
pub(super) async fn get(
    State(sql): State<Arc<Sql>>,
    caller: Caller,
    request: Result<Query<SqlRequest>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    sql.allow(caller)?;
    let Query(request) = request?;
    sql.respond(request, &headers, caller).await
}

impl Sql {
    pub(super) fn new(readers: Readers, tables: SqlTables, program: SqlProgram, limits: SqlLimits) -> Self {
        Sql {
            readers,
            tables,
            program,
            operator: Places::new(limits.concurrency_max),
            public: Places::new(limits.concurrency_max.min(limits.public_concurrency_max)),
            limits,
        }
    }

    fn allow(&self, caller: Caller) -> Result<(), Problem> {
        if self.limits.public || caller == Caller::Operator {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "ad-hoc SQL is the operator's: send the token, printed at start, as `Authorization: Bearer TOKEN`; \
             `public_sql = true` opens it to everybody",
        ))
    }

    async fn respond(
        &self,
        request: SqlRequest,
        headers: &HeaderMap,
        caller: Caller,
    ) -> Result<Response, Problem> {
        let format = match &request.format {
            Some(name) => Format::named(name)?,
            None => Format::accepted(headers),
        };
        let answer = self.answer(request.query, format, caller).await?;
        let mut response =
            ([(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, format.media_type())], answer.body).into_response();
        if answer.truncated {
            response.headers_mut().insert(TRUNCATED, axum::http::HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    /// Runs a query within the limits. At the timeout, or when the caller goes away, its process is killed.
    async fn answer(
        &self,
        query: String,
        format: Format,
        caller: Caller,
    ) -> Result<process::Answer, Problem> {
        let published = self.readers.see(caller).published;
        if let Some(plan) = view_plan(&published, &query) {
            let schema = plan.schema();
            let head = Head { epoch: published.epoch, columns: column_list(&schema), truncated: false };
            let body = format.body(&head, &schema, &[plan]).map_err(DataFusionError::from)?;
            return Ok(process::Answer { body, truncated: false });
        }
        let operator = caller == Caller::Operator;
        if !operator && query.len() > PUBLIC_QUERY_BYTES_MAX {
            let detail =
                format!("the query has {} bytes; at most {PUBLIC_QUERY_BYTES_MAX} are public", query.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        let (tables, rows) = self.visible(&published, operator);
        let request = wire::Request {
            query,
            format,
            epoch: published.epoch,
            tables,
            plain_views: self.tables.plain_views.clone(),
            hidden: match operator {
                true => Vec::new(),
                false => self.tables.restricted.iter().map(|(name, _)| name.clone()).collect(),
            },
            hidden_hint: self.tables.restricted_hint.into(),
            rows_max: self.limits.rows_max,
            bytes_max: self.limits.bytes_max,
            timeout: self.limits.timeout,
        };
        drop(published);
        let places = if operator { &self.operator } else { &self.public };
        let Some(place) = places.take().await else {
            let max = places.number;
            let detail =
                format!("{max} ad-hoc queries are running, which is the most; try again in a moment");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after_s(1));
        };
        let bytes_max = if operator { ANSWER_BYTES_MAX } else { PUBLIC_ANSWER_BYTES_MAX };
        let mut process = Process::start(&self.program, place)?;
        let answer = process.answer(&request, &rows, bytes_max);
        tokio::time::timeout(self.limits.timeout, answer).await.unwrap_or_else(|_| {
            let longest = self.limits.timeout.as_secs_f64();
            let detail =
                format!("the query was stopped after {longest} s, the longest one may run; ask for less");
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        })
    }

    /// What the caller may read, each table with its rows.
    fn visible(&self, published: &Published, operator: bool) -> (Vec<wire::Table>, Vec<Rows>) {
        let views = published.views.iter();
        let views = views.map(|(name, view)| (name.clone(), Rows::View(view.clone())));
        let restricted = self.tables.restricted.iter().filter(|_| operator);
        let restricted = restricted
            .filter(|(name, _)| !published.views.contains_key(name))
            .map(|(name, table)| (name.clone(), Rows::Provider(table.clone())));
        let all = views.chain(restricted);
        all.map(|(name, rows)| (wire::Table { name, schema: rows.schema() }, rows)).unzip()
    }
}

/// `EXPLAIN name` of a view: how it is kept up to date, a row a line.
fn view_plan(published: &Published, query: &str) -> Option<RecordBatch> {
    let mut words = query.trim().trim_end_matches(';').split_whitespace();
    let view = match (words.next(), words.next(), words.next()) {
        (Some(explain), Some(name), None) if explain.eq_ignore_ascii_case("explain") => {
            published.views.get(name)?
        }
        _ => return None,
    };
    let lines: ArrayRef = Arc::new(StringArray::from(view.info.plan.lines().collect::<Vec<_>>()));
    RecordBatch::try_from_iter([("plan", lines)]).ok()
}
