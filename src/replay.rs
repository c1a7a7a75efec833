//! The engine over files: `tally replay` and `tally check`. The same decoder, rules and engine as with Kafka;
//! each line is a message, so many lines a micro-batch. Needs no server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use arrow_json::LineDelimitedWriter;
use tokio::task::block_in_place;

use crate::catalog::Catalog;
use crate::cli::Format;
use crate::decode::{self, Decoded, ForeignKeys, JsonDecoder, Reject, RuleSet};
use crate::engine::{Engine, ViewChange, session};
use crate::error::{Error, Result};
use crate::queries::QueryFile;
use crate::reference::KeyIndex;
use crate::source::Origin;

/// Rows of a CSV file that are looked at for its columns' types, as DataFusion does.
const INFER_ROWS: usize = 1000;

/// A reference table read from a file.
pub struct FileTable {
    name: String,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// The engine and what stands for its servers.
pub struct Replay {
    engine: Engine,
    sources: BTreeMap<String, Source>,
    keys: FileKeys,
    epoch: u64,
}

struct Source {
    topic: String,
    decoder: JsonDecoder,
    rules: RuleSet,
}

/// What became of some lines.
pub struct Outcome {
    /// Number of the micro-batch.
    pub epoch: u64,
    /// Views whose rows may have changed.
    pub changes: Vec<ViewChange>,
    /// Lines that are not counted, by position in the batch.
    pub rejects: Vec<Reject>,
}

/// Reads tables from `.csv` or `.ndjson` files. A table that `catalog` declares has the declared columns, by
/// position; the types of others are inferred.
pub fn read_tables(catalog: &Catalog, files: &[(String, PathBuf)]) -> Result<Vec<FileTable>> {
    let read = |(name, path): &(String, PathBuf)| {
        let declared = catalog.tables.get(name).map(|table| Arc::clone(&table.schema));
        let failed =
            |e: arrow::error::ArrowError| Error::Config(format!("table {name}: {}: {e}", path.display()));
        let is_json = path.extension().is_some_and(|e| e == "ndjson" || e == "jsonl" || e == "json");
        let (schema, batches) = if is_json {
            read_json(path, declared).map_err(failed)?
        } else {
            read_csv(path, declared).map_err(failed)?
        };
        Ok(FileTable { name: name.clone(), schema, batches })
    };
    files.iter().map(read).collect()
}

type Table = (SchemaRef, Vec<RecordBatch>);

fn read_csv(path: &Path, declared: Option<SchemaRef>) -> Result<Table, arrow::error::ArrowError> {
    let format = arrow_csv::reader::Format::default().with_header(true);
    let schema = match declared {
        Some(schema) => schema,
        None => Arc::new(format.infer_schema(File::open(path)?, Some(INFER_ROWS))?.0),
    };
    let reader =
        arrow_csv::ReaderBuilder::new(Arc::clone(&schema)).with_header(true).build(File::open(path)?)?;
    Ok((schema, reader.collect::<Result<_, _>>()?))
}

fn read_json(path: &Path, declared: Option<SchemaRef>) -> Result<Table, arrow::error::ArrowError> {
    let open = || Ok::<_, std::io::Error>(BufReader::new(File::open(path)?));
    let schema = match declared {
        Some(schema) => schema,
        None => Arc::new(arrow_json::reader::infer_json_schema(open()?, Some(INFER_ROWS))?.0),
    };
    let reader = arrow_json::ReaderBuilder::new(Arc::clone(&schema)).build(open()?)?;
    Ok((schema, reader.collect::<Result<_, _>>()?))
}

impl Replay {
    /// Plans the views over the declared sources and these tables.
    pub async fn open(files: &[QueryFile], tables: &[(String, PathBuf)]) -> Result<Replay> {
        let planning = session::continuous().state();
        let catalog = Catalog::parse(files, &planning).await?;
        let tables = read_tables(&catalog, tables)?;
        if let Some(absent) =
            catalog.tables.values().find(|def| !tables.iter().any(|table| table.name == def.name))
        {
            return Err(absent
                .place
                .error(format!("no rows for table `{0}`: give --table {0}=FILE.csv", absent.name)));
        }
        let schemas: Vec<_> =
            tables.iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
        let mut engine = Engine::plan(&catalog, &schemas).await?;
        for table in &tables {
            engine.set_reference(&table.name, table.batches.clone());
        }
        let keys = FileKeys::new(&catalog, &tables)?;
        let mut sources = BTreeMap::new();
        for source in catalog.sources.values() {
            let read = engine.source_columns(&source.name);
            let (decoder, rules) = decode::of_source(source, Some(read), &planning)?;
            sources.insert(source.name.clone(), Source { topic: source.topic.clone(), decoder, rules });
        }
        Ok(Replay { engine, sources, keys, epoch: 0 })
    }

    /// The views before the first line.
    pub async fn start(&mut self) -> Result<Vec<ViewChange>> {
        self.engine.start().await
    }

    /// Feeds a micro-batch of lines to a source.
    pub async fn feed(&mut self, source: &str, lines: &[Option<&[u8]>]) -> Result<Outcome> {
        let Some(known) = self.sources.get_mut(source) else {
            return Err(Error::Config(format!("there is no source {source}")));
        };
        self.epoch += 1;
        // A line has no timestamp.
        let of_line = |line: u32| Origin { offset: line.into(), ..Origin::default() };
        let (decoded, mut rejects) = known.decoder.decode(lines)?;
        let (Decoded { rows, messages }, refused) =
            block_in_place(|| known.rules.judge(decoded, &of_line, &self.keys))?;
        rejects.extend(refused);
        let applied = self.engine.apply(source, rows, None).await?;
        let late = |(row, view): &(u32, String)| Reject::late(messages[*row as usize], view);
        rejects.extend(applied.late.iter().map(late));
        let errors = applied.errors.iter();
        rejects.extend(errors.filter_map(|error| {
            let message = messages[error.row? as usize];
            Some(Reject::of_view(message, &error.view, &error.reason))
        }));
        rejects.sort_by_key(|reject| reject.message);
        Ok(Outcome { epoch: self.epoch, changes: applied.changes, rejects })
    }

    /// The source that reads a topic, or has that name.
    fn source_of(&self, topic: &str) -> Result<String> {
        let found = self.sources.iter().find(|(name, source)| source.topic == topic || *name == topic);
        found.map(|(name, _)| name.clone()).ok_or_else(|| {
            let known: Vec<_> = self.sources.values().map(|source| source.topic.as_str()).collect();
            Error::Config(format!("no source reads topic `{topic}`; declared are {}", known.join(", ")))
        })
    }

    fn check_view(&self, name: &str) -> Result<SchemaRef> {
        let mut views = self.engine.views();
        views.find(|info| info.name == name).map(|info| Arc::clone(&info.schema)).ok_or_else(|| {
            let known: Vec<_> = self.engine.views().map(|info| info.name.as_str()).collect();
            Error::Config(format!("there is no view `{name}`; declared are {}", known.join(", ")))
        })
    }
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
    inputs: &[(String, PathBuf)],
    batch_rows: usize,
    show: &Show,
    format: Format,
    out: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
) -> Result<()> {
    let (name, of_changes) = match show {
        Show::View(name) => (name, false),
        Show::Changelog(name) => (name, true),
    };
    let schema = replay.check_view(name)?;
    let mut printer = Printer { of_changes, schema, changes: Vec::new(), newest: None };
    let mut readers = Vec::new();
    for (topic, path) in inputs {
        let file = File::open(path).map_err(|e| Error::io("reading", path, e))?;
        readers.push(Input { source: replay.source_of(topic)?, path, lines: BufReader::new(file), line: 0 });
    }
    printer.take(0, replay.start().await?, name)?;
    let (mut received, mut rejected) = (0, 0);
    while !readers.is_empty() {
        let mut open = Vec::new();
        for mut input in readers {
            let (lines, numbers) = input.next(batch_rows)?;
            if lines.is_empty() {
                continue;
            }
            let messages: Vec<_> = lines.iter().map(|line| Some(line.as_slice())).collect();
            let outcome = replay.feed(&input.source, &messages).await?;
            received += lines.len();
            for reject in &outcome.rejects {
                rejected += usize::from(reject.is_rejected());
                let line = numbers[reject.message as usize];
                let text = format!("{}:{line}: {}: {}\n", input.path.display(), reject.rule, reject.reason);
                write_all(errors, text.as_bytes())?;
            }
            printer.take(outcome.epoch, outcome.changes, name)?;
            open.push(input);
        }
        readers = open;
    }
    write_all(out, &printer.print(format)?)?;
    let counted = received - rejected;
    write_all(errors, format!("{received} messages: {counted} counted, {rejected} rejected\n").as_bytes())
}

fn write_all(out: &mut (dyn Write + Send), bytes: &[u8]) -> Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|source| Error::Io { action: "writing".into(), source })
}

struct Input<'a> {
    source: String,
    path: &'a Path,
    lines: BufReader<File>,
    line: u64,
}

impl Input<'_> {
    /// The next lines that are not empty, and their numbers.
    fn next(&mut self, most: usize) -> Result<(Vec<Vec<u8>>, Vec<u64>)> {
        let (mut lines, mut numbers) = (Vec::new(), Vec::new());
        while lines.len() < most {
            let mut line = Vec::new();
            let read =
                self.lines.read_until(b'\n', &mut line).map_err(|e| Error::io("reading", self.path, e))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            if !line.trim_ascii().is_empty() {
                lines.push(line.trim_ascii().to_vec());
                numbers.push(self.line);
            }
        }
        Ok((lines, numbers))
    }
}

struct Printer {
    of_changes: bool,
    schema: SchemaRef,
    changes: Vec<RecordBatch>,
    newest: Option<RecordBatch>,
}

impl Printer {
    fn take(&mut self, epoch: u64, changes: Vec<ViewChange>, view: &str) -> Result<()> {
        for change in changes.into_iter().filter(|change| change.info.name == view) {
            if self.of_changes {
                self.changes.push(with_op(epoch, &change)?);
            } else if change.stateless {
                // Its ring has the newest rows only.
                self.changes.push(change.changelog.rows);
            } else {
                self.newest = Some(change.rows.batch()?);
            }
        }
        Ok(())
    }

    fn print(self, format: Format) -> Result<Vec<u8>> {
        let schema = self.changes.first().map_or(self.schema, RecordBatch::schema);
        let rows = match self.newest {
            Some(rows) => rows,
            None => concat_batches(&schema, &self.changes)?,
        };
        let mut text = Vec::new();
        match format {
            Format::Table => text = format!("{}\n", pretty_format_batches(&[rows])?).into_bytes(),
            Format::Csv => arrow_csv::Writer::new(&mut text).write(&rows)?,
            Format::Json => {
                let mut writer = LineDelimitedWriter::new(&mut text);
                writer.write(&rows)?;
                writer.finish()?;
            }
        }
        Ok(text)
    }
}

fn with_op(epoch: u64, change: &ViewChange) -> Result<RecordBatch> {
    let log = &change.changelog;
    let mut fields =
        vec![Field::new("op", DataType::Utf8, false), Field::new("epoch", DataType::UInt64, false)];
    fields.extend(log.rows.schema().fields().iter().map(|field| field.as_ref().clone()));
    let ops = StringArray::from_iter_values(log.ops.iter().map(|op| op.as_str()));
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(ops), Arc::new(UInt64Array::from(vec![epoch; log.ops.len()]))];
    columns.extend(log.rows.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The keys of tables from files.
struct FileKeys(BTreeMap<(String, Vec<String>), KeyIndex>);

impl FileKeys {
    fn new(catalog: &Catalog, tables: &[FileTable]) -> Result<Self> {
        let mut indexes = BTreeMap::new();
        for (table, referred) in catalog.foreign_keys() {
            if let Some(rows) = tables.iter().find(|known| known.name == table) {
                let mut index = KeyIndex::new(&rows.schema, &referred)?;
                rows.batches.iter().try_for_each(|batch| index.add(batch))?;
                indexes.insert((table, referred), index);
            }
        }
        Ok(FileKeys(indexes))
    }
}

impl ForeignKeys for FileKeys {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        match self.0.get(&(table.to_string(), columns.to_vec())) {
            Some(index) => index.contains(values),
            None => Err(Error::Config(format!("no rows for table {table}"))),
        }
    }
}

/// What `tally check` says of a folder: its sources, and how each view is kept up to date. `known` are tables
/// with their columns that are declared nowhere else.
pub async fn check(
    files: &[QueryFile],
    tables: &[(String, PathBuf)],
    known: Vec<(String, SchemaRef)>,
) -> Result<String> {
    let planning = session::continuous().state();
    let catalog = Catalog::parse(files, &planning).await?;
    let mut schemas: BTreeMap<String, SchemaRef> = known.into_iter().collect();
    for table in catalog.tables.values() {
        schemas.insert(table.name.clone(), Arc::clone(&table.schema));
    }
    for table in read_tables(&catalog, tables)? {
        schemas.insert(table.name, table.schema);
    }
    let engine = Engine::plan(&catalog, &schemas.into_iter().collect::<Vec<_>>()).await?;
    let mut text = String::new();
    for source in catalog.sources.values() {
        let read = engine.source_columns(&source.name);
        let (decoder, _) = decode::of_source(source, Some(read), &planning)?;
        let kept: Vec<_> = decoder.kept().fields().iter().map(|field| field.name().as_str()).collect();
        let others =
            if kept.len() < source.schema.fields().len() { "; the others are only judged" } else { "" };
        text +=
            &format!("source {} ← {}\n  columns: {}\n", source.name, source.topic, columns(&source.schema));
        text += &format!("  kept: {}{others}\n", kept.join(", "));
        let rules: BTreeSet<_> = source.rules.iter().map(|rule| rule.name.as_str()).collect();
        text += &format!("  rules: {}\n\n", rules.into_iter().collect::<Vec<_>>().join(", "));
    }
    for info in engine.views() {
        let key =
            if info.key.is_empty() { "none, rows are compared whole".into() } else { info.key.join(", ") };
        let topic = info.topic.as_deref().unwrap_or("none, only served");
        text += &format!("view {}\n  columns: {}\n", info.name, columns(&info.schema));
        text += &format!("  key: {key}\n  mode: {}\n  topic: {topic}\n", info.mode);
        for line in info.plan.lines() {
            text += &format!("  {line}\n");
        }
        text += "\n";
    }
    Ok(text)
}

fn columns(schema: &Schema) -> String {
    let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}
