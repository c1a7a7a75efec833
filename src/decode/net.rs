//! What the messages of a source that takes rows back change in its rows: each row that comes has the weight 1,
//! each that goes -1 and the values that it had when it came.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use datafusion::error::Result as PlanResult;

use super::counted_rows::CountedRows;
use super::newest::{Change, Gone, NewestRows};
use super::rules::project;
use super::{Decoded, Reject, TakenBack};
use crate::batches::project as project_batch;
use crate::catalog::SourceDef;
use crate::checkpoint::{Loader, Saver};
use crate::engine::input::WEIGHT;
use crate::error::Result;
use crate::row_index::{Encoded, RowEncoder};
use crate::source::Origin;

/// The rule that a message breaks which takes back what is not there.
const RETRACTION: &str = "retraction";

/// The rows of a source that are there: those that came less those that went.
pub struct NetRows {
    schema: SchemaRef,
    state: State,
}

enum State {
    /// The newest of each primary key.
    ByKey { key: Columns, rest: Columns, rows: NewestRows },
    /// Each whole row, and how often it is there.
    ByRow { whole: Columns, rows: CountedRows },
}

/// Some columns, and how their values become bytes. Of no column the bytes are none.
struct Columns {
    schema: SchemaRef,
    encoder: Option<RowEncoder>,
}

/// What some messages change.
pub struct Changes {
    /// Rows that came and went, with [`WEIGHT`] last.
    pub rows: RecordBatch,
    /// Of each row the position of the message that caused it.
    pub messages: Vec<u32>,
    /// Messages that count.
    pub counted: usize,
    /// Those that take back what is not there.
    pub rejects: Vec<Reject>,
}

impl NetRows {
    /// No rows yet. They have the columns that are `read` and the key's; without a key, and where none are named,
    /// all that are declared: which rows are the same must not change with the queries.
    pub fn new(source: &SourceDef, read: Option<&BTreeSet<String>>) -> Result<NetRows> {
        let declared = &source.schema;
        let names = |keep: &dyn Fn(&String) -> bool| {
            let names: Vec<_> = declared.fields().iter().map(|f| f.name()).filter(|n| keep(n)).collect();
            project(declared, names)
        };
        let Some(key) = source.primary_key() else {
            let whole = Columns::new(Arc::clone(declared)).map_err(|reason| {
                source.place.error(format!("rows can't be told apart without a PRIMARY KEY: {reason}"))
            })?;
            let state = State::ByRow { whole, rows: CountedRows::default() };
            return Ok(NetRows { schema: Arc::clone(declared), state });
        };
        let is_read = |name: &String| read.is_none_or(|read| read.contains(name));
        let schema = names(&|name| key.contains(name) || is_read(name))?;
        let rest = Columns::new(names(&|name| !key.contains(name) && is_read(name))?)?;
        let key = Columns::new(project(declared, key)?)?;
        Ok(NetRows { schema, state: State::ByKey { key, rest, rows: NewestRows::default() } })
    }

    /// Takes in rows that keep the rules and what is taken back. `origin` tells where the message at a position
    /// comes from.
    pub fn apply(
        &mut self,
        came: &Decoded,
        taken_back: &TakenBack,
        origin: &dyn Fn(u32) -> Origin,
    ) -> Result<Changes> {
        let mut output = Output { counted: taken_back.silent, ..Output::default() };
        let steps = steps(&came.messages, &taken_back.messages);
        let came_rows = project_batch(&came.rows, &self.schema)?;
        let went_rows = match &mut self.state {
            State::ByKey { key, rest, rows } => {
                let (keys, rests) = (key.encode(&came.rows)?, rest.encode(&came.rows)?);
                let keys_back = key.encode(&taken_back.rows)?;
                let mut gone: Vec<Gone> = Vec::new();
                for Step { message, came, back } in steps {
                    let from = origin(message);
                    let mut go = |output: &mut Output, row: Gone| {
                        output.add(Row::Went(gone.len()), -1, message);
                        gone.push(row);
                    };
                    // A row that another one of its key replaces is not deleted first.
                    let replaced =
                        |back: &usize| came.is_some_and(|came| keys.row(came) == keys_back.row(*back));
                    if let Some(back) = back.filter(|back| !replaced(back)) {
                        match rows.remove(keys_back.row(back), from) {
                            Change::Deleted(row) => go(&mut output, row),
                            Change::Absent => {
                                output.reject(message, key, &taken_back.rows, back)?;
                                continue;
                            }
                            _ => {}
                        }
                    }
                    if let Some(came) = came {
                        match rows.put(keys.row(came), rests.row(came), from) {
                            Change::Outdated => {
                                output.add(Row::Came(came), 1, message);
                                output.add(Row::Came(came), -1, message);
                            }
                            change => {
                                if let Change::Newest(Some(row)) = change {
                                    go(&mut output, row);
                                }
                                output.add(Row::Came(came), 1, message);
                            }
                        }
                    }
                    output.counted += 1;
                }
                let gone = gone.iter().map(|row| (row.key(), row.rest())).collect::<Vec<_>>();
                of_keys(&self.schema, key, rest, &gone)?
            }
            State::ByRow { whole, rows } => {
                let (rows_came, rows_back) = (whole.encode(&came.rows)?, whole.encode(&taken_back.rows)?);
                for Step { message, came, back } in steps {
                    let partition = origin(message).partition;
                    if let Some(back) = back {
                        if !rows.remove(rows_back.row(back), partition) {
                            output.reject(message, whole, &taken_back.rows, back)?;
                            continue;
                        }
                        output.add(Row::Went(back), -1, message);
                    }
                    if let Some(came) = came {
                        rows.add(rows_came.row(came), partition);
                        output.add(Row::Came(came), 1, message);
                    }
                    output.counted += 1;
                }
                project_batch(&taken_back.rows, &self.schema)?
            }
        };
        output.finish(came_rows, went_rows)
    }

    /// Gives the rows that are there to `take`, `rows_max` at a time, until it says false.
    pub fn each(&self, rows_max: usize, mut take: impl FnMut(RecordBatch) -> bool) -> Result<()> {
        match &self.state {
            State::ByKey { key, rest, rows } => {
                let all: Vec<_> = rows.rows().collect();
                for rows in all.chunks(rows_max) {
                    if !take(of_keys(&self.schema, key, rest, rows)?) {
                        break;
                    }
                }
            }
            State::ByRow { whole, rows } => {
                let mut all = rows.rows().flat_map(|(row, times)| (0..times).map(move |_| row));
                loop {
                    let some: Vec<_> = all.by_ref().take(rows_max).collect();
                    if some.is_empty() || !take(whole.decode(some.into_iter())?) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the rows to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> PlanResult<()> {
        let NetRows { schema: _, state } = self;
        match state {
            State::ByKey { key: _, rest: _, rows } => rows.save(saver),
            State::ByRow { whole: _, rows } => rows.save(saver),
        }
    }

    /// Takes the rows of a checkpoint into this, which has none.
    pub fn load(&mut self, loader: &mut Loader) -> PlanResult<()> {
        match &mut self.state {
            State::ByKey { rows, .. } => rows.load(loader),
            State::ByRow { rows, .. } => rows.load(loader),
        }
    }

    /// How many keys, or whole rows, came in more than one partition.
    pub fn in_two_partitions(&self) -> u64 {
        match &self.state {
            State::ByKey { rows, .. } => rows.in_two_partitions(),
            State::ByRow { rows, .. } => rows.in_two_partitions(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.state {
            State::ByKey { rows, .. } => rows.bytes(),
            State::ByRow { rows, .. } => rows.bytes(),
        }
    }
}

/// Rows by key, from bytes.
fn of_keys(
    schema: &SchemaRef,
    key: &Columns,
    rest: &Columns,
    rows: &[(&[u8], &[u8])],
) -> PlanResult<RecordBatch> {
    let keys = key.decode(rows.iter().map(|(key, _)| *key))?;
    let rests = rest.decode(rows.iter().map(|(_, rest)| *rest))?;
    let column = |field: &Arc<Field>| {
        let found = keys.column_by_name(field.name()).or_else(|| rests.column_by_name(field.name()));
        Arc::clone(found.expect("invariant: each column is one of the key or of the rest"))
    };
    Ok(RecordBatch::try_new(Arc::clone(schema), schema.fields().iter().map(column).collect())?)
}

impl Columns {
    fn new(schema: SchemaRef) -> PlanResult<Columns> {
        let types: Vec<_> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
        let encoder = if types.is_empty() { None } else { Some(RowEncoder::new(&types)?) };
        Ok(Columns { schema, encoder })
    }

    fn encode(&self, rows: &RecordBatch) -> PlanResult<Bytes> {
        let Some(encoder) = &self.encoder else { return Ok(Bytes(None)) };
        Ok(Bytes(Some(encoder.encode(project_batch(rows, &self.schema)?.columns())?)))
    }

    fn decode<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [u8]>) -> PlanResult<RecordBatch> {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let columns = match &self.encoder {
            Some(encoder) => encoder.decode(rows)?,
            None => Vec::new(),
        };
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// The bytes of some rows.
struct Bytes(Option<Encoded>);

impl Bytes {
    fn row(&self, row: usize) -> &[u8] {
        self.0.as_ref().map_or(&[], |rows| rows.row(row))
    }
}

/// What one message says: positions of the row that comes by it and of the one that it takes back.
struct Step {
    message: u32,
    came: Option<usize>,
    back: Option<usize>,
}

/// The messages of both, each of which ascend, in their order.
fn steps<'a>(came: &'a [u32], back: &'a [u32]) -> impl Iterator<Item = Step> + 'a {
    let (mut next_came, mut next_back) = (0, 0);
    std::iter::from_fn(move || {
        let message = match (came.get(next_came), back.get(next_back)) {
            (Some(came), Some(back)) => *came.min(back),
            (Some(message), None) | (None, Some(message)) => *message,
            (None, None) => return None,
        };
        let step = |of: &[u32], next: &mut usize| {
            let here = (of.get(*next) == Some(&message)).then_some(*next);
            *next += usize::from(here.is_some());
            here
        };
        let came = step(came, &mut next_came);
        Some(Step { message, came, back: step(back, &mut next_back) })
    })
}

/// A row of one of two batches.
enum Row {
    Came(usize),
    Went(usize),
}

/// Changes while they are gathered.
#[derive(Default)]
struct Output {
    rows: Vec<Row>,
    weights: Vec<i64>,
    messages: Vec<u32>,
    counted: usize,
    rejects: Vec<Reject>,
}

impl Output {
    fn add(&mut self, row: Row, weight: i64, message: u32) {
        self.rows.push(row);
        self.weights.push(weight);
        self.messages.push(message);
    }

    fn reject(&mut self, message: u32, columns: &Columns, rows: &RecordBatch, row: usize) -> Result<()> {
        let values = project_batch(rows, &columns.schema)?;
        let value = |(field, column): (&Arc<Field>, &ArrayRef)| {
            let text = array_value_to_string(column, row).unwrap_or_default();
            format!("{} {}", field.name(), if column.is_null(row) { "NULL" } else { &text })
        };
        let values = columns.schema.fields().iter().zip(values.columns()).map(value);
        let values = values.collect::<Vec<_>>().join(", ");
        let reason = format!("no row is there to take back with {values}");
        self.rejects.push(Reject::of_rule(message, RETRACTION, reason));
        Ok(())
    }

    fn finish(self, came: RecordBatch, went: RecordBatch) -> Result<Changes> {
        let place = |row: &Row| match row {
            Row::Came(row) => *row as u32,
            Row::Went(row) => (came.num_rows() + row) as u32,
        };
        let places: Vec<u32> = self.rows.iter().map(place).collect();
        let all_new = places.len() == came.num_rows() && places.iter().zip(0..).all(|(place, i)| *place == i);
        let rows = match all_new {
            true => came,
            false => {
                let both = concat_batches(&came.schema(), [&came, &went])?;
                take_record_batch(&both, &UInt32Array::from(places))?
            }
        };
        let fields = rows.schema().fields().iter().cloned().collect::<Vec<_>>();
        let weight = Arc::new(Field::new(WEIGHT, DataType::Int64, true));
        let schema = Schema::new(fields.into_iter().chain([weight]).collect::<Vec<_>>());
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(Int64Array::from(self.weights)));
        let rows = RecordBatch::try_new(Arc::new(schema), columns)?;
        Ok(Changes { rows, messages: self.messages, counted: self.counted, rejects: self.rejects })
    }
}

#[cfg(test)]
mod tests;
