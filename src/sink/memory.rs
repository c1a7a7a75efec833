//! Topics in memory that take records: what Kafka does, in microseconds, and what it does wrong, on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Progress, Record, Refused, Sink, VecDeque, refuse};
use crate::outage::OutageLog;

/// What was written. Its clones are the same topics.
#[derive(Clone, Debug, Default)]
pub struct MemoryTopics {
    shared: Arc<(Mutex<Contents>, Condvar)>,
}

#[derive(Debug, Default)]
struct Contents {
    records: Vec<Record>,
    /// Why nothing is taken.
    fault: Option<String>,
    /// How many more records are taken before nothing is.
    room: Option<usize>,
    /// Topics that take nothing, and why.
    refusing: BTreeMap<String, String>,
    delay: Duration,
}

impl MemoryTopics {
    /// Everything that was written, in order.
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// What was written to a topic, in order.
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

    /// From now on nothing is taken, for this reason, until [`MemoryTopics::connect`].
    pub fn disconnect(&self, reason: &str) {
        self.change(|contents| contents.fault = Some(reason.into()));
    }

    /// So many more records are taken, and then nothing until [`MemoryTopics::connect`].
    pub fn disconnect_after(&self, records: usize) {
        self.change(|contents| contents.room = Some(records));
    }

    /// Takes back a [`MemoryTopics::disconnect`].
    pub fn connect(&self) {
        self.change(|contents| (contents.fault, contents.room) = (None, None));
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

    /// A sink that writes here.
    pub fn sink(&self) -> MemorySink {
        MemorySink { topics: self.clone(), queue: VecDeque::new(), outage: OutageLog::new("writing") }
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

/// Writes to [`MemoryTopics`].
pub struct MemorySink {
    topics: MemoryTopics,
    queue: VecDeque<Record>,
    outage: OutageLog,
}

impl Sink for MemorySink {
    fn send(&mut self, record: Record) {
        self.queue.push_back(record);
    }

    fn poll(&mut self, wait: Duration) -> Progress {
        let topics = self.topics.clone();
        let deadline = Instant::now() + wait;
        let mut contents = topics.lock();
        if !self.queue.is_empty() && !contents.delay.is_zero() {
            let delay = contents.delay;
            drop(contents);
            std::thread::sleep(delay);
            contents = topics.lock();
        }
        let mut refused = Vec::new();
        loop {
            self.write(&mut contents, &mut refused);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.queue.is_empty() || left.is_zero() {
                return Progress { pending: self.queue.len(), refused, outage: self.outage.current() };
            }
            let woken = topics.shared.1.wait_timeout(contents, left);
            contents = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl MemorySink {
    fn write(&mut self, contents: &mut Contents, refused: &mut Vec<Refused>) {
        while let Some(record) = self.queue.front() {
            let full = (contents.room == Some(0)).then(|| "the connection broke".to_string());
            if let Some(reason) = contents.fault.clone().or(full) {
                self.outage.on(reason, true);
                return;
            }
            match contents.refusing.get(&*record.topic) {
                Some(reason) => refuse(refused, &record.topic, reason.clone()),
                None => {
                    contents.room = contents.room.map(|room| room - 1);
                    contents.records.push(record.clone());
                }
            }
            self.queue.pop_front();
        }
        self.outage.off();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_LONG: Duration = Duration::from_millis(1);

    fn record(topic: &str, value: &str) -> Record {
        Record {
            topic: topic.into(),
            key: Some(b"k".to_vec()),
            value: Some(value.into()),
            headers: [].into(),
            may_be_cut: false,
        }
    }

    #[test]
    fn what_an_outage_held_back_is_written_in_order() {
        let topics = MemoryTopics::default();
        let mut sink = topics.sink();
        topics.disconnect_after(1);
        for value in ["1", "2", "3"] {
            sink.send(record("t", value));
        }
        let progress = sink.poll(NOT_LONG);
        assert_eq!((progress.pending, topics.of("t").len()), (2, 1));
        assert!(progress.outage.is_some());
        topics.connect();
        assert_eq!(sink.poll(NOT_LONG), Progress::default());
        let values: Vec<_> = topics.of("t").into_iter().filter_map(|record| record.value).collect();
        assert_eq!(values, [b"1", b"2", b"3"]);
        assert_eq!(topics.newest("t")[&b"k"[..]], b"3");
    }

    #[test]
    fn what_a_topic_never_takes_is_told_once_and_left_out() {
        let topics = MemoryTopics::default();
        let mut sink = topics.sink();
        topics.refuse("closed", "there is no such topic");
        for topic in ["closed", "open", "closed"] {
            sink.send(record(topic, "v"));
        }
        let progress = sink.poll(NOT_LONG);
        assert_eq!((progress.pending, progress.outage), (0, None));
        let [refused] = progress.refused.as_slice() else { panic!("{:?}", progress.refused) };
        assert_eq!((&*refused.topic, refused.records), ("closed", 2));
        assert_eq!(topics.records().len(), 1);
        assert_eq!(sink.poll(NOT_LONG), Progress::default());
    }
}
