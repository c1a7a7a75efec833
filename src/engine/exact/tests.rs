//! Values that an expression can't take: each is an error, of whichever session runs it, never a wrong value.

use arrow::array::RecordBatch;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

use crate::engine::oracle::cells;
use crate::engine::session;

/// One row: numbers at both ends of their types, times at both ends of theirs, and texts that are no numbers.
const ROW: &str = "SELECT
    9223372036854775807 AS i, CAST(-9223372036854775808 AS BIGINT) AS m, CAST(2147483647 AS INT) AS n,
    CAST(18446744073709551615 AS BIGINT UNSIGNED) AS u, CAST(0 AS BIGINT UNSIGNED) AS w, CAST(-1 AS BIGINT) AS neg, CAST(0 AS BIGINT) AS z,
    CAST('99999999999999999999999999999999999999' AS DECIMAL(38, 0)) AS d, CAST('0.0000000000000000001' AS DECIMAL(38, 19)) AS e, CAST('99999999999999999999' AS DECIMAL(20, 0)) AS g, 1e300 AS f, -1.0 AS h,
    TIMESTAMP '2262-04-11T23:47:10' AS late, TIMESTAMP '1677-09-21T00:12:44' AS early, DATE '2262-04-11' AS day,
    arrow_cast(9223372036854775807, 'Duration(Nanosecond)') AS long, 'x' AS t, '[' AS pattern,
    make_array(1, 2) AS a, 1 AS k";

/// Expressions over that row that have no value.
const FAILING: [&str; 72] = [
    "i + 1",
    "m - 1",
    "i * 2",
    "-m",
    "n + n",
    "n * n",
    "-(m)",
    "i + i",
    "u + CAST(1 AS BIGINT UNSIGNED)",
    "w - CAST(1 AS BIGINT UNSIGNED)",
    "u * u",
    "m / neg",
    "i / z",
    "i % z",
    "abs(m)",
    "1 / z",
    "CASE WHEN k = 1 THEN i + k ELSE 0 END",
    "COALESCE(i + k, 0)",
    "i + k > 0",
    "9223372036854775807 + k",
    "9223372036854775807 + 1",
    "d + 1",
    "d - CAST(-1 AS DECIMAL(38, 0))",
    "d * 10",
    "g * g",
    "d * d",
    "d / e",
    "CAST(f AS BIGINT)",
    "CAST(i AS INT)",
    "CAST(neg AS BIGINT UNSIGNED)",
    "CAST(t AS INT)",
    "CAST(t AS TIMESTAMP)",
    "CAST(d AS DECIMAL(37, 0))",
    "CAST(n AS SMALLINT)",
    "CAST(d AS BIGINT)",
    "CAST(i AS DECIMAL(5, 0))",
    "CAST(f AS DECIMAL(38, 0))",
    "arrow_cast(i, 'Int8')",
    "late + INTERVAL '1 day'",
    "early - INTERVAL '1 day'",
    "late + INTERVAL '300 years'",
    "early - INTERVAL '1 month'",
    "long + long",
    "late - early",
    "date_trunc('day', early)",
    "CAST(DATE '9999-01-01' + (k * INTERVAL '1 day') AS TIMESTAMP)",
    "to_timestamp(f)",
    "to_timestamp(1e10 * k)",
    "date_bin(INTERVAL '1 day', early)",
    "date_bin(INTERVAL '1 month', early)",
    "to_timestamp(i)",
    "make_date(i, 1, 1)",
    "regexp_match(t, pattern)",
    "regexp_like(t, pattern)",
    "t ~ pattern",
    "split_part(t, 'y', z)",
    "chr(neg)",
    "chr(55296)",
    "decode(t, 'hex')",
    "substr(t, 1, neg)",
    "factorial(30 * k)",
    "gcd(m, m)",
    "lcm(i, m)",
    "a[m]",
    "a[1:2:z]",
    "repeat(t, i)",
    "lpad(t, i)",
    "array_repeat(t, i)",
    "array_resize(a, i)",
    "(SELECT v FROM (VALUES (1), (2)) s(v))",
    "CAST(-1 AS TINYINT UNSIGNED)",
    "z / z",
];

/// The same of aggregates over two such rows.
const FAILING_AGGREGATES: [&str; 16] = [
    "SUM(i)",
    "SUM(m)",
    "SUM(u)",
    "SUM(d)",
    "SUM(n * n)",
    "SUM(i - k + k) + 1",
    "10 / SUM(z)",
    "SUM(i) FILTER (WHERE k = 1)",
    "AVG(d)",
    "AVG(long)",
    "SUM(k) OVER (ORDER BY k) + i",
    "SUM(i) OVER (ORDER BY k)",
    "SUM(i) OVER (ORDER BY k ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "SUM(CAST(k AS BIGINT)) + SUM(i)",
    "CAST(SUM(CAST(n AS BIGINT)) AS INT)",
    "SUM(i) + SUM(i)",
];

fn sessions() -> [SessionContext; 2] {
    [session::continuous(), session::batch(session::base_config())]
}

async fn with_row(session: &SessionContext, rows: usize) {
    let rows = vec![ROW; rows].join(" UNION ALL ");
    session.sql(&format!("CREATE TABLE p AS {rows}")).await.unwrap().collect().await.unwrap();
}

/// A panic is an error too: the engine takes it for one.
async fn answer(session: &SessionContext, query: String) -> Result<Vec<RecordBatch>> {
    let session = session.clone();
    let run = tokio::spawn(async move { session.sql(&query).await?.collect().await });
    run.await.unwrap_or_else(|panic| datafusion::common::exec_err!("{panic}"))
}

#[tokio::test]
async fn what_an_expression_cannot_take_is_an_error_and_no_wrong_value() {
    let mut wrong = Vec::new();
    for (which, session) in sessions().into_iter().enumerate() {
        with_row(&session, 1).await;
        for expression in FAILING {
            if let Ok(batches) = answer(&session, format!("SELECT {expression} AS x FROM p")).await {
                wrong.push(format!(
                    "session {which}: {expression} is {:?}",
                    batches.iter().map(cells).collect::<Vec<_>>()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn an_aggregate_that_overflows_is_an_error() {
    let mut wrong = Vec::new();
    for (which, session) in sessions().into_iter().enumerate() {
        with_row(&session, 2).await;
        for expression in FAILING_AGGREGATES {
            for group in ["", "GROUP BY k"] {
                if expression.contains("OVER") && !group.is_empty() {
                    continue;
                }
                if let Ok(batches) =
                    answer(&session, format!("SELECT {expression} AS x FROM p {group}")).await
                {
                    wrong.push(format!(
                        "session {which}: {expression} {group} is {:?}",
                        batches.iter().map(cells).collect::<Vec<_>>()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
