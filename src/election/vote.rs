//! Lets the voters who are announced on `voters_topic` vote: at a given rate in the order in which they were
//! announced, or as the script of a night has it. How many ballots each place will count is told beforehand, as it
//! is known when the polls have closed.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use indicatif::ProgressBar;
use serde::Deserialize;
use sqlx::PgPool;

use super::ballots::{Choice, Fault, Habits, Vote, choose};
use super::night;
use super::outbox::Outbox;
use super::places::Leanings;
use super::{VOTERS_TOPIC, VOTES_TOPIC};
use crate::catalog::{Catalog, SourceDef};
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

/// When the voters vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as it goes.
    Unlimited,
    /// So many a second.
    PerSecond(f64),
    /// Place by place, all in this time.
    Night(Duration),
}

/// How the voters vote.
#[derive(Clone, Debug)]
pub struct VoteOptions {
    /// When they do.
    pub pace: Pace,
    /// Which share of the voters does what.
    pub habits: Habits,
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
    /// Votes stored and sent, each voter's first.
    pub cast: u64,
    /// Voters who then voted again.
    pub again: u64,
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
        self.cast + self.again + self.recovered + self.faults.values().sum::<u64>()
    }
}

impl fmt::Display for VoteReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of {} voters have voted", self.cast, self.voters)?;
        let others = [
            ("again", self.again),
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

/// Reads the voters and lets each vote once, and those who want to once more. `progress` counts votes. Ends with the last voter, unless
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
    if options.habits.revote > 0.0 && !last_vote_counts(config).await? {
        return Err(Error::Config(format!(
            "whoever votes again would be rejected: the first vote counts. Add 'on_conflict' 'replace' to the OPTIONS of \
             the source of {VOTES_TOPIC} (queries/votes.sql), or leave --revote out"
        )));
    }
    let candidates = candidates(pool).await?;
    let (outbox, recovered) = Outbox::open(config, pool).await?;
    let mut polls = Polls {
        outbox,
        leanings: Leanings::new(options.seed, candidates.len()),
        candidates,
        options,
        progress,
        report: VoteReport { recovered, ..VoteReport::default() },
        again: Vec::new(),
        begun: Instant::now(),
    };
    if !options.follow {
        let expected = polls.verify(config, pool, shutdown).await?;
        progress.set_length(expected);
    }
    polls.begun = Instant::now();
    match options.pace {
        Pace::Night(night) if !options.follow => polls.vote_through(config, night, shutdown).await?,
        _ => polls.vote_in_turn(config, shutdown).await?,
    }
    polls.cast_again().await?;
    Ok(polls.report)
}

/// Whether the queries say that a voter's later vote replaces the earlier one.
async fn last_vote_counts(config: &Config) -> Result<bool> {
    let catalog = Catalog::load(config.queries.as_deref()).await?;
    let of_votes = |source: &&SourceDef| source.topic == VOTES_TOPIC;
    Ok(catalog.sources.values().find(of_votes).is_some_and(SourceDef::retracts))
}

/// Ids of the candidates, in an order that is the same in every run.
async fn candidates(pool: &PgPool) -> Result<Vec<String>> {
    let failed = |e| Error::postgres("reading the candidates", format!("{e}; `tally seed` makes them"));
    let mut candidates: Vec<(String, String)> =
        sqlx::query_as("SELECT party_affiliation, candidate_id FROM candidates")
            .fetch_all(pool)
            .await
            .map_err(failed)?;
    if candidates.is_empty() {
        return Err(Error::postgres("reading the candidates", "there are none; `tally seed` makes them"));
    }
    candidates.sort();
    Ok(candidates.into_iter().map(|(_, id)| id).collect())
}

/// The polling stations: what is needed to cast votes.
struct Polls<'a> {
    outbox: Outbox,
    candidates: Vec<String>,
    leanings: Leanings,
    options: &'a VoteOptions,
    progress: &'a ProgressBar,
    report: VoteReport,
    /// Who has voted and will vote again.
    again: Vec<Intent>,
    begun: Instant,
}

/// A vote to be cast, and what goes wrong beside it.
#[derive(Clone)]
struct Intent {
    voter_id: String,
    place: String,
    candidate: usize,
    late: bool,
    fault: Option<Fault>,
    again: Option<usize>,
}

/// What is read of a voter's message.
#[derive(Deserialize)]
struct Announced {
    address: Home,
}

#[derive(Deserialize)]
struct Home {
    state: String,
}

impl Polls<'_> {
    /// Tells Postgres how many ballots each place will have counted when all have voted. Their number.
    async fn verify(&self, config: &Config, pool: &PgPool, shutdown: &Shutdown) -> Result<u64> {
        let failed = |e| Error::postgres("storing how many ballots each place expects", e);
        // Those of an earlier run have voted, whatever they would do now.
        let voted: Vec<String> =
            sqlx::query_scalar("SELECT voter_id FROM votes").fetch_all(pool).await.map_err(failed)?;
        let voted: HashSet<String> = voted.into_iter().collect();
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        let mut to_vote = 0;
        read_announced(config, Bounds::UntilNow, shutdown, async |batch| {
            for message in (0..batch.len() as u32).map(|i| batch.get(i)) {
                let Some((voter_id, place)) = announced(message.key, message.payload) else { continue };
                let before = voted.contains(voter_id);
                let votes = self.intent(voter_id, place.clone()).is_some();
                to_vote += u64::from(votes && !before);
                if votes || before {
                    *expected.entry(place).or_default() += 1;
                }
            }
            Ok(())
        })
        .await?;
        let (places, ballots): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
        sqlx::query(
            "UPDATE places SET ballots_expected = COALESCE(of.ballots, 0)
             FROM places p LEFT JOIN unnest($1::text[], $2::bigint[]) AS of (place, ballots) USING (place)
             WHERE places.place = p.place",
        )
        .bind(places)
        .bind(ballots)
        .execute(pool)
        .await
        .map_err(failed)?;
        Ok(to_vote)
    }

    /// Lets everyone vote in the order in which they were announced.
    async fn vote_in_turn(&mut self, config: &Config, shutdown: &Shutdown) -> Result<()> {
        let bounds = if self.options.follow { Bounds::Endless } else { Bounds::UntilNow };
        let at_once = match self.options.pace {
            Pace::PerSecond(rate) => ((rate / STEPS_PER_S) as usize).clamp(1, VOTES_AT_ONCE),
            Pace::Unlimited | Pace::Night(_) => VOTES_AT_ONCE,
        };
        read_announced(config, bounds, shutdown, async |batch| {
            for chunk in self.intents(batch).chunks(at_once) {
                if shutdown.is_cancelled() {
                    break;
                }
                self.cast(chunk).await?;
                if let Pace::PerSecond(rate) = self.options.pace {
                    self.wait_until(Duration::from_secs_f64(self.report.cast as f64 / rate), shutdown).await;
                }
            }
            Ok(())
        })
        .await
    }

    /// Lets everyone vote as the script of a night has it.
    async fn vote_through(&mut self, config: &Config, night: Duration, shutdown: &Shutdown) -> Result<()> {
        let mut intents = Vec::new();
        read_announced(config, Bounds::UntilNow, shutdown, async |batch| {
            intents.extend(self.intents(batch).into_iter().map(Some));
            Ok(())
        })
        .await?;
        let ballots: Vec<_> =
            intents.iter().flatten().map(|intent| (intent.place.as_str(), intent.candidate)).collect();
        let times = night::schedule(&ballots, night);
        let step = Duration::from_secs_f64(1.0 / STEPS_PER_S);
        for due in
            times.chunk_by(|a, b| a.0.div_duration_f64(step) as u64 == b.0.div_duration_f64(step) as u64)
        {
            self.wait_until(due[due.len() - 1].0, shutdown).await;
            if shutdown.is_cancelled() {
                break;
            }
            let now: Vec<Intent> = due.iter().filter_map(|(_, ballot)| intents[*ballot].take()).collect();
            for chunk in now.chunks(VOTES_AT_ONCE) {
                self.cast(chunk).await?;
            }
        }
        Ok(())
    }

    fn intents(&mut self, batch: &RawBatch) -> Vec<Intent> {
        let mut intents = Vec::new();
        for message in (0..batch.len() as u32).map(|i| batch.get(i)) {
            let Some((voter_id, place)) = announced(message.key, message.payload) else { continue };
            self.report.voters += 1;
            intents.extend(self.intent(voter_id, place));
        }
        intents
    }

    /// What a voter does; `None` stays at home.
    fn intent(&self, voter_id: &str, place: String) -> Option<Intent> {
        let choice = choose(self.options.seed, voter_id, self.leanings.of(&place), self.options.habits);
        let Choice { candidate, late, fault, again } = choice;
        Some(Intent { voter_id: voter_id.into(), place, candidate: candidate?, late, fault, again })
    }

    fn vote(&self, voter_id: &str, candidate: usize, time: DateTime<Utc>) -> Vote {
        Vote {
            voter_id: voter_id.into(),
            candidate_id: self.candidates[candidate].clone(),
            voting_time: time.format("%Y-%m-%d %H:%M:%S").to_string(),
        }
    }

    /// Whoever wants to votes again: the last vote counts.
    async fn cast_again(&mut self) -> Result<()> {
        let (now, again) = (Utc::now(), std::mem::take(&mut self.again));
        let votes: Vec<_> =
            again.iter().filter_map(|intent| Some(self.vote(&intent.voter_id, intent.again?, now))).collect();
        for votes in votes.chunks(VOTES_AT_ONCE) {
            let stored = self.outbox.replace(votes).await?;
            self.outbox.send(&stored, &[]).await?;
            self.report.again += stored.len() as u64;
        }
        Ok(())
    }

    /// Those of the last time who vote again do so first.
    async fn cast(&mut self, intents: &[Intent]) -> Result<()> {
        self.cast_again().await?;
        let now = Utc::now();
        let time = |late: bool| if late { now - LATE } else { now };
        let votes =
            intents.iter().map(|intent| self.vote(&intent.voter_id, intent.candidate, time(intent.late)));
        let stored = self.outbox.store(&votes.collect::<Vec<_>>()).await?;
        let intents: BTreeMap<_, _> = intents.iter().map(|intent| (&intent.voter_id, intent)).collect();
        let mut bad = Vec::new();
        for vote in &stored {
            let Some(intent) = intents.get(&vote.voter_id) else { continue };
            self.report.late += u64::from(intent.late);
            self.again.extend(intent.again.map(|_| Intent::clone(intent)));
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

    /// Waits until so much time has passed since voting began.
    async fn wait_until(&self, due: Duration, shutdown: &Shutdown) {
        tokio::select! {
            () = tokio::time::sleep_until((self.begun + due).into()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Reads the announced voters, until the last one or `shutdown`.
async fn read_announced(
    config: &Config,
    bounds: Bounds,
    shutdown: &Shutdown,
    mut each: impl AsyncFnMut(&RawBatch) -> Result<()>,
) -> Result<()> {
    let open = || KafkaSource::open(config, VOTERS_TOPIC, bounds, Start::EarliestAvailable);
    let mut announced = tokio::task::block_in_place(open)?;
    let mut ended = false;
    while !ended && !shutdown.is_cancelled() {
        let polled = tokio::task::block_in_place(|| announced.poll(READ_ROWS, READ_WAIT));
        ended = polled.state.ended;
        each(&polled.batch).await?;
    }
    Ok(())
}

/// The id and the place of a voter's message; none where it is no voter's.
fn announced<'a>(key: Option<&'a [u8]>, payload: Option<&[u8]>) -> Option<(&'a str, String)> {
    let voter_id = std::str::from_utf8(key?).ok()?;
    let place = payload.and_then(|voter| serde_json::from_slice::<Announced>(voter).ok());
    Some((voter_id, place.map(|voter| voter.address.state).unwrap_or_default()))
}
