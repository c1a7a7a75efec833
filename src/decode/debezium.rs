//! The envelopes that Debezium writes: how a row was `before`, how it is `after`, and by which operation. With the
//! converter's `schema` part beside the `payload`, or without.

use std::sync::LazyLock;

use arrow::datatypes::{DataType, Field, Fields};

use super::column::text;
use super::json::in_parts;
use super::object::Splitter;
use crate::error::Result;

const OP: usize = 0;
const BEFORE: usize = 1;
const AFTER: usize = 2;
const PAYLOAD: usize = 3;

static PARTS: LazyLock<Fields> = LazyLock::new(|| {
    let names = ["op", "before", "after", "payload"];
    names.map(|name| Field::new(name, DataType::Utf8, true)).to_vec().into()
});

/// What happened to a row.
pub struct Envelope<'m> {
    /// The row that goes.
    pub before: Option<&'m str>,
    /// The row that comes.
    pub after: Option<&'m str>,
}

/// The envelope of each message, or what is wrong with it; none of an empty message, which follows a delete so that
/// Kafka forgets the key, and says nothing new. `is_keyed`: a row goes by its primary key. Uses all cores.
pub fn envelopes<'m>(
    messages: &[Option<&'m [u8]>],
    is_keyed: bool,
) -> Result<Vec<Result<Option<Envelope<'m>>, String>>> {
    let parts = in_parts(messages, |messages, _| {
        let (mut outer, mut inner) = (Splitter::default(), Splitter::default());
        let read = |message: &Option<&'m [u8]>| match message {
            Some(message) => envelope(message, is_keyed, &mut outer, &mut inner).map(Some),
            None => Ok(None),
        };
        Ok(messages.iter().map(read).collect::<Vec<_>>())
    })?;
    Ok(parts.into_iter().flatten().collect())
}

fn envelope<'m>(
    message: &'m [u8],
    is_keyed: bool,
    outer: &mut Splitter<'m>,
    inner: &mut Splitter<'m>,
) -> Result<Envelope<'m>, String> {
    let message = std::str::from_utf8(message).map_err(|e| e.to_string())?;
    let mut parts = outer.split(message, &PARTS).map_err(|e| e.to_string())?;
    if let (None, Some(payload)) = (parts[OP], parts[PAYLOAD]) {
        parts = inner.split(payload, &PARTS).map_err(|e| format!("payload: {e}"))?;
    }
    let op = parts[OP].ok_or("the envelope has no `op`")?;
    let op = text(op).ok_or_else(|| format!("op {op} is no text"))?;
    let needed = |part: usize, name: &str| {
        parts[part].ok_or_else(|| format!("op {op} needs `{name}`, which is missing or null"))
    };
    match op.as_ref() {
        "c" | "r" => Ok(Envelope { before: None, after: Some(needed(AFTER, "after")?) }),
        // Which key the row had before is told only where another one has taken its place.
        "u" if is_keyed => Ok(Envelope { before: parts[BEFORE], after: Some(needed(AFTER, "after")?) }),
        "u" => Ok(Envelope {
            after: Some(needed(AFTER, "after")?),
            before: Some(needed(BEFORE, "before").map_err(without_key)?),
        }),
        "d" => Ok(Envelope { before: Some(needed(BEFORE, "before").map_err(without_key)?), after: None }),
        other => Err(format!("op {other} is none of c, r, u, d")),
    }
}

/// What to do where a database does not tell how rows were.
fn without_key(reason: String) -> String {
    format!("{reason}; Postgres tells it of tables with REPLICA IDENTITY FULL")
}

#[cfg(test)]
mod tests;
