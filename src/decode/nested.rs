//! Columns of columns: structs, lists and maps.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{FieldRef, Fields};

use super::column::{Column, refuse};
use super::object::{self, Splitter};
use crate::error::Result;

type Child<'m> = Box<dyn Column<'m> + 'm>;

/// A struct, from an object.
pub struct Struct<'m> {
    fields: Fields,
    columns: Vec<Child<'m>>,
    splitter: Splitter<'m>,
    valid: NullBufferBuilder,
}

impl<'m> Struct<'m> {
    /// Of one column for each field.
    pub fn new(fields: &Fields, columns: Vec<Child<'m>>) -> Self {
        let (splitter, valid) = (Splitter::default(), NullBufferBuilder::new(0));
        Struct { fields: fields.clone(), columns, splitter, valid }
    }

    /// Under a null struct the children are null too: DataFusion reads a field without its parent's mask.
    fn add_null(&mut self) {
        self.valid.append_null();
        // A null is never refused.
        self.columns.iter_mut().for_each(|column| drop(column.add(None)));
    }
}

impl<'m> Column<'m> for Struct<'m> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let Some(json) = value else {
            self.add_null();
            return Ok(());
        };
        if !json.starts_with('{') {
            self.add_null();
            return refuse(json, "STRUCT");
        }
        let values = match self.splitter.split(json, &self.fields) {
            Ok(values) => values,
            Err(error) => {
                self.add_null();
                return Err(format!(": {error}"));
            }
        };
        self.valid.append_non_null();
        let mut result = Ok(());
        for ((column, value), field) in self.columns.iter_mut().zip(values).zip(&self.fields) {
            let added = column.add(*value).map_err(|reason| format!(".{}{reason}", field.name()));
            result = result.and(added);
        }
        result
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let length = self.valid.len();
        let columns = self.columns.iter_mut().map(|column| column.finish()).collect::<Result<Vec<_>>>()?;
        let fields = self.fields.clone();
        Ok(Arc::new(StructArray::try_new_with_length(fields, columns, self.valid.finish(), length)?))
    }
}

/// A list of any length, from an array.
pub struct List<'m> {
    item: FieldRef,
    items: Child<'m>,
    lengths: Vec<usize>,
    valid: NullBufferBuilder,
}

impl<'m> List<'m> {
    /// Of items that `items` holds.
    pub fn new(item: &FieldRef, items: Child<'m>) -> Self {
        let item = Arc::clone(item);
        List { item, items, lengths: Vec::new(), valid: NullBufferBuilder::new(0) }
    }
}

impl<'m> Column<'m> for List<'m> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let (items, mut result) = array(value);
        self.lengths.push(items.len());
        self.valid.append(value.is_some());
        for (i, item) in items.into_iter().enumerate() {
            result = result.and(self.items.add(item).map_err(|reason| format!("[{i}]{reason}")));
        }
        result
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let offsets = OffsetBuffer::from_lengths(self.lengths.drain(..));
        let items = self.items.finish()?;
        Ok(Arc::new(ListArray::try_new(Arc::clone(&self.item), offsets, items, self.valid.finish())?))
    }
}

/// A list of one length, from an array that has it.
pub struct FixedList<'m> {
    item: FieldRef,
    size: i32,
    items: Child<'m>,
    valid: NullBufferBuilder,
}

impl<'m> FixedList<'m> {
    /// Of `size` items that `items` holds.
    pub fn new(item: &FieldRef, size: i32, items: Child<'m>) -> Self {
        FixedList { item: Arc::clone(item), size, items, valid: NullBufferBuilder::new(0) }
    }
}

impl<'m> Column<'m> for FixedList<'m> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let (mut items, mut result) = array(value);
        if value.is_some() && items.len() != self.size as usize {
            result = result.and_then(|()| Err(format!(": {} items are not {}", items.len(), self.size)));
        }
        items.resize(self.size as usize, None);
        self.valid.append(value.is_some());
        for (i, item) in items.into_iter().enumerate() {
            result = result.and(self.items.add(item).map_err(|reason| format!("[{i}]{reason}")));
        }
        result
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let length = self.valid.len();
        let items = self.items.finish()?;
        let (item, valid) = (Arc::clone(&self.item), self.valid.finish());
        Ok(Arc::new(FixedSizeListArray::try_new_with_length(item, self.size, items, valid, length)?))
    }
}

/// The items of a JSON array; none of what is no array.
fn array(value: Option<&str>) -> (Vec<Option<&str>>, Result<(), String>) {
    match value {
        Some(json) if !json.starts_with('[') => (Vec::new(), refuse(json, "array")),
        Some(json) => match object::items(json) {
            Ok(items) => (items, Ok(())),
            Err(e) => (Vec::new(), Err(format!(": {e}"))),
        },
        None => (Vec::new(), Ok(())),
    }
}

/// A map with text keys, from an object; it keeps the object's order, and a key must not come twice.
pub struct Map<'m> {
    entry: FieldRef,
    fields: Fields,
    keys: StringBuilder,
    values: Child<'m>,
    lengths: Vec<usize>,
    valid: NullBufferBuilder,
}

impl<'m> Map<'m> {
    /// Of entries of two `fields`, whose values `values` holds.
    pub fn new(entry: &FieldRef, fields: &Fields, values: Child<'m>) -> Self {
        Map {
            entry: Arc::clone(entry),
            fields: fields.clone(),
            keys: StringBuilder::new(),
            values,
            lengths: Vec::new(),
            valid: NullBufferBuilder::new(0),
        }
    }
}

impl<'m> Column<'m> for Map<'m> {
    fn add(&mut self, value: Option<&'m str>) -> Result<(), String> {
        let (entries, mut result) = match value {
            Some(json) if !json.starts_with('{') => (Vec::new(), refuse(json, "MAP")),
            Some(json) => match object::entries(json) {
                Ok(entries) => (entries, Ok(())),
                Err(e) => (Vec::new(), Err(format!(": {e}"))),
            },
            None => (Vec::new(), Ok(())),
        };
        self.lengths.push(entries.len());
        self.valid.append(value.is_some());
        let mut seen = HashSet::new();
        for (key, value) in &entries {
            self.keys.append_value(key);
            result = result.and(self.values.add(*value).map_err(|reason| format!("[{key:?}]{reason}")));
            if !seen.insert(key) {
                result = result.and_then(|()| Err(format!(": the key {key:?} comes twice")));
            }
        }
        result
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let columns: Vec<ArrayRef> = vec![Arc::new(self.keys.finish()), self.values.finish()?];
        let entries = StructArray::try_new(self.fields.clone(), columns, None)?;
        let offsets = OffsetBuffer::from_lengths(self.lengths.drain(..));
        let entry = Arc::clone(&self.entry);
        Ok(Arc::new(MapArray::try_new(entry, offsets, entries, self.valid.finish(), false)?))
    }
}
