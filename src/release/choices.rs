//! How many chose what, by group: what must not be told by a difference of two releases.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};

use crate::engine::Secret;
use crate::error::Result;

/// How many chose what. A difference of two may have less than none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// By the encoded choice; none with 0.
    by_choice: BTreeMap<Vec<u8>, i64>,
    /// Whether the view says what was chosen, or only by how many.
    are_told: bool,
}

impl Choices {
    /// Nobody's.
    pub fn none(secret: &Secret) -> Choices {
        Choices { by_choice: BTreeMap::new(), are_told: !secret.choice.is_empty() }
    }

    fn add(&mut self, choice: &[u8], count: i64) {
        let sum = self.by_choice.get(choice).copied().unwrap_or_default() + count;
        match sum {
            0 => drop(self.by_choice.remove(choice)),
            sum => drop(self.by_choice.insert(choice.to_vec(), sum)),
        }
    }

    /// What is here and not there.
    pub fn minus(&self, other: &Choices) -> Choices {
        let mut rest = self.clone();
        other.by_choice.iter().for_each(|(choice, count)| rest.add(choice, -count));
        rest
    }

    /// All of both.
    pub fn plus(&self, other: &Choices) -> Choices {
        let mut sum = self.clone();
        other.by_choice.iter().for_each(|(choice, count)| sum.add(choice, *count));
        sum.are_told |= other.are_told;
        sum
    }

    /// The one choice of all, if all chose alike.
    pub fn alike(&self) -> Option<&[u8]> {
        match self.by_choice.len() {
            1 => self.by_choice.keys().next().map(Vec::as_slice),
            _ => None,
        }
    }

    /// Rows that came or went.
    pub fn total(&self) -> u64 {
        self.by_choice.values().map(|count| count.unsigned_abs()).sum()
    }

    /// Whether it tells of no single person what was chosen: nobody at all, or at least `least` who did not all choose
    /// alike.
    pub fn hide_each(&self, least: u64) -> bool {
        match self.by_choice.len() {
            0 => true,
            1 => !self.are_told && self.total() >= least,
            _ => self.total() >= least,
        }
    }
}

/// A group of people in a view.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its rows, by position.
    pub rows: Vec<u32>,
    /// How many chose what.
    pub choices: Choices,
}

/// The groups of a view's rows, by their encoded key.
pub fn groups(rows: &RecordBatch, secret: &Secret) -> Result<HashMap<Vec<u8>, Group>> {
    let (keys, choices) = (encoded(rows, &secret.by)?, encoded(rows, &secret.choice)?);
    let counts = column(rows, &secret.counted_in)?;
    let counts = cast(&counts, &DataType::Int64)?;
    let counts = counts.as_any().downcast_ref::<Int64Array>().expect("invariant: cast to it");
    let mut groups: HashMap<Vec<u8>, Group> = HashMap::new();
    for row in 0..rows.num_rows() {
        let none = || Group { rows: Vec::new(), choices: Choices::none(secret) };
        let group = groups.entry(keys[row].clone()).or_insert_with(none);
        group.rows.push(row as u32);
        if counts.is_valid(row) {
            group.choices.add(&choices[row], counts.value(row));
        }
    }
    Ok(groups)
}

/// All groups together.
pub fn all(rows: &RecordBatch, secret: &Secret) -> Result<Choices> {
    let groups = groups(rows, secret)?;
    Ok(groups.values().fold(Choices::none(secret), |sum, group| sum.plus(&group.choices)))
}

fn column(rows: &RecordBatch, name: &str) -> Result<ArrayRef> {
    Ok(ArrayRef::clone(rows.column(rows.schema().index_of(name)?)))
}

/// The values of some columns, row by row, as bytes that are equal where they are. Views of one choice may have it in
/// columns of several text types.
pub fn encoded(rows: &RecordBatch, names: &[String]) -> Result<Vec<Vec<u8>>> {
    if names.is_empty() {
        return Ok(vec![Vec::new(); rows.num_rows()]);
    }
    let columns: Vec<ArrayRef> = names.iter().map(|name| column(rows, name)).collect::<Result<_>>()?;
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let encoded = RowConverter::new(fields)?.convert_columns(&columns)?;
    Ok(encoded.iter().map(|row| row.data().to_vec()).collect())
}
