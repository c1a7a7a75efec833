//! `+ - *` and negation of integers, and arithmetic of decimals, that fail where the result does not fit. DataFusion
//! wraps integers and shows decimals that are longer than their type; what it checks itself stays an operator.

use std::any::Any;
use std::sync::Arc;

use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;

use super::check_precision;

/// Replaces operators by their checked form.
#[derive(Debug)]
pub struct Checked;

impl FunctionRewrite for Checked {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        match expr {
            Expr::BinaryExpr(binary) => {
                let (left, right) = (binary.left.get_type(schema), binary.right.get_type(schema));
                let operation = Operation::Binary(binary.op);
                if !matches!((left, right), (Ok(left), Ok(right)) if may_overflow(&left, binary.op, &right)) {
                    return Ok(Transformed::no(Expr::BinaryExpr(binary)));
                }
                Ok(Transformed::yes(call(operation, vec![*binary.left, *binary.right])))
            }
            Expr::Negative(arg) => match arg.get_type(schema) {
                Ok(data_type) if data_type.is_signed_integer() => {
                    Ok(Transformed::yes(call(Operation::Negate, vec![*arg])))
                }
                _ => Ok(Transformed::no(Expr::Negative(arg))),
            },
            other => Ok(Transformed::no(other)),
        }
    }
}

/// Whether DataFusion's own operator can show a wrong number.
fn may_overflow(left: &DataType, op: Operator, right: &DataType) -> bool {
    if left.is_integer() {
        return left == right && matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply);
    }
    let is_arithmetic = matches!(
        op,
        Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo
    );
    if !is_arithmetic || !left.is_decimal() || !right.is_decimal() {
        return false;
    }
    // With digits to spare no result is longer than its type.
    let most = |data_type: &DataType| match data_type {
        DataType::Decimal32(precision, _) => *precision >= 9,
        DataType::Decimal64(precision, _) => *precision >= 18,
        DataType::Decimal128(precision, _) => *precision >= 38,
        DataType::Decimal256(precision, _) => *precision >= 76,
        _ => false,
    };
    BinaryTypeCoercer::new(left, &op, right).get_result_type().is_ok_and(|result| most(&result))
}

fn call(operation: Operation, args: Vec<Expr>) -> Expr {
    let function =
        ScalarUDF::from(Arithmetic { operation, signature: Signature::user_defined(Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), args))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    Binary(Operator),
    Negate,
}

/// An operator as a function. Columns that it makes are named as the operator would name them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Arithmetic {
    operation: Operation,
    signature: Signature,
}

impl Arithmetic {
    /// The expression with operators again, for its name.
    fn operators(&self, args: &[Expr]) -> Result<Expr> {
        let args = args.iter().map(|arg| Ok(arg.clone().transform_up(restore)?.data));
        operator(self.operation, args.collect::<Result<_>>()?)
    }

    fn result_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match (self.operation, arg_types) {
            (Operation::Binary(op), [left, right]) => {
                BinaryTypeCoercer::new(left, &op, right).get_result_type()
            }
            (Operation::Negate, [arg]) => Ok(arg.clone()),
            _ => internal_err!("{} of {} arguments", self.name(), arg_types.len()),
        }
    }
}

fn restore(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    match (call.func.inner().as_ref() as &dyn Any).downcast_ref::<Arithmetic>() {
        Some(arithmetic) => Ok(Transformed::yes(operator(arithmetic.operation, call.args)?)),
        None => Ok(Transformed::no(Expr::ScalarFunction(call))),
    }
}

fn operator(operation: Operation, args: Vec<Expr>) -> Result<Expr> {
    let mut args = args.into_iter().map(Box::new);
    match (operation, args.next(), args.next()) {
        (Operation::Binary(op), Some(left), Some(right)) => {
            Ok(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        (Operation::Negate, Some(arg), None) => Ok(Expr::Negative(arg)),
        _ => internal_err!("an operator with the wrong number of arguments"),
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Binary(Operator::Plus) => "checked_add",
            Operation::Binary(Operator::Minus) => "checked_subtract",
            Operation::Binary(Operator::Multiply) => "checked_multiply",
            Operation::Binary(Operator::Divide) => "checked_divide",
            Operation::Binary(_) => "checked_modulo",
            Operation::Negate => "checked_negate",
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(self.operators(args)?.schema_name().to_string())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.result_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.result_type(&types)?, nullable)))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match (self.operation, arg_types) {
            (Operation::Binary(op), [left, right]) => {
                let (left, right) = BinaryTypeCoercer::new(left, &op, right).get_input_types()?;
                Ok(vec![left, right])
            }
            _ => Ok(arg_types.to_vec()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kernel = match (self.operation, args.args.as_slice()) {
            (Operation::Negate, [ColumnarValue::Array(values)]) => {
                return Ok(ColumnarValue::Array(numeric::neg(values)?));
            }
            (Operation::Negate, [ColumnarValue::Scalar(value)]) => {
                return Ok(ColumnarValue::Scalar(value.arithmetic_negate()?));
            }
            (Operation::Binary(Operator::Plus), _) => numeric::add,
            (Operation::Binary(Operator::Minus), _) => numeric::sub,
            (Operation::Binary(Operator::Multiply), _) => numeric::mul,
            (Operation::Binary(Operator::Divide), _) => numeric::div,
            (Operation::Binary(Operator::Modulo), _) => numeric::rem,
            _ => return internal_err!("{} of {} arguments", self.name(), args.args.len()),
        };
        let [left, right] = args.args.as_slice() else {
            return internal_err!("{} of {} arguments", self.name(), args.args.len());
        };
        apply(left, right, |left, right| {
            let result = kernel(left, right)?;
            check_precision(&result)?;
            Ok(result)
        })
    }
}
