//! Rows by slot, in immutable chunks. A slot is a number that a row keeps while it is there, wherever its chunk is
//! merged or compacted into; later another row may get it. Chunks are in the order in which their rows came.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, filter_record_batch, interleave, take};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{internal_err, resources_datafusion_err};
use datafusion::error::Result;

use super::chains::NIL;
use super::time::Time;
use crate::checkpoint::{Loader, Saver};

/// Neighbours are merged up to so many rows, …
const ROWS_MAX: usize = 1 << ROW_BITS;
/// … and so many bytes: neither a merge nor a compaction takes long.
const BYTES_MAX: usize = 8 << 20;
/// A place is the number of a chunk and, in so many bits, of a row in it.
const ROW_BITS: u32 = 17;
const ROW_MASK: u32 = (1 << ROW_BITS) - 1;
/// One less than there could be, so that no place is `NIL`.
const CHUNKS_MAX: usize = (1 << (32 - ROW_BITS)) - 1;

/// Rows by slot.
#[derive(Debug)]
pub struct Chunks {
    schema: SchemaRef,
    /// By number. One that is vacant has no rows.
    chunks: Vec<Chunk>,
    vacant: Vec<usize>,
    /// Numbers of the others, in the order of their rows.
    order: Vec<usize>,
    /// By slot; `NIL` where no row is.
    places: Vec<u32>,
    free: Vec<u32>,
    len: usize,
    came: u64,
    time: Option<Time>,
}

/// Rows that are never changed, and which of them are dead.
#[derive(Clone, Debug)]
pub struct Part {
    rows: Arc<RecordBatch>,
    /// A bit for each row; empty if all live.
    dead: Arc<Vec<u64>>,
}

#[derive(Debug)]
struct Chunk {
    part: Part,
    dead: usize,
    bytes: usize,
    /// Of each row.
    slots: Vec<u32>,
    /// Its place in the order.
    came: u64,
    /// It and the chunks after it are too large to be merged as rows come: only deletions make it smaller.
    sealed: bool,
    /// Until when all its rows are needed; it may have died since.
    first_end: i64,
    /// Its rows by that time, the first to end last. Made when the first of them ends.
    ends: Option<Vec<(i64, u32)>>,
}

impl Part {
    fn is_dead(&self, row: u32) -> bool {
        self.dead.get(row as usize / 64).is_some_and(|bits| bits >> (row % 64) & 1 == 1)
    }

    fn live(&self) -> BooleanArray {
        BooleanBuffer::collect_bool(self.rows.num_rows(), |row| !self.is_dead(row as u32)).into()
    }

    /// Gives its rows to a checkpoint, the dead ones too: so they stay the same arrays.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Part { rows, dead } = self;
        saver.rows(rows);
        saver.value(&**dead)
    }

    /// Rows of a checkpoint.
    pub fn load(loader: &mut Loader, schema: &SchemaRef) -> Result<Part> {
        Ok(Part { rows: Arc::new(loader.rows(schema)?), dead: Arc::new(loader.value()?) })
    }

    /// The rows that live, in their order.
    pub fn living(&self) -> Result<RecordBatch> {
        if self.dead.is_empty() {
            return Ok(RecordBatch::clone(&self.rows));
        }
        Ok(filter_record_batch(&self.rows, &self.live())?)
    }
}

impl Chunk {
    fn new(rows: RecordBatch, slots: Vec<u32>, came: u64, time: Option<Time>) -> Result<Chunk> {
        let rows = without_garbage(rows)?;
        Ok(Chunk {
            dead: 0,
            bytes: rows.get_array_memory_size() + slots.capacity() * size_of::<u32>(),
            slots,
            came,
            sealed: false,
            first_end: time.map_or(Ok(i64::MAX), |time| time.first_end(&rows))?,
            ends: None,
            part: Part { rows: Arc::new(rows), dead: Arc::default() },
        })
    }

    fn len(&self) -> usize {
        self.slots.len()
    }

    fn living_slots(&self) -> Vec<u32> {
        let slots = self.slots.iter().zip(0..);
        slots.filter(|(_, row)| !self.part.is_dead(*row)).map(|(slot, _)| *slot).collect()
    }
}

impl Chunks {
    /// No rows.
    pub fn new(schema: SchemaRef) -> Chunks {
        Chunks {
            schema,
            chunks: Vec::new(),
            vacant: Vec::new(),
            order: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
            came: 0,
            time: None,
        }
    }

    /// Tells when rows end. Before the first row.
    pub fn set_time(&mut self, time: Time) {
        self.time = Some(time);
    }

    /// The columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds rows. Their slots, in their order.
    pub fn insert(&mut self, rows: &RecordBatch) -> Result<Vec<u32>> {
        let mut all = Vec::with_capacity(rows.num_rows());
        for from in (0..rows.num_rows()).step_by(ROWS_MAX) {
            let rows = rows.slice(from, ROWS_MAX.min(rows.num_rows() - from));
            let number = self.number()?;
            let slots = self.take_slots(rows.num_rows());
            all.extend_from_slice(&slots);
            self.len += slots.len();
            self.came += 1;
            self.put(number, Chunk::new(rows, slots, self.came, self.time)?, 0);
            self.order.push(number);
            self.merge_last()?;
        }
        Ok(all)
    }

    fn take_slots(&mut self, count: usize) -> Vec<u32> {
        let mut slots = self.free.split_off(self.free.len().saturating_sub(count));
        let fresh = self.places.len();
        self.places.resize(fresh + count - slots.len(), NIL);
        slots.extend(fresh as u32..self.places.len() as u32);
        slots
    }

    /// A number for a new chunk.
    fn number(&mut self) -> Result<usize> {
        if let Some(number) = self.vacant.pop() {
            return Ok(number);
        }
        let number = self.chunks.len();
        if number == CHUNKS_MAX {
            return Err(resources_datafusion_err!("an arrangement of more than {} rows", self.len));
        }
        let none = RecordBatch::new_empty(Arc::clone(&self.schema));
        self.chunks.push(Chunk::new(none, Vec::new(), 0, None)?);
        Ok(number)
    }

    /// Puts a chunk at its number. The first rows may be there already.
    fn put(&mut self, number: usize, chunk: Chunk, first: usize) {
        for (row, slot) in chunk.slots.iter().enumerate().skip(first) {
            self.places[*slot as usize] = ((number as u32) << ROW_BITS) | row as u32;
        }
        self.chunks[number] = chunk;
    }

    /// A row is copied some log(`ROWS_MAX` / rows of an insertion) times.
    fn merge_last(&mut self) -> Result<()> {
        while let [.., one, other] = *self.order.as_slice()
            && self.chunks[other].len() * 2 >= self.chunks[one].len()
        {
            if !self.fit(one, other) {
                let before = self.order[..self.order.len() - 1].iter().rev();
                for number in before {
                    if std::mem::replace(&mut self.chunks[*number].sealed, true) {
                        break;
                    }
                }
                return Ok(());
            }
            self.merge(self.order.len() - 2)?;
        }
        Ok(())
    }

    fn fit(&self, one: usize, other: usize) -> bool {
        let (one, other) = (&self.chunks[one], &self.chunks[other]);
        one.len() + other.len() <= ROWS_MAX && one.bytes + other.bytes <= BYTES_MAX
    }

    /// Merges a chunk with the one after it in the order.
    fn merge(&mut self, at: usize) -> Result<()> {
        let (number, other) = (self.order[at], self.order[at + 1]);
        let (one, two) = (&self.chunks[number], &self.chunks[other]);
        let first = if one.dead == 0 { one.len() } else { 0 };
        let mut slots = one.living_slots();
        slots.extend(two.living_slots());
        let rows = concat_batches(&self.schema, &[one.part.living()?, two.part.living()?])?;
        let (came, sealed) = (one.came, one.sealed && two.sealed);
        let merged = Chunk { sealed, ..Chunk::new(rows, slots, came, self.time)? };
        self.put(number, merged, first);
        self.vacate(at + 1)
    }

    /// Leaves out the dead rows of a chunk.
    fn compact(&mut self, number: usize) -> Result<()> {
        let chunk = &self.chunks[number];
        let (rows, slots) = (chunk.part.living()?, chunk.living_slots());
        let (came, sealed) = (chunk.came, chunk.sealed);
        let compacted = Chunk { sealed, ..Chunk::new(rows, slots, came, self.time)? };
        self.put(number, compacted, 0);
        // Those that are sealed were large once, so their deletions pay for it.
        let mut at = self.position(number)?;
        while at > 0 && self.may_merge(at - 1) {
            at -= 1;
            self.merge(at)?;
        }
        while self.may_merge(at) {
            self.merge(at)?;
        }
        Ok(())
    }

    fn may_merge(&self, at: usize) -> bool {
        let Some([one, other]) = self.order.get(at..at + 2) else { return false };
        self.chunks[*one].sealed && self.chunks[*other].sealed && self.fit(*one, *other)
    }

    fn position(&self, number: usize) -> Result<usize> {
        let came = self.chunks[number].came;
        match self.order.binary_search_by_key(&came, |other| self.chunks[*other].came) {
            Ok(at) => Ok(at),
            Err(_) => internal_err!("a chunk that is nowhere"),
        }
    }

    /// Takes a chunk out of the order.
    fn vacate(&mut self, at: usize) -> Result<()> {
        let number = self.order.remove(at);
        let none = RecordBatch::new_empty(Arc::clone(&self.schema));
        self.chunks[number] = Chunk::new(none, Vec::new(), 0, None)?;
        self.vacant.push(number);
        Ok(())
    }

    /// Removes rows.
    pub fn delete(&mut self, slots: &[u32]) -> Result<()> {
        let mut touched = Vec::new();
        for slot in slots {
            let (number, row) = self.locate(*slot)?;
            let chunk = &mut self.chunks[number];
            if chunk.dead == 0 || touched.last() != Some(&number) {
                touched.push(number);
            }
            let dead = Arc::make_mut(&mut chunk.part.dead);
            dead.resize(chunk.slots.len().div_ceil(64), 0);
            dead[row / 64] |= 1 << (row % 64);
            chunk.dead += 1;
            self.places[*slot as usize] = NIL;
            self.free.push(*slot);
            self.len -= 1;
        }
        touched.sort_unstable();
        touched.dedup();
        for number in touched {
            let chunk = &self.chunks[number];
            // A merge may have emptied it.
            if chunk.dead == 0 {
                continue;
            }
            if chunk.dead == chunk.len() {
                self.vacate(self.position(number)?)?;
            } else if chunk.dead * 2 > chunk.len() {
                self.compact(number)?;
            }
        }
        Ok(())
    }

    fn locate(&self, slot: u32) -> Result<(usize, usize)> {
        match self.places.get(slot as usize) {
            Some(place) if *place != NIL => Ok(((place >> ROW_BITS) as usize, (place & ROW_MASK) as usize)),
            _ => internal_err!("no row is at slot {slot}"),
        }
    }

    /// The rows at these slots, with all columns or those.
    pub fn gather(&self, slots: &[u32], columns: Option<&[usize]>) -> Result<RecordBatch> {
        let schema = match columns {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        if slots.is_empty() {
            return Ok(RecordBatch::new_empty(schema));
        }
        // Only the chunks that are needed.
        let (mut chunks, mut position) = (Vec::new(), vec![NIL; self.chunks.len()]);
        let mut places = Vec::with_capacity(slots.len());
        for slot in slots {
            let (number, row) = self.locate(*slot)?;
            if position[number] == NIL {
                position[number] = chunks.len() as u32;
                chunks.push(self.chunks[number].part.rows.as_ref());
            }
            places.push((position[number] as usize, row));
        }
        let gathered = match (columns, chunks.as_slice()) {
            (_, [one]) => {
                let rows = UInt32Array::from_iter_values(places.iter().map(|(_, row)| *row as u32));
                self.each(columns, |column| take(one.column(column), &rows, None))
            }
            _ => self.each(columns, |column| {
                let arrays: Vec<&dyn Array> =
                    chunks.iter().map(|chunk| chunk.column(column).as_ref()).collect();
                interleave(&arrays, &places)
            }),
        }?;
        let options = RecordBatchOptions::new().with_row_count(Some(slots.len()));
        Ok(RecordBatch::try_new_with_options(schema, gathered, &options)?)
    }

    fn each<E>(
        &self,
        columns: Option<&[usize]>,
        array: impl FnMut(usize) -> std::result::Result<ArrayRef, E>,
    ) -> std::result::Result<Vec<ArrayRef>, E> {
        match columns {
            Some(columns) => columns.iter().copied().map(array).collect(),
            None => (0..self.schema.fields().len()).map(array).collect(),
        }
    }

    /// Sorts slots by the order in which their rows came.
    pub fn sort(&self, slots: &mut [u32]) {
        slots.sort_by_cached_key(|slot| {
            let place = self.places[*slot as usize];
            (self.chunks[(place >> ROW_BITS) as usize].came, place & ROW_MASK)
        });
    }

    /// Slots of the rows that end until `until`, and that were not asked for before.
    pub fn ended(&mut self, until: i64) -> Result<Vec<u32>> {
        let (mut slots, Some(time)) = (Vec::new(), self.time) else { return Ok(Vec::new()) };
        for number in &self.order {
            let Chunk { part, slots: of, first_end, ends, .. } = &mut self.chunks[*number];
            if *first_end > until {
                continue;
            }
            let ends = match ends {
                Some(ends) => ends,
                None => ends.insert(time.sorted(&part.rows, |row| !part.is_dead(row))?),
            };
            while let Some((end, row)) = ends.last()
                && *end <= until
            {
                if !part.is_dead(*row) {
                    slots.push(of[*row as usize]);
                }
                ends.pop();
            }
            *first_end = ends.last().map_or(i64::MAX, |(end, _)| *end);
        }
        Ok(slots)
    }

    /// The rows as they are now, chunk by chunk.
    pub fn parts(&self) -> Vec<Part> {
        self.order.iter().map(|number| self.chunks[*number].part.clone()).collect()
    }

    /// Slots of all rows, in the order in which they came.
    pub fn slots(&self) -> Vec<u32> {
        self.order.iter().flat_map(|number| self.chunks[*number].living_slots()).collect()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let chunk = |chunk: &Chunk| {
            let ends = chunk.ends.as_ref().map_or(0, |ends| ends.capacity() * size_of::<(i64, u32)>());
            chunk.bytes + chunk.part.dead.len() * 8 + ends
        };
        let slots = (self.places.capacity() + self.free.capacity()) * size_of::<u32>();
        self.chunks.iter().map(chunk).sum::<usize>() + slots
    }
}

/// Views are copied out of buffers that are larger than what they show.
fn without_garbage(rows: RecordBatch) -> Result<RecordBatch> {
    let is_view = |field: &arrow::datatypes::FieldRef| {
        matches!(field.data_type(), DataType::Utf8View | DataType::BinaryView)
    };
    if !rows.schema_ref().fields().iter().any(is_view) {
        return Ok(rows);
    }
    let columns = rows.columns().iter().map(|column| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => Arc::clone(column),
        }
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options)?)
}
