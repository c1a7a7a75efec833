//! Which session windows of a view are merged from each row's own, in groups or in rows. The others are window functions:
//! they know no lateness, so a window that can be merged is, whatever stands beside it.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;

use super::takes_back;
use super::window_cut::cut_windows;
use crate::catalog::{Catalog, ViewDef};
use crate::engine::Engine;
use crate::engine::bound::makes_sessions;
use crate::engine::input::{InputTable, Kind};
use crate::engine::split;
use crate::engine::windows::{self, Sessions};
use crate::error::Result;

impl Engine {
    /// What each session window of a view's query becomes, in their order. Each is judged with all others as window
    /// functions.
    pub(super) async fn session_windows(&self, catalog: &Catalog, def: &ViewDef) -> Result<Vec<Sessions>> {
        let count = windows::rewrite(&mut def.query.clone(), Sessions::Batch)?;
        let mut chosen = Vec::with_capacity(count);
        for place in 0..count {
            let mut query = def.query.clone();
            let of = |n: usize| if n == place { Sessions::Incremental } else { Sessions::Batch };
            windows::rewrite_each(&mut query, &of)?;
            let merges = self.merges_sessions(catalog, def, query).await?;
            chosen.push(if merges { Sessions::Incremental } else { Sessions::Batch });
        }
        Ok(chosen)
    }

    /// Whether the sessions of a query are kept up to date by merging them. Those of a plain view are judged by its
    /// rows only: how they are asked for says who reads it.
    async fn merges_sessions(&self, catalog: &Catalog, def: &ViewDef, query: Statement) -> Result<bool> {
        let state = self.session.state();
        let plan = state.statement_to_plan(query).await?;
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
        let takes_back = |stream: &str| takes_back(catalog, stream);
        if are_taken_back(&plan, &takes_back)? {
            return Ok(false);
        }
        if !def.materialized {
            return Ok(true);
        }
        let mut state_of =
            |node: &LogicalPlan| Ok(InputTable::new("rows", Kind::State, split::positional_schema(node)));
        // What groups and rows can't do is an error there, and here the answer.
        let cut = cut_windows(plan, &takes_back, &state, &mut state_of);
        Ok(cut.is_ok_and(|cut| split::refuse_leftover_sessions(&cut.plan).is_ok()))
    }
}

/// Whether a row of a session that is to be merged can go again.
fn are_taken_back(plan: &LogicalPlan, takes_back: &dyn Fn(&str) -> bool) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Projection(projection) = node
            && makes_sessions(projection)
        {
            found |= split::stream_columns(&projection.input)?.iter().any(|(stream, _)| takes_back(stream));
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}
