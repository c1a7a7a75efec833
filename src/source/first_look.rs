//! What a topic has before it is read, and whether that is what it should have.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::client::KafkaConsumer;
use super::watch::{Offsets, low_and_end};
use super::{Position, Positions};
use crate::clients::CONNECT_TIMEOUT;
use crate::describe::{Description, Question, describe, only_broker};
use crate::error::{Error, Result};

/// A topic that was created a moment ago may not be known everywhere.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(3);
const OPEN_RETRY: Duration = Duration::from_millis(200);

/// The topic, and its oldest offsets and ends. Waits for what passes, such as a partition without a leader.
pub(super) fn first_look(consumer: &KafkaConsumer, topic: &str) -> Result<(Description, Offsets)> {
    let begun = Instant::now();
    loop {
        let (reason, patience) = match look(consumer, topic) {
            Ok(found) => return Ok(found),
            Err((reason, patience)) => (reason, patience),
        };
        if begun.elapsed() >= patience {
            return Err(Error::kafka(format!("reading topic {topic}"), reason));
        }
        std::thread::sleep(OPEN_RETRY);
    }
}

/// The error says why, and how long it is worth trying.
fn look(consumer: &KafkaConsumer, topic: &str) -> Result<(Description, Offsets), (String, Duration)> {
    let client = consumer.client();
    let question = Question {
        names: &[topic],
        operations: false,
        broker: only_broker(client, topic, CONNECT_TIMEOUT),
        timeout: CONNECT_TIMEOUT,
    };
    let mut found = describe(client, question, || true).map_err(|reason| (reason, CONNECT_TIMEOUT))?;
    let description = found.pop().ok_or_else(|| ("no description".to_string(), CONNECT_TIMEOUT))?;
    match description.error {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            Err(("there is no such topic; `tally topics` creates it".into(), UNKNOWN_PATIENCE))
        }
        Some(code @ (Code::TopicAuthorizationFailed | Code::InvalidTopic)) => {
            Err((code.to_string(), Duration::ZERO))
        }
        Some(code) => Err((code.to_string(), CONNECT_TIMEOUT)),
        None => {
            let offsets = low_and_end(consumer, topic, &description.partitions, CONNECT_TIMEOUT);
            offsets.map(|offsets| (description, offsets)).map_err(|e| (e.to_string(), CONNECT_TIMEOUT))
        }
    }
}

/// What to say of a topic that no longer has its first messages.
pub(super) fn lost_beginning(topic: &str, offsets: &Offsets, positions: &Positions) -> Option<String> {
    let is_new = |partition: &i32| !positions.contains_key(partition);
    let (partition, (low, _)) = offsets.iter().find(|(partition, (low, _))| *low > 0 && is_new(partition))?;
    Some(format!(
        "{topic}/{partition} begins at offset {low}: its first messages are gone (retention, or deleted), and a count \
         of the rest would be of less than was written. Restore the topic; or let the source say OPTIONS ('start' \
         'earliest_available') to count what is left, marked as such. `tally topics` creates topics that keep all"
    ))
}

/// What to say of a topic that no longer has what was counted.
pub(super) fn lost_count(topic: &str, offsets: &Offsets, positions: &Positions) -> Option<String> {
    let anew = "Restore the topic, or count what it has with `tally run --rebuild`";
    positions.iter().find_map(|(partition, Position { first, next })| match offsets.get(partition) {
        None => Some(format!("{topic} has no partition {partition} any more, which was counted. {anew}")),
        Some((_, end)) if end < next => Some(format!(
            "{topic}/{partition} ends at offset {end}, and was counted up to {next}: the topic was created again, or \
             has lost messages. {anew}"
        )),
        Some((low, _)) if low > first => Some(format!(
            "{topic}/{partition} begins at offset {low}, and was counted from {first}: what a start has to count once \
             more is gone. {anew}; if the rest is to count, the source must say OPTIONS ('start' 'earliest_available')"
        )),
        Some(_) => None,
    })
}
