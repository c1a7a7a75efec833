//! The values that each group of an aggregate with DISTINCT has seen: a set, so that a micro-batch costs its
//! own rows and not the list of all values.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::filter;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::error::Result;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use crate::batches::Owned;
use crate::checkpoint::{Loader, Saver};

/// A set of (group, value).
pub struct Dedup {
    schema: SchemaRef,
    seen: Owned<Box<dyn GroupValues>>,
    /// Of each number of a value, whether it is in the set: one that was given to a row that failed is not.
    counted: Vec<Counted>,
    /// Numbers of the values that the prepared rows bring.
    prepared: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    No,
    Prepared,
    Yes,
}

impl Dedup {
    /// An empty set of values of that type.
    pub fn new(data_type: DataType) -> Result<Self> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("group", DataType::UInt32, false),
            Field::new("value", data_type, true),
        ]));
        let seen = new_group_values(Arc::clone(&schema), &GroupOrdering::None)?;
        Ok(Dedup { seen: Owned::new(seen), schema, counted: Vec::new(), prepared: Vec::new() })
    }

    /// True for each row that brings its group a new value; only rows that `filter` keeps count.
    /// `positions` are those of the rows' groups in `groups`.
    pub fn first_seen(
        &mut self,
        positions: &[usize],
        groups: &[u32],
        arguments: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<BooleanArray> {
        let values = &arguments[0];
        let candidate = |row: &usize| {
            values.is_valid(*row) && filter.is_none_or(|filter| filter.is_valid(*row) && filter.value(*row))
        };
        let candidates: Vec<usize> = (0..positions.len()).filter(candidate).collect();
        let rows = UInt32Array::from_iter_values(candidates.iter().map(|row| *row as u32));
        let values = arrow::compute::take(values, &rows, None)?;
        let group = UInt32Array::from_iter_values(candidates.iter().map(|row| groups[positions[*row]]));
        let mut ids = Vec::with_capacity(candidates.len());
        let seen = self.seen.get_mut();
        seen.intern(&[Arc::new(group), values], &mut ids)?;
        self.counted.resize(seen.len(), Counted::No);
        let mut first = vec![false; positions.len()];
        for (row, id) in candidates.into_iter().zip(ids) {
            if self.counted[id] == Counted::No {
                self.counted[id] = Counted::Prepared;
                self.prepared.push(id);
                first[row] = true;
            }
        }
        Ok(BooleanArray::from(first))
    }

    /// What was seen since the last call is in the set.
    pub fn commit(&mut self) {
        for id in self.prepared.drain(..) {
            self.counted[id] = Counted::Yes;
        }
    }

    /// What was seen and does not count is not in the set.
    pub fn discard(&mut self) {
        for id in self.prepared.drain(..) {
            self.counted[id] = Counted::No;
        }
    }

    /// Gives the groups their new numbers and forgets those without one, `u32::MAX`.
    pub fn renumber(&mut self, number: &[u32]) -> Result<()> {
        let columns = self.seen.get_mut().emit(EmitTo::All)?;
        let groups = columns[0].as_primitive::<UInt32Type>();
        let counted = std::mem::take(&mut self.counted);
        let living = |(id, group): (usize, &u32)| {
            let number = number.get(*group as usize).copied().unwrap_or(u32::MAX);
            (counted.get(id) == Some(&Counted::Yes)).then_some(number).filter(|number| *number != u32::MAX)
        };
        let numbers: Vec<Option<u32>> = groups.values().iter().enumerate().map(living).collect();
        let living = BooleanArray::from_iter(numbers.iter().map(|number| Some(number.is_some())));
        let mut seen = new_group_values(Arc::clone(&self.schema), &GroupOrdering::None)?;
        if living.true_count() > 0 {
            let groups: UInt32Array = numbers.into_iter().flatten().map(Some).collect();
            seen.intern(&[Arc::new(groups), filter(&columns[1], &living)?], &mut Vec::new())?;
        }
        self.counted = vec![Counted::Yes; seen.len()];
        self.seen = Owned::new(seen);
        Ok(())
    }

    /// Gives the set to a checkpoint. Costs all of it: nothing reads a set of DataFusion's without emptying it.
    pub fn save(&mut self, saver: &mut Saver) -> Result<()> {
        self.discard();
        let Dedup { schema, seen, counted, prepared: _ } = self;
        let columns = seen.get_mut().emit(EmitTo::All)?;
        let mut anew = new_group_values(Arc::clone(schema), &GroupOrdering::None)?;
        if columns.first().is_some_and(|groups| !groups.is_empty()) {
            anew.intern(&columns, &mut Vec::new())?;
        }
        *seen = Owned::new(anew);
        let is_in: BooleanArray = counted.iter().map(|counted| Some(*counted == Counted::Yes)).collect();
        let columns = columns.iter().map(|column| Ok(filter(column, &is_in)?));
        saver.columns(columns.collect::<Result<_>>()?)
    }

    /// Takes the set of a checkpoint into this empty one.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let columns: [ArrayRef; 2] = loader.columns()?;
        let seen = self.seen.get_mut();
        if !columns[0].is_empty() {
            seen.intern(&columns, &mut Vec::new())?;
        }
        self.counted = vec![Counted::Yes; seen.len()];
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.seen.read(|seen| seen.size()) + self.counted.len()
    }
}
