//! Rows of a Postgres table as Arrow, through `COPY … TO STDOUT` in CSV: the cheapest text for the server
//! to write and for Arrow to read. Every way of reading ends in [`copy`].

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_csv::ReaderBuilder;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::schema::{TableDef, quote_identifier, quote_literal};
use super::store::StoreError;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Stands for NULL in the CSV, so that an empty text stays one. A text that is exactly this reads as NULL;
/// the control characters make that unlikely.
const NULL_MARKER: &str = "\u{1}NULL\u{2}";

const BATCH_ROWS: usize = 8192;

/// How long Postgres may be silent while a table is read: a frozen server never answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Batches decoded before their reader asks for them.
const BATCHES_AHEAD_MAX: usize = 2;

/// All rows of a table, with the given columns in the given order. Without columns the batches only count.
pub async fn load(
    pool: &PgPool,
    pg_schema: &str,
    table: &TableDef,
    columns: &[String],
) -> Result<Vec<RecordBatch>> {
    stream(pool, pg_schema, table, columns, None)?.try_collect().await
}

/// As [`load`], batch by batch, and at most `limit` rows.
pub fn stream(
    pool: &PgPool,
    pg_schema: &str,
    table: &TableDef,
    columns: &[String],
    limit: Option<usize>,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let from = format!("{}.{}", quote_identifier(pg_schema), quote_identifier(&table.name));
    let limit = limit.map(|rows| format!(" LIMIT {rows}")).unwrap_or_default();
    let action = format!("reading table {pg_schema}.{}", table.name);
    if columns.is_empty() {
        let count = Schema::new(vec![Field::new("count", DataType::Int64, false)]);
        let select = format!("SELECT count(*) FROM (SELECT FROM {from}{limit}) counted");
        let counts = copy(pool, action, &select, Arc::new(count));
        return Ok(counts.map(|batch| only_count(&batch?)).boxed());
    }
    let (expressions, schema) = selection(table, columns)?;
    Ok(copy(pool, action, &format!("SELECT {expressions} FROM {from}{limit}"), schema))
}

/// The rows whose `key` columns are among `values`, which has one column for each, in the same order.
pub async fn lookup(
    pool: &PgPool,
    pg_schema: &str,
    table: &TableDef,
    columns: &[String],
    key: &[String],
    values: &RecordBatch,
) -> Result<Vec<RecordBatch>> {
    let (lists, rows) = key_texts(table, key, values)?;
    if rows == 0 || columns.is_empty() {
        return Ok(Vec::new());
    }
    let mut compared = Vec::with_capacity(key.len());
    let mut wanted = Vec::with_capacity(key.len());
    for (column, list) in key.iter().zip(&lists) {
        let (expression, type_name) = table.comparison(table.index_of(column)?);
        compared.push(expression);
        wanted.push(format!("{}::{type_name}[]", quote_literal(list)));
    }
    let (expressions, schema) = selection(table, columns)?;
    let select = format!(
        "SELECT {expressions} FROM {}.{} WHERE ({}) IN (SELECT * FROM unnest({}))",
        quote_identifier(pg_schema),
        quote_identifier(&table.name),
        compared.join(", "),
        wanted.join(", ")
    );
    let action = format!("looking up rows of table {pg_schema}.{}", table.name);
    copy(pool, action, &select, schema).try_collect().await
}

fn selection(table: &TableDef, columns: &[String]) -> Result<(String, SchemaRef)> {
    let indices = columns.iter().map(|c| table.index_of(c)).collect::<Result<Vec<_>>>()?;
    let expressions: Vec<String> = indices.iter().map(|&i| table.expression(i)).collect();
    let schema = table.schema.project(&indices).map_err(|e| unfit(table, e))?;
    Ok((expressions.join(", "), Arc::new(schema)))
}

fn only_count(batch: &RecordBatch) -> Result<RecordBatch> {
    let counts: &Int64Array = batch.column(0).as_primitive::<Int64Type>();
    let rows = usize::try_from(counts.value(0)).expect("invariant: a count is not negative");
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)
        .map_err(|e| StoreError::refused("counting rows", e))
}

fn unfit(table: &TableDef, error: ArrowError) -> StoreError {
    StoreError::refused(format!("reading table {}", table.name), error)
}

/// The key columns' values as Postgres array literals, and how many there are. A value that the column can't
/// hold matches no row and is left out, lest Postgres refuse all of them for its sake.
fn key_texts(table: &TableDef, key: &[String], values: &RecordBatch) -> Result<(Vec<String>, usize)> {
    let safe = CastOptions { safe: true, ..Default::default() };
    let mut texts = Vec::with_capacity(key.len());
    for (column, array) in key.iter().zip(values.columns()) {
        let index = table.index_of(column)?;
        let data_type = table.schema.field(index).data_type();
        let as_text = |array: &dyn Array| {
            let typed = cast_with_options(array, data_type, &safe)?;
            cast_with_options(&typed, &DataType::Utf8, &safe)
        };
        let text = match as_text(array) {
            Ok(text) => text,
            // One of them has no text, such as a date too far away.
            Err(_) => {
                let row = |row| as_text(&array.slice(row, 1)).ok().filter(|text| text.is_valid(0));
                let row = |at| row(at).map(|text| text.as_string::<i32>().value(0).to_owned());
                Arc::new((0..array.len()).map(row).collect::<StringArray>())
            }
        };
        texts.push((text, table.types[index] == "uuid"));
    }
    let holds = |text: &str, uuid: bool| {
        !text.contains('\0')
            && (!uuid || Uuid::parse_str(text).is_ok_and(|u| u.hyphenated().to_string() == text))
    };
    let mut lists = vec![String::from("{"); key.len()];
    let mut rows = 0;
    for row in 0..values.num_rows() {
        let kept = texts
            .iter()
            .all(|(array, uuid)| !array.is_null(row) && holds(array.as_string::<i32>().value(row), *uuid));
        if !kept {
            continue;
        }
        for (list, (array, _)) in lists.iter_mut().zip(&texts) {
            let text = array.as_string::<i32>().value(row);
            list.push_str(if rows == 0 { "\"" } else { ",\"" });
            list.push_str(&text.replace('\\', "\\\\").replace('"', "\\\""));
            list.push('"');
        }
        rows += 1;
    }
    lists.iter_mut().for_each(|list| list.push('}'));
    Ok((lists, rows))
}

/// Runs a SELECT whose columns are texts of `schema`'s types. The task that reads ends when the stream is
/// dropped.
fn copy(
    pool: &PgPool,
    action: String,
    select: &str,
    schema: SchemaRef,
) -> BoxStream<'static, Result<RecordBatch>> {
    // Postgres doesn't quote an empty text, and CSV readers skip an empty line, which it is if it stands alone.
    let quote = if schema.fields().len() == 1 { ", FORCE_QUOTE *" } else { "" };
    let statement =
        format!("COPY ({select}) TO STDOUT (FORMAT csv, NULL {}{quote})", quote_literal(NULL_MARKER));
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD_MAX);
    let pool = pool.clone();
    tokio::spawn(async move {
        if let Err(e) = send(&pool, &statement, schema, &action, &sender).await {
            // The reader may be gone; then nobody wants the error.
            let _ = sender.send(Err(e)).await;
        }
    });
    stream::unfold(receiver, |mut r| async move { r.recv().await.map(|batch| (batch, r)) }).boxed()
}

/// Sends every batch, unless the receiver goes away first.
async fn send(
    pool: &PgPool,
    statement: &str,
    schema: SchemaRef,
    action: &str,
    sender: &mpsc::Sender<Result<RecordBatch>>,
) -> Result<()> {
    let mut connection = pool.acquire().await.map_err(|e| failed(action, &e))?;
    let result = tokio::select! {
        result = read(&mut connection, statement, schema, action, sender) => result,
        () = sender.closed() => Err(unwanted(action)),
    };
    if result.is_err() {
        // Rows may still be on their way; the pool's next user must not meet them.
        connection.close_on_drop();
    }
    result
}

async fn read(
    connection: &mut PgConnection,
    statement: &str,
    schema: SchemaRef,
    action: &str,
    sender: &mpsc::Sender<Result<RecordBatch>>,
) -> Result<()> {
    let malformed = |e| {
        let hint = "a column holds what its Arrow type can't, such as NaN in a numeric: read it through a Postgres view";
        StoreError::refused(action, format!("{e}; {hint}"))
    };
    let silent = |_| {
        StoreError::away(
            action,
            format!("no answer within {} s; is the table locked?", ANSWER_TIMEOUT.as_secs()),
        )
    };
    let null = format!("^{NULL_MARKER}$").parse().expect("invariant: the marker has no special character");
    let mut decoder =
        ReaderBuilder::new(schema).with_batch_size(BATCH_ROWS).with_null_regex(null).build_decoder();
    let rows = timeout(ANSWER_TIMEOUT, connection.copy_out_raw(statement)).await.map_err(silent)?;
    let mut rows = rows.map_err(|e| failed(action, &e))?;
    while let Some(row) =
        timeout(ANSWER_TIMEOUT, rows.try_next()).await.map_err(silent)?.map_err(|e| failed(action, &e))?
    {
        let mut bytes = &row[..];
        while !bytes.is_empty() {
            let used = decoder.decode(bytes).map_err(malformed)?;
            bytes = &bytes[used..];
            if decoder.capacity() == 0
                && let Some(batch) = decoder.flush().map_err(malformed)?
            {
                sender.send(Ok(batch)).await.map_err(|_| unwanted(action))?;
            }
        }
    }
    if let Some(batch) = decoder.flush().map_err(malformed)? {
        sender.send(Ok(batch)).await.map_err(|_| unwanted(action))?;
    }
    Ok(())
}

/// Nobody reads any more; so nobody reads this error either.
fn unwanted(action: &str) -> StoreError {
    StoreError::away(action, "the reader is gone")
}

/// The error of a query, with what to do about it.
pub(super) fn failed(action: &str, error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|e| e.code());
    let hint = match code.as_deref() {
        Some("42P01" | "42703" | "3F000") => {
            "it was there before: was it dropped or renamed? Restart to read the tables anew"
        }
        Some("42501") => "GRANT SELECT on it to the user of `postgres_url`",
        Some("22003") => "a number is too large: read it through a Postgres view that casts it to text",
        Some(_) => "see the log of Postgres",
        None => "is the server running, and is `postgres_url` right?",
    };
    let (action, reason) = (action.to_string(), format!("{error}; {hint}"));
    if is_refusal(error, code.as_deref()) {
        StoreError::Refused { action, reason, sqlstate: code.map(|code| code.into_owned()) }
    } else {
        StoreError::Away { action, reason }
    }
}

/// Whether the same question would be answered so again: of what Postgres says, a wrong value (class 22), a
/// missing right, table or column (42, 3F), and what it can't do (0A, 21, 54). All else is about the server,
/// the connection or the moment.
fn is_refusal(error: &sqlx::Error, code: Option<&str>) -> bool {
    match code {
        Some(code) => ["22", "42", "3F", "0A", "21", "54"].iter().any(|class| code.starts_with(class)),
        None => matches!(
            error,
            sqlx::Error::Decode(_)
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::Encode(_)
                | sqlx::Error::TypeNotFound { .. }
        ),
    }
}
