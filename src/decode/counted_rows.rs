//! How often each whole row is there, of a source without a key that takes rows back: exact, in memory, growing
//! with the number of different rows.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int32Array, LargeBinaryArray, UInt64Array};
use arrow::datatypes::{Int32Type, UInt64Type};
use datafusion::error::Result;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use crate::checkpoint::{Loader, Saver, bytes, numbers};
use crate::row_index::ByteHash;

/// Rows as bytes, and how often each is there.
#[derive(Default)]
pub struct CountedRows {
    entries: HashTable<Entry>,
    hash: ByteHash,
    bytes: usize,
    in_two_partitions: u64,
}

struct Entry {
    row: Box<[u8]>,
    times: u64,
    hash: u32,
    partition: i32,
    in_two_partitions: bool,
}

impl CountedRows {
    /// The row is there once more.
    pub fn add(&mut self, row: &[u8], partition: i32) {
        let hash = self.hash.of(row);
        let same = |entry: &Entry| entry.hash == hash && *entry.row == *row;
        match self.entries.entry(ByteHash::spread(hash), same, |entry| ByteHash::spread(entry.hash)) {
            Place::Vacant(place) => {
                self.bytes += row.len();
                place.insert(Entry { row: row.into(), times: 1, hash, partition, in_two_partitions: false });
            }
            Place::Occupied(mut place) => {
                let entry = place.get_mut();
                entry.times += 1;
                self.in_two_partitions += entry.came_from(partition);
            }
        }
    }

    /// The row is there once less; false, and nothing changed, if it is not there.
    pub fn remove(&mut self, row: &[u8], partition: i32) -> bool {
        let hash = self.hash.of(row);
        let same = |entry: &Entry| entry.hash == hash && *entry.row == *row;
        let Ok(mut place) = self.entries.find_entry(ByteHash::spread(hash), same) else { return false };
        let entry = place.get_mut();
        self.in_two_partitions += entry.came_from(partition);
        entry.times -= 1;
        if entry.times == 0 {
            self.bytes -= row.len();
            place.remove();
        }
        true
    }

    /// Gives the rows to a checkpoint. Costs all of them.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let CountedRows { entries, hash: _, bytes: _, in_two_partitions } = self;
        let all: Vec<&Entry> = entries.iter().collect();
        let in_two = all.iter().map(|entry| Some(entry.in_two_partitions));
        saver.columns(vec![
            Arc::new(LargeBinaryArray::from_iter_values(all.iter().map(|entry| &entry.row))),
            Arc::new(UInt64Array::from_iter_values(all.iter().map(|entry| entry.times))),
            Arc::new(Int32Array::from_iter_values(all.iter().map(|entry| entry.partition))),
            Arc::new(in_two.collect::<BooleanArray>()),
        ])?;
        saver.value(in_two_partitions)
    }

    /// Takes the rows of a checkpoint into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let [rows, times, partitions, in_two] = loader.columns()?;
        let (rows, times) = (bytes(&rows)?, numbers::<UInt64Type>(&times)?);
        let (partitions, in_two) = (numbers::<Int32Type>(&partitions)?, in_two.as_boolean());
        for i in 0..rows.len() {
            let entry = Entry {
                row: rows.value(i).into(),
                times: times.value(i),
                hash: self.hash.of(rows.value(i)),
                partition: partitions.value(i),
                in_two_partitions: in_two.value(i),
            };
            self.bytes += entry.row.len();
            let spread = |entry: &Entry| ByteHash::spread(entry.hash);
            self.entries.insert_unique(spread(&entry), entry, spread);
        }
        self.in_two_partitions = loader.value()?;
        Ok(())
    }

    /// Every row, and how often it is there.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.entries.iter().map(|entry| (&*entry.row, entry.times))
    }

    /// How many rows came in more than one partition, or went in another one.
    pub fn in_two_partitions(&self) -> u64 {
        self.in_two_partitions
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.entries.allocation_size() + self.bytes
    }

    /// With few different hashes, so that different rows collide.
    #[cfg(test)]
    pub fn with_hash_bits(bits: u32) -> Self {
        CountedRows { hash: ByteHash::of_bits(bits), ..CountedRows::default() }
    }
}

impl Entry {
    /// 1 if the row is met in a second partition, else 0.
    fn came_from(&mut self, partition: i32) -> u64 {
        let is_news = self.partition != partition && !self.in_two_partitions;
        self.in_two_partitions |= is_news;
        u64::from(is_news)
    }
}

#[cfg(test)]
mod tests;
