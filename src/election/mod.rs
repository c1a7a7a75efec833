//! The election: who may vote, for whom, and how they do. The only module that knows what is counted.

mod ballots;
mod night;
mod outbox;
mod places;
mod population;
mod portraits;
mod seed;
mod vote;

pub use ballots::Habits;
pub use portraits::router as portraits;
pub use seed::{SeedOptions, SeedReport, migrate, seed};
pub use vote::{Pace, VoteOptions, VoteReport, vote};

/// The tables of an election, and what seeding and voting remember.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Topic on which `tally seed` announces voters, keyed by `voter_id`.
pub const VOTERS_TOPIC: &str = "voters_topic";
/// Topic on which `tally vote` casts votes, keyed by `voter_id`.
pub const VOTES_TOPIC: &str = "votes_topic";

/// FNV-1a: folds a text into 64 bits, the same on every machine.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
