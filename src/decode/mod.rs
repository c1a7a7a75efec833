//! Bytes of messages → rows of a source, and the judgement which of them keep its rules.

mod check;
mod column;
mod future;
mod json;
mod nested;
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
) -> Result<(JsonDecoder, RuleSet)> {
    let mut decoder = JsonDecoder::new(source.schema.clone(), source.timestamp_format)
        .map_err(|reason| source.place.error(reason))?;
    if let Some(time) = &source.event_time {
        decoder = decoder.with_event_time(time);
    }
    let rules = RuleSet::new(source, session)?;
    let Some(mut needed) = read else { return Ok((decoder, rules)) };
    needed.extend(rules.columns().cloned());
    Ok((decoder.keeping(&needed), rules))
}

/// Rows decoded of a batch of messages.
#[derive(Debug)]
pub struct Decoded {
    /// The rows.
    pub rows: RecordBatch,
    /// Of each row, the position of its message in the batch.
    pub messages: Vec<u32>,
}

/// A message that is not counted: by its source, or by one view only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Its position in the batch of messages.
    pub message: u32,
    /// Name of the rule that it broke; `json` if it could not be decoded; `late` or `error(view)` if only a view
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
