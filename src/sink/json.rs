//! Rows → JSON records.

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_json::WriterBuilder;
use arrow_json::writer::LineDelimited;

use crate::error::Result;

/// Each row as a JSON object with all its columns, NULL as `null`.
pub fn rows(batch: &RecordBatch) -> Result<Vec<Vec<u8>>> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    // A line break inside a text is escaped in JSON, so a line is a row.
    let lines = writer.into_inner();
    Ok(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The key of each row's record: the plain value of a single column, a JSON object of several, none
/// without key columns or where the single value is NULL.
pub fn keys(batch: &RecordBatch, key: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
    match key {
        [] => Ok(vec![None; batch.num_rows()]),
        [column] => {
            let values = batch.column(batch.schema().index_of(column)?);
            let options = FormatOptions::default();
            let text = ArrayFormatter::try_new(values.as_ref(), &options)?;
            let key = |i| values.is_valid(i).then(|| text.value(i).to_string().into_bytes());
            Ok((0..batch.num_rows()).map(key).collect())
        }
        columns => {
            let positions =
                columns.iter().map(|name| batch.schema().index_of(name)).collect::<Result<Vec<_>, _>>()?;
            Ok(rows(&batch.project(&positions)?)?.into_iter().map(Some).collect())
        }
    }
}
