//! Which row an empty message deletes: the primary key as its message key says it. That is a JSON object with the
//! key's columns (in an object `payload` or not), or of a single column the value: as JSON, or a text as it is. So
//! the keys that a view's topic has are read as they were written.

use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use serde_json::value::RawValue;

use super::object::Splitter;

/// The key as a JSON object of the columns `key`.
pub fn as_object(message_key: Option<&[u8]>, key: &SchemaRef) -> Result<String, String> {
    let bytes = message_key.ok_or("the message has no payload, and no key that says which row it deletes")?;
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("the message has no payload, and its key is no text: {e}"))?;
    if let Some(object) = object_with(text, key) {
        return Ok(object.into());
    }
    let [field] = key.fields().as_ref() else {
        let columns = key.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>();
        return Err(format!(
            "the message has no payload, and its key is no JSON object with {}",
            columns.join(", ")
        ));
    };
    let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let json = serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get);
    let value = match json {
        // A text is spelled as JSON only where it could be taken for something else.
        Some(json) if !is_text || json == "null" || json.starts_with('"') => json.to_string(),
        _ => serde_json::Value::from(text).to_string(),
    };
    Ok(format!("{{{}:{value}}}", serde_json::Value::from(field.name().as_str())))
}

/// The text, or its `payload`, if that is an object with one of the columns.
fn object_with<'a>(text: &'a str, key: &SchemaRef) -> Option<&'a str> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let payload = Fields::from(vec![Field::new("payload", DataType::Utf8, true)]);
    let mut inside = Some(text);
    while let Some(object) = inside {
        let Ok(values) = Splitter::default().split(object, key.fields()).map(<[_]>::to_vec) else { break };
        if values.iter().any(Option::is_some) {
            return Some(object);
        }
        let Ok(values) = Splitter::default().split(object, &payload).map(<[_]>::to_vec) else { break };
        inside = values[0].filter(|value| value.starts_with('{'));
    }
    None
}

#[cfg(test)]
mod tests;
