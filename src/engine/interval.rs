//! How far apart the times of two rows are that a join pairs: `a.t BETWEEN b.t AND b.t + INTERVAL '5 minutes'`.

use arrow::datatypes::{DataType, IntervalUnit};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Join, LogicalPlan, Operator};

use super::bound::unaliased;
use super::grain;
use super::window_functions::signed_nanoseconds;

/// The time of a left row less that of a right row lies from `from` to `to`, both included, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The time's column on the left side, …
    pub left: usize,
    /// … and on the right.
    pub right: usize,
    /// The least difference.
    pub from: i64,
    /// The greatest.
    pub to: i64,
}

/// The pairs of columns whose difference a join's condition bounds on both sides.
pub fn intervals(join: &Join) -> Vec<Interval> {
    let keys = join.on.iter().map(|(left, right)| left.clone().eq(right.clone()));
    let filters = join.filter.iter().flat_map(|filter| split_conjunction(filter)).cloned();
    let mut found: Vec<(usize, usize, Option<i64>, Option<i64>)> = Vec::new();
    for (left, right, from, to) in keys.chain(filters).flat_map(|condition| bounds(&condition, join)) {
        let known = found.iter().position(|known| (known.0, known.1) == (left, right));
        let known = known.unwrap_or_else(|| {
            found.push((left, right, None, None));
            found.len() - 1
        });
        let (_, _, least, greatest) = &mut found[known];
        *least = from.max(*least);
        *greatest = [to, *greatest].into_iter().flatten().min();
    }
    let both = |(left, right, from, to)| Some(Interval { left, right, from: from?, to: to? });
    found.into_iter().filter_map(both).collect()
}

/// What one condition bounds: a left and a right column, and the least and the greatest difference.
fn bounds(condition: &Expr, join: &Join) -> Vec<(usize, usize, Option<i64>, Option<i64>)> {
    if let Expr::Between(between) = condition
        && !between.negated
    {
        let of = between.expr.as_ref();
        let both = [of.clone().gt_eq(*between.low.clone()), of.clone().lt_eq(*between.high.clone())];
        return both.iter().flat_map(|condition| bounds(condition, join)).collect();
    }
    compared(condition, join).into_iter().collect()
}

fn compared(condition: &Expr, join: &Join) -> Option<(usize, usize, Option<i64>, Option<i64>)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let schema = join.left.schema().join(join.right.schema()).ok()?;
    let difference = Sum::of(left, &schema)?.minus(Sum::of(right, &schema)?)?;
    let [(one, 1), (other, -1)] = difference.in_order()[..] else { return None };
    let place = |plan: &LogicalPlan, column: &Column| plan.schema().maybe_index_of_column(column);
    // one - other + by is compared with nothing.
    let by = difference.nanoseconds;
    let (left, right, is_turned) = match (place(&join.left, one), place(&join.right, other)) {
        (Some(left), Some(right)) => (left, right, false),
        _ => (place(&join.left, other)?, place(&join.right, one)?, true),
    };
    let at_most = |by: i64| by.checked_neg();
    let (from, to) = match op {
        Operator::Eq => (at_most(by), at_most(by)),
        Operator::LtEq => (None, at_most(by)),
        Operator::Lt => (None, at_most(by.checked_add(1)?)),
        Operator::GtEq => (at_most(by), None),
        Operator::Gt => (at_most(by.checked_sub(1)?), None),
        _ => return None,
    };
    Some(match is_turned {
        false => (left, right, from, to),
        true => (left, right, to.and_then(i64::checked_neg), from.and_then(i64::checked_neg)),
    })
}

/// Columns, how often each, and a length of time.
struct Sum<'e> {
    columns: Vec<(&'e Column, i64)>,
    nanoseconds: i64,
}

impl<'e> Sum<'e> {
    fn of(expr: &'e Expr, schema: &DFSchema) -> Option<Sum<'e>> {
        let data_type = |expr: &Expr| expr.get_type(schema).ok();
        match unaliased(expr) {
            Expr::Column(column) => match data_type(expr)? {
                DataType::Timestamp(..) | DataType::Date32 => {
                    Some(Sum { columns: vec![(column, 1)], nanoseconds: 0 })
                }
                _ => None,
            },
            Expr::Cast(cast) => {
                let (from, to) = (data_type(&cast.expr)?, cast.field.data_type());
                let is_length = matches!(from, DataType::Duration(_))
                    && matches!(to, DataType::Interval(IntervalUnit::MonthDayNano));
                (is_length || grain::keeps_time(&from, to)).then(|| Sum::of(&cast.expr, schema))?
            }
            // An interval of days is longer than one of any number of hours, if these two are compared.
            Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(length)), _) if length.days != 0 => None,
            Expr::Literal(length, _) => Some(Sum::length(signed_nanoseconds(length)?)),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let part = |expr: &'e Expr, other: &Expr| match expr {
                    Expr::Literal(length, _) => Some(Sum::length(grain::shift(length, &data_type(other)?)?)),
                    expr => Sum::of(expr, schema),
                };
                let (left, right) = (part(left, right)?, part(right, left)?);
                match op {
                    Operator::Plus => left.plus(right, 1),
                    Operator::Minus => left.minus(right),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn length(nanoseconds: i64) -> Sum<'e> {
        Sum { columns: Vec::new(), nanoseconds }
    }

    fn minus(self, other: Sum<'e>) -> Option<Sum<'e>> {
        self.plus(other, -1)
    }

    fn plus(mut self, other: Sum<'e>, times: i64) -> Option<Sum<'e>> {
        self.columns.extend(other.columns.into_iter().map(|(column, often)| (column, often * times)));
        let nanoseconds = self.nanoseconds.checked_add(other.nanoseconds.checked_mul(times)?)?;
        Some(Sum { nanoseconds, ..self })
    }

    fn in_order(&self) -> Vec<(&'e Column, i64)> {
        let mut columns = self.columns.clone();
        columns.sort_by_key(|(_, often)| -often);
        columns
    }
}
