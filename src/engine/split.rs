//! Splits a view's optimized logical plan in three: what runs *below* the nodes, on each micro-batch only; the
//! *nodes*, groups or the rows themselves; and the *finishing plan* above them, which becomes a dataflow.
//!
//! What has no one answer is refused here, with what to write instead.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::{
    Expr, JoinType, LogicalPlan, LogicalPlanBuilder, Projection, TableScan, Volatility, lit,
};

use super::bound;
use super::input::{InputTable, Kind, as_input};
use super::window_functions::is_own_session;

/// A view's plan after the split.
#[derive(Debug)]
pub struct Split {
    /// The nodes, each with the table that stands for its rows in `finishing`: the lowest aggregates over a stream
    /// (`LogicalPlan::Aggregate`), and rows of streams (any other plan).
    pub nodes: Vec<(LogicalPlan, Arc<InputTable>)>,
    /// What runs above them; for a view without state, on each micro-batch by itself.
    pub finishing: LogicalPlan,
    /// How a micro-batch is finished.
    pub maintenance: Maintenance,
}

/// Which rows a micro-batch must be finished over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// There is no state: over its own rows, which are added to the view.
    Append,
    /// Each row depends on one row of one node: over the touched ones.
    ByRow,
    /// A dataflow takes what changed in the nodes.
    Flow,
}

/// What a plan may keep.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The view keeps its rows also where it need not.
    pub rows: bool,
    /// The plan is an aggregate over session windows, as [`cut_sessions`] finds them.
    pub sessions: bool,
}

/// Splits `plan`, already optimized. `state_of` gives the table of a node, so that equal nodes of several
/// views can share one; `takes_back` tells the streams whose rows can go again.
pub fn split(
    plan: LogicalPlan,
    takes_back: &dyn Fn(&str) -> bool,
    kept: Kept,
    mut state_of: impl FnMut(&LogicalPlan) -> Result<Arc<InputTable>>,
) -> Result<Split> {
    check_limits(&plan)?;
    if !kept.rows && is_stateless(&plan, takes_back)? {
        return Ok(Split { nodes: Vec::new(), finishing: plan, maintenance: Maintenance::Append });
    }
    let mut nodes: Vec<(LogicalPlan, Arc<InputTable>)> = Vec::new();
    let mut add = |node: LogicalPlan| {
        let table = state_of(&node)?;
        let scan = stand_in(&node, &table)?;
        if !nodes.iter().any(|(_, known)| Arc::ptr_eq(known, &table)) {
            nodes.push((node, table));
        }
        Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump))
    };
    let above = plan.transform_down_with_subqueries(|node| {
        if !reads_stream(&node) {
            return Ok(Transformed::no(node));
        }
        let is_aggregate = match &node {
            LogicalPlan::Aggregate(aggregate) => {
                is_of_stream_rows(&aggregate.input)? && !is_taken_back(&aggregate.input, takes_back)?
            }
            _ => false,
        };
        // A row is taken back as it came: what it met in a reference table may be another row by then.
        let is_alone = || -> Result<bool> {
            let streams = stream_columns(&node)?;
            let all = streams.iter().all(|(stream, _)| takes_back(stream));
            Ok(all && !node.exists(|node| Ok(matches!(node, LogicalPlan::Join(_))))?)
        };
        let is_rows = is_of_stream_rows(&node)? && (!is_taken_back(&node, takes_back)? || is_alone()?);
        if is_aggregate || is_rows {
            return add(node);
        }
        Ok(Transformed::no(node))
    })?;
    let finishing = above.data.recompute_schema()?;
    refuse_leftover_sessions(&finishing)?;
    if !kept.sessions {
        nodes.iter().try_for_each(|(node, _)| refuse_leftover_sessions(node))?;
    }
    let maintenance =
        if is_row_wise(&finishing, Kind::State)? { Maintenance::ByRow } else { Maintenance::Flow };
    Ok(Split { nodes, finishing, maintenance })
}

/// Whether the plan, which is optimized, needs no state: each row of a stream gives its rows for good.
pub fn is_stateless(plan: &LogicalPlan, takes_back: &dyn Fn(&str) -> bool) -> Result<bool> {
    let has_sessions = refuse_leftover_sessions(plan).is_err();
    Ok(!has_sessions && is_of_stream_rows(plan)? && !is_taken_back(plan, takes_back)?)
}

/// Whether the plan gives rows of streams, each treated by itself: it runs on each micro-batch, and keeps nothing.
fn is_of_stream_rows(plan: &LogicalPlan) -> Result<bool> {
    Ok(is_fed_by_stream(plan) && !has_aggregate(plan)? && !reads(plan, Kind::State) && is_below(plan)?)
}

/// Whether a stream that the plan reads can take rows back.
fn is_taken_back(plan: &LogicalPlan, takes_back: &dyn Fn(&str) -> bool) -> Result<bool> {
    Ok(stream_columns(plan)?.iter().any(|(stream, _)| takes_back(stream)))
}

/// Where a plan asks only whether the rows of a stream have a value (IN, EXISTS, EXCEPT, a semi or anti join),
/// the different values are enough: an aggregate keeps them. Not if an `event_time` is among these: groups of it would
/// be final some day, and rows that come later left out.
pub fn keep_values_only(
    plan: LogicalPlan,
    event_time: impl Fn(&str) -> Option<String>,
) -> Result<LogicalPlan> {
    let kept = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Join(join) = &node else { return Ok(Transformed::no(node)) };
        let asks_right =
            matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark);
        let asks_left =
            matches!(join.join_type, JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark);
        let asked = if asks_right { &join.right } else { &join.left };
        let needs_rows = is_fed_by_stream(asked) && !has_aggregate(asked)? && is_below(asked)?;
        if !(asks_left || asks_right) || !needs_rows {
            return Ok(Transformed::no(node));
        }
        let mut columns: Vec<Expr> = asked.schema().columns().into_iter().map(Expr::Column).collect();
        if columns.is_empty() {
            // It asks whether there is a row at all.
            columns.push(lit(true));
        }
        let values =
            LogicalPlanBuilder::from(Arc::clone(asked)).aggregate(columns, Vec::<Expr>::new())?.build()?;
        if matches!(&values, LogicalPlan::Aggregate(values) if bound::bound(values, &event_time).is_some()) {
            return Ok(Transformed::no(node));
        }
        let mut join = join.clone();
        *(if asks_right { &mut join.right } else { &mut join.left }) = Arc::new(values);
        Ok(Transformed::yes(LogicalPlan::Join(join)))
    })?;
    Ok(kept.data)
}

/// `now()` and its kind would be frozen in a plan that is kept, and `random()` would differ between the
/// incremental answer and a recount.
pub fn refuse_volatile(plan: &LogicalPlan) -> Result<()> {
    each_expression(plan, &mut |part| match part {
        Expr::ScalarFunction(call)
            if call.func.signature().volatility != Volatility::Immutable && !is_own_session(part) =>
        {
            plan_err!(
                "{}() gives another answer at each call, so a continuous query can't use it; \
                 use a column of the stream, such as its event time",
                call.func.name()
            )
        }
        _ => Ok(()),
    })
}

/// Calls `check` for every expression of the plan and of its subqueries.
fn each_expression(plan: &LogicalPlan, check: &mut impl FnMut(&Expr) -> Result<()>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                check(part)?;
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

/// A row's own session means nothing where no aggregate merges it with the others.
pub fn refuse_leftover_sessions(plan: &LogicalPlan) -> Result<()> {
    each_expression(plan, &mut |part| {
        if is_own_session(part) {
            return plan_err!(
                "sessions are kept up to date under GROUP BY window_start or window_end and the session's keys \
                 only, without a filter between"
            );
        }
        Ok(())
    })
}

/// Which of equal rows comes first is nobody's promise, so a LIMIT needs an order.
fn check_limits(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node
            && (reads_stream(node) || reads(node, Kind::State))
            && !is_ordered(&limit.input)
        {
            return plan_err!(
                "LIMIT without ORDER BY may give other rows each time; say which rows come first"
            );
        }
        Ok(TreeNodeRecursion::Continue)
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
pub fn stand_in(plan: &LogicalPlan, table: &Arc<InputTable>) -> Result<LogicalPlan> {
    let names = plan.schema().iter().enumerate().map(|(i, (qualifier, field))| {
        let column = Expr::Column(Column::new(Some(table.name()), format!("c{i}")));
        column.alias_qualified(qualifier.cloned(), field.name())
    });
    let scan = LogicalPlanBuilder::scan(table.name(), provider_as_source(Arc::clone(table) as _), None)?;
    // Of two grouping keys one may be named `x` and one `s.x`, which a builder would refuse.
    Ok(LogicalPlan::Projection(Projection::try_new(names.collect(), Arc::new(scan.build()?))?))
}

/// The stream, state or reference table that is scanned, if it is one of ours.
pub fn input_kind(scan: &TableScan) -> Option<Kind> {
    let provider = source_as_provider(&scan.source).ok()?;
    as_input(provider.as_ref()).map(InputTable::kind)
}

/// Whether the plan scans an input table of that kind; what subqueries in its expressions scan counts too.
fn reads(plan: &LogicalPlan, kind: Kind) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::TableScan(scan) if input_kind(scan) == Some(kind));
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found && walked.is_ok()
}

/// Whether the plan scans a stream.
pub fn reads_stream(plan: &LogicalPlan) -> bool {
    reads(plan, Kind::Stream)
}

/// Whether the plan itself, not a subquery in an expression, scans a stream.
fn is_fed_by_stream(plan: &LogicalPlan) -> bool {
    plan.exists(|node| {
        Ok(matches!(node, LogicalPlan::TableScan(scan) if input_kind(scan) == Some(Kind::Stream)))
    })
    .unwrap_or(false)
}

/// Whether there is an aggregate over a stream.
fn has_aggregate(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::Aggregate(_)) && reads_stream(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Each stream that is scanned, with the columns that are read of it.
pub fn stream_columns(plan: &LogicalPlan) -> Result<Vec<(String, Vec<String>)>> {
    columns(plan, Kind::Stream)
}

/// Each reference table that is scanned, with the columns that are read of it.
pub fn reference_columns(plan: &LogicalPlan) -> Result<Vec<(String, Vec<String>)>> {
    columns(plan, Kind::Reference)
}

fn columns(plan: &LogicalPlan, kind: Kind) -> Result<Vec<(String, Vec<String>)>> {
    let mut tables = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && input_kind(scan) == Some(kind)
        {
            let columns = scan.projected_schema.fields().iter().map(|field| field.name().clone()).collect();
            tables.push((scan.table_name.table().to_string(), columns));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tables)
}

/// Whether an expression of this very node asks a stream.
fn asks_stream(node: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = node.apply_subqueries(|subquery| {
        found |= reads_stream(subquery);
        Ok(TreeNodeRecursion::Continue)
    });
    found && walked.is_ok()
}

/// Whether each row of the plan depends on one row of a single input table of that kind and on nothing else.
fn is_row_wise(plan: &LogicalPlan, kind: Kind) -> Result<bool> {
    let other = plan.exists(|node| Ok(!is_row_wise_node(node, kind)?))?;
    Ok(!other)
}

fn is_row_wise_node(node: &LogicalPlan, kind: Kind) -> Result<bool> {
    let row_wise = match node {
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
        LogicalPlan::TableScan(scan) => input_kind(scan) == Some(kind),
        _ => false,
    };
    let mut subqueries = false;
    node.apply_subqueries(|_| {
        subqueries = true;
        Ok(TreeNodeRecursion::Stop)
    })?;
    Ok(row_wise && !subqueries)
}

/// Whether each row of the plan is made of one row of a single stream, and of nothing else.
pub fn is_of_rows(plan: &LogicalPlan) -> Result<bool> {
    let other = plan.exists(|node| {
        Ok(!matches!(node, LogicalPlan::Unnest(_)) && !is_row_wise_node(node, Kind::Stream)?)
    })?;
    Ok(!other)
}

/// Whether each row of the stream is treated by itself.
fn is_below(plan: &LogicalPlan) -> Result<bool> {
    if !is_fed_by_stream(plan) {
        return Ok(false);
    }
    let mut is_below = true;
    plan.apply(|node| {
        if asks_stream(node) {
            is_below = false;
        }
        if !is_below || !is_fed_by_stream(node) {
            return Ok(TreeNodeRecursion::Jump);
        }
        is_below &= match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::TableScan(_) => true,
            LogicalPlan::Union(union) => union.inputs.iter().all(|input| is_fed_by_stream(input)),
            LogicalPlan::Join(join) => {
                let (left, right) = (is_fed_by_stream(&join.left), is_fed_by_stream(&join.right));
                // Other kinds keep rows of the reference table that no row of the stream has met.
                match join.join_type {
                    JoinType::Inner => !(left && right),
                    JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => !right,
                    JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                        !left
                    }
                    JoinType::Full => false,
                }
            }
            _ => false,
        };
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(is_below)
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

/// Whether more rows of the nodes can only add rows to the view.
pub fn is_monotonic(finishing: &LogicalPlan) -> Result<bool> {
    let mut adds = true;
    finishing.apply_with_subqueries(|node| {
        adds &= match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Union(_) => true,
            // A reference table may change, and its rows with it.
            LogicalPlan::TableScan(scan) => input_kind(scan) == Some(Kind::State),
            LogicalPlan::Join(join) => join.join_type == JoinType::Inner,
            // In what order rows are read is another matter.
            LogicalPlan::Sort(sort) => sort.fetch.is_none(),
            _ => false,
        };
        Ok(if adds { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(adds)
}
