//! A test that is an `.slt` file: each INSERT, UPDATE and DELETE is a micro-batch, or changes a reference table.

use std::path::Path;
use std::sync::Mutex;

use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use sqllogictest::{
    AsyncDB, DBOutput, DefaultColumnType, Injected, MakeConnection, Record, Runner, TestError, TestErrorKind,
    default_column_validator, default_normalizer, default_validator, update_record_with_output,
};

use super::bench::Bench;
use super::messages::{cells, messages, tells_only_new};
use super::statements::{Edit, inserted, is_insert};
use super::{Project, Ran};
use crate::engine::session;
use crate::epoch::EpochOutput;
use crate::error::{Error, Result};
use crate::replay::differences;

/// How an empty text is shown, which would be no word on its line.
const EMPTY: &str = "(empty)";

/// Runs a file; `update`: writes what comes out into it first.
pub async fn run(project: &Project, path: &Path, update: bool) -> Result<Ran> {
    let before = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
    let mut updated = false;
    if update {
        let after = updated_text(&mut runner(project).await?, path).await?;
        updated = after != before;
        if updated {
            std::fs::write(path, after).map_err(|e| Error::io("writing", path, e))?;
        }
    }
    let ran = runner(project).await?.run_file_async(path).await;
    Ok(Ran { failure: ran.err().map(|error| told(&error)), updated })
}

async fn runner(project: &Project) -> Result<Runner<Database, impl MakeConnection<Conn = Database> + use<>>> {
    let (bench, _) = Bench::new(project, Vec::new()).await?;
    let bench = Mutex::new(Some(bench));
    Ok(Runner::new(move || {
        let bench = bench.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let bench = bench.ok_or_else(|| Error::Test("a test has one connection".into()));
        async { bench.map(Database) }
    }))
}

/// The file with what came out as what is expected; files that it includes are left as they are.
async fn updated_text(
    runner: &mut Runner<Database, impl MakeConnection<Conn = Database>>,
    path: &Path,
) -> Result<String> {
    let wrong = |error| Error::Test(told(&TestError::from(error)));
    let records = sqllogictest::parse_file::<DefaultColumnType>(path).map_err(wrong)?;
    let (mut text, mut included, mut halted) = (String::new(), 0, false);
    for record in records {
        match &record {
            Record::Injected(Injected::BeginInclude(_)) => included += 1,
            Record::Injected(Injected::EndInclude(_)) => included -= 1,
            Record::Halt { .. } => halted = true,
            _ => {}
        }
        let shown = if halted {
            record
        } else {
            let output = runner.apply_record(record.clone()).await;
            let updated = update_record_with_output(
                &record,
                &output,
                " ",
                default_validator,
                default_normalizer,
                default_column_validator,
            );
            updated.unwrap_or(record)
        };
        if included == 0 && !matches!(shown, Record::Injected(_)) {
            text += &format!("{shown}\n");
        }
    }
    Ok(format!("{}\n", text.trim_end()))
}

/// What a failed test says: where, what, and how it differs.
fn told(error: &TestError) -> String {
    let at = error.location();
    match error.kind() {
        TestErrorKind::QueryResultMismatch { sql, expected, actual } => {
            let diff = differences(&expected, &actual).unwrap_or_default();
            format!("{at}: these rows are expected (-), those came out (+)\n{sql}\n{diff}")
        }
        TestErrorKind::Fail { sql, err, .. } => format!("{at}: {err}\n{sql}"),
        TestErrorKind::Ok { sql, .. } => format!("{at}: this is expected to fail, and does not\n{sql}"),
        TestErrorKind::ErrorMismatch { sql, err, expected_err, .. } => {
            format!("{at}: this is expected to fail with another error\n{sql}\n-{expected_err}\n+{err}")
        }
        other => format!("{at}: {other}"),
    }
}

/// The database that a test speaks to.
struct Database(Bench);

#[async_trait::async_trait]
impl AsyncDB for Database {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let sql = sql.trim().trim_end_matches(';');
        let mut words = sql.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match first.to_lowercase().as_str() {
            "create" => self.0.declare(sql).await?,
            "insert" => self.insert(sql).await?,
            "delete" | "update" => self.edit(sql).await?,
            "explain" if self.0.replay().view(second).is_ok() => {
                let plan = &self.0.replay().view(second)?.plan;
                return Ok(rows(plan.lines().map(|line| vec![line.to_string()]).collect()));
            }
            _ => return self.query(sql).await,
        }
        Ok(DBOutput::StatementComplete(0))
    }

    async fn shutdown(&mut self) {}
}

impl Database {
    async fn insert(&mut self, sql: &str) -> Result<()> {
        let Some(table) = is_insert(sql)? else { return Err(Error::Test(format!("no INSERT: {sql}"))) };
        let new = inserted(sql, self.0.schema(&table)?).await?;
        if self.0.source(&table).is_some() {
            return self.send(&table, &new.slice(0, 0), &new).await;
        }
        let mut rows = self.0.table(&table);
        rows.push(new);
        self.0.set_table(&table, rows).await?;
        Ok(())
    }

    async fn edit(&mut self, sql: &str) -> Result<()> {
        let edit = Edit::parse(sql)?;
        let (schema, session) = (self.0.schema(&edit.table)?, self.0.session().await?);
        let Some(source) = self.0.source(&edit.table) else {
            let rows = edit.all_after(&session, &schema).await?;
            self.0.set_table(&edit.table, vec![rows]).await?;
            return Ok(());
        };
        if !source.retracts() {
            return Err(Error::Test(format!(
                "{} takes no rows back: that needs 'on_conflict' 'replace' or 'format' 'debezium-json'",
                source.name
            )));
        }
        let only_new = tells_only_new(source);
        let (before, after) = edit.touched(&session, &schema).await?;
        match only_new && after.num_rows() > 0 {
            true => self.send(&edit.table, &before.slice(0, 0), &after).await,
            false => self.send(&edit.table, &before, &after).await,
        }
    }

    /// Sends a micro-batch; an error if its source does not count all of it. The other messages count nevertheless.
    async fn send(
        &mut self,
        source: &str,
        before: &arrow::array::RecordBatch,
        after: &arrow::array::RecordBatch,
    ) -> Result<()> {
        let Some(def) = self.0.source(source) else { return Ok(()) };
        let batch = messages(def, before, after, self.0.received(source) + 1)?;
        let output = self.0.send(source, batch).await?;
        let Some(EpochOutput { counted: Some(counted), .. }) = output else { return Ok(()) };
        let refused = counted.rejects.iter().filter(|reject| reject.view.is_none());
        let reasons: Vec<_> = refused.map(|reject| format!("{}: {}", reject.rule, reject.reason)).collect();
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(Error::Test(format!("not counted: {}", reasons.join("; ")))),
        }
    }

    /// An error for a name that a query can't read, in other words than the planner's.
    fn check_names(&self, session: &SessionContext, sql: &str) -> Result<()> {
        let state = session.state();
        let statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
        for name in state.resolve_table_references(&statement)? {
            let table = name.table();
            if let Some(failure) = self.0.replay().failures().into_iter().find(|f| f.view == table) {
                return Err(Error::Test(format!("view {table} has failed: {}", failure.reason)));
            }
            if name.schema().is_none()
                && !session.table_exist(table)?
                && state.table_functions().get(table).is_none()
            {
                let known = self.0.names().join(", ");
                return Err(Error::Test(format!(
                    "there is no view, source or table `{table}`; there are {known}"
                )));
            }
        }
        Ok(())
    }

    async fn query(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let session = self.0.session().await?;
        self.check_names(&session, sql)?;
        let plan = session::plan(&session, sql).await?;
        let only_queries =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        only_queries.verify_plan(&plan)?;
        let batches = session.execute_logical_plan(plan).await?.collect().await?;
        let mut found = Vec::new();
        for batch in &batches {
            found.extend(cells(batch)?);
        }
        let spell = |cell: String| if cell.is_empty() { EMPTY.into() } else { cell };
        Ok(rows(found.into_iter().map(|row| row.into_iter().map(spell).collect()).collect()))
    }
}

fn rows(rows: Vec<Vec<String>>) -> DBOutput<DefaultColumnType> {
    let columns = rows.first().map_or(0, Vec::len);
    DBOutput::Rows { types: vec![DefaultColumnType::Any; columns], rows }
}
