//! When a group takes no row any more, from the definition: at the first instant of event time at which its key
//! would have another value. Found by trying, so that nothing is known here of what a function does but
//! whether it keeps the order of time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, internal_err};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::prelude::SessionContext;

use super::arrivals::nanoseconds;

/// No group is longer, in nanoseconds.
const LONGEST: i64 = 400 * 86_400 * 1_000_000_000;

/// An expression over a plan's rows in terms of the table that they are read from, with that table's name; none
/// if it needs more than one row of one table.
pub fn trace(expr: Expr, plan: &LogicalPlan) -> Option<(Expr, String)> {
    let expr = unalias(expr);
    match plan {
        LogicalPlan::TableScan(scan) => Some((expr, scan.table_name.table().to_string())),
        LogicalPlan::Filter(filter) => trace(expr, &filter.input),
        LogicalPlan::Projection(projection) => {
            let expr = over_input(expr, &projection.schema, |i| projection.expr[i].clone())?;
            trace(expr, &projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let expr = over_input(expr, &alias.schema, |i| column(alias.input.schema(), i))?;
            trace(expr, &alias.input)
        }
        LogicalPlan::Unnest(unnest) => {
            let from = |i: usize| column(unnest.input.schema(), unnest.dependency_indices[i]);
            trace(over_input(expr, &unnest.schema, from)?, &unnest.input)
        }
        LogicalPlan::Join(join) => {
            let of = |side: &LogicalPlan| {
                let has = |column: &&Column| side.schema().maybe_index_of_column(column).is_some();
                expr.column_refs().iter().all(has)
            };
            let side = [&join.left, &join.right].into_iter().find(|side| of(side))?;
            trace(expr.clone(), side)
        }
        _ => None,
    }
}

/// The expression with each column replaced by what stands at its position below.
pub fn over_input(expr: Expr, schema: &DFSchema, below: impl Fn(usize) -> Expr) -> Option<Expr> {
    let replaced = expr.transform(|part| match &part {
        Expr::Column(column) => match schema.maybe_index_of_column(column) {
            Some(i) => Ok(Transformed::yes(unalias(below(i)))),
            None => internal_err!("no column {column}"),
        },
        _ => Ok(Transformed::no(part)),
    });
    replaced.ok().map(|replaced| replaced.data)
}

/// The `i`th column of a schema.
pub fn column(schema: &DFSchema, i: usize) -> Expr {
    Expr::Column(Column::from(schema.qualified_field(i)))
}

fn unalias(expr: Expr) -> Expr {
    match expr {
        Expr::Alias(alias) => unalias(*alias.expr),
        other => other,
    }
}

/// Whether a later `time` never has an earlier value of the expression.
pub fn keeps_order(expr: &Expr, time: &str, schema: &DFSchema) -> bool {
    let of_time = |expr: &Expr| keeps_order(expr, time, schema);
    match expr {
        Expr::Column(column) => column.name == time,
        Expr::Cast(cast) => {
            let from = cast.expr.get_type(schema);
            of_time(&cast.expr) && from.is_ok_and(|from| cast_keeps_order(&from, cast.field.data_type()))
        }
        Expr::BinaryExpr(binary) => {
            matches!(binary.op, Operator::Plus | Operator::Minus)
                && matches!(binary.right.as_ref(), Expr::Literal(..))
                && of_time(&binary.left)
        }
        Expr::ScalarFunction(function) => match (function.func.name(), function.args.as_slice()) {
            ("date_bin" | "date_trunc", [Expr::Literal(..), of, rest @ ..]) => {
                of_time(of) && rest.iter().all(|more| matches!(more, Expr::Literal(..)))
            }
            _ => false,
        },
        _ => false,
    }
}

/// A time that gets or loses a zone becomes another instant.
fn cast_keeps_order(from: &DataType, to: &DataType) -> bool {
    let is_utc = |zone: &Option<Arc<str>>| zone.as_ref().is_none_or(|zone| **zone == *"+00:00");
    match (from, to) {
        (DataType::Timestamp(_, from), DataType::Timestamp(_, to)) => {
            from == to || (from.is_some() && to.is_some()) || (is_utc(from) && is_utc(to))
        }
        (DataType::Timestamp(_, zone), DataType::Date32) => is_utc(zone),
        (DataType::Date32, DataType::Timestamp(_, zone)) => is_utc(zone),
        (DataType::Date32, DataType::Date32) => true,
        _ => false,
    }
}

/// Of each row, when its group ends, in nanoseconds since 1970; none: never. `key` is over the one column `name`.
pub fn ends(key: &Expr, name: &str, times: &ArrayRef, session: &SessionContext) -> Vec<Option<i64>> {
    let values = values_at(key, name, times.data_type(), session);
    let times = nanoseconds(times);
    let own: Vec<i64> = times.iter().flatten().collect();
    let mut found = first_other(&values, &own, LONGEST).into_iter();
    (0..times.len()).map(|row| if times.is_valid(row) { found.next().flatten() } else { None }).collect()
}

/// How much event time one value of the key stands for, in nanoseconds.
pub fn extent(key: &Expr, name: &str, data_type: &DataType, session: &SessionContext) -> i64 {
    const ONE_TIME: i64 = 1_704_103_200_123_456_789;
    let values = values_at(key, name, data_type, session);
    let edge = |longest| first_other(&values, &[ONE_TIME], longest)[0];
    match (edge(-LONGEST), edge(LONGEST)) {
        (Some(before), Some(after)) => after - before - 1,
        _ => i64::MAX,
    }
}

/// The key's values at times in nanoseconds since 1970.
fn values_at(
    key: &Expr,
    name: &str,
    data_type: &DataType,
    session: &SessionContext,
) -> impl Fn(&[i64]) -> ArrayRef {
    let schema = Arc::new(Schema::new(vec![Field::new(name, data_type.clone(), true)]));
    let bare = key.clone().transform(|part| match &part {
        Expr::Column(_) => Ok(Transformed::yes(Expr::Column(Column::from_name(name)))),
        _ => Ok(Transformed::no(part)),
    });
    let planned = DFSchema::try_from(Arc::clone(&schema)).unwrap();
    let key = session.create_physical_expr(bare.unwrap().data, &planned).unwrap();
    let data_type = data_type.clone();
    move |times: &[i64]| {
        let zone = match &data_type {
            DataType::Timestamp(_, zone) => zone.clone(),
            other => panic!("{other} is no time"),
        };
        let exact = DataType::Timestamp(TimeUnit::Nanosecond, zone);
        let times = cast(&Int64Array::from(times.to_vec()), &exact).unwrap();
        let rows = RecordBatch::try_new(Arc::clone(&schema), vec![cast(&times, &data_type).unwrap()]);
        let rows = rows.unwrap();
        key.evaluate(&rows).unwrap().into_array(rows.num_rows()).unwrap()
    }
}

/// From each time on, and up to `longest` later (or earlier, if it is negative), the first with another value.
fn first_other(values: impl Fn(&[i64]) -> ArrayRef, own: &[i64], longest: i64) -> Vec<Option<i64>> {
    let of_own = values(own);
    let is_same = |times: &[i64]| not_distinct(&values(times), &of_own).unwrap();
    let (mut same, mut other): (Vec<i64>, Vec<i64>) = own.iter().map(|t| (*t, *t + longest)).unzip();
    let never = is_same(&other);
    while same.iter().zip(&other).any(|(same, other)| (other - same).abs() > 1) {
        let middle: Vec<i64> =
            same.iter().zip(&other).map(|(same, other)| same + (other - same) / 2).collect();
        for (i, is_same) in is_same(&middle).iter().enumerate() {
            *(if is_same == Some(true) { &mut same[i] } else { &mut other[i] }) = middle[i];
        }
    }
    other.into_iter().enumerate().map(|(i, time)| (!never.value(i)).then_some(time)).collect()
}
