//! DELETE and UPDATE of the files of `tests/sql`: what a producer would send, or the new rows of a reference table.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{cast, concat_batches};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{FromTable, Statement as SqlStatement};

use super::Pair;
use super::told::Messages;
use crate::catalog::OnConflict;
use crate::error::{Error, Result};

/// A column: its name in quotes, and its value if it is changed.
struct Column {
    name: String,
    new: String,
}

/// Runs a DELETE or UPDATE over the rows that a source or reference table has now. Of a source with `'on_conflict'
/// 'replace'` that is an empty message for each deleted row, and the new row for each changed one; of a source of
/// 'debezium-json' an envelope for each. All of them are one micro-batch.
pub async fn run(pair: &mut Pair, sql: &str) -> Result<()> {
    let statement = DFParser::parse_sql(sql)?.pop_front();
    let Some(Statement::Statement(statement)) = statement else { panic!("{sql}") };
    let (table, selection, assignments) = match *statement {
        SqlStatement::Delete(delete) => {
            let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = delete.from;
            (from[0].to_string(), delete.selection, None)
        }
        SqlStatement::Update(update) => {
            (update.table.to_string(), update.selection, Some(update.assignments))
        }
        other => panic!("{other}"),
    };
    let condition = selection.map_or("true".into(), |condition| condition.to_string());
    let condition = format!("coalesce(({condition}), false)");
    let schema = pair.schema(&table).unwrap_or_else(|| panic!("{table} is not declared"));
    let changed = |name: &str| {
        let mut all = assignments.iter().flatten();
        all.find(|a| a.target.to_string() == name).map(|a| a.value.to_string())
    };
    let columns = schema.fields().iter().map(|field| {
        let name = format!("\"{}\"", field.name());
        Column { new: changed(field.name()).unwrap_or_else(|| name.clone()), name }
    });
    let columns: Vec<Column> = columns.collect();
    let Some(source) = pair.source(&table) else {
        let is_update = assignments.is_some();
        let value = |c: &Column| format!("CASE WHEN {condition} THEN {} ELSE {} END", c.new, c.name);
        let (values, filter) = match is_update {
            true => (columns.iter().map(value).collect(), "true".into()),
            false => (columns.iter().map(|c| c.name.clone()).collect(), format!("NOT {condition}")),
        };
        let rows = RecordBatch::try_new(schema, select(pair, &table, values, &filter).await?)?;
        pair.set(&table, vec![rows]).await;
        return Ok(());
    };
    if !source.retracts() {
        return Err(Error::Config(format!("{table} takes no rows back")));
    }
    let replaces = source.on_conflict == OnConflict::Replace;
    // In one query, so that old and new rows are in one order.
    let names = columns.iter().map(|column| column.name.clone());
    let values = names.chain(columns.iter().map(|column| column.new.clone())).collect();
    let both = select(pair, &table, values, &condition).await?;
    let (before, after) = both.split_at(columns.len());
    let rows = |columns: &[ArrayRef]| RecordBatch::try_new(schema.clone(), columns.to_vec());
    let (before, after) = (rows(before)?, rows(after)?);
    let none = before.slice(0, 0);
    pair.tell_messages(
        &table,
        match assignments {
            None => Messages::changes(before, none),
            Some(_) if replaces => Messages::changes(none, after),
            Some(_) => Messages::changes(before, after),
        },
    )
    .await;
    Ok(())
}

/// Values over the table's rows, as its types, which they have once or twice.
async fn select(pair: &mut Pair, table: &str, values: Vec<String>, filter: &str) -> Result<Vec<ArrayRef>> {
    let schema = pair.schema(table).expect("it is declared");
    let values = values.iter().enumerate().map(|(i, value)| format!("{value} AS c{i}"));
    let sql = format!("SELECT {} FROM {table} WHERE {filter}", values.collect::<Vec<_>>().join(", "));
    let frame = pair.session().await.sql(&sql).await?;
    let found = frame.schema().as_arrow().clone().into();
    let rows = concat_batches(&found, &frame.collect().await?)?;
    let types = schema.fields().iter().map(|field| field.data_type()).cycle();
    let columns = rows.columns().iter().zip(types).map(|(column, data_type)| cast(column, data_type));
    Ok(columns.collect::<Result<Vec<_>, _>>()?)
}
