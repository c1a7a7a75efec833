//! Installs the triggers that announce changes of Postgres tables, for `tally triggers`. The only code of this
//! module that writes to Postgres.

use sqlx::{AssertSqlSafe, PgPool, Row};

use super::changes::CHANNEL;
use super::schema::{quote_identifier, quote_literal};
use crate::error::{Error, Result};

/// The trigger's name on each table.
const TRIGGER: &str = "announce_change";
/// The function that the migrations of the election make.
const OF_MIGRATIONS: &str = "tally_internal.announce_change";
/// The same in the schema of the tables, where the election's is not: a migration may still want to make that.
const OWN_FUNCTION: &str = "tally_announce_change";

/// What became of a table's trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerOutcome {
    /// It was made.
    Installed,
    /// It was there.
    Kept,
    /// It was taken away.
    Removed,
    /// There was none to take away.
    Absent,
}

/// Sees to it that each change of these tables of `pg_schema` is announced.
pub async fn install_triggers(
    pool: &PgPool,
    pg_schema: &str,
    tables: &[String],
) -> Result<Vec<(String, TriggerOutcome)>> {
    each_table(pool, pg_schema, tables, async |table, has_trigger| {
        if has_trigger {
            return Ok(TriggerOutcome::Kept);
        }
        let function = function(pool, pg_schema).await?;
        let sql = format!(
            "CREATE TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
             FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        );
        execute(pool, &sql, &format!("creating a trigger on {table}")).await?;
        Ok(TriggerOutcome::Installed)
    })
    .await
}

/// Takes these triggers away. The function stays: others may use it.
pub async fn remove_triggers(
    pool: &PgPool,
    pg_schema: &str,
    tables: &[String],
) -> Result<Vec<(String, TriggerOutcome)>> {
    each_table(pool, pg_schema, tables, async |table, has_trigger| {
        if !has_trigger {
            return Ok(TriggerOutcome::Absent);
        }
        let sql = format!("DROP TRIGGER {TRIGGER} ON {table}");
        execute(pool, &sql, &format!("dropping a trigger of {table}")).await?;
        Ok(TriggerOutcome::Removed)
    })
    .await
}

/// Calls `work` with each table's full name and whether it has the trigger. All names are checked before.
async fn each_table(
    pool: &PgPool,
    pg_schema: &str,
    tables: &[String],
    work: impl AsyncFn(&str, bool) -> Result<TriggerOutcome>,
) -> Result<Vec<(String, TriggerOutcome)>> {
    let mut states = Vec::with_capacity(tables.len());
    for table in tables {
        states.push(has_trigger(pool, pg_schema, table).await?);
    }
    let mut outcomes = Vec::with_capacity(tables.len());
    for (table, has_trigger) in tables.iter().zip(states) {
        let full = format!("{}.{}", quote_identifier(pg_schema), quote_identifier(table));
        outcomes.push((table.clone(), work(&full, has_trigger).await?));
    }
    Ok(outcomes)
}

async fn has_trigger(pool: &PgPool, pg_schema: &str, table: &str) -> Result<bool> {
    let action = || format!("looking for table {pg_schema}.{table}");
    let row = sqlx::query(
        "SELECT c.relkind::text, EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = $3)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
    )
    .bind(pg_schema)
    .bind(table)
    .bind(TRIGGER)
    .fetch_optional(pool)
    .await
    .map_err(|e| Error::postgres(action(), e))?;
    let Some(row) = row else {
        return Err(Error::postgres(action(), "there is no such table; `postgres_schema` names the schema"));
    };
    let kind: String = row.try_get(0).map_err(|e| Error::postgres(action(), e))?;
    if kind == "v" || kind == "m" {
        return Err(Error::postgres(
            action(),
            "it is a view, and no trigger tells when its rows change: it is read every `reference_refresh_s`",
        ));
    }
    row.try_get(1).map_err(|e| Error::postgres(action(), e))
}

/// The trigger function; makes one if there is none.
async fn function(pool: &PgPool, pg_schema: &str) -> Result<String> {
    let own = format!("{}.{OWN_FUNCTION}", quote_identifier(pg_schema));
    for function in [OF_MIGRATIONS, own.as_str()] {
        let known = sqlx::query("SELECT to_regprocedure($1 || '()') IS NOT NULL").bind(function);
        let known = known.fetch_one(pool).await.and_then(|row| row.try_get(0));
        if known.map_err(|e| Error::postgres("looking for the trigger function", e))? {
            return Ok(function.to_owned());
        }
    }
    let sql = format!(
        "CREATE FUNCTION {own}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_notify({}, TG_TABLE_NAME); RETURN NULL; END $$",
        quote_literal(CHANNEL)
    );
    execute(pool, &sql, &format!("creating function {own}")).await?;
    Ok(own)
}

async fn execute(pool: &PgPool, sql: &str, action: &str) -> Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await;
    done.map(drop).map_err(|e| Error::postgres(action, format!("{e}; the owner of the table may do it")))
}
