//! Row encodings in order, each with how often it is there. They stand in chunks of a few kilobytes, so that a row is
//! found by few cache misses, and rows that nobody asks for are passed over by the chunk.

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use arrow::array::{LargeBinaryArray, UInt64Array};
use arrow::datatypes::UInt64Type;
use datafusion::error::Result as PlanResult;

use crate::checkpoint::{Loader, Saver, bytes, numbers};

/// A chunk is split when its encodings have more bytes, …
const CHUNK_BYTES_MAX: usize = 4096;
/// … and joined with the next one when they have fewer.
const CHUNK_BYTES_MIN: usize = CHUNK_BYTES_MAX / 4;
/// What the nodes of the map of chunks hold for each.
const CHUNK_OVERHEAD: usize = size_of::<(Key, Chunk)>() * 3 / 2;

/// An ordered multiset of row encodings.
#[derive(Debug)]
pub struct SortedRows {
    /// Each chunk's rows are at least its key, and less than the next one's. The first key is empty.
    chunks: BTreeMap<Key, Chunk>,
    /// Number of rows, repeated ones too.
    len: u64,
    bytes: usize,
}

/// What tells a chunk from those before it: mostly short, and then looked at without another cache miss.
#[derive(Clone, Debug)]
enum Key {
    Short(u8, [u8; KEY_BYTES]),
    Long(Box<[u8]>),
}

/// As many as an allocation's pointer and length leave room for.
const KEY_BYTES: usize = 22;

/// Different rows in order, one after the other.
#[derive(Debug, Default)]
struct Chunk {
    data: Vec<u8>,
    /// Of each row, where it ends.
    ends: Vec<u32>,
    /// Of each row, how often it is there; empty while each is there once.
    counts: Vec<u64>,
    /// Number of rows, repeated ones too.
    len: u64,
}

impl SortedRows {
    /// No rows.
    pub fn new() -> SortedRows {
        SortedRows { chunks: BTreeMap::from([(Key::new(&[]), Chunk::default())]), len: 0, bytes: 0 }
    }

    /// Gives the rows to a checkpoint. Costs all of them.
    pub fn save(&self, saver: &mut Saver) -> PlanResult<()> {
        let (rows, counts): (Vec<&[u8]>, Vec<u64>) = self.from(&[]).unzip();
        saver.columns(vec![
            Arc::new(LargeBinaryArray::from_iter_values(rows)),
            Arc::new(UInt64Array::from(counts)),
        ])
    }

    /// The rows of a checkpoint.
    pub fn load(loader: &mut Loader) -> PlanResult<SortedRows> {
        let [rows, counts] = loader.columns()?;
        let (rows, counts) = (bytes(&rows)?, numbers::<UInt64Type>(&counts)?);
        let mut loaded = SortedRows::new();
        for (place, count) in counts.values().iter().enumerate() {
            loaded.change(rows.value(place), count.cast_signed());
        }
        Ok(loaded)
    }

    /// Number of rows, repeated ones too.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes + self.chunks.len() * CHUNK_OVERHEAD
    }

    /// How often a row is there.
    pub fn count(&self, row: &[u8]) -> u64 {
        let (_, chunk) = self.chunk(row);
        chunk.find(row).map_or(0, |place| chunk.count(place))
    }

    /// Puts a row in or takes it out, so many times.
    ///
    /// # Panics
    /// If a row is taken out more often than it is there.
    pub fn change(&mut self, row: &[u8], times: i64) {
        let range = self.chunks.range_mut::<[u8], _>((Unbounded, Included(row)));
        let (key, chunk) = range.into_iter().next_back().expect("invariant: the first key is empty");
        let held = chunk.bytes();
        chunk.change(row, times);
        self.len = self.len.strict_add_signed(times);
        let part = (chunk.data.len() > CHUNK_BYTES_MAX && chunk.ends.len() > 1).then(|| chunk.split());
        let sparse = (times < 0 && chunk.data.len() < CHUNK_BYTES_MIN).then(|| key.clone());
        self.bytes = self.bytes - held + chunk.bytes();
        if let Some((key, chunk)) = part {
            self.bytes += key.held() + chunk.bytes();
            self.chunks.insert(key, chunk);
        }
        if let Some(key) = sparse {
            self.join_with_next(&key);
        }
    }

    /// Different rows from `key` on, in order.
    pub fn from<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = (&'a [u8], u64)> + use<'a> {
        let (start, chunk) = self.chunk(key);
        let place = chunk.find(key).unwrap_or_else(|place| place);
        // The next chunk is looked for when it is needed.
        let later = std::iter::once_with(move || self.after(start.bytes())).flatten();
        let later = later.flat_map(|chunk| (0..chunk.ends.len()).map(|place| chunk.entry(place)));
        (place..chunk.ends.len()).map(|place| chunk.entry(place)).chain(later)
    }

    /// Different rows before `key`, or all, from the last one back.
    pub fn before<'a>(&'a self, key: Option<&[u8]>) -> impl Iterator<Item = (&'a [u8], u64)> + use<'a> {
        let (start, chunk) = match key {
            Some(key) => self.chunk(key),
            None => self.chunks.last_key_value().expect("invariant: there is a first chunk"),
        };
        let place = key.map_or(chunk.ends.len(), |key| chunk.find(key).unwrap_or_else(|place| place));
        let earlier =
            std::iter::once_with(move || self.chunks.range::<[u8], _>((Unbounded, Excluded(start.bytes()))));
        let earlier = earlier.flat_map(|chunks| chunks.rev().map(|(_, chunk)| chunk));
        let earlier = earlier.flat_map(|chunk| (0..chunk.ends.len()).rev().map(|place| chunk.entry(place)));
        (0..place).rev().map(|place| chunk.entry(place)).chain(earlier)
    }

    /// Of the rows that begin with `prefix`, the one at a position, counted from 0, and the position of the first
    /// that is equal to it; where there are not so many: how many there are.
    pub fn at(&self, prefix: &[u8], position: u64) -> Result<(&[u8], u64), u64> {
        let (start, chunk) = self.chunk(prefix);
        let mut first = chunk.find(prefix).unwrap_or_else(|place| place);
        let mut passed = 0;
        for chunk in
            std::iter::once(chunk).chain(std::iter::once_with(|| self.after(start.bytes())).flatten())
        {
            if first == 0 && passed + chunk.len <= position && chunk.ends_with_prefix(prefix) {
                passed += chunk.len;
                continue;
            }
            for place in first..chunk.ends.len() {
                let (row, count) = chunk.entry(place);
                if !row.starts_with(prefix) {
                    return Err(passed);
                }
                if passed + count > position {
                    return Ok((row, passed));
                }
                passed += count;
            }
            first = 0;
        }
        Err(passed)
    }

    /// Takes out all rows that begin with `prefix`.
    pub fn remove_all(&mut self, prefix: &[u8]) {
        loop {
            let some = self.from(prefix).take_while(|(row, _)| row.starts_with(prefix)).take(1024);
            let some: Vec<_> = some.map(|(row, count)| (Box::<[u8]>::from(row), count)).collect();
            if some.is_empty() {
                return;
            }
            for (row, count) in some {
                self.change(&row, -count.cast_signed());
            }
        }
    }

    /// The chunk in which a row is, or would be.
    fn chunk(&self, row: &[u8]) -> (&Key, &Chunk) {
        let upto = self.chunks.range::<[u8], _>((Unbounded, Included(row)));
        upto.into_iter().next_back().expect("invariant: the first key is empty")
    }

    /// The chunks after the one with that key.
    fn after(&self, key: &[u8]) -> impl Iterator<Item = &Chunk> {
        self.chunks.range::<[u8], _>((Excluded(key), Unbounded)).map(|(_, chunk)| chunk)
    }

    fn join_with_next(&mut self, key: &Key) {
        let held = key.held();
        let key = key.bytes();
        let next = self.chunks.range::<[u8], _>((Excluded(key), Unbounded)).next();
        let size = self.chunks[key].data.len();
        let joined = next.filter(|(_, next)| size + next.data.len() <= CHUNK_BYTES_MAX * 3 / 4);
        if let Some(next) = joined.map(|(next, _)| next.clone()) {
            let part = self.chunks.remove(next.bytes()).expect("invariant: it was just found");
            let chunk = self.chunks.get_mut(key).expect("invariant: it was just changed");
            self.bytes -= next.held() + part.bytes() + chunk.bytes();
            chunk.append(&part);
            self.bytes += chunk.bytes();
        } else if size == 0 && !key.is_empty() {
            let part = self.chunks.remove(key).expect("invariant: it was just changed");
            self.bytes -= held + part.bytes();
        }
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Key {
        if bytes.len() > KEY_BYTES {
            return Key::Long(bytes.into());
        }
        let mut short = [0; KEY_BYTES];
        short[..bytes.len()].copy_from_slice(bytes);
        Key::Short(bytes.len() as u8, short)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Key::Short(len, bytes) => &bytes[..usize::from(*len)],
            Key::Long(bytes) => bytes,
        }
    }

    /// Bytes held outside of it.
    fn held(&self) -> usize {
        match self {
            Key::Short(..) => 0,
            Key::Long(bytes) => bytes.len(),
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Key {}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Chunk {
    fn bytes(&self) -> usize {
        self.data.capacity()
            + self.ends.capacity() * size_of::<u32>()
            + self.counts.capacity() * size_of::<u64>()
    }

    fn start(&self, place: usize) -> usize {
        place.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    fn row(&self, place: usize) -> &[u8] {
        &self.data[self.start(place)..self.ends[place] as usize]
    }

    fn count(&self, place: usize) -> u64 {
        self.counts.get(place).copied().unwrap_or(1)
    }

    fn entry(&self, place: usize) -> (&[u8], u64) {
        (self.row(place), self.count(place))
    }

    fn ends_with_prefix(&self, prefix: &[u8]) -> bool {
        self.ends.len().checked_sub(1).is_none_or(|last| self.row(last).starts_with(prefix))
    }

    /// Where a row is, or where it would be.
    fn find(&self, row: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.row(middle).cmp(row) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn change(&mut self, row: &[u8], times: i64) {
        self.len = self.len.strict_add_signed(times);
        match self.find(row) {
            Ok(place) => match self.count(place).strict_add_signed(times) {
                0 => self.remove(place),
                count => self.set_count(place, count),
            },
            Err(place) => {
                self.insert(place, row);
                self.set_count(place, times.unsigned_abs());
            }
        }
    }

    fn set_count(&mut self, place: usize, count: u64) {
        if self.counts.is_empty() && count != 1 {
            self.counts = vec![1; self.ends.len()];
        }
        if let Some(held) = self.counts.get_mut(place) {
            *held = count;
        }
    }

    fn insert(&mut self, place: usize, row: &[u8]) {
        let (start, len) = (self.start(place), self.data.len());
        reserve(&mut self.data, row.len());
        self.data.resize(len + row.len(), 0);
        self.data.copy_within(start..len, start + row.len());
        self.data[start..start + row.len()].copy_from_slice(row);
        reserve(&mut self.ends, 1);
        self.ends.insert(place, start as u32);
        self.ends[place..].iter_mut().for_each(|end| *end += row.len() as u32);
        if !self.counts.is_empty() {
            self.counts.insert(place, 1);
        }
    }

    fn remove(&mut self, place: usize) {
        let (start, end) = (self.start(place), self.ends[place] as usize);
        self.data.drain(start..end);
        self.ends.remove(place);
        self.ends[place..].iter_mut().for_each(|later| *later -= (end - start) as u32);
        if !self.counts.is_empty() {
            self.counts.remove(place);
        }
    }

    /// Gives the second half of its bytes away, with what tells it from the first.
    fn split(&mut self) -> (Key, Chunk) {
        let middle = self.data.len() / 2;
        let place = self.ends.partition_point(|end| (*end as usize) < middle).clamp(1, self.ends.len() - 1);
        let start = self.start(place);
        let ends = self.ends[place..].iter().map(|end| end - start as u32).collect();
        let counts = if self.counts.is_empty() { Vec::new() } else { self.counts.split_off(place) };
        let len =
            if counts.is_empty() { self.ends.len() - place } else { 0 } as u64 + counts.iter().sum::<u64>();
        let part = Chunk { data: self.data[start..].to_vec(), ends, counts, len };
        self.data.truncate(start);
        self.ends.truncate(place);
        self.len -= part.len;
        self.data.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.counts.shrink_to_fit();
        // The shortest key that tells the two apart.
        let (last, first) = (self.row(place - 1), part.row(0));
        let same = last.iter().zip(first).take_while(|(a, b)| a == b).count();
        (Key::new(&first[..=same]), part)
    }

    fn append(&mut self, other: &Chunk) {
        if !(self.counts.is_empty() && other.counts.is_empty()) {
            let of =
                |chunk: &Chunk| (0..chunk.ends.len()).map(|place| chunk.count(place)).collect::<Vec<_>>();
            self.counts = [of(self), of(other)].concat();
        }
        let start = self.data.len() as u32;
        self.data.extend_from_slice(&other.data);
        self.ends.extend(other.ends.iter().map(|end| start + end));
        self.len += other.len;
    }
}

/// Makes room as a vector does by itself, but for an eighth more instead of twice as much.
fn reserve<T>(values: &mut Vec<T>, more: usize) {
    if values.capacity() - values.len() < more {
        values.reserve_exact(more.max(values.len() / 8));
    }
}
