//! Sets of offsets: compressed, and in JSON as the portable format of Roaring bitmaps, in base64.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roaring::RoaringTreemap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Offsets of one partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OffsetSet(RoaringTreemap);

impl OffsetSet {
    /// Adds an offset; those of Kafka are never negative.
    pub fn insert(&mut self, offset: i64) {
        if let Ok(offset) = u64::try_from(offset) {
            self.0.insert(offset);
        }
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &OffsetSet) {
        self.0 |= &other.0;
    }

    /// Whether an offset is in it.
    pub fn contains(&self, offset: i64) -> bool {
        u64::try_from(offset).is_ok_and(|offset| self.0.contains(offset))
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for OffsetSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0.serialize_into(&mut bytes).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for OffsetSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let set = RoaringTreemap::deserialize_from(&bytes[..]).map_err(serde::de::Error::custom)?;
        Ok(OffsetSet(set))
    }
}
