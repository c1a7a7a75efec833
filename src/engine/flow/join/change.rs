//! What comes and goes on one side of a join.

use arrow::array::{Array, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, not};
use datafusion::common::{exec_datafusion_err, internal_datafusion_err};
use datafusion::error::Result;
use hashbrown::HashSet;

use super::super::Delta;
use super::super::arrangement::Arrangement;
use super::super::equality::Keys;
use crate::batches;

/// A side's delta.
#[derive(Debug)]
pub struct Change {
    /// The rows that may match.
    pub rows: RecordBatch,
    /// Of each, how often it comes or goes.
    pub weights: Int64Array,
    /// Their keys.
    pub keys: Keys,
    /// Slots of the rows that go, …
    pub gone: Vec<u32>,
    /// … of each its row here, …
    pub gone_row: Vec<u32>,
    /// … and the same slots as a set.
    pub gone_set: HashSet<u32>,
    /// The rows that match none, ever: NULL is in their key.
    pub unmatched: Delta,
    /// `rows` by key, if that is needed: slots are their positions.
    index: Option<Arrangement>,
}

impl Change {
    /// Of a delta in which each row is once, or that only adds.
    pub fn new(delta: Delta, held: &Arrangement, nulls_equal: bool) -> Result<Change> {
        let schema = delta.rows.schema();
        let mut keys = Keys::of(&delta.rows, held.key())?;
        let (mut delta, mut unmatched) = (delta, Delta::empty(&schema));
        if let Some(valid) = keys.without_null()
            && !nulls_equal
        {
            let valid = BooleanArray::from(valid.inner().clone());
            unmatched = select(&delta, &not(&valid)?)?;
            delta = select(&delta, &valid)?;
            keys = Keys::of(&delta.rows, held.key())?;
        }
        let Delta { rows, weights } = delta;
        let mut change = Change {
            index: None,
            gone: Vec::new(),
            gone_row: Vec::new(),
            gone_set: HashSet::new(),
            rows,
            weights,
            keys,
            unmatched,
        };
        change.find_gone(held)?;
        Ok(change)
    }

    fn find_gone(&mut self, held: &Arrangement) -> Result<()> {
        let going = (0..self.weights.len() as u32).filter(|row| self.weights.value(*row as usize) < 0);
        let going: UInt32Array = going.collect::<Vec<_>>().into();
        if going.is_empty() {
            return Ok(());
        }
        let counts: Vec<u32> = going
            .values()
            .iter()
            .map(|row| times(-self.weights.value(*row as usize)))
            .collect::<Result<_>>()?;
        self.gone = held.find(&batches::take(&self.rows, &going)?, &counts)?;
        for (row, count) in going.values().iter().zip(counts) {
            self.gone_row.extend(std::iter::repeat_n(*row, count as usize));
        }
        self.gone_set = self.gone.iter().copied().collect();
        Ok(())
    }

    /// Makes the index, as that of the rows that are held.
    pub fn make_index(&mut self, held: &Arrangement) -> Result<()> {
        let mut index = held.new_empty();
        index.insert(&self.rows)?;
        self.index = Some(index);
        Ok(())
    }

    /// The rows by key: slots are their positions.
    pub fn index(&self) -> Result<&Arrangement> {
        self.index.as_ref().ok_or_else(|| internal_datafusion_err!("a join's change has no index"))
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Positions of the rows that come, each as often as it does.
    pub fn coming(&self) -> Result<Vec<u32>> {
        let mut coming = Vec::with_capacity(self.weights.len());
        for (row, weight) in (0..).zip(self.weights.values()) {
            coming.extend(std::iter::repeat_n(row, times((*weight).max(0))? as usize));
        }
        Ok(coming)
    }
}

/// The rows for which `keep` is true.
pub fn select(delta: &Delta, keep: &BooleanArray) -> Result<Delta> {
    let weights = arrow::compute::filter(&delta.weights, keep)?;
    Ok(Delta { rows: filter_record_batch(&delta.rows, keep)?, weights: weights.to_data().into() })
}

fn times(weight: i64) -> Result<u32> {
    u32::try_from(weight).map_err(|_| exec_datafusion_err!("a row comes or goes {weight} times at once"))
}
