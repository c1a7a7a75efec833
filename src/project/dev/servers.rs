//! The servers of `tally dev`: the broker with the topics that the queries name, and the Postgres with their tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use indicatif::MultiProgress;
use sqlx::{AssertSqlSafe, PgPool};

use super::feed::source_of;
use super::say;
use crate::catalog::{Catalog, TopicUse};
use crate::cli::Dev;
use crate::clients;
use crate::config::Config;
use crate::embedded::{Broker, Postgres, partitions_for};
use crate::epoch_log;
use crate::error::{Error, Result};
use crate::pipeline::{plan, reads_postgres};
use crate::reference::install_triggers;
use crate::replay::{TableRows, read_table};

/// Partitions of a topic whose feed may never end: the broker keeps 5 MiB of each.
const PARTITIONS_OF_THE_ENDLESS: i32 = 8;
/// Below this a single partition holds a topic, and keeps the order of its messages.
const SMALL_BYTES: u64 = 2 << 20;

/// Running servers.
pub struct Servers {
    broker: Broker,
    postgres: Option<Postgres>,
    topics: BTreeSet<String>,
    /// The columns of the tables that were made.
    tables: BTreeMap<String, SchemaRef>,
    files: BTreeMap<String, PathBuf>,
    /// Of each input its topic, or source, and how many bytes it has; none: it never ends.
    inputs: Vec<(String, Option<u64>)>,
}

impl Servers {
    /// Starts the broker; Postgres starts when a query needs it.
    pub fn start(options: &Dev) -> Result<Servers> {
        let inputs = options.inputs.files()?.into_iter().map(|input| {
            let bytes =
                std::fs::metadata(&input.path).ok().filter(|file| file.is_file()).map(|file| file.len());
            (input.topic, bytes.filter(|_| !options.repeat))
        });
        Ok(Servers {
            broker: Broker::start()?,
            postgres: None,
            topics: BTreeSet::new(),
            tables: BTreeMap::new(),
            files: options.tables.iter().cloned().collect(),
            inputs: inputs.collect(),
        })
    }

    /// Where the broker is.
    pub fn bootstrap_servers(&self) -> String {
        self.broker.bootstrap_servers()
    }

    /// Makes all that the queries name, and plans them.
    ///
    /// # Errors
    /// If they can't be planned, or do not read what is fed.
    pub async fn prepare(&mut self, config: &mut Config, bars: &MultiProgress) -> Result<Catalog> {
        let catalog = Catalog::load(config.queries.as_deref()).await?;
        for (topic, _) in &self.inputs {
            source_of(&catalog, topic)?;
        }
        if reads_postgres(&catalog)? {
            if self.postgres.is_none() {
                let postgres = Postgres::start(&|line| say(bars, line)).await?;
                config.postgres_url = postgres.url().into();
                say(bars, &format!("postgres   {}", postgres.url()));
                self.postgres = Some(postgres);
            }
            self.make_tables(config, &catalog, bars).await?;
        }
        plan(config).await.map_err(|error| self.with_hint(error))?;
        let mut topics = catalog.topics();
        topics.insert(epoch_log::topic(&config.engine_id), TopicUse::EpochLog);
        for (topic, purpose) in topics {
            if !self.topics.contains(&topic) {
                let partitions = self.partitions(&catalog, &topic, purpose);
                self.broker.create_topic(&topic, partitions)?;
                self.topics.insert(topic);
            }
        }
        Ok(catalog)
    }

    /// A name that nothing declares may be meant as a table of Postgres.
    fn with_hint(&self, error: Error) -> Error {
        match error {
            Error::Query { file, line, column, reason }
                if self.postgres.is_some() && self.tables.is_empty() =>
            {
                let hint = "where a table of Postgres is meant, declare it (CREATE EXTERNAL TABLE …) or give --table NAME=FILE";
                Error::Query { file, line, column, reason: format!("{reason}; {hint}") }
            }
            other => other,
        }
    }

    /// Stops what runs.
    pub async fn stop(self) -> Result<()> {
        drop(self.broker);
        match self.postgres {
            Some(postgres) => postgres.stop().await,
            None => Ok(()),
        }
    }

    fn partitions(&self, catalog: &Catalog, topic: &str, purpose: TopicUse) -> i32 {
        let is_of = |input: &str| source_of(catalog, input).is_ok_and(|def| def.topic == topic);
        let fed: Vec<_> = self.inputs.iter().filter(|(input, _)| is_of(input)).collect();
        let bytes: u64 = fed.iter().filter_map(|(_, bytes)| *bytes).sum();
        match purpose {
            TopicUse::Source | TopicUse::NewestByKey if fed.iter().any(|(_, bytes)| bytes.is_none()) => {
                PARTITIONS_OF_THE_ENDLESS
            }
            TopicUse::Source | TopicUse::NewestByKey if bytes > SMALL_BYTES => partitions_for(bytes, 1),
            _ => 1,
        }
    }

    /// Makes the declared tables, and those that a flag names, with the rows of their files.
    async fn make_tables(&mut self, config: &Config, catalog: &Catalog, bars: &MultiProgress) -> Result<()> {
        let declared = catalog.table_schemas();
        let names: BTreeSet<_> = declared.keys().chain(self.files.keys()).cloned().collect();
        let pool = clients::postgres(config).await?;
        for name in names {
            let location = catalog.tables.get(&name).map(|def| def.location.clone());
            let file = self.files.get(&name).cloned().or(location.filter(|file| file.is_file()));
            let table = match (&file, declared.get(&name)) {
                (Some(file), _) => read_table(&declared, &name, file)?,
                (None, Some(schema)) => {
                    TableRows { name: name.clone(), schema: Arc::clone(schema), batches: Vec::new() }
                }
                (None, None) => continue,
            };
            if self.tables.get(&name) == Some(&table.schema) {
                continue;
            }
            let rows: usize = table.batches.iter().map(|batch| batch.num_rows()).sum();
            make(&pool, &config.postgres_schema, &table).await?;
            let of = file
                .map_or("; its LOCATION is no file here".into(), |file| format!(" of {}", file.display()));
            say(bars, &format!("table      {name}: {rows} rows{of}"));
            self.tables.insert(name, table.schema);
        }
        Ok(())
    }
}

/// Makes a table anew, with a trigger that announces its changes.
async fn make(pool: &PgPool, pg_schema: &str, table: &TableRows) -> Result<()> {
    let failed = |e: sqlx::Error| Error::postgres(format!("making table {}", table.name), e);
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let column = |field: &arrow::datatypes::FieldRef| {
        format!("{} {}", quoted(field.name()), postgres_type(field.data_type()))
    };
    let columns: Vec<_> = table.schema.fields().iter().map(column).collect();
    let full = format!("{}.{}", quoted(pg_schema), quoted(&table.name));
    let sql = format!("DROP TABLE IF EXISTS {full}; CREATE TABLE {full} ({})", columns.join(", "));
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map_err(failed)?;
    let mut text = Vec::new();
    // An empty text is no NULL.
    let mut writer =
        arrow_csv::WriterBuilder::new().with_header(false).with_null("\\N".into()).build(&mut text);
    for batch in &table.batches {
        writer.write(batch)?;
    }
    drop(writer);
    let copy = format!("COPY {full} FROM STDIN (FORMAT csv, NULL '\\N')");
    let mut connection = pool.acquire().await.map_err(failed)?;
    let mut copy = connection.copy_in_raw(&copy).await.map_err(failed)?;
    copy.send(text).await.map_err(failed)?;
    copy.finish().await.map_err(failed)?;
    install_triggers(pool, pg_schema, std::slice::from_ref(&table.name)).await?;
    Ok(())
}

/// The type of Postgres whose values a column has; of what it has no like of, text.
fn postgres_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean".into(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint".into(),
        DataType::Int32 | DataType::UInt16 => "integer".into(),
        DataType::Int64 | DataType::UInt32 => "bigint".into(),
        DataType::UInt64 => "numeric(20)".into(),
        DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        DataType::Decimal128(precision, scale) => format!("numeric({precision}, {scale})"),
        DataType::Date32 => "date".into(),
        DataType::Time64(_) | DataType::Time32(_) => "time".into(),
        DataType::Timestamp(_, None) => "timestamp".into(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".into(),
        _ => "text".into(),
    }
}
