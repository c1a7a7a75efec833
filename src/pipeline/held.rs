//! What topics have already: so that a count that begins anew writes only what they lack, and takes back what they
//! have too much.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Op, ViewChange};
use crate::error::Result;
use crate::hash::{Hash, hash, hash_parts};
use crate::sink::{Record, changelog, op_headers};
use crate::source::{RawBatch, Topics};

const POLL_ROWS: usize = 10_000;
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Records that topics have, each as often as it is there.
pub(super) struct Held {
    times: HashMap<Hash, u32>,
    total: u64,
}

impl Held {
    /// Of topics whose records say something once: dead letters, and rows of views without state. Blocks.
    /// `until`: only those of epochs until then.
    pub(super) fn read(topics: &dyn Topics, names: &BTreeSet<String>, until: Option<u64>) -> Result<Held> {
        let mut held = Held { times: HashMap::new(), total: 0 };
        for name in names {
            Reading { topics, topic: name, until }.each(|batch, i| {
                let message = batch.get(i);
                let identity = identity(name, |name| batch.header(i, name), message.key, message.payload);
                *held.times.entry(identity).or_default() += 1;
                held.total += 1;
            })?;
        }
        Ok(held)
    }

    /// Whether a record is there, which then stands for it and for no other.
    pub(super) fn take(&mut self, record: &Record) -> bool {
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let identity = identity(&record.topic, |name| record.header(name), key, value);
        match self.times.get_mut(&identity) {
            Some(times) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }

    /// How many records there are.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// How many of them stand for none that was asked for.
    pub(super) fn rest(&self) -> u64 {
        self.times.values().map(|times| u64::from(*times)).sum()
    }
}

/// What a record says: a dead letter by what it is about, since it may have been cut; another by all of it.
fn identity<'a>(
    topic: &str,
    header: impl Fn(&str) -> Option<&'a [u8]>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Hash {
    let mut parts = vec![Some(topic.as_bytes())];
    match header("rule") {
        Some(rule) => {
            parts.push(Some(rule));
            parts.extend(["reason", "topic", "partition", "offset"].map(header));
        }
        None => parts.extend([key, value, header("op")]),
    }
    hash_parts(parts)
}

/// What a view's topic lacks of its rows, and has too much. `view`: all its rows, as if they were new. `is_shared`:
/// others write to the topic too. `until`: the topic as of that epoch. Blocks.
pub(super) fn differing(
    topics: &dyn Topics,
    view: &ViewChange,
    epoch: u64,
    is_shared: bool,
    until: Option<u64>,
) -> Result<Vec<Record>> {
    let Some(topic) = &view.info.topic else { return Ok(Vec::new()) };
    let rows = changelog(view, epoch)?;
    // Rows that an append view has told are told for good.
    let takes_back = !is_shared && view.info.mode != "append";
    let topic = Reading { topics, topic, until };
    match view.info.key.is_empty() {
        true => differing_rows(&topic, rows, epoch, takes_back),
        false => differing_keys(&topic, rows, epoch, takes_back),
    }
}

fn differing_keys(topic: &Reading, rows: Vec<Record>, epoch: u64, takes_back: bool) -> Result<Vec<Record>> {
    let mut held: HashMap<Vec<u8>, Hash> = HashMap::new();
    topic.each(|batch, i| {
        let message = batch.get(i);
        let key = message.key.unwrap_or_default();
        match message.payload {
            Some(value) => drop(held.insert(key.into(), hash(value))),
            None => drop(held.remove(key)),
        }
    })?;
    let (update, delete) = (op_headers(Op::Update, epoch), op_headers(Op::Delete, epoch));
    let mut records = Vec::new();
    for mut record in rows {
        let before = held.remove(record.key.as_deref().unwrap_or_default());
        if before.is_some() && before == record.value.as_deref().map(hash) {
            continue;
        }
        if before.is_some() {
            record.headers = Arc::clone(&update);
        }
        records.push(record);
    }
    if takes_back {
        let mut gone: Vec<_> = held.into_keys().collect();
        gone.sort();
        records.extend(gone.into_iter().map(|key| Record {
            topic: topic.topic.into(),
            partition: None,
            key: Some(key),
            value: None,
            headers: Arc::clone(&delete),
            may_be_cut: false,
        }));
    }
    Ok(records)
}

fn differing_rows(topic: &Reading, rows: Vec<Record>, epoch: u64, takes_back: bool) -> Result<Vec<Record>> {
    let mut held: HashMap<Vec<u8>, i64> = HashMap::new();
    topic.each(|batch, i| {
        let Some(value) = batch.get(i).payload else { return };
        let is_deletion = batch.header(i, "op") == Some(b"delete");
        *held.entry(value.into()).or_default() += if is_deletion { -1 } else { 1 };
    })?;
    let mut records = Vec::new();
    for record in rows {
        match record.value.as_ref().and_then(|value| held.get_mut(value)) {
            Some(times) if *times > 0 => *times -= 1,
            _ => records.push(record),
        }
    }
    if takes_back {
        let delete = op_headers(Op::Delete, epoch);
        let mut gone: Vec<_> = held.into_iter().filter(|(_, times)| *times > 0).collect();
        gone.sort();
        let deletion = |value: Vec<u8>| Record {
            topic: topic.topic.into(),
            partition: None,
            key: None,
            value: Some(value),
            headers: Arc::clone(&delete),
            may_be_cut: false,
        };
        for (value, times) in gone {
            records.extend((0..times).map(|_| deletion(value.clone())));
        }
    }
    Ok(records)
}

/// A topic as of an epoch.
struct Reading<'a> {
    topics: &'a dyn Topics,
    topic: &'a str,
    until: Option<u64>,
}

impl Reading<'_> {
    /// Gives every message to `take`.
    fn each(&self, mut take: impl FnMut(&RawBatch, u32)) -> Result<()> {
        let mut source = self.topics.read(self.topic)?;
        loop {
            let polled = source.poll(POLL_ROWS, POLL_WAIT);
            let wanted = |i: &u32| self.until.is_none_or(|until| epoch_of(&polled.batch, *i) <= until);
            (0..polled.batch.len() as u32).filter(wanted).for_each(|i| take(&polled.batch, i));
            if polled.state.ended {
                return Ok(());
            }
        }
    }
}

fn epoch_of(batch: &RawBatch, position: u32) -> u64 {
    let epoch = batch.header(position, "epoch").and_then(|epoch| std::str::from_utf8(epoch).ok());
    epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}
