//! The manifest of a checkpoint: what it is of, and where its parts are. It is written last, so a checkpoint is there if,
//! and only if, its manifest is.

use serde::{Deserialize, Serialize};

use crate::epoch_log::Definitions;

/// Version of what is written here, and of how states are saved; a later one is not read.
pub const FORMAT: u32 = 1;
const MAGIC: &str = "tally-checkpoint";
const PREFIX: &str = "manifest-";

/// What a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The program whose states it has, to the source: of another one they may mean something else.
    pub program: String,
    /// The engine.
    pub engine_id: String,
    /// The newest epoch that is in it.
    pub epoch: u64,
    /// When that was, in milliseconds since 1970.
    pub at_ms: u64,
    /// Hash of the log's newest entry then, in hexadecimal. Each entry has the hash of the one before, so a log with this
    /// one is the log that was counted.
    pub entry: String,
    /// What was counted and how.
    pub definitions: Definitions,
}

/// Where some bytes are, and what they must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The object.
    pub pack: String,
    /// The first byte in it.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Their CRC-32.
    pub crc: u32,
}

/// A checkpoint's parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What it is of.
    pub header: Header,
    /// Its tables.
    pub tables: Vec<Place>,
    /// Its values.
    pub values: Place,
}

impl Header {
    /// The program that this is.
    pub fn this_program() -> String {
        format!("tally {} of sources {}", env!("CARGO_PKG_VERSION"), env!("HASH_OF_SOURCES"))
    }
}

impl Manifest {
    /// The name of its object; `run` tells apart those of several starts.
    pub fn name(epoch: u64, run: &str) -> String {
        format!("{PREFIX}{epoch:020}-{run}")
    }

    /// The epoch of an object that has such a name.
    pub fn epoch_of(name: &str) -> Option<u64> {
        name.strip_prefix(PREFIX)?.split_once('-').filter(|(_, run)| !run.contains('.'))?.0.parse().ok()
    }

    /// A line with version and CRC, then JSON.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_vec(self)?;
        let head = format!("{MAGIC} {FORMAT} {:08x} {}\n", crc32fast::hash(&json), json.len());
        Ok([head.into_bytes(), json].concat())
    }

    /// Of what was written; the error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
        let torn = || "its manifest is damaged".to_string();
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(torn)?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| torn())?;
        let [MAGIC, format, crc, length] = head.split(' ').collect::<Vec<_>>()[..] else {
            return Err(torn());
        };
        let format: u32 = format.parse().map_err(|_| torn())?;
        if format > FORMAT {
            return Err(format!(
                "it was written by a newer version of tally (format {format}, this one reads {FORMAT}): run that one \
                 to use it"
            ));
        }
        let json = &bytes[end + 1..];
        let is_whole =
            length.parse() == Ok(json.len()) && u32::from_str_radix(crc, 16) == Ok(crc32fast::hash(json));
        if !is_whole {
            return Err(torn());
        }
        serde_json::from_slice(json).map_err(|error| format!("its manifest can't be read: {error}"))
    }

    /// The objects that it needs.
    pub fn packs(&self) -> std::collections::BTreeSet<&str> {
        self.tables.iter().chain([&self.values]).map(|place| place.pack.as_str()).collect()
    }
}

impl Place {
    /// These bytes of an object, if they are there and what they were.
    pub fn of<'a>(&self, object: &'a [u8]) -> Result<&'a [u8], String> {
        let (from, bytes) = (self.offset as usize, self.bytes as usize);
        let found = from.checked_add(bytes).and_then(|to| object.get(from..to));
        match found {
            None => Err(format!("{} is too short", self.pack)),
            Some(found) if crc32fast::hash(found) != self.crc => Err(format!("{} is damaged", self.pack)),
            Some(found) => Ok(found),
        }
    }
}
