//! A Postgres table as a DataFusion table that reads from Postgres at each query: all columns, none held.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::project_schema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::TryStreamExt;
use futures::stream::{self, StreamExt};
use sqlx::PgPool;
use tokio::runtime::Handle;

use crate::error::Error;

use super::load;
use super::schema::TableDef;

/// A table for ad-hoc SQL. Projection and limit are left to Postgres; filters are DataFusion's.
#[derive(Clone, Debug)]
pub struct PgTable {
    pool: PgPool,
    pg_schema: String,
    def: Arc<TableDef>,
    runtime: Handle,
}

impl PgTable {
    /// The table `def` of a schema. Made within a Tokio runtime, on which it then reads: a query may run on
    /// another one, and a pooled connection opened there would stall or end with it.
    pub fn new(pool: PgPool, pg_schema: impl Into<String>, def: Arc<TableDef>) -> Self {
        PgTable { pool, pg_schema: pg_schema.into(), def, runtime: Handle::current() }
    }
}

#[async_trait]
impl TableProvider for PgTable {
    fn schema(&self) -> SchemaRef {
        self.def.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = project_schema(&self.def.schema, projection)?;
        let scan = Scan { table: self.clone(), schema: schema.clone(), limit };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, [], false, limit)?))
    }
}

#[derive(Debug)]
struct Scan {
    table: PgTable,
    schema: SchemaRef,
    limit: Option<usize>,
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let columns: Vec<String> = self.schema.fields().iter().map(|f| f.name().clone()).collect();
        let PgTable { pool, pg_schema, def, runtime } = &self.table;
        let _on = runtime.enter();
        let batches = load::stream(pool, pg_schema, def, &columns, self.limit)
            .unwrap_or_else(|e| stream::once(async { Err(e) }).boxed())
            .map_err(|e| DataFusionError::External(Box::new(Error::from(e))));
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
    }
}
