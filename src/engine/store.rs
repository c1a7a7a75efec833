//! The rows of an aggregate's groups, as Arrow columns: written many at a time, read by group id.
//!
//! A log of immutable chunks, the newest version of a group wins; the newest chunks are merged with the one
//! before once they are half as large, so that a row is copied O(log n) times and stale versions stay few. Where the
//! newest version stands is kept in pages: a snapshot shares them, and a write copies those that it touches.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::interleave;
use arrow::datatypes::UInt32Type;
use datafusion::error::Result;

use crate::checkpoint::{Loader, Saver, numbers};
use crate::guard;

/// Fewer chunks are not merged: each merge copies rows.
const MERGED_AT_ONCE: usize = 4;

/// Chunks that are larger together are not merged: the offsets of a text column have 32 bits.
const MERGED_BYTES_MAX: usize = 1 << 30;

/// Groups of one page. Small, so that a write to groups far apart copies little.
const PAGE: usize = 512;

/// Where a group stands that has not been written.
const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);

#[derive(Debug)]
struct Chunk {
    columns: Vec<ArrayRef>,
    /// The group of each row, as numbers of 32 bits.
    groups: ArrayRef,
}

impl Chunk {
    fn groups(&self) -> &[u32] {
        self.groups.as_primitive::<UInt32Type>().values()
    }

    fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| column.get_array_memory_size()).sum();
        columns + self.groups.len() * size_of::<u32>()
    }
}

/// The newest row of each group. Its clone is a snapshot that costs a pointer a page.
#[derive(Clone, Debug, Default)]
pub struct Store {
    chunks: Vec<Arc<Chunk>>,
    /// Chunk and row of each group, by group id.
    pages: Vec<Arc<[(u32, u32); PAGE]>>,
    groups: usize,
    written: usize,
}

impl Store {
    /// The columns of `groups`, in that order, less the first `skip`. Each must have been written.
    pub fn read(&self, groups: &[u32], skip: usize) -> Result<Vec<ArrayRef>> {
        let places: Vec<_> = groups.iter().map(|group| self.place(*group)).collect();
        self.gather(&self.chunks, &places, skip)
    }

    /// The columns of every group that was written, by group id.
    pub fn read_all(&self) -> Result<Vec<ArrayRef>> {
        let groups = (0..self.groups as u32).filter(|group| self.has(*group));
        let places: Vec<_> = groups.map(|group| self.place(group)).collect();
        self.gather(&self.chunks, &places, 0)
    }

    /// Writes the rows of `groups`. A new group has any number beyond the others': those between are not there.
    pub fn write(&mut self, groups: Vec<u32>, columns: Vec<ArrayRef>) {
        let Some(highest) = groups.iter().max() else { return };
        self.groups = self.groups.max(*highest as usize + 1);
        self.pages.resize_with(self.groups.div_ceil(PAGE), || Arc::new([NOWHERE; PAGE]));
        self.push(Chunk { columns, groups: Arc::new(UInt32Array::from(groups)) });
        self.merge_tail();
    }

    /// Gives its rows to a checkpoint: chunks that were there at the one before are the same arrays.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Store { chunks, pages: _, groups: _, written: _ } = self;
        saver.value(&chunks.len())?;
        chunks.iter().try_for_each(|chunk| {
            saver.columns([&chunk.columns[..], std::slice::from_ref(&chunk.groups)].concat())
        })
    }

    /// The rows of a checkpoint.
    pub fn load(loader: &mut Loader) -> Result<Store> {
        let mut store = Store::default();
        let chunks: usize = loader.value()?;
        for _ in 0..chunks {
            let mut columns = loader.any_rows()?.columns().to_vec();
            let groups = columns.pop().unwrap_or_else(|| Arc::new(UInt32Array::from(Vec::<u32>::new())));
            store.write(numbers::<UInt32Type>(&groups)?.values().to_vec(), columns);
        }
        Ok(store)
    }

    /// Whether the group was written.
    pub fn has(&self, group: u32) -> bool {
        (group as usize) < self.groups && self.newest(group) != NOWHERE
    }

    /// Number of groups that were written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// One more than the highest number of a group.
    pub fn len(&self) -> usize {
        self.groups
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes()).sum::<usize>()
            + self.pages.len() * PAGE * size_of::<(u32, u32)>()
    }

    fn place(&self, group: u32) -> (usize, usize) {
        let (chunk, row) = self.newest(group);
        (chunk as usize, row as usize)
    }

    fn newest(&self, group: u32) -> (u32, u32) {
        self.pages[group as usize / PAGE][group as usize % PAGE]
    }

    fn push(&mut self, chunk: Chunk) {
        let number = self.chunks.len() as u32;
        for (row, group) in chunk.groups().iter().enumerate() {
            let group = *group as usize;
            let place = &mut Arc::make_mut(&mut self.pages[group / PAGE])[group % PAGE];
            self.written += usize::from(*place == NOWHERE);
            *place = (number, row as u32);
        }
        self.chunks.push(Arc::new(chunk));
    }

    /// Merges the newest chunks once they are several and together at least half as large as the one before.
    /// Chunks that can't be merged stay as they are.
    fn merge_tail(&mut self) {
        let (mut from, mut rows, mut bytes) = (self.chunks.len(), 0, 0);
        while let Some(before) = from.checked_sub(1).map(|i| &self.chunks[i])
            && (rows == 0 || rows * 2 >= before.groups.len())
            && bytes + before.bytes() <= MERGED_BYTES_MAX
        {
            from -= 1;
            rows += before.groups.len();
            bytes += before.bytes();
        }
        if self.chunks.len() - from < MERGED_AT_ONCE {
            return;
        }
        let tail = &self.chunks[from..];
        let (mut places, mut groups) = (Vec::new(), Vec::new());
        for (number, chunk) in tail.iter().enumerate() {
            for (row, group) in chunk.groups().iter().enumerate() {
                if self.newest(*group) == ((from + number) as u32, row as u32) {
                    places.push((number, row));
                    groups.push(*group);
                }
            }
        }
        let columns = match tail.last() {
            // The newest chunk has replaced all others.
            Some(last) if places.len() == last.groups.len() => Ok(last.columns.clone()),
            _ => guard::catch(|| self.gather(tail, &places, 0)),
        };
        if let Ok(columns) = columns {
            self.chunks.truncate(from);
            self.push(Chunk { columns, groups: Arc::new(UInt32Array::from(groups)) });
        }
    }

    fn gather(&self, chunks: &[Arc<Chunk>], places: &[(usize, usize)], skip: usize) -> Result<Vec<ArrayRef>> {
        let Some(first) = chunks.first() else { return Ok(Vec::new()) };
        (skip..first.columns.len())
            .map(|column| {
                let arrays: Vec<&dyn Array> =
                    chunks.iter().map(|chunk| chunk.columns[column].as_ref()).collect();
                Ok(interleave(&arrays, places)?)
            })
            .collect()
    }
}
