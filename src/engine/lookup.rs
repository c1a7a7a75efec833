//! Which lookup joins a view has: joins of a stream's rows with a reference table, made as the rows are counted.
//! A row that finds no match because the table is a moment behind would miss it for good, so the keys that a
//! micro-batch will look for are told before it is applied.

mod route;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::Column;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, ExprSchemable, Join, JoinType, LogicalPlan};
use datafusion::physical_plan::PhysicalExpr;

use self::route::Route;
use super::Engine;
use super::bound::unaliased;
use super::input::Kind;
use super::split::{input_kind, reads_stream};
use crate::batches::{by_halves, project};
use crate::catalog::{Catalog, RuleKind, SourceDef};
use crate::decode::ForeignKeys;
use crate::error::Result;

/// A join of a source's rows with a reference table.
pub struct LookupJoin {
    /// The source.
    pub source: String,
    /// The reference table.
    pub table: String,
    /// Its columns that the join compares.
    pub key: Vec<String>,
    /// The source's columns that are compared with them, where they are compared as they are.
    columns: Option<Vec<String>>,
    /// The source's columns that the expressions read.
    reads: SchemaRef,
    /// Only rows for which all of these are true come to the join.
    filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Only rows that have a match here come to the join.
    matched: Vec<Match<Arc<dyn PhysicalExpr>>>,
    values: Vec<Arc<dyn PhysicalExpr>>,
    /// The columns of the values, called as the key's.
    schema: SchemaRef,
}

/// Values that are looked for in columns of a table.
struct Match<E> {
    table: String,
    key: Vec<String>,
    values: Vec<E>,
}

/// A lookup join of a view, whose rows may find no match.
pub(super) struct ViewLookup {
    view: String,
    join: LookupJoin,
}

/// Rows that found no match in a view's lookup join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    /// The view.
    pub view: String,
    /// The table and its columns.
    pub join: String,
    /// How many.
    pub rows: u64,
}

impl Engine {
    /// Notes the lookup joins of what a view runs on each micro-batch. Those that the source's rules ensure cost
    /// nothing.
    pub(super) fn note_lookups<'a>(
        &mut self,
        catalog: &Catalog,
        view: &str,
        plans: impl IntoIterator<Item = &'a LogicalPlan>,
    ) -> Result<()> {
        let session = self.session.state();
        for plan in plans {
            for join in lookup_joins(plan, &session)? {
                if catalog.sources.get(&join.source).is_none_or(|source| join.is_ensured(source)) {
                    continue;
                }
                self.needed.entry(join.table.clone()).or_default().extend(join.key.iter().cloned());
                self.read.entry(join.source.clone()).or_default().extend(join.columns().cloned());
                self.lookups.push(ViewLookup { view: view.into(), join });
            }
        }
        Ok(())
    }

    /// The lookup joins of a view, for people.
    pub(super) fn describe_lookups(&self, view: &str) -> String {
        let of_view = self.lookups.iter().filter(|lookup| lookup.view == view);
        let line = |lookup: &ViewLookup| {
            format!(
                "lookup join with {}: what has no match when it is counted never has\n",
                lookup.join.name()
            )
        };
        of_view.map(line).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The tables and columns that lookup joins look for: an index of each is needed.
    pub fn lookup_keys(&self) -> Vec<(String, Vec<String>)> {
        self.lookups.iter().map(|lookup| (lookup.join.table.clone(), lookup.join.key.clone())).collect()
    }

    /// The keys that a micro-batch of `source` looks for and that `tables` do not have: table, key columns, values.
    pub fn missing_lookups(
        &self,
        source: &str,
        rows: &RecordBatch,
        tables: &dyn ForeignKeys,
    ) -> Result<Vec<(String, Vec<String>, RecordBatch)>> {
        let mut all: Vec<(String, Vec<String>, RecordBatch)> = Vec::new();
        for ViewLookup { join, .. } in self.lookups.iter().filter(|lookup| lookup.join.source == source) {
            let missing = join.missing(&join.keys(rows, None)?, tables)?;
            if missing.num_rows() == 0 {
                continue;
            }
            let same = all.iter_mut().find(|(table, key, values)| {
                *table == join.table && *key == join.key && values.schema() == missing.schema()
            });
            match same {
                Some((_, _, values)) => *values = concat_batches(&missing.schema(), [&*values, &missing])?,
                None => all.push((join.table.clone(), join.key.clone(), missing)),
            }
        }
        Ok(all)
    }

    /// How many rows of a micro-batch of `source` have no match, by view and join.
    pub fn unmatched(
        &self,
        source: &str,
        rows: &RecordBatch,
        tables: &dyn ForeignKeys,
    ) -> Result<Vec<Unmatched>> {
        let mut all = Vec::new();
        for ViewLookup { view, join } in self.lookups.iter().filter(|lookup| lookup.join.source == source) {
            let rows = join.missing(&join.keys(rows, Some(tables))?, tables)?.num_rows() as u64;
            if rows > 0 {
                all.push(Unmatched { view: view.clone(), join: join.name(), rows });
            }
        }
        Ok(all)
    }
}

/// The lookup joins of a plan over rows of streams and reference tables. A join whose condition compares no
/// column of a table with values of the stream's row alone is none.
pub fn lookup_joins(plan: &LogicalPlan, session: &SessionState) -> Result<Vec<LookupJoin>> {
    let mut joins = Vec::new();
    plan.apply(|node| {
        if let LogicalPlan::Join(join) = node
            && let Some(lookup) = Lookup::of(join)
        {
            let mut routes = Vec::new();
            let filters = join.filter.iter().flat_map(split_conjunction).cloned().collect();
            let route = Route { lookup: lookup.looks_for, filters, matched: Vec::new() };
            route
                .within(lookup.stream)
                .into_iter()
                .for_each(|route| route.follow(lookup.stream, &mut routes));
            joins.extend(routes.into_iter().filter_map(|arrived| arrived.compile(session)));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(joins)
}

impl LookupJoin {
    /// For people: the table and its columns, as `customers (customer_id)`.
    pub fn name(&self) -> String {
        format!("{} ({})", self.table, self.key.join(", "))
    }

    /// The source's columns that it reads.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        self.reads.fields().iter().map(|field| field.name())
    }

    /// Whether the rules of the source see to it that each row has a match.
    pub fn is_ensured(&self, source: &SourceDef) -> bool {
        let Some(columns) = &self.columns else { return false };
        let pairs: BTreeSet<_> = columns.iter().zip(&self.key).collect();
        let refers = |kind: &RuleKind| match kind {
            RuleKind::ForeignKey { columns, table, referred } => {
                *table == self.table && pairs == columns.iter().zip(referred).collect()
            }
            _ => false,
        };
        let is_not_null = |column: &String| {
            source.rules.iter().any(|rule| matches!(&rule.kind, RuleKind::NotNull(c) if c == column))
        };
        source.rules.iter().any(|rule| refers(&rule.kind)) && columns.iter().all(is_not_null)
    }

    /// The values that the rows which come to the join look for. A row for which an expression fails is left out:
    /// it fails in the view too. `tables` tells which rows have passed the joins before this one; none: all have.
    pub fn keys(&self, rows: &RecordBatch, tables: Option<&dyn ForeignKeys>) -> Result<RecordBatch> {
        let rows = project(rows, &self.reads)?;
        let (mut parts, mut unanswered) = (Vec::new(), None);
        by_halves(
            &rows,
            |rows| self.keys_of(rows, tables),
            |_, keys| match keys {
                Ok(Ok(keys)) => parts.push(keys),
                Ok(Err(error)) => unanswered = Some(error),
                Err(error) => tracing::debug!("a row looks for nothing in {}: {error}", self.name()),
            },
        );
        match unanswered {
            Some(error) => Err(error),
            None => Ok(concat_batches(&self.schema, &parts)?),
        }
    }

    /// Those of the keys that have no match in the table.
    pub fn missing(&self, keys: &RecordBatch, tables: &dyn ForeignKeys) -> Result<RecordBatch> {
        let matched = tables.contains(&self.table, &self.key, keys.columns())?;
        if matched.true_count() == keys.num_rows() {
            return Ok(keys.slice(0, 0));
        }
        Ok(filter_record_batch(keys, &arrow::compute::not(&matched)?)?)
    }

    /// The outer error is of an expression and a row, the inner one of a table.
    fn keys_of(
        &self,
        rows: &RecordBatch,
        tables: Option<&dyn ForeignKeys>,
    ) -> datafusion::error::Result<Result<RecordBatch>> {
        let mut rows = rows.clone();
        for filter in &self.filters {
            let holds = filter.evaluate(&rows)?.into_array(rows.num_rows())?;
            rows = filter_record_batch(&rows, holds.as_boolean())?;
        }
        for Match { table, key, values } in &self.matched {
            let Some(tables) = tables else { break };
            let passed = match tables.contains(table, key, &evaluate(values, &rows)?) {
                Ok(passed) => passed,
                Err(error) => return Ok(Err(error)),
            };
            rows = filter_record_batch(&rows, &passed)?;
        }
        let keys = RecordBatch::try_new(Arc::clone(&self.schema), evaluate(&self.values, &rows)?)?;
        Ok(Ok(keys))
    }
}

fn evaluate(
    expressions: &[Arc<dyn PhysicalExpr>],
    rows: &RecordBatch,
) -> datafusion::error::Result<Vec<ArrayRef>> {
    expressions.iter().map(|e| e.evaluate(rows)?.into_array(rows.num_rows())).collect()
}

/// A join of rows of a stream with rows of reference tables.
struct Lookup<'a> {
    stream: &'a LogicalPlan,
    looks_for: Match<Expr>,
    /// Whether a row without a match does not come out of it.
    drops_unmatched: bool,
}

impl<'a> Lookup<'a> {
    fn of(join: &'a Join) -> Option<Lookup<'a>> {
        let is_left = reads_stream(&join.left);
        if is_left == reads_stream(&join.right) {
            return None;
        }
        let (stream, reference) = if is_left { (&join.left, &join.right) } else { (&join.right, &join.left) };
        let mut looks_for: Option<Match<Expr>> = None;
        for (left, right) in &join.on {
            let (value, column) = if is_left { (left, right) } else { (right, left) };
            let Some((table, column)) = base_column(widened(column, reference), reference) else { continue };
            let found =
                looks_for.get_or_insert_with(|| Match { table: table.clone(), key: vec![], values: vec![] });
            // A reference side may be a join of tables: those of the first one tell whether there is a row.
            if found.table == table && !found.key.contains(&column) {
                found.key.push(column);
                found.values.push(value.clone());
            }
        }
        let drops_unmatched = match join.join_type {
            JoinType::Inner => true,
            JoinType::LeftSemi | JoinType::Right => is_left,
            JoinType::RightSemi | JoinType::Left => !is_left,
            _ => false,
        };
        Some(Lookup { stream, looks_for: looks_for?, drops_unmatched })
    }
}

/// The integers that an expression compares as wider ones: the same are equal. Elsewhere a cast may make values
/// equal that are not.
fn widened<'a>(expr: &'a Expr, plan: &LogicalPlan) -> &'a Expr {
    let is_integer = |expr: &Expr| expr.get_type(plan.schema()).is_ok_and(|t| t.is_signed_integer());
    match expr {
        Expr::Cast(cast) if is_integer(&cast.expr) && is_integer(expr) => &cast.expr,
        expr => expr,
    }
}

/// The column of a reference table that an expression over a plan is, if it is one as it stands there.
fn base_column(expr: &Expr, plan: &LogicalPlan) -> Option<(String, String)> {
    let Expr::Column(column) = expr else { return None };
    let position = plan.schema().index_of_column(column).ok()?;
    match plan {
        LogicalPlan::TableScan(scan) if input_kind(scan) == Some(Kind::Reference) => {
            Some((scan.table_name.table().to_owned(), column.name.clone()))
        }
        LogicalPlan::Projection(projection) => {
            base_column(unaliased(projection.expr.get(position)?), &projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => base_column(&nth(&alias.input, position), &alias.input),
        LogicalPlan::Aggregate(Aggregate { input, group_expr, .. }) => {
            base_column(unaliased(group_expr.get(position)?), input)
        }
        LogicalPlan::Distinct(Distinct::All(input)) => base_column(expr, input),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Join(_) => plan.inputs().into_iter().find_map(|input| base_column(expr, input)),
        _ => None,
    }
}

fn nth(plan: &LogicalPlan, position: usize) -> Expr {
    Expr::Column(Column::from(plan.schema().qualified_field(position)))
}

#[cfg(test)]
mod tests;
