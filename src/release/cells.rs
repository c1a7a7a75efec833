//! Hides groups that are too small in the views with `secret_by`.
//!
//! A group is shown as it was when it last changed by at least `cell_min` rows that did not all choose alike; until
//! then by its older rows, or not at all. So nobody stands out in what came to it between two releases. What the shown
//! groups leave of all rows, which anybody can subtract, must be such a set too, and so must what it changes by: where
//! it would not, the smallest groups wait. Views with the same `secret_by` show the same groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};

use super::choices::{self, Choices, Group, encoded, groups};
use crate::engine::Secret;
use crate::error::Result;
use crate::snapshot::ViewSnapshot;

type Views = BTreeMap<String, Arc<ViewSnapshot>>;

/// What is shown of each group, by the columns that make the groups.
pub struct Cells {
    cell_min: u64,
    families: BTreeMap<Vec<String>, Family>,
}

/// Views with the same `secret_by`.
#[derive(Clone, Default)]
struct Family {
    /// What was shown last, by view.
    shown: BTreeMap<String, Shown>,
}

/// What was shown last of a view.
#[derive(Clone, Default)]
struct Shown {
    groups: HashMap<Vec<u8>, Cell>,
    /// What all shown groups left of all rows.
    rest: Choices,
    view: Option<Arc<ViewSnapshot>>,
}

#[derive(Clone)]
struct Cell {
    rows: RecordBatch,
    choices: Choices,
}

/// A view of a family as it is now.
struct Now<'a> {
    name: &'a str,
    view: &'a Arc<ViewSnapshot>,
    secret: &'a Secret,
    rows: RecordBatch,
    groups: HashMap<Vec<u8>, Group>,
    /// All rows, by choice.
    all: Choices,
}

impl Cells {
    /// Nothing shown yet.
    pub fn new(cell_min: u64) -> Cells {
        Cells { cell_min, families: BTreeMap::new() }
    }

    /// Puts in place of each view with `secret_by` what is shown of it.
    pub fn hide(&mut self, views: &mut Views) -> Result<()> {
        let mut families: BTreeMap<Vec<String>, Vec<&String>> = BTreeMap::new();
        for (name, view) in views.iter() {
            if let Some(secret) = view.info.disclosure.secret.as_ref().filter(|secret| !secret.by.is_empty())
            {
                let mut by = secret.by.clone();
                by.sort();
                families.entry(by).or_default().push(name);
            }
        }
        // All is made before any is taken to be shown.
        let mut made = Vec::new();
        for (by, names) in families {
            let now: Vec<Now> = names
                .into_iter()
                .filter_map(|name| Now::of(name, views).transpose())
                .collect::<Result<_>>()?;
            let mut family = self.families.get(&by).cloned().unwrap_or_default();
            family.show(&now, self.cell_min)?;
            made.push((by, family));
        }
        for (by, family) in made {
            for (name, shown) in &family.shown {
                if let (Some(view), Some(shown)) = (views.get_mut(name), &shown.view) {
                    *view = Arc::clone(shown);
                }
            }
            self.families.insert(by, family);
        }
        Ok(())
    }
}

impl<'a> Now<'a> {
    fn of(name: &'a str, views: &'a Views) -> Result<Option<Now<'a>>> {
        let Some(view) = views.get(name) else { return Ok(None) };
        let Some(secret) = &view.info.disclosure.secret else { return Ok(None) };
        let rows = view.batch()?;
        let groups = groups(&rows, secret)?;
        // A view that counts everybody's choices of the same kind tells what the groups' rows do not.
        let whole = views.values().find_map(|view| {
            let whole = view.info.disclosure.secret.as_ref()?;
            (whole.by.is_empty() && whole.choice == secret.choice).then_some((view, whole))
        });
        let all = match whole {
            Some((view, whole)) => choices::all(&view.batch()?, whole)?,
            None => choices::all(&rows, secret)?,
        };
        Ok(Some(Now { name, view, secret, rows, groups, all }))
    }

    fn choices(&self, group: &[u8]) -> Choices {
        self.groups.get(group).map(|group| group.choices.clone()).unwrap_or_default()
    }

    fn cell(&self, group: &[u8]) -> Result<Cell> {
        let positions = self.groups.get(group).map(|group| group.rows.clone()).unwrap_or_default();
        let rows = take_record_batch(&self.rows, &UInt32Array::from(positions))?;
        Ok(Cell { rows, choices: self.choices(group) })
    }
}

impl Family {
    /// Shows of each group what may be shown now.
    fn show(&mut self, now: &[Now], cell_min: u64) -> Result<()> {
        for view in now {
            self.shown.entry(view.name.to_string()).or_default();
        }
        let mut keys: Vec<Vec<u8>> = now.iter().flat_map(|view| view.groups.keys().cloned()).collect();
        keys.extend(self.shown.values().flat_map(|shown| shown.groups.keys().cloned()));
        keys.sort();
        keys.dedup();
        // Of each group, by how many it moves in the view that moves most; those that may.
        let mut moving: Vec<(u64, Vec<u8>)> = Vec::new();
        for key in keys {
            let moves: Vec<Choices> = now.iter().map(|view| self.moves(view, &key)).collect();
            if moves.iter().all(|moves| moves.hide_each(cell_min)) {
                moving.push((moves.iter().map(Choices::total).max().unwrap_or_default(), key));
            }
        }
        // The largest first; those that do not move last of all: that they are shown tells nothing.
        moving.sort_by(|(a, key_a), (b, key_b)| b.cmp(a).then_with(|| key_a.cmp(key_b)));
        let still = moving.partition_point(|(moves, _)| *moves > 0);
        let unmoved = moving.split_off(still);
        loop {
            let rests: Vec<Choices> = now.iter().map(|view| self.rest(view, &moving)).collect();
            let hide_each = now.iter().zip(&rests).all(|(view, rest)| {
                let change = rest.minus(&self.shown[view.name].rest);
                rest.hide_each(cell_min) && change.hide_each(cell_min)
            });
            if hide_each || moving.pop().is_none() {
                break;
            }
        }
        for view in now {
            let rest = self.rest(view, &moving);
            let shown = self.shown.get_mut(view.name).expect("invariant: each view has an entry");
            shown.rest = rest;
            let mut changed = shown.view.is_none();
            for (_, key) in moving.iter().chain(&unmoved) {
                let cell = view.cell(key)?;
                changed |= shown.groups.get(key).is_none_or(|old| old.rows != cell.rows);
                shown.groups.insert(key.clone(), cell);
            }
            if changed {
                shown.view = Some(shown.rows(view)?);
            }
        }
        Ok(())
    }

    /// What came to a group since it was shown.
    fn moves(&self, view: &Now, key: &[u8]) -> Choices {
        let now = view.groups.get(key).map(|group| group.choices.clone());
        let shown = self.shown[view.name].groups.get(key).map(|cell| &cell.choices);
        match (now, shown) {
            (Some(now), Some(shown)) => now.minus(shown),
            (Some(now), None) => now,
            (None, Some(shown)) => Choices::none(view.secret).minus(shown),
            (None, None) => Choices::none(view.secret),
        }
    }

    /// What the shown groups leave of all rows, once those that move are shown.
    fn rest(&self, view: &Now, moving: &[(u64, Vec<u8>)]) -> Choices {
        let shown = self.shown[view.name].groups.values();
        let rest = shown.fold(view.all.clone(), |rest, cell| rest.minus(&cell.choices));
        moving.iter().fold(rest, |rest, (_, key)| rest.minus(&self.moves(view, key)))
    }
}

impl Shown {
    /// The rows that are shown, in the view's order.
    fn rows(&self, now: &Now) -> Result<Arc<ViewSnapshot>> {
        let mut batches: Vec<&RecordBatch> = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut left: BTreeMap<&Vec<u8>, &Cell> = self.groups.iter().collect();
        let keys = encoded(&now.rows, &now.secret.by)?;
        let ordered = keys.iter().filter_map(|key| left.remove_entry(key)).collect::<Vec<_>>();
        for (_, cell) in ordered.into_iter().chain(left) {
            let batch = batches.len();
            batches.push(&cell.rows);
            places.extend((0..cell.rows.num_rows()).map(|row| (batch, row)));
        }
        let rows = match places.is_empty() {
            true => RecordBatch::new_empty(now.rows.schema()),
            false => interleave_record_batch(&batches, &places)?,
        };
        let view = now.view;
        let info = Arc::clone(&view.info);
        Ok(Arc::new(ViewSnapshot::new(info, view.epoch, view.changed_at, Arc::new(rows))))
    }
}
