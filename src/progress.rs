//! Counts what a source has delivered and how long micro-batches take, for the status.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use crate::catalog::SourceDef;
use crate::snapshot::{BatchStatus, PartitionStatus, SourceStatus, Status};
use crate::source::SourceState;

/// The rate is that of the last seconds, so many of them.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// One source's counters.
pub struct Progress {
    status: SourceStatus,
    state: SourceState,
    /// When how many had been received.
    history: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Nothing received yet.
    pub fn new(source: &SourceDef) -> Self {
        Progress {
            status: SourceStatus {
                name: source.name.clone(),
                topic: source.topic.clone(),
                dead_letter_topic: source.dead_letter_topic.clone(),
                ..SourceStatus::default()
            },
            state: SourceState::default(),
            history: VecDeque::from([(Instant::now(), 0)]),
        }
    }

    /// Notes where the source is.
    pub fn polled(&mut self, state: &SourceState) {
        self.state = state.clone();
    }

    /// Counts a message that broke `rule`.
    pub fn rejected(&mut self, rule: &str) {
        self.status.rejected += 1;
        *self.status.rejected_by_reason.entry(rule.to_string()).or_default() += 1;
    }

    /// Counts a micro-batch of `received` messages of which `counted` kept every rule.
    pub fn counted(&mut self, counted: usize, received: u64) {
        self.status.received += received;
        self.status.counted += counted as u64;
        let now = Instant::now();
        self.history.push_back((now, self.status.received));
        while self.history.len() > 2 && now.duration_since(self.history[1].0) > RATE_WINDOW {
            self.history.pop_front();
        }
    }

    /// Counts a row that came too late for a view: its group was final.
    pub fn late(&mut self, view: &str) {
        *self.status.late_by_view.entry(view.to_string()).or_default() += 1;
    }

    /// Partitions that have messages which are not read yet.
    pub fn unread(&self) -> BTreeSet<i32> {
        self.state.unread()
    }

    /// Whether all that was there at the start has been read.
    pub fn caught_up(&self) -> bool {
        self.state.caught_up
    }

    /// As `/api/status` shows it. `watermark`: in nanoseconds since 1970.
    pub fn status(&self, watermark: Option<i64>) -> SourceStatus {
        let watermark = watermark.map(DateTime::from_timestamp_nanos);
        SourceStatus {
            lag: self.state.lag(),
            rate_per_s: self.rate_per_s(),
            watermark: watermark.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            partitions: self
                .state
                .partitions
                .iter()
                .map(|(partition, state)| PartitionStatus {
                    partition: *partition,
                    offset: state.next,
                    end: state.end,
                })
                .collect(),
            ..self.status.clone()
        }
    }

    fn rate_per_s(&self) -> f64 {
        let Some((since, before)) = self.history.front() else { return 0.0 };
        let newest = self.history.back().map_or(*since, |(at, _)| *at);
        if newest.elapsed() > RATE_WINDOW {
            return 0.0;
        }
        let rate = (self.status.received - before) as f64 / since.elapsed().as_secs_f64().max(0.5);
        (rate * 10.0).round() / 10.0
    }
}

/// Times of micro-batches.
#[derive(Default)]
pub struct Batches {
    status: BatchStatus,
    count: u64,
}

impl Batches {
    /// Notes a micro-batch of `rows` messages.
    pub fn add(&mut self, rows: u64, took: Duration) {
        let took_ms = took.as_secs_f64() * 1e3;
        self.count += 1;
        self.status.mean_ms += (took_ms - self.status.mean_ms) / self.count as f64;
        self.status.max_ms = self.status.max_ms.max(took_ms);
        self.status.last_ms = took_ms;
        self.status.last_rows = rows;
    }

    /// As `/api/status` shows them.
    pub fn status(&self) -> BatchStatus {
        self.status.clone()
    }
}

impl Status {
    /// An engine that has read nothing yet.
    pub fn starting(started_at: SystemTime) -> Status {
        Status {
            epoch: 0,
            ready: false,
            started_at: DateTime::<Utc>::from(started_at).to_rfc3339_opts(SecondsFormat::Secs, true),
            uptime_s: started_at.elapsed().map_or(0, |uptime| uptime.as_secs()),
            sources: Vec::new(),
            batches: BatchStatus::default(),
            reference_tables: Vec::new(),
            state_bytes: 0,
            state_bytes_by_view: BTreeMap::new(),
            published_at: Instant::now(),
        }
    }
}
