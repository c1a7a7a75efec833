//! One incremental aggregate: the groups of a GROUP BY and the states of its functions. A micro-batch
//! costs O(its rows + the groups it touches).
//!
//! The states are DataFusion's own (`GroupsAccumulator::state`), so whatever it can aggregate in two
//! phases, it can aggregate here: the old states of the touched groups are merged, the new rows added.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use arrow::compute::{cast, concat, filter_record_batch, take};
use arrow::datatypes::{Int64Type, Schema, SchemaRef, UInt32Type};
use async_trait::async_trait;
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::aggregates::{
    AggregateExec, AggregateMode, PhysicalGroupBy, aggregate_expressions, evaluate_group_by, evaluate_many,
};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use super::below::Below;
use super::bound::{Bound, SessionKeys};
use super::dedup::Dedup;
use super::function::Function;
use super::node::{Delta, Groups, Node};
use super::session_groups::SessionGroups;
use super::slot::{FINAL_UNTIL, ROW};
use super::store::Store;
use super::watermark::nanoseconds;
use crate::batches::empty;
use crate::error;

const UNTOUCHED: u32 = u32::MAX;
/// Fewer dead groups than this are not worth a rebuild.
const DEAD_MIN: usize = 1024;

/// What decides how long a group can change.
#[derive(Clone, Debug, Default)]
pub struct Lifetime {
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
    groups: Find,
    /// By group: its key; then for each function its states and, where that is another, its result.
    store: Store,
    /// By group: its position among the touched groups, while a batch is applied.
    position: Vec<u32>,
    lifetime: Lifetime,
    /// Groups by the time when they are final, where that is known.
    ends: BTreeMap<i64, Vec<u32>>,
    /// Groups that are final or merged into others; their numbers are not used again until the next rebuild.
    dead: BTreeSet<u32>,
    /// Groups that end until then are evicted, in nanoseconds since 1970.
    evicted_until: i64,
}

/// How the group of a row is found.
enum Find {
    /// All rows are one group.
    One,
    ByKey(Box<dyn GroupValues>),
    BySession(SessionGroups),
}

impl AggregateState {
    /// Takes over what `plan` would compute; `schema` is that of its rows in the finishing plan.
    pub fn new(plan: &Arc<dyn ExecutionPlan>, schema: SchemaRef, lifetime: Lifetime) -> Result<Self> {
        let (exec, below) = own_rows(plan)?;
        let group_by = PhysicalGroupBy::clone(exec.group_expr());
        let input = exec.input().schema();
        let key_schema = group_by.group_schema(&input)?;
        let key_columns = key_schema.fields().len();
        let groups = match &lifetime.session {
            Some(_) if group_by.has_grouping_set() => {
                return plan_err!("session windows can't be grouped by GROUPING SETS, ROLLUP or CUBE");
            }
            Some(keys) => Find::BySession(SessionGroups::new(keys.clone(), &key_schema)?),
            None if key_columns == 0 => Find::One,
            None => Find::ByKey(new_group_values(Arc::clone(&key_schema), &GroupOrdering::None)?),
        };
        let dedups = !matches!(groups, Find::BySession(_));
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
            groups,
            store: Store::default(),
            position: Vec::new(),
            lifetime,
            ends: BTreeMap::new(),
            dead: BTreeSet::new(),
            evicted_until: i64::MIN,
        };
        if let Find::One = state.groups {
            // COUNT(*) over no row is a row with 0.
            state.accumulate(&RecordBatch::new_empty(Arc::clone(&input)))?;
        }
        state.start_totals(&input)?;
        Ok(state)
    }

    fn accumulate(&mut self, rows: &RecordBatch) -> Result<Delta> {
        let mut sets = evaluate_group_by(&self.group_by, rows)?;
        let (rows, late) = self.take_late_out(rows, &sets)?;
        if !late.is_empty() {
            sets = evaluate_group_by(&self.group_by, &rows)?;
        }
        let keys = one_after_another(&sets)?;
        let touched = self.touch(&keys, rows.num_rows() * sets.len().max(1), &rows)?;
        self.merge(&keys, touched, &rows, late)
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
        let keys = one_after_another(&totals)?;
        let empty = RecordBatch::new_empty(Arc::clone(input));
        let mut touched = self.touch(&keys, totals.len(), &empty)?;
        touched.positions.clear();
        self.merge(&keys, touched, &empty, Vec::new())?;
        Ok(())
    }

    /// Merges the rows with the old states of their groups.
    fn merge(
        &mut self,
        keys: &[ArrayRef],
        touched: Touched,
        rows: &RecordBatch,
        late: Vec<u32>,
    ) -> Result<Delta> {
        if touched.groups.is_empty() {
            return Ok(Delta { before: empty(&self.shape.schema), after: empty(&self.shape.schema), late });
        }
        let first_rows = UInt32Array::from(touched.first_rows);
        let mut columns =
            keys.iter().map(|key| Ok(take(key, &first_rows, None)?)).collect::<Result<Vec<_>>>()?;
        if let Find::BySession(sessions) = &self.groups {
            sessions.set_windows(&mut columns, &touched.groups, &self.key_schema)?;
        }
        let old = touched.old.len();
        let before = match &self.groups {
            _ if old == 0 => Vec::new(),
            Find::BySession(_) => self.store.read(&touched.old, 0)?,
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
        self.note_ends(&touched.groups, &columns)?;
        self.store.write(touched.groups, columns)?;
        if let Find::BySession(_) = self.groups {
            // A session that takes rows goes on under a new number.
            self.dead.extend(touched.old);
        }
        Ok(delta)
    }

    /// The rows whose groups are not final, and the positions of the others in the micro-batch. `sets` are the
    /// rows' keys by grouping set.
    fn take_late_out(&self, rows: &RecordBatch, sets: &[Vec<ArrayRef>]) -> Result<(RecordBatch, Vec<u32>)> {
        let (Some(bound), [keys], Some(final_until)) =
            (self.lifetime.bound, sets, rows.column_by_name(FINAL_UNTIL))
        else {
            return Ok((rows.clone(), Vec::new()));
        };
        let final_until = final_until.as_primitive::<Int64Type>();
        let ends = nanoseconds(&keys[bound.key])?;
        let is_late = |row: usize| {
            let end = ends.value(row).saturating_add(bound.after);
            // By its own partition; or by all, if its partition was silent while the others went on.
            let own = final_until.is_valid(row) && end <= final_until.value(row);
            ends.is_valid(row) && (own || end <= self.evicted_until)
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

    /// Finds the group of each row.
    fn touch(&mut self, keys: &[ArrayRef], rows: usize, batch: &RecordBatch) -> Result<Touched> {
        let known = self.store.len();
        let groups = match &mut self.groups {
            Find::One => {
                let old: Vec<u32> = if known == 0 { vec![] } else { vec![0] };
                return Ok(Touched {
                    groups: vec![0],
                    old_positions: vec![0; old.len()],
                    with_old: old.len(),
                    old,
                    first_rows: vec![0],
                    positions: vec![0; rows],
                });
            }
            Find::BySession(sessions) => {
                let final_until =
                    batch.column_by_name(FINAL_UNTIL).map(|column| column.as_primitive::<Int64Type>());
                return sessions.touch(keys, rows, known as u32, final_until);
            }
            Find::ByKey(groups) => groups,
        };
        let mut ids = Vec::with_capacity(rows);
        groups.intern(keys, &mut ids)?;
        if u32::try_from(groups.len()).is_err() {
            return internal_err!("more than {UNTOUCHED} groups");
        }
        self.position.resize(groups.len(), UNTOUCHED);
        let (mut first_rows, mut first_rows_of_new) = (Vec::new(), Vec::new());
        for (row, id) in ids.iter().enumerate() {
            let position = &mut self.position[*id];
            if *position == UNTOUCHED {
                let rows = if *id < known { &mut first_rows } else { &mut first_rows_of_new };
                *position = rows.len() as u32;
                rows.push(row as u32);
            }
        }
        let old = first_rows.len();
        first_rows.extend(first_rows_of_new);
        let place = |id: &usize| self.position[*id] as usize + if *id < known { 0 } else { old };
        let positions = ids.iter().map(place).collect();
        let touched: Vec<u32> = first_rows.iter().map(|row| ids[*row as usize] as u32).collect();
        for group in &touched {
            self.position[*group as usize] = UNTOUCHED;
        }
        Ok(Touched {
            old: touched[..old].to_vec(),
            old_positions: (0..old).collect(),
            with_old: old,
            groups: touched,
            first_rows,
            positions,
        })
    }

    /// Remembers when new groups are final.
    fn note_ends(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        let Some(bound) = self.lifetime.bound else { return Ok(()) };
        let known = self.store.len() as u32;
        let values = nanoseconds(&columns[bound.key])?;
        for (i, group) in groups.iter().enumerate().filter(|(_, group)| **group >= known) {
            let end = match &self.groups {
                Find::BySession(sessions) => sessions.end(*group),
                _ => values.is_valid(i).then(|| values.value(i).saturating_add(bound.after)),
            };
            if let Some(end) = end {
                self.ends.entry(end).or_default().push(*group);
            }
        }
        Ok(())
    }

    /// Numbers the living groups anew, once most of the store is dead.
    fn rebuild(&mut self) -> Result<()> {
        if self.dead.len() < DEAD_MIN || self.dead.len() * 2 < self.store.len() {
            return Ok(());
        }
        let living = self.living();
        let columns = self.store.read(&living, 0)?;
        let mut number = vec![UNTOUCHED; self.store.len()];
        for (new, old) in living.iter().enumerate() {
            number[*old as usize] = new as u32;
        }
        if let Find::ByKey(groups) = &mut self.groups {
            let mut anew = new_group_values(Arc::clone(&self.key_schema), &GroupOrdering::None)?;
            if !living.is_empty() {
                anew.intern(&columns[..self.shape.key_columns], &mut Vec::new())?;
            }
            *groups = anew;
        }
        if let Find::BySession(sessions) = &mut self.groups {
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
                *group != UNTOUCHED
            });
        }
        self.ends.retain(|_, groups| !groups.is_empty());
        self.store = Store::default();
        self.store.write((0..living.len() as u32).collect(), columns)?;
        self.position = Vec::new();
        self.dead.clear();
        Ok(())
    }

    fn living(&self) -> Vec<u32> {
        (0..self.store.len() as u32).filter(|group| !self.dead.contains(group)).collect()
    }

    fn output(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        self.shape.output(columns, rows)
    }
}

/// Where in a stored row its key and its results are.
#[derive(Clone, Debug)]
struct Shape {
    key_columns: usize,
    /// The column of each function's result.
    results: Vec<usize>,
    schema: SchemaRef,
}

impl Shape {
    fn new(key_columns: usize, functions: &[Function], schema: SchemaRef) -> Self {
        let mut next = key_columns;
        let results = functions.iter().map(|function| {
            next += function.stored_columns();
            next - 1
        });
        Shape { key_columns, results: results.collect(), schema }
    }

    /// Keys and results, without the states between them.
    fn output(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        if columns.is_empty() {
            return Ok(empty(&self.schema));
        }
        let results = self.results.iter().map(|column| &columns[*column]);
        let kept = columns[..self.key_columns].iter().chain(results);
        let typed = kept
            .zip(self.schema.fields())
            .map(|(column, field)| Ok(cast(column, field.data_type())?))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), typed, &options)?)
    }
}

/// The groups at some time.
#[derive(Debug)]
struct StoredGroups {
    store: Store,
    shape: Shape,
}

impl Groups for StoredGroups {
    fn rows(&self) -> Result<RecordBatch> {
        self.shape.output(&self.store.read_all()?, self.store.len())
    }
}

#[async_trait]
impl Node for AggregateState {
    async fn apply(&mut self, context: Arc<TaskContext>) -> error::Result<Delta> {
        let rows = self.below.run(context).await?;
        Ok(self.accumulate(&rows)?)
    }

    fn evict(&mut self, final_until: i64) -> error::Result<Option<RecordBatch>> {
        self.evicted_until = self.evicted_until.max(final_until);
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
        if let Find::BySession(sessions) = &mut self.groups {
            sessions.remove(&ended);
        }
        self.dead.extend(ended);
        self.rebuild()?;
        Ok(Some(rows))
    }

    fn rows(&self) -> Result<RecordBatch> {
        if self.dead.is_empty() {
            return self.output(&self.store.read_all()?, self.store.len());
        }
        let living = self.living();
        if living.is_empty() {
            return Ok(empty(&self.shape.schema));
        }
        self.output(&self.store.read(&living, 0)?, living.len())
    }

    fn snapshot(&self) -> Option<Arc<dyn Groups>> {
        let aligned = !matches!(self.groups, Find::BySession(_)) && self.lifetime.bound.is_none();
        aligned.then(|| Arc::new(StoredGroups { store: self.store.clone(), shape: self.shape.clone() }) as _)
    }

    fn reset(&mut self) -> Result<()> {
        self.below.reset()
    }

    fn bytes(&self) -> usize {
        let groups = match &self.groups {
            Find::One => 0,
            Find::ByKey(groups) => groups.size(),
            Find::BySession(sessions) => sessions.bytes(),
        };
        let dedups: usize =
            self.functions.iter().filter_map(|function| function.dedup.as_ref()).map(Dedup::bytes).sum();
        self.store.bytes() + groups + dedups + self.position.len() * size_of::<u32>()
    }

    fn bounds_time(&self) -> bool {
        self.lifetime.bound.is_some()
    }

    fn describe(&self) -> String {
        let mut text = match (&self.groups, self.lifetime.bound) {
            (Find::One, _) => "one group".to_string(),
            (Find::BySession(_), None) => "sessions, kept for ever: the source has no watermark".into(),
            (Find::BySession(_), Some(_)) => "sessions, until the watermark passes their end".into(),
            (Find::ByKey(_), None) => "by group".into(),
            (Find::ByKey(_), Some(_)) => "by group, until the watermark passes the group's end".into(),
        };
        for costs in self.functions.iter().filter_map(Function::growth) {
            text += &format!("; {costs}");
        }
        text
    }

    #[cfg(test)]
    fn keeps_lookups(&self) -> bool {
        self.below.keeps_lookups()
    }
}

/// The operator that aggregates the rows themselves, and what it reads. GROUPING SETS and unions are planned
/// in two steps, and subqueries in expressions stand around the aggregate: they go with what it reads.
fn own_rows(plan: &Arc<dyn ExecutionPlan>) -> Result<(&AggregateExec, Arc<dyn ExecutionPlan>)> {
    if let Some(exec) = plan.downcast_ref::<AggregateExec>()
        && matches!(
            exec.mode(),
            AggregateMode::Single | AggregateMode::SinglePartitioned | AggregateMode::Partial
        )
    {
        return Ok((exec, Arc::clone(exec.input())));
    }
    let children = plan.children();
    let Some((first, others)) = children.split_first() else {
        return plan_err!("{} where an aggregate was expected", plan.name());
    };
    let (exec, below) = own_rows(first)?;
    if others.is_empty() {
        return Ok((exec, below));
    }
    let mut inputs = vec![below];
    inputs.extend(others.iter().map(|other| Arc::clone(other)));
    Ok((exec, replace_children_if_necessary(Arc::clone(plan), inputs)?))
}

/// The keys of all grouping sets: first those of the first set, of every row, and so on.
fn one_after_another(sets: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>> {
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

/// The groups that a micro-batch touches.
#[derive(Debug)]
pub struct Touched {
    /// Their numbers, each once: those with an old state first.
    pub groups: Vec<u32>,
    /// Numbers of the groups whose states go into them, …
    pub old: Vec<u32>,
    /// … and into which: positions in `groups`.
    pub old_positions: Vec<usize>,
    /// How many of `groups` have an old state.
    pub with_old: usize,
    /// Of each group, its first row in the batch.
    pub first_rows: Vec<u32>,
    /// Of each row, its group's position in `groups`.
    pub positions: Vec<usize>,
}
