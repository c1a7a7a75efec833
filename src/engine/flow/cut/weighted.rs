//! Segments: the stateless top of a plan, with the weight as a column that no query sees.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{
    Expr, Filter, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias, TableScan, Union,
};

use super::{Cut, Plan, columns_of, has_subqueries, is_linear, named, reads_rows};
use crate::engine::flow::finality;
use crate::engine::flow::segment::with_weight_field;
use crate::engine::input::{InputTable, Kind, WEIGHT, as_input};
use crate::engine::plan::Identity;

impl Cut<'_> {
    pub(super) fn segment(&mut self, identity: Identity, plan: &LogicalPlan) -> Result<usize> {
        let (mut tables, mut inputs) = (Vec::new(), Vec::new());
        let weighted = self.weighted(plan, &mut tables, &mut inputs)?;
        let append_only = inputs.iter().all(|input| self.is_append_only(*input));
        let columns = 0..plan.schema().fields().len();
        let times = columns.map(|column| {
            finality::traced(&weighted, column, &|table, column| {
                let slot = tables.iter().position(|known| std::ptr::eq(known.as_ref(), table))?;
                self.times(inputs[slot]).get(column)?.clone()
            })
        });
        let times = times.collect();
        let part = self.push(identity, Plan::Segment(weighted, tables), inputs, plan, append_only);
        self.set_times(part, times, Vec::new());
        Ok(part)
    }

    /// A plan with the weight as its last column, over tables that stand for the parts below its linear top.
    pub(super) fn weighted(
        &mut self,
        plan: &LogicalPlan,
        tables: &mut Vec<Arc<InputTable>>,
        inputs: &mut Vec<usize>,
    ) -> Result<LogicalPlan> {
        let is_own = is_linear(plan) && !has_subqueries(plan) && reads_rows(plan);
        match plan {
            LogicalPlan::Projection(projection) if is_own => {
                let input = self.weighted(&projection.input, tables, inputs)?;
                let mut columns = projection.expr.clone();
                columns.push(weight(&input)?);
                Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?))
            }
            LogicalPlan::Filter(filter) if is_own => {
                let input = self.weighted(&filter.input, tables, inputs)?;
                Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input))?))
            }
            LogicalPlan::SubqueryAlias(alias) if is_own => {
                let input = self.weighted(&alias.input, tables, inputs)?;
                Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?))
            }
            LogicalPlan::Unnest(unnest) if is_own => {
                let input = self.weighted(&unnest.input, tables, inputs)?;
                let unnested = LogicalPlanBuilder::from(input)
                    .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
                    .build()?;
                let mut columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
                columns.push(weight(&unnested)?);
                Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(unnested))?))
            }
            LogicalPlan::Union(union) if is_own => {
                let mut parts = Vec::new();
                for input in &union.inputs {
                    parts.push(Arc::new(self.weighted(input, tables, inputs)?));
                }
                let united = LogicalPlan::Union(Union::try_new_with_loose_types(parts)?);
                // By position: a union's columns are called as those of its first part.
                renamed(united, plan, true)
            }
            // Some columns of a part's rows.
            LogicalPlan::TableScan(scan) if self.is_subset(scan)? => {
                let whole = whole(scan)?;
                let part = self.edge(&whole)?;
                let table = self.slot(&whole, part, tables, inputs);
                let columns = scan.projection.iter().flatten().copied();
                let columns: Vec<usize> = columns.collect();
                named(&table, &columns, plan)
            }
            _ => {
                let part = self.edge(plan)?;
                let table = self.slot(plan, part, tables, inputs);
                let columns: Vec<usize> = (0..plan.schema().fields().len()).collect();
                named(&table, &columns, plan)
            }
        }
    }

    pub(super) fn slot(
        &self,
        plan: &LogicalPlan,
        part: usize,
        tables: &mut Vec<Arc<InputTable>>,
        inputs: &mut Vec<usize>,
    ) -> Arc<InputTable> {
        let schema = with_weight_field(&columns_of(plan));
        let table = InputTable::new(format!("part_{part}"), Kind::State, schema);
        tables.push(Arc::clone(&table));
        inputs.push(part);
        table
    }

    /// Whether a scan is of some of the columns of rows that come from outside or from a part.
    pub(super) fn is_subset(&self, scan: &TableScan) -> Result<bool> {
        let provider = source_as_provider(&scan.source)?;
        let is_state = as_input(provider.as_ref()).is_some_and(|input| input.kind() == Kind::State);
        Ok(is_state && scan.projection.is_some() && !is_whole(scan))
    }
}

/// A plan's columns under the names of those of `like`, by position; the weight, if it has one, last.
pub(super) fn renamed(plan: LogicalPlan, like: &LogicalPlan, with_weight: bool) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let mut columns = Vec::new();
    for (i, (qualifier, field)) in like.schema().iter().enumerate() {
        let (own, name) = schema.qualified_field(i);
        let column = Expr::Column(Column::new(own.cloned(), name.name()));
        columns.push(column.alias_qualified(qualifier.cloned(), field.name()));
    }
    if with_weight {
        columns.push(weight(&plan)?);
    }
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

pub(super) fn weight(plan: &LogicalPlan) -> Result<Expr> {
    let (qualifier, field) = plan.schema().qualified_field_with_unqualified_name(WEIGHT)?;
    Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
}

/// Whether a scan is of all columns, in their order.
pub(super) fn is_whole(scan: &TableScan) -> bool {
    let all = 0..scan.source.schema().fields().len();
    scan.projection.as_ref().is_none_or(|projection| projection.iter().copied().eq(all))
}

pub(super) fn whole(scan: &TableScan) -> Result<LogicalPlan> {
    LogicalPlanBuilder::scan(scan.table_name.clone(), Arc::clone(&scan.source), None)?.build()
}
