//! A query in a process of its own, from the server's side: starts it, gives it the rows that it asks for, takes
//! its answer, and ends it at the timeout, or when nobody waits for it any more.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::http::StatusCode;
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::process::{Pid, setpriority_process};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::OwnedSemaphorePermit;

use super::super::problem::{Problem, TOO_MUCH_MEMORY};
use super::wire::{self, Kind, Request, Scan};
use crate::engine::session;
use crate::error::Error;
use crate::snapshot::ViewSnapshot;

/// Rows of a view that are sent at once.
const BATCH_ROWS: usize = 32 << 10;

/// Scans of a query at one time: each holds rows here.
const SCANS_MAX: usize = 1024;

/// The program that runs a query, and its arguments.
#[derive(Clone, Debug)]
pub struct SqlProgram {
    program: OsString,
    arguments: Vec<OsString>,
}

impl SqlProgram {
    /// This program itself, also after its file was replaced.
    pub fn own() -> SqlProgram {
        SqlProgram::new("/proc/self/exe", ["sql-worker"])
    }

    /// A program that calls [`super::sql_worker`].
    pub fn new(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> SqlProgram {
        SqlProgram { program: program.into(), arguments: arguments.into_iter().map(Into::into).collect() }
    }

    /// Starts it, with our end of its standard input. It inherits no variable: they may hold secrets.
    fn start(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .arg0("tally-sql")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok((child, UnixStream::from_std(ours)?))
    }
}

/// The rows behind a table's name.
#[derive(Clone)]
pub enum Rows {
    /// A view as of one epoch.
    View(Arc<ViewSnapshot>),
    /// Whatever the provider reads.
    Provider(Arc<dyn TableProvider>),
}

impl Rows {
    /// Its columns.
    pub fn schema(&self) -> SchemaRef {
        match self {
            Rows::View(view) => view.info.schema.clone(),
            Rows::Provider(table) => table.schema(),
        }
    }
}

/// What a query has answered.
pub struct Answer {
    /// The rows, in the format that was asked for.
    pub body: Vec<u8>,
    /// Whether there are more.
    pub truncated: bool,
}

/// A query's process. Its place is free only when it has ended.
pub struct Process {
    child: Option<(Child, OwnedSemaphorePermit)>,
    socket: UnixStream,
}

impl Process {
    /// Starts a process that takes a place.
    pub fn start(program: &SqlProgram, place: OwnedSemaphorePermit) -> Result<Process, Problem> {
        let (child, socket) = program.start().map_err(|e| failed(&e))?;
        Ok(Process { child: Some((child, place)), socket })
    }

    /// Gives it the request and the rows that it asks for, until it answers. `rows` are those of the request's
    /// tables.
    pub async fn answer(
        &mut self,
        request: &Request,
        rows: &[Rows],
        answer_bytes_max: usize,
    ) -> Result<Answer, Problem> {
        let request_bytes = serde_json::to_vec(request).map_err(|e| failed(&io::Error::from(e)))?;
        match self.converse(&request_bytes, request.bytes_max, rows, answer_bytes_max).await {
            Ok(answer) => answer,
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the answer is larger than {answer_bytes_max} bytes; ask for fewer rows or columns"),
            )
            .titled("The answer is too large")),
            // The connection ends when the process does.
            Err(e) => Err(self.ended(request, &e).await),
        }
    }

    async fn converse(
        &mut self,
        request: &[u8],
        bytes_max: usize,
        rows: &[Rows],
        answer_bytes_max: usize,
    ) -> io::Result<Result<Answer, Problem>> {
        wire::send(&mut self.socket, Kind::Request, request).await?;
        let mut scans = Scans { rows, open: HashMap::new(), session: scanning(bytes_max)? };
        loop {
            let (kind, body) = wire::receive(&mut self.socket, answer_bytes_max).await?;
            match kind {
                Kind::Answer => return Ok(Ok(Answer { body, truncated: false })),
                Kind::Truncated => return Ok(Ok(Answer { body, truncated: true })),
                Kind::Problem => return Ok(Err(serde_json::from_slice(&body)?)),
                Kind::Next => {
                    let (kind, reply) = match scans.next(serde_json::from_slice(&body)?).await {
                        Ok(Some(batch)) => (Kind::Batch, batch),
                        Ok(None) => (Kind::End, Vec::new()),
                        Err(e) => (Kind::Failed, e.to_string().into_bytes()),
                    };
                    wire::send(&mut self.socket, kind, &reply).await?;
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Why there is no answer: how the process has ended.
    async fn ended(&mut self, request: &Request, error: &io::Error) -> Problem {
        let Some((child, _)) = &mut self.child else { return failed(error) };
        // It has closed its end; if it has not ended, it will not answer either.
        child.start_kill().ok();
        match child.wait().await {
            Ok(status) if killed_by_itself(status) => {
                let most = request.bytes_max >> 20;
                let detail =
                    format!("the query needs more memory than {most} MiB, or nests too deep; ask for less");
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).titled(TOO_MUCH_MEMORY)
            }
            Ok(status) => failed(&io::Error::other(format!("{error}; its process: {status}"))),
            Err(e) => failed(&e),
        }
    }
}

impl Drop for Process {
    /// Whoever waited has gone, or has an answer: the process ends now, and then its place is free.
    fn drop(&mut self) {
        let Some((mut child, place)) = self.child.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        child.id().inspect(|process| hasten(*process));
        runtime.spawn(async move {
            if let Err(e) = child.kill().await {
                tracing::warn!("ending the process of an ad-hoc query: {e}");
            }
            drop(place);
        });
    }
}

/// Gives a process the priority to end at once: at its own, on a busy machine, it would take its time. Not everybody
/// may; then it takes its time.
fn hasten(process: u32) {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return };
    for thread in threads.flatten() {
        let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(thread) = number.and_then(Pid::from_raw) {
            setpriority_process(Some(thread), 0).ok();
        }
    }
}

/// Refused memory and overflowed stacks end a process by these signals; the kernel, short of memory, by SIGKILL.
fn killed_by_itself(status: ExitStatus) -> bool {
    const SIGABRT: i32 = 6;
    const SIGBUS: i32 = 7;
    const SIGKILL: i32 = 9;
    const SIGSEGV: i32 = 11;
    matches!(status.signal(), Some(SIGABRT | SIGBUS | SIGKILL | SIGSEGV))
}

fn failed(error: &io::Error) -> Problem {
    tracing::error!("an ad-hoc query failed: {error}");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the query failed; the server's log says why")
}

/// The scans of a query, each where it is.
struct Scans<'a> {
    rows: &'a [Rows],
    open: HashMap<usize, BoxStream<'static, Result<RecordBatch, DataFusionError>>>,
    session: SessionContext,
}

impl Scans<'_> {
    /// The next batch of a scan, encoded.
    async fn next(&mut self, scan: Scan) -> Result<Option<Vec<u8>>, DataFusionError> {
        let id = scan.id;
        if !self.open.contains_key(&id) {
            if self.open.len() >= SCANS_MAX {
                return Err(DataFusionError::Execution(format!(
                    "at most {SCANS_MAX} tables are read at a time"
                )));
            }
            let stream = open(self.rows.get(scan.table).cloned(), scan, &self.session).await?;
            self.open.insert(id, stream);
        }
        let next = match self.open.get_mut(&id) {
            Some(stream) => stream.next().await,
            None => None,
        };
        match next {
            Some(batch) => {
                let batch = batch?;
                Ok(Some(blocking(move || Ok(wire::encode(&batch)?)).await?))
            }
            None => {
                self.open.remove(&id);
                Ok(None)
            }
        }
    }
}

/// The wanted part of a table.
async fn open(
    rows: Option<Rows>,
    scan: Scan,
    session: &SessionContext,
) -> Result<BoxStream<'static, Result<RecordBatch, DataFusionError>>, DataFusionError> {
    let Scan { table, projection, limit, .. } = scan;
    match rows {
        Some(Rows::View(view)) => {
            let batch = blocking(move || view_rows(&view, projection.as_deref())).await?;
            let rows = limit.unwrap_or(usize::MAX).min(batch.num_rows());
            let starts = (0..rows).step_by(BATCH_ROWS);
            let slice = move |start: usize| Ok(batch.slice(start, BATCH_ROWS.min(rows - start)));
            Ok(futures::stream::iter(starts.map(slice)).boxed())
        }
        Some(Rows::Provider(table)) => {
            let plan = table.scan(&session.state(), projection.as_ref(), &[], limit).await?;
            Ok(execute_stream(plan, session.task_ctx())?)
        }
        None => Err(DataFusionError::Execution(format!("there is no table {table}"))),
    }
}

/// A session for reading tables here: what they must hold for it counts as the query's memory too.
fn scanning(bytes_max: usize) -> io::Result<SessionContext> {
    let environment =
        RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes_max))).build_arc();
    let environment = environment.map_err(io::Error::other)?;
    Ok(SessionContext::new_with_config_rt(session::base_config(), environment))
}

fn view_rows(view: &ViewSnapshot, projection: Option<&[usize]>) -> Result<RecordBatch, DataFusionError> {
    let batch = view.batch().map_err(|e| match e {
        Error::DataFusion(e) => e,
        e => DataFusionError::External(Box::new(e)),
    })?;
    match projection {
        Some(columns) => Ok(batch.project(columns)?),
        None => Ok(batch),
    }
}

/// What takes a while for many rows does not hold up those who are answered.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DataFusionError> + Send + 'static,
) -> Result<T, DataFusionError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?
}
