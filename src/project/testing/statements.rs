//! INSERT, UPDATE and DELETE of a test: which rows come, and which go.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{Assignment, Expr, FromTable, Statement as SqlStatement, TableObject};

use crate::engine::session;
use crate::error::{Error, Result};

/// The table of an INSERT; none if a statement is none.
pub fn is_insert(sql: &str) -> Result<Option<String>> {
    match parsed(sql)? {
        SqlStatement::Insert(insert) => match insert.table {
            TableObject::TableName(name) => Ok(Some(bare(&name.to_string()))),
            other => Err(Error::Test(format!("INSERT INTO {other}: write the name of a source or table"))),
        },
        _ => Ok(None),
    }
}

/// The rows of an INSERT into a table with these columns, as DataFusion's own reads them.
pub async fn inserted(sql: &str, schema: SchemaRef) -> Result<RecordBatch> {
    let Some(table) = is_insert(sql)? else { return Err(Error::Test(format!("no INSERT: {sql}"))) };
    let session = session::batch(session::base_config());
    let empty = MemTable::try_new(Arc::clone(&schema), vec![vec![]])?;
    session.register_table(table.as_str(), Arc::new(empty))?;
    session.sql(sql).await?.collect().await?;
    let rows = session.table(table.as_str()).await?.collect().await?;
    Ok(concat_batches(&schema, &rows)?)
}

/// An UPDATE or DELETE.
pub struct Edit {
    /// The table.
    pub table: String,
    condition: String,
    /// Of an UPDATE.
    assignments: Option<Vec<Assignment>>,
}

impl Edit {
    /// Reads a statement.
    pub fn parse(sql: &str) -> Result<Edit> {
        let (table, selection, assignments) = match parsed(sql)? {
            SqlStatement::Delete(delete) => {
                let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = delete.from;
                let table = from.first().map(ToString::to_string).unwrap_or_default();
                (table, delete.selection, None)
            }
            SqlStatement::Update(update) => {
                (update.table.to_string(), update.selection, Some(update.assignments))
            }
            other => return Err(Error::Test(format!("neither UPDATE nor DELETE: {other}"))),
        };
        let condition = selection.map_or("true".into(), |condition: Expr| condition.to_string());
        let condition = format!("coalesce(({condition}), false)");
        Ok(Edit { table: bare(&table), condition, assignments })
    }

    /// The rows that it touches, as they were and, of an UPDATE, as they are then, in one order. `session` has the table,
    /// of these columns.
    pub async fn touched(
        &self,
        session: &SessionContext,
        schema: &SchemaRef,
    ) -> Result<(RecordBatch, RecordBatch)> {
        let columns = self.columns(schema)?;
        let names = columns.iter().map(|column| column.name.clone());
        let values = names.chain(columns.iter().map(|column| column.new.clone())).collect();
        let both = self.select(session, schema, values, &self.condition).await?;
        let (before, after) = both.split_at(columns.len());
        let rows = |columns: &[ArrayRef]| RecordBatch::try_new(Arc::clone(schema), columns.to_vec());
        let (before, after) = (rows(before)?, rows(after)?);
        Ok(match self.assignments {
            Some(_) => (before, after),
            None => {
                let none = after.slice(0, 0);
                (before, none)
            }
        })
    }

    /// All rows of the table, as they are then.
    pub async fn all_after(&self, session: &SessionContext, schema: &SchemaRef) -> Result<RecordBatch> {
        let (condition, columns) = (&self.condition, self.columns(schema)?);
        let value = |c: &Column| format!("CASE WHEN {condition} THEN {} ELSE {} END", c.new, c.name);
        let (values, filter) = match self.assignments {
            Some(_) => (columns.iter().map(value).collect(), "true".into()),
            None => (columns.iter().map(|c| c.name.clone()).collect(), format!("NOT {condition}")),
        };
        let columns = self.select(session, schema, values, &filter).await?;
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    fn columns(&self, schema: &SchemaRef) -> Result<Vec<Column>> {
        let assignments = self.assignments.as_deref().unwrap_or_default();
        let target = |assignment: &Assignment| bare(&assignment.target.to_string());
        if let Some(unknown) = assignments.iter().find(|a| schema.index_of(&target(a)).is_err()) {
            return Err(Error::Test(format!("{} has no column {}", self.table, unknown.target)));
        }
        let column = |name: &String| {
            let changed = assignments.iter().find(|assignment| target(assignment) == *name);
            let name = format!("\"{name}\"");
            Column { new: changed.map_or_else(|| name.clone(), |a| a.value.to_string()), name }
        };
        Ok(schema.fields().iter().map(|field| column(field.name())).collect())
    }

    /// Values over the table's rows, as its types, which they have once or twice.
    async fn select(
        &self,
        session: &SessionContext,
        schema: &SchemaRef,
        values: Vec<String>,
        filter: &str,
    ) -> Result<Vec<ArrayRef>> {
        let values = values.iter().enumerate().map(|(i, value)| format!("{value} AS c{i}"));
        let values = values.collect::<Vec<_>>().join(", ");
        let frame = session.sql(&format!("SELECT {values} FROM {} WHERE {filter}", self.table)).await?;
        let found = frame.schema().as_arrow().clone().into();
        let rows = concat_batches(&found, &frame.collect().await?)?;
        let types = schema.fields().iter().map(|field| field.data_type()).cycle();
        let columns = rows.columns().iter().zip(types).map(|(column, data_type)| cast(column, data_type));
        Ok(columns.collect::<Result<Vec<_>, _>>()?)
    }
}

/// A column: its name in quotes, and its value if it is changed.
struct Column {
    name: String,
    new: String,
}

fn parsed(sql: &str) -> Result<SqlStatement> {
    match DFParser::parse_sql(sql)?.pop_front() {
        Some(Statement::Statement(statement)) => Ok(*statement),
        _ => Err(Error::Test(format!("a test can't run this statement: {sql}"))),
    }
}

/// A name as the engine knows it: without quotes, or in lower case.
fn bare(name: &str) -> String {
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}
