//! Counts of rows, compared with a map of them.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

#[test]
fn a_row_goes_as_often_as_it_came_and_no_more() {
    let mut rows = CountedRows::default();
    rows.add(b"a", 0);
    rows.add(b"a", 0);
    assert!(!rows.remove(b"b", 0));
    assert!(rows.remove(b"a", 0) && rows.remove(b"a", 1) && !rows.remove(b"a", 0));
    assert_eq!((rows.rows().count(), rows.in_two_partitions()), (0, 1));
}

#[test]
fn any_rows_are_counted_exactly_though_hashes_collide() {
    let mut random = StdRng::seed_from_u64(5);
    let mut rows = CountedRows::with_hash_bits(5);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..20_000 {
        let row = format!("row {}", random.random_range(0..300));
        if random.random_bool(0.55) {
            rows.add(row.as_bytes(), 0);
            *expected.entry(row).or_default() += 1;
            continue;
        }
        let is_there = expected.contains_key(&row);
        assert_eq!(rows.remove(row.as_bytes(), 0), is_there);
        if is_there {
            let times = expected.get_mut(&row).unwrap();
            *times -= 1;
            if *times == 0 {
                expected.remove(&row);
            }
        }
    }
    let text = |row: &[u8]| String::from_utf8(row.to_vec()).unwrap();
    assert_eq!(rows.rows().map(|(row, times)| (text(row), times)).collect::<BTreeMap<_, _>>(), expected);
    assert!(!expected.is_empty());
}
