//! What an answer's rows may be written in, and how a caller says so: by the path's ending, by `?format=`, or by
//! the `Accept` header.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use super::json::{self, UTC};
use super::problem::Problem;

/// A format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One object, with a head and the rows.
    Json,
    /// The rows, after a line with the columns' names.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 4] = [Format::Json, Format::Csv, Format::Arrow, Format::Parquet];

    /// How it is called in a path or a parameter.
    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Arrow => "arrow",
            Format::Parquet => "parquet",
        }
    }

    /// What the `Content-Type` header calls it.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8; header=present",
            Format::Arrow => "application/vnd.apache.arrow.stream",
            Format::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The format called so.
    pub fn named(name: &str) -> Result<Format, Problem> {
        let known = Format::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| {
            let names = Format::ALL.map(Format::name).join(", ");
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("there is no format {name:?}; the formats are: {names}"),
            )
        })
    }

    /// A name and the format that it ends with, as in `votes.csv`.
    pub fn split(name: &str) -> (&str, Option<Format>) {
        let ending = name.rsplit_once('.');
        let format = ending.and_then(|(bare, ending)| {
            Some((bare, Format::ALL.into_iter().find(|format| format.name() == ending)?))
        });
        format.map_or((name, None), |(bare, format)| (bare, Some(format)))
    }

    /// The one that the `Accept` header names; JSON if it names none.
    pub fn accepted(headers: &HeaderMap) -> Format {
        let accepts = |format: &Format| {
            let (media_type, _) = format.media_type().split_once(';').unwrap_or((format.media_type(), ""));
            headers.get_all(ACCEPT).iter().any(|v| v.to_str().is_ok_and(|v| v.contains(media_type)))
        };
        [Format::Parquet, Format::Arrow, Format::Csv].into_iter().find(accepts).unwrap_or(Format::Json)
    }

    /// The rows as an answer's body. Only JSON has the head.
    pub fn body(
        self,
        head: &impl Serialize,
        schema: &SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<Vec<u8>, ArrowError> {
        match self {
            Format::Json => json::body(head, batches),
            Format::Csv => csv(schema, batches),
            Format::Arrow => {
                let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
                batches.iter().try_for_each(|batch| writer.write(batch))?;
                writer.into_inner()
            }
            Format::Parquet => parquet(schema, batches),
        }
    }
}

fn csv(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow_csv::WriterBuilder::new().with_timestamp_format(UTC.into()).build(Vec::new());
    // Without a row there is still the line with the names.
    writer.write(&with_text(&RecordBatch::new_empty(schema.clone()), DataType::is_nested)?)?;
    for batch in batches {
        writer.write(&with_text(batch, DataType::is_nested)?)?;
    }
    Ok(writer.into_inner())
}

fn parquet(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let unknown = |of: &DataType| matches!(of, DataType::Interval(IntervalUnit::MonthDayNano));
    let schema = with_text(&RecordBatch::new_empty(schema.clone()), unknown)?.schema();
    let snappy = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(snappy))?;
    for batch in batches {
        writer.write(&with_text(batch, unknown)?)?;
    }
    Ok(writer.into_inner()?)
}

/// Columns as text where their type is one that the format has no way to write.
fn with_text(batch: &RecordBatch, unknown: impl Fn(&DataType) -> bool) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    if !schema.fields().iter().any(|field| unknown(field.data_type())) {
        return Ok(batch.clone());
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if unknown(field.data_type()) {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(as_text(column)?);
        } else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn as_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default().with_timestamp_format(Some(UTC));
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    let text = (0..column.len())
        .map(|row| (!column.is_null(row)).then(|| formatter.value(row).try_to_string()).transpose());
    Ok(Arc::new(text.collect::<Result<StringArray, _>>()?))
}
