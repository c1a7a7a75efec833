//! A consumer of a changelog: it holds what the changes add up to and checks each of them against that.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::{cells, in_one_order};
use crate::engine::{Op, ViewChange};

/// What a changelog adds up to.
#[derive(Default)]
pub struct Consumer {
    rows: Vec<Vec<String>>,
    by_key: BTreeMap<Vec<String>, Vec<String>>,
}

impl Consumer {
    /// Takes a change in.
    pub fn take(&mut self, change: &ViewChange) {
        let log = &change.changelog;
        assert_eq!(log.ops.len(), log.rows.num_rows());
        let positions: Vec<_> =
            change.info.key.iter().map(|k| change.info.schema.index_of(k).unwrap()).collect();
        let name = &change.info.name;
        let (mut keys, mut came, mut went) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (op, row) in log.ops.iter().zip(cells(&log.rows)) {
            if positions.is_empty() || change.stateless {
                let (own, other) = if *op == Op::Insert { (&mut came, &went) } else { (&mut went, &came) };
                assert!(!other.contains(&row), "{name} inserts and deletes {row:?} at once");
                own.insert(row.clone());
                self.take_whole_row(name, *op, row);
                continue;
            }
            let key: Vec<String> = positions.iter().map(|i| row[*i].clone()).collect();
            assert!(keys.insert(key.clone()), "{name} changes the key {key:?} twice in a micro-batch");
            let old = match op {
                Op::Delete => self.by_key.remove(&key),
                _ => self.by_key.insert(key, row.clone()),
            };
            assert_eq!(old.is_some(), *op != Op::Insert, "{op:?} of {row:?} in {name}");
            let unchanged = old.as_ref() == Some(&row) && *op == Op::Update && change.info.mode == "update";
            assert!(!unchanged, "unchanged row {row:?} in {name}");
        }
    }

    /// A view without a key knows a row by all its columns.
    fn take_whole_row(&mut self, name: &str, op: Op, row: Vec<String>) {
        match op {
            Op::Insert => self.rows.push(row),
            Op::Delete => {
                let place = self.rows.iter().position(|held| *held == row);
                self.rows.swap_remove(place.unwrap_or_else(|| panic!("{name} deletes {row:?}, not there")));
            }
            Op::Update => panic!("an update without a key in {name}"),
        }
    }

    /// What the changelog adds up to, in one order.
    pub fn rows(&self) -> Vec<Vec<String>> {
        in_one_order(self.rows.iter().chain(self.by_key.values()).cloned().collect())
    }
}
