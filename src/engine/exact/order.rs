//! The same expression twice in an aggregate's ORDER BY, also where only simplification makes it so: DataFusion's
//! accumulators panic over it. The second one never decides anything.

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, SortExpr};
use datafusion::optimizer::utils::NamePreserver;
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// Keeps the first of each.
#[derive(Debug)]
pub struct OneOrder;

impl OptimizerRule for OneOrder {
    fn name(&self) -> &str {
        "one_order"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !matches!(plan, LogicalPlan::Aggregate(_)) {
            return Ok(Transformed::no(plan));
        }
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(without_repeated)?.update_data(|expr| name.restore(expr)))
        })
    }
}

fn without_repeated(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::AggregateFunction(mut function) = expr else { return Ok(Transformed::no(expr)) };
    let before = function.params.order_by.len();
    let mut first: Vec<SortExpr> = Vec::new();
    for sort in function.params.order_by {
        if !first.iter().any(|earlier| earlier.expr == sort.expr) {
            first.push(sort);
        }
    }
    let changed = first.len() < before;
    function.params.order_by = first;
    Ok(Transformed::new_transformed(Expr::AggregateFunction(function), changed))
}
