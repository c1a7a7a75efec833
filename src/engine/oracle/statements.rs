//! DELETE and UPDATE of the files of `tests/sql`: what a producer would send, or the new rows of a reference table.

use super::Pair;
use super::told::Messages;
use crate::catalog::OnConflict;
use crate::error::{Error, Result};
use crate::project::testing::Edit;

/// Runs a DELETE or UPDATE over the rows that a source or reference table has now. Of a source with `'on_conflict'
/// 'replace'` that is an empty message for each deleted row, and the new row for each changed one; of a source of
/// 'debezium-json' an envelope for each. All of them are one micro-batch.
pub async fn run(pair: &mut Pair, sql: &str) -> Result<()> {
    let edit = Edit::parse(sql)?;
    let table = &edit.table;
    let schema = pair.schema(table).unwrap_or_else(|| panic!("{table} is not declared"));
    let session = pair.session().await;
    let Some(source) = pair.source(table) else {
        let rows = edit.all_after(&session, &schema).await?;
        pair.set(table, vec![rows]).await;
        return Ok(());
    };
    if !source.retracts() {
        return Err(Error::Config(format!("{table} takes no rows back")));
    }
    let (before, after) = edit.touched(&session, &schema).await?;
    let only_new = source.on_conflict == OnConflict::Replace && after.num_rows() > 0;
    let before = if only_new { before.slice(0, 0) } else { before };
    pair.tell_messages(table, Messages::changes(before, after)).await;
    Ok(())
}
