//! Fills Postgres with candidates and voters, and announces each voter on `voters_topic`.
//!
//! Goes on where an earlier run was killed: voters are stored in chunks, each with the progress in one
//! transaction; a chunk that was stored but not known to be announced is announced again (the same
//! messages with the same keys).

use std::fmt;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use sqlx::PgPool;
use tokio::sync::mpsc;

use super::places::{Leanings, PLACES};
use super::population::{self, Voter};
use super::{MIGRATIONS, VOTERS_TOPIC};
use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::sink::CheckedProducer;

/// Voters stored in one transaction.
const CHUNK: u64 = 10_000;
/// Chunks stored before they are announced.
const CHUNKS_AHEAD: usize = 4;

/// Whom to register.
#[derive(Clone, Debug)]
pub struct SeedOptions {
    /// Voters in all, those of earlier runs included.
    pub voters: u64,
    /// Candidates.
    pub candidates: u32,
    /// Makes the people.
    pub seed: u64,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct SeedReport {
    /// Candidates there are.
    pub candidates: u32,
    /// Voters there are.
    pub voters: u64,
    /// Voters that this run stored.
    pub stored: u64,
    /// Voters that this run announced.
    pub announced: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for SeedReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { candidates, voters, stored, announced, took } = self;
        write!(
            f,
            "{candidates} candidates and {voters} voters: {stored} stored, {announced} announced in {:.1} s",
            took.as_secs_f64()
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
struct Progress {
    seed: i64,
    candidates: i32,
    stored: i64,
    announced: i64,
}

/// Creates or updates the tables.
pub async fn migrate(pool: &PgPool) -> Result<()> {
    MIGRATIONS.run(pool).await.map_err(|e| {
        Error::postgres("migrating", format!("{e}; the user needs the right to create tables and a schema"))
    })
}

/// Registers candidates and voters, and announces the voters. `progress` counts announced voters.
pub async fn seed(
    config: &Config,
    pool: &PgPool,
    options: &SeedOptions,
    progress: &ProgressBar,
    shutdown: &Shutdown,
) -> Result<SeedReport> {
    let begun = Instant::now();
    migrate(pool).await?;
    let before = begin(pool, options).await?;
    store_places(pool, options).await?;
    progress.set_length(options.voters);
    progress.set_position(before.announced as u64);

    let (stored, to_announce) = mpsc::channel(CHUNKS_AHEAD);
    let announcer = Announcer {
        producer: CheckedProducer::open(
            clients::kafka(config),
            &[("linger.ms", "20"), ("compression.type", "zstd")],
        )?,
        pool: pool.clone(),
        seed: options.seed,
        progress: progress.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let announcing = tokio::task::spawn_blocking(move || announcer.run(to_announce));
    let storing = store(pool, options, before, stored, shutdown).await;
    announcing.await.map_err(|e| Error::kafka("announcing voters", e))??;
    storing?;
    Ok(SeedReport {
        candidates: options.candidates,
        voters: options.voters,
        stored: options.voters - before.stored as u64,
        announced: options.voters - before.announced as u64,
        took: begun.elapsed(),
    })
}

/// What an earlier run has stored must still be there: it is not stored again.
async fn check_stored(pool: &PgPool, known: &Progress) -> Result<()> {
    let counts: (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM voters), (SELECT count(*) FROM candidates)")
            .fetch_one(pool)
            .await
            .map_err(|e| Error::postgres("counting voters and candidates", e))?;
    if counts.0 < known.stored || counts.1 < i64::from(known.candidates) {
        return Err(Error::Config(format!(
            "{} voters and {} candidates were stored by earlier runs, and {} and {} are there: rows were removed since. \
             To seed anew, empty the tables voters, candidates, votes and tally_internal.seed_progress",
            known.stored, known.candidates, counts.0, counts.1
        )));
    }
    Ok(())
}

/// Stores the candidates at the first run; afterwards checks that this run continues the same people.
async fn begin(pool: &PgPool, options: &SeedOptions) -> Result<Progress> {
    let failed = |e| Error::postgres("reading the progress of seeding", e);
    let known: Option<Progress> =
        sqlx::query_as("SELECT seed, candidates, stored, announced FROM tally_internal.seed_progress")
            .fetch_optional(pool)
            .await
            .map_err(failed)?;
    if let Some(known) = known {
        let (seed, candidates) = (options.seed as i64, options.candidates as i32);
        if (known.seed, known.candidates) != (seed, candidates) || known.stored as u64 > options.voters {
            return Err(Error::Config(format!(
                "the database has {} voters and {} candidates of seed {}, which can only be continued: run \
                 `tally seed --seed {} --candidates {} --voters N` with N of at least {}, or use another database",
                known.stored, known.candidates, known.seed, known.seed, known.candidates, known.stored
            )));
        }
        check_stored(pool, &known).await?;
        return Ok(known);
    }
    let failed = |e| {
        Error::postgres("storing the candidates", format!("{e}; are there candidates of another origin?"))
    };
    let mut transaction = pool.begin().await.map_err(failed)?;
    for i in 0..options.candidates {
        let candidate = population::candidate(options.seed, i);
        sqlx::query("INSERT INTO candidates VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(candidate.candidate_id)
            .bind(candidate.candidate_name)
            .bind(candidate.party_affiliation)
            .bind(candidate.biography)
            .bind(candidate.campaign_platform)
            .bind(candidate.photo_url)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    let first = Progress {
        seed: options.seed as i64,
        candidates: options.candidates as i32,
        stored: 0,
        announced: 0,
    };
    sqlx::query("INSERT INTO tally_internal.seed_progress (seed, candidates, stored, announced) VALUES ($1, $2, 0, 0)")
        .bind(first.seed)
        .bind(first.candidates)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(first)
}

/// Stores the places and how they voted at the election before, where they are not there yet. An earlier result is
/// as large as a place, in thousands of votes.
async fn store_places(pool: &PgPool, options: &SeedOptions) -> Result<()> {
    let failed = |e| Error::postgres("storing the places", e);
    let (mut names, mut codes, mut regions) = (vec![], vec![], vec![]);
    let (mut columns, mut rows) = (vec![], vec![]);
    let (mut of, mut parties, mut votes, mut registered) = (vec![], vec![], vec![], vec![]);
    let before = Leanings::before(options.seed, options.candidates as usize);
    let mut candidates: Vec<_> =
        (0..options.candidates).map(|i| population::candidate(options.seed, i).party_affiliation).collect();
    candidates.sort();
    for place in &PLACES {
        names.push(place.name);
        codes.push(place.code);
        regions.push(place.region);
        columns.push(place.tile.0);
        rows.push(place.tile.1);
        let shares = before.of(place.name);
        let all: f64 = shares.iter().sum();
        let voted = f64::from(place.voters()) * 1000.0;
        registered.push((voted / place.turnout_before(options.seed)).round() as i64);
        for (party, share) in candidates.iter().zip(shares) {
            of.push(place.name);
            parties.push(party.as_str());
            votes.push((voted * share / all).round() as i64);
        }
    }
    let mut transaction = pool.begin().await.map_err(failed)?;
    sqlx::query(
        "INSERT INTO places (place, code, region, tile_column, tile_row)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::int[]) ON CONFLICT DO NOTHING",
    )
    .bind(&names)
    .bind(codes)
    .bind(regions)
    .bind(columns)
    .bind(rows)
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    sqlx::query(
        "INSERT INTO previous_results (place, party_affiliation, votes)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) ON CONFLICT DO NOTHING",
    )
    .bind(of)
    .bind(parties)
    .bind(votes)
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    sqlx::query(
        "INSERT INTO previous_registers (place, registered)
         SELECT * FROM unnest($1::text[], $2::bigint[]) ON CONFLICT DO NOTHING",
    )
    .bind(names)
    .bind(registered)
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// Stores the voters that are not there yet, chunk by chunk, and hands each on to be announced.
async fn store(
    pool: &PgPool,
    options: &SeedOptions,
    before: Progress,
    stored: mpsc::Sender<Vec<Voter>>,
    shutdown: &Shutdown,
) -> Result<()> {
    let seed = options.seed;
    let mut first = before.announced as u64;
    while first < options.voters {
        if shutdown.is_cancelled() {
            return Err(Error::Stopped);
        }
        // What is stored already ends a chunk of its own: it is announced, not stored again.
        let known = first < before.stored as u64;
        let limit = if known { before.stored as u64 } else { options.voters };
        let end = limit.min(first + CHUNK);
        let make = move || (first..end).map(|i| population::voter(seed, i)).collect::<Vec<_>>();
        let voters =
            tokio::task::spawn_blocking(make).await.map_err(|e| Error::postgres("making voters", e))?;
        if !known {
            store_chunk(pool, &voters, end)
                .await
                .map_err(|e| Error::postgres(format!("storing voters {first} to {end}"), e))?;
        }
        if stored.send(voters).await.is_err() {
            // The announcer has failed, and says why.
            return Ok(());
        }
        first = end;
    }
    Ok(())
}

async fn store_chunk(pool: &PgPool, voters: &[Voter], end: u64) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let mut copy = transaction.copy_in_raw("COPY voters FROM STDIN").await?;
    copy.send(copy_text(voters).into_bytes()).await?;
    copy.finish().await?;
    sqlx::query("UPDATE tally_internal.seed_progress SET stored = $1")
        .bind(end as i64)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

/// Postgres's text format. Nothing in a voter needs an escape: there is no tab, line break or backslash.
fn copy_text(voters: &[Voter]) -> String {
    let mut text = String::with_capacity(voters.len() * 320);
    for voter in voters {
        let address = &voter.address;
        let columns = [
            &voter.voter_id,
            &voter.voter_name,
            &voter.date_of_birth,
            voter.gender,
            voter.nationality,
            &voter.registration_number,
            &address.street,
            address.city,
            address.state,
            address.country,
            &address.postcode,
            &voter.email,
            &voter.phone_number,
            &voter.cell_number,
            &voter.picture,
        ];
        for column in columns {
            text.push_str(column);
            text.push('\t');
        }
        writeln!(text, "{}", voter.registered_age).expect("invariant: writing to a String does not fail");
    }
    text
}

/// Announces stored voters in a thread of its own, while the next ones are stored.
struct Announcer {
    producer: CheckedProducer,
    pool: PgPool,
    seed: u64,
    progress: ProgressBar,
    runtime: tokio::runtime::Handle,
}

impl Announcer {
    fn run(self, mut chunks: mpsc::Receiver<Vec<Voter>>) -> Result<()> {
        while let Some(voters) = chunks.blocking_recv() {
            for voter in &voters {
                self.send(voter)?;
            }
            self.producer.flush()?;
            self.progress.inc(voters.len() as u64);
            let announced =
                "UPDATE tally_internal.seed_progress SET announced = announced + $1 WHERE seed = $2";
            let update =
                sqlx::query(announced).bind(voters.len() as i64).bind(self.seed as i64).execute(&self.pool);
            self.runtime
                .block_on(update)
                .map_err(|e| Error::postgres("noting the progress of seeding", e))?;
        }
        Ok(())
    }

    fn send(&self, voter: &Voter) -> Result<()> {
        let payload =
            serde_json::to_vec(voter).map_err(|e| Error::kafka(format!("writing to {VOTERS_TOPIC}"), e))?;
        self.producer.send(VOTERS_TOPIC, Some(voter.voter_id.as_bytes()), Some(&payload), None)
    }
}
