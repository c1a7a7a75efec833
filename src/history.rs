//! A source read as a table, for ad-hoc SQL and the audit: a bounded scan of its topic that shows exactly the rows
//! that were counted and not taken back. Nothing is judged: the epoch log says which messages were rejected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use tokio::sync::mpsc::Sender;

use crate::catalog::SourceDef;
use crate::config::Config;
use crate::decode::{self, Decoded, Decoder};
use crate::epoch_log::{self, BatchEntry, Counted, LogReader, Offsets, summarize};
use crate::error::Error;
use crate::reference::References;
use crate::source::{History, KafkaHistory, KafkaTopics, Position, Positions, RawBatch, Topics};

const BATCHES_AHEAD: usize = 2;
/// Messages that are decoded at once.
const BATCH_ROWS: usize = 20_000;

/// Which messages of each source were counted, as of the newest epoch. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct CountedMessages(Arc<RwLock<BTreeMap<String, Counted>>>);

impl CountedMessages {
    /// As the epoch log says, by source.
    pub fn new(counted: BTreeMap<String, Counted>) -> CountedMessages {
        CountedMessages(Arc::new(RwLock::new(counted)))
    }

    /// Adds a micro-batch.
    pub fn add(&self, batch: &BatchEntry) {
        let mut counted = self.0.write().unwrap_or_else(PoisonError::into_inner);
        counted.entry(batch.source.clone()).or_default().add(&batch.ranges, &batch.rejected);
    }

    /// Those of a source.
    pub fn of(&self, source: &str) -> Counted {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(source).cloned().unwrap_or_default()
    }
}

/// The rows of one source that were counted.
#[derive(Clone)]
pub struct KafkaTable {
    config: Arc<Config>,
    source: Arc<SourceDef>,
    counted: CountedMessages,
}

impl KafkaTable {
    /// A table over the topic of `source`, of which `counted` says what was counted.
    pub fn new(config: Arc<Config>, source: Arc<SourceDef>, counted: CountedMessages) -> Self {
        KafkaTable { config, source, counted }
    }

    /// As many streams as there are cores, each of some partitions; of a source that takes rows back a single one,
    /// which must see all messages in the order in which they were counted.
    fn streams(&self) -> Vec<Arc<dyn PartitionStream>> {
        let Counted { positions, rejected } = self.counted.of(&self.source.name);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = if self.source.retracts() { 1 } else { positions.len().clamp(1, cores) };
        let mut parts = vec![Positions::new(); count];
        for (i, (partition, position)) in positions.into_iter().enumerate() {
            parts[i % count].insert(partition, position);
        }
        let rejected = Arc::new(rejected);
        let scan = |positions| Scan { table: self.clone(), positions, rejected: Arc::clone(&rejected) };
        parts.into_iter().map(|positions| Arc::new(scan(positions)) as _).collect()
    }
}

impl fmt::Debug for KafkaTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "KafkaTable({} ← {})", self.source.name, self.source.topic)
    }
}

/// Some partitions of a source.
#[derive(Debug)]
struct Scan {
    table: KafkaTable,
    positions: Positions,
    rejected: Arc<Offsets>,
}

impl Scan {
    /// Reads the topic in a thread of its own; rows go out as they are decoded.
    fn run(&self, sender: &Sender<Result<RecordBatch>>, memory: &MemoryReservation) -> Result<(), Error> {
        if self.table.source.retracts() {
            return self.net_rows(sender, memory);
        }
        let KafkaTable { config, source, .. } = &self.table;
        let (decoder, _) = decode::of_counted(source)?;
        let mut history = KafkaHistory::new(Arc::clone(config), &source.topic, &self.positions);
        let none = Default::default();
        for (partition, Position { next, .. }) in &self.positions {
            let rejected = self.rejected.get(partition).unwrap_or(&none);
            let mut done = false;
            while !done && !sender.is_closed() {
                let mut batch = RawBatch::default();
                done = history.read(*partition, *next, BATCH_ROWS, &mut batch)?;
                batch.retain(|origin| !rejected.contains(origin.offset));
                let Decoded { rows, .. } = decode_counted(&decoder, &batch)?;
                if rows.num_rows() > 0 && sender.blocking_send(Ok(rows)).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The rows that were not taken back, by executing the log's micro-batches; until the end they count as the query's
    /// `memory`.
    fn net_rows(
        &self,
        sender: &Sender<Result<RecordBatch>>,
        memory: &MemoryReservation,
    ) -> Result<(), Error> {
        let KafkaTable { config, source, .. } = &self.table;
        let (decoder, mut rules) = decode::of_counted(source)?;
        let (topics, topic) = (KafkaTopics(Arc::clone(config)), epoch_log::topic(&config.engine_id));
        let summary = summarize(&mut *topics.read(&topic)?, &topic)?;
        let mut log = LogReader::new(topics.read(&topic)?, &topic, &summary);
        let mut history = KafkaHistory::new(Arc::clone(config), &source.topic, &self.positions);
        while let Some(logged) = log.next_entry()?.filter(|_| !sender.is_closed()) {
            let Some(entry) = logged.entry.batch.filter(|batch| batch.source == source.name) else {
                continue;
            };
            let mut batch = RawBatch::default();
            for (partition, (_, to)) in &entry.ranges {
                // What was counted since the query began is not asked for.
                if self.positions.get(partition).is_some_and(|position| *to <= position.next) {
                    history.read(*partition, *to, usize::MAX, &mut batch)?;
                }
            }
            let is_rejected = |partition: i32, offset: i64| {
                self.rejected.get(&partition).is_some_and(|rejected| rejected.contains(offset))
            };
            batch.retain(|origin| !is_rejected(origin.partition, origin.offset));
            let decoded = decode_counted(&decoder, &batch)?;
            rules.judge(decoded, &|message| batch.origin(message), &References::default())?;
            memory.try_resize(rules.bytes())?;
        }
        rules.net_rows(BATCH_ROWS, |rows| sender.blocking_send(Ok(rows)).is_ok())
    }
}

/// Decodes messages that were counted.
fn decode_counted(decoder: &Decoder, batch: &RawBatch) -> Result<Decoded, Error> {
    let (decoded, rejects) = decoder.decode(batch)?;
    match rejects.first() {
        None => Ok(decoded),
        Some(reject) => {
            let at = batch.origin(reject.message);
            Err(Error::Log(format!(
                "the message at partition {}, offset {} was counted, and can't be decoded now: {}",
                at.partition, at.offset, reject.reason
            )))
        }
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.table.source.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let source = &self.table.source;
        let mut builder = RecordBatchReceiverStream::builder(Arc::clone(&source.schema), BATCHES_AHEAD);
        let sender = builder.tx();
        let memory =
            MemoryConsumer::new(format!("the rows of {}", source.name)).register(context.memory_pool());
        let scan = Scan {
            table: self.table.clone(),
            positions: self.positions.clone(),
            rejected: Arc::clone(&self.rejected),
        };
        builder.spawn_blocking(move || {
            scan.run(&sender, &memory).map_err(|e| DataFusionError::External(Box::new(e)))
        });
        builder.build()
    }
}

#[async_trait]
impl TableProvider for KafkaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.source.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = StreamingTable::try_new(Arc::clone(&self.source.schema), self.streams())?;
        table.scan(session, projection, filters, limit).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use datafusion::assert_batches_eq;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::SessionContext;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;
    use crate::catalog::Catalog;
    use crate::clients;
    use crate::embedded::Broker;
    use crate::engine::session;
    use crate::epoch_log::{Chain, Entry, Kind, OffsetSet};
    use crate::queries::QueryFile;
    use crate::sink::{KafkaSink, Sink, Transaction};

    const VOTES: &str = "CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR PRIMARY KEY, choice VARCHAR)
        STORED AS KAFKA LOCATION 'votes' OPTIONS ('on_conflict' 'replace');";

    /// Writes the log of a source whose messages were counted in these micro-batches, of which some were rejected.
    fn write_log(config: &Config, batches: &[(i64, i64, &[i64])]) -> CountedMessages {
        let topic = epoch_log::topic(&config.engine_id);
        let (mut sink, newest) = KafkaSink::open(config, &topic, BTreeMap::new()).unwrap();
        let mut chain = Chain::after(&config.engine_id, newest.as_deref());
        let start = Entry { kind: Kind::Start, ..Entry::default() };
        let mut entries = vec![start];
        let counted = CountedMessages::default();
        for (from, to, rejected) in batches {
            let mut set = OffsetSet::default();
            rejected.iter().for_each(|offset| set.insert(*offset));
            let batch = BatchEntry {
                source: "votes".into(),
                ranges: BTreeMap::from([(0, (*from, *to))]),
                rejected: BTreeMap::from([("rule".into(), BTreeMap::from([(0, set)]))]),
                ..BatchEntry::default()
            };
            counted.add(&batch);
            entries.push(Entry { kind: Kind::Batch, batch: Some(batch), ..Entry::default() });
        }
        let records = entries.into_iter().flat_map(|entry| chain.records(entry, &[]).unwrap()).collect();
        sink.begin(Transaction { records, offsets: Vec::new() });
        while !sink.poll(Duration::from_secs(1)).committed {}
        counted
    }

    struct Votes {
        broker: Broker,
        config: Arc<Config>,
    }

    impl Votes {
        fn new() -> Votes {
            let broker = Broker::start().unwrap();
            let mut config = Config::default();
            config.kafka.insert("bootstrap.servers".into(), broker.bootstrap_servers());
            broker.create_topic("votes", 1).unwrap();
            broker.create_topic(&epoch_log::topic(&config.engine_id), 1).unwrap();
            Votes { broker, config: Arc::new(config) }
        }

        fn cast(&self, votes: &[(&str, Option<&str>)]) {
            assert!(!self.broker.bootstrap_servers().is_empty());
            let producer: BaseProducer = clients::kafka(&self.config).create().unwrap();
            for (id, choice) in votes {
                let payload =
                    choice.map(|choice| serde_json::json!({ "id": id, "choice": choice }).to_string());
                let record = BaseRecord::to("votes").key(*id);
                let record = payload.iter().fold(record, |record, payload| record.payload(payload));
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
            producer.flush(Duration::from_secs(10)).unwrap();
        }

        async fn rows_within(
            &self,
            declaration: &str,
            counted: &CountedMessages,
            bytes_max: usize,
            sql: &str,
        ) -> Result<Vec<RecordBatch>> {
            let files = [QueryFile { path: PathBuf::from("votes.sql"), text: declaration.into() }];
            let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
            let def = Arc::new(catalog.sources["votes"].clone());
            let table = KafkaTable::new(Arc::clone(&self.config), def, counted.clone());
            let pool = Arc::new(GreedyMemoryPool::new(bytes_max));
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
            let session = SessionContext::new_with_config_rt(session::base_config(), runtime);
            session.register_table("votes", Arc::new(table)).unwrap();
            session.sql(sql).await?.collect().await
        }
    }

    const SELECT: &str = "SELECT * FROM votes ORDER BY id";

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_rows_that_were_not_taken_back_are_shown() {
        let votes = Votes::new();
        votes.cast(&[("a", Some("1")), ("b", Some("1")), ("a", Some("2")), ("c", Some("3")), ("b", None)]);
        let counted = write_log(&votes.config, &[(0, 2, &[]), (2, 5, &[])]);
        let rows = votes.rows_within(VOTES, &counted, 100_000_000, SELECT).await.unwrap();
        let expected = [
            "+----+--------+",
            "| id | choice |",
            "+----+--------+",
            "| a  | 2      |",
            "| c  | 3      |",
            "+----+--------+",
        ];
        assert_batches_eq!(expected, &rows);
        let error = votes.rows_within(VOTES, &counted, 10, SELECT).await.unwrap_err().to_string();
        assert!(error.contains("the rows of votes"), "what they need is the query's memory: {error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_log_says_is_shown_whatever_the_rules_say() {
        let votes = Votes::new();
        let cast =
            [("a", Some("1")), ("a", Some("2")), ("b", Some("1")), ("c", Some("3")), ("not yet", Some("1"))];
        votes.cast(&cast);
        let counted = write_log(&votes.config, &[(0, 3, &[0]), (3, 4, &[])]);
        let first_counts = VOTES.replace("OPTIONS ('on_conflict' 'replace')", "");
        let rows = votes.rows_within(&first_counts, &counted, 100_000_000, SELECT).await.unwrap();
        let expected = [
            "+----+--------+",
            "| id | choice |",
            "+----+--------+",
            "| a  | 2      |",
            "| b  | 1      |",
            "| c  | 3      |",
            "+----+--------+",
        ];
        assert_batches_eq!(expected, &rows);
        let none = CountedMessages::default();
        let rows = votes.rows_within(&first_counts, &none, 100_000_000, SELECT).await.unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    }
}
