//! When a group is final: finds in an aggregate's keys the one that bounds the event time of its rows, and
//! gives the plan below the columns that judging lateness needs.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, internal_err, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::logical_plan::{SubqueryAlias, TableScanBuilder};
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, Operator, Projection,
    TableScan,
};

use super::slot::{FINAL_UNTIL, ROW, TIME, as_slot};
use super::windows::{self, HOP, SESSION_END, SESSION_START};

/// A group is final once the watermark has passed its key's value plus `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Position of the key among the group's.
    pub key: usize,
    /// Nanoseconds.
    pub after: i64,
}

/// An aggregate over session windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionKeys {
    /// Positions of `window_start` among the group's keys.
    pub start: Vec<usize>,
    /// Positions of `window_end`.
    pub end: Vec<usize>,
    /// Nanoseconds without a row that end a session.
    pub gap: i64,
}

impl SessionKeys {
    /// When a row's own session ends.
    pub fn bound(&self) -> Bound {
        match self.end.first() {
            Some(end) => Bound { key: *end, after: 0 },
            None => Bound { key: self.start.first().copied().unwrap_or_default(), after: self.gap },
        }
    }
}

/// The key that bounds the event time, if one does. `event_time` gives a stream's column, of those that
/// have a watermark.
pub fn bound(aggregate: &Aggregate, event_time: impl Fn(&str) -> Option<String>) -> Option<Bound> {
    aggregate.group_expr.iter().enumerate().find_map(|(key, expr)| {
        let (expr, scan) = resolve(expr.clone(), &aggregate.input)?;
        let time = event_time(scan.table_name.table())?;
        Some(Bound { key, after: ends_after(&expr, &time)? })
    })
}

/// If the aggregate groups by session windows: which keys are theirs. An error if the rest of its keys are
/// not those of the sessions, or if a filter stands between.
pub fn session(aggregate: &Aggregate) -> Result<Option<SessionKeys>> {
    let mut keys = SessionKeys { start: Vec::new(), end: Vec::new(), gap: 0 };
    let mut session_keys: Vec<Expr> = Vec::new();
    let mut others = Vec::new();
    for (i, expr) in aggregate.group_expr.iter().enumerate() {
        let resolved = resolve(expr.clone(), &aggregate.input).map(|(expr, _)| expr);
        let args = |name| resolved.as_ref().and_then(|expr| windows::call(expr, name));
        let (positions, args) = match (args(SESSION_START), args(SESSION_END)) {
            (Some(args), _) => (&mut keys.start, args),
            (_, Some(args)) => (&mut keys.end, args),
            _ => {
                others.push(resolved);
                continue;
            }
        };
        positions.push(i);
        let [_, gap, by @ ..] = args else { return internal_err!("a session without a gap") };
        session_keys = by.to_vec();
        keys.gap = match gap {
            Expr::Literal(value, _) => windows::fixed_nanoseconds(value).unwrap_or_default(),
            _ => 0,
        };
        if keys.gap == 0 {
            return plan_err!(
                "a session's gap must be an INTERVAL of fixed length, such as INTERVAL '5 minutes'"
            );
        }
    }
    if keys.start.is_empty() && keys.end.is_empty() {
        return Ok(None);
    }
    let same = others.len() == session_keys.len()
        && others.iter().all(|other| other.as_ref().is_some_and(|other| session_keys.contains(other)));
    if !same {
        return plan_err!(
            "sessions are kept up to date if the query groups by window_start or window_end and by the session's \
             own keys: session(table, time, gap, key, …) … GROUP BY window_start, key, …; anything else needs \
             hold_rows"
        );
    }
    Ok(Some(keys))
}

/// An expression over `plan`'s columns in terms of the columns of the table it scans; none if it takes more
/// than one row or table.
fn resolve(expr: Expr, plan: &LogicalPlan) -> Option<(Expr, &TableScan)> {
    let expr = unalias(expr);
    match plan {
        LogicalPlan::TableScan(scan) => {
            let own = |column: &Column| scan.projected_schema.maybe_index_of_column(column).is_some();
            expr.column_refs().into_iter().all(own).then_some((expr, scan))
        }
        LogicalPlan::Filter(filter) => resolve(expr, &filter.input),
        LogicalPlan::Projection(projection) => {
            let expr = replace(expr, &projection.schema, |i| Some(projection.expr[i].clone()))?;
            resolve(expr, &projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let input = alias.input.schema();
            let expr = replace(expr, &alias.schema, |i| {
                let (qualifier, field) = input.qualified_field(i);
                Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
            })?;
            resolve(expr, &alias.input)
        }
        LogicalPlan::Unnest(unnest) => {
            let input = unnest.input.schema();
            let expr = replace(expr, &unnest.schema, |i| {
                let (qualifier, field) = input.qualified_field(unnest.dependency_indices[i]);
                Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
            })?;
            resolve(expr, &unnest.input)
        }
        LogicalPlan::Join(join) => {
            let all_in = |schema: &DFSchema| {
                expr.column_refs().into_iter().all(|column| schema.maybe_index_of_column(column).is_some())
            };
            if all_in(join.left.schema()) {
                resolve(expr, &join.left)
            } else if all_in(join.right.schema()) {
                resolve(expr, &join.right)
            } else {
                None
            }
        }
        _ => None,
    }
}

fn unalias(expr: Expr) -> Expr {
    match expr {
        Expr::Alias(alias) => unalias(*alias.expr),
        other => other,
    }
}

/// The expression with each column replaced by what stands at its position.
pub fn replace(expr: Expr, schema: &DFSchema, by: impl Fn(usize) -> Option<Expr>) -> Option<Expr> {
    let replaced = expr.transform(|part| match &part {
        Expr::Column(column) => match schema.maybe_index_of_column(column).and_then(&by) {
            Some(expr) => Ok(Transformed::yes(unalias(expr))),
            None => internal_err!("no column {column}"),
        },
        _ => Ok(Transformed::no(part)),
    });
    replaced.ok().map(|replaced| replaced.data)
}

/// How long after its value a key's rows may still come, if it tells.
fn ends_after(expr: &Expr, time: &str) -> Option<i64> {
    match expr {
        Expr::Column(column) => (column.name == time).then_some(1),
        Expr::Alias(alias) => ends_after(&alias.expr, time),
        Expr::Cast(cast) if cast.field.data_type().is_temporal() => ends_after(&cast.expr, time),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let Expr::Literal(interval, _) = right.as_ref() else { return None };
            let interval = windows::fixed_nanoseconds(interval)?;
            let inner = ends_after(left, time)?;
            match op {
                Operator::Plus => Some(inner - interval),
                Operator::Minus => Some(inner + interval),
                _ => None,
            }
        }
        Expr::ScalarFunction(function) => {
            let of_time = |expr: &Expr| ends_after(expr, time) == Some(1);
            match (function.func.name(), function.args.as_slice()) {
                ("date_bin", [Expr::Literal(size, _), of, ..]) if of_time(of) => {
                    windows::fixed_nanoseconds(size)
                }
                ("date_trunc", [Expr::Literal(unit, _), of]) if of_time(of) => {
                    let seconds = match unit.to_string().to_lowercase().as_str() {
                        "second" => 1,
                        "minute" => 60,
                        "hour" => 3600,
                        "day" => 86400,
                        "week" => 7 * 86400,
                        _ => return None,
                    };
                    Some(seconds * 1_000_000_000)
                }
                (HOP, [of, _, Expr::Literal(size, _)]) if of_time(of) => windows::fixed_nanoseconds(size),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The plan with the hidden columns of the one stream that it scans added to its output.
pub fn with_hidden(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let hidden = |schema: &DFSchema| -> Result<Vec<Expr>> {
        let column = |name: &str| {
            let (qualifier, field) = schema.qualified_field_with_unqualified_name(name)?;
            Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
        };
        [TIME, FINAL_UNTIL, ROW].into_iter().map(column).collect()
    };
    Ok(match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let Some(slot) = as_slot(provider.as_ref()) else {
                return internal_err!("{} is no stream", scan.table_name);
            };
            let visible = provider.schema().fields().len();
            let mut projection = scan.projection.clone().unwrap_or_else(|| (0..visible).collect());
            projection.extend(visible..visible + 3);
            let source = provider_as_source(slot.with_hidden());
            let scan = TableScanBuilder::new(scan.table_name.clone(), source)
                .with_projection(Some(projection))
                .with_filters(scan.filters.clone())
                .with_fetch(scan.fetch);
            LogicalPlan::TableScan(scan.build()?)
        }
        LogicalPlan::Projection(projection) => {
            let input = with_hidden(&projection.input)?;
            let mut columns = projection.expr.clone();
            columns.extend(hidden(input.schema())?);
            LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?)
        }
        LogicalPlan::Filter(filter) => LogicalPlan::Filter(Filter::try_new(
            filter.predicate.clone(),
            Arc::new(with_hidden(&filter.input)?),
        )?),
        LogicalPlan::SubqueryAlias(alias) => LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(
            Arc::new(with_hidden(&alias.input)?),
            alias.alias.clone(),
        )?),
        LogicalPlan::Unnest(unnest) => LogicalPlanBuilder::from(with_hidden(&unnest.input)?)
            .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
            .build()?,
        LogicalPlan::Join(join) => {
            let (mut left, mut right) = (Arc::clone(&join.left), Arc::clone(&join.right));
            let side = if super::split::reads_stream(&left) { &mut left } else { &mut right };
            *side = Arc::new(with_hidden(side)?);
            LogicalPlan::Join(Join::try_new(
                left,
                right,
                join.on.clone(),
                join.filter.clone(),
                join.join_type,
                join.join_constraint,
                join.null_equality,
                join.null_aware,
            )?)
        }
        other => return plan_err!("{} under a window is not known", other.display()),
    })
}
