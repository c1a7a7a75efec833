//! A record that waits to be written, and what becomes of it where Kafka does not take it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use super::refusals::{is_of_one_record, passes, remedy};
use super::{Record, Refused, cut, refuse};

/// A record that fails so often for a reason that is not known to pass is refused.
const ATTEMPTS_MAX: u8 = 5;
/// Kafka's default limit of a record is a little more; the client's own is this.
pub(super) const RECORD_BYTES_MAX: usize = 1_000_000;
/// What a record takes in a topic besides its bytes, with room to spare.
const OVERHEAD_BYTES: usize = 512;
const OVERHEAD_BYTES_BY_HEADER: usize = 12;

/// A record to be written.
pub(super) struct Queued {
    pub(super) record: Record,
    /// Whether it is left out.
    pub(super) refused: bool,
    /// Whether it is sent by itself, so that what Kafka says of it is of no other: it refuses a batch whole.
    pub(super) alone: bool,
    /// How often it failed for a reason that may not pass.
    attempts: u8,
}

impl Queued {
    pub(super) fn new(record: Record) -> Queued {
        Queued { record, refused: false, alone: false, attempts: 0 }
    }

    /// Cuts it to what its topic takes, if it may be cut.
    pub(super) fn fit(&mut self, bytes_max: &BTreeMap<String, usize>) {
        let most = bytes_max.get(&*self.record.topic).copied().unwrap_or(RECORD_BYTES_MAX);
        let overhead = OVERHEAD_BYTES + OVERHEAD_BYTES_BY_HEADER * self.record.headers.len();
        let most = most.saturating_sub(overhead).max(OVERHEAD_BYTES);
        if self.record.may_be_cut && self.record.bytes() > most {
            self.record = cut(self.record.clone(), most);
        }
    }

    /// As the client takes it; `number` comes back in its report.
    pub(super) fn producible(&self, number: usize) -> BaseRecord<'_, [u8], [u8], usize> {
        let Record { topic, partition, key, value, headers, .. } = &self.record;
        let mut owned = OwnedHeaders::new_with_capacity(headers.len());
        for header in headers.iter() {
            owned = owned.insert(Header { key: &header.name, value: header.value.as_deref() });
        }
        let mut produced = BaseRecord::with_opaque_to(topic, number).headers(owned);
        (produced.key, produced.payload, produced.partition) = (key.as_deref(), value.as_deref(), *partition);
        produced
    }

    /// It was not stored: it is refused, or sent again in another way. Whether anything is known now that was not
    /// before.
    pub(super) fn failed(
        &mut self,
        code: Code,
        bytes_max: &mut BTreeMap<String, usize>,
        refused: &mut Vec<Refused>,
    ) -> bool {
        let topic = Arc::clone(&self.record.topic);
        if !self.alone && is_of_one_record(code) {
            self.alone = true;
            return true;
        }
        if code == Code::MessageSizeTooLarge && self.record.may_be_cut {
            // The topic takes less than was known.
            let most = self.record.bytes() / 2;
            if most > OVERHEAD_BYTES {
                self.record = cut(self.record.clone(), most);
                bytes_max.insert(topic.to_string(), most);
                return true;
            }
        }
        self.attempts += u8::from(!passes(code));
        let reason = remedy(code).or_else(|| (self.attempts >= ATTEMPTS_MAX).then(|| code.to_string()));
        self.refused = reason.is_some();
        if let Some(reason) = reason {
            refuse(refused, &topic, reason);
        }
        self.refused
    }
}
