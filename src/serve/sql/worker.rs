//! The process that runs one query and ends: `tally sql-worker`. Whatever a query does to memory or time it does
//! to this process, which has limits of its own and the lowest priority, holds no secret and no connection, and
//! can be killed at any moment.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use axum::http::StatusCode;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, Session, TableProvider};
use datafusion::common::{TableReference, project_schema};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use serde::Serialize;

use super::super::json::{ColumnInfo, column_list, distinct_names};
use super::super::problem::Problem;
use super::wire::{self, Kind, Request, Scan, TableFailed};
use crate::engine::session;
use crate::engine::windows::{self, Sessions};
use crate::guard;

const CATALOG: &str = "datafusion";
const SCHEMA: &str = "public";

/// Stack of the query's thread, touched only as far as used. Some recursions of the planner have no guard: this
/// holds the deepest query that the server takes.
const STACK_BYTES: usize = 256 << 20;

/// Open files: the socket, and what the runtime needs.
const FILES_MAX: u64 = 64;

/// The lowest priority: any other work of the machine goes first.
const NICENESS: i32 = 19;

/// Runs the query that the server sends to standard input.
pub fn run() -> ExitCode {
    // The server is told of a failure by the end of the connection, and sees how this process ended.
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer() -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (kind, bytes) = wire::read(&mut socket)?;
    if kind != Kind::Request {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let request: Request = serde_json::from_slice(&bytes)?;
    let server = Arc::new(Server::start(socket)?);
    let answering = Arc::clone(&server);
    let work = move || -> io::Result<(Kind, Vec<u8>)> {
        // After the thread has its stack: that is no memory of the query's.
        limit(&request)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(runtime.block_on(Query { server: answering, request }.answer()))
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
    let (kind, bytes) = thread.join().map_err(|_| io::Error::other("the query panicked"))??;
    server.tell(kind, &bytes)
}

/// What this process may take from now on. A query over its memory ends the process, as memory is refused to it.
fn limit(request: &Request) -> io::Result<()> {
    let at_most = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    setpriority_process(None, NICENESS)?;
    setrlimit(Resource::Core, at_most(0))?;
    setrlimit(Resource::Fsize, at_most(0))?;
    setrlimit(Resource::Nofile, at_most(FILES_MAX))?;
    // The server kills the process at the timeout; this is for when there is no server any more.
    setrlimit(Resource::Cpu, at_most(request.timeout.as_secs() + 2))?;
    setrlimit(Resource::Data, at_most(data_bytes()? + request.bytes_max as u64))?;
    Ok(())
}

/// Bytes of writable memory that this process has, as the kernel counts them for its limit.
fn data_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

type Message = (Kind, Vec<u8>);

/// The server's end: it has the tables' rows.
#[derive(Debug)]
struct Server {
    /// What it is told, and what it replies.
    connection: Mutex<(UnixStream, Receiver<Message>)>,
    scans: AtomicUsize,
}

impl Server {
    /// Reads in a thread of its own: when the server goes away, this process ends at once.
    fn start(socket: UnixStream) -> io::Result<Server> {
        let mut reader = socket.try_clone()?;
        let (sender, replies) = sync_channel::<Message>(1);
        std::thread::Builder::new().spawn(move || {
            while let Ok(message) = wire::read(&mut reader) {
                if sender.send(message).is_err() {
                    return;
                }
            }
            std::process::exit(1);
        })?;
        Ok(Server { connection: Mutex::new((socket, replies)), scans: AtomicUsize::new(0) })
    }

    fn tell(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        wire::write(&mut connection.0, kind, bytes)
    }

    /// The next batch of a scan. Nothing else is to be done meanwhile, so the thread waits.
    fn next(&self, scan: &Scan) -> Result<Option<RecordBatch>> {
        let mut connection = self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (socket, replies) = &mut *connection;
        let scan = serde_json::to_vec(scan).map_err(|e| DataFusionError::External(Box::new(e)))?;
        wire::write(socket, Kind::Next, &scan)?;
        let (kind, bytes) = replies.recv().map_err(|_| gone())?;
        match kind {
            Kind::Batch => Ok(Some(wire::decode(&bytes)?)),
            Kind::End => Ok(None),
            Kind::Failed => {
                let reason = String::from_utf8_lossy(&bytes).into_owned();
                Err(DataFusionError::External(Box::new(TableFailed(reason))))
            }
            _ => Err(gone()),
        }
    }
}

fn gone() -> DataFusionError {
    DataFusionError::External(Box::new(TableFailed("the server does not answer".into())))
}

/// A table whose rows the server has.
#[derive(Clone, Debug)]
struct RemoteTable {
    server: Arc<Server>,
    position: usize,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for RemoteTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = project_schema(&self.schema, projection)?;
        let scan = RemoteScan {
            table: self.clone(),
            schema: Arc::clone(&schema),
            projection: projection.cloned(),
            limit,
        };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, [], false, limit)?))
    }
}

#[derive(Debug)]
struct RemoteScan {
    table: RemoteTable,
    schema: SchemaRef,
    projection: Option<Vec<usize>>,
    limit: Option<usize>,
}

impl PartitionStream for RemoteScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let server = Arc::clone(&self.table.server);
        let scan = Scan {
            id: server.scans.fetch_add(1, Ordering::Relaxed),
            table: self.table.position,
            projection: self.projection.clone(),
            limit: self.limit,
        };
        let batches = std::iter::from_fn(move || server.next(&scan).transpose()).fuse();
        let batches = futures::stream::iter(batches);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

#[derive(Serialize)]
struct Head {
    epoch: u64,
    columns: Vec<ColumnInfo>,
    truncated: bool,
}

struct Query {
    server: Arc<Server>,
    request: Request,
}

impl Query {
    async fn answer(&self) -> (Kind, Vec<u8>) {
        let mut problem = None;
        let answer = guard::catch_async(async {
            self.run().await.or_else(|e| {
                problem = Some(e);
                Ok((Kind::Problem, Vec::new()))
            })
        });
        let answer = answer.await;
        match (answer, problem) {
            (Ok(answer), None) => answer,
            (Ok(_), Some(problem)) => (Kind::Problem, problem.to_json()),
            (Err(panic), _) => (Kind::Problem, Problem::sql(&panic).to_json()),
        }
    }

    async fn run(&self) -> Result<(Kind, Vec<u8>), Problem> {
        let context = self.session().await?;
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(&self.request.query, &dialect)?;
        only_query(&statement)?;
        windows::rewrite(&mut statement, Sessions::Batch)?;
        self.refuse_hidden(&context, &state.resolve_table_references(&statement)?)?;
        let plan = state.statement_to_plan(statement).await?;
        let read_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        read_only.verify_plan(&plan)?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        let schema = distinct_names(&stream.schema());
        let (batches, truncated) = self.collect(stream, &context).await?;
        let batches = batches
            .into_iter()
            .map(|batch| RecordBatch::try_new(schema.clone(), batch.columns().to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(DataFusionError::from)?;
        let head = Head { epoch: self.request.epoch, columns: column_list(&schema), truncated };
        let body = self.request.format.body(&head, &schema, &batches).map_err(DataFusionError::from)?;
        Ok((if truncated { Kind::Truncated } else { Kind::Answer }, body))
    }

    /// A session that has what the caller may see and nothing else, so that no part of SQL can reach the rest.
    async fn session(&self) -> Result<SessionContext> {
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_information_schema(true)
            .with_target_partitions(1);
        config.options_mut().sql_parser.collect_spans = true;
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(self.request.bytes_max)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let context = session::batch_within(config, environment);
        let catalog = context.catalog(CATALOG).expect("invariant: the default catalog");
        for (position, table) in self.request.tables.iter().enumerate() {
            let name = TableReference::from(table.name.as_str());
            if let Some(schema) = name.schema().filter(|schema| catalog.schema(schema).is_none()) {
                let provider: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
                catalog.register_schema(schema, provider)?;
            }
            let table =
                RemoteTable { server: Arc::clone(&self.server), position, schema: Arc::clone(&table.schema) };
            context.register_table(name, Arc::new(table))?;
        }
        // A view that reads what the caller may not see can't be planned: to the caller there is none.
        session::register_plain_views(&context, &self.request.plain_views).await?;
        Ok(context)
    }

    /// Says what is missing, where planning would say that there is no such table.
    fn refuse_hidden(&self, context: &SessionContext, named: &[TableReference]) -> Result<(), Problem> {
        let full = |name: TableReference| name.resolve(CATALOG, SCHEMA);
        let hidden: BTreeSet<_> =
            self.request.hidden.iter().map(|name| full(TableReference::from(name.as_str()))).collect();
        for name in named {
            // A schema that the caller does not see is an error here.
            let is_there = context.table_exist(name.clone()).is_ok_and(|there| there);
            if hidden.contains(&full(name.clone())) && !is_there {
                let detail = format!(
                    "{name} is not public, as {}: send the operator's token, printed at start, as `Authorization: Bearer TOKEN`",
                    self.request.hidden_hint
                );
                return Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
            }
        }
        Ok(())
    }

    /// The first rows up to the limit, and whether there are more. What is kept counts as the query's memory.
    async fn collect(
        &self,
        mut stream: SendableRecordBatchStream,
        context: &SessionContext,
    ) -> Result<(Vec<RecordBatch>, bool)> {
        let memory = MemoryConsumer::new("answer").register(&context.runtime_env().memory_pool);
        let mut batches = Vec::new();
        let mut rows = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            let room = self.request.rows_max - rows;
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

/// A query, its plan, or a list of what there is. The plan is checked again later; this says it in the user's words.
fn only_query(statement: &Statement) -> Result<(), Problem> {
    let query = match statement {
        Statement::Statement(statement) => matches!(
            **statement,
            ast::Statement::Query(_)
                | ast::Statement::ShowTables { .. }
                | ast::Statement::ShowColumns { .. }
                | ast::Statement::ShowFunctions { .. }
                | ast::Statement::ExplainTable { .. }
        ),
        Statement::Explain(explain) => return only_query(&explain.statement),
        _ => false,
    };
    if query {
        return Ok(());
    }
    let detail = "only queries can be run here: SELECT, WITH, VALUES, EXPLAIN of one, SHOW TABLES, SHOW COLUMNS, \
                  SHOW FUNCTIONS, DESCRIBE; a view is a file in `queries/`";
    Err(Problem::new(StatusCode::BAD_REQUEST, detail))
}
