//! What `tumble`, `hop` and `session` mean, from their definition: every row is looked at by itself, and the
//! windows that it is in are found by trying. Shares nothing with the engine's rewriting of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableAlias, TableFactor, VisitMut,
    VisitorMut,
};

use super::arrivals::{Arrival, Arrivals, with_hidden};
use super::rows::cells;

/// A window function in FROM.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The source that it reads.
    pub source: String,
    /// The column by which rows are put into windows.
    pub time: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Hop { slide: i64, size: i64 },
    Session { gap: i64, keys: Vec<String> },
}

/// A row in a window; times are in nanoseconds since 1970.
struct Placed {
    row: usize,
    start: i128,
    end: i128,
    is_late: bool,
}

impl Window {
    /// Columns of its rows: those of the source, and the window.
    pub fn schema(&self, source: &Schema) -> SchemaRef {
        let data_type = source.field_with_name(&self.time).unwrap().data_type();
        let bounds = ["window_start", "window_end"].map(|name| Field::new(name, data_type.clone(), true));
        let fields = source.fields().iter().map(|field| field.as_ref().clone());
        Arc::new(Schema::new(fields.chain(bounds).collect::<Vec<_>>()))
    }

    /// How long a window is, in nanoseconds; of a session, without further rows.
    pub fn length(&self) -> i64 {
        match self.kind {
            Kind::Hop { size, .. } => size,
            Kind::Session { gap, .. } => gap,
        }
    }

    /// Whether a row's window depends on other rows.
    pub fn is_session(&self) -> bool {
        matches!(self.kind, Kind::Session { .. })
    }

    /// The source's rows in their windows, with the hidden columns; a row is there once for each window that it
    /// is in. `drop_late`: without those whose window was final as they came, whose positions are the second
    /// answer.
    pub fn rows(&self, arrivals: &Arrivals, drop_late: bool) -> (RecordBatch, Vec<Arrival>, Vec<u64>) {
        let (all, of_row) = arrivals.all();
        let column = all.column_by_name(&self.time).unwrap();
        let unit = unit(column.data_type());
        let in_units = cast(column, &DataType::Int64).unwrap();
        let in_units = in_units.as_primitive::<Int64Type>();
        // A time in units, as the column holds it; none if it holds none such.
        let held = |time: i128| i64::try_from(time.div_euclid(unit)).ok();
        let times: Vec<Option<i128>> =
            in_units.iter().map(|time| time.map(|time| i128::from(time) * unit)).collect();
        let by_event_time = arrivals.time() == Some(&self.time);
        let final_until = |row: usize| of_row[row].final_until.filter(|_| by_event_time).map(i128::from);
        let mut placed = match &self.kind {
            Kind::Hop { slide, size } => in_hops(&times, *slide, *size, &final_until),
            Kind::Session { gap, keys } => in_sessions(&times, &key_cells(&all, keys), *gap, &final_until),
        };
        let late: Vec<u64> =
            placed.iter().filter(|p| p.is_late).map(|placed| of_row[placed.row].position).collect();
        placed.retain(|placed| held(placed.start).is_some() && held(placed.end).is_some());
        if drop_late {
            placed.retain(|placed| !placed.is_late);
        }
        let rows = UInt32Array::from_iter_values(placed.iter().map(|placed| placed.row as u32));
        let schema = self.schema(&all.schema());
        let mut columns = take_record_batch(&all, &rows).unwrap().columns().to_vec();
        let data_type = schema.field(schema.fields().len() - 1).data_type();
        let time = |of: fn(&Placed) -> i128| -> ArrayRef {
            let values = Int64Array::from_iter(placed.iter().map(|placed| held(of(placed))));
            cast(&values, data_type).unwrap()
        };
        columns.push(time(|placed| placed.start));
        columns.push(time(|placed| placed.end));
        let of_placed: Vec<Arrival> = placed.iter().map(|placed| of_row[placed.row]).collect();
        let ends = placed.iter().map(|placed| by_event_time.then(|| i64::try_from(placed.end).unwrap()));
        let ends = ends.collect();
        let rows = RecordBatch::try_new(schema, columns).unwrap();
        (with_hidden(&rows, &of_placed, arrivals.time(), ends), of_placed, late)
    }
}

/// Every window that begins at a multiple of `slide`, is `size` long, and has the time in it.
fn in_hops(
    times: &[Option<i128>],
    slide: i64,
    size: i64,
    final_until: &dyn Fn(usize) -> Option<i128>,
) -> Vec<Placed> {
    let (slide, size) = (i128::from(slide), i128::from(size));
    let mut placed = Vec::new();
    for (row, time) in times.iter().enumerate() {
        let Some(time) = *time else { continue };
        let (first, last) = ((time - size).div_euclid(slide) - 1, time.div_euclid(slide) + 1);
        for start in (first..=last).map(|n| n * slide) {
            let end = start + size;
            if start <= time && time < end {
                let is_late = final_until(row).is_some_and(|until| end <= until);
                placed.push(Placed { row, start, end, is_late });
            }
        }
    }
    placed
}

/// Rows of one key are in one session while none is `gap` or more after the one before it. A session that was
/// final when a row came takes it no more; a row whose session would have been final by itself is late.
fn in_sessions(
    times: &[Option<i128>],
    keys: &[Vec<String>],
    gap: i64,
    final_until: &dyn Fn(usize) -> Option<i128>,
) -> Vec<Placed> {
    let gap = i128::from(gap);
    let mut sessions: HashMap<&Vec<String>, Vec<Vec<usize>>> = HashMap::new();
    let span = |rows: &[usize]| {
        let of = rows.iter().filter_map(|row| times[*row]);
        (of.clone().min().unwrap(), of.max().unwrap() + gap)
    };
    let mut placed = Vec::new();
    for (row, time) in times.iter().enumerate() {
        // A session that would maintenance beyond what a TIMESTAMP holds is none.
        let Some(time) = time.filter(|time| i64::try_from(time + gap).is_ok()) else { continue };
        let until = final_until(row);
        if until.is_some_and(|until| time + gap <= until) {
            placed.push(Placed { row, start: time, end: time + gap, is_late: true });
            continue;
        }
        let of_key = sessions.entry(&keys[row]).or_default();
        let mut own = vec![row];
        for other in std::mem::take(of_key) {
            let (start, end) = span(&other);
            let is_open = until.is_none_or(|until| end > until);
            if is_open && start < time + gap && time < end { own.extend(other) } else { of_key.push(other) }
        }
        of_key.push(own);
    }
    for rows in sessions.values().flatten() {
        let (start, end) = span(rows);
        placed.extend(rows.iter().map(|row| Placed { row: *row, start, end, is_late: false }));
    }
    placed.sort_by_key(|placed| placed.row);
    placed
}

/// Of each row the texts of its session's keys, which are expressions.
fn key_cells(rows: &RecordBatch, keys: &[String]) -> Vec<Vec<String>> {
    let mut of_row = vec![Vec::new(); rows.num_rows()];
    for key in keys {
        let column = match rows.column_by_name(key) {
            Some(column) => Arc::clone(column),
            None => {
                let session = SessionContext::new();
                let schema = DFSchema::try_from(rows.schema()).unwrap();
                let key = session.state().create_logical_expr(key, &schema).unwrap();
                let key = session.create_physical_expr(key, &schema).unwrap();
                key.evaluate(rows).unwrap().into_array(rows.num_rows()).unwrap()
            }
        };
        let column = RecordBatch::try_from_iter_with_nullable([("key", column, true)]).unwrap();
        of_row.iter_mut().zip(cells(&column)).for_each(|(row, cell)| row.extend(cell));
    }
    of_row
}

/// Nanoseconds of a timestamp's unit.
fn unit(data_type: &DataType) -> i128 {
    match data_type {
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => 1,
        other => panic!("{other} is no time"),
    }
}

/// Replaces the window functions over sources in a query by tables, named as [`table_name`] says; adds to
/// `windows` what they are.
pub fn take_out(
    statement: &mut Statement,
    is_source: impl Fn(&str) -> bool,
    session: &SessionContext,
    windows: &mut Vec<Window>,
) {
    let Statement::Statement(statement) = statement else { return };
    let mut visitor = TakeOut { is_source: &is_source, session, windows };
    let _ = VisitMut::visit(statement.as_mut(), &mut visitor);
}

/// The table that stands for the `n`th window function.
pub fn table_name(n: usize) -> String {
    format!("oracle_window_{n}")
}

struct TakeOut<'a> {
    is_source: &'a dyn Fn(&str) -> bool,
    session: &'a SessionContext,
    windows: &'a mut Vec<Window>,
}

impl VisitorMut for TakeOut<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, alias, args: args @ Some(_), .. } = factor else {
            return ControlFlow::Continue(());
        };
        let given: Vec<SqlExpr> = args.iter().flat_map(|args| &args.args).filter_map(expr).collect();
        let function = name.to_string().to_lowercase();
        let Some(window) = self.window(&function, &given) else { return ControlFlow::Continue(()) };
        let known = self.windows.iter().position(|known| *known == window);
        let number = known.unwrap_or(self.windows.len());
        if known.is_none() {
            self.windows.push(window.clone());
        }
        *args = None;
        *name = ObjectName::from(vec![Ident::new(table_name(number))]);
        let source = Ident::new(window.source);
        alias.get_or_insert(TableAlias { explicit: true, name: source, columns: Vec::new(), at: None });
        ControlFlow::Continue(())
    }
}

impl TakeOut<'_> {
    fn window(&self, function: &str, args: &[SqlExpr]) -> Option<Window> {
        let name = |expr: &SqlExpr| expr.to_string().to_lowercase();
        let (source, time, rest) = match args {
            [source, time, rest @ ..] => (name(source), name(time), rest),
            _ => return None,
        };
        if !(self.is_source)(&source) {
            return None;
        }
        let length = |expr: &SqlExpr| nanoseconds_of(&expr.to_string(), self.session);
        let kind = match (function, rest) {
            ("tumble", [size]) => Kind::Hop { slide: length(size)?, size: length(size)? },
            ("hop", [slide, size]) => Kind::Hop { slide: length(slide)?, size: length(size)? },
            ("session", [gap, keys @ ..]) => {
                Kind::Session { gap: length(gap)?, keys: keys.iter().map(name).collect() }
            }
            _ => return None,
        };
        Some(Window { source, time, kind })
    }
}

fn expr(arg: &FunctionArg) -> Option<SqlExpr> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    }
}

fn nanoseconds_of(sql: &str, session: &SessionContext) -> Option<i64> {
    match session.state().create_logical_expr(sql, &DFSchema::empty()).ok()? {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(i)), _) if i.months == 0 => {
            Some(i64::from(i.days) * 86_400_000_000_000 + i.nanoseconds)
        }
        _ => None,
    }
}
