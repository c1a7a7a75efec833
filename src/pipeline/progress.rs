//! Counts what a source has delivered and how long micro-batches take, for the status.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat};

use super::samples::Samples;
use crate::catalog::SourceDef;
use crate::checkpoint::{Loader, Saver};
use crate::decode::Reject;
use crate::engine::Unmatched;
use crate::error::Result;
use crate::outage::Outage;
use crate::snapshot::{BatchStatus, PartitionStatus, SourceStatus};
use crate::source::{RawBatch, SourceState};

/// The rate is that of the last seconds, so many of them.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// One source's counters.
pub struct Progress {
    status: SourceStatus,
    state: SourceState,
    /// Of each partition, up to where it had been read and since when.
    moved: BTreeMap<i32, (i64, Instant)>,
    idle_timeout: Option<Duration>,
    /// When how many had been received.
    history: VecDeque<(Instant, u64)>,
    samples: Samples,
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
            moved: BTreeMap::new(),
            idle_timeout: source.idle_timeout_ms.map(|ms| Duration::from_millis(ms.max(0) as u64)),
            history: VecDeque::from([(Instant::now(), 0)]),
            samples: Samples::default(),
        }
    }

    /// The source's name in SQL.
    pub fn name(&self) -> &str {
        &self.status.name
    }

    /// The topic it reads.
    pub fn topic(&self) -> &str {
        &self.status.topic
    }

    /// Notes where the source is.
    pub fn polled(&mut self, state: SourceState) {
        for (partition, now) in &state.partitions {
            let moved = self.moved.entry(*partition).or_insert((now.next, Instant::now()));
            if moved.0 != now.next {
                *moved = (now.next, Instant::now());
            }
        }
        self.state = state;
    }

    /// Partitions that are read to their end and have been silent for the source's `idle_timeout`.
    pub fn idle(&self) -> BTreeSet<i32> {
        let Some(timeout) = self.idle_timeout else { return BTreeSet::new() };
        let unread = self.state.unread();
        let idle = self
            .moved
            .iter()
            .filter(|(partition, (_, since))| since.elapsed() >= timeout && !unread.contains(partition));
        idle.map(|(partition, _)| *partition).collect()
    }

    /// Why nothing can be received, while that is so.
    pub fn outage(&self) -> Option<&Outage> {
        self.state.outage.as_ref()
    }

    /// Counts a message of a batch that is not counted, or not by one view.
    pub fn rejected(&mut self, reject: &Reject, batch: &RawBatch) {
        self.samples.add(reject, batch);
        let count = |by: &mut BTreeMap<String, u64>, name: &str| *by.entry(name.into()).or_default() += 1;
        match &reject.view {
            Some(view) if reject.rule == "late" => count(&mut self.status.late_by_view, view),
            Some(view) => count(&mut self.status.errors_by_view, view),
            None => {
                self.status.rejected += 1;
                count(&mut self.status.rejected_by_reason, &reject.rule);
            }
        }
    }

    /// Notes how many primary keys came in more than one partition.
    pub fn keys_in_two_partitions(&mut self, keys: u64) {
        self.status.keys_in_two_partitions = keys;
    }

    /// Counts rows that found no match in a lookup join.
    pub fn unmatched(&mut self, unmatched: &[Unmatched]) {
        for Unmatched { view, join, rows } in unmatched {
            let of_view = self.status.unmatched_by_view.entry(view.clone()).or_default();
            *of_view.entry(join.clone()).or_default() += rows;
        }
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

    /// Gives the counters to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let SourceStatus { name, received, counted, rejected, rejected_by_reason, late_by_view, .. } =
            &self.status;
        let SourceStatus { errors_by_view, unmatched_by_view, keys_in_two_partitions, .. } = &self.status;
        saver.mark(name)?;
        saver.value(&(received, counted, rejected, rejected_by_reason))?;
        saver.value(&(late_by_view, errors_by_view, unmatched_by_view, keys_in_two_partitions))?;
        Ok(saver.value(&self.samples)?)
    }

    /// Goes on with the counters of a checkpoint.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let status = &mut self.status;
        loader.mark(&status.name)?;
        (status.received, status.counted, status.rejected, status.rejected_by_reason) = loader.value()?;
        let by_view = loader.value()?;
        (
            status.late_by_view,
            status.errors_by_view,
            status.unmatched_by_view,
            status.keys_in_two_partitions,
        ) = by_view;
        self.samples = loader.value()?;
        self.history = VecDeque::from([(Instant::now(), status.received)]);
        Ok(())
    }

    /// Whether all that was there at the start has been read.
    pub fn caught_up(&self) -> bool {
        self.state.caught_up
    }

    /// As `/api/status` shows it. `watermark`: in nanoseconds since 1970; `held_by`: the partition that holds it
    /// back.
    pub fn status(&self, watermark: Option<i64>, held_by: Option<i32>) -> SourceStatus {
        let watermark = watermark.map(DateTime::from_timestamp_nanos);
        SourceStatus {
            lag: self.state.lag(),
            lag_to_high_watermark: self.state.lag_to_high_watermark(),
            lost_messages: self.state.lost_messages(),
            watermark_held_by: held_by,
            rate_per_s: self.rate_per_s(),
            watermark: watermark.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            partitions: self
                .state
                .partitions
                .iter()
                .map(|(partition, state)| PartitionStatus {
                    partition: *partition,
                    first: state.first,
                    offset: state.next,
                    end: state.end,
                })
                .collect(),
            reject_samples: self.samples.all(),
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
}

impl Batches {
    /// Notes a micro-batch of `rows` messages.
    pub fn add(&mut self, rows: u64, took: Duration) {
        let took_ms = took.as_secs_f64() * 1e3;
        self.status.count += 1;
        self.status.mean_ms += (took_ms - self.status.mean_ms) / self.status.count as f64;
        self.status.max_ms = self.status.max_ms.max(took_ms);
        self.status.last_ms = took_ms;
        self.status.last_rows = rows;
    }

    /// Notes that a stage of an epoch has lasted since `begun`.
    pub fn stage(&mut self, stage: &'static str, begun: Instant) {
        let took = begun.elapsed();
        let took_ms = took.as_secs_f64() * 1e3;
        let status = self.status.stages.entry(stage).or_default();
        status.runs += 1;
        status.total_s += took.as_secs_f64();
        status.last_ms = took_ms;
        status.max_ms = status.max_ms.max(took_ms);
    }

    /// As `/api/status` shows them.
    pub fn status(&self) -> BatchStatus {
        self.status.clone()
    }
}
