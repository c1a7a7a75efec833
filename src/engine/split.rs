//! Splits a view's optimized logical plan in three: what runs *below* the aggregates, on each micro-batch
//! only; the *aggregates*, which are kept incrementally; and the *finishing plan* above them.
//!
//! What can't be split so is refused here, with what to write instead.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::{
    Aggregate, Expr, JoinType, LogicalPlan, LogicalPlanBuilder, TableScan, Volatility,
};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};

use super::slot::{Kind, SlotTable, as_slot};

/// A view's plan after the split.
#[derive(Debug)]
pub struct Split {
    /// The lowest aggregates over a stream, each with the table that stands for its rows in `finishing`.
    pub aggregates: Vec<(Aggregate, Arc<SlotTable>)>,
    /// What runs above them.
    pub finishing: LogicalPlan,
    /// Parts of `finishing` that read reference tables only: run once per refresh, not per micro-batch.
    pub folded: Vec<(LogicalPlan, Arc<SlotTable>)>,
    /// Whether each row of `finishing` depends on one row of one aggregate, so that it runs on touched
    /// groups only.
    pub row_wise: bool,
}

/// Splits `plan`, already optimized. `state_of` gives the table of an aggregate, so that equal
/// aggregates of several views can share one.
pub fn split(plan: LogicalPlan, mut state_of: impl FnMut(&Aggregate) -> Arc<SlotTable>) -> Result<Split> {
    refuse_stream_subqueries(&plan)?;
    let mut aggregates = Vec::new();
    let above = plan.transform_down(|node| match &node {
        LogicalPlan::Aggregate(aggregate)
            if reads(&node, Kind::Stream) && !has_stream_aggregate(&aggregate.input)? =>
        {
            check_below(&aggregate.input)?;
            let state = state_of(aggregate);
            let scan = stand_in(&node, &state)?;
            aggregates.push((aggregate.clone(), state));
            Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump))
        }
        LogicalPlan::TableScan(scan) if slot_kind(scan) == Some(Kind::Stream) => plan_err!(
            "this query needs the rows of the stream `{}` themselves: only what is under an aggregate \
                 (GROUP BY, COUNT, SUM, DISTINCT, …) is kept; group it",
            scan.table_name
        ),
        _ => Ok(Transformed::no(node)),
    })?;
    let mut folded = Vec::new();
    let finishing = above.data.recompute_schema()?.transform_down(|node| {
        if !reads(&node, Kind::State) && reads(&node, Kind::Reference) && costs(&node)? {
            let name = format!("folded_{}", folded.len());
            let table = SlotTable::new(name, Kind::Reference, positional_schema(&node));
            let scan = stand_in(&node, &table)?;
            folded.push((node, table));
            return Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump));
        }
        let jump =
            if reads(&node, Kind::State) { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Jump };
        Ok(Transformed::new(node, false, jump))
    })?;
    let finishing = finishing.data.recompute_schema()?;
    let row_wise = aggregates.len() == 1 && is_row_wise(&finishing)?;
    Ok(Split { aggregates, finishing, folded, row_wise })
}

/// `now()` and its kind would be frozen in a plan that is kept, and `random()` would differ between the
/// incremental answer and a recount.
pub fn refuse_volatile(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| match part {
                Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                    plan_err!(
                        "{}() gives another answer at each call, so a continuous query can't use it; \
                     use a column of the stream, such as its event time",
                        call.func.name()
                    )
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}

/// The columns `c0, c1, …` of the table that stands for `plan`: names may repeat in a plan, but not here.
pub fn positional_schema(plan: &LogicalPlan) -> SchemaRef {
    let fields = plan.schema().fields().iter().enumerate();
    Arc::new(Schema::new(
        fields
            .map(|(i, f)| Field::new(format!("c{i}"), f.data_type().clone(), f.is_nullable()))
            .collect::<Vec<_>>(),
    ))
}

/// A scan of `table` with the qualified column names of `plan`.
fn stand_in(plan: &LogicalPlan, table: &Arc<SlotTable>) -> Result<LogicalPlan> {
    let names = plan.schema().iter().enumerate().map(|(i, (qualifier, field))| {
        let column = Expr::Column(Column::new(Some(table.name()), format!("c{i}")));
        column.alias_qualified(qualifier.cloned(), field.name())
    });
    LogicalPlanBuilder::scan(table.name(), provider_as_source(Arc::clone(table) as _), None)?
        .project(names)?
        .build()
}

/// The stream, state or reference table that is scanned, if it is one of ours.
fn slot_kind(scan: &TableScan) -> Option<Kind> {
    let provider = source_as_provider(&scan.source).ok()?;
    as_slot(provider.as_ref()).map(SlotTable::kind)
}

fn reads(plan: &LogicalPlan, kind: Kind) -> bool {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::TableScan(scan) if slot_kind(scan) == Some(kind))))
        .unwrap_or(false)
}

fn has_stream_aggregate(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::Aggregate(_)) && reads(node, Kind::Stream)))
}

/// Names of the streams that are read.
pub fn streams(plan: &LogicalPlan) -> Result<Vec<String>> {
    let mut names = Vec::new();
    plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && slot_kind(scan) == Some(Kind::Stream)
        {
            names.push(scan.table_name.table().to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Each reference table that is scanned, with the columns that are read of it.
pub fn reference_columns(plan: &LogicalPlan) -> Result<Vec<(String, Vec<String>)>> {
    let mut tables = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && slot_kind(scan) == Some(Kind::Reference)
        {
            let columns = scan.projected_schema.fields().iter().map(|field| field.name().clone()).collect();
            tables.push((scan.table_name.table().to_string(), columns));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tables)
}

fn refuse_stream_subqueries(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                let subquery = match part {
                    Expr::ScalarSubquery(subquery) => subquery,
                    Expr::Exists(exists) => &exists.subquery,
                    Expr::InSubquery(inside) => &inside.subquery,
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                if reads(&subquery.subquery, Kind::Stream) {
                    return plan_err!(
                        "a subquery in an expression can't read a stream; join it (CROSS JOIN for one row)"
                    );
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

/// Below an aggregate each row of the stream must be treated by itself.
fn check_below(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        if !reads(node, Kind::Stream) {
            return Ok(TreeNodeRecursion::Jump);
        }
        match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::TableScan(_) => {}
            LogicalPlan::Union(union) if union.inputs.iter().all(|input| reads(input, Kind::Stream)) => {}
            LogicalPlan::Join(join) => {
                let (left, right) = (reads(&join.left, Kind::Stream), reads(&join.right, Kind::Stream));
                if left && right {
                    return plan_err!("a join of two streams below an aggregate is not known; aggregate each, then join");
                }
                let keeps_stream_rows_only = match join.join_type {
                    JoinType::Inner => true,
                    JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left,
                    JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right,
                    _ => false,
                };
                if !keeps_stream_rows_only {
                    return plan_err!(
                        "a {} join here also keeps rows of the reference table that no row of the stream has met; \
                         aggregate the stream first, then join: FROM table LEFT JOIN (SELECT … GROUP BY …)",
                        join.join_type
                    );
                }
            }
            other => {
                let name = other.display().to_string();
                let name = name.split([':', ' ']).next().unwrap_or_default().to_string();
                return plan_err!("{name} over the rows of a stream is not known; put it above an aggregate");
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether running the plan does more than passing columns on.
fn costs(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| {
        let passes = matches!(
            node,
            LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::TableScan(_)
        );
        Ok(!passes)
    })
}

/// Whether the rows come out sorted by an ORDER BY of the query itself.
pub fn is_ordered(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Limit(_) => {
            plan.inputs().into_iter().all(is_ordered)
        }
        _ => false,
    }
}

fn is_row_wise(finishing: &LogicalPlan) -> Result<bool> {
    let other = finishing.exists(|node| {
        let row_wise = match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
            LogicalPlan::TableScan(scan) => slot_kind(scan) == Some(Kind::State),
            _ => false,
        };
        Ok(!row_wise)
    })?;
    Ok(!other)
}
