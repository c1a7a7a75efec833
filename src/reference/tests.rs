//! Against a real Postgres: that of TALLY_TEST_POSTGRES, else a private one. Each test has a schema of its own.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, AsArray, Date32Array, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::OnceCell;

use super::changes::listen;
use super::load::{load, lookup, stream};
use super::schema::describe;
use super::*;
use crate::embedded::Postgres;

/// The server of all these tests: that of TALLY_TEST_POSTGRES, else a private one, which ends with the process.
async fn server() -> &'static str {
    static SERVER: OnceCell<(String, Option<Postgres>)> = OnceCell::const_new();
    let start = async || match std::env::var("TALLY_TEST_POSTGRES") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = Postgres::start(&|line| eprintln!("{line}")).await.unwrap();
            (server.url().to_owned(), Some(server))
        }
    };
    &SERVER.get_or_init(start).await.0
}

/// A fresh schema made by `ddl`.
async fn postgres(schema: &str, ddl: &str) -> PgPool {
    let options: PgConnectOptions = server().await.parse().unwrap();
    let pool = PgPool::connect_with(options.application_name(schema)).await.unwrap();
    let sql = format!(
        "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; SET search_path TO {schema}; {ddl}; RESET search_path"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    pool
}

async fn table(pool: &PgPool, schema: &str, name: &str) -> TableDef {
    describe(pool, schema).await.unwrap().into_iter().find(|t| t.name == name).unwrap()
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|c| c.to_string()).collect()
}

fn all_columns(table: &TableDef) -> Vec<String> {
    table.schema.fields().iter().map(|f| f.name().clone()).collect()
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// Column `column` of the only batch, each value as text, NULL as `-`.
fn texts(batches: &[RecordBatch], column: &str) -> Vec<String> {
    let [batch] = batches else { panic!("{} batches", batches.len()) };
    let array = batch.column_by_name(column).unwrap();
    let text = arrow::compute::cast(array, &DataType::Utf8).unwrap();
    text.as_string::<i32>().iter().map(|v| v.unwrap_or("-").to_owned()).collect()
}

const EVERY_TYPE: &str = r#"
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE DOMAIN percent AS int CHECK (VALUE >= 0);
CREATE TABLE every_type (
  id int PRIMARY KEY, b bool, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric(10,2), plain numeric,
  huge numeric(50,0), d date, t time, ts timestamp, tz timestamptz, s text, v varchar(20), c char(4), u uuid, j jsonb,
  m mood, a int[], ip inet, raw bytea, p percent, "odd ""name" text);
INSERT INTO every_type VALUES
 (1, true, -7, -9007199254740993, 1.5, 0.1, -12.30, 3.5, 12345678901234567890123456789012345678901234567890,
  '1969-12-31', '23:59:59.5', '1969-12-31 23:59:59.000001', '2024-01-01 02:00:00+02', '', '', 'ab',
  '00000000-0000-0000-0000-00000000000a', '{"k": "a,b"}', 'glad', '{1,2}', '10.0.0.1', '\x00ff', 3, 'x'),
 (2, false, 32767, 1, 'NaN', '-Infinity', 0, 0.12345678901234567890123456789012345678901, 1, 'infinity', '24:00', '-infinity', 'infinity',
  E'a "quoted", line\nand\r\nmore \\ ''', '-', '', NULL, NULL, 'sad', '{}', NULL, '', 0, E'Zoë 投票 \U0001F5F3'),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL)"#;

#[tokio::test]
async fn every_type_keeps_its_values() {
    let pool = postgres("ref_types", EVERY_TYPE).await;
    let def = table(&pool, "ref_types", "every_type").await;
    let data_type = |name: &str| def.schema.field_with_name(name).unwrap().data_type().clone();
    assert_eq!(data_type("n"), DataType::Decimal128(10, 2));
    assert_eq!(data_type("plain"), DataType::Utf8, "without a precision, only text is exact");
    assert_eq!(data_type("huge"), DataType::Utf8);
    assert_eq!(data_type("ts"), DataType::Timestamp(TimeUnit::Microsecond, None));
    assert_eq!(data_type("tz"), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
    assert_eq!(data_type("p"), DataType::Int32);
    assert!(!def.schema.field(0).is_nullable() && def.schema.field(1).is_nullable());

    let batches = load(&pool, "ref_types", &def, &all_columns(&def)).await.unwrap();
    let expect = |column: &str, values: [&str; 3]| assert_eq!(texts(&batches, column), values, "{column}");
    expect("b", ["true", "false", "-"]);
    expect("i2", ["-7", "32767", "-"]);
    expect("i8", ["-9007199254740993", "1", "-"]);
    expect("f4", ["1.5", "NaN", "-"]);
    expect("n", ["-12.30", "0.00", "-"]);
    expect("plain", ["3.5", "0.12345678901234567890123456789012345678901", "-"]);
    expect("huge", ["12345678901234567890123456789012345678901234567890", "1", "-"]);
    expect("d", ["1969-12-31", "9999-12-31", "-"]);
    expect("t", ["23:59:59.500", "23:59:59.999999", "-"]);
    expect("ts", ["1969-12-31T23:59:59.000001", "0001-01-01T00:00:00", "-"]);
    expect("tz", ["2024-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "-"]);
    expect("s", ["", "a \"quoted\", line\nand\r\nmore \\ '", "-"]);
    assert!(
        batches[0].column_by_name("s").unwrap().is_null(2)
            && !batches[0].column_by_name("s").unwrap().is_null(0)
    );
    assert!(!batches[0].column_by_name("v").unwrap().is_null(1), "a lone hyphen is a text");
    expect("c", ["ab", "", "-"]);
    expect("u", ["00000000-0000-0000-0000-00000000000a", "-", "-"]);
    expect("j", [r#"{"k": "a,b"}"#, "-", "-"]);
    expect("m", ["glad", "sad", "-"]);
    expect("a", ["{1,2}", "{}", "-"]);
    expect("ip", ["10.0.0.1/32", "-", "-"]);
    expect("raw", ["\\x00ff", "\\x", "-"]);
    expect("p", ["3", "0", "-"]);
    expect("odd \"name", ["x", "Zoë 投票 🗳", "-"]);
    let f8 = batches[0].column_by_name("f8").unwrap().as_primitive::<Float64Type>().clone();
    assert_eq!((f8.value(0), f8.value(1)), (0.1, f64::NEG_INFINITY));

    let alone = load(&pool, "ref_types", &def, &names(&["s"])).await.unwrap();
    assert_eq!(rows(&alone), 3, "an empty text on a line of its own is a row");
}

#[tokio::test]
async fn describe_lists_tables_views_and_keys() {
    let ddl = "CREATE TABLE parts (k2 int, k1 text, x int, gone int, PRIMARY KEY (k1, k2)) PARTITION BY RANGE (k2);
               CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); ALTER TABLE parts DROP COLUMN gone;
               CREATE VIEW \"A view\" AS SELECT 1 AS one; CREATE TABLE _sqlx_migrations (version bigint);
               CREATE TABLE bare ()";
    let pool = postgres("ref_describe", ddl).await;
    let tables = describe(&pool, "ref_describe").await.unwrap();
    let listed: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.schema.fields().len())).collect();
    assert_eq!(listed, [("A view", 1), ("bare", 0), ("parts", 3)]);
    assert_eq!(tables[2].primary_key, ["k1", "k2"]);
    assert!(describe(&pool, "no_such_schema").await.unwrap().is_empty());
    assert_eq!(
        texts(&load(&pool, "ref_describe", &tables[0], &names(&["one"])).await.unwrap(), "one"),
        ["1"]
    );
}

#[tokio::test]
async fn a_missing_table_or_column_is_named() {
    let ddl = "CREATE TABLE t (a int, n numeric(9, 2)); INSERT INTO t VALUES (1, 'NaN')";
    let pool = postgres("ref_missing", ddl).await;
    let def = table(&pool, "ref_missing", "t").await;
    let error = load(&pool, "ref_missing", &def, &names(&["b"])).await.unwrap_err().to_string();
    assert!(error.contains("no column b; it has a, n"), "{error}");
    let error = load(&pool, "ref_missing", &def, &names(&["n"])).await.unwrap_err().to_string();
    assert!(error.contains("reading table ref_missing.t") && error.contains("NaN in a numeric"), "{error}");
    sqlx::raw_sql("DROP TABLE ref_missing.t").execute(&pool).await.unwrap();
    let error = load(&pool, "ref_missing", &def, &names(&["a"])).await.unwrap_err().to_string();
    assert!(error.contains("reading table ref_missing.t") && error.contains("dropped or renamed"), "{error}");
    // The pool is still usable after each of them.
    assert!(describe(&pool, "ref_missing").await.unwrap().is_empty());
}

fn values(column: &str, array: impl Array + 'static) -> RecordBatch {
    let field = Field::new(column, array.data_type().clone(), true);
    RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(array)]).unwrap()
}

#[tokio::test]
async fn lookup_finds_only_the_asked_keys() {
    let ddl = r#"CREATE TABLE t (name text, n smallint, u uuid, c char(3), at timestamptz, PRIMARY KEY (name, n));
        INSERT INTO t SELECT 'v' || i, i, ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, 'x' || i,
          timestamptz '2024-01-01 00:00+00' + i * interval '1 hour' FROM generate_series(1, 9) i;
        INSERT INTO t VALUES (E'it''s "a\\b", {c}', 0), ('', -1)"#;
    let pool = postgres("ref_lookup", ddl).await;
    let def = table(&pool, "ref_lookup", "t").await;
    let find = async |key: &str, values: RecordBatch| {
        let found =
            lookup(&pool, "ref_lookup", &def, &names(&["n", "name"]), &names(&[key]), &values).await.unwrap();
        let mut found: Vec<String> = if found.is_empty() { vec![] } else { texts(&found, "n") };
        found.sort();
        found
    };
    let texts_of = |v: Vec<Option<&str>>| StringArray::from(v);
    let odd =
        texts_of(vec![Some("v3"), Some("it's \"a\\b\", {c}"), Some(""), Some("nobody"), None, Some("a\0b")]);
    assert_eq!(find("name", values("name", odd)).await, ["-1", "0", "3"]);
    let numbers = Int32Array::from(vec![Some(4), Some(70_000), None]);
    assert_eq!(find("n", values("n", numbers)).await, ["4"], "70000 is no smallint and matches nothing");
    let ids = vec![Some("00000000-0000-0000-0000-000000000007"), Some("not a uuid")];
    assert_eq!(find("u", values("u", texts_of(ids))).await, ["7"]);
    assert_eq!(find("c", values("c", texts_of(vec![Some("x2")]))).await, ["2"]);
    let whole = load(&pool, "ref_lookup", &def, &names(&["at"])).await.unwrap();
    assert_eq!(find("at", whole[0].slice(0, 2)).await, ["1", "2"]);

    let pair =
        Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Int32, true)]);
    let pairs = RecordBatch::try_new(
        Arc::new(pair),
        vec![Arc::new(texts_of(vec![Some("v1"), Some("v2")])), Arc::new(Int32Array::from(vec![1, 1]))],
    )
    .unwrap();
    let key = names(&["name", "n"]);
    let found = lookup(&pool, "ref_lookup", &def, &names(&["name"]), &key, &pairs).await.unwrap();
    assert_eq!(texts(&found, "name"), ["v1"]);
}

#[tokio::test]
async fn a_million_rows_load_fast_and_a_dropped_stream_frees_its_connection() {
    let ddl = "CREATE TABLE big AS SELECT 'voter-' || i AS voter_id, i % 90 AS age, 'County ' || i % 48 AS state,
               CASE WHEN i % 2 = 0 THEN 'female' ELSE 'male' END AS gender FROM generate_series(1, 1000000) i";
    let pool = postgres("ref_big", ddl).await;
    let def = table(&pool, "ref_big", "big").await;
    let start = Instant::now();
    let batches = load(&pool, "ref_big", &def, &all_columns(&def)).await.unwrap();
    eprintln!("1,000,000 rows x 4 columns: {:?}", start.elapsed());
    assert_eq!(rows(&batches), 1_000_000);
    let counted = load(&pool, "ref_big", &def, &[]).await.unwrap();
    assert_eq!((rows(&counted), counted[0].num_columns()), (1_000_000, 0));
    // More streams than the pool has connections, none read to its end.
    for _ in 0..20 {
        drop(stream(&pool, "ref_big", &def, &all_columns(&def), None).unwrap());
    }
    assert_eq!(describe(&pool, "ref_big").await.unwrap().len(), 1);
}

#[tokio::test]
async fn ad_hoc_sql_reads_straight_from_postgres() {
    let ddl = "CREATE TABLE t AS SELECT i, 'n' || i AS name FROM generate_series(1, 20000) i";
    let pool = postgres("ref_sql", ddl).await;
    let def = Arc::new(table(&pool, "ref_sql", "t").await);
    let context = SessionContext::new();
    context.register_table("t", Arc::new(PgTable::new(pool, "ref_sql", def))).unwrap();
    for (sql, expected) in [
        ("SELECT COUNT(*) AS n FROM t", "20000"),
        ("SELECT MAX(i) AS n FROM t WHERE name <> 'n20000'", "19999"),
        ("SELECT COUNT(*) AS n FROM (SELECT name FROM t LIMIT 5)", "5"),
        ("SELECT COUNT(*) AS n FROM (SELECT 1 FROM t LIMIT 7)", "7"),
        ("SELECT COUNT(*) AS n FROM t a JOIN t b ON a.i = b.i", "20000"),
    ] {
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        assert_eq!(texts(&batches, "n"), [expected], "{sql}\n{}", pretty_format_batches(&batches).unwrap());
    }
}

#[tokio::test]
async fn a_query_on_another_runtime_leaves_the_pool_usable() {
    let pool = postgres("ref_runtime", "CREATE TABLE t AS SELECT 1 AS i").await;
    let options = (*pool.connect_options()).clone();
    let one = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let def = Arc::new(table(&pool, "ref_runtime", "t").await);
    let context = SessionContext::new();
    context.register_table("t", Arc::new(PgTable::new(one.clone(), "ref_runtime", def))).unwrap();
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let query = async move { context.sql("SELECT i FROM t").await.unwrap().collect().await.unwrap() };
    assert_eq!(rows(&other.spawn(query).await.unwrap()), 1);
    other.shutdown_background();
    assert_eq!(describe(&one, "ref_runtime").await.unwrap().len(), 1);
}

#[tokio::test]
async fn changes_are_heard_also_after_a_lost_connection() {
    let pool = postgres("ref_changes", "").await;
    let mut changes = listen(&pool).await.unwrap();
    let notify = async |name: &str| {
        sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(name).execute(&pool).await.unwrap();
    };
    notify("voters").await;
    assert_eq!(changes.recv().await.unwrap(), "voters");
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND application_name = 'ref_changes'")
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(changes.recv().await.unwrap(), ANYTHING);
    notify("candidates").await;
    assert_eq!(changes.recv().await.unwrap(), "candidates");
}

#[tokio::test]
async fn triggers_announce_the_changes_of_tables_that_have_none() {
    let ddl =
        "CREATE TABLE silent (i int); CREATE TABLE \"Odd one\" (i int); CREATE VIEW v AS SELECT 1 AS one;
        CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TABLE half (i int); CREATE TRIGGER t AFTER INSERT ON half EXECUTE FUNCTION other()";
    let pool = postgres("ref_triggers", ddl).await;
    let store = PostgresStore::new(pool.clone(), "ref_triggers");
    let tables = names(&["silent", "Odd one", "half"]);
    let without = async || store.without_trigger(&tables).await.unwrap();
    assert_eq!(without().await, ["Odd one", "half", "silent"]);
    let some = names(&["silent", "Odd one"]);
    let install = async |tables: &[String]| install_triggers(&pool, "ref_triggers", tables).await;
    let outcomes = |outcome| some.iter().map(|table| (table.clone(), outcome)).collect::<Vec<_>>();
    assert_eq!(install(&some).await.unwrap(), outcomes(TriggerOutcome::Installed));
    assert_eq!(install(&some).await.unwrap(), outcomes(TriggerOutcome::Kept));
    assert_eq!(without().await, ["half"], "a trigger that tells of something else tells nothing of changes");

    let mut changes = store.changes().await.unwrap();
    let change = async |sql: &'static str| sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    change("TRUNCATE ref_triggers.\"Odd one\"").await;
    change("INSERT INTO ref_triggers.silent VALUES (1)").await;
    assert_eq!(next_of(&mut changes, &some).await, "Odd one");
    assert_eq!(next_of(&mut changes, &some).await, "silent");

    let removed = remove_triggers(&pool, "ref_triggers", &some).await.unwrap();
    assert_eq!(removed, outcomes(TriggerOutcome::Removed));
    let removed = remove_triggers(&pool, "ref_triggers", &some).await.unwrap();
    assert_eq!(removed, outcomes(TriggerOutcome::Absent));
    for (table, reason) in [("v", "it is a view"), ("nobody", "there is no such table")] {
        let error = install(&names(&["half", table])).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(without().await.contains(&"half".into()), "nothing is done if one of the names is wrong");
}

/// The next name that is one of `tables`: other tests announce theirs on the same channel.
async fn next_of(changes: &mut tokio::sync::mpsc::Receiver<String>, tables: &[String]) -> String {
    loop {
        let name = changes.recv().await.unwrap();
        if tables.contains(&name) {
            return name;
        }
    }
}

#[tokio::test]
async fn what_postgres_refuses_is_told_from_what_will_pass() {
    let ddl = "CREATE TABLE t (k date, n int, c char(4)); INSERT INTO t VALUES ('2024-05-01', 1, 'ab');
               CREATE TABLE gone (k int)";
    let pool = postgres("ref_refused", ddl).await;
    let store = PostgresStore::new(pool.clone(), "ref_refused");
    let (def, gone) = (table(&pool, "ref_refused", "t").await, table(&pool, "ref_refused", "gone").await);
    // A date that Postgres can't read, as one of the year 10000, costs its own row only, whatever stands beside it.
    let day = |days: i32| Some(days);
    let days = Date32Array::from(vec![day(19_844), day(2_932_897), day(i32::MAX), None]);
    let found = store.lookup(&def, &names(&["n"]), &names(&["k"]), &values("k", days)).await.unwrap();
    assert_eq!(texts(&found, "n"), ["1"]);

    sqlx::raw_sql("DROP TABLE ref_refused.gone").execute(&pool).await.unwrap();
    let one = values("k", Int32Array::from(vec![1]));
    let refused = store.lookup(&gone, &names(&["k"]), &names(&["k"]), &one).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Refused { sqlstate: Some(code), .. } if code == "42P01"),
        "{refused}"
    );
    assert!(matches!(store.load(&gone, &names(&["k"])).await, Err(StoreError::Refused { .. })));

    let nobody = pool.connect_options().as_ref().clone().port(1);
    let nobody =
        PgPoolOptions::new().acquire_timeout(std::time::Duration::from_millis(200)).connect_lazy_with(nobody);
    let away = PostgresStore::new(nobody, "ref_refused");
    assert!(away.tables().await.unwrap_err().is_away());
    assert!(away.load(&def, &names(&["n"])).await.unwrap_err().is_away());
    let days = values("k", Date32Array::from(vec![day(19_844)]));
    assert!(away.lookup(&def, &names(&["n"]), &names(&["k"]), &days).await.unwrap_err().is_away());
    assert!(away.changes().await.unwrap_err().is_away());
}

#[tokio::test]
async fn a_char_key_with_blanks_does_not_double_the_row_it_finds() {
    let ddl = "CREATE TABLE t (c char(4), n int); INSERT INTO t VALUES ('ab', 1)";
    let pool = postgres("ref_char", ddl).await;
    let store = PostgresStore::new(pool.clone(), "ref_char");
    let wanted = Wanted {
        def: Arc::new(table(&pool, "ref_char", "t").await),
        columns: names(&["c", "n"]),
        keys: vec![names(&["c"])],
    };
    let pace = Pace::with_refresh(std::time::Duration::from_secs(300));
    let (_reader, mut references) =
        ReferenceReader::start(Arc::new(store.clone()), vec![wanted], pace, &Default::default())
            .await
            .unwrap();
    let blanks = values("c", StringArray::from(vec!["ab  "]));
    let found = references.look_up(&store, "t", &names(&["c"]), &blanks).await.unwrap();
    assert_eq!(rows(&found), 1, "Postgres calls them equal");
    assert!(!references.add("t", &names(&["c"]), &found).unwrap());
    assert_eq!(references.get("t").unwrap().rows(), 1);
}
