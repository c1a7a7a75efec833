//! The functions that rewritten windows call. They keep the type of the time that they are given and check what
//! they are given when they are planned. Near the ends of what a time can hold there is no window: they answer
//! NULL, and never wrap.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, internal_err, plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::prelude::SessionContext;

/// The start of the tumbling window that a time is in.
pub const TUMBLE: &str = "tally_tumble_start";
/// The end of a window, from its start and size.
pub const END: &str = "tally_window_end";
/// The windows that begin up to a row's time and end after it: a list of their starts.
pub const HOP: &str = "tally_hop_starts";
/// A row's own session, as far as the row itself knows: from its time, …
pub const SESSION_START: &str = "tally_session_start";
/// … to the gap after it. Only what knows all rows can make sessions of these.
pub const SESSION_END: &str = "tally_session_end";

/// Most windows that one row may be in: a micro-batch becomes so many times as many rows. A day's window each minute is
/// 1440.
const HOPS_MAX: i64 = 1500;
const DAY: i64 = 86_400_000_000_000;
/// The longest window. Event times have that much room to both sides of what nanoseconds can hold.
pub const WINDOW_MAX: i64 = 20 * 365 * DAY;

/// Registers the functions that rewritten queries call.
pub fn register(session: &SessionContext) {
    for kind in Kind::ALL {
        session.register_udf(ScalarUDF::from(WindowFunction::new(kind)));
    }
}

/// An interval of fixed length, in nanoseconds; months have none.
pub fn signed_nanoseconds(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 => {
            i64::from(i.days).checked_mul(DAY)?.checked_add(i.nanoseconds)
        }
        ScalarValue::IntervalDayTime(Some(i)) => {
            i64::from(i.days).checked_mul(DAY)?.checked_add(i64::from(i.milliseconds) * 1_000_000)
        }
        ScalarValue::DurationNanosecond(Some(ns)) => Some(*ns),
        _ => None,
    }
}

/// As [`signed_nanoseconds`], if it is greater than nothing.
pub fn fixed_nanoseconds(value: &ScalarValue) -> Option<i64> {
    signed_nanoseconds(value).filter(|ns| *ns > 0)
}

/// Nanoseconds of a unit.
pub fn unit_nanoseconds(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

/// Whether an expression is a call of `function`, and its arguments.
pub fn call<'e>(expr: &'e Expr, function: &str) -> Option<&'e [Expr]> {
    match expr {
        Expr::ScalarFunction(call) if call.func.name() == function => Some(&call.args),
        _ => None,
    }
}

/// Refuses hops over hops that put a row into more windows than one hop may.
pub fn check_hops(plan: &LogicalPlan) -> Result<()> {
    match most_hops(plan)? {
        most if most > HOPS_MAX => plan_err!(
            "hops over hops put a row into {most} windows, and {HOPS_MAX} are most; make their slides longer"
        ),
        _ => Ok(()),
    }
}

/// In how many windows the hops of a plan put a row, at most.
fn most_hops(plan: &LogicalPlan) -> Result<i64> {
    let mut most: i64 = 1;
    for input in plan.inputs() {
        most = most.max(most_hops(input)?);
    }
    plan.apply_expressions(|expr| {
        expr.apply(|part| {
            if let Some([_, Expr::Literal(slide, _), Expr::Literal(size, _), ..]) = call(part, HOP)
                && let (Some(slide), Some(size)) = (fixed_nanoseconds(slide), fixed_nanoseconds(size))
            {
                most = most.saturating_mul((size / slide).max(1));
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(most)
}

/// Whether an expression is what a row knows of its own session.
pub fn is_own_session(expr: &Expr) -> bool {
    [SESSION_START, SESSION_END].iter().any(|function| call(expr, function).is_some())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    TumbleStart,
    End,
    HopStarts,
    SessionStart,
    SessionEnd,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::TumbleStart, Kind::End, Kind::HopStarts, Kind::SessionStart, Kind::SessionEnd];

    fn name(self) -> &'static str {
        match self {
            Kind::TumbleStart => TUMBLE,
            Kind::End => END,
            Kind::HopStarts => HOP,
            Kind::SessionStart => SESSION_START,
            Kind::SessionEnd => SESSION_END,
        }
    }

    /// What its arguments after the time are called.
    fn lengths(self) -> &'static [&'static str] {
        match self {
            Kind::TumbleStart | Kind::End => &["a window's size"],
            Kind::HopStarts => &["a hop's slide", "a hop's size"],
            Kind::SessionStart | Kind::SessionEnd => &["a session's gap"],
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowFunction {
    kind: Kind,
    signature: Signature,
}

impl WindowFunction {
    fn new(kind: Kind) -> Self {
        // Volatile, so that no rule moves or copies them; the split takes them out.
        let volatility = match kind {
            Kind::SessionStart | Kind::SessionEnd => Volatility::Volatile,
            _ => Volatility::Immutable,
        };
        WindowFunction { kind, signature: Signature::variadic_any(volatility) }
    }
}

impl ScalarUDFImpl for WindowFunction {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        internal_err!("{} is planned by its fields", self.name())
    }

    /// Refuses what is no window, so that no row has to.
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let Some(time) = args.arg_fields.first() else { return plan_err!("{} needs a time", self.name()) };
        let DataType::Timestamp(unit, _) = time.data_type() else {
            return plan_err!(
                "the time of a window is {}, a {}; it must be a TIMESTAMP, such as the source's event time",
                time.name(),
                sql_name(time.data_type())
            );
        };
        let mut lengths = Vec::new();
        for (i, what) in self.kind.lengths().iter().enumerate() {
            let value = args.scalar_arguments.get(i + 1).copied().flatten();
            lengths.push(length(value, what, *unit)?);
        }
        if let [slide, size] = lengths[..]
            && size / slide > HOPS_MAX
        {
            return plan_err!("a hop puts a row into at most {HOPS_MAX} windows; make its slide longer");
        }
        let data_type = match self.kind {
            Kind::HopStarts => {
                DataType::List(Arc::new(Field::new_list_field(time.data_type().clone(), true)))
            }
            _ => time.data_type().clone(),
        };
        Ok(Arc::new(Field::new(self.name(), data_type, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let times = args.args[0].to_array(args.number_rows)?;
        let data_type = times.data_type().clone();
        let DataType::Timestamp(unit, _) = data_type else {
            return internal_err!("{} of {data_type}", self.name());
        };
        let times = cast(&times, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        let length = |i: usize| {
            let value = match &args.args[i] {
                ColumnarValue::Scalar(value) => Some(value.clone()),
                ColumnarValue::Array(array) if array.is_empty() => None,
                ColumnarValue::Array(array) => Some(ScalarValue::try_from_array(array, 0)?),
            };
            length(value.as_ref(), self.kind.lengths()[i - 1], unit)
        };
        let values: Int64Array = match self.kind {
            Kind::TumbleStart => {
                let size = length(1)?;
                times.unary_opt(|time| time.checked_sub(time.rem_euclid(size)))
            }
            Kind::End | Kind::SessionEnd => {
                let length = length(1)?;
                times.unary_opt(|time| time.checked_add(length))
            }
            Kind::SessionStart => times.clone(),
            Kind::HopStarts => {
                let final_until =
                    args.args.get(3).map(|until| until.to_array(args.number_rows)).transpose()?;
                let hop = Hop { slide: length(1)?, size: length(2)?, unit: unit_nanoseconds(unit) };
                let final_until = final_until.as_ref().map(|until| until.as_primitive::<Int64Type>());
                return hop.starts(times, final_until, &data_type).map(ColumnarValue::Array);
            }
        };
        Ok(ColumnarValue::Array(cast(&values, &data_type)?))
    }
}

/// The length that an argument is, in units of the time.
fn length(value: Option<&ScalarValue>, what: &str, unit: TimeUnit) -> Result<i64> {
    let nanoseconds = value.and_then(fixed_nanoseconds).ok_or_else(|| {
        plan_datafusion_err!(
            "{what} must be an INTERVAL of fixed length, greater than nothing, such as INTERVAL '5 minutes': no \
             months, no column, no expression"
        )
    })?;
    if nanoseconds > WINDOW_MAX {
        return plan_err!("{what} must be at most {} days", WINDOW_MAX / DAY);
    }
    let unit = unit_nanoseconds(unit);
    if nanoseconds % unit != 0 {
        return plan_err!("{what} must have no parts of a unit: its time is counted in units of {unit} ns");
    }
    Ok(nanoseconds / unit)
}

/// Hopping windows, in units of their time.
struct Hop {
    slide: i64,
    size: i64,
    /// Nanoseconds of a unit.
    unit: i64,
}

impl Hop {
    /// The starts of the windows that each time is in, in their order: less those that a time can't hold, and those
    /// that end up to `final_until` of a row, in nanoseconds.
    fn starts(
        &self,
        times: &Int64Array,
        final_until: Option<&Int64Array>,
        data_type: &DataType,
    ) -> Result<ArrayRef> {
        let mut starts = Vec::new();
        let mut lengths = Vec::with_capacity(times.len());
        for (row, time) in times.iter().enumerate() {
            let before = starts.len();
            let until = final_until.filter(|until| until.is_valid(row)).map(|until| until.value(row));
            let is_open = |end: i64| until.is_none_or(|until| end.saturating_mul(self.unit) > until);
            let mut next = time.and_then(|time| time.checked_sub(time.rem_euclid(self.slide)));
            while let (Some(time), Some(start)) = (time, next)
                && time.abs_diff(start) < self.size as u64
            {
                starts.extend(start.checked_add(self.size).filter(|end| is_open(*end)).map(|_| start));
                next = start.checked_sub(self.slide);
            }
            starts[before..].reverse();
            lengths.push(starts.len() - before);
        }
        let values = cast(&Int64Array::from(starts), data_type)?;
        let field = Arc::new(Field::new_list_field(data_type.clone(), true));
        Ok(Arc::new(ListArray::try_new(field, OffsetBuffer::from_lengths(lengths), values, None)?))
    }
}

fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Date32 | DataType::Date64 => "DATE (CAST it AS TIMESTAMP)".into(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampNanosecondArray;
    use arrow::datatypes::IntervalMonthDayNanoType;

    use super::*;

    fn invoke(kind: Kind, time: i64, lengths: &[i64]) -> ArrayRef {
        let interval = |ns: &i64| {
            let value = IntervalMonthDayNanoType::make_value(0, 0, *ns);
            ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(value)))
        };
        let time: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![time]));
        let args = ScalarFunctionArgs {
            args: std::iter::once(ColumnarValue::Array(time)).chain(lengths.iter().map(interval)).collect(),
            arg_fields: vec![],
            number_rows: 1,
            return_field: Arc::new(Field::new("f", DataType::Null, true)),
            config_options: Arc::default(),
        };
        WindowFunction::new(kind).invoke_with_args(args).unwrap().to_array(1).unwrap()
    }

    fn numbers(times: &ArrayRef) -> Vec<Option<i64>> {
        cast(times, &DataType::Int64).unwrap().as_primitive::<Int64Type>().iter().collect()
    }

    fn starts(time: i64, slide: i64, size: i64) -> Vec<i64> {
        let list = invoke(Kind::HopStarts, time, &[slide, size]);
        numbers(&list.as_list::<i32>().value(0)).into_iter().flatten().collect()
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

    #[test]
    fn at_the_ends_of_time_there_is_no_window_and_nothing_wraps() {
        let none = vec![None];
        assert_eq!(numbers(&invoke(Kind::TumbleStart, i64::MIN, &[60])), none);
        assert_eq!(numbers(&invoke(Kind::TumbleStart, -1, &[60])), [Some(-60)]);
        assert_eq!(numbers(&invoke(Kind::End, i64::MAX - 59, &[60])), none);
        assert_eq!(numbers(&invoke(Kind::End, i64::MAX - 60, &[60])), [Some(i64::MAX)]);
        assert_eq!(numbers(&invoke(Kind::SessionEnd, i64::MAX, &[1])), none);
        assert_eq!(starts(i64::MIN, 10, 100), Vec::<i64>::new());
        assert_eq!(starts(i64::MAX, 10, 100), Vec::<i64>::new());
        for time in [i64::MIN + 25, i64::MAX - 25, i64::MAX - 200] {
            let is_in = |start: &i64| *start <= time && time < start.checked_add(100).unwrap();
            assert!(starts(time, 10, 100).iter().all(is_in), "{time}");
        }
        assert_eq!(starts(i64::MAX - 200, 10, 100).len(), 10);
    }
}
