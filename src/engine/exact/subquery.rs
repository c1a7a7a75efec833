//! Subqueries that DataFusion gets wrong. A scalar subquery without a row is NULL, whatever its column says: DataFusion
//! takes the column's word for it, and fails over the NULL. And in `x >= ALL (SELECT x FROM t)` over t itself it takes
//! the x outside for that of the subquery.

use std::any::Any;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, SubqueryAlias, Volatility,
};

/// Gives the rows that ANY and ALL compare with a name of their own.
#[derive(Debug)]
pub struct NamedComparisons;

/// That name.
const COMPARED: &str = "__compared";

impl FunctionRewrite for NamedComparisons {
    fn name(&self) -> &str {
        "named_comparisons"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let Expr::SetComparison(mut comparison) = expr else { return Ok(Transformed::no(expr)) };
        let plan = &comparison.subquery.subquery;
        if matches!(plan.as_ref(), LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == COMPARED) {
            return Ok(Transformed::no(Expr::SetComparison(comparison)));
        }
        let named = SubqueryAlias::try_new(Arc::clone(plan), COMPARED)?;
        comparison.subquery.subquery = Arc::new(LogicalPlan::SubqueryAlias(named));
        Ok(Transformed::yes(Expr::SetComparison(comparison)))
    }
}

/// Makes such subqueries nullable.
#[derive(Debug)]
pub struct NullableSubqueries;

impl FunctionRewrite for NullableSubqueries {
    fn name(&self) -> &str {
        "nullable_subqueries"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        match expr {
            Expr::ScalarSubquery(subquery)
                if !subquery.subquery.schema().field(0).is_nullable() && !has_one_row(&subquery.subquery) =>
            {
                let function =
                    ScalarUDF::from(Nullable { signature: Signature::any(1, Volatility::Immutable) });
                let args = vec![Expr::ScalarSubquery(subquery)];
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), args))))
            }
            // Its argument is visited first, so a second visit has wrapped that again.
            Expr::ScalarFunction(outer) if is_nullable(&outer) => match outer.args.as_slice() {
                [Expr::ScalarFunction(inner)] if is_nullable(inner) => {
                    Ok(Transformed::yes(Expr::ScalarFunction(inner.clone())))
                }
                _ => Ok(Transformed::no(Expr::ScalarFunction(outer))),
            },
            other => Ok(Transformed::no(other)),
        }
    }
}

fn is_nullable(call: &ScalarFunction) -> bool {
    (call.func.inner().as_ref() as &dyn Any).is::<Nullable>()
}

/// An aggregate of all rows has a row also where there are none.
fn has_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.inputs().into_iter().all(has_one_row)
        }
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::EmptyRelation(empty) => empty.produce_one_row,
        _ => false,
    }
}

/// Its argument, which may be NULL.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Nullable {
    signature: Signature,
}

impl ScalarUDFImpl for Nullable {
    fn name(&self) -> &str {
        "nullable"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(args.arg_fields[0].as_ref().clone().with_nullable(true)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.pop() {
            Some(value) => Ok(value),
            None => internal_err!("nullable without an argument"),
        }
    }
}
