//! Reference tables from files, for an engine without a Postgres.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reference::{ReferenceTable, References, TableDef, Wanted};

/// Rows of a CSV file that are looked at for its columns' types, as DataFusion does.
const INFER_ROWS: usize = 1000;

/// A reference table and its rows.
#[derive(Clone, Debug)]
pub struct TableRows {
    /// Its name in SQL.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows, of these columns.
    pub batches: Vec<RecordBatch>,
}

/// Reads tables from files, as [`read_table`] does.
pub fn read_tables(
    declared: &BTreeMap<String, SchemaRef>,
    files: &[(String, PathBuf)],
) -> Result<Vec<TableRows>> {
    files.iter().map(|(name, path)| read_table(declared, name, path)).collect()
}

/// Reads a table from a `.csv` file with a header, or from JSON objects, one a line. If it is `declared` it has these
/// columns, of which those that the file lacks are NULL; without that the types are inferred.
pub fn read_table(declared: &BTreeMap<String, SchemaRef>, name: &str, path: &Path) -> Result<TableRows> {
    let declared = declared.get(name).cloned();
    let failed = |e: ArrowError| Error::Config(format!("table {name}: {}: {e}", path.display()));
    let (schema, batches) = if is_json(path) {
        read_json(path, declared).map_err(failed)?
    } else {
        read_csv(path, declared).map_err(failed)?
    };
    Ok(TableRows { name: name.into(), schema, batches })
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "ndjson" || e == "jsonl" || e == "json")
}

/// The tables as the engine and the rules need them.
pub fn references(tables: &[TableRows], catalog: &Catalog, engine: &Engine) -> Result<References> {
    let def = |table: &TableRows| TableDef {
        name: table.name.clone(),
        schema: Arc::clone(&table.schema),
        primary_key: Vec::new(),
        types: Vec::new(),
    };
    let defs: Vec<_> = tables.iter().map(def).collect();
    let mut references = References::default();
    for wanted in Wanted::of(
        engine.reference_columns(),
        &defs,
        &[catalog.foreign_keys(), engine.lookup_keys()].concat(),
    ) {
        let table = tables.iter().find(|table| table.name == wanted.def.name);
        let batches = table.map(|table| table.batches.clone()).unwrap_or_default();
        references.set(Arc::new(ReferenceTable::new(Arc::new(wanted), batches, 1, Instant::now())?));
    }
    Ok(references)
}

type Table = (SchemaRef, Vec<RecordBatch>);

fn read_csv(path: &Path, declared: Option<SchemaRef>) -> Result<Table, ArrowError> {
    let format = arrow_csv::reader::Format::default().with_header(true);
    let rows_max = if declared.is_some() { 0 } else { INFER_ROWS };
    let header = format.infer_schema(File::open(path)?, Some(rows_max))?.0;
    let of_file = match &declared {
        Some(declared) => Arc::new(of_header(&header, declared)?),
        None => Arc::new(header),
    };
    let reader =
        arrow_csv::ReaderBuilder::new(Arc::clone(&of_file)).with_header(true).build(File::open(path)?)?;
    let Some(declared) = declared else { return Ok((of_file, reader.collect::<Result<_, _>>()?)) };
    let batches = reader.map(|batch| with_all_columns(&batch?, &declared)).collect::<Result<_, _>>()?;
    Ok((declared, batches))
}

/// The declared columns that a file has, in its order.
fn of_header(header: &Schema, declared: &SchemaRef) -> Result<Schema, ArrowError> {
    let field = |name: &String| {
        declared.field_with_name(name).cloned().map_err(|_| {
            let known: Vec<_> = declared.fields().iter().map(|field| field.name().as_str()).collect();
            ArrowError::SchemaError(format!(
                "its header names a column `{name}`, and the table has {}",
                known.join(", ")
            ))
        })
    };
    header.fields().iter().map(|found| field(found.name())).collect::<Result<Vec<_>, _>>().map(Schema::new)
}

fn with_all_columns(batch: &RecordBatch, declared: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let rows = batch.num_rows();
    let columns = declared.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => Arc::clone(column),
        None => new_null_array(field.data_type(), rows),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(declared), columns.collect(), &options)
}

fn read_json(path: &Path, declared: Option<SchemaRef>) -> Result<Table, ArrowError> {
    let open = || Ok::<_, std::io::Error>(BufReader::new(File::open(path)?));
    let schema = match declared {
        Some(schema) => schema,
        None => Arc::new(arrow_json::reader::infer_json_schema(open()?, Some(INFER_ROWS))?.0),
    };
    let reader = arrow_json::ReaderBuilder::new(Arc::clone(&schema)).build(open()?)?;
    Ok((schema, reader.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    fn declared() -> BTreeMap<String, SchemaRef> {
        let fields = [("id", DataType::Int64), ("name", DataType::Utf8), ("since", DataType::Date32)];
        let fields = fields.map(|(name, of)| Field::new(name, of, true)).to_vec();
        BTreeMap::from([("customers".to_string(), Arc::new(Schema::new(fields)))])
    }

    fn read(text: &str) -> Result<String> {
        let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let table = read_table(&declared(), "customers", file.path())?;
        Ok(pretty_format_batches(&table.batches).unwrap().to_string())
    }

    #[test]
    fn a_file_may_have_its_columns_in_another_order_and_lack_some() {
        let table = read("since,id\n2024-05-01,7\n").unwrap();
        assert!(table.contains("| id | name | since      |"), "{table}");
        assert!(table.contains("| 7  |      | 2024-05-01 |"), "{table}");
    }

    #[test]
    fn a_column_that_is_not_declared_is_told_with_those_that_are() {
        let error = read("id,nmae\n7,Ann\n").unwrap_err().to_string();
        assert!(error.contains("a column `nmae`, and the table has id, name, since"), "{error}");
    }
}
