//! `tumble`, `hop` and `session` in FROM: each stands for a query on its table that adds `window_start` and
//! `window_end`. Rewritten before planning, so that whatever plans SQL plans them, a continuous query and a
//! recount alike.
//!
//! Windows are half open, `[window_start, window_end)`, and counted from 1970-01-01. A row without a time is
//! in no window.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, TimestampNanosecondArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, TimeUnit, TimestampNanosecondType};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, Ident, Statement as SqlStatement, TableAlias, TableFactor,
    VisitMut, VisitorMut,
};

/// Most windows that one row may be in.
const HOPS_MAX: i64 = 10_000;

/// The windows that begin up to a row's time and end after it: a list of their starts.
pub const HOP: &str = "tally_hop_starts";
/// A row's own session, as far as the row itself knows: from its time, …
pub const SESSION_START: &str = "tally_session_start";
/// … to the gap after it. Only an incremental aggregate can make sessions of these.
pub const SESSION_END: &str = "tally_session_end";

/// What a session window is rewritten to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Each row's own session, which an incremental aggregate merges with those that it meets.
    Incremental,
    /// Window functions over all rows: what a session means.
    Batch,
}

/// Registers the functions that rewritten queries call.
pub fn register(session: &SessionContext) {
    session.register_udf(ScalarUDF::from(HopStarts(Signature::any(3, Volatility::Immutable))));
    // Volatile, so that no rule moves or copies them; the split takes them out.
    session.register_udf(ScalarUDF::from(OwnSession(Signature::variadic_any(Volatility::Volatile), true)));
    session.register_udf(ScalarUDF::from(OwnSession(Signature::variadic_any(Volatility::Volatile), false)));
}

/// Rewrites every window function in FROM. Whether there was a session window.
pub fn rewrite(statement: &mut Statement, sessions: Sessions) -> Result<bool> {
    let Statement::Statement(statement) = statement else { return Ok(false) };
    let mut rewriter = Rewriter { sessions, found_session: false };
    match VisitMut::visit(statement.as_mut(), &mut rewriter) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(rewriter.found_session),
    }
}

struct Rewriter {
    sessions: Sessions,
    found_session: bool,
}

impl VisitorMut for Rewriter {
    type Break = DataFusionError;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<DataFusionError> {
        let Some((function, args, alias)) = window_call(factor) else { return ControlFlow::Continue(()) };
        self.found_session |= function == "session";
        match derived(&function, &args, alias, self.sessions) {
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
            "SELECT *, date_bin({size}, {time}) AS window_start, date_bin({size}, {time}) + {size} AS window_end \
             FROM {table} WHERE {time} IS NOT NULL"
        ),
        ("hop", [time, slide, size]) => format!(
            "SELECT *, window_start + {size} AS window_end FROM (SELECT *, \
             unnest({HOP}({time}, {slide}, {size})) AS window_start FROM {table} WHERE {time} IS NOT NULL)"
        ),
        ("session", [time, gap, keys @ ..]) => {
            let list = keys.iter().map(|key| format!(", {key}")).collect::<String>();
            match sessions {
                Sessions::Incremental => format!(
                    "SELECT *, {SESSION_START}({time}, {gap}{list}) AS window_start, \
                     {SESSION_END}({time}, {gap}{list}) AS window_end FROM {table} WHERE {time} IS NOT NULL"
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
                         MAX({time}) OVER ({in_session}) + {gap} AS window_end FROM (\
                         SELECT *, SUM(tally_begins) OVER ({by_key} ORDER BY {time} \
                         ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS tally_session FROM (\
                         SELECT *, CASE WHEN {time} < LAG({time}) OVER ({by_key} ORDER BY {time}) + {gap} \
                         THEN 0 ELSE 1 END AS tally_begins FROM {table} WHERE {time} IS NOT NULL))",
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

/// An interval of fixed length, in nanoseconds; months have none.
pub fn fixed_nanoseconds(value: &ScalarValue) -> Option<i64> {
    let nanoseconds = match value {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 => {
            i64::from(i.days).checked_mul(86_400_000_000_000)?.checked_add(i.nanoseconds)?
        }
        ScalarValue::IntervalDayTime(Some(i)) => {
            i64::from(i.days).checked_mul(86_400_000_000_000)? + i64::from(i.milliseconds) * 1_000_000
        }
        ScalarValue::DurationNanosecond(Some(ns)) => *ns,
        _ => return None,
    };
    (nanoseconds > 0).then_some(nanoseconds)
}

fn length(value: &ColumnarValue, what: &str) -> Result<i64> {
    let length = match value {
        ColumnarValue::Scalar(value) => fixed_nanoseconds(value),
        ColumnarValue::Array(array) if !array.is_empty() => {
            fixed_nanoseconds(&ScalarValue::try_from_array(array, 0)?)
        }
        ColumnarValue::Array(_) => Some(1),
    };
    match length {
        Some(length) => Ok(length),
        None => exec_err!(
            "{what} must be an INTERVAL of fixed length, greater than nothing: no months, no column"
        ),
    }
}

/// The time zone of a column of times.
fn zone(time: &DataType) -> Result<Option<Arc<str>>> {
    match time {
        DataType::Timestamp(_, zone) => Ok(zone.clone()),
        other => plan_err!("a window's time must be a TIMESTAMP, not {other}"),
    }
}

fn timestamp(zone: Option<Arc<str>>) -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, zone)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct HopStarts(Signature);

impl ScalarUDFImpl for HopStarts {
    fn name(&self) -> &str {
        HOP
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(timestamp(zone(&types[0])?), true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let times = args.args[0].to_array(args.number_rows)?;
        let zone = zone(times.data_type())?;
        let times = cast(&times, &timestamp(zone.clone()))?;
        let times = times.as_primitive::<TimestampNanosecondType>();
        let (slide, size) = (length(&args.args[1], "a hop's slide")?, length(&args.args[2], "a hop's size")?);
        if size / slide > HOPS_MAX {
            return exec_err!("a hop puts a row into at most {HOPS_MAX} windows; make its slide longer");
        }
        let mut starts = Vec::new();
        let mut lengths = Vec::with_capacity(times.len());
        for time in times {
            let before = starts.len();
            if let Some(time) = time {
                let mut start = time - time.rem_euclid(slide);
                while start > time - size {
                    starts.push(start);
                    start -= slide;
                }
                starts[before..].reverse();
            }
            lengths.push(starts.len() - before);
        }
        let values: ArrayRef =
            Arc::new(TimestampNanosecondArray::from(starts).with_timezone_opt(zone.clone()));
        let field = Arc::new(Field::new_list_field(timestamp(zone), true));
        let nulls = times.nulls().cloned();
        Ok(ColumnarValue::Array(Arc::new(ListArray::try_new(
            field,
            OffsetBuffer::from_lengths(lengths),
            values,
            nulls,
        )?)))
    }
}

/// `true`: the start of a row's own session, its time; `false`: its end, the gap later.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OwnSession(Signature, bool);

impl ScalarUDFImpl for OwnSession {
    fn name(&self) -> &str {
        if self.1 { SESSION_START } else { SESSION_END }
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [time, _, ..] => Ok(timestamp(zone(time)?)),
            _ => plan_err!("{} needs a time and a gap", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let times = args.args[0].to_array(args.number_rows)?;
        let zone = zone(times.data_type())?;
        let times = cast(&times, &timestamp(zone.clone()))?;
        let times = times.as_primitive::<TimestampNanosecondType>();
        let shift = if self.1 { 0 } else { length(&args.args[1], "a session's gap")? };
        let shifted: TimestampNanosecondArray = times.unary(|time: i64| time.saturating_add(shift));
        Ok(ColumnarValue::Array(Arc::new(shifted.with_timezone_opt(zone))))
    }
}

/// Whether an expression is a call of `function`, and its arguments.
pub fn call<'e>(expr: &'e Expr, function: &str) -> Option<&'e [Expr]> {
    match expr {
        Expr::ScalarFunction(call) if call.func.name() == function => Some(&call.args),
        _ => None,
    }
}

/// Whether a query's text names one of the functions above.
pub fn is_window_function(name: &str) -> bool {
    [HOP, SESSION_START, SESSION_END].contains(&name)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::IntervalMonthDayNanoType;

    use super::*;

    fn starts(time: i64, slide: i64, size: i64) -> Vec<i64> {
        let interval = |ns| {
            let value = IntervalMonthDayNanoType::make_value(0, 0, ns);
            ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(value)))
        };
        let time = ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(Some(time), None));
        let hop = HopStarts(Signature::any(3, Volatility::Immutable));
        let args = ScalarFunctionArgs {
            args: vec![time, interval(slide), interval(size)],
            arg_fields: vec![],
            number_rows: 1,
            return_field: Arc::new(Field::new("f", DataType::Null, true)),
            config_options: Arc::default(),
        };
        let list = hop.invoke_with_args(args).unwrap().to_array(1).unwrap();
        list.as_list::<i32>().value(0).as_primitive::<TimestampNanosecondType>().values().to_vec()
    }

    #[test]
    fn a_hop_has_every_window_that_a_time_is_in() {
        assert_eq!(starts(10, 5, 10), [5, 10]);
        assert_eq!(starts(14, 5, 10), [5, 10]);
        assert_eq!(starts(-1, 5, 10), [-10, -5]);
        assert_eq!(starts(7, 5, 12), [0, 5], "a size that is no multiple of the slide");
        assert_eq!(starts(11, 5, 12), [0, 5, 10]);
        assert_eq!(starts(4, 5, 2), Vec::<i64>::new(), "between two windows");
    }
}
