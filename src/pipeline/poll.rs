//! A thread for each source: receiving goes on while an epoch is executed.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Limits;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::source::{Polled, Source, SourceState};

/// How long the threads may take to end; one that waits for a dead broker takes longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The polling threads.
pub struct Pollers {
    threads: Vec<JoinHandle<()>>,
    stop: Shutdown,
}

impl Pollers {
    /// Starts them. What they receive goes to `sender`, with the position of the source.
    pub fn start(
        sources: Vec<Box<dyn Source>>,
        limits: &Limits,
        sender: mpsc::Sender<(usize, Polled)>,
        stop: Shutdown,
    ) -> Result<Pollers> {
        let mut threads = Vec::new();
        for (number, source) in sources.into_iter().enumerate() {
            let (sender, stop) = (sender.clone(), stop.clone());
            let (rows_max, wait) = (limits.batch_rows, limits.trigger);
            let thread = std::thread::Builder::new()
                .name(format!("poll {number}"))
                .spawn(move || poll(source, number, rows_max, wait, &sender, &stop))
                .map_err(|source| Error::Io { action: "starting a thread".into(), source })?;
            threads.push(thread);
        }
        Ok(Pollers { threads, stop })
    }

    /// Ends them, so that their consumers are closed before the broker may go.
    pub async fn stop(self) {
        self.stop.cancel();
        let deadline = Instant::now() + PATIENCE;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn poll(
    mut source: Box<dyn Source>,
    number: usize,
    rows_max: usize,
    wait: Duration,
    sender: &mpsc::Sender<(usize, Polled)>,
    stop: &Shutdown,
) {
    let mut told: Option<SourceState> = None;
    while !stop.is_cancelled() {
        let polled = source.poll(rows_max, wait);
        if polled.batch.is_empty() && told.as_ref() == Some(&polled.state) {
            continue;
        }
        told = Some(polled.state.clone());
        if sender.blocking_send((number, polled)).is_err() {
            return;
        }
    }
}
