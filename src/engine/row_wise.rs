//! A finishing plan of which each row depends on one group: expressions over the group's columns, and a
//! condition. Such a view holds no rows of its own: what changed is told from the touched groups, and all its
//! rows are computed from the groups when somebody reads them.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, make_comparator,
};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{
    SortColumn, SortOptions, concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch,
};
use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, utils::conjunction};
use datafusion::physical_plan::PhysicalExpr;

use super::bound::replace;
use super::node::{Delta, Groups};
use super::view::{Changelog, Op, RowSource};

/// Expressions over a node's row that give the view's row, and whether there is one.
#[derive(Debug)]
pub struct RowWise {
    schema: SchemaRef,
    columns: Vec<Arc<dyn PhysicalExpr>>,
    condition: Option<Arc<dyn PhysicalExpr>>,
}

impl RowWise {
    /// Takes over `finishing`, projections and filters over the scan of one node; `schema` is the view's.
    pub fn new(finishing: &LogicalPlan, schema: SchemaRef, state: &SessionState) -> Result<Option<Self>> {
        let Some((columns, conditions, scanned)) = flatten(finishing) else { return Ok(None) };
        let lower = |expr: Expr| state.create_physical_expr(expr, &scanned);
        Ok(Some(RowWise {
            schema,
            columns: columns.into_iter().map(lower).collect::<Result<_>>()?,
            condition: conjunction(conditions).map(lower).transpose()?,
        }))
    }

    /// The view's row of each of the node's rows, and which of them are in the view.
    fn evaluate(&self, rows: &RecordBatch) -> Result<(RecordBatch, BooleanArray)> {
        let count = rows.num_rows();
        let columns = self.columns.iter().map(|column| column.evaluate(rows)?.into_array(count));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let held = match &self.condition {
            Some(condition) => {
                let value = condition.evaluate(rows)?.into_array(count)?;
                BooleanArray::from_iter(value.as_boolean().iter().map(|held| Some(held == Some(true))))
            }
            None => BooleanArray::from(vec![true; count]),
        };
        Ok((batch, held))
    }
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
pub struct Direct {
    row_wise: Arc<RowWise>,
    /// Positions of the columns by which rows are read in order: those of the key, else all.
    order: Vec<usize>,
    keyed: bool,
    rows: usize,
}

impl Direct {
    /// A view with no row yet.
    pub fn new(row_wise: RowWise, key: &[String]) -> Result<Self> {
        let schema = &row_wise.schema;
        let order = match key {
            [] => (0..schema.fields().len()).collect(),
            key => key.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<_>>()?,
        };
        Ok(Direct { row_wise: Arc::new(row_wise), order, keyed: !key.is_empty(), rows: 0 })
    }

    /// What the touched groups change. Those in `before` come first in `after`, in the same order.
    pub fn update(&mut self, delta: &Delta) -> Result<Changelog> {
        let (before, was) = self.row_wise.evaluate(&delta.before)?;
        let (after, is) = self.row_wise.evaluate(&delta.after)?;
        let old = before.num_rows();
        let changed = differing(&before, &after.slice(0, old))?;
        let mut ops = Vec::new();
        // Of the changelog's rows: which batch, and which row.
        let (mut from_after, mut gone) = (Vec::new(), Vec::new());
        let changed = |row: usize| changed[row];
        for row in 0..after.num_rows() {
            match (row < old && was.value(row), is.value(row)) {
                (true, true) if !changed(row) => {}
                (true, true) if self.keyed => {
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
        self.rows = self.rows + is.true_count() - was.true_count();
        ops.extend(std::iter::repeat_n(Op::Delete, gone.len()));
        let mut rows = match from_after.len() == after.num_rows() {
            true => after,
            false => take_record_batch(&after, &UInt32Array::from(from_after))?,
        };
        if !gone.is_empty() {
            let gone = take_record_batch(&before, &UInt32Array::from(gone))?;
            rows = concat_batches(&self.row_wise.schema, [&rows, &gone])?;
        }
        Ok(Changelog { ops, rows })
    }

    /// All rows as of now, computed when they are read.
    pub fn snapshot(&self, groups: Arc<dyn Groups>) -> Arc<dyn RowSource> {
        Arc::new(Snapshot {
            row_wise: Arc::clone(&self.row_wise),
            order: self.order.clone(),
            groups,
            rows: self.rows,
        })
    }
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
