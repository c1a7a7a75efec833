//! States that the other tests' restarts seldom meet.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;

use super::Pair;

/// Rows of a source from texts.
fn rows(pair: &Pair, source: &str, rows: &[[&str; 2]]) -> RecordBatch {
    let schema = pair.schema(source).expect("a source");
    let column = |i: usize| -> ArrayRef {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[i])));
        cast(&texts, schema.field(i).data_type()).unwrap()
    };
    RecordBatch::try_new(Arc::clone(&schema), vec![column(0), column(1)]).unwrap()
}

#[tokio::test]
async fn a_part_that_waits_with_a_change_still_has_it_after_a_restart() {
    let mut pair = Pair::restarting();
    let text =
        "CREATE UNBOUNDED EXTERNAL TABLE t (k BIGINT, v BIGINT, PRIMARY KEY (k)) STORED AS KAFKA LOCATION 't'
          OPTIONS ('on_conflict' 'replace');
        CREATE MATERIALIZED VIEW shares WITH (key = 'v') AS SELECT v, 10 / SUM(k) AS share FROM t GROUP BY v;
        CREATE MATERIALIZED VIEW both AS
          SELECT v AS a, 10 / SUM(k) AS b FROM t GROUP BY v UNION ALL SELECT k AS a, v AS b FROM t;";
    pair.declare(text).await.unwrap();
    // Of group 1 the sum is 0 in between: what came meanwhile waits, group 3 too.
    for (batch, fails) in [
        (&[["1", "1"], ["2", "2"]][..], false),
        (&[["-1", "1"], ["5", "3"]], true),
        (&[["7", "2"]], true),
        (&[["-1", "2"]], false),
    ] {
        let batch = rows(&pair, "t", batch);
        pair.insert("t", batch).await;
        pair.check().await;
        let has_failed = ["shares", "both"].map(|view| pair.failure(view).is_some());
        assert_eq!(has_failed, [fails, fails]);
    }
    assert_eq!(pair.shown()["shares"].0.len(), 3);
}

#[tokio::test]
async fn a_partition_that_is_ahead_is_so_after_a_restart() {
    let mut pair = Pair::restarting();
    let text = "CREATE UNBOUNDED EXTERNAL TABLE t (k VARCHAR, at TIMESTAMP) STORED AS KAFKA LOCATION 't'
          OPTIONS ('event_time' 'at', 'watermark' '10 seconds');
        CREATE MATERIALIZED VIEW minutes WITH (key = 'minute') AS
          SELECT date_bin(INTERVAL '1 minute', at) AS minute, COUNT(*) AS n FROM t GROUP BY 1;";
    pair.declare(text).await.unwrap();
    let first = rows(&pair, "t", &[["a", "2026-01-01T12:05:00"], ["b", "2026-01-01T12:00:05"]]);
    pair.insert_from("t", first, vec![0, 1]).await;
    pair.check().await;
    // The minute is final for its own partition, and not for the one that is behind.
    let late = rows(&pair, "t", &[["a", "2026-01-01T12:00:30"], ["b", "2026-01-01T12:00:31"]]);
    pair.insert_from("t", late, vec![0, 1]).await;
    pair.check().await;
    assert_eq!(pair.shown()["minutes"].1.len(), 1);
}
