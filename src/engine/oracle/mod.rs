//! For tests: an engine and its oracle side by side. After each micro-batch every view must equal the same
//! SELECT run by plain DataFusion over all rows so far, less the rows that by definition came too late for it and
//! those that an expression can't take, which must be those that the engine reports; and the accumulated changelog must equal the view.

mod arrivals;
mod consumer;
mod driver;
mod finality;
mod intervals;
mod nexmark;
mod order;
mod recount;
mod restarts;
mod rows;
mod shape;
mod slt;
mod statements;
mod tables;
mod told;
mod tpch;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use self::arrivals::Arrivals;
pub use self::consumer::Consumer;
use self::driver::Driver;
use self::recount::Recount;
pub use self::rows::{assert_same, cells, sorted};
pub use self::told::Messages;
use self::told::Net;
use super::ViewChange;
use super::input::WEIGHT;
use super::session;
use crate::catalog::{Catalog, SourceDef};
use crate::error::Result;
use crate::queries::QueryFile;

/// An engine, what it was told, and what its changelogs say.
pub struct Pair {
    /// The statements so far.
    texts: Vec<String>,
    /// Micro-batches and changes of reference tables, in their order.
    events: Vec<Event>,
    /// Whether the engine stops before each event, and another one goes on from what it has saved.
    restarts: bool,
    built: Option<Built>,
}

#[derive(Clone)]
enum Event {
    Messages { source: String, messages: Messages },
    Reference { table: String, batches: Vec<RecordBatch> },
}

struct Built {
    driver: Driver,
    consumers: BTreeMap<String, Consumer>,
    shown: BTreeMap<String, RecordBatch>,
    arrivals: BTreeMap<String, Arrivals>,
    /// Reference tables, as they were at first, and after each change that rows came after.
    eras: Vec<BTreeMap<String, Vec<RecordBatch>>>,
    /// Rows so far, of all sources.
    rows: u64,
    /// Whether rows came since the reference tables changed.
    era_has_rows: bool,
    /// Of each view the rows that the engine says came too late, by position among all rows.
    late: BTreeMap<String, BTreeSet<u64>>,
    /// Of each view the rows that the engine says an expression can't take.
    failed: BTreeMap<String, BTreeSet<u64>>,
    /// Of each source the primary keys so far.
    keys: BTreeMap<String, BTreeSet<Vec<String>>>,
    /// Of each source that takes rows back those that are there.
    nets: BTreeMap<String, Net>,
}

impl Pair {
    /// Nothing declared.
    pub fn new() -> Self {
        Pair { texts: Vec::new(), events: Vec::new(), restarts: false, built: None }
    }

    /// The same with an engine that stops before each event: another one goes on from what it has saved.
    pub fn restarting() -> Self {
        Pair { restarts: true, ..Pair::new() }
    }

    /// Adds declarations; all micro-batches so far are applied to them too.
    pub async fn declare(&mut self, text: &str) -> Result<()> {
        self.texts.push(text.trim_end_matches(';').to_string());
        let built = Built::new(&self.texts).await;
        if built.is_err() {
            self.texts.pop();
        }
        let mut built = built?;
        for event in &self.events {
            built.apply(event.clone(), self.restarts).await;
        }
        self.built = Some(built);
        Ok(())
    }

    /// Adds rows: of a source, a micro-batch of one partition; of a reference table, new rows.
    pub async fn insert(&mut self, table: &str, rows: RecordBatch) {
        let built = self.built.as_ref().expect("nothing is declared");
        if built.driver.catalog.sources.contains_key(table) {
            let partitions = vec![0; rows.num_rows()];
            return self.insert_from(table, rows, partitions).await;
        }
        let mut batches = built.eras.last().and_then(|era| era.get(table)).cloned().unwrap_or_default();
        batches.push(rows);
        self.set(table, batches).await;
    }

    /// Adds a micro-batch to a source; `partitions` is that of each row.
    pub async fn insert_from(&mut self, source: &str, rows: RecordBatch, partitions: Vec<i32>) {
        self.tell_messages(source, Messages::rows(rows, partitions)).await;
    }

    /// Tells a source a micro-batch.
    pub async fn tell_messages(&mut self, source: &str, messages: Messages) {
        self.tell(Event::Messages { source: source.into(), messages }).await;
    }

    /// Replaces the rows of a reference table.
    pub async fn set(&mut self, table: &str, batches: Vec<RecordBatch>) {
        self.tell(Event::Reference { table: table.into(), batches }).await;
    }

    async fn tell(&mut self, event: Event) {
        self.events.push(event.clone());
        self.built.as_mut().expect("nothing is declared").apply(event, self.restarts).await;
    }

    /// Fails if a view differs from a recount.
    pub async fn check(&mut self) {
        self.built.as_mut().expect("nothing is declared").check(&self.texts.join(";\n")).await;
    }

    /// A session with the views as they are, and every source and reference table.
    pub async fn session(&mut self) -> SessionContext {
        let built = self.built.as_mut().expect("nothing is declared");
        let recount = Recount::new(&built.driver.catalog, &built.arrivals, &built.eras).await.unwrap();
        let session = recount.session;
        for (name, batch) in &built.shown {
            let _ = session.deregister_table(name.as_str());
            let table = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]]).unwrap();
            session.register_table(name.as_str(), Arc::new(table)).unwrap();
        }
        session
    }

    /// Every view's rows and the positions of the rows that were too late for it.
    pub fn shown(&self) -> BTreeMap<String, (Vec<Vec<String>>, BTreeSet<u64>)> {
        let built = self.built.as_ref().expect("nothing is declared");
        let late = |view: &String| built.late.get(view).cloned().unwrap_or_default();
        let shown = built.shown.iter();
        shown.map(|(view, rows)| (view.clone(), (sorted(std::slice::from_ref(rows)), late(view)))).collect()
    }

    /// Why a view shows its last good rows, if it does.
    pub fn failure(&self, view: &str) -> Option<String> {
        self.built.as_ref().expect("nothing is declared").driver.failure(view)
    }

    /// Schema of a source or reference table.
    pub fn schema(&self, table: &str) -> Option<SchemaRef> {
        let catalog = &self.built.as_ref()?.driver.catalog;
        let source = catalog.sources.get(table).map(|source| Arc::clone(&source.schema));
        source.or_else(|| catalog.tables.get(table).map(|table| Arc::clone(&table.schema)))
    }

    /// A source's declaration, if it is one.
    fn source(&self, name: &str) -> Option<SourceDef> {
        self.built.as_ref()?.driver.catalog.sources.get(name).cloned()
    }

    /// How a view is kept up to date, for people.
    pub fn plan(&self, view: &str) -> String {
        self.built.as_ref().expect("nothing is declared").driver.info(view).plan.clone()
    }
}

/// Whether plain DataFusion runs the views of these statements over no rows: what it can't do is no view.
pub async fn runs_as_a_batch(text: &str) -> bool {
    let planning = session::continuous().state();
    let files = [QueryFile { path: PathBuf::from("test.sql"), text: text.into() }];
    let Ok(catalog) = Catalog::parse(&files, &planning).await else { return false };
    let arrivals = catalog.sources.iter();
    let arrivals = arrivals.map(|(name, source)| (name.clone(), Arrivals::new(source))).collect();
    let eras = [BTreeMap::new()];
    let Ok(recount) = Recount::new(&catalog, &arrivals, &eras).await else { return false };
    for view in catalog.views.keys() {
        if recount.run(recount.plan(view).clone()).await.is_err() {
            return false;
        }
    }
    true
}

impl Built {
    async fn new(texts: &[String]) -> Result<Built> {
        let driver = Driver::new(texts.join(";\n")).await?;
        let arrivals = driver.catalog.sources.iter();
        let arrivals = arrivals.map(|(name, source)| (name.clone(), Arrivals::new(source))).collect();
        let nets = driver.catalog.sources.iter();
        let nets = nets.filter_map(|(name, source)| Some((name.clone(), Net::new(source)?))).collect();
        let mut built = Built {
            driver,
            consumers: BTreeMap::new(),
            shown: BTreeMap::new(),
            arrivals,
            eras: vec![BTreeMap::new()],
            rows: 0,
            era_has_rows: false,
            late: BTreeMap::new(),
            failed: BTreeMap::new(),
            keys: BTreeMap::new(),
            nets,
        };
        let changes = built.driver.start().await?;
        built.take(changes);
        Ok(built)
    }

    async fn restart(&mut self) {
        for change in self.driver.restart().await.unwrap().into_iter().flatten() {
            let (name, now) = (&change.info.name, change.rows.batch().unwrap());
            assert_eq!(change.rows.total(), now.num_rows(), "the number of rows of {name} after a restart");
            if let Some(before) = self.shown.get(name) {
                let rows = |rows: &RecordBatch| sorted(std::slice::from_ref(rows));
                assert_same(&format!("{name} after a restart"), &rows(&now), &rows(before));
            }
        }
    }

    async fn apply(&mut self, event: Event, restarts: bool) {
        if restarts {
            self.restart().await;
        }
        match event {
            Event::Messages { source, messages } => {
                let step = self.driver.apply(&source, &messages).await.unwrap();
                let Messages { came, partitions, .. } = &messages;
                let weights = match self.nets.get_mut(&source) {
                    Some(net) => {
                        let told = weighted(&step.rows);
                        assert_eq!(told, net.take(&messages), "rows that come and go");
                        told.into_iter().map(|(weight, _)| weight).collect()
                    }
                    None => {
                        let counted = self.counted(&source, came, partitions);
                        assert_eq!(step.counted, counted, "rows that keep the rules");
                        vec![1; counted.len()]
                    }
                };
                let partitions: Vec<i32> =
                    step.counted.iter().map(|message| partitions[*message as usize]).collect();
                for (row, view) in step.late {
                    let is_new = self.late.entry(view).or_default().insert(self.rows + u64::from(row));
                    assert!(is_new, "a row is reported late twice");
                }
                for (row, view) in step.errors {
                    self.failed.entry(view).or_default().insert(self.rows + u64::from(row));
                }
                let arrivals = self.arrivals.get_mut(&source).unwrap();
                if step.rows.num_rows() > 0 {
                    arrivals.push(&step.rows, &weights, &partitions, self.rows, self.eras.len() - 1);
                    self.rows += step.rows.num_rows() as u64;
                    self.era_has_rows = true;
                }
                self.take(step.changes);
            }
            Event::Reference { table, batches } => {
                let changes = self.driver.set_reference(&table, batches.clone()).await.unwrap();
                if self.era_has_rows {
                    self.eras.push(self.eras.last().unwrap().clone());
                    self.era_has_rows = false;
                }
                self.eras.last_mut().unwrap().insert(table, batches);
                self.take(changes);
            }
        }
    }

    /// Positions of the rows whose primary key is new: of several with one key the first by partition, then offset.
    fn counted(&mut self, source: &str, rows: &RecordBatch, partitions: &[i32]) -> Vec<u32> {
        let key = self.driver.catalog.sources[source].primary_key();
        let mut positions: Vec<usize> = (0..rows.num_rows()).collect();
        if let Some(columns) = key {
            let columns: Vec<_> = columns.iter().map(|name| rows.schema().index_of(name).unwrap()).collect();
            let cells = cells(&rows.project(&columns).unwrap());
            positions.sort_by_key(|row| (partitions[*row], *row));
            let seen = self.keys.entry(source.into()).or_default();
            positions.retain(|row| seen.insert(cells[*row].clone()));
            positions.sort();
        }
        positions.into_iter().map(|row| row as u32).collect()
    }

    fn take(&mut self, changes: Vec<ViewChange>) {
        for change in changes {
            let name = change.info.name.clone();
            let consumer = self.consumers.entry(name.clone()).or_default();
            consumer.take(&change);
            let shown = change.rows.batch().unwrap();
            if !change.stateless {
                assert_eq!(change.rows.total(), shown.num_rows(), "the number of rows of {name}");
                let rows = sorted(std::slice::from_ref(&shown));
                assert_same(&format!("changelog of {name}"), &consumer.rows(), &rows);
            }
            self.shown.insert(name, shown);
        }
    }

    async fn check(&mut self, text: &str) {
        let recount = Recount::new(&self.driver.catalog, &self.arrivals, &self.eras).await.unwrap();
        for view in self.driver.catalog.views.values().filter(|view| view.materialized) {
            let name = &view.name;
            let failure = self.driver.failure(name);
            let counted = match (recount.view(view).await, failure) {
                (Ok(counted), None) => counted,
                (Err(_), Some(_)) => continue,
                (Ok(_), Some(reason)) => panic!("{name} has failed, and a batch does not: {reason}\n{text}"),
                (Err(error), None) => panic!("a batch of {name}, which has not failed: {error}\n{text}"),
            };
            let of_engine =
                |rows: &BTreeMap<String, BTreeSet<u64>>| rows.get(name).cloned().unwrap_or_default();
            let late = of_engine(&self.late);
            assert_eq!(late, counted.late, "{name}: the rows that are late, and those that must be\n{text}");
            let failed = of_engine(&self.failed);
            assert_eq!(failed, counted.failed, "{name}: the rows that an expression can't take\n{text}");
            let is_stateless = self.driver.is_stateless(name);
            let shown = match is_stateless {
                true => self.consumers[name].rows(),
                false => sorted(&[self.shown[name].clone()]),
            };
            assert_same(&format!("{name}, recounted\n{text}"), &shown, &sorted(&counted.rows));
            if !is_stateless {
                self.check_order(name, recount.plan(name), text);
            }
        }
    }

    fn check_order(&self, name: &str, plan: &datafusion::logical_expr::LogicalPlan, text: &str) {
        let rows = &self.shown[name];
        let of_key = || {
            let key = &self.driver.info(name).key;
            let positions = key.iter().map(|column| rows.schema().index_of(column).unwrap());
            let comparable = positions.take_while(|i| !rows.column(*i).data_type().is_nested());
            comparable.map(|i| (i, Default::default())).collect()
        };
        let by = if self.driver.is_append(name) { None } else { order::by_query(plan) };
        let by = by.unwrap_or_else(of_key);
        if let Some(row) = order::first_out_of_order(rows, &by) {
            let rows = cells(rows);
            panic!("{name}: row {row} is out of order by columns {by:?}\n{text}\n{rows:#?}");
        }
    }
}

/// Rows without their weights, and the weights.
fn weighted(rows: &RecordBatch) -> Vec<(i64, Vec<String>)> {
    let weights = rows.column_by_name(WEIGHT).expect("it takes rows back").as_primitive::<Int64Type>();
    let columns: Vec<_> = (0..rows.num_columns() - 1).collect();
    weights.values().iter().copied().zip(cells(&rows.project(&columns).unwrap())).collect()
}

/// What the `.sql` files of a folder declare.
fn statements_of(folder: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}
