//! `tumble`, `hop` and `session` in FROM: each stands for a query on its table that adds `window_start` and
//! `window_end`. Rewritten before planning, so that whatever plans SQL plans them, a continuous query and a
//! recount alike.
//!
//! Windows are half open, `[window_start, window_end)`, and counted from 1970-01-01. A row without a time, or with
//! one so near the end of what a TIMESTAMP holds that its window would maintenance beyond, is in no window.

use std::ops::ControlFlow;

use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, Ident, Statement as SqlStatement, TableAlias, TableFactor,
    VisitMut, VisitorMut,
};

pub use super::window_functions::register;
use super::window_functions::{END, HOP, SESSION_END, SESSION_START, TUMBLE};

/// What a session window is rewritten to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Each row's own session, which an incremental aggregate merges with those that it meets.
    Incremental,
    /// Window functions over all rows: what a session means.
    Batch,
}

/// Rewrites every window function in FROM. How many session windows there were.
pub fn rewrite(statement: &mut Statement, sessions: Sessions) -> Result<usize> {
    rewrite_each(statement, &|_| sessions)
}

/// The same, where `sessions` says what each session window becomes, by its place among them.
pub fn rewrite_each(statement: &mut Statement, sessions: &dyn Fn(usize) -> Sessions) -> Result<usize> {
    let Statement::Statement(statement) = statement else { return Ok(0) };
    let mut rewriter = Rewriter { sessions, found_sessions: 0 };
    match VisitMut::visit(statement.as_mut(), &mut rewriter) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(rewriter.found_sessions),
    }
}

struct Rewriter<'a> {
    sessions: &'a dyn Fn(usize) -> Sessions,
    found_sessions: usize,
}

impl VisitorMut for Rewriter<'_> {
    type Break = DataFusionError;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<DataFusionError> {
        let Some((function, args, alias)) = window_call(factor) else { return ControlFlow::Continue(()) };
        let sessions = (self.sessions)(self.found_sessions);
        self.found_sessions += usize::from(function == "session");
        match derived(&function, &args, alias, sessions) {
            Ok(table) => {
                *factor = table;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Name, arguments and alias of a window function in FROM.
fn window_call(factor: &TableFactor) -> Option<(String, Vec<SqlExpr>, Option<TableAlias>)> {
    let TableFactor::Table { name, alias, args: Some(args), .. } = factor else { return None };
    let [part] = name.0.as_slice() else { return None };
    let function = crate::catalog::normalize(part.as_ident()?);
    if !matches!(function.as_str(), "tumble" | "hop" | "session") {
        return None;
    }
    let arg = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    let args = args.args.iter().map(arg).collect::<Option<Vec<_>>>()?;
    Some((function, args, alias.clone()))
}

fn derived(
    function: &str,
    args: &[SqlExpr],
    alias: Option<TableAlias>,
    sessions: Sessions,
) -> Result<TableFactor> {
    let usage = match function {
        "tumble" => "tumble(table, time, INTERVAL size)",
        "hop" => "hop(table, time, INTERVAL slide, INTERVAL size)",
        _ => "session(table, time, INTERVAL gap, key, …)",
    };
    let (table, last_name) = match args.first() {
        Some(SqlExpr::Identifier(ident)) => (ident.to_string(), ident.clone()),
        Some(SqlExpr::CompoundIdentifier(parts)) if !parts.is_empty() => {
            let name = parts.iter().map(Ident::to_string).collect::<Vec<_>>().join(".");
            (name, parts[parts.len() - 1].clone())
        }
        _ => return plan_err!("{function} needs a table first: {usage}"),
    };
    let rest: Vec<String> = args[1..].iter().map(SqlExpr::to_string).collect();
    let text = match (function, rest.as_slice()) {
        ("tumble", [time, size]) => format!(
            "SELECT *, {TUMBLE}({time}, {size}) AS window_start, \
             {END}({TUMBLE}({time}, {size}), {size}) AS window_end \
             FROM {table} WHERE {END}({TUMBLE}({time}, {size}), {size}) IS NOT NULL"
        ),
        ("hop", [time, slide, size]) => format!(
            "SELECT *, {END}(window_start, {size}) AS window_end FROM (SELECT *, \
             unnest({HOP}({time}, {slide}, {size})) AS window_start FROM {table} WHERE {time} IS NOT NULL)"
        ),
        ("session", [time, gap, keys @ ..]) => {
            let list = keys.iter().map(|key| format!(", {key}")).collect::<String>();
            match sessions {
                Sessions::Incremental => format!(
                    "SELECT *, {SESSION_START}({time}, {gap}{list}) AS window_start, \
                     {SESSION_END}({time}, {gap}{list}) AS window_end FROM {table} \
                     WHERE {END}({time}, {gap}) IS NOT NULL"
                ),
                Sessions::Batch => {
                    let by = |more: &str| match (keys, more) {
                        ([], "") => String::new(),
                        ([], more) => format!("PARTITION BY {more}"),
                        (keys, "") => format!("PARTITION BY {}", keys.join(", ")),
                        (keys, more) => format!("PARTITION BY {}, {more}", keys.join(", ")),
                    };
                    // A row begins a session if no other is less than the gap before it.
                    format!(
                        "SELECT * EXCEPT (tally_begins, tally_session), \
                         MIN({time}) OVER ({in_session}) AS window_start, \
                         {END}(MAX({time}) OVER ({in_session}), {gap}) AS window_end FROM (\
                         SELECT *, SUM(tally_begins) OVER ({by_key} ORDER BY {time} \
                         ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS tally_session FROM (\
                         SELECT *, CASE WHEN {time} < {END}(LAG({time}) OVER ({by_key} ORDER BY {time}), {gap}) \
                         THEN 0 ELSE 1 END AS tally_begins FROM {table} WHERE {END}({time}, {gap}) IS NOT NULL))",
                        in_session = by("tally_session"),
                        by_key = by(""),
                    )
                }
            }
        }
        _ => return plan_err!("{function} was given {} arguments; it is {usage}", args.len()),
    };
    let Some(Statement::Statement(parsed)) = DFParser::parse_sql(&text)?.pop_front() else {
        return plan_err!("{function} can't be used so: {usage}");
    };
    let SqlStatement::Query(subquery) = *parsed else {
        return plan_err!("{function} can't be used so: {usage}");
    };
    let alias =
        alias.unwrap_or(TableAlias { explicit: true, name: last_name, columns: Vec::new(), at: None });
    Ok(TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None })
}
