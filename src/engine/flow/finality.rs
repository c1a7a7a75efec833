//! When rows change no more: what a column's value tells of it, carried from the sources up through the dataflow.

use std::collections::BTreeSet;

use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::engine::bound::unaliased;
use crate::engine::input::{InputTable, as_input};

/// Rows with a value of a column change no more once the watermarks of all `streams` have passed it by `after`
/// nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finality {
    /// Nanoseconds.
    pub after: i64,
    /// The streams.
    pub streams: BTreeSet<String>,
}

impl Finality {
    /// When both are final.
    pub fn and(mut self, other: Finality) -> Finality {
        self.after = self.after.max(other.after);
        self.streams.extend(other.streams);
        self
    }
}

/// What is known of a column of a linear plan, by what `of` says of the columns of the tables that it scans: the
/// column must come from there as it is.
pub fn traced(
    plan: &LogicalPlan,
    column: usize,
    of: &dyn Fn(&InputTable, usize) -> Option<Finality>,
) -> Option<Finality> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let Expr::Column(below) = unaliased(projection.expr.get(column)?) else { return None };
            traced(&projection.input, projection.input.schema().maybe_index_of_column(below)?, of)
        }
        LogicalPlan::Filter(filter) => traced(&filter.input, column, of),
        LogicalPlan::SubqueryAlias(alias) => traced(&alias.input, column, of),
        LogicalPlan::Unnest(unnest) => traced(&unnest.input, *unnest.dependency_indices.get(column)?, of)
            .filter(|_| {
                !unnest.list_type_columns.iter().any(|(i, _)| *i == unnest.dependency_indices[column])
            }),
        LogicalPlan::Union(union) => {
            let mut all = union.inputs.iter().map(|input| traced(input, column, of));
            let first = all.next()??;
            all.try_fold(first, |known, next| Some(known.and(next?)))
        }
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source).ok()?;
            let column =
                scan.projection.as_ref().map_or(Some(column), |columns| columns.get(column).copied())?;
            of(as_input(provider.as_ref())?, column)
        }
        _ => None,
    }
}
