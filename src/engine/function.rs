//! One function of an incremental aggregate, such as `SUM(vote) FILTER (WHERE …)`.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::logical_expr::GroupsAccumulator;
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_plan::PhysicalExpr;

use super::dedup::Dedup;

/// Functions whose state is every value that they have seen.
const GROWING: [&str; 6] =
    ["array_agg", "median", "percentile_cont", "string_agg", "nth_value", "quantile_cont"];
/// Functions whose only state is what they answer.
const STATE_IS_RESULT: [&str; 9] =
    ["count", "sum", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"];

/// Functions of which DISTINCT is kept as a set, and the plain function over its values: DataFusion has no
/// DISTINCT of some of them, or keeps a list.
const OVER_SET: [&str; 7] = ["count", "sum", "avg", "bit_xor", "stddev", "stddev_pop", "approx_median"];

/// A function, what is kept of it by group, and which rows it sees.
pub struct Function {
    /// The function.
    pub expr: Arc<AggregateFunctionExpr>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns of its state.
    pub state_columns: usize,
    /// Whether the state is the answer already.
    pub state_is_result: bool,
    /// For DISTINCT: the values that each group has seen; `expr` is then the plain function.
    pub dedup: Option<Dedup>,
}

impl Function {
    /// Takes over `expr` over rows of `input`. `dedups`: whether a DISTINCT may keep its values in a set.
    pub fn new(
        expr: &Arc<AggregateFunctionExpr>,
        filter: Option<Arc<dyn PhysicalExpr>>,
        input: &SchemaRef,
        dedups: bool,
    ) -> Result<Self> {
        let arguments = expr.expressions();
        let plain = OVER_SET.contains(&expr.fun().name());
        if dedups && expr.is_distinct() && plain && expr.order_bys().is_empty() && arguments.len() == 1 {
            let data_type = arguments[0].data_type(input)?;
            let same = AggregateExprBuilder::new(Arc::new(expr.fun().clone()), arguments)
                .schema(Arc::clone(input))
                .alias(expr.name())
                .build()?;
            return Function::of(Arc::new(same), filter, Some(Dedup::new(data_type)?));
        }
        Function::of(sorting(expr)?, filter, None)
    }

    fn of(
        expr: Arc<AggregateFunctionExpr>,
        filter: Option<Arc<dyn PhysicalExpr>>,
        dedup: Option<Dedup>,
    ) -> Result<Self> {
        let states = expr.state_fields()?;
        let same_type = matches!(states.as_slice(), [state] if state.data_type() == expr.field().data_type());
        let state_is_result = same_type && STATE_IS_RESULT.contains(&expr.fun().name());
        let function = Function { state_columns: states.len(), state_is_result, expr, filter, dedup };
        // What it can't do is said when it is planned.
        function.accumulator()?;
        if !function.expr.groups_accumulator_supported() {
            // That makes one of these for each group, once there is one.
            function.expr.create_accumulator()?;
        }
        Ok(function)
    }

    /// Its states and, where that is another, its result: the last of them is the result.
    pub fn stored_columns(&self) -> usize {
        self.state_columns + usize::from(!self.state_is_result)
    }

    /// What it keeps, for people, if that grows with the values of a group.
    pub fn growth(&self) -> Option<String> {
        let name = self.expr.fun().name();
        if self.dedup.is_some() {
            return Some(format!("{name}(DISTINCT) keeps each value of a group once"));
        }
        let grows = self.expr.is_distinct() || GROWING.contains(&name);
        grows
            .then(|| format!("{name} keeps every value: its state grows with history, up to state_bytes_max"))
    }

    /// Its accumulator of groups, empty.
    pub fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.expr.groups_accumulator_supported() {
            return self.expr.create_groups_accumulator();
        }
        let expr = Arc::clone(&self.expr);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || expr.create_accumulator())))
    }

    /// Which of the rows it sees; none: all.
    pub fn evaluate_filter(&self, rows: &RecordBatch) -> Result<Option<BooleanArray>> {
        let Some(filter) = &self.filter else { return Ok(None) };
        let keep = filter.evaluate(rows)?.into_array(rows.num_rows())?;
        Ok(Some(keep.as_boolean().clone()))
    }
}

/// ARRAY_AGG with ORDER BY in the form that sorts by itself: rows come sorted within a micro-batch at best, and not
/// by each of several orders.
fn sorting(expr: &Arc<AggregateFunctionExpr>) -> Result<Arc<AggregateFunctionExpr>> {
    if expr.fun().name() != "array_agg" || expr.order_bys().is_empty() {
        return Ok(Arc::clone(expr));
    }
    let forward = match expr.is_reversed() {
        true => expr.reverse_expr().map_or_else(|| Arc::clone(expr), Arc::new),
        false => Arc::clone(expr),
    };
    Ok(Arc::clone(&forward).with_beneficial_ordering(false)?.map_or(forward, Arc::new))
}
