//! A filter on a cast that makes one value of many, such as `CAST(at AS DATE) = DATE '2024-01-01'`: DataFusion concludes
//! that what is cast is the one value that the other way round gives, and leaves out a sort by it.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::{PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::{CastExpr, NotExpr};
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};

/// Negates such conditions twice, before anything is concluded from them: that changes no answer, and DataFusion concludes
/// nothing from a negation.
#[derive(Debug)]
pub struct CastsTellNothing;

impl PhysicalOptimizerRule for CastsTellNothing {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let opaque = |node: Arc<dyn ExecutionPlan>| {
            let Some(filter) = node.downcast_ref::<FilterExec>() else { return Ok(Transformed::no(node)) };
            let input = filter.input().schema();
            let mut found = false;
            let mut conditions = Vec::new();
            for condition in split_conjunction(filter.predicate()) {
                let condition = Arc::clone(condition);
                let is_lossy = condition.exists(|part| {
                    let Some(cast) = part.downcast_ref::<CastExpr>() else { return Ok(false) };
                    let (from, to) = (cast.expr().data_type(&input)?, cast.cast_type());
                    Ok(!(CastExpr::check_bigger_cast(to, &from) || from.is_integer() && to.is_integer()))
                })?;
                found |= is_lossy;
                conditions.push(if is_lossy { not(not(condition)) } else { condition });
            }
            if !found {
                return Ok(Transformed::no(node));
            }
            let filter = FilterExecBuilder::from(filter).with_predicate(conjunction(conditions)).build()?;
            Ok(Transformed::new(Arc::new(filter) as _, true, TreeNodeRecursion::Continue))
        };
        plan.transform_up(opaque).data()
    }

    fn name(&self) -> &str {
        "casts_tell_nothing"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn not(condition: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    Arc::new(NotExpr::new(condition))
}
