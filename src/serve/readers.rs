//! Who sees what: the operator the newest epoch of every view, everybody else the newest release of the public ones.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

use crate::catalog::Access;
use crate::release::{self, Policy, Release, counted_rows};
use crate::snapshot::{self, Published, Status, ViewSnapshot};

use super::auth::Caller;
use super::json::rfc3339;
use super::problem::Problem;

/// Both.
#[derive(Clone)]
pub(super) struct Readers {
    pub published: snapshot::Reader,
    pub released: release::Reader,
    _releaser: Arc<AbortOnDropHandle<()>>,
}

/// What one of them sees now.
pub(super) struct Seen {
    /// Whether it is the operator.
    pub operator: bool,
    /// Number of the newest release.
    pub release: u64,
    /// The views that may be read.
    pub published: Arc<Published>,
    /// The newest epoch, whoever asks.
    newest: Arc<Published>,
}

impl Readers {
    pub(super) fn start(published: snapshot::Reader, policy: Policy) -> Readers {
        let (released, releaser) = release::start(published.clone(), policy);
        Readers { published, released, _releaser: Arc::new(releaser) }
    }

    /// What the sender of a request sees.
    pub(super) fn see(&self, caller: Caller) -> Seen {
        let operator = caller == Caller::Operator;
        let newest = Arc::clone(&self.published.borrow());
        let release = Arc::clone(&self.released.borrow());
        let published = if operator { &newest } else { &release.published };
        Seen { operator, release: release.number, published: Arc::clone(published), newest }
    }
}

impl Readers {
    /// What is said of the newest release.
    pub(super) fn release_status(&self) -> ReleaseStatus {
        let newest = Arc::clone(&self.published.borrow());
        ReleaseStatus::new(&self.released.borrow(), &newest)
    }

    /// The status as the sender of a request may see it.
    pub(super) fn status(&self, caller: Caller) -> Arc<Status> {
        let status = Arc::clone(&self.published.borrow().status);
        match caller {
            Caller::Operator => status,
            Caller::Public => Arc::new(status.for_the_public(&self.released.borrow().published.status)),
        }
    }
}

impl Seen {
    /// Whether there is a view of this name, whoever may read it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.newest.views.contains_key(name)
    }

    /// A view by its name, or why it can't be read.
    pub(super) fn find(&self, name: &str) -> Result<Arc<ViewSnapshot>, Problem> {
        if let Some(view) = self.published.views.get(name) {
            return Ok(Arc::clone(view));
        }
        if let Some(hidden) = self.newest.views.get(name).filter(|_| !self.operator) {
            return Err(not_seen(hidden));
        }
        let known: Vec<&str> = self.published.views.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none yet".into() } else { known.join(", ") };
        let detail = format!("there is no view {name:?}; the views are: {known}");
        Err(Problem::new(StatusCode::NOT_FOUND, detail))
    }

    /// The same, where the view need not be released yet.
    pub(super) fn find_any(&self, name: &str) -> Result<Arc<ViewSnapshot>, Problem> {
        match self.newest.views.get(name) {
            Some(view) if self.operator || view.info.disclosure.access == Access::Public => {
                Ok(Arc::clone(view))
            }
            _ => self.find(name),
        }
    }
}

/// Why the public does not see a view that is there.
fn not_seen(view: &ViewSnapshot) -> Problem {
    let name = &view.info.name;
    match view.info.disclosure.access {
        Access::Operator => Problem::new(
            StatusCode::UNAUTHORIZED,
            format!(
                "view {name} is the operator's: send the token, printed at start, as `Authorization: Bearer TOKEN`"
            ),
        ),
        Access::Public => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("view {name} is not released yet; /api/status says how much is counted"),
        )
        .retry_after_s(1),
    }
}

/// What `/api/status` says of the newest release.
#[derive(Serialize)]
pub(super) struct ReleaseStatus {
    /// Its number; 0: there is none yet.
    release: u64,
    /// The epoch that it has.
    epoch: u64,
    /// When it was made, RFC 3339 in UTC.
    at: Option<String>,
    /// Rows of all sources that are counted in it.
    rows: u64,
    /// Counted rows that no release has yet.
    unreleased_rows: u64,
    /// Whether all that is expected is counted in it, where a view says so (`complete_when`).
    complete: bool,
}

impl ReleaseStatus {
    fn new(release: &Release, newest: &Published) -> ReleaseStatus {
        ReleaseStatus {
            release: release.number,
            epoch: release.published.epoch,
            at: (release.number > 0).then(|| rfc3339(release.at)),
            rows: release.rows,
            unreleased_rows: counted_rows(newest).saturating_sub(release.rows),
            complete: release.is_complete,
        }
    }
}
