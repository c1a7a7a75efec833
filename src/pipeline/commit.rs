//! Commits what came of an epoch in one transaction, then publishes it to readers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{block_in_place, yield_now};

use super::Pipeline;
use crate::engine::ViewChange;
use crate::epoch::{Counted, EpochOutput};
use crate::epoch_log::{BatchEntry, Definitions, Entry, Kind, TableChange, output_hash};
use crate::error::{Error, Result};
use crate::sink::{Record, Refused, Transaction, changelog, dead_letter};

/// The sink is waited for in slices: between them it is told that nothing goes out, and a signal is heard.
const SLICE: Duration = Duration::from_millis(200);

/// What the log says of an epoch, beside what came of it.
#[derive(Default)]
pub(super) struct Said {
    pub(super) kind: Kind,
    /// Partitions that had further messages, and those that were idle.
    pub(super) waits: (BTreeSet<i32>, BTreeSet<i32>),
    /// Reference tables that it takes into use.
    pub(super) tables: Vec<TableChange>,
    pub(super) definitions: Option<Definitions>,
    /// What is written of some views instead of their changed rows.
    pub(super) instead: BTreeMap<String, Vec<Record>>,
    /// Hashes of all rows of views.
    pub(super) shown: BTreeMap<String, String>,
}

impl Pipeline {
    /// Commits an epoch: its records and what the log says of it, together. Then it is published.
    pub(super) async fn commit(&mut self, output: EpochOutput, said: Said) -> Result<()> {
        let begun = Instant::now();
        self.settled = false;
        let (transaction, batch, refused) = self.transaction(&output, said)?;
        self.publisher.refused(refused);
        self.store(transaction).await?;
        self.epoch = output.epoch;
        batch.iter().for_each(|batch| self.counted.add(batch));
        self.publisher.batches.stage("write", begun);
        let begun = Instant::now();
        if let Some(counted) = &output.counted {
            self.count(counted);
        }
        self.publish(&output.changes);
        self.settled = true;
        self.publisher.batches.stage("publish", begun);
        Ok(())
    }

    fn transaction(
        &mut self,
        output: &EpochOutput,
        said: Said,
    ) -> Result<(Transaction, Option<BatchEntry>, Vec<Refused>)> {
        let mut refused = Vec::new();
        let Said { kind, waits, tables, definitions, mut instead, shown } = said;
        let mut rows = changed_rows(output, self.written, &mut refused);
        instead.keys().for_each(|view| drop(rows.remove(view)));
        let hashes = rows.iter().map(|(view, records)| (view.clone(), output_hash(records)));
        let outputs = hashes.chain(shown).collect();
        rows.append(&mut instead);
        let mut records: Vec<Record> = rows.into_values().flatten().collect();
        let mut entry = Entry {
            kind,
            epoch: output.epoch,
            written: self.written,
            definitions,
            outputs,
            ..Entry::default()
        };
        let mut offsets = Vec::new();
        if let Some(counted) = &output.counted {
            let def = Arc::clone(&self.executor.ingests()[counted.source].def);
            let next = counted.raw.next_offsets.iter();
            offsets.extend(next.map(|(partition, next)| (def.topic.clone(), *partition, *next)));
            records.extend(self.letters(counted, output.epoch));
            let (unread, idle) = waits;
            let batch = BatchEntry::of(&def.name, &counted.raw, counted.rows, &counted.rejects);
            let (unread, idle) = (unread.into_iter().collect(), idle.into_iter().collect());
            entry.batch = Some(BatchEntry { unread, idle, ..batch });
        }
        if let Some(held) = &mut self.held {
            records.retain(|record| !held.take(record));
        }
        let batch = entry.batch.clone();
        records.extend(self.log.records(entry, &tables)?);
        Ok((Transaction { records, offsets }, batch, refused))
    }

    /// Counts what became of a micro-batch.
    pub(super) fn count(&mut self, counted: &Counted) {
        let ingest = &self.executor.ingests()[counted.source];
        let keys = ingest.keys_in_two_partitions();
        let progress = &mut self.publisher.progress[counted.source];
        progress.counted(counted.rows, counted.raw.len() as u64);
        progress.keys_in_two_partitions(keys);
        progress.unmatched(&counted.unmatched);
        for reject in &counted.rejects {
            progress.rejected(reject, &counted.raw);
        }
    }

    /// Writes records and waits until they are committed, however long that takes.
    pub(super) async fn store(&mut self, transaction: Transaction) -> Result<()> {
        self.sink.begin(transaction);
        loop {
            let progress = block_in_place(|| self.sink.poll(SLICE));
            self.publisher.refused(progress.refused);
            let news = self.publisher.sink_outage != progress.outage;
            self.publisher.sink_outage = progress.outage;
            if progress.fenced {
                return Err(Error::TakenOver(self.log.engine_id().into()));
            }
            if progress.committed {
                return Ok(());
            }
            if news {
                self.publish(&[]);
            }
            yield_now().await;
        }
    }

    /// The dead letters of a micro-batch.
    pub(super) fn letters(&self, counted: &Counted, epoch: u64) -> Vec<Record> {
        let def = &self.executor.ingests()[counted.source].def;
        let Some(topic) = &def.dead_letter_topic else { return Vec::new() };
        let topic: Arc<str> = topic.as_str().into();
        let letter = |reject| dead_letter(&topic, &def.topic, &counted.raw, reject, epoch);
        counted.rejects.iter().map(letter).collect()
    }

    /// Shows readers the views and the status as they are.
    pub(super) fn publish(&mut self, changes: &[ViewChange]) {
        let references = self.executor.references().status(&self.reference_reader.health().borrow());
        let checkpoint = self.checkpoints.as_ref().and_then(|checkpoints| checkpoints.status());
        self.publisher.publish(self.epoch, changes, &self.executor, references, checkpoint);
    }
}

/// The records of changed rows, by view. What a view without state has to say, it can say only now; the others may say
/// it later, all at once.
pub(super) fn changed_rows(
    output: &EpochOutput,
    written: bool,
    refused: &mut Vec<Refused>,
) -> BTreeMap<String, Vec<Record>> {
    let mut rows: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for change in output.changes.iter().filter(|change| written || change.stateless) {
        match changelog(change, output.epoch) {
            Ok(changed) if changed.is_empty() => {}
            Ok(changed) => rows.entry(change.info.name.clone()).or_default().extend(changed),
            Err(error) => refused.push(Refused {
                topic: change.info.topic.as_deref().unwrap_or_default().into(),
                records: change.changelog.ops.len() as u64,
                reason: format!("rows of view {} can't be written as JSON: {error}", change.info.name),
            }),
        }
    }
    rows
}
