//! Builds again when a file that is built into the binary comes, changes or goes; and names the sources, by their hash: a
//! checkpoint is read by the program that wrote it.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    for folder in ["examples", "migrations", "queries", "web", "src", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let mut files = vec![PathBuf::from("Cargo.lock")];
    find(Path::new("src"), &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        hasher.write(file.to_string_lossy().as_bytes());
        hasher.write(&fs::read(file)?);
    }
    println!("cargo::rustc-env=HASH_OF_SOURCES={:016x}", hasher.finish());
    Ok(())
}

/// Adds all files of a folder and those in it.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
