//! What `tally replay` prints, and how texts differ.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, StructArray, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use arrow_json::LineDelimitedWriter;
use similar::TextDiff;

use super::Format;
use crate::engine::{RowSource, ViewChange};
use crate::error::Result;

/// Lines around a difference that are shown with it.
const CONTEXT_LINES: usize = 3;

/// What is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Show {
    /// A view's rows at the end.
    View(String),
    /// Every change of a view, with its op and epoch.
    Changelog(String),
}

impl Show {
    /// The view.
    pub fn view(&self) -> &str {
        match self {
            Show::View(view) | Show::Changelog(view) => view,
        }
    }
}

/// Collects what is printed at the end.
pub struct Printer {
    show: Show,
    schema: SchemaRef,
    /// Changed rows, or those of a view without state.
    changes: Vec<RecordBatch>,
    /// The view's rows.
    newest: Option<Arc<dyn RowSource>>,
}

impl Printer {
    /// Nothing yet of a view with these columns.
    pub fn new(show: Show, schema: SchemaRef) -> Printer {
        Printer { show, schema, changes: Vec::new(), newest: None }
    }

    /// What is printed.
    pub fn show(&self) -> &Show {
        &self.show
    }

    /// Takes what an epoch has changed in the view.
    pub fn take(&mut self, epoch: u64, changes: &[ViewChange]) -> Result<()> {
        for change in changes.iter().filter(|change| change.info.name == self.show.view()) {
            if matches!(self.show, Show::Changelog(_)) {
                self.changes.push(with_op(epoch, change)?);
            } else if change.stateless {
                // Its ring has the newest rows only.
                self.changes.push(change.changelog.rows.clone());
            } else {
                self.newest = Some(Arc::clone(&change.rows));
            }
        }
        Ok(())
    }

    /// The rows.
    pub fn rows(&self) -> Result<RecordBatch> {
        match &self.newest {
            Some(rows) => rows.batch(),
            None => {
                let schema = self.changes.first().map_or(Arc::clone(&self.schema), RecordBatch::schema);
                Ok(concat_batches(&schema, &self.changes)?)
            }
        }
    }
}

/// The text of one or several views. Of several each has its name above it; in JSON it is in each line.
pub fn print(printers: &[Printer], format: Format) -> Result<Vec<u8>> {
    let [printer] = printers else {
        let mut text = Vec::new();
        for printer in printers {
            let view = printer.show.view();
            if format == Format::Json {
                text.extend(print_rows(&named(view, &printer.rows()?)?, format)?);
                continue;
            }
            let of_changes = matches!(printer.show, Show::Changelog(_));
            let space = if text.is_empty() { "" } else { "\n" };
            text.extend(format!("{space}{view}{}\n", if of_changes { ", changes" } else { "" }).bytes());
            text.extend(print_rows(&printer.rows()?, format)?);
        }
        return Ok(text);
    };
    print_rows(&printer.rows()?, format)
}

/// Rows as text.
pub fn print_rows(rows: &RecordBatch, format: Format) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    match format {
        Format::Table => {
            text = format!("{}\n", pretty_format_batches(std::slice::from_ref(rows))?).into_bytes()
        }
        Format::Csv => arrow_csv::Writer::new(&mut text).write(rows)?,
        Format::Json => {
            let mut writer = LineDelimitedWriter::new(&mut text);
            writer.write(rows)?;
            writer.finish()?;
        }
    }
    Ok(text)
}

/// How `found` differs from `expected`, line by line, if it does: `-` is expected, `+` came out. How lines end, and
/// whether the last one does, is no difference.
pub fn differences(expected: &str, found: &str) -> Option<String> {
    let lines = |text: &str| text.lines().map(|line| format!("{line}\n")).collect::<String>();
    let (expected, found) = (lines(expected), lines(found));
    let diff = TextDiff::from_lines(&expected, &found);
    (expected != found).then(|| diff.unified_diff().context_radius(CONTEXT_LINES).to_string())
}

/// The rows as objects beside the view's name.
fn named(view: &str, rows: &RecordBatch) -> Result<RecordBatch> {
    let row = StructArray::try_new_with_length(
        rows.schema().fields().clone(),
        rows.columns().to_vec(),
        None,
        rows.num_rows(),
    )?;
    let views = StringArray::from(vec![view; rows.num_rows()]);
    Ok(RecordBatch::try_from_iter([("view", Arc::new(views) as ArrayRef), ("row", Arc::new(row))])?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_line_by_line() {
        let told = differences("a,1\nb,2\n", "a,1\nb,3\n").unwrap();
        assert!(told.contains(" a,1\n-b,2\n+b,3\n"), "{told}");
        assert_eq!(differences("a\r\nb\n", "a\nb"), None);
        assert!(differences("a \n", "a\n").is_some());
        assert!(differences("", "a\n").is_some());
    }
}
