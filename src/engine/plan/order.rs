//! The order in which views are planned: each after those that it reads.

use std::collections::BTreeSet;

use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

use crate::catalog::{Catalog, Place};
use crate::engine::session;
use crate::engine::windows::{self, Sessions};
use crate::error::Result;

/// Names of all views, each after those it reads, and with them.
pub type Ordered = Vec<(String, BTreeSet<String>)>;

/// The views in an order in which each comes after those that it reads.
pub fn in_dependency_order(catalog: &Catalog, session: &SessionContext) -> Result<Ordered> {
    let mut order = Vec::new();
    for name in catalog.views.keys() {
        visit(name, catalog, session, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// Whether a view reads a table that is neither a source nor a view: one of Postgres.
pub fn reads_other_tables(catalog: &Catalog) -> Result<bool> {
    let session = session::continuous();
    for view in catalog.views.values() {
        let mut query = view.query.clone();
        windows::rewrite(&mut query, Sessions::Incremental).map_err(|e| view.place.explain(e))?;
        let references =
            session.state().resolve_table_references(&query).map_err(|e| view.place.explain(e))?;
        let declared = |name: &str| catalog.sources.contains_key(name) || catalog.views.contains_key(name);
        let is_other = |table: &TableReference| {
            let is_function = session.table_function(table.table()).is_ok();
            table.schema().is_some() || !(declared(table.table()) || is_function)
        };
        if references.iter().any(is_other) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn visit(
    name: &str,
    catalog: &Catalog,
    session: &SessionContext,
    path: &mut Vec<String>,
    order: &mut Ordered,
) -> Result<()> {
    if order.iter().any(|(done, _)| done == name) {
        return Ok(());
    }
    let view = &catalog.views[name];
    if let Some(start) = path.iter().position(|above| above == name) {
        return Err(view
            .place
            .error(format!("views read each other in a circle: {} → {name}", path[start..].join(" → "))));
    }
    path.push(name.to_string());
    let explain = |place: &Place, e: DataFusionError| place.explain(e);
    let mut query = view.query.clone();
    windows::rewrite(&mut query, Sessions::Incremental).map_err(|e| explain(&view.place, e))?;
    let references = session.state().resolve_table_references(&query).map_err(|e| explain(&view.place, e))?;
    let mut reads = BTreeSet::new();
    for reference in references {
        if reference.schema().is_none() && catalog.views.contains_key(reference.table()) {
            visit(reference.table(), catalog, session, path, order)?;
            reads.insert(reference.table().to_string());
        }
    }
    path.pop();
    order.push((name.to_string(), reads));
    Ok(())
}
