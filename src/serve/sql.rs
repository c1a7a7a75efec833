//! Ad-hoc SQL: one read-only query over one epoch of the views and, for the operator, over the restricted
//! tables. Queries run on threads of their own, so that none can hold up the server or the engine's tasks.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::engine::session;
use crate::error::{Error, Result};
use crate::snapshot::{Published, Reader};

use super::auth::Token;
use super::json::{self, ColumnInfo, column_list};
use super::problem::Problem;
use super::tables::ViewTable;

/// Called on each query's fresh session and parsed statement before it is planned: to register functions,
/// and to rewrite what DataFusion does not know.
pub type Prepare =
    Arc<dyn Fn(&SessionContext, &mut Statement) -> datafusion::error::Result<()> + Send + Sync>;

const CATALOG: &str = "datafusion";
const SCHEMA: &str = "public";

/// Functions that make a huge value from a few bytes of query, past the memory pool. Only the operator has them.
const AMPLIFYING: [&str; 8] =
    ["array_repeat", "array_resize", "generate_series", "lpad", "range", "repeat", "rpad", "string_agg"];

/// Longest query of the public. Parsing and planning recurse by operator: what is short can't be deep.
const PUBLIC_QUERY_BYTES_MAX: usize = 16 << 10;

/// Stack of each query thread, touched only as far as used. Some recursions of the planner have no guard, and
/// an overflow would end the process: this holds the deepest query that fits the length above.
const STACK_BYTES: usize = 256 << 20;

/// What ad-hoc queries may take.
#[derive(Clone, Debug)]
pub struct SqlLimits {
    /// Longest a query may run.
    pub timeout: Duration,
    /// Most rows of an answer; a longer one is cut and says so.
    pub rows_max: usize,
    /// Most bytes of all queries together.
    pub bytes_max: usize,
    /// Most queries at one time; the next one is refused.
    pub concurrency_max: usize,
}

impl From<&Config> for SqlLimits {
    fn from(config: &Config) -> Self {
        SqlLimits {
            timeout: Duration::from_secs(config.sql_timeout_s),
            rows_max: config.sql_rows_max,
            bytes_max: config.sql_bytes_max,
            concurrency_max: config.sql_concurrency_max,
        }
    }
}

pub(super) struct Sql {
    published: Reader,
    restricted: Vec<(TableReference, Arc<dyn TableProvider>)>,
    restricted_hint: &'static str,
    prepare: Option<Prepare>,
    token: Token,
    limits: SqlLimits,
    running: Arc<Semaphore>,
    environment: Arc<RuntimeEnv>,
    threads: Threads,
}

/// Threads that only run queries. Dropping them does not wait for a query, which may be in async code.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Deserialize)]
pub(super) struct SqlRequest {
    query: String,
}

#[derive(Serialize)]
struct Head {
    epoch: u64,
    columns: Vec<ColumnInfo>,
    truncated: bool,
}

pub(super) async fn sql(
    State(sql): State<Arc<Sql>>,
    headers: HeaderMap,
    request: Result<Json<SqlRequest>, JsonRejection>,
) -> Result<Response, Problem> {
    let operator = sql.token.check(&headers)?;
    let Json(request) = request?;
    let body = sql.clone().answer(request.query, operator).await?;
    Ok(([(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, "application/json")], body).into_response())
}

impl Sql {
    pub(super) fn new(
        published: Reader,
        restricted: Vec<(String, Arc<dyn TableProvider>)>,
        restricted_hint: &'static str,
        prepare: Option<Prepare>,
        token: Token,
        limits: SqlLimits,
    ) -> Result<Self> {
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.bytes_max)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let threads = tokio::runtime::Builder::new_multi_thread()
            // As many as queries: one that computes without a pause holds up no other.
            .worker_threads(limits.concurrency_max)
            .thread_name("sql")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|source| Error::Io { action: "starting the threads of ad-hoc SQL".into(), source })?;
        let restricted =
            restricted.into_iter().map(|(name, table)| (TableReference::from(name), table)).collect();
        Ok(Sql {
            published,
            restricted,
            restricted_hint,
            prepare,
            token,
            running: Arc::new(Semaphore::new(limits.concurrency_max)),
            limits,
            environment,
            threads: Threads(Some(threads)),
        })
    }

    /// Runs a query within the limits. When the caller goes away, or at the timeout, the query is aborted.
    async fn answer(self: Arc<Self>, query: String, operator: bool) -> Result<Vec<u8>, Problem> {
        if !operator && query.len() > PUBLIC_QUERY_BYTES_MAX {
            let detail =
                format!("the query has {} bytes; at most {PUBLIC_QUERY_BYTES_MAX} are public", query.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        let permit = self.running.clone().try_acquire_owned().map_err(|_| {
            let max = self.limits.concurrency_max;
            let detail =
                format!("{max} ad-hoc queries are running, which is the most; try again in a moment");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after_s(1)
        })?;
        let timeout = self.limits.timeout;
        let threads = self.threads.0.as_ref().expect("invariant: taken only by drop").handle().clone();
        let task = threads.spawn(async move {
            let answer = self.run(&query, operator).await;
            // Held until the query has really stopped, not just until its caller was told so.
            drop(permit);
            answer
        });
        match tokio::time::timeout(timeout, AbortOnDropHandle::new(task)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                tracing::error!("an ad-hoc query failed: {e}");
                Err(Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the query failed; the server's log says why",
                ))
            }
            Err(_) => Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!(
                    "the query was stopped after {} s, the longest one may run; ask for less",
                    timeout.as_secs_f64()
                ),
            )),
        }
    }

    async fn run(&self, query: &str, operator: bool) -> Result<Vec<u8>, Problem> {
        let published = self.published.borrow().clone();
        if let Some(plan) = view_plan(&published, query) {
            let head =
                Head { epoch: published.epoch, columns: column_list(&plan.schema()), truncated: false };
            return Ok(json::body(&head, &[plan]).map_err(DataFusionError::from)?);
        }
        let context = self.session(&published, operator)?;
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(query, &dialect)?;
        only_query(&statement)?;
        if let Some(prepare) = &self.prepare {
            prepare(&context, &mut statement)?;
        }
        // The preparation may have registered functions.
        let state = context.state();
        if !operator {
            self.refuse_restricted(&published, &state.resolve_table_references(&statement)?)?;
        }
        let plan = state.statement_to_plan(statement).await?;
        let read_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        read_only.verify_plan(&plan)?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        let schema = json::distinct_names(&stream.schema());
        let (batches, truncated) = self.collect(stream, &context).await?;
        let batches = batches
            .into_iter()
            .map(|batch| RecordBatch::try_new(schema.clone(), batch.columns().to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(DataFusionError::from)?;
        let head = Head { epoch: published.epoch, columns: column_list(&schema), truncated };
        Ok(json::body(&head, &batches).map_err(DataFusionError::from)?)
    }

    /// A session that has what the caller may see and nothing else, so that no part of SQL can reach the rest.
    fn session(&self, published: &Published, operator: bool) -> Result<SessionContext, DataFusionError> {
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_information_schema(true)
            .with_target_partitions(1);
        config.options_mut().sql_parser.collect_spans = true;
        let context = session::batch_within(config, self.environment.clone());
        for (name, view) in &published.views {
            context.register_table(TableReference::bare(name.as_str()), Arc::new(ViewTable(view.clone())))?;
        }
        if !operator {
            AMPLIFYING.iter().for_each(|function| {
                context.deregister_udf(function);
                context.deregister_udaf(function);
            });
            return Ok(context);
        }
        let catalog = context.catalog(CATALOG).expect("invariant: the default catalog");
        for (name, table) in &self.restricted {
            let schema_name = name.schema().unwrap_or(SCHEMA);
            if catalog.schema(schema_name).is_none() {
                let schema: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
                catalog.register_schema(schema_name, schema)?;
            }
            if !context.table_exist(name.clone())? {
                context.register_table(name.clone(), table.clone())?;
            }
        }
        Ok(context)
    }

    /// Says what is missing, where planning would say that there is no such table.
    fn refuse_restricted(&self, published: &Published, named: &[TableReference]) -> Result<(), Problem> {
        let full = |name: &TableReference| name.clone().resolve(CATALOG, SCHEMA);
        for name in named {
            let is_view =
                name.schema().is_none_or(|s| s == SCHEMA) && published.views.contains_key(name.table());
            if !is_view && self.restricted.iter().any(|(restricted, _)| full(restricted) == full(name)) {
                let detail = format!(
                    "{name} is not public, as {}: send the operator's token, printed at start, as `Authorization: Bearer TOKEN`",
                    self.restricted_hint
                );
                return Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
            }
        }
        Ok(())
    }

    /// The first rows up to the limit, and whether there are more. What is kept counts as the queries' memory.
    async fn collect(
        &self,
        mut stream: datafusion::execution::SendableRecordBatchStream,
        context: &SessionContext,
    ) -> Result<(Vec<RecordBatch>, bool), DataFusionError> {
        let memory = MemoryConsumer::new("answer").register(&context.runtime_env().memory_pool);
        let mut batches = Vec::new();
        let mut rows = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            let room = self.limits.rows_max - rows;
            let kept = batch.slice(0, room.min(batch.num_rows()));
            for column in kept.columns() {
                memory.try_grow(column.to_data().get_slice_memory_size()?)?;
            }
            rows += kept.num_rows();
            batches.push(kept);
            if batch.num_rows() > room {
                return Ok((batches, true));
            }
        }
        Ok((batches, false))
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

/// A query or the plan of one. The plan is checked again later; this says it in the user's words.
fn only_query(statement: &Statement) -> Result<(), Problem> {
    let query = match statement {
        Statement::Statement(statement) => matches!(**statement, ast::Statement::Query(_)),
        Statement::Explain(explain) => return only_query(&explain.statement),
        _ => false,
    };
    if query {
        return Ok(());
    }
    let detail = "only queries can be run here: SELECT, WITH, VALUES, or EXPLAIN of one; a view is a file in `queries/`";
    Err(Problem::new(StatusCode::BAD_REQUEST, detail))
}
