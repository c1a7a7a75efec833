//! MIN and MAX of floats by one order, in which NaN is the greatest: DataFusion's by group keep whichever NaN or
//! number came last, and know nothing beyond the largest finite float.

use std::sync::Arc;

use arrow::datatypes::{
    ArrowNativeTypeOp, ArrowPrimitiveType, DataType, FieldRef, Float16Type, Float32Type, Float64Type,
};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use super::as_inner;

/// MIN or MAX.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Extreme {
    inner: Arc<AggregateUDF>,
    is_max: bool,
}

impl Extreme {
    /// In place of DataFusion's `inner`.
    pub fn new(inner: Arc<AggregateUDF>) -> Self {
        Extreme { is_max: inner.name() == "max", inner }
    }

    fn of_floats<T: ArrowPrimitiveType + Send>(&self, least: T::Native, greatest: T::Native) -> Groups {
        let data_type = &T::DATA_TYPE;
        match self.is_max {
            true => {
                let keep = |kept: &mut T::Native, value: T::Native| {
                    if value.compare(*kept).is_gt() {
                        *kept = value;
                    }
                };
                Box::new(PrimitiveGroupsAccumulator::<T, _>::new(data_type, keep).with_starting_value(least))
            }
            false => {
                let keep = |kept: &mut T::Native, value: T::Native| {
                    if value.compare(*kept).is_lt() {
                        *kept = value;
                    }
                };
                Box::new(
                    PrimitiveGroupsAccumulator::<T, _>::new(data_type, keep).with_starting_value(greatest),
                )
            }
        }
    }
}

type Groups = Box<dyn GroupsAccumulator>;

impl AggregateUDFImpl for Extreme {
    as_inner!();

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Groups> {
        // The ends of the order are the NaNs with every bit.
        Ok(match args.return_field.data_type() {
            DataType::Float16 => {
                let ends =
                    [u16::MAX, u16::MAX >> 1].map(<Float16Type as ArrowPrimitiveType>::Native::from_bits);
                self.of_floats::<Float16Type>(ends[0], ends[1])
            }
            DataType::Float32 => {
                self.of_floats::<Float32Type>(f32::from_bits(u32::MAX), f32::from_bits(u32::MAX >> 1))
            }
            DataType::Float64 => {
                self.of_floats::<Float64Type>(f64::from_bits(u64::MAX), f64::from_bits(u64::MAX >> 1))
            }
            _ => return self.inner.create_groups_accumulator(args),
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }
}
