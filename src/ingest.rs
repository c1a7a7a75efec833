//! Messages in, rows out: decodes a micro-batch and judges its rows. The one path of `run` and `replay`;
//! ad-hoc SQL over a topic (`history.rs`) goes through the same decoder and rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::execution::session_state::SessionState;

use crate::catalog::SourceDef;
use crate::checkpoint::{Loader, Saver};
use crate::decode::{self, Decoded, Decoder, ForeignKeys, Judged, Reject, RuleSet};
use crate::error::Result;
use crate::source::RawBatch;

/// Decodes and judges the messages of one source.
pub struct Ingest {
    /// Its declaration.
    pub def: Arc<SourceDef>,
    decoder: Decoder,
    rules: RuleSet,
}

/// Key values that a reference table is not known to have.
pub struct Missing {
    /// The table.
    pub table: String,
    /// Its key columns.
    pub key: Vec<String>,
    /// The values, a column for each of `key`.
    pub values: RecordBatch,
}

impl Ingest {
    /// Of a source. Its rows have the columns that are `read` and those that the rules read; none: all that are
    /// declared. `session` plans CHECK expressions.
    pub fn new(
        def: Arc<SourceDef>,
        read: Option<BTreeSet<String>>,
        session: &SessionState,
    ) -> Result<Ingest> {
        let (decoder, rules) = decode::of_source(&def, read, session)?;
        Ok(Ingest { def, decoder, rules })
    }

    /// The rows of a micro-batch, and the messages that are none. Uses all cores.
    pub fn decode(&self, raw: &RawBatch) -> Result<(Decoded, Vec<Reject>)> {
        self.decoder.decode(raw)
    }

    /// For each foreign key, the values that `keys` does not have: a row of a table may be newer than what is
    /// held of it.
    pub fn missing(&self, decoded: &Decoded, keys: &dyn ForeignKeys) -> Result<Vec<Missing>> {
        let missing = self.rules.missing(&decoded.rows, keys)?;
        Ok(missing.into_iter().map(|(table, key, values)| Missing { table, key, values }).collect())
    }

    /// The rows that keep every rule, and of the others the first rule that each breaks. Of a source that takes rows
    /// back: the rows that came and went.
    pub fn judge(
        &mut self,
        decoded: Decoded,
        raw: &RawBatch,
        keys: &dyn ForeignKeys,
    ) -> Result<(Judged, Vec<Reject>)> {
        self.rules.judge(decoded, &|message| raw.origin(message), keys)
    }

    /// Gives what is remembered of the counted messages to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Ingest { def, decoder: _, rules } = self;
        saver.mark(&def.name)?;
        rules.save(saver)
    }

    /// Takes what is remembered from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark(&self.def.name)?;
        self.rules.load(loader)
    }

    /// How many primary keys came in more than one partition; without a key, how many rows that can be taken back.
    pub fn keys_in_two_partitions(&self) -> u64 {
        self.rules.keys_in_two_partitions()
    }

    /// Bytes held for the primary keys, or for the rows that can be taken back.
    pub fn bytes(&self) -> usize {
        self.rules.bytes()
    }
}
