//! The conditions of CHECK: planned once, judged row by row where they fail for all together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, exec_datafusion_err};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::physical_plan::PhysicalExpr;
use datafusion::sql::parser::DFParser;

use super::rules::project;
use crate::batches::{by_halves, in_plain_words};
use crate::error::{Error, Result};

/// A condition over rows of the columns that it reads.
pub struct Check {
    /// Those columns.
    pub reads: SchemaRef,
    condition: Arc<dyn PhysicalExpr>,
}

/// What a condition says of some rows.
pub struct Verdict {
    /// For each row whether it is not false: as in SQL, NULL passes. It can't be said of the `failed`.
    pub keep: BooleanArray,
    /// Why it can't be evaluated, by row.
    pub failed: BTreeMap<usize, String>,
}

impl Check {
    /// Plans a condition over rows of `declared`.
    pub fn new(expr: &str, declared: &SchemaRef, session: &SessionState) -> Result<Check> {
        let schema = DFSchema::try_from(Arc::clone(declared))?;
        let parsed = DFParser::parse_sql_into_expr(expr)?;
        let logical = session.create_logical_expr_from_sql_expr(parsed, &schema)?;
        refuse_volatile(expr, &logical)?;
        let data_type = logical.get_type(&schema)?;
        if data_type != DataType::Boolean {
            return Err(Error::Config(format!("CHECK ({expr}) is {data_type}; it must be true or false")));
        }
        let read: BTreeSet<_> = logical.column_refs().into_iter().map(|column| &column.name).collect();
        let reads = project(declared, read)?;
        let schema = DFSchema::try_from(Arc::clone(&reads))?;
        Ok(Check { condition: session.create_physical_expr(logical, &schema)?, reads })
    }

    /// Judges rows of the columns that it reads. Only the rows that fail alone are failed.
    pub fn judge(&self, rows: &RecordBatch) -> Verdict {
        let mut keep = BooleanBufferBuilder::new(rows.num_rows());
        let mut failed = BTreeMap::new();
        let evaluate = |rows: &RecordBatch| self.evaluate(rows);
        by_halves(rows, evaluate, |part, holds| match holds {
            Ok(holds) => holds.iter().for_each(|holds| keep.append(holds != Some(false))),
            Err(error) => {
                failed.insert(part.start, in_plain_words(&error));
                keep.append_n(part.len(), false);
            }
        });
        Verdict { keep: BooleanArray::new(keep.finish(), None), failed }
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray, DataFusionError> {
        let value = self.condition.evaluate(rows)?.into_array(rows.num_rows())?;
        let holds = value.as_boolean_opt();
        holds.cloned().ok_or_else(|| exec_datafusion_err!("it is {}", value.data_type()))
    }
}

/// What differs from one evaluation to the next would make a recount judge otherwise.
fn refuse_volatile(expr: &str, logical: &Expr) -> Result<()> {
    let mut found = None;
    logical.apply(|part| {
        if let Expr::ScalarFunction(call) = part
            && call.func.signature().volatility != Volatility::Immutable
        {
            found = Some(call.func.name().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match found {
        Some(function) => Err(Error::Config(format!(
            "CHECK ({expr}): {function}() is another value each time, and a recount must judge alike; event times \
             in the future are refused by the option 'max_future'"
        ))),
        None => Ok(()),
    }
}
