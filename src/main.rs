//! `tally`: parses the command line, starts logging, and runs the command.

use std::process::ExitCode;

use clap::Parser;
use indicatif::MultiProgress;
use tally::cli::{Cli, Command};
use tally::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // No logging and no runtime: this process is counted by its bytes.
    if matches!(cli.command, Command::SqlWorker) {
        return tally::serve::sql_worker();
    }
    let bars = MultiProgress::new();
    // The demo shows bars, and `dev` says itself what happens.
    let quiet = matches!(cli.command, Command::Demo(_) | Command::Dev(_));
    tally::logging::start(quiet, &bars);
    // Threads are started by the runtime's own thread, the main one: the embedded Postgres ends with it.
    let run = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(commands::run(cli, &bars));
        // A thread that waits for Kafka must not hold up the end.
        runtime.shutdown_background();
        Ok(result?)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tally: {error}");
            let own = error.downcast_ref::<tally::error::Error>();
            ExitCode::from(own.map_or(1, tally::error::Error::exit_code))
        }
    }
}
