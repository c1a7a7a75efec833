//! What a view is: its SELECT, run by plain DataFusion over all rows so far. Where watermarks, `hold_for` or changed
//! reference tables say that rows are not counted, or are counted as they met the tables then, the rows under
//! an aggregate are taken apart by that definition first, and plain DataFusion does the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Field, Int64Type, Schema, UInt64Type};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;

use super::arrivals::{Arrivals, FINAL_UNTIL, HIDDEN, POSITION, TIME, WINDOW_END};
use super::finality;
use super::tables::{mem_table, stand_in, swapped};
use super::windows::{self, Window};
use crate::catalog::{Catalog, Mode, ViewDef};
use crate::engine::session;
use crate::engine::windows::{Sessions, rewrite};

/// Everything that was told to an engine.
pub struct Recount<'a> {
    pub catalog: &'a Catalog,
    pub arrivals: &'a BTreeMap<String, Arrivals>,
    /// The reference tables, as they were at first, and after each change that rows came after.
    pub eras: &'a [BTreeMap<String, Vec<RecordBatch>>],
    pub session: SessionContext,
    pub windows: Vec<Window>,
    plans: BTreeMap<String, LogicalPlan>,
}

/// What a view should be.
pub struct Counted {
    pub rows: Vec<RecordBatch>,
    /// Positions of the rows that came too late for it.
    pub late: BTreeSet<u64>,
    /// Positions of the rows that an expression of it can't take.
    pub failed: BTreeSet<u64>,
}

/// Rows under an aggregate or a join, without those that came late or that an expression can't take.
pub struct Below {
    pub rows: RecordBatch,
    pub late: Vec<u64>,
    pub failed: Vec<u64>,
}

/// What tells when a group is final.
pub enum Bound {
    /// An expression over the event time of a source.
    Time(Expr),
    /// A window of a window function.
    Window,
}

impl<'a> Recount<'a> {
    /// Registers the tables and plans the views.
    pub async fn new(
        catalog: &'a Catalog,
        arrivals: &'a BTreeMap<String, Arrivals>,
        eras: &'a [BTreeMap<String, Vec<RecordBatch>>],
    ) -> Result<Recount<'a>> {
        let session = session::batch(session::base_config());
        let mut recount =
            Recount { catalog, arrivals, eras, session, windows: Vec::new(), plans: BTreeMap::new() };
        for name in catalog.sources.keys().chain(catalog.tables.keys()) {
            let table = mem_table(recount.rows_of(name, None, false));
            recount.session.register_table(name.as_str(), table).unwrap();
        }
        recount.plan_views().await?;
        Ok(recount)
    }

    /// Views read each other in any order.
    async fn plan_views(&mut self) -> Result<()> {
        let mut left: Vec<_> = self.catalog.views.values().collect();
        while !left.is_empty() {
            let before = left.len();
            let (mut later, mut refused) = (Vec::new(), None);
            for view in left {
                let mut query = view.query.clone();
                let known = self.windows.len();
                let is_source = |name: &str| self.catalog.sources.contains_key(name);
                windows::take_out(&mut query, is_source, &self.session, &mut self.windows);
                for number in known..self.windows.len() {
                    let name = windows::table_name(number);
                    let table = mem_table(self.rows_of(&name, None, false));
                    self.session.register_table(name, table).unwrap();
                }
                rewrite(&mut query, Sessions::Batch).unwrap();
                match self.session.state().statement_to_plan(query).await {
                    Ok(plan) => {
                        let table = datafusion::catalog::view::ViewTable::new(plan.clone(), None);
                        self.session.register_table(view.name.as_str(), Arc::new(table)).unwrap();
                        self.plans.insert(view.name.clone(), plan);
                    }
                    Err(error) => {
                        refused = Some(error);
                        later.push(view);
                    }
                }
            }
            match refused {
                // The view that it reads may be planned by now.
                Some(error) if later.len() == before => return Err(error),
                _ => left = later,
            }
        }
        Ok(())
    }

    /// The plan of a view.
    pub fn plan(&self, view: &str) -> &LogicalPlan {
        &self.plans[view]
    }

    /// A view's rows, and which rows are not in it; an error if it can't be computed.
    pub async fn view(&self, def: &ViewDef) -> Result<Counted> {
        let mut plan = self.plans[&def.name].clone();
        let (mut late, mut failed) = (BTreeSet::new(), BTreeSet::new());
        let keeps_rows = def.hold.is_some() || matches!(def.mode, Some(Mode::Update | Mode::Complete));
        let keeps_nothing = !keeps_rows && !self.has_aggregate(&plan);
        if keeps_nothing && self.counts_each_row(&plan) {
            let (rows, failed) = self.run_by_era(&plan, &plan, None, false).await?;
            return Ok(Counted { rows: vec![rows], late, failed: failed.into_iter().collect() });
        }
        let (mut found, mut held, mut replaced) = (Vec::new(), Vec::new(), HashMap::new());
        if let Some((placed, sides)) = self.interval_joins(&plan)? {
            plan = placed;
            for (side, source) in sides {
                let below = self.on_time(&side, &source).await?;
                late.extend(below.late);
                failed.extend(below.failed);
                let stands = stand_in(side.schema(), below.rows)?;
                replaced.insert(side, stands);
            }
        }
        plan.apply_with_subqueries(|node| {
            let list = match () {
                () if replaced.contains_key(node) => return Ok(TreeNodeRecursion::Jump),
                () if self.is_incremental(node) => &mut found,
                () if self.counts_each_row(node) => &mut held,
                () => return Ok(TreeNodeRecursion::Continue),
            };
            if !list.contains(node) {
                list.push(node.clone());
            }
            Ok(TreeNodeRecursion::Jump)
        })?;
        for node in held {
            let reads_reference = self.reads(&node, |name| self.catalog.tables.contains_key(name));
            if self.eras.len() > 1 && reads_reference || self.run(node.clone()).await.is_err() {
                node.apply(|part| {
                    if let LogicalPlan::TableScan(scan) = part {
                        late.extend(
                            self.in_time(scan.table_name.table()).map_or(Vec::new(), |(_, late)| late),
                        );
                    }
                    Ok(TreeNodeRecursion::Continue)
                })?;
                let (rows, rows_failed) = self.run_by_era(&node, &node, None, true).await?;
                failed.extend(rows_failed);
                replaced.insert(node.clone(), stand_in(node.schema(), rows)?);
            }
        }
        let has_failed = self.run(plan.clone()).await.is_err();
        for node in found {
            let only_final = def.mode == Some(Mode::Append);
            if let Some(below) = self.below(&node, only_final, has_failed).await? {
                late.extend(below.late);
                failed.extend(below.failed);
                let input = stand_in(node.inputs()[0].schema(), below.rows)?;
                let stands = node.with_new_exprs(node.expressions(), vec![input])?;
                replaced.insert(node, stands);
            }
        }
        let finished = plan.clone().transform_down_with_subqueries(|node| {
            if let Some(stands) = replaced.get(&node) {
                return Ok(Transformed::new(stands.clone(), true, TreeNodeRecursion::Jump));
            }
            if self.is_incremental(&node) {
                return Ok(Transformed::new(node, false, TreeNodeRecursion::Jump));
            }
            match &node {
                LogicalPlan::TableScan(scan) => {
                    let name = scan.table_name.table();
                    let Some((rows, too_late)) = self.in_time(name) else {
                        return Ok(Transformed::no(node));
                    };
                    late.extend(too_late);
                    Ok(Transformed::yes(swapped(&node, mem_table(rows))?))
                }
                _ => Ok(Transformed::no(node)),
            }
        })?;
        let finished = finished.data.transform_up(|node| Ok(Transformed::yes(node.recompute_schema()?)))?;
        let rows = self.run(finished.data).await?;
        Ok(Counted { rows, late, failed })
    }

    /// Runs a plan over all rows so far.
    pub async fn run(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
        DataFrame::new(self.session.state(), plan).collect().await
    }

    /// The rows under an aggregate that must be taken apart: late ones from others, those that met one version
    /// of a reference table from those that met the next. None: all rows count, and as they are.
    async fn below(&self, node: &LogicalPlan, only_final: bool, may_fail: bool) -> Result<Option<Below>> {
        let input = node.inputs()[0];
        let evaluating = if may_fail { evaluating(node, true)? } else { input.clone() };
        let reads_reference = self.reads(input, |name| self.catalog.tables.contains_key(name));
        let Some((bound, table)) = &self.narrowest(node) else {
            let by_era = self.eras.len() > 1 && reads_reference;
            if !by_era && (!may_fail || self.run(evaluating.clone()).await.is_ok()) {
                return Ok(None);
            }
            let (rows, failed) = self.run_by_era(input, &evaluating, None, false).await?;
            return Ok(Some(Below { rows, late: Vec::new(), failed }));
        };
        // A row is late by its key: what else is asked of it is asked of those in time.
        let keys = if may_fail { self::evaluating(node, false)? } else { input.clone() };
        let (rows, mut failed) = self.run_by_era(input, &keys, Some(table), false).await?;
        let hidden = |name: &str| rows.column_by_name(name).unwrap();
        let ends: Vec<Option<i64>> = match bound {
            Bound::Window => hidden(WINDOW_END).as_primitive::<Int64Type>().iter().collect(),
            Bound::Time(key) => finality::ends(key, TIME, hidden(TIME), &self.session),
        };
        let final_until = hidden(FINAL_UNTIL).as_primitive::<Int64Type>();
        let positions = hidden(POSITION).as_primitive::<UInt64Type>();
        let is_late = |row: usize| {
            final_until.is_valid(row) && ends[row].is_some_and(|end| end <= final_until.value(row))
        };
        let of = |rows: &mut dyn Iterator<Item = usize>| rows.map(|row| positions.value(row)).collect();
        let in_time: BTreeSet<u64> = of(&mut (0..rows.num_rows()).filter(|row| !is_late(*row)));
        let mut unable = BTreeSet::new();
        if may_fail {
            let (_, all) = self.run_by_era(input, &evaluating, Some(table), false).await?;
            unable.extend(all.into_iter().filter(|position| in_time.contains(position)));
            failed.extend(&unable);
        }
        let can = |row: usize| !unable.contains(&positions.value(row));
        let late = of(&mut (0..rows.num_rows()).filter(|row| is_late(*row) && can(*row)));
        let late: Vec<u64> = late.into_iter().collect();
        let closed = self.arrivals[&self.source_of(table)].closed();
        let is_final = |row: usize| closed.is_some_and(|closed| ends[row].is_some_and(|end| end <= closed));
        let keep =
            (0..rows.num_rows()).map(|row| Some(!is_late(row) && can(row) && (!only_final || is_final(row))));
        let rows = filter_record_batch(&rows, &BooleanArray::from_iter(keep.collect::<Vec<_>>()))?;
        let visible: Vec<usize> = (0..input.schema().fields().len()).collect();
        Ok(Some(Below { rows: rows.project(&visible)?, late, failed }))
    }

    /// What a key tells of when its groups are final, and the table whose times it goes by.
    pub fn bound(&self, key: Expr, input: &LogicalPlan) -> Option<(Bound, String)> {
        let (key, table) = finality::trace(key, input)?;
        if !self.is_stream(&table) {
            return None;
        }
        let source = self.source_of(&table);
        let time = self.arrivals[&source].time()?;
        let is_window_column =
            matches!(&key, Expr::Column(c) if ["window_start", "window_end"].contains(&c.name.as_str()));
        if let Some(window) = self.window(&table).filter(|_| is_window_column) {
            return (window.time == time).then_some((Bound::Window, table));
        }
        let qualifier = key.column_refs().into_iter().next()?.relation.clone()?;
        let schema = DFSchema::try_from_qualified_schema(qualifier, &self.catalog.sources[&source].schema);
        finality::keeps_order(&key, time, &schema.ok()?).then_some((Bound::Time(key), table))
    }

    /// Runs a plan over the rows of each era with the reference tables as they were then, with the hidden columns
    /// of `table`, last; and the positions of the rows over which `evaluating`, alone, can't be run: they are left out.
    pub async fn run_by_era(
        &self,
        plan: &LogicalPlan,
        evaluating: &LogicalPlan,
        table: Option<&String>,
        in_time: bool,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        let mut schema = Arc::new(Schema::empty());
        for era in 0..self.eras.len() {
            let over = |plan: &LogicalPlan, only: Option<u64>| {
                let plan = self.as_of(plan, era, only, in_time)?;
                table.map_or(Ok(plan.clone()), |table| self.carry(&plan, table, era, only))
            };
            let whole = over(plan, None)?;
            schema = Arc::new(whole.schema().as_arrow().clone());
            if self.run(self.as_of(evaluating, era, None, in_time)?).await.is_ok() {
                all.extend(self.run(whole).await?);
                continue;
            }
            for position in self.positions(era) {
                match self.run(self.as_of(evaluating, era, Some(position), in_time)?).await {
                    Ok(_) => all.extend(self.run(over(plan, Some(position))?).await?),
                    Err(_) => failed.push(position),
                }
            }
        }
        let Some(first) = all.first() else { return Ok((RecordBatch::new_empty(schema), failed)) };
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let schema = Arc::new(Schema::new(first.schema().fields().iter().map(nullable).collect::<Vec<_>>()));
        let batches = all.iter().map(|batch| batch.clone().with_schema(Arc::clone(&schema)));
        Ok((concat_batches(&schema, &batches.collect::<Result<Vec<_>, _>>()?)?, failed))
    }

    /// Positions of an era's rows of all sources.
    fn positions(&self, era: usize) -> Vec<u64> {
        let of = |arrivals: &Arrivals| {
            let (_, rows) = arrivals.all();
            rows.iter().filter(|row| row.era == era).map(|row| row.position).collect::<Vec<_>>()
        };
        self.arrivals.values().flat_map(of).collect()
    }

    /// The plan over the rows of an era, or one of them, and the reference tables of then.
    fn as_of(&self, plan: &LogicalPlan, era: usize, only: Option<u64>, in_time: bool) -> Result<LogicalPlan> {
        if self.eras.len() == 1 && only.is_none() && !in_time {
            return Ok(plan.clone());
        }
        let swapped = plan.clone().transform_up_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = &node else { return Ok(Transformed::no(node)) };
            if !self.is_ours(scan.table_name.table()) {
                return Ok(Transformed::no(node));
            }
            let rows = self.rows_of(scan.table_name.table(), Some((era, only)), in_time);
            Ok(Transformed::yes(swapped(&node, mem_table(rows))?))
        });
        Ok(swapped?.data)
    }

    /// The plan with the hidden columns of a table that it scans, last.
    fn carry(&self, plan: &LogicalPlan, table: &str, era: usize, only: Option<u64>) -> Result<LogicalPlan> {
        let inputs = plan.inputs();
        match plan {
            LogicalPlan::TableScan(_) => swapped(plan, mem_table(self.with_hidden(table, era, only))),
            LogicalPlan::Projection(projection) => {
                let input = self.carry(&projection.input, table, era, only)?;
                let fields = input.schema().fields().len();
                let hidden = (fields - HIDDEN..fields).map(|i| finality::column(input.schema(), i));
                let columns = projection.expr.iter().cloned().chain(hidden).collect();
                plan.with_new_exprs(columns, vec![input])
            }
            _ => {
                let with = |input: &&LogicalPlan| match self.reads(input, |name| name == table) {
                    true => self.carry(input, table, era, only),
                    false => Ok((*input).clone()),
                };
                let inputs = inputs.iter().map(with).collect::<Result<_>>()?;
                hidden_last(plan.with_new_exprs(plan.expressions(), inputs)?)
            }
        }
    }
}

/// The rows under an aggregate with the keys that it asks of each of them, or everything.
fn evaluating(node: &LogicalPlan, everything: bool) -> Result<LogicalPlan> {
    let LogicalPlan::Aggregate(aggregate) = node else { return Ok(node.inputs()[0].clone()) };
    let mut asked = Vec::new();
    for expr in &aggregate.group_expr {
        match expr {
            Expr::GroupingSet(sets) => asked.extend(sets.distinct_expr().into_iter().cloned()),
            expr => asked.push(expr.clone()),
        }
    }
    for expr in aggregate.aggr_expr.iter().filter(|_| everything) {
        expr.apply(|part| {
            let Expr::AggregateFunction(function) = part else { return Ok(TreeNodeRecursion::Continue) };
            let params = &function.params;
            asked.extend(params.args.iter().cloned());
            asked.extend(params.filter.iter().map(|filter| filter.as_ref().clone()));
            asked.extend(params.order_by.iter().map(|by| by.expr.clone()));
            Ok(TreeNodeRecursion::Jump)
        })?;
    }
    if asked.is_empty() {
        return Ok(aggregate.input.as_ref().clone());
    }
    let named = asked.into_iter().enumerate().map(|(i, expr)| expr.alias(format!("asked_{i}")));
    LogicalPlanBuilder::from(Arc::clone(&aggregate.input)).project(named)?.build()
}

/// A plan that has its hidden columns somewhere, with these last.
fn hidden_last(plan: LogicalPlan) -> Result<LogicalPlan> {
    let hidden = [POSITION, FINAL_UNTIL, TIME, WINDOW_END];
    let schema = Arc::clone(plan.schema());
    let is_hidden = |i: &usize| hidden.contains(&schema.field(*i).name().as_str());
    let fields = schema.fields().len();
    if (fields - HIDDEN..fields).all(|i| is_hidden(&i)) {
        return Ok(plan);
    }
    let (last, first): (Vec<usize>, Vec<usize>) = (0..fields).partition(is_hidden);
    let columns = first.into_iter().chain(last).map(|i| finality::column(&schema, i));
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}
