//! Builds an [`Engine`] from a [`Catalog`]: plans each view once, in the order of their dependencies, and
//! refuses what can't be kept up to date.

mod describe;
mod disclosure;
mod identity;
mod keys;
mod mode;
mod on_time;
mod order;
mod sessions;
mod window_cut;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::TableReference;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;

use self::describe::indent;
use self::disclosure::disclosure;
use self::identity::shared_table;
pub use self::identity::{Identity, Terms};
use self::keys::{inferred_key, is_same_key, output_schema};
pub use self::order::{in_dependency_order, reads_other_tables};
use self::window_cut::cut_windows;
use super::Engine;
use super::aggregate::{AggregateState, EventTimeBounds};
use super::below::Below;
use super::bound::{self, INSTANT};
use super::flow::{self, Cut, Finality, FlowView, Graph, Order, Shown, Source};
use super::hidden;
use super::input::{InputTable, Inputs, Kind, Runner, WEIGHT};
use super::node::Node;
use super::operands;
use super::row_windows::RowWindows;
use super::row_wise::{RowView, RowWise};
use super::schedule::Stateful;
use super::session::{self, PG};
use super::session_rows::SessionRows;
use super::split::{self, Maintenance, split};
use super::stream_rows::StreamRows;
use super::upkeep::{UNTIL_FINAL, Upkeep, ViewUpkeep};
use super::view::{Ring, ViewInfo};
use super::view_rows::ViewRows;
use super::watermark::Watermark;
use super::window_functions;
use super::windows::{self, Sessions};
use super::work::{View, Work};
use crate::catalog::{Catalog, Mode, RuleKind, ViewDef};
use crate::error::{Error, Result};

impl Engine {
    /// Plans every materialized view of `catalog`; the error is that of all that can't be used. `tables` are
    /// the reference tables' names and columns; their rows come later, by [`Engine::set_reference`].
    pub async fn plan(catalog: &Catalog, tables: &[(String, SchemaRef)]) -> Result<Engine> {
        let session = session::continuous();
        let mut engine = Engine {
            runner: Runner::new(&session),
            inputs: Inputs::default(),
            session,
            streams: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            references: BTreeMap::new(),
            needed: BTreeMap::new(),
            read: BTreeMap::new(),
            nodes: Vec::new(),
            graph: Graph::default(),
            shown_tables: BTreeMap::new(),
            views: Vec::new(),
            lookups: Vec::new(),
        };
        engine.register_tables(catalog, tables)?;
        engine.check_foreign_keys(catalog)?;
        let (mut errors, mut failed) = (Vec::new(), BTreeSet::new());
        for (name, reads) in in_dependency_order(catalog, &engine.session)? {
            if !reads.is_disjoint(&failed) {
                // The reason is that of the view it reads.
                failed.insert(name);
                continue;
            }
            let def = &catalog.views[&name];
            if let Err(error) = engine.add_view(catalog, def).await {
                errors.push(match error {
                    Error::DataFusion(e) => def.place.explain(e),
                    other => other,
                });
                failed.insert(name);
            }
        }
        Error::all(errors)?;
        Ok(engine)
    }

    /// A source takes the bare name where a reference table has it too; `pg.name` is always the table.
    fn register_tables(&mut self, catalog: &Catalog, tables: &[(String, SchemaRef)]) -> Result<()> {
        let default = self.session.catalog_names().first().and_then(|name| self.session.catalog(name));
        if let Some(default) = default {
            default.register_schema(PG, Arc::new(MemorySchemaProvider::new()))?;
        }
        for (name, source) in &catalog.sources {
            let input = InputTable::new(name, Kind::Stream, Arc::clone(&source.schema));
            self.session.register_table(TableReference::bare(name.as_str()), Arc::clone(&input) as _)?;
            self.streams.insert(name.clone(), input);
            if let Some(watermark) = Watermark::new(source) {
                self.read.entry(name.clone()).or_default().extend(source.event_time.clone());
                self.watermarks.insert(name.clone(), watermark);
            }
        }
        for (name, schema) in tables {
            let input = InputTable::new(name, Kind::Reference, Arc::clone(schema));
            self.session
                .register_table(TableReference::partial(PG, name.as_str()), Arc::clone(&input) as _)?;
            if !catalog.sources.contains_key(name) && !catalog.views.contains_key(name) {
                self.session.register_table(TableReference::bare(name.as_str()), Arc::clone(&input) as _)?;
            }
            self.references.insert(name.clone(), input);
        }
        Ok(())
    }

    /// The rules read reference tables too, so they are checked, and their columns loaded, with the views'.
    fn check_foreign_keys(&mut self, catalog: &Catalog) -> Result<()> {
        use datafusion::catalog::TableProvider;
        for source in catalog.sources.values() {
            for rule in &source.rules {
                let RuleKind::ForeignKey { table, referred, .. } = &rule.kind else { continue };
                let Some(input) = self.references.get(table) else {
                    let known = self.references.keys().cloned().collect::<Vec<_>>().join(", ");
                    return Err(source.place.error(format!(
                        "{}: Postgres has no table `{table}` in the configured schema (it has: {known}); \
                         `tally seed` or a migration makes it",
                        rule.name
                    )));
                };
                for column in referred {
                    if input.schema().index_of(column).is_err() {
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

    async fn add_view(&mut self, catalog: &Catalog, def: &ViewDef) -> Result<()> {
        let sessions = self.session_windows(catalog, def).await?;
        let mut query = def.query.clone();
        windows::rewrite_each(&mut query, &|n| sessions.get(n).copied().unwrap_or(Sessions::Batch))?;
        let added = self.add_query(catalog, def, query).await;
        let Err(error) = added else { return Ok(()) };
        if !sessions.contains(&Sessions::Incremental) {
            return Err(error);
        }
        // What neither an aggregate of sessions nor their rows can do, window functions can.
        self.session.deregister_table(TableReference::bare(def.name.as_str()))?;
        let mut query = def.query.clone();
        windows::rewrite(&mut query, Sessions::Batch)?;
        self.add_query(catalog, def, query).await.map_err(|_| error)
    }

    async fn add_query(&mut self, catalog: &Catalog, def: &ViewDef, query: Statement) -> Result<()> {
        let state = self.session.state();
        let plan = state.statement_to_plan(query).await?;
        split::refuse_volatile(&plan)?;
        window_functions::check_hops(&plan)?;
        // Only coercion finds the types of CASE and UNION.
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
        let table = ViewTable::new(plan.clone(), None);
        self.session.register_table(TableReference::bare(def.name.as_str()), Arc::new(table))?;
        if !def.materialized {
            return Ok(());
        }
        let schema = output_schema(def, &plan)?;
        let mut found =
            self.nodes.iter().map(|node| (node.identity.clone(), Arc::clone(&node.table))).collect();
        let mut state_of = |node: &LogicalPlan| shared_table(node, Terms::default(), &mut found);
        let takes_back = |stream: &str| takes_back(catalog, stream);
        let mut nodes = Vec::new();
        let whole = state.optimize(&plan)?;
        let mut references = split::reference_columns(&whole)?;
        let found_key = inferred_key(&plan, &schema)?;
        if !def.key.is_empty() && !found_key.is_empty() {
            let open = keys::left_open(&whole, &schema, &def.key, &found_key)?;
            if !open.is_empty() {
                return Err(def.place.error(format!(
                    "rows are told apart by ({}), so two can have the same key ({}): add {} to `key`, or leave `key` out",
                    found_key.join(", "),
                    def.key.join(", "),
                    open.join(", ")
                )));
            }
        }
        let key = if def.key.is_empty() { found_key.clone() } else { def.key.clone() };
        let keeps_rows = def.hold.is_some() || matches!(def.mode, Some(Mode::Update | Mode::Complete));
        // Without state a window is no more than columns of its row.
        let cut = match !keeps_rows && split::is_stateless(&whole, &takes_back)? {
            true => window_cut::Cut { plan, nodes: Vec::new() },
            false => cut_windows(plan, &takes_back, &state, &mut state_of)?,
        };
        nodes.extend(cut.nodes);
        let event_time = |stream: &str| event_time(catalog, stream);
        let optimized = operands::below(state.optimize(&cut.plan)?)?;
        let optimized = split::keep_values_only(optimized, event_time)?;
        let kept = split::Kept { rows: keeps_rows, sessions: false };
        let mut parts = split(optimized.clone(), &takes_back, kept, &mut state_of)?;
        let joined = [&nodes[..], &parts.nodes[..]].concat();
        let on_time = on_time::rows_of_intervals(&parts.finishing, &joined, event_time)?;
        if !on_time.is_empty() {
            let mut state_of = |node: &LogicalPlan| {
                let terms = Terms { on_time: on_time.contains(node), ..Terms::default() };
                shared_table(node, terms, &mut found)
            };
            parts = split(optimized, &takes_back, kept, &mut state_of)?;
        }
        let split = parts;
        nodes.extend(split.nodes);
        references.extend(split::reference_columns(&split.finishing)?);
        references.retain(|(table, _)| self.references.contains_key(table));
        let mut tables = BTreeSet::new();
        for (table, columns) in references {
            self.needed.entry(table.clone()).or_default().extend(columns);
            tables.insert(table);
        }
        let each_batch = nodes.iter().map(|(plan, _)| plan);
        let maintenance = split.maintenance;
        self.note_lookups(
            catalog,
            &def.name,
            each_batch.chain((maintenance == Maintenance::Append).then_some(&split.finishing)),
        )?;
        let mode = self.mode(def, maintenance, &key)?;
        let disclosure = disclosure(catalog, def, &schema, &key, mode, &whole)?;
        let mut plan_text = format!("{}\n", indent(&split.finishing.display_indent().to_string()));
        let mut upkeep = ViewUpkeep::default();
        let work = if maintenance == Maintenance::Append {
            let streams = self.reads(&split.finishing)?;
            let ring = Ring::new(Arc::clone(&schema), def.ring_rows);
            plan_text = format!(
                "no state: each micro-batch by itself; the newest {} rows stay readable\n{plan_text}",
                def.ring_rows
            );
            let below = state.query_planner().create_physical_plan(&split.finishing, &state).await?;
            Work::Append { below: Below::new(below), streams, ring }
        } else {
            let positions = self.add_nodes(catalog, def, nodes, &found).await?;
            self.check_append(def, mode, &positions, &split.finishing)?;
            let own_key = def.key.is_empty() || is_same_key(&def.key, &found_key);
            let row_wise = match positions[..] {
                [node] if maintenance == Maintenance::ByRow && mode == Mode::Update && own_key => {
                    let has_snapshot = self.nodes[node].node.snapshot().is_some();
                    let made = RowWise::new(&split.finishing, Arc::clone(&schema), &state)?;
                    made.filter(|_| has_snapshot).map(|row_wise| (node, row_wise))
                }
                _ => None,
            };
            let work = match row_wise {
                Some((node, row_wise)) => Work::RowView { node, view: RowView::new(row_wise, &key)? },
                None => {
                    let of_rows = positions.iter().any(|node| self.nodes[*node].append_only);
                    let rows = match mode == Mode::Append && of_rows {
                        true => Shown::Newest(Ring::new(Arc::clone(&schema), def.ring_rows)),
                        false => Shown::All(Box::new(ViewRows::new(Arc::clone(&schema), &key)?)),
                    };
                    self.flow(def, mode, &split.finishing, rows, positions.clone()).await?
                }
            };
            upkeep = self.upkeep(&positions, &work);
            plan_text = format!("{upkeep}\n{}", self.describe(&positions, &work, plan_text));
            work
        };
        let plan_text = self.describe_lookups(&def.name) + &plan_text;
        let info = ViewInfo {
            name: def.name.clone(),
            schema,
            key,
            mode: mode.as_str(),
            topic: def.topic.clone(),
            upkeep,
            plan: plan_text,
            disclosure,
            sql: def.text.clone(),
        };
        self.views.push(View::new(info, def.place.clone(), tables, mode, work));
        Ok(())
    }

    /// Cuts a finishing plan into the graph of dataflows.
    async fn flow(
        &mut self,
        def: &ViewDef,
        mode: Mode,
        finishing: &LogicalPlan,
        rows: Shown,
        nodes: Vec<usize>,
    ) -> Result<Work> {
        let only_final = mode == Mode::Append;
        let hold_ns = def.hold.and_then(|hold| hold.duration);
        let terms = Terms { only_final, hold_ns, ..Terms::default() };
        let streams = nodes.iter().flat_map(|node| self.nodes[*node].streams.iter().cloned()).collect();
        let source = |node: usize| match only_final && !self.nodes[node].append_only {
            true => Source::Final(node),
            false => Source::Node(node),
        };
        let tables = self.nodes.iter().enumerate();
        let tables = tables.map(|(node, stateful)| (Arc::clone(&stateful.table), source(node))).collect();
        let describe = |node: usize| {
            let stateful = &self.nodes[node];
            let streams: BTreeSet<String> = stateful.streams.iter().cloned().collect();
            // What two streams feed is final when both say so: never, for now.
            let of_one = streams.len() == 1;
            let times = stateful.node.finality().into_iter().map(|after| {
                let after = after.filter(|_| of_one)?;
                Some(Finality { after, streams: streams.clone() })
            });
            (stateful.append_only, times.collect())
        };
        let ordered = flow::with_order(finishing)?;
        let (plan, by) = match &ordered {
            Some((plan, by)) => (plan, Some(by)),
            None => (finishing, None),
        };
        let mut cut = Cut::new(&self.graph, tables, &describe, terms, streams);
        let root = cut.edge(plan)?;
        let drafts = cut.drafts;
        flow::add(&mut self.graph, drafts, &self.session.state(), &self.runner).await?;
        // What is told once is told as it comes.
        let order = by.filter(|_| matches!(rows, Shown::All(_))).map(|by| {
            let all = split::positional_schema(plan);
            let more = all.fields().iter().skip(rows.schema().fields().len());
            let fields = rows.schema().fields().iter().chain(more).cloned().collect::<Vec<_>>();
            Order { by: by.clone(), schema: Arc::new(arrow::datatypes::Schema::new(fields)) }
        });
        let view = FlowView::new(&self.graph, root, rows, order, def.hold.map(|hold| hold.rows))?;
        Ok(Work::Flow { nodes, view: Box::new(view) })
    }

    /// Adds the nodes that no view before had; the positions of all of them.
    async fn add_nodes(
        &mut self,
        catalog: &Catalog,
        def: &ViewDef,
        nodes: Vec<(LogicalPlan, Arc<InputTable>)>,
        identities: &[(Identity, Arc<InputTable>)],
    ) -> Result<Vec<usize>> {
        let mut positions = Vec::new();
        for (plan, table) in nodes {
            let known = self.nodes.iter().position(|known| Arc::ptr_eq(&known.table, &table));
            let position = match known {
                Some(position) => position,
                None => {
                    let identity = identities.iter().find(|(_, known)| Arc::ptr_eq(known, &table));
                    let (identity, _) = identity.expect("invariant: a table is made with an identity");
                    let node = self.plan_node(catalog, def, plan, identity.clone(), table).await?;
                    self.nodes.push(node);
                    self.nodes.len() - 1
                }
            };
            if !positions.contains(&position) {
                positions.push(position);
            }
        }
        Ok(positions)
    }

    /// Notes which columns of which streams a plan reads; the streams.
    fn reads(&mut self, plan: &LogicalPlan) -> Result<Vec<String>> {
        let mut streams = BTreeSet::new();
        for (stream, columns) in split::stream_columns(plan)? {
            self.read.entry(stream.clone()).or_default().extend(columns);
            streams.insert(stream);
        }
        Ok(streams.into_iter().collect())
    }

    async fn plan_node(
        &mut self,
        catalog: &Catalog,
        def: &ViewDef,
        plan: LogicalPlan,
        identity: Identity,
        table: Arc<InputTable>,
    ) -> Result<Stateful> {
        use datafusion::catalog::TableProvider;
        let streams = self.reads(&plan)?;
        let references = split::reference_columns(&plan)?.into_iter().map(|(table, _)| table).collect();
        let event_time = |stream: &str| event_time(catalog, stream);
        let state = self.session.state();
        let lower = async |plan: &LogicalPlan| state.query_planner().create_physical_plan(plan, &state).await;
        let node: Box<dyn Node> = match &plan {
            LogicalPlan::Aggregate(aggregate) => {
                let session = bound::session(aggregate, event_time)?;
                let bound = match &session {
                    Some(keys) => keys.bound(),
                    None => bound::bound(aggregate, event_time),
                };
                let mut aggregate = aggregate.clone();
                if bound.is_some() {
                    aggregate.input = Arc::new(hidden::with_hidden(&aggregate.input, hidden::OF_TIME)?);
                }
                let physical = lower(&LogicalPlan::Aggregate(aggregate)).await?;
                Box::new(AggregateState::new(&physical, table.schema(), EventTimeBounds { bound, session })?)
            }
            _ => {
                let timed = streams.iter().all(|stream| event_time(stream).is_some());
                if def.hold.is_some_and(|hold| hold.duration.is_some()) && !timed {
                    return Err(def.place.error(
                        "hold_for is measured in event time: the source must declare 'event_time' and 'watermark'",
                    ));
                }
                let on_time = identity.terms().on_time;
                let mut windows = RowWindows {
                    windows: bound::windows_of_rows(&plan, event_time)?,
                    sessions: bound::session_of_rows(&plan, event_time)?,
                };
                if on_time {
                    windows.windows.push(INSTANT);
                }
                let rows = match windows.are_timed() {
                    true => bound::with_open_windows(hidden::with_hidden(&plan, hidden::OF_TIME)?)?,
                    false if streams.iter().any(|stream| takes_back(catalog, stream)) => {
                        hidden::with_hidden(&plan, &[WEIGHT])?
                    }
                    false => plan.clone(),
                };
                let below = Below::new(lower(&rows).await?);
                let finality = match windows.windows.len() {
                    1 if on_time => bound::time_columns(&plan, event_time),
                    1 if windows.sessions.is_none() => bound::window_columns(&plan, event_time),
                    _ => Vec::new(),
                };
                match &windows.sessions {
                    Some(_) => Box::new(SessionRows::new(below, windows, table.schema())?),
                    None => Box::new(StreamRows::new(below, windows, finality, table.schema())),
                }
            }
        };
        let upkeep = match &plan {
            LogicalPlan::Aggregate(aggregate) => {
                let (keys, _) = flow::keys_and_sets(&aggregate.group_expr);
                Some(Upkeep::of_groups(&keys, &aggregate.input, &node.values_kept(), node.bounds_time()))
            }
            _ => bound::session_of_rows(&plan, event_time)?.map(|sessions| Upkeep {
                keeps: "the rows of sessions".into(),
                costs: "the rows of the sessions that it touches".into(),
                until: sessions.is_timed.then(|| UNTIL_FINAL.into()),
                advice: Some("the source needs 'event_time' and 'watermark'"),
            }),
        };
        let below = plan.display_indent().to_string();
        let is_rows = !matches!(plan, LogicalPlan::Aggregate(_)) && bound::own_sessions(&plan).is_none();
        let append_only = is_rows && !streams.iter().any(|stream| takes_back(catalog, stream));
        Ok(Stateful {
            identity,
            below,
            upkeep,
            streams,
            references,
            table,
            node,
            append_only,
            broken: None,
            busy: Duration::ZERO,
        })
    }
}

/// Whether the rows of a source can go again.
fn takes_back(catalog: &Catalog, stream: &str) -> bool {
    catalog.sources.get(stream).is_some_and(|source| source.retracts())
}

/// A source's event time, if rows with one become final.
fn event_time(catalog: &Catalog, stream: &str) -> Option<String> {
    let source = catalog.sources.get(stream)?;
    source.watermark_delay_ms?;
    // What can be taken back is never final.
    source.event_time.clone().filter(|_| !source.retracts())
}
