//! What tables a Postgres schema has, and how their columns look in Arrow and in the SQL that reads them.
//! Reads the catalog only, no rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use sqlx::{PgPool, Row};

use super::load::failed;
use super::store::StoreError;

/// Postgres's own offset in the type modifier of `numeric`.
pub(super) const TYPMOD_OFFSET: i32 = 4;

/// One table or view of Postgres.
#[derive(Clone, Debug)]
pub struct TableDef {
    /// Its name, without the schema.
    pub name: String,
    /// Its columns as Arrow has them.
    pub schema: SchemaRef,
    /// Columns of its primary key in the key's order; empty without one.
    pub primary_key: Vec<String>,
    /// Each column's type as Postgres calls it, in the order of `schema`: the SQL that reads or compares a
    /// column needs it.
    pub types: Vec<String>,
}

/// Every table, partitioned table and view of a schema, by name. Partitions show in their parent, and the
/// table in which migrations are noted is left out.
pub async fn describe(pool: &PgPool, pg_schema: &str) -> Result<Vec<TableDef>, StoreError> {
    let action = format!("listing the tables of schema {pg_schema}");
    let failed = |e: sqlx::Error| failed(&action, &e);
    let rows = sqlx::query(
        "SELECT c.relname::text, a.attname::text, format_type(coalesce(b.oid, t.oid), NULL),
                CASE WHEN b.oid IS NULL THEN a.atttypmod ELSE t.typtypmod END,
                a.attnotnull, array_position(i.indkey::int2[], a.attnum)
         FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         LEFT JOIN pg_type t ON t.oid = a.atttypid
         LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
         LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
         WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
           AND c.relname <> '_sqlx_migrations'
         ORDER BY c.relname, a.attnum",
    )
    .bind(pg_schema)
    .fetch_all(pool)
    .await
    .map_err(failed)?;

    let mut tables: Vec<Building> = Vec::new();
    for row in &rows {
        let name: String = row.try_get(0).map_err(failed)?;
        if tables.last().is_none_or(|t| t.name != name) {
            tables.push(Building { name, ..Default::default() });
        }
        let table = tables.last_mut().expect("invariant: pushed above");
        // A table may have no column at all.
        let Some(column): Option<String> = row.try_get(1).map_err(failed)? else { continue };
        let type_name: String = row.try_get(2).map_err(failed)?;
        let not_null: bool = row.try_get(4).map_err(failed)?;
        if let Some(position) = row.try_get::<Option<i32>, _>(5).map_err(failed)? {
            table.key.push((position, column.clone()));
        }
        let data_type = arrow_type(&type_name, row.try_get(3).map_err(failed)?);
        table.fields.push(Field::new(column, data_type, !not_null));
        table.types.push(type_name);
    }
    Ok(tables.into_iter().map(Building::finish).collect())
}

#[derive(Default)]
struct Building {
    name: String,
    fields: Vec<Field>,
    types: Vec<String>,
    key: Vec<(i32, String)>,
}

impl Building {
    fn finish(mut self) -> TableDef {
        self.key.sort();
        TableDef {
            name: self.name,
            schema: Arc::new(Schema::new(self.fields)),
            primary_key: self.key.into_iter().map(|(_, column)| column).collect(),
            types: self.types,
        }
    }
}

/// The Arrow type of a Postgres type; what Arrow has no like of is its text.
pub(super) fn arrow_type(type_name: &str, typmod: i32) -> DataType {
    match type_name {
        "boolean" => DataType::Boolean,
        "smallint" => DataType::Int16,
        "integer" => DataType::Int32,
        "bigint" => DataType::Int64,
        "real" => DataType::Float32,
        "double precision" => DataType::Float64,
        "numeric" => numeric_type(typmod),
        "date" => DataType::Date32,
        "time without time zone" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp without time zone" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamp with time zone" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => DataType::Utf8,
    }
}

/// A `numeric` that no 128-bit decimal holds is its text, which is exact: so is one that declares no
/// precision, since each of its values may have another number of digits.
fn numeric_type(typmod: i32) -> DataType {
    if typmod < TYPMOD_OFFSET {
        return DataType::Utf8;
    }
    let precision = (typmod - TYPMOD_OFFSET) >> 16;
    // The scale is a signed number of 11 bits.
    let scale = (((typmod - TYPMOD_OFFSET) & 0x7ff) ^ 1024) - 1024;
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=38), Ok(s @ 0..)) if i32::from(s) <= precision => DataType::Decimal128(p, s),
        _ => DataType::Utf8,
    }
}

impl TableDef {
    /// What whoever reads these columns should know.
    pub fn notes(&self, columns: &BTreeSet<String>) -> Vec<String> {
        let columns_and_types = self.schema.fields().iter().zip(&self.types);
        let plain_numerics = columns_and_types.filter(|(field, type_name)| {
            *type_name == "numeric" && *field.data_type() == DataType::Utf8 && columns.contains(field.name())
        });
        let note = |column: &str| {
            format!(
                "{}.{column} is a numeric of no size, or of more digits than a DECIMAL has: it is held as text, which is exact; CAST it \
                 to the DECIMAL you need",
                self.name
            )
        };
        plain_numerics.map(|(field, _)| note(field.name())).collect()
    }

    /// A column's position, or an error that names the columns there are.
    pub(super) fn index_of(&self, column: &str) -> Result<usize, StoreError> {
        self.schema.index_of(column).map_err(|_| {
            let known: Vec<&str> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
            StoreError::refused(
                format!("reading table {}", self.name),
                format!("it has no column {column}; it has {}", known.join(", ")),
            )
        })
    }

    /// The SQL expression whose CSV text Arrow reads as the column's type. Dates and timestamps beyond the
    /// years 1 to 9999, infinite ones among them, become the nearest end of that range, so that they still
    /// compare as they should; so does the time 24:00.
    pub(super) fn expression(&self, index: usize) -> String {
        let field = self.schema.field(index);
        let column = quote_identifier(field.name());
        let clamp = |value: &str, type_name: &str, last: &str| {
            format!(
                "CASE WHEN {value} < '0001-01-01' THEN {type_name} '0001-01-01' \
                 WHEN {value} > '{last}' THEN {type_name} '{last}' ELSE {value} END"
            )
        };
        match field.data_type() {
            DataType::Boolean | DataType::Utf8 => format!("{column}::text"),
            DataType::Date32 => clamp(&column, "date", "9999-12-31"),
            DataType::Timestamp(_, None) => clamp(&column, "timestamp", "9999-12-31 23:59:59.999999"),
            DataType::Timestamp(_, Some(_)) => {
                clamp(&format!("({column} AT TIME ZONE 'UTC')"), "timestamp", "9999-12-31 23:59:59.999999")
            }
            DataType::Time64(_) => {
                format!("CASE WHEN {column} = '24:00' THEN time '23:59:59.999999' ELSE {column} END")
            }
            DataType::Decimal128(p, s) => format!("{column}::numeric({p},{s})"),
            _ => column,
        }
    }

    /// How to compare a key column with a list of texts: the expression, and the type that the texts are
    /// cast to. The column itself stands there wherever that is sound, so that its index is used.
    pub(super) fn comparison(&self, index: usize) -> (String, String) {
        let column = quote_identifier(self.schema.field(index).name());
        match (self.schema.field(index).data_type(), self.types[index].as_str()) {
            (DataType::Utf8, "text" | "character varying") => (column, "text".into()),
            (DataType::Utf8, "character" | "bpchar") => (column, "bpchar".into()),
            (DataType::Utf8, "uuid") => (column, "uuid".into()),
            (DataType::Utf8, _) => (format!("{column}::text"), "text".into()),
            (_, type_name) => (column, type_name.into()),
        }
    }
}

/// A name as SQL writes it.
pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL writes it, whatever `standard_conforming_strings` is.
pub(super) fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
