//! What readers see of the loop: views, status, pauses and failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;

use super::progress::{Batches, Progress};
use crate::engine::ViewChange;
use crate::epoch::Executor;
use crate::outage::Outage;
use crate::sink::Refused;
use crate::snapshot::{
    CheckpointStatus, FailureStatus, PauseStatus, Published, Reader, ReferenceStatus, RefusedStatus, Status,
    ViewSnapshot,
};

/// Records that are refused again and again are logged so often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Publishes views and status.
pub struct Publisher {
    sender: watch::Sender<Arc<Published>>,
    started_at: SystemTime,
    /// Whether every source had been read to the end that it had at the start.
    pub ready: bool,
    /// Of each source, what it has delivered.
    pub progress: Vec<Progress>,
    /// Times of epochs.
    pub batches: Batches,
    /// Why nothing can be written, while that is so.
    pub sink_outage: Option<Outage>,
    /// Why missing rows can't be looked up, while that is so.
    pub lookup_outage: Option<Outage>,
    failures: BTreeMap<String, FailureStatus>,
    refused: BTreeMap<Arc<str>, (RefusedStatus, Instant)>,
}

impl Publisher {
    /// Nothing published yet.
    pub fn new(executor: &Executor) -> Publisher {
        let started_at = SystemTime::now();
        let published =
            Published { epoch: 0, views: BTreeMap::new(), status: Arc::new(Status::starting(started_at)) };
        Publisher {
            sender: watch::Sender::new(Arc::new(published)),
            started_at,
            ready: false,
            progress: executor.ingests().iter().map(|ingest| Progress::new(&ingest.def)).collect(),
            batches: Batches::default(),
            sink_outage: None,
            lookup_outage: None,
            failures: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The readers' end.
    pub fn reader(&self) -> Reader {
        self.sender.subscribe()
    }

    /// Notes records that a topic will never take.
    pub fn refused(&mut self, refused: Vec<Refused>) {
        for Refused { topic, records, reason } in refused {
            let known = self.refused.get(&topic);
            let logged = known.filter(|(status, at)| status.reason == reason && at.elapsed() < LOG_INTERVAL);
            let logged_at = match logged {
                Some((_, at)) => *at,
                None => {
                    tracing::warn!("{records} records for topic {topic} are left out: {reason}");
                    Instant::now()
                }
            };
            let before = known.map_or(0, |(status, _)| status.records);
            let status = RefusedStatus { topic: topic.to_string(), records: before + records, reason };
            self.refused.insert(topic, (status, logged_at));
        }
    }

    /// Shows the views that have changed, and the status.
    pub fn publish(
        &mut self,
        epoch: u64,
        changes: &[ViewChange],
        executor: &Executor,
        reference_tables: Vec<ReferenceStatus>,
        checkpoint: Option<CheckpointStatus>,
    ) {
        self.note_failures(epoch, executor);
        let engine = executor.engine();
        let source = |progress: &Progress| {
            progress.status(engine.watermark(progress.name()), engine.watermark_holder(progress.name()))
        };
        let status = Status {
            epoch,
            ready: self.ready,
            paused: self.pauses(),
            failed_views: self.failures.values().cloned().collect(),
            refused_records: self.refused.values().map(|(status, _)| status.clone()).collect(),
            sources: self.progress.iter().map(source).collect(),
            batches: self.batches.status(),
            reference_tables,
            state_bytes: executor.state_bytes(),
            state_bytes_by_view: engine.state_bytes_by_view(),
            seconds_by_view: engine.seconds_by_view(),
            checkpoint,
            ..Status::starting(self.started_at)
        };
        let now = Some(SystemTime::now());
        self.sender.send_modify(|published| {
            let mut views = published.views.clone();
            for change in changes {
                let info = Arc::clone(&change.info);
                // A refresh may recompute a view without changing a row: its epoch then stays.
                if change.changelog.ops.is_empty() && views.contains_key(&info.name) {
                    continue;
                }
                let snapshot = ViewSnapshot::new(Arc::clone(&info), epoch, now, Arc::clone(&change.rows));
                views.insert(info.name.clone(), Arc::new(snapshot));
            }
            *published = Arc::new(Published { epoch, views, status: Arc::new(status) });
        });
    }

    fn pauses(&self) -> Vec<PauseStatus> {
        let pause = |what: String, outage: &Outage| PauseStatus {
            what,
            paused_since: rfc3339(outage.since),
            reason: outage.reason.clone(),
            ends_by_itself: outage.ends_by_itself,
        };
        let reading = self.progress.iter().filter_map(|progress| {
            let what = format!("reading topic {}", progress.topic());
            progress.outage().map(|outage| pause(what, outage))
        });
        let writing = self.sink_outage.iter().map(|outage| pause("writing to Kafka".into(), outage));
        let lookups = self.lookup_outage.iter();
        let lookups = lookups.map(|outage| pause("looking up rows in Postgres".into(), outage));
        reading.chain(writing).chain(lookups).collect()
    }

    /// Logs when a view fails and when it comes back.
    fn note_failures(&mut self, epoch: u64, executor: &Executor) {
        let mut failed = BTreeMap::new();
        for failure in executor.engine().failures() {
            let before = self.failures.remove(&failure.view);
            if before.is_none() {
                let (file, line) = (failure.place.file.display(), failure.place.line);
                tracing::warn!(
                    "{file}:{line}: view {} shows its last good rows since epoch {epoch}: {}",
                    failure.view,
                    failure.reason
                );
            }
            let status = FailureStatus {
                epoch: before.as_ref().map_or(epoch, |before| before.epoch),
                since: before.map_or_else(|| rfc3339(SystemTime::now()), |before| before.since),
                reason: failure.reason,
                file: failure.place.file.display().to_string(),
                line: failure.place.line,
                view: failure.view.clone(),
            };
            failed.insert(failure.view, status);
        }
        for back in std::mem::replace(&mut self.failures, failed).into_keys() {
            tracing::info!("view {back} shows its present rows again, at epoch {epoch}");
        }
    }
}

impl Status {
    /// An engine that has read nothing yet.
    pub fn starting(started_at: SystemTime) -> Status {
        Status {
            epoch: 0,
            ready: false,
            started_at: rfc3339(started_at),
            uptime_s: started_at.elapsed().map_or(0, |uptime| uptime.as_secs()),
            paused: Vec::new(),
            failed_views: Vec::new(),
            refused_records: Vec::new(),
            sources: Vec::new(),
            batches: Default::default(),
            reference_tables: Vec::new(),
            state_bytes: 0,
            state_bytes_by_view: BTreeMap::new(),
            seconds_by_view: BTreeMap::new(),
            checkpoint: None,
            published_at: Instant::now(),
        }
    }
}

/// A time in UTC, to the second.
fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
