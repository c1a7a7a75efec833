//! A finishing plan of which each row depends on one group: expressions over the group's columns, and a
//! condition. Such a view holds no rows of its own: what changed is told from the touched groups, and all its
//! rows are computed from the groups when somebody reads them.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, make_comparator,
};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{
    SortColumn, SortOptions, concat_batches, filter_record_batch, lexsort_to_indices, take, take_record_batch,
};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::PhysicalExpr;

use super::bound::replace;
use super::delta::Delta;
use super::node::{Groups, Node};
use super::view::{Changelog, Op, RowSource};
use super::view_rows::ViewRows;
use crate::checkpoint::{Loader, Saver};
use crate::guard;

/// Expressions over a node's row that give the view's row, and whether there is one.
#[derive(Debug)]
pub struct RowWise {
    schema: SchemaRef,
    columns: Vec<Arc<dyn PhysicalExpr>>,
    /// In the order in which they are asked: each only of the rows that the ones before it let through.
    conditions: Vec<Arc<dyn PhysicalExpr>>,
}

impl RowWise {
    /// Takes over `finishing`, projections and filters over the scan of one node; `schema` is the view's.
    pub fn new(finishing: &LogicalPlan, schema: SchemaRef, state: &SessionState) -> Result<Option<Self>> {
        let Some((columns, conditions, scanned)) = flatten(finishing) else { return Ok(None) };
        let lower = |expr: Expr| state.create_physical_expr(expr, &scanned);
        Ok(Some(RowWise {
            schema,
            columns: columns.into_iter().map(lower).collect::<Result<_>>()?,
            conditions: conditions.into_iter().map(lower).collect::<Result<_>>()?,
        }))
    }

    /// The view's row of each of the node's rows, and which of them are in the view. A condition protects what
    /// comes after it: rows that it leaves out are not evaluated further, and are NULL.
    fn evaluate(&self, rows: &RecordBatch) -> Result<(RecordBatch, BooleanArray)> {
        let mut held = BooleanArray::from(vec![true; rows.num_rows()]);
        let mut left = rows.clone();
        for condition in &self.conditions {
            let value = condition.evaluate(&left)?.into_array(left.num_rows())?;
            let value =
                BooleanArray::from_iter(value.as_boolean().iter().map(|held| Some(held == Some(true))));
            if value.false_count() > 0 {
                held = scatter(&held, &value);
                left = filter_record_batch(&left, &value)?;
            }
        }
        let count = left.num_rows();
        let columns = self.columns.iter().map(|column| column.evaluate(&left)?.into_array(count));
        let mut columns = columns.collect::<Result<Vec<_>>>()?;
        if count < rows.num_rows() {
            let mut next = 0..count as u32;
            let places =
                UInt32Array::from_iter(held.values().iter().map(|held| held.then(|| next.next()).flatten()));
            columns = columns.iter().map(|column| Ok(take(column, &places, None)?)).collect::<Result<_>>()?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok((RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?, held))
    }
}

/// Of the rows that are held, those that are in `kept`, which has a value for each of them.
fn scatter(held: &BooleanArray, kept: &BooleanArray) -> BooleanArray {
    let mut kept = kept.values().iter();
    BooleanArray::from_iter(held.values().iter().map(|held| Some(held && kept.next() == Some(true))))
}

/// Columns and conditions in terms of the scanned table's columns, and those.
fn flatten(plan: &LogicalPlan) -> Option<(Vec<Expr>, Vec<Expr>, DFSchema)> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let columns = scan.projected_schema.columns().into_iter().map(Expr::Column).collect();
            Some((columns, Vec::new(), scan.projected_schema.as_ref().clone()))
        }
        LogicalPlan::SubqueryAlias(alias) => flatten(&alias.input),
        LogicalPlan::Projection(projection) => {
            let (columns, conditions, scanned) = flatten(&projection.input)?;
            let input = projection.input.schema();
            let over = |expr: &Expr| replace(expr.clone(), input, |i| Some(columns[i].clone()));
            Some((projection.expr.iter().map(over).collect::<Option<_>>()?, conditions, scanned))
        }
        LogicalPlan::Filter(filter) => {
            let (columns, mut conditions, scanned) = flatten(&filter.input)?;
            let condition =
                replace(filter.predicate.clone(), filter.input.schema(), |i| Some(columns[i].clone()))?;
            conditions.push(condition);
            Some((columns, conditions, scanned))
        }
        _ => None,
    }
}

/// A view that is [`RowWise`] over one aggregate.
#[derive(Debug)]
pub struct RowView {
    row_wise: Arc<RowWise>,
    key: Vec<String>,
    /// Positions of the columns by which rows are read in order: those of the key, else all.
    order: Vec<usize>,
    rows: usize,
    /// The groups that the view shows: those of the last time when all could be evaluated.
    groups: Option<Arc<dyn Groups>>,
}

impl RowView {
    /// A view with no row yet.
    pub fn new(row_wise: RowWise, key: &[String]) -> Result<Self> {
        let schema = &row_wise.schema;
        let order = match key {
            [] => (0..schema.fields().len()).collect(),
            key => key.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<_>>()?,
        };
        Ok(RowView { row_wise: Arc::new(row_wise), key: key.to_vec(), order, rows: 0, groups: None })
    }

    /// What the touched groups change; `groups` are all of them now.
    pub fn update(&mut self, delta: &Delta, groups: Arc<dyn Groups>) -> Result<Changelog> {
        let (before, was, after, is) = guard::catch(|| {
            let (before, was) = self.row_wise.evaluate(&delta.before)?;
            let (after, is) = self.row_wise.evaluate(&delta.after)?;
            Ok((before, was, after, is))
        })?;
        let old = before.num_rows();
        let changed = differing(&before, &after.slice(0, old))?;
        let mut ops = Vec::new();
        // Of the changelog's rows: which batch, and which row.
        let (mut from_after, mut gone) = (Vec::new(), Vec::new());
        let changed = |row: usize| changed[row];
        for row in 0..after.num_rows() {
            match (row < old && was.value(row), is.value(row)) {
                (true, true) if !changed(row) => {}
                (true, true) if !self.key.is_empty() => {
                    ops.push(Op::Update);
                    from_after.push(row as u32);
                }
                (left, came) => {
                    if left {
                        gone.push(row as u32);
                    }
                    if came {
                        ops.push(Op::Insert);
                        from_after.push(row as u32);
                    }
                }
            }
        }
        let rows_now = self.rows + is.true_count() - was.true_count();
        if self.key.is_empty() {
            cancel(&before, &mut gone, &after, &mut from_after)?;
            // Without a key there are no updates.
            ops.truncate(from_after.len());
        }
        ops.extend(std::iter::repeat_n(Op::Delete, gone.len()));
        let mut rows = match from_after.len() == after.num_rows() {
            true => after,
            false => take_record_batch(&after, &UInt32Array::from(from_after))?,
        };
        if !gone.is_empty() {
            let gone = take_record_batch(&before, &UInt32Array::from(gone))?;
            rows = concat_batches(&self.row_wise.schema, [&rows, &gone])?;
        }
        self.rows = rows_now;
        self.groups = Some(groups);
        Ok(Changelog { ops, rows })
    }

    /// Shows these groups from now on; what changes by that.
    pub fn replace(&mut self, groups: Arc<dyn Groups>) -> Result<Changelog> {
        let schema = Arc::clone(&self.row_wise.schema);
        let rows_of = |groups: &Arc<dyn Groups>| {
            guard::catch(|| {
                let (all, held) = self.row_wise.evaluate(&groups.rows()?)?;
                Ok(filter_record_batch(&all, &held)?)
            })
        };
        let mut rows = ViewRows::new(Arc::clone(&schema), &self.key)?;
        if let Some(shown) = &self.groups {
            rows.replace(&rows_of(shown)?)?;
        }
        let now = rows_of(&groups)?;
        let changelog = rows.replace(&now)?;
        self.rows = now.num_rows();
        self.groups = Some(groups);
        Ok(changelog)
    }

    /// Gives what it shows to a checkpoint. `is_behind`: these are not the node's groups as they are.
    pub fn save(&self, saver: &mut Saver, is_behind: bool) -> Result<()> {
        let RowView { row_wise: _, key: _, order: _, rows, groups } = self;
        let own = groups.as_ref().filter(|_| is_behind);
        saver.value(&(rows, groups.is_some(), own.is_some()))?;
        own.map_or(Ok(()), |groups| groups.save(saver))
    }

    /// Takes what it shows from a checkpoint. `node` has loaded its groups.
    pub fn load(&mut self, loader: &mut Loader, node: &dyn Node) -> Result<()> {
        let (rows, shows, is_behind): (usize, bool, bool) = loader.value()?;
        self.rows = rows;
        self.groups = match (shows, is_behind) {
            (_, true) => Some(node.load_snapshot(loader)?),
            (true, false) => node.snapshot(),
            (false, false) => None,
        };
        Ok(())
    }

    /// All rows, computed when they are read.
    pub fn shown(&self) -> Option<Arc<dyn RowSource>> {
        Some(Arc::new(Snapshot {
            row_wise: Arc::clone(&self.row_wise),
            order: self.order.clone(),
            groups: Arc::clone(self.groups.as_ref()?),
            rows: self.rows,
        }))
    }
}

/// Takes out of `gone` and `came` the rows that are in both: they do not change.
fn cancel(before: &RecordBatch, gone: &mut Vec<u32>, after: &RecordBatch, came: &mut Vec<u32>) -> Result<()> {
    if gone.is_empty() || came.is_empty() {
        return Ok(());
    }
    let fields: Vec<_> =
        before.columns().iter().map(|column| SortField::new(column.data_type().clone())).collect();
    if !RowConverter::supports_fields(&fields) {
        return Ok(());
    }
    let converter = RowConverter::new(fields)?;
    let encode = |rows: &RecordBatch, positions: &[u32]| {
        let rows = take_record_batch(rows, &UInt32Array::from(positions.to_vec()))?;
        converter.convert_columns(rows.columns())
    };
    let (left, new) = (encode(before, gone)?, encode(after, came)?);
    let mut stays: HashMap<&[u8], usize> = HashMap::new();
    for row in &new {
        *stays.entry(row.data()).or_default() += 1;
    }
    let mut stayed: HashMap<&[u8], usize> = HashMap::new();
    let mut row = left.iter();
    gone.retain(|_| {
        let Some(row) = row.next() else { return true };
        let Some(count @ 1..) = stays.get_mut(row.data()) else { return true };
        *count -= 1;
        *stayed.entry(row.data()).or_default() += 1;
        false
    });
    let mut row = new.iter();
    came.retain(|_| {
        let Some(row) = row.next() else { return true };
        let Some(count @ 1..) = stayed.get_mut(row.data()) else { return true };
        *count -= 1;
        false
    });
    Ok(())
}

/// Of each row, whether the two batches differ in it. NULL equals NULL.
fn differing(before: &RecordBatch, after: &RecordBatch) -> Result<Vec<bool>> {
    let mut differs = vec![false; before.num_rows()];
    for (old, new) in before.columns().iter().zip(after.columns()) {
        if old.data_type().is_nested() {
            let compare = make_comparator(old, new, SortOptions::default())?;
            differs.iter_mut().enumerate().for_each(|(row, d)| *d |= compare(row, row) != Ordering::Equal);
        } else {
            let column = distinct(old, new)?;
            differs.iter_mut().zip(column.values()).for_each(|(d, differs)| *d |= differs);
        }
    }
    Ok(differs)
}

#[derive(Debug)]
struct Snapshot {
    row_wise: Arc<RowWise>,
    order: Vec<usize>,
    groups: Arc<dyn Groups>,
    rows: usize,
}

impl RowSource for Snapshot {
    fn total(&self) -> usize {
        self.rows
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        let (all, held) = self.row_wise.evaluate(&self.groups.rows()?)?;
        let rows = filter_record_batch(&all, &held)?;
        let column = |i: &usize| SortColumn { values: Arc::clone(rows.column(*i)), options: None };
        let sortable = |i: &&usize| !rows.column(**i).data_type().is_nested();
        let by: Vec<_> = self.order.iter().filter(sortable).map(column).collect();
        if by.is_empty() {
            return Ok(rows);
        }
        Ok(take_record_batch(&rows, &lexsort_to_indices(&by, None)?)?)
    }
}
