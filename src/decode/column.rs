//! Columns that are filled from JSON, one value after the other: one sort for each type.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::builder::*;
use arrow::array::{ArrayRef, ArrowPrimitiveType, new_empty_array};
use arrow::compute::kernels::cast_utils::{Parser, string_to_time_nanoseconds};
use arrow::datatypes::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::nested;
use super::number::{decimal, float, float32, integer};
use super::time::Timestamps;
use crate::catalog::TimestampFormat;
use crate::error::Result;

/// Of a refused value, what a reason tells.
const SHOWN_CHARS_MAX: usize = 80;

/// A column while it is filled.
pub trait Column<'m> {
    /// Adds the value whose JSON is `value`, or null. A value that does not fit is refused with the rest of
    /// a sentence that starts with the name of the field; something is added then too, so that columns stay
    /// of one length.
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String>;

    /// The values added.
    fn finish(&mut self) -> Result<ArrayRef>;
}

/// Values that a judged column gathers before it lets them go.
const JUDGED_AT_ONCE: usize = 256;

/// A column whose values are judged as those of [`new`], which takes `field`, and not kept.
pub fn judge<'m>(field: &Field, timestamps: TimestampFormat) -> Result<Box<dyn Column<'m> + 'm>, String> {
    if field.data_type().is_string() {
        return Ok(Box::new(JudgedTexts));
    }
    let column = new(field, timestamps, JUDGED_AT_ONCE)?;
    Ok(Box::new(Judged { column, gathered: 0 }))
}

struct Judged<'m> {
    column: Box<dyn Column<'m> + 'm>,
    gathered: usize,
}

impl<'m> Column<'m> for Judged<'m> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        self.gathered += 1;
        let added = self.column.add(value);
        if self.gathered == JUDGED_AT_ONCE {
            self.gathered = 0;
            self.column.finish().map_err(|e| format!(": {e}"))?;
        }
        added
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        self.column.finish()
    }
}

/// A column for `rows` values of `field`, or why its type can't be read from JSON.
pub fn new<'m>(
    field: &Field,
    timestamps: TimestampFormat,
    rows: usize,
) -> Result<Box<dyn Column<'m> + 'm>, String> {
    use DataType::*;
    if !field.is_nullable() {
        return Err("it must be nullable; that a value is needed is a rule of the source".into());
    }
    let data_type = field.data_type();
    let child = |field: &Field| new(field, timestamps, rows);
    Ok(match data_type {
        Boolean => Box::new(Booleans(BooleanBuilder::with_capacity(rows))),
        Int8 => primitive::<Int8Type>(data_type, rows, integer),
        Int16 => primitive::<Int16Type>(data_type, rows, integer),
        Int32 => primitive::<Int32Type>(data_type, rows, integer),
        Int64 => primitive::<Int64Type>(data_type, rows, integer),
        UInt8 => primitive::<UInt8Type>(data_type, rows, integer),
        UInt16 => primitive::<UInt16Type>(data_type, rows, integer),
        UInt32 => primitive::<UInt32Type>(data_type, rows, integer),
        UInt64 => primitive::<UInt64Type>(data_type, rows, integer),
        Float32 => primitive::<Float32Type>(data_type, rows, float32),
        Float64 => primitive::<Float64Type>(data_type, rows, float),
        Decimal128(p, s) => decimals::<Decimal128Type>(data_type, rows, *p, *s),
        Decimal256(p, s) => decimals::<Decimal256Type>(data_type, rows, *p, *s),
        Date32 => primitive::<Date32Type>(data_type, rows, |json| Date32Type::parse(&text(json)?)),
        Time32(TimeUnit::Second) => {
            primitive::<Time32SecondType>(data_type, rows, |json| Some((time(json)? / 1_000_000_000) as i32))
        }
        Time32(_) => {
            primitive::<Time32MillisecondType>(data_type, rows, |json| Some((time(json)? / 1_000_000) as i32))
        }
        Time64(TimeUnit::Microsecond) => {
            primitive::<Time64MicrosecondType>(data_type, rows, |json| Some(time(json)? / 1_000))
        }
        Time64(_) => primitive::<Time64NanosecondType>(data_type, rows, time),
        Timestamp(unit, zone) => {
            self::timestamps(data_type, rows, Timestamps::new(timestamps, *unit, zone.as_deref())?)
        }
        Utf8 => Box::new(Texts(<StringBuilder as StringLikeArrayBuilder>::with_capacity(rows))),
        LargeUtf8 => Box::new(Texts(<LargeStringBuilder as StringLikeArrayBuilder>::with_capacity(rows))),
        Utf8View => Box::new(Texts(StringViewBuilder::with_capacity(rows))),
        Binary => Box::new(Bytes(<BinaryBuilder as BinaryLikeArrayBuilder>::with_capacity(rows))),
        LargeBinary => Box::new(Bytes(<LargeBinaryBuilder as BinaryLikeArrayBuilder>::with_capacity(rows))),
        BinaryView => Box::new(Bytes(BinaryViewBuilder::with_capacity(rows))),
        Struct(fields) => {
            let columns = fields.iter().map(|field| child(field)).collect::<Result<_, _>>()?;
            Box::new(nested::Struct::new(fields, columns))
        }
        List(item) => Box::new(nested::List::new(item, child(item)?)),
        FixedSizeList(item, size) => Box::new(nested::FixedList::new(item, *size, child(item)?)),
        Map(entries, false) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 && *fields[0].data_type() == Utf8 => {
                Box::new(nested::Map::new(entries, fields, child(&fields[1])?))
            }
            _ => return Err("a MAP's keys are VARCHAR: those of a JSON object are text".into()),
        },
        other => {
            return Err(format!(
                "{other} can't be read from JSON; declare it VARCHAR, a number, BOOLEAN, DATE, TIME, \
                 TIMESTAMP, BYTEA, a STRUCT, a MAP or an array"
            ));
        }
    })
}

/// As [`new`], or [`judge`] if its values are not kept, of the event time: it must be one of which nanoseconds hold
/// the windows too.
pub fn event_time<'m>(
    field: &Field,
    timestamps: TimestampFormat,
    rows: Option<usize>,
) -> Result<Box<dyn Column<'m> + 'm>, String> {
    let data_type = field.data_type();
    let DataType::Timestamp(unit, zone) = data_type else {
        return Err(format!("{data_type} is no TIMESTAMP"));
    };
    let times = Timestamps::new(timestamps, *unit, zone.as_deref())?.of_events();
    let column = self::timestamps(data_type, rows.unwrap_or(JUDGED_AT_ONCE), times);
    Ok(if rows.is_some() { column } else { Box::new(Judged { column, gathered: 0 }) })
}

fn timestamps<'m>(data_type: &DataType, rows: usize, times: Timestamps) -> Box<dyn Column<'m> + 'm> {
    let expected = times.expected(data_type);
    let read = move |json: &str| times.read(json);
    match data_type {
        DataType::Timestamp(TimeUnit::Second, _) => {
            expecting::<TimestampSecondType>(data_type, rows, expected, read)
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            expecting::<TimestampMillisecondType>(data_type, rows, expected, read)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            expecting::<TimestampMicrosecondType>(data_type, rows, expected, read)
        }
        _ => expecting::<TimestampNanosecondType>(data_type, rows, expected, read),
    }
}

/// What a JSON string says; none if `json` is no string, or has half a character.
pub fn text(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(json).ok().map(Cow::Owned) } else { Some(inner.into()) }
}

/// That `json` is not what was expected.
pub fn refuse<T>(json: &str, expected: impl std::fmt::Display) -> Result<T, String> {
    Err(match json.as_bytes().first() {
        Some(b'{') => format!(": an object is no {expected}"),
        Some(b'[') => format!(": an array is no {expected}"),
        _ => match json.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!(": {}… is no {expected}", &json[..end]),
            None => format!(": {json} is no {expected}"),
        },
    })
}

/// Nanoseconds since midnight.
fn time(json: &str) -> Option<i64> {
    string_to_time_nanoseconds(&text(json)?).ok()
}

struct Booleans(BooleanBuilder);

impl<'m> Column<'m> for Booleans {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let read = value.and_then(|json| json.parse().ok());
        self.0.append_option(read);
        match value {
            Some(json) if read.is_none() => refuse(json, DataType::Boolean),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(Arc::new(self.0.finish()))
    }
}

struct Primitive<T: ArrowPrimitiveType, R> {
    values: PrimitiveBuilder<T>,
    read: R,
    expected: String,
}

fn primitive<'m, T: ArrowPrimitiveType>(
    data_type: &DataType,
    rows: usize,
    read: impl Fn(&str) -> Option<T::Native> + 'm,
) -> Box<dyn Column<'m> + 'm> {
    expecting::<T>(data_type, rows, data_type.to_string(), read)
}

fn expecting<'m, T: ArrowPrimitiveType>(
    data_type: &DataType,
    rows: usize,
    expected: String,
    read: impl Fn(&str) -> Option<T::Native> + 'm,
) -> Box<dyn Column<'m> + 'm> {
    let values = PrimitiveBuilder::<T>::with_capacity(rows).with_data_type(data_type.clone());
    Box::new(Primitive { values, read, expected })
}

/// In quotes or not: a producer who means every digit writes a text.
fn decimals<'m, T: DecimalType<Native: std::str::FromStr>>(
    data_type: &DataType,
    rows: usize,
    precision: u8,
    scale: i8,
) -> Box<dyn Column<'m> + 'm> {
    primitive::<T>(data_type, rows, move |json| {
        decimal::<T>(text(json).as_deref().unwrap_or(json), precision, scale)
    })
}

impl<'m, T: ArrowPrimitiveType, R: Fn(&str) -> Option<T::Native>> Column<'m> for Primitive<T, R> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let read = value.and_then(&self.read);
        self.values.append_option(read);
        match value {
            Some(json) if read.is_none() => refuse(json, &self.expected),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(Arc::new(self.values.finish()))
    }
}

/// An object or an array is taken as its JSON, letter by letter. A number or a boolean is refused: which of
/// `1`, `1.0` and `1e0` the text would be is its writer's chance.
struct Texts<B>(B);

impl<'m, B: StringLikeArrayBuilder> Column<'m> for Texts<B> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let read = value.map(varchar).transpose();
        match &read {
            Ok(Some(text)) => self.0.append_value(text),
            Ok(None) | Err(_) => self.0.append_null(),
        }
        read.map(|_| ())
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(self.0.finish())
    }
}

/// Nothing of a text that is not kept is copied.
struct JudgedTexts;

impl<'m> Column<'m> for JudgedTexts {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        value.map_or(Ok(()), |json| varchar(json).map(|_| ()))
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(new_empty_array(&DataType::Utf8))
    }
}

/// What a JSON string says, or the JSON of an object or array.
fn varchar(json: &str) -> Result<Cow<'_, str>, String> {
    match json.as_bytes().first() {
        Some(b'{' | b'[') => Ok(json.into()),
        _ => text(json).map_or_else(|| refuse(json, "VARCHAR"), Ok),
    }
}

/// Written as base64 of the usual alphabet, padded.
struct Bytes<B>(B);

impl<'m, B: BinaryLikeArrayBuilder> Column<'m> for Bytes<B> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let read = value.and_then(|json| BASE64.decode(text(json)?.as_bytes()).ok());
        match (&read, value) {
            (Some(bytes), _) => self.0.append_value(bytes),
            (None, None) => self.0.append_null(),
            (None, Some(json)) => {
                self.0.append_null();
                return refuse(json, "base64");
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(self.0.finish())
    }
}
