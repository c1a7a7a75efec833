//! The groups of an aggregate in a checkpoint.

use datafusion::error::Result;

use super::AggregateState;
use super::grouping::Grouping;
use crate::checkpoint::{Loader, Saver};
use crate::engine::store::Store;

impl AggregateState {
    /// Gives the groups to a checkpoint: what is committed.
    pub(super) fn save_groups(&mut self, saver: &mut Saver) -> Result<()> {
        self.discard();
        let AggregateState {
            below: _,
            group_by: _,
            key_schema: _,
            shape: _,
            functions,
            arguments: _,
            grouping,
            store,
            bounds: _,
            ends,
            dead,
            prepared: _,
        } = self;
        saver.mark("an aggregate")?;
        store.save(saver)?;
        saver.value(&(ends, dead))?;
        if let Grouping::BySession(sessions) = grouping {
            sessions.save(saver)?;
        }
        let mut dedups = functions.iter_mut().filter_map(|function| function.dedup.as_mut());
        dedups.try_for_each(|dedup| dedup.save(saver))
    }

    /// Takes the groups of a checkpoint in place of those that are there before the first row.
    pub(super) fn load_groups(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("an aggregate")?;
        self.store = Store::load(loader)?;
        (self.ends, self.dead) = loader.value()?;
        if let Grouping::BySession(sessions) = &mut self.grouping {
            sessions.load(loader, |groups| self.store.read(groups, 0))?;
        }
        let mut dedups = self.functions.iter_mut().filter_map(|function| function.dedup.as_mut());
        dedups.try_for_each(|dedup| dedup.load(loader))?;
        // From now on they are numbered as they are found by their keys.
        self.renumber()
    }
}
