//! Reference tables from files, for an engine without a Postgres.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reference::{ReferenceTable, References, TableDef, Wanted};

/// Rows of a CSV file that are looked at for its columns' types, as DataFusion does.
const INFER_ROWS: usize = 1000;

/// A reference table read from a file.
pub struct FileTable {
    /// Its name in SQL.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// Reads tables from `.csv` or `.ndjson` files. A table that `catalog` declares has the declared columns, by
/// position; the types of others are inferred.
pub fn read_tables(catalog: &Catalog, files: &[(String, PathBuf)]) -> Result<Vec<FileTable>> {
    let read = |(name, path): &(String, PathBuf)| {
        let declared = catalog.tables.get(name).map(|table| Arc::clone(&table.schema));
        let failed =
            |e: arrow::error::ArrowError| Error::Config(format!("table {name}: {}: {e}", path.display()));
        let is_json = path.extension().is_some_and(|e| e == "ndjson" || e == "jsonl" || e == "json");
        let (schema, batches) = if is_json {
            read_json(path, declared).map_err(failed)?
        } else {
            read_csv(path, declared).map_err(failed)?
        };
        Ok(FileTable { name: name.clone(), schema, batches })
    };
    files.iter().map(read).collect()
}

/// The tables as the engine and the rules need them.
pub fn references(tables: Vec<FileTable>, catalog: &Catalog, engine: &Engine) -> Result<References> {
    let def = |table: &FileTable| TableDef {
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

fn read_csv(path: &Path, declared: Option<SchemaRef>) -> Result<Table, arrow::error::ArrowError> {
    let format = arrow_csv::reader::Format::default().with_header(true);
    let schema = match declared {
        Some(schema) => schema,
        None => Arc::new(format.infer_schema(File::open(path)?, Some(INFER_ROWS))?.0),
    };
    let reader =
        arrow_csv::ReaderBuilder::new(Arc::clone(&schema)).with_header(true).build(File::open(path)?)?;
    Ok((schema, reader.collect::<Result<_, _>>()?))
}

fn read_json(path: &Path, declared: Option<SchemaRef>) -> Result<Table, arrow::error::ArrowError> {
    let open = || Ok::<_, std::io::Error>(BufReader::new(File::open(path)?));
    let schema = match declared {
        Some(schema) => schema,
        None => Arc::new(arrow_json::reader::infer_json_schema(open()?, Some(INFER_ROWS))?.0),
    };
    let reader = arrow_json::ReaderBuilder::new(Arc::clone(&schema)).build(open()?)?;
    Ok((schema, reader.collect::<Result<_, _>>()?))
}
