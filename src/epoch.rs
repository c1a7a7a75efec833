//! One run of the loop without its I/O: what goes in, what comes out. `run`, `replay` and the tests execute the
//! same function.

use std::collections::BTreeSet;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use tokio::task::block_in_place;

use crate::checkpoint::{Loader, Saver};
use crate::decode::{Decoded, Judged, Reject};
use crate::engine::input::WEIGHT;
use crate::engine::{Applied, Engine, Unmatched, ViewChange};
use crate::error::Result;
use crate::ingest::{Ingest, Missing};
use crate::reference::References;
use crate::source::RawBatch;

/// What an epoch is made of.
pub struct EpochInput {
    /// Its number.
    pub epoch: u64,
    /// The micro-batch; none where only reference tables have changed.
    pub batch: Option<Batch>,
    /// The reference tables that its rows meet.
    pub references: References,
}

/// A micro-batch of one source.
pub struct Batch {
    /// Position of the source.
    pub source: usize,
    /// The messages.
    pub raw: RawBatch,
    /// Partitions that have further messages: while one of them has had none, nothing becomes final.
    pub unread: BTreeSet<i32>,
    /// Partitions that have been silent for the source's `idle_timeout`.
    pub idle: BTreeSet<i32>,
    decoded: Decoded,
    rejects: Vec<Reject>,
}

/// What came of an epoch.
#[derive(Default)]
pub struct EpochOutput {
    /// Its number.
    pub epoch: u64,
    /// Views whose rows may have changed.
    pub changes: Vec<ViewChange>,
    /// What became of the micro-batch.
    pub counted: Option<Counted>,
}

/// What became of the messages of a micro-batch.
pub struct Counted {
    /// Position of the source.
    pub source: usize,
    /// The messages.
    pub raw: RawBatch,
    /// How many keep every rule.
    pub rows: usize,
    /// Those that do not, those that came too late for a view, and those that a view could not take.
    pub rejects: Vec<Reject>,
    /// Counted rows that found no match in a lookup join.
    pub unmatched: Vec<Unmatched>,
}

/// The state that epochs change: views, primary keys, and the reference tables in use.
pub struct Executor {
    engine: Engine,
    ingests: Vec<Ingest>,
    references: References,
}

impl Executor {
    /// Nothing counted yet. `references` has every table that the engine or a rule reads.
    pub fn new(mut engine: Engine, ingests: Vec<Ingest>, references: References) -> Executor {
        for table in references.tables() {
            engine.set_reference(table.name(), table.batches());
        }
        Executor { engine, ingests, references }
    }

    /// The views, their state and what is said of them.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The sources.
    pub fn ingests(&self) -> &[Ingest] {
        &self.ingests
    }

    /// The reference tables in use.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// Bytes of the views' state, of the reference tables, and of what the sources keep: primary keys, or rows.
    pub fn state_bytes(&self) -> usize {
        let keys: usize = self.ingests.iter().map(Ingest::bytes).sum();
        self.engine.state_bytes() + self.references.bytes() + keys
    }

    /// Gives the state to a checkpoint: between two epochs, and only if the engine says that it can be saved.
    pub fn save(&mut self, saver: &mut Saver) -> Result<()> {
        let Executor { engine, ingests, references } = self;
        references.save(saver)?;
        ingests.iter().try_for_each(|ingest| ingest.save(saver))?;
        Ok(engine.save(saver)?)
    }

    /// Takes the state of a checkpoint in place of [`Executor::start`]; what the views show then.
    ///
    /// # Errors
    /// It is the state of other plans. The executor is of no use then.
    pub fn load(&mut self, loader: &mut Loader) -> Result<Vec<ViewChange>> {
        self.references.load(loader)?;
        for table in self.references.tables() {
            self.engine.set_reference(table.name(), table.batches());
        }
        self.ingests.iter_mut().try_for_each(|ingest| ingest.load(loader))?;
        Ok(self.engine.load(loader)?)
    }

    /// The views before the first message.
    pub async fn start(&mut self) -> Result<EpochOutput> {
        Ok(EpochOutput { epoch: 0, changes: self.engine.start().await?, counted: None })
    }

    /// A micro-batch of the source at a position, of which no partition is known to be unread or idle. Its messages
    /// are taken partition after partition, so that offsets alone say what was executed.
    pub fn decode(&self, source: usize, mut raw: RawBatch) -> Result<Batch> {
        raw.by_partition();
        let (decoded, rejects) = block_in_place(|| self.ingests[source].decode(&raw))?;
        let (unread, idle) = (BTreeSet::new(), BTreeSet::new());
        Ok(Batch { source, raw, unread, idle, decoded, rejects })
    }

    /// The keys of a micro-batch that the reference tables in use do not have.
    pub fn missing(&self, batch: &Batch) -> Result<Vec<Missing>> {
        let ingest = &self.ingests[batch.source];
        let mut missing = ingest.missing(&batch.decoded, &self.references)?;
        let by_joins =
            self.engine.missing_lookups(&ingest.def.name, &batch.decoded.rows, &self.references)?;
        missing.extend(by_joins.into_iter().map(|(table, key, values)| Missing { table, key, values }));
        Ok(missing)
    }

    /// Executes an epoch. The same inputs in the same order give the same outputs.
    pub async fn execute(&mut self, input: EpochInput) -> Result<EpochOutput> {
        let mut output = EpochOutput { epoch: input.epoch, ..EpochOutput::default() };
        let mut renewed = BTreeSet::new();
        for table in input.references.tables() {
            let held = self.references.get(table.name());
            if held.is_none_or(|held| held.version != table.version) {
                self.engine.set_reference(table.name(), table.batches());
                renewed.insert(table.name().to_string());
            }
        }
        self.references = input.references;
        if !renewed.is_empty() {
            output.changes = self.engine.refresh(&renewed).await?;
        }
        if let Some(batch) = input.batch {
            self.add(batch, &mut output).await?;
        }
        Ok(output)
    }

    /// Tries to bring failed views back; for when no message comes.
    pub async fn retry(&mut self, epoch: u64) -> EpochOutput {
        EpochOutput { epoch, changes: self.engine.retry().await, counted: None }
    }

    async fn add(&mut self, batch: Batch, output: &mut EpochOutput) -> Result<()> {
        let Batch { source, raw, unread, idle, decoded, mut rejects } = batch;
        let ingest = &mut self.ingests[source];
        let (judged, refused) = block_in_place(|| ingest.judge(decoded, &raw, &self.references))?;
        rejects.extend(refused);
        let Judged { rows, messages, counted } = judged;
        let (name, retracts) = (ingest.def.name.clone(), ingest.def.retracts());
        self.engine.wait_for(&name, unread);
        self.engine.set_idle(&name, idle);
        let origins: Vec<_> = messages.iter().map(|message| raw.origin(*message)).collect();
        let unmatched = self.engine.unmatched(&name, &that_came(&rows)?, &self.references)?;
        let Applied { changes, late, errors } = self.engine.apply(&name, rows, Some(&origins)).await?;
        output.changes.extend(changes);
        rejects.extend(late.iter().map(|(row, view)| Reject::late(messages[*row as usize], view)));
        rejects.extend(errors.iter().filter_map(|error| {
            Some(Reject::of_view(messages[error.row? as usize], &error.view, &error.reason))
        }));
        rejects.sort_by_key(|reject| reject.message);
        if retracts {
            // A message may stand for several rows, and is told once.
            let mut told = BTreeSet::new();
            rejects.retain(|reject| told.insert((reject.message, reject.rule.clone(), reject.view.clone())));
        }
        output.counted = Some(Counted { source, raw, rows: counted, rejects, unmatched });
        Ok(())
    }
}

/// The rows that came, of those that came and went.
fn that_came(rows: &RecordBatch) -> Result<RecordBatch> {
    match rows.column_by_name(WEIGHT).and_then(|weights| weights.as_primitive_opt::<Int64Type>()) {
        Some(weights) => {
            let came = BooleanArray::from_unary(weights, |weight| weight > 0);
            Ok(filter_record_batch(rows, &came)?)
        }
        None => Ok(rows.clone()),
    }
}
