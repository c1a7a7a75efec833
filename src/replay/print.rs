//! What `tally replay` prints.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use arrow_json::LineDelimitedWriter;

use super::Format;
use crate::engine::{RowSource, ViewChange};
use crate::error::Result;

/// Collects what is printed at the end.
pub struct Printer {
    /// Whether it is the changelog, and not the rows at the end.
    pub of_changes: bool,
    /// The view's columns.
    pub schema: SchemaRef,
    /// Changed rows, or those of a view without state.
    pub changes: Vec<RecordBatch>,
    /// The view's rows.
    pub newest: Option<Arc<dyn RowSource>>,
}

impl Printer {
    /// Takes what an epoch has changed in the view.
    pub fn take(&mut self, epoch: u64, changes: Vec<ViewChange>, view: &str) -> Result<()> {
        for change in changes.into_iter().filter(|change| change.info.name == view) {
            if self.of_changes {
                self.changes.push(with_op(epoch, &change)?);
            } else if change.stateless {
                // Its ring has the newest rows only.
                self.changes.push(change.changelog.rows);
            } else {
                self.newest = Some(change.rows);
            }
        }
        Ok(())
    }

    /// The text.
    pub fn print(self, format: Format) -> Result<Vec<u8>> {
        let schema = self.changes.first().map_or(self.schema, RecordBatch::schema);
        let rows = match self.newest {
            Some(rows) => rows.batch()?,
            None => concat_batches(&schema, &self.changes)?,
        };
        let mut text = Vec::new();
        match format {
            Format::Table => text = format!("{}\n", pretty_format_batches(&[rows])?).into_bytes(),
            Format::Csv => arrow_csv::Writer::new(&mut text).write(&rows)?,
            Format::Json => {
                let mut writer = LineDelimitedWriter::new(&mut text);
                writer.write(&rows)?;
                writer.finish()?;
            }
        }
        Ok(text)
    }
}

fn with_op(epoch: u64, change: &ViewChange) -> Result<RecordBatch> {
    let log = &change.changelog;
    let mut fields =
        vec![Field::new("op", DataType::Utf8, false), Field::new("epoch", DataType::UInt64, false)];
    fields.extend(log.rows.schema().fields().iter().map(|field| field.as_ref().clone()));
    let ops = StringArray::from_iter_values(log.ops.iter().map(|op| op.as_str()));
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(ops), Arc::new(UInt64Array::from(vec![epoch; log.ops.len()]))];
    columns.extend(log.rows.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
