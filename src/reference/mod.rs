//! Postgres tables as Arrow: what tables there are, their rows, and word of their changes. It knows no
//! election and writes nothing to Postgres but triggers, when asked to.

mod changes;
mod held;
mod index;
mod load;
mod memory;
mod migrations;
mod postgres;
mod reader;
mod schema;
mod store;
mod table;
mod triggers;
mod version;

#[cfg(test)]
mod tests;

pub use changes::CHANNEL;
pub use held::References;
pub use index::KeyIndex;
pub use memory::{Fault, MemoryStore};
pub use migrations::tables_of_migrations;
pub use postgres::PostgresStore;
pub use reader::{Health, HealthReader, Pace, ReferenceReader};
pub use schema::TableDef;
pub use store::{ANYTHING, NoStore, ReferenceStore, StoreError};
pub use table::PgTable;
pub use triggers::{TriggerOutcome, install_triggers, remove_triggers};
pub use version::{ReferenceTable, Version, Wanted};
