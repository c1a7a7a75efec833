//! The state of an engine in a checkpoint. A state is loaded into an engine of the same plans: its parts come in their
//! order.

use datafusion::error::Result;

use super::work::View;
use super::{Engine, ViewChange};
use crate::checkpoint::{Loader, Saver};
use crate::guard;

impl Engine {
    /// Why the state can't be saved: a part misses rows, which only a count from the beginning finds again.
    pub fn unsaved(&self) -> Option<String> {
        let node = self.nodes.iter().find_map(|node| node.incomplete());
        let part = || self.graph.broken().map(String::from);
        let over = || {
            let view = self.views.iter().find(|view| view.is_over_limit())?;
            view.failure().map(|failure| failure.reason)
        };
        node.or_else(part).or_else(over)
    }

    /// Gives the state to a checkpoint: between two micro-batches, and only if nothing is [`Engine::unsaved`].
    pub fn save(&mut self, saver: &mut Saver) -> Result<()> {
        let Engine {
            session: _,
            runner: _,
            inputs: _,
            streams: _,
            watermarks,
            references: _,
            needed: _,
            read: _,
            nodes,
            graph,
            shown_tables: _,
            views,
            lookups: _,
        } = self;
        watermarks.values().try_for_each(|watermark| watermark.save(saver))?;
        nodes.iter_mut().try_for_each(|node| node.save(saver))?;
        graph.save(saver)?;
        views.iter().try_for_each(|view| view.save(saver))
    }

    /// Takes the state of a checkpoint in place of [`Engine::start`]; what the views show then. The reference tables must
    /// have the rows that they had.
    ///
    /// # Errors
    /// It is the state of other plans. The engine is of no use then.
    pub fn load(&mut self, loader: &mut Loader) -> Result<Vec<ViewChange>> {
        guard::catch(|| {
            self.watermarks.values_mut().try_for_each(|watermark| watermark.load(loader))?;
            self.nodes.iter_mut().try_for_each(|node| node.load(loader))?;
            self.graph.load(loader)?;
            for (name, table) in &self.references {
                self.shown_tables.insert(name.clone(), self.inputs.reference(table).to_vec());
            }
            let (nodes, graph) = (&self.nodes, &self.graph);
            let load = |view: &mut View| view.load(loader, nodes, graph);
            self.views.iter_mut().map(load).collect()
        })
    }
}
