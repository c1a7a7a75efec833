//! Cuts what is over windows out of a plan that is not optimized yet: what the optimizer would move below a session
//! window would change the sessions, and of rows that no aggregate takes each window must be known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Projection};

use crate::engine::bound::{self, makes_sessions, own_sessions, with_session_keys};
use crate::engine::input::{InputTable, Kind, as_input};
use crate::engine::operands;
use crate::engine::split::{self, Kept, split};
use crate::engine::window_functions::{HOP, TUMBLE, call, is_own_session};

/// A plan without what was cut out of it.
pub struct Cut {
    /// What is left, over tables that stand for the nodes.
    pub plan: LogicalPlan,
    /// The nodes that were cut out.
    pub nodes: Vec<(LogicalPlan, Arc<InputTable>)>,
}

/// By the position of a projection among those that are cut: the columns that are read of it.
type Needed = BTreeMap<usize, BTreeSet<usize>>;

/// Cuts out of `plan`: aggregates over windows, and where these can't be kept up to date from groups alone, the
/// projections that make the windows. `takes_back` tells streams whose rows can go again, `state_of` gives the table
/// of a node.
pub fn cut_windows(
    plan: LogicalPlan,
    takes_back: &dyn Fn(&str) -> bool,
    state: &SessionState,
    state_of: &mut impl FnMut(&LogicalPlan) -> Result<Arc<InputTable>>,
) -> Result<Cut> {
    if !has_windows(&plan)? {
        return Ok(Cut { plan, nodes: Vec::new() });
    }
    // Once to learn which columns are read of the rows.
    let mut tables = Vec::new();
    let mut stand_in = |node: &LogicalPlan| {
        let table = InputTable::new("rows", Kind::State, split::positional_schema(node));
        if let LogicalPlan::Projection(_) = node {
            tables.push(Arc::clone(&table));
        }
        Ok(table)
    };
    let first = cut(plan.clone(), takes_back, None, state, &mut stand_in)?;
    let mut needed: Needed = (0..tables.len()).map(|i| (i, BTreeSet::new())).collect();
    operands::below(state.optimize(&first.plan)?)?.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(input) = as_input(source_as_provider(&scan.source)?.as_ref())
            && let Some(i) = tables.iter().position(|table| std::ptr::eq(table.as_ref(), input))
        {
            let columns = scan.projected_schema.fields().iter();
            let positions = columns.filter_map(|field| field.name().strip_prefix('c')?.parse::<usize>().ok());
            needed.entry(i).or_default().extend(positions);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    cut(plan, takes_back, Some(&needed), state, state_of)
}

fn cut(
    plan: LogicalPlan,
    takes_back: &dyn Fn(&str) -> bool,
    needed: Option<&Needed>,
    state: &SessionState,
    state_of: &mut impl FnMut(&LogicalPlan) -> Result<Arc<InputTable>>,
) -> Result<Cut> {
    let (mut nodes, mut projections) = (Vec::new(), 0);
    let cut = plan.transform_down_with_subqueries(|node| {
        let planned = match &node {
            LogicalPlan::Aggregate(aggregate) => {
                // The columns of GROUPING SETS are not settled before they are optimized.
                let has_sets = matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]);
                let of_sessions = own_sessions(&aggregate.input).is_some();
                // What asks for a row of the query around it is no node by itself.
                let is_correlated = node.exists(|below| Ok(below.contains_outer_reference()))?;
                if is_correlated || !(of_sessions || has_windows(&node)?) {
                    return Ok(Transformed::no(node));
                }
                if has_sets {
                    let as_groups =
                        !of_sessions && only_groups(&node, takes_back, of_sessions, state).is_ok();
                    let down = if as_groups { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue };
                    return Ok(Transformed::new(node, false, down));
                }
                match plan_aggregate(&node, takes_back, of_sessions, state, state_of) {
                    Ok((more, planned)) => {
                        nodes.extend(more);
                        planned
                    }
                    Err(_) => return Ok(Transformed::no(node)),
                }
            }
            LogicalPlan::Projection(projection) if makes_windows(projection)? => {
                let columns = needed.and_then(|needed| needed.get(&projections));
                projections += 1;
                let rows = match window_rows(projection, columns, state) {
                    Ok(rows) => rows,
                    // Over joins and aggregates a tumbling or hopping window is no more than its columns.
                    Err(_) if !makes_sessions(projection) => {
                        projections -= 1;
                        return Ok(Transformed::no(node));
                    }
                    Err(error) => return Err(error),
                };
                let table = state_of(&rows)?;
                let own = node.schema().columns().into_iter().map(Expr::Column);
                let planned =
                    LogicalPlanBuilder::from(split::stand_in(&rows, &table)?).project(own)?.build()?;
                nodes.push((rows, table));
                planned
            }
            _ => return Ok(Transformed::no(node)),
        };
        Ok(Transformed::new(planned, true, TreeNodeRecursion::Jump))
    })?;
    Ok(Cut { plan: cut.data.recompute_schema()?, nodes })
}

type Planned = (Vec<(LogicalPlan, Arc<InputTable>)>, LogicalPlan);

/// Optimizes and splits an aggregate over windows, if groups alone keep it up to date.
fn plan_aggregate(
    aggregate: &LogicalPlan,
    takes_back: &dyn Fn(&str) -> bool,
    of_sessions: bool,
    state: &SessionState,
    state_of: &mut impl FnMut(&LogicalPlan) -> Result<Arc<InputTable>>,
) -> Result<Planned> {
    let (optimized, kept) = only_groups(aggregate, takes_back, of_sessions, state)?;
    let split = split(optimized, takes_back, kept, &mut *state_of)?;
    Ok((split.nodes, split.finishing))
}

/// The aggregate, optimized; an error if groups alone don't keep it up to date.
fn only_groups(
    aggregate: &LogicalPlan,
    takes_back: &dyn Fn(&str) -> bool,
    of_sessions: bool,
    state: &SessionState,
) -> Result<(LogicalPlan, Kept)> {
    let optimized = operands::below(state.optimize(aggregate)?)?;
    let kept = Kept { rows: false, sessions: of_sessions };
    let plain =
        |node: &LogicalPlan| Ok(InputTable::new("groups", Kind::State, split::positional_schema(node)));
    for (node, _) in split(optimized.clone(), takes_back, kept, plain)?.nodes {
        match &node {
            LogicalPlan::Aggregate(aggregate) => drop(bound::session(aggregate, |_| None)?),
            _ => return plan_err!("an aggregate that needs rows"),
        }
    }
    Ok((optimized, kept))
}

/// The rows of the windows that a projection makes: with the keys of sessions as further columns, and of
/// its columns that are not `needed` nulls.
fn window_rows(
    projection: &Projection,
    needed: Option<&BTreeSet<usize>>,
    state: &SessionState,
) -> Result<LogicalPlan> {
    let mut projection = projection.clone();
    for (i, column) in projection.expr.iter_mut().enumerate() {
        let (qualifier, field) = projection.schema.qualified_field(i);
        if needed.is_some_and(|needed| !needed.contains(&i)) && !makes_a_window(column)? {
            let null = Expr::Literal(ScalarValue::try_from(field.data_type())?, None);
            *column = null.alias_qualified(qualifier.cloned(), field.name());
        }
    }
    let has_others = projection.input.exists(|node| {
        let mut others = false;
        node.apply_expressions(|expr| {
            others |= expr.exists(|part| Ok(is_own_session(part)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(others)
    })?;
    let rows = state.optimize(&LogicalPlan::Projection(with_session_keys(&projection)?))?;
    if has_others || !split::is_of_rows(&rows)? || !matches!(rows, LogicalPlan::Projection(_)) {
        return plan_err!("these windows are not of a stream's own rows");
    }
    Ok(rows)
}

/// Whether the plan, or a subquery in it, makes windows.
fn has_windows(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Projection(projection) = node {
            found |= makes_windows(projection)?;
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

fn makes_windows(projection: &Projection) -> Result<bool> {
    projection.expr.iter().try_fold(false, |found, expr| Ok(found || makes_a_window(expr)?))
}

fn makes_a_window(expr: &Expr) -> Result<bool> {
    let is_window =
        |part: &Expr| is_own_session(part) || call(part, TUMBLE).is_some() || call(part, HOP).is_some();
    expr.exists(|part| Ok(is_window(part)))
}
