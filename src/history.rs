//! A source read as a table, for ad-hoc SQL: a bounded scan of its topic's whole history, which shows
//! exactly the rows that keep the source's rules.

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
    fn scan_all(&self, sender: &Sender<Result<RecordBatch>>) -> Result<(), Error> {
        let (decoder, mut rules) = decode::of_source(&self.source, None, &session::continuous().state())?;
        let references = self.references.borrow().clone();
        let topic = &self.source.topic;
        let mut source = KafkaSource::open(&self.config, topic, Bounds::UntilNow, self.source.start)?;
        // While Kafka is away nothing comes; whoever asked may then have given up.
        while !sender.is_closed() {
            let polled = source.poll(self.config.batch_rows, Duration::from_millis(self.config.trigger_ms));
            let (decoded, _) = decoder.decode(&polled.batch.payloads())?;
            let (judged, _) = rules.judge(decoded, &|message| polled.batch.origin(message), &references)?;
            if judged.rows.num_rows() > 0 && sender.blocking_send(Ok(judged.rows)).is_err() {
                break;
            }
            if polled.state.ended {
                break;
            }
        }
        Ok(())
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

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStream::builder(Arc::clone(&self.source.schema), BATCHES_AHEAD);
        let sender = builder.tx();
        let table = self.clone();
        builder.spawn_blocking(move || {
            table.scan_all(&sender).map_err(|e| DataFusionError::External(Box::new(e)))
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
