//! Bytes of messages → rows of a source, and the judgement which of them keep its rules.

mod check;
mod column;
mod counted_rows;
mod debezium;
mod decoder;
mod future;
mod json;
mod message_key;
mod nested;
mod net;
mod newest;
mod number;
mod object;
#[cfg(test)]
mod oracle;
mod rules;
mod scan;
mod seen;
#[cfg(test)]
mod tests;
mod time;

pub use decoder::Decoder;
pub use json::JsonDecoder;
pub use rules::{ForeignKeys, RuleSet};

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use datafusion::execution::session_state::SessionState;

use crate::catalog::SourceDef;
use crate::error::Result;

/// The decoder of a source and its rules. Rows hold the columns that are `read` and those that the rules read;
/// none: all that are declared. `session` plans CHECK expressions.
pub fn of_source(
    source: &SourceDef,
    read: Option<BTreeSet<String>>,
    session: &SessionState,
) -> Result<(Decoder, RuleSet)> {
    let rules = RuleSet::new(source, read.as_ref(), session)?;
    let needed = read.map(|read| read.into_iter().chain(rules.columns().cloned()).collect());
    Ok((Decoder::new(source, needed)?, rules))
}

/// The same of messages that are known to keep the rules: nothing is judged but what rows they take back. Rows hold all
/// columns.
pub fn of_counted(source: &SourceDef) -> Result<(Decoder, RuleSet)> {
    Ok((Decoder::new(source, None)?, RuleSet::of_counted(source)?))
}

/// Rows decoded of a batch of messages.
#[derive(Debug)]
pub struct Decoded {
    /// The rows.
    pub rows: RecordBatch,
    /// Of each row, the position of its message in the batch.
    pub messages: Vec<u32>,
    /// What the messages take back; only of a source that can.
    pub taken_back: Option<TakenBack>,
}

impl Decoded {
    /// Rows of messages that take nothing back.
    pub fn of_rows(rows: RecordBatch, messages: Vec<u32>) -> Decoded {
        Decoded { rows, messages, taken_back: None }
    }
}

/// What a batch of messages takes back.
#[derive(Debug)]
pub struct TakenBack {
    /// The rows, or the primary keys of rows.
    pub rows: RecordBatch,
    /// Of each, the position of its message in the batch; ascending.
    pub messages: Vec<u32>,
    /// How many messages say nothing new.
    pub silent: usize,
}

/// Rows that keep every rule.
#[derive(Debug)]
pub struct Judged {
    /// The rows. Of a source that takes rows back: those that came and went, with the weight as last column.
    pub rows: RecordBatch,
    /// Of each row, the position of its message in the batch.
    pub messages: Vec<u32>,
    /// How many messages count.
    pub counted: usize,
}

/// A message that is not counted: by its source, or by one view only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Its position in the batch of messages.
    pub message: u32,
    /// Name of the rule that it broke; `json` if it could not be decoded; `retraction` if it takes back what is not
    /// there; `late` or `error(view)` if only a view
    /// left it out.
    pub rule: String,
    /// Why, for a person.
    pub reason: String,
    /// The view, if only that left it out.
    pub view: Option<String>,
}

impl Reject {
    /// A message that broke a rule of its source.
    pub fn of_rule(message: u32, rule: impl Into<String>, reason: String) -> Reject {
        Reject { message, rule: rule.into(), reason, view: None }
    }

    /// A message that came after its group in `view` was final.
    pub fn late(message: u32, view: &str) -> Reject {
        let reason = format!("came after its group in view {view} was final; other views counted it");
        Reject { message, rule: "late".into(), reason, view: Some(view.into()) }
    }

    /// A message whose row an expression of `view` could not take.
    pub fn of_view(message: u32, view: &str, reason: &str) -> Reject {
        let reason = format!("view {view} goes on without it: {reason}; other views counted it");
        Reject { message, rule: format!("error({view})"), reason, view: Some(view.into()) }
    }
}
