//! What an answer's rows may be written in, and how a caller says so: by the path's ending, by `?format=`, or by
//! the `Accept` header.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
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
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 3] = [Format::Json, Format::Csv, Format::Arrow];

    /// How it is called in a path or a parameter.
    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Arrow => "arrow",
        }
    }

    /// What the `Content-Type` header calls it.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8; header=present",
            Format::Arrow => "application/vnd.apache.arrow.stream",
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
        [Format::Arrow, Format::Csv].into_iter().find(accepts).unwrap_or(Format::Json)
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
        }
    }
}

fn csv(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow_csv::WriterBuilder::new().with_timestamp_format(UTC.into()).build(Vec::new());
    // Without a row there is still the line with the names.
    writer.write(&flat(&RecordBatch::new_empty(schema.clone()))?)?;
    for batch in batches {
        writer.write(&flat(batch)?)?;
    }
    Ok(writer.into_inner())
}

/// Lists, structs and maps as text, which CSV has no other way to write.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    if !schema.fields().iter().any(|field| field.data_type().is_nested()) {
        return Ok(batch.clone());
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
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
