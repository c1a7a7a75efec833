//! The loop: poll → decode → judge → execute → write → publish. The only file that knows every stage.
//!
//! Each source is polled by a thread of its own, so that receiving goes on while a micro-batch is computed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use datafusion::catalog::TableProvider;
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;

use crate::catalog::{Catalog, SourceDef, TableDef};
use crate::clients;
use crate::config::Config;
use crate::decode::{self, JsonDecoder, Reject, RuleSet};
use crate::engine::session::{self, PG};
use crate::engine::{Engine, Origin, ViewChange};
use crate::error::{Error, Result};
use crate::history::KafkaTable;
use crate::progress::{Batches, Progress};
use crate::queries;
use crate::reference::{
    Pace, PgTable, PostgresStore, ReferenceReader, ReferenceStore, ReferenceTable, References, StoreError,
    Wanted,
};
use crate::shutdown::Shutdown;
use crate::sink::{self, KafkaSink, Record, Sink};
use crate::snapshot::{Published, Reader, Status, ViewSnapshot};
use crate::source::{Bounds, KafkaSource, RawBatch, Source as _, SourceState};

/// Micro-batches that wait for the engine while it computes; more would only cost memory.
const BATCHES_AHEAD: usize = 2;
/// How often the ends of the partitions are asked for, and the status is published when nothing happens.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// How long is waited for Kafka before it is looked whether to stop.
const WRITE_SLICE: Duration = Duration::from_millis(200);
/// How long the polling threads may take to end; one that waits for a dead broker takes longer.
const POLLERS_PATIENCE: Duration = Duration::from_secs(1);
/// How long Postgres is left alone before a lookup is tried again.
const LOOKUP_RETRY: Duration = Duration::from_secs(2);

/// The engine with its sources, reference tables and sink, ready to run.
pub struct Pipeline {
    config: Arc<Config>,
    engine: Engine,
    store: Arc<dyn ReferenceStore>,
    /// The reference tables in use; readers of history look at them too.
    references: watch::Sender<References>,
    reference_reader: ReferenceReader,
    sources: Vec<Source>,
    sink: Box<dyn Sink>,
    publisher: watch::Sender<Arc<Published>>,
    /// Tables for ad-hoc SQL that need the operator's token, by name.
    restricted: Vec<(String, Arc<dyn TableProvider>)>,
    pollers: Vec<JoinHandle<()>>,
    epoch: u64,
    batches: Batches,
    started_at: SystemTime,
    ready: bool,
}

struct Source {
    def: Arc<SourceDef>,
    decoder: JsonDecoder,
    rules: RuleSet,
    progress: Progress,
}

/// What a polling thread tells the loop.
struct Polled {
    source: usize,
    batch: RawBatch,
    state: SourceState,
}

impl Pipeline {
    /// Loads `queries/`, plans the views, reads the reference tables and connects to Kafka. Whatever is
    /// wrong with the settings, the files or the servers is found here.
    pub async fn open(config: Config) -> Result<Pipeline> {
        let (place, files) = queries::load(config.queries.as_deref())?;
        let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
        clients::check_kafka(&config).await?;
        let pool = clients::postgres(&config).await?;
        let store: Arc<dyn ReferenceStore> =
            Arc::new(PostgresStore::new(pool.clone(), config.postgres_schema.as_str()));
        let defs = store.tables().await?;
        let schemas: Vec<_> = defs.iter().map(|def| (def.name.clone(), def.schema.clone())).collect();
        let absent = |table: &&TableDef| !defs.iter().any(|def| def.name == table.name);
        if let Some(table) = catalog.tables.values().find(absent) {
            return Err(table.place.error(format!(
                "Postgres has no table `{}` in schema {}; `tally seed` or a migration makes it",
                table.name, config.postgres_schema
            )));
        }
        let engine = Engine::plan(&catalog, &schemas).await?;
        let keys = catalog.foreign_keys();
        let wanted = Wanted::of(engine.reference_columns(), &defs, &keys);
        let pace = Pace::with_refresh(Duration::from_secs(config.reference_refresh_s));
        let (reference_reader, references) = ReferenceReader::start(Arc::clone(&store), wanted, pace).await?;
        tracing::info!(
            "{} views over {} sources from {place}",
            engine.views().count(),
            catalog.sources.len()
        );

        let config = Arc::new(config);
        let references = watch::Sender::new(references);
        let mut restricted: Vec<(String, Arc<dyn TableProvider>)> = Vec::new();
        for def in defs {
            let name = def.name.clone();
            let table = Arc::new(PgTable::new(pool.clone(), &config.postgres_schema, Arc::new(def)));
            restricted.push((format!("{PG}.{name}"), Arc::clone(&table) as _));
            if !catalog.sources.contains_key(&name) && !catalog.views.contains_key(&name) {
                restricted.push((name, table));
            }
        }
        let mut sources = Vec::new();
        let planning = session::continuous().state();
        for def in catalog.sources.into_values().map(Arc::new) {
            let table = KafkaTable::new(Arc::clone(&config), Arc::clone(&def), references.subscribe());
            restricted.push((def.name.clone(), Arc::new(table)));
            let read = engine.source_columns(&def.name);
            let (decoder, rules) = decode::of_source(&def, Some(read), &planning)?;
            sources.push(Source { decoder, rules, progress: Progress::new(&def), def });
        }
        let sink = Box::new(KafkaSink::open(&config, BTreeMap::new())?);
        let started_at = SystemTime::now();
        let mut pipeline = Pipeline {
            publisher: watch::Sender::new(Arc::new(Published {
                epoch: 0,
                views: BTreeMap::new(),
                status: Arc::new(Status::starting(started_at)),
            })),
            config,
            engine,
            store,
            references,
            reference_reader,
            sources,
            sink,
            restricted,
            pollers: Vec::new(),
            epoch: 0,
            batches: Batches::default(),
            started_at,
            ready: false,
        };
        pipeline.start_views().await?;
        Ok(pipeline)
    }

    /// What readers see, now and after each micro-batch.
    pub fn reader(&self) -> Reader {
        self.publisher.subscribe()
    }

    /// The reference tables and sources as tables for ad-hoc SQL.
    pub fn restricted_tables(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        self.restricted.clone()
    }

    /// Runs until `shutdown`, or until an error that going on would make worse.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<()> {
        let stop_polling = shutdown.child_token();
        let _stop_polling_at_return = stop_polling.clone().drop_guard();
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = self.work(stop_polling.clone()) => result,
        };
        // Their consumers should be closed before the broker may go.
        stop_polling.cancel();
        let deadline = Instant::now() + POLLERS_PATIENCE;
        while self.pollers.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        result
    }

    async fn work(&mut self, stop_polling: Shutdown) -> Result<()> {
        let (sender, mut polled) = mpsc::channel(BATCHES_AHEAD);
        for source in 0..self.sources.len() {
            self.poll_in_thread(source, sender.clone(), stop_polling.clone())?;
        }
        drop(sender);
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        loop {
            tokio::select! {
                polled = polled.recv() => match polled {
                    Some(polled) => self.micro_batch(polled).await?,
                    None => return Err(Error::kafka("reading", "the polling threads have ended")),
                },
                table = self.reference_reader.next() => self.renew(table).await?,
                _ = tick.tick() => self.publish(&[]).await,
            }
        }
    }

    async fn start_views(&mut self) -> Result<()> {
        for table in self.references.borrow().tables() {
            self.engine.set_reference(table.name(), table.batches());
        }
        let changes = self.engine.start().await?;
        self.publish(&changes).await;
        Ok(())
    }

    fn poll_in_thread(&mut self, source: usize, sender: mpsc::Sender<Polled>, stop: Shutdown) -> Result<()> {
        let def = Arc::clone(&self.sources[source].def);
        let (topic, config) = (&def.topic, Arc::clone(&self.config));
        let mut reader = block_in_place(|| KafkaSource::open(&config, topic, Bounds::Endless, def.start))?;
        let poll = move || {
            let mut told = None;
            while !stop.is_cancelled() {
                let polled = reader.poll(config.batch_rows, Duration::from_millis(config.trigger_ms));
                if polled.batch.is_empty() && told.as_ref() == Some(&polled.state) {
                    continue;
                }
                told = Some(polled.state.clone());
                if sender.blocking_send(Polled { source, batch: polled.batch, state: polled.state }).is_err()
                {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("poll {topic}"))
            .spawn(poll)
            .map_err(|source| Error::Io { action: "starting a thread".into(), source })?;
        self.pollers.push(thread);
        Ok(())
    }

    /// One micro-batch from raw messages to published views.
    async fn micro_batch(&mut self, polled: Polled) -> Result<()> {
        let source = &mut self.sources[polled.source];
        source.progress.polled(&polled.state);
        let mut changes = Vec::new();
        if !polled.batch.is_empty() {
            let begun = Instant::now();
            self.epoch += 1;
            changes = self.execute(polled.source, &polled.batch).await?;
            self.write(&changes).await?;
            self.publish(&changes).await;
            self.batches.add(polled.batch.len() as u64, begun.elapsed());
        }
        if !self.ready && self.sources.iter().all(|source| source.progress.caught_up()) {
            self.ready = true;
            tracing::info!("caught up with every source at epoch {}", self.epoch);
            // While catching up the topics kept what an earlier run wrote; now they get every row once.
            let all = self.engine.all_rows()?;
            self.write(&all).await?;
            self.publish(&changes).await;
        }
        Ok(())
    }

    /// Decodes and judges the messages, writes the rejected ones, and applies the rest to the views.
    async fn execute(&mut self, position: usize, batch: &RawBatch) -> Result<Vec<ViewChange>> {
        let source = &mut self.sources[position];
        let (decoded, mut rejects) = block_in_place(|| source.decoder.decode(&batch.payloads()))?;
        let missing = source.rules.missing(&decoded.rows, &*self.references.borrow())?;
        let mut renewed = BTreeSet::new();
        for (table, key, values) in missing {
            // A vote must not be rejected because Postgres is away: the batch waits for its answer.
            let references = self.references.borrow().clone();
            let found = loop {
                match references.look_up(&*self.store, &table, &key, &values).await {
                    Ok(found) => break found,
                    Err(error @ StoreError::Away { .. }) => {
                        tracing::warn!("paused, since {table} must be asked for a missing row: {error}");
                        tokio::time::sleep(LOOKUP_RETRY).await;
                    }
                    Err(error) => {
                        tracing::warn!(
                            "{table} can't be asked for a missing row, which is taken for none: {error}"
                        );
                        break Vec::new();
                    }
                }
            };
            let mut is_new = Ok(false);
            self.references.send_modify(|references| is_new = references.add(&table, &key, &found));
            if is_new? {
                renewed.insert(table);
            }
        }
        let references = self.references.borrow().clone();
        let (judged, refused) =
            block_in_place(|| source.rules.judge(decoded, &|message| batch.origin(message), &references))?;
        rejects.extend(refused);
        let mut letters = Vec::new();
        for reject in &rejects {
            source.progress.rejected(&reject.rule);
            letters.extend(source.dead_letter(batch, reject));
        }
        source.progress.counted(judged.rows.num_rows(), batch.len() as u64);
        for table in &renewed {
            self.engine.set_reference(table, references.batches(table));
        }
        let mut changes = if renewed.is_empty() { Vec::new() } else { self.engine.refresh(&renewed).await? };
        self.engine.wait_for(&source.def.name, source.progress.unread());
        let origin = |message: &u32| {
            let message = batch.get(*message);
            Origin { partition: message.partition, timestamp_ms: message.timestamp_ms }
        };
        let origins: Vec<_> = judged.messages.iter().map(origin).collect();
        let applied = self.engine.apply(&source.def.name, judged.rows, Some(&origins)).await?;
        for (row, view) in &applied.late {
            source.progress.late(view);
            let late = Reject::late(judged.messages[*row as usize], view);
            letters.extend(source.dead_letter(batch, &late));
        }
        for error in &applied.errors {
            if let Some(row) = error.row {
                let reject = Reject::of_view(judged.messages[row as usize], &error.view, &error.reason);
                letters.extend(source.dead_letter(batch, &reject));
            }
        }
        letters.into_iter().for_each(|letter| self.sink.send(letter));
        changes.extend(applied.changes);
        self.check_state()?;
        Ok(changes)
    }

    /// Takes a reference table as it is now into use, and recomputes the views over it.
    async fn renew(&mut self, table: Arc<ReferenceTable>) -> Result<()> {
        let (name, batches) = (table.name().to_owned(), table.batches());
        let mut is_changed = false;
        self.references.send_modify(|references| is_changed = references.set(table));
        if !is_changed {
            return Ok(());
        }
        self.engine.set_reference(&name, batches);
        let changes = self.engine.refresh(&BTreeSet::from([name])).await?;
        self.write(&changes).await?;
        self.publish(&changes).await;
        Ok(())
    }

    async fn write(&mut self, changes: &[ViewChange]) -> Result<()> {
        // What a view without state has to say, it can say only now.
        for change in changes.iter().filter(|change| self.ready || change.stateless) {
            sink::changelog(change, self.epoch)?.into_iter().for_each(|record| self.sink.send(record));
        }
        while block_in_place(|| self.sink.poll(WRITE_SLICE)).pending > 0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        let keys = self.sources.iter().map(|source| source.rules.bytes()).sum::<usize>();
        self.engine.state_bytes() + self.references.borrow().bytes() + keys
    }

    /// Stops before the machine's memory does.
    fn check_state(&self) -> Result<()> {
        let (held, most) = (self.state_bytes(), self.config.state_bytes_max);
        if most == 0 || held <= most {
            return Ok(());
        }
        let mut views: Vec<_> = self.engine.state_bytes_by_view().into_iter().collect();
        views.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let largest: Vec<_> = views.iter().take(3).map(|(view, bytes)| format!("{view} {bytes}")).collect();
        Err(Error::Limit(format!(
            "the state takes {held} bytes, and state_bytes_max is {most}; the largest views: {}. Allow more if the \
             machine has more, or let the views keep less (`tally check` says what they keep)",
            largest.join(", ")
        )))
    }

    async fn publish(&mut self, changes: &[ViewChange]) {
        let status = Status {
            epoch: self.epoch,
            ready: self.ready,
            sources: self
                .sources
                .iter()
                .map(|source| source.progress.status(self.engine.watermark(&source.def.name)))
                .collect(),
            batches: self.batches.status(),
            reference_tables: self.references.borrow().status(&self.reference_reader.health().borrow()),
            state_bytes: self.state_bytes(),
            state_bytes_by_view: self.engine.state_bytes_by_view(),
            ..Status::starting(self.started_at)
        };
        let now = Some(SystemTime::now());
        self.publisher.send_modify(|published| {
            let mut views = published.views.clone();
            for change in changes {
                let info = Arc::clone(&change.info);
                // A refresh may recompute a view without changing a row: its epoch then stays.
                if change.changelog.ops.is_empty() && views.contains_key(&info.name) {
                    continue;
                }
                let snapshot =
                    ViewSnapshot::new(Arc::clone(&info), self.epoch, now, Arc::clone(&change.rows));
                views.insert(info.name.clone(), Arc::new(snapshot));
            }
            *published = Arc::new(Published { epoch: self.epoch, views, status: Arc::new(status) });
        });
    }
}

impl Source {
    fn dead_letter(&self, batch: &RawBatch, reject: &Reject) -> Option<Record> {
        let topic = self.def.dead_letter_topic.as_deref()?;
        Some(sink::dead_letter(&topic.into(), &self.def.topic, batch, reject))
    }
}
