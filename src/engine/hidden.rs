//! Columns that no query sees, carried with the rows up through a plan.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::{Column, internal_err, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::logical_plan::{SubqueryAlias, TableScanBuilder};
use datafusion::logical_expr::{
    Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, Projection, TableScan, Union,
};

use super::input::{FINAL_UNTIL, ROW, TIME, as_input};
use super::split::reads_stream;

/// The columns that judging lateness needs.
pub const OF_TIME: &[&str] = &[TIME, FINAL_UNTIL, ROW];

/// The plan with columns that no query sees, of the streams that it scans, added to its output.
pub fn with_hidden(plan: &LogicalPlan, names: &[&str]) -> Result<LogicalPlan> {
    carry(plan, names, &mut |node| match node {
        LogicalPlan::TableScan(scan) => scan_with(scan, names).map(Some),
        _ => Ok(None),
    })
}

/// The plan with the columns `names` added to its output. `leaf` gives what stands in place of a leaf and has them,
/// last; none for what is no leaf. After a join they may be in the middle.
pub fn carry(
    plan: &LogicalPlan,
    names: &[&str],
    leaf: &mut dyn FnMut(&LogicalPlan) -> Result<Option<LogicalPlan>>,
) -> Result<LogicalPlan> {
    if let Some(leaf) = leaf(plan)? {
        return Ok(leaf);
    }
    Ok(match plan {
        LogicalPlan::Projection(projection) => {
            let input = carry(&projection.input, names, leaf)?;
            let mut columns = projection.expr.clone();
            columns.extend(hidden(&input, names)?);
            LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?)
        }
        LogicalPlan::Filter(filter) => LogicalPlan::Filter(Filter::try_new(
            filter.predicate.clone(),
            Arc::new(carry(&filter.input, names, leaf)?),
        )?),
        LogicalPlan::SubqueryAlias(alias) => LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(
            Arc::new(carry(&alias.input, names, leaf)?),
            alias.alias.clone(),
        )?),
        LogicalPlan::Unnest(unnest) => LogicalPlanBuilder::from(carry(&unnest.input, names, leaf)?)
            .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
            .build()?,
        LogicalPlan::Join(join) => {
            let (mut left, mut right) = (Arc::clone(&join.left), Arc::clone(&join.right));
            let side = if reads_stream(&left) { &mut left } else { &mut right };
            *side = Arc::new(carry(side, names, leaf)?);
            LogicalPlan::Join(Join::try_new(
                left,
                right,
                join.on.clone(),
                join.filter.clone(),
                join.join_type,
                join.join_constraint,
                join.null_equality,
                join.null_aware,
            )?)
        }
        LogicalPlan::Union(union) => {
            let inputs = union.inputs.iter();
            let inputs = inputs.map(|input| Ok(Arc::new(carry(input, names, leaf)?)));
            let inputs = inputs.collect::<Result<_>>()?;
            // By position: a union's columns are called as those of its first part.
            renamed(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?), plan, names)?
        }
        other => return plan_err!("{} carries no hidden columns", other.display()),
    })
}

/// A plan's first columns under the names of those of `like`, and after them its columns `names`.
pub fn renamed(plan: LogicalPlan, like: &LogicalPlan, names: &[&str]) -> Result<LogicalPlan> {
    let own = plan.schema().columns().into_iter().zip(like.schema().iter());
    let mut columns: Vec<Expr> = own
        .map(|(own, (qualifier, field))| Expr::Column(own).alias_qualified(qualifier.cloned(), field.name()))
        .collect();
    columns.extend(hidden(&plan, names)?);
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

fn hidden(plan: &LogicalPlan, names: &[&str]) -> Result<Vec<Expr>> {
    let column = |name: &&str| {
        let (qualifier, field) = plan.schema().qualified_field_with_unqualified_name(name)?;
        Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
    };
    names.iter().map(column).collect()
}

fn scan_with(scan: &TableScan, names: &[&str]) -> Result<LogicalPlan> {
    let provider = source_as_provider(&scan.source)?;
    let Some(input) = as_input(provider.as_ref()) else {
        return internal_err!("{} is no stream", scan.table_name);
    };
    let visible = provider.schema().fields().len();
    let mut projection = scan.projection.clone().unwrap_or_else(|| (0..visible).collect());
    let hidden = input.with_hidden();
    for name in names {
        projection.push(hidden.schema().index_of(name)?);
    }
    let scan = TableScanBuilder::new(scan.table_name.clone(), provider_as_source(hidden))
        .with_projection(Some(projection))
        .with_filters(scan.filters.clone())
        .with_fetch(scan.fetch);
    Ok(LogicalPlan::TableScan(scan.build()?))
}
