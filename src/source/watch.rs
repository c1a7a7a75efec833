//! Watches a topic from a thread of its own: whether Kafka answers, whether it is still the same topic, its
//! partitions and, when asked for, their oldest offsets and ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::KafkaConsumer;
use crate::describe::{Description, Question, describe, only_broker};
use crate::error::{Error, Result};

/// How often the topic is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take before Kafka counts as away.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long is waited for another broker once the only one does not answer.
const REPLACED_TIMEOUT: Duration = Duration::from_millis(500);

/// Of each partition, the oldest offset and the end (the last stable offset).
pub(super) type Offsets = BTreeMap<i32, (i64, i64)>;

/// What a look at the topic showed.
pub(super) enum Seen {
    /// What Kafka says of it, also that it is not there.
    Topic(Description),
    /// No answer.
    Nothing {
        /// Why.
        reason: String,
        /// When it was asked for.
        asked_at: Instant,
    },
}

/// What was found since it was last taken; the newest only.
#[derive(Default)]
pub(super) struct News {
    pub(super) seen: Option<Seen>,
    pub(super) offsets: Option<Offsets>,
}

/// The watching thread; it ends when this is dropped.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    /// Ends the thread's pauses.
    wake: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    news: Mutex<News>,
    offsets_wanted: AtomicBool,
    stopped: AtomicBool,
}

impl Watcher {
    pub(super) fn start(consumer: Arc<KafkaConsumer>, topic: String) -> Result<Watcher> {
        let shared = Arc::new(Shared::default());
        let (wake, pauses) = mpsc::sync_channel(1);
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("watch {topic}"))
            .spawn(move || watch(&consumer, &topic, &watched, &pauses))
            .map_err(|source| Error::Io { action: "starting a thread".into(), source })?;
        Ok(Watcher { shared, wake: Some(wake), thread: Some(thread) })
    }

    /// What is new.
    pub(super) fn news(&self) -> News {
        std::mem::take(&mut *self.shared.news.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Has the offsets of all partitions be looked up, again and again until they are found.
    pub(super) fn ask_offsets(&self) {
        self.shared.offsets_wanted.store(true, Relaxed);
        // A full channel wakes it too.
        let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It holds the client, which must be gone before the caller goes on. It can only have panicked.
            let _ = thread.join();
        }
    }
}

fn watch(consumer: &KafkaConsumer, topic: &str, shared: &Shared, pauses: &mpsc::Receiver<()>) {
    let mut broker = only_broker(consumer.client(), topic, TIMEOUT);
    while !matches!(pauses.recv_timeout(INTERVAL), Err(mpsc::RecvTimeoutError::Disconnected)) {
        let asked_at = Instant::now();
        let wanted = || !shared.stopped.load(Relaxed);
        let question = Question { names: &[topic], operations: false, broker, timeout: TIMEOUT };
        let found = describe(consumer.client(), question, wanted);
        if !wanted() {
            return;
        }
        if found.is_err() && broker.is_some() {
            // It may have been replaced by another.
            broker = only_broker(consumer.client(), topic, REPLACED_TIMEOUT).or(broker);
        }
        let mut offsets = None;
        let seen = match found.map(|mut found| found.pop()) {
            Ok(Some(description)) => {
                if description.error.is_none() && shared.offsets_wanted.swap(false, Relaxed) {
                    match low_and_end(consumer, topic, &description.partitions, TIMEOUT) {
                        Ok(found) => offsets = Some(found),
                        Err(error) => {
                            tracing::debug!("asking for the offsets of {topic}: {error}");
                            shared.offsets_wanted.store(true, Relaxed);
                        }
                    }
                }
                Seen::Topic(description)
            }
            Ok(None) => Seen::Nothing { reason: "Kafka says nothing of the topic".into(), asked_at },
            Err(reason) => Seen::Nothing { reason: format!("Kafka does not answer: {reason}"), asked_at },
        };
        let mut news = shared.news.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        news.seen = Some(seen);
        if offsets.is_some() {
            news.offsets = offsets;
        }
    }
}

/// Oldest offset and end of each partition. The client answers with the last stable offset, since it reads
/// committed messages only.
pub(super) fn low_and_end(
    consumer: &KafkaConsumer,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> Result<Offsets, KafkaError> {
    let deadline = Instant::now() + timeout;
    let mut offsets = Offsets::new();
    for &partition in partitions {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        }
        offsets.insert(partition, consumer.fetch_watermarks(topic, partition, left)?);
    }
    Ok(offsets)
}
