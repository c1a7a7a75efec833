use std::collections::BTreeMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// A row of a few letters, a long one now and then.
fn row(random: &mut impl Rng) -> Vec<u8> {
    let len =
        if random.random_ratio(1, 50) { random.random_range(0..9000) } else { random.random_range(0..5) };
    let kinds = if len > 5 { 1 } else { 8 };
    (0..len).map(|_| random.random_range(0..kinds) as u8 * 36).collect()
}

fn assert_same(rows: &SortedRows, expected: &BTreeMap<Vec<u8>, u64>, random: &mut impl Rng) {
    assert_eq!(rows.len(), expected.values().sum::<u64>());
    let key = row(random);
    let all = |rows: &mut dyn Iterator<Item = (&[u8], u64)>| {
        rows.map(|(row, count)| (row.to_vec(), count)).collect::<Vec<_>>()
    };
    let of = |(row, count): (&Vec<u8>, &u64)| (row.clone(), *count);
    assert_eq!(all(&mut rows.from(&key)), expected.range(key.clone()..).map(of).collect::<Vec<_>>());
    assert_eq!(
        all(&mut rows.before(Some(&key))),
        expected.range(..key.clone()).rev().map(of).collect::<Vec<_>>()
    );
    assert_eq!(all(&mut rows.before(None)), expected.iter().rev().map(of).collect::<Vec<_>>());
    assert_eq!(rows.count(&key), expected.get(&key).copied().unwrap_or(0));
    let prefix = &key[..key.len().min(random.random_range(0..3))];
    let within = expected.iter().filter(|(row, _)| row.starts_with(prefix));
    let copies: Vec<_> = within.flat_map(|(row, count)| std::iter::repeat_n(row, *count as usize)).collect();
    for position in [0, copies.len() / 2, copies.len().saturating_sub(1), copies.len()] {
        let first = |row| (row, copies.iter().position(|other| **other == row).unwrap() as u64);
        let found = copies.get(position).map(|row| first(row.as_slice())).ok_or(copies.len() as u64);
        assert_eq!(rows.at(prefix, position as u64), found);
    }
}

#[test]
fn rows_are_where_an_ordered_map_has_them() {
    let mut random = StdRng::seed_from_u64(7);
    let (mut rows, mut expected) = (SortedRows::new(), BTreeMap::new());
    let mut chunks = 0;
    for step in 0..6000 {
        // Rows gather first, then dwindle.
        let times: i64 = if random.random_ratio(1, 20) { random.random_range(1..5) } else { 1 };
        if random.random_ratio(if step < 4000 { 9 } else { 1 }, 10) || expected.is_empty() {
            let row = row(&mut random);
            rows.change(&row, times);
            *expected.entry(row).or_insert(0) += times as u64;
        } else {
            let key = row(&mut random);
            let found =
                expected.range(key..).next().or(expected.iter().next()).map(|(row, n)| (row.clone(), *n));
            let (row, count) = found.unwrap();
            let times = count.min(times as u64);
            rows.change(&row, -(times as i64));
            if times == count {
                expected.remove(&row)
            } else {
                expected.insert(row, count - times)
            };
        }
        chunks = chunks.max(rows.chunks.len());
        if step % 100 == 0 {
            assert_same(&rows, &expected, &mut random);
        }
    }
    assert!(chunks > 20, "{chunks}");
    while let Some((row, count)) = expected.pop_first() {
        rows.change(&row, -(count as i64));
    }
    assert_same(&rows, &expected, &mut random);
    assert!(rows.chunks.len() <= 2 && rows.bytes < 20_000, "{} {}", rows.chunks.len(), rows.bytes);
}

#[test]
fn bytes_are_what_the_chunks_hold() {
    let mut random = StdRng::seed_from_u64(8);
    let mut rows = SortedRows::new();
    for _ in 0..5000 {
        rows.change(&random.random::<[u8; 12]>(), 1 + i64::from(random.random_ratio(1, 1000)));
    }
    let held =
        |rows: &SortedRows| rows.chunks.iter().map(|(key, chunk)| key.held() + chunk.bytes()).sum::<usize>();
    assert_eq!(rows.bytes, held(&rows));
    rows.remove_all(&[3]);
    assert_eq!(rows.from(&[3]).next().map(|(row, _)| row[0]), Some(4));
    rows.remove_all(&[]);
    assert_eq!((rows.len(), rows.bytes), (0, held(&rows)));
}
