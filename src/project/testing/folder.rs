//! A test that is a folder: `given/` has messages and reference tables, `expected/` what views show then.
//!
//! A file of `given/` is named after a source (or its topic) or a reference table, and each is one micro-batch, or all
//! rows that the table has from then on. A number before the name (`1-orders.ndjson`, `2-customers.csv`) says in which
//! order; what has none comes first, tables before sources. Of a source, the lines of `.ndjson` are its messages, those
//! of `.keyed` a key, a tab and a message; rows of `.csv` are made into messages.
//!
//! `expected/VIEW.csv` (or `.ndjson`) has the rows of a view at the end, `expected/VIEW.changes.csv` every change of it,
//! and `expected/dead_letters.csv` what was not counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::bench::{Bench, DEAD_LETTERS, DeadLetter};
use super::messages::messages;
use super::{Project, Ran, entries};
use crate::catalog::Catalog;
use crate::engine::{ViewChange, session};
use crate::error::{Error, Result};
use crate::replay::{
    Format, InputFile, Lines, Printer, Show, TableRows, differences, print_rows, read_table,
};
use crate::source::RawBatch;

/// The folder of what a test is given.
pub const GIVEN: &str = "given";
/// The folder of what is expected then.
pub const EXPECTED: &str = "expected";
const CHANGES: &str = ".changes";

/// Runs a folder; `update`: writes what comes out into it.
pub async fn run(project: &Project, path: &Path, update: bool) -> Result<Ran> {
    let case = Case::read(project, path).await?;
    let (bench, first) = Bench::new(project, case.tables).await?;
    if let Some(name) = case.undeclared.iter().find(|name| !bench.replay().reads_table(name)) {
        return Err(Error::Test(format!(
            "{}: `{name}` is no topic of a source, nor a table that a view reads; the topics are {}",
            path.join(GIVEN).display(),
            case.topics.join(", ")
        )));
    }
    let mut expected = expected_files(path)?;
    if update && expected.is_empty() {
        let folder = path.join(EXPECTED);
        let of_view = |name: &String| Expected::of(folder.join(format!("{name}.csv")));
        expected = bench.replay().views().map(|info| of_view(&info.name)).collect::<Result<_>>()?;
    }
    let mut printers = Vec::new();
    for file in &expected {
        if let Some(show) = &file.show {
            let view = bench.replay().view(show.view()).map_err(|e| file.wrong(&e.to_string()))?;
            printers.push(Printer::new(show.clone(), Arc::clone(&view.schema)));
        }
    }
    let mut told = Told { bench, printers };
    told.take(first.epoch, &first.changes)?;
    for step in case.steps {
        told.step(step).await?;
    }
    told.compare(path, &expected, update)
}

/// What a test is given.
struct Case {
    /// Reference tables, with their rows at the start.
    tables: Vec<TableRows>,
    /// Those of them that are known by their files only.
    undeclared: Vec<String>,
    /// In their order.
    steps: Vec<Step>,
    /// Of the sources.
    topics: Vec<String>,
}

impl Case {
    async fn read(project: &Project, path: &Path) -> Result<Case> {
        let catalog = Catalog::parse(&project.files, &session::continuous().state()).await?;
        let is_source =
            |name: &str| catalog.sources.values().any(|def| def.name == name || def.topic == name);
        let mut declared = catalog.table_schemas();
        for table in &project.known {
            declared.entry(table.name.clone()).or_insert_with(|| Arc::clone(&table.schema));
        }
        let mut given = entries(&path.join(GIVEN))?.into_iter().map(Given::of).collect::<Result<Vec<_>>>()?;
        given.sort_by_key(|given| given.number);
        if given.is_empty() {
            return Err(Error::Test(format!("{} has no file", path.join(GIVEN).display())));
        }
        let topics = catalog.sources.values().map(|def| def.topic.clone()).collect();
        let mut case = Case { tables: Vec::new(), undeclared: Vec::new(), steps: Vec::new(), topics };
        for Given { number, name, path } in given {
            if is_source(&name) {
                case.steps.push(Step::Messages(Given { number, name, path }));
                continue;
            }
            let mut table = read_table(&declared, &name, &path)?;
            // A table that nothing declares has the columns of its first file.
            if !declared.contains_key(&name) {
                declared.insert(name.clone(), Arc::clone(&table.schema));
                case.undeclared.push(name.clone());
            }
            if number > 0 {
                case.steps.push(Step::Table { name: name.clone(), rows: std::mem::take(&mut table.batches) });
            }
            if !case.tables.iter().any(|known| known.name == name) {
                case.tables.push(table);
            }
        }
        Ok(case)
    }
}

/// A file of `given/`.
struct Given {
    number: u64,
    name: String,
    path: PathBuf,
}

impl Given {
    fn of(path: PathBuf) -> Result<Given> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let digits = stem.len() - stem.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let rest = stem[digits..].strip_prefix(['-', '_']).filter(|_| digits > 0);
        let number = rest.map(|_| stem[..digits].parse());
        match (number, rest) {
            (Some(Ok(number)), Some(name)) => Ok(Given { number, name: name.into(), path }),
            (Some(Err(error)), _) => Err(Error::Test(format!("{}: its number: {error}", path.display()))),
            _ => Ok(Given { number: 0, name: stem, path }),
        }
    }
}

/// What happens.
enum Step {
    Messages(Given),
    Table { name: String, rows: Vec<RecordBatch> },
}

/// A file of `expected/`.
struct Expected {
    path: PathBuf,
    format: Format,
    /// None: the dead letters.
    show: Option<Show>,
}

impl Expected {
    fn of(path: PathBuf) -> Result<Expected> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let format = match extension.as_str() {
            "csv" => Format::Csv,
            "ndjson" | "jsonl" | "json" => Format::Json,
            _ => return Err(Error::Test(format!("{}: a file there is .csv or .ndjson", path.display()))),
        };
        let show = match name.strip_suffix(CHANGES) {
            Some(view) => Some(Show::Changelog(view.into())),
            None if name == DEAD_LETTERS => None,
            None => Some(Show::View(name)),
        };
        Ok(Expected { path, format, show })
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::Test(format!("{}: {reason}", self.path.display()))
    }

    /// What differs from the text that came out; `update`: that is written instead.
    fn compare(&self, found: &str, update: bool, ran: &mut Ran) -> Result<()> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("reading", &self.path, error)),
        };
        let Some(diff) = differences(&text, found) else { return Ok(()) };
        if update {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&self.path, found));
            ran.updated = true;
            return written.map_err(|e| Error::io("writing", &self.path, e));
        }
        let failure = ran.failure.get_or_insert_default();
        *failure += &format!("{}: this is expected (-), that came out (+)\n{diff}", self.path.display());
        Ok(())
    }
}

fn expected_files(path: &Path) -> Result<Vec<Expected>> {
    let folder = path.join(EXPECTED);
    match folder.is_dir() {
        true => entries(&folder)?.into_iter().map(Expected::of).collect(),
        false => Ok(Vec::new()),
    }
}

/// The engine, and what it told.
struct Told {
    bench: Bench,
    printers: Vec<Printer>,
}

impl Told {
    fn take(&mut self, epoch: u64, changes: &[ViewChange]) -> Result<()> {
        self.printers.iter_mut().try_for_each(|printer| printer.take(epoch, changes))
    }

    async fn step(&mut self, step: Step) -> Result<()> {
        let output = match step {
            Step::Messages(given) => {
                let position = self.bench.replay().source_of(&given.name)?;
                let source = Arc::clone(self.bench.replay().source(position));
                let batch = self.batch(&source.name, &given)?;
                self.bench.send(&source.name, batch).await?
            }
            Step::Table { name, rows } => self.bench.set_table(&name, rows).await?,
        };
        match output {
            Some(output) => self.take(output.epoch, &output.changes),
            None => Ok(()),
        }
    }

    /// The messages of a file.
    fn batch(&self, source: &str, given: &Given) -> Result<RawBatch> {
        let Some(def) = self.bench.source(source) else {
            return Err(Error::Test(format!("{}: there is no source {source}", given.path.display())));
        };
        let first = self.bench.received(source) + 1;
        let extension = given.path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if extension == "csv" {
            let schemas = [(source.to_string(), Arc::clone(&def.schema))].into();
            let table = read_table(&schemas, source, &given.path)?;
            let rows = arrow::compute::concat_batches(&def.schema, &table.batches)?;
            return messages(def, &rows.slice(0, 0), &rows, first);
        }
        let path = given.path.clone();
        let mut lines =
            Lines::open(&InputFile { topic: source.into(), path, is_keyed: extension == "keyed" })?;
        let mut batch = RawBatch::default();
        while lines.read()? {
            let (key, payload) = lines.message();
            if key.is_some() || payload.is_some() {
                let offset = first + batch.len() as i64;
                batch.push(crate::source::MessageRef { offset, key, payload, ..Default::default() });
            }
        }
        Ok(batch)
    }

    fn compare(self, path: &Path, expected: &[Expected], update: bool) -> Result<Ran> {
        let mut ran = Ran { failure: None, updated: false };
        let mut printers = self.printers.iter();
        let letters = letters(self.bench.letters())?;
        let text = |rows: &RecordBatch, format| {
            Ok::<_, Error>(String::from_utf8_lossy(&print_rows(rows, format)?).into_owned())
        };
        for file in expected {
            let found = match &file.show {
                Some(show) => {
                    self.bench.replay().check_shown(show.view())?;
                    let printer = printers.next().ok_or_else(|| file.wrong("it is not printed"))?;
                    text(&printer.rows()?, file.format)?
                }
                None => text(&letters, file.format)?,
            };
            file.compare(&found, update, &mut ran)?;
        }
        // A message that is not counted is no success unless somebody expects it.
        if letters.num_rows() > 0 && expected.iter().all(|file| file.show.is_some()) {
            let file = Expected::of(path.join(EXPECTED).join(format!("{DEAD_LETTERS}.csv")))?;
            file.compare(&text(&letters, file.format)?, update, &mut ran)?;
        }
        if expected.is_empty() && !update {
            let (folder, path) = (path.join(EXPECTED), path.display());
            return Err(Error::Test(format!(
                "{} has no file: `tally test {path} --update` writes what comes out; look at it",
                folder.display()
            )));
        }
        Ok(ran)
    }
}

/// What `dead_letters.csv` has: a message by its number among its source's, from 1.
fn letters(letters: &[DeadLetter]) -> Result<RecordBatch> {
    let texts = |of: fn(&DeadLetter) -> &String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(letters.iter().map(of)))
    };
    let numbers = Int64Array::from_iter_values(letters.iter().map(|letter| letter.message));
    Ok(RecordBatch::try_from_iter([
        ("source", texts(|letter| &letter.source)),
        ("message", Arc::new(numbers) as ArrayRef),
        ("rule", texts(|letter| &letter.rule)),
        ("reason", texts(|letter| &letter.reason)),
    ])?)
}
