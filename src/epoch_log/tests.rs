//! What is written is read back the same, and what was changed is found.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::*;
use crate::reference::Version;
use crate::source::{Bounds, MemoryMessage, MemoryTopic};

fn rows(names: &[Option<&str>], first: i64) -> RecordBatch {
    let numbers: Vec<i64> = (first..).take(names.len()).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("name", Arc::new(StringArray::from(names.to_vec())) as ArrayRef, true),
        ("number", Arc::new(Int64Array::from(numbers)) as ArrayRef, true),
    ])
    .unwrap()
}

fn all(batches: &[RecordBatch]) -> Option<RecordBatch> {
    let first = batches.first()?;
    let all = arrow::compute::concat_batches(&first.schema(), batches).unwrap();
    (all.num_rows() > 0).then_some(all)
}

/// Writes a table as it was read again and again, and reads it back; bytes of each change.
fn there_and_back(versions: &[Vec<RecordBatch>]) -> Vec<usize> {
    let (mut written, mut read) = (LoggedTables::default(), LoggedTables::default());
    let mut bytes = Vec::new();
    for (reading, rows) in (1..).zip(versions) {
        let version = Version { reading, lookups: 0 };
        let change = TableChange::Read { table: "t".into(), version, rows: rows.clone() };
        let (entries, pieces) = written.encode(&[change]).unwrap();
        let back = read.take(&entries, &pieces.concat()).unwrap();
        let [TableChange::Read { version: back_version, rows: back, .. }] = &back[..] else {
            panic!("{back:?}")
        };
        assert_eq!((*back_version, all(back)), (version, all(rows)), "reading {reading}");
        bytes.push(pieces.concat().len());
    }
    bytes
}

#[test]
fn a_table_that_was_read_again_is_told_by_what_has_changed() {
    let names: Vec<String> = (0..5000).map(|i| format!("name {i}")).collect();
    let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    let whole = rows(&names, 0);
    // Postgres gives an updated row at the end.
    let moved = vec![whole.slice(0, 700), whole.slice(701, 4299), rows(&[Some("moved")], 700)];
    let doubled = vec![whole.slice(10, 5), whole.slice(10, 5), rows(&[None, Some("")], 3)];
    let gone: Vec<RecordBatch> = vec![whole.slice(0, 0)];
    let versions = [vec![whole.clone()], moved, doubled, gone, vec![], vec![whole.slice(0, 3)], vec![whole]];
    let bytes = there_and_back(&versions);
    assert!(bytes[0] > 60_000 && bytes[1] < 2_000, "{bytes:?}");
    // Other columns: nothing is in common.
    let other = rows(&[Some("a")], 1).project(&[1]).unwrap();
    there_and_back(&[versions[0].clone(), vec![other], versions[1].clone()]);
}

#[test]
fn looked_up_rows_are_read_back() {
    let version = Version { reading: 3, lookups: 2 };
    let change = TableChange::Found {
        table: "t".into(),
        version,
        key: vec!["name".into()],
        rows: vec![rows(&[Some("a"), None], 1)],
    };
    let (entries, pieces) = LoggedTables::default().encode(&[change]).unwrap();
    let back = LoggedTables::default().take(&entries, &pieces.concat()).unwrap();
    let [TableChange::Found { version: v, key, rows: found, .. }] = &back[..] else { panic!("{back:?}") };
    assert_eq!((*v, key[0].as_str(), found[0].num_rows()), (version, "name", 2));
}

fn log(entries: Vec<Entry>) -> (MemoryTopic, Vec<Vec<u8>>) {
    let mut chain = Chain::after("test", None);
    let values = entries.into_iter().flat_map(|entry| chain.records(entry, &[]).unwrap());
    let values: Vec<Vec<u8>> = values.map(|record| record.value.unwrap()).collect();
    (topic_of(&values), values)
}

fn topic_of(values: &[Vec<u8>]) -> MemoryTopic {
    let topic = MemoryTopic::new("log", 1);
    for value in values {
        let message =
            MemoryMessage { key: Some(ENTRY_KEY.into()), payload: Some(value.clone()), ..Default::default() };
        topic.push(message);
    }
    topic
}

fn batch(epoch: u64, from: i64, to: i64, rejected: &[i64]) -> Entry {
    let mut set = OffsetSet::default();
    rejected.iter().for_each(|offset| set.insert(*offset));
    let batch = BatchEntry {
        source: "votes".into(),
        ranges: BTreeMap::from([(3, (from, to))]),
        rejected: BTreeMap::from([("json".into(), BTreeMap::from([(3, set)]))]),
        unread: vec![1],
        ..BatchEntry::default()
    };
    Entry { kind: Kind::Batch, epoch, batch: Some(batch), ..Entry::default() }
}

fn start(epoch: u64) -> Entry {
    Entry { kind: Kind::Start, epoch, ..Entry::default() }
}

#[test]
fn a_log_says_what_was_counted_since_the_count_began() {
    let run = Entry { kind: Kind::Run, ..Entry::default() };
    let entries = vec![run.clone(), start(1), batch(2, 0, 5, &[1]), run, start(3), batch(4, 2, 9, &[4, 8])];
    let (topic, _) = log(entries.clone());
    let summary = summarize(&mut topic.source(Bounds::UntilNow), "log").unwrap();
    assert_eq!((summary.epoch, summary.epochs, summary.written), (4, 2, false));
    let counted = &summary.counted["votes"];
    let position = counted.positions[&3];
    assert_eq!((position.first, position.next), (2, 9));
    assert_eq!(counted.rejected[&3].len(), 2);
    assert!(counted.rejected[&3].contains(8) && !counted.rejected[&3].contains(1));
    let mut reader = LogReader::new(Box::new(topic.source(Bounds::UntilNow)), "log", &summary);
    let mut read = Vec::new();
    while let Some(logged) = reader.next_entry().unwrap() {
        read.push((logged.entry.kind, logged.entry.epoch, logged.entry.batch));
    }
    let expected: Vec<_> = entries[4..].iter().map(|e| (e.kind, e.epoch, e.batch.clone())).collect();
    assert_eq!(read, expected);
}

#[test]
fn an_entry_that_was_changed_or_left_out_is_found_unless_the_count_began_later() {
    let (_, values) = log(vec![start(1), batch(2, 0, 5, &[]), batch(3, 5, 7, &[]), batch(4, 7, 8, &[])]);
    let error = |values: &[Vec<u8>]| {
        summarize(&mut topic_of(values).source(Bounds::UntilNow), "log").err().map(|error| error.to_string())
    };
    assert_eq!(error(&values), None);
    let left_out = [values[0].clone(), values[2].clone(), values[3].clone()];
    assert!(error(&left_out).unwrap().contains("the log was changed"));
    let mut changed = values.clone();
    changed[1] = String::from_utf8(changed[1].clone()).unwrap().replace("[0,5]", "[0,4]").into_bytes();
    assert!(error(&changed).unwrap().contains("--rebuild"));
    assert!(error(&values[1..]).unwrap().contains("lost the beginning"));
    // A rebuild goes on after the damage.
    let mut chain = Chain::after("test", values.last().map(Vec::as_slice));
    let records = chain.records(start(5), &[]).unwrap();
    changed.extend(records.into_iter().filter_map(|record| record.value));
    assert_eq!(error(&changed), None);
}
