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

/// A set of (group, value).
pub struct Dedup {
    schema: SchemaRef,
    seen: Box<dyn GroupValues>,
}

impl Dedup {
    /// An empty set of values of that type.
    pub fn new(data_type: DataType) -> Result<Self> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("group", DataType::UInt32, false),
            Field::new("value", data_type, true),
        ]));
        Ok(Dedup { seen: new_group_values(Arc::clone(&schema), &GroupOrdering::None)?, schema })
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
        let mut next = self.seen.len();
        let mut ids = Vec::with_capacity(candidates.len());
        self.seen.intern(&[Arc::new(group), values], &mut ids)?;
        let mut first = vec![false; positions.len()];
        // New values get the next number, in the order of their first rows.
        for (row, id) in candidates.into_iter().zip(ids) {
            first[row] = id == next;
            next += usize::from(id == next);
        }
        Ok(BooleanArray::from(first))
    }

    /// Gives the groups their new numbers and forgets those without one, `u32::MAX`.
    pub fn renumber(&mut self, number: &[u32]) -> Result<()> {
        let columns = self.seen.emit(EmitTo::All)?;
        let groups = columns[0].as_primitive::<UInt32Type>();
        let groups: UInt32Array = groups.unary(|group| number[group as usize]);
        let living = BooleanArray::from_iter(groups.values().iter().map(|group| Some(*group != u32::MAX)));
        self.seen = new_group_values(Arc::clone(&self.schema), &GroupOrdering::None)?;
        if living.true_count() > 0 {
            let columns = [filter(&groups, &living)?, filter(&columns[1], &living)?];
            self.seen.intern(&columns, &mut Vec::new())?;
        }
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.seen.size()
    }
}
