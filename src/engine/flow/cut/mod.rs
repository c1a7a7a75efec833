//! Cuts a view's finishing plan into a dataflow: stateless segments, and the operators between them. What is no
//! operator's is recomputed from its inputs: every plan is taken.
//!
//! Plans are optimized already. Columns between the parts go by position; their names live in the projections that
//! stand for a part's rows in the plans above it.

mod operators;
mod subqueries;
mod upkeep;
mod weighted;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, internal_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, Join, LogicalPlan, LogicalPlanBuilder, Projection, TableScan,
};

use self::weighted::is_whole;
use super::aggregate::FunctionSpec;
use super::finality::Finality;
use super::graph::{Graph, Source};
use super::numbering;
use super::top_k::TopKSpec;
use crate::engine::bound::{Bound, unaliased};
use crate::engine::input::{InputTable, Kind, WEIGHT, as_input};
use crate::engine::plan::{Identity, Terms};
use crate::engine::split::positional_schema;
use crate::engine::upkeep::Upkeep;

/// A part of a dataflow that is planned.
pub struct Draft {
    /// What it computes.
    pub identity: Identity,
    /// How.
    pub plan: Plan,
    /// Its inputs, by position: those of the graph first, then the drafts.
    pub inputs: Vec<usize>,
    /// Columns of its rows.
    pub schema: SchemaRef,
    /// Whether its rows only come.
    pub append_only: bool,
    /// Of each column, when rows with a value of it change no more, where that is known.
    pub times: Vec<Option<Finality>>,
    /// The streams whose watermarks tell when what it holds of each input is final.
    pub clocks: Vec<BTreeSet<String>>,
    /// What it keeps, if it keeps anything.
    pub upkeep: Option<Upkeep>,
}

/// How a part computes its rows.
#[derive(Clone)]
pub enum Plan {
    /// They come from outside.
    Source(Source),
    /// A plan without inputs, run once.
    Constant(LogicalPlan),
    /// A plan with the weight as its last column, over tables that stand for the inputs.
    Segment(LogicalPlan, Vec<Arc<InputTable>>),
    /// A join whose keys are columns: their positions in the left and right input.
    Join { join: Join, keys: [Vec<usize>; 2], times: [Option<(usize, i64)>; 2], hold_ns: Option<i64> },
    /// An aggregate over an input whose first columns are its keys, of which grouping sets leave some out.
    Aggregate {
        keys: usize,
        grouping_sets: Option<Vec<Vec<bool>>>,
        functions: Vec<FunctionSpec>,
        bound: Option<Bound>,
    },
    /// The first rows of each partition.
    TopK(TopKSpec),
    /// A plan over tables that stand for the inputs, which falls apart by keys: their positions in each input.
    ByKey {
        plan: LogicalPlan,
        tables: Vec<Arc<InputTable>>,
        keys: Vec<Vec<usize>>,
        bounds: Vec<Option<Bound>>,
    },
    /// One row: the only one of its input, or NULLs if there is none.
    Single,
}

/// Of a node: whether its rows only come, and when rows with a value of each column change no more.
pub type Describe<'a> = dyn Fn(usize) -> (bool, Vec<Option<Finality>>) + Sync + 'a;

/// Cuts the plans of one view.
pub struct Cut<'a> {
    graph: &'a Graph,
    /// The tables that stand for rows which come from outside, or from a part: of each the part.
    tables: Vec<(Arc<InputTable>, Source)>,
    /// The parts that are new, in the order in which they follow each other.
    pub drafts: Vec<Draft>,
    parts: Vec<(Arc<InputTable>, usize)>,
    describe: &'a Describe<'a>,
    terms: Terms,
    /// The streams that the view reads.
    streams: BTreeSet<String>,
}

impl<'a> Cut<'a> {
    /// `tables` stand for the rows of nodes, which `describe` describes, of the `streams` that the view reads.
    pub fn new(
        graph: &'a Graph,
        tables: Vec<(Arc<InputTable>, Source)>,
        describe: &'a Describe<'a>,
        terms: Terms,
        streams: BTreeSet<String>,
    ) -> Self {
        Cut { graph, tables, drafts: Vec::new(), parts: Vec::new(), describe, terms, streams }
    }

    /// The part whose rows are the plan's.
    pub fn edge(&mut self, plan: &LogicalPlan) -> Result<usize> {
        match plan {
            LogicalPlan::SubqueryAlias(alias) => return self.edge(&alias.input),
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => return self.edge(&sort.input),
            LogicalPlan::Projection(projection) if passes_on(projection) => {
                return self.edge(&projection.input);
            }
            LogicalPlan::TableScan(scan) if is_whole(scan) => {
                if let Some(part) = self.part_of(scan) {
                    return Ok(part);
                }
            }
            _ => {}
        }
        if let LogicalPlan::Filter(filter) = plan
            && let Some(plan) = numbering::over_limit(filter)?
        {
            return self.edge(&plan);
        }
        let identity = Identity::of(plan, self.terms)?;
        if let Some(known) = self.find(&identity) {
            return Ok(known);
        }
        if !reads_rows(plan) {
            return Ok(self.push(identity, Plan::Constant(plan.clone()), Vec::new(), plan, true));
        }
        if let Some(plan) = self.without_subqueries(plan)? {
            return self.edge(&plan);
        }
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(identity, scan, plan),
            LogicalPlan::Filter(filter) if numbering::is_over_window(filter) => {
                match self.first_rows(&identity, filter, plan)? {
                    Some(part) => Ok(part),
                    None => self.segment(identity, plan),
                }
            }
            _ if is_linear(plan) => self.segment(identity, plan),
            _ if has_subqueries(plan) => self.recompute(identity, plan),
            LogicalPlan::Join(join) => self.join(identity, join, plan),
            LogicalPlan::Window(window) => self.window(identity, window, plan),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(identity, aggregate, plan),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let columns = input.schema().columns().into_iter().map(Expr::Column).collect();
                let values = Aggregate::try_new(Arc::clone(input), columns, Vec::new())?;
                self.edge(&LogicalPlan::Aggregate(values))
            }
            LogicalPlan::Sort(sort) => self.top_k(identity, sort, 0, sort.fetch, plan),
            LogicalPlan::Limit(limit) => self.limit(identity, limit, plan),
            _ => self.recompute(identity, plan),
        }
    }

    fn find(&self, identity: &Identity) -> Option<usize> {
        let among_drafts = || self.drafts.iter().position(|draft| draft.identity == *identity);
        self.graph.find(identity).or_else(|| Some(self.graph.len() + among_drafts()?))
    }

    fn push(
        &mut self,
        identity: Identity,
        how: Plan,
        inputs: Vec<usize>,
        plan: &LogicalPlan,
        append_only: bool,
    ) -> usize {
        let schema = columns_of(plan);
        let times = vec![None; schema.fields().len()];
        let clocks = vec![BTreeSet::new(); inputs.len()];
        self.drafts.push(Draft {
            identity,
            plan: how,
            inputs,
            schema,
            append_only,
            times,
            clocks,
            upkeep: None,
        });
        self.graph.len() + self.drafts.len() - 1
    }

    /// Says of the newest draft when rows with values of its columns, and what it holds, change no more.
    fn set_times(&mut self, part: usize, times: Vec<Option<Finality>>, clocks: Vec<BTreeSet<String>>) {
        let first = self.graph.len();
        let draft = &mut self.drafts[part - first];
        draft.times.splice(.., times);
        draft.times.resize(draft.schema.fields().len(), None);
        draft.clocks = clocks;
    }

    /// Says what the newest draft keeps.
    fn set_upkeep(&mut self, part: usize, upkeep: Upkeep) {
        let first = self.graph.len();
        self.drafts[part - first].upkeep = Some(upkeep);
    }

    fn times(&self, part: usize) -> &[Option<Finality>] {
        match part.checked_sub(self.graph.len()) {
            Some(draft) => &self.drafts[draft].times,
            None => &self.graph.vertices()[part].times,
        }
    }

    /// The first of `columns` whose value tells when a row of the part is final.
    fn bound(&self, part: usize, columns: &[usize]) -> Option<(usize, Finality)> {
        let times = self.times(part);
        columns.iter().enumerate().find_map(|(i, column)| Some((i, times.get(*column)?.clone()?)))
    }

    fn is_append_only(&self, part: usize) -> bool {
        match part.checked_sub(self.graph.len()) {
            Some(draft) => self.drafts[draft].append_only,
            None => self.graph.vertices()[part].append_only,
        }
    }

    /// The part that a table stands for, if it is one of this view's.
    fn part_of(&self, scan: &TableScan) -> Option<usize> {
        let provider = source_as_provider(&scan.source).ok()?;
        let input = as_input(provider.as_ref())?;
        let part = self.parts.iter().find(|(table, _)| std::ptr::eq(table.as_ref(), input));
        part.map(|(_, part)| *part)
    }

    /// Rows that come from outside; some columns of them are a segment over all.
    fn scan(&mut self, identity: Identity, scan: &TableScan, plan: &LogicalPlan) -> Result<usize> {
        let provider = source_as_provider(&scan.source)?;
        let Some(input) = as_input(provider.as_ref()) else {
            return internal_err!("{} is no table of ours", scan.table_name);
        };
        if input.kind() == Kind::Reference {
            let columns = scan.projected_schema.fields().iter().map(|field| field.name().clone()).collect();
            let source = Source::Table(input.name().to_string(), columns);
            return Ok(self.push(identity, Plan::Source(source), Vec::new(), plan, false));
        }
        if self.part_of(scan).is_some() || !is_whole(scan) {
            return self.segment(identity, plan);
        }
        let source = self.tables.iter().find(|(table, _)| std::ptr::eq(table.as_ref(), input));
        let Some((_, source)) = source else {
            return internal_err!("{} stands for nothing", scan.table_name);
        };
        let (append_only, times) = match source {
            Source::Node(node) => (self.describe)(*node),
            Source::Final(_) => (true, Vec::new()),
            Source::Table(..) => (false, Vec::new()),
        };
        let source = source.clone();
        let part = self.push(identity, Plan::Source(source), Vec::new(), plan, append_only);
        self.set_times(part, times, Vec::new());
        Ok(part)
    }
}

/// The columns of a part's rows. NULLs come also where a plan says that there are none: those of an outer join, or of
/// a subquery without a row.
pub(super) fn columns_of(plan: &LogicalPlan) -> SchemaRef {
    let columns = positional_schema(plan);
    let nullable = columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(nullable.collect::<Vec<_>>()))
}

/// The plan's columns, and after them those of `keys` that are no columns yet; the keys as columns.
pub(super) fn with_keys(plan: &LogicalPlan, keys: &[Expr], name: &str) -> Result<(LogicalPlan, Vec<Expr>)> {
    if positions(keys, plan).is_some() {
        return Ok((plan.clone(), keys.iter().map(|key| unaliased(key).clone()).collect()));
    }
    let mut columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
    let mut as_columns = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        as_columns.push(match unaliased(key) {
            Expr::Column(column) => Expr::Column(column.clone()),
            computed => {
                let name = format!("__{name}_key_{i}");
                columns.push(computed.clone().alias(name.clone()));
                Expr::Column(Column::new_unqualified(name))
            }
        });
    }
    let with = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan.clone()))?);
    Ok((with, as_columns))
}

/// Positions of expressions that are columns of the plan; none if one is computed.
pub(super) fn positions(exprs: &[Expr], plan: &LogicalPlan) -> Option<Vec<usize>> {
    let position = |expr: &Expr| match unaliased(expr) {
        Expr::Column(column) => plan.schema().maybe_index_of_column(column),
        _ => None,
    };
    exprs.iter().map(position).collect()
}

/// Columns of a table, and the weight if it has one, called as the columns of `plan`.
fn named(table: &Arc<InputTable>, columns: &[usize], plan: &LogicalPlan) -> Result<LogicalPlan> {
    let source = provider_as_source(Arc::clone(table) as Arc<dyn TableProvider>);
    let scan = LogicalPlanBuilder::scan(table.name(), source, None)?.build()?;
    let column = |i: usize| {
        let (qualifier, field) = scan.schema().qualified_field(i);
        Expr::Column(Column::new(qualifier.cloned(), field.name()))
    };
    let mut exprs: Vec<Expr> = columns
        .iter()
        .zip(plan.schema().iter())
        .map(|(i, (qualifier, field))| column(*i).alias_qualified(qualifier.cloned(), field.name()))
        .collect();
    if let Some(weight) = table.schema().fields().iter().position(|field| field.name() == WEIGHT) {
        exprs.push(column(weight).alias(WEIGHT));
    }
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(scan))?))
}

/// Whether a projection does nothing but pass all columns on, in their order.
fn passes_on(projection: &Projection) -> bool {
    let input = projection.input.schema();
    let is_at = |i: usize, expr: &Expr| match unaliased(expr) {
        Expr::Column(column) => input.maybe_index_of_column(column) == Some(i),
        _ => false,
    };
    projection.expr.len() == input.fields().len()
        && projection.expr.iter().enumerate().all(|(i, expr)| is_at(i, expr))
}

/// Whether a plan's own expressions have subqueries.
fn has_subqueries(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_subqueries(|_| {
        found = true;
        Ok(TreeNodeRecursion::Stop)
    });
    found || walked.is_err()
}

/// Whether a plan reads rows that can change.
fn reads_rows(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::TableScan(_));
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found || walked.is_err()
}

/// Whether each of its rows comes from one row of one input, and nothing else.
fn is_linear(plan: &LogicalPlan) -> bool {
    let linear = matches!(
        plan,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Union(_)
    );
    linear && !has_subqueries(plan)
}
