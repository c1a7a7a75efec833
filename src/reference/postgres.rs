//! Reference tables in Postgres.

use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use sqlx::{PgPool, Row};
use tokio::sync::mpsc;

use super::store::{ReferenceStore, StoreError};
use super::{TableDef, changes, load, schema};

/// How long a lookup may take: the micro-batch waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The tables of one schema.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    pg_schema: String,
}

impl PostgresStore {
    /// The tables of `pg_schema`.
    pub fn new(pool: PgPool, pg_schema: impl Into<String>) -> Self {
        PostgresStore { pool, pg_schema: pg_schema.into() }
    }

    /// Looks the values up; if Postgres can't take one of them, all but that one.
    async fn lookup_rows(
        &self,
        table: &TableDef,
        columns: &[String],
        key: &[String],
        values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let mut found = Vec::new();
        let mut parts = vec![values.clone()];
        while let Some(part) = parts.pop() {
            match load::lookup(&self.pool, &self.pg_schema, table, columns, key, &part).await {
                Ok(rows) => found.extend(rows),
                Err(error) if error.is_of_a_value() && part.num_rows() > 1 => {
                    let half = part.num_rows() / 2;
                    parts.push(part.slice(half, part.num_rows() - half));
                    parts.push(part.slice(0, half));
                }
                Err(error) if error.is_of_a_value() => {
                    tracing::debug!("a value has no row, since the key's type can't take it: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl ReferenceStore for PostgresStore {
    async fn tables(&self) -> Result<Vec<TableDef>, StoreError> {
        schema::describe(&self.pool, &self.pg_schema).await
    }

    async fn load(&self, table: &TableDef, columns: &[String]) -> Result<Vec<RecordBatch>, StoreError> {
        load::load(&self.pool, &self.pg_schema, table, columns).await
    }

    async fn lookup(
        &self,
        table: &TableDef,
        columns: &[String],
        key: &[String],
        values: &RecordBatch,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.lookup_rows(table, columns, key, values)).await;
        found.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs());
            Err(StoreError::away(
                format!("looking up rows of table {}.{}", self.pg_schema, table.name),
                reason,
            ))
        })
    }

    async fn changes(&self) -> Result<mpsc::Receiver<String>, StoreError> {
        changes::listen(&self.pool).await
    }

    async fn without_trigger(&self, tables: &[String]) -> Result<Vec<String>, StoreError> {
        let action = || "looking for the triggers of the reference tables";
        let rows = sqlx::query(
            // Inserts (4), deletes (8) and updates (16) must all be announced.
            "SELECT c.relname::text
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind <> 'i' AND NOT EXISTS (
               SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
               WHERE t.tgrelid = c.oid AND t.tgenabled <> 'D' AND strpos(p.prosrc, $3) > 0
               HAVING bit_or(t.tgtype::int) & 28 = 28)
             ORDER BY 1",
        )
        .bind(&self.pg_schema)
        .bind(tables)
        .bind(changes::CHANNEL)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| load::failed(action(), &e))?;
        rows.iter().map(|row| row.try_get(0).map_err(|e| load::failed(action(), &e))).collect()
    }
}
