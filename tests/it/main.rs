//! The whole system, run as its users run it: on the built-in broker and Postgres, and on real ones.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests: a failure is a panic")]

mod bad_input;
mod datafusion;
mod election;
mod embedded;
mod exactly_once;
mod kafka;
mod project;
mod real;
mod replay;
