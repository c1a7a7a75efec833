//! COUNT(DISTINCT) of floats by the equality of GROUP BY, in which 0.0 is −0.0: DataFusion counts them as one where it
//! can make a GROUP BY of it, and as two beside another DISTINCT.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};

/// Adds 0.0 to what is counted: that makes 0.0 of −0.0, and changes nothing else.
#[derive(Debug)]
pub struct OneZero;

impl FunctionRewrite for OneZero {
    fn name(&self) -> &str {
        "one_zero"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let Expr::AggregateFunction(mut function) = expr else { return Ok(Transformed::no(expr)) };
        if function.func.name() != "count" || !function.params.distinct {
            return Ok(Transformed::no(Expr::AggregateFunction(function)));
        }
        let mut changed = false;
        for arg in &mut function.params.args {
            let Ok(data_type) = arg.get_type(schema) else { continue };
            if data_type.is_floating() && !is_sum(arg) {
                let zero = ScalarValue::new_zero(&data_type)?;
                let (left, right) = (Box::new(arg.clone()), Box::new(Expr::Literal(zero, None)));
                *arg = Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus, right });
                changed = true;
            }
        }
        Ok(Transformed::new_transformed(Expr::AggregateFunction(function), changed))
    }
}

/// A sum with 0.0 is never −0.0.
fn is_sum(expr: &Expr) -> bool {
    let Expr::BinaryExpr(sum) = expr else { return false };
    sum.op == Operator::Plus && matches!(sum.right.as_ref(), Expr::Literal(zero, _) if is_zero(zero))
}

fn is_zero(value: &ScalarValue) -> bool {
    match value {
        ScalarValue::Float64(Some(value)) => value.to_bits() == 0,
        ScalarValue::Float32(Some(value)) => value.to_bits() == 0,
        ScalarValue::Float16(Some(value)) => value.to_bits() == 0,
        _ => false,
    }
}
