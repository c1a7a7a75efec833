//! Hides groups that are too small in the views with `secret_by`.
//!
//! A group is shown as it was when it last changed by at least `cell_min` rows that did not all choose alike; until
//! then by its older rows, or not at all. So nobody stands out in what came to it between two releases. What the shown
//! groups leave of all rows, which anybody can subtract, must be such a set too, and so must what it changes by: where
//! it would not, the smallest groups wait. Views with the same `secret_by` show the same groups.
//!
//! Where the whole is public as well, whoever subtracts may take any releases and any groups: `links.rs` says which
//! groups may be shown. It has to know whose rows came in each release, also of groups that are shown only later: a
//! view of the operator's with the same `secret_by` tells it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};

use super::choices::{self, Choices, Group, encoded, groups};
use super::links::Links;
use crate::catalog::Access;
use crate::engine::Secret;
use crate::error::Result;
use crate::snapshot::ViewSnapshot;

type Views = BTreeMap<String, Arc<ViewSnapshot>>;

/// What is shown of each group, by the columns that make the groups.
pub struct Cells {
    cell_min: u64,
    families: BTreeMap<Vec<String>, Family>,
    /// By what makes the groups, and what is chosen.
    links: BTreeMap<(Vec<String>, Vec<String>), Links>,
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
    /// Whether they are told besides, by a view that counts everybody's choices.
    all_are_told: bool,
}

impl Cells {
    /// Nothing shown yet.
    pub fn new(cell_min: u64) -> Cells {
        Cells { cell_min, families: BTreeMap::new(), links: BTreeMap::new() }
    }

    /// Puts in place of each of the public `views` with `secret_by` what is shown of it. `published` are all views;
    /// those that have `failed` are not as of now.
    pub fn hide(&mut self, views: &mut Views, published: &Views, failed: &BTreeSet<&str>) -> Result<()> {
        let mut families: BTreeMap<Vec<String>, Vec<&String>> = BTreeMap::new();
        for (name, view) in views.iter() {
            if let Some(secret) = view.info.disclosure.secret.as_ref().filter(|secret| !secret.by.is_empty())
            {
                families.entry(secret.by.clone()).or_default().push(name);
            }
        }
        // All is made before any is taken to be shown.
        let mut made = Vec::new();
        for (by, names) in families {
            let now: Vec<Now> = names
                .into_iter()
                .filter_map(|name| Now::of(name, views).transpose())
                .collect::<Result<_>>()?;
            let choices: BTreeSet<Vec<String>> =
                now.iter().filter(|view| view.all_are_told).map(|view| view.secret.choice.clone()).collect();
            let mut links: Vec<&mut Links> = Vec::new();
            for choice in &choices {
                let rows = rows_of_groups(&by, choice, &now, published, failed)?;
                let of = (by.clone(), choice.clone());
                self.links.entry(of).or_insert_with(|| Links::new(self.cell_min)).note(rows);
            }
            for (of, found) in &mut self.links {
                if of.0 == by && choices.contains(&of.1) {
                    links.push(found);
                }
            }
            let mut family = self.families.get(&by).cloned().unwrap_or_default();
            let shown = family.show(&now, self.cell_min, &links)?;
            links.into_iter().for_each(|links| links.show(&shown));
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
        let all_are_told = whole.is_some();
        let all = match whole {
            Some((view, whole)) => choices::all(&view.batch()?, whole)?,
            None => choices::all(&rows, secret)?,
        };
        Ok(Some(Now { name, view, secret, rows, groups, all, all_are_told }))
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

/// Whose rows there are, of all groups whether they are shown or not, and of nobody's group the others: as a view of the
/// operator's says, or the public one itself. None if that has failed.
fn rows_of_groups(
    by: &[String],
    choice: &[String],
    now: &[Now],
    published: &Views,
    failed: &BTreeSet<&str>,
) -> Result<Option<HashMap<Option<Vec<u8>>, Choices>>> {
    let tells = |view: &Arc<ViewSnapshot>| {
        let disclosure = &view.info.disclosure;
        let secret = disclosure.secret.as_ref()?;
        (disclosure.access == Access::Operator && secret.by == by && secret.choice == choice)
            .then(|| (Arc::clone(view), secret.clone()))
    };
    let told = published.values().find_map(tells);
    let public = now.iter().find(|view| view.all_are_told && view.secret.choice == choice);
    let Some(public) = public else { return Ok(None) };
    let (view, secret) = told.unwrap_or_else(|| (Arc::clone(public.view), public.secret.clone()));
    if failed.contains(view.info.name.as_str()) {
        return Ok(None);
    }
    let groups = groups(&view.batch()?, &secret)?;
    let others = groups.values().fold(public.all.clone(), |others, group| others.minus(&group.choices));
    let mut rows: HashMap<_, _> = groups.into_iter().map(|(key, group)| (Some(key), group.choices)).collect();
    rows.insert(None, others);
    Ok(Some(rows))
}

impl Family {
    /// Shows of each group what may be shown now, and tells which have changed.
    fn show(&mut self, now: &[Now], cell_min: u64, links: &[&mut Links]) -> Result<Vec<Vec<u8>>> {
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
        let moving = loop {
            let keys: Vec<Vec<u8>> = moving.iter().map(|(_, key)| key.clone()).collect();
            let may: Vec<Vec<bool>> = links.iter().map(|links| links.showable(&keys)).collect();
            let may = |i: usize| may.iter().all(|may| may[i]);
            let chosen: Vec<_> =
                moving.iter().enumerate().filter(|(i, _)| may(*i)).map(|(_, group)| group.clone()).collect();
            let hide_each = now.iter().all(|view| {
                let rest = self.rest(view, &chosen);
                let change = rest.minus(&self.shown[view.name].rest);
                rest.hide_each(cell_min) && change.hide_each(cell_min)
            });
            if hide_each || moving.pop().is_none() {
                break chosen;
            }
        };
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
        Ok(moving.into_iter().map(|(_, key)| key).collect())
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
