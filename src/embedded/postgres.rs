//! A private, throw-away Postgres on loopback: a fresh cluster in a temporary directory, a random password,
//! a free port, the database `voting`. Nothing of it is left when it stops. Not for data worth keeping: it
//! never syncs to disk.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

use super::account::Account;
use super::binaries::Binaries;
use super::server::{LOG, Server, tie_to_this_process};
use crate::error::{Error, Result};

const DATABASE: &str = "voting";
const USER: &str = "postgres";
/// Directories are called this, then the process's id, so that a later run can clear up after a dead one.
const PREFIX: &str = "tally-pg-";
/// Between choosing a port and Postgres's taking it, another process may take it.
const PORT_TRIES: usize = 5;
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const READY_POLL: Duration = Duration::from_millis(20);
/// Settings for data that may be lost with the process: nothing waits for the disk.
const SETTINGS: [&str; 14] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=50",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=4GB",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",
    "logging_collector=off",
    "log_min_messages=warning",
];

/// A running private Postgres. [`Postgres::stop`] ends it in order; dropping it ends it at once. Either
/// removes its directory. It dies with this process even on `kill -9`; the next run then removes what is left.
pub struct Postgres {
    url: String,
    // Before the directory: fields are dropped in order, and the process writes there.
    server: Server,
    directory: TempDir,
}

impl Postgres {
    /// Starts one. `note` is given a line for the user when something takes long, such as a download.
    pub async fn start(note: &dyn Fn(&str)) -> Result<Postgres> {
        let account = Account::for_this_process()?;
        let binaries = Binaries::find(&account, note).await?;
        Postgres::start_with(binaries, account).await
    }

    async fn start_with(binaries: Binaries, account: Account) -> Result<Postgres> {
        let cluster = blocking(move || Cluster::create(binaries, account)).await?;
        let mut reason = String::new();
        for _ in 0..PORT_TRIES {
            let port = free_port()?;
            let server = Server::spawn(cluster.server(port)?, cluster.directory.path())?;
            let options = cluster.connect_options(port);
            match create_database(&server, &options).await {
                Ok(()) => {
                    let url = format!("postgres://{USER}:{}@127.0.0.1:{port}/{DATABASE}", cluster.password);
                    return Ok(Postgres { url, server, directory: cluster.directory });
                }
                Err(e) => reason = e,
            }
            if !reason.contains("Address already in use") {
                break;
            }
        }
        Err(Error::postgres("starting the private server", reason))
    }

    /// Its address, postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Disconnects the clients, ends the server, and removes its directory.
    pub async fn stop(self) -> Result<()> {
        let Postgres { server, directory, .. } = self;
        blocking(move || {
            server.stop();
            let path = directory.path().to_owned();
            directory.close().map_err(|e| Error::io("removing", &path, e))
        })
        .await
    }
}

/// A cluster's files, and what it takes to run a server on them.
struct Cluster {
    directory: TempDir,
    binaries: Binaries,
    account: Account,
    password: String,
}

impl Cluster {
    /// Makes an empty cluster. Takes seconds.
    fn create(binaries: Binaries, account: Account) -> Result<Cluster> {
        let parent = parent_directory(&account);
        remove_stale(&parent);
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(|e| {
                Error::Config(format!(
                    "no directory for the private Postgres can be made in {} ({}); set TMPDIR to one that you may write to",
                    parent.display(),
                    e.kind()
                ))
            })?;
        account.own(directory.path())?;
        let password = format!("{:032x}", rand::random::<u128>());
        let cluster = Cluster { directory, binaries, account, password };
        cluster.init()?;
        Ok(cluster)
    }

    fn init(&self) -> Result<()> {
        let password_file = self.path("password");
        write_private(&password_file, &self.password).map_err(|e| Error::io("writing", &password_file, e))?;
        self.account.own(&password_file)?;
        let mut command = self.command("initdb");
        tie_to_this_process(&mut command, Signal::TERM);
        command.arg("-D").arg(self.path("data")).arg("--pwfile").arg(&password_file);
        command.args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let output =
            command.output().map_err(|e| Error::io("running", &self.binaries.program("initdb"), e))?;
        fs::remove_file(&password_file).map_err(|e| Error::io("removing", &password_file, e))?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(Error::postgres(
            format!("creating a private cluster with {}", self.binaries.program("initdb").display()),
            reason.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join(" | "),
        ))
    }

    /// The command that runs a server on `port`.
    fn server(&self, port: u16) -> Result<Command> {
        let path = self.path(LOG);
        let log = File::create(&path).map_err(|e| Error::io("creating", &path, e))?;
        let errors = log.try_clone().map_err(|e| Error::io("opening", &path, e))?;
        let mut command = self.command("postgres");
        // SIGQUIT is Postgres's immediate shutdown: it takes its own children with it.
        tie_to_this_process(&mut command, Signal::QUIT);
        command.arg("-D").arg(self.path("data")).args(["-p", &port.to_string()]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        command.stdout(log).stderr(errors);
        Ok(command)
    }

    /// A program of Postgres's, run as its account and untouched by the user's own Postgres settings.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").current_dir(self.directory.path()).stdin(Stdio::null());
        self.account.apply(&mut command);
        command
    }

    fn connect_options(&self, port: u16) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username(USER)
            .password(&self.password)
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Waits until the server answers, and creates the database. The error is a reason for the user.
async fn create_database(server: &Server, options: &PgConnectOptions) -> Result<(), String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut connection = loop {
        if server.exited() {
            return Err(format!("it ended at once; {}", server.log_tail()));
        }
        // If another process took the port, it may accept the connection and never say a word.
        let attempt = tokio::time::timeout(ATTEMPT_TIMEOUT, PgConnection::connect_with(options)).await;
        match attempt.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())) {
            Ok(connection) => break connection,
            Err(e) if Instant::now() > deadline => {
                return Err(format!(
                    "no answer within {} s ({e}); {}",
                    READY_TIMEOUT.as_secs(),
                    server.log_tail()
                ));
            }
            Err(_) => tokio::time::sleep(READY_POLL).await,
        }
    };
    let created = sqlx::raw_sql("CREATE DATABASE voting").execute(&mut connection).await;
    created.map_err(|e| format!("creating database {DATABASE} failed: {e}; {}", server.log_tail()))?;
    // The answer is had; a server that dislikes the goodbye changes nothing.
    let _ = connection.close().await;
    Ok(())
}

/// The system's temporary directory, or `/tmp` if TMPDIR names one that is closed to `account`.
fn parent_directory(account: &Account) -> PathBuf {
    let directory = env::temp_dir();
    if account.reaches(&directory) { directory } else { "/tmp".into() }
}

/// Removes the directories of runs that died without removing them.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !alive(pid)) {
            // What another user left is for them to remove.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process whose directory has this name.
fn owner(name: &str) -> Option<Pid> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}

fn alive(pid: Pid) -> bool {
    // Anything but "no such process" (such as "not permitted") means that there is one.
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| Error::Io { action: "finding a free port on 127.0.0.1".into(), source })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// Runs what blocks on a thread for that; it runs to its end even if the caller goes away, so that it
/// clears up after itself.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::postgres("running the private server", e)))
}

#[cfg(test)]
mod tests;
