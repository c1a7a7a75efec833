//! Topics in memory that take epochs: what Kafka does, in microseconds, and what it does wrong, on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Progress, Record, Refused, Sink, Transaction, refuse};
use crate::outage::OutageLog;
use crate::source::{Bounds, MemoryMessage, MemoryTopic, Source, Topics};

/// What was committed. Its clones are the same topics.
#[derive(Clone, Debug, Default)]
pub struct MemoryTopics {
    shared: Arc<(Mutex<Contents>, Condvar)>,
}

/// Where a sink stops for ever, as if its process had ended there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// With everything written and nothing committed: nobody will ever see it.
    BeforeCommit,
    /// With everything committed, of which the engine does not hear.
    AfterCommit,
}

#[derive(Debug, Default)]
struct Contents {
    records: Vec<Record>,
    /// Number of the sink that may write; those before it are fenced.
    newest_sink: u64,
    /// Why nothing is taken.
    fault: Option<String>,
    /// How many more records are taken before nothing is.
    room: Option<usize>,
    /// How many more transactions are aborted.
    aborts: u32,
    /// After so many further transactions a sink stops there.
    crash: Option<(u32, Step)>,
    crashed: bool,
    /// Topics that take nothing, and why.
    refusing: BTreeMap<String, String>,
    delay: Duration,
    offsets: BTreeMap<(String, i32), i64>,
}

impl MemoryTopics {
    /// Everything that was committed, in order.
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// What was committed to a topic, in order.
    pub fn of(&self, topic: &str) -> Vec<Record> {
        self.lock().records.iter().filter(|record| *record.topic == *topic).cloned().collect()
    }

    /// The newest value of each key of a topic; a tombstone takes the key away.
    pub fn newest(&self, topic: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut newest = BTreeMap::new();
        for record in self.of(topic) {
            let key = record.key.unwrap_or_default();
            match record.value {
                Some(value) => drop(newest.insert(key, value)),
                None => drop(newest.remove(&key)),
            }
        }
        newest
    }

    /// The next offset that the consumer group was told, of a partition.
    pub fn offset(&self, topic: &str, partition: i32) -> Option<i64> {
        self.lock().offsets.get(&(topic.to_string(), partition)).copied()
    }

    /// Changes what was committed, as somebody else may.
    pub fn tamper(&self, change: impl FnOnce(&mut Vec<Record>)) {
        self.change(|contents| change(&mut contents.records));
    }

    /// From now on nothing is taken, for this reason, until [`MemoryTopics::connect`].
    pub fn disconnect(&self, reason: &str) {
        self.change(|contents| contents.fault = Some(reason.into()));
    }

    /// So many more records are taken, and then nothing until [`MemoryTopics::connect`]: the transaction in which
    /// that happens is sent again, from its first record.
    pub fn disconnect_after(&self, records: usize) {
        self.change(|contents| contents.room = Some(records));
    }

    /// Takes back a [`MemoryTopics::disconnect`], and a [`MemoryTopics::crash`] that has not come.
    pub fn connect(&self) {
        self.change(|contents| (contents.fault, contents.room, contents.crash) = (None, None, None));
    }

    /// So many transactions are aborted at their commit.
    pub fn abort(&self, transactions: u32) {
        self.change(|contents| contents.aborts = transactions);
    }

    /// After so many further transactions, the sink of the next one stops at this step for ever.
    pub fn crash(&self, after: u32, step: Step) {
        self.change(|contents| (contents.crash, contents.crashed) = (Some((after, step)), false));
    }

    /// Whether that has happened.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// From now on this topic takes nothing ever.
    pub fn refuse(&self, topic: &str, reason: &str) {
        self.change(|contents| contents.refusing.insert(topic.into(), reason.into()));
    }

    /// Takes back a [`MemoryTopics::refuse`].
    pub fn accept(&self, topic: &str) {
        self.change(|contents| contents.refusing.remove(topic));
    }

    /// From now on each poll with something to send takes at least so long.
    pub fn slow_down(&self, delay: Duration) {
        self.change(|contents| contents.delay = delay);
    }

    /// A sink that writes here; every other one is fenced.
    pub fn sink(&self) -> MemorySink {
        let number = self.change(|contents| {
            contents.newest_sink += 1;
            contents.newest_sink
        });
        let outage = OutageLog::new("writing");
        MemorySink { topics: self.clone(), number, writing: None, stopped: false, outage }
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

impl Topics for MemoryTopics {
    fn read(&self, topic: &str) -> crate::error::Result<Box<dyn Source>> {
        let copy = MemoryTopic::new(topic, 1);
        for Record { key, value, headers, .. } in self.of(topic) {
            let headers =
                headers.iter().map(|header| (header.name.to_string(), header.value.clone())).collect();
            copy.push(MemoryMessage { key, payload: value, headers, ..MemoryMessage::default() });
        }
        Ok(Box::new(copy.source(Bounds::UntilNow)))
    }
}

/// Writes to [`MemoryTopics`].
pub struct MemorySink {
    topics: MemoryTopics,
    number: u64,
    writing: Option<Transaction>,
    stopped: bool,
    outage: OutageLog,
}

impl Sink for MemorySink {
    fn begin(&mut self, transaction: Transaction) {
        self.writing = Some(transaction);
    }

    fn poll(&mut self, wait: Duration) -> Progress {
        let topics = self.topics.clone();
        let deadline = Instant::now() + wait;
        let mut contents = topics.lock();
        if self.writing.is_some() && !contents.delay.is_zero() {
            let delay = contents.delay;
            drop(contents);
            std::thread::sleep(delay);
            contents = topics.lock();
        }
        let mut refused = Vec::new();
        loop {
            let fenced = contents.newest_sink != self.number;
            if !fenced && !self.stopped {
                self.write(&mut contents, &mut refused);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let committed = self.writing.is_none() && !fenced;
            if committed || fenced || left.is_zero() {
                return Progress { committed, refused, outage: self.outage.current(), fenced };
            }
            let woken = topics.shared.1.wait_timeout(contents, left);
            contents = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl MemorySink {
    fn write(&mut self, contents: &mut Contents, refused: &mut Vec<Refused>) {
        let Some(transaction) = &self.writing else { return };
        let crash = match &mut contents.crash {
            Some((0, step)) => Some(*step),
            Some((after, _)) => {
                *after -= 1;
                None
            }
            None => None,
        };
        if crash == Some(Step::BeforeCommit) {
            return self.stop(contents);
        }
        let mut written = Vec::new();
        let mut told = Vec::new();
        for record in &transaction.records {
            let full = (contents.room == Some(0)).then(|| "the connection broke".to_string());
            if let Some(reason) = contents.fault.clone().or(full) {
                return self.outage.on(reason, true);
            }
            match contents.refusing.get(&*record.topic) {
                Some(reason) => refuse(&mut told, &record.topic, reason.clone()),
                None => {
                    contents.room = contents.room.map(|room| room - 1);
                    written.push(record.clone());
                }
            }
        }
        if contents.aborts > 0 {
            contents.aborts -= 1;
            return self.write(contents, refused);
        }
        contents.records.extend(written);
        let offsets = transaction.offsets.iter();
        contents.offsets.extend(offsets.map(|(topic, partition, next)| ((topic.clone(), *partition), *next)));
        refused.extend(told);
        if crash.is_some() {
            return self.stop(contents);
        }
        self.writing = None;
        self.outage.off();
    }

    fn stop(&mut self, contents: &mut Contents) {
        (self.stopped, contents.crash, contents.crashed) = (true, None, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_LONG: Duration = Duration::from_millis(1);

    fn record(topic: &str, value: &str) -> Record {
        Record {
            topic: topic.into(),
            partition: None,
            key: Some(b"k".to_vec()),
            value: Some(value.into()),
            headers: [].into(),
            may_be_cut: false,
        }
    }

    fn transaction(records: &[(&str, &str)]) -> Transaction {
        let records = records.iter().map(|(topic, value)| record(topic, value)).collect();
        Transaction { records, offsets: vec![("votes".into(), 0, 7)] }
    }

    #[test]
    fn what_an_outage_held_back_is_written_whole_and_once() {
        let topics = MemoryTopics::default();
        let mut sink = topics.sink();
        topics.disconnect_after(1);
        sink.begin(transaction(&[("t", "1"), ("t", "2"), ("t", "3")]));
        let progress = sink.poll(NOT_LONG);
        assert_eq!((progress.committed, topics.of("t").len()), (false, 0), "nothing is seen of a part");
        assert!(progress.outage.is_some());
        topics.connect();
        topics.abort(3);
        assert!(sink.poll(NOT_LONG).committed);
        let values: Vec<_> = topics.of("t").into_iter().filter_map(|record| record.value).collect();
        assert_eq!(values, [b"1", b"2", b"3"]);
        assert_eq!(topics.newest("t")[&b"k"[..]], b"3");
        assert_eq!(topics.offset("votes", 0), Some(7));
    }

    #[test]
    fn what_a_topic_never_takes_is_told_once_and_left_out() {
        let topics = MemoryTopics::default();
        let mut sink = topics.sink();
        topics.refuse("closed", "there is no such topic");
        sink.begin(transaction(&[("closed", "v"), ("open", "v"), ("closed", "v")]));
        let progress = sink.poll(NOT_LONG);
        assert_eq!((progress.committed, progress.outage), (true, None));
        let [refused] = progress.refused.as_slice() else { panic!("{:?}", progress.refused) };
        assert_eq!((&*refused.topic, refused.records), ("closed", 2));
        assert_eq!(topics.records().len(), 1);
        assert_eq!(sink.poll(NOT_LONG).refused, []);
    }

    #[test]
    fn a_second_sink_fences_the_first() {
        let topics = MemoryTopics::default();
        let (mut first, mut second) = (topics.sink(), topics.sink());
        first.begin(transaction(&[("t", "first")]));
        let progress = first.poll(NOT_LONG);
        assert!(progress.fenced && !progress.committed);
        second.begin(transaction(&[("t", "second")]));
        assert!(second.poll(NOT_LONG).committed);
        assert_eq!(topics.records().len(), 1);
    }
}
