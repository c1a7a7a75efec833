//! Which joins are lookup joins, and which rows come to them.

use std::collections::BTreeMap;

use arrow::array::{BooleanArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;

use super::*;
use crate::catalog::Catalog;
use crate::engine::input::InputTable;
use crate::engine::session;
use crate::error::Error;
use crate::queries::QueryFile;
use crate::reference::KeyIndex;

/// A stream of orders, and the tables customers, places and pairs.
fn session() -> SessionContext {
    let session = session::continuous();
    let table = |name: &str, kind, columns: &[(&str, DataType)]| {
        let fields: Vec<_> = columns.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
        let input = InputTable::new(name, kind, Arc::new(Schema::new(fields)));
        session.register_table(name, input).unwrap();
    };
    let (text, number) = (DataType::Utf8, DataType::Int64);
    let orders = [
        ("customer", text.clone()),
        ("place", number.clone()),
        ("amount", number.clone()),
        ("code", text.clone()),
        ("lines", DataType::new_list(number.clone(), true)),
    ];
    table("orders", Kind::Stream, &orders);
    table("clicks", Kind::Stream, &[("customer", text.clone()), ("place", number.clone())]);
    table(
        "customers",
        Kind::Reference,
        &[("customer_id", text.clone()), ("home", number.clone()), ("kind", text.clone())],
    );
    table("places", Kind::Reference, &[("place_id", DataType::Int32), ("county", text.clone())]);
    table("pairs", Kind::Reference, &[("a", text.clone()), ("b", number.clone()), ("note", text)]);
    session
}

async fn joins_of(sql: &str) -> Vec<LookupJoin> {
    let session = session();
    let plan = session.sql(sql).await.unwrap().into_optimized_plan().unwrap();
    lookup_joins(&plan, &session.state()).unwrap()
}

async fn only_join(sql: &str) -> LookupJoin {
    let mut joins = joins_of(sql).await;
    assert_eq!(joins.len(), 1, "{sql}: {:?}", joins.iter().map(LookupJoin::name).collect::<Vec<_>>());
    joins.remove(0)
}

/// Orders of ann (place 1, amount 10), bob (2, 0), an unknown zoe (3, 5), and one of nobody.
fn orders() -> RecordBatch {
    let columns: [(&str, ArrayRef); 4] = [
        ("customer", Arc::new(StringArray::from(vec![Some("ann"), Some("bob"), Some("zoe"), None]))),
        ("place", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ("amount", Arc::new(Int64Array::from(vec![10, 0, 5, 7]))),
        ("code", Arc::new(StringArray::from(vec!["7", "x", "8", "9"]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Which keys the tables have; asking for others is an error.
#[derive(Default)]
struct Tables(BTreeMap<(String, Vec<String>), KeyIndex>);

impl Tables {
    fn with(mut self, table: &str, columns: Vec<(&str, ArrayRef)>) -> Self {
        let key: Vec<String> = columns.iter().map(|(name, _)| name.to_string()).collect();
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let mut index = KeyIndex::new(&rows.schema(), &key).unwrap();
        index.add(&rows).unwrap();
        self.0.insert((table.into(), key), index);
        self
    }
}

impl ForeignKeys for Tables {
    fn contains(&self, table: &str, columns: &[String], values: &[ArrayRef]) -> Result<BooleanArray> {
        match self.0.get(&(table.to_string(), columns.to_vec())) {
            Some(index) => index.contains(values),
            None => Err(Error::Config(format!("no rows for table {table}"))),
        }
    }
}

fn texts(keys: &RecordBatch) -> Vec<String> {
    let row = |row: usize| {
        let value = |column: &ArrayRef| array_value_to_string(column, row).unwrap();
        keys.columns().iter().map(value).collect::<Vec<_>>().join(",")
    };
    (0..keys.num_rows()).map(row).collect()
}

fn keys(join: &LookupJoin) -> Vec<String> {
    texts(&join.keys(&orders(), Some(&Tables::default())).unwrap())
}

#[tokio::test]
async fn a_join_tells_its_table_key_and_values() {
    let sql = "SELECT o.amount, c.kind FROM orders o JOIN customers c ON c.customer_id = o.customer";
    let join = only_join(sql).await;
    assert_eq!((join.source.as_str(), join.name().as_str()), ("orders", "customers (customer_id)"));
    assert_eq!(join.columns().collect::<Vec<_>>(), ["customer"]);
    assert_eq!(keys(&join), ["ann", "bob", "zoe", ""]);
    let tables =
        Tables::default().with("customers", vec![("customer_id", Arc::new(StringArray::from(vec!["ann"])))]);
    let looked_for = join.keys(&orders(), Some(&tables)).unwrap();
    let missing = join.missing(&looked_for, &tables).unwrap();
    assert_eq!(texts(&missing), ["bob", "zoe", ""], "what is NULL matches nothing either");
    assert!(join.missing(&looked_for, &Tables::default()).is_err(), "a key that is not indexed is told");
}

#[tokio::test]
async fn every_kind_of_join_with_a_table_is_one() {
    for sql in [
        "SELECT o.amount, c.kind FROM orders o LEFT JOIN customers c ON c.customer_id = o.customer",
        "SELECT o.amount, c.kind FROM customers c RIGHT JOIN orders o ON c.customer_id = o.customer",
        "SELECT amount FROM orders WHERE customer IN (SELECT customer_id FROM customers WHERE kind = 'good')",
        "SELECT amount FROM orders WHERE customer NOT IN (SELECT DISTINCT customer_id FROM customers)",
        "SELECT amount FROM orders o WHERE EXISTS (SELECT 1 FROM customers c WHERE c.customer_id = o.customer)",
        "SELECT c.kind, SUM(o.amount) FROM orders o JOIN customers c ON c.customer_id = o.customer GROUP BY 1",
        "WITH x AS (SELECT customer AS who, amount FROM orders) SELECT * FROM x JOIN customers ON customer_id = who",
        "SELECT o.amount FROM orders o JOIN (SELECT c.customer_id AS id, p.county FROM customers c
         JOIN places p ON p.place_id = c.home) x ON x.id = o.customer",
    ] {
        let join = only_join(sql).await;
        assert_eq!(join.name(), "customers (customer_id)", "{sql}");
        assert_eq!(keys(&join), ["ann", "bob", "zoe", ""], "{sql}");
    }
}

#[tokio::test]
async fn what_is_no_lookup_is_none() {
    for sql in [
        "SELECT customer, amount FROM orders",
        "SELECT c.kind, p.county FROM customers c JOIN places p ON p.place_id = c.home",
        // The table is joined with what was counted.
        "SELECT * FROM (SELECT customer, SUM(amount) AS s FROM orders GROUP BY 1) t JOIN customers ON customer_id = customer",
        "SELECT o.amount FROM orders o JOIN clicks k ON k.customer = o.customer",
        "SELECT o.amount FROM orders o JOIN customers c ON lower(c.customer_id) = o.customer",
        "SELECT o.amount FROM orders o CROSS JOIN customers c WHERE c.home > o.place",
    ] {
        assert_eq!(joins_of(sql).await.len(), 0, "{sql}");
    }
}

#[tokio::test]
async fn rows_that_are_filtered_before_do_not_come_to_the_join() {
    let sql = "SELECT o.amount FROM orders o JOIN customers c ON c.customer_id = o.customer
               WHERE o.amount > 4 AND c.kind = 'good' AND o.customer IS NOT NULL";
    assert_eq!(keys(&only_join(sql).await), ["ann", "zoe"]);
    let sql =
        "SELECT o.amount FROM orders o LEFT JOIN customers c ON c.customer_id = o.customer AND o.amount > 5";
    assert_eq!(keys(&only_join(sql).await), ["ann", ""]);
}

#[tokio::test]
async fn values_are_expressions_over_the_row() {
    let sql = "SELECT o.amount FROM orders o JOIN pairs p ON p.a = upper(o.customer) AND p.b = o.place + 1";
    let join = only_join(sql).await;
    assert_eq!(join.name(), "pairs (a, b)");
    assert_eq!(keys(&join), ["ANN,2", "BOB,3", "ZOE,4", ",5"]);
    // A BIGINT compared with an INT of the table: the index is that of the INT.
    let join = only_join("SELECT o.amount FROM orders o JOIN places p ON p.place_id = o.place").await;
    assert_eq!(
        (join.name().as_str(), keys(&join)),
        ("places (place_id)", ["1", "2", "3", "4"].map(String::from).to_vec())
    );
    let tables = Tables::default()
        .with("places", vec![("place_id", Arc::new(arrow::array::Int32Array::from(vec![2, 4])))]);
    let looked_for = join.keys(&orders(), Some(&tables)).unwrap();
    assert_eq!(texts(&join.missing(&looked_for, &tables).unwrap()), ["1", "3"]);
}

#[tokio::test]
async fn a_row_whose_key_cannot_be_evaluated_is_left_out() {
    let sql = "SELECT o.amount FROM orders o JOIN pairs p ON p.b = CAST(o.code AS BIGINT)";
    assert_eq!(keys(&only_join(sql).await), ["7", "8", "9"]);
    let sql = "SELECT o.amount FROM orders o JOIN customers c ON c.customer_id = o.customer WHERE 10 / o.amount < 2";
    assert_eq!(keys(&only_join(sql).await), ["ann", ""], "bob's amount is 0, zoe's too small");
}

#[tokio::test]
async fn what_an_inner_join_drops_does_not_come_to_the_next() {
    let sql = "SELECT o.amount FROM orders o JOIN customers c ON c.customer_id = o.customer
               JOIN places p ON p.place_id = o.place";
    let joins = joins_of(sql).await;
    let second = joins.iter().find(|join| !join.matched.is_empty()).unwrap();
    assert_eq!(joins.len(), 2);
    let tables = Tables::default()
        .with("customers", vec![("customer_id", Arc::new(StringArray::from(vec!["ann", "zoe"])))])
        .with("places", vec![("place_id", Arc::new(arrow::array::Int32Array::from(vec![1, 3])))]);
    assert_eq!(second.keys(&orders(), Some(&tables)).unwrap().num_rows(), 2);
    assert!(
        second.keys(&orders(), Some(&Tables::default())).is_err(),
        "a table that does not answer is no row's fault"
    );
    assert_eq!(second.keys(&orders(), None).unwrap().num_rows(), 4, "the keys to look up are known before");
    // A key that comes from the first table is none that the stream's row tells.
    let sql = "SELECT o.amount FROM orders o JOIN customers c ON c.customer_id = o.customer
               JOIN places p ON p.place_id = c.home";
    assert_eq!(only_join(sql).await.name(), "customers (customer_id)");
}

#[tokio::test]
async fn each_stream_of_a_union_looks_up_by_itself() {
    let sql = "SELECT u.place, c.kind FROM (SELECT customer, place FROM orders WHERE amount > 4 UNION ALL
               SELECT customer, place FROM clicks) u JOIN customers c ON c.customer_id = u.customer";
    let joins = joins_of(sql).await;
    let mut sources: Vec<_> = joins.iter().map(|join| join.source.as_str()).collect();
    sources.sort();
    assert_eq!(sources, ["clicks", "orders"]);
    let of_orders = joins.iter().find(|join| join.source == "orders").unwrap();
    assert_eq!(keys(of_orders), ["ann", "zoe", ""]);
}

#[tokio::test]
async fn an_unnested_row_looks_up_by_its_own_columns() {
    let sql = "SELECT u.line, c.kind FROM (SELECT customer, unnest(lines) AS line FROM orders) u
               JOIN customers c ON c.customer_id = u.customer";
    assert_eq!(only_join(sql).await.name(), "customers (customer_id)");
    let sql = "SELECT p.note FROM (SELECT unnest(lines) AS line FROM orders) u JOIN pairs p ON p.b = u.line";
    assert_eq!(joins_of(sql).await.len(), 0, "what is unnested is no column of the row");
}

#[tokio::test]
async fn a_foreign_key_that_cannot_be_null_ensures_the_match() {
    let join =
        only_join("SELECT o.amount FROM orders o JOIN customers c ON c.customer_id = o.customer").await;
    for (rules, is_ensured) in [
        ("customer VARCHAR NOT NULL, FOREIGN KEY (customer) REFERENCES customers (customer_id)", true),
        ("customer VARCHAR, FOREIGN KEY (customer) REFERENCES customers (customer_id)", false),
        ("customer VARCHAR NOT NULL, FOREIGN KEY (customer) REFERENCES customers (kind)", false),
        ("customer VARCHAR NOT NULL, FOREIGN KEY (customer) REFERENCES places (customer_id)", false),
        (
            "customer VARCHAR NOT NULL, place INT NOT NULL, FOREIGN KEY (customer, place) REFERENCES customers (customer_id, home)",
            false,
        ),
        ("customer VARCHAR NOT NULL", false),
    ] {
        let text = format!("CREATE UNBOUNDED EXTERNAL TABLE orders ({rules}) STORED AS KAFKA LOCATION 't';");
        let files = [QueryFile { path: "s.sql".into(), text }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        assert_eq!(join.is_ensured(&catalog.sources["orders"]), is_ensured, "{rules}");
    }
    let join =
        only_join("SELECT 1 FROM orders o JOIN customers c ON c.customer_id = upper(o.customer)").await;
    assert!(join.columns.is_none(), "an expression is no column that a rule speaks of");
}

const SHOP: &str = "
CREATE UNBOUNDED EXTERNAL TABLE orders (customer VARCHAR NOT NULL, place BIGINT NOT NULL, amount BIGINT,
  FOREIGN KEY (place) REFERENCES places (place_id)) STORED AS KAFKA LOCATION 'orders';
CREATE MATERIALIZED VIEW by_kind AS
  SELECT c.kind, COUNT(*) AS n FROM orders o JOIN customers c ON c.customer_id = o.customer GROUP BY c.kind;
CREATE MATERIALIZED VIEW large AS SELECT o.amount, c.kind FROM orders o
  LEFT JOIN customers c ON c.customer_id = o.customer WHERE o.amount > 5;
CREATE MATERIALIZED VIEW by_county AS
  SELECT p.county, COUNT(*) AS n FROM orders o JOIN places p ON p.place_id = o.place GROUP BY p.county;";

#[tokio::test]
async fn an_engine_tells_what_its_views_look_up_and_what_finds_no_match() {
    let files = [QueryFile { path: "shop.sql".into(), text: SHOP.into() }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
    let schema = |columns: &[(&str, DataType)]| -> SchemaRef {
        Arc::new(Schema::new(
            columns.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>(),
        ))
    };
    let tables = [
        ("customers".to_string(), schema(&[("customer_id", DataType::Utf8), ("kind", DataType::Utf8)])),
        ("places".to_string(), schema(&[("place_id", DataType::Int32), ("county", DataType::Utf8)])),
    ];
    let engine = Engine::plan(&catalog, &tables).await.unwrap();
    let customers = ("customers".to_string(), vec!["customer_id".to_string()]);
    assert_eq!(engine.lookup_keys(), [customers.clone(), customers], "a place is ensured by the rules");
    let rows = orders().slice(0, 3);
    let held =
        Tables::default().with("customers", vec![("customer_id", Arc::new(StringArray::from(vec!["ann"])))]);
    let missing = engine.missing_lookups("orders", &rows, &held).unwrap();
    assert_eq!(missing.len(), 1, "one question for both views");
    assert_eq!(
        (missing[0].0.as_str(), texts(&missing[0].2)),
        ("customers", vec!["bob".into(), "zoe".into()])
    );
    let unmatched =
        |view: &str, rows| Unmatched { view: view.into(), join: "customers (customer_id)".into(), rows };
    assert_eq!(engine.unmatched("orders", &rows, &held).unwrap(), [unmatched("by_kind", 2)]);
    let nobody =
        Tables::default().with("customers", vec![("customer_id", Arc::new(StringArray::from(vec!["x"])))]);
    let found = engine.unmatched("orders", &rows, &nobody).unwrap();
    assert_eq!(found, [unmatched("by_kind", 3), unmatched("large", 1)]);
    assert_eq!(engine.unmatched("clicks", &rows, &nobody).unwrap(), []);
    let plan = &engine.views().find(|view| view.name == "large").unwrap().plan;
    assert!(plan.contains("lookup join with customers (customer_id)"), "{plan}");
}
