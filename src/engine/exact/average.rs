//! AVG of durations, whose sum DataFusion lets wrap: three million hours are more nanoseconds than a BIGINT holds.
//! AVG of floats is exact (`floats.rs`), that of decimals DataFusion's: its sums have room for 10⁹ rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::floats::{self, Answer, is_float};
use super::{as_inner, sum};

/// Where its state has the sum; before it is the count.
const SUM: usize = 1;

/// AVG, checked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct CheckedAvg {
    inner: Arc<AggregateUDF>,
}

impl CheckedAvg {
    /// In place of DataFusion's `inner`.
    pub fn new(inner: Arc<AggregateUDF>) -> Self {
        CheckedAvg { inner }
    }
}

fn is_duration(args: &AccumulatorArgs) -> bool {
    matches!(args.return_field.data_type(), DataType::Duration(_))
}

impl AggregateUDFImpl for CheckedAvg {
    as_inner!();

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if args.return_type() == &DataType::Float64 && !args.is_distinct {
            return Ok(floats::state_fields(&args, floats::SUM));
        }
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if is_float(&args) {
            return Ok(floats::accumulator(Answer::Average, args.is_distinct));
        }
        if !is_duration(&args) || args.is_distinct {
            return self.inner.accumulator(args);
        }
        let guard = sum::total(args.return_field.data_type())?;
        Ok(Box::new(Guarded { guard, inner: self.inner.accumulator(args)? }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        if is_float(&args) {
            return Ok(Box::new(floats::Totals::new(Answer::Average)));
        }
        if !is_duration(&args) {
            return self.inner.create_groups_accumulator(args);
        }
        let guard = sum::groups(args.return_field.data_type())?;
        Ok(Box::new(GuardedGroups { guard, inner: self.inner.create_groups_accumulator(args)? }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if is_float(&args) && !args.is_distinct {
            return Ok(floats::accumulator(Answer::Average, false));
        }
        if !is_duration(&args) || args.is_distinct {
            return self.inner.create_sliding_accumulator(args);
        }
        let guard = sum::total(args.return_field.data_type())?;
        Ok(Box::new(Guarded { guard, inner: self.inner.create_sliding_accumulator(args)? }))
    }
}

/// An average, and beside it its sum, which fails where it overflows.
#[derive(Debug)]
struct Guarded {
    guard: Box<dyn Accumulator>,
    inner: Box<dyn Accumulator>,
}

impl Accumulator for Guarded {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.guard.update_batch(values)?;
        self.inner.update_batch(values)
    }
    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.guard.retract_batch(values)?;
        self.inner.retract_batch(values)
    }
    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.guard.merge_batch(&states[SUM..])?;
        self.inner.merge_batch(states)
    }
    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }
    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.inner.evaluate()
    }
    fn size(&self) -> usize {
        self.guard.size() + self.inner.size()
    }
}

/// The same by group.
struct GuardedGroups {
    guard: Box<dyn GroupsAccumulator>,
    inner: Box<dyn GroupsAccumulator>,
}

impl GroupsAccumulator for GuardedGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.guard.update_batch(values, group_indices, opt_filter, total_num_groups)?;
        self.inner.update_batch(values, group_indices, opt_filter, total_num_groups)
    }
    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.guard.merge_batch(&values[SUM..], group_indices, total_num_groups)?;
        self.inner.merge_batch(values, group_indices, total_num_groups)
    }
    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.guard.evaluate(emit_to)?;
        self.inner.evaluate(emit_to)
    }
    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.guard.state(emit_to)?;
        self.inner.state(emit_to)
    }
    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, opt_filter)
    }
    fn size(&self) -> usize {
        self.guard.size() + self.inner.size()
    }
}
