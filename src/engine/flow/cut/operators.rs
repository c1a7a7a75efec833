//! Which operator takes a part of a plan, and what each needs of its inputs.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{
    Aggregate, Expr, FetchType, Filter, Join, JoinType, Limit, LogicalPlan, LogicalPlanBuilder, Projection,
    SkipType, Sort, Window,
};

use super::subqueries::not_in;
use super::upkeep::upkeep_of_order;
use super::{Cut, Plan, columns_of, has_subqueries, named, positions, with_keys};
use crate::engine::bound::{Bound, unaliased};
use crate::engine::flow::aggregate::{FunctionSpec, keys_and_sets, supports};
use crate::engine::flow::finality::Finality;
use crate::engine::flow::numbering;
use crate::engine::flow::top_k::{Numbering, TopKSpec};
use crate::engine::input::{InputTable, Kind};
use crate::engine::interval::intervals;
use crate::engine::plan::Identity;
use crate::engine::split::stand_in;
use crate::engine::upkeep::{Upkeep, spelled};

impl Cut<'_> {
    pub(super) fn join(&mut self, identity: Identity, join: &Join, plan: &LogicalPlan) -> Result<usize> {
        if join.null_aware {
            return match not_in(join)? {
                Some(rewritten) => self.edge(&rewritten),
                None => self.recompute(identity, plan),
            };
        }
        let (left_keys, right_keys): (Vec<Expr>, Vec<Expr>) = join.on.iter().cloned().unzip();
        let left = with_keys(&join.left, &left_keys, "left")?;
        let right = with_keys(&join.right, &right_keys, "right")?;
        if let (Some(left_positions), Some(right_positions)) =
            (positions(&left_keys, &join.left), positions(&right_keys, &join.right))
        {
            let inputs = vec![self.edge(&join.left)?, self.edge(&join.right)?];
            let only_adds =
                matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi);
            let append_only = only_adds && inputs.iter().all(|input| self.is_append_only(*input));
            // Rows that meet have times that are not far apart: once rows with these change no more on either side,
            // none are met.
            let bound = intervals(join).into_iter().find_map(|interval| {
                let of = |part: usize, column: usize| self.times(part).get(column)?.clone();
                let (left, right) = (of(inputs[0], interval.left)?, of(inputs[1], interval.right)?);
                let streams = &left.streams | &right.streams;
                let left_until = left.after.max(right.after.checked_sub(interval.from)?);
                let right_until = right.after.max(left.after.checked_add(interval.to)?);
                let side = |column, after| (column, Finality { after, streams: streams.clone() });
                Some([side(interval.left, left_until), side(interval.right, right_until)])
            });
            let (of_sides, clocks) = match &bound {
                Some([left, right]) => (
                    [left, right].map(|(column, time)| Some((*column, time.after))),
                    [left, right].map(|(_, time)| time.streams.clone()).to_vec(),
                ),
                None if self.terms.hold_ns.is_some() => {
                    ([None, None], vec![self.streams.clone(), self.streams.clone()])
                }
                None => ([None, None], vec![BTreeSet::new(), BTreeSet::new()]),
            };
            let mut times = vec![None; plan.schema().fields().len()];
            for (side, (column, time)) in bound.iter().flatten().enumerate() {
                let first = match keeps_side(join, 0) && side == 1 {
                    true => join.left.schema().fields().len(),
                    false => 0,
                };
                if keeps_side(join, side) {
                    times[first + column] = Some(time.clone());
                }
            }
            let how = Plan::Join {
                join: join.clone(),
                keys: [left_positions.clone(), right_positions.clone()],
                times: of_sides,
                hold_ns: self.terms.hold_ns.filter(|_| bound.is_none()),
            };
            let upkeep = self.upkeep_of_join(join, &inputs, bound.as_ref().map(|sides| &sides[..]));
            let part = self.push(identity, how, inputs, plan, append_only);
            self.set_times(part, times, clocks);
            self.set_upkeep(part, upkeep);
            return Ok(part);
        }
        // Keys are columns, computed below.
        let on = left.1.into_iter().zip(right.1).collect();
        let over_columns = Join::try_new(
            Arc::new(left.0),
            Arc::new(right.0),
            on,
            join.filter.clone(),
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?;
        let columns = plan.schema().columns().into_iter().map(Expr::Column).collect();
        let over = Projection::try_new(columns, Arc::new(LogicalPlan::Join(over_columns)))?;
        self.edge(&LogicalPlan::Projection(over))
    }

    pub(super) fn window(
        &mut self,
        identity: Identity,
        window: &Window,
        plan: &LogicalPlan,
    ) -> Result<usize> {
        let mut common: Option<Vec<Expr>> = None;
        for expr in &window.window_expr {
            let Expr::WindowFunction(function) = unaliased(expr) else {
                return self.recompute(identity, plan);
            };
            let by = &function.params.partition_by;
            common = Some(match common {
                Some(common) => common.into_iter().filter(|expr| by.contains(expr)).collect(),
                None => by.clone(),
            });
        }
        self.by_key(identity, plan, vec![common.unwrap_or_default()])
    }

    /// An aggregate whose groups are kept by weight; one that can't be falls apart by its groups.
    pub(super) fn aggregate(
        &mut self,
        identity: Identity,
        aggregate: &Aggregate,
        plan: &LogicalPlan,
    ) -> Result<usize> {
        let (keys, grouping_sets) = keys_and_sets(&aggregate.group_expr);
        let input = aggregate.input.schema();
        if !aggregate.aggr_expr.iter().all(|function| supports(function, input)) {
            let keys = if grouping_sets.is_some() { Vec::new() } else { keys };
            return self.by_key(identity, plan, vec![keys]);
        }
        let mut columns = keys.clone();
        let mut place = |expr: &Expr| {
            columns.iter().position(|known| known == expr).unwrap_or_else(|| {
                columns.push(expr.clone());
                columns.len() - 1
            })
        };
        let mut functions = Vec::new();
        for function in &aggregate.aggr_expr {
            let Expr::AggregateFunction(call) = unaliased(function) else {
                return internal_err!("{function} is no aggregate function");
            };
            // COUNT(*) is COUNT(1).
            let counted = |expr: &&Expr| !matches!(expr, Expr::Literal(value, _) if !value.is_null());
            let of_rows = call.func.name() == "count" && !call.params.distinct;
            let args = call.params.args.iter().filter(|expr| !of_rows || counted(expr));
            functions.push(FunctionSpec {
                function: Arc::clone(&call.func),
                arguments: args.map(&mut place).collect(),
                filter: call.params.filter.as_ref().map(|filter| place(filter)),
                distinct: call.params.distinct,
            });
        }
        let named = columns.into_iter().enumerate();
        let columns =
            named.map(|(i, expr)| unaliased(&expr).clone().alias(format!("__column_{i}"))).collect();
        let below = Projection::try_new(columns, Arc::clone(&aggregate.input))?;
        let part = self.edge(&LogicalPlan::Projection(below))?;
        let columns: Vec<usize> = (0..keys.len()).collect();
        let bound = if grouping_sets.is_none() { self.bound(part, &columns) } else { None };
        let values = functions.iter().filter(|function| function.keeps_values());
        let values: Vec<_> = values.map(|function| format!("the values of {function}")).collect();
        let upkeep = Upkeep::of_groups(&keys, &aggregate.input, &values, bound.is_some());
        let of_group = bound.as_ref().map(|(key, time)| Bound { key: *key, after: time.after });
        let how = Plan::Aggregate { keys: keys.len(), grouping_sets, functions, bound: of_group };
        let aggregate = self.push(identity, how, vec![part], plan, false);
        self.set_upkeep(aggregate, upkeep);
        if let Some((key, time)) = bound {
            let times = columns.iter().map(|column| (*column == key).then(|| time.clone())).collect();
            self.set_times(aggregate, times, vec![time.streams]);
        }
        Ok(aggregate)
    }

    pub(super) fn limit(&mut self, identity: Identity, limit: &Limit, plan: &LogicalPlan) -> Result<usize> {
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
            (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            return self.recompute(identity, plan);
        };
        match limit.input.as_ref() {
            LogicalPlan::Sort(sort) => {
                let fetch = match (fetch, sort.fetch.map(|sorted| sorted.saturating_sub(skip))) {
                    (Some(fetch), Some(sorted)) => Some(fetch.min(sorted)),
                    (fetch, sorted) => fetch.or(sorted),
                };
                self.top_k(identity, sort, skip, fetch, plan)
            }
            // The order is that of what is below.
            LogicalPlan::Projection(projection) if !has_subqueries(&limit.input) => {
                let mut below = limit.clone();
                below.input = Arc::clone(&projection.input);
                let over = Projection::try_new(projection.expr.clone(), Arc::new(LogicalPlan::Limit(below)))?;
                self.edge(&LogicalPlan::Projection(over))
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let mut below = limit.clone();
                below.input = Arc::clone(&alias.input);
                self.edge(&LogicalPlan::Limit(below))
            }
            _ => self.recompute(identity, plan),
        }
    }

    pub(super) fn top_k(
        &mut self,
        identity: Identity,
        sort: &Sort,
        skip: usize,
        fetch: Option<usize>,
        plan: &LogicalPlan,
    ) -> Result<usize> {
        let keys: Vec<Expr> = sort.expr.iter().map(|by| by.expr.clone()).collect();
        if let Some(columns) = positions(&keys, &sort.input) {
            let options =
                sort.expr.iter().map(|by| SortOptions { descending: !by.asc, nulls_first: by.nulls_first });
            let order: Vec<_> = columns.into_iter().zip(options).collect();
            let input = self.edge(&sort.input)?;
            let first = TopKSpec {
                schema: columns_of(&sort.input),
                partition: Vec::new(),
                order,
                by: Numbering::RowNumber,
                skip,
                fetch,
                numbers: Vec::new(),
                append_only: self.is_append_only(input),
                bound: None,
            };
            let upkeep = upkeep_of_order(&first, &spelled(&keys, &sort.input), String::new());
            let part = self.push(identity, Plan::TopK(first), vec![input], plan, false);
            self.set_upkeep(part, upkeep);
            return Ok(part);
        }
        let (input, columns) = with_keys(&sort.input, &keys, "by")?;
        let mut by_columns = sort.clone();
        by_columns.input = Arc::new(input);
        for (by, column) in by_columns.expr.iter_mut().zip(columns) {
            by.expr = column;
        }
        let limit = LogicalPlanBuilder::from(LogicalPlan::Sort(by_columns)).limit(skip, fetch)?.build()?;
        let columns = plan.schema().columns().into_iter().map(Expr::Column).collect();
        self.edge(&LogicalPlan::Projection(Projection::try_new(columns, Arc::new(limit))?))
    }

    /// What a filter on the number of a row in its partition leaves: its first rows.
    pub(super) fn first_rows(
        &mut self,
        identity: &Identity,
        filter: &Filter,
        plan: &LogicalPlan,
    ) -> Result<Option<usize>> {
        let Some(numbered) = numbering::limit(filter)? else { return Ok(None) };
        if let Some(rest) = numbered.rest {
            let limited = Filter::try_new(numbered.condition, Arc::clone(&filter.input))?;
            let over = Filter::try_new(rest, Arc::new(LogicalPlan::Filter(limited)))?;
            return self.edge(&LogicalPlan::Filter(over)).map(Some);
        }
        let input = self.edge(numbered.input)?;
        let mut first = numbered.spec;
        first.append_only = self.is_append_only(input);
        let bound = self.bound(input, &first.partition);
        first.bound = bound.as_ref().map(|(key, time)| Bound { key: *key, after: time.after });
        let column = bound.as_ref().map(|(key, _)| first.partition[*key]);
        let named = |columns: &[usize]| {
            let columns: Vec<_> =
                columns.iter().map(|i| Expr::Column(numbered.input.schema().columns()[*i].clone())).collect();
            spelled(&columns, numbered.input)
        };
        let order = named(&first.order.iter().map(|(column, _)| *column).collect::<Vec<_>>());
        let upkeep = upkeep_of_order(&first, &order, named(&first.partition));
        let part = self.push(identity.clone(), Plan::TopK(first), vec![input], plan, false);
        self.set_upkeep(part, upkeep);
        if let (Some((_, time)), Some(column)) = (bound, column) {
            let mut times = vec![None; column + 1];
            times[column] = Some(time.clone());
            self.set_times(part, times, vec![time.streams]);
        }
        Ok(Some(part))
    }

    /// A plan that falls apart by keys of its inputs: of a changed key it is run over all rows.
    pub(super) fn by_key(
        &mut self,
        identity: Identity,
        plan: &LogicalPlan,
        keys: Vec<Vec<Expr>>,
    ) -> Result<usize> {
        let (mut inputs, mut tables, mut scans, mut places) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (input, keys) in plan.inputs().into_iter().zip(&keys) {
            let (with, columns) = with_keys(input, keys, "by")?;
            let part = self.edge(&with)?;
            let table = InputTable::new(format!("part_{part}"), Kind::State, columns_of(&with));
            let own: Vec<usize> = (0..input.schema().fields().len()).collect();
            scans.push(named(&table, &own, input)?);
            places.push(positions(&columns, &with).unwrap_or_default());
            inputs.push(part);
            tables.push(table);
        }
        let plan_over = plan.with_new_exprs(plan.expressions(), scans)?;
        let bound = match (&inputs[..], &places[..]) {
            ([input], [key]) => self.bound(*input, key),
            _ => None,
        };
        let column = bound.as_ref().map(|(key, _)| places[0][*key]);
        let bounds = match &bound {
            Some((key, time)) => vec![Some(Bound { key: *key, after: time.after })],
            None => vec![None; inputs.len()],
        };
        let how = Plan::ByKey { plan: plan_over, tables, keys: places, bounds };
        let by = plan.inputs().into_iter().zip(&keys).map(|(input, keys)| spelled(keys, input)).next();
        let upkeep = self.upkeep_by_key(plan, &inputs, by.filter(|by| !by.is_empty()), bound.is_some());
        let part = self.push(identity, how, inputs, plan, false);
        self.set_upkeep(part, upkeep);
        if let (Some((_, time)), Some(column)) = (bound, column) {
            // A window function leaves its input's columns where they are.
            let mut times = Vec::new();
            if matches!(plan, LogicalPlan::Window(_)) && column < plan.inputs()[0].schema().fields().len() {
                times = vec![None; column + 1];
                times[column] = Some(time.clone());
            }
            self.set_times(part, times, vec![time.streams]);
        }
        Ok(part)
    }

    /// A plan that falls apart by nothing: run over all rows of what it reads.
    pub(super) fn recompute(&mut self, identity: Identity, plan: &LogicalPlan) -> Result<usize> {
        if !has_subqueries(plan) {
            let keys = plan.inputs().iter().map(|_| Vec::new()).collect();
            return self.by_key(identity, plan, keys);
        }
        let (mut inputs, mut tables) = (Vec::new(), Vec::new());
        let over = plan.clone().transform_down_with_subqueries(|node| {
            let LogicalPlan::TableScan(_) = &node else { return Ok(Transformed::no(node)) };
            let part = self.edge(&node)?;
            let table = InputTable::new(format!("part_{part}"), Kind::State, columns_of(&node));
            let scan = stand_in(&node, &table)?;
            inputs.push(part);
            tables.push(table);
            Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump))
        })?;
        let keys = inputs.iter().map(|_| Vec::new()).collect();
        let bounds = vec![None; inputs.len()];
        let how = Plan::ByKey { plan: over.data, tables, keys, bounds };
        let upkeep = self.upkeep_by_key(plan, &inputs, None, false);
        let part = self.push(identity, how, inputs, plan, false);
        self.set_upkeep(part, upkeep);
        Ok(part)
    }
}

/// Whether a join's rows have the columns of its left (0) or right (1) side.
pub(super) fn keeps_side(join: &Join, side: usize) -> bool {
    match join.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => side == 0,
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => side == 1,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => true,
    }
}
