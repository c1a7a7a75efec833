//! The tables that migrations create, read from their text: for `tally check`, which asks no Postgres.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::ast::{DataType as SqlType, ExactNumberInfo, Statement, TimezoneInfo};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use sqlx::migrate::Migrator;

use super::TableDef;
use super::schema::{TYPMOD_OFFSET, arrow_type};

/// Each table of the default schema, with its columns as Postgres would have them. What is no CREATE TABLE is
/// passed over: only Postgres understands all of it.
pub fn tables_of_migrations(migrator: &Migrator) -> Vec<TableDef> {
    migrator.iter().flat_map(|migration| tables_of(migration.sql.as_str())).collect()
}

fn tables_of(sql: &str) -> Vec<TableDef> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap_or_else(|error| {
        tracing::debug!("a migration: {error}");
        Vec::new()
    });
    let table = |statement: Statement| match statement {
        Statement::CreateTable(table) if table.name.0.len() == 1 => {
            let columns = table.columns.iter().map(|column| {
                let (name, typmod) = postgres_type(&column.data_type);
                (Field::new(column.name.value.clone(), arrow_type(&name, typmod), true), name)
            });
            let (fields, types): (Vec<_>, Vec<_>) = columns.unzip();
            let schema = Arc::new(Schema::new(fields));
            Some(TableDef { name: table.name.to_string(), schema, primary_key: Vec::new(), types })
        }
        _ => None,
    };
    statements.into_iter().filter_map(table).collect()
}

/// A type's name and modifier as Postgres's catalog has them.
fn postgres_type(data_type: &SqlType) -> (String, i32) {
    let plain = |name: &str| (name.to_string(), -1);
    match data_type {
        SqlType::SmallInt(_) | SqlType::Int2(_) => plain("smallint"),
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) => plain("integer"),
        SqlType::BigInt(_) | SqlType::Int8(_) => plain("bigint"),
        SqlType::Real | SqlType::Float4 => plain("real"),
        SqlType::Double(_) | SqlType::DoublePrecision | SqlType::Float8 => plain("double precision"),
        SqlType::Boolean | SqlType::Bool => plain("boolean"),
        SqlType::Date => plain("date"),
        SqlType::Time(..) => plain("time without time zone"),
        SqlType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => {
            plain("timestamp with time zone")
        }
        SqlType::Timestamp(..) => plain("timestamp without time zone"),
        SqlType::Numeric(info) | SqlType::Decimal(info) => match info {
            ExactNumberInfo::None => plain("numeric"),
            ExactNumberInfo::Precision(precision) => ("numeric".into(), typmod(*precision, 0)),
            ExactNumberInfo::PrecisionAndScale(precision, scale) => {
                ("numeric".into(), typmod(*precision, *scale))
            }
        },
        other => plain(&other.to_string().to_lowercase()),
    }
}

fn typmod(precision: u64, scale: i64) -> i32 {
    ((precision as i32) << 16 | (scale as i32 & 0x7ff)) + TYPMOD_OFFSET
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;

    use super::*;

    #[test]
    fn the_elections_tables_are_read_from_its_migrations() {
        let tables = tables_of_migrations(&crate::election::MIGRATIONS);
        let voters = &tables.iter().find(|table| table.name == "voters").unwrap().schema;
        let type_of = |column: &str| voters.field_with_name(column).unwrap().data_type().clone();
        assert_eq!(type_of("voter_id"), DataType::Utf8);
        assert_eq!(type_of("date_of_birth"), DataType::Date32);
        assert_eq!(type_of("registered_age"), DataType::Int32);
        let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(
            names,
            ["candidates", "voters", "votes", "places", "previous_results", "previous_registers"],
            "those of schema tally_internal are no reference tables"
        );
    }

    #[test]
    fn a_numeric_without_a_precision_is_text_and_is_told() {
        let sql = "CREATE TABLE prices (id INT, price NUMERIC, tax NUMERIC(9, 2), total DECIMAL NOT NULL);";
        let prices = tables_of(sql).remove(0);
        let type_of = |column: &str| prices.schema.field_with_name(column).unwrap().data_type().clone();
        assert_eq!((type_of("price"), type_of("tax")), (DataType::Utf8, DataType::Decimal128(9, 2)));
        let needed = ["id", "price", "tax"].map(String::from).into();
        assert_eq!(
            prices.notes(&needed),
            [
                "prices.price is a numeric of no size, or of more digits than a DECIMAL has: it is held as text, which is exact; CAST it \
              to the DECIMAL you need"
            ]
        );
    }
}
