//! Recognizes a limit on ROW_NUMBER, RANK or DENSE_RANK: only the first rows of each partition are asked for.

use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, Filter, LogicalPlan, Operator, Window, WindowFunctionDefinition,
};

use super::cut::{columns_of, positions};
use super::top_k::{Numbering, TopKSpec};
use crate::engine::bound::unaliased;

/// A limit on the number of a row in its partition.
pub struct Limit<'a> {
    /// What is numbered.
    pub input: &'a LogicalPlan,
    /// Which rows come out: those of the input, and their numbers.
    pub spec: TopKSpec,
    /// The condition that limits.
    pub condition: Expr,
    /// What else the filter asks.
    pub rest: Option<Expr>,
}

/// Whether the filter stands right above a window.
pub fn is_over_window(filter: &Filter) -> bool {
    window(&filter.input).is_some()
}

fn window(plan: &LogicalPlan) -> Option<&Window> {
    match plan {
        LogicalPlan::Window(window) => Some(window),
        LogicalPlan::SubqueryAlias(alias) => window(&alias.input),
        _ => None,
    }
}

/// Whether a plan is a limit on the number of a row in its partition.
pub fn is_limit(plan: &LogicalPlan) -> Result<bool> {
    match plan {
        LogicalPlan::Filter(filter) => Ok(limit(filter)?.is_some() || over_limit(filter)?.is_some()),
        _ => Ok(false),
    }
}

/// The same plan with the filter below the projection that it stands on, if it is a limit there.
pub fn over_limit(filter: &Filter) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = filter.input.as_ref() else { return Ok(None) };
    if window(&projection.input).is_none() {
        return Ok(None);
    }
    let predicate = filter.predicate.clone().transform(|part| {
        let place = match &part {
            Expr::Column(column) => projection.schema.maybe_index_of_column(column),
            _ => None,
        };
        Ok(match place {
            Some(place) => Transformed::yes(unaliased(&projection.expr[place]).clone()),
            None => Transformed::no(part),
        })
    });
    let below = Filter::try_new(predicate?.data, Arc::clone(&projection.input))?;
    if limit(&below)?.is_none() {
        return Ok(None);
    }
    let mut over = projection.clone();
    over.input = Arc::new(LogicalPlan::Filter(below));
    Ok(Some(LogicalPlan::Projection(over)))
}

/// The limit that a filter is, if it is one, and its partition and order are columns.
pub fn limit(filter: &Filter) -> Result<Option<Limit<'_>>> {
    let Some(window) = window(&filter.input) else { return Ok(None) };
    let Some((numbers, partition, order)) = numbering(window) else { return Ok(None) };
    let first = window.input.schema().fields().len();
    let conditions = split_conjunction(&filter.predicate);
    for (i, condition) in conditions.iter().enumerate() {
        let Some((column, skip, fetch)) = range(condition) else { continue };
        let place = filter.input.schema().maybe_index_of_column(column);
        let Some(by) = place.and_then(|place| numbers.get(place.checked_sub(first)?)) else { continue };
        let others = conditions.iter().enumerate().filter(|(other, _)| *other != i);
        let rest = conjunction(others.map(|(_, condition)| (*condition).clone()));
        let spec = TopKSpec {
            schema: columns_of(&window.input),
            partition,
            order,
            by: *by,
            skip,
            fetch: Some(fetch),
            numbers,
            append_only: false,
            bound: None,
        };
        return Ok(Some(Limit { input: &window.input, spec, condition: (*condition).clone(), rest }));
    }
    Ok(None)
}

type Numbered = (Vec<Numbering>, Vec<usize>, Vec<(usize, SortOptions)>);

/// What a window numbers, if it does nothing else, and all its numbers go by one partition and order.
fn numbering(window: &Window) -> Option<Numbered> {
    let (mut numbers, mut by) = (Vec::new(), None);
    for expr in &window.window_expr {
        let Expr::WindowFunction(function) = unaliased(expr) else { return None };
        let WindowFunctionDefinition::WindowUDF(udf) = &function.fun else { return None };
        numbers.push(match udf.name() {
            "row_number" => Numbering::RowNumber,
            "rank" => Numbering::Rank,
            "dense_rank" => Numbering::DenseRank,
            _ => return None,
        });
        let partition = positions(&function.params.partition_by, &window.input)?;
        let keys: Vec<Expr> = function.params.order_by.iter().map(|by| by.expr.clone()).collect();
        let options = function.params.order_by.iter();
        let options = options.map(|by| SortOptions { descending: !by.asc, nulls_first: by.nulls_first });
        let order: Vec<_> = positions(&keys, &window.input)?.into_iter().zip(options).collect();
        match &by {
            None => by = Some((partition, order)),
            Some(known) if *known == (partition, order) => {}
            Some(_) => return None,
        }
    }
    let (partition, order) = by?;
    Some((numbers, partition, order))
}

/// The column that a condition limits: how many numbers are skipped, and how many follow.
fn range(condition: &Expr) -> Option<(&datafusion::common::Column, usize, usize)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let (column, op, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    let value = match value {
        ScalarValue::UInt64(Some(value)) => usize::try_from(*value).ok()?,
        ScalarValue::Int64(Some(value)) => usize::try_from(*value).ok()?,
        _ => return None,
    };
    match op {
        Operator::LtEq => Some((column, 0, value)),
        Operator::Lt => Some((column, 0, value.checked_sub(1)?)),
        Operator::Eq => Some((column, value.checked_sub(1)?, 1)),
        _ => None,
    }
}
