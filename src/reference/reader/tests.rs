//! The reading task over tables in memory, which fail, hang and lose their connection.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::*;
use crate::decode::ForeignKeys;
use crate::reference::{Fault, MemoryStore, NoStore, StoreError, TableDef, Version};

const PACE: Pace = Pace {
    refresh: Duration::from_secs(3600),
    debounce: Duration::from_millis(2),
    retry_first: Duration::from_millis(2),
    retry_max: Duration::from_millis(8),
};

fn people(names: &[&str]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(0..names.len() as i64);
    let names = StringArray::from(names.to_vec());
    RecordBatch::try_from_iter([("name", Arc::new(names) as ArrayRef), ("id", Arc::new(ids))]).unwrap()
}

fn key(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| column.to_string()).collect()
}

fn names(values: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([("name", Arc::new(StringArray::from(values.to_vec())) as ArrayRef)]).unwrap()
}

async fn wanted(store: &MemoryStore) -> Vec<Wanted> {
    let wanted = |def: TableDef| Wanted {
        def: Arc::new(def),
        columns: key(&["id", "name"]),
        keys: vec![key(&["name"]), key(&["id"])],
    };
    store.tables().await.unwrap().into_iter().map(wanted).collect()
}

async fn start(store: &MemoryStore, pace: Pace) -> (ReferenceReader, References) {
    ReferenceReader::start(Arc::new(store.clone()), wanted(store).await, pace, &Default::default())
        .await
        .unwrap()
}

fn with_people(names: &[&str]) -> MemoryStore {
    let store = MemoryStore::new();
    store.set("people", people(names));
    store
}

fn has(references: &References, name: &str) -> bool {
    references.contains("people", &key(&["name"]), names(&[name]).columns()).unwrap().value(0)
}

#[tokio::test]
async fn an_announced_change_comes_as_a_new_version() {
    let store = with_people(&["ann"]);
    let (mut reader, mut references) = start(&store, PACE).await;
    assert!(has(&references, "ann") && !has(&references, "bob"));
    store.set("people", people(&["ann", "bob"]));
    let table = reader.next().await;
    assert_eq!(table.version, Version { reading: 2, lookups: 0 });
    assert!(references.set(table) && has(&references, "bob"));
}

#[tokio::test]
async fn changes_that_come_together_are_read_once() {
    let store = with_people(&["ann"]);
    let pace = Pace { debounce: Duration::from_millis(50), ..PACE };
    let (mut reader, _) = start(&store, pace).await;
    for _ in 0..100 {
        store.announce("people");
    }
    reader.next().await;
    assert_eq!(store.loads(), 2, "one at the start, one for all announcements");
}

#[tokio::test]
async fn a_change_during_a_reading_is_read_after_it() {
    let store = with_people(&["ann"]);
    let (mut reader, _) = start(&store, PACE).await;
    store.set_fault(Fault::Hangs);
    store.announce("people");
    while store.loads() < 2 {
        tokio::task::yield_now().await;
    }
    // Its rows may be those of before.
    store.announce("people");
    // The task hears of it while the reading hangs.
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.set_fault(Fault::None);
    reader.next().await;
    reader.next().await;
    assert_eq!(store.loads(), 3);
}

#[tokio::test]
async fn rows_that_are_as_before_are_no_new_version() {
    let store = with_people(&["ann"]);
    let (mut reader, mut references) = start(&store, PACE).await;
    store.announce("people");
    let table = reader.next().await;
    assert!(!references.set(table), "nothing over it need be computed anew");
}

#[tokio::test]
async fn a_table_without_trigger_is_read_now_and_then() {
    let store = MemoryStore::new();
    store.set_silently("people", people(&["ann"]));
    assert_eq!(store.without_trigger(&key(&["people"])).await.unwrap(), ["people"]);
    let (mut reader, mut references) =
        start(&store, Pace { refresh: Duration::from_millis(5), ..PACE }).await;
    store.set_silently("people", people(&["bob"]));
    while !has(&references, "bob") {
        references.set(reader.next().await);
    }
}

#[tokio::test]
async fn while_the_store_is_away_the_rows_stay_and_the_error_is_seen() {
    let store = with_people(&["ann"]);
    let (mut reader, mut references) = start(&store, PACE).await;
    let mut health = reader.health();
    assert_eq!(health.borrow()["people"].error, None);
    store.set_fault(Fault::Away);
    store.set("people", people(&["bob"]));
    let error = |health: &BTreeMap<String, Health>| health["people"].error.clone();
    let seen = health.wait_for(|health| error(health).is_some()).await.unwrap().clone();
    assert_eq!(error(&seen).unwrap(), "postgres: reading table people: connection refused");
    assert!(has(&references, "ann"));
    let status = references.status(&seen);
    assert_eq!(status[0].error, error(&seen));
    // Several tries fail; then it answers.
    while store.loads() < 5 {
        tokio::task::yield_now().await;
    }
    store.set_fault(Fault::None);
    assert!(references.set(reader.next().await) && has(&references, "bob"));
    health.wait_for(|health| error(health).is_none()).await.unwrap();
}

#[tokio::test]
async fn tries_become_rarer_up_to_a_limit() {
    let pace = Pace::with_refresh(Duration::from_secs(300));
    let mut failures = Failures::default();
    let waits: Vec<u64> = (0..9).map(|_| failures.failed(pace).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert!(failures.is_to_be_told() && !failures.is_to_be_told(), "once, then after a minute");
}

#[tokio::test]
async fn one_table_that_hangs_holds_up_no_other() {
    let store = with_people(&["ann"]);
    store.set("places", people(&["here"]));
    let (mut reader, _) = start(&store, PACE).await;
    store.set_fault_of("people", Fault::Hangs);
    store.announce("people");
    store.set("places", people(&["there"]));
    assert_eq!(reader.next().await.name(), "places");
    store.set_fault_of("people", Fault::None);
    assert_eq!(reader.next().await.name(), "people");
}

#[tokio::test]
async fn after_a_lost_connection_every_table_is_read() {
    let store = with_people(&["ann"]);
    let (mut reader, mut references) = start(&store, PACE).await;
    store.set_silently("people", people(&["bob"]));
    store.lose_connection();
    assert!(references.set(reader.next().await) && has(&references, "bob"));
    // Nor is anything missed if listening must be begun anew, which fails at first.
    store.set_silently("people", people(&["eve"]));
    store.set_fault(Fault::Away);
    store.stop_listening();
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.set_fault(Fault::None);
    assert!(references.set(reader.next().await) && has(&references, "eve"));
}

#[tokio::test]
async fn a_store_that_is_away_at_the_start_is_an_error() {
    let store = with_people(&["ann"]);
    let wanted = wanted(&store).await;
    store.set_fault(Fault::Away);
    let started = ReferenceReader::start(Arc::new(store), wanted, PACE, &Default::default()).await;
    assert!(started.is_err_and(|error| error.to_string().contains("connection refused")));
}

#[tokio::test]
async fn without_tables_nothing_is_asked() {
    let (mut reader, references) =
        ReferenceReader::start(Arc::new(NoStore), Vec::new(), PACE, &Default::default()).await.unwrap();
    assert_eq!(references.tables().count(), 0);
    assert!(timeout(Duration::from_millis(5), reader.next()).await.is_err(), "no version ever comes");
}

#[tokio::test]
async fn a_looked_up_row_is_added_once_whichever_key_found_it() {
    let store = with_people(&["ann"]);
    let (_reader, mut references) = start(&store, PACE).await;
    let before = references.clone();
    store.set_silently("people", people(&["ann", "bob"]));
    let by_name =
        references.look_up(&store, "people", &key(&["name"]), &names(&["bob", "bob"])).await.unwrap();
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let ids = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let by_id = references.look_up(&store, "people", &key(&["id"]), &ids).await.unwrap();
    assert!(references.add("people", &key(&["name"]), &by_name).unwrap());
    assert!(!references.add("people", &key(&["name"]), &by_name).unwrap(), "two foreign keys found it");
    assert!(!references.add("people", &key(&["id"]), &by_id).unwrap(), "another key of the same row");
    let rows = |references: &References| references.get("people").unwrap().rows();
    assert_eq!((rows(&before), rows(&references)), (1, 2), "who looked before sees what there was");
    assert!(has(&references, "bob") && !has(&before, "bob"));
    assert_eq!(references.versions()["people"], Version { reading: 1, lookups: 1 });
    assert!(references.bytes() > before.bytes());
    // A row that Postgres calls equal to the value, and that is held, is not doubled: CHAR(n) ignores blanks.
    assert!(!references.add("people", &key(&["name"]), &[by_name[0].clone()]).unwrap());
}

#[tokio::test]
async fn many_lookups_make_few_parts_and_find_every_row() {
    let store = with_people(&["ann"]);
    let (_reader, mut references) = start(&store, PACE).await;
    for i in 0..300 {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![i + 1]));
        let text: ArrayRef = Arc::new(StringArray::from(vec![format!("p{i}")]));
        let found = RecordBatch::try_from_iter([("id", ids), ("name", text)]).unwrap();
        assert!(references.add("people", &key(&["name"]), &[found]).unwrap());
    }
    let table = references.get("people").unwrap();
    assert_eq!(table.rows(), 301);
    assert!(table.batches().len() < 12, "{} batches", table.batches().len());
    assert!((0..300).all(|i| has(&references, &format!("p{i}"))));
}

#[tokio::test]
async fn what_a_lookup_meets_is_told_by_kind() {
    let store = with_people(&["ann"]);
    let (_reader, references) = start(&store, PACE).await;
    let ask = async || references.look_up(&store, "people", &key(&["name"]), &names(&["bob"])).await;
    store.set_fault(Fault::Away);
    assert!(matches!(ask().await, Err(StoreError::Away { .. })));
    store.set_fault(Fault::Refuses("permission denied".into()));
    assert!(matches!(ask().await, Err(StoreError::Refused { reason, .. }) if reason == "permission denied"));
    store.set_fault(Fault::Hangs);
    assert!(timeout(Duration::from_millis(5), ask()).await.is_err());
    store.set_fault(Fault::None);
    assert_eq!(ask().await.unwrap()[0].num_rows(), 0);
}
