//! For the tests of operators: rows and changes at random, and what plain DataFusion makes of all rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result;
use rand::{Rng, RngExt};

use super::{Delta, Operator, Run};
use crate::engine::input::{Inputs, Runner};
use crate::engine::session;

/// Among them those that are equal in one way and not in another.
const FLOATS: [f64; 6] = [0.0, -0.0, f64::NAN, -f64::NAN, 1.5, f64::NEG_INFINITY];

pub fn schema() -> SchemaRef {
    let list = DataType::new_list(DataType::Int32, true);
    let structs = DataType::Struct([Arc::new(Field::new("a", DataType::Utf8, true))].into_iter().collect());
    let types = [DataType::Int32, DataType::Float64, DataType::Utf8, list, structs];
    let fields = types.into_iter().enumerate().map(|(i, t)| Field::new(format!("c{i}"), t, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Rows of few values, so that many are equal in some columns, or in all.
pub fn rows(random: &mut impl Rng, count: usize) -> RecordBatch {
    let mut some = |kinds: i32| -> Vec<Option<i32>> {
        (0..count).map(|_| Some(random.random_range(0..kinds)).filter(|value| *value > 0)).collect()
    };
    let strings = |values: Vec<Option<i32>>| -> StringArray {
        values.into_iter().map(|value| value.map(|value| "ab".repeat(value as usize % 3 * 9))).collect()
    };
    let floats = some(7).into_iter().map(|value| value.map(|value| FLOATS[value as usize - 1]));
    let lists = some(4).into_iter().map(|value| value.map(|value| vec![Some(value); value as usize - 1]));
    let nulls: NullBuffer = some(3).iter().map(Option::is_some).collect();
    let field = Field::new("a", DataType::Utf8, true);
    let structs = StructArray::new(vec![field].into(), vec![Arc::new(strings(some(3)))], Some(nulls));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(some(6))),
        Arc::new(floats.collect::<Float64Array>()),
        Arc::new(strings(some(5))),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)),
        Arc::new(structs),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// What a multiset of rows holds, by their encodings.
pub fn counts(rows: &RecordBatch, weights: &[i64]) -> BTreeMap<Vec<u8>, i64> {
    let fields = rows.schema_ref().fields().iter().map(|field| SortField::new(field.data_type().clone()));
    let converter = RowConverter::new(fields.collect()).unwrap();
    let encoded = converter.convert_columns(rows.columns()).unwrap();
    let mut counts = BTreeMap::new();
    for (row, weight) in weights.iter().enumerate() {
        *counts.entry(encoded.row(row).data().to_vec()).or_insert(0) += weight;
    }
    counts.retain(|_, count| *count != 0);
    counts
}

/// The rows that are there.
pub struct Live(RecordBatch);

impl Default for Live {
    fn default() -> Live {
        Live(RecordBatch::new_empty(schema()))
    }
}

impl Live {
    pub fn rows(&self) -> &RecordBatch {
        &self.0
    }

    /// So many rows come, and some go: of those there, or of those that come with them.
    pub fn change(&mut self, random: &mut impl Rng, size: usize, append_only: bool) -> Delta {
        let come = rows(random, size);
        let gone = if append_only { 0 } else { random.random_range(0..=size.min(self.0.num_rows())) };
        let all = concat_batches(&schema(), [&self.0, &come]).unwrap();
        let mut places: Vec<u32> = (0..all.num_rows() as u32).collect();
        let mut go = Vec::new();
        (0..gone).for_each(|_| go.push(places.remove(random.random_range(0..places.len()))));
        let go = take_record_batch(&all, &UInt32Array::from(go)).unwrap();
        self.0 = take_record_batch(&all, &UInt32Array::from(places)).unwrap();
        let delta = Delta::of_change(&go, &come).unwrap();
        if random.random_bool(0.5) || delta.is_empty() {
            return delta;
        }
        // The same with a row that comes twice before, and goes twice after.
        let again = take_record_batch(&delta.rows, &UInt32Array::from(vec![0])).unwrap();
        let twice = |weight: i64| Delta { rows: again.clone(), weights: vec![weight].into() };
        Delta::concat(&schema(), &[twice(2), delta, twice(-2)]).unwrap()
    }
}

/// What a query gives over tables.
pub async fn query(sql: &str, tables: &[(&str, &RecordBatch)]) -> RecordBatch {
    let session = session::continuous();
    for (name, rows) in tables {
        session.register_batch(*name, (*rows).clone()).unwrap();
    }
    let plan = session.sql(sql).await.unwrap();
    let schema = Arc::new(plan.schema().as_arrow().clone());
    concat_batches(&schema, &plan.collect().await.unwrap()).unwrap()
}

/// An operator, and what it has put out.
pub struct Operated<O> {
    pub operator: O,
    pub output: BTreeMap<Vec<u8>, i64>,
    runner: Runner,
}

impl<O: Operator> Operated<O> {
    pub fn new(operator: O) -> Operated<O> {
        Operated { operator, output: BTreeMap::new(), runner: Runner::new(&session::continuous()) }
    }

    pub async fn try_start(&mut self) -> Result<Delta> {
        let run = Run {
            runner: &self.runner,
            inputs: &Inputs::default(),
            watermarks: &std::collections::BTreeMap::new(),
        };
        self.operator.start(&run).await
    }

    pub async fn start(&mut self) {
        let rows = self.try_start().await.unwrap();
        self.add(&rows);
    }

    pub async fn prepare(&mut self, deltas: &[Delta]) -> Result<()> {
        let run = Run {
            runner: &self.runner,
            inputs: &Inputs::default(),
            watermarks: &std::collections::BTreeMap::new(),
        };
        self.operator.prepare(deltas, &run).await
    }

    pub async fn apply(&mut self, deltas: &[Delta]) -> Delta {
        self.prepare(deltas).await.unwrap();
        let output = self.operator.commit().unwrap();
        self.add(&output);
        output
    }

    fn add(&mut self, output: &Delta) {
        for (row, weight) in counts(&output.rows, output.weights.values()) {
            let count = self.output.entry(row).or_insert(0);
            *count += weight;
            assert!(*count >= 0);
        }
        self.output.retain(|_, count| *count != 0);
    }
}
