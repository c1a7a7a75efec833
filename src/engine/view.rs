//! A materialized view's rows, and what a micro-batch changes in them.
//!
//! Rows are held in arrow's row encoding in a persistent ordered map: comparing two rows compares bytes,
//! and a snapshot for readers is a cheap clone that later micro-batches do not disturb.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::exec_err;
use datafusion::error::Result;
use imbl::OrdMap;

/// What does not change about a view while the engine runs.
#[derive(Clone, Debug)]
pub struct ViewInfo {
    /// Its name in SQL and in URLs.
    pub name: String,
    /// Columns of its rows.
    pub schema: SchemaRef,
    /// Columns that tell its rows apart; empty: a row is known by all its columns.
    pub key: Vec<String>,
    /// Output mode: `update`, `complete` or `append`.
    pub mode: &'static str,
    /// Topic that receives its changelog.
    pub topic: Option<String>,
    /// How it is kept up to date, for people: its plan below, state and finishing plan.
    pub plan: String,
}

/// Makes the rows as one record batch, in the view's order. Called at most once per snapshot, by the first reader.
pub trait RowSource: Send + Sync + std::fmt::Debug {
    /// Number of rows.
    fn total(&self) -> usize;
    /// All rows, with the view's schema.
    fn batch(&self) -> crate::error::Result<RecordBatch>;
}

impl RowSource for RecordBatch {
    fn total(&self) -> usize {
        self.num_rows()
    }
    fn batch(&self) -> crate::error::Result<RecordBatch> {
        Ok(self.clone())
    }
}

type Encoded = Arc<[u8]>;

const RING_BATCHES_MAX: usize = 64;

/// What a changelog record says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The row is new.
    Insert,
    /// Another row had its key.
    Update,
    /// The row has left the view; on the topic, a tombstone.
    Delete,
}

impl Op {
    /// As written in a record's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        }
    }
}

/// The rows that a micro-batch changed in a view. An unchanged row is not among them.
#[derive(Debug)]
pub struct Changelog {
    /// Of each row of `rows`, what happened to it.
    pub ops: Vec<Op>,
    /// New rows, and of deleted rows what they last were. All columns of the view.
    pub rows: RecordBatch,
}

impl Changelog {
    /// No change of a view with that schema.
    pub fn nothing(schema: &SchemaRef) -> Changelog {
        Changelog { ops: Vec::new(), rows: RecordBatch::new_empty(Arc::clone(schema)) }
    }
}

/// The rows of a view as of now.
#[derive(Debug)]
pub struct ViewRows {
    schema: SchemaRef,
    /// Positions of the key columns; all columns where no key was declared.
    key: Vec<usize>,
    keyed: bool,
    key_converter: RowConverter,
    row_converter: Arc<RowConverter>,
    rows: OrdMap<Encoded, Held>,
    total: usize,
    bytes: usize,
}

/// A row, and how often it is in the view: more than once only without a key.
#[derive(Clone, Debug)]
struct Held {
    row: Encoded,
    count: u64,
}

impl ViewRows {
    /// An empty view. `key` names columns of `schema`.
    pub fn new(schema: SchemaRef, key: &[String]) -> Result<Self> {
        let positions: Vec<usize> = match key {
            [] => (0..schema.fields().len()).collect(),
            names => names.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<_>>()?,
        };
        let fields = |columns: &mut dyn Iterator<Item = usize>| -> Vec<SortField> {
            columns.map(|i| SortField::new(schema.field(i).data_type().clone())).collect()
        };
        Ok(ViewRows {
            key_converter: RowConverter::new(fields(&mut positions.iter().copied()))?,
            row_converter: Arc::new(RowConverter::new(fields(&mut (0..schema.fields().len())))?),
            keyed: !key.is_empty(),
            key: positions,
            schema,
            rows: OrdMap::new(),
            total: 0,
            bytes: 0,
        })
    }

    /// Replaces the whole content.
    pub fn replace(&mut self, now: &RecordBatch) -> Result<Changelog> {
        let stale = self.rows.clone();
        let stale =
            stale.iter().flat_map(|(key, held)| std::iter::repeat_n((key, &held.row), held.count as usize));
        let stale: Vec<_> = stale.map(|(key, row)| (Arc::clone(key), Arc::clone(row))).collect();
        self.change(stale, now)
    }

    /// Replaces the rows `before`, which must be in the view, by `after`.
    pub fn update(&mut self, before: &RecordBatch, after: &RecordBatch) -> Result<Changelog> {
        let (keys, rows) = self.encode(before)?;
        let before = (0..before.num_rows())
            .map(|i| (Encoded::from(keys.row(i).data()), Encoded::from(rows.row(i).data())));
        self.change(before.collect(), after)
    }

    /// A snapshot that later changes leave alone.
    pub fn snapshot(&self) -> Arc<dyn RowSource> {
        Arc::new(Snapshot {
            schema: Arc::clone(&self.schema),
            converter: Arc::clone(&self.row_converter),
            rows: self.rows.clone(),
            total: self.total,
        })
    }

    /// Bytes held for rows and keys, without the map's own nodes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn encode(&self, batch: &RecordBatch) -> Result<(Rows, Rows)> {
        let keys: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(batch.column(*i))).collect();
        Ok((self.key_converter.convert_columns(&keys)?, self.row_converter.convert_columns(batch.columns())?))
    }

    /// Takes `before` out, puts `after` in, and tells the difference.
    fn change(&mut self, before: Vec<(Encoded, Encoded)>, after: &RecordBatch) -> Result<Changelog> {
        let (keys, rows) = self.encode(after)?;
        // By key: how many rows leave and come, and the newest of them.
        let mut net: BTreeMap<Encoded, Net> = BTreeMap::new();
        for (key, row) in before {
            let entry = net.entry(key).or_default();
            entry.leaving += 1;
            entry.old = Some(row);
        }
        for i in 0..after.num_rows() {
            let entry = net.entry(Encoded::from(keys.row(i).data())).or_default();
            entry.coming += 1;
            entry.new = Some(i);
        }
        // Nothing is changed before all is known to be right.
        let mut changes: Vec<(Encoded, Option<Held>)> = Vec::new();
        let mut inserted = (Vec::new(), Vec::new());
        let mut deleted = Vec::new();
        for (key, net) in net {
            if self.keyed && (net.coming > 1 || (net.leaving == 0 && self.rows.contains_key(&key))) {
                return self.ambiguous(after, net.new);
            }
            let row = net.new.map(|i| (i, rows.row(i)));
            match (net.old, row) {
                (Some(old), Some((_, new))) if net.leaving == net.coming && *old == *new.data() => {}
                (Some(_), Some((i, new))) if self.keyed => {
                    changes.push((key, Some(Held { row: Encoded::from(new.data()), count: 1 })));
                    inserted.0.push(Op::Update);
                    inserted.1.push(i as u32);
                }
                (old, row) => {
                    let change = net.coming - net.leaving;
                    let held = self.rows.get(&key).map_or(0, |held| held.count as i64);
                    let bytes = row.map(|(_, new)| Encoded::from(new.data())).or(old);
                    let count = u64::try_from(held + change).unwrap_or(0);
                    let now = bytes.clone().filter(|_| count > 0).map(|row| Held { row, count });
                    changes.push((key, now));
                    let times = change.unsigned_abs() as usize;
                    match (row, bytes) {
                        (Some((i, _)), _) if change > 0 => {
                            inserted.0.extend(std::iter::repeat_n(Op::Insert, times));
                            inserted.1.extend(std::iter::repeat_n(i as u32, times));
                        }
                        (_, Some(gone)) => deleted.extend(std::iter::repeat_n(gone, times)),
                        _ => {}
                    }
                }
            }
        }
        let mut ops = inserted.0;
        let new_rows = take_record_batch(after, &UInt32Array::from(inserted.1))?;
        let mut changed = new_rows.with_schema(Arc::clone(&self.schema))?;
        if !deleted.is_empty() {
            ops.extend(std::iter::repeat_n(Op::Delete, deleted.len()));
            let gone = decode(&self.row_converter, &self.schema, deleted.iter().map(|row| row.as_ref()))?;
            changed = concat_batches(&self.schema, [&changed, &gone])?;
        }
        for (key, held) in changes {
            match held {
                Some(held) => self.put(key, held),
                None => self.take(&key),
            }
        }
        Ok(Changelog { ops, rows: changed })
    }

    /// All rows, for output mode `complete`: `diff` says which of them are new, and which have gone.
    pub fn complete(&self, diff: &Changelog) -> Result<Changelog> {
        let (keys, _) = self.encode(&diff.rows)?;
        let with = |op: Op| {
            let rows = (0..diff.ops.len()).filter(move |i| diff.ops[*i] == op);
            rows.map(|i| Encoded::from(keys.row(i).data())).collect::<BTreeSet<_>>()
        };
        let inserted = with(Op::Insert);
        let op = |key: &Encoded| if inserted.contains(key) { Op::Insert } else { Op::Update };
        let mut ops: Vec<Op> = self.rows.iter().map(|(key, _)| op(key)).collect();
        let held = self.rows.values().map(|held| held.row.as_ref());
        let all = decode(&self.row_converter, &self.schema, held)?;
        let gone: BooleanArray = diff.ops.iter().map(|op| Some(*op == Op::Delete)).collect();
        let gone = filter_record_batch(&diff.rows, &gone)?;
        ops.extend(std::iter::repeat_n(Op::Delete, gone.num_rows()));
        Ok(Changelog { ops, rows: concat_batches(&self.schema, [&all, &gone])? })
    }

    fn put(&mut self, key: Encoded, held: Held) {
        self.bytes += key.len() + held.row.len();
        self.total += held.count as usize;
        let size = key.len();
        if let Some(old) = self.rows.insert(key, held) {
            self.total -= old.count as usize;
            self.bytes -= size + old.row.len();
        }
    }

    fn take(&mut self, key: &Encoded) {
        if let Some(old) = self.rows.remove(key) {
            self.total -= old.count as usize;
            self.bytes -= key.len() + old.row.len();
        }
    }

    fn ambiguous(&self, after: &RecordBatch, row: Option<usize>) -> Result<Changelog> {
        let columns: Vec<_> = self.key.iter().map(|i| self.schema.field(*i).name().as_str()).collect();
        let values: Vec<_> = self
            .key
            .iter()
            .filter_map(|i| arrow::util::display::array_value_to_string(after.column(*i), row?).ok())
            .collect();
        exec_err!(
            "two rows have the key ({}) = ({}); give the view a `key` that tells its rows apart",
            columns.join(", "),
            values.join(", ")
        )
    }
}

#[derive(Default)]
struct Net {
    leaving: i64,
    coming: i64,
    old: Option<Encoded>,
    new: Option<usize>,
}

/// The newest rows of a view without state.
#[derive(Clone, Debug)]
pub struct Ring {
    schema: SchemaRef,
    rows_max: usize,
    batches: VecDeque<RecordBatch>,
}

impl Ring {
    /// Keeps at most `rows_max` rows.
    pub fn new(schema: SchemaRef, rows_max: usize) -> Self {
        Ring { schema, rows_max, batches: VecDeque::new() }
    }

    /// Adds rows; the oldest make room.
    pub fn push(&mut self, rows: &RecordBatch) -> Result<()> {
        let newest = rows.num_rows().min(self.rows_max);
        self.batches.push_back(rows.slice(rows.num_rows() - newest, newest));
        let mut surplus = self.total().saturating_sub(self.rows_max);
        while surplus > 0
            && let Some(oldest) = self.batches.pop_front()
        {
            let gone = oldest.num_rows().min(surplus);
            surplus -= gone;
            if gone < oldest.num_rows() {
                self.batches.push_front(oldest.slice(gone, oldest.num_rows() - gone));
            }
        }
        // Many small batches would cost more each time they are read.
        if self.batches.len() > RING_BATCHES_MAX {
            let all = concat_batches(&self.schema, &self.batches)?;
            self.batches = VecDeque::from([all]);
        }
        Ok(())
    }

    /// Bytes held, of whole batches.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }
}

impl RowSource for Ring {
    fn total(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        Ok(concat_batches(&self.schema, &self.batches)?)
    }
}

#[derive(Debug)]
struct Snapshot {
    schema: SchemaRef,
    converter: Arc<RowConverter>,
    rows: OrdMap<Encoded, Held>,
    total: usize,
}

impl RowSource for Snapshot {
    fn total(&self) -> usize {
        self.total
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        let rows =
            self.rows.values().flat_map(|held| std::iter::repeat_n(held.row.as_ref(), held.count as usize));
        Ok(decode(&self.converter, &self.schema, rows)?)
    }
}

fn decode<'a>(
    converter: &RowConverter,
    schema: &SchemaRef,
    rows: impl Iterator<Item = &'a [u8]>,
) -> Result<RecordBatch> {
    let parser = converter.parser();
    let columns = converter.convert_rows(rows.map(|row| parser.parse(row)))?;
    // Dictionaries are encoded as their values.
    let typed = columns.iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(schema), typed.collect::<Result<_, _>>()?)?)
}
