//! For tests: an engine and its oracle side by side. After each micro-batch every view must equal the same
//! SELECT run by plain DataFusion over all rows so far, and the accumulated changelog must equal the view.
//! `tests/sql/*.slt` are run here; each `INSERT` is a micro-batch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;

use super::windows::{self, Sessions};
use super::*;
use crate::catalog::{Catalog, Mode};
use crate::error::Error;
use crate::queries::QueryFile;
use arrow::compute::concat_batches;

/// Relative difference that sums of floats may have, which depend on the order of their summands.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// An engine, what it was told, and what its changelogs say.
pub struct Pair {
    /// The statements so far.
    texts: Vec<String>,
    /// Micro-batches and changes of reference tables, in their order.
    events: Vec<Event>,
    built: Option<Built>,
}

#[derive(Clone)]
enum Event {
    Rows { source: String, rows: RecordBatch },
    Reference { table: String, batches: Vec<RecordBatch> },
}

struct Built {
    catalog: Catalog,
    engine: Engine,
    consumers: BTreeMap<String, Consumer>,
    shown: BTreeMap<String, RecordBatch>,
    rows: BTreeMap<String, Vec<RecordBatch>>,
    references: BTreeMap<String, Vec<RecordBatch>>,
    /// Views with rows that came too late, which a recount would count.
    late: BTreeSet<String>,
    /// Those rows, by position among all rows of all sources.
    late_rows: Vec<(usize, String)>,
}

/// A consumer of a changelog that checks each record against what it holds.
#[derive(Default)]
pub struct Consumer {
    rows: Vec<Vec<String>>,
    by_key: BTreeMap<Vec<String>, Vec<String>>,
}

impl Pair {
    /// Nothing declared.
    pub fn new() -> Self {
        Pair { texts: Vec::new(), events: Vec::new(), built: None }
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
            built.apply(event.clone()).await;
        }
        self.built = Some(built);
        Ok(())
    }

    /// Adds rows: of a source, a micro-batch; of a reference table, new rows.
    pub async fn insert(&mut self, table: &str, rows: RecordBatch) {
        let built = self.built.as_mut().expect("nothing is declared");
        let event = if built.catalog.sources.contains_key(table) {
            Event::Rows { source: table.into(), rows }
        } else {
            let mut batches = built.references.get(table).cloned().unwrap_or_default();
            batches.push(rows);
            Event::Reference { table: table.into(), batches }
        };
        self.events.push(event.clone());
        built.apply(event).await;
    }

    /// Empties a reference table.
    pub async fn clear(&mut self, table: &str) {
        let event = Event::Reference { table: table.into(), batches: Vec::new() };
        self.events.push(event.clone());
        self.built.as_mut().expect("nothing is declared").apply(event).await;
    }

    /// Fails if a view differs from a recount.
    pub async fn check(&mut self) {
        self.built.as_mut().expect("nothing is declared").check(&self.texts.join(";\n")).await;
    }

    /// A session with the views as they are, and every source and reference table.
    pub async fn session(&mut self) -> SessionContext {
        let built = self.built.as_mut().expect("nothing is declared");
        let session = built.recount_session().await;
        for (name, batch) in &built.shown {
            let _ = session.deregister_table(name.as_str());
            let table = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]]).unwrap();
            session.register_table(name.as_str(), Arc::new(table)).unwrap();
        }
        session
    }

    /// A view's rows, and the rows that were too late for one: their positions among all rows.
    pub fn shown(&self, view: &str) -> (Vec<Vec<String>>, Vec<(usize, String)>) {
        let built = self.built.as_ref().expect("nothing is declared");
        (sorted(std::slice::from_ref(&built.shown[view])), built.late_rows.clone())
    }

    /// Schema of a source or reference table.
    pub fn schema(&self, table: &str) -> Option<SchemaRef> {
        let catalog = &self.built.as_ref()?.catalog;
        let source = catalog.sources.get(table).map(|source| Arc::clone(&source.schema));
        source.or_else(|| catalog.tables.get(table).map(|table| Arc::clone(&table.schema)))
    }
}

impl Built {
    async fn new(texts: &[String]) -> Result<Built> {
        let files = [QueryFile { path: PathBuf::from("test.sql"), text: texts.join(";\n") }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
        let tables: Vec<_> =
            catalog.tables.values().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
        let engine = Engine::plan(&catalog, &tables).await?;
        let mut built = Built {
            catalog,
            engine,
            consumers: BTreeMap::new(),
            shown: BTreeMap::new(),
            rows: BTreeMap::new(),
            references: BTreeMap::new(),
            late: BTreeSet::new(),
            late_rows: Vec::new(),
        };
        let changes = built.engine.start().await?;
        built.take(changes);
        Ok(built)
    }

    async fn apply(&mut self, event: Event) {
        match event {
            Event::Rows { source, rows } => {
                let applied = self.engine.apply(&source, rows.clone(), None).await.unwrap();
                let before: usize = self.rows.values().flatten().map(RecordBatch::num_rows).sum();
                let place = |(row, view): &(u32, String)| (before + *row as usize, view.clone());
                self.late_rows.extend(applied.late.iter().map(place));
                self.rows.entry(source).or_default().push(rows);
                self.late.extend(applied.late.into_iter().map(|(_, view)| view));
                self.take(applied.changes);
            }
            Event::Reference { table, batches } => {
                self.engine.set_reference(&table, batches.clone());
                self.references.insert(table.clone(), batches);
                let changes = self.engine.refresh(&BTreeSet::from([table])).await.unwrap();
                self.take(changes);
            }
        }
    }

    fn take(&mut self, changes: Vec<ViewChange>) {
        for change in changes {
            let name = change.info.name.clone();
            let consumer = self.consumers.entry(name.clone()).or_default();
            consumer.take(&change);
            let shown = change.rows.batch().unwrap();
            if !change.stateless {
                assert_same(
                    &format!("changelog of {name}"),
                    &consumer.rows(),
                    &sorted(std::slice::from_ref(&shown)),
                );
            }
            self.shown.insert(name, shown);
        }
    }

    /// Plain DataFusion over all rows so far.
    async fn recount_session(&mut self) -> SessionContext {
        let session = session::batch(session::base_config());
        let register = |name: &str, schema: &SchemaRef, batches: Option<&Vec<RecordBatch>>| {
            let batches = batches.cloned().unwrap_or_default();
            let table = MemTable::try_new(Arc::clone(schema), vec![batches]).unwrap();
            session.register_table(name, Arc::new(table)).unwrap();
        };
        for source in self.catalog.sources.values() {
            register(&source.name, &source.schema, self.rows.get(&source.name));
        }
        for table in self.catalog.tables.values() {
            register(&table.name, &table.schema, self.references.get(&table.name));
        }
        // Views read each other in any order.
        let mut left: Vec<_> = self.catalog.views.values().collect();
        while !left.is_empty() {
            let before = left.len();
            let mut later = Vec::new();
            for view in left {
                let mut query: Statement = view.query.clone();
                windows::rewrite(&mut query, Sessions::Batch).unwrap();
                match session.state().statement_to_plan(query).await {
                    Ok(plan) => {
                        let table = datafusion::catalog::view::ViewTable::new(plan, None);
                        session.register_table(view.name.as_str(), Arc::new(table)).unwrap();
                    }
                    Err(error) if before == 1 => panic!("{}: {error}", view.name),
                    Err(_) => later.push(view),
                }
            }
            assert!(later.len() < before, "views that can't be planned as a batch");
            left = later;
        }
        session
    }

    async fn check(&mut self, text: &str) {
        let session = self.recount_session().await;
        for view in self.catalog.views.values().filter(|view| view.materialized) {
            let holds_for = view.hold.is_some_and(|hold| hold.duration.is_some());
            let is_stateless = matches!(
                self.engine.views.iter().find(|v| v.info.name == view.name).map(|v| &v.work),
                Some(super::work::Work::Append { .. })
            );
            let shows_final_rows_only = view.mode == Some(Mode::Append) && !is_stateless;
            if holds_for || shows_final_rows_only || self.late.contains(&view.name) {
                continue;
            }
            let query = format!("SELECT * FROM {}", view.name);
            let answer = match session.sql(&query).await {
                Ok(frame) => frame.collect().await,
                Err(error) => Err(error),
            };
            let answer = answer.unwrap_or_else(|e| panic!("a batch of {}: {e}\n{text}", view.name));
            let shown = if is_stateless {
                self.consumers[&view.name].rows()
            } else {
                sorted(&[self.shown[&view.name].clone()])
            };
            assert_same(&format!("{}, recounted\n{text}", view.name), &shown, &sorted(&answer));
        }
    }
}

impl Consumer {
    /// Takes a change in.
    pub fn take(&mut self, change: &ViewChange) {
        let log = &change.changelog;
        assert_eq!(log.ops.len(), log.rows.num_rows());
        let positions: Vec<_> =
            change.info.key.iter().map(|k| change.info.schema.index_of(k).unwrap()).collect();
        let (mut came, mut went) = (BTreeSet::new(), BTreeSet::new());
        for (op, row) in log.ops.iter().zip(cells(&log.rows)) {
            let name = &change.info.name;
            if positions.is_empty() || change.stateless {
                let other = if *op == Op::Insert { &mut went } else { &mut came };
                assert!(!other.contains(&row), "{name} inserts and deletes {row:?} at once");
                if *op == Op::Insert { &mut came } else { &mut went }.insert(row.clone());
                match op {
                    Op::Insert => self.rows.push(row),
                    Op::Delete => {
                        let place = self.rows.iter().position(|held| *held == row);
                        self.rows.swap_remove(
                            place.unwrap_or_else(|| panic!("{name} deletes {row:?}, not there")),
                        );
                    }
                    Op::Update => panic!("an update without a key in {name}"),
                }
                continue;
            }
            let key = positions.iter().map(|i| row[*i].clone()).collect();
            let old = match op {
                Op::Delete => self.by_key.remove(&key),
                _ => self.by_key.insert(key, row.clone()),
            };
            assert_eq!(old.is_some(), *op != Op::Insert, "{op:?} of {row:?} in {name}");
            let unchanged = old.as_ref() == Some(&row) && *op == Op::Update && change.info.mode == "update";
            assert!(!unchanged, "unchanged row {row:?} in {name}");
        }
    }

    /// What the changelog adds up to, sorted.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<_> = self.rows.iter().chain(self.by_key.values()).cloned().collect();
        rows.sort();
        rows
    }
}

/// Each row as the texts of its values.
pub fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let cell = |row: usize, column: usize| match batch.column(column).is_null(row) {
        true => "NULL".to_string(),
        false => columns[column].value(row).to_string(),
    };
    (0..batch.num_rows()).map(|row| (0..columns.len()).map(|column| cell(row, column)).collect()).collect()
}

/// The rows of all batches, sorted, so that sets of rows compare.
pub fn sorted(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let mut rows: Vec<_> = batches.iter().flat_map(cells).collect();
    rows.sort();
    rows
}

/// Fails if two sorted sets of rows differ by more than the last digits of floats.
pub fn assert_same(what: &str, ours: &[Vec<String>], theirs: &[Vec<String>]) {
    let close = |(a, b): (&String, &String)| {
        a == b
            || match (a.contains('.').then(|| a.parse::<f64>()), b.parse::<f64>()) {
                (Some(Ok(a)), Ok(b)) => (a - b).abs() <= FLOAT_TOLERANCE * a.abs().max(b.abs()).max(1.0),
                _ => false,
            }
    };
    let same = ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(close));
    assert!(same, "{what}\nthe engine: {ours:#?}\na recount: {theirs:#?}");
}

/// The database that sqllogictest talks to.
struct Database(Pair);

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Database {
    type Error = Error;
    type ColumnType = sqllogictest::DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<sqllogictest::DBOutput<Self::ColumnType>, Error> {
        let sql = sql.trim().trim_end_matches(';');
        let word = |n: usize| sql.split_whitespace().nth(n).unwrap_or_default().to_lowercase();
        match word(0).as_str() {
            "create" => self.0.declare(sql).await?,
            "insert" => {
                let table = word(2);
                let schema = self.0.schema(&table).unwrap_or_else(|| panic!("{table} is not declared"));
                // Values are read as the table's types by DataFusion's own INSERT.
                let session = session::batch(session::base_config());
                let empty = MemTable::try_new(schema, vec![vec![]]).unwrap();
                session.register_table(table.as_str(), Arc::new(empty))?;
                session.sql(sql).await?.collect().await?;
                let rows = session.table(table.as_str()).await?.collect().await?;
                let rows = concat_batches(&self.0.schema(&table).unwrap(), &rows)?;
                self.0.insert(&table, rows).await;
                self.0.check().await;
            }
            "delete" => {
                self.0.clear(&word(2)).await;
                self.0.check().await;
            }
            "explain" => {
                let view = word(1);
                let built = self.0.built.as_ref().unwrap();
                let info = built.engine.views().find(|info| info.name == view).unwrap();
                let rows = info.plan.lines().map(|line| vec![line.to_string()]).collect();
                return Ok(sqllogictest::DBOutput::Rows {
                    types: vec![sqllogictest::DefaultColumnType::Any],
                    rows,
                });
            }
            _ => {
                let batches = self.0.session().await.sql(sql).await?.collect().await?;
                let columns = batches.first().map_or(0, RecordBatch::num_columns);
                let types = vec![sqllogictest::DefaultColumnType::Any; columns];
                let spell = |cell: String| if cell.is_empty() { "(empty)".into() } else { cell };
                let rows: Vec<Vec<String>> =
                    batches.iter().flat_map(cells).map(|row| row.into_iter().map(spell).collect()).collect();
                return Ok(sqllogictest::DBOutput::Rows { types, rows });
            }
        }
        Ok(sqllogictest::DBOutput::StatementComplete(0))
    }

    async fn shutdown(&mut self) {}
}

/// With TALLY_UPDATE_SQL set, the files' expected rows are written anew: look at the difference.
#[test]
fn the_files_of_tests_sql_hold() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(!files.is_empty());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut failed = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = std::panic::catch_unwind(|| {
            let mut runner = sqllogictest::Runner::new(|| async { Ok(Database(Pair::new())) });
            if std::env::var_os("TALLY_UPDATE_SQL").is_some() {
                let update = runner.update_test_file(
                    &file,
                    " ",
                    sqllogictest::default_validator,
                    sqllogictest::default_normalizer,
                    sqllogictest::default_column_validator,
                );
                return runtime.block_on(update).map_err(|e| e.to_string());
            }
            runtime.block_on(runner.run_file_async(&file)).map_err(|e| e.display(false).to_string())
        });
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{name}: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failed.push(format!("{name}: {text}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
