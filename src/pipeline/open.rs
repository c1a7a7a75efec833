//! Opens every stage as the settings say: Kafka, Postgres, the files of `queries/`. Whatever is wrong with one of
//! them is found here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use tokio::task::block_in_place;

use super::{AdHocTables, Limits, Log, Pipeline, Stages, take_over};
use crate::catalog::{Catalog, TableDef as DeclaredTable, TopicUse};
use crate::checkpoint::{Checkpoints, Objects};
use crate::clients;
use crate::config::Config;
use crate::engine::session::{self, PG};
use crate::engine::{Engine, reads_other_tables};
use crate::epoch::Executor;
use crate::epoch_log::{self, Chain, Definitions};
use crate::error::{Error, Result};
use crate::history::{CountedMessages, KafkaTable};
use crate::ingest::Ingest;
use crate::queries;
use crate::reference::{
    NoStore, Pace, PgTable, PostgresStore, ReferenceReader, ReferenceStore, TableDef, Wanted,
};
use crate::sink::{KafkaSink, NoSink, Sink};
use crate::source::{Bounds, History, KafkaHistory, KafkaSource, KafkaTopics, Source, Topics};
use crate::topics;

/// What a pipeline is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Run,
    Rebuild,
    Audit,
}

type Restricted = Vec<(String, Arc<dyn TableProvider>)>;

impl Pipeline {
    /// Loads `queries/`, plans the views, reads the reference tables and connects to Kafka. From then on no other engine
    /// of the same `engine_id` writes. Running it goes on where the epoch log ends.
    pub async fn open(config: Config) -> Result<Pipeline> {
        Pipeline::open_as(config, Purpose::Run).await
    }

    /// As [`Pipeline::open`], but the topics are counted from their beginning, whatever was counted before.
    pub async fn rebuild(config: Config) -> Result<Pipeline> {
        Pipeline::open_as(config, Purpose::Rebuild).await
    }

    /// To compare what was counted with the log and the topics ([`Pipeline::audit`]): it writes nothing, and the engine
    /// that does goes on.
    pub async fn open_to_audit(config: Config) -> Result<Pipeline> {
        Pipeline::open_as(config, Purpose::Audit).await
    }

    async fn open_as(config: Config, purpose: Purpose) -> Result<Pipeline> {
        let (place, files) = queries::load(config.queries.as_deref())?;
        let planning = session::continuous().state();
        let catalog = Catalog::parse(&files, &planning).await?;
        clients::check_kafka(&config).await?;
        let log_topic = epoch_log::topic(&config.engine_id);
        if purpose != Purpose::Audit {
            topics::ensure_epoch_log(&config, &log_topic).await?;
        }
        let mut used = catalog.topics();
        used.insert(log_topic.clone(), TopicUse::EpochLog);
        let topics = topics::check(&config, &used).await?;
        topics.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let config = Arc::new(config);
        let (store, defs, mut restricted) = tables(&config, &catalog).await?;
        let schemas: Vec<_> = defs.iter().map(|def| (def.name.clone(), def.schema.clone())).collect();
        let engine = Engine::plan(&catalog, &schemas).await?;
        let wanted = Wanted::of(
            engine.reference_columns(),
            &defs,
            &[catalog.foreign_keys(), engine.lookup_keys()].concat(),
        );
        warn_of_silent_tables(&*store, &wanted).await;
        for (table, columns) in engine.reference_columns() {
            let notes = defs.iter().filter(|def| def.name == *table).flat_map(|def| def.notes(columns));
            notes.for_each(|note| tracing::info!("{note}"));
        }
        let definitions = Definitions::of(&catalog, &wanted);
        let topics_read: Arc<dyn Topics> = Arc::new(KafkaTopics(Arc::clone(&config)));
        let (sink, log) = block_in_place(|| {
            let id = &config.engine_id;
            let (sink, chain): (Box<dyn Sink>, _) = match purpose {
                Purpose::Audit => (Box::new(NoSink), Chain::after(id, None)),
                Purpose::Run | Purpose::Rebuild => {
                    let (mut sink, newest) = KafkaSink::open(&config, &log_topic, topics.bytes_max)?;
                    let chain = take_over(&mut sink, id, newest.as_deref())?;
                    (Box::new(sink), chain)
                }
            };
            let rebuild = purpose == Purpose::Rebuild;
            let log = Log::open(id, chain, &*topics_read, definitions, rebuild)?;
            Ok::<_, Error>((sink, log))
        })?;
        if purpose == Purpose::Audit && log.is_changed() {
            return Err(Error::Log(
                "the queries are not those that were counted: audit with those, or let `tally run` take these up \
                 first"
                    .into(),
            ));
        }
        let pace = Pace::with_refresh(Duration::from_secs(config.reference_refresh_s));
        let readings = &log.summary().readings;
        let (reference_reader, references) =
            ReferenceReader::start(Arc::clone(&store), wanted, pace, readings).await?;
        tracing::info!(
            "{} views over {} sources from {place}",
            engine.views().count(),
            catalog.sources.len()
        );

        let plain = catalog.views.values().filter(|view| !view.materialized);
        let plain_views = plain.map(|view| (view.name.clone(), view.query.to_string())).collect();
        let (mut ingests, mut sources) = (Vec::new(), Vec::<Box<dyn Source>>::new());
        let mut histories = Vec::<Box<dyn History>>::new();
        let counted = CountedMessages::new(log.summary().counted.clone());
        for def in catalog.sources.into_values().map(Arc::new) {
            let table = KafkaTable::new(Arc::clone(&config), Arc::clone(&def), counted.clone());
            restricted.push((def.name.clone(), Arc::new(table)));
            let at = log.positions(&def.name);
            let source = block_in_place(|| {
                KafkaSource::open_at(&config, &def.topic, Bounds::Endless, def.start, &at)
            })?;
            sources.push(Box::new(source));
            histories.push(Box::new(KafkaHistory::new(Arc::clone(&config), &def.topic, &at)));
            ingests.push(Ingest::new(Arc::clone(&def), Some(engine.source_columns(&def.name)), &planning)?);
        }
        let stages = Stages {
            sources,
            histories,
            store,
            reference_reader,
            executor: Executor::new(engine, ingests, log.first_references(&references)?),
            references,
            log,
            topics: topics_read,
            sink,
            checkpoints: if purpose == Purpose::Audit { None } else { checkpoints(&config)? },
        };
        let limits = Limits {
            batch_rows: config.batch_rows,
            trigger: Duration::from_millis(config.trigger_ms),
            state_bytes_max: config.state_bytes_max,
        };
        Pipeline::new(stages, limits, counted, AdHocTables { restricted, plain_views })
    }
}

/// Whether a query or a rule reads a table of Postgres.
pub fn reads_postgres(catalog: &Catalog) -> Result<bool> {
    let declared = !catalog.tables.is_empty() || !catalog.foreign_keys().is_empty();
    Ok(declared || reads_other_tables(catalog)?)
}

/// Plans the views as [`Pipeline::open`] does, over the tables that Postgres has, and runs nothing.
pub async fn plan(config: &Config) -> Result<Engine> {
    let catalog = Catalog::load(config.queries.as_deref()).await?;
    let (_, defs, _) = tables(&Arc::new(config.clone()), &catalog).await?;
    let schemas: Vec<_> = defs.iter().map(|def| (def.name.clone(), def.schema.clone())).collect();
    Engine::plan(&catalog, &schemas).await
}

/// Where checkpoints go, if the settings want any.
fn checkpoints(config: &Config) -> Result<Option<Checkpoints>> {
    if config.data_dir.is_empty() || config.checkpoint_interval_s == 0 {
        return Ok(None);
    }
    let objects = Objects::open(&config.data_dir, &config.engine_id)?;
    Ok(Some(Checkpoints::new(objects, Duration::from_secs(config.checkpoint_interval_s))))
}

/// The reference tables and where they are. Without a query or rule that reads one, Postgres is left alone.
async fn tables(
    config: &Arc<Config>,
    catalog: &Catalog,
) -> Result<(Arc<dyn ReferenceStore>, Vec<TableDef>, Restricted)> {
    if !reads_postgres(catalog)? {
        return Ok((Arc::new(NoStore), Vec::new(), Vec::new()));
    }
    let pool = clients::postgres(config).await?;
    let store = PostgresStore::new(pool, config.postgres_schema.as_str());
    let defs = store.tables().await?;
    let absent = |table: &&DeclaredTable| !defs.iter().any(|def| def.name == table.name);
    if let Some(table) = catalog.tables.values().find(absent) {
        return Err(table.place.error(format!(
            "Postgres has no table `{}` in schema {}; `tally seed` or a migration makes it",
            table.name, config.postgres_schema
        )));
    }
    // Connections of its own: an ad-hoc query must not hold up a lookup.
    let pool = clients::postgres(config).await?;
    let mut restricted: Restricted = Vec::new();
    for def in &defs {
        let name = def.name.clone();
        let table = Arc::new(PgTable::new(pool.clone(), &config.postgres_schema, Arc::new(def.clone())));
        restricted.push((format!("{PG}.{name}"), Arc::clone(&table) as _));
        if !catalog.sources.contains_key(&name) && !catalog.views.contains_key(&name) {
            restricted.push((name, table));
        }
    }
    Ok((Arc::new(store), defs, restricted))
}

/// Changes of a table without a trigger are seen late: whoever relies on them should know.
async fn warn_of_silent_tables(store: &dyn ReferenceStore, wanted: &[Wanted]) {
    let names: BTreeSet<_> = wanted.iter().map(|wanted| wanted.def.name.clone()).collect();
    match store.without_trigger(&names.into_iter().collect::<Vec<_>>()).await {
        Ok(silent) if silent.is_empty() => {}
        Ok(silent) => tracing::warn!(
            "changes of {} are seen only every reference_refresh_s seconds: no trigger tells them; \
             `tally triggers {}` installs it",
            silent.join(", "),
            silent.join(" ")
        ),
        Err(error) => tracing::warn!("which tables have a change trigger is not known: {error}"),
    }
}
