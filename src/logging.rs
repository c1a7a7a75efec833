//! Logging to standard error, without tearing the progress bars.

use std::io::{self, IsTerminal};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging; `quiet`: warnings only, and of a request that fails the reason but not that it did, unless RUST_LOG
/// says otherwise.
pub fn start(quiet: bool, bars: &MultiProgress) {
    let default = if quiet { "warn,tower_http=off" } else { "info,sqlx=warn,librdkafka=warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(AboveBars(bars.clone()))
        .init();
}

/// Writes whole lines above the bars.
#[derive(Clone)]
struct AboveBars(MultiProgress);

impl io::Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = AboveBars;
    fn make_writer(&self) -> AboveBars {
        self.clone()
    }
}
