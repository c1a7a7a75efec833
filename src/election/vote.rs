//! Lets the voters who are announced on `voters_topic` vote, at a given rate.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use indicatif::ProgressBar;
use sqlx::PgPool;

use super::VOTERS_TOPIC;
use super::ballots::{Fault, Vote, choose};
use super::outbox::Outbox;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::source::{Bounds, KafkaSource, RawBatch, Source, Start};

/// Most votes of one transaction.
const VOTES_AT_ONCE: usize = 5_000;
/// With a rate, so many transactions a second.
const STEPS_PER_S: f64 = 10.0;
const READ_ROWS: usize = 50_000;
const READ_WAIT: Duration = Duration::from_millis(200);
const LATE: TimeDelta = TimeDelta::hours(1);
/// Any number; a second `tally vote` on the same database asks for the same.
const LOCK: i64 = 0x7A11_707E;

/// How the voters vote.
#[derive(Clone, Debug)]
pub struct VoteOptions {
    /// Votes per second; `None` as fast as it goes.
    pub rate: Option<f64>,
    /// Share of the voters who vote, 0 to 1.
    pub turnout: f64,
    /// Share of bad messages besides, 0 to 1.
    pub faulty: f64,
    /// Makes the choices.
    pub seed: u64,
    /// Wait for further voters instead of ending with the last one.
    pub follow: bool,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct VoteReport {
    /// Voters who were announced.
    pub voters: u64,
    /// Votes stored and sent.
    pub cast: u64,
    /// Of those, with a time of an hour before.
    pub late: u64,
    /// Votes of an earlier run that it had stored but not sent.
    pub recovered: u64,
    /// Voters who had voted in an earlier run.
    pub voted_before: u64,
    /// Bad messages, by kind.
    pub faults: BTreeMap<Fault, u64>,
}

impl VoteReport {
    /// Messages sent to `votes_topic`, bad ones included.
    pub fn messages(&self) -> u64 {
        self.cast + self.recovered + self.faults.values().sum::<u64>()
    }
}

impl fmt::Display for VoteReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of {} voters have voted", self.cast, self.voters)?;
        let others = [
            ("late", self.late),
            ("sent for an earlier run", self.recovered),
            ("had voted before", self.voted_before),
        ];
        for (what, count) in others.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        for (i, (fault, count)) in self.faults.iter().enumerate() {
            write!(f, "{}{count} × {}", if i == 0 { "; bad messages: " } else { ", " }, fault.name())?;
        }
        Ok(())
    }
}

/// Reads the voters and lets each vote once. `progress` counts votes. Ends with the last voter, unless
/// `follow`, or with `shutdown`; what was stored until then has been sent.
pub async fn vote(
    config: &Config,
    pool: &PgPool,
    options: &VoteOptions,
    progress: &ProgressBar,
    shutdown: &Shutdown,
) -> Result<VoteReport> {
    let mut lock = pool.acquire().await.map_err(|e| Error::postgres("connecting", e))?;
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *lock)
        .await
        .map_err(|e| Error::postgres("taking the voting lock", e))?;
    if !alone {
        return Err(Error::postgres(
            "taking the voting lock",
            "another `tally vote` runs on this database; stop it first",
        ));
    }
    let result = vote_alone(config, pool, options, progress, shutdown).await;
    // The connection goes back to the pool, which would keep the lock.
    let unlocked = sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(&mut *lock).await;
    unlocked.map_err(|e| Error::postgres("releasing the voting lock", e))?;
    result
}

async fn vote_alone(
    config: &Config,
    pool: &PgPool,
    options: &VoteOptions,
    progress: &ProgressBar,
    shutdown: &Shutdown,
) -> Result<VoteReport> {
    let candidates: Vec<String> =
        sqlx::query_scalar("SELECT candidate_id FROM candidates ORDER BY party_affiliation, candidate_id")
            .fetch_all(pool)
            .await
            .map_err(|e| {
                Error::postgres("reading the candidates", format!("{e}; `tally seed` makes them"))
            })?;
    if candidates.is_empty() {
        return Err(Error::postgres("reading the candidates", "there are none; `tally seed` makes them"));
    }
    let (outbox, recovered) = Outbox::open(config, pool).await?;
    let mut polls = Polls {
        outbox,
        candidates,
        options,
        progress,
        report: VoteReport { recovered, ..VoteReport::default() },
        begun: Instant::now(),
    };
    let bounds = if options.follow { Bounds::Endless } else { Bounds::UntilNow };
    let open = || KafkaSource::open(config, VOTERS_TOPIC, bounds, Start::EarliestAvailable);
    let mut announced = tokio::task::block_in_place(open)?;
    let at_once =
        options.rate.map_or(VOTES_AT_ONCE, |rate| ((rate / STEPS_PER_S) as usize).clamp(1, VOTES_AT_ONCE));
    let mut ended = false;
    while !ended && !shutdown.is_cancelled() {
        let polled = tokio::task::block_in_place(|| announced.poll(READ_ROWS, READ_WAIT));
        ended = polled.state.ended;
        let votes = polls.choose(&polled.batch);
        for chunk in votes.chunks(at_once) {
            if shutdown.is_cancelled() {
                break;
            }
            polls.cast(chunk).await?;
            polls.keep_pace(shutdown).await;
        }
    }
    Ok(polls.report)
}

/// The polling stations: what is needed to cast votes.
struct Polls<'a> {
    outbox: Outbox,
    candidates: Vec<String>,
    options: &'a VoteOptions,
    progress: &'a ProgressBar,
    report: VoteReport,
    begun: Instant,
}

/// A vote to be cast, and what goes wrong beside it.
struct Intent {
    voter_id: String,
    candidate: usize,
    late: bool,
    fault: Option<Fault>,
}

impl Polls<'_> {
    fn choose(&mut self, batch: &RawBatch) -> Vec<Intent> {
        let mut intents = Vec::new();
        for message in (0..batch.len() as u32).map(|i| batch.get(i)) {
            let Some(voter_id) = message.key.and_then(|key| std::str::from_utf8(key).ok()) else { continue };
            self.report.voters += 1;
            let options = self.options;
            let choice =
                choose(options.seed, voter_id, self.candidates.len(), options.turnout, options.faulty);
            if let Some(candidate) = choice.candidate {
                intents.push(Intent {
                    voter_id: voter_id.into(),
                    candidate,
                    late: choice.late,
                    fault: choice.fault,
                });
            }
        }
        intents
    }

    async fn cast(&mut self, intents: &[Intent]) -> Result<()> {
        let now = Utc::now();
        let votes = intents.iter().map(|intent| Vote {
            voter_id: intent.voter_id.clone(),
            candidate_id: self.candidates[intent.candidate].clone(),
            voting_time: (if intent.late { now - LATE } else { now }).format("%Y-%m-%d %H:%M:%S").to_string(),
        });
        let stored = self.outbox.store(&votes.collect::<Vec<_>>()).await?;
        let intents: BTreeMap<_, _> = intents.iter().map(|intent| (&intent.voter_id, intent)).collect();
        let mut bad = Vec::new();
        for vote in &stored {
            let Some(intent) = intents.get(&vote.voter_id) else { continue };
            self.report.late += u64::from(intent.late);
            if let Some(fault) = intent.fault {
                bad.push(fault.message(vote, self.options.seed));
                *self.report.faults.entry(fault).or_default() += 1;
            }
        }
        self.outbox.send(&stored, &bad).await?;
        self.report.cast += stored.len() as u64;
        self.report.voted_before += (intents.len() - stored.len()) as u64;
        self.progress.set_position(self.report.cast);
        Ok(())
    }

    /// Waits until the next votes are due.
    async fn keep_pace(&self, shutdown: &Shutdown) {
        let Some(rate) = self.options.rate else { return };
        let due = self.begun + Duration::from_secs_f64(self.report.cast as f64 / rate);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}
