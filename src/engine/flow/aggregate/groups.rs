//! Finds the group of each row by its key, and gives groups their numbers, which are used again once a group is gone.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, LargeBinaryArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int64Type, SchemaRef,
};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::checkpoint::{Loader, Saver, bytes, numbers};
use crate::hash_bits;

/// Small tables, so that the growth of one is no pause.
const SHARDS: usize = 256;

/// The groups by their keys.
#[derive(Debug)]
pub struct Groups {
    /// None: one group, of all rows.
    converter: Option<RowConverter>,
    shards: Vec<HashTable<u32>>,
    hasher: DefaultHashBuilder,
    /// Bits of a hash that count.
    mask: u64,
    /// By number, of each group: its encoded key, …
    keys: Vec<Box<[u8]>>,
    /// … and how many rows it has.
    weights: Vec<i64>,
    /// Numbers of groups that are gone.
    free: Vec<u32>,
    /// Groups that have a row without rows: those of all rows.
    always: BTreeSet<u32>,
    key_bytes: usize,
    len: usize,
}

/// The groups that a delta touches, and what it makes of them.
#[derive(Debug, Default)]
pub struct Touched {
    /// Their numbers; a new group has one that no other has.
    pub groups: Vec<u32>,
    /// Of each, the first row with its key.
    pub first_rows: Vec<u32>,
    /// Of each, whether it is there already.
    pub known: Vec<bool>,
    /// Of each, how many rows it has.
    pub after: Vec<i64>,
    /// Of each row, the position of its group.
    pub positions: Vec<u32>,
    /// Of each that is new, its key, in order of position.
    new: Vec<(u32, u64, Box<[u8]>)>,
}

impl Groups {
    /// No groups yet, by keys of `schema`.
    pub fn new(schema: &SchemaRef) -> Result<Groups> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let converter =
            (!schema.fields().is_empty()).then(|| RowConverter::new(fields.collect())).transpose()?;
        Ok(Groups {
            converter,
            shards: std::iter::repeat_with(HashTable::new).take(SHARDS).collect(),
            hasher: DefaultHashBuilder::default(),
            mask: if hash_bits::mask() == u32::MAX { u64::MAX } else { u64::from(hash_bits::mask()) },
            keys: Vec::new(),
            weights: Vec::new(),
            free: Vec::new(),
            always: BTreeSet::new(),
            key_bytes: 0,
            len: 0,
        })
    }

    /// Finds the groups of rows with such keys and weights. Changes nothing.
    pub fn touch(&self, keys: &[ArrayRef], weights: &[i64]) -> Result<Touched> {
        let keys = keys.iter().map(one_zero).collect::<Vec<_>>();
        let encoded =
            self.converter.as_ref().map(|converter| converter.convert_columns(&keys)).transpose()?;
        let mut touched = Touched { positions: Vec::with_capacity(weights.len()), ..Touched::default() };
        let mut seen: HashTable<(u32, u32)> = HashTable::new();
        for (row, weight) in weights.iter().enumerate() {
            let key = encoded.as_ref().map_or(&[][..], |rows| rows.row(row).data());
            let hash = self.hasher.hash_one(key) & self.mask;
            let same =
                |first: u32| encoded.as_ref().is_none_or(|rows| rows.row(first as usize).data() == key);
            let entry = seen.entry(
                hash,
                |(_, first)| same(*first),
                |(position, _)| {
                    let first = touched.first_rows[*position as usize] as usize;
                    let key = encoded.as_ref().map_or(&[][..], |rows| rows.row(first).data());
                    self.hasher.hash_one(key) & self.mask
                },
            );
            let position = match entry {
                hashbrown::hash_table::Entry::Occupied(entry) => entry.get().0,
                hashbrown::hash_table::Entry::Vacant(entry) => {
                    let position = touched.groups.len() as u32;
                    entry.insert((position, row as u32));
                    self.add(&mut touched, row as u32, hash, key);
                    position
                }
            };
            touched.after[position as usize] += weight;
            touched.positions.push(position);
        }
        Ok(touched)
    }

    /// The groups of such keys, each different and none of them there, which from then on have a row for ever.
    pub fn start(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Touched> {
        let mut touched = self.touch(keys, &vec![0; rows])?;
        touched.positions.clear();
        self.always.extend(&touched.groups);
        Ok(touched)
    }

    fn add(&self, touched: &mut Touched, row: u32, hash: u64, key: &[u8]) {
        let known = self.shards[shard(hash)].find(hash, |group| *self.keys[*group as usize] == *key).copied();
        let group = known.unwrap_or_else(|| {
            let nth = touched.new.len();
            touched.new.push((touched.groups.len() as u32, hash, key.into()));
            match self.free.len().checked_sub(nth + 1) {
                Some(at) => self.free[at],
                None => (self.keys.len() + nth - self.free.len()) as u32,
            }
        });
        let weight = known.map_or(0, |group| self.weights[group as usize]);
        touched.groups.push(group);
        touched.first_rows.push(row);
        touched.known.push(known.is_some());
        touched.after.push(weight);
    }

    /// Whether a group with so many rows has a row of its own.
    pub fn is_there(&self, group: u32, weight: i64) -> bool {
        weight > 0 || self.always.contains(&group)
    }

    /// What was touched counts.
    pub fn commit(&mut self, touched: &mut Touched) {
        for (position, hash, key) in std::mem::take(&mut touched.new) {
            let group = touched.groups[position as usize];
            if self.free.last() == Some(&group) {
                self.free.pop();
            }
            let (group, places) = (group as usize, self.keys.len());
            self.keys.resize_with(places.max(group + 1), Box::default);
            self.weights.resize(places.max(group + 1), 0);
            self.key_bytes += key.len();
            self.keys[group] = key;
            self.len += 1;
            let (keys, hasher, mask) = (&self.keys, &self.hasher, self.mask);
            let rehash = |group: &u32| hasher.hash_one(&*keys[*group as usize]) & mask;
            self.shards[shard(hash)].insert_unique(hash, group as u32, rehash);
        }
        for (group, weight) in touched.groups.iter().zip(&touched.after) {
            self.weights[*group as usize] = *weight;
        }
    }

    /// Forgets a group. Its number is free.
    pub fn remove(&mut self, group: u32) {
        let key = std::mem::take(&mut self.keys[group as usize]);
        let hash = self.hasher.hash_one(&*key) & self.mask;
        if let Ok(entry) = self.shards[shard(hash)].find_entry(hash, |other| *other == group) {
            entry.remove();
            self.key_bytes -= key.len();
            self.weights[group as usize] = 0;
            self.free.push(group);
            self.len -= 1;
        }
    }

    /// Gives the groups to a checkpoint. Costs all of them.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Groups {
            converter: _,
            shards: _,
            hasher: _,
            mask: _,
            keys,
            weights,
            free,
            always,
            key_bytes: _,
            len: _,
        } = self;
        saver.columns(vec![
            Arc::new(LargeBinaryArray::from_iter_values(keys)),
            Arc::new(Int64Array::from(weights.clone())),
        ])?;
        saver.value(&(free, always))
    }

    /// Takes the groups of a checkpoint, with their numbers, in place of its own.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let [keys, weights] = loader.columns()?;
        let keys = bytes(&keys)?;
        self.weights = numbers::<Int64Type>(&weights)?.values().to_vec();
        (self.free, self.always) = loader.value()?;
        self.keys = (0..keys.len()).map(|group| keys.value(group).into()).collect();
        self.key_bytes = self.keys.iter().map(|key| key.len()).sum();
        self.len = self.keys.len() - self.free.len();
        self.shards.iter_mut().for_each(HashTable::clear);
        let free: BTreeSet<u32> = self.free.iter().copied().collect();
        let (keys, hasher, mask) = (&self.keys, &self.hasher, self.mask);
        let hash = |group: &u32| hasher.hash_one(&*keys[*group as usize]) & mask;
        for group in (0..keys.len() as u32).filter(|group| !free.contains(group)) {
            self.shards[shard(hash(&group))].insert_unique(hash(&group), group, hash);
        }
        Ok(())
    }

    /// Number of groups.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let tables: usize = self.shards.iter().map(HashTable::allocation_size).sum();
        tables
            + self.key_bytes
            + self.keys.capacity() * size_of::<Box<[u8]>>()
            + self.weights.capacity() * size_of::<i64>()
            + self.free.capacity() * size_of::<u32>()
    }
}

/// The highest bits choose; but for short hashes those are 0.
fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

/// A key with 0.0 for −0.0, which is the same key.
pub fn one_zero(key: &ArrayRef) -> ArrayRef {
    fn of<T: ArrowPrimitiveType>(key: &ArrayRef, add: impl Fn(T::Native) -> T::Native) -> ArrayRef {
        let values: PrimitiveArray<T> = key.as_primitive::<T>().unary(add);
        Arc::new(values)
    }
    match key.data_type() {
        DataType::Float16 => {
            of::<Float16Type>(key, |value| value + <Float16Type as ArrowPrimitiveType>::Native::default())
        }
        DataType::Float32 => of::<Float32Type>(key, |value| value + 0.0),
        DataType::Float64 => of::<Float64Type>(key, |value| value + 0.0),
        _ => Arc::clone(key),
    }
}
