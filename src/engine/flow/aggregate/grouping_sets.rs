//! GROUPING SETS, ROLLUP and CUBE: each row comes once for each set, with NULL for the keys that the set leaves out
//! and with the set's number as one more key.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::concat;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, GroupingSet};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_plan::aggregates::{PhysicalGroupBy, evaluate_group_by};

use super::AggregateSpec;
use crate::batches;
use crate::engine::flow::Delta;

/// The keys of GROUP BY `group_expr`, and with grouping sets, of each set for each key whether it is left out.
pub fn keys_and_sets(group_expr: &[Expr]) -> (Vec<Expr>, Option<Vec<Vec<bool>>>) {
    let [Expr::GroupingSet(set)] = group_expr else { return (group_expr.to_vec(), None) };
    let keys: Vec<Expr> = set.distinct_expr().into_iter().cloned().collect();
    let count = keys.len();
    let sets = match set {
        GroupingSet::GroupingSets(sets) => {
            sets.iter().map(|set| keys.iter().map(|key| !set.contains(key)).collect()).collect()
        }
        GroupingSet::Rollup(_) => {
            (0..=count).map(|kept| (0..count).map(|key| key >= kept).collect()).collect()
        }
        GroupingSet::Cube(_) => {
            (0..1u64 << count).map(|set| (0..count).map(|key| set >> key & 1 == 1).collect()).collect()
        }
    };
    (keys, Some(sets))
}

/// The keys of a row.
#[derive(Debug)]
pub struct GroupingSets {
    group_by: PhysicalGroupBy,
    key_schema: SchemaRef,
}

impl GroupingSets {
    /// Those of an aggregate.
    pub fn new(spec: &AggregateSpec) -> Result<GroupingSets> {
        let name = |at: &usize| spec.input.field(*at).name().clone();
        let keys = spec.keys.iter().map(|at| {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&name(at), *at));
            (column, name(at))
        });
        let group_by = match &spec.grouping_sets {
            None => PhysicalGroupBy::new_single(keys.collect()),
            Some(sets) => {
                let nulls = spec.keys.iter().map(|at| {
                    let null = ScalarValue::try_from(spec.input.field(*at).data_type())?;
                    Ok((Arc::new(Literal::new(null)) as _, name(at)))
                });
                PhysicalGroupBy::new(keys.collect(), nulls.collect::<Result<_>>()?, sets.clone(), true)
            }
        };
        let key_schema = group_by.group_schema(&spec.input)?;
        Ok(GroupingSets { group_by, key_schema })
    }

    /// The columns of a key.
    pub fn key_schema(&self) -> &SchemaRef {
        &self.key_schema
    }

    /// Keys, rows and weights: all rows for each set.
    pub fn expand(&self, delta: &Delta) -> Result<(Vec<ArrayRef>, RecordBatch, Vec<i64>)> {
        let keys = evaluate_group_by(&self.group_by, &delta.rows)?;
        let weights = delta.weights.values();
        if keys.len() <= 1 {
            return Ok((keys.into_iter().next().unwrap_or_default(), delta.rows.clone(), weights.to_vec()));
        }
        let rows = delta.rows.num_rows() as u32;
        let repeated = UInt32Array::from_iter_values((0..keys.len()).flat_map(|_| 0..rows));
        let rows = batches::take(&delta.rows, &repeated)?;
        Ok((concat_sets(&keys)?, rows, weights.repeat(keys.len())))
    }

    /// Keys of the groups of all rows, which are there without any, and how many these are.
    pub fn totals(&self, input: &SchemaRef) -> Result<(Vec<ArrayRef>, usize)> {
        let sets = self.group_by.groups();
        if self.key_schema.fields().is_empty() {
            return Ok((Vec::new(), 1));
        }
        if self.group_by.is_single() {
            return Ok((Vec::new(), 0));
        }
        // Keys are evaluated over a row; of these sets no key looks at it.
        let nullable = input.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let nullable = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
        let columns = nullable.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(nullable, columns, &options)?;
        let keys = evaluate_group_by(&self.group_by, &row)?.into_iter().zip(sets);
        let totals = keys.filter(|(_, set)| set.iter().all(|left_out| *left_out)).map(|(keys, _)| keys);
        let totals = totals.collect::<Vec<_>>();
        Ok(if totals.is_empty() { (Vec::new(), 0) } else { (concat_sets(&totals)?, totals.len()) })
    }
}

fn concat_sets(sets: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>> {
    let column = |i: usize| {
        let parts: Vec<_> = sets.iter().map(|set| set[i].as_ref()).collect();
        Ok(concat(&parts)?)
    };
    (0..sets.first().map_or(0, Vec::len)).map(column).collect()
}
