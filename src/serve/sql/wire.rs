//! What the server and a query's process say to each other, over a socket that is the process's standard input:
//! the request goes in; the process asks for its tables' rows, a batch at a time, and then gives an answer. A
//! message is a byte that says its kind, its length, and its bytes.

use std::io::{self, Read, Write};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::formats::Format;

/// Longest message: an answer or a batch of a table. What is longer is refused before it is read.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

const HEAD_BYTES: usize = 9;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the process: a [`Request`].
    Request = 1,
    /// To the server: a [`Scan`], whose next batch is wanted.
    Next = 2,
    /// To the process: a batch, as an Arrow stream.
    Batch = 3,
    /// To the process: the scan has no further batch.
    End = 4,
    /// To the process: why the scan can't go on.
    Failed = 5,
    /// To the server: the answer's body.
    Answer = 6,
    /// To the server: the first rows of an answer that is longer.
    Truncated = 7,
    /// To the server: a problem.
    Problem = 8,
}

impl TryFrom<u8> for Kind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Kind> {
        let kinds = [
            Kind::Request,
            Kind::Next,
            Kind::Batch,
            Kind::End,
            Kind::Failed,
            Kind::Answer,
            Kind::Truncated,
            Kind::Problem,
        ];
        let known = kinds.into_iter().find(|kind| *kind as u8 == byte);
        known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("a message of kind {byte}")))
    }
}

/// A query, and what it may see and take.
#[derive(Debug, Deserialize, Serialize)]
pub struct Request {
    /// The query as it was sent.
    pub query: String,
    /// What the answer is written in.
    pub format: Format,
    /// The epoch that it is about.
    pub epoch: u64,
    /// Tables that the caller may see.
    pub tables: Vec<Table>,
    /// Views that are only names for queries: name and query.
    pub plain_views: Vec<(String, String)>,
    /// Tables that there are, and that the caller may not see.
    pub hidden: Vec<String>,
    /// Why not.
    pub hidden_hint: String,
    /// Most rows of the answer.
    pub rows_max: usize,
    /// Most bytes of memory.
    pub bytes_max: usize,
    /// Longest time.
    pub timeout: Duration,
}

/// A table that a query may name.
#[derive(Debug, Deserialize, Serialize)]
pub struct Table {
    /// Its name, which may have a schema: `pg.voters`.
    pub name: String,
    /// Its columns.
    #[serde(serialize_with = "write_schema", deserialize_with = "read_schema")]
    pub schema: SchemaRef,
}

/// Part of a table that a query reads.
#[derive(Debug, Deserialize, Serialize)]
pub struct Scan {
    /// Tells it from the query's other scans.
    pub id: usize,
    /// Position of the table in the request.
    pub table: usize,
    /// Positions of the wanted columns; none: all.
    pub projection: Option<Vec<usize>>,
    /// Rows that are enough.
    pub limit: Option<usize>,
}

/// The rows of a table can't be had now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TableFailed(pub String);

fn write_schema<S: Serializer>(schema: &SchemaRef, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = StreamWriter::try_new(Vec::new(), schema).and_then(StreamWriter::into_inner);
    BASE64_STANDARD.encode(bytes.map_err(serde::ser::Error::custom)?).serialize(serializer)
}

fn read_schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SchemaRef, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    let reader = StreamReader::try_new(&bytes[..], None).map_err(serde::de::Error::custom)?;
    Ok(reader.schema())
}

/// A batch as a message's bytes.
pub fn encode(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.into_inner()
}

/// The batch of a message.
pub fn decode(bytes: &[u8]) -> Result<RecordBatch, ArrowError> {
    let batch = StreamReader::try_new(bytes, None)?.next();
    batch.unwrap_or_else(|| Err(ArrowError::IpcError("the message has no batch".into())))
}

fn head(kind: Kind, bytes: &[u8]) -> [u8; HEAD_BYTES] {
    let mut head = [kind as u8; HEAD_BYTES];
    head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    head
}

fn read_head(head: [u8; HEAD_BYTES], bytes_max: usize) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    match usize::try_from(length).ok().filter(|length| *length <= bytes_max) {
        Some(length) => Ok((Kind::try_from(kind)?, length)),
        None => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("a message of {length} bytes"))),
    }
}

/// Writes a message, waiting for it.
pub fn write(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&head(kind, bytes))?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads a message, waiting for it.
pub fn read(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let (kind, length) = read_head(head, MESSAGE_BYTES_MAX)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

/// Sends a message.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), kind: Kind, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&head(kind, bytes)).await?;
    to.write_all(bytes).await?;
    to.flush().await
}

/// Receives a message of at most `bytes_max` bytes.
pub async fn receive(from: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head).await?;
    let (kind, length) = read_head(head, bytes_max)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok((kind, bytes))
}
