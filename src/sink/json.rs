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

/// The key of each row's record, none without key columns. Of several columns it is a JSON object; of a single
/// one its plain value, where NULL is `null`. So that no two values have the same key, a text that is empty, is
/// `null` or begins with a quotation mark is written as a JSON string.
pub fn keys(batch: &RecordBatch, key: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
    match key {
        [] => Ok(vec![None; batch.num_rows()]),
        [column] => {
            let values = batch.column(batch.schema().index_of(column)?);
            let options = FormatOptions::default();
            let text = ArrayFormatter::try_new(values.as_ref(), &options)?;
            let key = |i| match values.is_valid(i) {
                true => plain_key(text.value(i).to_string()),
                false => b"null".to_vec(),
            };
            Ok((0..batch.num_rows()).map(|i| Some(key(i))).collect())
        }
        columns => {
            let positions =
                columns.iter().map(|name| batch.schema().index_of(name)).collect::<Result<Vec<_>, _>>()?;
            Ok(rows(&batch.project(&positions)?)?.into_iter().map(Some).collect())
        }
    }
}

fn plain_key(text: String) -> Vec<u8> {
    if text.is_empty() || text == "null" || text.starts_with('"') {
        return serde_json::Value::String(text).to_string().into_bytes();
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn keys_of(column: ArrayRef) -> Vec<String> {
        let batch = RecordBatch::try_from_iter([("k", column)]).unwrap();
        let text = |key: Option<Vec<u8>>| String::from_utf8(key.expect("a key is always bytes")).unwrap();
        keys(&batch, &["k".into()]).unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn every_value_of_a_single_key_column_has_bytes_of_its_own() {
        let texts = [None, Some("null"), Some(""), Some("\"null\""), Some("Norfolk"), Some("a\"b")];
        let keys = keys_of(Arc::new(StringArray::from(texts.to_vec())));
        assert_eq!(keys, ["null", "\"null\"", "\"\"", r#""\"null\"""#, "Norfolk", "a\"b"]);
        assert_eq!(keys_of(Arc::new(Int64Array::from(vec![None, Some(-7)]))), ["null", "-7"]);
    }
}
