//! The HTTP side: the dashboard, the views, ad-hoc SQL and the status. It reads published snapshots and
//! never the engine's state; nothing here writes anywhere.

mod assets;
mod auth;
mod changes;
mod connections;
mod describe;
mod embed;
mod feed;
mod formats;
mod hosts;
mod json;
mod metrics;
mod openapi;
mod page;
mod problem;
mod readers;
mod router;
mod sql;
mod status;
mod views;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::warn;

use crate::error::{Error, Result};
use crate::release;
use crate::shutdown::Shutdown;
use crate::snapshot;

use hosts::Hosts;
use router::router;

pub use connections::ConnectionLimits;
pub use problem::Problem;
pub use sql::{SqlLimits, SqlProgram, SqlTables, sql_worker};

/// Longest that open requests may go on after a shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads that answer requests.
const SERVER_THREADS: usize = 2;

/// Their priority, lower than that of the threads that count: however much is asked, the count goes on.
const NICENESS: i32 = 5;

/// Everything that is served.
pub struct App {
    /// Views and status, as of the newest micro-batch.
    pub published: snapshot::Reader,
    /// When the public sees what of them.
    pub policy: release::Policy,
    /// What ad-hoc SQL can read beside the views.
    pub tables: SqlTables,
    /// Runs a query of ad-hoc SQL.
    pub program: SqlProgram,
    /// What `Authorization: Bearer` must hold to be the operator.
    pub token: String,
    /// Directory of the dashboard's files; without it, those built into the binary.
    pub web_dir: Option<PathBuf>,
    /// Limits of ad-hoc SQL.
    pub limits: SqlLimits,
    /// Limits of connections.
    pub connections: ConnectionLimits,
    /// Names under which the server is asked, beside localhost and addresses.
    pub hosts: Vec<String>,
    /// More routes, under the same layers. It must have no fallback of its own.
    pub extra: axum::Router,
}

/// Opens the socket. The second value is the real address, also when port 0 was asked for.
pub async fn bind(listen: &str) -> Result<(TcpListener, SocketAddr)> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::Config(format!(
            "{listen} is taken by another program; stop that, or let Tally take any free port: `--listen 127.0.0.1:0`"
        )),
        std::io::ErrorKind::PermissionDenied => Error::Config(format!(
            "{listen} is not allowed to this user; take a port from 1024 on, for example `--listen 127.0.0.1:8080`"
        )),
        std::io::ErrorKind::AddrNotAvailable => Error::Config(format!(
            "{listen} is no address of this machine; 127.0.0.1 serves this machine only, 0.0.0.0 every network"
        )),
        _ => Error::Io { action: format!("listening on {listen}"), source },
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Serves as [`run`] does, on threads of its own: what the engine does or waits for holds up no answer. The future
/// is ready when the server has ended.
pub fn run_in_thread(
    listener: TcpListener,
    app: App,
    shutdown: Shutdown,
) -> Result<impl Future<Output = Result<()>>> {
    let io = |action: &str| {
        let action = action.to_string();
        move |source| Error::Io { action, source }
    };
    let listener = listener.into_std().map_err(io("listening for HTTP"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .thread_name("http")
        .on_thread_start(|| {
            // Of this thread, as Linux counts it.
            if let Err(e) = rustix::process::setpriority_process(None, NICENESS) {
                warn!("the server's threads keep their priority: {e}");
            }
        })
        .enable_all()
        .build()
        .map_err(io("starting the server's threads"))?;
    let (ended, end) = tokio::sync::oneshot::channel();
    let serve = move || {
        let result = runtime.block_on(async {
            let listener = TcpListener::from_std(listener).map_err(io("listening for HTTP"))?;
            run(listener, app, shutdown).await
        });
        // A query that goes on is not waited for.
        runtime.shutdown_background();
        ended.send(result).ok();
    };
    std::thread::Builder::new().name("server".into()).spawn(serve).map_err(io("starting the server"))?;
    Ok(async move { end.await.unwrap_or_else(|_| Err(Error::Limit("the server has panicked".into()))) })
}

/// Serves until `shutdown`, then lets open requests end, but not for long.
pub async fn run(listener: TcpListener, app: App, shutdown: Shutdown) -> Result<()> {
    let address =
        listener.local_addr().map_err(|source| Error::Io { action: "serving HTTP".into(), source })?;
    let (hosts, limits) = (Hosts::new(&app.hosts, address), app.connections.within_open_files());
    let server = connections::serve(listener, router(app, hosts, shutdown.clone()), limits, shutdown.clone());
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        () = server => {}
        () = overdue => {
            warn!("some requests were still open {} s after the shutdown began; they are cut off", DRAIN_TIMEOUT.as_secs());
        }
    }
    Ok(())
}
