//! The newest row of each key, compared with all messages looked through, in every order of the partitions.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

#[derive(Clone, Debug)]
struct Message {
    key: String,
    row: Option<String>,
    from: Origin,
}

fn message(key: &str, row: Option<&str>, timestamp_ms: i64, partition: i32) -> Message {
    let from = Origin { timestamp_ms: Some(timestamp_ms), partition, offset: 0 };
    Message { key: key.into(), row: row.map(Into::into), from }
}

fn feed(rows: &mut NewestRows, message: &Message) -> Change {
    match &message.row {
        Some(row) => rows.put(message.key.as_bytes(), row.as_bytes(), message.from),
        None => rows.remove(message.key.as_bytes(), message.from),
    }
}

fn shown(rows: &NewestRows) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    rows.rows().map(|(key, rest)| (text(key), text(rest))).collect()
}

fn told(change: Change) -> String {
    let row = |gone: Gone| String::from_utf8(gone.rest().to_vec()).unwrap();
    match change {
        Change::Newest(gone) => format!("newest, before {:?}", gone.map(row)),
        Change::Deleted(gone) => format!("deleted {}", row(gone)),
        Change::Outdated => "outdated".into(),
        Change::Absent => "absent".into(),
    }
}

#[test]
fn a_later_message_of_a_partition_replaces_the_row_and_an_empty_one_deletes_it() {
    let mut rows = NewestRows::default();
    for (row, timestamp_ms, expected) in [
        (None, 5, "absent"),
        (Some("1"), 10, "newest, before None"),
        (Some("2"), 3, "newest, before Some(\"1\")"), // its clock went back; its partition says it is later
        (Some("2"), 10, "newest, before Some(\"2\")"),
        (None, 1, "deleted 2"),
        (None, 20, "absent"),
        (Some("3"), 0, "newest, before None"),
    ] {
        assert_eq!(told(feed(&mut rows, &message("k", row, timestamp_ms, 0))), expected);
    }
    assert_eq!(shown(&rows), BTreeMap::from([("k".into(), "3".into())]));
    assert_eq!(rows.in_two_partitions(), 0);
}

#[test]
fn of_two_partitions_the_newer_message_counts_whichever_comes_first() {
    let (older, newer) = (message("k", Some("old"), 10, 1), message("k", Some("new"), 20, 0));
    let deletion = message("k", None, 30, 2);
    let orders: [[&Message; 3]; 3] =
        [[&older, &newer, &deletion], [&newer, &older, &deletion], [&newer, &deletion, &older]];
    for order in orders {
        let mut rows = NewestRows::default();
        order.iter().for_each(|message| drop(feed(&mut rows, message)));
        assert!(shown(&rows).is_empty());
        assert_eq!(rows.in_two_partitions(), 1);
    }
    let mut rows = NewestRows::default();
    assert_eq!(told(feed(&mut rows, &newer)), "newest, before None");
    assert_eq!(told(feed(&mut rows, &older)), "outdated");
    assert_eq!(told(feed(&mut rows, &message("k", None, 15, 1))), "outdated");
    assert_eq!(shown(&rows), BTreeMap::from([("k".into(), "new".into())]));
}

#[test]
fn any_messages_in_any_order_of_their_partitions_leave_the_same_rows() {
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..30 {
        let keys = random.random_range(1..80);
        let mut partitions: Vec<Vec<Message>> = vec![Vec::new(); 3];
        for n in 0..300 {
            let key = format!("key {}", random.random_range(0..keys));
            let row = random.random_bool(0.7).then(|| format!("row {n}"));
            let partition = random.random_range(0..3);
            let timestamp_ms = random.random_range(0..50);
            partitions[partition as usize].push(message(&key, row.as_deref(), timestamp_ms, partition));
        }
        // All messages in their order.
        let mut all: Vec<(i64, i32, usize, &Message)> = Vec::new();
        for messages in &partitions {
            let mut clock = 0;
            for (place, message) in messages.iter().enumerate() {
                clock = clock.max(message.from.timestamp_ms.unwrap());
                all.push((clock, message.from.partition, place, message));
            }
        }
        all.sort_by_key(|(clock, partition, place, _)| (*clock, *partition, *place));
        let newest: BTreeMap<_, _> = all.iter().map(|(.., message)| (&message.key, &message.row)).collect();
        let expected: BTreeMap<String, String> =
            newest.into_iter().filter_map(|(key, row)| Some((key.clone(), row.clone()?))).collect();
        for _ in 0..5 {
            let mut rows = NewestRows::with_hash_bits(5);
            let mut left: Vec<_> = partitions.iter().map(|messages| messages.iter()).collect();
            let mut net: BTreeMap<String, String> = BTreeMap::new();
            while let Some(partition) = pick(&mut random, &left) {
                let message = left[partition].next().unwrap();
                let (change, before) = (feed(&mut rows, message), net.get(&message.key).cloned());
                match change {
                    Change::Newest(gone) => {
                        assert_eq!(gone.map(|gone| gone.rest().to_vec()), before.map(String::into_bytes));
                        net.insert(message.key.clone(), message.row.clone().unwrap());
                    }
                    Change::Deleted(gone) => {
                        assert_eq!(Some(gone.rest().to_vec()), before.map(String::into_bytes));
                        assert_eq!(gone.key(), message.key.as_bytes());
                        net.remove(&message.key);
                    }
                    Change::Absent => assert_eq!(before, None),
                    Change::Outdated => {}
                }
            }
            assert_eq!(shown(&rows), expected, "round {round}");
            assert_eq!(net, expected, "round {round}");
        }
    }
}

/// One of the partitions that have messages left.
fn pick(random: &mut StdRng, left: &[std::slice::Iter<'_, Message>]) -> Option<usize> {
    let open: Vec<_> = (0..left.len()).filter(|i| left[*i].len() > 0).collect();
    (!open.is_empty()).then(|| open[random.random_range(0..open.len())])
}

#[test]
fn deleted_keys_are_forgotten_once_no_older_message_can_come() {
    let mut rows = NewestRows::default();
    let other = message("of another partition", Some("x"), 0, 1);
    feed(&mut rows, &other);
    let mut bytes_max = 0;
    for n in 0..100_000 {
        let key = format!("key {n}");
        feed(&mut rows, &message(&key, Some("a row of some length"), n, 0));
        feed(&mut rows, &message(&key, None, n, 0));
        // The other partition follows.
        feed(&mut rows, &message("of another partition", Some("x"), n + 1, 1));
        bytes_max = bytes_max.max(rows.bytes());
    }
    assert_eq!(rows.rows().count(), 1);
    assert!(bytes_max < 400_000, "{bytes_max}");
    // One that stands still holds them: a message of its could be older.
    let mut rows = NewestRows::default();
    feed(&mut rows, &other);
    for n in 1..10_000 {
        feed(&mut rows, &message(&format!("key {n}"), Some("x"), n, 0));
        feed(&mut rows, &message(&format!("key {n}"), None, n, 0));
    }
    assert_eq!(told(feed(&mut rows, &message("key 3", Some("old"), 0, 1))), "outdated");
    assert_eq!(rows.rows().count(), 1);
}

/// `cargo test --release --lib newest_rows_in_figures -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn newest_rows_in_figures() {
    let mut rows = NewestRows::default();
    let row = [7u8; 24];
    let key = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
    for n in 0..1_000_000u64 {
        rows.put(&key(n), &row, Origin::default());
        if n == 99_999 || n == 999_999 {
            let held = n + 1;
            let begun = std::time::Instant::now();
            for m in 0..1000 {
                rows.put(&key((m * 997) % held), &row, Origin::default());
            }
            let took = begun.elapsed();
            println!(
                "{held} keys: {} bytes a key beside 8 + 24, a batch of 1000 replacing rows {took:?}",
                rows.bytes() / held as usize - 32
            );
        }
    }
}
