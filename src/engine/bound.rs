//! When a group is final: finds in an aggregate's keys the one that bounds the event time of its rows.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::SubqueryAlias;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection, TableScan};

use super::grain::{EXACT, Grain};
use super::input::{FINAL_UNTIL, Kind};
use super::split::input_kind;
use super::window_functions::{
    HOP, SESSION_END, SESSION_START, TUMBLE, call, fixed_nanoseconds, is_own_session,
};

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
    /// Whether their time is the event time of a stream that has a watermark.
    pub is_timed: bool,
}

/// Begins the names of the columns that are the keys of sessions of rows.
const SESSION_KEY: &str = "__tally_session_key_";

/// Rows of session windows: positions of their columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRows {
    /// Of `window_start`.
    pub start: Vec<usize>,
    /// Of `window_end`.
    pub end: Vec<usize>,
    /// Of the sessions' keys.
    pub keys: Vec<usize>,
    /// Nanoseconds without a row that end a session.
    pub gap: i64,
    /// Whether their time is the event time of a stream that has a watermark.
    pub is_timed: bool,
}

/// A window of event time that begins every `slide` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWindow {
    /// From the beginning of one to that of the next.
    pub slide: i64,
    /// From its beginning to its end.
    pub size: i64,
}

/// Each time by itself.
pub const INSTANT: TimeWindow = TimeWindow { slide: 1, size: 1 };

impl SessionKeys {
    /// When a row's own session ends, if it ever does.
    pub fn bound(&self) -> Option<Bound> {
        let bound = match self.end.first() {
            Some(end) => Bound { key: *end, after: 0 },
            None => Bound { key: self.start.first().copied().unwrap_or_default(), after: self.gap },
        };
        self.is_timed.then_some(bound)
    }
}

/// The key that bounds the event time most narrowly, if one does. `event_time` gives a stream's column, of those
/// that have a watermark.
pub fn bound(aggregate: &Aggregate, event_time: impl Fn(&str) -> Option<String>) -> Option<Bound> {
    let keys = aggregate.group_expr.iter().enumerate().filter_map(|(key, expr)| {
        let grain = grain(expr.clone(), &aggregate.input, &event_time)?;
        Some((grain.extent(), Bound { key, after: grain.after }))
    });
    keys.min_by_key(|(extent, _)| *extent).map(|(_, bound)| bound)
}

/// What an expression over `plan`'s columns keeps of the event time of the stream that it is of.
fn grain(expr: Expr, plan: &LogicalPlan, event_time: impl Fn(&str) -> Option<String>) -> Option<Grain> {
    let (expr, scan) = resolve(expr, plan)?;
    // A reference table may have the name of a stream.
    if input_kind(scan) != Some(Kind::Stream) {
        return None;
    }
    Grain::of(&expr, &event_time(scan.table_name.table())?, &scan.projected_schema)
}

/// Of each column of rows of a stream that are in one kind of windows: how long after its value rows of that window
/// can come, if it tells the window.
pub fn window_columns(plan: &LogicalPlan, event_time: impl Fn(&str) -> Option<String>) -> Vec<Option<i64>> {
    let tells_window = |expr: &Expr| {
        expr.exists(|part| Ok(call(part, TUMBLE).is_some() || call(part, HOP).is_some())).unwrap_or(false)
    };
    let after = |column: Column| {
        let expr = Expr::Column(column);
        let (traced, _) = resolve(expr.clone(), plan)?;
        grain(expr, plan, &event_time).filter(|_| tells_window(&traced)).map(|grain| grain.after)
    };
    plan.schema().columns().into_iter().map(after).collect()
}

/// Of each column of rows of a stream, if it is their event time: how long after its value rows with it can come.
pub fn time_columns(plan: &LogicalPlan, event_time: impl Fn(&str) -> Option<String>) -> Vec<Option<i64>> {
    let after = |column: Column| {
        let grain = grain(Expr::Column(column), plan, &event_time)?;
        (grain == EXACT).then_some(grain.after)
    };
    plan.schema().columns().into_iter().map(after).collect()
}

/// If the aggregate groups by session windows: which keys are theirs. An error if the rest of its keys are
/// not those of the sessions, or if it asks for windows otherwise.
pub fn session(
    aggregate: &Aggregate,
    event_time: impl Fn(&str) -> Option<String>,
) -> Result<Option<SessionKeys>> {
    let Some(windows) = own_sessions(&aggregate.input) else { return Ok(None) };
    if windows
        .input
        .exists(|node| Ok(matches!(node, LogicalPlan::Projection(other) if makes_sessions(other))))?
    {
        return plan_err!("{SESSIONS_NEED}");
    }
    let mut keys = SessionKeys { start: Vec::new(), end: Vec::new(), gap: 0, is_timed: false };
    let mut session_keys: Vec<Expr> = Vec::new();
    let mut others = Vec::new();
    for (i, expr) in aggregate.group_expr.iter().enumerate() {
        let Some(key) = descend(expr.clone(), &aggregate.input, windows) else {
            return plan_err!("{SESSIONS_NEED}");
        };
        let (positions, args) = match (call(&key, SESSION_START), call(&key, SESSION_END)) {
            (Some(args), _) => (&mut keys.start, args),
            (_, Some(args)) => (&mut keys.end, args),
            _ => {
                others.push(key);
                continue;
            }
        };
        positions.push(i);
        let [time, Expr::Literal(gap, _), by @ ..] = args else {
            return internal_err!("a session without a gap");
        };
        session_keys = by.to_vec();
        keys.gap = fixed_nanoseconds(gap).unwrap_or_default();
        keys.is_timed = grain(time.clone(), &windows.input, &event_time) == Some(EXACT);
    }
    let arguments = aggregate.aggr_expr.iter().map(|expr| descend(expr.clone(), &aggregate.input, windows));
    let asks = |expr: Option<Expr>| {
        expr.is_none_or(|expr| expr.exists(|part| Ok(is_own_session(part))).unwrap_or(true))
    };
    if arguments.chain(others.iter().cloned().map(Some)).any(asks) {
        return plan_err!("{SESSIONS_NEED}");
    }
    if keys.start.is_empty() && keys.end.is_empty() {
        return Ok(None);
    }
    if others.len() != session_keys.len() || !others.iter().all(|other| session_keys.contains(other)) {
        return plan_err!("{SESSIONS_NEED}");
    }
    Ok(Some(keys))
}

const SESSIONS_NEED: &str = "sessions are kept up to date if the query groups by window_start or window_end as they \
     are, and by the session's own keys: session(table, time, gap, key, …) … GROUP BY window_start, key, …";

/// The projection that makes session windows, if nothing but projections stands above it.
pub fn own_sessions(plan: &LogicalPlan) -> Option<&Projection> {
    match plan {
        LogicalPlan::Projection(projection) if makes_sessions(projection) => Some(projection),
        LogicalPlan::Projection(projection) => own_sessions(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => own_sessions(&alias.input),
        _ => None,
    }
}

/// Whether it is a projection that makes session windows.
pub fn makes_sessions(projection: &Projection) -> bool {
    let makes = |expr: &Expr| expr.exists(|part| Ok(is_own_session(part))).unwrap_or(false);
    projection.expr.iter().any(makes)
}

/// The projection with the keys of the session windows that it makes as further columns.
pub fn with_session_keys(projection: &Projection) -> Result<Projection> {
    let mut columns = projection.expr.clone();
    let start = columns.iter().find_map(|expr| call(unaliased(expr), SESSION_START)).map(<[Expr]>::to_vec);
    let keys = start.unwrap_or_default().into_iter().skip(2).enumerate();
    columns.extend(keys.map(|(i, key)| key.alias(format!("{SESSION_KEY}{i}"))));
    Projection::try_new(columns, Arc::clone(&projection.input))
}

/// The sessions whose rows a plan gives, made by [`with_session_keys`].
pub fn session_of_rows(
    plan: &LogicalPlan,
    event_time: impl Fn(&str) -> Option<String>,
) -> Result<Option<SessionRows>> {
    let Some(windows) = own_sessions(plan) else { return Ok(None) };
    let mut rows =
        SessionRows { start: Vec::new(), end: Vec::new(), keys: Vec::new(), gap: 0, is_timed: false };
    for (i, column) in plan.schema().columns().into_iter().enumerate() {
        if column.name.starts_with(SESSION_KEY) {
            rows.keys.push(i);
        }
        let Some(column) = descend(Expr::Column(column), plan, windows) else { continue };
        let (positions, args) = match (call(&column, SESSION_START), call(&column, SESSION_END)) {
            (Some(args), _) => (&mut rows.start, args),
            (_, Some(args)) => (&mut rows.end, args),
            _ => continue,
        };
        positions.push(i);
        let [time, Expr::Literal(gap, _), ..] = args else { return internal_err!("a session without a gap") };
        rows.gap = fixed_nanoseconds(gap).unwrap_or_default();
        rows.is_timed = grain(time.clone(), &windows.input, &event_time) == Some(EXACT);
    }
    Ok(Some(rows))
}

/// The windows of event time that a plan of rows asks for.
pub fn windows_of_rows(
    plan: &LogicalPlan,
    event_time: impl Fn(&str) -> Option<String>,
) -> Result<Vec<TimeWindow>> {
    let mut windows = Vec::new();
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                let window = match (call(part, TUMBLE), call(part, HOP)) {
                    (Some([time, Expr::Literal(size, _)]), _) => Some((time, size, size)),
                    (_, Some([time, Expr::Literal(slide, _), Expr::Literal(size, _)])) => {
                        Some((time, slide, size))
                    }
                    _ => None,
                };
                if let (Some((time, slide, size)), [input]) = (window, node.inputs()[..].as_ref())
                    && grain(time.clone(), input, &event_time) == Some(EXACT)
                    && let (Some(slide), Some(size)) = (fixed_nanoseconds(slide), fixed_nanoseconds(size))
                    && !windows.contains(&TimeWindow { slide, size })
                {
                    windows.push(TimeWindow { slide, size });
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(windows)
}

/// The expression without the names that it is given.
pub fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// An expression over `plan`'s columns in terms of what the projection `to`, somewhere below, reads.
fn descend(expr: Expr, plan: &LogicalPlan, to: &Projection) -> Option<Expr> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let expr = of_projection(unalias(expr), projection)?;
            if std::ptr::eq(projection, to) { Some(expr) } else { descend(expr, &projection.input, to) }
        }
        LogicalPlan::SubqueryAlias(alias) => descend(of_alias(unalias(expr), alias)?, &alias.input, to),
        _ => None,
    }
}

fn of_projection(expr: Expr, projection: &Projection) -> Option<Expr> {
    replace(expr, &projection.schema, |i| Some(projection.expr[i].clone()))
}

fn of_alias(expr: Expr, alias: &SubqueryAlias) -> Option<Expr> {
    let input = alias.input.schema();
    replace(expr, &alias.schema, |i| {
        let (qualifier, field) = input.qualified_field(i);
        Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
    })
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
        LogicalPlan::Projection(projection) => resolve(of_projection(expr, projection)?, &projection.input),
        LogicalPlan::SubqueryAlias(alias) => resolve(of_alias(expr, alias)?, &alias.input),
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

/// The plan, which has the columns that no query sees, with hopping windows less those that were final as a row came.
pub fn with_open_windows(plan: LogicalPlan) -> Result<LogicalPlan> {
    let opened = plan.transform_down(|node| {
        let LogicalPlan::Projection(projection) = &node else { return Ok(Transformed::no(node)) };
        let input = projection.input.schema();
        let (qualifier, field) = input.qualified_field_with_unqualified_name(FINAL_UNTIL)?;
        let final_until = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let names = NamePreserver::new_for_projection();
        let columns = projection.expr.iter().map(|expr| {
            let name = names.save(expr);
            let opened = expr.clone().transform(|part| match part {
                Expr::ScalarFunction(mut hop) if hop.func.name() == HOP && hop.args.len() == 3 => {
                    hop.args.push(final_until.clone());
                    Ok(Transformed::yes(Expr::ScalarFunction(hop)))
                }
                part => Ok(Transformed::no(part)),
            })?;
            Ok(name.restore(opened.data))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(
            columns,
            Arc::clone(&projection.input),
        )?)))
    })?;
    Ok(opened.data)
}
