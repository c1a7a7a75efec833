//! A JSON object as the texts of its values; `serde_json` finds where they end, and that they are JSON.

use std::fmt;

use arrow::datatypes::Fields;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

/// Sets `values` to the text of each field's value in the object `json`; none if it is null or missing.
pub fn split<'m>(
    json: &'m str,
    fields: &Fields,
    values: &mut Vec<Option<&'m str>>,
) -> serde_json::Result<()> {
    values.clear();
    values.resize(fields.len(), None);
    let mut parser = Deserializer::from_str(json);
    parser.deserialize_map(Split { fields, values })?;
    parser.end()
}

/// The entries of the object `json`, in its order.
pub fn entries(json: &str) -> serde_json::Result<Vec<(String, Option<&str>)>> {
    Deserializer::from_str(json).deserialize_map(Entries)
}

/// The items of the array `json`.
pub fn items(json: &str) -> serde_json::Result<Vec<Option<&str>>> {
    let items: Vec<&RawValue> = serde_json::from_str(json)?;
    Ok(items.into_iter().map(value).collect())
}

fn value(raw: &RawValue) -> Option<&str> {
    Some(raw.get()).filter(|text| *text != "null")
}

struct Split<'a, 'm> {
    fields: &'a Fields,
    values: &'a mut [Option<&'m str>],
}

impl<'m> Visitor<'m> for Split<'_, 'm> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(position) = map.next_key_seed(Key(self.fields))? {
            match position {
                Some(i) => self.values[i] = value(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Finds a key among the fields without copying it.
struct Key<'a>(&'a Fields);

impl<'m> DeserializeSeed<'m> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'m>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|field| field.name() == key))
    }
}

struct Entries;

impl<'m> Visitor<'m> for Entries {
    type Value = Vec<(String, Option<&'m str>)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, raw)) = map.next_entry()? {
            entries.push((key, value(raw)));
        }
        Ok(entries)
    }
}
