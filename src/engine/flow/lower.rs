//! Turns a planned part of a dataflow into one that runs.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::NullEquality;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, collect};

use super::aggregate::{Aggregate, AggregateSpec};
use super::by_key::{ByKey, ByKeySpec, KeyedInput};
use super::cut::{Draft, Plan};
use super::graph::{Graph, Source, Vertex, Work};
use super::held_join::HeldJoin;
use super::join::{Join, JoinSpec, Side};
use super::segment::Segment;
use super::single::Single;
use super::top_k::TopK;
use super::{Delta, Operator};
use crate::batches::renamed;
use crate::engine::input::{Inputs, Runner};
use crate::guard;

/// Adds planned parts to the graph, in their order.
pub async fn add(graph: &mut Graph, drafts: Vec<Draft>, state: &SessionState, runner: &Runner) -> Result<()> {
    let mut vertices = Vec::new();
    for draft in drafts {
        let known = |part: usize| match part.checked_sub(graph.len()) {
            Some(new) => {
                let vertex: &Vertex = &vertices[new];
                (Arc::clone(&vertex.schema), vertex.append_only)
            }
            None => (Arc::clone(&graph.vertices()[part].schema), graph.vertices()[part].append_only),
        };
        let inputs: Vec<(SchemaRef, bool)> = draft.inputs.iter().map(|input| known(*input)).collect();
        let is_final = |input: &usize| match input.checked_sub(graph.len()) {
            Some(new) => matches!(vertices[new].source(), Some(Source::Final(_))),
            None => matches!(graph.vertices()[*input].source(), Some(Source::Final(_))),
        };
        let leaves_out = !draft.inputs.is_empty() && draft.inputs.iter().all(is_final);
        let work = work(&draft, &inputs, leaves_out, state, runner).await?;
        vertices.push(Vertex::new(draft, work));
    }
    for vertex in vertices {
        graph.push(vertex);
    }
    Ok(())
}

async fn work(
    draft: &Draft,
    inputs: &[(SchemaRef, bool)],
    leaves_out: bool,
    state: &SessionState,
    runner: &Runner,
) -> Result<Work> {
    let schema = Arc::clone(&draft.schema);
    let operator: Box<dyn Operator> =
        match draft.plan.clone() {
            Plan::Source(source) => return Ok(Work::Source(source)),
            Plan::Constant(plan) => {
                let plan = physical(&plan, state).await?;
                let batches =
                    guard::catch_async(collect(Arc::clone(&plan), runner.context(Inputs::default()))).await?;
                let rows = arrow::compute::concat_batches(&plan.schema(), &batches)?;
                return Ok(Work::Constant(Delta::of_new(renamed(&rows, &schema)?)));
            }
            Plan::Segment(plan, tables) => {
                let plan = physical(&plan, state).await?;
                return Ok(Work::Segment(Segment::new(plan, tables, schema, draft.append_only, leaves_out)));
            }
            Plan::Single => Box::new(Single::new(schema)?),
            Plan::Join { join, keys, times, hold_ns } => {
                let sides = inputs.iter().zip(keys).zip(times).map(|(((schema, append_only), key), time)| {
                    Side { schema: Arc::clone(schema), key, append_only: *append_only, time }
                });
                let [left, right] =
                    sides.collect::<Vec<_>>().try_into().expect("invariant: a join has two inputs");
                let filter = match join.filter {
                    Some(filter) => {
                        let both = join.left.schema().join(join.right.schema())?;
                        Some(state.create_physical_expr(filter, &both)?)
                    }
                    None => None,
                };
                let spec = JoinSpec {
                    kind: join.join_type,
                    left,
                    right,
                    filter,
                    nulls_equal: join.null_equality == NullEquality::NullEqualsNull,
                    output: (0..schema.fields().len()).collect(),
                };
                match hold_ns {
                    Some(hold_ns) => Box::new(HeldJoin::new(spec, draft.clocks[0].clone(), hold_ns)?),
                    None => Box::new(Join::new(spec)?),
                }
            }
            Plan::Aggregate { keys, grouping_sets, functions, bound } => {
                Box::new(Aggregate::new(AggregateSpec {
                    schema,
                    input: Arc::clone(&inputs[0].0),
                    keys: (0..keys).collect(),
                    grouping_sets,
                    functions,
                    bound,
                })?)
            }
            Plan::TopK(spec) => Box::new(TopK::new(spec)?),
            Plan::ByKey { plan, tables, keys, bounds } => {
                let name = plan.display().to_string();
                let plan = physical(&plan, state).await?;
                let inputs = tables.into_iter().zip(inputs).zip(keys).zip(bounds);
                let inputs = inputs.map(|(((table, (_, append_only)), key), bound)| KeyedInput {
                    table,
                    key,
                    append_only: *append_only,
                    bound,
                });
                Box::new(ByKey::new(ByKeySpec { name, plan, schema, inputs: inputs.collect() })?)
            }
        };
    Ok(Work::Operator(operator))
}

async fn physical(plan: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
    state.query_planner().create_physical_plan(plan, state).await
}
