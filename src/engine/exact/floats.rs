//! SUM and AVG of floats as exact sums, rounded once: the same in any order, and what a window leaves is taken back.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{ScalarValue, exec_datafusion_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

use super::superaccumulator::Superaccumulator;

#[cfg(test)]
mod tests;

/// Whether an aggregate function is one of floats.
pub fn is_float(args: &AccumulatorArgs) -> bool {
    args.expr_fields.first().is_some_and(|field| field.data_type() == &DataType::Float64)
}

/// Columns of a state: how many values there were, and their exact sums of such names.
pub fn state_fields(args: &StateFieldsArgs, sums: &[&str]) -> Vec<FieldRef> {
    let count = Field::new(format_state_name(args.name, "count"), DataType::UInt64, true);
    let sum = |name: &&str| Field::new(format_state_name(args.name, name), DataType::Binary, true);
    std::iter::once(count).chain(sums.iter().map(sum)).map(Arc::new).collect()
}

/// Columns of the state of a function with DISTINCT: the values.
pub fn distinct_fields(args: &StateFieldsArgs) -> Vec<FieldRef> {
    let value = Field::new_list_field(DataType::Float64, true);
    vec![Arc::new(Field::new_list(format_state_name(args.name, "distinct"), value, true))]
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// SUM.
    Sum,
    /// AVG.
    Average,
}

/// Name of the sum in the state.
pub const SUM: &[&str] = &["sum"];

/// How many values there are, and their sum.
#[derive(Clone, Debug, Default)]
pub struct FloatSum {
    /// How many values.
    pub count: i64,
    /// Their sum.
    pub sum: Superaccumulator,
}

impl FloatSum {
    /// Adds `value` so many times; takes it back where that is negative.
    #[inline]
    pub fn add(&mut self, value: f64, weight: i64) {
        self.count += weight;
        self.sum.add(value, weight);
    }

    /// The answer; none over no value.
    pub fn evaluate(&self, answer: Answer) -> Option<f64> {
        let count = u64::try_from(self.count).ok().filter(|count| *count > 0)?;
        Some(self.sum.mean(if answer == Answer::Sum { 1 } else { count }))
    }

    fn add_all(&mut self, values: &Float64Array, weight: i64) {
        if values.null_count() == 0 {
            values.values().iter().for_each(|value| self.add(*value, weight));
        } else {
            values.iter().flatten().for_each(|value| self.add(value, weight));
        }
    }

    fn merge_state(&mut self, count: u64, sum: &[u8]) {
        self.count += count as i64;
        self.sum.merge_encoded(sum);
    }
}

/// The accumulator of one group.
pub fn accumulator(answer: Answer, is_distinct: bool) -> Box<dyn Accumulator> {
    let over_all = move || Box::new(Total { answer, values: FloatSum::default() }) as Box<dyn Accumulator>;
    if is_distinct { Box::new(Distinct::new(over_all)) } else { over_all() }
}

/// Exact sums as a column.
pub fn encode<'a>(sums: impl ExactSizeIterator<Item = &'a Superaccumulator>) -> Result<BinaryArray> {
    // What most sums take.
    const BYTES: usize = 16;
    let mut bytes = Vec::with_capacity(sums.len() * BYTES);
    let mut offsets = Vec::with_capacity(sums.len() + 1);
    offsets.push(0);
    for sum in sums {
        sum.encode(&mut bytes);
        offsets.push(i32::try_from(bytes.len()).map_err(|_| exec_datafusion_err!("the sums take 2 GiB"))?);
    }
    Ok(BinaryArray::try_new(OffsetBuffer::new(offsets.into()), bytes.into(), None)?)
}

/// One group, or what a window's frame has.
#[derive(Debug)]
struct Total {
    answer: Answer,
    values: FloatSum,
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values.add_all(values[0].as_primitive(), 1);
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values.add_all(values[0].as_primitive(), -1);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (counts, sums) = (states[0].as_primitive::<UInt64Type>(), states[1].as_binary::<i32>());
        for (count, sum) in counts.values().iter().zip(sums) {
            self.values.merge_state(*count, sum.unwrap_or_default());
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut bytes = Vec::new();
        self.values.sum.encode(&mut bytes);
        Ok(vec![ScalarValue::from(self.values.count as u64), ScalarValue::Binary(Some(bytes))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.values.evaluate(self.answer)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.sum.heap_bytes()
    }
}

/// Many groups.
pub struct Totals {
    answer: Answer,
    groups: Vec<FloatSum>,
}

impl Totals {
    /// Of no group.
    pub fn new(answer: Answer) -> Self {
        Totals { answer, groups: Vec::new() }
    }
}

impl GroupsAccumulator for Totals {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups.resize_with(total_num_groups, FloatSum::default);
        let values = values[0].as_primitive::<Float64Type>();
        if values.null_count() == 0 && opt_filter.is_none() {
            for (value, group) in values.values().iter().zip(group_indices) {
                self.groups[*group].add(*value, 1);
            }
            return Ok(());
        }
        for (row, group) in group_indices.iter().enumerate() {
            let seen = opt_filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if seen && values.is_valid(row) {
                self.groups[*group].add(values.value(row), 1);
            }
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups.resize_with(total_num_groups, FloatSum::default);
        let (counts, sums) = (values[0].as_primitive::<UInt64Type>(), values[1].as_binary::<i32>());
        for (row, group) in group_indices.iter().enumerate() {
            self.groups[*group].merge_state(counts.value(row), sums.value(row));
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let groups = emit_to.take_needed(&mut self.groups);
        let answers = groups.iter().map(|group| group.evaluate(self.answer));
        Ok(Arc::new(answers.collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let groups = emit_to.take_needed(&mut self.groups);
        let counts = UInt64Array::from_iter_values(groups.iter().map(|group| group.count as u64));
        Ok(vec![Arc::new(counts), Arc::new(encode(groups.iter().map(|group| &group.sum))?)])
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut each = Totals::new(self.answer);
        let rows = values[0].len();
        each.update_batch(values, &(0..rows).collect::<Vec<_>>(), opt_filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<FloatSum>()
    }
}

/// A function of each float once, by the equality of GROUP BY, in which 0.0 is −0.0. `F` makes the function.
pub struct Distinct<F> {
    seen: HashSet<u64>,
    over: F,
}

impl<F> Distinct<F> {
    /// Of no value.
    pub fn new(over: F) -> Self {
        Distinct { seen: HashSet::new(), over }
    }

    fn values(&self) -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(self.seen.iter().map(|bits| f64::from_bits(*bits))))
    }
}

impl<F> fmt::Debug for Distinct<F> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Distinct({})", self.seen.len())
    }
}

impl<F: Fn() -> Box<dyn Accumulator> + Send + Sync + 'static> Accumulator for Distinct<F> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = values[0].as_primitive::<Float64Type>().iter().flatten();
        self.seen.extend(values.map(|value| (value + 0.0).to_bits()));
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        states[0].as_list::<i32>().iter().flatten().try_for_each(|values| self.update_batch(&[values]))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![SingleRowListArrayBuilder::new(self.values()).build_list_scalar()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut function = (self.over)();
        function.update_batch(&[self.values()])?;
        function.evaluate()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.seen.capacity() * size_of::<u64>()
    }
}
