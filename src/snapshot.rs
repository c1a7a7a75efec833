//! What readers see: immutable snapshots of the views and the engine's status, replaced whole after each
//! micro-batch. `serve` reads these and never the engine's state.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arrow::array::RecordBatch;
use serde::Serialize;
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
    batch: OnceLock<RecordBatch>,
}

type Rows = Arc<dyn RowSource>;

impl ViewSnapshot {
    /// A snapshot over `rows`, which are turned into a batch only when read.
    pub fn new(info: Arc<ViewInfo>, epoch: u64, changed_at: Option<SystemTime>, rows: Rows) -> Self {
        ViewSnapshot { info, epoch, changed_at, rows, batch: OnceLock::new() }
    }

    /// Number of rows.
    pub fn total_rows(&self) -> usize {
        self.rows.total()
    }

    /// All rows in the view's order.
    pub fn batch(&self) -> Result<RecordBatch> {
        if let Some(batch) = self.batch.get() {
            return Ok(batch.clone());
        }
        let batch = self.rows.batch()?;
        Ok(self.batch.get_or_init(|| batch).clone())
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
    #[serde(skip)]
    /// When this was published, to judge whether the engine is alive.
    pub published_at: Instant,
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
    /// Messages that are in the topic and not read yet.
    pub lag: u64,
    /// Messages read per second, over the last seconds.
    pub rate_per_s: f64,
    /// Up to when the source is complete, RFC 3339: its newest event time less its delay, of the partition
    /// that is furthest behind. Absent without a `watermark` option.
    pub watermark: Option<String>,
    /// Where the topic that receives rejected messages is, if there is one.
    pub dead_letter_topic: Option<String>,
    /// Progress by partition.
    pub partitions: Vec<PartitionStatus>,
}

/// One partition's progress.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// The partition's number.
    pub partition: i32,
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
