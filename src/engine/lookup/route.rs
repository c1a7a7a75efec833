//! The way from a lookup join down to the stream: what is looked for, said by the stream's own columns.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};

use super::super::input::Kind;
use super::super::split::input_kind;
use super::{Lookup, LookupJoin, Match, nth, unaliased};

/// What is looked for, said by the columns of some plan on the way from the join down to the stream.
pub(super) struct Route {
    pub(super) lookup: Match<Expr>,
    pub(super) filters: Vec<Expr>,
    pub(super) matched: Vec<Match<Expr>>,
}

/// A route at its end.
pub(super) struct Arrived {
    source: String,
    declared: SchemaRef,
    route: Route,
}

impl Route {
    /// Goes on through `plan`, of which all columns are, and notes where streams are found.
    pub(super) fn follow(mut self, plan: &LogicalPlan, arrived: &mut Vec<Arrived>) {
        match plan {
            LogicalPlan::TableScan(scan) if input_kind(scan) == Some(Kind::Stream) => {
                let (source, declared) = (scan.table_name.table().to_owned(), scan.source.schema());
                arrived.push(Arrived { source, declared, route: self });
            }
            LogicalPlan::Filter(filter) => {
                self.filters.extend(split_conjunction(&filter.predicate).into_iter().cloned());
                self.follow(&filter.input, arrived);
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.follow(&sort.input, arrived),
            LogicalPlan::Repartition(repartition) => self.follow(&repartition.input, arrived),
            LogicalPlan::Join(join) => {
                let Some(lookup) = Lookup::of(join) else { return };
                if let Some(mut route) = self.within(lookup.stream) {
                    if lookup.drops_unmatched {
                        route.matched.extend(lookup.looks_for.within(lookup.stream));
                    }
                    route.follow(lookup.stream, arrived);
                }
            }
            LogicalPlan::Projection(projection) => {
                let expression = |position: usize| Some(unaliased(projection.expr.get(position)?).clone());
                self.through(plan, &expression)
                    .into_iter()
                    .for_each(|r| r.follow(&projection.input, arrived));
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let column = |position: usize| Some(nth(&alias.input, position));
                self.through(plan, &column).into_iter().for_each(|r| r.follow(&alias.input, arrived));
            }
            LogicalPlan::Union(union) => {
                for input in &union.inputs {
                    let column = |position: usize| Some(nth(input, position));
                    self.through(plan, &column).into_iter().for_each(|r| r.follow(input, arrived));
                }
            }
            LogicalPlan::Unnest(unnest) => {
                let is_unnested = |from: &usize| {
                    unnest.struct_type_columns.contains(from)
                        || unnest.list_type_columns.iter().any(|(list, _)| list == from)
                };
                let column = |position: usize| {
                    let from = unnest.dependency_indices.get(position).filter(|from| !is_unnested(from))?;
                    Some(nth(&unnest.input, *from))
                };
                self.through(plan, &column).into_iter().for_each(|r| r.follow(&unnest.input, arrived));
            }
            _ => {}
        }
    }

    /// The same by the columns of an input of `plan`, where `by_position` tells what each column of `plan` is. A
    /// filter that can't be said so is left out: more rows than come to the join are looked up then.
    fn through(&self, plan: &LogicalPlan, by_position: &dyn Fn(usize) -> Option<Expr>) -> Option<Route> {
        let replace = |column: &Column| by_position(plan.schema().index_of_column(column).ok()?);
        self.replaced(&replace)
    }

    /// The same, if all columns are of `input`, which is one side of a join.
    pub(super) fn within(&self, input: &LogicalPlan) -> Option<Route> {
        self.replaced(&|column| own(column, input))
    }

    fn replaced(&self, replace: &dyn Fn(&Column) -> Option<Expr>) -> Option<Route> {
        Some(Route {
            lookup: self.lookup.replaced(replace)?,
            filters: self.filters.iter().filter_map(|filter| replaced(filter, replace)).collect(),
            matched: self.matched.iter().filter_map(|matched| matched.replaced(replace)).collect(),
        })
    }
}

impl Match<Expr> {
    fn within(&self, input: &LogicalPlan) -> Option<Self> {
        self.replaced(&|column| own(column, input))
    }

    fn replaced(&self, replace: &dyn Fn(&Column) -> Option<Expr>) -> Option<Self> {
        let values = self.values.iter().map(|value| replaced(value, replace)).collect::<Option<_>>()?;
        Some(Match { table: self.table.clone(), key: self.key.clone(), values })
    }
}

/// The column itself, if it is one of `input`.
fn own(column: &Column, input: &LogicalPlan) -> Option<Expr> {
    input.schema().has_column(column).then(|| Expr::Column(column.clone()))
}

/// The expression with each column replaced; none if one of them can't be.
fn replaced(expr: &Expr, replace: &dyn Fn(&Column) -> Option<Expr>) -> Option<Expr> {
    let mut is_whole = true;
    let result = expr.clone().transform_up(|part| match &part {
        Expr::Column(column) => Ok(match replace(column) {
            Some(other) => Transformed::yes(other),
            None => {
                is_whole = false;
                Transformed::no(part)
            }
        }),
        _ => Ok(Transformed::no(part)),
    });
    result.ok().filter(|_| is_whole).map(|transformed| transformed.data)
}

impl Arrived {
    /// None if an expression is none over the row alone, such as a subquery.
    pub(super) fn compile(self, session: &SessionState) -> Option<LookupJoin> {
        let Arrived { source, declared, route: Route { lookup, filters, matched } } = self;
        let bare = |column: &Column| Some(Expr::Column(Column::new_unqualified(&column.name)));
        let lookup = lookup.replaced(&bare)?;
        let filters: Vec<Expr> = filters.iter().filter_map(|filter| replaced(filter, &bare)).collect();
        let matched: Vec<_> = matched.iter().filter_map(|matched| matched.replaced(&bare)).collect();
        let all = lookup.values.iter().chain(&filters).chain(matched.iter().flat_map(|m| &m.values));
        let names: BTreeSet<&str> =
            all.flat_map(Expr::column_refs).map(|column| column.name.as_str()).collect();
        let fields: Vec<_> =
            declared.fields().iter().filter(|f| names.contains(f.name().as_str())).cloned().collect();
        let reads: SchemaRef = Arc::new(Schema::new(fields));
        let schema = DFSchema::try_from(Arc::clone(&reads)).ok()?;
        let physical = |expr: &Expr| session.create_physical_expr(expr.clone(), &schema).ok();
        let physical_match = |m: &Match<Expr>| {
            let values = m.values.iter().map(physical).collect::<Option<_>>()?;
            Some(Match { table: m.table.clone(), key: m.key.clone(), values })
        };
        let plain = |value: &Expr| match value {
            Expr::Column(column) => Some(column.name.clone()),
            _ => None,
        };
        let values = physical_match(&lookup)?.values;
        let fields = lookup
            .key
            .iter()
            .zip(&lookup.values)
            .map(|(name, value)| Some(Field::new(name, value.get_type(&schema).ok()?, true)));
        let fields: Vec<Field> = fields.collect::<Option<_>>()?;
        Some(LookupJoin {
            source,
            columns: lookup.values.iter().map(plain).collect(),
            filters: filters.iter().filter_map(physical).collect(),
            matched: matched.iter().filter_map(physical_match).collect(),
            values,
            schema: Arc::new(Schema::new(fields)),
            table: lookup.table,
            key: lookup.key,
            reads,
        })
    }
}
