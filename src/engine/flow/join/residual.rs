//! The condition of a join beside the equality of keys.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::PhysicalExpr;

use crate::guard;

/// An expression over some columns of two sides.
#[derive(Debug)]
pub struct Residual {
    expression: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// The columns of each side that it needs.
    pub needed: [Vec<usize>; 2],
}

impl Residual {
    /// Of an expression over all columns of the left side and then of the right one.
    pub fn new(expression: Arc<dyn PhysicalExpr>, sides: [&SchemaRef; 2]) -> Result<Residual> {
        let mut columns: Vec<usize> = collect_columns(&expression).iter().map(Column::index).collect();
        columns.sort_unstable();
        columns.dedup();
        let left = sides[0].fields().len();
        if columns.last().is_some_and(|last| *last >= left + sides[1].fields().len()) {
            return plan_err!("a join's filter needs a column that there is not: {expression}");
        }
        let expression = expression.transform(|expression| {
            let Some(column) = expression.downcast_ref::<Column>() else {
                return Ok(Transformed::no(expression));
            };
            match columns.binary_search(&column.index()) {
                Ok(at) => {
                    Ok(Transformed::yes(Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>))
                }
                Err(_) => internal_err!("a column of a filter was not collected"),
            }
        })?;
        let field = |(at, column): (usize, &usize)| {
            let field = match column.checked_sub(left) {
                None => sides[0].field(*column),
                Some(column) => sides[1].field(column),
            };
            field.clone().with_name(format!("c{at}")).with_nullable(true)
        };
        let fields: Vec<Field> = columns.iter().enumerate().map(field).collect();
        let split = columns.partition_point(|column| *column < left);
        let right = columns.split_off(split).into_iter().map(|column| column - left).collect();
        let schema = Arc::new(Schema::new(fields));
        if expression.data.data_type(&schema)? != DataType::Boolean {
            return plan_err!("a join's filter is no condition: {}", expression.data);
        }
        Ok(Residual { expression: expression.data, schema, needed: [columns, right] })
    }

    /// For which pairs it is true; of each side the columns that are needed.
    pub fn passes(&self, sides: [Vec<ArrayRef>; 2], pairs: usize) -> Result<BooleanArray> {
        let options = RecordBatchOptions::new().with_row_count(Some(pairs));
        let columns = sides.concat();
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let passes = guard::catch(|| self.expression.evaluate(&rows)?.into_array(pairs))?;
        let passes = passes.as_boolean();
        Ok(match passes.nulls() {
            None => passes.clone(),
            Some(valid) => (passes.values() & valid.inner()).into(),
        })
    }
}
