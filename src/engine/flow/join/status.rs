//! Whether rows match: before a delta and after it.

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, UInt32Array};
use arrow::compute::filter;
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use hashbrown::HashMap;

use super::super::Delta;
use super::super::arrangement::NIL;
use super::super::equality::Keys;
use super::pairs::{Origin, Pairs};
use super::{Change, Join, Next, Prepared, Role};
use crate::batches;

/// Of the rows of one side, whether they match.
struct Status {
    /// Of each changed row, before and after. Only one of them counts: rows that go, or rows that come.
    change: Vec<bool>,
    /// How many rows each changed row matches after, where that is counted.
    matches: Vec<u32>,
    /// Slots of rows that stay and match now, and did not before; …
    now: Vec<u32>,
    /// … and of those that did and do not.
    no_more: Vec<u32>,
    /// Slots whose number of matches is another now.
    counts: Vec<(u32, u32)>,
}

impl Join {
    /// What the changes put out, and how the sides change.
    pub(super) fn prepare_changes(&self, changes: &[Change; 2]) -> Result<Prepared> {
        let counted = self.sides.iter().any(|held| held.matches.is_some());
        let pairs = if self.pairs || counted { self.pairs(changes)? } else { Vec::new() };
        let mut output = Vec::new();
        let mut next = |side: usize| -> Result<Next> {
            let (held, change) = (&self.sides[side], &changes[side]);
            if held.role == Role::Nothing {
                return self.next(changes, side, None);
            }
            let status = match &held.matches {
                Some(_) => self.status_by_count(changes, side, &pairs)?,
                None => self.status_by_key(changes, side)?,
            };
            self.show_status(change, side, &status, &mut output)?;
            self.next(changes, side, Some(status))
        };
        let sides = [next(0)?, next(1)?];
        if self.pairs {
            let shown = pairs.into_iter().filter(|pairs| !pairs.at[0].is_empty());
            for pairs in shown {
                output.push(self.show_pairs(changes, pairs)?);
            }
        }
        Ok(Prepared { output, sides })
    }

    /// A row matches if the other side has its key.
    fn status_by_key(&self, changes: &[Change; 2], side: usize) -> Result<Status> {
        let (change, other) = (&changes[side], &changes[1 - side]);
        let (before, after) = self.key_is_there(&change.keys, other, 1 - side)?;
        let weights = change.weights.values().iter();
        let own = weights.zip(before.into_iter().zip(after));
        let own = own.map(|(weight, (before, after))| if *weight < 0 { before } else { after });
        let mut status = Status {
            change: own.collect(),
            matches: Vec::new(),
            now: Vec::new(),
            no_more: Vec::new(),
            counts: Vec::new(),
        };
        if other.is_empty() || self.sides[side].rows.is_empty() {
            return Ok(status);
        }
        // One changed row of each key of the other side.
        let first = other.index()?.first(&other.keys, |_| true)?;
        let first: Vec<u32> =
            (0..).zip(first).filter(|(row, first)| row == first).map(|(row, _)| row).collect();
        let keys = other.keys.select(&first.into())?;
        let (before, after) = self.key_is_there(&keys, other, 1 - side)?;
        for (turned, slots) in [(true, &mut status.now), (false, &mut status.no_more)] {
            let turns = (0..before.len()).filter(|key| before[*key] != after[*key] && after[*key] == turned);
            let turns: Vec<u32> = turns.map(|key| key as u32).collect();
            let matches = self.sides[side].rows.probe(&keys.select(&turns.into())?)?;
            slots.extend(matches.slot.values().iter().filter(|slot| !change.gone_set.contains(*slot)));
        }
        Ok(status)
    }

    /// Of each key whether a side has it, before its change and after.
    fn key_is_there(&self, keys: &Keys, change: &Change, side: usize) -> Result<(Vec<bool>, Vec<bool>)> {
        let rows = &self.sides[side].rows;
        let found = |slots: Vec<u32>| slots.into_iter().map(|slot| slot != NIL).collect::<Vec<_>>();
        let before = found(rows.first(keys, |_| true)?);
        let mut after = before.clone();
        if !change.gone.is_empty() {
            after = found(rows.first(keys, |slot| !change.gone_set.contains(&slot))?);
        }
        if !change.is_empty() {
            let comes = |row: u32| change.weights.value(row as usize) > 0;
            for (after, comes) in after.iter_mut().zip(found(change.index()?.first(keys, comes)?)) {
                *after |= comes;
            }
        }
        Ok((before, after))
    }

    /// A row matches if it is in a pair.
    fn status_by_count(&self, changes: &[Change; 2], side: usize, pairs: &[Pairs]) -> Result<Status> {
        let change = &changes[side];
        let known = self.sides[side].matches.as_deref().unwrap_or(&[]);
        let mut own = vec![0i64; change.weights.len()];
        let mut held: HashMap<u32, i64> = HashMap::new();
        for pairs in pairs {
            let other = 1 - side;
            for (at, met) in pairs.at[side].iter().zip(&pairs.at[other]) {
                let weight = match pairs.from[other] {
                    Origin::Change => changes[other].weights.value(*met as usize),
                    Origin::Held => 1,
                };
                match pairs.from[side] {
                    Origin::Change => own[*at as usize] += weight,
                    Origin::Held => *held.entry(*at).or_insert(0) += weight,
                }
            }
        }
        let count = |count: i64| {
            u32::try_from(count).map_err(|_| internal_datafusion_err!("a row matches {count} rows"))
        };
        let mut status = Status {
            change: own.iter().map(|count| *count > 0).collect(),
            matches: vec![0; own.len()],
            now: Vec::new(),
            no_more: Vec::new(),
            counts: Vec::new(),
        };
        for (row, own) in own.into_iter().enumerate().filter(|(row, _)| change.weights.value(*row) > 0) {
            status.matches[row] = count(own)?;
        }
        for (slot, row) in change.gone.iter().zip(&change.gone_row) {
            status.change[*row as usize] = known[*slot as usize] > 0;
        }
        for (slot, weight) in held {
            if weight == 0 || change.gone_set.contains(&slot) {
                continue;
            }
            let before = known[slot as usize];
            let after = count(i64::from(before) + weight)?;
            status.counts.push((slot, after));
            match (before > 0, after > 0) {
                (false, true) => status.now.push(slot),
                (true, false) => status.no_more.push(slot),
                _ => {}
            }
        }
        Ok(status)
    }

    /// What a side puts out beside the pairs.
    fn show_status(
        &self,
        change: &Change,
        side: usize,
        status: &Status,
        output: &mut Vec<Delta>,
    ) -> Result<()> {
        let needed = &self.layout.needed[side];
        let rows = change.rows.project(needed)?;
        let matched = BooleanArray::from(status.change.clone());
        self.show(side, rows.columns(), &matched, &change.weights, output)?;
        let unmatched = &change.unmatched;
        if !unmatched.is_empty() {
            let rows = unmatched.rows.project(needed)?;
            let matched = BooleanArray::from(vec![false; unmatched.weights.len()]);
            self.show(side, rows.columns(), &matched, &unmatched.weights, output)?;
        }
        for (turned, slots) in [(true, &status.now), (false, &status.no_more)] {
            if slots.is_empty() {
                continue;
            }
            let rows = self.sides[side].rows.gather(slots, Some(needed))?;
            for (matched, weight) in [(!turned, -1), (turned, 1)] {
                let matched = BooleanArray::from(vec![matched; slots.len()]);
                let weights = Int64Array::from_value(weight, slots.len());
                self.show(side, rows.columns(), &matched, &weights, output)?;
            }
        }
        Ok(())
    }

    fn show(
        &self,
        side: usize,
        columns: &[ArrayRef],
        matched: &BooleanArray,
        weights: &Int64Array,
        output: &mut Vec<Delta>,
    ) -> Result<()> {
        let role = self.sides[side].role;
        let shown = matched.values().iter().map(|matched| role.shows(matched)).collect::<BooleanArray>();
        if shown.true_count() == 0 {
            return Ok(());
        }
        let mut sides = [None, None];
        let kept: Vec<ArrayRef>;
        let (columns, matched, weights) = if shown.true_count() == shown.len() {
            (columns, matched.clone(), weights.clone())
        } else {
            kept = columns.iter().map(|column| Ok(filter(column, &shown)?)).collect::<Result<_>>()?;
            let matched = filter(matched, &shown)?.to_data().into();
            (kept.as_slice(), matched, filter(weights, &shown)?.to_data().into())
        };
        sides[side] = Some(columns);
        output.push(self.layout.rows(sides, Some(&matched), weights)?);
        Ok(())
    }

    /// How a side changes.
    fn next(&self, changes: &[Change; 2], side: usize, status: Option<Status>) -> Result<Next> {
        let (held, change) = (&self.sides[side], &changes[side]);
        let mut coming = change.coming()?;
        if held.one_by_key && !change.is_empty() {
            let first = change.index()?.first(&change.keys, |_| true)?;
            let there = held.rows.first(&change.keys, |_| true)?;
            coming.retain(|row| first[*row as usize] == *row && there[*row as usize] == NIL);
            coming.dedup();
        }
        let mut next = Next {
            gone: change.gone.clone(),
            rows: change.rows.clone(),
            matches: Vec::new(),
            changed: Vec::new(),
        };
        if let Some(status) = status {
            if held.forgets_matched {
                coming.retain(|row| !status.change[*row as usize]);
                next.gone.extend_from_slice(&status.now);
            }
            if held.matches.is_some() {
                next.matches = coming.iter().map(|row| status.matches[*row as usize]).collect();
                next.changed = status.counts;
            }
        }
        if !coming.iter().copied().eq(0..change.weights.len() as u32) {
            next.rows = batches::take(&change.rows, &UInt32Array::from(coming))?;
        }
        Ok(next)
    }
}
