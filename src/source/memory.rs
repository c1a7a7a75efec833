//! A topic in memory, and a source that reads it: what Kafka does, in microseconds, and what it does wrong,
//! on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{
    Bounds, History, MessageRef, PartitionState, Polled, Position, Positions, RawBatch, Source, SourceState,
};
use crate::error::{Error, Result};
use crate::outage::OutageLog;

/// A message to be written to a topic in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMessage {
    /// The partition.
    pub partition: i32,
    /// When it was produced, in milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub payload: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A topic in memory. Its clones are the same topic.
#[derive(Clone, Debug)]
pub struct MemoryTopic {
    name: Arc<str>,
    shared: Arc<(Mutex<Contents>, Condvar)>,
}

#[derive(Debug, Default)]
struct Contents {
    partitions: Vec<Partition>,
    /// How many messages were pushed.
    pushed: u64,
    /// Why nothing can be read, and whether that passes.
    fault: Option<(String, bool)>,
    delay: Duration,
    ended: bool,
    /// How often the topic was created anew.
    generation: u128,
}

#[derive(Clone, Debug, Default)]
struct Partition {
    /// By offset; each with its number in the order of pushing, in which all partitions are read.
    messages: Vec<(u64, MemoryMessage)>,
    /// The oldest offset that is kept.
    first: i64,
    /// Offset of an open transaction's first message.
    open_transaction: Option<i64>,
}

impl Partition {
    /// The next offset to be written.
    fn high(&self) -> i64 {
        self.messages.len() as i64
    }

    /// Up to where it can be read.
    fn end(&self) -> i64 {
        self.open_transaction.unwrap_or(i64::MAX).min(self.high())
    }
}

impl MemoryTopic {
    /// An empty topic.
    pub fn new(name: &str, partitions: i32) -> MemoryTopic {
        let partitions = vec![Partition::default(); partitions.max(0) as usize];
        let contents = Contents { partitions, ..Contents::default() };
        MemoryTopic { name: name.into(), shared: Arc::new((Mutex::new(contents), Condvar::new())) }
    }

    /// Writes a message, and gives back its offset. A partition that is not there is added.
    pub fn push(&self, message: MemoryMessage) -> i64 {
        self.change(|contents| {
            let partition = message.partition.max(0) as usize;
            if contents.partitions.len() <= partition {
                contents.partitions.resize(partition + 1, Partition::default());
            }
            let partition = &mut contents.partitions[partition];
            let offset = partition.high();
            partition.messages.push((contents.pushed, message));
            contents.pushed += 1;
            offset
        })
    }

    /// Writes a message without key, time and headers.
    pub fn push_text(&self, partition: i32, payload: &str) -> i64 {
        self.push(MemoryMessage { partition, payload: Some(payload.into()), ..MemoryMessage::default() })
    }

    /// Adds a partition, and gives back its number.
    pub fn add_partition(&self) -> i32 {
        self.change(|contents| {
            contents.partitions.push(Partition::default());
            contents.partitions.len() as i32 - 1
        })
    }

    /// Forgets a partition's messages before `offset`, as retention does.
    pub fn forget_before(&self, partition: i32, offset: i64) {
        self.change(|contents| {
            if let Some(partition) = contents.partitions.get_mut(partition as usize) {
                partition.first = partition.first.max(offset.min(partition.high()));
            }
        });
    }

    /// Gives a message another value, which no topic of Kafka does.
    pub fn tamper(&self, partition: i32, offset: i64, payload: &str) {
        self.change(|contents| {
            let partition = contents.partitions.get_mut(partition as usize);
            if let Some((_, message)) = partition.and_then(|p| p.messages.get_mut(offset as usize)) {
                message.payload = Some(payload.into());
            }
        });
    }

    /// Deletes the topic and creates it again, with as many partitions and no message.
    pub fn recreate(&self) {
        self.change(|contents| {
            let partitions = vec![Partition::default(); contents.partitions.len()];
            let generation = contents.generation + 1;
            *contents = Contents { partitions, generation, ..Contents::default() };
        });
    }

    /// What is written to the partition from now on belongs to a transaction that is open until
    /// [`MemoryTopic::commit`]: nobody sees it, nor what is written behind it.
    pub fn begin(&self, partition: i32) {
        self.change(|contents| {
            if let Some(partition) = contents.partitions.get_mut(partition as usize) {
                partition.open_transaction = Some(partition.high());
            }
        });
    }

    /// Ends the partition's open transaction.
    pub fn commit(&self, partition: i32) {
        self.change(|contents| {
            if let Some(partition) = contents.partitions.get_mut(partition as usize) {
                partition.open_transaction = None;
            }
        });
    }

    /// From now on nothing can be read, for this reason, until [`MemoryTopic::connect`].
    pub fn disconnect(&self, reason: &str) {
        self.change(|contents| contents.fault = Some((reason.into(), true)));
    }

    /// From now on nothing can be read, and will not be before a restart: as of a topic that was recreated.
    pub fn fail(&self, reason: &str) {
        self.change(|contents| contents.fault = Some((reason.into(), false)));
    }

    /// Takes back a [`MemoryTopic::disconnect`].
    pub fn connect(&self) {
        self.change(|contents| contents.fault = None);
    }

    /// From now on each poll takes at least so long.
    pub fn slow_down(&self, delay: Duration) {
        self.change(|contents| contents.delay = delay);
    }

    /// Nothing more will be written: endless sources end where they have read everything.
    pub fn end(&self) {
        self.change(|contents| contents.ended = true);
    }

    /// A source that reads the topic from what it keeps of its beginning.
    pub fn source(&self, bounds: Bounds) -> MemorySource {
        self.source_at(bounds, &Positions::new())
    }

    /// As [`MemoryTopic::source`], but of partitions that have been counted from where that was.
    pub fn source_at(&self, bounds: Bounds, positions: &Positions) -> MemorySource {
        let contents = self.lock();
        let state = |(number, partition): (i32, &Partition)| {
            let beginning = Position { first: partition.first, next: partition.first };
            let Position { first, next } = positions.get(&number).copied().unwrap_or(beginning);
            let (end, high) = (partition.end(), partition.high());
            (number, PartitionState { first, lost: first, next, end, high })
        };
        let partitions: BTreeMap<_, _> = (0..).zip(&contents.partitions).map(state).collect();
        MemorySource {
            ends_at_start: partitions.iter().map(|(partition, state)| (*partition, state.end)).collect(),
            bounds,
            state: SourceState { partitions, ..SourceState::default() },
            outage: OutageLog::new(format!("reading topic {}", self.name)),
            topic: self.clone(),
        }
    }

    /// The same messages, read again.
    pub fn history(&self, positions: &Positions) -> MemoryHistory {
        let next = positions.iter().map(|(partition, position)| (*partition, position.first)).collect();
        MemoryHistory { topic: self.clone(), next }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.shared.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        let changed = change(&mut self.lock());
        self.shared.1.notify_all();
        changed
    }
}

/// Reads a [`MemoryTopic`] again.
pub struct MemoryHistory {
    topic: MemoryTopic,
    next: BTreeMap<i32, i64>,
}

impl History for MemoryHistory {
    fn begin_at(&mut self, offsets: &BTreeMap<i32, i64>) {
        self.next.extend(offsets);
    }

    fn read(&mut self, partition: i32, to: i64, rows_max: usize, batch: &mut RawBatch) -> Result<bool> {
        let contents = self.topic.lock();
        let missing =
            || Error::kafka("reading again", format!("partition {partition} has no offset {}", to - 1));
        let Partition { messages, first, .. } =
            contents.partitions.get(partition.max(0) as usize).ok_or_else(missing)?;
        let next = self.next.entry(partition).or_default();
        if *next < *first || to > messages.len() as i64 {
            return Err(missing());
        }
        for _ in 0..rows_max {
            if *next >= to {
                break;
            }
            push(&messages[*next as usize].1, *next, batch);
            *next += 1;
        }
        Ok(*next >= to)
    }
}

fn push(message: &MemoryMessage, offset: i64, batch: &mut RawBatch) {
    batch.push(MessageRef {
        partition: message.partition,
        offset,
        timestamp_ms: message.timestamp_ms,
        key: message.key.as_deref(),
        payload: message.payload.as_deref(),
    });
    for (name, value) in &message.headers {
        batch.push_header(name, value.as_deref());
    }
}

/// Reads a [`MemoryTopic`], all partitions in the order in which their messages were pushed.
pub struct MemorySource {
    topic: MemoryTopic,
    ends_at_start: BTreeMap<i32, i64>,
    bounds: Bounds,
    state: SourceState,
    outage: OutageLog,
}

impl Source for MemorySource {
    fn topic_id(&self) -> u128 {
        self.topic.lock().generation + 1
    }

    fn poll(&mut self, rows_max: usize, wait: Duration) -> Polled {
        let topic = self.topic.clone();
        let mut contents = topic.lock();
        if !contents.delay.is_zero() {
            let delay = contents.delay;
            drop(contents);
            std::thread::sleep(delay);
            contents = topic.lock();
        }
        let deadline = Instant::now() + wait;
        loop {
            let polled = self.read(&contents, rows_max);
            let left = deadline.saturating_duration_since(Instant::now());
            if !polled.batch.is_empty() || polled.state.ended || left.is_zero() {
                return polled;
            }
            let woken = topic.shared.1.wait_timeout(contents, left);
            contents = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl MemorySource {
    fn read(&mut self, contents: &Contents, rows_max: usize) -> Polled {
        let mut polled = Polled::default();
        match &contents.fault {
            Some((reason, ends_by_itself)) => self.outage.on(reason, *ends_by_itself),
            None => {
                self.outage.off();
                self.take(contents, rows_max, &mut polled);
            }
        }
        self.state.outage = self.outage.current();
        polled.state = self.state.clone();
        polled
    }

    fn take(&mut self, contents: &Contents, rows_max: usize, polled: &mut Polled) {
        for (number, partition) in (0..).zip(&contents.partitions) {
            let state = self.state.partitions.entry(number).or_default();
            let forgotten = (partition.first - state.next).max(0);
            (state.next, state.lost) = (state.next + forgotten, state.lost + forgotten);
            (state.end, state.high) = (partition.end(), partition.high());
        }
        while polled.batch.len() < rows_max {
            let readable = self.state.partitions.iter_mut().filter_map(|(number, state)| {
                let (end, at_start) = (state.end, self.ends_at_start.get(number).copied().unwrap_or(0));
                let end = if self.bounds == Bounds::UntilNow { end.min(at_start) } else { end };
                let messages = &contents.partitions[*number as usize].messages;
                (state.next < end).then(|| (&messages[state.next as usize], state))
            });
            let Some(((_, message), state)) = readable.min_by_key(|((pushed, _), _)| *pushed) else { break };
            push(message, state.next, &mut polled.batch);
            state.next += 1;
        }
        let is_read = |(number, end): (&i32, &i64)| self.state.partitions[number].next >= *end;
        self.state.caught_up |= self.ends_at_start.iter().all(is_read);
        self.state.ended = match self.bounds {
            Bounds::UntilNow => self.state.caught_up,
            Bounds::Endless => contents.ended && self.state.lag_to_high_watermark() == 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_LONG: Duration = Duration::from_millis(1);

    #[test]
    fn messages_come_in_the_order_of_pushing_with_offsets_by_partition() {
        let topic = MemoryTopic::new("t", 2);
        let mut source = topic.source(Bounds::Endless);
        assert!(source.poll(10, NOT_LONG).state.caught_up);
        for (partition, text) in [(1, "a"), (0, "b"), (1, "c")] {
            topic.push_text(partition, text);
        }
        let polled = source.poll(2, NOT_LONG);
        let places: Vec<_> = (0..2).map(|i| polled.batch.get(i)).map(|m| (m.partition, m.offset)).collect();
        assert_eq!(places, [(1, 0), (0, 0)]);
        assert_eq!((polled.state.lag(), polled.state.unread()), (1, [1].into()));
        assert_eq!(source.poll(2, NOT_LONG).state.lag(), 0);
    }

    #[test]
    fn an_outage_hides_messages_and_loses_none() {
        let topic = MemoryTopic::new("t", 1);
        let mut source = topic.source(Bounds::Endless);
        topic.disconnect("the broker is away");
        topic.push_text(0, "a");
        let polled = source.poll(10, NOT_LONG);
        assert!(polled.batch.is_empty());
        assert_eq!(polled.state.outage.unwrap().reason, "the broker is away");
        topic.connect();
        let polled = source.poll(10, NOT_LONG);
        assert_eq!((polled.batch.len(), polled.state.outage), (1, None));
    }

    #[test]
    fn what_is_behind_an_open_transaction_is_lag_to_the_high_watermark() {
        let topic = MemoryTopic::new("t", 1);
        let mut source = topic.source(Bounds::Endless);
        topic.begin(0);
        topic.push_text(0, "in the transaction");
        topic.push_text(0, "behind it");
        let state = source.poll(10, NOT_LONG).state;
        assert_eq!((state.lag(), state.lag_to_high_watermark()), (0, 2));
        topic.commit(0);
        let polled = source.poll(10, NOT_LONG);
        assert_eq!((polled.batch.len(), polled.state.lag_to_high_watermark()), (2, 0));
    }

    #[test]
    fn a_lost_beginning_and_a_partition_added_later_are_told() {
        let topic = MemoryTopic::new("t", 1);
        for text in ["a", "b", "c"] {
            topic.push_text(0, text);
        }
        topic.forget_before(0, 2);
        let mut source = topic.source(Bounds::Endless);
        let added = topic.add_partition();
        topic.push_text(added, "d");
        let polled = source.poll(10, NOT_LONG);
        assert_eq!((polled.batch.len(), polled.state.lost_messages()), (2, 2));
        assert_eq!(polled.state.partitions[&added].next, 1);
    }

    #[test]
    fn a_bounded_source_ends_where_the_topic_was_when_it_was_opened() {
        let topic = MemoryTopic::new("t", 1);
        topic.push_text(0, "a");
        let mut source = topic.source(Bounds::UntilNow);
        topic.push_text(0, "b");
        let polled = source.poll(10, NOT_LONG);
        assert_eq!((polled.batch.len(), polled.state.ended), (1, true));
        let mut endless = topic.source(Bounds::Endless);
        assert!(!endless.poll(10, NOT_LONG).state.ended);
        topic.end();
        assert!(endless.poll(10, NOT_LONG).state.ended);
    }
}
