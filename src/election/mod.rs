//! The election: who may vote, for whom, and how they do. The only module that knows what is counted.

mod ballots;
mod outbox;
mod population;
mod portraits;
mod seed;
mod vote;

pub use portraits::router as portraits;
pub use seed::{SeedOptions, SeedReport, migrate, seed};
pub use vote::{VoteOptions, VoteReport, vote};

/// The tables of an election, and what seeding and voting remember.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Topic on which `tally seed` announces voters, keyed by `voter_id`.
pub const VOTERS_TOPIC: &str = "voters_topic";
/// Topic on which `tally vote` casts votes, keyed by `voter_id`.
pub const VOTES_TOPIC: &str = "votes_topic";
