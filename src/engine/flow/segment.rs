//! Segments: the stateless parts of a dataflow (projections, filters, UNION ALL, UNNEST). An ordinary plan that runs
//! over what changed, with the weight as a column that no query sees.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Int64Type, Schema, SchemaRef};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;

use super::{Delta, Run};
use crate::engine::below::Below;
use crate::engine::input::{InputTable, WEIGHT};
use crate::engine::node::split;

/// A plan over the deltas of its inputs.
#[derive(Debug)]
pub struct Segment {
    below: Below,
    /// The tables that stand for its inputs: their columns, and the weight.
    tables: Vec<Arc<InputTable>>,
    schema: SchemaRef,
    /// Whether rows may become equal that were not, and cancel each other.
    append_only: bool,
    /// Whether rows that an expression can't take are left out: those that are final and never go again.
    leaves_out: bool,
}

impl Segment {
    /// Runs `plan`, whose last column is the weight, to rows of `schema`.
    pub fn new(
        plan: Arc<dyn ExecutionPlan>,
        tables: Vec<Arc<InputTable>>,
        schema: SchemaRef,
        append_only: bool,
        leaves_out: bool,
    ) -> Segment {
        Segment { below: Below::new(plan), tables, schema, append_only, leaves_out }
    }

    /// What a change of its inputs changes in its rows; and the reasons of rows that it can't take, which are left
    /// out if it `leaves_out`.
    ///
    /// # Errors
    /// What an expression says of a value.
    pub async fn run(&mut self, deltas: &[Delta], run: &Run<'_>) -> Result<(Delta, Vec<String>)> {
        let (error, all) = match (self.run_over(deltas, run).await, deltas) {
            (Ok(delta), _) => return Ok((delta, Vec::new())),
            (Err(error), [all]) if self.leaves_out => (error, all),
            (Err(error), _) => return Err(error),
        };
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        let mut parts = split(0..all.rows.num_rows(), error, &mut failed);
        while let Some(part) = parts.pop() {
            let rows = all.rows.slice(part.start, part.len());
            let weights = all.weights.slice(part.start, part.len());
            match self.run_over(&[Delta { rows, weights }], run).await {
                Ok(delta) => good.push(delta),
                Err(error) => parts.extend(split(part, error, &mut failed)),
            }
        }
        let reasons = failed.into_iter().map(|error| error.reason).collect();
        Ok((Delta::concat(&self.schema, &good)?, reasons))
    }

    async fn run_over(&mut self, deltas: &[Delta], run: &Run<'_>) -> Result<Delta> {
        let mut inputs = run.inputs.clone();
        for (table, delta) in self.tables.iter().zip(deltas) {
            inputs = inputs.with(table, vec![with_weight(delta)?]);
        }
        let rows = self.below.run(run.runner.context(inputs)).await?;
        let Some((weights, columns)) = rows.columns().split_last() else {
            return internal_err!("a segment without a weight");
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let delta = Delta {
            weights: weights.as_primitive::<Int64Type>().clone(),
            rows: RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.to_vec(), &options)?,
        };
        if self.append_only { Ok(delta) } else { delta.consolidate() }
    }
}

/// The schema with the weight, last.
pub fn with_weight_field(schema: &Schema) -> SchemaRef {
    let weight = Field::new(WEIGHT, arrow::datatypes::DataType::Int64, false);
    let fields = schema.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(fields.chain([weight]).collect::<Vec<_>>()))
}

fn with_weight(delta: &Delta) -> Result<RecordBatch> {
    let mut columns = delta.rows.columns().to_vec();
    columns.push(Arc::new(delta.weights.clone()));
    Ok(RecordBatch::try_new(with_weight_field(&delta.rows.schema()), columns)?)
}
