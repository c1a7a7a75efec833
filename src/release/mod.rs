//! Releases: what the public sees of epochs. Whoever watches counts move one row at a time learns what each chose;
//! so the public views change together, seldom, and by many rows at once (`when.rs`), and small groups stay hidden
//! (`cells.rs`, `links.rs`). The operator reads every epoch. `history.rs` keeps what earlier releases had.

mod cells;
mod choices;
mod history;
mod links;
mod when;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::snapshot::{self, Published};

pub use self::history::{History, Past};
pub use self::when::Releaser;

/// How often it is looked whether a release is due, when nothing new is published.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// When the public sees what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Least time between two releases.
    pub interval: Duration,
    /// Least newly counted rows of a release.
    pub rows_min: u64,
    /// Time without a new row after which all that is counted is released.
    pub quiet: Duration,
    /// Groups of fewer rows are hidden in views with `secret_by`.
    pub cell_min: u64,
}

impl From<&Config> for Policy {
    fn from(config: &Config) -> Self {
        Policy {
            interval: Duration::from_millis(config.release_interval_ms),
            rows_min: config.release_ballots,
            quiet: Duration::from_secs(config.release_quiet_s),
            cell_min: config.small_cell,
        }
    }
}

/// All public views as of one epoch.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its number, from 1 in each run; 0: there is none yet.
    pub number: u64,
    /// When it was made.
    pub at: SystemTime,
    /// Rows of all sources that are counted in it.
    pub rows: u64,
    /// Whether all that is expected is counted in it, as the views with `complete_when` say.
    pub is_complete: bool,
    /// Its epoch, the public views, and the status as it was then.
    pub published: Arc<Published>,
    /// How views were in it and in earlier ones.
    pub history: History,
}

impl Release {
    /// What is served before the first release: no views.
    fn none(published: &Published) -> Release {
        let none = Published { epoch: 0, views: BTreeMap::new(), status: Arc::clone(&published.status) };
        Release {
            number: 0,
            at: SystemTime::now(),
            rows: 0,
            is_complete: false,
            published: Arc::new(none),
            history: History::default(),
        }
    }
}

/// The readers' end: always the newest [`Release`].
pub type Reader = watch::Receiver<Arc<Release>>;

/// Rows of all sources that are counted.
pub fn counted_rows(published: &Published) -> u64 {
    published.status.sources.iter().map(|source| source.counted).sum()
}

/// Makes releases of what is published, until the handle is dropped. The first may be there at once.
pub fn start(mut published: snapshot::Reader, policy: Policy) -> (Reader, AbortOnDropHandle<()>) {
    let mut releaser = Releaser::new(policy);
    let newest = Arc::clone(&published.borrow_and_update());
    let first = releaser.step(&newest, Instant::now(), SystemTime::now());
    let sender = watch::Sender::new(first.unwrap_or_else(|| Arc::new(Release::none(&newest))));
    let reader = sender.subscribe();
    let task = tokio::spawn(async move {
        let mut looks =
            tokio::time::interval(LOOK_INTERVAL.min(policy.interval.max(Duration::from_millis(1))));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return },
                _ = looks.tick() => {}
            }
            let newest = Arc::clone(&published.borrow_and_update());
            // Large views take long to compare: not on a thread that answers requests.
            let stepped = tokio::task::spawn_blocking(move || {
                let release = releaser.step(&newest, Instant::now(), SystemTime::now());
                (releaser, release)
            });
            let release;
            (releaser, release) = match stepped.await {
                Ok(stepped) => stepped,
                // The server ends.
                Err(error) if error.is_cancelled() => return,
                Err(error) => {
                    tracing::error!("releases have ended, the public sees the last one: {error}");
                    return;
                }
            };
            if let Some(release) = release {
                sender.send_replace(release);
            }
        }
    });
    (reader, AbortOnDropHandle::new(task))
}
