//! The leaf of every continuous plan: a table whose batches are swapped between runs, so that one
//! physical plan serves all micro-batches.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, RwLock};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, SendableRecordBatchStream,
};

/// What a slot holds, which decides how plans over it are split and cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rows of one micro-batch of a source.
    Stream,
    /// The current rows of an incremental aggregate.
    State,
    /// A reference table, or a query on reference tables alone.
    Reference,
}

/// Columns that a stream's slot holds beside the source's own, of every row: when it happened, in nanoseconds
/// since 1970, …
pub const TIME: &str = "__tally_time";
/// … until when groups were final as it came, in the same measure, …
pub const FINAL_UNTIL: &str = "__tally_final_until";
/// … and its position in the micro-batch.
pub const ROW: &str = "__tally_row";

/// Whether a column is one of those that no query sees.
pub fn is_hidden(column: &str) -> bool {
    [TIME, FINAL_UNTIL, ROW].contains(&column)
}

/// The schema with those columns added, last.
pub fn with_hidden_fields(schema: &Schema) -> SchemaRef {
    let hidden = [TIME, FINAL_UNTIL].map(|name| Field::new(name, DataType::Int64, true));
    let row = Field::new(ROW, DataType::UInt32, true);
    let fields = schema.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(fields.chain(hidden).chain([row]).collect::<Vec<_>>()))
}

/// A table over swappable batches. Its batches may hold a subset of its columns, found by name: a
/// reference table is loaded with the needed columns only.
#[derive(Debug)]
pub struct SlotTable {
    name: String,
    kind: Kind,
    schema: SchemaRef,
    batches: Arc<RwLock<Vec<RecordBatch>>>,
}

impl SlotTable {
    /// An empty table.
    pub fn new(name: impl Into<String>, kind: Kind, schema: SchemaRef) -> Arc<Self> {
        Arc::new(SlotTable { name: name.into(), kind, schema, batches: Arc::default() })
    }

    /// The same table with the columns that no query sees, last.
    pub fn with_hidden(&self) -> Arc<SlotTable> {
        Arc::new(SlotTable {
            name: self.name.clone(),
            kind: self.kind,
            schema: with_hidden_fields(&self.schema),
            batches: Arc::clone(&self.batches),
        })
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name, for plans' texts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Replaces its content. Plans that run already go on with the content they began with.
    pub fn set(&self, batches: Vec<RecordBatch>) {
        *self.batches.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = batches;
    }
}

#[async_trait]
impl TableProvider for SlotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(SlotExec {
            name: self.name.clone(),
            kind: self.kind,
            schema,
            batches: Arc::clone(&self.batches),
            properties: Arc::new(properties),
        }))
    }
}

/// The scan of a [`SlotTable`].
#[derive(Debug)]
pub struct SlotExec {
    name: String,
    kind: Kind,
    schema: SchemaRef,
    batches: Arc<RwLock<Vec<RecordBatch>>>,
    properties: Arc<PlanProperties>,
}

impl SlotExec {
    /// What the slot holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl DisplayAs for SlotExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let columns: Vec<_> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "SlotExec: {} ({:?}), columns=[{}]", self.name, self.kind, columns.join(", "))
    }
}

impl ExecutionPlan for SlotExec {
    fn name(&self) -> &str {
        "SlotExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !children.is_empty() {
            return internal_err!("SlotExec has no children");
        }
        Ok(self)
    }

    /// A stream claims to be far larger than any reference table, so that every join builds its hash table
    /// of the reference table: that one is kept from one micro-batch to the next. Plans are made before the
    /// first row is there, so these are no counts.
    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        let claimed_rows = match self.kind {
            Kind::Stream => Some(1 << 40),
            Kind::Reference => Some(1 << 20),
            Kind::State => None,
        };
        if let Some(rows) = claimed_rows {
            statistics.num_rows = Precision::Inexact(rows);
            statistics.total_byte_size = Precision::Inexact(rows << 5);
        }
        Ok(Arc::new(statistics))
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let held = self.batches.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let batches = held.iter().map(|batch| project(batch, &self.schema)).collect::<Result<Vec<_>>>()?;
        Ok(Box::pin(MemoryStream::try_new(batches, Arc::clone(&self.schema), None)?))
    }
}

/// The columns of `schema` by name, in its order.
fn project(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Ok(Arc::clone(column)),
            None => internal_err!("column {} is not held", field.name()),
        })
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// An empty batch of `schema`.
pub fn empty(schema: &Schema) -> RecordBatch {
    RecordBatch::new_empty(Arc::new(schema.clone()))
}

/// The slot behind a table provider, if it is one.
pub fn as_slot(provider: &dyn TableProvider) -> Option<&SlotTable> {
    (provider as &dyn Any).downcast_ref()
}
