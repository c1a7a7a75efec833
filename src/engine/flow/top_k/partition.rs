//! One partition: which of its rows come first, before a change and after it, and what differs.

use std::borrow::Cow;
use std::cmp::Ordering;

use datafusion::common::exec_err;
use datafusion::error::Result;

use super::super::sorted_rows::SortedRows;
use super::{Limit, Numbering};

/// How often a row came, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Its encoding.
    pub row: &'a [u8],
    /// Not 0.
    pub weight: i64,
}

/// A row that came out or goes, with its numbers (0: not asked for).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Output<'a> {
    /// Its encoding.
    pub row: &'a [u8],
    /// By [`Numbering`].
    pub numbers: [u64; 3],
    /// Not 0.
    pub weight: i64,
}

/// A partition's rows with some changes made.
#[derive(Clone, Copy)]
struct Changed<'a> {
    rows: &'a SortedRows,
    prefix: &'a [u8],
    changes: &'a [Change<'a>],
}

/// Where the rows up to a number end: before `below` (`None`: nowhere), but for some copies of one row there.
#[derive(Debug, PartialEq, Eq)]
struct Boundary<'a> {
    below: Option<Cow<'a, [u8]>>,
    also: Option<(&'a [u8], u64)>,
}

/// What a change of a partition does.
#[derive(Debug, Default)]
pub struct Effect<'a> {
    /// What differs among the first rows.
    pub output: Vec<Output<'a>>,
    /// What is kept otherwise.
    pub state: Vec<Change<'a>>,
}

/// Adds to `effect` what changes of the partition with that prefix do; they are sorted, and not empty.
///
/// # Errors
/// If a row is taken back that is not there.
pub fn change<'a>(
    rows: &'a SortedRows,
    prefix: &'a [u8],
    changes: &'a [Change<'a>],
    limit: &Limit,
    effect: &mut Effect<'a>,
) -> Result<()> {
    for change in changes.iter().filter(|change| change.weight < 0) {
        if rows.count(change.row) < change.weight.unsigned_abs() {
            return exec_err!("a row is taken back that is not there");
        }
    }
    let before = Changed { rows, prefix, changes: &[] };
    let after = Changed { rows, prefix, changes };
    let end = before.boundary(limit, limit.end());
    if end.is_before(&changes[0]) {
        // None of the first rows, nor their numbers, are changed.
        if !limit.append_only {
            effect.state.extend(changes);
        }
        return Ok(());
    }
    let new_end = after.boundary(limit, limit.end());
    let first = effect.output.len();
    if limit.has_numbers() {
        before.numbered(limit, -1, &mut effect.output);
        after.numbered(limit, 1, &mut effect.output);
    } else {
        difference(&before, &end, &after, &new_end, 1, &mut effect.output);
        if limit.skip > 0 {
            let (start, new_start) =
                (before.boundary(limit, Some(limit.skip)), after.boundary(limit, Some(limit.skip)));
            difference(&before, &start, &after, &new_start, -1, &mut effect.output);
        }
    }
    net(&mut effect.output, first);
    if limit.append_only {
        effect.state.extend(changes.iter().filter(|change| new_end.is_over(change.row)));
        before.drop_beyond(&new_end, &mut effect.state);
    } else {
        effect.state.extend(changes);
    }
    Ok(())
}

/// Where the first rows of the partition with that prefix end: a row beyond it is none of them. None: nowhere.
pub fn end(rows: &SortedRows, prefix: &[u8], limit: &Limit) -> Option<Vec<u8>> {
    let partition = Changed { rows, prefix, changes: &[] };
    partition.boundary(limit, limit.end()).below.map(Cow::into_owned)
}

/// What the rows up to a boundary are other than they were.
fn difference<'a>(
    before: &Changed<'a>,
    was: &Boundary<'a>,
    after: &Changed<'a>,
    is: &Boundary<'a>,
    sign: i64,
    output: &mut Vec<Output<'a>>,
) {
    let mut put = |row, weight| output.push(Output { row, numbers: [0; 3], weight: sign * weight });
    let common = if was.cmp(is) == Ordering::Less { was } else { is };
    for change in after.changes.iter().take_while(|change| common.is_over(change.row)) {
        put(change.row, change.weight);
    }
    let between =
        |partition: &Changed<'a>, from: &Boundary<'a>, to: &Boundary<'a>, put: &mut dyn FnMut(_, _)| {
            let Some(from) = &from.below else { return };
            for (row, count) in partition.from(from).take_while(|(row, _)| to.is_over(row)) {
                put(row, count.cast_signed());
            }
        };
    match was.cmp(is) {
        Ordering::Less => between(after, was, is, &mut put),
        Ordering::Greater => between(before, is, was, &mut |row, count: i64| put(row, -count)),
        Ordering::Equal => {}
    }
    if let Some((row, count)) = was.also {
        put(row, -count.cast_signed());
    }
    if let Some((row, count)) = is.also {
        put(row, count.cast_signed());
    }
}

/// Adds up what came and went of each row, from the place `first` on.
fn net(output: &mut Vec<Output>, first: usize) {
    output[first..].sort_unstable();
    let mut kept = first;
    for place in first..output.len() {
        let next = output[place];
        let same = |other: &Output| other.row == next.row && other.numbers == next.numbers;
        if kept > first && same(&output[kept - 1]) {
            output[kept - 1].weight += next.weight;
        } else {
            // The one before is complete.
            kept -= usize::from(kept > first && output[kept - 1].weight == 0);
            output[kept] = next;
            kept += 1;
        }
    }
    kept -= usize::from(kept > first && output[kept - 1].weight == 0);
    output.truncate(kept);
}

impl<'a> Boundary<'a> {
    const NOWHERE: Boundary<'static> = Boundary { below: None, also: None };

    fn at(below: impl Into<Cow<'a, [u8]>>) -> Boundary<'a> {
        Boundary { below: Some(below.into()), also: None }
    }

    /// Whether all copies of a row are before it.
    fn is_over(&self, row: &[u8]) -> bool {
        self.below.as_deref().is_none_or(|below| row < below)
    }

    /// Whether that change and all after it leave the rows up to here alone.
    fn is_before(&self, change: &Change) -> bool {
        !self.is_over(change.row) && self.also.is_none_or(|(row, _)| row < change.row)
    }

    fn cmp(&self, other: &Boundary) -> Ordering {
        match (&self.below, &other.below) {
            (Some(a), Some(b)) => a.cmp(b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
}

impl<'a> Changed<'a> {
    /// Where the rows up to that number end.
    fn boundary(&self, limit: &Limit, number: Option<u64>) -> Boundary<'a> {
        let Some(number) = number else { return Boundary::NOWHERE };
        if number == 0 {
            return Boundary::at(self.prefix);
        }
        match limit.by {
            Numbering::RowNumber => match self.at(number) {
                Some((row, position)) => {
                    let also = number - position;
                    Boundary { also: (also > 0).then_some((row, also)), ..Boundary::at(row) }
                }
                None => Boundary::NOWHERE,
            },
            Numbering::Rank => match self.at(number - 1) {
                Some((row, _)) => after_all(limit.ties(row)).map_or(Boundary::NOWHERE, Boundary::at),
                None => Boundary::NOWHERE,
            },
            Numbering::DenseRank => {
                let mut below = Cow::Borrowed(self.prefix);
                for _ in 0..number {
                    let next = self.from(&below).next();
                    let Some(after) = next.and_then(|(row, _)| after_all(limit.ties(row))) else {
                        return Boundary::NOWHERE;
                    };
                    below = Cow::Owned(after);
                }
                Boundary::at(below)
            }
        }
    }

    /// The row at a position, and the position of the first that is equal to it.
    fn at(&self, position: u64) -> Option<(&'a [u8], u64)> {
        let found = self.rows.at(self.prefix, position);
        if self.changes.is_empty() {
            return found.ok();
        }
        // The rows up to there have become so many:
        let (row, passed) = found.map_or_else(|passed| (None, passed), |(row, start)| (Some(row), start));
        let upto = row.map_or(self.changes.len(), |row| self.changes.partition_point(|c| c.row < row));
        let weights = self.changes[..upto].iter().map(|change| change.weight);
        let mut passed = passed.strict_add_signed(weights.sum());
        if passed > position {
            for (row, count) in self.before(row) {
                passed -= count;
                if passed <= position {
                    return Some((row, passed));
                }
            }
            return None;
        }
        for (row, count) in self.from(row?) {
            if passed + count > position {
                return Some((row, passed));
            }
            passed += count;
        }
        None
    }

    /// Rows from `key` on, in order.
    fn from(&self, key: &[u8]) -> impl Iterator<Item = (&'a [u8], u64)> + use<'a> {
        let prefix = self.prefix;
        let rows = self.rows.from(key).take_while(move |(row, _)| row.starts_with(prefix));
        let first = self.changes.partition_point(|change| change.row < key);
        merge(rows, self.changes[first..].iter(), Ordering::Less)
    }

    /// Rows before `key`, or all, from the last one back.
    fn before(&self, key: Option<&[u8]>) -> impl Iterator<Item = (&'a [u8], u64)> + use<'a> {
        let (prefix, end) = (self.prefix, key.is_none().then(|| after_all(self.prefix)).flatten());
        let rows =
            self.rows.before(key.or(end.as_deref())).take_while(move |(row, _)| row.starts_with(prefix));
        let upto = key.map_or(self.changes.len(), |key| self.changes.partition_point(|c| c.row < key));
        merge(rows, self.changes[..upto].iter().rev(), Ordering::Greater)
    }

    /// Adds the rows whose number is within the limit, with the numbers that are asked for.
    fn numbered(&self, limit: &Limit, sign: i64, output: &mut Vec<Output<'a>>) {
        let (mut position, mut rank, mut dense_rank) = (0, 0, 0);
        let mut ties: Option<&[u8]> = None;
        let (skip, end) = (limit.skip, limit.end().unwrap_or(u64::MAX));
        for (row, count) in self.from(self.prefix) {
            if ties != Some(limit.ties(row)) {
                (ties, rank, dense_rank) = (Some(limit.ties(row)), position + 1, dense_rank + 1);
            }
            let number = match limit.by {
                Numbering::RowNumber => position + 1,
                Numbering::Rank => rank,
                Numbering::DenseRank => dense_rank,
            };
            if number > end {
                return;
            }
            // The copies that are within the limit.
            let (first, last) = match limit.by {
                Numbering::RowNumber => (skip.max(position), end.min(position + count)),
                Numbering::Rank | Numbering::DenseRank if number > skip => (position, position + count),
                Numbering::Rank | Numbering::DenseRank => (position, position),
            };
            let asked = |number: u64, numbering| if limit.numbers(numbering) { number } else { 0 };
            let numbers = [0, asked(rank, Numbering::Rank), asked(dense_rank, Numbering::DenseRank)];
            if limit.numbers(Numbering::RowNumber) {
                output.extend((first..last).map(|place| {
                    let numbers = [place + 1, numbers[1], numbers[2]];
                    Output { row, numbers, weight: sign }
                }));
            } else if first < last {
                output.push(Output { row, numbers, weight: sign * (last - first).cast_signed() });
            }
            position += count;
        }
    }

    /// Takes out the rows after a boundary.
    fn drop_beyond(&self, end: &Boundary<'a>, state: &mut Vec<Change<'a>>) {
        let Some(below) = &end.below else { return };
        let keep = |row: &[u8]| end.also.filter(|(last, _)| *last == row).map_or(0, |(_, count)| count);
        let beyond = self.from(below).filter(|(row, count)| *count > keep(row));
        state.extend(beyond.map(|(row, count)| Change { row, weight: -(count - keep(row)).cast_signed() }));
        if let Some((row, count)) = end.also {
            let held = self.rows.count(row);
            let weight = count.cast_signed() - held.min(count).cast_signed();
            state.extend((weight > 0).then_some(Change { row, weight }));
        }
    }
}

/// The least that is greater than all that begins with `prefix`.
fn after_all(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

/// Rows with changes made to them, both in the same order.
fn merge<'a>(
    rows: impl Iterator<Item = (&'a [u8], u64)>,
    changes: impl Iterator<Item = &'a Change<'a>>,
    order: Ordering,
) -> impl Iterator<Item = (&'a [u8], u64)> {
    let (mut rows, mut changes) = (rows.peekable(), changes.peekable());
    std::iter::from_fn(move || {
        loop {
            let next = match (rows.peek(), changes.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((row, _)), Some(change)) if order == Ordering::Less => (*row).cmp(change.row),
                (Some((row, _)), Some(change)) => change.row.cmp(row),
            };
            let row = if next.is_le() { rows.next() } else { None };
            let change = if next.is_ge() { changes.next() } else { None };
            let held = row.map_or(0, |(_, count)| count);
            let count = held.strict_add_signed(change.map_or(0, |change| change.weight));
            let row = row.map(|(row, _)| row).or(change.map(|change| change.row))?;
            if count > 0 {
                return Some((row, count));
            }
        }
    })
}
