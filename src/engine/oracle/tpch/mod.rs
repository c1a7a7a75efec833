//! TPC-H's queries kept live, over tables whose rows come, change and go.

mod data;

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::SchemaRef;

use self::data::{Change, Data, Row};
use super::Pair;
use super::told::Messages;
use crate::catalog::OnConflict;

/// Sources, in an order in which what a row names is there before it.
const SOURCES: [&str; 6] = ["supplier", "part", "partsupp", "customer", "orders", "lineitem"];
/// What changes after that, a micro-batch each.
const CHANGED: [&str; 12] = [
    "lineitem", "orders", "partsupp", "customer", "lineitem", "nation", "part", "lineitem", "supplier",
    "orders", "nation", "lineitem",
];
const ROUNDS: usize = 24;
const CHANGES_MAX: usize = 25;

#[tokio::test]
async fn each_query_equals_a_recount_as_rows_come_change_and_go() {
    let (mut pair, mut data) = (Pair::new(), Data::new(0));
    pair.declare(&super::statements_of("tests/tpch")).await.unwrap();
    for table in ["region", "nation"] {
        set(&mut pair, &data, table).await;
    }
    for source in SOURCES {
        // In two micro-batches, so that a query meets what it holds already.
        let rows = data.tables[source].clone();
        for half in rows.chunks(rows.len().div_ceil(2)) {
            tell(&mut pair, source, half.iter().map(|row| (None, Some(row.clone()))).collect()).await;
        }
    }
    let shown = pair.shown();
    assert_eq!(shown.len(), 22);
    let finds = |rows: &[Vec<String>]| !rows.is_empty() && rows.iter().flatten().all(|cell| cell != "NULL");
    let empty: Vec<_> = shown.iter().filter(|(_, (rows, _))| !finds(rows)).map(|(view, _)| view).collect();
    assert!(empty.is_empty(), "these find nothing: {empty:?}");
    for (round, table) in CHANGED.into_iter().cycle().take(ROUNDS).enumerate() {
        if table == "nation" {
            data.move_a_nation();
            set(&mut pair, &data, table).await;
        } else {
            let changes = (0..CHANGES_MAX - round % CHANGES_MAX).map(|_| data.change(table)).collect();
            tell(&mut pair, table, changes).await;
        }
    }
    // All lines go, and come again.
    let lines = data.tables["lineitem"].clone();
    tell(&mut pair, "lineitem", lines.iter().map(|row| (Some(row.clone()), None)).collect()).await;
    tell(&mut pair, "lineitem", lines.into_iter().map(|row| (None, Some(row))).collect()).await;
}

/// A micro-batch of a source; then each view is compared.
async fn tell(pair: &mut Pair, source: &str, changes: Vec<Change>) {
    let replaces = pair.source(source).expect("a source").on_conflict == OnConflict::Replace;
    let schema = pair.schema(source).expect("a source");
    let (mut back, mut of_back, mut came, mut of_came) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let partitions = vec![0; changes.len()];
    for (message, (before, after)) in (0..).zip(changes) {
        // Where the newest row of a key counts, a message of it says nothing of the one before.
        if let Some(row) = before.filter(|_| after.is_none() || !replaces) {
            back.push(row);
            of_back.push(message);
        }
        if let Some(row) = after {
            came.push(row);
            of_came.push(message);
        }
    }
    let (back, came) = (batch(&back, &schema), batch(&came, &schema));
    pair.tell_messages(source, Messages { came, of_came, back, of_back, partitions }).await;
    pair.check().await;
}

/// A reference table has the rows of now; then each view is compared.
async fn set(pair: &mut Pair, data: &Data, table: &str) {
    let rows = batch(&data.tables[table], &pair.schema(table).expect("a table"));
    pair.set(table, vec![rows]).await;
    pair.check().await;
}

/// Rows as the types of a table.
fn batch(rows: &[Row], schema: &SchemaRef) -> RecordBatch {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let column = |i: usize| -> ArrayRef {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row[i])));
        cast_with_options(&texts, schema.field(i).data_type(), &options).unwrap()
    };
    RecordBatch::try_new(Arc::clone(schema), (0..schema.fields().len()).map(column).collect()).unwrap()
}
