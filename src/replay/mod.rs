//! The engine over files: `tally replay` and `tally check`. The same ingest and epochs as with Kafka; each line is a
//! message, so many lines a micro-batch. Needs no server.

mod check;
mod files;
mod input;
mod print;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tokio::time::Instant;

pub use self::check::check;
use self::files::references;
pub use self::files::{TableRows, read_table, read_tables};
pub use self::input::{InputFile, Lines, STDIN};
pub use self::print::{Printer, Show, differences, print, print_rows};
pub use self::run::{Replayed, Script, TableFile, replay};
use crate::catalog::{Catalog, SourceDef};
use crate::engine::Engine;
use crate::engine::{Failure, ViewInfo, session};
use crate::epoch::{EpochInput, EpochOutput, Executor};
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::queries::QueryFile;
use crate::reference::ReferenceTable;
use crate::source::RawBatch;

/// How rows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated, with a header line.
    Csv,
}

/// The engine and what stands for its servers.
pub struct Replay {
    executor: Executor,
    /// Columns of each reference table.
    schemas: BTreeMap<String, SchemaRef>,
    epoch: u64,
}

impl Replay {
    /// Plans the views over the declared sources and these tables. A declared table without a file has the rows of its
    /// LOCATION, if there is such a file.
    pub async fn open(files: &[QueryFile], tables: &[(String, PathBuf)]) -> Result<Replay> {
        let catalog = Catalog::parse(files, &session::continuous().state()).await?;
        let mut tables = tables.to_vec();
        for def in catalog.tables.values() {
            if tables.iter().any(|(name, _)| *name == def.name) {
                continue;
            }
            if !def.location.is_file() {
                return Err(def.place.error(format!(
                    "no rows for table `{0}`: give --table {0}=FILE.csv (its LOCATION {1} is no file here)",
                    def.name,
                    def.location.display()
                )));
            }
            tables.push((def.name.clone(), def.location.clone()));
        }
        let tables = read_tables(&catalog.table_schemas(), &tables)?;
        Replay::over(&catalog, tables).await
    }

    /// Plans the views over the declared sources and these tables.
    pub async fn over(catalog: &Catalog, tables: Vec<TableRows>) -> Result<Replay> {
        let planning = session::continuous().state();
        let schemas: Vec<_> =
            tables.iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
        let engine = Engine::plan(catalog, &schemas).await?;
        let references = references(&tables, catalog, &engine)?;
        let ingest = |source: SourceDef| {
            let read = engine.source_columns(&source.name);
            Ingest::new(Arc::new(source), Some(read), &planning)
        };
        let ingests = catalog.sources.values().cloned().map(ingest).collect::<Result<_>>()?;
        let executor = Executor::new(engine, ingests, references);
        Ok(Replay { executor, schemas: schemas.into_iter().collect(), epoch: 0 })
    }

    /// The views before the first line.
    pub async fn start(&mut self) -> Result<EpochOutput> {
        self.executor.start().await
    }

    /// Feeds a micro-batch of lines to a source.
    pub async fn feed(&mut self, source: usize, lines: RawBatch) -> Result<EpochOutput> {
        self.epoch += 1;
        let batch = self.executor.decode(source, lines)?;
        let references = self.executor.references().clone();
        self.executor.execute(EpochInput { epoch: self.epoch, batch: Some(batch), references }).await
    }

    /// Gives a reference table other rows, of all its columns; none: no view or rule reads it.
    pub async fn set_table(&mut self, name: &str, rows: Vec<RecordBatch>) -> Result<Option<EpochOutput>> {
        let mut references = self.executor.references().clone();
        let Some(held) = references.get(name) else { return Ok(None) };
        let reading = held.version.reading + 1;
        references.set(Arc::new(ReferenceTable::new(held.wanted(), rows, reading, Instant::now())?));
        self.epoch += 1;
        let input = EpochInput { epoch: self.epoch, batch: None, references };
        self.executor.execute(input).await.map(Some)
    }

    /// Tries to bring failed views back, as the loop does when no message comes.
    pub async fn retry(&mut self) -> EpochOutput {
        self.executor.retry(self.epoch + 1).await
    }

    /// The source that reads a topic, or has that name.
    pub fn source_of(&self, topic: &str) -> Result<usize> {
        let mut defs = self.executor.ingests().iter().map(|ingest| &ingest.def);
        defs.position(|def| def.topic == topic || def.name == topic).ok_or_else(|| {
            let known: Vec<_> = self.executor.ingests().iter().map(|i| i.def.topic.as_str()).collect();
            Error::Config(format!("no source reads topic `{topic}`; declared are {}", known.join(", ")))
        })
    }

    /// The declaration of the source at a position.
    pub fn source(&self, position: usize) -> &Arc<SourceDef> {
        &self.executor.ingests()[position].def
    }

    /// Whether a view or a rule reads a reference table.
    pub fn reads_table(&self, name: &str) -> bool {
        self.executor.references().get(name).is_some()
    }

    /// Columns of the reference tables.
    pub fn table_schemas(&self) -> &BTreeMap<String, SchemaRef> {
        &self.schemas
    }

    /// A view.
    pub fn view(&self, view: &str) -> Result<&Arc<ViewInfo>> {
        let views = || self.executor.engine().views();
        views().find(|info| info.name == view).ok_or_else(|| {
            let known: Vec<_> = views().map(|info| info.name.as_str()).collect();
            Error::Config(format!("there is no view `{view}`; declared are {}", known.join(", ")))
        })
    }

    /// The views.
    pub fn views(&self) -> impl Iterator<Item = &Arc<ViewInfo>> {
        self.executor.engine().views()
    }

    /// Why views show their last good rows and not the present ones.
    pub fn failures(&self) -> Vec<Failure> {
        self.executor.engine().failures()
    }

    /// An error if the view shows its last good rows and not those of all lines.
    pub fn check_shown(&self, view: &str) -> Result<()> {
        match self.failures().into_iter().find(|failure| failure.view == view) {
            Some(failure) => Err(failure.place.error(format!(
                "view {view} shows its last good rows, since its query has failed: {}",
                failure.reason
            ))),
            None => Ok(()),
        }
    }
}
