//! What an expression keeps of event time: its grain. Only expressions that keep the order of time have one.
//! Where it is not certain there is none, and then nothing that is grouped by the expression is ever final.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::{Cast, TryCast};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};

use super::window_functions::{END, HOP, TUMBLE, fixed_nanoseconds, signed_nanoseconds, unit_nanoseconds};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;
/// The first Monday after 1970 began: weeks begin there.
const MONDAY: i64 = 4 * DAY;

/// The values of an expression are `origin` and whole steps from it; a row whose value is `v` has an event time from
/// `v - before` on and before `v + after`. All in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grain {
    step: i64,
    origin: i64,
    before: i64,
    /// How long after its value a row's event time can be, at most and not reached.
    pub after: i64,
}

/// Event time itself.
pub const EXACT: Grain = Grain { step: 1, origin: 0, before: 0, after: 1 };

impl Grain {
    /// The grain of an expression over the columns of `schema`, of which `time` is the event time.
    pub fn of(expr: &Expr, time: &str, schema: &DFSchema) -> Option<Grain> {
        let of = |expr: &Expr| Grain::of(expr, time, schema);
        match expr {
            Expr::Column(column) => (column.name == time).then_some(EXACT),
            Expr::Alias(alias) => of(&alias.expr),
            Expr::Cast(Cast { expr, field, .. }) | Expr::TryCast(TryCast { expr, field, .. }) => {
                of(expr)?.cast(&expr.get_type(schema).ok()?, field.data_type())
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (of_time, interval) = match (op, left.as_ref(), right.as_ref()) {
                    (Operator::Plus, Expr::Literal(interval, _), of_time) => (of_time, interval),
                    (Operator::Plus | Operator::Minus, of_time, Expr::Literal(interval, _)) => {
                        (of_time, interval)
                    }
                    _ => return None,
                };
                let by = shift(interval, &of_time.get_type(schema).ok()?)?;
                of(of_time)?.shift(if *op == Operator::Plus { by } else { by.checked_neg()? })
            }
            Expr::ScalarFunction(function) => {
                let [first, second, others @ ..] = function.args.as_slice() else { return None };
                match function.func.name() {
                    "date_bin" => of(second)?.bin(first, others, &second.get_type(schema).ok()?),
                    "date_trunc" => of(second)?.trunc(first, &second.get_type(schema).ok()?),
                    TUMBLE => of(first)?.floor(literal_length(second)?, 0),
                    END => of(first)?.shift(literal_length(second)?),
                    HOP => of(first)?.spread(literal_length(second)?, literal_length(others.first()?)?),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// How much event time one value stands for.
    pub fn extent(self) -> i64 {
        self.before.saturating_add(self.after)
    }

    /// Each value becomes the newest of `origin` and whole sizes from it that is not after it.
    fn floor(self, size: i64, origin: i64) -> Option<Grain> {
        let offset = origin.checked_sub(self.origin)?;
        if size <= 0 {
            None
        } else if size % self.step == 0 && offset % self.step == 0 {
            let after = self.after.checked_add(size - self.step)?;
            Some(Grain { step: size, origin, after, ..self })
        } else if self.step % size == 0 && offset % size == 0 {
            Some(self)
        } else {
            None
        }
    }

    fn shift(self, by: i64) -> Option<Grain> {
        Some(Grain {
            step: self.step,
            origin: self.origin.checked_add(by)?,
            before: self.before.checked_add(by)?,
            after: self.after.checked_sub(by)?,
        })
    }

    /// Each value becomes those of whole slides that are not after it and less than `size` before it.
    fn spread(self, slide: i64, size: i64) -> Option<Grain> {
        let fits = [slide, size, self.origin].into_iter().all(|length| length % self.step == 0);
        let after = self.after.checked_add(size - self.step)?;
        fits.then_some(Grain { step: slide, origin: 0, after, ..self })
    }

    fn cast(self, from: &DataType, to: &DataType) -> Option<Grain> {
        match (from, to) {
            (DataType::Timestamp(from_unit, from), DataType::Timestamp(to_unit, to)) => {
                // A time that is given a zone becomes another instant.
                let same = from == to || (from.is_some() && to.is_some()) || (is_utc(from) && is_utc(to));
                let (from, to) = (unit_nanoseconds(*from_unit), unit_nanoseconds(*to_unit));
                match same {
                    true if to > from => self.floor(to, 0),
                    true => Some(self),
                    false => None,
                }
            }
            // In a zone days begin elsewhere, and some have 23 hours.
            (DataType::Timestamp(_, zone), DataType::Date32) if is_utc(zone) => self.floor(DAY, 0),
            (DataType::Date32, DataType::Timestamp(_, zone)) if is_utc(zone) => Some(self),
            (DataType::Date32, DataType::Date32) => Some(self),
            _ => None,
        }
    }

    fn bin(self, size: &Expr, origin: &[Expr], of: &DataType) -> Option<Grain> {
        let DataType::Timestamp(unit, _) = of else { return None };
        let size = literal_length(size)?;
        let origin = match origin {
            [] => 0,
            [Expr::Literal(ScalarValue::TimestampNanosecond(Some(origin), _), _)] => *origin,
            _ => return None,
        };
        let unit = unit_nanoseconds(*unit);
        if size % unit != 0 || origin % unit != 0 {
            return None;
        }
        self.floor(size, origin)
    }

    fn trunc(self, unit: &Expr, of: &DataType) -> Option<Grain> {
        let DataType::Timestamp(_, zone) = of else { return None };
        let Expr::Literal(
            ScalarValue::Utf8(Some(unit))
            | ScalarValue::Utf8View(Some(unit))
            | ScalarValue::LargeUtf8(Some(unit)),
            _,
        ) = unit
        else {
            return None;
        };
        if !is_utc(zone) {
            return None;
        }
        match unit.to_lowercase().as_str() {
            "microsecond" => self.floor(1_000, 0),
            "millisecond" => self.floor(1_000_000, 0),
            "second" => self.floor(SECOND, 0),
            "minute" => self.floor(60 * SECOND, 0),
            "hour" => self.floor(3600 * SECOND, 0),
            "day" => self.floor(DAY, 0),
            "week" => self.floor(7 * DAY, MONDAY),
            _ => None,
        }
    }
}

/// Nanoseconds by which an interval that is added to values of a type moves them, if it moves all by the same.
pub fn shift(interval: &ScalarValue, of: &DataType) -> Option<i64> {
    let length = signed_nanoseconds(interval)?;
    let fits = match of {
        DataType::Date32 => length % DAY == 0,
        DataType::Timestamp(unit, zone) => {
            let has_days = match interval {
                ScalarValue::IntervalMonthDayNano(Some(interval)) => interval.days != 0,
                ScalarValue::IntervalDayTime(Some(interval)) => interval.days != 0,
                _ => false,
            };
            length % unit_nanoseconds(*unit) == 0 && (is_utc(zone) || !has_days)
        }
        _ => false,
    };
    fits.then_some(length)
}

/// Whether a cast leaves each time what it is.
pub fn keeps_time(from: &DataType, to: &DataType) -> bool {
    EXACT.cast(from, to) == Some(EXACT)
}

fn literal_length(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(interval, _) => fixed_nanoseconds(interval),
        _ => None,
    }
}

/// Whether times of a zone are spelled as instants are counted.
fn is_utc(zone: &Option<std::sync::Arc<str>>) -> bool {
    match zone.as_deref() {
        None => true,
        Some(zone) => ["+00:00", "UTC", "Z", "Etc/UTC"].contains(&zone),
    }
}
