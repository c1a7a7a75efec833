//! `tally init`: writes a small project, a copy of one of `examples/`, which are built into the binary.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The examples that a project can begin as; the first unless another is asked for.
pub const EXAMPLES: [&str; 4] = ["shop", "clicks", "sensors", "cdc"];

const README: &str = "README.md";
const DATA: &str = "data/";

#[derive(rust_embed::RustEmbed)]
#[folder = "examples/"]
struct Examples;

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The files, in the order of their names.
    pub files: Vec<PathBuf>,
    /// What to try next, each a command that runs in the folder.
    pub next: Vec<String>,
}

/// Writes an example into a new folder, which gives the project its name.
///
/// # Errors
/// Where something is in the folder already, and for an example that there is not.
pub fn init(folder: &Path, example: &str) -> Result<Written> {
    let prefix = format!("{example}/");
    let mut names: Vec<_> = Examples::iter().filter(|name| name.starts_with(&prefix)).collect();
    names.sort();
    if !EXAMPLES.contains(&example) || names.is_empty() {
        return Err(Error::Config(format!("no example `{example}`; there are {}", EXAMPLES.join(", "))));
    }
    let is_used = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io("reading", folder, error)),
    };
    if is_used {
        return Err(Error::Config(format!(
            "{0} is not empty, and nothing there is touched: name a new folder, as in `tally init {0}-2`",
            folder.display()
        )));
    }
    let name = folder.file_name().map_or(example.into(), |name| name.to_string_lossy().into_owned());
    let (mut files, mut inputs) = (Vec::new(), String::new());
    for of_example in &names {
        let Some(file) = Examples::get(of_example) else { continue };
        let relative = of_example.trim_start_matches(&prefix);
        let mut content = file.data.into_owned();
        if relative == README {
            content = titled(&content, example, &name);
        }
        let path = folder.join(relative);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(|e| Error::io("creating", parent, e))?;
        std::fs::write(&path, content).map_err(|e| Error::io("writing", &path, e))?;
        if let Some((topic, extension)) = relative.strip_prefix(DATA).and_then(|file| file.split_once('.')) {
            inputs += &match extension {
                "ndjson" => format!(" --input {topic}={relative}"),
                "keyed" => format!(" --keyed-input {topic}={relative}"),
                _ => String::new(),
            };
        }
        files.push(path);
    }
    let next = vec!["tally test".into(), format!("tally dev{inputs} --rate 2")];
    Ok(Written { files, next })
}

/// The README under the project's name.
fn titled(readme: &[u8], example: &str, name: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(readme);
    text.replacen(&format!("# {example}\n"), &format!("# {name}\n"), 1).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_in_it_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
        let error = init(folder.path(), "shop").unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_project_has_its_own_name_and_says_what_to_try() {
        let folder = tempfile::tempdir().unwrap();
        for example in EXAMPLES {
            let path = folder.path().join(format!("my-{example}"));
            let written = init(&path, example).unwrap();
            assert!(written.next[1].contains("input "), "{written:?}");
            let readme = std::fs::read_to_string(path.join(README)).unwrap();
            assert!(readme.starts_with(&format!("# my-{example}\n")), "{readme}");
            assert!(readme.lines().count() <= 12, "a README of ten lines: {readme}");
        }
        let error = init(&folder.path().join("other"), "elections").unwrap_err().to_string();
        assert!(error.contains("there are shop, clicks, sensors, cdc"), "{error}");
    }
}
