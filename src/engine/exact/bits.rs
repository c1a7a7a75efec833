//! BIT_AND, BIT_OR and BIT_XOR with the accumulators of DataFusion that are right: its groups accumulator ignores
//! DISTINCT, which changes BIT_XOR, and knows no NULL type.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::as_inner;

/// One of the three.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Bits {
    inner: Arc<AggregateUDF>,
}

impl Bits {
    /// In place of DataFusion's `inner`.
    pub fn new(inner: Arc<AggregateUDF>) -> Self {
        Bits { inner }
    }
}

impl AggregateUDFImpl for Bits {
    as_inner!();

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct && !args.return_field.data_type().is_null()
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        self.inner.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }
}
