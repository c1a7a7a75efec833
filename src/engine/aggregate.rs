//! One incremental aggregate: the groups of a GROUP BY and the states of its functions. A micro-batch
//! costs O(its rows + the groups it touches).
//!
//! The states are DataFusion's own (`GroupsAccumulator::state`), so whatever it can aggregate in two
//! phases, it can aggregate here: the old states of the touched groups are merged, the new rows added.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::SchemaRef;
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::aggregates::{
    AggregateExec, AggregateMode, PhysicalGroupBy, aggregate_expressions, evaluate_group_by, evaluate_many,
};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr, collect};

use super::slot::{Kind, SlotExec};
use super::store::Store;

const UNTOUCHED: u32 = u32::MAX;

/// The groups that a micro-batch changed. Both batches have the aggregate's columns (`c0, c1, …`).
#[derive(Debug)]
pub struct Delta {
    /// Their rows before, of the groups that existed.
    pub before: RecordBatch,
    /// Their rows now: those of the groups in `before` first, in the same order.
    pub after: RecordBatch,
}

/// The groups and states of one aggregate.
pub struct AggregateState {
    below: Arc<dyn ExecutionPlan>,
    reusable: bool,
    group_by: Arc<PhysicalGroupBy>,
    functions: Vec<Function>,
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    /// Finds a group's id; `None`: all rows are one group.
    groups: Option<Box<dyn GroupValues>>,
    /// By group: its key, the states, the results.
    store: Store,
    /// By group: its position among the touched groups, while a batch is applied.
    position: Vec<u32>,
    key_columns: usize,
    schema: SchemaRef,
}

struct Function {
    expr: Arc<AggregateFunctionExpr>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    state_columns: usize,
}

impl AggregateState {
    /// Takes over what `plan` would compute; `schema` is that of its rows in the finishing plan.
    pub fn new(plan: &Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Result<Self> {
        let Some(exec) = plan.downcast_ref::<AggregateExec>() else {
            return plan_err!("{} where an aggregate was expected", plan.name());
        };
        if !matches!(exec.mode(), AggregateMode::Single | AggregateMode::SinglePartitioned)
            || exec.group_expr().has_grouping_set()
        {
            return plan_err!(
                "GROUPING SETS, ROLLUP and CUBE are not known yet; write one view for each grouping"
            );
        }
        let group_by = PhysicalGroupBy::clone(exec.group_expr());
        let input = exec.input().schema();
        let functions = exec
            .aggr_expr()
            .iter()
            .zip(exec.filter_expr())
            .map(|(expr, filter)| {
                let state_columns = expr.state_fields()?.len();
                Ok(Function { expr: Arc::clone(expr), filter: filter.clone(), state_columns })
            })
            .collect::<Result<Vec<_>>>()?;
        let key_schema = group_by.group_schema(&input)?;
        let key_columns = key_schema.fields().len();
        let groups =
            if key_columns == 0 { None } else { Some(new_group_values(key_schema, &GroupOrdering::None)?) };
        let mut state = AggregateState {
            below: Arc::clone(exec.input()),
            reusable: is_reusable(exec.input()),
            arguments: aggregate_expressions(exec.aggr_expr(), &AggregateMode::Partial, 0)?,
            group_by: Arc::new(group_by),
            functions,
            groups,
            store: Store::default(),
            position: Vec::new(),
            key_columns,
            schema,
        };
        if state.groups.is_none() {
            // COUNT(*) over no row is a row with 0.
            state.accumulate(&RecordBatch::new_empty(input))?;
        }
        Ok(state)
    }

    #[cfg(test)]
    /// Whether the plan below keeps its hash tables of reference tables from one micro-batch to the next.
    pub fn keeps_lookups(&self) -> bool {
        self.reusable
    }

    /// Runs the part below on the micro-batch that the stream's slot holds, and adds its rows.
    pub async fn apply(&mut self, context: Arc<TaskContext>) -> Result<Delta> {
        if !self.reusable {
            self.reset()?;
        }
        let batches = collect(Arc::clone(&self.below), context).await?;
        let rows = arrow::compute::concat_batches(&self.below.schema(), &batches)?;
        self.accumulate(&rows)
    }

    /// Forgets what the plan below has cached of the reference tables.
    pub fn reset(&mut self) -> Result<()> {
        self.below = reset_plan_states(Arc::clone(&self.below))?;
        Ok(())
    }

    /// The rows of all groups, in the order in which they were first seen.
    pub fn rows(&self) -> Result<RecordBatch> {
        self.output(self.store.read_all()?, self.store.len())
    }

    /// Bytes held for the groups.
    pub fn bytes(&self) -> usize {
        let groups = self.groups.as_ref().map_or(0, |groups| groups.size());
        self.store.bytes() + groups + self.position.len() * size_of::<u32>()
    }

    fn accumulate(&mut self, rows: &RecordBatch) -> Result<Delta> {
        let keys = evaluate_group_by(&self.group_by, rows)?.into_iter().next().unwrap_or_default();
        let touched = self.touch(&keys, rows.num_rows())?;
        let old = &touched.groups[..touched.old];
        let before = if old.is_empty() { Vec::new() } else { self.store.read(old)? };
        // An accumulator takes every group up to the number it is told for seen: the old ones come first.
        let old_positions: Vec<usize> = (0..touched.old).collect();

        let first_rows = UInt32Array::from(touched.first_rows);
        let mut columns =
            keys.iter().map(|key| Ok(take(key, &first_rows, None)?)).collect::<Result<Vec<_>>>()?;
        let mut results = Vec::with_capacity(self.functions.len());
        let arguments = evaluate_many(&self.arguments, rows)?;
        for (function, arguments) in self.functions.iter().zip(&arguments) {
            let count = touched.groups.len();
            let mut accumulator = function.accumulator()?;
            if !before.is_empty() {
                let states = &before[columns.len()..columns.len() + function.state_columns];
                accumulator.merge_batch(states, &old_positions, touched.old)?;
            }
            let filter = function.evaluate_filter(rows)?;
            accumulator.update_batch(arguments, &touched.positions, filter.as_ref(), count)?;
            let states = accumulator.state(EmitTo::All)?;
            // `state` has emptied the accumulator: what was kept is what is evaluated.
            let all: Vec<usize> = (0..count).collect();
            let mut result = function.accumulator()?;
            result.merge_batch(&states, &all, count)?;
            results.push(result.evaluate(EmitTo::All)?);
            columns.extend(states);
        }
        columns.extend(results);
        let delta = Delta {
            before: self.output(before, touched.old)?,
            after: self.output(columns.clone(), touched.groups.len())?,
        };
        self.store.write(touched.groups, columns)?;
        Ok(delta)
    }

    /// Finds the group of each row.
    fn touch(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Touched> {
        let known = self.store.len();
        let Some(groups) = &mut self.groups else {
            return Ok(Touched {
                groups: vec![0],
                old: known.min(1),
                first_rows: vec![0],
                positions: vec![0; rows],
            });
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
        Ok(Touched { groups: touched, old, first_rows, positions })
    }

    /// Keys and results, without the states between them.
    fn output(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        if columns.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        let results = columns.len() - self.functions.len();
        let kept = columns[..self.key_columns].iter().chain(&columns[results..]);
        let typed = kept
            .zip(self.schema.fields())
            .map(|(column, field)| Ok(cast(column, field.data_type())?))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), typed, &options)?)
    }
}

struct Touched {
    /// Ids of the touched groups, each once: those that existed first.
    groups: Vec<u32>,
    /// How many existed.
    old: usize,
    /// Of each, its first row in the batch.
    first_rows: Vec<u32>,
    /// Of each row, its group's position in `groups`.
    positions: Vec<usize>,
}

impl Function {
    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.expr.groups_accumulator_supported() {
            return self.expr.create_groups_accumulator();
        }
        let expr = Arc::clone(&self.expr);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || expr.create_accumulator())))
    }

    fn evaluate_filter(&self, rows: &RecordBatch) -> Result<Option<BooleanArray>> {
        if rows.num_rows() == 0 {
            // Without a filter an accumulator takes the group for seen, and answers 0 where NULL is right.
            return Ok(Some(BooleanArray::from(Vec::<bool>::new())));
        }
        let Some(filter) = &self.filter else { return Ok(None) };
        let keep = filter.evaluate(rows)?.into_array(rows.num_rows())?;
        Ok(Some(keep.as_boolean().clone()))
    }
}

/// Whether the plan may run again without a reset: true if all that it caches is a hash table of
/// reference rows. A join that cached rows of the stream would go on with old ones, silently.
fn is_reusable(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let children = plan.children();
    let caches_reference_only = match children.as_slice() {
        [build, _] => plan.is::<HashJoinExec>() && !reads_stream(build),
        _ => true,
    };
    caches_reference_only && children.into_iter().all(is_reusable)
}

fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<SlotExec>().is_some_and(|scan| scan.kind() == Kind::Stream)
        || plan.children().into_iter().any(reads_stream)
}
