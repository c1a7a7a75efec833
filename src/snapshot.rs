//! What readers see: immutable snapshots of the views and the engine's status, replaced whole after each
//! micro-batch. `serve` reads these and never the engine's state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::engine::{RowSource, ViewInfo};
use crate::error::Result;

/// Everything published after one micro-batch. Cloning a [`Reader`]'s value is one `Arc` clone.
#[derive(Clone, Debug)]
pub struct Published {
    /// Number of the newest micro-batch, 0 before the first.
    pub epoch: u64,
    /// Every materialized view by name.
    pub views: BTreeMap<String, Arc<ViewSnapshot>>,
    /// Sources, reference tables, batch times.
    pub status: Arc<Status>,
}

/// The readers' end: always the newest [`Published`].
pub type Reader = watch::Receiver<Arc<Published>>;

/// One view's rows as of a micro-batch.
#[derive(Debug)]
pub struct ViewSnapshot {
    /// What the view is.
    pub info: Arc<ViewInfo>,
    /// Micro-batch that last changed a row, 0 if none did.
    pub epoch: u64,
    /// When that was, by this machine's clock.
    pub changed_at: Option<SystemTime>,
    rows: Rows,
    batch: Mutex<Option<RecordBatch>>,
}

type Rows = Arc<dyn RowSource>;

impl Status {
    /// The same without what only the operator may see. What depends on values of single rows is told as it was in
    /// `released`, the status of the newest release.
    pub fn for_the_public(&self, released: &Status) -> Status {
        let mut status = self.clone();
        for source in &mut status.sources {
            source.reject_samples.clear();
            let then = released.sources.iter().find(|then| then.name == source.name);
            source.late_by_view = then.map(|then| then.late_by_view.clone()).unwrap_or_default();
            source.errors_by_view = then.map(|then| then.errors_by_view.clone()).unwrap_or_default();
            source.unmatched_by_view = then.map(|then| then.unmatched_by_view.clone()).unwrap_or_default();
        }
        status.failed_views.iter_mut().for_each(|failed| *failed = failed.without_values());
        status.state_bytes = released.state_bytes;
        status.state_bytes_by_view.clear();
        status.seconds_by_view.clear();
        status.checkpoint = None;
        status
    }
}

impl ViewSnapshot {
    /// A snapshot over `rows`, which are turned into a batch only when read.
    pub fn new(info: Arc<ViewInfo>, epoch: u64, changed_at: Option<SystemTime>, rows: Rows) -> Self {
        ViewSnapshot { info, epoch, changed_at, rows, batch: Mutex::default() }
    }

    /// Number of rows.
    pub fn total_rows(&self) -> usize {
        self.rows.total()
    }

    /// All rows in the view's order. The first reader makes them, the others wait for that.
    pub fn batch(&self) -> Result<RecordBatch> {
        let mut batch = self.batch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(batch) = &*batch {
            return Ok(batch.clone());
        }
        let made = self.rows.batch()?;
        Ok(batch.insert(made).clone())
    }
}

/// What `/api/status` answers.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Number of the newest micro-batch.
    pub epoch: u64,
    /// Whether every source had been read to the end that it had when the engine started.
    pub ready: bool,
    /// When the engine started, RFC 3339 in UTC.
    pub started_at: String,
    /// Seconds since then.
    pub uptime_s: u64,
    /// What waits for Kafka or Postgres. While something does, the views are not up to date.
    pub paused: Vec<PauseStatus>,
    /// Views that show their last good rows, and why.
    pub failed_views: Vec<FailureStatus>,
    /// Records that a topic will never take and that were left out, by topic.
    pub refused_records: Vec<RefusedStatus>,
    /// The streams that are read.
    pub sources: Vec<SourceStatus>,
    /// How long micro-batches take.
    pub batches: BatchStatus,
    /// The Postgres tables held in memory.
    pub reference_tables: Vec<ReferenceStatus>,
    /// Bytes of the primary keys that were seen, of the views' state and of their rows.
    pub state_bytes: usize,
    /// Of each view, bytes of its state, shared with other views or not, and of its rows.
    pub state_bytes_by_view: BTreeMap<String, usize>,
    /// Of each view, seconds that its parts, shared with other views or not, have worked since the start.
    pub seconds_by_view: BTreeMap<String, f64>,
    /// The checkpoints, by which a start is shorter; absent: none are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    #[serde(skip)]
    /// When this was published, to judge whether the engine is alive.
    pub published_at: Instant,
}

/// The checkpoints of an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckpointStatus {
    /// Where they are.
    pub place: String,
    /// The newest epoch that one has.
    pub epoch: Option<u64>,
    /// Seconds since then.
    pub age_s: Option<u64>,
    /// Bytes of the newest one, …
    pub bytes: u64,
    /// … and those of them that the one before did not have.
    pub new_bytes: u64,
    /// Seconds that it took to write, beside the stream.
    pub seconds: f64,
    /// Why the newest could not be written, while that is so, and what to do about it.
    pub error: Option<String>,
}

/// Something that waits for Kafka or Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PauseStatus {
    /// What can't be done meanwhile.
    pub what: String,
    /// Since when, RFC 3339 in UTC.
    pub paused_since: String,
    /// Why, and what to do about it.
    pub reason: String,
    /// Whether it goes on by itself once the reason is gone; otherwise a restart is needed.
    pub ends_by_itself: bool,
}

/// A view that shows its last good rows, since its query has failed on the present ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureStatus {
    /// The view.
    pub view: String,
    /// Epoch in which it failed.
    pub epoch: u64,
    /// When that was, RFC 3339 in UTC.
    pub since: String,
    /// What its query said.
    pub reason: String,
    /// The file that declares it.
    pub file: String,
    /// The line there.
    pub line: u64,
}

impl FailureStatus {
    /// The same for everybody: what the query said may hold values of a row.
    pub fn without_values(&self) -> FailureStatus {
        FailureStatus { reason: "the operator's status says why".into(), ..self.clone() }
    }
}

/// Records that a topic will never take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedStatus {
    /// The topic.
    pub topic: String,
    /// How many were left out.
    pub records: u64,
    /// Why the newest was, and what to do about it.
    pub reason: String,
}

/// One source's progress. `received` is always `counted` + `rejected`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceStatus {
    /// Its name in SQL.
    pub name: String,
    /// The topic it reads.
    pub topic: String,
    /// Messages read since the topic's beginning.
    pub received: u64,
    /// Messages that kept every rule.
    pub counted: u64,
    /// Messages that broke one.
    pub rejected: u64,
    /// Those by the rule's name, for example `foreign_key(candidate_id)` or `json`.
    pub rejected_by_reason: BTreeMap<String, u64>,
    /// Counted messages that came too late for a group of a view, by view: the others counted them.
    pub late_by_view: BTreeMap<String, u64>,
    /// Counted messages that an expression of a view could not take, by view: the others counted them.
    pub errors_by_view: BTreeMap<String, u64>,
    /// Counted messages that found no row of a reference table in a view's join, by view and by table and columns.
    /// Where the join is an inner one, the view is without them.
    pub unmatched_by_view: BTreeMap<String, BTreeMap<String, u64>>,
    /// Primary keys that came in more than one partition: which message of such a key came first is known by
    /// the broker's timestamp only where both were in one micro-batch. Where rows are replaced, the newest by that
    /// timestamp counts in whatever order they come. Of a source without a key that takes rows back: the rows.
    pub keys_in_two_partitions: u64,
    /// Messages that the topic had lost before they could be read; 0 if it was whole.
    pub lost_messages: u64,
    /// Messages that are written and not read, those that wait for an open transaction included.
    pub lag_to_high_watermark: u64,
    /// Messages that are in the topic and not read yet.
    pub lag: u64,
    /// Messages read per second, over the last seconds.
    pub rate_per_s: f64,
    /// Up to when the source is complete, RFC 3339: its newest event time less its delay, of the partition
    /// that is furthest behind. Absent without a `watermark` option.
    pub watermark: Option<String>,
    /// The partition whose event time holds the watermark back.
    pub watermark_held_by: Option<i32>,
    /// Where the topic that receives rejected messages is, if there is one.
    pub dead_letter_topic: Option<String>,
    /// The newest of each kind of messages that were left out: for the operator alone, as they hold ballots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reject_samples: Vec<RejectSample>,
    /// Progress by partition.
    pub partitions: Vec<PartitionStatus>,
}

/// One partition's progress.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// The partition's number.
    pub partition: i32,
    /// Where reading began; more than 0: the topic's beginning was lost.
    pub first: i64,
    /// Next offset to read.
    pub offset: i64,
    /// Offset of the next message that will be written.
    pub end: i64,
}

/// Micro-batch times, in milliseconds from the decoded batch to the published views.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BatchStatus {
    /// Messages of the newest micro-batch.
    pub last_rows: u64,
    /// Its time.
    pub last_ms: f64,
    /// Mean of all.
    pub mean_ms: f64,
    /// Longest of all.
    pub max_ms: f64,
    /// How many there were.
    pub count: u64,
    /// Where the time goes, by stage of an epoch: `decode`, `look_up`, `execute`, `write`, `publish`; and what
    /// a `checkpoint` takes of the loop's time.
    pub stages: BTreeMap<&'static str, StageStatus>,
}

/// Times of one stage of the epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageStatus {
    /// How often it was run.
    pub runs: u64,
    /// Seconds of all runs.
    pub total_s: f64,
    /// Milliseconds of the newest.
    pub last_ms: f64,
    /// Milliseconds of the longest.
    pub max_ms: f64,
}

/// A message that was not counted, or not by one view, as an example of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectSample {
    /// The rule that it broke, as in `rejected_by_reason`; `late` or `error(view)` if only a view left it out.
    pub rule: String,
    /// Why.
    pub reason: String,
    /// The view that left it out, if only that did.
    pub view: Option<String>,
    /// Where the message is.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// When it was produced, RFC 3339 in UTC, if the broker knows.
    pub at: Option<String>,
    /// The beginning of its value; bytes that are no text are replaced.
    pub value: Option<String>,
}

/// One reference table.
#[derive(Clone, Debug, Serialize)]
pub struct ReferenceStatus {
    /// Its name in SQL.
    pub name: String,
    /// Rows held.
    pub rows: usize,
    /// Bytes held, of the needed columns only.
    pub bytes: usize,
    /// Columns held.
    pub columns: Vec<String>,
    /// Seconds since it was read.
    pub age_s: u64,
    /// Why the last reading failed, while it does.
    pub error: Option<String>,
}
