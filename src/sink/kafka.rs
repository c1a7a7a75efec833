//! Writes records to Kafka: in order by key, each stored by all replicas, for as long as it takes.
//!
//! A record is kept here until Kafka has stored it or refused it. While Kafka is away the client tries for ever;
//! a client that can't go on (a fatal error) is replaced, and what it had not stored is sent again, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, config::RDKafkaLogLevel};

use super::{Progress, Record, Refused, Sink, VecDeque, cut, refuse};
use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::outage::OutageLog;

/// Without any delivery for so long, while records wait for one, Kafka is away.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a replaced client waits, and how long at most as it fails again and again.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A record that fails so often for a reason that is not known to pass is refused.
const ATTEMPTS_MAX: u8 = 5;
/// Kafka's default limit of a record is a little more; the client's own is this.
const RECORD_BYTES_MAX: usize = 1_000_000;
/// What a record takes in a topic besides its bytes, with room to spare.
const OVERHEAD_BYTES: usize = 512;
const OVERHEAD_BYTES_BY_HEADER: usize = 12;

/// A producer of changelogs and dead letters.
pub struct KafkaSink {
    client: ClientConfig,
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
    /// Not all stored; those before it are.
    queue: VecDeque<Queued>,
    /// Records of the queue that are neither stored nor refused.
    pending: usize,
    /// Number of the queue's first record, counted from the sink's opening.
    first: usize,
    /// Position in the queue of the first record that the client has not been given.
    next: usize,
    /// Numbers of records that the client has been given and not reported.
    in_flight: BTreeSet<usize>,
    /// Numbers of records that are sent one by one: Kafka refuses a batch whole for one of its records.
    suspects: VecDeque<usize>,
    /// Numbers of records that are sent again, behind suspects of their keys.
    again: VecDeque<usize>,
    /// Most bytes of a record, by topic, where known.
    bytes_max: BTreeMap<String, usize>,
    refused: Vec<Refused>,
    outage: OutageLog,
    /// When something was last stored, or there was nothing to store.
    stored_at: Instant,
    /// When a client that can't go on is replaced, and how long the next one waits.
    replace: Option<(Instant, String)>,
    backoff: Duration,
}

struct Queued {
    record: Record,
    fate: Fate,
    /// How often it failed for a reason that may not pass.
    attempts: u8,
    /// Whether it was sent by itself, so that what Kafka says of it is of no other.
    alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pending,
    Stored,
    Refused,
}

/// What the client's thread tells the sink.
#[derive(Clone, Default)]
struct Deliveries(Arc<(Mutex<Reports>, Condvar)>);

#[derive(Default)]
struct Reports {
    /// Numbers of records, with the reason for which one was not stored.
    results: Vec<(usize, Option<Code>)>,
    /// What the client last said of its connections.
    trouble: Option<String>,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until there is a report, at most so long.
    fn wait(&self, most: Duration) {
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

fn code(error: &KafkaError) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Unknown)
}

impl KafkaSink {
    /// Opens the producer. `bytes_max`: most bytes of a record by topic, where they are known.
    pub fn open(config: &Config, bytes_max: BTreeMap<String, usize>) -> Result<KafkaSink> {
        let mut client = clients::kafka(config);
        let largest = bytes_max.values().copied().max().unwrap_or(RECORD_BYTES_MAX).max(RECORD_BYTES_MAX);
        // A batch is no larger than the least topic takes: one that is refused is then a single record.
        let least = bytes_max.values().copied().min().unwrap_or(RECORD_BYTES_MAX).min(RECORD_BYTES_MAX);
        for (name, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "2"),
            ("compression.type", "lz4"),
            // A record is tried until it is stored.
            ("message.timeout.ms", "0"),
            // How long a topic may be unknown before its records are refused.
            ("topic.metadata.propagation.max.ms", "10000"),
            ("message.max.bytes", &largest.to_string()),
            ("batch.size", &least.to_string()),
        ] {
            if client.get(name).is_none() {
                client.set(name, value);
            }
        }
        let deliveries = Deliveries::default();
        let producer = client.create_with_context(deliveries.clone());
        Ok(KafkaSink {
            producer: producer.map_err(|e| Error::kafka("opening the producer", e))?,
            client,
            deliveries,
            queue: VecDeque::new(),
            pending: 0,
            first: 0,
            next: 0,
            in_flight: BTreeSet::new(),
            suspects: VecDeque::new(),
            again: VecDeque::new(),
            bytes_max,
            refused: Vec::new(),
            outage: OutageLog::new("writing to Kafka"),
            stored_at: Instant::now(),
            replace: None,
            backoff: BACKOFF,
        })
    }

    /// Takes what the client has reported.
    fn settle(&mut self) {
        let results = std::mem::take(&mut self.deliveries.lock().results);
        for (number, failed) in results {
            self.in_flight.remove(&number);
            match failed {
                None => {
                    if self.decide(number, Fate::Stored) {
                        self.send_followers_again(number);
                    }
                    (self.stored_at, self.backoff) = (Instant::now(), BACKOFF);
                }
                Some(code) => self.failed(number, code),
            }
        }
        if !self.suspects.is_empty() || !self.again.is_empty() || !self.in_flight.is_empty() {
            // What is behind the first of these is still needed for their order.
            let kept = [self.suspects.front(), self.again.front(), self.in_flight.first()];
            let kept = kept.into_iter().flatten().min().copied().unwrap_or(self.first);
            while self.first < kept && self.queue.front().is_some_and(|queued| queued.fate != Fate::Pending) {
                self.forget_first();
            }
            return;
        }
        while self.queue.front().is_some_and(|queued| queued.fate != Fate::Pending) {
            self.forget_first();
        }
    }

    /// Notes what became of a record; whether it had been sent by itself.
    fn decide(&mut self, number: usize, fate: Fate) -> bool {
        let position = number.checked_sub(self.first);
        let Some(queued) = position.and_then(|i| self.queue.get_mut(i)) else { return false };
        if queued.fate == Fate::Pending {
            self.pending -= 1;
            queued.fate = fate;
        }
        queued.alone
    }

    fn forget_first(&mut self) {
        self.queue.pop_front();
        self.first += 1;
        self.next = self.next.saturating_sub(1);
    }

    /// A record was stored by itself, after others that were queued behind it: those of its key come once more.
    fn send_followers_again(&mut self, number: usize) {
        let position = number - self.first;
        let Record { topic, key, .. } = &self.queue[position].record;
        let (topic, key) = (Arc::clone(topic), key.clone());
        let last = self.next;
        for (i, queued) in self.queue.iter_mut().enumerate().take(last).skip(position + 1) {
            let same = key.is_some() && queued.record.key == key && queued.record.topic == topic;
            if same && queued.fate == Fate::Stored {
                queued.fate = Fate::Pending;
                self.pending += 1;
                self.again.push_back(self.first + i);
            }
        }
    }

    fn failed(&mut self, number: usize, code: Code) {
        let Some(queued) = number.checked_sub(self.first).and_then(|i| self.queue.get_mut(i)) else { return };
        let topic = Arc::clone(&queued.record.topic);
        if !queued.alone && is_of_one_record(code) {
            queued.alone = true;
            self.suspects.push_back(number);
            return;
        }
        if code == Code::MessageSizeTooLarge && queued.record.may_be_cut {
            // The topic takes less than was known.
            let most = queued.record.bytes() / 2;
            if most > OVERHEAD_BYTES {
                queued.record = cut(queued.record.clone(), most);
                self.bytes_max.insert(topic.to_string(), most);
                self.suspects.push_front(number);
                return;
            }
        }
        queued.attempts += u8::from(!passes(code));
        match remedy(code).or_else(|| (queued.attempts >= ATTEMPTS_MAX).then(|| code.to_string())) {
            Some(reason) => {
                self.decide(number, Fate::Refused);
                refuse(&mut self.refused, &topic, reason);
                self.stored_at = Instant::now();
            }
            // Records behind it may be stored: all are sent again from here on, so that the newest is the last.
            None => self.replace_soon(format!("writing to topic {topic}: {code}")),
        }
    }

    fn replace_soon(&mut self, reason: String) {
        if self.replace.is_none() {
            self.replace = Some((Instant::now() + self.backoff, reason));
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Replaces a client that can't go on, and begins again with the first record that is not stored.
    fn replace_client(&mut self) {
        if let Some((_, reason)) = self.producer.client().fatal_error() {
            self.replace_soon(reason);
        }
        if self.replace.as_ref().is_none_or(|(at, _)| Instant::now() < *at) {
            return;
        }
        let deliveries = Deliveries::default();
        match self.client.create_with_context(deliveries.clone()) {
            Ok(producer) => {
                (self.producer, self.deliveries, self.replace) = (producer, deliveries, None);
                self.next = 0;
                self.in_flight.clear();
                self.suspects.clear();
                self.again.clear();
                for queued in &mut self.queue {
                    queued.alone = false;
                    if queued.fate == Fate::Stored {
                        queued.fate = Fate::Pending;
                        self.pending += 1;
                    }
                }
            }
            Err(error) => {
                self.replace = None;
                self.replace_soon(error.to_string());
            }
        }
    }

    /// Gives the client what it has room for.
    fn hand_over(&mut self) {
        while self.replace.is_none() {
            let (suspect, again) = (self.suspects.front(), self.again.front());
            // One by one, and nothing beside it, until it is known which record it was.
            if suspect.is_some() && !self.in_flight.is_empty() {
                return;
            }
            let (is_suspect, is_again) = (suspect.is_some(), suspect.is_none() && again.is_some());
            let position = suspect.or(again).map_or(self.next, |number| number - self.first);
            let Some(queued) = self.queue.get_mut(position) else { return };
            if queued.fate == Fate::Pending {
                if queued.record.may_be_cut {
                    let most = most_bytes(&self.bytes_max, &queued.record);
                    if queued.record.bytes() > most {
                        queued.record = cut(queued.record.clone(), most);
                    }
                }
                let number = self.first + position;
                let sent = self.producer.send(producible(&queued.record, number)).map_err(|(error, _)| error);
                match sent {
                    Ok(()) => drop(self.in_flight.insert(number)),
                    Err(KafkaError::MessageProduction(Code::QueueFull)) => return,
                    Err(error) => {
                        // The client itself refuses it, for what it is.
                        queued.alone = true;
                        let code = code(&error);
                        self.advance(is_suspect, is_again);
                        self.failed(number, code);
                        continue;
                    }
                }
            }
            self.advance(is_suspect, is_again);
        }
    }

    /// The record that `hand_over` took is dealt with.
    fn advance(&mut self, is_suspect: bool, is_again: bool) {
        match (is_suspect, is_again) {
            (true, _) => drop(self.suspects.pop_front()),
            (_, true) => drop(self.again.pop_front()),
            _ => self.next += 1,
        }
    }

    fn judge_outage(&mut self) {
        if let Some((_, reason)) = &self.replace {
            return self.outage.on(reason.clone(), true);
        }
        if self.stored_at.elapsed() < PATIENCE {
            return self.outage.off();
        }
        let trouble = self.deliveries.lock().trouble.clone();
        self.outage.on(trouble.unwrap_or_else(|| "Kafka does not answer".into()), true);
    }
}

impl Sink for KafkaSink {
    fn send(&mut self, record: Record) {
        if self.queue.is_empty() {
            self.stored_at = Instant::now();
        }
        self.pending += 1;
        self.queue.push_back(Queued { record, fate: Fate::Pending, attempts: 0, alone: false });
    }

    fn poll(&mut self, wait: Duration) -> Progress {
        let deadline = Instant::now() + wait;
        loop {
            self.replace_client();
            self.hand_over();
            self.settle();
            if self.pending == 0 {
                self.stored_at = Instant::now();
            }
            self.judge_outage();
            let left = deadline.saturating_duration_since(Instant::now());
            if self.pending == 0 || left.is_zero() {
                let refused = std::mem::take(&mut self.refused);
                return Progress { pending: self.pending, refused, outage: self.outage.current() };
            }
            let until_replaced =
                self.replace.as_ref().map_or(left, |(at, _)| at.saturating_duration_since(Instant::now()));
            self.deliveries.wait(left.min(until_replaced.max(Duration::from_millis(1))));
        }
    }
}

fn producible(record: &Record, number: usize) -> BaseRecord<'_, [u8], [u8], usize> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for header in record.headers.iter() {
        let value = header.value.as_deref();
        headers = headers.insert(rdkafka::message::Header { key: &header.name, value });
    }
    let mut produced = BaseRecord::with_opaque_to(&record.topic, number).headers(headers);
    (produced.key, produced.payload) = (record.key.as_deref(), record.value.as_deref());
    produced
}

/// Most bytes that this record may have.
fn most_bytes(bytes_max: &BTreeMap<String, usize>, record: &Record) -> usize {
    let most = bytes_max.get(&*record.topic).copied().unwrap_or(RECORD_BYTES_MAX);
    most.saturating_sub(OVERHEAD_BYTES + OVERHEAD_BYTES_BY_HEADER * record.headers.len()).max(OVERHEAD_BYTES)
}

/// What to do about a record that Kafka will never take; none if it may take it later.
fn remedy(code: Code) -> Option<String> {
    Some(match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => format!(
            "{code}: it is larger than the topic takes; raise the topic's max.message.bytes and restart, or let \
             the view's rows be smaller"
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            format!("{code}: there is no such topic; `tally topics` creates it")
        }
        Code::TopicAuthorizationFailed => {
            format!("{code}: writing to the topic is not allowed; grant it in Kafka's ACLs")
        }
        Code::InvalidTopic => format!("{code}: no topic can have this name"),
        Code::InvalidRecord => {
            format!("{code}: the broker refuses it; a compacted topic takes no record without a key")
        }
        Code::InvalidMessage | Code::InvalidTimestamp | Code::PolicyViolation => {
            format!("{code}: the broker's or the topic's settings refuse it")
        }
        Code::UnsupportedForMessageFormat | Code::UnsupportedCompressionType => {
            format!("{code}: the broker does not support what the `[kafka]` settings ask for")
        }
        _ => return None,
    })
}

/// Whether a refusal may be of another record of the same batch.
fn is_of_one_record(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidMessage
            | Code::InvalidTimestamp
            | Code::PolicyViolation
    )
}

/// Whether a failure is of the connection or the cluster, not of the record.
fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::MessageTimedOut
            | Code::RequestTimedOut
            | Code::OperationTimedOut
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::NetworkException
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::BrokerNotAvailable
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::KafkaStorageError
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::ProducerFenced
    )
}
