//! Rows as texts, and how two sets of them compare: as sets, and in order. Floats are the same to the last digit; which
//! zero stands for both in a key is nobody's promise.

use arrow::array::RecordBatch;

use crate::project::testing;

/// Each row as the texts of its values.
pub fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    testing::cells(batch).unwrap()
}

/// The rows of all batches, sorted, so that sets of rows compare.
pub fn sorted(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    in_one_order(batches.iter().flat_map(cells).collect())
}

/// The rows in an order that the sign of a zero does not change.
pub fn in_one_order(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let one_zero =
        |cell: &String| float(cell).map_or_else(|| cell.clone(), |value| (value + 0.0).to_string());
    rows.sort_by_cached_key(|row| (row.iter().map(one_zero).collect::<Vec<_>>(), row.clone()));
    rows
}

/// Fails if two sets of rows, each in one order, differ by more than the sign of a zero.
pub fn assert_same(what: &str, ours: &[Vec<String>], theirs: &[Vec<String>]) {
    let all = ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(same));
    assert!(all, "{what}\nthe engine: {ours:#?}\na recount: {theirs:#?}");
}

fn float(cell: &str) -> Option<f64> {
    cell.contains(['.', 'e']).then(|| cell.parse().ok()).flatten()
}

fn same((a, b): (&String, &String)) -> bool {
    a == b || float(a).is_some_and(|a| Some(a) == float(b))
}
