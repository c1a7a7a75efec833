//! One token that every task watches: cancelled by the first Ctrl-C or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Shutdown;

use crate::error::{Error, Result};

/// A token that is cancelled by SIGINT or SIGTERM. A second signal ends the process at once, for the
/// case that stopping itself hangs.
pub fn on_signal() -> Result<Shutdown> {
    let token = Shutdown::new();
    let io = |source| Error::Io { action: "listening for signals".into(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if round > 0 {
                std::process::exit(130);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}
