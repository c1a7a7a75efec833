//! A view's columns, and those that tell its rows apart.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Dependency;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Distinct, Expr, JoinType, LogicalPlan};

use crate::catalog::ViewDef;
use crate::engine::input::Kind;
use crate::engine::split;
use crate::error::Result;

/// Whether a declared key is the one that GROUP BY makes, in any order: then it can't be ambiguous.
pub fn is_same_key(declared: &[String], found: &[String]) -> bool {
    let set = |key: &[String]| key.iter().cloned().collect::<BTreeSet<_>>();
    set(declared) == set(found)
}

/// What of `found`, the key that GROUP BY makes, a declared key leaves open: two rows can then have one key. A column
/// of a reference table is not open if the key has another column of that table, or one that is joined with it:
/// rows of a reference table are taken to have keys. `plan` is optimized.
pub fn left_open(
    plan: &LogicalPlan,
    schema: &SchemaRef,
    declared: &[String],
    found: &[String],
) -> Result<Vec<String>> {
    let mut equal = Vec::new();
    collect_equal(plan, &mut equal)?;
    let mut known: HashSet<Base> = HashSet::new();
    for name in declared {
        if let Some([base]) = bases(plan, schema.index_of(name)?).as_deref() {
            known.insert(base.clone());
        }
    }
    let is_known = |known: &HashSet<Base>, base: &Base| {
        known.contains(base) || (base.is_reference && known.iter().any(|known| known.scan == base.scan))
    };
    loop {
        let before = known.len();
        for (left, right) in &equal {
            if is_known(&known, left) || is_known(&known, right) {
                known.extend([left.clone(), right.clone()]);
            }
        }
        if known.len() == before {
            break;
        }
    }
    let mut open = Vec::new();
    for name in found.iter().filter(|name| !declared.contains(name)) {
        // What can't be traced is left to the rows.
        let bases = bases(plan, schema.index_of(name)?);
        if bases.is_some_and(|bases| !bases.iter().all(|base| is_known(&known, base))) {
            open.push(name.clone());
        }
    }
    Ok(open)
}

/// Of the columns of a plan, those that say which row of a stream it is: the stream's primary key, or a column that
/// a join makes equal to it. `primary_key` knows that of each stream. Without one, none.
pub fn identifying(
    plan: &LogicalPlan,
    primary_key: &dyn Fn(&str) -> Vec<String>,
) -> Result<impl Fn(&Expr) -> bool> {
    let mut known: HashSet<Base> = HashSet::new();
    plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && split::input_kind(scan) == Some(Kind::Stream)
        {
            // One of several columns alone does not say it; which rows share the first is what GROUP BY is for.
            if let [key] = &primary_key(scan.table_name.table())[..]
                && let Some(column) = scan.projected_schema.fields().iter().position(|f| f.name() == key)
            {
                known.insert(Base { scan: std::ptr::from_ref(scan).addr(), column, is_reference: false });
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut equal = Vec::new();
    collect_equal(plan, &mut equal)?;
    loop {
        let before = known.len();
        for (left, right) in &equal {
            if known.contains(left) || known.contains(right) {
                known.extend([left.clone(), right.clone()]);
            }
        }
        if known.len() == before {
            break;
        }
    }
    Ok(move |expr: &Expr| {
        let of = |column| bases(plan, plan.schema().maybe_index_of_column(column)?);
        expr.column_refs().into_iter().filter_map(of).flatten().any(|base| known.contains(&base))
    })
}

/// A column of a scanned table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Base {
    /// Which scan of the plan.
    scan: usize,
    column: usize,
    is_reference: bool,
}

/// The columns of tables that decide a column of the plan; none if that is not known.
fn bases(plan: &LogicalPlan, column: usize) -> Option<Vec<Base>> {
    let of = |expr: &Expr, input: &LogicalPlan| {
        let mut all = Vec::new();
        for column in expr.column_refs() {
            all.extend(bases(input, input.schema().maybe_index_of_column(column)?)?);
        }
        Some(all)
    };
    match plan {
        LogicalPlan::TableScan(scan) => {
            let is_reference = split::input_kind(scan) == Some(Kind::Reference);
            Some(vec![Base { scan: std::ptr::from_ref(scan).addr(), column, is_reference }])
        }
        LogicalPlan::Projection(projection) => of(projection.expr.get(column)?, &projection.input),
        LogicalPlan::Aggregate(aggregate) => of(aggregate.group_expr.get(column)?, &aggregate.input),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => bases(plan.inputs().first()?, column),
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            match join.join_type {
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => bases(&join.right, column),
                _ if column < left => bases(&join.left, column),
                _ => bases(&join.right, column - left),
            }
        }
        _ => None,
    }
}

/// Columns of tables that joins make equal.
fn collect_equal(plan: &LogicalPlan, equal: &mut Vec<(Base, Base)>) -> Result<()> {
    plan.apply(|node| {
        let LogicalPlan::Join(join) = node else { return Ok(TreeNodeRecursion::Continue) };
        for (left, right) in &join.on {
            let base = |expr: &Expr, input: &LogicalPlan| {
                let Expr::Column(column) = expr else { return None };
                match bases(input, input.schema().maybe_index_of_column(column)?)?.as_slice() {
                    [base] => Some(base.clone()),
                    _ => None,
                }
            };
            equal.extend(base(left, &join.left).zip(base(right, &join.right)));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Columns that tell the view's rows apart, as DataFusion derives them from GROUP BY; none if it can't.
pub fn inferred_key(plan: &LogicalPlan, schema: &SchemaRef) -> Result<Vec<String>> {
    let misleads = |node: &LogicalPlan| match node {
        LogicalPlan::RecursiveQuery(_) => Ok(true),
        // An unnested row stands for several, which the derivation does not know: what told rows apart below, does
        // no more. Of a stream's rows nothing tells them apart, as under a hop.
        LogicalPlan::Unnest(unnest) => unnest.input.exists(|below| Ok(!tells_nothing_apart(below))),
        _ => Ok(false),
    };
    if plan.exists(misleads)? {
        return Ok(Vec::new());
    }
    let columns = schema.fields().len();
    let determines_all = plan.schema().functional_dependencies().iter().filter(|dependency| {
        dependency.mode == Dependency::Single
            && !dependency.source_indices.is_empty()
            && (0..columns)
                .all(|i| dependency.target_indices.contains(&i) || dependency.source_indices.contains(&i))
    });
    let shortest = determines_all.min_by_key(|dependency| dependency.source_indices.len());
    let names = shortest.map(|dependency| {
        dependency.source_indices.iter().map(|i| schema.field(*i).name().clone()).collect::<Vec<_>>()
    });
    Ok(names.unwrap_or_default())
}

/// Whether the derivation takes nothing for a key of what such a node makes.
fn tells_nothing_apart(node: &LogicalPlan) -> bool {
    matches!(
        node,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Join(_)
    )
}

/// The view's columns; each must have a name of its own, since rows leave as JSON objects.
pub fn output_schema(def: &ViewDef, plan: &LogicalPlan) -> Result<SchemaRef> {
    let fields = plan.schema().fields();
    let mut names = BTreeSet::new();
    for field in fields {
        if !names.insert(field.name()) {
            return Err(def
                .place
                .error(format!("two columns are named `{}`; name one of them with AS", field.name())));
        }
    }
    if let Some(missing) = def.key.iter().find(|key| !names.contains(key)) {
        let known = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(def.place.error(format!("key `{missing}` is no column of the view; it has {known}")));
    }
    let nullable = fields.iter().map(|field| field.as_ref().clone().with_nullable(true));
    Ok(Arc::new(Schema::new(nullable.collect::<Vec<_>>())))
}
