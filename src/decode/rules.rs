//! Judges the rows of a source by its rules. What a rule says never depends on how the rows were cut
//! into micro-batches.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::ExprSchemable;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::sql::parser::DFParser;

use super::{Decoded, Reject};
use crate::batches::project as project_batch;
use crate::catalog::{Rule, RuleKind, SourceDef};
use crate::error::Result;

/// Answers which values a reference table has.
pub trait ForeignKeys {
    /// For each row of `values` whether `table` has a row with those values in `columns`.
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray>;
}

/// A source's rules, and the primary keys that were seen.
pub struct RuleSet {
    rules: Vec<Compiled>,
    /// Keys of the rows that were counted. Exact, in memory: it grows with the number of keys.
    seen: Option<Box<dyn GroupValues>>,
}

struct Compiled {
    rule: Rule,
    /// The columns that it reads, found by name: rows may hold only those that are needed.
    reads: SchemaRef,
    check: Option<Arc<dyn PhysicalExpr>>,
}

impl RuleSet {
    /// Compiles the rules of `source`; `session` plans CHECK expressions.
    pub fn new(source: &SourceDef, session: &SessionState) -> Result<Self> {
        let mut seen = None;
        let mut rules = Vec::new();
        for rule in &source.rules {
            let (reads, check) = match &rule.kind {
                RuleKind::NotNull(column) => (project(&source.schema, [column])?, None),
                RuleKind::PrimaryKey(columns) | RuleKind::ForeignKey { columns, .. } => {
                    (project(&source.schema, columns)?, None)
                }
                RuleKind::Check(expr) => {
                    let (reads, check) = compile(&expr.to_string(), &source.schema, session)
                        .map_err(|e| source.place.error(e))?;
                    (reads, Some(check))
                }
            };
            if let RuleKind::PrimaryKey(_) = rule.kind {
                seen = Some(new_group_values(Arc::clone(&reads), &GroupOrdering::None)?);
            }
            rules.push(Compiled { rule: rule.clone(), reads, check });
        }
        Ok(RuleSet { rules, seen })
    }

    /// The columns that the rules read.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        self.rules.iter().flat_map(|compiled| compiled.reads.fields()).map(|field| field.name())
    }

    /// For each foreign key, the values of `rows` that `keys` does not have: a row of a table may be newer
    /// than what is held of it.
    pub fn missing(
        &self,
        rows: &RecordBatch,
        keys: &dyn ForeignKeys,
    ) -> Result<Vec<(String, Vec<String>, RecordBatch)>> {
        let mut missing = Vec::new();
        for compiled in &self.rules {
            let RuleKind::ForeignKey { table, referred, .. } = &compiled.rule.kind else { continue };
            let values = project_batch(rows, &compiled.reads)?;
            let found = keys.contains(table, referred, values.columns())?;
            if found.true_count() < rows.num_rows() {
                let absent = filter_record_batch(&values, &arrow::compute::not(&found)?)?;
                missing.push((table.clone(), referred.clone(), absent));
            }
        }
        Ok(missing)
    }

    /// The rows that keep every rule, and of the others the first rule that each breaks.
    pub fn judge(&mut self, decoded: Decoded, keys: &dyn ForeignKeys) -> Result<(Decoded, Vec<Reject>)> {
        let Decoded { mut rows, mut messages } = decoded;
        let mut rejects = Vec::new();
        for compiled in &self.rules {
            let values = project_batch(&rows, &compiled.reads)?;
            let keep = match &compiled.rule.kind {
                RuleKind::NotNull(_) => arrow::compute::is_not_null(values.column(0))?,
                RuleKind::Check(_) => compiled.holds(&values)?,
                RuleKind::ForeignKey { table, referred, .. } => {
                    let found = keys.contains(table, referred, values.columns())?;
                    // As in SQL: a foreign key with a NULL refers to nothing and is kept.
                    let nulls = |i: usize| values.columns().iter().any(|column| column.is_null(i));
                    BooleanArray::from_iter(
                        found.iter().enumerate().map(|(i, f)| Some(f == Some(true) || nulls(i))),
                    )
                }
                RuleKind::PrimaryKey(_) => match &mut self.seen {
                    Some(seen) => first_of_each(seen.as_mut(), values.columns())?,
                    None => continue,
                },
            };
            if keep.true_count() == rows.num_rows() {
                continue;
            }
            for (i, message) in messages.iter().enumerate().filter(|(i, _)| !keep.value(*i)) {
                rejects.push(Reject {
                    message: *message,
                    rule: compiled.rule.name.clone(),
                    reason: compiled.reason(&values, i),
                });
            }
            let kept: Vec<u32> = (0..rows.num_rows() as u32).filter(|i| keep.value(*i as usize)).collect();
            messages = kept.iter().map(|i| messages[*i as usize]).collect();
            rows = take_record_batch(&rows, &UInt32Array::from(kept))?;
        }
        Ok((Decoded { rows, messages }, rejects))
    }

    /// Bytes held for the primary keys.
    pub fn bytes(&self) -> usize {
        self.seen.as_ref().map_or(0, |seen| seen.size())
    }
}

impl Compiled {
    /// A check holds unless it is false: as in SQL, NULL passes.
    fn holds(&self, values: &RecordBatch) -> Result<BooleanArray> {
        let Some(check) = &self.check else { return Ok(BooleanArray::from(vec![true; values.num_rows()])) };
        let value = check.evaluate(values)?.into_array(values.num_rows())?;
        let value = arrow::array::AsArray::as_boolean(&value);
        Ok(BooleanArray::from_iter(value.iter().map(|v| Some(v != Some(false)))))
    }

    fn reason(&self, values: &RecordBatch, row: usize) -> String {
        let value =
            |column: &ArrayRef| arrow::util::display::array_value_to_string(column, row).unwrap_or_default();
        let values = values.columns().iter().map(value).collect::<Vec<_>>().join(", ");
        match &self.rule.kind {
            RuleKind::NotNull(column) => format!("{column} is missing or null"),
            RuleKind::Check(expr) => format!("{expr} is false"),
            RuleKind::ForeignKey { table, referred, .. } => {
                format!("{table} has no row whose {} is {values}", referred.join(", "))
            }
            RuleKind::PrimaryKey(columns) => {
                format!("an earlier message with {} {values} was counted", columns.join(", "))
            }
        }
    }
}

/// True for the first row with each value that was not seen before, over all batches.
fn first_of_each(seen: &mut dyn GroupValues, values: &[ArrayRef]) -> Result<BooleanArray> {
    let mut next = seen.len();
    let mut ids = Vec::new();
    seen.intern(values, &mut ids)?;
    // New values get the next number, in the order of their first rows.
    Ok(BooleanArray::from_iter(ids.into_iter().map(|id| {
        let is_first = id == next;
        next += usize::from(is_first);
        Some(is_first)
    })))
}

/// The columns of `schema` with these names, in their order.
fn project<'a>(schema: &Schema, names: impl IntoIterator<Item = &'a String>) -> Result<SchemaRef> {
    let positions = names.into_iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(schema.project(&positions)?))
}

/// The columns that a condition reads, and the condition over rows of these.
fn compile(
    expr: &str,
    schema: &SchemaRef,
    session: &SessionState,
) -> Result<(SchemaRef, Arc<dyn PhysicalExpr>)> {
    let declared = schema;
    let schema = DFSchema::try_from(Arc::clone(declared))?;
    let parsed = DFParser::parse_sql_into_expr(expr)?;
    let logical = session.create_logical_expr_from_sql_expr(parsed, &schema)?;
    let data_type = logical.get_type(&schema)?;
    if data_type != arrow::datatypes::DataType::Boolean {
        return Err(crate::error::Error::Config(format!(
            "CHECK ({expr}) is {data_type}; it must be true or false"
        )));
    }
    let read: BTreeSet<_> = logical.column_refs().into_iter().map(|column| &column.name).collect();
    let reads = project(declared, read)?;
    let schema = DFSchema::try_from(Arc::clone(&reads))?;
    Ok((reads, session.create_physical_expr(logical, &schema)?))
}
