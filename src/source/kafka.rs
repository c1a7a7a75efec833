//! Reads a topic's partitions from Kafka by assignment: the engine, not a consumer group, says what is read, so
//! that a bounded range can be read again.
//!
//! The thread that polls never asks the broker anything and so is never held up: a thread of the source's own
//! watches the topic (`watch.rs`), and the ends of the partitions come with the client's statistics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::client::{KafkaConsumer, Told, consumer};
use super::first_look::{first_look, lost_beginning, lost_count};
use super::watch::{Offsets, Seen, Watcher};
use super::{
    Bounds, MessageRef, PartitionState, Polled, Position, Positions, RawBatch, Source, SourceState, Start,
    Topics,
};
use crate::config::Config;
use crate::describe::Description;
use crate::error::{Error, Result};
use crate::outage::OutageLog;

/// Most bytes of a micro-batch, so that large messages do not make a large one.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// How long the first message after some quiet waits for others.
const QUIET_LINGER: Duration = Duration::from_millis(5);
/// Without news of any partition for so long, it is asked whether there is more to read.
const QUIET: Duration = Duration::from_secs(5);
/// A client that has given nothing for so long while there was more to read is replaced: it may never give any again.
/// When a partition was without a leader for a moment, librdkafka (2.12.1) can lose it for good (its issue 5430).
const STUCK: Duration = Duration::from_secs(10);
/// How often reading is tried again where Kafka refuses it.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// A reader of all partitions of one topic, from their beginning.
pub struct KafkaSource {
    config: Config,
    topic: String,
    consumer: Arc<KafkaConsumer>,
    told: Told,
    watcher: Watcher,
    bounds: Bounds,
    start: Start,
    /// The topic that is read; another one of its name is not.
    id: u128,
    partitions: BTreeMap<i32, Reading>,
    caught_up: bool,
    outage: OutageLog,
    /// Why Kafka refuses reading, and when it is tried again.
    refused: Option<(String, Instant)>,
    /// Whether there is no topic of that name: if there is one again, it must be known to be the same.
    missing: bool,
    /// Why nothing more is read before a restart.
    halted: Option<String>,
    /// When Kafka last let something be known of a partition.
    heard_at: Instant,
    /// When it was last asked whether there is more.
    asked_at: Instant,
    /// Since when it is known that there is more, and nothing comes.
    behind_since: Option<Instant>,
    quiet: bool,
}

/// A partition that is read.
struct Reading {
    state: PartitionState,
    /// Its end when the source was opened.
    first_end: i64,
    /// Whether there was no further message when last asked.
    at_end: bool,
    /// What is written and can't be read, because a transaction is open.
    behind: i64,
    /// Where the client last was at an end, past the marks of transactions.
    eof: i64,
}

impl Reading {
    fn caught_up(&self) -> bool {
        self.at_end || self.state.next >= self.first_end
    }

    fn set_end(&mut self, end: i64) {
        self.state.end = end;
        self.state.high = end + self.behind;
    }
}

impl KafkaSource {
    /// Assigns every partition of `topic`, each from its oldest message. Blocks while the broker answers; what
    /// passes in some seconds is waited for. A topic that has lost its beginning is refused, unless `start` says
    /// otherwise.
    pub fn open(config: &Config, topic: &str, bounds: Bounds, start: Start) -> Result<KafkaSource> {
        KafkaSource::open_at(config, topic, bounds, start, &Positions::new())
    }

    /// As [`KafkaSource::open`], but of partitions that have been counted from where that was. Is refused if the topic
    /// no longer has what was counted.
    pub fn open_at(
        config: &Config,
        topic: &str,
        bounds: Bounds,
        start: Start,
        positions: &Positions,
    ) -> Result<KafkaSource> {
        let told = Told::default();
        let consumer = Arc::new(consumer(config, topic, told.clone())?);
        let (description, offsets) = first_look(&consumer, topic)?;
        let lost = lost_count(topic, &offsets, positions)
            .or_else(|| lost_beginning(topic, &offsets, positions).filter(|_| start == Start::Earliest));
        if let Some(reason) = lost {
            return Err(Error::kafka(format!("reading topic {topic}"), reason));
        }
        let mut source = KafkaSource {
            watcher: Watcher::start(Arc::clone(&consumer), topic.into())?,
            config: config.clone(),
            topic: topic.into(),
            consumer,
            told,
            bounds,
            start,
            id: description.id,
            partitions: BTreeMap::new(),
            caught_up: false,
            outage: OutageLog::new(format!("reading topic {topic}")),
            refused: None,
            missing: false,
            halted: None,
            heard_at: Instant::now(),
            asked_at: Instant::now(),
            behind_since: None,
            quiet: true,
        };
        for (partition, (low, end)) in offsets {
            match positions.get(&partition) {
                Some(position) => source.resume(partition, *position, end),
                None => source.add(partition, low, end),
            }
        }
        source.assign().map_err(|e| Error::kafka(format!("reading topic {topic}"), e))?;
        Ok(source)
    }

    fn add(&mut self, partition: i32, low: i64, first_end: i64) {
        if low > 0 {
            tracing::warn!(
                "topic {}/{partition} has lost its messages before offset {low}: they are not counted",
                self.topic
            );
        }
        let state = PartitionState { first: low, lost: low, next: low, end: first_end, high: first_end };
        let reading = Reading { state, first_end, at_end: first_end <= low, behind: 0, eof: low };
        self.partitions.insert(partition, reading);
    }

    fn resume(&mut self, partition: i32, Position { first, next }: Position, first_end: i64) {
        let state = PartitionState { first, lost: first, next, end: first_end, high: first_end };
        let reading = Reading { state, first_end, at_end: first_end <= next, behind: 0, eof: next };
        self.partitions.insert(partition, reading);
    }

    /// Has the client begin anew at the next offset of every partition.
    fn assign(&mut self) -> Result<(), KafkaError> {
        let mut assignment = TopicPartitionList::new();
        for (partition, reading) in &self.partitions {
            let next = Offset::Offset(reading.state.next);
            assignment.add_partition_offset(&self.topic, *partition, next)?;
        }
        self.consumer.assign(&assignment)
    }

    fn assign_again(&mut self) {
        if let Err(error) = self.assign() {
            self.refuse(error.to_string());
        }
    }

    fn refuse(&mut self, reason: String) {
        self.refused = Some((reason, Instant::now() + REFUSED_RETRY));
    }

    /// Nothing more is read: it would not be what was counted.
    fn halt(&mut self, reason: String) {
        if self.halted.is_none() {
            self.halted = Some(reason);
            self.unassign();
        }
    }

    fn unassign(&self) {
        if let Err(error) = self.consumer.unassign() {
            tracing::debug!("topic {}: {error}", self.topic);
        }
    }

    /// Takes what the watching thread and the client's statistics have told.
    fn take_news(&mut self) {
        let news = self.watcher.news();
        match news.seen {
            Some(Seen::Topic(description)) => self.take_description(&description),
            Some(Seen::Nothing { reason, asked_at }) if self.heard_at < asked_at => {
                let trouble = self.told.lock().trouble.clone();
                self.outage
                    .on(trouble.map_or(reason.clone(), |trouble| format!("{reason}; {trouble}")), true);
            }
            Some(Seen::Nothing { .. }) | None => {}
        }
        if let Some(offsets) = news.offsets.filter(|_| self.halted.is_none() && !self.missing) {
            self.compare(&offsets);
            self.judge_progress(&offsets);
        }
        let ends = self.told.lock().ends.take();
        for (partition, ends) in ends.into_iter().flatten() {
            let Some(reading) = self.partitions.get_mut(&partition) else { continue };
            if ends.ls_offset < 0 {
                continue;
            }
            reading.behind = (ends.hi_offset - ends.ls_offset).max(0);
            reading.eof = reading.eof.max(ends.eof_offset);
            reading.at_end &= ends.eof_offset >= ends.ls_offset;
            let next = reading.state.next;
            reading.set_end(if reading.at_end { next } else { ends.ls_offset.max(next) });
        }
        if let Some((reason, at)) = self.refused.clone().filter(|_| self.halted.is_none()) {
            self.outage.on(reason.clone(), true);
            if Instant::now() >= at && !self.missing {
                self.refuse(reason);
                self.watcher.ask_offsets();
                self.assign_again();
            }
        }
    }

    fn take_description(&mut self, found: &Description) {
        match found.error {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId) => {
                let reason = "there is no such topic any more; was it deleted? Create it with `tally topics` and \
                              restart: everything is then counted anew";
                if !std::mem::replace(&mut self.missing, true) {
                    self.unassign();
                }
                return self.outage.on(reason, true);
            }
            Some(Code::TopicAuthorizationFailed) => {
                return self.outage.on("describing the topic is not allowed; grant it in Kafka's ACLs", true);
            }
            Some(code) => return self.outage.on(code.to_string(), true),
            None => {}
        }
        if found.id != self.id && found.id != 0 && self.id != 0 {
            return self.halt(
                "the topic was deleted and created again while it was read; restart, so that the new topic is \
                 counted anew"
                    .into(),
            );
        }
        if std::mem::replace(&mut self.missing, false) {
            self.assign_again();
        }
        if self.refused.is_none() {
            self.outage.off();
        }
        if found.partitions.iter().any(|partition| !self.partitions.contains_key(partition)) {
            self.watcher.ask_offsets();
        }
    }

    /// Compares what is read with what the topic has: oldest offset and end by partition.
    fn compare(&mut self, offsets: &Offsets) {
        let mut changed = self.refused.is_some();
        for (&partition, &(low, end)) in offsets {
            let lost = low > self.partitions.get(&partition).map_or(0, |reading| reading.state.next);
            if lost && self.start == Start::Earliest {
                return self.halt(format!(
                    "partition {partition} has lost messages up to offset {low} before they were read; give the \
                     topic a longer retention. A restart counts what is left if the source says OPTIONS ('start' \
                     'earliest_available')"
                ));
            }
            match self.partitions.get_mut(&partition) {
                None => {
                    tracing::info!("topic {} has got partition {partition}", self.topic);
                    self.add(partition, low, 0);
                    changed = true;
                }
                Some(reading) if lost => {
                    let state = &mut reading.state;
                    tracing::warn!(
                        "topic {}/{partition} has lost its messages from offset {} to {low}: they are not counted",
                        self.topic,
                        state.next
                    );
                    (state.lost, state.next) = (state.lost + low - state.next, low);
                    changed = true;
                }
                Some(reading) if end < reading.state.next => {
                    let next = reading.state.next;
                    return self.halt(format!(
                        "partition {partition} ends at offset {end}, and was read up to {next}: the topic was \
                         created again, or has lost messages that are counted; restart, so that it is counted anew"
                    ));
                }
                Some(_) => {}
            }
        }
        if changed {
            self.assign_again();
        }
    }

    /// Replaces the client if there is more to read and it gives nothing.
    fn judge_progress(&mut self, offsets: &Offsets) {
        let is_behind = self.heard_at < self.asked_at
            && offsets.iter().any(|(partition, (_, end))| {
                self.partitions.get(partition).is_some_and(|r| *end > r.state.next.max(r.eof))
            });
        let since = match self.behind_since.filter(|_| is_behind) {
            Some(since) => since,
            None => {
                self.behind_since = is_behind.then(Instant::now);
                return;
            }
        };
        if since.elapsed() < STUCK {
            return;
        }
        tracing::warn!("topic {}: nothing comes although there is more; the client is replaced", self.topic);
        self.behind_since = None;
        if let Err(error) = self.replace() {
            self.refuse(error.to_string());
        }
    }

    /// Reads on with a client of its own.
    fn replace(&mut self) -> Result<()> {
        let told = Told::default();
        let consumer = Arc::new(consumer(&self.config, &self.topic, told.clone())?);
        self.watcher = Watcher::start(Arc::clone(&consumer), self.topic.clone())?;
        (self.consumer, self.told) = (consumer, told);
        self.assign().map_err(|e| Error::kafka(format!("reading topic {}", self.topic), e))
    }

    /// Has a fetcher of a partition do nothing, as one that has lost its leader.
    #[cfg(test)]
    pub(super) fn hold_up(&self) {
        self.consumer.pause(&self.consumer.assignment().unwrap()).unwrap();
    }

    fn take(&mut self, message: &BorrowedMessage, batch: &mut RawBatch) {
        let Some(reading) = self.partitions.get_mut(&message.partition()) else { return };
        let offset = message.offset();
        if offset < reading.state.next {
            return;
        }
        if self.bounds == Bounds::UntilNow && offset >= reading.first_end {
            reading.at_end = true;
            return;
        }
        reading.at_end = false;
        reading.state.next = offset + 1;
        if reading.state.end <= offset {
            reading.set_end(offset + 1);
        }
        push(message, batch);
    }

    fn take_error(&mut self, error: &KafkaError) {
        match error {
            KafkaError::PartitionEOF(partition) => {
                self.heard_at = Instant::now();
                self.refused = None;
                if let Some(reading) = self.partitions.get_mut(partition) {
                    reading.at_end = true;
                    let next = reading.state.next;
                    reading.set_end(next);
                }
            }
            error => match error.rdkafka_error_code() {
                Some(code @ (Code::AutoOffsetReset | Code::OffsetOutOfRange)) => {
                    // Which partition it is, and on which side it left the range, the offsets tell.
                    self.refuse(format!("{code}: looking for what the topic still has"));
                    self.watcher.ask_offsets();
                }
                Some(Code::TopicAuthorizationFailed) => {
                    self.refuse("reading the topic is not allowed; grant it in Kafka's ACLs".into());
                }
                Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::Fatal) => {
                    self.refuse(error.to_string());
                }
                // The client mends the rest by itself; while it can't, the watching thread gets no answer.
                _ => tracing::debug!("reading topic {}: {error}", self.topic),
            },
        }
    }

    fn state(&mut self) -> SourceState {
        self.caught_up |= self.partitions.values().all(Reading::caught_up);
        if let Some(reason) = &self.halted {
            self.outage.on(reason.clone(), false);
        }
        SourceState {
            partitions: self.partitions.iter().map(|(number, reading)| (*number, reading.state)).collect(),
            caught_up: self.caught_up,
            ended: self.bounds == Bounds::UntilNow && self.caught_up,
            outage: self.outage.current(),
        }
    }

    fn is_done(&self) -> bool {
        self.bounds == Bounds::UntilNow && self.partitions.values().all(Reading::caught_up)
    }
}

/// Adds a message with its headers.
pub(super) fn push(message: &BorrowedMessage, batch: &mut RawBatch) {
    batch.push(MessageRef {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key(),
        payload: message.payload(),
    });
    for header in message.headers().iter().flat_map(|headers| headers.iter()) {
        batch.push_header(header.key, header.value);
    }
}

/// Topics of a Kafka, read up to now.
pub struct KafkaTopics(pub Arc<Config>);

impl Topics for KafkaTopics {
    fn read(&self, topic: &str) -> Result<Box<dyn Source>> {
        let source = KafkaSource::open(&self.0, topic, Bounds::UntilNow, Start::EarliestAvailable)?;
        Ok(Box::new(source))
    }
}

impl Source for KafkaSource {
    fn topic_id(&self) -> u128 {
        self.id
    }

    fn poll(&mut self, rows_max: usize, wait: Duration) -> Polled {
        self.take_news();
        let mut batch = RawBatch::default();
        let mut deadline = Instant::now() + wait;
        let consumer = Arc::clone(&self.consumer);
        while batch.len() < rows_max && batch.bytes() < BATCH_BYTES_MAX && !self.is_done() {
            let left = deadline.saturating_duration_since(Instant::now());
            match consumer.poll(left) {
                // What is left of before is not wanted any more.
                Some(_) if self.halted.is_some() || self.missing => {}
                Some(Ok(message)) => {
                    self.take(&message, &mut batch);
                    if self.quiet && batch.len() == 1 {
                        deadline = deadline.min(Instant::now() + QUIET_LINGER);
                    }
                }
                Some(Err(error)) => self.take_error(&error),
                None if left.is_zero() => break,
                None => {}
            }
        }
        if !batch.is_empty() {
            self.heard_at = Instant::now();
            self.refused = None;
            if self.halted.is_none() {
                self.outage.off();
            }
        }
        self.quiet = batch.is_empty();
        if self.heard_at.elapsed() > QUIET && self.asked_at.elapsed() > QUIET {
            self.asked_at = Instant::now();
            self.watcher.ask_offsets();
        }
        Polled { batch, state: self.state() }
    }
}
