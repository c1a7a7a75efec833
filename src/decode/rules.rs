//! Judges the rows of a source by its rules. What a rule says never depends on how the rows were cut
//! into micro-batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use datafusion::common::exec_datafusion_err;
use datafusion::execution::session_state::SessionState;

use super::check::Check;
use super::future::{self, FUTURE};
use super::net::{Changes, NetRows};
use super::seen::SeenKeys;
use super::{Decoded, Judged, Reject, TakenBack};
use crate::batches::project as project_batch;
use crate::catalog::{Rule, RuleKind, SourceDef};
use crate::checkpoint::{Loader, Saver};
use crate::error::Result;
use crate::source::Origin;

/// Answers which values a reference table has.
pub trait ForeignKeys {
    /// For each row of `values` whether `table` has a row with those values in `columns`.
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray>;
}

/// A source's rules, and what they remember of the rows that were counted.
pub struct RuleSet {
    rules: Vec<Compiled>,
    future: Option<Future>,
    /// Keys of the rows that were counted, where the first of a key counts.
    seen: Option<SeenKeys>,
    /// The rows that are there, where rows can be taken back.
    net: Option<NetRows>,
}

struct Compiled {
    rule: Rule,
    /// The columns that it reads, found by name: rows may hold only those that are needed.
    reads: SchemaRef,
    check: Option<Check>,
}

/// How far the event time may be in the future.
struct Future {
    reads: SchemaRef,
    max_future_ms: i64,
}

impl RuleSet {
    /// Compiles the rules of `source`; `session` plans CHECK expressions. Where rows can be taken back, those that are
    /// there are kept with the columns that are `read`; none: all.
    pub fn new(source: &SourceDef, read: Option<&BTreeSet<String>>, session: &SessionState) -> Result<Self> {
        let mut seen = None;
        let mut rules = Vec::new();
        for rule in &source.rules {
            let (reads, check) = match &rule.kind {
                RuleKind::NotNull(column) => (project(&source.schema, [column])?, None),
                RuleKind::PrimaryKey(columns) | RuleKind::ForeignKey { columns, .. } => {
                    (project(&source.schema, columns)?, None)
                }
                RuleKind::Check(expr) => {
                    let check = Check::new(&expr.to_string(), &source.schema, session)
                        .map_err(|e| source.place.error(e))?;
                    (Arc::clone(&check.reads), Some(check))
                }
            };
            if matches!(rule.kind, RuleKind::PrimaryKey(_)) && !source.retracts() {
                seen = Some(SeenKeys::new(&reads)?);
            }
            rules.push(Compiled { rule: rule.clone(), reads, check });
        }
        let future = match &source.event_time {
            Some(column) => Some(Future {
                reads: project(&source.schema, [column])?,
                max_future_ms: source.max_future_ms,
            }),
            None => None,
        };
        let net = source.retracts().then(|| NetRows::new(source, read)).transpose()?;
        Ok(RuleSet { rules, future, seen, net })
    }

    /// No rules: for messages that were judged before.
    pub fn of_counted(source: &SourceDef) -> Result<Self> {
        let net = source.retracts().then(|| NetRows::new(source, None)).transpose()?;
        Ok(RuleSet { rules: Vec::new(), future: None, seen: None, net })
    }

    /// The columns that the rules read.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        let event_time = self.future.iter().flat_map(|future| future.reads.fields());
        let read = self.rules.iter().flat_map(|compiled| compiled.reads.fields());
        read.chain(event_time).map(|field| field.name())
    }

    /// For each foreign key, the values of `rows` that `keys` does not have: a row of a table may be newer
    /// than what is held of it.
    pub fn missing(
        &self,
        rows: &RecordBatch,
        keys: &dyn ForeignKeys,
    ) -> Result<Vec<(String, Vec<String>, RecordBatch)>> {
        let mut missing = Vec::new();
        for compiled in &self.rules {
            let RuleKind::ForeignKey { table, referred, .. } = &compiled.rule.kind else { continue };
            let values = project_batch(rows, &compiled.reads)?;
            let found = keys.contains(table, referred, values.columns())?;
            if found.true_count() < rows.num_rows() {
                let absent = filter_record_batch(&values, &arrow::compute::not(&found)?)?;
                missing.push((table.clone(), referred.clone(), absent));
            }
        }
        Ok(missing)
    }

    /// The rows that keep every rule, and of the others the first rule that each breaks. `origin` tells where the
    /// message at a position comes from. A message whose row breaks a rule takes nothing back either.
    pub fn judge(
        &mut self,
        decoded: Decoded,
        origin: &dyn Fn(u32) -> Origin,
        keys: &dyn ForeignKeys,
    ) -> Result<(Judged, Vec<Reject>)> {
        let mut judged = Judging { decoded, rejects: Vec::new() };
        if let Some(future) = &self.future {
            future.judge(&mut judged, origin)?;
        }
        for compiled in &self.rules {
            let values = project_batch(&judged.decoded.rows, &compiled.reads)?;
            let mut failed = BTreeMap::new();
            let keep = match &compiled.rule.kind {
                RuleKind::NotNull(_) => arrow::compute::is_not_null(values.column(0))?,
                RuleKind::Check(_) => {
                    let Some(check) = &compiled.check else { continue };
                    let verdict = check.judge(&values);
                    failed = verdict.failed;
                    verdict.keep
                }
                RuleKind::ForeignKey { table, referred, .. } => {
                    let found = keys.contains(table, referred, values.columns())?;
                    // As in SQL: a foreign key with a NULL refers to nothing and is kept.
                    let nulls = |i: usize| values.columns().iter().any(|column| column.is_null(i));
                    BooleanArray::from_iter(
                        found.iter().enumerate().map(|(i, f)| Some(f == Some(true) || nulls(i))),
                    )
                }
                RuleKind::PrimaryKey(_) => {
                    let Some(seen) = &mut self.seen else { continue };
                    let messages = &judged.decoded.messages;
                    seen.first_of_each(values.columns(), |row| origin(messages[row]))?
                }
            };
            judged.keep(&keep, &compiled.rule.name, |row| match failed.get(&row) {
                Some(error) => compiled.failure(error),
                None => compiled.reason(&values, row),
            })?;
        }
        let Judging { decoded, mut rejects } = judged;
        let Decoded { rows, messages, taken_back } = decoded;
        let Some(net) = &mut self.net else {
            return Ok((Judged { rows, counted: messages.len(), messages }, rejects));
        };
        let taken_back = taken_back.unwrap_or_else(|| TakenBack::nothing(rows.schema()));
        let taken_back = taken_back.without(&rejects)?;
        let changes = net.apply(&Decoded::of_rows(rows, messages), &taken_back, origin)?;
        let Changes { rows, messages, counted, rejects: not_there } = changes;
        rejects.extend(not_there);
        Ok((Judged { rows, messages, counted }, rejects))
    }

    /// Gives the rows that are there to `take`, `rows_max` at a time, until it says false; only of a source that takes
    /// rows back.
    pub fn net_rows(&self, rows_max: usize, take: impl FnMut(RecordBatch) -> bool) -> Result<()> {
        self.net.as_ref().map_or(Ok(()), |net| net.each(rows_max, take))
    }

    /// Gives what is remembered to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let RuleSet { rules: _, future: _, seen, net } = self;
        saver.value(&(seen.is_some(), net.is_some()))?;
        seen.as_ref().map_or(Ok(()), |seen| seen.save(saver))?;
        Ok(net.as_ref().map_or(Ok(()), |net| net.save(saver))?)
    }

    /// Takes what is remembered from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        if loader.value::<(bool, bool)>()? != (self.seen.is_some(), self.net.is_some()) {
            return Err(exec_datafusion_err!("it has the keys of another declaration").into());
        }
        self.seen.as_mut().map_or(Ok(()), |seen| seen.load(loader))?;
        Ok(self.net.as_mut().map_or(Ok(()), |net| net.load(loader))?)
    }

    /// How many primary keys came in more than one partition; without a key, how many rows that are taken back.
    pub fn keys_in_two_partitions(&self) -> u64 {
        let net = self.net.as_ref().map_or(0, NetRows::in_two_partitions);
        self.seen.as_ref().map_or(net, SeenKeys::in_two_partitions)
    }

    /// Bytes held for the primary keys, or for the rows that can be taken back.
    pub fn bytes(&self) -> usize {
        let net = self.net.as_ref().map_or(0, NetRows::bytes);
        self.seen.as_ref().map_or(net, SeenKeys::bytes)
    }
}

/// Rows that have kept the rules so far, and the messages that have not.
struct Judging {
    decoded: Decoded,
    rejects: Vec<Reject>,
}

impl Judging {
    /// Keeps the rows of which `keep` is true, and rejects the others.
    fn keep(&mut self, keep: &BooleanArray, rule: &str, reason: impl Fn(usize) -> String) -> Result<()> {
        let Decoded { rows, messages, .. } = &mut self.decoded;
        if keep.true_count() == rows.num_rows() {
            return Ok(());
        }
        for (row, message) in messages.iter().enumerate().filter(|(row, _)| !keep.value(*row)) {
            self.rejects.push(Reject::of_rule(*message, rule, reason(row)));
        }
        let kept: Vec<u32> = (0..rows.num_rows() as u32).filter(|i| keep.value(*i as usize)).collect();
        *messages = kept.iter().map(|i| messages[*i as usize]).collect();
        *rows = take_record_batch(rows, &UInt32Array::from(kept))?;
        Ok(())
    }
}

impl Future {
    fn judge(&self, judged: &mut Judging, origin: &dyn Fn(u32) -> Origin) -> Result<()> {
        let times = Arc::clone(project_batch(&judged.decoded.rows, &self.reads)?.column(0));
        let messages = judged.decoded.messages.clone();
        let timestamp_ms = |row: usize| origin(messages[row]).timestamp_ms;
        let in_time = future::is_in_time(&times, timestamp_ms, self.max_future_ms)?;
        judged.keep(&in_time, FUTURE, |row| {
            let time = array_value_to_string(&times, row).unwrap_or_default();
            future::reason(self.reads.field(0).name(), &time, timestamp_ms(row), self.max_future_ms)
        })
    }
}

impl Compiled {
    fn failure(&self, error: &str) -> String {
        match &self.rule.kind {
            RuleKind::Check(expr) => format!("{expr} can't be evaluated: {error}"),
            _ => error.into(),
        }
    }

    fn reason(&self, values: &RecordBatch, row: usize) -> String {
        let value = |column: &ArrayRef| array_value_to_string(column, row).unwrap_or_default();
        let values = values.columns().iter().map(value).collect::<Vec<_>>().join(", ");
        match &self.rule.kind {
            RuleKind::NotNull(column) => format!("{column} is missing or null"),
            RuleKind::Check(expr) => format!("{expr} is false"),
            RuleKind::ForeignKey { table, referred, .. } => {
                format!("{table} has no row whose {} is {values}", referred.join(", "))
            }
            RuleKind::PrimaryKey(columns) => {
                format!("an earlier message with {} {values} was counted", columns.join(", "))
            }
        }
    }
}

/// The columns of `schema` with these names, in their order.
pub(super) fn project<'a>(schema: &Schema, names: impl IntoIterator<Item = &'a String>) -> Result<SchemaRef> {
    let positions = names.into_iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(schema.project(&positions)?))
}

#[cfg(test)]
mod tests;
