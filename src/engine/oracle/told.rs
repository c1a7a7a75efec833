//! What a source is told: rows that come and rows that are taken back. And, from the definition, which rows come and
//! go by it where a source takes rows back.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;

use super::rows::cells;
use crate::catalog::SourceDef;

/// Messages of a source. Each has a row that comes, one that is taken back, or both.
#[derive(Clone)]
pub struct Messages {
    pub came: RecordBatch,
    /// Of each row that comes, the position of its message; ascending.
    pub of_came: Vec<u32>,
    pub back: RecordBatch,
    /// Of each row that is taken back, the position of its message; ascending.
    pub of_back: Vec<u32>,
    /// Of each message.
    pub partitions: Vec<i32>,
}

impl Messages {
    /// A message for each row that comes.
    pub fn rows(came: RecordBatch, partitions: Vec<i32>) -> Messages {
        let of_came = (0..came.num_rows() as u32).collect();
        Messages {
            back: RecordBatch::new_empty(came.schema()),
            of_back: Vec::new(),
            came,
            of_came,
            partitions,
        }
    }

    /// Messages of one partition: the first takes the first row of `back` back and brings the first of `came`, and so
    /// on.
    pub fn changes(back: RecordBatch, came: RecordBatch) -> Messages {
        let messages = back.num_rows().max(came.num_rows());
        let (of_back, of_came) = (0..back.num_rows() as u32, 0..came.num_rows() as u32);
        let partitions = vec![0; messages];
        Messages { of_back: of_back.collect(), of_came: of_came.collect(), back, came, partitions }
    }
}

/// The rows of a source that takes rows back.
pub struct Net {
    /// Positions of the key's columns, if it has one.
    key: Option<Vec<usize>>,
    /// By key: the partition of its newest message, and the row that this one left.
    newest: BTreeMap<Vec<String>, (i32, Option<Vec<String>>)>,
    /// Without a key: how often each row is there.
    times: BTreeMap<Vec<String>, usize>,
}

impl Net {
    /// No rows yet; none for a source that takes no rows back.
    pub fn new(source: &SourceDef) -> Option<Net> {
        let position = |name: &String| source.schema.index_of(name).unwrap();
        let key = source.primary_key().map(|key| key.iter().map(position).collect());
        source.retracts().then(|| Net { key, newest: BTreeMap::new(), times: BTreeMap::new() })
    }

    /// The rows that come and go by these messages, and their weights.
    pub fn take(&mut self, messages: &Messages) -> Vec<(i64, Vec<String>)> {
        let mut changes = Vec::new();
        let (came, back) = (cells(&messages.came), cells(&messages.back));
        for (message, partition) in (0..).zip(&messages.partitions) {
            let find =
                |of: &[u32], rows: &[Vec<String>]| Some(rows[of.binary_search(&message).ok()?].clone());
            let (came, back) = (find(&messages.of_came, &came), find(&messages.of_back, &back));
            match &self.key {
                Some(key) => {
                    let of = |row: &Vec<String>| key.iter().map(|i| row[*i].clone()).collect::<Vec<_>>();
                    let (to, from) = (came.as_ref().map(of), back.as_ref().map(of));
                    if let Some(from) = from.filter(|from| Some(from) != to.as_ref()) {
                        let is_newer = self.newest.get(&from).is_some_and(|(newest, _)| newest > partition);
                        if !self.set(from, None, *partition, &mut changes) && !is_newer {
                            continue;
                        }
                    }
                    if let Some(to) = to {
                        self.set(to, came, *partition, &mut changes);
                    }
                }
                None => {
                    if let Some(back) = back {
                        match self.times.get_mut(&back) {
                            Some(times) if *times > 0 => *times -= 1,
                            _ => continue,
                        }
                        changes.push((-1, back));
                    }
                    if let Some(came) = came {
                        *self.times.entry(came.clone()).or_default() += 1;
                        changes.push((1, came));
                    }
                }
            }
        }
        changes
    }

    /// Whether a row went. No message has a timestamp, so that of two partitions the greater one's is newer.
    fn set(
        &mut self,
        key: Vec<String>,
        row: Option<Vec<String>>,
        partition: i32,
        changes: &mut Vec<(i64, Vec<String>)>,
    ) -> bool {
        let held = self.newest.entry(key).or_insert((i32::MIN, None));
        if held.0 > partition {
            changes.extend(row.into_iter().flat_map(|row| [(1, row.clone()), (-1, row)]));
            return false;
        }
        let before = std::mem::replace(held, (partition, row.clone())).1;
        let went = before.is_some();
        changes.extend(before.map(|before| (-1, before)));
        changes.extend(row.map(|row| (1, row)));
        went
    }
}
