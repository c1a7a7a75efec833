//! One incremental aggregate: the groups of a GROUP BY and the states of its functions. A micro-batch
//! costs O(its rows + the groups it touches).
//!
//! The states are DataFusion's own (`GroupsAccumulator::state`), so whatever it can aggregate in two
//! phases, it can aggregate here: the old states of the touched groups are merged, the new rows added.

mod grouping;
mod physical;
mod saved;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use arrow::compute::{concat, filter_record_batch, take};
use arrow::datatypes::{Int64Type, Schema, SchemaRef, UInt32Type};
use async_trait::async_trait;
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::{
    AggregateMode, PhysicalGroupBy, aggregate_expressions, evaluate_group_by, evaluate_many,
};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use self::grouping::Grouping;
pub use self::grouping::Touched;
use self::physical::own_rows;
use self::shape::{Shape, StoredGroups};
use super::below::Below;
use super::bound::{Bound, SessionKeys};
use super::dedup::Dedup;
use super::delta::Delta;
use super::function::Function;
use super::input::{FINAL_UNTIL, ROW};
use super::node::{Groups, Node};
use super::store::Store;
use super::watermark::nanoseconds;
use crate::batches::empty;
use crate::checkpoint::{Loader, Saver};
use crate::guard;

/// Fewer dead groups than this are not worth a rebuild.
const DEAD_MIN: usize = 1024;

/// What decides how long a group can change.
#[derive(Clone, Debug, Default)]
pub struct EventTimeBounds {
    /// The key that bounds the event time, where the source has a watermark.
    pub bound: Option<Bound>,
    /// The keys of session windows.
    pub session: Option<SessionKeys>,
}

/// The groups and states of one aggregate.
pub struct AggregateState {
    below: Below,
    group_by: Arc<PhysicalGroupBy>,
    key_schema: SchemaRef,
    shape: Shape,
    functions: Vec<Function>,
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    grouping: Grouping,
    /// By group: its key; then for each function its states and, where that is another, its result.
    store: Store,
    bounds: EventTimeBounds,
    /// Groups by the time when they are final, where that is known.
    ends: BTreeMap<i64, Vec<u32>>,
    /// Groups that are final or merged into others; their numbers are not used again until the next rebuild.
    dead: BTreeSet<u32>,
    prepared: Option<Prepared>,
}

/// What a micro-batch will make of the groups that it touches.
struct Prepared {
    delta: Delta,
    groups: Vec<u32>,
    columns: Vec<ArrayRef>,
    /// Groups that have gone into others.
    merged: Vec<u32>,
    /// When groups are final.
    ends: Vec<(i64, u32)>,
}

impl AggregateState {
    /// Takes over what `plan` would compute; `schema` is that of its rows in the finishing plan.
    pub fn new(plan: &Arc<dyn ExecutionPlan>, schema: SchemaRef, bounds: EventTimeBounds) -> Result<Self> {
        let (exec, below) = own_rows(plan)?;
        let group_by = PhysicalGroupBy::clone(exec.group_expr());
        let input = exec.input().schema();
        let key_schema = group_by.group_schema(&input)?;
        let key_columns = key_schema.fields().len();
        if bounds.session.is_some() && group_by.has_grouping_set() {
            return plan_err!("session windows can't be grouped by GROUPING SETS, ROLLUP or CUBE");
        }
        let grouping = Grouping::new(&key_schema, bounds.session.as_ref())?;
        let dedups = !matches!(grouping, Grouping::BySession(_));
        let functions = exec
            .aggr_expr()
            .iter()
            .zip(exec.filter_expr())
            .map(|(expr, filter)| Function::new(expr, filter.clone(), &input, dedups))
            .collect::<Result<Vec<_>>>()?;
        let exprs: Vec<_> = functions.iter().map(|function| Arc::clone(&function.expr)).collect();
        let mut state = AggregateState {
            below: Below::new(below),
            arguments: aggregate_expressions(&exprs, &AggregateMode::Partial, 0)?,
            group_by: Arc::new(group_by),
            key_schema,
            shape: Shape::new(key_columns, &functions, schema),
            functions,
            grouping,
            store: Store::default(),
            bounds,
            ends: BTreeMap::new(),
            dead: BTreeSet::new(),
            prepared: None,
        };
        if let Grouping::One = state.grouping {
            // COUNT(*) over no row is a row with 0.
            state.prepare_rows(&RecordBatch::new_empty(Arc::clone(&input)))?;
            state.commit()?;
        }
        state.start_totals(&input)?;
        Ok(state)
    }

    fn prepare_rows(&mut self, rows: &RecordBatch) -> Result<()> {
        let mut sets = evaluate_group_by(&self.group_by, rows)?;
        let (rows, late) = self.split_late(rows, &sets)?;
        if !late.is_empty() {
            sets = evaluate_group_by(&self.group_by, &rows)?;
        }
        let keys = concat_grouping_sets(&sets)?;
        let touched = self.grouping.touch(&keys, rows.num_rows() * sets.len().max(1), &rows, &self.store)?;
        self.prepared = Some(self.merge(&keys, touched, &rows, late)?);
        Ok(())
    }

    /// Undoes what was prepared and not committed.
    fn discard(&mut self) {
        self.prepared = None;
        self.grouping.discard();
        for dedup in self.functions.iter_mut().filter_map(|function| function.dedup.as_mut()) {
            dedup.discard();
        }
    }

    /// Adds the group of all rows for each grouping set that is empty: it is there before the first row.
    fn start_totals(&mut self, input: &SchemaRef) -> Result<()> {
        let is_total = |set: &&Vec<bool>| !set.is_empty() && set.iter().all(|left_out| *left_out);
        if !self.group_by.groups().iter().any(|set| is_total(&set)) {
            return Ok(());
        }
        // Keys are evaluated over a row; of these sets no key looks at it.
        let nullable = input.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let nullable = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
        let columns = nullable.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(nullable, columns, &options)?;
        let sets = evaluate_group_by(&self.group_by, &row)?.into_iter().zip(self.group_by.groups());
        let totals: Vec<_> = sets.filter(|(_, set)| is_total(set)).map(|(keys, _)| keys).collect();
        let keys = concat_grouping_sets(&totals)?;
        let empty = RecordBatch::new_empty(Arc::clone(input));
        let mut touched = self.grouping.touch(&keys, totals.len(), &empty, &self.store)?;
        touched.positions.clear();
        self.prepared = Some(self.merge(&keys, touched, &empty, Vec::new())?);
        self.commit()?;
        Ok(())
    }

    /// Merges the rows with the old states of their groups.
    fn merge(
        &mut self,
        keys: &[ArrayRef],
        touched: Touched,
        rows: &RecordBatch,
        late: Vec<u32>,
    ) -> Result<Prepared> {
        if touched.groups.is_empty() {
            let nothing = || empty(&self.shape.schema);
            let delta = Delta { before: nothing(), after: nothing(), late };
            let (groups, columns, merged, ends) = Default::default();
            return Ok(Prepared { delta, groups, columns, merged, ends });
        }
        let first_rows = UInt32Array::from(touched.first_rows);
        let mut columns =
            keys.iter().map(|key| Ok(take(key, &first_rows, None)?)).collect::<Result<Vec<_>>>()?;
        if let Grouping::BySession(sessions) = &self.grouping {
            sessions.set_windows(&mut columns, &touched.groups, &self.key_schema)?;
        }
        let old = touched.old.len();
        let before = match &self.grouping {
            _ if old == 0 => Vec::new(),
            Grouping::BySession(_) => self.store.read(&touched.old, 0)?,
            _ if self.shape.has_float_key() => {
                let before = self.store.read(&touched.old, 0)?;
                // 0.0 and −0.0 are one group, whose key is the one that came first.
                for (key, kept) in columns.iter_mut().zip(&before) {
                    *key = concat(&[kept, &key.slice(old, key.len() - old)])?;
                }
                before
            }
            // The old groups come first, and their keys are the same.
            _ => {
                let keys = columns.iter().map(|key| key.slice(0, old));
                keys.chain(self.store.read(&touched.old, self.shape.key_columns)?).collect()
            }
        };
        let count = touched.groups.len();
        let everyone: Vec<usize> = (0..count).collect();
        let arguments = evaluate_many(&self.arguments, rows)?;
        for (function, arguments) in self.functions.iter_mut().zip(&arguments) {
            let mut accumulator = function.accumulator()?;
            if !before.is_empty() {
                let states = &before[columns.len()..columns.len() + function.state_columns];
                // An accumulator takes every group up to the number it is told for seen: the old ones come first.
                accumulator.merge_batch(states, &touched.old_positions, touched.with_old)?;
            }
            let filter = function.evaluate_filter(rows)?;
            for set in touched.positions.chunks(rows.num_rows().max(1)) {
                let filter = match &mut function.dedup {
                    Some(dedup) => {
                        Some(dedup.first_seen(set, &touched.groups, arguments, filter.as_ref())?)
                    }
                    None => filter.clone(),
                };
                accumulator.update_batch(arguments, set, filter.as_ref(), count)?;
            }
            if touched.positions.is_empty() {
                // Without a filter an accumulator takes the group for seen, and answers 0 where NULL is right.
                let none = BooleanArray::from(Vec::<bool>::new());
                accumulator.update_batch(arguments, &[], Some(&none), count)?;
            }
            let states = accumulator.state(EmitTo::All)?;
            let result = if function.state_is_result {
                None
            } else {
                // `state` has emptied the accumulator: what was kept is what is evaluated.
                let mut result = function.accumulator()?;
                result.merge_batch(&states, &everyone, count)?;
                Some(result.evaluate(EmitTo::All)?)
            };
            columns.extend(states);
            columns.extend(result);
        }
        let delta = Delta {
            before: self.output(&before, touched.old.len())?,
            after: self.output(&columns, count)?,
            late,
        };
        let ends = self.ends(&touched.groups, touched.with_old, &columns)?;
        // A session that takes rows goes on under a new number.
        let goes_on = matches!(self.grouping, Grouping::BySession(_));
        let merged = if goes_on { touched.old } else { Vec::new() };
        Ok(Prepared { delta, groups: touched.groups, columns, merged, ends })
    }

    /// The rows whose groups are not final, and the positions of the others in the micro-batch. `sets` are the
    /// rows' keys by grouping set.
    fn split_late(&self, rows: &RecordBatch, sets: &[Vec<ArrayRef>]) -> Result<(RecordBatch, Vec<u32>)> {
        let (Some(bound), [keys], Some(final_until)) =
            (self.bounds.bound, sets, rows.column_by_name(FINAL_UNTIL))
        else {
            return Ok((rows.clone(), Vec::new()));
        };
        let final_until = final_until.as_primitive::<Int64Type>();
        let ends = nanoseconds(&keys[bound.key])?;
        let is_late = |row: usize| {
            let end = ends.value(row).saturating_add(bound.after);
            ends.is_valid(row) && final_until.is_valid(row) && end <= final_until.value(row)
        };
        let late: Vec<usize> = (0..rows.num_rows()).filter(|row| is_late(*row)).collect();
        if late.is_empty() {
            return Ok((rows.clone(), Vec::new()));
        }
        let keep = BooleanArray::from_iter((0..rows.num_rows()).map(|row| Some(!is_late(row))));
        let kept = filter_record_batch(rows, &keep)?;
        let Some(position) = rows.column_by_name(ROW) else {
            return internal_err!("column {ROW} is not held");
        };
        let position = position.as_primitive::<UInt32Type>();
        let late = late.into_iter().map(|row| position.value(row)).collect();
        Ok((kept, late))
    }

    /// When the groups that the micro-batch adds are final.
    fn ends(&self, groups: &[u32], with_old: usize, columns: &[ArrayRef]) -> Result<Vec<(i64, u32)>> {
        let Some(bound) = self.bounds.bound else { return Ok(Vec::new()) };
        if let Grouping::BySession(sessions) = &self.grouping {
            let end = |group: &u32| Some((sessions.end(*group)?, *group));
            return Ok(groups.iter().filter_map(end).collect());
        }
        let values = nanoseconds(&columns[bound.key])?;
        let new = (with_old..groups.len()).filter(|i| values.is_valid(*i));
        Ok(new.map(|i| (values.value(i).saturating_add(bound.after), groups[i])).collect())
    }

    /// Numbers the living groups anew, once most of the store is dead.
    fn rebuild(&mut self) -> Result<()> {
        if self.dead.len() < DEAD_MIN || self.dead.len() * 2 < self.store.len() {
            return Ok(());
        }
        self.renumber()
    }

    fn renumber(&mut self) -> Result<()> {
        let living = self.living();
        let columns = self.store.read(&living, 0)?;
        let mut numbers: Vec<u32> = (0..living.len() as u32).collect();
        if let Grouping::ByKey(by_key) = &mut self.grouping {
            numbers = by_key.renumber(columns.get(..self.shape.key_columns).unwrap_or(&[]))?;
        }
        let mut number = vec![u32::MAX; self.store.len()];
        for (new, old) in numbers.iter().zip(&living) {
            number[*old as usize] = *new;
        }
        if let Grouping::BySession(sessions) = &mut self.grouping {
            sessions.renumber(&number);
        }
        for function in &mut self.functions {
            if let Some(dedup) = &mut function.dedup {
                dedup.renumber(&number)?;
            }
        }
        for groups in self.ends.values_mut() {
            groups.retain_mut(|group| {
                *group = number[*group as usize];
                *group != u32::MAX
            });
        }
        self.ends.retain(|_, groups| !groups.is_empty());
        self.store = Store::default();
        self.store.write(numbers, columns);
        self.dead.clear();
        Ok(())
    }

    fn living(&self) -> Vec<u32> {
        let living = |group: &u32| self.store.has(*group) && !self.dead.contains(group);
        (0..self.store.len() as u32).filter(living).collect()
    }

    fn output(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        self.shape.output(columns, rows)
    }
}

#[async_trait]
impl Node for AggregateState {
    async fn prepare(&mut self, context: Arc<TaskContext>) -> Result<()> {
        self.discard();
        let rows = self.below.run(context).await?;
        guard::catch(|| self.prepare_rows(&rows))
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(prepared) = self.prepared.take() else {
            return internal_err!("nothing was prepared");
        };
        self.grouping.commit();
        for dedup in self.functions.iter_mut().filter_map(|function| function.dedup.as_mut()) {
            dedup.commit();
        }
        for (end, group) in prepared.ends {
            self.ends.entry(end).or_default().push(group);
        }
        self.store.write(prepared.groups, prepared.columns);
        self.dead.extend(prepared.merged);
        Ok(prepared.delta)
    }

    fn evict(&mut self, final_until: i64) -> Result<Option<RecordBatch>> {
        if self.ends.first_key_value().is_none_or(|(end, _)| *end > final_until) {
            return Ok(None);
        }
        let later = match final_until.checked_add(1) {
            Some(next) => self.ends.split_off(&next),
            None => BTreeMap::new(),
        };
        let ended = std::mem::replace(&mut self.ends, later);
        let ended: Vec<u32> =
            ended.into_values().flatten().filter(|group| !self.dead.contains(group)).collect();
        if ended.is_empty() {
            return Ok(None);
        }
        let rows = self.output(&self.store.read(&ended, 0)?, ended.len())?;
        if let Grouping::BySession(sessions) = &mut self.grouping {
            sessions.remove(&ended)?;
        }
        self.dead.extend(ended);
        self.rebuild()?;
        Ok(Some(rows))
    }

    fn rows(&self) -> Result<RecordBatch> {
        if self.dead.is_empty() {
            return self.output(&self.store.read_all()?, self.store.written());
        }
        let living = self.living();
        if living.is_empty() {
            return Ok(empty(&self.shape.schema));
        }
        self.output(&self.store.read(&living, 0)?, living.len())
    }

    fn snapshot(&self) -> Option<Arc<dyn Groups>> {
        let aligned = !matches!(self.grouping, Grouping::BySession(_)) && self.bounds.bound.is_none();
        aligned.then(|| Arc::new(StoredGroups { store: self.store.clone(), shape: self.shape.clone() }) as _)
    }

    fn save(&mut self, saver: &mut Saver) -> Result<()> {
        self.save_groups(saver)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.load_groups(loader)
    }

    fn load_snapshot(&self, loader: &mut Loader) -> Result<Arc<dyn Groups>> {
        Ok(Arc::new(StoredGroups { store: Store::load(loader)?, shape: self.shape.clone() }))
    }

    fn reset(&mut self) -> Result<()> {
        self.below.reset()
    }

    fn bytes(&self) -> usize {
        let dedups: usize =
            self.functions.iter().filter_map(|function| function.dedup.as_ref()).map(Dedup::bytes).sum();
        self.store.bytes() + self.grouping.bytes() + dedups
    }

    fn key_columns(&self) -> Option<usize> {
        Some(self.shape.key_columns)
    }

    fn values_kept(&self) -> Vec<String> {
        self.functions.iter().filter_map(Function::growth).collect()
    }

    fn bounds_time(&self) -> bool {
        self.bounds.bound.is_some()
    }

    fn finality(&self) -> Vec<Option<i64>> {
        let after = |key| self.bounds.bound.filter(|bound| bound.key == key).map(|bound| bound.after);
        match self.bounds.session {
            // A session that has not ended yet can become another one.
            Some(_) => Vec::new(),
            None => (0..self.shape.key_columns).map(after).collect(),
        }
    }

    #[cfg(test)]
    fn keeps_lookups(&self) -> bool {
        self.below.keeps_lookups()
    }
}

/// The keys of all grouping sets: first those of the first set, of every row, and so on.
fn concat_grouping_sets(sets: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>> {
    let Some(first) = sets.first() else { return Ok(Vec::new()) };
    if sets.len() == 1 {
        return Ok(first.clone());
    }
    let column = |i: usize| {
        let parts: Vec<&dyn Array> = sets.iter().map(|set| set[i].as_ref()).collect();
        Ok(concat(&parts)?)
    };
    (0..first.len()).map(column).collect()
}
