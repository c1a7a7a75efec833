//! In which order a view's rows are read: that of its query, else that of its key.

use std::cmp::Ordering;

use arrow::array::{RecordBatch, make_comparator};
use arrow::compute::SortOptions;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::finality::{column, over_input};

/// Columns of the view by which its query orders the rows, most important first, as far as they are columns of it;
/// none if it does not order them.
pub fn by_query(plan: &LogicalPlan) -> Option<Vec<(usize, SortOptions)>> {
    let columns = (0..plan.schema().fields().len()).map(|i| column(plan.schema(), i)).collect();
    below(plan, columns)
}

/// `columns` are the view's, over the rows of `plan`.
fn below(plan: &LogicalPlan, columns: Vec<Expr>) -> Option<Vec<(usize, SortOptions)>> {
    let over = |schema, input: &dyn Fn(usize) -> Expr| -> Option<Vec<Expr>> {
        columns.iter().map(|expr| over_input(expr.clone(), schema, input)).collect()
    };
    match plan {
        LogicalPlan::Sort(sort) => {
            let place = |by: &datafusion::logical_expr::SortExpr| {
                let column = columns.iter().position(|column| *column == by.expr)?;
                Some((column, SortOptions { descending: !by.asc, nulls_first: by.nulls_first }))
            };
            Some(sort.expr.iter().map_while(place).collect())
        }
        LogicalPlan::Limit(limit) => below(&limit.input, columns),
        LogicalPlan::Projection(projection) => {
            let columns = over(&projection.schema, &|i| projection.expr[i].clone())?;
            below(&projection.input, columns)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let columns = over(&alias.schema, &|i| column(alias.input.schema(), i))?;
            below(&alias.input, columns)
        }
        _ => None,
    }
}

/// The first row that should stand before the one above it.
pub fn first_out_of_order(rows: &RecordBatch, by: &[(usize, SortOptions)]) -> Option<usize> {
    let compare: Vec<_> = by
        .iter()
        .map(|(column, options)| {
            let column = rows.column(*column);
            make_comparator(column, column, *options).unwrap()
        })
        .collect();
    (1..rows.num_rows()).find(|row| {
        let mut order = compare.iter().map(|compare| compare(row - 1, *row));
        order.find(|order| order.is_ne()) == Some(Ordering::Greater)
    })
}
