//! The pairs of rows that a delta makes or takes away: those of each side's changed rows with the rows that the other
//! side held, and those of rows that changed at the same time.

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::filter;
use datafusion::error::Result;

use super::super::Delta;
use super::super::arrangement::Matches;
use super::{Change, Join};
use crate::batches;

/// Where a row of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It changes: its position.
    Change,
    /// It was there: its slot.
    Held,
}

/// Pairs of a left and a right row.
#[derive(Debug)]
pub struct Pairs {
    /// Of each side.
    pub from: [Origin; 2],
    /// Positions or slots.
    pub at: [Vec<u32>; 2],
}

impl Join {
    /// All pairs that come or go.
    pub fn pairs(&self, changes: &[Change; 2]) -> Result<Vec<Pairs>> {
        let mut all = Vec::with_capacity(3);
        for side in 0..2 {
            let (mut from, held) = ([Origin::Held; 2], &self.sides[1 - side].rows);
            from[side] = Origin::Change;
            if !changes[side].is_empty() && !held.is_empty() {
                all.push(self.matching(changes, from, |each| held.probe_each(&changes[side].keys, each))?);
            }
        }
        if changes.iter().all(|change| !change.is_empty()) {
            let [left, right] = changes;
            let index = right.index()?;
            let probe = |each: &mut dyn FnMut(Matches) -> Result<()>| index.probe_each(&left.keys, each);
            all.push(self.matching(changes, [Origin::Change; 2], probe)?);
        }
        Ok(all)
    }

    /// The pairs of equal keys that pass the filter. The side that was probed is the one that was there, or the right.
    fn matching(
        &self,
        changes: &[Change; 2],
        from: [Origin; 2],
        probe: impl FnOnce(&mut dyn FnMut(Matches) -> Result<()>) -> Result<()>,
    ) -> Result<Pairs> {
        let mut pairs = Pairs { from, at: [Vec::new(), Vec::new()] };
        probe(&mut |Matches { probe, slot }: Matches| {
            let mut at = if from[0] == Origin::Change { [probe, slot] } else { [slot, probe] };
            if let Some(residual) = &self.filter {
                let columns =
                    |side: usize| self.columns(changes, side, from[side], &at[side], &residual.needed[side]);
                let passes = residual.passes([columns(0)?, columns(1)?], at[0].len())?;
                for at in &mut at {
                    *at = filter(at, &passes)?.to_data().into();
                }
            }
            for (all, at) in pairs.at.iter_mut().zip(at) {
                all.extend_from_slice(at.values());
            }
            Ok(())
        })?;
        Ok(pairs)
    }

    /// Some columns of rows of one side.
    pub fn columns(
        &self,
        changes: &[Change; 2],
        side: usize,
        from: Origin,
        at: &UInt32Array,
        columns: &[usize],
    ) -> Result<Vec<ArrayRef>> {
        if columns.is_empty() {
            return Ok(Vec::new());
        }
        let rows: RecordBatch = match from {
            Origin::Change => batches::take(&changes[side].rows.project(columns)?, at)?,
            Origin::Held => self.sides[side].rows.gather(at.values(), Some(columns))?,
        };
        Ok(rows.columns().to_vec())
    }

    /// Pairs as they are put out.
    pub fn show_pairs(&self, changes: &[Change; 2], pairs: Pairs) -> Result<Delta> {
        let weights: Int64Array = pairs.weights(changes).collect::<Vec<_>>().into();
        let Pairs { from, at } = pairs;
        let at = at.map(UInt32Array::from);
        let columns =
            |side: usize| self.columns(changes, side, from[side], &at[side], &self.layout.needed[side]);
        self.layout.rows([Some(&columns(0)?), Some(&columns(1)?)], None, weights)
    }
}

impl Pairs {
    /// How often each pair comes or goes.
    pub fn weights(&self, changes: &[Change; 2]) -> impl Iterator<Item = i64> {
        let weight = |side: usize, at: u32| match self.from[side] {
            Origin::Change => changes[side].weights.value(at as usize),
            Origin::Held => 1,
        };
        self.at[0].iter().zip(&self.at[1]).map(move |(left, right)| weight(0, *left) * weight(1, *right))
    }
}
