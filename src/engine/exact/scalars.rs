//! Scalar functions of DataFusion with a check before or after them, for the values with which they answer
//! something else than what is right, or end the process.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::kernels::cmp::gt;
use arrow::datatypes::{DataType, FieldRef, Float64Type, Int64Type};
use datafusion::common::config::ConfigOptions;
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature,
};

/// What is wrong with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    /// LPAD, RPAD: of lengths that differ by row it reserves the sum, and a negative or a huge one ends the process.
    /// Its own answers for a constant length hold then too: negative is 0, and too much fails.
    Reserves,
    /// DATE_TRUNC: near the lower limit of a time it wraps to the upper one.
    Wraps,
    /// DATE_BIN: near the lower limit of a time it gives NULL.
    Forgets,
    /// TO_TIMESTAMP: a number of seconds that no time has is the nearest one that there is.
    Saturates,
}

/// A function whose fault is mended.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Mended {
    inner: Arc<ScalarUDF>,
    fault: Fault,
}

impl Mended {
    /// In place of `inner`; none if nothing is known to be wrong with that.
    pub fn new(inner: &Arc<ScalarUDF>) -> Option<Self> {
        let fault = match inner.name() {
            "lpad" | "rpad" => Fault::Reserves,
            "date_trunc" => Fault::Wraps,
            "date_bin" => Fault::Forgets,
            "to_timestamp" => Fault::Saturates,
            _ => return None,
        };
        Some(Mended { inner: Arc::clone(inner), fault })
    }

    fn out_of_range(&self) -> Result<ColumnarValue> {
        exec_err!("{} of a time that is out of range", self.name())
    }
}

impl ScalarUDFImpl for Mended {
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
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }
    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }
    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::from(Mended { inner, fault: self.fault }))
    }
    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }
    fn preimage(&self, args: &[Expr], lit: &Expr, info: &SimplifyContext) -> Result<PreimageResult> {
        self.inner.preimage(args, lit, info)
    }
    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(input)
    }
    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }
    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        match self.fault {
            Fault::Reserves => {
                if let Some(ColumnarValue::Array(lengths)) = args.args.get(1)
                    && lengths.data_type() == &DataType::Int64
                {
                    let lengths =
                        lengths.as_primitive::<Int64Type>().unary::<_, Int64Type>(|length| length.max(0));
                    let all = lengths.iter().flatten().fold(0_i64, i64::saturating_add);
                    // Together they are one column of text.
                    if all > i64::from(i32::MAX) {
                        return exec_err!("{} to {all} characters is too long", self.name());
                    }
                    args.args[1] = ColumnarValue::Array(Arc::new(lengths));
                }
                self.inner.invoke_with_args(args)
            }
            Fault::Wraps => {
                let time = args.args[1].clone();
                let result = self.inner.invoke_with_args(args)?;
                if result.data_type() == time.data_type() {
                    let (later, time) = (result.to_array(rows)?, time.to_array(rows)?);
                    if gt(&later, &time)?.true_count() > 0 {
                        return self.out_of_range();
                    }
                }
                Ok(result)
            }
            Fault::Forgets => {
                let arguments = args.args.clone();
                let result = self.inner.invoke_with_args(args)?;
                let nulls = |value: &ColumnarValue| -> Result<usize> {
                    Ok(value.to_array(rows)?.logical_null_count())
                };
                if nulls(&result)? > 0 {
                    let mut known = 0;
                    for argument in &arguments {
                        known += nulls(argument)?;
                    }
                    if nulls(&result)? > known {
                        return self.out_of_range();
                    }
                }
                Ok(result)
            }
            Fault::Saturates => {
                // In nanoseconds: no DOUBLE lies between these and the limits of a BIGINT.
                let fits = |seconds: f64| (-9_223_372_036.854_776..9_223_372_036.854_774).contains(&seconds);
                let is_float = args.args[0].data_type().is_floating();
                if is_float {
                    let seconds = args.args[0].cast_to(&DataType::Float64, None)?.to_array(rows)?;
                    if !seconds.as_primitive::<Float64Type>().iter().flatten().all(fits) {
                        return self.out_of_range();
                    }
                }
                self.inner.invoke_with_args(args)
            }
        }
    }
}
