//! Subqueries within an aggregate's own expressions. An aggregate that keeps state evaluates these outside of the plan
//! that would run the subqueries, so what contains one is computed by a projection below.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::GroupingSet;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection};

/// The plan with no subquery in an expression of an aggregate.
pub fn below(plan: LogicalPlan) -> Result<LogicalPlan> {
    let moved = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Aggregate(aggregate) if asks(&aggregate)? => {
            Ok(Transformed::yes(with_operands_below(aggregate)?))
        }
        node => Ok(Transformed::no(node)),
    })?;
    Ok(moved.data)
}

fn is_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| {
        Ok(matches!(
            part,
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_)
        ))
    })
}

fn asks(aggregate: &Aggregate) -> Result<bool> {
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr) {
        if is_subquery(expr)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn with_operands_below(aggregate: Aggregate) -> Result<LogicalPlan> {
    let mut operands: Vec<Expr> = Vec::new();
    let mut operand = |expr: Expr| {
        if !is_subquery(&expr)? {
            return Ok(expr);
        }
        let name = format!("operand_{}", operands.len());
        operands.push(expr.alias(name.clone()));
        Ok(Expr::Column(Column::new_unqualified(name)))
    };
    let mut groups = Vec::new();
    for expr in aggregate.group_expr {
        groups.push(match expr {
            Expr::GroupingSet(set) => Expr::GroupingSet(each_of(set, &mut operand)?),
            expr => operand(expr)?,
        });
    }
    let mut functions = Vec::new();
    for expr in aggregate.aggr_expr {
        // Arguments, FILTER and ORDER BY are the function's children.
        let moved = expr.transform_down(|part| match part {
            Expr::AggregateFunction(_) | Expr::Alias(_) => Ok(Transformed::no(part)),
            part => Ok(Transformed::new(operand(part)?, true, TreeNodeRecursion::Jump)),
        })?;
        functions.push(moved.data);
    }
    let columns = aggregate.input.schema().columns().into_iter().map(Expr::Column);
    let columns: Vec<Expr> = columns.chain(operands).collect();
    let input = LogicalPlan::Projection(Projection::try_new(columns, aggregate.input)?);
    let moved = Aggregate::try_new(Arc::new(input), groups, functions)?;
    // The columns keep their names, by which what stands above knows them.
    let names = moved.schema.columns().into_iter().zip(aggregate.schema.iter()).map(
        |(column, (qualifier, field))| Expr::Column(column).alias_qualified(qualifier.cloned(), field.name()),
    );
    let names: Vec<Expr> = names.collect();
    Ok(LogicalPlan::Projection(Projection::try_new(names, Arc::new(LogicalPlan::Aggregate(moved)))?))
}

fn each_of(set: GroupingSet, operand: &mut impl FnMut(Expr) -> Result<Expr>) -> Result<GroupingSet> {
    let mut each = |exprs: Vec<Expr>| exprs.into_iter().map(&mut *operand).collect::<Result<Vec<_>>>();
    Ok(match set {
        GroupingSet::Rollup(exprs) => GroupingSet::Rollup(each(exprs)?),
        GroupingSet::Cube(exprs) => GroupingSet::Cube(each(exprs)?),
        GroupingSet::GroupingSets(sets) => {
            GroupingSet::GroupingSets(sets.into_iter().map(each).collect::<Result<_>>()?)
        }
    })
}
