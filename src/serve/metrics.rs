//! `/metrics`: the status as Prometheus reads it (OpenMetrics text), and the requests that this server has answered.
//! Nothing is counted twice: what the status has is taken from it when it is asked for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::DateTime;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::snapshot::Status;

use super::auth::Caller;
use super::problem::Problem;
use super::readers::Readers;

const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the times of requests, in seconds.
const SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    path: String,
}

/// The requests that were answered.
#[derive(Clone)]
pub(super) struct Requests {
    answered: Family<RequestLabels, Counter>,
    seconds: Family<PathLabel, Histogram, fn() -> Histogram>,
}

impl Requests {
    pub(super) fn new() -> Requests {
        Requests {
            answered: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
        }
    }
}

/// Counts a request and its time, by the route that answers it: there are as many as the program has.
pub(super) async fn count(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("other", MatchedPath::as_str).to_string();
    // A method may be any word.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "OPTIONS") => known.to_string(),
        _ => "other".into(),
    };
    let begun = Instant::now();
    let response = next.run(request).await;
    requests.seconds.get_or_create(&PathLabel { path: path.clone() }).observe(begun.elapsed().as_secs_f64());
    let status = response.status().as_u16();
    requests.answered.get_or_create(&RequestLabels { method, path, status }).inc();
    response
}

pub(super) async fn metrics(
    State((readers, requests)): State<(Readers, Requests)>,
    caller: Caller,
) -> Result<Response, Problem> {
    let body = encoded(readers.status(caller), &requests)
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written"))?;
    Ok(([(CACHE_CONTROL, "no-store"), (VARY, "authorization"), (CONTENT_TYPE, CONTENT)], body)
        .into_response())
}

fn encoded(status: Arc<Status>, requests: &Requests) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Engine(status)));
    registry.register("tally_http_requests", "Requests answered", requests.answered.clone());
    registry.register(
        "tally_http_request_seconds",
        "Time from a request's head to the head of its answer",
        requests.seconds.clone(),
    );
    let mut body = String::new();
    text::encode(&mut body, &registry)?;
    Ok(body)
}

/// The engine as the status says it is.
#[derive(Debug)]
struct Engine(Arc<Status>);

type Labels = Vec<(&'static str, String)>;

impl Collector for Engine {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let status = &*self.0;
        out.gauge("tally_ready", "Whether the topics' history is counted", [one(status.ready.into())])?;
        out.gauge("tally_uptime_seconds", "Since the engine started", [one(status.uptime_s as f64)])?;
        out.counter("tally_epochs", "Epochs since the engine started", [one(status.epoch as f64)])?;
        sources(&mut out, status)?;
        stages(&mut out, status)?;
        views(&mut out, status)?;
        outages(&mut out, status)?;
        references(&mut out, status)?;
        checkpoints(&mut out, status)?;
        let bytes = resident_bytes().map(|bytes| one(bytes as f64));
        out.gauge("process_resident_memory_bytes", "Memory of this process", bytes)
    }
}

fn sources(out: &mut Out, status: &Status) -> fmt::Result {
    let each = |value: fn(&crate::snapshot::SourceStatus) -> f64| {
        status.sources.iter().map(move |source| (vec![("source", source.name.clone())], value(source)))
    };
    out.counter("tally_messages_received", "Messages read", each(|source| source.received as f64))?;
    out.counter(
        "tally_messages_counted",
        "Messages that kept every rule",
        each(|source| source.counted as f64),
    )?;
    let rejected = status.sources.iter().flat_map(|source| {
        let by_reason = source.rejected_by_reason.iter();
        by_reason.map(|(reason, count)| {
            (vec![("source", source.name.clone()), ("reason", reason.clone())], *count as f64)
        })
    });
    out.counter("tally_messages_rejected", "Messages that broke a rule, by the rule", rejected)?;
    let by_view = |counts: fn(&crate::snapshot::SourceStatus) -> &std::collections::BTreeMap<String, u64>| {
        status.sources.iter().flat_map(move |source| {
            counts(source).iter().map(|(view, count)| {
                (vec![("source", source.name.clone()), ("view", view.clone())], *count as f64)
            })
        })
    };
    out.counter(
        "tally_rows_late",
        "Counted rows that came too late for a view",
        by_view(|s| &s.late_by_view),
    )?;
    out.counter(
        "tally_rows_failed",
        "Counted rows that an expression of a view could not take",
        by_view(|s| &s.errors_by_view),
    )?;
    let unmatched =
        status.sources.iter().flat_map(|source| &source.unmatched_by_view).flat_map(|(view, joins)| {
            joins
                .iter()
                .map(|(join, rows)| (vec![("view", view.clone()), ("join", join.clone())], *rows as f64))
        });
    out.counter("tally_rows_unmatched", "Counted rows that found no match in a view's join", unmatched)?;
    out.gauge("tally_lag_messages", "Messages that are not read yet", each(|source| source.lag as f64))?;
    out.gauge(
        "tally_lag_to_high_watermark_messages",
        "The same with those that wait for an open transaction",
        each(|source| source.lag_to_high_watermark as f64),
    )?;
    out.gauge(
        "tally_lost_messages",
        "Messages that the topic had lost before they could be read",
        each(|source| source.lost_messages as f64),
    )?;
    out.gauge(
        "tally_rate_per_second",
        "Messages read per second, of late",
        each(|source| source.rate_per_s),
    )?;
    let watermarks = status.sources.iter().filter_map(|source| {
        let time = DateTime::parse_from_rfc3339(source.watermark.as_deref()?).ok()?;
        Some((vec![("source", source.name.clone())], time.timestamp_millis() as f64 / 1e3))
    });
    out.gauge("tally_watermark_timestamp_seconds", "Up to when the source is complete", watermarks)
}

fn stages(out: &mut Out, status: &Status) -> fmt::Result {
    let batches = &status.batches;
    out.counter("tally_batches", "Micro-batches", [one(batches.count as f64)])?;
    let last = [one(batches.last_ms / 1e3)];
    out.gauge("tally_batch_seconds", "Time of the newest micro-batch", last)?;
    let stage = |stage: &&'static str| vec![("stage", stage.to_string())];
    let seconds = batches.stages.iter().map(|(name, times)| (stage(name), times.total_s));
    out.counter("tally_stage_seconds", "Time of the stages of epochs", seconds)?;
    let runs = batches.stages.iter().map(|(name, times)| (stage(name), times.runs as f64));
    out.counter("tally_stage_runs", "How often the stages were run", runs)
}

fn views(out: &mut Out, status: &Status) -> fmt::Result {
    out.gauge("tally_state_bytes", "State, reference tables and keys", [one(status.state_bytes as f64)])?;
    let by_view = status.state_bytes_by_view.iter();
    let by_view = by_view.map(|(view, bytes)| (vec![("view", view.clone())], *bytes as f64));
    out.gauge("tally_view_state_bytes", "State of a view, shared with others or not", by_view)?;
    let seconds = status.seconds_by_view.iter();
    let seconds = seconds.map(|(view, seconds)| (vec![("view", view.clone())], *seconds));
    out.counter("tally_view_seconds", "Work of a view's parts, shared with others or not", seconds)?;
    let failed = status.failed_views.iter().map(|failed| (vec![("view", failed.view.clone())], 1.0));
    out.gauge("tally_view_failed", "Views that show their last good rows", failed)?;
    out.gauge("tally_views_failed", "How many these are", [one(status.failed_views.len() as f64)])
}

fn outages(out: &mut Out, status: &Status) -> fmt::Result {
    let paused = status.paused.iter().map(|pause| (vec![("what", pause.what.clone())], 1.0));
    out.gauge("tally_paused", "What waits for Kafka or Postgres", paused)?;
    out.gauge("tally_outages", "How many these are", [one(status.paused.len() as f64)])?;
    let refused = status.refused_records.iter();
    let refused = refused.map(|refused| (vec![("topic", refused.topic.clone())], refused.records as f64));
    out.counter("tally_records_refused", "Records that a topic will never take", refused)
}

fn references(out: &mut Out, status: &Status) -> fmt::Result {
    let each = |value: fn(&crate::snapshot::ReferenceStatus) -> f64| {
        status.reference_tables.iter().map(move |table| (vec![("table", table.name.clone())], value(table)))
    };
    out.gauge("tally_reference_rows", "Rows held of a Postgres table", each(|table| table.rows as f64))?;
    out.gauge("tally_reference_bytes", "Bytes held of it", each(|table| table.bytes as f64))?;
    out.gauge("tally_reference_age_seconds", "Since it was read", each(|table| table.age_s as f64))?;
    let failed = each(|table| f64::from(u8::from(table.error.is_some())));
    out.gauge("tally_reference_failed", "Whether its last reading failed", failed)
}

fn checkpoints(out: &mut Out, status: &Status) -> fmt::Result {
    let Some(checkpoint) = &status.checkpoint else { return Ok(()) };
    let age = checkpoint.age_s.map(|age_s| one(age_s as f64));
    out.gauge("tally_checkpoint_age_seconds", "Since the epoch of the newest checkpoint", age)?;
    out.gauge("tally_checkpoint_bytes", "Bytes of the newest checkpoint", [one(checkpoint.bytes as f64)])?;
    let new_bytes = [one(checkpoint.new_bytes as f64)];
    out.gauge("tally_checkpoint_new_bytes", "Those that the one before did not have", new_bytes)?;
    out.gauge("tally_checkpoint_seconds", "Time to write the newest checkpoint", [one(checkpoint.seconds)])?;
    let failed = f64::from(u8::from(checkpoint.error.is_some()));
    out.gauge("tally_checkpoint_failed", "Whether the newest could not be written", [one(failed)])
}

fn one(value: f64) -> (Labels, f64) {
    (Vec::new(), value)
}

/// Bytes of memory that this process has, as the kernel says.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kilobytes.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Counter, values)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge, values)
    }

    fn metric(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            match labels.is_empty() {
                true => put(&mut metric, kind, value)?,
                false => put(&mut metric.encode_family(&labels)?, kind, value)?,
            }
        }
        Ok(())
    }
}

fn put(metric: &mut MetricEncoder, kind: MetricType, value: f64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<Labels, f64, f64>(&value, None),
        _ => metric.encode_gauge(&value),
    }
}
