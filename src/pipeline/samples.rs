//! Examples of the messages that were left out: the newest of each kind, so that an operator sees what is wrong
//! with them.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use crate::decode::Reject;
use crate::snapshot::RejectSample;
use crate::source::RawBatch;

/// Examples of each kind, …
const SAMPLES_MAX: usize = 3;
/// … of how many kinds, …
const KINDS_MAX: usize = 50;
/// … and how much of each message.
const CHARS_MAX: usize = 500;

/// The newest messages that were left out, by rule and view.
#[derive(Default, Serialize, Deserialize)]
pub struct Samples(BTreeMap<(String, Option<String>), VecDeque<RejectSample>>);

impl Samples {
    /// Keeps a message of a batch.
    pub fn add(&mut self, reject: &Reject, batch: &RawBatch) {
        let kind = (reject.rule.clone(), reject.view.clone());
        if self.0.len() >= KINDS_MAX && !self.0.contains_key(&kind) {
            return;
        }
        let samples = self.0.entry(kind).or_default();
        samples.push_back(sample(reject, batch));
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// Kind by kind, the oldest first.
    pub fn all(&self) -> Vec<RejectSample> {
        self.0.values().flatten().cloned().collect()
    }
}

fn sample(reject: &Reject, batch: &RawBatch) -> RejectSample {
    let message = batch.get(reject.message);
    let at = message.timestamp_ms.and_then(DateTime::from_timestamp_millis);
    let value = message.payload.map(|bytes| {
        // A character has at most four bytes.
        beginning(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * CHARS_MAX)]))
    });
    RejectSample {
        rule: reject.rule.clone(),
        reason: beginning(&reject.reason),
        view: reject.view.clone(),
        partition: message.partition,
        offset: message.offset,
        at: at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        value,
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::MessageRef;

    #[test]
    fn the_newest_of_each_kind_are_kept() {
        let mut batch = RawBatch::default();
        let long = "ä".repeat(2_000);
        for offset in 0..10 {
            let payload = if offset == 9 { long.as_bytes() } else { b"{\xff" };
            let timestamp_ms = Some(0);
            batch.push(MessageRef { offset, payload: Some(payload), timestamp_ms, ..MessageRef::default() });
        }
        let mut samples = Samples::default();
        for message in 0..10 {
            samples.add(&Reject::of_rule(message, "json", "no JSON".into()), &batch);
        }
        samples.add(&Reject::late(4, "votes_over_time"), &batch);
        let all = samples.all();
        let offsets: Vec<_> = all.iter().map(|sample| (sample.rule.as_str(), sample.offset)).collect();
        assert_eq!(offsets, [("json", 7), ("json", 8), ("json", 9), ("late", 4)]);
        assert_eq!(all[0].value.as_deref(), Some("{\u{fffd}"));
        assert_eq!(all[0].at.as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(all[2].value.as_ref().map(|value| value.chars().count()), Some(CHARS_MAX));
        for kind in 0..100 {
            samples.add(&Reject::of_rule(0, format!("rule{kind}"), String::new()), &batch);
        }
        assert_eq!(samples.0.len(), KINDS_MAX);
    }
}
