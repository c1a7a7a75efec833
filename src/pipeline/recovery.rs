//! How a run begins: with nothing, or where the epoch log ends. What is in the log is executed once more, the same
//! micro-batches over the same reference rows, without output, and what comes out must be what is told there.
//!
//! A replay begins at the log's beginning of the count, or at the epoch after that of a checkpoint (`checkpoint.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::Pipeline;
use super::commit::{Said, changed_rows};
use super::held::{Held, differing};
use crate::engine::ViewChange;
use crate::epoch::{Batch, EpochInput, EpochOutput};
use crate::epoch_log::{
    self, BatchEntry, Definitions, Entry, Kind, LogReader, Logged, TableChange, output_hash,
};
use crate::error::{Error, Result};
use crate::reference::References;
use crate::sink::{Record, Transaction, changelog};
use crate::source::RawBatch;

/// How often the log tells how far a replay is.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Brings the state to where the log ends; without a log, to its beginning.
    pub(super) async fn recover(&mut self) -> Result<()> {
        match self.log.take_replay() {
            Some(reader) => self.replay(reader).await?,
            None => self.begin().await?,
        }
        match &mut self.checkpoints {
            Some(checkpoints) if checkpoints.newest().is_none() => checkpoints.begin(None),
            _ => Ok(()),
        }
    }

    /// Nothing was counted. What topics have of an earlier count is not written again.
    async fn begin(&mut self) -> Result<()> {
        let output = self.executor.start().await?;
        let names = self.once_only(|_| true);
        self.held = Some(block_in_place(|| Held::read(&*self.topics, &names, None))?);
        let read = self.executor.references().tables().map(|table| TableChange::Read {
            table: table.name().into(),
            version: table.version,
            rows: table.batches(),
        });
        let said = Said {
            kind: Kind::Start,
            tables: read.collect(),
            definitions: Some(self.log.definitions().clone()),
            ..Said::default()
        };
        self.commit(EpochOutput { epoch: self.epoch + 1, ..output }, said).await
    }

    /// Topics of views without state for which `wanted` holds, and of dead letters.
    pub(super) fn once_only(&self, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let views = self.executor.engine().stateless_views().filter(|info| wanted(&info.name));
        let letters =
            self.executor.ingests().iter().filter_map(|ingest| ingest.def.dead_letter_topic.clone());
        views.filter_map(|info| info.topic.clone()).chain(letters).collect()
    }

    async fn replay(&mut self, reader: LogReader) -> Result<()> {
        let last = self.log.summary().definitions.clone();
        let names =
            self.once_only(|view| !self.written || !self.log.definitions().has_same_view(&last, view));
        let mut held = block_in_place(|| Held::read(&*self.topics, &names, None))?;
        let (reader, restored) = match self.restore().await? {
            Some((reader, definitions)) => (reader, Some(definitions)),
            None => (reader, None),
        };
        let executed = self.execute_log(reader, restored.clone(), &mut held).await;
        let reader = executed.map_err(|error| match (error, &self.checkpoints) {
            (Error::Log(reason), Some(checkpoints)) if restored.is_some() => Error::Log(format!(
                "{reason}. It went on from a checkpoint: without {} the whole log is executed",
                checkpoints.objects().place()
            )),
            (error, _) => error,
        })?;
        self.held = (!self.written).then_some(held);
        self.log.set_tables(reader.into_tables());
        self.go_on(&last).await
    }

    /// Executes the epochs of the log that `reader` gives: all, or those after a checkpoint, when `restored` was counted.
    /// `held` are records that topics have already.
    pub(super) async fn execute_log(
        &mut self,
        mut reader: LogReader,
        restored: Option<Definitions>,
        held: &mut Held,
    ) -> Result<LogReader> {
        let begun = Instant::now();
        let epochs = self.log.summary().epochs.saturating_sub(reader.passed());
        let (mut done, mut told_at) = (0, begun);
        tracing::info!("executing {epochs} epochs of the log once more");
        let last = self.log.summary().definitions.clone();
        if restored.is_none() {
            let started = self.executor.start().await?;
            self.publish(&started.changes);
        }
        let mut references = self.executor.references().clone();
        let mut logged = restored.unwrap_or_default();
        while let Some(Logged { entry, tables }) = block_in_place(|| reader.next_entry())? {
            for change in tables {
                if entry.kind != Kind::Start {
                    self.changed_tables.insert(change.table().into());
                }
                let read = self.read_at_start.get(change.table()).map(|table| table.wanted());
                if let Some(wanted) = read {
                    epoch_log::apply(&mut references, change, &wanted)?;
                }
            }
            let before = std::mem::take(&mut logged);
            logged = entry.definitions.clone().unwrap_or_else(|| before.clone());
            if entry.kind == Kind::Rows {
                self.compare(&entry, &self.shown()?, &|view| {
                    self.log.definitions().has_same_view(&logged, view)
                })?;
            }
            self.left_out.extend(entry.batch.iter().flat_map(|batch| batch.left_out.keys().cloned()));
            if let Some(output) = self.execute_again(&entry, &references).await? {
                self.verify(&entry, &output, [&before, &logged])?;
                self.write_once_only(&output, &last, held).await?;
                if let Some(counted) = &output.counted {
                    self.count(counted);
                }
                self.epoch = entry.epoch;
                self.publish(&output.changes);
            }
            done += u64::from(entry.kind != Kind::Run);
            if told_at.elapsed() > TELL_INTERVAL {
                told_at = Instant::now();
                tracing::info!("executed {done} of {epochs} epochs once more");
            }
        }
        tracing::info!("executed {epochs} epochs once more in {:.1} s", begun.elapsed().as_secs_f64());
        self.epoch = self.log.summary().epoch;
        Ok(reader)
    }

    /// Executes an epoch of the log; none if it executed nothing, or what nobody asks for any more.
    async fn execute_again(&mut self, entry: &Entry, references: &References) -> Result<Option<EpochOutput>> {
        let epoch = entry.epoch;
        let batch = match (entry.kind, &entry.batch) {
            (Kind::Batch, Some(batch)) => match self.read_again(batch)? {
                Some(batch) => Some(batch),
                None => return Ok(None),
            },
            (Kind::Change, _) => None,
            (Kind::Retry, _) => return Ok(Some(self.executor.retry(epoch).await)),
            _ => return Ok(None),
        };
        let input = EpochInput { epoch, batch, references: references.clone() };
        Ok(Some(self.executor.execute(input).await?))
    }

    /// The messages of a micro-batch; none if its source is no longer read.
    fn read_again(&mut self, entry: &BatchEntry) -> Result<Option<Batch>> {
        let mut sources = self.executor.ingests().iter();
        let Some(source) = sources.position(|ingest| ingest.def.name == entry.source) else {
            return Ok(None);
        };
        let history = &mut self.histories[source];
        let mut raw = RawBatch::default();
        block_in_place(|| {
            let mut ranges = entry.ranges.iter();
            ranges.try_for_each(|(partition, (_, to))| {
                history.read(*partition, *to, usize::MAX, &mut raw).map(|_| ())
            })
        })?;
        let mut batch = self.executor.decode(source, raw)?;
        batch.unread = entry.unread.iter().copied().collect();
        batch.idle = entry.idle.iter().copied().collect();
        Ok(Some(batch))
    }

    /// Compares what an epoch did with what the log says that it did: of the views that are the same now.
    fn verify(&self, entry: &Entry, output: &EpochOutput, then: [&Definitions; 2]) -> Result<()> {
        let now = self.log.definitions();
        let is_same = |view: &str| then.iter().all(|definitions| now.has_same_view(definitions, view));
        if let (Some(told), Some(counted)) = (&entry.batch, &output.counted) {
            let name = &self.executor.ingests()[counted.source].def.name;
            let again = BatchEntry::of(name, &counted.raw, counted.rows, &counted.rejects);
            if (told.counted, &told.rejected, &told.ranges) != (again.counted, &again.rejected, &again.ranges)
            {
                return Err(differs(
                    entry,
                    &format!(
                        "of source {name} {} messages were counted, and {} are now",
                        told.counted, again.counted
                    ),
                ));
            }
            let left_out = |batch: &BatchEntry| {
                let views = batch.left_out.clone().into_iter();
                views.filter(|(view, _)| is_same(view)).collect::<BTreeMap<_, _>>()
            };
            if left_out(told) != left_out(&again) {
                let what = format!("other messages of source {name} are left out of views than were");
                return Err(differs(entry, &what));
            }
        }
        let rows = changed_rows(output, entry.written, &mut Vec::new());
        let again = rows.into_iter().map(|(view, records)| (view, output_hash(&records))).collect();
        self.compare(entry, &again, &is_same)
    }

    /// Compares hashes of rows with those in the log.
    fn compare(
        &self,
        entry: &Entry,
        again: &BTreeMap<String, String>,
        is_same: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let views: BTreeSet<&String> = again.keys().chain(entry.outputs.keys()).collect();
        let other =
            views.into_iter().find(|view| is_same(view) && again.get(*view) != entry.outputs.get(*view));
        other.map_or(Ok(()), |view| {
            Err(differs(entry, &format!("view {view} has other rows than when it was counted")))
        })
    }

    /// The hash of the rows of each view that can tell all of them.
    fn shown(&self) -> Result<BTreeMap<String, String>> {
        let all = self.executor.engine().all_rows()?;
        let hash = |view: &ViewChange| Ok((view.info.name.clone(), output_hash(&changelog(view, 0)?)));
        all.iter().filter(|view| !view.stateless && view.info.topic.is_some()).map(hash).collect()
    }

    /// What a new view without state says of what was counted, it says now. While the topics' contents are still being
    /// found out, what was written since then is not to be taken for what they had before.
    async fn write_once_only(
        &mut self,
        output: &EpochOutput,
        last: &Definitions,
        held: &mut Held,
    ) -> Result<()> {
        let mut records: Vec<Record> = Vec::new();
        for change in output.changes.iter().filter(|change| change.stateless) {
            let is_new = !self.log.definitions().has_same_view(last, &change.info.name);
            if is_new || !self.written || self.lacking.is_some() {
                let rows = changelog(change, output.epoch)?;
                let lacking: Vec<Record> = rows.into_iter().filter(|record| !held.take(record)).collect();
                match &mut self.lacking {
                    Some(all) => all.extend(lacking),
                    None => records.extend(lacking.into_iter().filter(|_| is_new)),
                }
            }
        }
        if let Some(counted) = output.counted.as_ref().filter(|_| !self.written || self.lacking.is_some()) {
            let mut letters = self.letters(counted, output.epoch);
            letters.retain(|letter| !held.take(letter));
            self.lacking.iter_mut().for_each(|lacking| lacking.append(&mut letters));
        }
        if records.is_empty() {
            return Ok(());
        }
        let entry = Entry {
            kind: Kind::Written,
            epoch: self.log.summary().epoch,
            written: self.written,
            ..Entry::default()
        };
        records.extend(self.log.records(entry, &[])?);
        self.store(Transaction { records, offsets: Vec::new() }).await
    }

    /// Takes the tables into use as they are now, and the queries: the topics of views that are new or other than before
    /// get what they lack in the same transaction.
    async fn go_on(&mut self, last: &Definitions) -> Result<()> {
        let (mut references, mut tables) = (self.executor.references().clone(), Vec::new());
        for table in self.read_at_start.tables() {
            let held = references.get(table.name());
            let is_same = held.is_some_and(|held| held.has_rows(&table.batches()));
            if is_same && self.log.has_table(table.name()) {
                continue;
            }
            let (name, version, rows) = (table.name().to_string(), table.version, table.batches());
            tables.push(TableChange::Read { table: name, version, rows });
            references.set(std::sync::Arc::clone(table));
        }
        let is_changed = self.log.definitions() != last;
        if tables.is_empty() && !is_changed {
            return Ok(());
        }
        let epoch = self.epoch + 1;
        let output = self.executor.execute(EpochInput { epoch, batch: None, references }).await?;
        let mut instead = BTreeMap::new();
        if self.written && is_changed {
            let now = self.log.definitions().clone();
            instead = self.what_differs(epoch, |view| !now.has_same_view(last, view))?;
        }
        let definitions = is_changed.then(|| self.log.definitions().clone());
        self.commit(output, Said { kind: Kind::Change, tables, definitions, instead, ..Said::default() })
            .await
    }

    /// The topics of all views with state get what they lack: from now on each epoch writes what it changes.
    pub(super) async fn write_what_differs(&mut self) -> Result<()> {
        let epoch = self.epoch + 1;
        let (instead, shown) = (self.what_differs(epoch, |_| true)?, self.shown()?);
        (self.written, self.held) = (true, None);
        let output = EpochOutput { epoch, ..EpochOutput::default() };
        self.commit(output, Said { kind: Kind::Rows, instead, shown, ..Said::default() }).await
    }

    fn what_differs(
        &self,
        epoch: u64,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Vec<Record>>> {
        let all = self.executor.engine().all_rows()?;
        let writers = |topic: &Option<String>| {
            topic.is_some() && all.iter().filter(|view| view.info.topic == *topic).count() > 1
        };
        let topics = &*self.topics;
        let look = |view: &ViewChange| differing(topics, view, epoch, writers(&view.info.topic), None);
        // Reading a topic is mostly waiting: all are read at the same time.
        block_in_place(|| {
            std::thread::scope(|scope| {
                let views: Vec<&ViewChange> =
                    all.iter().filter(|view| !view.stateless && wanted(&view.info.name)).collect();
                let look = &look;
                let threads: Vec<_> = views
                    .into_iter()
                    .map(|view| (view.info.name.clone(), scope.spawn(move || look(view))))
                    .collect();
                let joined = threads.into_iter().map(|(view, thread)| {
                    let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    Ok((view, found?))
                });
                joined.collect()
            })
        })
    }
}

fn differs(entry: &Entry, what: &str) -> Error {
    Error::Log(format!(
        "epoch {}: {what}. Either messages, the log or reference rows were changed, or this is a fault of tally. \
         `tally run --rebuild` counts everything anew",
        entry.epoch
    ))
}
