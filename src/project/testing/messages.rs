//! Rows as the messages that a producer would send, and as the texts that a test shows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::catalog::{Format, OnConflict, SourceDef, TimestampFormat};
use crate::error::Result;
use crate::sink;
use crate::source::{MessageRef, RawBatch};

/// Each row as the texts of its values.
pub fn cells(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::new().with_null("NULL");
    let formatters: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<_, _>>()?;
    let cell = |row: usize, column: usize| match batch.column(column).is_null(row) {
        true => "NULL".to_string(),
        false => formatters[column].value(row).to_string(),
    };
    let row = |row| (0..formatters.len()).map(|column| cell(row, column)).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

/// What a producer sends to `source` for rows that were there (`before`) and are now (`after`): of a changed row one
/// of each at the same position. `offset` is the first message's.
pub fn messages(
    source: &SourceDef,
    before: &RecordBatch,
    after: &RecordBatch,
    offset: i64,
) -> Result<RawBatch> {
    let key = source.primary_key().unwrap_or_default();
    let (old, new) = (spelled(source, before)?, spelled(source, after)?);
    let (old_keys, new_keys) = (sink::keys(&old, key)?, sink::keys(&new, key)?);
    let (old, new) = (sink::rows(&old)?, sink::rows(&new)?);
    let mut batch = RawBatch::default();
    for i in 0..old.len().max(new.len()) {
        let (old, new) = (old.get(i).map(Vec::as_slice), new.get(i).map(Vec::as_slice));
        let key = new_keys.get(i).or(old_keys.get(i)).and_then(Option::as_deref);
        let envelope;
        let payload = match source.format {
            Format::DebeziumJson => {
                envelope = enveloped(old, new);
                Some(envelope.as_bytes())
            }
            Format::Json => new,
        };
        batch.push(MessageRef { offset: offset + i as i64, key, payload, ..MessageRef::default() });
    }
    Ok(batch)
}

/// Whether a changed row of the source is told as what it is now, and not as what it was.
pub fn tells_only_new(source: &SourceDef) -> bool {
    source.on_conflict == OnConflict::Replace
}

/// Debezium's envelope.
fn enveloped(before: Option<&[u8]>, after: Option<&[u8]>) -> String {
    let text =
        |row: Option<&[u8]>| row.map_or("null".into(), |row| String::from_utf8_lossy(row).into_owned());
    let op = match (before, after) {
        (None, _) => "c",
        (Some(_), Some(_)) => "u",
        (Some(_), None) => "d",
    };
    format!(r#"{{"before":{},"after":{},"op":"{op}"}}"#, text(before), text(after))
}

/// The rows with columns whose JSON is what the source reads: bytes as base64, times as its `timestamp_format` says.
fn spelled(source: &SourceDef, rows: &RecordBatch) -> Result<RecordBatch> {
    let schema = rows.schema();
    let columns = rows.columns().iter().map(|column| spelled_column(source.timestamp_format, column));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let fields = schema.fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)?)
}

fn spelled_column(format: TimestampFormat, column: &ArrayRef) -> Result<ArrayRef> {
    if let DataType::Binary = column.data_type() {
        let texts = column.as_binary::<i32>().iter().map(|bytes| bytes.map(|bytes| BASE64.encode(bytes)));
        return Ok(Arc::new(StringArray::from_iter(texts)));
    }
    let TimestampFormat::Epoch(unit) = format else { return Ok(Arc::clone(column)) };
    let in_unit = cast(column, &with_times(column.data_type(), &|zone| DataType::Timestamp(unit, zone)))?;
    Ok(cast(&in_unit, &with_times(in_unit.data_type(), &|_| DataType::Int64))?)
}

/// A type with other types in place of its timestamps, also within structs and lists.
fn with_times(data_type: &DataType, time: &dyn Fn(Option<Arc<str>>) -> DataType) -> DataType {
    let field = |field: &FieldRef| {
        Arc::new(field.as_ref().clone().with_data_type(with_times(field.data_type(), time)))
    };
    match data_type {
        DataType::Timestamp(_, zone) => time(zone.clone()),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::List(item) => DataType::List(field(item)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::engine::session;
    use crate::ingest::Ingest;
    use crate::queries::QueryFile;
    use crate::reference::References;

    async fn source(columns: &str, options: &str) -> SourceDef {
        let text = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE s ({columns}) STORED AS KAFKA LOCATION 's' OPTIONS ({options})"
        );
        let files = [QueryFile { path: "s.sql".into(), text }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        catalog.sources["s"].clone()
    }

    /// The rows that a source makes of the messages for what a query gives.
    async fn read_back(source: &SourceDef, values: &str) -> Vec<Vec<String>> {
        let schema = Arc::clone(&source.schema);
        let rows = super::super::inserted(&format!("INSERT INTO s VALUES {values}"), schema).await.unwrap();
        let none = rows.slice(0, 0);
        let batch = messages(source, &none, &rows, 1).unwrap();
        let planning = session::continuous().state();
        let mut ingest = Ingest::new(Arc::new(source.clone()), None, &planning).unwrap();
        let (decoded, rejects) = ingest.decode(&batch).unwrap();
        assert_eq!(rejects, []);
        let (judged, _) = ingest.judge(decoded, &batch, &References::default()).unwrap();
        assert_eq!(cells(&judged.rows).unwrap(), cells(&rows).unwrap());
        cells(&judged.rows).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_type_comes_out_as_it_was_inserted() {
        let columns = "a BIGINT, b DOUBLE, c DECIMAL(9, 2), d BOOLEAN, e VARCHAR, f DATE, g TIME, h TIMESTAMP, \
                       i TIMESTAMP WITH TIME ZONE, j BYTEA, k BIGINT[], l STRUCT<x INT, y TIMESTAMP>";
        let values = "(1, 0.1, 12.50, true, 'ü\"', '2024-05-01', '10:00:01', '2024-05-01 10:00:01.5', \
                      '2024-05-01 10:00:01Z', X'00ff', [1, NULL], {'x': 1, 'y': TIMESTAMP '2024-05-01 10:00:00'}), \
                      (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)";
        let rows = read_back(&source(columns, "'format' 'json'").await, values).await;
        assert_eq!(rows[0][2..5], ["12.50", "true", "ü\""]);
        for unit in ["epoch_ms", "epoch_us"] {
            read_back(&source(columns, &format!("'timestamp_format' '{unit}'")).await, values).await;
        }
    }
}
