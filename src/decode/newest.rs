//! The newest row of each primary key, of a source whose rows are replaced: exact, in memory, growing with the
//! number of keys.
//!
//! Which of two messages is newer: in one partition the one that comes later there; in two, by the broker's
//! timestamp, then by partition. A timestamp that goes back within its partition counts as the one before it, so
//! that this is an order of all messages. The rows in the end are then the same in whatever order the partitions
//! are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, LargeBinaryArray, UInt32Array,
};
use arrow::datatypes::{Int32Type, Int64Type, UInt32Type};
use datafusion::error::Result;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use crate::checkpoint::{Loader, Saver, bytes, numbers};
use crate::row_index::ByteHash;
use crate::source::Origin;

/// Bytes that an allocation takes beside its own.
const ALLOCATION: usize = 8;
/// Fewer deleted keys are not worth a look at all keys.
const DELETED_MIN: usize = 1024;

/// Rows by key, both as bytes.
#[derive(Default)]
pub struct NewestRows {
    entries: HashTable<Entry>,
    hash: ByteHash,
    /// Of each partition its greatest timestamp.
    clocks: BTreeMap<i32, i64>,
    deleted: usize,
    /// How many deleted keys make it worth to look which of them can be forgotten.
    deleted_max: usize,
    bytes: usize,
    in_two_partitions: u64,
}

struct Entry {
    /// The key, then the rest of the row.
    data: Box<[u8]>,
    key_bytes: u32,
    hash: u32,
    timestamp_ms: i64,
    partition: i32,
    state: State,
    in_two_partitions: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    /// It has no row: kept until no older message can come.
    Deleted,
}

/// How new a message is, among those of other partitions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    timestamp_ms: i64,
    partition: i32,
}

/// A row that was counted and is no longer.
pub struct Gone {
    data: Box<[u8]>,
    key_bytes: usize,
}

impl Gone {
    /// Its key.
    pub fn key(&self) -> &[u8] {
        &self.data[..self.key_bytes]
    }

    /// The rest of it.
    pub fn rest(&self) -> &[u8] {
        &self.data[self.key_bytes..]
    }
}

/// What a message changes.
pub enum Change {
    /// Its row is the newest now, in place of that one, if there was one.
    Newest(Option<Gone>),
    /// The row is deleted.
    Deleted(Gone),
    /// Nothing: a newer message of its key was counted already.
    Outdated,
    /// Nothing: there is no row to delete.
    Absent,
}

impl NewestRows {
    /// The row of `key` is `rest`, says the message from `from`.
    pub fn put(&mut self, key: &[u8], rest: &[u8], from: Origin) -> Change {
        self.set(key, Some(rest), from)
    }

    /// There is no row of `key`, says the message from `from`.
    pub fn remove(&mut self, key: &[u8], from: Origin) -> Change {
        self.set(key, None, from)
    }

    fn set(&mut self, key: &[u8], rest: Option<&[u8]>, from: Origin) -> Change {
        let from = self.age(from);
        let (hash, size) = (self.hash.of(key), key.len() + rest.map_or(0, <[u8]>::len) + ALLOCATION);
        let new = |in_two_partitions| Entry {
            data: [key, rest.unwrap_or_default()].concat().into(),
            key_bytes: key.len() as u32,
            hash,
            timestamp_ms: from.timestamp_ms,
            partition: from.partition,
            state: if rest.is_some() { State::Live } else { State::Deleted },
            in_two_partitions,
        };
        let same = |entry: &Entry| entry.hash == hash && entry.key() == key;
        let change =
            match self.entries.entry(ByteHash::spread(hash), same, |entry| ByteHash::spread(entry.hash)) {
                Place::Vacant(place) => {
                    place.insert(new(false));
                    self.bytes += size;
                    self.deleted += usize::from(rest.is_none());
                    if rest.is_some() { Change::Newest(None) } else { Change::Absent }
                }
                Place::Occupied(mut place) => {
                    let held = place.get_mut();
                    if held.partition != from.partition && !held.in_two_partitions {
                        held.in_two_partitions = true;
                        self.in_two_partitions += 1;
                    }
                    if held.age() > from {
                        return Change::Outdated;
                    }
                    let before = std::mem::replace(held, new(held.in_two_partitions));
                    self.bytes = self.bytes + size - before.data.len() - ALLOCATION;
                    self.deleted += usize::from(rest.is_none());
                    self.deleted -= usize::from(before.state == State::Deleted);
                    let gone = (before.state == State::Live)
                        .then_some(Gone { key_bytes: before.key_bytes as usize, data: before.data });
                    match (rest, gone) {
                        (Some(_), gone) => Change::Newest(gone),
                        (None, Some(gone)) => Change::Deleted(gone),
                        (None, None) => Change::Absent,
                    }
                }
            };
        if self.deleted > self.deleted_max.max(DELETED_MIN) {
            self.forget_deleted();
        }
        change
    }

    /// Messages of one partition are told apart by when they come.
    fn age(&mut self, from: Origin) -> Age {
        let Origin { timestamp_ms, partition, .. } = from;
        let clock = self.clocks.entry(partition).or_insert(i64::MIN);
        *clock = (*clock).max(timestamp_ms.unwrap_or(i64::MIN));
        Age { timestamp_ms: *clock, partition }
    }

    /// Forgets the deleted keys of which no older message can come: every partition is past them.
    fn forget_deleted(&mut self) {
        let clocks = self.clocks.iter();
        let clocks: Vec<_> =
            clocks.map(|(partition, ms)| Age { timestamp_ms: *ms, partition: *partition }).collect();
        let (deleted, bytes) = (&mut self.deleted, &mut self.bytes);
        self.entries.retain(|entry| {
            let age = entry.age();
            let may_come = clocks.iter().any(|now| now.partition != age.partition && *now < age);
            let stays = entry.state == State::Live || may_come;
            if !stays {
                *deleted -= 1;
                *bytes -= entry.data.len() + ALLOCATION;
            }
            stays
        });
        // Looking costs all keys, so it must have become worth it again.
        self.deleted_max = self.entries.len() / 2 + self.deleted;
    }

    /// Gives the rows to a checkpoint. Costs all of them.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let NewestRows { entries, hash: _, clocks, deleted, deleted_max, bytes: _, in_two_partitions } = self;
        let all: Vec<&Entry> = entries.iter().collect();
        let flag = |flag: fn(&Entry) -> bool| -> ArrayRef {
            Arc::new(all.iter().map(|entry| Some(flag(entry))).collect::<BooleanArray>())
        };
        saver.columns(vec![
            Arc::new(LargeBinaryArray::from_iter_values(all.iter().map(|entry| &entry.data))),
            Arc::new(UInt32Array::from_iter_values(all.iter().map(|entry| entry.key_bytes))),
            Arc::new(Int64Array::from_iter_values(all.iter().map(|entry| entry.timestamp_ms))),
            Arc::new(Int32Array::from_iter_values(all.iter().map(|entry| entry.partition))),
            flag(|entry| entry.state == State::Live),
            flag(|entry| entry.in_two_partitions),
        ])?;
        saver.value(&(clocks, deleted, deleted_max, in_two_partitions))
    }

    /// Takes the rows of a checkpoint into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let [data, key_bytes, timestamps, partitions, live, in_two] = loader.columns()?;
        let (data, key_bytes) = (bytes(&data)?, numbers::<UInt32Type>(&key_bytes)?);
        let (timestamps, partitions) =
            (numbers::<Int64Type>(&timestamps)?, numbers::<Int32Type>(&partitions)?);
        let (live, in_two) = (live.as_boolean(), in_two.as_boolean());
        for i in 0..data.len() {
            let mut entry = Entry {
                data: data.value(i).into(),
                key_bytes: key_bytes.value(i),
                hash: 0,
                timestamp_ms: timestamps.value(i),
                partition: partitions.value(i),
                state: if live.value(i) { State::Live } else { State::Deleted },
                in_two_partitions: in_two.value(i),
            };
            entry.hash = self.hash.of(entry.key());
            self.bytes += entry.data.len() + ALLOCATION;
            let spread = |entry: &Entry| ByteHash::spread(entry.hash);
            self.entries.insert_unique(spread(&entry), entry, spread);
        }
        (self.clocks, self.deleted, self.deleted_max, self.in_two_partitions) = loader.value()?;
        Ok(())
    }

    /// Every row: its key and the rest of it.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let live = self.entries.iter().filter(|entry| entry.state == State::Live);
        live.map(|entry| entry.data.split_at(entry.key_bytes as usize))
    }

    /// How many keys came in more than one partition.
    pub fn in_two_partitions(&self) -> u64 {
        self.in_two_partitions
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.entries.allocation_size() + self.bytes
    }

    /// With few different hashes, so that different keys collide.
    #[cfg(test)]
    pub fn with_hash_bits(bits: u32) -> Self {
        NewestRows { hash: ByteHash::of_bits(bits), ..NewestRows::default() }
    }
}

impl Entry {
    fn age(&self) -> Age {
        Age { timestamp_ms: self.timestamp_ms, partition: self.partition }
    }

    fn key(&self) -> &[u8] {
        &self.data[..self.key_bytes as usize]
    }
}

#[cfg(test)]
mod tests;
