//! Tally: a streaming SQL engine on Apache DataFusion.
//!
//! The modules in the order in which data flows through them. A module uses only those above it, the
//! pipeline excepted, which knows every stage; `ARCHITECTURE.md` tells the same with pictures.

pub mod error;
pub mod config;
pub mod shutdown;
pub mod clients;

pub mod queries;
pub mod snapshot;
pub mod engine;

pub mod decode;
pub mod reference;
pub mod source;
pub mod sink;
mod progress;
pub mod pipeline;
pub mod serve;

pub mod election;
pub mod embedded;

pub mod topics;
pub mod cli;
pub mod logging;
pub mod demo;
pub mod commands;
