//! JSON → Arrow, driven by a source's schema: each message is parsed once, only the declared fields are
//! kept, and a message that does not fit is refused by itself, with the reason.
//!
//! A row is first parsed whole into values, then added to the columns: a bad message leaves no half row.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::concat_batches;
use arrow::compute::kernels::cast_utils::{Parser, parse_decimal, string_to_timestamp_nanos};
use arrow::datatypes::*;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Decoded, Reject};
use crate::error::{Error, Result};

/// Messages decoded by one thread at a time; fewer are not worth a thread.
const ROWS_PER_THREAD_MIN: usize = 4096;
const REASON_CHARS_MAX: usize = 300;

/// Decodes messages of one schema.
#[derive(Clone, Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
}

impl JsonDecoder {
    /// A decoder for rows of `schema`, or why one of its types can't be read from JSON.
    pub fn new(schema: SchemaRef) -> Result<Self, String> {
        for field in schema.fields() {
            supported(field.data_type()).map_err(|t| {
                format!("column {}: {t} can't be read from JSON; declare it VARCHAR, a number, BOOLEAN, DATE, TIMESTAMP, a STRUCT or an array", field.name())
            })?;
        }
        Ok(JsonDecoder { schema })
    }

    /// Decodes `messages`, on all cores when they are many. A message of `None` has no payload.
    pub fn decode(&self, messages: &[Option<&[u8]>]) -> Result<(Decoded, Vec<Reject>)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = messages.len().div_ceil(threads).max(ROWS_PER_THREAD_MIN);
        if messages.len() <= share {
            return self.decode_part(messages, 0);
        }
        let parts = std::thread::scope(|scope| {
            let part = |(i, part)| scope.spawn(move || self.decode_part(part, i * share));
            let running: Vec<_> = messages.chunks(share).enumerate().map(part).collect();
            running.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut batches = Vec::new();
        let mut decoded = Vec::with_capacity(messages.len());
        let mut rejects = Vec::new();
        for part in parts {
            let (rows, refused) = part.map_err(|_| Error::Limit("a decoding thread panicked".into()))??;
            batches.push(rows.rows);
            decoded.extend(rows.messages);
            rejects.extend(refused);
        }
        Ok((Decoded { rows: concat_batches(&self.schema, &batches)?, messages: decoded }, rejects))
    }

    fn decode_part(&self, messages: &[Option<&[u8]>], first: usize) -> Result<(Decoded, Vec<Reject>)> {
        let fields = self.schema.fields();
        let mut columns: Vec<Vec<Value>> =
            fields.iter().map(|_| Vec::with_capacity(messages.len())).collect();
        let mut decoded = Vec::with_capacity(messages.len());
        let mut rejects = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let position = (first + i) as u32;
            match parse(fields, *message) {
                Ok(row) => {
                    decoded.push(position);
                    columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
                }
                Err(reason) => {
                    let reason = reason.chars().take(REASON_CHARS_MAX).collect();
                    rejects.push(Reject { message: position, rule: "json".into(), reason });
                }
            }
        }
        let arrays = fields.iter().zip(columns).map(|(field, values)| build(field.data_type(), values));
        let options = RecordBatchOptions::new().with_row_count(Some(decoded.len()));
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?;
        Ok((Decoded { rows, messages: decoded }, rejects))
    }
}

fn supported(data_type: &DataType) -> Result<(), &DataType> {
    use DataType::*;
    match data_type {
        Boolean
        | Int8
        | Int16
        | Int32
        | Int64
        | UInt8
        | UInt16
        | UInt32
        | UInt64
        | Float32
        | Float64
        | Utf8
        | Date32
        | Timestamp(_, None)
        | Decimal128(..) => Ok(()),
        Timestamp(_, Some(zone)) if zone.as_ref() == "UTC" || zone.as_ref() == "+00:00" => Ok(()),
        Struct(fields) => fields.iter().try_for_each(|field| supported(field.data_type())),
        List(item) => supported(item.data_type()),
        other => Err(other),
    }
}

fn parse<'m>(fields: &Fields, message: Option<&'m [u8]>) -> Result<Vec<Value<'m>>, String> {
    let message = message.ok_or("the message has no payload")?;
    let mut json = serde_json::Deserializer::from_slice(message);
    let row = json.deserialize_map(Row(fields)).map_err(|e| e.to_string())?;
    json.end().map_err(|e| e.to_string())?;
    Ok(row)
}

/// A parsed value, already of its column's type.
#[derive(Clone, Debug, Default)]
enum Value<'m> {
    #[default]
    Null,
    Boolean(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Decimal(i128),
    Text(Cow<'m, str>),
    Struct(Vec<Value<'m>>),
    List(Vec<Value<'m>>),
}

/// Parses an object into one value for each field; other fields are skipped, missing ones are null.
struct Row<'a>(&'a Fields);

impl<'m> Visitor<'m> for Row<'_> {
    type Value = Vec<Value<'m>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = vec![Value::Null; self.0.len()];
        while let Some(position) = map.next_key_seed(Key(self.0))? {
            match position {
                Some(i) => row[i] = map.next_value_seed(Typed(&self.0[i]))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(row)
    }
}

/// Finds a key among the fields without copying it.
struct Key<'a>(&'a Fields);

impl<'m> DeserializeSeed<'m> for Key<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'m>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|field| field.name() == key))
    }
}

/// Parses one value of a field's type.
struct Typed<'a>(&'a Field);

impl<'m> DeserializeSeed<'m> for Typed<'_> {
    type Value = Value<'m>;
    fn deserialize<D: Deserializer<'m>>(self, json: D) -> Result<Value<'m>, D::Error> {
        // A decimal is read from its digits: a float in between would lose some.
        if let DataType::Decimal128(precision, scale) = self.0.data_type() {
            let raw: &'m RawValue = serde::Deserialize::deserialize(json)?;
            let digits = raw.get().trim_matches('"');
            if digits == "null" {
                return Ok(Value::Null);
            }
            let parsed = parse_decimal::<Decimal128Type>(digits, *precision, *scale);
            return parsed.map(Value::Decimal).map_err(|_| self.refuse(digits));
        }
        json.deserialize_any(self)
    }
}

impl Typed<'_> {
    fn refuse<E: serde::de::Error>(&self, value: impl fmt::Display) -> E {
        E::custom(format!("field {}: {value} is no {}", self.0.name(), self.0.data_type()))
    }

    fn integer<'m, E: serde::de::Error>(&self, value: i128) -> Result<Value<'m>, E> {
        use DataType::*;
        let fits = match self.0.data_type() {
            Int8 => i8::try_from(value).is_ok(),
            Int16 => i16::try_from(value).is_ok(),
            Int32 => i32::try_from(value).is_ok(),
            Int64 => i64::try_from(value).is_ok(),
            UInt8 => u8::try_from(value).is_ok(),
            UInt16 => u16::try_from(value).is_ok(),
            UInt32 => u32::try_from(value).is_ok(),
            UInt64 => u64::try_from(value).is_ok(),
            Float32 | Float64 => return Ok(Value::Float(value as f64)),
            _ => false,
        };
        if !fits {
            return Err(self.refuse(value));
        }
        Ok(match self.0.data_type() {
            UInt8 | UInt16 | UInt32 | UInt64 => Value::Unsigned(value as u64),
            _ => Value::Integer(value as i64),
        })
    }

    /// A text that is no VARCHAR: a time, or a number in quotes.
    fn spelled<'m, E: serde::de::Error>(&self, text: &str) -> Result<Value<'m>, E> {
        use DataType::*;
        let parsed = match self.0.data_type() {
            Timestamp(unit, _) => string_to_timestamp_nanos(text).ok().map(|nanos| {
                Value::Integer(match unit {
                    TimeUnit::Second => nanos.div_euclid(1_000_000_000),
                    TimeUnit::Millisecond => nanos.div_euclid(1_000_000),
                    TimeUnit::Microsecond => nanos.div_euclid(1_000),
                    TimeUnit::Nanosecond => nanos,
                })
            }),
            Date32 => Date32Type::parse(text).map(|days| Value::Integer(days.into())),
            Float32 | Float64 => text.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float),
            t if t.is_integer() => {
                return self.integer(text.parse().map_err(|_| self.refuse(format_args!("{text:?}")))?);
            }
            _ => None,
        };
        parsed.ok_or_else(|| self.refuse(format_args!("{text:?}")))
    }
}

impl<'m> Visitor<'m> for Typed<'_> {
    type Value = Value<'m>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a {} for field {}", self.0.data_type(), self.0.name())
    }
    fn visit_unit<E>(self) -> Result<Value<'m>, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value<'m>, E> {
        match self.0.data_type() {
            DataType::Boolean => Ok(Value::Boolean(value)),
            _ => Err(self.refuse(value)),
        }
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value<'m>, E> {
        self.integer(value.into())
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value<'m>, E> {
        self.integer(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value<'m>, E> {
        match self.0.data_type() {
            DataType::Float32 | DataType::Float64 => Ok(Value::Float(value)),
            // 1.0 is an integer; 1.5 is refused rather than cut.
            t if t.is_integer() && value.fract() == 0.0 && value.abs() < 2f64.powi(53) => {
                self.integer(value as i128)
            }
            _ => Err(self.refuse(value)),
        }
    }
    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'m str) -> Result<Value<'m>, E> {
        match self.0.data_type() {
            DataType::Utf8 => Ok(Value::Text(Cow::Borrowed(text))),
            _ => self.spelled(text),
        }
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value<'m>, E> {
        match self.0.data_type() {
            DataType::Utf8 => Ok(Value::Text(Cow::Owned(text.into()))),
            _ => self.spelled(text),
        }
    }
    fn visit_map<A: MapAccess<'m>>(self, map: A) -> Result<Value<'m>, A::Error> {
        match self.0.data_type() {
            DataType::Struct(fields) => Row(fields).visit_map(map).map(Value::Struct),
            _ => Err(A::Error::custom(format!(
                "field {}: an object is no {}",
                self.0.name(),
                self.0.data_type()
            ))),
        }
    }
    fn visit_seq<A: SeqAccess<'m>>(self, mut seq: A) -> Result<Value<'m>, A::Error> {
        let DataType::List(item) = self.0.data_type() else {
            return Err(A::Error::custom(format!(
                "field {}: an array is no {}",
                self.0.name(),
                self.0.data_type()
            )));
        };
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Typed(item))? {
            values.push(value);
        }
        Ok(Value::List(values))
    }
}

macro_rules! primitive {
    ($array:ty, $native:ty, $values:expr) => {
        Arc::new(<$array>::from_iter($values.into_iter().map(|value| match value {
            Value::Integer(v) => Some(v as $native),
            Value::Unsigned(v) => Some(v as $native),
            Value::Float(v) => Some(v as $native),
            _ => None,
        }))) as ArrayRef
    };
}

/// A column of values that have its type already.
fn build(data_type: &DataType, values: Vec<Value>) -> Result<ArrayRef> {
    use DataType::*;
    Ok(match data_type {
        Boolean => Arc::new(BooleanArray::from_iter(values.into_iter().map(|value| match value {
            Value::Boolean(v) => Some(v),
            _ => None,
        }))),
        Int8 => primitive!(Int8Array, i8, values),
        Int16 => primitive!(Int16Array, i16, values),
        Int32 => primitive!(Int32Array, i32, values),
        Int64 => primitive!(Int64Array, i64, values),
        UInt8 => primitive!(UInt8Array, u8, values),
        UInt16 => primitive!(UInt16Array, u16, values),
        UInt32 => primitive!(UInt32Array, u32, values),
        UInt64 => primitive!(UInt64Array, u64, values),
        Float32 => primitive!(Float32Array, f32, values),
        Float64 => primitive!(Float64Array, f64, values),
        Date32 => primitive!(Date32Array, i32, values),
        Timestamp(..) => arrow::compute::cast(&primitive!(Int64Array, i64, values), data_type)?,
        Decimal128(precision, scale) => {
            let digits = values.into_iter().map(|value| match value {
                Value::Decimal(v) => Some(v),
                _ => None,
            });
            Arc::new(Decimal128Array::from_iter(digits).with_precision_and_scale(*precision, *scale)?)
        }
        Utf8 => Arc::new(StringArray::from_iter(values.iter().map(|value| match value {
            Value::Text(text) => Some(text.as_ref()),
            _ => None,
        }))),
        Struct(fields) => build_struct(fields, values)?,
        List(item) => build_list(item, values)?,
        other => return Err(Error::Config(format!("{other} can't be read from JSON"))),
    })
}

fn build_struct(fields: &Fields, values: Vec<Value>) -> Result<ArrayRef> {
    let length = values.len();
    let mut valid = Vec::with_capacity(length);
    let mut columns: Vec<Vec<Value>> = fields.iter().map(|_| Vec::with_capacity(length)).collect();
    for value in values {
        // Under a null struct the children are null too: DataFusion reads a field without its parent's mask.
        let (is_valid, row) = match value {
            Value::Struct(row) => (true, row),
            _ => (false, vec![Value::Null; fields.len()]),
        };
        valid.push(is_valid);
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let children = fields.iter().zip(columns).map(|(field, values)| build(field.data_type(), values));
    let children = children.collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StructArray::try_new_with_length(
        fields.clone(),
        children,
        Some(NullBuffer::from(valid)),
        length,
    )?))
}

fn build_list(item: &FieldRef, values: Vec<Value>) -> Result<ArrayRef> {
    let mut valid = Vec::with_capacity(values.len());
    let mut lengths = Vec::with_capacity(values.len());
    let mut items = Vec::new();
    for value in values {
        let list = if let Value::List(list) = value { Some(list) } else { None };
        valid.push(list.is_some());
        let list = list.unwrap_or_default();
        lengths.push(list.len());
        items.extend(list);
    }
    let items = build(item.data_type(), items)?;
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, items, Some(NullBuffer::from(valid)))?))
}
