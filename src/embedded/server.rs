//! The Postgres process: a thread of its own starts it, watches it and ends it, so that every signal goes
//! to a process that is surely still ours, and Postgres dies with us however we die.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};

/// Postgres's own log, in its directory.
pub(super) const LOG: &str = "postgres.log";

/// Lines of the log that an error shows.
const LOG_LINES: usize = 5;
/// Read at most this much of the log's end.
const LOG_BYTES_MAX: u64 = 8 << 10;
const POLL: Duration = Duration::from_millis(20);
/// How long Postgres may take to disconnect clients and write its buffers.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to end without writing anything.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A Postgres process; dropping it ends the process at once.
pub(super) struct Server {
    stop: Option<SyncSender<()>>,
    exited: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Server {
    /// Starts `command` from a thread that lives as long as the process: the kernel tells a child of its
    /// parent's death when the *thread* that started it ends.
    pub(super) fn spawn(mut command: Command, directory: &Path) -> Result<Server> {
        let program = command.get_program().to_owned();
        let failed = |e| Error::io("starting", Path::new(&program), e);
        let log = directory.join(LOG);
        let (started, answer) = sync_channel(1);
        let (stop, requests) = sync_channel(1);
        let exited = Arc::new(AtomicBool::new(false));
        let keeper = thread::Builder::new()
            .name("postgres".into())
            .spawn({
                let (exited, log) = (exited.clone(), log.clone());
                move || match command.spawn() {
                    Ok(child) => {
                        let _ = started.send(Ok(()));
                        keep(child, &requests, &log);
                        exited.store(true, Ordering::Release);
                    }
                    Err(e) => {
                        let _ = started.send(Err(e));
                    }
                }
            })
            .map_err(failed)?;
        answer.recv().unwrap_or_else(|_| Err(std::io::Error::other("its thread ended"))).map_err(failed)?;
        Ok(Server { stop: Some(stop), exited, keeper: Some(keeper), log })
    }

    /// Whether the process has ended.
    pub(super) fn exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Disconnects the clients, ends the process in order, and waits for it.
    pub(super) fn stop(mut self) {
        if let Some(stop) = &self.stop {
            // An error means that it has ended already.
            let _ = stop.send(());
        }
        self.join();
    }

    fn join(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.join();
    }
}

/// Prepares a command to die with this process (by `signal`, where the system can do that) and to be left
/// alone by the terminal's Ctrl-C, which is for us: we stop Postgres ourselves, after its last client.
#[allow(unsafe_code)] // pre_exec: the closure makes two system calls and neither allocates nor locks
pub(super) fn tie_to_this_process(command: &mut Command, signal: Signal) {
    command.process_group(0);
    let parent = rustix::process::getpid();
    let tie = move || {
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        let _ = signal;
        // Our process may have died before the line above.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are.
    unsafe { command.pre_exec(tie) };
}

/// Waits for the end of the process, or for the request to end it: in order on a message, at once when
/// the sender is gone.
fn keep(mut child: Child, requests: &Receiver<()>, log: &Path) {
    loop {
        match requests.recv_timeout(POLL) {
            Ok(()) => return end(&mut child, &[(Signal::INT, STOP_TIMEOUT), (Signal::QUIT, ABORT_TIMEOUT)]),
            Err(RecvTimeoutError::Disconnected) => return end(&mut child, &[(Signal::QUIT, ABORT_TIMEOUT)]),
            Err(RecvTimeoutError::Timeout) => {
                if let Ok(Some(status)) = child.try_wait() {
                    tracing::warn!("the private Postgres ended ({status}): {}", log_tail(log));
                    return;
                }
            }
        }
    }
}

fn end(child: &mut Child, signals: &[(Signal, Duration)]) {
    for (signal, timeout) in signals {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // It fails only if the process has ended, which the wait below sees.
            let _ = kill_process(pid, *signal);
        }
        let deadline = Instant::now() + *timeout;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => thread::sleep(POLL / 4),
                _ => return,
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn log_tail(log: &Path) -> String {
    let mut text = Vec::new();
    let read = fs::File::open(log).and_then(|mut file| {
        use std::io::{Seek, SeekFrom};
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
        file.take(LOG_BYTES_MAX).read_to_end(&mut text)
    });
    if read.is_err() || text.is_empty() {
        return "its log is empty".into();
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    format!("the log ends with: {}", lines[lines.len().saturating_sub(LOG_LINES)..].join(" | "))
}
