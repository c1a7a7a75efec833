//! Writes epochs to Kafka, each in one transaction of a fencing `transactional.id`, for as long as it takes.
//!
//! An epoch's records are kept here until they are committed. A transaction that fails is aborted, or, with a client
//! that can't go on (a fatal error), left to its successor to abort; then all records are sent again. What became of a
//! transaction whose commit got no answer, and whether another engine has taken over, the newest record of the epoch log
//! tells: it is ours, that of before, or another's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};

use super::deliveries::{Deliveries, code};
use super::group::Group;
use super::queued::{Queued, RECORD_BYTES_MAX};
use super::refusals::{is_of_one_record, remedy};
use super::{ENTRY_KEY, LOG_PARTITION, Progress, Refused, Sink, Transaction};
use crate::clients::{self, CONNECT_TIMEOUT};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fault;
use crate::hash::{Hash, hash};
use crate::outage::OutageLog;
use crate::source::newest_message;

/// Without any progress for so long, Kafka is away.
const PATIENCE: Duration = Duration::from_secs(2);
/// A client that has made no progress for so long is replaced as soon as Kafka answers: it may never make any again. When
/// a partition was without a leader for a moment, librdkafka (2.12.1) can lose it for good (its issue 5430). Longer than
/// a topic may be unknown, which is no progress either.
const STUCK: Duration = Duration::from_secs(15);
/// How long Kafka may take to tell the newest record of the log.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long a failed transaction waits before it is tried again, and how long at most as it fails again and again.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a client that was fenced waits for what its successor writes: if nothing comes, there is none, and it was
/// the transaction's timeout.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(3);
/// How long the first connection may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call that may be repeated waits.
const RETRY: Duration = Duration::from_millis(10);
/// How long one call of the client may block.
const CALL: Duration = Duration::from_millis(200);
/// Numbers of records are below this; above it the attempt stands, so that reports of an earlier one are known.
const NUMBER_BITS: u32 = 40;

/// A producer of epochs.
pub struct KafkaSink {
    config: Config,
    client: ClientConfig,
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
    group: Group,
    log: String,
    /// The newest record of the epoch log as far as is known.
    newest: Option<Hash>,
    /// Most bytes of a record, by topic, where known.
    bytes_max: BTreeMap<String, usize>,
    writing: Option<Writing>,
    step: Step,
    attempt: usize,
    refused: Vec<Refused>,
    outage: OutageLog,
    /// When something last went on.
    moved_at: Instant,
    /// Why the last attempt failed.
    trouble: Option<String>,
    /// No step before this.
    wait_until: Instant,
    backoff: Duration,
    fenced: bool,
}

/// An epoch that is being written.
struct Writing {
    records: Vec<Queued>,
    offsets: Vec<(String, i32, i64)>,
    /// Position of the first record that the client has not been given.
    next: usize,
    /// Positions of records that the client has been given and not reported.
    in_flight: BTreeSet<usize>,
    /// The record of the epoch log.
    entry: Option<Hash>,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    Send,
    Commit,
    Abort,
    /// The client can't go on: a new one is made, …
    Replace,
    /// … which waits until the transaction of the one before is over, …
    Init,
    /// … and looks what became of it.
    Look,
}

impl KafkaSink {
    /// Opens the producer of `config.engine_id`, which ends every other one of that id. `bytes_max`: most bytes of a
    /// record by topic, where they are known. Gives back the newest record of the epoch log `log` too. Blocks.
    pub fn open(
        config: &Config,
        log: &str,
        bytes_max: BTreeMap<String, usize>,
    ) -> Result<(KafkaSink, Option<Vec<u8>>)> {
        let mut client = clients::kafka(config);
        let largest = bytes_max.values().copied().max().unwrap_or(RECORD_BYTES_MAX).max(RECORD_BYTES_MAX);
        // A batch is no larger than the least topic takes: one that is refused is then a single record.
        let least = bytes_max.values().copied().min().unwrap_or(RECORD_BYTES_MAX).min(RECORD_BYTES_MAX);
        client.set("transactional.id", format!("tally-{}", config.engine_id));
        for (name, value) in [
            ("acks", "all"),
            ("linger.ms", "2"),
            ("compression.type", "lz4"),
            ("transaction.timeout.ms", "60000"),
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
        let opening = |error: KafkaError| Error::kafka("opening the producer", error);
        let producer: ThreadedProducer<_> =
            client.create_with_context(deliveries.clone()).map_err(opening)?;
        let deadline = Instant::now() + OPEN_TIMEOUT;
        while let Err(error) = producer.init_transactions(CALL * 10) {
            let retriable = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !retriable || Instant::now() > deadline {
                return Err(opening(error));
            }
        }
        let newest = newest_message(config, log, LOG_PARTITION, ENTRY_KEY, CONNECT_TIMEOUT)?;
        let sink = KafkaSink {
            group: Group::open(config).map_err(opening)?,
            config: config.clone(),
            producer,
            client,
            deliveries,
            log: log.into(),
            newest: newest.as_deref().map(hash),
            bytes_max,
            writing: None,
            step: Step::Begin,
            attempt: 0,
            refused: Vec::new(),
            outage: OutageLog::new("writing to Kafka"),
            moved_at: Instant::now(),
            trouble: None,
            wait_until: Instant::now(),
            backoff: BACKOFF,
            fenced: false,
        };
        Ok((sink, newest))
    }

    /// Does what is next; whether there is something to do at once.
    fn advance(&mut self, writing: &mut Writing) -> bool {
        if self.moved_at.elapsed() > STUCK && !matches!(self.step, Step::Replace | Step::Look) {
            tracing::debug!("no progress at {:?}: the client is replaced", self.step);
            self.trouble.get_or_insert_with(|| "Kafka does not answer".into());
            self.step = Step::Replace;
        }
        let done = match self.step {
            Step::Begin => {
                self.attempt += 1;
                (writing.next, writing.in_flight) = (0, BTreeSet::new());
                self.producer.begin_transaction()
            }
            Step::Send => return self.send(writing),
            Step::Commit => {
                fault::point("before_commit");
                self.producer.commit_transaction(CALL)
            }
            Step::Abort => self.producer.abort_transaction(CALL),
            Step::Replace => return self.replace(writing),
            Step::Init => self.producer.init_transactions(CALL),
            Step::Look => return self.look(writing),
        };
        match done {
            Ok(()) => {
                let next = match self.step {
                    Step::Begin => Step::Send,
                    Step::Init => Step::Look,
                    Step::Abort => Step::Begin,
                    _ => {
                        fault::point("after_commit");
                        self.committed(writing);
                        return false;
                    }
                };
                self.go_to(next);
                true
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    fn go_to(&mut self, step: Step) {
        (self.step, self.moved_at) = (step, Instant::now());
    }

    fn committed(&mut self, writing: &mut Writing) {
        if writing.entry.is_some() {
            self.newest = writing.entry;
        }
        writing.records.clear();
        self.group.tell(&writing.offsets);
        self.go_to(Step::Begin);
        (self.backoff, self.trouble) = (BACKOFF, None);
    }

    /// A call of the client has failed.
    fn failed(&mut self, error: &KafkaError) {
        let (code, fatal, retriable, abort) = match error {
            KafkaError::Transaction(error) => {
                (error.code(), error.is_fatal(), error.is_retriable(), error.txn_requires_abort())
            }
            error => (code(error), false, false, false),
        };
        let reason = error.to_string();
        tracing::debug!("transaction, at {:?}: {reason} ({code}; fatal {fatal}, abort {abort})", self.step);
        if !fatal && abort {
            return self.abort(reason);
        }
        if !fatal && retriable {
            // The same call goes on where it was.
            self.trouble.get_or_insert(reason);
            self.wait_until = Instant::now() + RETRY;
            return;
        }
        self.trouble = Some(reason);
        self.step = Step::Replace;
        let is_of_successor =
            matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fatal);
        self.wait(if is_of_successor { SUCCESSOR_PATIENCE.max(self.backoff) } else { self.backoff });
    }

    /// Gives the transaction up; all of it is sent again.
    fn abort(&mut self, reason: String) {
        self.trouble = Some(reason);
        self.step = Step::Abort;
        self.wait(self.backoff);
    }

    fn wait(&mut self, time: Duration) {
        self.wait_until = Instant::now() + time;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Replaces the client: unless its successor has written something.
    fn replace(&mut self, writing: &Writing) -> bool {
        match newest_message(&self.config, &self.log, LOG_PARTITION, ENTRY_KEY, LOOK_PATIENCE) {
            Ok(newest) => {
                let newest = newest.as_deref().map(hash);
                if newest != self.newest && newest != writing.entry {
                    self.fenced = true;
                    return false;
                }
            }
            Err(error) => {
                self.trouble = Some(error.to_string());
                self.wait(self.backoff);
                return false;
            }
        }
        let deliveries = Deliveries::default();
        match self.client.create_with_context(deliveries.clone()) {
            Ok(producer) => {
                (self.producer, self.deliveries) = (producer, deliveries);
                self.go_to(Step::Init);
                true
            }
            Err(error) => {
                self.trouble = Some(error.to_string());
                self.wait(self.backoff);
                false
            }
        }
    }

    /// Looks in the epoch log what became of a transaction that got no answer.
    fn look(&mut self, writing: &mut Writing) -> bool {
        match newest_message(&self.config, &self.log, LOG_PARTITION, ENTRY_KEY, LOOK_PATIENCE) {
            Ok(newest) => {
                let newest = newest.as_deref().map(hash);
                if newest.is_some() && newest == writing.entry {
                    self.committed(writing);
                } else if newest == self.newest {
                    self.go_to(Step::Begin);
                } else {
                    self.fenced = true;
                }
                !self.fenced
            }
            Err(error) => {
                self.trouble = Some(error.to_string());
                self.wait(self.backoff);
                false
            }
        }
    }

    /// Gives the client what it has room for, and takes what it reports. Whether there is something to do at once.
    fn send(&mut self, writing: &mut Writing) -> bool {
        if let Err((reason, is_known)) = self.settle(writing) {
            self.abort(reason);
            if is_known {
                // It goes another way now.
                (self.wait_until, self.backoff) = (Instant::now(), BACKOFF);
            }
            return is_known;
        }
        while let Some(queued) = writing.records.get_mut(writing.next) {
            let before = writing.in_flight.first().copied();
            // One that is sent alone waits for those before it, and those behind it wait for it.
            let waits = before.is_some() && queued.alone;
            if waits || before.is_some_and(|first| writing.records[first].alone) {
                return false;
            }
            let queued = &mut writing.records[writing.next];
            if !queued.refused {
                queued.fit(&self.bytes_max);
                let number = (self.attempt << NUMBER_BITS) | writing.next;
                let sent = self.producer.send(queued.producible(number)).map_err(|(error, _)| error);
                match sent {
                    Ok(()) => drop(writing.in_flight.insert(writing.next)),
                    Err(KafkaError::MessageProduction(Code::QueueFull)) => return false,
                    Err(error) if is_of_one_record(code(&error)) || remedy(code(&error)).is_some() => {
                        // The client itself refuses it, for what it is: the transaction goes on.
                        queued.alone = true;
                        queued.failed(code(&error), &mut self.bytes_max, &mut self.refused);
                        if !queued.refused {
                            continue;
                        }
                    }
                    Err(error) => {
                        match self.producer.client().fatal_error() {
                            Some((code, reason)) => {
                                tracing::debug!("the client can't go on: {code}: {reason}");
                                self.trouble = Some(reason);
                                self.step = Step::Replace;
                                self.wait(SUCCESSOR_PATIENCE.max(self.backoff));
                            }
                            None => self.abort(error.to_string()),
                        }
                        return false;
                    }
                }
                fault::point("sending");
            }
            writing.next += 1;
        }
        if writing.in_flight.is_empty() {
            fault::point("sent");
            self.go_to(Step::Commit);
            return true;
        }
        false
    }

    /// Takes what the client has reported; the error is why the transaction can't be committed, and whether something
    /// is known now that was not before.
    fn settle(&mut self, writing: &mut Writing) -> Result<(), (String, bool)> {
        let results = std::mem::take(&mut self.deliveries.lock().results);
        let mut failed: Option<(String, bool)> = None;
        for (number, code) in results {
            if number >> NUMBER_BITS != self.attempt {
                continue;
            }
            let position = number & ((1 << NUMBER_BITS) - 1);
            writing.in_flight.remove(&position);
            self.moved_at = Instant::now();
            let Some(code) = code else { continue };
            let queued = &mut writing.records[position];
            let is_known = queued.failed(code, &mut self.bytes_max, &mut self.refused);
            let before = failed.as_ref().is_some_and(|(_, is_known)| *is_known);
            failed = Some((format!("writing to topic {}: {code}", queued.record.topic), before || is_known));
        }
        failed.map_or(Ok(()), Err)
    }

    fn judge_outage(&mut self) {
        if self.writing.is_none() {
            return self.outage.off();
        }
        if self.moved_at.elapsed() < PATIENCE {
            return;
        }
        let told = self.deliveries.lock().trouble.clone();
        let reason = self.trouble.clone().or(told).unwrap_or_else(|| "Kafka does not answer".into());
        self.outage.on(reason, true);
    }

    /// How long until something may have to be done.
    fn pause(&self) -> Duration {
        self.wait_until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

impl Sink for KafkaSink {
    fn begin(&mut self, transaction: Transaction) {
        fault::point("before_transaction");
        let Transaction { records, offsets } = transaction;
        let entry = records.iter().rev().find(|record| *record.topic == *self.log);
        let entry = entry.and_then(|record| record.value.as_deref()).map(hash);
        let records: Vec<_> = records.into_iter().map(Queued::new).collect();
        if records.is_empty() {
            return;
        }
        self.writing = Some(Writing { records, offsets, next: 0, in_flight: BTreeSet::new(), entry });
        self.moved_at = Instant::now();
    }

    fn poll(&mut self, wait: Duration) -> Progress {
        let deadline = Instant::now() + wait;
        while let Some(mut writing) = self.writing.take().filter(|_| !self.fenced) {
            let more = Instant::now() >= self.wait_until && self.advance(&mut writing);
            if !writing.records.is_empty() {
                self.writing = Some(writing);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.writing.is_none() || left.is_zero() {
                break;
            }
            if !more && self.step == Step::Send {
                self.deliveries.wait(left.min(CALL));
            } else if !more {
                std::thread::sleep(left.min(self.pause()));
            }
        }
        self.judge_outage();
        let committed = self.writing.is_none() && !self.fenced;
        let refused = if committed { std::mem::take(&mut self.refused) } else { Vec::new() };
        Progress { committed, refused, outage: self.outage.current(), fenced: self.fenced }
    }
}
