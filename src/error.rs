//! The one error type of the library. Each variant says what was being done, why it failed and, where
//! the user can act on it, what to do next. Messages are lower-case and end without a full stop.

use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by who can mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is missing or wrong. The user edits `tally.toml`, the environment or a flag.
    #[error("configuration: {0}")]
    Config(String),

    /// A file of `queries/` can't be used. The analyst edits the file.
    #[error("{}:{line}:{column}: {reason}", file.display())]
    Query {
        /// The file, as found in the queries directory.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong, and what to write instead.
        reason: String,
    },

    /// Several statements of `queries/` can't be used, each for its own reason.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),

    /// Kafka refused or did not answer.
    #[error("kafka: {action}: {reason}")]
    Kafka {
        /// What was being done, with topic, partition and offset where they are known.
        action: String,
        /// The client's reason, and what to do about it.
        reason: String,
    },

    /// Postgres refused or did not answer.
    #[error("postgres: {action}: {reason}")]
    Postgres {
        /// What was being done, with the table where it is known.
        action: String,
        /// The server's reason, and what to do about it.
        reason: String,
    },

    /// A file or socket of this machine.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with the path or address.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },

    /// DataFusion could not plan or run a query.
    #[error("{0}")]
    DataFusion(#[from] DataFusionError),

    /// A limit was reached; going on would lose or falsify something.
    #[error("limit: {0}")]
    Limit(String),

    /// The epoch log can't be gone on with, or does not agree with what was counted.
    #[error("epoch log: {0}")]
    Log(String),

    /// A checkpoint can't be written or read. The operator makes room, or removes it: the log has all that is in it.
    #[error("checkpoint: {0}")]
    Checkpoint(String),

    /// Another engine writes in this one's place.
    #[error(
        "another engine with engine_id {0} has taken over: this one stops, and has published nothing that is not \
         committed. Give engines that run beside each other different engine_ids, and topics of their own"
    )]
    TakenOver(String),

    /// What is there, or came out, is not what it should be: of an audit, a test, or a replay with expectations.
    #[error("{0}")]
    Differs(String),

    /// A test of a project, or a statement of it, can't be run as it is written.
    #[error("{0}")]
    Test(String),

    /// Stopped by a signal before the work was done.
    #[error("stopped by a signal before it was done")]
    Stopped,
}

impl Error {
    /// An [`Error::Io`] about a path.
    pub fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        Error::Io { action: format!("{action} {}", path.display()), source }
    }

    /// The exit code of a process that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::TakenOver(_) => 3,
            Error::Differs(_) => 4,
            _ => 1,
        }
    }

    /// All of them in one, if there is any.
    pub fn all(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// An [`Error::Kafka`].
    pub fn kafka(action: impl Into<String>, reason: impl ToString) -> Self {
        Error::Kafka { action: action.into(), reason: reason.to_string() }
    }

    /// An [`Error::Postgres`].
    pub fn postgres(action: impl Into<String>, reason: impl ToString) -> Self {
        Error::Postgres { action: action.into(), reason: reason.to_string() }
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::DataFusion(error.into())
    }
}
