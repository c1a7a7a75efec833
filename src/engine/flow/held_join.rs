//! A join that keeps rows which only come for some event time after they came (`hold_for`), and then lets them go. What
//! was put out stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::PhysicalExpr;

use super::join::{Join, JoinSpec, Side};
use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};

/// The operator. A column says of each row how far event time was when it came.
#[derive(Debug)]
pub struct HeldJoin {
    inner: Join,
    /// Of each side the schema with that column, where its rows only come.
    stamped: [Option<SchemaRef>; 2],
    /// The streams whose watermarks say how far event time is.
    streams: BTreeSet<String>,
}

impl HeldJoin {
    /// A join that keeps rows for `hold_ns` nanoseconds of the `streams`' event time.
    ///
    /// # Errors
    /// As [`Join::new`].
    pub fn new(mut spec: JoinSpec, streams: BTreeSet<String>, hold_ns: i64) -> Result<HeldJoin> {
        let left_columns = spec.left.schema.fields().len();
        let stamped = [stamp(&mut spec.left, hold_ns), stamp(&mut spec.right, hold_ns)];
        // The right side's columns come after the left side's.
        let by = usize::from(stamped[0].is_some());
        let has_right_alone =
            matches!(spec.kind, JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark);
        if by > 0 && !has_right_alone {
            spec.output.iter_mut().filter(|column| **column >= left_columns).for_each(|column| *column += by);
        }
        if has_right_alone && stamped[1].is_some() {
            let own = spec.right.schema.fields().len() - 1;
            spec.output.iter_mut().filter(|column| **column >= own).for_each(|column| *column += 1);
        }
        spec.filter = spec.filter.map(|filter| shifted(filter, left_columns, by)).transpose()?;
        Ok(HeldJoin { inner: Join::new(spec)?, stamped, streams })
    }

    fn stamp(&self, side: usize, delta: &Delta, now: Option<i64>) -> Result<Delta> {
        let Some(schema) = &self.stamped[side] else { return Ok(delta.clone()) };
        let rows = delta.rows.num_rows();
        let came: ArrayRef = Arc::new(Int64Array::from(vec![now; rows]));
        let columns = delta.rows.columns().iter().cloned().chain([came]).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?;
        Ok(Delta { rows, weights: delta.weights.clone() })
    }
}

/// Adds the column to a side whose rows only come.
fn stamp(side: &mut Side, hold_ns: i64) -> Option<SchemaRef> {
    if !side.append_only {
        return None;
    }
    let came = side.schema.fields().len();
    let fields = side.schema.fields().iter().cloned();
    let fields = fields.chain([Arc::new(Field::new("came", DataType::Int64, true))]);
    side.schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    side.time = Some((came, hold_ns));
    Some(Arc::clone(&side.schema))
}

/// The expression with the columns from `from` on so many places later.
fn shifted(expr: Arc<dyn PhysicalExpr>, from: usize, by: usize) -> Result<Arc<dyn PhysicalExpr>> {
    let shifted = expr.transform(|part| {
        let moved = part.downcast_ref::<Column>().filter(|column| column.index() >= from);
        let moved = moved.map(|column| Column::new(column.name(), column.index() + by));
        Ok(match moved {
            Some(column) => Transformed::yes(Arc::new(column) as Arc<dyn PhysicalExpr>),
            None => Transformed::no(part),
        })
    })?;
    Ok(shifted.data)
}

#[async_trait]
impl Operator for HeldJoin {
    async fn start(&mut self, run: &Run<'_>) -> Result<Delta> {
        self.inner.start(run).await
    }

    async fn prepare(&mut self, inputs: &[Delta], run: &Run<'_>) -> Result<()> {
        let times = self.streams.iter().map(|stream| run.watermarks.get(stream)?.final_until());
        let now = times.min().flatten();
        let stamped = inputs.iter().enumerate().map(|(side, delta)| self.stamp(side, delta, now));
        let stamped = stamped.collect::<Result<Vec<_>>>()?;
        self.inner.prepare(&stamped, run).await
    }

    fn commit(&mut self) -> Result<Delta> {
        self.inner.commit()
    }

    fn advance(&mut self, final_until: &[i64]) -> Result<()> {
        self.inner.advance(final_until)
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let HeldJoin { inner, stamped: _, streams: _ } = self;
        inner.save(saver)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.inner.load(loader)
    }

    fn held_rows(&self) -> usize {
        self.inner.held_rows()
    }

    fn bytes(&self) -> usize {
        self.inner.bytes()
    }
}
