//! Where a statement stands, for errors that point at it.

use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::error::Error;

/// Where a statement stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line and column of the name that the statement declares, from 1.
    pub line: u64,
    /// See `line`.
    pub column: u64,
}

impl Place {
    /// An error here.
    pub fn error(&self, reason: impl ToString) -> Error {
        Error::Query {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
            reason: reason.to_string(),
        }
    }

    /// An error of DataFusion's, at the position that it names if it names one.
    pub fn explain(&self, error: DataFusionError) -> Error {
        let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
        let (line, column) = span.map_or((self.line, self.column), |s| (s.start.line, s.start.column));
        let reason = error.strip_backtrace();
        Error::Query { file: self.file.clone(), line, column, reason }
    }

    pub(super) fn at(file: &Path, span: Span) -> Place {
        Place { file: file.to_path_buf(), line: span.start.line.max(1), column: span.start.column.max(1) }
    }
}

/// The parser gives the position only in its text: "… at Line: 3, Column: 7".
pub(super) fn parse_error(start: &Place, error: DataFusionError) -> Error {
    let text = error.strip_backtrace();
    let number_after = |marker: &str| -> Option<u64> {
        let rest = &text[text.rfind(marker)? + marker.len()..];
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    };
    let place = Place {
        file: start.file.clone(),
        line: number_after("Line: ").unwrap_or(1),
        column: number_after("Column: ").unwrap_or(1),
    };
    place.error(text)
}
