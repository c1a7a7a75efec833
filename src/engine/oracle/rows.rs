//! Rows as texts, and how two sets of them compare: as sets, up to the last digits of floats, and in order.

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Relative difference that floats may have: their last digits depend on the order of the summands.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// Each row as the texts of its values.
pub fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let cell = |row: usize, column: usize| match batch.column(column).is_null(row) {
        true => "NULL".to_string(),
        false => columns[column].value(row).to_string(),
    };
    (0..batch.num_rows()).map(|row| (0..columns.len()).map(|column| cell(row, column)).collect()).collect()
}

/// The rows of all batches, sorted, so that sets of rows compare.
pub fn sorted(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    in_one_order(batches.iter().flat_map(cells).collect())
}

/// The rows in an order that the last digits of floats do not change, nor the sign of a zero.
pub fn in_one_order(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let rounded =
        |cell: &String| float(cell).map_or_else(|| cell.clone(), |value| format!("{:.6e}", value + 0.0));
    rows.sort_by_cached_key(|row| (row.iter().map(rounded).collect::<Vec<_>>(), row.clone()));
    rows
}

/// Fails if two sets of rows, each in one order, differ by more than the last digits of floats.
pub fn assert_same(what: &str, ours: &[Vec<String>], theirs: &[Vec<String>]) {
    let same = ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(close));
    assert!(same, "{what}\nthe engine: {ours:#?}\na recount: {theirs:#?}");
}

fn float(cell: &str) -> Option<f64> {
    cell.contains(['.', 'e']).then(|| cell.parse().ok()).flatten()
}

fn close((a, b): (&String, &String)) -> bool {
    a == b
        || match (float(a), float(b)) {
            (Some(a), Some(b)) => (a - b).abs() <= FLOAT_TOLERANCE * a.abs().max(b.abs()).max(1.0),
            _ => false,
        }
}
