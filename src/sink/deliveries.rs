//! What the client's own thread tells the sink: which records were stored, and what troubles its connections.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

/// Takes the client's reports. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Deliveries(Arc<(Mutex<Reports>, Condvar)>);

/// What was reported and not yet taken.
#[derive(Default)]
pub(super) struct Reports {
    /// Numbers of records, with the reason for which one was not stored.
    pub(super) results: Vec<(usize, Option<Code>)>,
    /// What the client last said of its connections.
    pub(super) trouble: Option<String>,
}

impl Deliveries {
    pub(super) fn lock(&self) -> MutexGuard<'_, Reports> {
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until there is a report, at most so long.
    pub(super) fn wait(&self, most: Duration) {
        let waited = self.0.1.wait_timeout_while(self.lock(), most, |reports| reports.results.is_empty());
        drop(waited);
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!("librdkafka: {fac} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
        self.lock().trouble = Some(reason.to_string());
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let failed = result.as_ref().err().map(|(error, _)| code(error));
        let mut reports = self.lock();
        reports.results.push((number, failed));
        if reports.results.len() == 1 {
            self.0.1.notify_all();
        }
    }
}

/// The client's code of an error.
pub(super) fn code(error: &KafkaError) -> Code {
    match error {
        KafkaError::Transaction(error) => error.code(),
        error => error.rdkafka_error_code().unwrap_or(Code::Unknown),
    }
}
