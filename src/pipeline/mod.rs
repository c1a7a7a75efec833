//! The loop: poll → decode → look up → execute → commit → publish. The only place that knows every stage.
//!
//! It begins where the epoch log ends: `recovery.rs` executes once more what is there. Each source is polled by a thread of its own, so that receiving goes on while an epoch is executed; the
//! reference tables are read by a task of their own. While Kafka or Postgres give no answer the loop waits, says
//! so, and goes on by itself: only a signal and `state_bytes_max` end it.

pub mod audit;
mod checkpoint;
mod commit;
mod held;
mod log;
mod open;
mod poll;
mod progress;
mod recovery;
mod samples;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::log::{Log, take_over};
pub use self::open::{plan, reads_postgres};

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use tokio::sync::mpsc;

use self::commit::Said;
use self::held::Held;
use self::poll::Pollers;
use self::status::Publisher;
use crate::checkpoint::Checkpoints;
use crate::epoch::{Batch, EpochInput, Executor};
use crate::epoch_log::{Definitions, Kind, TableChange};
use crate::error::{Error, Result};
use crate::history::CountedMessages;
use crate::ingest::Missing;
use crate::outage::OutageLog;
use crate::reference::{ReferenceReader, ReferenceStore, ReferenceTable, References};
use crate::shutdown::Shutdown;
use crate::sink::{Record, Sink};
use crate::snapshot::Reader;
use crate::source::{History, Polled, Source, Topics};

/// Micro-batches that wait for the engine while it computes; more would only cost memory.
const BATCHES_AHEAD: usize = 2;
/// How often the status is published and failed views are tried again when nothing happens.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// How long Postgres is left alone before a lookup is tried again.
const LOOKUP_RETRY: Duration = Duration::from_secs(2);
/// A lookup that takes longer is an outage, though its answer is still waited for, …
const LOOKUP_PATIENCE: Duration = Duration::from_secs(1);
/// … up to this time: then it is asked again.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(60);

/// How much the loop takes at once, and how much it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most messages of a micro-batch.
    pub batch_rows: usize,
    /// Longest that a message waits for others.
    pub trigger: Duration,
    /// Most bytes of state; 0: no limit.
    pub state_bytes_max: usize,
}

/// The stages, each in whichever version: Kafka's and Postgres's, or those in memory.
pub struct Stages {
    /// In the order of the executor's; each goes on where the log says that it was.
    pub sources: Vec<Box<dyn Source>>,
    /// The same topics, from where their counting began.
    pub histories: Vec<Box<dyn History>>,
    /// Where missing rows of reference tables are looked up.
    pub store: Arc<dyn ReferenceStore>,
    /// Hands over the reference tables' newer versions.
    pub reference_reader: ReferenceReader,
    /// The reference tables as they were read now.
    pub references: References,
    /// What counts, with nothing counted.
    pub executor: Executor,
    /// What was counted before, and how.
    pub log: Log,
    /// The topics that are written, to be read.
    pub topics: Arc<dyn Topics>,
    /// Where changes and dead letters go.
    pub sink: Box<dyn Sink>,
    /// Where checkpoints go, if they are taken.
    pub checkpoints: Option<Checkpoints>,
}

/// What ad-hoc SQL can read beside the views.
#[derive(Clone, Default)]
pub struct AdHocTables {
    /// Tables that need the operator's token, by name.
    pub restricted: Vec<(String, Arc<dyn TableProvider>)>,
    /// Views that are only names for queries: name and query.
    pub plain_views: Vec<(String, String)>,
}

/// The engine with its sources, reference tables and sink, ready to run.
pub struct Pipeline {
    limits: Limits,
    sources: Vec<Box<dyn Source>>,
    histories: Vec<Box<dyn History>>,
    store: Arc<dyn ReferenceStore>,
    reference_reader: ReferenceReader,
    /// The reference tables as they were read at the start.
    read_at_start: References,
    executor: Executor,
    log: Log,
    topics: Arc<dyn Topics>,
    sink: Box<dyn Sink>,
    checkpoints: Option<Checkpoints>,
    /// Whether the state is that of the newest epoch of the log: not while one is executed and committed.
    settled: bool,
    /// What the topics had already, while what they lack is found.
    held: Option<Held>,
    /// Whether the topics have the rows of the views with state.
    written: bool,
    /// In an audit, records that topics should have and do not.
    lacking: Option<Vec<Record>>,
    /// Reference tables that have changed while the log was executed, and views that rows were left out of.
    changed_tables: BTreeSet<String>,
    left_out: BTreeSet<String>,
    publisher: Publisher,
    /// For readers of a topic's history.
    counted: CountedMessages,
    lookups: OutageLog,
    tables: AdHocTables,
    /// The newest that is committed.
    epoch: u64,
    /// The newest after which failed views were tried again.
    retried: u64,
}

impl Pipeline {
    /// Ready to run over these stages; `counted` is told which messages were counted.
    pub fn new(
        stages: Stages,
        limits: Limits,
        counted: CountedMessages,
        tables: AdHocTables,
    ) -> Result<Pipeline> {
        let Stages { sources, histories, store, reference_reader, references: read_at_start, .. } = stages;
        let (executor, mut log, topics, sink) = (stages.executor, stages.log, stages.topics, stages.sink);
        log.know_topics(&executor, &sources)?;
        let publisher = Publisher::new(&executor);
        Ok(Pipeline {
            limits,
            sources,
            histories,
            store,
            reference_reader,
            read_at_start,
            executor,
            written: log.summary().written,
            epoch: log.summary().epoch,
            retried: 0,
            log,
            topics,
            sink,
            checkpoints: stages.checkpoints,
            settled: true,
            held: None,
            lacking: None,
            changed_tables: BTreeSet::new(),
            left_out: BTreeSet::new(),
            publisher,
            counted,
            lookups: OutageLog::new("looking up missing rows of reference tables"),
            tables,
        })
    }

    /// What readers see, now and after each epoch.
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// The reference tables, the sources and the plain views, for ad-hoc SQL.
    pub fn tables(&self) -> AdHocTables {
        self.tables.clone()
    }

    /// Runs until `shutdown`, until another engine takes over, or until the state is larger than it may be.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            result = self.recover() => result?,
        }
        let (sender, polled) = mpsc::channel(BATCHES_AHEAD);
        let sources = std::mem::take(&mut self.sources);
        // A token of their own: that they end before the signal is heard would be an error.
        let pollers = Pollers::start(sources, &self.limits, sender, Shutdown::new())?;
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = self.work(polled) => result,
        };
        pollers.stop().await;
        if result.is_ok() {
            self.last_checkpoint().await;
        }
        result
    }

    async fn work(&mut self, mut polled: mpsc::Receiver<(usize, Polled)>) -> Result<()> {
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let has_sources = !self.executor.ingests().is_empty();
        loop {
            tokio::select! {
                polled = polled.recv(), if has_sources => match polled {
                    Some((source, polled)) => self.take(source, polled).await?,
                    None => return Err(Error::Limit("the threads that poll the sources have ended".into())),
                },
                table = self.reference_reader.next() => self.renew(table).await?,
                _ = tick.tick() => self.tick().await?,
            }
            self.checkpoint_if_due();
        }
    }

    /// Takes what a source has given: a micro-batch, or news of where it is.
    async fn take(&mut self, source: usize, polled: Polled) -> Result<()> {
        let Polled { batch, state } = polled;
        let unread = state.unread();
        let progress = &mut self.publisher.progress[source];
        progress.polled(state);
        let idle = progress.idle();
        if batch.is_empty() {
            self.publish(&[]);
        } else {
            let begun = Instant::now();
            let messages = batch.len() as u64;
            let mut batch = self.executor.decode(source, batch)?;
            (batch.unread, batch.idle) = (unread, idle);
            self.publisher.batches.stage("decode", begun);
            let looked_up = Instant::now();
            let (references, tables) = self.look_up(&batch).await?;
            self.publisher.batches.stage("look_up", looked_up);
            self.run_epoch(Some(batch), references, tables, None).await?;
            self.publisher.batches.add(messages, begun.elapsed());
        }
        self.note_caught_up().await
    }

    /// Executes an epoch over these reference tables, of which `tables` are new, and commits it.
    async fn run_epoch(
        &mut self,
        batch: Option<Batch>,
        references: References,
        tables: Vec<TableChange>,
        definitions: Option<Definitions>,
    ) -> Result<()> {
        let kind = if batch.is_some() { Kind::Batch } else { Kind::Change };
        let waits = batch.as_ref().map(|batch| (batch.unread.clone(), batch.idle.clone()));
        let input = EpochInput { epoch: self.epoch + 1, batch, references };
        let begun = Instant::now();
        self.settled = false;
        let output = self.executor.execute(input).await?;
        self.publisher.batches.stage("execute", begun);
        self.check_state()?;
        let said = Said { kind, waits: waits.unwrap_or_default(), tables, definitions, ..Said::default() };
        self.commit(output, said).await
    }

    /// Once all that was there has been counted for the first time, the topics get what they lack.
    async fn note_caught_up(&mut self) -> Result<()> {
        let progress = &self.publisher.progress;
        if self.publisher.ready || !progress.iter().all(|source| source.caught_up()) {
            return Ok(());
        }
        if !self.written {
            self.write_what_differs().await?;
        }
        self.publisher.ready = true;
        tracing::info!("caught up with every source at epoch {}", self.epoch);
        self.publish(&[]);
        Ok(())
    }

    /// Takes a newer version of a reference table into use: an epoch without messages.
    async fn renew(&mut self, table: Arc<ReferenceTable>) -> Result<()> {
        let mut references = self.executor.references().clone();
        let change =
            TableChange::Read { table: table.name().into(), version: table.version, rows: table.batches() };
        if references.set(table) {
            self.run_epoch(None, references, vec![change], None).await?;
        }
        Ok(())
    }

    /// Tries failed views again, once after each epoch, and publishes the status.
    async fn tick(&mut self) -> Result<()> {
        if self.epoch != self.retried && !self.executor.engine().failures().is_empty() {
            self.settled = false;
            let output = self.executor.retry(self.epoch + 1).await;
            self.commit(output, Said { kind: Kind::Retry, ..Said::default() }).await?;
            self.retried = self.epoch;
        }
        self.publish(&[]);
        Ok(())
    }

    /// The reference tables with the rows that the micro-batch needs and that were not held, and these.
    async fn look_up(&mut self, batch: &Batch) -> Result<(References, Vec<TableChange>)> {
        let mut references = self.executor.references().clone();
        let mut found = Vec::new();
        for missing in self.executor.missing(batch)? {
            let rows = self.ask(&missing, &references).await;
            let Missing { table, key, .. } = missing;
            if references.add(&table, &key, &rows)?
                && let Some(version) = references.get(&table).map(|held| held.version)
            {
                found.push(TableChange::Found { table, version, key, rows });
            }
        }
        Ok((references, found))
    }

    /// A vote must not be rejected because Postgres gives no answer: the micro-batch waits for it.
    async fn ask(&mut self, missing: &Missing, references: &References) -> Vec<RecordBatch> {
        loop {
            let store = Arc::clone(&self.store);
            let asked = references.look_up(&*store, &missing.table, &missing.key, &missing.values);
            let asked = tokio::time::timeout(LOOKUP_TIMEOUT, asked);
            tokio::pin!(asked);
            let answer = loop {
                tokio::select! {
                    answer = &mut asked => break answer,
                    () = tokio::time::sleep(LOOKUP_PATIENCE) => {
                        self.wait_for_lookup(format!("Postgres gives no answer about {}", missing.table));
                    }
                }
            };
            match answer {
                Ok(Ok(found)) => {
                    if self.lookups.current().is_some() {
                        self.lookups.off();
                        self.publisher.lookup_outage = None;
                        self.publish(&[]);
                    }
                    return found;
                }
                Ok(Err(error)) => self.wait_for_lookup(error.to_string()),
                Err(_) => {}
            }
            tokio::time::sleep(LOOKUP_RETRY).await;
        }
    }

    fn wait_for_lookup(&mut self, reason: String) {
        self.lookups.on(reason, true);
        self.publisher.lookup_outage = self.lookups.current();
        self.publish(&[]);
    }

    /// Stops before the machine's memory does.
    fn check_state(&self) -> Result<()> {
        let (held, most) = (self.executor.state_bytes(), self.limits.state_bytes_max);
        if most == 0 || held <= most {
            return Ok(());
        }
        let mut views: Vec<_> = self.executor.engine().state_bytes_by_view().into_iter().collect();
        views.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let largest: Vec<_> = views.iter().take(3).map(|(view, bytes)| format!("{view} {bytes}")).collect();
        Err(Error::Limit(format!(
            "the state takes {held} bytes, and state_bytes_max is {most}; the reference tables take {}; the largest \
             views: {}. Allow more if the machine has more, or let the views keep less (`tally check` says what they \
             keep)",
            self.executor.references().bytes(),
            largest.join(", ")
        )))
    }
}
