//! The primary keys that were counted: exact, in memory, growing with the number of keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder, UInt16Array};
use arrow::datatypes::{SchemaRef, UInt16Type};

use crate::checkpoint::{Loader, Saver, numbers};
use crate::error::Result;
use crate::row_index::RowIndex;
use crate::source::Origin;

/// Stands for a key's partition when it has come in several.
const SEVERAL: u16 = u16::MAX;

/// Keys whose partitions are saved together.
const PIECE_KEYS: usize = 1 << 18;

/// Keys, and where each came from.
pub struct SeenKeys {
    keys: RowIndex,
    /// Of each key, its partition, cut to 16 bits, or [`SEVERAL`].
    partitions: Vec<u16>,
    in_two_partitions: u64,
}

impl SeenKeys {
    /// No key of these columns yet.
    pub fn new(columns: &SchemaRef) -> Result<Self> {
        let types: Vec<_> = columns.fields().iter().map(|field| field.data_type().clone()).collect();
        Ok(SeenKeys { keys: RowIndex::new(&types)?, partitions: Vec::new(), in_two_partitions: 0 })
    }

    /// True for one row of each key that was not there: among these rows the first by the broker's timestamp, then
    /// by partition and offset. `origin` is that of the message of the row at a position.
    pub fn first_of_each(
        &mut self,
        values: &[ArrayRef],
        origin: impl Fn(usize) -> Origin,
    ) -> Result<BooleanArray> {
        let rows = self.keys.encode(values)?;
        let known = self.keys.len();
        // Of each new key, the position of its first row.
        let mut first: Vec<usize> = Vec::new();
        let SeenKeys { keys, partitions, in_two_partitions } = self;
        keys.insert(&rows, |row, number, is_new| {
            let from = origin(row);
            let partition = (from.partition as u16).min(SEVERAL - 1);
            if is_new {
                partitions.push(partition);
                first.push(row);
                return;
            }
            let number = number as usize;
            if partitions[number] != partition && partitions[number] != SEVERAL {
                partitions[number] = SEVERAL;
                *in_two_partitions += 1;
            }
            if number >= known {
                let earlier = &mut first[number - known];
                if from < origin(*earlier) {
                    *earlier = row;
                }
            }
        })?;
        let mut is_first = BooleanBufferBuilder::new(rows.len());
        is_first.append_n(rows.len(), false);
        first.into_iter().for_each(|row| is_first.set_bit(row, true));
        Ok(BooleanArray::new(is_first.finish(), None))
    }

    /// Gives the keys to a checkpoint. Costs the newest of them, and two bytes of each.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let SeenKeys { keys, partitions, in_two_partitions } = self;
        keys.save(saver)?;
        // In pieces: those of earlier keys rarely change.
        let pieces = partitions.chunks(PIECE_KEYS);
        saver.value(&(pieces.len(), in_two_partitions))?;
        for piece in pieces {
            saver.columns(vec![Arc::new(UInt16Array::from(piece.to_vec()))])?;
        }
        Ok(())
    }

    /// Takes the keys of a checkpoint into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.keys.load(loader)?;
        let (pieces, in_two_partitions): (usize, u64) = loader.value()?;
        self.in_two_partitions = in_two_partitions;
        for _ in 0..pieces {
            let [piece] = loader.columns()?;
            self.partitions.extend_from_slice(numbers::<UInt16Type>(&piece)?.values());
        }
        Ok(())
    }

    /// How many keys came in more than one partition: which of their messages was first is known only while both
    /// are in sight.
    pub fn in_two_partitions(&self) -> u64 {
        self.in_two_partitions
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.keys.size() + self.partitions.capacity() * size_of::<u16>()
    }
}
