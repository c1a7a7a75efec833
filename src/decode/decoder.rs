//! The messages of a source, in whichever format, as rows that come and rows that are taken back.

use std::collections::{BTreeSet, HashSet};

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;

use super::debezium::{self, Envelope};
use super::message_key;
use super::rules::project;
use super::{Decoded, JsonDecoder, Reject, TakenBack};
use crate::catalog::{Format, OnConflict, SourceDef};
use crate::error::Result;
use crate::source::RawBatch;

/// Decodes the messages of one source.
#[derive(Clone, Debug)]
pub struct Decoder {
    rows: JsonDecoder,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// Each message is a row.
    Rows,
    /// Each message is a row, or empty: then its key says which row goes. The decoder is that of the key's columns.
    Replacing(JsonDecoder),
    /// Each message says how a row was before and how it is after. The decoder is that of the row before, of which
    /// only the key is read where there is one.
    Debezium { before: JsonDecoder, is_keyed: bool },
}

impl Decoder {
    /// For a source, of rows with the columns `needed`; none: all.
    pub fn new(source: &SourceDef, needed: Option<BTreeSet<String>>) -> Result<Decoder> {
        let decoder = |schema: &SchemaRef| {
            JsonDecoder::new(SchemaRef::clone(schema), source.timestamp_format)
                .map_err(|reason| source.place.error(reason))
        };
        let mut rows = decoder(&source.schema)?;
        if let Some(time) = &source.event_time {
            rows = rows.with_event_time(time);
        }
        let key = source.primary_key().map(|key| decoder(&project(&source.schema, key)?)).transpose()?;
        let form = match (source.format, source.on_conflict, key) {
            (Format::DebeziumJson, _, Some(key)) => Form::Debezium { before: key, is_keyed: true },
            (Format::DebeziumJson, _, None) => Form::Debezium { before: rows.clone(), is_keyed: false },
            (Format::Json, OnConflict::Replace, Some(key)) => Form::Replacing(key),
            (Format::Json, ..) => Form::Rows,
        };
        // Without a key a row is taken back by all its values.
        let keeps_all = matches!(form, Form::Debezium { is_keyed: false, .. });
        if let Some(needed) = needed.filter(|_| !keeps_all) {
            rows = rows.keeping(&needed);
        }
        Ok(Decoder { rows, form })
    }

    /// Columns that the rows have.
    pub fn kept(&self) -> &SchemaRef {
        self.rows.kept()
    }

    /// Decodes messages, on all cores when they are many.
    pub fn decode(&self, raw: &RawBatch) -> Result<(Decoded, Vec<Reject>)> {
        match &self.form {
            Form::Rows => self.rows.decode(&raw.payloads()),
            Form::Replacing(key) => self.replacing(raw, key),
            Form::Debezium { before, is_keyed } => self.debezium(raw, before, *is_keyed),
        }
    }

    fn replacing(&self, raw: &RawBatch, key: &JsonDecoder) -> Result<(Decoded, Vec<Reject>)> {
        let (mut rows, mut deleted, mut rejects) = (Texts::default(), Texts::default(), Vec::new());
        let mut keys = Vec::new();
        for (message, payload) in (0..).zip(raw.payloads()) {
            if payload.is_some() {
                rows.add(message, payload);
                continue;
            }
            match message_key::as_object(raw.get(message).key, key.kept()) {
                Ok(object) => keys.push((message, object)),
                Err(reason) => rejects.push(Reject::of_rule(message, "json", reason)),
            }
        }
        keys.iter().for_each(|(message, object)| deleted.add(*message, Some(object.as_bytes())));
        let (coming, refused) = rows.decode(&self.rows, "")?;
        rejects.extend(refused);
        let (going, refused) = deleted.decode(key, "the message has no payload, and of its key ")?;
        rejects.extend(refused);
        let taken_back = TakenBack { rows: going.rows, messages: going.messages, silent: 0 };
        Ok((Decoded { taken_back: Some(taken_back), ..coming }, rejects))
    }

    fn debezium(
        &self,
        raw: &RawBatch,
        before: &JsonDecoder,
        is_keyed: bool,
    ) -> Result<(Decoded, Vec<Reject>)> {
        let payloads = raw.payloads();
        let (mut after_rows, mut before_rows) = (Texts::default(), Texts::default());
        let (mut rejects, mut silent) = (Vec::new(), 0);
        for (message, envelope) in (0..).zip(debezium::envelopes(&payloads, is_keyed)?) {
            match envelope {
                Ok(Some(Envelope { before, after })) => {
                    if let Some(after) = after {
                        after_rows.add(message, Some(after.as_bytes()));
                    }
                    if let Some(before) = before {
                        before_rows.add(message, Some(before.as_bytes()));
                    }
                }
                Ok(None) => silent += 1,
                Err(reason) => rejects.push(Reject::of_rule(message, "json", reason)),
            }
        }
        let (mut coming, refused) = after_rows.decode(&self.rows, "after: ")?;
        rejects.extend(refused);
        let (mut going, mut refused) = before_rows.decode(before, "before: ")?;
        if is_keyed {
            let has_after: HashSet<u32> = coming.messages.iter().copied().collect();
            refused.extend(keyed(&mut going, &has_after)?);
        }
        let known: HashSet<u32> = rejects.iter().map(|reject| reject.message).collect();
        refused.retain(|reject| !known.contains(&reject.message));
        (coming.rows, coming.messages) = without(coming.rows, coming.messages, &refused)?;
        rejects.extend(refused);
        let taken_back =
            TakenBack { rows: going.rows, messages: going.messages, silent }.without(&rejects)?;
        Ok((Decoded { taken_back: Some(taken_back), ..coming }, rejects))
    }
}

/// Texts of some messages of a batch.
#[derive(Default)]
struct Texts<'a> {
    messages: Vec<u32>,
    texts: Vec<Option<&'a [u8]>>,
}

impl<'a> Texts<'a> {
    fn add(&mut self, message: u32, text: Option<&'a [u8]>) {
        self.messages.push(message);
        self.texts.push(text);
    }

    /// The rows, and what is refused, of which reasons begin with `what`.
    fn decode(self, decoder: &JsonDecoder, what: &str) -> Result<(Decoded, Vec<Reject>)> {
        let (mut decoded, mut rejects) = decoder.decode(&self.texts)?;
        let message = |position: u32| self.messages[position as usize];
        decoded.messages.iter_mut().for_each(|position| *position = message(*position));
        for reject in &mut rejects {
            reject.message = message(reject.message);
            reject.reason.insert_str(0, what);
        }
        Ok((decoded, rejects))
    }
}

/// Leaves out the keys of which a column is NULL: a database may tell no more of a row before than that it was.
/// Beside a row after it nothing is missing then; the other messages are refused.
fn keyed(before: &mut Decoded, has_after: &HashSet<u32>) -> Result<Vec<Reject>> {
    let has_null = |row: usize| before.rows.columns().iter().any(|column| column.is_null(row));
    let nulls: Vec<_> = (0..before.messages.len()).filter(|row| has_null(*row)).collect();
    let reason = "before: a column of the PRIMARY KEY is missing or null";
    let reject = |row: &usize| Reject::of_rule(before.messages[*row], "json", reason.into());
    let mut rejects: Vec<_> = nulls.iter().map(reject).collect();
    (before.rows, before.messages) =
        without(before.rows.clone(), std::mem::take(&mut before.messages), &rejects)?;
    rejects.retain(|reject| !has_after.contains(&reject.message));
    Ok(rejects)
}

impl TakenBack {
    /// Nothing; `schema` has the columns of the source.
    pub fn nothing(schema: SchemaRef) -> TakenBack {
        TakenBack { rows: RecordBatch::new_empty(schema), messages: Vec::new(), silent: 0 }
    }

    /// What the other messages take back.
    pub fn without(self, rejects: &[Reject]) -> Result<TakenBack> {
        let (rows, messages) = without(self.rows, self.messages, rejects)?;
        Ok(TakenBack { rows, messages, silent: self.silent })
    }
}

/// The rows of the other messages.
fn without(rows: RecordBatch, messages: Vec<u32>, rejects: &[Reject]) -> Result<(RecordBatch, Vec<u32>)> {
    let rejected: HashSet<u32> = rejects.iter().map(|reject| reject.message).collect();
    if !messages.iter().any(|message| rejected.contains(message)) {
        return Ok((rows, messages));
    }
    let stays = |row: &u32| !rejected.contains(&messages[*row as usize]);
    let kept: Vec<u32> = (0..messages.len() as u32).filter(stays).collect();
    let messages = kept.iter().map(|row| messages[*row as usize]).collect();
    Ok((take_record_batch(&rows, &UInt32Array::from(kept))?, messages))
}
