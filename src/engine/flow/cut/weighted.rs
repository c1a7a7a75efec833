//! Segments: the stateless top of a plan, with the weight as a column that no query sees.

use std::sync::Arc;

use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, TableScan};

use super::{Cut, Plan, columns_of, is_linear, named, reads_rows};
use crate::engine::flow::segment::with_weight_field;
use crate::engine::flow::{finality, numbering};
use crate::engine::hidden::carry;
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
        carry(plan, &[WEIGHT], &mut |node| {
            if is_linear(node) && reads_rows(node) && !numbering::is_limit(node)? {
                return Ok(None);
            }
            // Some columns of a part's rows, or all.
            let (rows, columns) = match node {
                LogicalPlan::TableScan(scan) if self.is_subset(scan)? => {
                    (whole(scan)?, scan.projection.clone().unwrap_or_default())
                }
                _ => (node.clone(), (0..node.schema().fields().len()).collect()),
            };
            let part = self.edge(&rows)?;
            let table = self.slot(&rows, part, tables, inputs);
            named(&table, &columns, node).map(Some)
        })
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
        Ok(is_state && !is_whole(scan))
    }
}

/// Whether a scan is of all columns, in their order.
pub(super) fn is_whole(scan: &TableScan) -> bool {
    let all = 0..scan.source.schema().fields().len();
    scan.projection.as_ref().is_none_or(|projection| projection.iter().copied().eq(all))
}

pub(super) fn whole(scan: &TableScan) -> Result<LogicalPlan> {
    LogicalPlanBuilder::scan(scan.table_name.clone(), Arc::clone(&scan.source), None)?.build()
}
