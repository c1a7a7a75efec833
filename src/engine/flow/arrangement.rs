//! Arrangements: rows that are found by their key, the one shape of state. A key's rows are found by its hash and
//! compared by value; a row that is taken back is found by its own hash, so it costs the same at a key of many rows.

mod chains;
mod chunks;
#[cfg(test)]
mod tests;
mod time;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter, take};
use arrow::datatypes::SchemaRef;
use datafusion::common::{exec_datafusion_err, internal_err};
use datafusion::error::{DataFusionError, Result};

use self::chains::Chains;
pub use self::chains::NIL;
use self::chunks::{Chunks, Part};
use self::time::Time;
use super::equality::{Keys, hash, same};
use crate::checkpoint::{Loader, Saver};
use crate::hash_bits;

/// So many pairs are compared at once.
const PAIRS: usize = 1 << 16;

/// Rows by key. A row has a slot while it is there; another row may get it later.
#[derive(Debug)]
pub struct Arrangement {
    key: Vec<usize>,
    nulls_equal: bool,
    rows: Chunks,
    by_key: Chains,
    /// To take rows back.
    by_row: Option<Chains>,
    mask: u32,
}

/// Pairs of rows with one key: position of one in what was looked for, and slot of the other.
#[derive(Clone, Debug)]
pub struct Matches {
    /// Positions.
    pub probe: UInt32Array,
    /// Slots.
    pub slot: UInt32Array,
}

/// The rows of an arrangement as they were at some time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    parts: Vec<Part>,
    len: usize,
}

impl Arrangement {
    /// An empty one of such rows by the columns `key`. `retracts` says whether rows will be found by their values
    /// or deleted, `nulls_equal` whether NULL matches NULL.
    pub fn new(schema: SchemaRef, key: Vec<usize>, retracts: bool, nulls_equal: bool) -> Arrangement {
        Arrangement {
            key,
            nulls_equal,
            rows: Chunks::new(schema),
            by_key: Chains::new(retracts),
            by_row: retracts.then(|| Chains::new(true)),
            mask: hash_bits::mask(),
        }
    }

    /// The same of rows that are needed until event time is `after_ns` after their time in a column.
    ///
    /// # Errors
    /// The column is no time.
    pub fn with_time(mut self, column: usize, after_ns: i64) -> Result<Arrangement> {
        let time = Time::new(self.rows.schema(), column, after_ns)?;
        self.rows.set_time(time);
        Ok(self.with_deletions())
    }

    /// The same of rows that are deleted, but not found by their values.
    pub fn with_deletions(mut self) -> Arrangement {
        self.by_key = Chains::new(true);
        self
    }

    /// One without rows by the same key, for rows that come for good.
    pub fn new_empty(&self) -> Arrangement {
        let (schema, key) = (SchemaRef::clone(self.schema()), self.key.clone());
        Arrangement { mask: self.mask, ..Arrangement::new(schema, key, false, self.nulls_equal) }
    }

    /// The columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        self.rows.schema()
    }

    /// The columns that rows are found by.
    pub fn key(&self) -> &[usize] {
        &self.key
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
    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.by_key.bytes() + self.by_row.as_ref().map_or(0, Chains::bytes)
    }

    /// The rows with these keys, those that came last first.
    pub fn probe(&self, keys: &Keys) -> Result<Matches> {
        let (mut probe, mut slot) = (Vec::new(), Vec::new());
        self.probe_each(keys, |matches| {
            probe.extend_from_slice(matches.probe.values());
            slot.extend_from_slice(matches.slot.values());
            Ok(())
        })?;
        Ok(Matches { probe: probe.into(), slot: slot.into() })
    }

    /// The same, not all at once: there may be many.
    pub fn probe_each(&self, keys: &Keys, mut each: impl FnMut(Matches) -> Result<()>) -> Result<()> {
        let (mut probe, mut slots) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        for (row, hash) in self.candidates(keys) {
            for slot in self.by_key.of(hash) {
                probe.push(row);
                slots.push(slot);
                if probe.len() == PAIRS {
                    each(self.verified(keys, std::mem::take(&mut probe), std::mem::take(&mut slots))?)?;
                }
            }
        }
        if probe.is_empty() { Ok(()) } else { each(self.verified(keys, probe, slots)?) }
    }

    /// Rows that may match, with their hash.
    fn candidates(&self, keys: &Keys) -> impl Iterator<Item = (u32, u32)> {
        let without_null = keys.without_null().filter(|_| !self.nulls_equal);
        let hashes = (0..).zip(keys.hashes()).map(|(row, hash)| (row, hash & self.mask));
        hashes.filter(move |(row, _)| without_null.is_none_or(|valid| valid.is_valid(*row as usize)))
    }

    fn verified(&self, keys: &Keys, probe: Vec<u32>, slots: Vec<u32>) -> Result<Matches> {
        let equal = self.equal(keys, &probe, &slots)?;
        let (probe, slot) = (UInt32Array::from(probe), UInt32Array::from(slots));
        if equal.true_count() == equal.len() {
            return Ok(Matches { probe, slot });
        }
        let kept = |all: &UInt32Array| Ok::<_, DataFusionError>(filter(all, &equal)?.to_data().into());
        Ok(Matches { probe: kept(&probe)?, slot: kept(&slot)? })
    }

    /// Whether the keys at `probe` are those of the rows at `slots`.
    fn equal(&self, keys: &Keys, probe: &[u32], slots: &[u32]) -> Result<BooleanArray> {
        if self.key.is_empty() {
            return Ok(BooleanBuffer::new_set(slots.len()).into());
        }
        let held = Keys::normalized(&self.rows.gather(slots, Some(&self.key))?);
        let probe = UInt32Array::from_iter_values(probe.iter().copied());
        let sought = keys.columns().iter().map(|column| Ok(take(column, &probe, None)?));
        Ok(same(&sought.collect::<Result<Vec<_>>>()?, &held, slots.len())?.into())
    }

    /// Of each key, the slot of one row with it, or `NIL`. Rows at slots that `counts` leaves out are not there.
    pub fn first(&self, keys: &Keys, counts: impl Fn(u32) -> bool) -> Result<Vec<u32>> {
        let mut found = vec![NIL; keys.len()];
        let next = |mut slot: u32| {
            while slot != NIL && !counts(slot) {
                slot = self.by_key.older(slot);
            }
            slot
        };
        let newest = self.candidates(keys).map(|(row, hash)| (row, next(self.by_key.newest(hash))));
        let (mut rows, mut slots): (Vec<u32>, Vec<u32>) = newest.filter(|(_, slot)| *slot != NIL).unzip();
        // Rarely more than once: only where hashes collide.
        while !rows.is_empty() {
            let equal = self.equal(keys, &rows, &slots)?;
            let (mut more, mut others) = (Vec::new(), Vec::new());
            for (i, (row, slot)) in rows.iter().zip(&slots).enumerate() {
                if equal.value(i) {
                    found[*row as usize] = *slot;
                    continue;
                }
                let other = next(self.by_key.older(*slot));
                if other != NIL {
                    more.push(*row);
                    others.push(other);
                }
            }
            (rows, slots) = (more, others);
        }
        Ok(found)
    }

    /// Slots of all rows whose key has the hash of one of these, in the order in which they came: the rows of
    /// these keys, and sometimes of others, but then all of them. NULL is as any value.
    pub fn touched(&self, keys: &Keys) -> Vec<u32> {
        let mut hashes: Vec<u32> = keys.hashes().iter().map(|hash| hash & self.mask).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let mut slots: Vec<u32> = hashes.into_iter().flat_map(|hash| self.by_key.of(hash)).collect();
        self.rows.sort(&mut slots);
        slots
    }

    /// Slots of all rows, in the order in which they came.
    pub fn slots(&self) -> Vec<u32> {
        self.rows.slots()
    }

    /// The rows at these slots, with all columns or those.
    pub fn gather(&self, slots: &[u32], columns: Option<&[usize]>) -> Result<RecordBatch> {
        self.rows.gather(slots, columns)
    }

    /// Slots of rows to take back: of each row in turn as many as `counts` says. No two of `rows` are the same.
    ///
    /// # Errors
    /// So many are not there.
    pub fn find(&self, rows: &RecordBatch, counts: &[u32]) -> Result<Vec<u32>> {
        let Some(by_row) = &self.by_row else {
            return internal_err!("rows that came for good are taken back");
        };
        let hashes = hash(rows.columns(), rows.num_rows())?;
        let hashes = hashes.into_iter().map(|hash| hash & self.mask);
        let (mut sought, mut slots) = (Vec::with_capacity(counts.len()), Vec::with_capacity(counts.len()));
        for (row, (hash, count)) in hashes.clone().zip(counts).enumerate() {
            let before = slots.len();
            slots.extend(by_row.of(hash).take(*count as usize));
            if slots.len() - before < *count as usize {
                return Err(not_there());
            }
            sought.resize(slots.len(), row as u32);
        }
        let equal = self.equal_rows(rows, &sought, &slots)?;
        if equal.true_count() == equal.len() {
            return Ok(slots);
        }
        // Where hashes collide all rows of the hash are compared.
        let (mut all, mut at) = (Vec::with_capacity(slots.len()), 0);
        for (row, (hash, count)) in hashes.zip(counts).enumerate() {
            let count = *count as usize;
            let guessed = at..at + count;
            at += count;
            if guessed.clone().all(|i| equal.value(i)) {
                all.extend_from_slice(&slots[guessed]);
                continue;
            }
            let chain: Vec<u32> = by_row.of(hash).collect();
            let equal = self.equal_rows(rows, &vec![row as u32; chain.len()], &chain)?;
            let before = all.len();
            all.extend((0..chain.len()).filter(|i| equal.value(*i)).map(|i| chain[i]).take(count));
            if all.len() - before < count {
                return Err(not_there());
            }
        }
        Ok(all)
    }

    fn equal_rows(&self, rows: &RecordBatch, sought: &[u32], slots: &[u32]) -> Result<BooleanArray> {
        let sought = UInt32Array::from_iter_values(sought.iter().copied());
        let sought: Vec<ArrayRef> =
            rows.columns().iter().map(|column| Ok(take(column, &sought, None)?)).collect::<Result<_>>()?;
        Ok(same(&sought, self.rows.gather(slots, None)?.columns(), slots.len())?.into())
    }

    /// Adds rows. Their slots, in their order.
    pub fn insert(&mut self, rows: &RecordBatch) -> Result<Vec<u32>> {
        let keys = Keys::of(rows, &self.key)?;
        let hashes = match &self.by_row {
            Some(_) => hash(rows.columns(), rows.num_rows())?,
            None => Vec::new(),
        };
        let slots = self.rows.insert(rows)?;
        for (slot, hash) in slots.iter().zip(keys.hashes()) {
            self.by_key.push(*slot, hash & self.mask);
        }
        if let Some(by_row) = &mut self.by_row {
            for (slot, hash) in slots.iter().zip(hashes) {
                by_row.push(*slot, hash & self.mask);
            }
        }
        Ok(slots)
    }

    /// Removes the rows at these slots, each of which is there.
    pub fn delete(&mut self, slots: &[u32]) -> Result<()> {
        self.rows.delete(slots)?;
        for slot in slots {
            self.by_key.remove(*slot);
        }
        if let Some(by_row) = &mut self.by_row {
            for slot in slots {
                by_row.remove(*slot);
            }
        }
        Ok(())
    }

    /// Removes the rows that are not needed once event time is `until`, in nanoseconds since 1970. A row whose time
    /// is NULL is needed for ever. Their number.
    pub fn evict(&mut self, until: i64) -> Result<usize> {
        let ended = self.rows.ended(until)?;
        self.delete(&ended)?;
        Ok(ended.len())
    }

    /// Gives the rows to a checkpoint: chunks that were there at the one before are the same arrays.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Arrangement { key: _, nulls_equal: _, rows, by_key: _, by_row: _, mask: _ } = self;
        saver.mark("an arrangement")?;
        let parts = rows.parts();
        saver.value(&parts.len())?;
        parts.iter().try_for_each(|part| part.save(saver))
    }

    /// Takes the rows of a checkpoint into this, which has none. Their slots, in the order of [`Arrangement::slots`] when
    /// they were saved.
    pub fn load(&mut self, loader: &mut Loader) -> Result<Vec<u32>> {
        loader.mark("an arrangement")?;
        let parts: usize = loader.value()?;
        let mut slots = Vec::new();
        for _ in 0..parts {
            let part = Part::load(loader, self.rows.schema())?;
            slots.extend(self.insert(&part.living()?)?);
        }
        Ok(slots)
    }

    /// The rows as they are now, for readers: the arrangement goes on.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { parts: self.rows.parts(), len: self.len() }
    }
}

impl Snapshot {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The rows, in the order in which they came.
    pub fn batches(&self) -> impl Iterator<Item = Result<RecordBatch>> {
        self.parts.iter().map(Part::living)
    }
}

/// What there is to say of a row that is taken back and was never there.
pub fn not_there() -> DataFusionError {
    exec_datafusion_err!("a row is taken back that is not there")
}
