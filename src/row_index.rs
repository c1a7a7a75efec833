//! A set of rows, numbered as they came: each row's bytes lie side by side in few buffers, and a hash table
//! finds their numbers. For the keys of reference tables and the primary keys that were seen. How rows become
//! bytes is for others too.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, GenericStringArray, StringViewArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{exec_err, resources_datafusion_err};
use datafusion::error::{DataFusionError, Result};
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::checkpoint::{Loader, Saver};
use crate::hash_bits;

/// The bytes of a NULL among texts: no text has them, since they are not UTF-8.
const NULL_TEXT: &[u8] = &[0xff];

/// Rows of some columns, each of them once, numbered from 0.
pub struct RowIndex {
    encoder: RowEncoder,
    rows: NumberedRows,
    numbers: HashTable<Slot>,
    hash: ByteHash,
}

/// The bytes of rows, by number, in chunks that are never changed once they are full.
#[derive(Default)]
struct NumberedRows {
    full: Vec<Arc<BinaryArray>>,
    full_bytes: usize,
    /// The newest rows.
    bytes: Vec<u8>,
    /// Of each of these, where its bytes end.
    ends: Vec<i32>,
}

/// Rows of a full chunk.
const CHUNK_ROWS: usize = 1 << 15;

/// An entry of the hash table. With the hash beside it, a growing table reads no rows.
#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    number: u32,
}

/// Hashes bytes. With its hash beside each entry, a growing table reads none of them.
pub struct ByteHash {
    builder: DefaultHashBuilder,
    mask: u32,
}

impl Default for ByteHash {
    fn default() -> Self {
        ByteHash { builder: DefaultHashBuilder::default(), mask: hash_bits::mask() }
    }
}

impl ByteHash {
    /// Of few bits, so that different bytes collide.
    #[cfg(test)]
    pub fn of_bits(bits: u32) -> Self {
        ByteHash { mask: (1 << bits) - 1, ..ByteHash::default() }
    }

    /// The hash of some bytes.
    pub fn of(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.builder.build_hasher();
        hasher.write(bytes);
        (hasher.finish() >> 32) as u32 & self.mask
    }

    /// The same for a table, which needs 64 bits that differ at both ends.
    pub fn spread(hash: u32) -> u64 {
        u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Turns rows of some columns into bytes, and back. Rows are the same where their bytes are.
pub struct RowEncoder {
    types: Vec<DataType>,
    kind: Kind,
}

enum Kind {
    /// One column of texts: its bytes as they are.
    Text,
    Rows(RowConverter),
}

/// Rows turned into bytes.
pub struct Encoded(Bytes);

enum Bytes {
    Text(GenericStringArray<i32>),
    LargeText(GenericStringArray<i64>),
    TextView(StringViewArray),
    Rows(Rows),
}

impl RowIndex {
    /// An empty set of rows whose columns have these types.
    pub fn new(types: &[DataType]) -> Result<Self> {
        Ok(RowIndex {
            encoder: RowEncoder::new(types)?,
            rows: NumberedRows::default(),
            numbers: HashTable::new(),
            hash: ByteHash::default(),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        self.rows.size() + self.numbers.allocation_size()
    }

    /// Gives the rows to a checkpoint: full chunks that were there at the one before are the same arrays.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let RowIndex { encoder: _, rows, numbers: _, hash: _ } = self;
        saver.value(&(rows.full.len() + 1))?;
        for chunk in &rows.full {
            saver.columns(vec![Arc::clone(chunk) as ArrayRef])?;
        }
        saver.columns(vec![Arc::new(NumberedRows::chunk(rows.bytes.clone(), rows.ends.clone())?)])
    }

    /// Takes the rows of a checkpoint, with their numbers, into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let chunks: usize = loader.value()?;
        for _ in 0..chunks {
            let [chunk] = loader.columns()?;
            let Some(chunk) = chunk.as_binary_opt::<i32>() else {
                return exec_err!("keys are not saved as bytes");
            };
            self.numbers.reserve(chunk.len(), |slot| ByteHash::spread(slot.hash));
            for row in 0..chunk.len() {
                let (row, number) = (chunk.value(row), self.len() as u32);
                let hash = self.hash.of(row);
                self.rows.push(row)?;
                let rehash = |slot: &Slot| ByteHash::spread(slot.hash);
                self.numbers.insert_unique(ByteHash::spread(hash), Slot { hash, number }, rehash);
            }
        }
        Ok(())
    }

    /// The rows of these columns as bytes.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Encoded> {
        self.encoder.encode(columns)
    }

    /// The row's number, if it is there.
    pub fn find(&self, row: &[u8]) -> Option<u32> {
        let hash = self.hash.of(row);
        let same = |slot: &Slot| slot.hash == hash && self.rows.row(slot.number) == row;
        self.numbers.find(ByteHash::spread(hash), same).map(|slot| slot.number)
    }

    /// Adds the rows that are not there. `each` is told every row's position, its number, and whether it is
    /// new, in their order.
    pub fn insert(&mut self, rows: &Encoded, mut each: impl FnMut(usize, u32, bool)) -> Result<()> {
        // All hashes first: the processor then has several cache misses of the table under way at once.
        let hashes: Vec<u32> = (0..rows.len()).map(|i| self.hash.of(rows.row(i))).collect();
        for (i, hash) in hashes.into_iter().enumerate() {
            let (number, is_new) = self.insert_row(rows.row(i), hash)?;
            each(i, number, is_new);
        }
        Ok(())
    }

    /// Adds the rows of another set of the same columns.
    pub fn extend(&mut self, other: &RowIndex) -> Result<()> {
        self.numbers.reserve(other.len(), |slot| ByteHash::spread(slot.hash));
        for number in 0..other.len() as u32 {
            let row = other.rows.row(number);
            let hash = self.hash.of(row);
            self.insert_row(row, hash)?;
        }
        Ok(())
    }

    /// Gives back what a growing buffer has allocated too much.
    pub fn shrink(&mut self) {
        self.rows.bytes.shrink_to_fit();
        self.rows.ends.shrink_to_fit();
    }

    fn insert_row(&mut self, row: &[u8], hash: u32) -> Result<(u32, bool)> {
        let RowIndex { rows, numbers, .. } = self;
        let same = |slot: &Slot| slot.hash == hash && rows.row(slot.number) == row;
        match numbers.entry(ByteHash::spread(hash), same, |slot| ByteHash::spread(slot.hash)) {
            Entry::Occupied(entry) => Ok((entry.get().number, false)),
            Entry::Vacant(entry) => {
                let number = u32::try_from(rows.len())
                    .map_err(|_| resources_datafusion_err!("more than {} different keys", u32::MAX))?;
                rows.push(row)?;
                entry.insert(Slot { hash, number });
                Ok((number, true))
            }
        }
    }
}

impl NumberedRows {
    fn len(&self) -> usize {
        self.full.len() * CHUNK_ROWS + self.ends.len()
    }

    fn size(&self) -> usize {
        self.full_bytes + self.bytes.capacity() + self.ends.capacity() * size_of::<i32>()
    }

    fn row(&self, number: u32) -> &[u8] {
        let (chunk, row) = (number as usize / CHUNK_ROWS, number as usize % CHUNK_ROWS);
        if let Some(full) = self.full.get(chunk) {
            return full.value(row);
        }
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.bytes[start as usize..self.ends[row] as usize]
    }

    fn push(&mut self, row: &[u8]) -> Result<()> {
        let end = i32::try_from(self.bytes.len() + row.len())
            .map_err(|_| resources_datafusion_err!("keys of more than {} bytes on average", 1 << 16))?;
        self.bytes.extend_from_slice(row);
        self.ends.push(end);
        if self.ends.len() == CHUNK_ROWS {
            let (mut bytes, ends) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.ends));
            bytes.shrink_to_fit();
            let full = NumberedRows::chunk(bytes, ends)?;
            self.full_bytes += full.get_array_memory_size();
            self.full.push(Arc::new(full));
        }
        Ok(())
    }

    /// Rows as an array.
    fn chunk(bytes: Vec<u8>, ends: Vec<i32>) -> Result<BinaryArray> {
        let offsets: ScalarBuffer<i32> = std::iter::once(0).chain(ends).collect();
        Ok(BinaryArray::try_new(OffsetBuffer::new(offsets), bytes.into(), None)?)
    }
}

impl RowEncoder {
    /// For rows whose columns have these types.
    pub fn new(types: &[DataType]) -> Result<Self> {
        let kind = match types {
            [DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View] => Kind::Text,
            _ => Kind::Rows(RowConverter::new(types.iter().cloned().map(SortField::new).collect())?),
        };
        Ok(RowEncoder { types: types.to_vec(), kind })
    }

    /// The rows of these columns as bytes.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Encoded> {
        Ok(Encoded(match &self.kind {
            Kind::Text => match columns[0].data_type() {
                DataType::LargeUtf8 => Bytes::LargeText(columns[0].as_string::<i64>().clone()),
                DataType::Utf8View => Bytes::TextView(columns[0].as_string_view().clone()),
                _ => Bytes::Text(columns[0].as_string::<i32>().clone()),
            },
            Kind::Rows(converter) => Bytes::Rows(converter.convert_columns(columns)?),
        }))
    }

    /// The columns of rows that became these bytes.
    pub fn decode<'a>(&self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        match &self.kind {
            Kind::Text => {
                let text = |row: &'a [u8]| (row != NULL_TEXT).then(|| std::str::from_utf8(row)).transpose();
                let texts = rows.into_iter().map(text).collect::<Result<StringViewArray, _>>();
                let texts = texts.map_err(|e| DataFusionError::External(Box::new(e)))?;
                Ok(vec![cast(&texts, &self.types[0])?])
            }
            Kind::Rows(converter) => {
                let parser = converter.parser();
                Ok(converter.convert_rows(rows.into_iter().map(|row| parser.parse(row)))?)
            }
        }
    }
}

impl Encoded {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.0 {
            Bytes::Text(texts) => texts.len(),
            Bytes::LargeText(texts) => texts.len(),
            Bytes::TextView(texts) => texts.len(),
            Bytes::Rows(rows) => rows.num_rows(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of one.
    pub fn row(&self, i: usize) -> &[u8] {
        let text = match &self.0 {
            Bytes::Text(texts) if texts.is_valid(i) => texts.value(i),
            Bytes::LargeText(texts) if texts.is_valid(i) => texts.value(i),
            Bytes::TextView(texts) if texts.is_valid(i) => texts.value(i),
            Bytes::Rows(rows) => return rows.row(i).data(),
            _ => return NULL_TEXT,
        };
        text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, LargeStringArray, StringArray};

    use super::*;

    fn numbers(index: &mut RowIndex, columns: &[ArrayRef]) -> Vec<(u32, bool)> {
        let mut seen = Vec::new();
        let rows = index.encode(columns).unwrap();
        index
            .insert(&rows, |i, number, is_new| {
                assert_eq!(i, seen.len());
                seen.push((number, is_new));
            })
            .unwrap();
        seen
    }

    #[test]
    fn equal_texts_have_one_number_whatever_their_array() {
        let mut index = RowIndex::new(&[DataType::Utf8]).unwrap();
        let texts = vec![Some("b"), None, Some(""), Some("b"), None];
        let first: ArrayRef = Arc::new(StringArray::from(texts.clone()));
        assert_eq!(numbers(&mut index, &[first]), [(0, true), (1, true), (2, true), (0, false), (1, false)]);
        let large: ArrayRef = Arc::new(LargeStringArray::from(texts.clone()));
        let view: ArrayRef = Arc::new(StringViewArray::from(texts));
        for again in [large, view] {
            assert_eq!(
                numbers(&mut index, &[again]).iter().map(|(n, _)| *n).collect::<Vec<_>>(),
                [0, 1, 2, 0, 1]
            );
        }
        assert_eq!(index.len(), 3);
    }

    #[test]
    fn rows_come_back_from_their_bytes_with_their_types() {
        let texts = [Some("b"), None, Some(""), Some("a longer text than fits in a view")];
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(-1), None, Some(0), Some(i64::MAX)]));
        let text: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        let large: ArrayRef = Arc::new(LargeStringArray::from(texts.to_vec()));
        let view: ArrayRef = Arc::new(StringViewArray::from(texts.to_vec()));
        for columns in [vec![text.clone()], vec![large.clone()], vec![view], vec![numbers, large, text]] {
            let types: Vec<_> = columns.iter().map(|column| column.data_type().clone()).collect();
            let encoder = RowEncoder::new(&types).unwrap();
            let rows = encoder.encode(&columns).unwrap();
            assert_eq!(encoder.decode((0..4).map(|i| rows.row(i))).unwrap(), columns);
        }
    }

    #[test]
    fn rows_of_several_columns_are_found_again_after_the_table_has_grown() {
        let types = [DataType::Utf8, DataType::Int64];
        let mut index = RowIndex::new(&types).unwrap();
        let columns = |from: i64, to: i64| -> Vec<ArrayRef> {
            let texts = StringArray::from_iter_values((from..to).map(|i| format!("k{}", i % 7)));
            vec![Arc::new(texts), Arc::new(Int64Array::from_iter_values(from..to))]
        };
        for from in (0..10_000).step_by(1000) {
            let new = numbers(&mut index, &columns(from, from + 1000));
            assert!(new.iter().enumerate().all(|(i, n)| *n == (from as u32 + i as u32, true)));
        }
        let rows = index.encode(&columns(0, 10_000)).unwrap();
        assert!((0..10_000).all(|i| index.find(rows.row(i)) == Some(i as u32)));
        let strangers = index.encode(&columns(10_000, 10_100)).unwrap();
        assert!((0..100).all(|i| index.find(strangers.row(i)).is_none()));
        let mut both = RowIndex::new(&types).unwrap();
        numbers(&mut both, &columns(9_990, 10_010));
        both.extend(&index).unwrap();
        assert_eq!(both.len(), 10_010);
        assert!(both.size() >= both.len() * 12, "the size is that of the rows at least");
    }
}
