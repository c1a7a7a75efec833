//! Tally: a streaming SQL engine on Apache DataFusion.
//!
//! The modules in the order in which data flows through them. A module uses only those above it, the
//! pipeline excepted, which knows every stage; `ARCHITECTURE.md` tells the same with pictures.

pub mod clients;
pub mod config;
pub mod error;
pub mod shutdown;

pub mod engine;
pub mod queries;
pub mod snapshot;

pub mod decode;
pub mod pipeline;
mod progress;
pub mod reference;
pub mod serve;
pub mod sink;
pub mod source;

pub mod election;
pub mod embedded;

pub mod cli;
pub mod commands;
pub mod demo;
pub mod logging;
pub mod topics;
