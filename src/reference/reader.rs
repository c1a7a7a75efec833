//! The task that reads the reference tables: at the start, when a change is announced, and now and then. It
//! hands finished versions to the loop, which never waits for Postgres on their account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::store::ANYTHING;
use super::version::Wanted;
use super::{ReferenceStore, ReferenceTable, References};
use crate::error::{Error, Result};

/// After reading a table it is left alone for so many times as long as that took: one that changes all the time
/// is not read all the time.
const REST_PER_READING: u32 = 4;
/// An error that lasts is told so often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// How long the answer to LISTEN may take.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Versions that wait for the loop, and names that wait for the task.
const VERSIONS_AHEAD: usize = 1;
const NAMES_AHEAD: usize = 256;

/// When tables are read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// So long after a table was read, also when no change was announced.
    pub refresh: Duration,
    /// Changes within this time are read together.
    pub debounce: Duration,
    /// Wait before the second try; each further one waits twice as long, …
    pub retry_first: Duration,
    /// … but no longer than this.
    pub retry_max: Duration,
}

impl Pace {
    /// That of a server which has other work too.
    pub fn with_refresh(refresh: Duration) -> Self {
        Pace {
            // So far a clock can be counted on.
            refresh: refresh.min(Duration::from_secs(365 * 86_400)),
            debounce: Duration::from_millis(300),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

/// How the reading of a table goes.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// When the rows were asked for that were read last.
    pub read_at: Option<Instant>,
    /// Why the last reading failed, while it does.
    pub error: Option<String>,
}

/// The health of each table, for whoever wants to look.
pub type HealthReader = watch::Receiver<BTreeMap<String, Health>>;

/// The loop's end of the reading task, which ends when this is dropped.
pub struct ReferenceReader {
    versions: mpsc::Receiver<Arc<ReferenceTable>>,
    health: HealthReader,
    task: JoinHandle<()>,
}

impl Drop for ReferenceReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ReferenceReader {
    /// Listens for changes, then reads every table once, then starts the task. Each table is read again when a
    /// change is announced, and now and then. `readings`: numbers of earlier readings, after which these go on.
    pub async fn start(
        store: Arc<dyn ReferenceStore>,
        wanted: Vec<Wanted>,
        pace: Pace,
        readings: &BTreeMap<String, u64>,
    ) -> Result<(ReferenceReader, References)> {
        let (sender, versions) = mpsc::channel(VERSIONS_AHEAD);
        let (health, health_reader) = watch::channel(BTreeMap::new());
        let mut references = References::default();
        if wanted.is_empty() {
            // No version will ever come.
            let task = tokio::spawn(async {});
            return Ok((ReferenceReader { versions, health: health_reader, task }, references));
        }
        // Before the first reading: a change in between is not missed.
        let changes = store.changes().await?;
        let mut task = Task { store, pace, tables: BTreeMap::new(), health, sender };
        let first = |wanted: Wanted| {
            let number = readings.get(&wanted.def.name).map_or(1, |before| before + 1);
            read(Arc::clone(&task.store), Arc::new(wanted), None, number)
        };
        let mut first: FuturesUnordered<_> = wanted.into_iter().map(first).collect();
        while let Some(done) = first.next().await {
            let table = Arc::new(done.result?);
            references.set(Arc::clone(&table));
            task.took(table, done.begun);
        }
        let task = tokio::spawn(task.run(changes));
        Ok((ReferenceReader { versions, health: health_reader, task }, references))
    }

    /// The next version of some table; pending while there is none. Nothing is lost if this is dropped.
    pub async fn next(&mut self) -> Arc<ReferenceTable> {
        match self.versions.recv().await {
            Some(table) => table,
            None => std::future::pending().await,
        }
    }

    /// How the reading goes.
    pub fn health(&self) -> HealthReader {
        self.health.clone()
    }
}

struct Task {
    store: Arc<dyn ReferenceStore>,
    pace: Pace,
    tables: BTreeMap<String, Table>,
    health: watch::Sender<BTreeMap<String, Health>>,
    sender: mpsc::Sender<Arc<ReferenceTable>>,
}

/// A table that is read again and again.
struct Table {
    /// As it was read last.
    newest: Arc<ReferenceTable>,
    /// When it is to be read, unless it is being read.
    due: Instant,
    /// An announced change makes it due no earlier than this.
    rested: Instant,
    is_being_read: bool,
    /// Whether a change was announced while it was being read: the reading may have missed it.
    is_stale: bool,
    failures: Failures,
}

/// Failed tries in a row.
#[derive(Default)]
struct Failures {
    count: u32,
    told_at: Option<Instant>,
}

/// One reading and what came of it.
struct Reading {
    name: String,
    begun: Instant,
    result: Result<ReferenceTable>,
}

impl Task {
    async fn run(mut self, changes: mpsc::Receiver<String>) {
        let sender = self.sender.clone();
        let (announce, mut announced) = mpsc::channel(NAMES_AHEAD);
        let listening = tokio::spawn(listen(Arc::clone(&self.store), self.pace, changes, announce));
        let mut readings: FuturesUnordered<BoxFuture<'static, Reading>> = FuturesUnordered::new();
        // Versions that the loop has not taken yet; a newer one takes an older one's place.
        let mut finished: BTreeMap<String, Arc<ReferenceTable>> = BTreeMap::new();
        loop {
            let now = Instant::now();
            let due = |table: &&mut Table| !table.is_being_read && table.due <= now;
            for table in self.tables.values_mut().filter(due) {
                table.is_being_read = true;
                let newest = Arc::clone(&table.newest);
                let number = newest.version.reading + 1;
                readings.push(read(Arc::clone(&self.store), newest.wanted(), Some(newest), number).boxed());
            }
            let next_due = self.tables.values().filter(|table| !table.is_being_read).map(|t| t.due).min();
            tokio::select! {
                Some(done) = readings.next(), if !readings.is_empty() => {
                    if let Some(table) = self.done(done) {
                        finished.insert(table.name().to_owned(), table);
                    }
                }
                permit = sender.reserve(), if !finished.is_empty() => {
                    let (Ok(permit), Some((_, table))) = (permit, finished.pop_first()) else { break };
                    permit.send(table);
                }
                Some(name) = announced.recv() => self.announced(&name),
                () = sleep_until(next_due.unwrap_or(now)), if next_due.is_some() => {}
                () = sender.closed() => break,
            }
        }
        listening.abort();
    }

    /// Notes that a table has changed.
    fn announced(&mut self, name: &str) {
        let changed = |known: &&mut Table| name == ANYTHING || known.newest.name() == name;
        for table in self.tables.values_mut().filter(changed) {
            if table.is_being_read {
                table.is_stale = true;
            } else if table.failures.count == 0 {
                // One that fails is read when its backoff is over.
                table.due = table.due.min(table.rested.max(Instant::now() + self.pace.debounce));
            }
        }
    }

    /// Takes a reading into account; the version that the loop should have.
    fn done(&mut self, done: Reading) -> Option<Arc<ReferenceTable>> {
        match done.result {
            Ok(table) => {
                let table = Arc::new(table);
                self.took(Arc::clone(&table), done.begun);
                Some(table)
            }
            Err(error) => {
                self.failed(&done.name, &error);
                None
            }
        }
    }

    fn took(&mut self, newest: Arc<ReferenceTable>, begun: Instant) {
        let (name, now) = (newest.name().to_owned(), Instant::now());
        let rested = now + (now - begun) * REST_PER_READING;
        let before = self.tables.remove(&name);
        let due = match &before {
            Some(table) if table.is_stale => rested.max(now + self.pace.debounce),
            _ => now + self.pace.refresh,
        };
        if before.is_some_and(|table| table.failures.count > 0) {
            info!("reference table {name} is read again");
        }
        self.health.send_modify(|health| {
            health.insert(name.clone(), Health { read_at: Some(begun), error: None });
        });
        let failures = Failures::default();
        let table = Table { newest, due, rested, is_being_read: false, is_stale: false, failures };
        self.tables.insert(name, table);
    }

    fn failed(&mut self, name: &str, error: &Error) {
        let Some(table) = self.tables.get_mut(name) else { return };
        table.is_being_read = false;
        table.is_stale = false;
        if table.failures.is_to_be_told() {
            let age = table.newest.read_at.elapsed().as_secs();
            warn!("reference table {name} is {age} s old: {error}; trying again");
        }
        table.due = Instant::now() + table.failures.failed(self.pace);
        self.health
            .send_modify(|health| health.entry(name.into()).or_default().error = Some(error.to_string()));
    }
}

impl Failures {
    /// Notes one; how long to wait before the next try.
    fn failed(&mut self, pace: Pace) -> Duration {
        let wait = pace.retry_first.saturating_mul(1 << self.count.min(16)).min(pace.retry_max);
        self.count += 1;
        wait
    }

    /// Whether it was not told lately.
    fn is_to_be_told(&mut self) -> bool {
        let is_due = self.told_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if is_due {
            self.told_at = Some(Instant::now());
        }
        is_due
    }
}

/// Reads a table once; the reading has this number if it brings other rows than the newest.
async fn read(
    store: Arc<dyn ReferenceStore>,
    wanted: Arc<Wanted>,
    newest: Option<Arc<ReferenceTable>>,
    number: u64,
) -> Reading {
    let (name, begun) = (wanted.def.name.clone(), Instant::now());
    let result = async {
        let batches = store.load(&wanted.def, &wanted.columns).await?;
        let index = move || match newest {
            Some(newest) if newest.has_rows(&batches) => Ok(newest.read_again(begun)),
            _ => ReferenceTable::new(wanted, batches, number, begun),
        };
        // Indexing millions of rows would hold up whatever else this thread has to do.
        let indexed = tokio::task::spawn_blocking(index).await;
        indexed.map_err(|e| Error::postgres("indexing a reference table", e))?
    };
    Reading { result: result.await, name, begun }
}

/// Passes the names of changed tables on; listens again when the store has ended that.
async fn listen(
    store: Arc<dyn ReferenceStore>,
    pace: Pace,
    mut changes: mpsc::Receiver<String>,
    announce: mpsc::Sender<String>,
) {
    let mut failures = Failures::default();
    loop {
        while let Some(name) = changes.recv().await {
            if announce.send(name).await.is_err() {
                return;
            }
        }
        changes = loop {
            match timeout(LISTEN_TIMEOUT, store.changes()).await {
                Ok(Ok(changes)) => break changes,
                Ok(Err(error)) if failures.is_to_be_told() => {
                    warn!("changes of reference tables are not heard: {error}; trying again");
                }
                Err(_) if failures.is_to_be_told() => {
                    warn!("changes of reference tables are not heard: no answer; trying again");
                }
                _ => {}
            }
            tokio::time::sleep(failures.failed(pace)).await;
        };
        failures = Failures::default();
        if announce.send(ANYTHING.to_owned()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
