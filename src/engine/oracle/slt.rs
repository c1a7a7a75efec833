//! Runs `tests/sql/*.slt` on an engine and its oracle; each `INSERT`, `UPDATE` and `DELETE` is a micro-batch.

use std::path::Path;

use arrow::array::RecordBatch;

use super::Pair;
use super::rows::cells;
use super::statements;
use crate::error::{Error, Result};
use crate::project::testing::{inserted, is_insert};

/// The database that sqllogictest talks to.
struct Database(Pair);

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Database {
    type Error = Error;
    type ColumnType = sqllogictest::DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<sqllogictest::DBOutput<Self::ColumnType>, Error> {
        let sql = sql.trim().trim_end_matches(';');
        let word = |n: usize| sql.split_whitespace().nth(n).unwrap_or_default().to_lowercase();
        match word(0).as_str() {
            "create" => self.0.declare(sql).await?,
            "insert" => {
                let table = is_insert(sql)?.unwrap_or_default();
                let schema = self.0.schema(&table).unwrap_or_else(|| panic!("{table} is not declared"));
                let rows = inserted(sql, schema).await?;
                self.0.insert(&table, rows).await;
                self.0.check().await;
            }
            "delete" | "update" => {
                statements::run(&mut self.0, sql).await?;
                self.0.check().await;
            }
            "explain" => {
                let view = word(1);
                let rows = self.0.plan(&view).lines().map(|line| vec![line.to_string()]).collect();
                return Ok(sqllogictest::DBOutput::Rows {
                    types: vec![sqllogictest::DefaultColumnType::Any],
                    rows,
                });
            }
            _ => {
                let batches = self.0.session().await.sql(sql).await?.collect().await?;
                let columns = batches.first().map_or(0, RecordBatch::num_columns);
                let types = vec![sqllogictest::DefaultColumnType::Any; columns];
                let spell = |cell: String| if cell.is_empty() { "(empty)".into() } else { cell };
                let rows: Vec<Vec<String>> =
                    batches.iter().flat_map(cells).map(|row| row.into_iter().map(spell).collect()).collect();
                return Ok(sqllogictest::DBOutput::Rows { types, rows });
            }
        }
        Ok(sqllogictest::DBOutput::StatementComplete(0))
    }

    async fn shutdown(&mut self) {}
}

/// With TALLY_UPDATE_SQL set, the files' expected rows are written anew: look at the difference.
#[test]
fn the_files_of_tests_sql_hold() {
    run_files(Pair::new, std::env::var_os("TALLY_UPDATE_SQL").is_some());
}

#[test]
fn the_files_of_tests_sql_hold_when_each_micro_batch_meets_a_restored_engine() {
    run_files(Pair::restarting, false);
}

fn run_files(pair: fn() -> Pair, updates: bool) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(!files.is_empty());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut failed = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = std::panic::catch_unwind(|| {
            let mut runner = sqllogictest::Runner::new(|| async { Ok(Database(pair())) });
            if updates {
                let update = runner.update_test_file(
                    &file,
                    " ",
                    sqllogictest::default_validator,
                    sqllogictest::default_normalizer,
                    sqllogictest::default_column_validator,
                );
                return runtime.block_on(update).map_err(|e| e.to_string());
            }
            runtime.block_on(runner.run_file_async(&file)).map_err(|e| e.display(false).to_string())
        });
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{name}: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failed.push(format!("{name}: {text}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
