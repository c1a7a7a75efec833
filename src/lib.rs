//! Tally: a streaming SQL engine on Apache DataFusion.
//!
//! The modules in the order in which data flows through them; `ARCHITECTURE.md` tells the same in words.
//! Each file says at its top what it is for.

// What all others use.
pub mod batches;
pub mod clients;
pub mod config;
mod describe;
pub mod error;
pub mod fault;
pub mod guard;
pub mod hash;
mod hash_bits;
pub mod outage;
pub mod row_index;
pub mod shutdown;

// The `.sql` files, and what is declared there.
pub mod catalog;
pub mod queries;

// Messages in, …
pub mod source;

// … as rows that keep the rules, …
pub mod decode;
pub mod ingest;

// … joined with Postgres tables, …
pub mod reference;

// … for the views, which are kept up to date: no I/O; …
pub mod engine;

// … changes out, …
pub mod sink;

// … together with a record of each epoch, from which a start knows what was counted, …
pub mod epoch_log;
pub mod history;

// … of which checkpoints spare it most, …
pub mod checkpoint;

// … and what readers see: the operator each epoch, the public releases.
pub mod release;
pub mod snapshot;

// The loop that ties these together, one epoch at a time; the same over files.
pub mod epoch;
pub mod pipeline;
pub mod rejects;
pub mod replay;

// A project's tests, its first files, and its run on this machine.
pub mod project;

// HTTP.
pub mod serve;

// The election, and servers to try it on.
pub mod election;
pub mod embedded;

// The command line.
pub mod cli;
pub mod commands;
pub mod demo;
pub mod logging;
pub mod topics;
