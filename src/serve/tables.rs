//! Published views as DataFusion tables. A query sees one epoch, whatever is published meanwhile.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::error::Error;
use crate::snapshot::ViewSnapshot;

/// One view as of one epoch. Its rows become a batch only if a query reads them.
#[derive(Debug)]
pub(super) struct ViewTable(pub Arc<ViewSnapshot>);

#[async_trait]
impl TableProvider for ViewTable {
    fn schema(&self) -> SchemaRef {
        self.0.info.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.0.batch().map_err(|e| match e {
            Error::DataFusion(e) => e,
            e => DataFusionError::External(Box::new(e)),
        })?;
        MemTable::try_new(self.schema(), vec![vec![batch]])?.scan(state, projection, filters, limit).await
    }
}
