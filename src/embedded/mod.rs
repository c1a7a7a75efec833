//! What `demo`, `dev` and the tests start themselves, so that nothing need be installed: a Kafka broker in this
//! process and a private Postgres beside it. Knows nothing of queries or elections.

mod account;
mod binaries;
mod broker;
mod postgres;
mod server;

pub use broker::{Broker, partitions_for};
pub use postgres::Postgres;
