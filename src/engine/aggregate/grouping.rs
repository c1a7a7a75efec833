//! Finds the group of each row, and numbers new groups. A number that was handed out to rows that failed stays
//! with its key: the group is there only once its row is in the store.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use crate::batches::Owned;
use crate::engine::bound::SessionKeys;
use crate::engine::session_groups::SessionGroups;
use crate::engine::store::Store;

const UNTOUCHED: u32 = u32::MAX;
/// Marks the position of a group that has no state.
const NEW: u32 = 1 << 31;

/// How the group of a row is found.
pub enum Grouping {
    /// All rows are one group.
    One,
    /// By the values of the key.
    ByKey(ByKey),
    /// By the session that a row belongs to.
    BySession(SessionGroups),
}

/// The number of each key.
pub struct ByKey {
    schema: SchemaRef,
    values: Owned<Box<dyn GroupValues>>,
    /// By group: its position among the touched groups, while a batch is prepared.
    position: Vec<u32>,
}

impl Grouping {
    /// Finds groups by keys of `schema`, or by `sessions` if their windows are among the keys.
    pub fn new(schema: &SchemaRef, sessions: Option<&SessionKeys>) -> Result<Grouping> {
        Ok(match sessions {
            Some(keys) => Grouping::BySession(SessionGroups::new(keys.clone(), schema)?),
            None if schema.fields().is_empty() => Grouping::One,
            None => Grouping::ByKey(ByKey::new(SchemaRef::clone(schema))?),
        })
    }

    /// Finds the group of each of `rows` rows; `store` has the groups that are there. `batch` are the rows.
    pub fn touch(
        &mut self,
        keys: &[ArrayRef],
        rows: usize,
        batch: &RecordBatch,
        store: &Store,
    ) -> Result<Touched> {
        match self {
            Grouping::One => {
                let old: Vec<u32> = if store.len() == 0 { vec![] } else { vec![0] };
                Ok(Touched {
                    groups: vec![0],
                    old_positions: vec![0; old.len()],
                    with_old: old.len(),
                    old,
                    first_rows: vec![0],
                    positions: vec![0; rows],
                })
            }
            Grouping::BySession(sessions) => sessions.touch(keys, batch, store.len() as u32),
            Grouping::ByKey(by_key) => by_key.touch(keys, rows, store),
        }
    }

    /// What was touched since the last call counts.
    pub fn commit(&mut self) {
        if let Grouping::BySession(sessions) = self {
            sessions.commit();
        }
    }

    /// Undoes what was touched and does not count.
    pub fn discard(&mut self) {
        if let Grouping::BySession(sessions) = self {
            sessions.discard();
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Grouping::One => 0,
            Grouping::ByKey(by_key) => {
                by_key.values.read(|values| values.size()) + by_key.position.len() * size_of::<u32>()
            }
            Grouping::BySession(sessions) => sessions.bytes(),
        }
    }
}

impl ByKey {
    fn new(schema: SchemaRef) -> Result<ByKey> {
        let values = new_group_values(SchemaRef::clone(&schema), &GroupOrdering::None)?;
        Ok(ByKey { schema, values: Owned::new(values), position: Vec::new() })
    }

    /// Knows these different keys only; their numbers. Which key gets which is nobody's promise.
    pub fn renumber(&mut self, keys: &[ArrayRef]) -> Result<Vec<u32>> {
        *self = ByKey::new(SchemaRef::clone(&self.schema))?;
        let rows = keys.first().map_or(0, |key| key.len());
        let mut ids = Vec::with_capacity(rows);
        if rows > 0 {
            self.values.get_mut().intern(keys, &mut ids)?;
        }
        Ok(ids.into_iter().map(|id| id as u32).collect())
    }

    fn touch(&mut self, keys: &[ArrayRef], rows: usize, store: &Store) -> Result<Touched> {
        let mut ids = Vec::with_capacity(rows);
        let values = self.values.get_mut();
        values.intern(keys, &mut ids)?;
        if values.len() >= NEW as usize {
            return internal_err!("more than {NEW} groups");
        }
        self.position.resize(values.len(), UNTOUCHED);
        let (mut first_rows, mut first_rows_of_new) = (Vec::new(), Vec::new());
        for (row, id) in ids.iter().enumerate() {
            let position = &mut self.position[*id];
            if *position == UNTOUCHED {
                let (rows, mark) = match store.has(*id as u32) {
                    true => (&mut first_rows, 0),
                    false => (&mut first_rows_of_new, NEW),
                };
                *position = rows.len() as u32 | mark;
                rows.push(row as u32);
            }
        }
        let old = first_rows.len();
        first_rows.extend(first_rows_of_new);
        let place = |id: &usize| {
            let position = self.position[*id];
            if position & NEW == 0 { position as usize } else { (position & !NEW) as usize + old }
        };
        let positions = ids.iter().map(place).collect();
        let touched: Vec<u32> = first_rows.iter().map(|row| ids[*row as usize] as u32).collect();
        for group in &touched {
            self.position[*group as usize] = UNTOUCHED;
        }
        Ok(Touched {
            old: touched[..old].to_vec(),
            old_positions: (0..old).collect(),
            with_old: old,
            groups: touched,
            first_rows,
            positions,
        })
    }
}

/// The groups that a micro-batch touches.
#[derive(Debug)]
pub struct Touched {
    /// Their numbers, each once: those with an old state first.
    pub groups: Vec<u32>,
    /// Numbers of the groups whose states go into them, …
    pub old: Vec<u32>,
    /// … and into which: positions in `groups`.
    pub old_positions: Vec<usize>,
    /// How many of `groups` have an old state.
    pub with_old: usize,
    /// Of each group, its first row in the batch.
    pub first_rows: Vec<u32>,
    /// Of each row, its group's position in `groups`.
    pub positions: Vec<usize>,
}
