//! When a release is made, and of which epoch.
//!
//! The rule, for whoever keeps every release and subtracts: two releases differ by no counted row, or by at least
//! `rows_min` rows that, in each view of choices, did not all choose alike. What is counted and not yet released is such
//! a set too, before a release is made; so at the end, whenever that is, all of it can be released, and no small rest
//! is ever told by itself. The price is that a release is some rows behind.
//!
//! The end is when every view with `complete_when` says so; where there is none, when no row has come for `quiet`.
//! Rows that come after the end wait until they are enough again. After a restart it is not known how far the last
//! run's releases went: so the first has all rows that were there at the start, and at the end only, or together with
//! enough new ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arrow::array::{Array, AsArray};

use super::cells::Cells;
use super::choices::{self, Choices};
use super::{Policy, Release, counted_rows};
use crate::catalog::Access;
use crate::error::Result;
use crate::snapshot::{Published, ViewSnapshot};

/// Decides what is released. It reads no clock.
pub struct Releaser {
    policy: Policy,
    cells: Cells,
    /// The newest release.
    shown: Option<Arc<Release>>,
    /// The epoch that it has; before the first one, the epoch in which the history had been counted.
    base: Option<Point>,
    /// The next to be released, once enough is counted after it, …
    next: Option<Point>,
    /// … as it is here.
    proof: Option<Point>,
    released_at: Option<Instant>,
    /// The newest epoch.
    seen: Option<Point>,
    /// When the newest row was counted.
    moved_at: Option<Instant>,
}

/// An epoch that may be released.
#[derive(Clone)]
struct Point {
    published: Arc<Published>,
    rows: u64,
    /// Of each public view that counts everybody's choices together.
    choices: Arc<Vec<Choices>>,
}

impl Releaser {
    /// Nothing released yet.
    pub fn new(policy: Policy) -> Releaser {
        Releaser {
            policy,
            cells: Cells::new(policy.cell_min),
            shown: None,
            base: None,
            next: None,
            proof: None,
            released_at: None,
            seen: None,
            moved_at: None,
        }
    }

    /// The release that is due, if one is, now that `newest` is published.
    pub fn step(&mut self, newest: &Arc<Published>, now: Instant, at: SystemTime) -> Option<Arc<Release>> {
        if !newest.status.ready {
            // The history is being counted: a part of it is no result.
            return None;
        }
        let stepped =
            self.see(newest, now).and_then(|point| self.due(point, now)).and_then(|due| match due {
                Some(point) => self.release(point, now, at),
                None => Ok(None),
            });
        stepped.unwrap_or_else(|error| {
            tracing::error!("nothing can be released, the public sees the last release: {error}");
            None
        })
    }

    /// Notes the newest epoch.
    fn see(&mut self, newest: &Arc<Published>, now: Instant) -> Result<Point> {
        let rows = counted_rows(newest);
        let choices = match &self.seen {
            Some(seen) if seen.published.epoch == newest.epoch => Arc::clone(&seen.choices),
            _ => Arc::new(choices_of_all(newest)?),
        };
        if self.seen.as_ref().is_none_or(|seen| seen.rows != rows) {
            self.moved_at = Some(now);
        }
        let point = Point { published: Arc::clone(newest), rows, choices };
        self.seen = Some(point.clone());
        Ok(point)
    }

    fn due(&mut self, point: Point, now: Instant) -> Result<Option<Point>> {
        let is_first = self.base.is_none();
        let base = self.base.get_or_insert_with(|| point.clone()).clone();
        let may = self.released_at.is_none_or(|at| now.duration_since(at) >= self.policy.interval);
        if point.rows == base.rows {
            // Nobody's row is in it: only a reference table, or a view that has come back.
            let is_known = self.shown.is_some() || (is_first && point.rows == 0);
            return Ok((may && (is_known || self.is_over(&point, now)?)).then_some(point));
        }
        match (&self.next, &self.proof) {
            (None, _) if self.hides_each(&base, &point) => self.next = Some(point.clone()),
            (Some(next), None) if self.hides_each(next, &point) => self.proof = Some(point.clone()),
            (Some(_), Some(proof)) if self.hides_each(proof, &point) => {
                self.next = self.proof.replace(point.clone());
            }
            _ => {}
        }
        if may && self.proof.is_some() {
            return Ok(std::mem::replace(&mut self.next, self.proof.take()));
        }
        if may && self.hides_each(&base, &point) && self.is_over(&point, now)? {
            self.next = None;
            return Ok(Some(point));
        }
        Ok(None)
    }

    /// Whether the rows that came between two epochs tell of no single one what was chosen.
    fn hides_each(&self, from: &Point, to: &Point) -> bool {
        let least = self.policy.rows_min.max(self.policy.cell_min);
        to.rows.saturating_sub(from.rows) >= self.policy.rows_min
            && to.choices.iter().zip(from.choices.iter()).all(|(to, from)| to.minus(from).hide_each(least))
    }

    /// Whether nothing more is expected.
    fn is_over(&self, point: &Point, now: Instant) -> Result<bool> {
        if let Some(complete) = is_complete(&point.published)? {
            return Ok(complete);
        }
        let status = &point.published.status;
        let all_read = status.paused.is_empty() && status.sources.iter().all(|source| source.lag == 0);
        let is_quiet = self.moved_at.is_some_and(|at| now.duration_since(at) >= self.policy.quiet);
        Ok(all_read && is_quiet)
    }

    fn release(&mut self, point: Point, now: Instant, at: SystemTime) -> Result<Option<Arc<Release>>> {
        let before = self.shown.as_deref().map(|release| &release.published.views);
        let status = &point.published.status;
        let failed: BTreeSet<&str> = status.failed_views.iter().map(|failed| failed.view.as_str()).collect();
        let mut views = point.published.views.clone();
        views.retain(|_, view| view.info.disclosure.access == Access::Public);
        for name in &failed {
            // Its rows are those of some epoch between two releases, and would tell what came until then.
            views.remove(*name);
            if let Some(last) = before.and_then(|before| before.get(*name)) {
                views.insert((*name).into(), Arc::clone(last));
            }
        }
        self.cells.hide(&mut views, &point.published.views, &failed)?;
        let unchanged = before.is_some_and(|before| {
            before.len() == views.len()
                && views.iter().all(|(name, view)| before.get(name).is_some_and(|old| Arc::ptr_eq(old, view)))
        });
        let is_complete = is_complete(&point.published)?.unwrap_or(false);
        let rows = point.rows;
        let epoch = point.published.epoch;
        let status = Arc::clone(&point.published.status);
        let number = self.shown.as_ref().map_or(0, |shown| shown.number) + 1;
        let mut history = self.shown.as_ref().map(|shown| shown.history.clone()).unwrap_or_default();
        history.add(number, at, &views)?;
        self.base = Some(point);
        if unchanged && self.shown.as_ref().is_some_and(|shown| shown.is_complete == is_complete) {
            return Ok(None);
        }
        self.released_at = Some(now);
        let published = Arc::new(Published { epoch, views, status });
        let release = Arc::new(Release { number, at, rows, is_complete, published, history });
        self.shown = Some(Arc::clone(&release));
        Ok(Some(release))
    }
}

/// Whether the views with `complete_when` say that all is counted; none: no view says anything.
fn is_complete(published: &Published) -> Result<Option<bool>> {
    let mut complete = None;
    for view in published.views.values() {
        let Some(column) = &view.info.disclosure.complete_when else { continue };
        let rows = view.batch()?;
        let says = rows.column_by_name(column).and_then(|column| column.as_boolean_opt());
        if says.is_some_and(|says| !says.is_empty() && says.null_count() == says.len()) {
            // How much is expected is not known.
            continue;
        }
        let says = says.is_some_and(|says| !says.is_empty() && says.true_count() == says.len());
        complete = Some(complete.unwrap_or(true) && says);
    }
    Ok(complete)
}

/// Of each public view that counts everybody's choices together, how many chose what.
fn choices_of_all(published: &Published) -> Result<Vec<Choices>> {
    let of = |view: &Arc<ViewSnapshot>| {
        let disclosure = &view.info.disclosure;
        let secret = disclosure.secret.as_ref().filter(|secret| secret.by.is_empty())?;
        (disclosure.access == Access::Public)
            .then(|| view.batch().and_then(|rows| choices::all(&rows, secret)))
    };
    published.views.values().filter_map(of).collect()
}
