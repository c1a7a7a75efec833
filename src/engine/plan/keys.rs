//! A view's columns, and those that tell its rows apart.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Dependency;
use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::LogicalPlan;

use crate::catalog::ViewDef;
use crate::error::Result;

/// Whether a declared key is the one that GROUP BY makes, in any order: then it can't be ambiguous.
pub fn is_same_key(declared: &[String], found: &[String]) -> bool {
    let set = |key: &[String]| key.iter().cloned().collect::<BTreeSet<_>>();
    set(declared) == set(found)
}

/// Columns that tell the view's rows apart, as DataFusion derives them from GROUP BY; none if it can't.
pub fn inferred_key(plan: &LogicalPlan, schema: &SchemaRef) -> Result<Vec<String>> {
    // An unnested row stands for several, which the derivation does not know.
    if plan.exists(|node| Ok(matches!(node, LogicalPlan::Unnest(_) | LogicalPlan::RecursiveQuery(_))))? {
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
