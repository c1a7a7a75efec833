//! The graph of a dataflow: its sources, and the operators above them, each after its inputs. A change of a source
//! goes up once through what reads it. A part that can't take its change keeps it and tries again with the next:
//! what a failing row's leaving undoes is then undone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;

use super::cut::Draft;
use super::finality::Finality;
use super::segment::Segment;
use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};
use crate::engine::node::plain;
use crate::engine::plan::Identity;
use crate::engine::upkeep::Upkeep;
use crate::guard;

/// A part of the graph; its position is its name.
pub struct Vertex {
    /// What it computes: equal parts of several views are one.
    pub identity: Identity,
    /// What it is.
    pub work: Work,
    /// Its inputs' positions.
    pub inputs: Vec<usize>,
    /// Columns of its rows (`c0, c1, …`).
    pub schema: SchemaRef,
    /// Whether its rows only come.
    pub append_only: bool,
    /// Of each column, when rows with a value of it change no more, where that is known.
    pub times: Vec<Option<Finality>>,
    /// The streams whose watermarks tell when what it holds of each input is final; none: never.
    clocks: Vec<BTreeSet<String>>,
    /// What it keeps, if it keeps anything.
    pub upkeep: Option<Upkeep>,
    /// Changes of its inputs that it has not taken yet.
    pending: Vec<Vec<Delta>>,
    /// Why it has not.
    failed: Option<String>,
    /// Whether it can never go on: its state has missed a change.
    broken: bool,
    /// Number of rows that were pending when it failed: it tries again once there are notably more.
    tried: usize,
    /// Why rows were left out of the last change.
    left_out: Vec<String>,
    /// How long it has worked.
    busy: Duration,
}

/// A part that has failed tries again once its pending rows have grown by this share, or are few.
const RETRY_SHARE: usize = 4;
const RETRY_ROWS_MAX: usize = 1024;

/// What a part of the graph is.
pub enum Work {
    /// Rows that come from outside, as they change.
    Source(Source),
    /// Rows that are there from the start and never change.
    Constant(Delta),
    /// A plan that runs over what changed, and keeps nothing.
    Segment(Segment),
    /// What keeps state.
    Operator(Box<dyn Operator>),
}

/// Where a source's rows come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The rows of a stateful node, by its position.
    Node(usize),
    /// Those of them that have become final.
    Final(usize),
    /// Some columns of a reference table.
    Table(String, Vec<String>),
}

impl Vertex {
    /// A part that has taken nothing.
    pub fn new(draft: Draft, work: Work) -> Vertex {
        let Draft { identity, inputs, schema, append_only, times, clocks, upkeep, .. } = draft;
        let pending = inputs.iter().map(|_| Vec::new()).collect();
        Vertex {
            identity,
            work,
            inputs,
            schema,
            append_only,
            times,
            clocks,
            upkeep,
            pending,
            failed: None,
            broken: false,
            tried: 0,
            left_out: Vec::new(),
            busy: Duration::ZERO,
        }
    }

    /// Whether its rows come from outside.
    pub fn source(&self) -> Option<&Source> {
        match &self.work {
            Work::Source(source) => Some(source),
            _ => None,
        }
    }

    /// Whether it has something to take, and it is worth trying.
    fn is_due(&self, again: bool) -> bool {
        let pending: usize = self.pending.iter().flatten().map(|delta| delta.rows.num_rows()).sum();
        let is_worth = self.failed.is_none()
            || again
            || pending <= RETRY_ROWS_MAX
            || pending - self.tried.min(pending) > self.tried / RETRY_SHARE;
        pending > 0 && !self.broken && is_worth
    }

    /// Notes that it could not take what is pending.
    fn fail(&mut self, reason: String, schemas: &[SchemaRef]) {
        self.failed = Some(reason);
        for (pending, schema) in self.pending.iter_mut().zip(schemas) {
            // What has come and gone again is no longer pending.
            let net = Delta::concat(schema, pending).and_then(Delta::consolidate);
            if let Ok(net) = net {
                *pending = if net.is_empty() { Vec::new() } else { vec![net] };
            }
        }
        self.tried = self.pending.iter().flatten().map(|delta| delta.rows.num_rows()).sum();
    }

    /// Takes what is pending; what that changes in its rows.
    async fn advance(&mut self, schemas: &[SchemaRef], run: &Run<'_>) -> Result<Option<Delta>> {
        let mut inputs = Vec::with_capacity(schemas.len());
        for (pending, schema) in self.pending.iter().zip(schemas) {
            inputs.push(match &pending[..] {
                [] => Delta::empty(schema),
                [one] => one.clone(),
                several => Delta::concat(schema, several)?.consolidate()?,
            });
        }
        let changed = match &mut self.work {
            Work::Source(_) | Work::Constant(_) => None,
            Work::Segment(segment) => {
                let (changed, left_out) = segment.run(&inputs, run).await?;
                self.left_out = left_out;
                Some(changed)
            }
            Work::Operator(operator) => {
                guard::catch_async(operator.prepare(&inputs, run)).await?;
                let changed = operator.commit();
                self.broken = changed.is_err();
                Some(changed?)
            }
        };
        self.pending.iter_mut().for_each(Vec::clear);
        Ok(changed)
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Vertex {
            identity: _,
            work,
            inputs: _,
            schema: _,
            append_only: _,
            times: _,
            clocks: _,
            upkeep: _,
            pending,
            failed,
            broken: _,
            tried,
            left_out: _,
            busy: _,
        } = self;
        saver.value(&(failed, tried))?;
        for deltas in pending {
            saver.value(&deltas.len())?;
            deltas.iter().try_for_each(|delta| delta.save(saver))?;
        }
        match work {
            Work::Operator(operator) => operator.save(saver),
            Work::Source(_) | Work::Constant(_) | Work::Segment(_) => saver.mark("no state"),
        }
    }

    /// `schemas` are those of its inputs.
    fn load(&mut self, loader: &mut Loader, schemas: &[SchemaRef]) -> Result<()> {
        (self.failed, self.tried) = loader.value()?;
        for (pending, schema) in self.pending.iter_mut().zip(schemas) {
            let deltas: usize = loader.value()?;
            *pending = (0..deltas).map(|_| Delta::load(loader, schema)).collect::<Result<_>>()?;
        }
        match &mut self.work {
            Work::Operator(operator) => operator.load(loader),
            Work::Source(_) | Work::Constant(_) | Work::Segment(_) => loader.mark("no state"),
        }
    }

    fn bytes(&self) -> usize {
        let pending = self.pending.iter().flatten().map(|delta| delta.rows.get_array_memory_size());
        let held = match &self.work {
            Work::Operator(operator) => operator.bytes(),
            Work::Constant(rows) => rows.rows.get_array_memory_size(),
            Work::Source(_) | Work::Segment(_) => 0,
        };
        held + pending.sum::<usize>()
    }
}

/// What changed, by position.
pub type Changes = BTreeMap<usize, Delta>;

/// All dataflows of an engine.
#[derive(Default)]
pub struct Graph {
    vertices: Vec<Vertex>,
}

impl Graph {
    /// The part that computes this already.
    pub fn find(&self, identity: &Identity) -> Option<usize> {
        self.vertices.iter().position(|vertex| vertex.identity == *identity)
    }

    /// Adds a part above those that are there; its position.
    pub fn push(&mut self, vertex: Vertex) -> usize {
        self.vertices.push(vertex);
        self.vertices.len() - 1
    }

    /// All parts.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// A part and everything below it.
    pub fn below(&self, vertex: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([vertex]);
        for position in (0..=vertex).rev() {
            if found.contains(&position) {
                found.extend(&self.vertices[position].inputs);
            }
        }
        found
    }

    /// The parts whose rows are those of a source.
    pub fn fed_by<'a>(&'a self, source: &'a Source) -> impl Iterator<Item = usize> + 'a {
        let all = self.vertices.iter().enumerate();
        all.filter(move |(_, vertex)| vertex.source() == Some(source)).map(|(position, _)| position)
    }

    /// What has changed in a reference table, for each part whose rows are some columns of it.
    pub fn table_changes(&self, table: &str, before: &[RecordBatch], now: &[RecordBatch]) -> Result<Changes> {
        let mut changes = Changes::new();
        for (position, vertex) in self.vertices.iter().enumerate() {
            let Some(Source::Table(name, columns)) = vertex.source() else { continue };
            if name != table {
                continue;
            }
            let delta = |batches: &[RecordBatch], weight: i64| -> Result<Delta> {
                let batches = batches.iter().map(|batch| columns_of(batch, columns, &vertex.schema));
                let rows = concat_batches(&vertex.schema, &batches.collect::<Result<Vec<_>>>()?)?;
                Ok(Delta { weights: Int64Array::from_value(weight, rows.num_rows()), rows })
            };
            let both = [delta(before, -1)?, delta(now, 1)?];
            changes.insert(position, Delta::concat(&vertex.schema, &both)?.consolidate()?);
        }
        Ok(changes)
    }

    /// The rows of every part before anything has come, and what `changes`, the first of the sources, make of them.
    pub async fn start(&mut self, changes: Changes, run: &Run<'_>) -> Changes {
        let mut started = changes;
        for (position, vertex) in self.vertices.iter_mut().enumerate() {
            let rows = match &mut vertex.work {
                Work::Constant(rows) => Ok(rows.clone()),
                Work::Operator(operator) => guard::catch_async(operator.start(run)).await,
                Work::Source(_) | Work::Segment(_) => continue,
            };
            match rows {
                Ok(rows) => {
                    started.insert(position, rows);
                }
                Err(error) => {
                    vertex.failed = Some(plain(&error));
                    vertex.broken = true;
                }
            }
        }
        self.step(started, false, run).await
    }

    /// Takes changes of parts up through the graph; what changed in each part, these included. `again`: parts that
    /// have failed are tried in any case.
    pub async fn step(&mut self, mut changes: Changes, again: bool, run: &Run<'_>) -> Changes {
        for position in 0..self.vertices.len() {
            // Its inputs are all below it.
            let (below, vertex) = self.vertices.split_at_mut(position);
            let vertex = &mut vertex[0];
            if vertex.broken {
                continue;
            }
            for (pending, from) in vertex.pending.iter_mut().zip(&vertex.inputs) {
                pending.extend(changes.get(from).filter(|delta| !delta.is_empty()).cloned());
            }
            vertex.left_out.clear();
            if !vertex.is_due(again) {
                continue;
            }
            let schemas: Vec<SchemaRef> =
                vertex.inputs.iter().map(|input| Arc::clone(&below[*input].schema)).collect();
            let begun = Instant::now();
            let advanced = vertex.advance(&schemas, run).await;
            vertex.busy += begun.elapsed();
            match advanced {
                Ok(changed) => {
                    vertex.failed = None;
                    let Some(changed) = changed.filter(|changed| !changed.is_empty()) else { continue };
                    let all = match changes.remove(&position) {
                        // What it had at the start comes first.
                        Some(started) => Delta::concat(&vertex.schema, &[started, changed.clone()]),
                        None => Ok(changed.clone()),
                    };
                    changes.insert(position, all.unwrap_or(changed));
                }
                Err(error) if vertex.broken => {
                    vertex.failed = Some(format!("{}; it goes on after a restart", plain(&error)));
                }
                Err(error) => vertex.fail(plain(&error), &schemas),
            }
        }
        changes
    }

    /// Gives what parts hold to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Graph { vertices } = self;
        vertices.iter().try_for_each(|vertex| vertex.save(saver))
    }

    /// Takes what parts hold from a checkpoint, in place of [`Graph::start`].
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        for position in 0..self.vertices.len() {
            let (below, vertex) = self.vertices.split_at_mut(position);
            let schemas: Vec<SchemaRef> =
                vertex[0].inputs.iter().map(|input| Arc::clone(&below[*input].schema)).collect();
            vertex[0].load(loader, &schemas)?;
        }
        Ok(())
    }

    /// Why a part can't be saved: it has missed a change, which only a count from the beginning mends.
    pub fn broken(&self) -> Option<&str> {
        let broken = self.vertices.iter().find(|vertex| vertex.broken);
        broken.map(|vertex| vertex.failed.as_deref().unwrap_or("a part has stopped"))
    }

    /// Lets go of everything that parts hold: the views over them have stopped for good.
    pub fn shut(&mut self, parts: &BTreeSet<usize>) {
        for position in parts {
            let vertex = &mut self.vertices[*position];
            if let Work::Operator(_) = vertex.work {
                vertex.work = Work::Constant(Delta::empty(&vertex.schema));
                vertex.broken = true;
                vertex.pending.iter_mut().for_each(Vec::clear);
            }
        }
    }

    /// Frees what is final, by what `final_until` says of each stream.
    pub fn free(&mut self, final_until: &dyn Fn(&str) -> Option<i64>) -> Result<()> {
        for vertex in &mut self.vertices {
            let Work::Operator(operator) = &mut vertex.work else { continue };
            // What is pending may still meet what is held.
            if vertex.clocks.iter().all(BTreeSet::is_empty) || vertex.pending.iter().any(|p| !p.is_empty()) {
                continue;
            }
            let until = |clock: &BTreeSet<String>| {
                let times = clock.iter().map(|stream| final_until(stream).unwrap_or(i64::MIN));
                times.min().unwrap_or(i64::MIN)
            };
            operator.advance(&vertex.clocks.iter().map(until).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Why rows were left out of parts at the last step.
    pub fn left_out<'a>(&'a self, parts: &'a BTreeSet<usize>) -> impl Iterator<Item = &'a String> {
        parts.iter().flat_map(|position| &self.vertices[*position].left_out)
    }

    /// Why the rows of a part can't be shown as they are: it, or something below it, waits with a change.
    pub fn failure(&self, below: &BTreeSet<usize>) -> Option<String> {
        below.iter().find_map(|position| self.vertices[*position].failed.clone())
    }

    /// Bytes that parts hold.
    pub fn bytes(&self, parts: impl IntoIterator<Item = usize>) -> usize {
        parts.into_iter().map(|position| self.vertices[position].bytes()).sum()
    }

    /// How long parts have worked.
    pub fn busy(&self, parts: impl IntoIterator<Item = usize>) -> Duration {
        parts.into_iter().map(|position| self.vertices[position].busy).sum()
    }

    /// Rows that parts hold.
    pub fn held_rows(&self, parts: impl IntoIterator<Item = usize>) -> usize {
        let held = |position: usize| match &self.vertices[position].work {
            Work::Operator(operator) => operator.held_rows(),
            _ => 0,
        };
        parts.into_iter().map(held).sum()
    }

    /// Number of parts.
    pub fn len(&self) -> usize {
        self.vertices.len()
    }

    /// Some parts, for people.
    pub fn describe(&self, parts: &BTreeSet<usize>) -> String {
        let line = |position: &usize| {
            let vertex = &self.vertices[*position];
            let inputs: Vec<String> = vertex.inputs.iter().map(|input| format!("#{input}")).collect();
            let what = match &vertex.work {
                Work::Source(Source::Node(_)) => "rows of a node".to_string(),
                Work::Source(Source::Final(_)) => "final rows of a node".into(),
                Work::Source(Source::Table(table, columns)) => format!("{table} ({})", columns.join(", ")),
                Work::Constant(rows) => format!("{} rows that never change", rows.rows.num_rows()),
                Work::Segment(_) => "expressions".into(),
                Work::Operator(_) => match &vertex.upkeep {
                    Some(upkeep) => upkeep.to_string(),
                    None => "one row".into(),
                },
            };
            let from = if inputs.is_empty() { String::new() } else { format!(" of {}", inputs.join(", ")) };
            format!("#{position}: {what}{from}")
        };
        parts.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Columns of a batch by name, under the names of their positions.
fn columns_of(batch: &RecordBatch, columns: &[String], schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = columns.iter().map(|name| Ok(Arc::clone(batch.column(batch.schema().index_of(name)?))));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect::<Result<_>>()?, &options)?)
}
