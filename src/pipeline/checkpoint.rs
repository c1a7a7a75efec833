//! Checkpoints from the loop's side: when one is taken, what is in it, and which one a start goes on from.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::block_in_place;

use super::Pipeline;
use crate::checkpoint::{self, Found, Header, Loader, Saver, State};
use crate::epoch_log::{Definitions, LogReader, LoggedTables};
use crate::error::{Error, Result};

/// How long a stop waits for the newest state to be written.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Takes a checkpoint, if it is time for one. Only between two epochs.
    pub(super) fn checkpoint_if_due(&mut self) {
        if self.checkpoints.as_ref().is_some_and(|checkpoints| checkpoints.is_due(self.epoch)) {
            self.checkpoint();
        }
    }

    /// Takes the last checkpoint of a run, so that the next start executes nothing.
    pub(super) async fn last_checkpoint(&mut self) {
        let newest = self.checkpoints.as_ref().and_then(|checkpoints| checkpoints.newest());
        if self.settled && newest != Some(self.epoch) {
            if let Some(checkpoints) = &mut self.checkpoints {
                checkpoints.finish(LAST_PATIENCE).await;
            }
            self.checkpoint();
        }
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.finish(LAST_PATIENCE).await;
        }
    }

    /// Hands the state over to be written. That it can't be saved ends nothing: a start executes more of the log.
    fn checkpoint(&mut self) {
        // While history is counted for the first time, what the topics lack is not known from the state alone.
        if !self.written || self.epoch == 0 {
            return;
        }
        let begun = Instant::now();
        let state = match self.executor.engine().unsaved() {
            Some(reason) => Err(reason),
            None => block_in_place(|| self.state()).map_err(|error| error.to_string()),
        };
        let Some(checkpoints) = &mut self.checkpoints else { return };
        match state {
            Ok(state) => {
                checkpoints.write(state);
                self.publisher.batches.stage("checkpoint", begun);
            }
            Err(reason) => {
                tracing::warn!("no checkpoint of epoch {}: {reason}", self.epoch);
                checkpoints.skip(self.epoch);
            }
        }
    }

    fn state(&mut self) -> Result<State> {
        let mut saver = Saver::default();
        for progress in &self.publisher.progress {
            progress.save(&mut saver)?;
        }
        self.log.tables().save(&mut saver)?;
        self.executor.save(&mut saver)?;
        let (tables, values) = saver.into_parts();
        let header = Header {
            program: Header::this_program(),
            engine_id: self.log.engine_id().into(),
            epoch: self.epoch,
            entry: self.log.newest_entry().into(),
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.as_millis() as u64),
            definitions: self.log.definitions().clone(),
        };
        Ok(State { header, tables, values })
    }

    /// Goes on from the newest checkpoint that fits: the log after it, and what was counted then. Without one: the whole
    /// log.
    pub(super) async fn restore(&mut self) -> Result<Option<(LogReader, Definitions)>> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(None) };
        let objects = checkpoints.objects().clone();
        for found in checkpoint::found(&objects).await? {
            let epoch = found.header().epoch;
            let reader = match self.fits(found.header())? {
                Ok(reader) => reader,
                Err(reason) => {
                    tracing::info!("the checkpoint of epoch {epoch} is not used: {reason}");
                    continue;
                }
            };
            let loader = match found.read(&objects).await {
                Ok(loader) => loader,
                Err(error) => {
                    tracing::warn!(
                        "the checkpoint of epoch {epoch} in {} is not used: {error}",
                        objects.place()
                    );
                    continue;
                }
            };
            return self.load(&found, loader, reader).map(Some).map_err(|error| {
                Error::Checkpoint(format!(
                    "that of epoch {epoch} can't be gone on from: {error}; remove {}, and the next start executes the \
                     whole log instead",
                    objects.place()
                ))
            });
        }
        Ok(None)
    }

    /// The log after what a checkpoint has, or why the checkpoint is not used.
    fn fits(&self, header: &Header) -> Result<Result<LogReader, String>> {
        let (program, now) = (Header::this_program(), self.log.definitions());
        if header.program != program {
            return Ok(Err(format!("it was written by {}, and this is {program}", header.program)));
        }
        if header.engine_id != self.log.engine_id() {
            return Ok(Err(format!("it is of the engine {}", header.engine_id)));
        }
        if header.definitions != *now || self.log.summary().definitions != *now {
            return Ok(Err("the queries, or what they read, have changed since".into()));
        }
        block_in_place(|| {
            let mut reader = self.log.reader(&*self.topics)?;
            let is_there = reader.skip_to(&header.entry)?;
            Ok(if is_there {
                Ok(reader)
            } else {
                Err("it is not of this epoch log, or of an earlier count".into())
            })
        })
    }

    fn load(
        &mut self,
        found: &Found,
        mut loader: Loader,
        mut reader: LogReader,
    ) -> Result<(LogReader, Definitions)> {
        let begun = Instant::now();
        let Header { epoch, definitions, .. } = found.header();
        for progress in &mut self.publisher.progress {
            progress.load(&mut loader)?;
        }
        reader.set_tables(LoggedTables::load(&mut loader)?);
        let changes = block_in_place(|| self.executor.load(&mut loader))?;
        loader.finish()?;
        for (ingest, history) in self.executor.ingests().iter().zip(&mut self.histories) {
            history.begin_at(&reader.passed_to(&ingest.def.name));
        }
        self.epoch = *epoch;
        self.publish(&changes);
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.begin(Some(found))?;
        }
        tracing::info!(
            "went on from the checkpoint of epoch {epoch} in {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        Ok((reader, definitions.clone()))
    }
}
