//! The DataFusion session in which continuous queries are planned, and what reading a source of its
//! plans needs to know.

use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::datasource::ViewTable;
use datafusion::error::Result;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::Optimizer;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::exact;
use super::types::MapTypes;
use super::windows::{self, Sessions};

/// Schema of the bare names: sources, views, and the reference tables that nothing else is named like.
pub const PUBLIC: &str = "public";
/// Schema that has every reference table, for `pg.name`.
pub const PG: &str = "pg";
const CATALOG: &str = "tally";

/// A session with both schemas and one string type, in which reference tables and streams agree.
pub fn base_config() -> SessionConfig {
    let mut config = SessionConfig::new().with_default_catalog_and_schema(CATALOG, PUBLIC);
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    // What `TIMESTAMP WITH TIME ZONE` means without a zone.
    options.execution.time_zone = Some("+00:00".into());
    config
}

/// The session for plans that run again and again on new batches: one partition, no rule that rewrites
/// a distinct aggregate into two, and no dynamic filters, whose state would outlive a run.
pub fn continuous() -> SessionContext {
    let mut config = base_config().with_target_partitions(1).with_batch_size(1 << 16);
    let options = config.options_mut();
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    let rules = Optimizer::new()
        .rules
        .into_iter()
        .filter(|rule| rule.name() != "single_distinct_aggregation_to_group_by")
        .collect();
    build(builder(config).with_optimizer_rules(rules))
}

/// A session for a query over all rows at once, such as a recount: what SQL means is the same as in
/// [`continuous`].
pub fn batch(config: SessionConfig) -> SessionContext {
    build(builder(config))
}

/// The same with an environment of its own, which limits what queries may use.
pub fn batch_within(config: SessionConfig, environment: Arc<RuntimeEnv>) -> SessionContext {
    build(builder(config).with_runtime_env(environment))
}

/// The plan of a query over all rows at once.
pub async fn plan(session: &SessionContext, query: &str) -> Result<LogicalPlan> {
    let state = session.state();
    let dialect = state.config_options().sql_parser.dialect;
    let mut statement = state.sql_to_statement(query, &dialect)?;
    windows::rewrite(&mut statement, Sessions::Batch)?;
    state.statement_to_plan(statement).await
}

/// Registers views that are only names for queries, which may read each other in any order. One that can't be planned
/// is left out.
pub async fn register_plain_views(session: &SessionContext, views: &[(String, String)]) -> Result<()> {
    let mut waiting: Vec<&(String, String)> = views.iter().collect();
    loop {
        let before = waiting.len();
        let mut still = Vec::new();
        for view in waiting {
            let (name, query) = view;
            match plan(session, query).await {
                Ok(plan) => {
                    let view = ViewTable::new(plan, Some(query.clone()));
                    session.register_table(TableReference::bare(name.as_str()), Arc::new(view))?;
                }
                // It may read another one.
                Err(_) => still.push(view),
            }
        }
        if still.is_empty() || still.len() == before {
            return Ok(());
        }
        waiting = still;
    }
}

fn builder(config: SessionConfig) -> SessionStateBuilder {
    SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_type_planner(Arc::new(MapTypes))
}

fn build(builder: SessionStateBuilder) -> SessionContext {
    let session = SessionContext::new_with_state(exact::build(builder));
    windows::register(&session);
    session
}
