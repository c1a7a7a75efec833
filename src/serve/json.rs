//! Record batches as JSON: one object per row, with every column in it. NaN and infinities become null,
//! decimals numbers, timestamps ISO 8601 in UTC.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_json::WriterBuilder;
use arrow_json::writer::{JsonArray, LineDelimited};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

/// How a time without a zone is written: it is one of UTC, and says so.
pub(super) const UTC: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

/// A time in UTC, to the millisecond.
pub(super) fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A column as the API names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ColumnInfo {
    name: String,
    #[serde(rename = "type")]
    data_type: String,
}

/// Names and types of a schema's columns.
pub fn column_list(schema: &Schema) -> Vec<ColumnInfo> {
    let column = |field: &Arc<Field>| ColumnInfo {
        name: field.name().clone(),
        data_type: type_name(field.data_type()),
    };
    schema.fields().iter().map(column).collect()
}

/// How a type is called in SQL, where it has such a name.
pub(super) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt8 => "TINYINT UNSIGNED".into(),
        DataType::UInt16 => "SMALLINT UNSIGNED".into(),
        DataType::UInt32 => "INT UNSIGNED".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float16 | DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::Date32 | DataType::Date64 => "DATE".into(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP WITH TIME ZONE".into(),
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".into(),
        DataType::Dictionary(_, value) => type_name(value),
        DataType::List(item) | DataType::LargeList(item) => format!("{}[]", type_name(item.data_type())),
        other => other.to_string(),
    }
}

fn builder() -> WriterBuilder {
    WriterBuilder::new().with_explicit_nulls(true).with_timestamp_format(UTC.into())
}

/// Each row as a JSON object.
pub(super) fn row_objects(rows: &RecordBatch) -> Result<Vec<Vec<u8>>, ArrowError> {
    let mut writer = builder().build::<_, LineDelimited>(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    let lines = writer.into_inner();
    // A line break in a text is written as an escape.
    Ok(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The rows as a JSON array.
pub fn rows_json(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = builder().build::<_, JsonArray>(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(writer.into_inner())
}

/// `head`'s members and then `"rows"`, as one JSON object.
pub(super) fn body(head: &impl Serialize, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut body = serde_json::to_vec(head).map_err(|e| ArrowError::JsonError(e.to_string()))?;
    // The head is an object with at least one member; its last byte closes it.
    body.pop();
    body.extend_from_slice(b",\"rows\":");
    body.extend(rows_json(batches)?);
    body.push(b'}');
    Ok(body)
}

/// The same columns, with `_2`, `_3`… after a name that occurred before: a JSON object has each name once,
/// and `SELECT a.id, b.id` gives two.
pub(super) fn distinct_names(schema: &SchemaRef) -> SchemaRef {
    let mut taken: HashSet<String> = HashSet::new();
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let mut name = field.name().clone();
        for n in 2.. {
            if taken.insert(name.clone()) {
                break;
            }
            name = format!("{}_{n}", field.name());
        }
        fields.push(field.as_ref().clone().with_name(name));
    }
    Arc::new(Schema::new(fields))
}
