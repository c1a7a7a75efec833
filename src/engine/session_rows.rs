//! Rows of streams in sessions: a row that comes can change the sessions of others, which are therefore kept until
//! their session is final. A micro-batch costs as much as the sessions that it touches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat_batches, take, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::execution::TaskContext;

use super::aggregate::Touched;
use super::below::Below;
use super::bound::{SessionKeys, SessionRows as SessionColumns};
use super::delta::Delta;
use super::node::Node;
use super::row_windows::RowWindows;
use super::session_groups::SessionGroups;
use super::stream_rows::visible;
use crate::batches::{self, empty};
use crate::checkpoint::{Loader, Saver};
use crate::guard;

/// The rows of a plan over a stream, each with the window of its session.
pub struct SessionRows {
    below: Below,
    schema: SchemaRef,
    windows: RowWindows,
    /// Columns that tell sessions apart: windows first.
    columns: SessionColumns,
    /// Their positions among the rows' columns.
    positions: Vec<usize>,
    sessions: SessionGroups,
    /// Rows of each session that is not final, with its window.
    rows: HashMap<u32, RecordBatch>,
    /// Their bytes.
    bytes: usize,
    /// Sessions by the time when they are final; some may have gone into others since.
    ends: BTreeMap<i64, Vec<u32>>,
    next: u32,
    prepared: Option<Prepared>,
}

struct Prepared {
    delta: Delta,
    gone: Vec<u32>,
    rows: Vec<(u32, RecordBatch)>,
}

impl SessionRows {
    /// The rows of `below`, which are in the sessions of `windows`, as rows of `schema` in the dataflow.
    pub fn new(below: Below, windows: RowWindows, schema: SchemaRef) -> Result<Self> {
        let Some(columns) = windows.sessions.clone() else { return internal_err!("rows without sessions") };
        let of_window = columns.start.iter().chain(&columns.end);
        let positions: Vec<usize> = of_window.chain(&columns.keys).copied().collect();
        let key_schema = Arc::new(Schema::project(&below.schema(), &positions)?);
        let starts = columns.start.len();
        let keys = SessionKeys {
            start: (0..starts).collect(),
            end: (starts..starts + columns.end.len()).collect(),
            gap: columns.gap,
            is_timed: columns.is_timed,
        };
        let sessions = SessionGroups::new(keys, &key_schema)?;
        let (rows, ends, prepared) = (HashMap::new(), BTreeMap::new(), None);
        Ok(SessionRows {
            below,
            schema,
            windows,
            columns,
            positions,
            sessions,
            rows,
            bytes: 0,
            ends,
            next: 0,
            prepared,
        })
    }

    /// Lets go of a session's rows, if it is still there.
    fn forget(&mut self, session: u32) -> bool {
        let rows = self.rows.remove(&session);
        self.bytes -= rows.as_ref().map_or(0, RecordBatch::get_array_memory_size);
        rows.is_some()
    }

    fn discard(&mut self) {
        self.sessions.discard();
        self.prepared = None;
    }

    fn prepare_rows(&mut self, rows: RecordBatch) -> Result<()> {
        let (rows, late) = self.windows.split_late(&rows)?;
        let keys: Vec<ArrayRef> = self.positions.iter().map(|i| Arc::clone(rows.column(*i))).collect();
        let touched = self.sessions.touch(&keys, &rows, self.next)?;
        let (before, after) = self.regroup(&touched, &keys, &visible(&rows, &self.schema)?)?;
        let schema = &self.schema;
        let delta = Delta {
            before: concat_batches(schema, &before)?,
            after: concat_batches(schema, after.iter().map(|(_, rows)| rows))?,
            late,
        };
        self.prepared = Some(Prepared { delta, gone: touched.old, rows: after });
        Ok(())
    }

    /// The rows of the touched sessions as they were, and of each session as they are.
    #[allow(clippy::type_complexity)]
    fn regroup(
        &self,
        touched: &Touched,
        keys: &[ArrayRef],
        rows: &RecordBatch,
    ) -> Result<(Vec<RecordBatch>, Vec<(u32, RecordBatch)>)> {
        let first_rows = UInt32Array::from(touched.first_rows.clone());
        let mut windows =
            keys.iter().map(|key| Ok(take(key, &first_rows, None)?)).collect::<Result<Vec<_>>>()?;
        let key_fields: Vec<_> =
            self.positions.iter().map(|i| self.below.schema().field(*i).clone()).collect();
        self.sessions.set_windows(&mut windows, &touched.groups, &Arc::new(Schema::new(key_fields)))?;
        let mut parts: Vec<Vec<RecordBatch>> = vec![Vec::new(); touched.groups.len()];
        let mut before = Vec::new();
        for (old, position) in touched.old.iter().zip(&touched.old_positions) {
            if let Some(rows) = self.rows.get(old) {
                before.push(rows.clone());
                parts[*position].push(rows.clone());
            }
        }
        let mut new: Vec<Vec<u32>> = vec![Vec::new(); touched.groups.len()];
        for (row, position) in touched.positions.iter().enumerate() {
            new[*position].push(row as u32);
        }
        let mut after = Vec::new();
        for (position, (mut parts, new)) in parts.into_iter().zip(new).enumerate() {
            parts.push(take_record_batch(rows, &UInt32Array::from(new))?);
            let all = concat_batches(&self.schema, &parts)?;
            let mut columns = all.columns().to_vec();
            let own = UInt32Array::from_value(position as u32, all.num_rows());
            let places = self.columns.start.iter().chain(&self.columns.end);
            for (window, place) in windows.iter().zip(places) {
                columns[*place] = take(window, &own, None)?;
            }
            let options = RecordBatchOptions::new().with_row_count(Some(all.num_rows()));
            let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
            after.push((touched.groups[position], rows));
        }
        Ok((before, after))
    }
}

#[async_trait]
impl Node for SessionRows {
    async fn prepare(&mut self, context: Arc<TaskContext>) -> Result<()> {
        self.discard();
        let rows = self.below.run(context).await?;
        guard::catch(|| self.prepare_rows(rows))
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(prepared) = self.prepared.take() else { return internal_err!("nothing was prepared") };
        self.sessions.commit();
        for session in &prepared.gone {
            self.forget(*session);
        }
        self.next += prepared.rows.len() as u32;
        if self.windows.are_timed() {
            for (session, _) in &prepared.rows {
                if let Some(end) = self.sessions.end(*session) {
                    self.ends.entry(end).or_default().push(*session);
                }
            }
        }
        self.bytes += prepared.rows.iter().map(|(_, rows)| rows.get_array_memory_size()).sum::<usize>();
        self.rows.extend(prepared.rows);
        Ok(prepared.delta)
    }

    fn evict(&mut self, watermark: i64) -> Result<Option<RecordBatch>> {
        let mut ended = Vec::new();
        while let Some(first) = self.ends.first_entry().filter(|first| *first.key() <= watermark) {
            ended.extend(first.remove());
        }
        ended.retain(|session| self.forget(*session));
        self.sessions.remove(&ended)?;
        Ok(None)
    }

    fn rows(&self) -> Result<RecordBatch> {
        Ok(empty(&self.schema))
    }

    fn save(&mut self, saver: &mut Saver) -> Result<()> {
        self.discard();
        let SessionRows {
            below: _,
            schema,
            windows: _,
            columns: _,
            positions: _,
            sessions,
            rows,
            bytes: _,
            ends,
            next,
            prepared: _,
        } = self;
        saver.mark("sessions")?;
        let mut held: Vec<_> = rows.iter().collect();
        held.sort_unstable_by_key(|(session, _)| **session);
        saver.value(&held.iter().map(|(session, rows)| (**session, rows.num_rows())).collect::<Vec<_>>())?;
        saver.rows(&concat_batches(schema, held.iter().map(|(_, rows)| *rows))?);
        sessions.save(saver)?;
        saver.value(&(ends, next))
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("sessions")?;
        let held: Vec<(u32, usize)> = loader.value()?;
        let all = loader.rows(&self.schema)?;
        let mut first = 0;
        for (session, count) in held {
            // Copied, so that what is let go of is free.
            let places = UInt32Array::from_iter_values(first..first + count as u32);
            let rows = batches::take(&all, &places)?;
            first += count as u32;
            self.bytes += rows.get_array_memory_size();
            self.rows.insert(session, rows);
        }
        let (rows, positions, schema) = (&self.rows, &self.positions, &self.schema);
        self.sessions.load(loader, |sessions| {
            let first = |session: &u32| rows.get(session).map(|rows| rows.slice(0, 1));
            let firsts: Vec<RecordBatch> = sessions.iter().filter_map(first).collect();
            let firsts = concat_batches(schema, &firsts)?;
            Ok(positions.iter().map(|column| Arc::clone(firsts.column(*column))).collect())
        })?;
        (self.ends, self.next) = loader.value()?;
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.below.reset()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    fn keeps_lookups(&self) -> bool {
        self.below.keeps_lookups()
    }
}
