//! Message keys as views' topics, producers and Kafka Connect write them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Schema;

use super::*;
use crate::catalog::TimestampFormat;
use crate::decode::JsonDecoder;
use crate::sink::keys;

fn columns(types: &[(&str, DataType)]) -> SchemaRef {
    let field = |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), true);
    Arc::new(Schema::new(types.iter().map(field).collect::<Vec<_>>()))
}

/// What a key says, as JSON.
fn read(key: &[u8], schema: &SchemaRef) -> Result<RecordBatch, String> {
    let object = as_object(Some(key), schema)?;
    let decoder = JsonDecoder::new(Arc::clone(schema), TimestampFormat::Iso).unwrap();
    let (decoded, rejects) = decoder.decode(&[Some(object.as_bytes())]).unwrap();
    rejects.first().map_or(Ok(decoded.rows), |reject| Err(reject.reason.clone()))
}

fn text(key: &str) -> Result<Option<String>, String> {
    use arrow::array::{Array, AsArray};
    let rows = read(key.as_bytes(), &columns(&[("id", DataType::Utf8)]))?;
    let texts = rows.column(0).as_string::<i32>();
    Ok(texts.is_valid(0).then(|| texts.value(0).to_string()))
}

#[test]
fn a_single_text_is_read_as_it_is_or_as_json() {
    let some = |text: &str| Ok(Some(text.to_string()));
    for (key, expected) in [
        ("v1", "v1"),
        ("", ""),
        ("7", "7"),
        ("true", "true"),
        ("[1]", "[1]"),
        (r#""v1""#, "v1"),
        (r#""""#, ""),
        (r#""null""#, "null"),
        (r#""half"#, r#""half"#),
        (r#"{"id": "v1"}"#, "v1"),
        (r#"{"schema": {"type": "struct"}, "payload": {"id": "v1"}}"#, "v1"),
        (r#"{"other": 1}"#, r#"{"other": 1}"#),
        ("{no JSON", "{no JSON"),
    ] {
        assert_eq!(text(key), some(expected), "{key}");
    }
    assert_eq!(text("null"), Ok(None));
    assert!(text(r#"{"id": 7}"#).unwrap_err().contains("field id: 7 is no VARCHAR"));
}

#[test]
fn other_single_values_are_json_or_texts_of_it() {
    let number = columns(&[("id", DataType::Int64)]);
    for key in ["42", r#"{"id": 42}"#, r#"{"payload": {"id": 42}}"#] {
        let expected: ArrayRef = Arc::new(Int64Array::from(vec![42]));
        assert_eq!(read(key.as_bytes(), &number).unwrap().column(0), &expected, "{key}");
    }
    for key in ["forty-two", "4.2", ""] {
        assert!(read(key.as_bytes(), &number).is_err(), "{key}");
    }
    let date = columns(&[("day", DataType::Date32)]);
    let days = ["2026-05-07", r#""2026-05-07""#, r#"{"day": "2026-05-07"}"#];
    let read_days: Vec<_> = days.iter().map(|day| read(day.as_bytes(), &date).unwrap()).collect();
    assert!(read_days.iter().all(|rows| rows == &read_days[0]));
    assert!(as_object(Some(&[0, 0, 0, 7, 0xff]), &number).unwrap_err().contains("its key is no text"));
    assert!(as_object(None, &number).unwrap_err().contains("no key that says which row it deletes"));
}

#[test]
fn several_columns_are_an_object() {
    let key = columns(&[("a", DataType::Utf8), ("b", DataType::Int64)]);
    let rows = read(br#"{"b": 1, "a": "x", "more": []}"#, &key).unwrap();
    assert_eq!((rows.num_columns(), rows.num_rows()), (2, 1));
    for wrong in ["x", r#"{"c": 1}"#, "[1]"] {
        let reason = as_object(Some(wrong.as_bytes()), &key).unwrap_err();
        assert!(reason.contains("its key is no JSON object with a, b"), "{reason}");
    }
}

#[test]
fn the_keys_of_a_views_topic_are_read_as_they_were_written() {
    let texts =
        vec![Some("a"), None, Some(""), Some("null"), Some("\"x"), Some("7"), Some("{}"), Some("é\n")];
    let numbers = Int64Array::from_iter_values(0..texts.len() as i64);
    let schema = columns(&[("t", DataType::Utf8), ("n", DataType::Int64)]);
    let written =
        RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(texts)), Arc::new(numbers)]).unwrap();
    for key in [&["t"][..], &["n"], &["t", "n"]] {
        let names: Vec<String> = key.iter().map(|name| name.to_string()).collect();
        let positions: Vec<_> = key.iter().map(|name| written.schema().index_of(name).unwrap()).collect();
        let expected = written.project(&positions).unwrap();
        for (row, bytes) in keys(&written, &names).unwrap().into_iter().enumerate() {
            let found = read(&bytes.unwrap(), &expected.schema()).unwrap();
            assert_eq!(found, expected.slice(row, 1), "{key:?}");
        }
    }
}
