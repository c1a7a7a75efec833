//! Checkpoints: the state as of an epoch, so that a start executes only the epochs after it. The log stays the truth: a
//! checkpoint that is damaged, of other queries, or of another log, is left out, and costs time only.
//!
//! Between two epochs the loop takes a snapshot (`parts.rs`), which copies little: rows stand in arrays that never change.
//! A thread of its own writes it (`write.rs`) while the stream goes on.

mod manifest;
mod objects;
mod parts;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

pub use self::manifest::Header;
pub use self::objects::Objects;
pub use self::parts::{Loader, Saver, bytes, numbers};
pub use self::read::{Found, found};
pub use self::write::State;
#[cfg(test)]
pub use self::write::Writer;
#[cfg(not(test))]
use self::write::Writer;
use crate::error::{Error, Result};
use crate::snapshot::CheckpointStatus;

/// The checkpoints of an engine.
pub struct Checkpoints {
    objects: Objects,
    interval: Duration,
    writing: Option<Writing>,
}

/// The thread that writes.
struct Writing {
    states: mpsc::Sender<State>,
    progress: watch::Receiver<Progress>,
    /// The epoch that was handed over last, or gone on from, and when.
    newest: Option<(u64, Instant)>,
    /// How many were handed over.
    begun: u64,
}

/// How writing goes.
#[derive(Clone, Default)]
struct Progress {
    /// How many are done, written or not.
    done: u64,
    newest: Option<Newest>,
    error: Option<String>,
}

#[derive(Clone)]
struct Newest {
    epoch: u64,
    /// In milliseconds since 1970.
    at_ms: u64,
    bytes: u64,
    new_bytes: u64,
    took: Duration,
}

impl Checkpoints {
    /// In `objects`, one each `interval` in which something changed.
    pub fn new(objects: Objects, interval: Duration) -> Checkpoints {
        Checkpoints { objects, interval, writing: None }
    }

    /// Where they are.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Begins to write, after `restored`, the one that was gone on from.
    pub fn begin(&mut self, restored: Option<&Found>) -> Result<()> {
        let (states, queue) = mpsc::channel();
        let kept = restored.map(|found| {
            let packs: BTreeSet<String> = found.manifest.packs().into_iter().map(String::from).collect();
            (found.name.clone(), packs)
        });
        let newest = restored.map(|found| Newest {
            epoch: found.header().epoch,
            at_ms: found.header().at_ms,
            bytes: found.bytes(),
            new_bytes: 0,
            took: Duration::ZERO,
        });
        let (told, progress) = watch::channel(Progress { newest, ..Progress::default() });
        let writer = Writer::new(self.objects.clone(), kept);
        let action = || "starting the thread that writes checkpoints".to_string();
        let io = |source| Error::Io { action: action(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(io)?;
        let run = move || runtime.block_on(write_all(writer, &queue, &told));
        thread::Builder::new().name("checkpoints".into()).spawn(run).map_err(io)?;
        let newest = restored.map(|found| (found.header().epoch, Instant::now()));
        self.writing = Some(Writing { states, progress, newest, begun: 0 });
        Ok(())
    }

    /// Whether it is time for one of an epoch, and none is being written.
    pub fn is_due(&self, epoch: u64) -> bool {
        let Some(writing) = &self.writing else { return false };
        let is_time =
            writing.newest.is_none_or(|(newest, at)| newest != epoch && at.elapsed() >= self.interval);
        is_time && !writing.is_busy()
    }

    /// The newest epoch that was handed over.
    pub fn newest(&self) -> Option<u64> {
        self.writing.as_ref()?.newest.map(|(epoch, _)| epoch)
    }

    /// Hands a state over to be written.
    pub fn write(&mut self, state: State) {
        let Some(writing) = &mut self.writing else { return };
        writing.newest = Some((state.header.epoch, Instant::now()));
        writing.begun += 1;
        // The thread ends only with this end of the queue, or in a panic, which it says itself.
        if writing.states.send(state).is_err() {
            writing.begun -= 1;
        }
    }

    /// The next one is not tried before the interval has passed again.
    pub fn skip(&mut self, epoch: u64) {
        if let Some(writing) = &mut self.writing {
            writing.newest = Some((epoch, Instant::now()));
        }
    }

    /// Waits until all that was handed over is written, or so long.
    pub async fn finish(&mut self, patience: Duration) {
        let Some(writing) = &mut self.writing else { return };
        let begun = writing.begun;
        let done = writing.progress.wait_for(|progress| progress.done >= begun);
        if tokio::time::timeout(patience, done).await.is_err() {
            tracing::info!("a checkpoint is not finished: the next start goes on from the one before");
        }
    }

    /// What `/api/status` says of them.
    pub fn status(&self) -> Option<CheckpointStatus> {
        let writing = self.writing.as_ref()?;
        let Progress { newest, error, .. } = writing.progress.borrow().clone();
        let newest = newest.as_ref();
        let ended = writing.progress.has_changed().is_err();
        let ended =
            ended.then(|| "the thread that writes checkpoints has failed: restart the engine".to_string());
        Some(CheckpointStatus {
            place: self.objects.place().into(),
            epoch: newest.map(|newest| newest.epoch),
            age_s: newest.map(|newest| age_s(newest.at_ms)),
            bytes: newest.map_or(0, |newest| newest.bytes),
            new_bytes: newest.map_or(0, |newest| newest.new_bytes),
            seconds: newest.map_or(0.0, |newest| newest.took.as_secs_f64()),
            error: ended.or(error),
        })
    }
}

impl Writing {
    fn is_busy(&self) -> bool {
        self.progress.borrow().done < self.begun
    }
}

fn age_s(at_ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at_ms)).as_secs()
}

async fn write_all(mut writer: Writer, states: &mpsc::Receiver<State>, told: &watch::Sender<Progress>) {
    while let Ok(state) = states.recv() {
        let (epoch, at_ms, begun) = (state.header.epoch, state.header.at_ms, Instant::now());
        let written = writer.write(state).await;
        told.send_modify(|progress| {
            progress.done += 1;
            match written {
                Ok(written) => {
                    let (bytes, new_bytes, took) = (written.bytes, written.new_bytes, begun.elapsed());
                    progress.newest = Some(Newest { epoch, at_ms, bytes, new_bytes, took });
                    progress.error = None;
                    let took = took.as_secs_f64();
                    tracing::info!(
                        "checkpoint of epoch {epoch}: {bytes} bytes, {new_bytes} of them new, {took:.1} s"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        "no checkpoint of epoch {epoch}: {error}; the ones before stay, and the next is tried"
                    );
                    progress.error = Some(error.to_string());
                }
            }
        });
    }
}

/// What was saved, as it is loaded: through the bytes that are written of it.
#[cfg(test)]
pub fn through_bytes(saver: Saver) -> Result<Loader> {
    let (tables, values) = saver.into_parts();
    let tables = tables.iter().map(|table| read::decode(&write::encode(table)?));
    Ok(Loader::new(tables.collect::<Result<_>>()?, values))
}
