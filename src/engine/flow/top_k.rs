//! The first rows of each partition, or of all: ORDER BY with LIMIT and OFFSET, and what a limit on ROW_NUMBER, RANK or
//! DENSE_RANK leaves. The rows are kept in order; a change costs its rows, and what it changes among the first ones.

mod partition;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt64Array, new_null_array,
};
use arrow::compute::{SortOptions, filter, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use datafusion::common::{internal_err, not_impl_err, plan_err};
use datafusion::error::Result;

use self::partition::{Change, Effect, Output};
use super::sorted_rows::SortedRows;
use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};
use crate::engine::bound::Bound;
use crate::engine::watermark::nanoseconds;

/// A window function that numbers the rows of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// Each row has a number of its own.
    RowNumber,
    /// Rows that the order does not tell apart share the first one's number.
    Rank,
    /// The same without gaps.
    DenseRank,
}

/// Which rows come first.
#[derive(Clone, Debug)]
pub struct TopKSpec {
    /// Its input's columns.
    pub schema: SchemaRef,
    /// Columns whose values make a partition; none: all rows are one.
    pub partition: Vec<usize>,
    /// Columns that order a partition's rows. Rows that they do not tell apart are in the order of all other
    /// columns, ascending, NULLs first.
    pub order: Vec<(usize, SortOptions)>,
    /// By which number rows are skipped and limited.
    pub by: Numbering,
    /// Rows up to this number are left out; …
    pub skip: usize,
    /// … of those after it, the ones of so many numbers come out, or all.
    pub fetch: Option<usize>,
    /// Numbers that come out with the rows, as columns after its input's.
    pub numbers: Vec<Numbering>,
    /// Whether no row is ever taken back: then those that can't come out again are not kept.
    pub append_only: bool,
    /// The column of `partition` (a position in it) that bounds the event time of a partition's rows.
    pub bound: Option<Bound>,
}

/// Which of a partition's rows come out, and with what numbers.
#[derive(Debug)]
struct Limit {
    by: Numbering,
    skip: u64,
    fetch: Option<u64>,
    numbers: Vec<Numbering>,
    append_only: bool,
    /// Whether an encoding ends with the number of its bytes that encode partition and order.
    has_ties: bool,
}

/// Bytes of that number.
const TIES: usize = size_of::<u32>();

/// The operator.
#[derive(Debug)]
pub struct TopK {
    limit: Limit,
    /// Columns of the input as they stand in an encoding: those of the partition, of the order, the others.
    columns: Vec<usize>,
    converter: RowConverter,
    partition: Prefix,
    ties: Prefix,
    bound: Option<Bound>,
    schema: SchemaRef,
    rows: SortedRows,
    prepared: Option<Prepared>,
}

/// The first columns of an encoding.
#[derive(Debug)]
struct Prefix {
    columns: usize,
    converter: RowConverter,
    /// Its bytes, if they are as many for all rows.
    len: Option<usize>,
}

#[derive(Debug)]
struct Prepared {
    output: Delta,
    changes: Encoded,
}

/// Changed rows, encoded one after the other.
#[derive(Debug, Default)]
struct Encoded {
    data: Vec<u8>,
    /// Of each row, where it begins and ends.
    places: Vec<(usize, usize)>,
    weights: Vec<i64>,
}

impl Limit {
    /// The last number that comes out.
    fn end(&self) -> Option<u64> {
        Some(self.skip.saturating_add(self.fetch?))
    }

    fn numbers(&self, numbering: Numbering) -> bool {
        self.numbers.contains(&numbering)
    }

    fn has_numbers(&self) -> bool {
        !self.numbers.is_empty()
    }

    /// What encodes partition and order; all where nobody asks for ties.
    fn ties<'a>(&self, row: &'a [u8]) -> &'a [u8] {
        match row.last_chunk() {
            Some(len) if self.has_ties => &row[..u32::from_be_bytes(*len) as usize],
            _ => row,
        }
    }

    /// What encodes the row's values.
    fn values<'a>(&self, row: &'a [u8]) -> &'a [u8] {
        &row[..row.len() - if self.has_ties { TIES } else { 0 }]
    }
}

impl Prefix {
    fn new(fields: &[SortField], types: &[&DataType]) -> Result<Prefix> {
        let converter = RowConverter::new(fields.to_vec())?;
        let is_fixed =
            types.iter().all(|data_type| data_type.is_primitive() || **data_type == DataType::Boolean);
        let nulls: Vec<_> = types.iter().map(|data_type| new_null_array(data_type, 1)).collect();
        let len = match types {
            [] => Some(0),
            _ if is_fixed => Some(converter.convert_columns(&nulls)?.row_len(0)),
            _ => None,
        };
        Ok(Prefix { columns: types.len(), converter, len })
    }

    /// Of each row, its bytes.
    fn lens(&self, columns: &[ArrayRef], rows: usize) -> Result<Vec<usize>> {
        match self.len {
            Some(len) => Ok(vec![len; rows]),
            None => Ok(self.converter.convert_columns(&columns[..self.columns])?.lengths().collect()),
        }
    }
}

impl Encoded {
    fn push(&mut self, parts: &[&[u8]], weight: i64) {
        let start = self.data.len();
        parts.iter().for_each(|part| self.data.extend_from_slice(part));
        self.places.push((start, self.data.len()));
        self.weights.push(weight);
    }

    fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let rows = self.places.iter().zip(&self.weights);
        rows.map(|((start, end), weight)| Change { row: &self.data[*start..*end], weight: *weight })
    }
}

impl TopK {
    /// Holds no rows yet.
    ///
    /// # Errors
    /// If a column is of a type whose encoding can't be decoded to what it was (dictionaries), or there is none.
    pub fn new(spec: TopKSpec) -> Result<TopK> {
        let TopKSpec { schema, mut partition, order, by, skip, fetch, numbers, append_only, bound } = spec;
        if schema.fields().is_empty() {
            return plan_err!("rows without columns have no order");
        }
        // What is final first stands first.
        if let Some(bound) = &bound {
            let key = partition.remove(bound.key);
            partition.insert(0, key);
        }
        let options = |place| match (place, &bound) {
            (0, Some(_)) => SortOptions::new(false, false),
            _ => SortOptions::new(false, true),
        };
        let mut sorted: Vec<(usize, SortOptions)> = Vec::new();
        let add = |sorted: &mut Vec<(usize, SortOptions)>, column, options| {
            if !sorted.iter().any(|(other, _)| *other == column) {
                sorted.push((column, options));
            }
            sorted.len()
        };
        let of_partition =
            (0..partition.len()).map(|place| add(&mut sorted, partition[place], options(place)));
        let of_partition = of_partition.last().unwrap_or(0);
        let of_ties = order.iter().map(|(column, options)| add(&mut sorted, *column, *options)).last();
        let of_ties = of_ties.unwrap_or(of_partition);
        for column in 0..schema.fields().len() {
            add(&mut sorted, column, SortOptions::new(false, true));
        }
        let types: Vec<_> = sorted.iter().map(|(column, _)| schema.field(*column).data_type()).collect();
        let fields = types.iter().zip(&sorted);
        let fields = fields.map(|(t, (_, options))| SortField::new_with_options((*t).clone(), *options));
        let fields: Vec<_> = fields.collect();
        let converter = RowConverter::new(fields.clone())?;
        let decoded = converter.convert_rows([])?;
        if let Some((_, t)) = decoded.iter().zip(&types).find(|(column, t)| column.data_type() != **t) {
            return not_impl_err!("rows in order with a column of type {t}");
        }
        let out = (0..numbers.len()).map(|i| {
            let name = format!("c{}", schema.fields().len() + i);
            Field::new(name, DataType::UInt64, true)
        });
        let out = schema.fields().iter().map(|field| field.as_ref().clone()).chain(out);
        let has_ties =
            by != Numbering::RowNumber || numbers.iter().any(|number| *number != Numbering::RowNumber);
        Ok(TopK {
            columns: sorted.iter().map(|(column, _)| *column).collect(),
            partition: Prefix::new(&fields[..of_partition], &types[..of_partition])?,
            ties: Prefix::new(&fields[..of_ties], &types[..of_ties])?,
            converter,
            bound,
            schema: Arc::new(Schema::new(out.collect::<Vec<_>>())),
            limit: Limit {
                by,
                skip: skip as u64,
                fetch: fetch.map(|fetch| fetch as u64),
                numbers,
                append_only,
                has_ties,
            },
            rows: SortedRows::new(),
            prepared: None,
        })
    }

    /// Without the rows that come behind the first ones already, where rows only come: nothing but their place in the
    /// order needs to be encoded.
    fn candidates<'a>(&self, delta: &'a Delta) -> Result<Cow<'a, Delta>> {
        let is_limited = self.limit.append_only && self.limit.end().is_some() && self.rows.len() > 0;
        if !is_limited || self.ties.columns == self.columns.len() {
            return Ok(Cow::Borrowed(delta));
        }
        let columns = self.columns[..self.ties.columns].iter();
        let columns: Vec<ArrayRef> = columns.map(|column| Arc::clone(delta.rows.column(*column))).collect();
        if columns.is_empty() {
            return Ok(Cow::Borrowed(delta));
        }
        let places = self.ties.converter.convert_columns(&columns)?;
        let partitions = self.partition.lens(&columns, places.num_rows())?;
        let mut ends: HashMap<&[u8], Option<Vec<u8>>> = HashMap::new();
        let keep: BooleanArray = (0..places.num_rows())
            .map(|row| {
                let place = places.row(row).data();
                let partition = &place[..partitions[row]];
                let end = ends
                    .entry(partition)
                    .or_insert_with(|| partition::end(&self.rows, partition, &self.limit));
                Some(end.as_deref().is_none_or(|end| place <= end))
            })
            .collect();
        if keep.true_count() == keep.len() {
            return Ok(Cow::Borrowed(delta));
        }
        let weights = filter(&delta.weights, &keep)?.as_primitive::<Int64Type>().clone();
        Ok(Cow::Owned(Delta { rows: filter_record_batch(&delta.rows, &keep)?, weights }))
    }

    /// The rows of a delta in order, each once, and of each how many bytes encode its partition.
    fn encode(&self, delta: &Delta) -> Result<(Encoded, Vec<usize>)> {
        let columns = self.columns.iter().map(|column| Arc::clone(delta.rows.column(*column)));
        let columns: Vec<ArrayRef> = columns.collect();
        let rows = self.converter.convert_columns(&columns)?;
        let partitions = self.partition.lens(&columns, rows.num_rows())?;
        let ties = if self.limit.has_ties { self.ties.lens(&columns, rows.num_rows())? } else { Vec::new() };
        let mut order: Vec<usize> = (0..rows.num_rows()).collect();
        order.sort_unstable_by(|a, b| rows.row(*a).cmp(&rows.row(*b)));
        let (mut encoded, mut lens) = (Encoded::default(), Vec::with_capacity(order.len()));
        encoded.data.reserve(rows.size());
        for same in order.chunk_by(|a, b| rows.row(*a) == rows.row(*b)) {
            let weight = same.iter().map(|row| delta.weights.value(*row)).sum::<i64>();
            if weight == 0 {
                continue;
            }
            if weight < 0 && self.limit.append_only {
                return internal_err!("rows are taken back where they can only be added");
            }
            let suffix = ties.get(same[0]).map(|len| (*len as u32).to_be_bytes());
            encoded.push(&[rows.row(same[0]).data(), suffix.as_ref().map_or(&[], |len| len)], weight);
            lens.push(partitions[same[0]]);
        }
        Ok((encoded, lens))
    }

    /// The encoding of the first partition's time if that has ended by then.
    fn first_time(&self, after: i64, until: i64) -> Result<Option<Vec<u8>>> {
        let Some((first, _)) = self.rows.from(&[]).next() else { return Ok(None) };
        let parser = self.converter.parser();
        let columns = self.converter.convert_rows([parser.parse(self.limit.values(first))])?;
        let time = nanoseconds(&columns[0])?;
        if time.is_null(0) || time.value(0).saturating_add(after) > until {
            return Ok(None);
        }
        let options = SortOptions::new(false, false);
        let field = SortField::new_with_options(columns[0].data_type().clone(), options);
        let encoded = RowConverter::new(vec![field])?.convert_columns(&columns[..1])?;
        Ok(Some(encoded.row(0).data().to_vec()))
    }

    fn decode(&self, output: &[Output]) -> Result<Delta> {
        let parser = self.converter.parser();
        let rows = output.iter().map(|output| parser.parse(self.limit.values(output.row)));
        let decoded = self.converter.convert_rows(rows)?;
        let mut columns = decoded.clone();
        for (column, values) in self.columns.iter().zip(decoded) {
            columns[*column] = values;
        }
        for number in &self.limit.numbers {
            let numbers = output.iter().map(|output| output.numbers[*number as usize]);
            columns.push(Arc::new(UInt64Array::from_iter_values(numbers)));
        }
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let weights = output.iter().map(|output| output.weight);
        Ok(Delta { rows, weights: Int64Array::from_iter_values(weights) })
    }
}

#[async_trait]
impl Operator for TopK {
    async fn start(&mut self, _: &Run<'_>) -> Result<Delta> {
        Ok(Delta::empty(&self.schema))
    }

    async fn prepare(&mut self, inputs: &[Delta], _: &Run<'_>) -> Result<()> {
        self.prepared = None;
        let [delta] = inputs else { return internal_err!("the first rows of {} inputs", inputs.len()) };
        let (encoded, lens) = self.encode(self.candidates(delta)?.as_ref())?;
        let changes: Vec<_> = encoded.changes().collect();
        let mut effect = Effect::default();
        let prefix = |place: usize| &changes[place].row[..lens[place]];
        let mut first = 0;
        while first < changes.len() {
            let others = (first + 1..changes.len()).find(|place| prefix(*place) != prefix(first));
            let end = others.unwrap_or(changes.len());
            partition::change(&self.rows, prefix(first), &changes[first..end], &self.limit, &mut effect)?;
            first = end;
        }
        let mut changes = Encoded::default();
        effect.state.iter().for_each(|change| changes.push(&[change.row], change.weight));
        self.prepared = Some(Prepared { output: self.decode(&effect.output)?, changes });
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(prepared) = self.prepared.take() else { return Ok(Delta::empty(&self.schema)) };
        for change in prepared.changes.changes() {
            self.rows.change(change.row, change.weight);
        }
        Ok(prepared.output)
    }

    /// Frees the partitions that are final. No row of one may come or go later: it would count as the first.
    fn advance(&mut self, final_until: &[i64]) -> Result<()> {
        let (Some(bound), [until]) = (&self.bound, final_until) else { return Ok(()) };
        while let Some(time) = self.first_time(bound.after, *until)? {
            self.rows.remove_all(&time);
        }
        Ok(())
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        saver.mark("first rows")?;
        let TopK {
            limit: _,
            columns: _,
            converter: _,
            partition: _,
            ties: _,
            bound: _,
            schema: _,
            rows,
            prepared: _,
        } = self;
        rows.save(saver)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("first rows")?;
        self.rows = SortedRows::load(loader)?;
        Ok(())
    }

    fn held_rows(&self) -> usize {
        self.rows.len() as usize
    }

    fn bytes(&self) -> usize {
        self.rows.bytes()
    }
}
