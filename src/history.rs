//! A source read as a table, for ad-hoc SQL: a bounded scan of its topic's whole history, which shows
//! exactly the rows that keep the source's rules and were not taken back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
use tokio::sync::watch;

use crate::catalog::SourceDef;
use crate::config::Config;
use crate::decode;
use crate::engine::session;
use crate::error::Error;
use crate::reference::References;
use crate::source::{Bounds, KafkaSource, Source};

const BATCHES_AHEAD: usize = 2;

/// The history of one source.
#[derive(Clone)]
pub struct KafkaTable {
    config: Arc<Config>,
    source: Arc<SourceDef>,
    references: watch::Receiver<References>,
}

impl KafkaTable {
    /// A table over the topic of `source`, whose foreign keys are judged by `references`.
    pub fn new(config: Arc<Config>, source: Arc<SourceDef>, references: watch::Receiver<References>) -> Self {
        KafkaTable { config, source, references }
    }

    /// Reads the topic in a thread of its own; rows go out as they are judged.
    /// Where rows can be taken back, only those that are there in the end do; until then they count as the query's
    /// `memory`.
    fn scan_all(
        &self,
        sender: &Sender<Result<RecordBatch>>,
        memory: &MemoryReservation,
    ) -> Result<(), Error> {
        let (decoder, mut rules) = decode::of_source(&self.source, None, &session::continuous().state())?;
        let references = self.references.borrow().clone();
        let topic = &self.source.topic;
        let mut source = KafkaSource::open(&self.config, topic, Bounds::UntilNow, self.source.start)?;
        // While Kafka is away nothing comes; whoever asked may then have given up.
        while !sender.is_closed() {
            let polled = source.poll(self.config.batch_rows, Duration::from_millis(self.config.trigger_ms));
            let (decoded, _) = decoder.decode(&polled.batch)?;
            let (judged, _) = rules.judge(decoded, &|message| polled.batch.origin(message), &references)?;
            if self.source.retracts() {
                memory.try_resize(rules.bytes())?;
            } else if judged.rows.num_rows() > 0 && sender.blocking_send(Ok(judged.rows)).is_err() {
                break;
            }
            if polled.state.ended {
                break;
            }
        }
        rules.net_rows(self.config.batch_rows, |rows| sender.blocking_send(Ok(rows)).is_ok())
    }
}

impl fmt::Debug for KafkaTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "KafkaTable({} ← {})", self.source.name, self.source.topic)
    }
}

impl PartitionStream for KafkaTable {
    fn schema(&self) -> &SchemaRef {
        &self.source.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStream::builder(Arc::clone(&self.source.schema), BATCHES_AHEAD);
        let sender = builder.tx();
        let table = self.clone();
        let memory = MemoryConsumer::new(format!("the rows of {}", self.source.name));
        let memory = memory.register(context.memory_pool());
        builder.spawn_blocking(move || {
            table.scan_all(&sender, &memory).map_err(|e| DataFusionError::External(Box::new(e)))
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
        let table = StreamingTable::try_new(Arc::clone(&self.source.schema), vec![Arc::new(self.clone())])?;
        table.scan(session, projection, filters, limit).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use datafusion::assert_batches_eq;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::SessionContext;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;
    use crate::catalog::Catalog;
    use crate::clients;
    use crate::embedded::Broker;
    use crate::queries::QueryFile;

    const VOTES: &str = "CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR PRIMARY KEY, choice VARCHAR)
        STORED AS KAFKA LOCATION 'votes' OPTIONS ('on_conflict' 'replace');";

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_rows_that_were_not_taken_back_are_shown() {
        let broker = Broker::start().unwrap();
        broker.create_topic("votes", 1).unwrap();
        let mut config = Config::default();
        config.kafka.insert("bootstrap.servers".into(), broker.bootstrap_servers());
        let producer: BaseProducer = clients::kafka(&config).create().unwrap();
        let vote = |id: &str, choice: &str| serde_json::json!({ "id": id, "choice": choice }).to_string();
        for (id, choice) in
            [("a", Some("1")), ("b", Some("1")), ("a", Some("2")), ("c", Some("3")), ("b", None)]
        {
            let payload = choice.map(|choice| vote(id, choice));
            let record = BaseRecord::to("votes").key(id);
            let record = payload.iter().fold(record, |record, payload| record.payload(payload));
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
        let files = [QueryFile { path: PathBuf::from("votes.sql"), text: VOTES.into() }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await.unwrap();
        let def = Arc::new(catalog.sources["votes"].clone());
        let references = watch::Sender::new(References::default()).subscribe();
        let table = Arc::new(KafkaTable::new(Arc::new(config), def, references));
        let rows_within = async |bytes_max: usize, sql: &str| {
            let pool = Arc::new(GreedyMemoryPool::new(bytes_max));
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
            let session = SessionContext::new_with_config_rt(session::base_config(), runtime);
            session.register_table("votes", Arc::clone(&table) as _).unwrap();
            session.sql(sql).await.unwrap().collect().await
        };
        let rows = rows_within(100_000_000, "SELECT * FROM votes ORDER BY id").await.unwrap();
        let expected = [
            "+----+--------+",
            "| id | choice |",
            "+----+--------+",
            "| a  | 2      |",
            "| c  | 3      |",
            "+----+--------+",
        ];
        assert_batches_eq!(expected, &rows);
        let error = rows_within(10, "SELECT * FROM votes").await.unwrap_err().to_string();
        assert!(error.contains("the rows of votes"), "what they need is the query's memory: {error}");
    }
}
