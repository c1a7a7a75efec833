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
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::sql::parser::DFParser;

use super::{Decoded, Reject};
use crate::engine::catalog::{Rule, RuleKind, SourceDef};
use crate::error::Result;

/// Answers which values a reference table has.
pub trait ForeignKeys {
    /// For each row of `values` whether `table` has a row with those values in `columns`.
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray>;
}

/// What rows of a source must hold: the columns `read` by queries, and those that its rules read; at least one.
pub fn needed_columns(
    source: &SourceDef,
    read: &BTreeSet<String>,
    session: &SessionState,
) -> Result<SchemaRef> {
    let mut needed = read.clone();
    for rule in &source.rules {
        match &rule.kind {
            RuleKind::NotNull(column) => drop(needed.insert(column.clone())),
            RuleKind::PrimaryKey(columns) | RuleKind::ForeignKey { columns, .. } => {
                needed.extend(columns.iter().cloned())
            }
            RuleKind::Check(expr) => {
                let check =
                    compile(&expr.to_string(), &source.schema, session).map_err(|e| source.place.error(e))?;
                needed.extend(collect_columns(&check).iter().map(|column| column.name().to_string()));
            }
        }
    }
    let fields = source.schema.fields();
    let kept: Vec<_> = fields.iter().filter(|field| needed.contains(field.name())).cloned().collect();
    // Rows without a column are awkward to filter.
    let kept = if kept.is_empty() { fields.iter().take(1).cloned().collect() } else { kept };
    Ok(Arc::new(Schema::new(kept)))
}

/// A source's rules, and the primary keys that were seen.
pub struct RuleSet {
    rules: Vec<Compiled>,
    /// Keys of the rows that were counted. Exact, in memory: it grows with the number of keys.
    seen: Option<Box<dyn GroupValues>>,
}

struct Compiled {
    rule: Rule,
    columns: Vec<usize>,
    check: Option<Arc<dyn PhysicalExpr>>,
}

impl RuleSet {
    /// Compiles the rules of `source` for rows of `schema`: [`needed_columns`], or more. `session` plans CHECK
    /// expressions.
    pub fn new(source: &SourceDef, schema: &Schema, session: &SessionState) -> Result<Self> {
        let mut seen = None;
        let mut rules = Vec::new();
        for rule in &source.rules {
            let columns: Vec<&String> = match &rule.kind {
                RuleKind::NotNull(column) => vec![column],
                RuleKind::PrimaryKey(columns) | RuleKind::ForeignKey { columns, .. } => {
                    columns.iter().collect()
                }
                RuleKind::Check(_) => vec![],
            };
            let columns =
                columns.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<Vec<_>>>()?;
            let check = match &rule.kind {
                RuleKind::Check(expr) => {
                    Some(compile(&expr.to_string(), schema, session).map_err(|e| source.place.error(e))?)
                }
                _ => None,
            };
            if let RuleKind::PrimaryKey(_) = rule.kind {
                seen = Some(new_group_values(Arc::new(schema.project(&columns)?), &GroupOrdering::None)?);
            }
            rules.push(Compiled { rule: rule.clone(), columns, check });
        }
        Ok(RuleSet { rules, seen })
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
            let values = compiled.values(rows);
            let found = keys.contains(table, referred, &values)?;
            if found.true_count() < rows.num_rows() {
                let absent = arrow::compute::not(&found)?;
                let absent = filter_record_batch(&rows.project(&compiled.columns)?, &absent)?;
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
            let keep = match &compiled.rule.kind {
                RuleKind::NotNull(_) => arrow::compute::is_not_null(rows.column(compiled.columns[0]))?,
                RuleKind::Check(_) => compiled.holds(&rows)?,
                RuleKind::ForeignKey { table, referred, .. } => {
                    let values = compiled.values(&rows);
                    let found = keys.contains(table, referred, &values)?;
                    // As in SQL: a foreign key with a NULL refers to nothing and is kept.
                    let nulls = |i: usize| values.iter().any(|column| column.is_null(i));
                    BooleanArray::from_iter(
                        found.iter().enumerate().map(|(i, f)| Some(f == Some(true) || nulls(i))),
                    )
                }
                RuleKind::PrimaryKey(_) => {
                    let values = compiled.values(&rows);
                    match &mut self.seen {
                        Some(seen) => first_of_each(seen.as_mut(), &values)?,
                        None => continue,
                    }
                }
            };
            if keep.true_count() == rows.num_rows() {
                continue;
            }
            for (i, message) in messages.iter().enumerate().filter(|(i, _)| !keep.value(*i)) {
                rejects.push(Reject {
                    message: *message,
                    rule: compiled.rule.name.clone(),
                    reason: compiled.reason(&rows, i),
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
    fn values(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.columns.iter().map(|i| Arc::clone(rows.column(*i))).collect()
    }

    /// A check holds unless it is false: as in SQL, NULL passes.
    fn holds(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let Some(check) = &self.check else { return Ok(BooleanArray::from(vec![true; rows.num_rows()])) };
        let value = check.evaluate(rows)?.into_array(rows.num_rows())?;
        let value = arrow::array::AsArray::as_boolean(&value);
        Ok(BooleanArray::from_iter(value.iter().map(|v| Some(v != Some(false)))))
    }

    fn reason(&self, rows: &RecordBatch, row: usize) -> String {
        let value =
            |i: &usize| arrow::util::display::array_value_to_string(rows.column(*i), row).unwrap_or_default();
        let values = self.columns.iter().map(value).collect::<Vec<_>>().join(", ");
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

fn compile(expr: &str, schema: &Schema, session: &SessionState) -> Result<Arc<dyn PhysicalExpr>> {
    let schema = DFSchema::try_from(schema.clone())?;
    let parsed = DFParser::parse_sql_into_expr(expr)?;
    let logical = session.create_logical_expr_from_sql_expr(parsed, &schema)?;
    let data_type = logical.get_type(&schema)?;
    if data_type != arrow::datatypes::DataType::Boolean {
        return Err(crate::error::Error::Config(format!(
            "CHECK ({expr}) is {data_type}; it must be true or false"
        )));
    }
    Ok(session.create_physical_expr(logical, &schema)?)
}
