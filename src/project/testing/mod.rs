//! `tally test`: runs the tests of a project on the engine, without any server. A test is an `.slt` file, or a folder
//! with `given` rows and what is `expected` of views.

mod bench;
mod folder;
mod messages;
mod report;
mod slt;
mod statements;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::messages::cells;
pub use self::report::junit;
pub use self::statements::{Edit, inserted, is_insert};
use crate::catalog::Catalog;
use crate::engine::session;
use crate::error::{Error, Result};
use crate::queries::{self, QUERIES_DIR, QueryFile};
use crate::reference::TableDef;

/// Where a project's tests are.
pub const TESTS_DIR: &str = "tests";

/// Which tests run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A project, a folder of tests, or a test.
    pub path: PathBuf,
    /// The `.sql` files; without it those of the project.
    pub queries: Option<PathBuf>,
    /// Whether what comes out is written as what is expected.
    pub update: bool,
}

/// What became of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its file or folder.
    pub path: PathBuf,
    /// What differs or can't be done, for people; none: it has passed.
    pub failure: Option<String>,
    /// Whether its files were written anew.
    pub updated: bool,
    /// How long it took.
    pub took: Duration,
}

/// A project's declarations, and the tables that are known beside them.
pub struct Project {
    /// Its `.sql` files; none where a test declares everything itself.
    pub files: Vec<QueryFile>,
    /// Reference tables that are declared nowhere else.
    pub known: Vec<TableDef>,
}

/// Runs the tests, in the order of their names, and tells of each on `out` as soon as it is done. `known` are
/// reference tables that are declared nowhere else.
///
/// # Errors
/// Where there is no test, and where the `.sql` files can't be parsed.
pub async fn run(options: &Options, known: Vec<TableDef>, out: &mut impl Write) -> Result<Vec<Outcome>> {
    let tests = find(&options.path)?;
    let folder = options.queries.clone().or_else(|| queries_of(&options.path));
    let files = match folder {
        Some(folder) => queries::load(Some(&folder))?.1,
        None => Vec::new(),
    };
    // What is wrong with the declarations is told once, and not by every test.
    Catalog::parse(&files, &session::continuous().state()).await?;
    let project = Project { files, known };
    let mut outcomes = Vec::new();
    for path in tests {
        let begun = Instant::now();
        let ran = match is_slt(&path) {
            true => slt::run(&project, &path, options.update).await,
            false => folder::run(&project, &path, options.update).await,
        };
        let (failure, updated) = match ran {
            Ok(Ran { failure, updated }) => (failure, updated),
            Err(error) => (Some(error.to_string()), false),
        };
        let outcome = Outcome { path, failure, updated, took: begun.elapsed() };
        report::tell(&outcome, out)?;
        outcomes.push(outcome);
    }
    report::sum_up(&outcomes, out)?;
    Ok(outcomes)
}

/// What came of a test that could be run.
struct Ran {
    failure: Option<String>,
    updated: bool,
}

fn is_slt(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "slt") && path.is_file()
}

fn is_folder(path: &Path) -> bool {
    path.join(folder::GIVEN).is_dir()
}

/// The tests at a path or below it, by name.
fn find(path: &Path) -> Result<Vec<PathBuf>> {
    if is_slt(path) || is_folder(path) {
        return Ok(vec![path.into()]);
    }
    if !path.exists() {
        return Err(Error::Test(format!("there is no file or folder {}", path.display())));
    }
    let of_project = path.join(TESTS_DIR);
    let root = if of_project.is_dir() { &of_project } else { path };
    let mut tests = Vec::new();
    if root.is_dir() && (root != path || !path.join(QUERIES_DIR).is_dir()) {
        collect(root, &mut tests)?;
    }
    if tests.is_empty() {
        return Err(Error::Test(format!(
            "no tests in {}: a test is a file {TESTS_DIR}/NAME.slt, or a folder {TESTS_DIR}/NAME with the folders {} \
             and {}; `tally init shop` writes a project that has both",
            path.display(),
            folder::GIVEN,
            folder::EXPECTED
        )));
    }
    Ok(tests)
}

fn collect(folder: &Path, tests: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if is_slt(&path) || is_folder(&path) {
            tests.push(path);
        } else if path.is_dir() {
            collect(&path, tests)?;
        }
    }
    Ok(())
}

/// What is in a folder, by name; nothing that is hidden.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("reading", folder, e);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut paths =
        entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// The nearest `queries/` at a path or above it.
fn queries_of(path: &Path) -> Option<PathBuf> {
    // `tests/a.slt` stands in a folder without a name: this one.
    let here = |folder: &Path| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.into() };
    let mut found = path.ancestors().map(|folder| here(folder).join(QUERIES_DIR));
    found.find(|folder| folder.is_dir())
}
