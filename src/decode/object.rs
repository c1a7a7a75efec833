//! A JSON object as the texts of its values.

use std::fmt;

use arrow::datatypes::Fields;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::scan::Scanner;

/// Splits objects that have the same fields.
#[derive(Default)]
pub struct Splitter<'m> {
    /// What stood before each value of the last object, from the value before it on, and whose value it is:
    /// the messages of a topic are mostly spelled alike.
    gaps: Vec<(&'m str, Option<usize>)>,
    values: Vec<Option<&'m str>>,
}

impl<'m> Splitter<'m> {
    /// The text of each field's value in the object `json`; none if it is null or missing.
    pub fn split(&mut self, json: &'m str, fields: &Fields) -> serde_json::Result<&[Option<&'m str>]> {
        if self.scan(json, fields).is_none() {
            self.clear(fields);
            let mut parser = Deserializer::from_str(json);
            parser.deserialize_map(Split { fields, values: &mut self.values })?;
            parser.end()?;
        }
        Ok(&self.values)
    }

    fn clear(&mut self, fields: &Fields) {
        self.values.clear();
        self.values.resize(fields.len(), None);
    }

    /// As `split`, of an ordinary object, fast.
    fn scan(&mut self, json: &'m str, fields: &Fields) -> Option<()> {
        self.clear(fields);
        let mut scanner = Scanner::new(json);
        for n in 0.. {
            let field = match self.gaps.get(n) {
                Some((gap, field)) if scanner.starts_with(gap) => *field,
                _ => {
                    let start = scanner.position();
                    let Some(key) = next_key(&mut scanner, n == 0)? else { break };
                    let field = fields.iter().position(|field| field.name() == key);
                    self.gaps.truncate(n);
                    self.gaps.push((&json[start..scanner.position()], field));
                    field
                }
            };
            let value = scanner.value()?;
            if let Some(i) = field {
                self.values[i] = Some(value).filter(|value| *value != "null");
            }
        }
        scanner.end()
    }
}

/// The next key of an object, if it has one more.
fn next_key<'m>(scanner: &mut Scanner<'m>, first: bool) -> Option<Option<&'m str>> {
    scanner.space();
    if first {
        scanner.take(b'{')?;
        scanner.space();
    }
    if scanner.take(b'}').is_some() {
        return Some(None);
    }
    if !first {
        scanner.take(b',')?;
        scanner.space();
    }
    let key = scanner.key()?;
    scanner.space();
    scanner.take(b':')?;
    scanner.space();
    Some(Some(key))
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
