//! The tables of a recount: what sources, windows and reference tables hold, at all times or at one.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{DFSchemaRef, Result};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::logical_plan::TableScanBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};

use super::arrivals::{Arrival, HIDDEN, with_hidden};
use super::recount::Recount;
use super::windows::{self, Window};
use crate::batches::renamed;

impl Recount<'_> {
    /// The source whose rows a table has.
    pub fn source_of(&self, table: &str) -> String {
        self.window(table).map_or_else(|| table.to_string(), |window| window.source.clone())
    }

    pub fn window(&self, table: &str) -> Option<&Window> {
        let is_it = |number: &usize| windows::table_name(*number) == table;
        (0..self.windows.len()).find(is_it).map(|number| &self.windows[number])
    }

    /// Rows of a source, window or reference table: of all times, or of one era, or only one of that.
    pub fn rows_of(&self, name: &str, of: Option<(usize, Option<u64>)>, in_time: bool) -> RecordBatch {
        if let Some(table) = self.catalog.tables.get(name) {
            let era = of.map_or(self.eras.len() - 1, |(era, _)| era);
            let batches = self.eras[era].get(name).cloned().unwrap_or_default();
            return concat_batches(&table.schema, &batches).unwrap();
        }
        let arrivals = &self.arrivals[&self.source_of(name)];
        let (rows, of_row) = match self.window(name) {
            Some(window) => {
                let (rows, of_row, _) = window.rows(arrivals, in_time);
                let visible: Vec<usize> = (0..rows.num_columns() - HIDDEN).collect();
                (rows.project(&visible).unwrap(), of_row)
            }
            None => arrivals.all(),
        };
        let keep = of_row.iter().map(|row| {
            let is_such =
                of.is_none_or(|(era, only)| row.era == era && only.is_none_or(|p| row.position == p));
            Some(is_such)
        });
        filter_record_batch(&rows, &BooleanArray::from_iter(keep.collect::<Vec<_>>())).unwrap()
    }

    pub fn with_hidden(&self, name: &str, era: usize, only: Option<u64>) -> RecordBatch {
        let arrivals = &self.arrivals[&self.source_of(name)];
        let (rows, of_row) = match self.window(name) {
            Some(window) => {
                let (rows, of_row, _) = window.rows(arrivals, false);
                (rows, of_row)
            }
            None => {
                let (rows, of_row) = arrivals.all();
                (with_hidden(&rows, &of_row, arrivals.time(), vec![None; of_row.len()]), of_row)
            }
        };
        let is_such = |row: &Arrival| row.era == era && only.is_none_or(|only| row.position == only);
        let keep: Vec<_> = of_row.iter().map(|row| Some(is_such(row))).collect();
        filter_record_batch(&rows, &BooleanArray::from_iter(keep)).unwrap()
    }

    /// The rows of a window function over a stream that were in time, and those that came too late.
    pub fn in_time(&self, name: &str) -> Option<(RecordBatch, Vec<u64>)> {
        let window = self.window(name)?;
        let (rows, _, late) = window.rows(&self.arrivals[&window.source], true);
        let visible: Vec<usize> = (0..rows.num_columns() - HIDDEN).collect();
        Some((rows.project(&visible).unwrap(), late))
    }
}

pub fn swapped(scan: &LogicalPlan, table: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
    let LogicalPlan::TableScan(scan) = scan else { panic!("no scan: {scan}") };
    let scan = TableScanBuilder::new(scan.table_name.clone(), provider_as_source(table));
    Ok(LogicalPlan::TableScan(scan.build()?))
}

pub fn mem_table(rows: RecordBatch) -> Arc<dyn TableProvider> {
    Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap())
}

/// A scan of rows that has the column names of a plan.
pub fn stand_in(schema: &DFSchemaRef, rows: RecordBatch) -> Result<LogicalPlan> {
    let fields = rows
        .schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(i, field)| Field::new(format!("c{i}"), field.data_type().clone(), true))
        .collect::<Vec<_>>();
    let positional: SchemaRef = Arc::new(Schema::new(fields));
    let rows = renamed(&rows, &positional)?;
    let names = schema.iter().enumerate().map(|(i, (qualifier, field))| {
        let column = datafusion::common::Column::new(Some("oracle_below"), format!("c{i}"));
        Expr::Column(column).alias_qualified(qualifier.cloned(), field.name())
    });
    LogicalPlanBuilder::scan("oracle_below", provider_as_source(mem_table(rows)), None)?
        .project(names)?
        .build()
}
