//! Subqueries become joins: with one row, or, for NOT IN, with what is known of its values.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Join, JoinType, LogicalPlan, LogicalPlanBuilder};

use super::{Cut, Plan, columns_of, has_subqueries};
use crate::engine::hidden::renamed;
use crate::engine::input::{InputTable, Kind};
use crate::engine::plan::Identity;
use crate::engine::split::stand_in;

impl Cut<'_> {
    /// The plan with its scalar subqueries, which ask for one row, as tables of one row that are joined; none if
    /// it has none of them.
    pub(super) fn without_subqueries(&mut self, plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        if !matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Filter(_)) || !has_subqueries(plan) {
            return Ok(None);
        }
        let [input] = plan.inputs()[..] else { return Ok(None) };
        let mut joined = LogicalPlanBuilder::from(input.clone());
        let mut is_other = false;
        let names = datafusion::logical_expr::expr_rewriter::NamePreserver::new(plan);
        let mut expressions = Vec::new();
        for expr in plan.expressions() {
            let name = names.save(&expr);
            let replaced = expr.transform_down(|part| {
                let subquery = match &part {
                    Expr::ScalarSubquery(subquery) if subquery.outer_ref_columns.is_empty() => subquery,
                    Expr::Exists(_)
                    | Expr::InSubquery(_)
                    | Expr::ScalarSubquery(_)
                    | Expr::SetComparison(_) => {
                        is_other = true;
                        return Ok(Transformed::new(part, false, TreeNodeRecursion::Jump));
                    }
                    _ => return Ok(Transformed::no(part)),
                };
                let single = self.single(&subquery.subquery)?;
                let name = format!("single_{}", self.parts.len());
                let scan =
                    LogicalPlanBuilder::scan(name.as_str(), provider_as_source(single), None)?.build()?;
                let column = Expr::Column(Column::new(Some(name), "c0"));
                joined = joined.clone().cross_join(scan)?;
                Ok(Transformed::new(column, true, TreeNodeRecursion::Jump))
            })?;
            expressions.push(name.restore(replaced.data));
        }
        if is_other {
            return Ok(None);
        }
        let over = plan.with_new_exprs(expressions, vec![joined.build()?])?;
        renamed(over, plan, &[]).map(Some)
    }

    /// The table of the one row that a subquery gives.
    pub(super) fn single(&mut self, subquery: &LogicalPlan) -> Result<Arc<InputTable>> {
        let input = self.edge(subquery)?;
        let table = InputTable::new(format!("single_{input}"), Kind::State, columns_of(subquery));
        // It is told from the subquery by what it stands for.
        let scan = stand_in(subquery, &table)?;
        let part = self.push(Identity::of(&scan, self.terms)?, Plan::Single, vec![input], subquery, false);
        self.parts.push((Arc::clone(&table), part));
        Ok(table)
    }
}

/// `x NOT IN (…)`: no row if there is a NULL among the values, all rows if there is no value, otherwise the rows that
/// are not NULL and meet none. What is known of the values is one row, which seldom changes.
pub(super) fn not_in(join: &Join) -> Result<Option<LogicalPlan>> {
    use datafusion::functions_aggregate::expr_fn::count;
    use datafusion::logical_expr::{col, lit, not};
    let [(asked, value)] = &join.on[..] else { return Ok(None) };
    if join.join_type != JoinType::LeftAnti || join.filter.is_some() {
        return Ok(None);
    }
    let mut anti = join.clone();
    anti.null_aware = false;
    let functions =
        vec![count(lit(1i64)).alias("__all_values"), count(value.clone()).alias("__known_values")];
    let facts = LogicalPlanBuilder::from(Arc::clone(&join.right))
        .aggregate(Vec::<Expr>::new(), functions)?
        .project(vec![
            col("__all_values").eq(lit(0i64)).alias("__no_value"),
            col("__all_values").gt(col("__known_values")).alias("__a_null"),
        ])?
        .build()?;
    let kept = col("__no_value").or(not(col("__a_null")).and(asked.clone().is_not_null()));
    let columns: Vec<Expr> = join.schema.columns().into_iter().map(Expr::Column).collect();
    let plan = LogicalPlanBuilder::from(LogicalPlan::Join(anti)).cross_join(facts)?.filter(kept)?;
    Ok(Some(plan.project(columns)?.build()?))
}
