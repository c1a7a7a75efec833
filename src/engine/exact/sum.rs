//! SUM that fails where DataFusion's wraps, and where a decimal outgrows its precision. That of floats is exact
//! (`floats.rs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowNumericType, AsArray, BooleanArray, downcast_primitive,
};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{ScalarValue, exec_datafusion_err, exec_err, not_impl_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use super::floats::{self, Answer, is_float};
use super::{as_inner, check_precision};

/// SUM, checked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct CheckedSum {
    inner: Arc<AggregateUDF>,
}

impl CheckedSum {
    /// In place of DataFusion's.
    pub fn new() -> Self {
        CheckedSum { inner: sum_udaf() }
    }
}

impl AggregateUDFImpl for CheckedSum {
    as_inner!();

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if args.return_type() == &DataType::Float64 && !args.is_distinct {
            return Ok(floats::state_fields(&args, floats::SUM));
        }
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if is_float(&args) {
            return Ok(floats::accumulator(Answer::Sum, args.is_distinct));
        }
        let data_type = args.return_field.data_type().clone();
        if args.is_distinct {
            let total = total(&data_type)?;
            return Ok(Box::new(Distinct { seen: self.inner.accumulator(args)?, total, data_type }));
        }
        total(&data_type)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        if is_float(&args) {
            return Ok(Box::new(floats::Totals::new(Answer::Sum)));
        }
        groups(args.return_field.data_type())
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 if args.is_distinct => Ok(Box::new(SlidingDistinct::default())),
            // It says which types it does not know.
            _ if args.is_distinct => self.inner.create_sliding_accumulator(args),
            DataType::Float64 => Ok(floats::accumulator(Answer::Sum, false)),
            data_type => total(data_type),
        }
    }
}

/// The sum of one group, of any type but floats.
pub fn total(data_type: &DataType) -> Result<Box<dyn Accumulator>> {
    macro_rules! total_of {
        ($t:ty) => {
            Ok(Box::new(Total::<$t> { sum: Default::default(), count: 0, data_type: data_type.clone() }))
        };
    }
    downcast_primitive! {
        data_type => (total_of),
        other => not_impl_err!("sum of {other}"),
    }
}

/// The sums of many groups, of any type but floats.
pub fn groups(data_type: &DataType) -> Result<Box<dyn GroupsAccumulator>> {
    macro_rules! groups_of {
        ($t:ty) => {
            Ok(groups_of::<$t>(data_type))
        };
    }
    downcast_primitive! {
        data_type => (groups_of),
        other => not_impl_err!("sum of {other}"),
    }
}

fn groups_of<T: ArrowNumericType + Send>(data_type: &DataType) -> Box<dyn GroupsAccumulator> {
    let overflow = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&overflow);
    let add = move |sum: &mut T::Native, value: T::Native| match sum.add_checked(value) {
        Ok(total) => *sum = total,
        Err(_) => seen.store(true, Ordering::Relaxed),
    };
    Box::new(Sums { inner: PrimitiveGroupsAccumulator::<T, _>::new(data_type, add), overflow })
}

/// Sums by group; whether one of them has overflowed is told after each batch, not by row.
struct Sums<A> {
    inner: A,
    overflow: Arc<AtomicBool>,
}

impl<A> Sums<A> {
    fn check(&self) -> Result<()> {
        if self.overflow.load(Ordering::Relaxed) {
            exec_err!("a sum is too large for its type")
        } else {
            Ok(())
        }
    }
}

impl<A: GroupsAccumulator> GroupsAccumulator for Sums<A> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.inner.update_batch(values, group_indices, opt_filter, total_num_groups)?;
        self.check()
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = self.inner.evaluate(emit_to)?;
        check_precision(&sums)?;
        Ok(sums)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.inner.merge_batch(values, group_indices, total_num_groups)?;
        self.check()
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, opt_filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

/// The sum of one group, which a sliding window can also take values from.
struct Total<T: ArrowNumericType> {
    sum: T::Native,
    count: u64,
    data_type: DataType,
}

impl<T: ArrowNumericType> fmt::Debug for Total<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Total({})", self.data_type)
    }
}

impl<T: ArrowNumericType> Total<T> {
    fn of(values: &ArrayRef) -> Result<(T::Native, u64)> {
        let values = values.as_primitive::<T>();
        let count = (values.len() - values.null_count()) as u64;
        Ok((arrow::compute::sum_checked(values)?.unwrap_or_default(), count))
    }
}

impl<T: ArrowNumericType> Accumulator for Total<T> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = Self::of(&values[0])?;
        self.sum = self.sum.add_checked(sum)?;
        self.count += count;
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = Self::of(&values[0])?;
        self.sum = self.sum.sub_checked(sum)?;
        self.count -= count;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = ScalarValue::new_primitive::<T>((self.count > 0).then_some(self.sum), &self.data_type)?;
        if self.data_type.is_decimal() {
            check_precision(&sum.to_array()?)?;
        }
        Ok(sum)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// SUM(DISTINCT): DataFusion's set of values, added up with a check.
#[derive(Debug)]
struct Distinct {
    seen: Box<dyn Accumulator>,
    total: Box<dyn Accumulator>,
    data_type: DataType,
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.seen.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.seen.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.seen.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.total = total(&self.data_type)?;
        for state in self.seen.state()? {
            if let ScalarValue::List(list) = state {
                self.total.update_batch(&[Arc::clone(list.values())])?;
            }
        }
        self.total.evaluate()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.seen.size()
    }
}

/// SUM(DISTINCT) of the BIGINTs in a sliding window.
#[derive(Debug, Default)]
struct SlidingDistinct {
    counts: HashMap<i64, u64>,
    /// Wider than any sum of different values that fits into memory.
    sum: i128,
}

impl Accumulator for SlidingDistinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Int64Type>().iter().flatten() {
            let count = self.counts.entry(value).or_default();
            self.sum += if *count == 0 { i128::from(value) } else { 0 };
            *count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Int64Type>().iter().flatten() {
            let Some(count) = self.counts.get_mut(&value) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&value);
                self.sum -= i128::from(value);
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for values in states[0].as_list::<i32>().iter().flatten() {
            self.update_batch(&[values])?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<_> = self.counts.keys().map(|value| ScalarValue::Int64(Some(*value))).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &DataType::Int64))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.counts.is_empty() {
            return Ok(ScalarValue::Int64(None));
        }
        let sum =
            i64::try_from(self.sum).map_err(|_| exec_datafusion_err!("a sum is too large for its type"))?;
        Ok(ScalarValue::Int64(Some(sum)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * size_of::<(i64, u64)>()
    }
}
