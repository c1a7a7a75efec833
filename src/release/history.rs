//! How views were in earlier releases, for lines through time: of each view with `history`, its rows in the releases
//! in which they changed. It holds what has been public, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::snapshot::ViewSnapshot;

/// A view as it was in a release.
#[derive(Clone, Debug)]
pub struct Past {
    /// The release's number.
    pub release: u64,
    /// When it was made.
    pub at: SystemTime,
    /// The view's rows.
    pub rows: RecordBatch,
}

/// Of each view with `history`, the releases that are kept, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    views: BTreeMap<String, Arc<Vec<Past>>>,
}

impl History {
    /// The kept releases of a view; none if it keeps none.
    pub fn of(&self, view: &str) -> Option<Arc<Vec<Past>>> {
        self.views.get(view).map(Arc::clone)
    }

    /// Takes a new release. Where a view has more than it keeps, every other older one goes: lines get coarser, and
    /// begin where they began.
    pub(super) fn add(
        &mut self,
        release: u64,
        at: SystemTime,
        views: &BTreeMap<String, Arc<ViewSnapshot>>,
    ) -> Result<()> {
        for (name, view) in views {
            let Some(kept) = view.info.disclosure.history else { continue };
            let rows = view.batch()?;
            let past = Arc::make_mut(self.views.entry(name.clone()).or_default());
            if past.last().is_some_and(|last| last.rows == rows) {
                continue;
            }
            past.push(Past { release, at, rows });
            if past.len() > kept {
                let newest = past.len() - 1;
                let mut position = 0;
                past.retain(|_| {
                    position += 1;
                    (position - 1) % 2 == 0 || position - 1 == newest
                });
            }
        }
        Ok(())
    }
}
