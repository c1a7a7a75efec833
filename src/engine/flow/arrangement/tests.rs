//! Arrangements against a plain list of rows, under random insertions and deletions.

use std::sync::Arc;

use arrow::array::{Float64Array, Int32Array, Int64Array, ListArray, StringArray, StructArray};
use arrow::array::{TimestampMillisecondArray, new_null_array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use rand::prelude::*;

use super::*;
use crate::hash_bits::FewHashes;

/// A row: two key columns, a text, a list.
#[derive(Clone, Debug)]
struct Row {
    number: Option<i64>,
    float: Option<f64>,
    text: Option<&'static str>,
    list: Option<Vec<Option<i32>>>,
}

fn structs() -> Fields {
    vec![Field::new("number", DataType::Int32, true)].into()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("c0", DataType::Utf8, true),
        Field::new("c1", DataType::Float64, true),
        Field::new("c2", DataType::Int64, true),
        Field::new("c3", DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true))), true),
        Field::new("c4", DataType::Utf8View, true),
        Field::new("c5", DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)), true),
        Field::new("c6", DataType::Struct(structs()), true),
    ]))
}

fn batch(rows: &[Row]) -> RecordBatch {
    let texts = StringArray::from_iter(rows.iter().map(|row| row.text));
    let numbers = Int32Array::from_iter(rows.iter().map(|row| row.number.map(|number| number as i32)));
    let nulls = rows.iter().map(|row| row.float.is_some()).collect::<Vec<_>>();
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(texts.clone()),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.float))),
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.number))),
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
                rows.iter().map(|row| row.list.clone()),
            )),
            cast(&texts, &DataType::Utf8View).unwrap(),
            cast(&texts, schema().field(5).data_type()).unwrap(),
            Arc::new(StructArray::new(structs(), vec![Arc::new(numbers)], Some(nulls.into()))),
        ],
    )
    .unwrap()
}

fn draw(random: &mut StdRng) -> Row {
    let floats =
        [None, Some(0.0), Some(-0.0), Some(f64::NAN), Some(-f64::NAN), Some(1.5), Some(f64::INFINITY)];
    let lists = [None, Some(vec![]), Some(vec![None]), Some(vec![Some(1)]), Some(vec![Some(1), None])];
    Row {
        number: (random.random_range(0..6) > 0).then(|| random.random_range(0..4)),
        float: floats[random.random_range(0..floats.len())],
        text: [None, Some(""), Some("a"), Some("a text of more than twelve bytes")]
            [random.random_range(0..4)],
        list: lists[random.random_range(0..lists.len())].clone(),
    }
}

fn same_bits(one: &Row, other: &Row) -> bool {
    let bits = |row: &Row| row.float.map(f64::to_bits);
    one.number == other.number && bits(one) == bits(other) && one.text == other.text && one.list == other.list
}

/// By number and float.
fn same_key(one: &Row, other: &Row, nulls_equal: bool) -> bool {
    let floats = match (one.float, other.float) {
        (Some(one), Some(other)) => one == other || one.to_bits() == other.to_bits(),
        (one, other) => nulls_equal && one.is_none() && other.is_none(),
    };
    floats && one.number == other.number && (nulls_equal || one.number.is_some())
}

fn shown(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap());
    let columns: Vec<_> = columns.collect();
    let text = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(text).collect()
}

fn all(snapshot: &Snapshot) -> RecordBatch {
    let batches: Vec<_> = snapshot.batches().collect::<Result<_>>().unwrap();
    concat_batches(&schema(), &batches).unwrap()
}

fn random_changes(seed: u64, nulls_equal: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut arrangement = Arrangement::new(schema(), vec![2, 1], true, nulls_equal);
    let mut rows: Vec<Row> = Vec::new();
    let mut old: Option<(Snapshot, Vec<String>)> = None;
    for step in 0..60 {
        let new: Vec<Row> = (0..random.random_range(0..30)).map(|_| draw(&mut random)).collect();
        let slots = arrangement.insert(&batch(&new)).unwrap();
        assert_eq!(shown(&arrangement.gather(&slots, None).unwrap()), shown(&batch(&new)));
        rows.extend(new);
        // Takes back some rows, different ones, one or several times each.
        let (mut sought, mut counts): (Vec<Row>, Vec<u32>) = (vec![], vec![]);
        for _ in 0..random.random_range(0..25) {
            if rows.is_empty() {
                break;
            }
            let row = rows[random.random_range(0..rows.len())].clone();
            let there = rows.iter().filter(|other| same_bits(&row, other)).count();
            if sought.iter().any(|other| same_bits(&row, other)) {
                continue;
            }
            counts.push(random.random_range(1..=there) as u32);
            sought.push(row);
        }
        let slots = arrangement.find(&batch(&sought), &counts).unwrap();
        let mut found = Vec::new();
        for (row, count) in sought.iter().zip(&counts) {
            found.extend(std::iter::repeat_n(row.clone(), *count as usize));
            for _ in 0..*count {
                let newest = rows.iter().rposition(|other| same_bits(row, other)).unwrap();
                rows.remove(newest);
            }
        }
        assert_eq!(shown(&arrangement.gather(&slots, None).unwrap()), shown(&batch(&found)));
        arrangement.delete(&slots).unwrap();
        assert_eq!(arrangement.len(), rows.len());
        let now = shown(&batch(&rows));
        assert_eq!(shown(&all(&arrangement.snapshot())), now, "step {step}: rows, in their order");

        let sought: Vec<Row> = (0..5).map(|_| draw(&mut random)).collect();
        look(&arrangement, &rows, &sought, nulls_equal);
        let other = draw(&mut random);
        let there = rows.iter().filter(|row| same_bits(row, &other)).count() as u32;
        let sought = batch(std::slice::from_ref(&other));
        assert_eq!(arrangement.find(&sought, &[there]).unwrap().len(), there as usize);
        let error = arrangement.find(&sought, &[there + 1]).unwrap_err().to_string();
        assert!(error.contains("a row is taken back that is not there"), "{error}");

        if let Some((snapshot, then)) = &old {
            assert_eq!(&shown(&all(snapshot)), then, "a snapshot stays as it was");
        }
        if step % 7 == 0 {
            old = Some((arrangement.snapshot(), now));
        }
    }
    assert!(arrangement.bytes() > arrangement.len() * 50);
}

/// Compares what is found by key.
fn look(arrangement: &Arrangement, rows: &[Row], sought: &[Row], nulls_equal: bool) {
    let keys = Keys::of(&batch(sought), &[2, 1]).unwrap();
    let matches = arrangement.probe(&keys).unwrap();
    let mut got: Vec<(u32, String)> = matches
        .probe
        .values()
        .iter()
        .copied()
        .collect::<Vec<_>>()
        .into_iter()
        .zip(shown(&arrangement.gather(matches.slot.values(), None).unwrap()))
        .collect();
    let mut expected = Vec::new();
    for (position, key) in sought.iter().enumerate() {
        let same: Vec<Row> = rows.iter().filter(|row| same_key(key, row, nulls_equal)).cloned().collect();
        expected.extend(shown(&batch(&same)).into_iter().map(|row| (position as u32, row)));
    }
    got.sort();
    expected.sort();
    assert_eq!(got, expected);

    for (position, slot) in arrangement.first(&keys, |_| true).unwrap().into_iter().enumerate() {
        let there = expected.iter().any(|(other, _)| *other == position as u32);
        assert_eq!(slot != NIL, there);
        if there {
            let row = shown(&arrangement.gather(&[slot], None).unwrap()).remove(0);
            assert!(expected.contains(&(position as u32, row)));
            // Without the first ones none is left.
            let of = |slot: u32| matches.slot.values().contains(&slot);
            assert_eq!(arrangement.first(&keys, |slot| !of(slot)).unwrap()[position], NIL);
        }
    }

    let touched = arrangement.touched(&keys);
    let everything = arrangement.slots();
    let positions: Vec<_> =
        touched.iter().map(|slot| everything.iter().position(|other| other == slot).unwrap()).collect();
    assert!(positions.is_sorted(), "rows of a key come in the order in which they came");
    let of_keys = matches.slot.values().iter().all(|slot| touched.contains(slot));
    assert!(of_keys, "all rows of a key are touched");
}

#[test]
fn it_holds_the_rows_of_a_plain_list_under_random_changes() {
    for seed in 0..6 {
        random_changes(seed, seed % 2 == 0);
    }
}

#[test]
fn hashes_that_collide_change_no_answer() {
    for seed in 10..14 {
        let _few = FewHashes::begin();
        random_changes(seed, seed % 2 == 0);
    }
}

#[test]
fn without_a_key_all_rows_match() {
    let mut arrangement = Arrangement::new(schema(), vec![], false, false);
    let row = Row { number: None, float: None, text: None, list: None };
    arrangement.insert(&batch(&vec![row.clone(); 3])).unwrap();
    let keys = Keys::of(&batch(&vec![row; 2]), &[]).unwrap();
    assert_eq!(arrangement.probe(&keys).unwrap().probe.values(), &[0, 0, 0, 1, 1, 1]);
    assert!(arrangement.first(&keys, |_| true).unwrap().iter().all(|slot| *slot == 2));
    let no_columns = Arrangement::new(Arc::new(Schema::empty()), vec![], true, false);
    assert_eq!(no_columns.touched(&keys).len(), 0);
}

fn numbers(from: i64, to: i64) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values((from..to).map(|i| i % 10_007))),
        Arc::new(Int64Array::from_iter_values(from..to)),
    ];
    let fields = ["c0", "c1"].map(|name| Field::new(name, DataType::Int64, true));
    RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap()
}

fn values(arrangement: &Arrangement) -> Vec<i64> {
    let snapshot = arrangement.snapshot();
    let batches = snapshot.batches().map(|batch| batch.unwrap());
    batches
        .flat_map(|batch| {
            let column = batch.column(1).as_any().downcast_ref::<Int64Array>().unwrap();
            column.values().to_vec()
        })
        .collect()
}

#[test]
fn large_chunks_are_sealed_compacted_and_merged() {
    let mut arrangement = Arrangement::new(numbers(0, 0).schema(), vec![0], true, true);
    arrangement.insert(&numbers(0, 300_000)).unwrap();
    for from in (300_000..600_000).step_by(1000) {
        arrangement.insert(&numbers(from, from + 1000)).unwrap();
    }
    assert_eq!(values(&arrangement), (0..600_000).collect::<Vec<_>>());
    assert!(arrangement.snapshot().parts.len() < 16, "chunks are merged");
    let full = arrangement.bytes();
    let (snapshot, before) = (arrangement.snapshot(), arrangement.snapshot().parts.len());
    // All but each 50th row goes, from the middle outwards.
    let gone: Vec<i64> =
        (0..300_000).flat_map(|i| [300_000 + i, 299_999 - i]).filter(|i| i % 50 != 0).collect();
    for gone in gone.chunks(3000) {
        let rows = Int64Array::from(gone.to_vec());
        let keys = Int64Array::from_iter_values(gone.iter().map(|i| i % 10_007));
        let rows =
            RecordBatch::try_new(numbers(0, 0).schema(), vec![Arc::new(keys), Arc::new(rows)]).unwrap();
        let slots = arrangement.find(&rows, &vec![1; gone.len()]).unwrap();
        arrangement.delete(&slots).unwrap();
    }
    assert_eq!(values(&arrangement), (0..600_000).step_by(50).collect::<Vec<_>>());
    assert!(arrangement.snapshot().parts.len() < before.min(6), "small neighbours are merged");
    assert_eq!(snapshot.batches().map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 600_000);
    let slots = arrangement.slots().len() as u32;
    // What is freed is used again.
    for from in (600_000..1_180_000).step_by(10_000) {
        arrangement.insert(&numbers(from, from + 10_000)).unwrap();
    }
    assert!(arrangement.slots().iter().all(|slot| *slot < 600_000));
    assert_eq!(arrangement.len(), slots as usize + 580_000);
    assert!(arrangement.bytes() < full * 5 / 4, "{} and {full}", arrangement.bytes());
}

#[test]
fn rows_go_by_their_time_whatever_its_type_and_order() {
    let types = [
        DataType::Int64,
        DataType::Date32,
        DataType::Date64,
        DataType::Timestamp(TimeUnit::Second, None),
        DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into())),
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(TimeUnit::Nanosecond, None),
    ];
    for (seed, data_type) in types.into_iter().enumerate() {
        let unit_ms = if data_type == DataType::Date32 { 86_400_000 } else { 1000 };
        let schema = Arc::new(Schema::new(vec![
            Field::new("c0", DataType::Int32, true),
            Field::new("c1", data_type.clone(), true),
        ]));
        let mut random = StdRng::seed_from_u64(seed as u64);
        let retracts = seed % 2 == 0;
        let arrangement = Arrangement::new(Arc::clone(&schema), vec![0], retracts, false);
        let mut arrangement = arrangement.with_time(1, 5 * unit_ms * 1_000_000).unwrap();
        let mut held: Vec<Option<i64>> = Vec::new();
        for step in 0..200i64 {
            let times: Vec<Option<i64>> = (0..random.random_range(0..40))
                .map(|_| (random.random_range(0..10) > 0).then(|| step + random.random_range(-20..20)))
                .collect();
            let ms = TimestampMillisecondArray::from_iter(times.iter().map(|t| t.map(|t| t * unit_ms)));
            let ms: ArrayRef = Arc::new(ms);
            let column = match &data_type {
                DataType::Int64 => {
                    Arc::new(Int64Array::from_iter(times.iter().map(|t| t.map(|t| t * unit_ms * 1_000_000))))
                }
                other => cast(&ms, other).unwrap(),
            };
            let key = Int32Array::from_iter_values(times.iter().map(|t| t.unwrap_or(0) as i32 % 3));
            let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(key), column]).unwrap();
            arrangement.insert(&rows).unwrap();
            held.extend(times);
            if step % 3 == 0 {
                let before = held.len();
                held.retain(|time| time.is_none_or(|time| time + 5 > step - 10));
                let until = (step - 10) * unit_ms * 1_000_000;
                assert_eq!(arrangement.evict(until).unwrap(), before - held.len(), "{data_type}");
                assert_eq!(arrangement.evict(until).unwrap(), 0);
                assert_eq!(arrangement.evict(i64::MIN).unwrap(), 0);
            }
            assert_eq!(arrangement.len(), held.len());
        }
        let keys = Keys::of(&arrangement.gather(&arrangement.slots(), None).unwrap(), &[0]).unwrap();
        let found = arrangement.first(&keys, |_| true).unwrap();
        assert!(found.iter().all(|slot| *slot != NIL), "what is held is found");
        assert!(!held.is_empty() && held.len() < 1500);
    }
    let text = Arrangement::new(schema(), vec![], false, false).with_time(0, 0);
    assert!(text.unwrap_err().to_string().contains("Utf8 is no event time"));
}

#[test]
fn rows_whose_end_is_beyond_time_stay() {
    let schema = Arc::new(Schema::new(vec![Field::new("c0", DataType::Int64, true)]));
    let arrangement = Arrangement::new(Arc::clone(&schema), vec![], true, false);
    let mut arrangement = arrangement.with_time(0, i64::MAX).unwrap();
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![1, i64::MAX]))]);
    arrangement.insert(&rows.unwrap()).unwrap();
    let nulls = RecordBatch::try_new(Arc::clone(&schema), vec![new_null_array(&DataType::Int64, 2)]);
    arrangement.insert(&nulls.unwrap()).unwrap();
    assert_eq!(arrangement.evict(i64::MAX - 1).unwrap(), 0);
    assert_eq!(arrangement.len(), 4);
}
