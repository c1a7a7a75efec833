//! Writes what came of an epoch, then publishes it to readers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{block_in_place, yield_now};

use super::Pipeline;
use crate::engine::ViewChange;
use crate::epoch::{Counted, EpochOutput};
use crate::sink::{Record, Refused, changelog, dead_letter};

/// The sink is waited for in slices: between them it is told that nothing goes out, and a signal is heard.
const SLICE: Duration = Duration::from_millis(200);

impl Pipeline {
    /// Writes an epoch's records, waits until they are stored, and publishes its views.
    pub(super) async fn commit(&mut self, output: EpochOutput) {
        if let Some(counted) = &output.counted {
            self.count(counted);
        }
        let begun = Instant::now();
        self.write(&output).await;
        self.publisher.batches.stage("write", begun);
        let begun = Instant::now();
        self.publish(&output.changes);
        self.publisher.batches.stage("publish", begun);
    }

    fn count(&mut self, counted: &Counted) {
        let keys = self.executor.ingests()[counted.source].keys_in_two_partitions();
        let progress = &mut self.publisher.progress[counted.source];
        progress.counted(counted.rows, counted.raw.len() as u64);
        progress.keys_in_two_partitions(keys);
        progress.unmatched(&counted.unmatched);
        for reject in &counted.rejects {
            progress.rejected(reject, &counted.raw);
        }
    }

    /// Writes an epoch's records and waits until they are stored, however long that takes.
    pub(super) async fn write(&mut self, output: &EpochOutput) {
        for record in self.records(output) {
            self.sink.send(record);
        }
        loop {
            let progress = block_in_place(|| self.sink.poll(SLICE));
            self.publisher.refused(progress.refused);
            let news = self.publisher.sink_outage != progress.outage;
            self.publisher.sink_outage = progress.outage;
            if progress.pending == 0 {
                return;
            }
            if news {
                self.publish(&[]);
            }
            yield_now().await;
        }
    }

    fn records(&mut self, output: &EpochOutput) -> Vec<Record> {
        let mut records = Vec::new();
        if let Some(counted) = &output.counted {
            let def = &self.executor.ingests()[counted.source].def;
            if let Some(topic) = &def.dead_letter_topic {
                let topic: Arc<str> = topic.as_str().into();
                let letter = |reject| dead_letter(&topic, &def.topic, &counted.raw, reject);
                records.extend(counted.rejects.iter().map(letter));
            }
        }
        // What a view without state has to say, it can say only now.
        let due = |change: &&ViewChange| self.publisher.ready || change.stateless;
        let mut refused = Vec::new();
        for change in output.changes.iter().filter(due) {
            match changelog(change, output.epoch) {
                Ok(changed) => records.extend(changed),
                Err(error) => refused.push(Refused {
                    topic: change.info.topic.as_deref().unwrap_or_default().into(),
                    records: change.changelog.ops.len() as u64,
                    reason: format!("rows of view {} can't be written as JSON: {error}", change.info.name),
                }),
            }
        }
        self.publisher.refused(refused);
        records
    }

    /// Shows readers the views and the status as they are.
    pub(super) fn publish(&mut self, changes: &[ViewChange]) {
        let references = self.executor.references().status(&self.reference_reader.health().borrow());
        self.publisher.publish(self.epoch, changes, &self.executor, references);
    }
}
