//! What falls apart by a key, by the ordinary plan: that runs over the rows of the keys that a change touches, as they
//! were and as they are, and what differs is the change of its rows. Without key columns everything is touched, and
//! the plan runs over all rows: that is *recompute*, what is left for a query that nothing else can keep up to date.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect};

use super::arrangement::Arrangement;
use super::equality::Keys;
use super::{Delta, Operator, Run};
use crate::batches::{self, renamed};
use crate::checkpoint::{Loader, Saver};
use crate::engine::bound::Bound;
use crate::engine::input::InputTable;
use crate::guard;

/// A plan, and how its rows fall apart.
#[derive(Debug)]
pub struct ByKeySpec {
    /// What it does, for people.
    pub name: String,
    /// The plan. Its rows over the rows of some keys are those among its rows over all whose keys these are.
    pub plan: Arc<dyn ExecutionPlan>,
    /// Columns of its rows.
    pub schema: SchemaRef,
    /// What it reads, besides reference tables.
    pub inputs: Vec<KeyedInput>,
}

/// An input of the plan.
#[derive(Debug)]
pub struct KeyedInput {
    /// The leaf of the plan that reads it.
    pub table: Arc<InputTable>,
    /// The columns of its key; all inputs' keys are of the same types. NULL is as any value.
    pub key: Vec<usize>,
    /// Whether no row of it is ever taken back.
    pub append_only: bool,
    /// The column of the key (a position in it) that bounds the event time of a key's rows. Only where all inputs have
    /// one is anything freed; it must say the same of all of them.
    pub bound: Option<Bound>,
}

/// The operator.
#[derive(Debug)]
pub struct ByKey {
    name: String,
    plan: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    inputs: Vec<Input>,
    /// Without a key, the rows that it gave last.
    last: Option<RecordBatch>,
    prepared: Option<Prepared>,
}

#[derive(Debug)]
struct Input {
    table: Arc<InputTable>,
    rows: Arrangement,
    is_timed: bool,
}

#[derive(Debug)]
struct Prepared {
    output: Delta,
    last: Option<RecordBatch>,
    /// Of each input.
    changes: Vec<Change>,
}

/// What a delta does to the rows of an input.
#[derive(Debug)]
struct Change {
    /// Slots of rows that go.
    gone: Vec<u32>,
    /// Rows that come.
    come: RecordBatch,
}

impl Input {
    fn new(input: KeyedInput) -> Result<Input> {
        let KeyedInput { table, key, append_only, bound } = input;
        let mut rows = Arrangement::new(table.schema(), key.clone(), !append_only, true);
        if let Some(bound) = bound {
            let Some(column) = key.get(bound.key) else { return internal_err!("a bound that is no key") };
            rows = rows.with_time(*column, bound.after)?;
        }
        Ok(Input { table, rows, is_timed: bound.is_some() })
    }

    fn change(&self, delta: &Delta) -> Result<Change> {
        if !delta.retracts() && delta.weights.values().iter().all(|weight| *weight == 1) {
            let come = renamed(&delta.rows, self.rows.schema())?;
            return Ok(Change { gone: Vec::new(), come });
        }
        let mut delta = delta.clone().consolidate()?;
        delta.rows = renamed(&delta.rows, self.rows.schema())?;
        let weights = || delta.weights.values().iter().zip(0u32..);
        let come = weights().flat_map(|(weight, row)| std::iter::repeat_n(row, (*weight).max(0) as usize));
        let come = batches::take(&delta.rows, &UInt32Array::from_iter_values(come))?;
        let (gone, counts): (Vec<u32>, Vec<u32>) =
            weights().filter(|(weight, _)| **weight < 0).map(|(weight, row)| (row, count(*weight))).unzip();
        let gone = match gone.is_empty() {
            true => Vec::new(),
            false => self.rows.find(&batches::take(&delta.rows, &UInt32Array::from(gone))?, &counts)?,
        };
        Ok(Change { gone, come })
    }

    /// Its rows that may have one of the keys, or all of them, as they are and as a change makes them; each in the
    /// order in which they came.
    fn touched(&self, keys: Option<&Keys>, change: &Change) -> Result<(RecordBatch, Vec<RecordBatch>)> {
        let slots = keys.map_or_else(|| self.rows.slots(), |keys| self.rows.touched(keys));
        let before = self.rows.gather(&slots, None)?;
        let mut after = Vec::with_capacity(2);
        if change.gone.is_empty() {
            after.push(before.clone());
        } else {
            let gone: HashSet<u32> = change.gone.iter().copied().collect();
            let stays: BooleanArray = slots.iter().map(|slot| Some(!gone.contains(slot))).collect();
            after.push(filter_record_batch(&before, &stays)?);
        }
        after.push(change.come.clone());
        Ok((before, after))
    }
}

/// How often a row goes; more often than it could be there for any number that is too large.
fn count(weight: i64) -> u32 {
    u32::try_from(weight.unsigned_abs()).unwrap_or(u32::MAX)
}

impl ByKey {
    /// Holds no rows yet.
    ///
    /// # Errors
    /// If the column that bounds the event time is no time.
    pub fn new(spec: ByKeySpec) -> Result<ByKey> {
        let ByKeySpec { name, plan, schema, inputs } = spec;
        let inputs: Vec<Input> = inputs.into_iter().map(Input::new).collect::<Result<_>>()?;
        let keys = |input: &Input| -> Vec<_> {
            let schema = input.rows.schema();
            input.rows.key().iter().map(|column| schema.field(*column).data_type().clone()).collect()
        };
        let (Some(first), true) =
            (inputs.first(), inputs.windows(2).all(|two| keys(&two[0]) == keys(&two[1])))
        else {
            return internal_err!("{name} by keys of no or different types");
        };
        let last = first.rows.key().is_empty().then(|| RecordBatch::new_empty(Arc::clone(&schema)));
        Ok(ByKey { name, plan, schema, inputs, last, prepared: None })
    }

    /// The keys that the deltas touch; nothing without key columns.
    fn keys(&self, deltas: &[Delta]) -> Result<Option<Keys>> {
        if self.last.is_some() {
            return Ok(None);
        }
        let first = &self.inputs[0].rows;
        if let [delta] = deltas {
            return Ok(Some(Keys::of(&delta.rows, first.key())?));
        }
        let schema = Arc::new(first.schema().project(first.key())?);
        let touched = self.inputs.iter().zip(deltas).filter(|(_, delta)| !delta.is_empty());
        let touched = touched.map(|(input, delta)| renamed(&delta.rows.project(input.rows.key())?, &schema));
        let touched = concat_batches(&schema, &touched.collect::<Result<Vec<_>>>()?)?;
        let all: Vec<usize> = (0..touched.num_columns()).collect();
        Ok(Some(Keys::of(&touched, &all)?))
    }

    /// The rows that a key's rows give. None give none: see `start`.
    async fn run_by_key(&mut self, rows: Vec<Vec<RecordBatch>>, run: &Run<'_>) -> Result<RecordBatch> {
        match rows.iter().flatten().all(|rows| rows.num_rows() == 0) {
            true => Ok(RecordBatch::new_empty(Arc::clone(&self.schema))),
            false => self.run(rows, run).await,
        }
    }

    /// Runs the plan over these rows of its inputs.
    async fn run(&mut self, rows: Vec<Vec<RecordBatch>>, run: &Run<'_>) -> Result<RecordBatch> {
        let mut inputs = run.inputs.clone();
        for (input, rows) in self.inputs.iter().zip(rows) {
            inputs = inputs.with(&input.table, rows);
        }
        // Joins keep what they built of one side.
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        let ran = collect(Arc::clone(&self.plan), run.runner.context(inputs));
        let batches = guard::catch_async(ran).await?.into_iter();
        let batches = batches.map(|batch| renamed(&batch, &self.schema)).collect::<Result<Vec<_>>>()?;
        Ok(concat_batches(&self.schema, &batches)?)
    }
}

#[async_trait]
impl Operator for ByKey {
    async fn start(&mut self, run: &Run<'_>) -> Result<Delta> {
        let rows = self.run(Vec::new(), run).await?;
        match &mut self.last {
            Some(last) => *last = rows.clone(),
            None if rows.num_rows() > 0 => {
                return internal_err!(
                    "{} has rows over nothing, so it does not fall apart by a key",
                    self.name
                );
            }
            None => {}
        }
        Ok(Delta::of_new(rows))
    }

    async fn prepare(&mut self, inputs: &[Delta], run: &Run<'_>) -> Result<()> {
        self.prepared = None;
        if inputs.len() != self.inputs.len() {
            return internal_err!("{} over {} inputs", self.name, inputs.len());
        }
        let changes = self.inputs.iter().zip(inputs).map(|(input, delta)| input.change(delta));
        let changes = changes.collect::<Result<Vec<_>>>()?;
        if changes.iter().all(|change| change.gone.is_empty() && change.come.num_rows() == 0) {
            return Ok(());
        }
        let keys = self.keys(inputs)?;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (input, change) in self.inputs.iter().zip(&changes) {
            let (was, is) = input.touched(keys.as_ref(), change)?;
            before.push(vec![was]);
            after.push(is);
        }
        let (before, after) = match self.last.clone() {
            Some(last) => (last, self.run(after, run).await?),
            None => (self.run_by_key(before, run).await?, self.run_by_key(after, run).await?),
        };
        let output = Delta::of_change(&before, &after)?.consolidate()?;
        self.prepared = Some(Prepared { output, last: self.last.is_some().then_some(after), changes });
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(prepared) = self.prepared.take() else { return Ok(Delta::empty(&self.schema)) };
        for (input, change) in self.inputs.iter_mut().zip(&prepared.changes) {
            input.rows.delete(&change.gone)?;
            input.rows.insert(&change.come)?;
        }
        self.last = prepared.last;
        Ok(prepared.output)
    }

    /// Frees the rows of keys that are final. No row of such a key may come or go later: its rows would be told as if
    /// there were no others.
    fn advance(&mut self, final_until: &[i64]) -> Result<()> {
        if !self.inputs.iter().all(|input| input.is_timed) {
            return Ok(());
        }
        let until = final_until.iter().copied().min().unwrap_or(i64::MIN);
        self.inputs.iter_mut().try_for_each(|input| input.rows.evict(until).map(|_| ()))
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let ByKey { name, plan: _, schema: _, inputs, last, prepared: _ } = self;
        saver.mark(name)?;
        for Input { table: _, rows, is_timed: _ } in inputs {
            rows.save(saver)?;
        }
        last.iter().for_each(|last| saver.rows(last));
        Ok(())
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark(&self.name)?;
        self.inputs.iter_mut().try_for_each(|input| input.rows.load(loader).map(|_| ()))?;
        if let Some(last) = &mut self.last {
            *last = loader.rows(&self.schema)?;
        }
        Ok(())
    }

    fn held_rows(&self) -> usize {
        self.inputs.iter().map(|input| input.rows.len()).sum()
    }

    fn bytes(&self) -> usize {
        let last = self.last.as_ref().map_or(0, RecordBatch::get_array_memory_size);
        last + self.inputs.iter().map(|input| input.rows.bytes()).sum::<usize>()
    }
}
