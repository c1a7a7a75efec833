//! Postgres tables as Arrow: what tables there are, their rows, and word of their changes. It knows no
//! election, keeps no rows itself and writes nothing to Postgres.

mod changes;
mod held;
mod index;
mod load;
mod migrations;
mod schema;
mod table;

#[cfg(test)]
mod tests;

pub use changes::{ANYTHING, CHANNEL, listen};
pub use held::References;
pub use index::KeyIndex;
pub use load::{load, lookup, stream};
pub use migrations::tables_of_migrations;
pub use schema::{TableDef, describe};
pub use table::PgTable;
