//! What DataFusion's own functions and operators do wrong with some value, done right: integers wrap, decimals
//! outgrow their precision, DISTINCT is ignored, the last digits of floats depend on the order of the rows. Each keeps
//! its SQL name, so every session of Tally gives it the same meaning.

mod arithmetic;
mod average;
mod bits;
mod casts;
mod dyadic;
mod extremes;
pub mod floats;
pub mod moments;
mod nth;
mod order;
#[cfg(test)]
mod poison;
mod scalars;
mod subquery;
mod sum;
pub mod superaccumulator;
#[cfg(test)]
mod tests;
mod zeros;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type};
use arrow::error::ArrowError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::functions_aggregate::{
    average as avg, bit_and_or_xor, correlation, covariance, min_max, nth_value, regr, stddev, variance,
};
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::optimizer::analyzer::function_rewrite::ApplyFunctionRewrites;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

use self::arithmetic::Checked;
use self::casts::CastsTellNothing;
use self::order::OneOrder;
use self::subquery::{NamedComparisons, NullableSubqueries};
use self::zeros::OneZero;

/// The session that `builder` describes, with all of these in it.
pub fn build(builder: SessionStateBuilder) -> SessionState {
    let rewrites: [Arc<dyn FunctionRewrite + Send + Sync>; 4] =
        [Arc::new(Checked), Arc::new(OneZero), Arc::new(NullableSubqueries), Arc::new(NamedComparisons)];
    // Once more after type coercion: before it not every type is known.
    let last = ApplyFunctionRewrites::new(rewrites.to_vec());
    let first: Arc<dyn PhysicalOptimizerRule + Send + Sync> = Arc::new(CastsTellNothing);
    let physical = std::iter::once(first).chain(PhysicalOptimizer::new().rules).collect();
    let mut state = builder
        .with_analyzer_rule(Arc::new(last))
        .with_optimizer_rule(Arc::new(OneOrder))
        .with_physical_optimizer_rules(physical)
        .build();
    const INFALLIBLE: &str = "invariant: a session state takes every rewrite and function";
    for rewrite in rewrites {
        state.register_function_rewrite(rewrite).expect(INFALLIBLE);
    }
    for function in functions() {
        state.register_udaf(Arc::new(function)).expect(INFALLIBLE);
    }
    let mended: Vec<_> = state.scalar_functions().values().filter_map(scalars::Mended::new).collect();
    for function in mended {
        state.register_udf(Arc::new(ScalarUDF::from(function))).expect(INFALLIBLE);
    }
    state
}

fn functions() -> Vec<AggregateUDF> {
    let mut functions = vec![
        AggregateUDF::from(sum::CheckedSum::new()),
        AggregateUDF::from(average::CheckedAvg::new(avg::avg_udaf())),
        AggregateUDF::from(extremes::Extreme::new(min_max::min_udaf())),
        AggregateUDF::from(extremes::Extreme::new(min_max::max_udaf())),
        AggregateUDF::from(nth::SortedNth::new(nth_value::nth_value_udaf())),
    ];
    let bits =
        [bit_and_or_xor::bit_and_udaf(), bit_and_or_xor::bit_or_udaf(), bit_and_or_xor::bit_xor_udaf()];
    functions.extend(bits.map(|inner| AggregateUDF::from(bits::Bits::new(inner))));
    let moments = [
        variance::var_samp_udaf(),
        variance::var_pop_udaf(),
        stddev::stddev_udaf(),
        stddev::stddev_pop_udaf(),
        covariance::covar_samp_udaf(),
        covariance::covar_pop_udaf(),
        correlation::corr_udaf(),
        regr::regr_slope_udaf(),
        regr::regr_intercept_udaf(),
        regr::regr_count_udaf(),
        regr::regr_r2_udaf(),
        regr::regr_avgx_udaf(),
        regr::regr_avgy_udaf(),
        regr::regr_sxx_udaf(),
        regr::regr_syy_udaf(),
        regr::regr_sxy_udaf(),
    ];
    functions.extend(moments.into_iter().filter_map(moments::Moments::new).map(AggregateUDF::from));
    functions
}

/// Whether every decimal of `values` has at most the digits that its type allows; other types always do.
pub fn check_precision(values: &ArrayRef) -> Result<(), ArrowError> {
    match values.data_type() {
        DataType::Decimal32(precision, _) => {
            values.as_primitive::<Decimal32Type>().validate_decimal_precision(*precision)
        }
        DataType::Decimal64(precision, _) => {
            values.as_primitive::<Decimal64Type>().validate_decimal_precision(*precision)
        }
        DataType::Decimal128(precision, _) => {
            values.as_primitive::<Decimal128Type>().validate_decimal_precision(*precision)
        }
        DataType::Decimal256(precision, _) => {
            values.as_primitive::<Decimal256Type>().validate_decimal_precision(*precision)
        }
        _ => Ok(()),
    }
}

/// What an aggregate function of DataFusion says of itself, said by one that wraps it as `inner`: all but what its state is.
macro_rules! as_inner {
    () => {
        fn name(&self) -> &str {
            self.inner.name()
        }
        fn aliases(&self) -> &[String] {
            self.inner.aliases()
        }
        fn signature(&self) -> &Signature {
            self.inner.signature()
        }
        fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
            self.inner.return_type(arg_types)
        }
        fn is_nullable(&self) -> bool {
            self.inner.is_nullable()
        }
        fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
            self.inner.default_value(data_type)
        }
        fn order_sensitivity(&self) -> AggregateOrderSensitivity {
            self.inner.order_sensitivity()
        }
        fn reverse_expr(&self) -> ReversedUDAF {
            self.inner.reverse_udf()
        }
        fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
            self.inner.inner().set_monotonicity(data_type)
        }
        fn documentation(&self) -> Option<&Documentation> {
            self.inner.documentation()
        }
    };
}
use as_inner;
