//! JSON → Arrow, driven by a schema: each message is parsed once, only the schema's fields are kept, and a
//! message that does not fit is refused by itself, with the reason.
//!
//! Every field of the schema is judged, also those that nobody needs now: which messages are refused must not
//! change with the queries. Only the needed ones are kept.
//!
//! A field that the schema lacks is skipped and not judged: it must be JSON, no more. Of a key that comes
//! twice the last value counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{FieldRef, SchemaRef};

use super::column::{self, Column};
use super::object::Splitter;
use super::{Decoded, Reject};
use crate::catalog::TimestampFormat;
use crate::error::{Error, Result};

/// Messages decoded by one thread at a time; fewer are not worth a thread.
const ROWS_PER_THREAD_MIN: usize = 4096;
const REASON_CHARS_MAX: usize = 300;

/// Decodes messages into rows of one schema.
#[derive(Clone, Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
    /// Columns of its rows, by position in `schema`, …
    kept: Vec<usize>,
    /// … and as a schema.
    kept_schema: SchemaRef,
    timestamps: TimestampFormat,
    /// Position in `schema` of the event time.
    event_time: Option<usize>,
}

impl JsonDecoder {
    /// A decoder for rows of `schema`, or why one of its types can't be read from JSON.
    pub fn new(schema: SchemaRef, timestamps: TimestampFormat) -> Result<Self, String> {
        for field in schema.fields() {
            column::new(field, timestamps, 0)
                .map_err(|reason| format!("column {}: {reason}", field.name()))?;
        }
        let kept = (0..schema.fields().len()).collect();
        Ok(JsonDecoder { kept_schema: Arc::clone(&schema), schema, kept, timestamps, event_time: None })
    }

    /// A decoder that refuses messages whose value of `column` can't be an event time, too.
    pub fn with_event_time(self, column: &str) -> Self {
        JsonDecoder { event_time: self.schema.index_of(column).ok(), ..self }
    }

    /// A decoder that refuses the same messages, and keeps of the others only the columns `needed`; one, if
    /// that is none: rows without a column are awkward to filter.
    pub fn keeping(self, needed: &BTreeSet<String>) -> Self {
        let fields = self.schema.fields();
        let mut kept: Vec<_> = (0..fields.len()).filter(|i| needed.contains(fields[*i].name())).collect();
        if kept.is_empty() {
            kept.extend((0..fields.len()).take(1));
        }
        let kept_schema = self.schema.project(&kept).expect("invariant: these are its positions");
        JsonDecoder { kept_schema: Arc::new(kept_schema), kept, ..self }
    }

    /// Columns that the rows have.
    pub fn kept(&self) -> &SchemaRef {
        &self.kept_schema
    }

    /// Decodes `messages`, on all cores when they are many. A message of `None` has no payload.
    pub fn decode(&self, messages: &[Option<&[u8]>]) -> Result<(Decoded, Vec<Reject>)> {
        let mut parts = in_parts(messages, |part, first| self.decode_part(part, first))?;
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut batches = Vec::new();
        let mut decoded = Vec::with_capacity(messages.len());
        let mut rejects = Vec::new();
        for (rows, refused) in parts {
            batches.push(rows.rows);
            decoded.extend(rows.messages);
            rejects.extend(refused);
        }
        Ok((Decoded::of_rows(concat_batches(&self.kept_schema, &batches)?, decoded), rejects))
    }

    fn decode_part(&self, messages: &[Option<&[u8]>], first: usize) -> Result<(Decoded, Vec<Reject>)> {
        let new = |(i, field): (usize, &FieldRef)| {
            let is_kept = self.kept.contains(&i);
            if self.event_time == Some(i) {
                column::event_time(field, self.timestamps, is_kept.then_some(messages.len()))
            } else if is_kept {
                column::new(field, self.timestamps, messages.len())
            } else {
                column::judge(field, self.timestamps)
            }
        };
        let columns = self.schema.fields().iter().enumerate().map(new).collect::<Result<_, _>>();
        let columns = columns.map_err(Error::Config)?;
        let mut rows = Rows { schema: &self.schema, columns, splitter: Splitter::default(), length: 0 };
        let mut kept = Vec::with_capacity(messages.len());
        let mut decoded = Vec::with_capacity(messages.len());
        let mut rejects = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let position = (first + i) as u32;
            let before = rows.length;
            let added = rows.add(*message);
            kept.extend((before < rows.length).then_some(added.is_ok()));
            match added {
                Ok(()) => decoded.push(position),
                Err(reason) => {
                    let reason = reason.chars().take(REASON_CHARS_MAX).collect();
                    rejects.push(Reject::of_rule(position, "json", reason));
                }
            }
        }
        let mut rows = rows.finish(&self.kept, &self.kept_schema)?;
        if decoded.len() < rows.num_rows() {
            rows = filter_record_batch(&rows, &BooleanArray::from(kept))?;
        }
        Ok((Decoded::of_rows(rows, decoded), rejects))
    }
}

/// Runs `work` over all messages, in parts on all cores when they are many; it is told where its part begins.
pub fn in_parts<'m, T: Send>(
    messages: &[Option<&'m [u8]>],
    work: impl Fn(&[Option<&'m [u8]>], usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = messages.len().div_ceil(threads).max(ROWS_PER_THREAD_MIN);
    if messages.len() <= share {
        return Ok(vec![work(messages, 0)?]);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let part = |(i, part)| scope.spawn(move || work(part, i * share));
        let running: Vec<_> = messages.chunks(share).enumerate().map(part).collect();
        let panicked = || Error::Limit("a decoding thread panicked".into());
        running.into_iter().map(|thread| thread.join().map_err(|_| panicked())?).collect()
    })
}

/// The columns of a batch while it is read.
struct Rows<'a, 'm> {
    schema: &'a SchemaRef,
    columns: Vec<Box<dyn Column<'m> + 'm>>,
    splitter: Splitter<'m>,
    /// Rows of the columns. One whose value was refused is among them: its message is no row.
    length: usize,
}

impl<'m> Rows<'_, 'm> {
    fn add(&mut self, message: Option<&'m [u8]>) -> Result<(), String> {
        let message = message.ok_or("the message has no payload")?;
        let message = std::str::from_utf8(message).map_err(|e| e.to_string())?;
        let fields = self.schema.fields();
        let values = self.splitter.split(message, fields).map_err(|e| e.to_string())?;
        self.length += 1;
        let mut result = Ok(());
        for ((column, value), field) in self.columns.iter_mut().zip(values).zip(fields) {
            let added = column.add(*value).map_err(|reason| format!("field {}{reason}", field.name()));
            result = result.and(added);
        }
        result
    }

    /// The columns at the positions `kept`, which are those of `schema`.
    fn finish(mut self, kept: &[usize], schema: &SchemaRef) -> Result<RecordBatch> {
        let arrays = kept.iter().map(|i| self.columns[*i].finish()).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.length));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
    }
}
