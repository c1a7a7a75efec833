//! Files whose lines are messages.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::source::{MessageRef, RawBatch};

/// The path that stands for standard input.
pub const STDIN: &str = "-";

/// A file whose lines are the messages of a topic.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// The topic, or the source that reads it.
    pub topic: String,
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// Whether a line is a message's key, a tab and its value, as `kcat -C -K '\t'` prints them. Without a value it is
    /// an empty message.
    pub is_keyed: bool,
}

/// A file while it is read.
pub struct Lines {
    file: InputFile,
    lines: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    number: i64,
}

impl Lines {
    /// Opens a file.
    pub fn open(file: &InputFile) -> Result<Lines> {
        let path = &file.path;
        let lines: Box<dyn BufRead + Send> = if path.as_os_str() == STDIN {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(path).map_err(|e| Error::io("reading", path, e))?))
        };
        Ok(Lines { file: file.clone(), lines, line: Vec::new(), number: 0 })
    }

    /// The file.
    pub fn file(&self) -> &InputFile {
        &self.file
    }

    /// The next lines that are not empty, in the room of an earlier batch; the offset of each is its number.
    pub fn next(&mut self, rows_max: usize, mut batch: RawBatch) -> Result<RawBatch> {
        batch.clear();
        while batch.len() < rows_max && self.read()? {
            let (key, payload) = self.message();
            if key.is_some() || payload.is_some() {
                batch.push(MessageRef { offset: self.number, key, payload, ..MessageRef::default() });
            }
        }
        Ok(batch)
    }

    /// Goes to the next line; false after the last.
    pub fn read(&mut self) -> Result<bool> {
        self.line.clear();
        let read = self.lines.read_until(b'\n', &mut self.line);
        self.number += 1;
        Ok(read.map_err(|e| Error::io("reading", &self.file.path, e))? > 0)
    }

    /// Key and value of the present line; an empty line has neither.
    pub fn message(&self) -> (Option<&[u8]>, Option<&[u8]>) {
        let tab = self.line.iter().position(|byte| *byte == b'\t').filter(|_| self.file.is_keyed);
        let (key, value) = match tab {
            Some(tab) => (Some(&self.line[..tab]), &self.line[tab + 1..]),
            None => (None, &self.line[..]),
        };
        (key, Some(value.trim_ascii()).filter(|value| !value.is_empty()))
    }
}
