//! The engine over files: `tally replay` and `tally check`. The same ingest and epochs as with Kafka; each line is a
//! message, so many lines a micro-batch. Needs no server.

mod check;
mod files;
mod print;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

pub use self::check::check;
use self::files::{read_tables, references};
use self::print::Printer;
use crate::catalog::Catalog;
use crate::engine::{Engine, session};
use crate::epoch::{EpochInput, EpochOutput, Executor};
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::queries::QueryFile;
use crate::source::{MessageRef, RawBatch};

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
    epoch: u64,
}

impl Replay {
    /// Plans the views over the declared sources and these tables.
    pub async fn open(files: &[QueryFile], tables: &[(String, PathBuf)]) -> Result<Replay> {
        let planning = session::continuous().state();
        let catalog = Catalog::parse(files, &planning).await?;
        let tables = read_tables(&catalog, tables)?;
        let is_given = |name: &String| tables.iter().any(|table| table.name == *name);
        if let Some(absent) = catalog.tables.values().find(|def| !is_given(&def.name)) {
            return Err(absent
                .place
                .error(format!("no rows for table `{0}`: give --table {0}=FILE.csv", absent.name)));
        }
        let schemas: Vec<_> =
            tables.iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
        let engine = Engine::plan(&catalog, &schemas).await?;
        let references = references(tables, &catalog, &engine)?;
        let ingest = |source| {
            let def = Arc::new(source);
            let read = engine.source_columns(&Arc::<crate::catalog::SourceDef>::clone(&def).name);
            Ingest::new(def, Some(read), &planning)
        };
        let ingests = catalog.sources.values().cloned().map(ingest).collect::<Result<_>>()?;
        Ok(Replay { executor: Executor::new(engine, ingests, references), epoch: 0 })
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

    /// The source that reads a topic, or has that name.
    fn source_of(&self, topic: &str) -> Result<usize> {
        let mut defs = self.executor.ingests().iter().map(|ingest| &ingest.def);
        defs.position(|def| def.topic == topic || def.name == topic).ok_or_else(|| {
            let known: Vec<_> = self.executor.ingests().iter().map(|i| i.def.topic.as_str()).collect();
            Error::Config(format!("no source reads topic `{topic}`; declared are {}", known.join(", ")))
        })
    }

    fn schema_of(&self, view: &str) -> Result<SchemaRef> {
        let views = || self.executor.engine().views();
        views().find(|info| info.name == view).map(|info| Arc::clone(&info.schema)).ok_or_else(|| {
            let known: Vec<_> = views().map(|info| info.name.as_str()).collect();
            Error::Config(format!("there is no view `{view}`; declared are {}", known.join(", ")))
        })
    }

    /// An error if the view shows its last good rows and not those of all lines.
    fn check_shown(&self, view: &str) -> Result<()> {
        match self.executor.engine().failures().into_iter().find(|failure| failure.view == view) {
            Some(failure) => Err(failure.place.error(format!(
                "view {view} shows its last good rows, since its query has failed: {}",
                failure.reason
            ))),
            None => Ok(()),
        }
    }
}

/// A file whose lines are the messages of a topic.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// The topic, or the source that reads it.
    pub topic: String,
    /// The file.
    pub path: PathBuf,
    /// Whether a line is a message's key, a tab and its value, as `kcat -C -K '\t'` prints them. Without a value it is
    /// an empty message.
    pub is_keyed: bool,
}

/// What `tally replay` prints.
#[derive(Clone, Debug)]
pub enum Show {
    /// A view's rows at the end.
    View(String),
    /// Every change of a view, with its op and epoch.
    Changelog(String),
}

/// Runs files through the engine and prints what was asked for to `out`; lines that are not counted go to
/// `errors` with their file, line and reason.
pub async fn replay(
    mut replay: Replay,
    inputs: &[InputFile],
    batch_rows: usize,
    show: &Show,
    format: Format,
    out: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
) -> Result<()> {
    let (view, of_changes) = match show {
        Show::View(view) => (view, false),
        Show::Changelog(view) => (view, true),
    };
    let schema = replay.schema_of(view)?;
    let mut printer = Printer { of_changes, schema, changes: Vec::new(), newest: None };
    let mut readers = Vec::new();
    for input in inputs {
        readers.push(Input::open(replay.source_of(&input.topic)?, input)?);
    }
    printer.take(0, replay.start().await?.changes, view)?;
    let (mut received, mut rejected) = (0, 0);
    // The room of a micro-batch serves the next one: memory that is new each time costs more than the copying.
    let mut room = RawBatch::default();
    while !readers.is_empty() {
        let mut open = Vec::new();
        for mut input in readers {
            let lines = input.next(batch_rows, std::mem::take(&mut room))?;
            if lines.is_empty() {
                continue;
            }
            let output = replay.feed(input.source, lines).await?;
            if let Some(counted) = output.counted {
                received += counted.raw.len();
                rejected += counted.raw.len() - counted.rows;
                for reject in &counted.rejects {
                    // A line's offset is its number.
                    let (path, line) = (input.path.display(), counted.raw.origin(reject.message).offset);
                    let text = format!("{path}:{line}: {}: {}\n", reject.rule, reject.reason);
                    write_all(errors, text.as_bytes())?;
                }
                room = counted.raw;
            }
            printer.take(output.epoch, output.changes, view)?;
            open.push(input);
        }
        readers = open;
    }
    let last = replay.executor.retry(replay.epoch + 1).await;
    printer.take(last.epoch, last.changes, view)?;
    write_all(out, &printer.print(format)?)?;
    let counted = received - rejected;
    let text = format!("{received} messages: {counted} counted, {rejected} rejected\n");
    write_all(errors, text.as_bytes())?;
    replay.check_shown(view)
}

fn write_all(out: &mut (dyn Write + Send), bytes: &[u8]) -> Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|source| Error::Io { action: "writing".into(), source })
}

/// A file while it is read.
struct Input<'a> {
    source: usize,
    path: &'a Path,
    is_keyed: bool,
    lines: BufReader<File>,
    line: Vec<u8>,
    number: i64,
}

impl Input<'_> {
    fn open(source: usize, input: &InputFile) -> Result<Input<'_>> {
        let InputFile { path, is_keyed, .. } = input;
        let file = File::open(path).map_err(|e| Error::io("reading", path, e))?;
        let lines = BufReader::new(file);
        Ok(Input { source, path, is_keyed: *is_keyed, lines, line: Vec::new(), number: 0 })
    }

    /// The next lines that are not empty, in the room of an earlier batch; the offset of each is its number.
    fn next(&mut self, rows_max: usize, mut lines: RawBatch) -> Result<RawBatch> {
        lines.clear();
        while lines.len() < rows_max {
            self.line.clear();
            let read = self.lines.read_until(b'\n', &mut self.line);
            if read.map_err(|e| Error::io("reading", self.path, e))? == 0 {
                break;
            }
            self.number += 1;
            let tab = self.line.iter().position(|byte| *byte == b'\t').filter(|_| self.is_keyed);
            let (key, value) = match tab {
                Some(tab) => (Some(&self.line[..tab]), &self.line[tab + 1..]),
                None => (None, &self.line[..]),
            };
            let payload = Some(value.trim_ascii()).filter(|value| !value.is_empty());
            if key.is_some() || payload.is_some() {
                let offset = self.number;
                lines.push(MessageRef { offset, key, payload, ..MessageRef::default() });
            }
        }
        Ok(lines)
    }
}
