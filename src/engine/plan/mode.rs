//! A view's output mode, and why it can't have one.

use datafusion::logical_expr::LogicalPlan;

use crate::catalog::{Mode, ViewDef};
use crate::engine::Engine;
use crate::engine::split::{self, Maintenance};
use crate::error::Result;

impl Engine {
    /// The view's output mode, or why it can't have the one it asks for.
    pub(super) fn mode(&self, def: &ViewDef, maintenance: Maintenance, key: &[String]) -> Result<Mode> {
        let refuse = |reason: &str| Err(def.place.error(reason));
        match (def.mode, maintenance) {
            (None | Some(Mode::Append), Maintenance::Append) => Ok(Mode::Append),
            (Some(_), Maintenance::Append) => {
                refuse("a view without state has each row once: its mode is append")
            }
            (Some(Mode::Complete), _) if key.is_empty() => refuse(
                "mode complete writes all rows each time, so it needs a key to tell a reader which row is which",
            ),
            (mode, _) => Ok(mode.unwrap_or(Mode::Update)),
        }
    }

    /// In mode append a row is written once: when all that it depends on is final.
    pub(super) fn check_append(
        &self,
        def: &ViewDef,
        mode: Mode,
        nodes: &[usize],
        finishing: &LogicalPlan,
    ) -> Result<()> {
        if mode != Mode::Append {
            return Ok(());
        }
        // A row of a stream is final as it comes.
        let is_final = |node: &usize| {
            let node = &self.nodes[*node];
            node.append_only || node.node.key_columns().is_some() && node.node.bounds_time()
        };
        if nodes.is_empty() || !nodes.iter().all(is_final) {
            return Err(def.place.error(
                "mode append writes a row when it is final, but nothing here ever is: group by a time window of a \
                 source that has 'event_time' and 'watermark'",
            ));
        }
        if !split::is_monotonic(finishing)? {
            return Err(def.place.error(
                "mode append can't take back what it has written, and what stands above the aggregates or joins here \
                 could change later; use mode update, or join reference tables below the aggregate",
            ));
        }
        Ok(())
    }
}
