//! The values of each group with their weights, in order: MIN and MAX of what can be taken back, and which values
//! DISTINCT sees.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, LargeBinaryBuilder, UInt32Array};
use arrow::datatypes::{DataType, Int64Type, UInt32Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::exec_err;
use datafusion::error::Result;

use super::groups::one_zero;
use super::state::{Answers, Change, NOT_THERE, State};
use crate::checkpoint::{Loader, Saver, bytes, numbers};

/// An encoded value, in the order of the values: as a number, which is small, or as bytes.
pub trait Encoded: Ord + Clone + Default + Debug + Send + Sync + 'static {
    /// Of an encoded row with a value, which is not NULL.
    fn of(row: &[u8]) -> Self;
    /// Appends that row to `rows`; `width` is that of the value.
    fn append(&self, width: usize, rows: &mut Vec<u8>);
    /// Bytes held beside itself.
    fn heap_bytes(&self) -> usize {
        0
    }
}

macro_rules! encoded_as_number {
    ($number:ty) => {
        impl Encoded for $number {
            fn of(row: &[u8]) -> Self {
                let mut all = [0; size_of::<$number>()];
                all[..row.len() - 1].copy_from_slice(&row[1..]);
                <$number>::from_be_bytes(all)
            }
            fn append(&self, width: usize, rows: &mut Vec<u8>) {
                rows.push(1);
                rows.extend(&self.to_be_bytes()[..width]);
            }
        }
    };
}
encoded_as_number!(u64);
encoded_as_number!(u128);

impl Encoded for Box<[u8]> {
    fn of(row: &[u8]) -> Self {
        row.into()
    }
    fn append(&self, _: usize, rows: &mut Vec<u8>) {
        rows.extend(&**self);
    }
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

/// Bytes of a value of that type in an encoded row, after one that says whether there is a value; none: that differs.
fn width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(1),
        data_type => data_type.primitive_width(),
    }
}

/// The weights of (group, value).
#[derive(Debug)]
struct Multiset<V> {
    data_type: DataType,
    converter: RowConverter,
    weights: BTreeMap<(u32, V), i64>,
    heap_bytes: usize,
    /// What is prepared, by group and value.
    changes: Vec<ValueChange<V>>,
}

/// What becomes of a value of a group.
#[derive(Debug)]
struct ValueChange<V> {
    key: (u32, V),
    /// The first row that has it.
    row: u32,
    before: i64,
    after: i64,
}

impl<V: Encoded> Multiset<V> {
    fn new(data_type: &DataType) -> Result<Self> {
        Ok(Multiset {
            converter: RowConverter::new(vec![SortField::new(data_type.clone())])?,
            data_type: data_type.clone(),
            weights: BTreeMap::new(),
            heap_bytes: 0,
            changes: Vec::new(),
        })
    }

    fn prepare(&mut self, values: &ArrayRef, change: &Change<'_>) -> Result<()> {
        self.changes.clear();
        let encoded = self.converter.convert_columns(std::slice::from_ref(values))?;
        let nulls = values.logical_nulls();
        let counted = |row: &usize| {
            change.weights[*row] != 0 && nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row))
        };
        let mut rows: Vec<_> = (0..values.len())
            .filter(counted)
            .map(|row| ((change.group(row), V::of(encoded.row(row).data())), row as u32))
            .collect();
        rows.sort_unstable();
        for (key, row) in rows {
            let weight = change.weights[row as usize];
            match self.changes.last_mut().filter(|last| last.key == key) {
                Some(last) => last.after += weight,
                None => {
                    let before = self.weights.get(&key).copied().unwrap_or(0);
                    self.changes.push(ValueChange { key, row, before, after: before + weight });
                }
            }
        }
        if self.changes.iter().any(|change| change.after < 0) {
            return exec_err!("{NOT_THERE}");
        }
        Ok(())
    }

    fn commit(&mut self) {
        for ValueChange { key, before, after, .. } in self.changes.drain(..) {
            let bytes = key.1.heap_bytes();
            match (before, after) {
                (0, 0) => {}
                (_, 0) => {
                    self.weights.remove(&key);
                    self.heap_bytes -= bytes;
                }
                _ => {
                    self.heap_bytes += if before == 0 { bytes } else { 0 };
                    self.weights.insert(key, after);
                }
            }
        }
    }

    fn free(&mut self, group: u32) {
        while let Some(key) = self.weights.range(of_group(group)).next().map(|(key, _)| key.clone()) {
            self.heap_bytes -= key.1.heap_bytes();
            self.weights.remove(&key);
        }
    }

    /// The first value of a group after the prepared changes, or the last; `extreme` was it before.
    fn extreme_after<'a>(&'a self, group: u32, extreme: Option<&'a V>, is_max: bool) -> Option<&'a V> {
        let from = self.changes.partition_point(|change| change.key.0 < group);
        let changes = &self.changes[from..];
        let changes = &changes[..changes.partition_point(|change| change.key.0 == group)];
        let stays = |value: &&V| {
            let change = changes.binary_search_by(|change| change.key.1.cmp(value));
            change.map_or(true, |at| changes[at].after > 0)
        };
        // Only where it goes the others are looked at.
        let kept = extreme.filter(stays).or_else(|| {
            let mut others = self.weights.range(of_group(group)).map(|((_, value), _)| value);
            if is_max { others.rfind(stays) } else { others.find(stays) }
        });
        let comes = |change: &&ValueChange<V>| change.before == 0 && change.after > 0;
        let mut new = changes.iter();
        let new = if is_max { new.rfind(comes) } else { new.find(comes) };
        match (kept, new.map(|change| &change.key.1)) {
            (Some(kept), Some(new)) if is_max => Some(kept.max(new)),
            (Some(kept), Some(new)) => Some(kept.min(new)),
            (kept, new) => kept.or(new),
        }
    }

    fn decode<'a>(&self, values: impl Iterator<Item = Option<&'a V>>) -> Result<ArrayRef> {
        let width = width(&self.data_type).unwrap_or(0);
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                Some(value) => value.append(width, &mut bytes),
                None => bytes.resize(bytes.len() + 1 + width, 0),
            }
            ends.push(bytes.len());
        }
        let parser = self.converter.parser();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let rows = starts.zip(&ends).map(|(start, end)| parser.parse(&bytes[start..*end]));
        Ok(self.converter.convert_rows(rows)?.remove(0))
    }

    /// Gives the values to a checkpoint. Costs all of them.
    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Multiset { data_type: _, converter: _, weights, heap_bytes: _, changes: _ } = self;
        let groups = UInt32Array::from_iter_values(weights.keys().map(|(group, _)| *group));
        let values = self.to_column(weights.keys().map(|(_, value)| Some(value)));
        let weights = Int64Array::from_iter_values(weights.values().copied());
        saver.columns(vec![Arc::new(groups), values, Arc::new(weights)])
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let [groups, values, weights] = loader.columns()?;
        let (groups, weights) = (numbers::<UInt32Type>(&groups)?, numbers::<Int64Type>(&weights)?);
        let keys = groups.values().iter().copied().zip(of_column::<V>(&values)?.into_iter().flatten());
        self.weights = keys.zip(weights.values().iter().copied()).collect();
        self.heap_bytes = self.weights.keys().map(|(_, value)| value.heap_bytes()).sum();
        Ok(())
    }

    fn to_column<'a>(&self, values: impl Iterator<Item = Option<&'a V>>) -> ArrayRef {
        let width = width(&self.data_type).unwrap_or(0);
        let (mut column, mut row) = (LargeBinaryBuilder::new(), Vec::new());
        for value in values {
            row.clear();
            value.iter().for_each(|value| value.append(width, &mut row));
            column.append_option(value.map(|_| &row));
        }
        Arc::new(column.finish())
    }

    fn bytes(&self) -> usize {
        // Nodes of a tree are two thirds full.
        self.weights.len() * size_of::<((u32, V), i64)>() * 3 / 2 + self.heap_bytes
    }
}

fn of_column<V: Encoded>(column: &ArrayRef) -> Result<Vec<Option<V>>> {
    Ok(bytes(column)?.iter().map(|row| row.map(V::of)).collect())
}

fn of_group<V: Encoded>(group: u32) -> Range<(u32, V)> {
    (group, V::default())..(group + 1, V::default())
}

/// MIN or MAX.
#[derive(Debug)]
struct Extreme<V> {
    values: Multiset<V>,
    is_max: bool,
    /// By group: the answer.
    extremes: Vec<Option<V>>,
    prepared: Vec<Option<V>>,
}

impl<V: Encoded> Extreme<V> {
    fn new(data_type: &DataType, is_max: bool) -> Result<Self> {
        Ok(Extreme { values: Multiset::new(data_type)?, is_max, extremes: Vec::new(), prepared: Vec::new() })
    }
}

/// MIN or MAX of values of that type.
pub fn extreme(data_type: &DataType, is_max: bool) -> Result<Box<dyn State>> {
    Ok(match width(data_type) {
        Some(..=8) => Box::new(Extreme::<u64>::new(data_type, is_max)?),
        Some(9..=16) => Box::new(Extreme::<u128>::new(data_type, is_max)?),
        _ => Box::new(Extreme::<Box<[u8]>>::new(data_type, is_max)?),
    })
}

impl<V: Encoded> State for Extreme<V> {
    fn prepare(&mut self, change: &Change<'_>) -> Result<Answers> {
        self.values.prepare(&change.arguments[0], change)?;
        let extreme = |group: &u32| self.extremes.get(*group as usize).and_then(Option::as_ref);
        let before = change.groups.iter().map(extreme);
        let after = change.groups.iter();
        let after = after.map(|group| self.values.extreme_after(*group, extreme(group), self.is_max));
        self.prepared = after.map(Option::<&V>::cloned).collect();
        let after = self.prepared.iter().map(Option::as_ref);
        Ok(Answers { before: self.values.decode(before)?, after: self.values.decode(after)? })
    }

    fn commit(&mut self, groups: &[u32]) {
        self.values.commit();
        let highest = groups.iter().max().map_or(0, |group| *group as usize + 1);
        self.extremes.resize(self.extremes.len().max(highest), None);
        for (group, prepared) in groups.iter().zip(self.prepared.drain(..)) {
            self.extremes[*group as usize] = prepared;
        }
    }

    fn free(&mut self, group: u32) {
        self.values.free(group);
        if let Some(extreme) = self.extremes.get_mut(group as usize) {
            *extreme = None;
        }
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Extreme { values, is_max: _, extremes, prepared: _ } = self;
        values.save(saver)?;
        saver.columns(vec![values.to_column(extremes.iter().map(Option::as_ref))])
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.values.load(loader)?;
        let [extremes] = loader.columns()?;
        self.extremes = of_column(&extremes)?;
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.values.bytes() + self.extremes.capacity() * size_of::<Option<V>>()
    }
}

/// A function that sees each value of a group once.
#[derive(Debug)]
struct Distinct<V> {
    values: Multiset<V>,
    function: Box<dyn State>,
}

/// `function` over each value once, where values are of that type.
pub fn distinct(data_type: &DataType, function: Box<dyn State>) -> Result<Box<dyn State>> {
    Ok(match width(data_type) {
        Some(..=8) => Box::new(Distinct { values: Multiset::<u64>::new(data_type)?, function }),
        Some(9..=16) => Box::new(Distinct { values: Multiset::<u128>::new(data_type)?, function }),
        _ => Box::new(Distinct { values: Multiset::<Box<[u8]>>::new(data_type)?, function }),
    })
}

impl<V: Encoded> State for Distinct<V> {
    fn prepare(&mut self, change: &Change<'_>) -> Result<Answers> {
        self.values.prepare(&one_zero(&change.arguments[0]), change)?;
        let mut weights = vec![0; change.weights.len()];
        for value in &self.values.changes {
            weights[value.row as usize] = i64::from(value.after > 0) - i64::from(value.before > 0);
        }
        self.function.prepare(&Change { weights: &weights, ..*change })
    }

    fn commit(&mut self, groups: &[u32]) {
        self.values.commit();
        self.function.commit(groups);
    }

    fn free(&mut self, group: u32) {
        self.values.free(group);
        self.function.free(group);
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Distinct { values, function } = self;
        values.save(saver)?;
        function.save(saver)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.values.load(loader)?;
        self.function.load(loader)
    }

    fn bytes(&self) -> usize {
        self.values.bytes() + self.function.bytes()
    }
}
