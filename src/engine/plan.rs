//! Builds an [`Engine`] from a [`Catalog`]: plans each view once, in the order of their dependencies, and
//! refuses what can't be kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemorySchemaProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Aggregate, LogicalPlan};
use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;

use super::aggregate::AggregateState;
use super::catalog::{Catalog, Place, RuleKind, ViewDef};
use super::session::{self, PG};
use super::slot::{Kind, SlotTable};
use super::split::{self, Split, split};
use super::view::ViewRows;
use super::{AggregateNode, Engine, View};
use crate::error::{Error, Result};
use crate::snapshot::ViewInfo;

impl Engine {
    /// Plans every materialized view of `catalog`. `tables` are the reference tables' names and columns;
    /// their rows come later, by [`Engine::set_reference`].
    pub async fn plan(catalog: &Catalog, tables: &[(String, SchemaRef)]) -> Result<Engine> {
        let mut engine = Engine {
            session: session::continuous(),
            streams: BTreeMap::new(),
            references: BTreeMap::new(),
            needed: BTreeMap::new(),
            aggregates: Vec::new(),
            views: Vec::new(),
        };
        engine.register_tables(catalog, tables)?;
        engine.check_foreign_keys(catalog)?;
        for name in in_dependency_order(catalog, &engine.session)? {
            let def = &catalog.views[&name];
            engine.add_view(def).await.map_err(|e| match e {
                Error::DataFusion(e) => def.place.explain(e),
                other => other,
            })?;
        }
        Ok(engine)
    }

    /// A source takes the bare name where a reference table has it too; `pg.name` is always the table.
    fn register_tables(&mut self, catalog: &Catalog, tables: &[(String, SchemaRef)]) -> Result<()> {
        let default = self.session.catalog_names().first().and_then(|name| self.session.catalog(name));
        if let Some(default) = default {
            default.register_schema(PG, Arc::new(MemorySchemaProvider::new()))?;
        }
        for (name, source) in &catalog.sources {
            let slot = SlotTable::new(name, Kind::Stream, Arc::clone(&source.schema));
            self.session.register_table(TableReference::bare(name.as_str()), Arc::clone(&slot) as _)?;
            self.streams.insert(name.clone(), slot);
        }
        for (name, schema) in tables {
            let slot = SlotTable::new(name, Kind::Reference, Arc::clone(schema));
            self.session
                .register_table(TableReference::partial(PG, name.as_str()), Arc::clone(&slot) as _)?;
            if !catalog.sources.contains_key(name) && !catalog.views.contains_key(name) {
                self.session.register_table(TableReference::bare(name.as_str()), Arc::clone(&slot) as _)?;
            }
            self.references.insert(name.clone(), slot);
        }
        Ok(())
    }

    /// The rules read reference tables too, so they are checked, and their columns loaded, with the views'.
    fn check_foreign_keys(&mut self, catalog: &Catalog) -> Result<()> {
        use datafusion::catalog::TableProvider;
        for source in catalog.sources.values() {
            for rule in &source.rules {
                let RuleKind::ForeignKey { table, referred, .. } = &rule.kind else { continue };
                let Some(slot) = self.references.get(table) else {
                    let known = self.references.keys().cloned().collect::<Vec<_>>().join(", ");
                    return Err(source.place.error(format!(
                        "{}: Postgres has no table `{table}` in the configured schema (it has: {known}); \
                         `tally seed` or a migration makes it",
                        rule.name
                    )));
                };
                for column in referred {
                    if slot.schema().index_of(column).is_err() {
                        return Err(source
                            .place
                            .error(format!("{}: `{table}` has no column `{column}`", rule.name)));
                    }
                }
                self.needed.entry(table.clone()).or_default().extend(referred.iter().cloned());
            }
        }
        Ok(())
    }

    async fn add_view(&mut self, def: &ViewDef) -> Result<()> {
        let state = self.session.state();
        let plan = state.statement_to_plan(def.query.clone()).await?;
        split::refuse_volatile(&plan)?;
        let table = ViewTable::new(plan.clone(), None);
        self.session.register_table(TableReference::bare(def.name.as_str()), Arc::new(table))?;
        if !def.materialized {
            return Ok(());
        }
        let schema = output_schema(def, &plan)?;
        let optimized = state.optimize(&plan)?;
        let mut references = BTreeSet::new();
        for (table, columns) in split::reference_columns(&optimized)? {
            self.needed.entry(table.clone()).or_default().extend(columns);
            references.insert(table);
        }
        let mut found =
            self.aggregates.iter().map(|a| (a.fingerprint.clone(), Arc::clone(&a.table))).collect::<Vec<_>>();
        let split = split(optimized, |aggregate| shared_table(aggregate, &mut found))?;
        let aggregates = self.add_aggregates(&split).await?;
        if aggregates.is_empty() {
            return Err(def.place.error(format!(
                "`{}` reads no stream; a CREATE VIEW (without MATERIALIZED) serves a query on reference tables",
                def.name
            )));
        }
        let finishing = state.query_planner().create_physical_plan(&split.finishing, &state).await?;
        let rows = ViewRows::new(Arc::clone(&schema), &def.key)?;
        self.views.push(View {
            info: Arc::new(ViewInfo {
                name: def.name.clone(),
                schema,
                key: def.key.clone(),
                mode: "update",
                topic: def.topic.clone(),
            }),
            place: def.place.clone(),
            finishing,
            row_wise: split.row_wise,
            folded: split.folded,
            aggregates,
            references,
            rows,
            is_ordered: split::is_ordered(&split.finishing),
            ordered: None,
        });
        Ok(())
    }

    /// Adds the split's aggregates that no view before had; their positions among all.
    async fn add_aggregates(&mut self, split: &Split) -> Result<Vec<usize>> {
        let mut positions = Vec::new();
        for (aggregate, table) in &split.aggregates {
            let known = self.aggregates.iter().position(|known| Arc::ptr_eq(&known.table, table));
            let position = match known {
                Some(position) => position,
                None => {
                    self.aggregates.push(self.plan_aggregate(aggregate, table).await?);
                    self.aggregates.len() - 1
                }
            };
            if !positions.contains(&position) {
                positions.push(position);
            }
        }
        Ok(positions)
    }

    async fn plan_aggregate(&self, aggregate: &Aggregate, table: &Arc<SlotTable>) -> Result<AggregateNode> {
        use datafusion::catalog::TableProvider;
        let plan = LogicalPlan::Aggregate(aggregate.clone());
        let state = self.session.state();
        let physical = state.query_planner().create_physical_plan(&plan, &state).await?;
        tracing::debug!("aggregate {}\n{}", table.name(), displayable(physical.as_ref()).indent(false));
        let references = split::reference_columns(&plan)?.into_iter().map(|(table, _)| table).collect();
        Ok(AggregateNode {
            fingerprint: fingerprint(aggregate),
            streams: split::streams(&plan)?,
            references,
            table: Arc::clone(table),
            state: AggregateState::new(&physical, table.schema())?,
        })
    }
}

fn fingerprint(aggregate: &Aggregate) -> String {
    LogicalPlan::Aggregate(aggregate.clone()).display_indent_schema().to_string()
}

/// The table of an equal aggregate that is there already, or a new one.
fn shared_table(aggregate: &Aggregate, found: &mut Vec<(String, Arc<SlotTable>)>) -> Arc<SlotTable> {
    let print = fingerprint(aggregate);
    if let Some((_, table)) = found.iter().find(|(known, _)| *known == print) {
        return Arc::clone(table);
    }
    let plan = LogicalPlan::Aggregate(aggregate.clone());
    let table =
        SlotTable::new(format!("aggregate_{}", found.len()), Kind::State, split::positional_schema(&plan));
    found.push((print, Arc::clone(&table)));
    table
}

/// The view's columns; each must have a name of its own, since rows leave as JSON objects.
fn output_schema(def: &ViewDef, plan: &LogicalPlan) -> Result<SchemaRef> {
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

/// Names of all views, each after those it reads.
fn in_dependency_order(catalog: &Catalog, session: &SessionContext) -> Result<Vec<String>> {
    let mut order = Vec::new();
    for name in catalog.views.keys() {
        visit(name, catalog, session, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    catalog: &Catalog,
    session: &SessionContext,
    path: &mut Vec<String>,
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|done| done == name) {
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
    let references =
        session.state().resolve_table_references(&view.query).map_err(|e| explain(&view.place, e))?;
    for reference in references {
        if reference.schema().is_none() && catalog.views.contains_key(reference.table()) {
            visit(reference.table(), catalog, session, path, order)?;
        }
    }
    path.pop();
    order.push(name.to_string());
    Ok(())
}
