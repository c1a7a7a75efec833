//! The loop: poll → decode → look up → execute → commit → publish. The only place that knows every stage.
//!
//! Each source is polled by a thread of its own, so that receiving goes on while an epoch is executed; the
//! reference tables are read by a task of their own. While Kafka or Postgres give no answer the loop waits, says
//! so, and goes on by itself: only a signal and `state_bytes_max` end it.

mod commit;
mod open;
mod poll;
mod progress;
mod samples;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use tokio::sync::{mpsc, watch};

use self::poll::Pollers;
use self::status::Publisher;
use crate::engine::ViewChange;
use crate::epoch::{Batch, EpochInput, EpochOutput, Executor};
use crate::error::{Error, Result};
use crate::ingest::Missing;
use crate::outage::OutageLog;
use crate::reference::{ReferenceReader, ReferenceStore, ReferenceTable, References};
use crate::shutdown::Shutdown;
use crate::sink::Sink;
use crate::snapshot::Reader;
use crate::source::{Polled, Source};

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
    /// In the order of the executor's.
    pub sources: Vec<Box<dyn Source>>,
    /// Where missing rows of reference tables are looked up.
    pub store: Arc<dyn ReferenceStore>,
    /// Hands over the reference tables' newer versions.
    pub reference_reader: ReferenceReader,
    /// What counts.
    pub executor: Executor,
    /// Where changes and dead letters go.
    pub sink: Box<dyn Sink>,
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
    store: Arc<dyn ReferenceStore>,
    reference_reader: ReferenceReader,
    executor: Executor,
    sink: Box<dyn Sink>,
    publisher: Publisher,
    /// The reference tables in use, for readers of a topic's history.
    references: watch::Sender<References>,
    lookups: OutageLog,
    tables: AdHocTables,
    epoch: u64,
}

impl Pipeline {
    /// Ready to run over these stages; `references` is told which tables are in use.
    pub async fn new(
        stages: Stages,
        limits: Limits,
        references: watch::Sender<References>,
        tables: AdHocTables,
    ) -> Result<Pipeline> {
        let Stages { sources, store, reference_reader, executor, sink } = stages;
        let publisher = Publisher::new(&executor);
        let mut pipeline = Pipeline {
            limits,
            sources,
            store,
            reference_reader,
            executor,
            sink,
            publisher,
            references,
            lookups: OutageLog::new("looking up missing rows of reference tables"),
            tables,
            epoch: 0,
        };
        let started = pipeline.executor.start().await?;
        pipeline.publish(&started.changes);
        Ok(pipeline)
    }

    /// What readers see, now and after each epoch.
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// The reference tables, the sources and the plain views, for ad-hoc SQL.
    pub fn tables(&self) -> AdHocTables {
        self.tables.clone()
    }

    /// Runs until `shutdown`, or until the state is larger than it may be.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<()> {
        let (sender, polled) = mpsc::channel(BATCHES_AHEAD);
        let sources = std::mem::take(&mut self.sources);
        // A token of their own: that they end before the signal is heard would be an error.
        let pollers = Pollers::start(sources, &self.limits, sender, Shutdown::new())?;
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = self.work(polled) => result,
        };
        pollers.stop().await;
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
            let references = self.look_up(&batch).await?;
            self.publisher.batches.stage("look_up", looked_up);
            self.run_epoch(Some(batch), references).await?;
            self.publisher.batches.add(messages, begun.elapsed());
        }
        self.note_caught_up().await
    }

    async fn run_epoch(&mut self, batch: Option<Batch>, references: References) -> Result<()> {
        self.epoch += 1;
        let input = EpochInput { epoch: self.epoch, batch, references };
        let begun = Instant::now();
        let output = self.executor.execute(input).await?;
        self.publisher.batches.stage("execute", begun);
        self.references.send_if_modified(|held| {
            let newer = held.versions() != self.executor.references().versions();
            if newer {
                *held = self.executor.references().clone();
            }
            newer
        });
        self.check_state()?;
        self.commit(output).await;
        Ok(())
    }

    /// While catching up the topics keep what an earlier run wrote; then they get every row once.
    async fn note_caught_up(&mut self) -> Result<()> {
        let progress = &self.publisher.progress;
        if self.publisher.ready || !progress.iter().all(|source| source.caught_up()) {
            return Ok(());
        }
        self.publisher.ready = true;
        tracing::info!("caught up with every source at epoch {}", self.epoch);
        self.epoch += 1;
        let changes = self.executor.engine().all_rows()?;
        self.write(&EpochOutput { epoch: self.epoch, changes, counted: None }).await;
        self.publish(&[]);
        Ok(())
    }

    /// Takes a newer version of a reference table into use: an epoch without messages.
    async fn renew(&mut self, table: Arc<ReferenceTable>) -> Result<()> {
        let mut references = self.executor.references().clone();
        if references.set(table) {
            self.run_epoch(None, references).await?;
        }
        Ok(())
    }

    async fn tick(&mut self) -> Result<()> {
        let mut changes: Vec<ViewChange> = Vec::new();
        if !self.executor.engine().failures().is_empty() {
            let output = self.executor.retry(self.epoch + 1).await;
            if !output.changes.is_empty() {
                self.epoch += 1;
                self.write(&output).await;
                changes = output.changes;
            }
        }
        self.publish(&changes);
        Ok(())
    }

    /// The reference tables with the rows that the micro-batch needs and that were not held.
    async fn look_up(&mut self, batch: &Batch) -> Result<References> {
        let mut references = self.executor.references().clone();
        for missing in self.executor.missing(batch)? {
            let found = self.ask(&missing, &references).await;
            references.add(&missing.table, &missing.key, &found)?;
        }
        Ok(references)
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
