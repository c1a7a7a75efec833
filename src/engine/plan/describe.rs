//! How a view is kept up to date, for people.

use crate::engine::Engine;
use crate::engine::upkeep::{TELL_ONCE, Upkeep, ViewUpkeep};
use crate::engine::work::Work;

impl Engine {
    /// What keeping a view up to date takes.
    pub(super) fn upkeep(&self, nodes: &[usize], work: &Work) -> ViewUpkeep {
        let mut parts: Vec<Upkeep> =
            nodes.iter().filter_map(|node| self.nodes[*node].upkeep.clone()).collect();
        if let Work::Flow { view, .. } = work {
            let vertices = self.graph.vertices();
            parts.extend(view.parts.iter().filter_map(|part| vertices[*part].upkeep.clone()));
            if vertices[view.root].append_only && !view.forgets() {
                let (keeps, costs) = ("the view's rows".into(), "its rows".into());
                parts.push(Upkeep { keeps, costs, until: None, advice: Some(TELL_ONCE) });
            }
        }
        ViewUpkeep { parts }
    }

    /// How a view is kept up to date, for people.
    pub(super) fn describe(&self, nodes: &[usize], work: &Work, finishing: String) -> String {
        let names = nodes.iter().map(|node| self.nodes[*node].table.name()).collect::<Vec<_>>().join(", ");
        let mut text = match work {
            Work::Flow { view, .. } => {
                format!("dataflow:\n{}{finishing}", indent(&self.graph.describe(&view.parts)) + "\n")
            }
            _ => format!("finishing: incremental, over the touched rows of {names}\n{finishing}"),
        };
        for node in nodes {
            let node = &self.nodes[*node];
            let keeps = match &node.upkeep {
                Some(upkeep) => upkeep.to_string(),
                None => "the rows as they come; nothing is kept of them here".into(),
            };
            text += &format!("{}: {keeps}\n{}\n", node.table.name(), indent(&node.below));
        }
        text
    }
}

/// A text with its lines moved to the right.
pub(super) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
