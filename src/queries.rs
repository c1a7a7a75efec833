//! Finds the text of the `.sql` files: the configured directory, or `queries/` here, or the election's
//! files that are built into the binary. Parses nothing.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directory that is used, if it exists, when none is configured.
pub const QUERIES_DIR: &str = "queries";

#[derive(rust_embed::RustEmbed)]
#[folder = "queries/"]
struct BuiltIn;

/// One file: its path, for messages, and its text.
#[derive(Clone, Debug)]
pub struct QueryFile {
    /// As the user would open it, or `(built in)/NAME`.
    pub path: PathBuf,
    /// Its whole content.
    pub text: String,
}

/// Every `.sql` file, sorted by name, and where they are.
pub fn load(configured: Option<&Path>) -> Result<(String, Vec<QueryFile>)> {
    let dir = match configured {
        Some(dir) => dir,
        None if Path::new(QUERIES_DIR).is_dir() => Path::new(QUERIES_DIR),
        None => return Ok(("the files built into tally".into(), built_in())),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("reading the queries directory", dir, e))? {
        let path = entry.map_err(|e| Error::io("reading the queries directory", dir, e))?.path();
        if path.extension().is_some_and(|extension| extension == "sql") && path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, e))?;
            files.push(QueryFile { path, text });
        }
    }
    if files.is_empty() {
        return Err(Error::Config(format!(
            "no .sql file in {}; give --queries another directory, or write one (see README.md)",
            dir.display()
        )));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((dir.display().to_string(), files))
}

fn built_in() -> Vec<QueryFile> {
    let mut names: Vec<_> = BuiltIn::iter().filter(|name| name.ends_with(".sql")).collect();
    names.sort();
    names
        .iter()
        .filter_map(|name| {
            let file = BuiltIn::get(name)?;
            let text = String::from_utf8_lossy(&file.data).into_owned();
            Some(QueryFile { path: Path::new("(built in)").join(name.as_ref()), text })
        })
        .collect()
}
