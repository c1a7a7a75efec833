//! The audit: executes the log once more and compares what comes out with the topics, record by record; and each view,
//! where that is defined, with its query run by plain DataFusion over all rows that were counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::view::ViewTable;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use tokio::task::block_in_place;

use super::held::{Held, differing};
use super::{AdHocTables, Pipeline};
use crate::catalog::{Catalog, Mode};
use crate::engine::session;
use crate::engine::windows::{Sessions, rewrite};
use crate::engine::{ViewChange, in_dependency_order};
use crate::error::{Error, Result};
use crate::sink;

/// What an audit has compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What, for a person.
    pub what: String,
    /// How many rows or messages were compared.
    pub compared: u64,
    /// How many of them differ.
    pub differences: u64,
    /// The first of these.
    pub first: Option<String>,
}

impl Checked {
    fn new(what: String, compared: u64, differing: impl IntoIterator<Item = String>) -> Checked {
        let mut differing = differing.into_iter();
        let first = differing.next();
        Checked { what, compared, differences: u64::from(first.is_some()) + differing.count() as u64, first }
    }
}

impl Pipeline {
    /// Executes the log once more, and compares. Only of a pipeline that was opened for it.
    pub async fn audit(mut self, catalog: &Catalog) -> Result<Vec<Checked>> {
        let Some(reader) = self.log.take_replay() else {
            return Err(Error::Log("nothing was counted yet: there is nothing to compare".into()));
        };
        let epoch = self.log.summary().epoch;
        let names = self.once_only(|_| true);
        let mut held = block_in_place(|| Held::read(&*self.topics, &names, Some(epoch)))?;
        self.lacking = Some(Vec::new());
        self.execute_log(reader, None, &mut held).await?;
        let mut checked = self.sources();
        let said: Vec<String> = names.into_iter().collect();
        if !said.is_empty() {
            let lacking = self.lacking.take().unwrap_or_default();
            let lacks = lacking.iter().map(|record| {
                let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                format!("{} lacks the record of {key}", record.topic)
            });
            let surplus = held.rest();
            let surplus = (0..surplus).map(|_| "a record that nothing says".to_string());
            let all = lacks.chain(surplus).collect::<Vec<_>>();
            checked.push(Checked::new(format!("records of {}", said.join(", ")), held.total(), all));
        }
        let all = self.executor.engine().all_rows()?;
        let writers = |topic: &Option<String>| all.iter().filter(|view| view.info.topic == *topic).count();
        let compared = |view: &&ViewChange| !view.stateless && view.info.topic.is_some() && self.written;
        for view in all.iter().filter(compared) {
            let is_shared = writers(&view.info.topic) > 1;
            let records = block_in_place(|| differing(&*self.topics, view, epoch, is_shared, Some(epoch)))?;
            let keys = records.iter().map(|record| {
                let shown = record.key.as_deref().or(record.value.as_deref()).unwrap_or_default();
                format!("key {}", String::from_utf8_lossy(shown))
            });
            let what =
                format!("view {}, topic {}", view.info.name, view.info.topic.as_deref().unwrap_or_default());
            checked.push(Checked::new(what, view.changelog.ops.len() as u64, keys));
        }
        checked.extend(self.batch_recount(catalog, &all).await?);
        Ok(checked)
    }

    /// received = counted + rejected, of each source.
    fn sources(&self) -> Vec<Checked> {
        let of = |status: crate::snapshot::SourceStatus| {
            let by_reason: u64 = status.rejected_by_reason.values().sum();
            let wrong = status.received != status.counted + by_reason;
            let reasons: Vec<String> =
                status.rejected_by_reason.iter().map(|(rule, times)| format!("{times} {rule}")).collect();
            let what = format!(
                "source {}: {} received = {} counted + {by_reason} rejected{}",
                status.name,
                status.received,
                status.counted,
                if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) }
            );
            Checked::new(what, status.received, wrong.then(|| "they are not the same".to_string()))
        };
        self.publisher.progress.iter().map(|progress| of(progress.status(None, None))).collect()
    }

    /// Views run by plain DataFusion over all rows, where rows meet reference tables that have never changed, and none
    /// came late or was left out.
    async fn batch_recount(&self, catalog: &Catalog, all: &[ViewChange]) -> Result<Vec<Checked>> {
        let session = self.recount_session(catalog).await?;
        let mut checked = Vec::new();
        for view in all {
            let Some(def) = catalog.views.get(&view.info.name) else { continue };
            let engine = self.executor.engine();
            let changed = engine.view_tables(&def.name).any(|table| self.changed_tables.contains(table));
            let failed = engine.failures().iter().any(|failure| failure.view == def.name);
            let is_append = view.info.mode == Mode::Append.as_str();
            if changed
                || failed
                || is_append
                || view.stateless
                || def.hold.is_some()
                || self.left_out.contains(&def.name)
            {
                continue;
            }
            let rows = session.table(def.name.as_str()).await?.collect().await?;
            let (told, batch) = (view.rows.batch()?, rows);
            let differing = different_rows(&told, &batch)?;
            checked.push(Checked::new(
                format!("view {}, recounted by plain DataFusion", def.name),
                told.num_rows() as u64,
                differing,
            ));
        }
        Ok(checked)
    }

    async fn recount_session(&self, catalog: &Catalog) -> Result<SessionContext> {
        let session = session::batch(session::base_config());
        for table in self.executor.references().tables() {
            let batches = table.batches();
            let schema = table.wanted();
            let columns = schema.columns.iter().map(|name| schema.def.schema.index_of(name));
            let schema = Arc::new(schema.def.schema.project(&columns.collect::<Result<Vec<_>, _>>()?)?);
            let batches =
                batches.into_iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().into()));
            let rows = MemTable::try_new(Arc::clone(&schema), vec![batches.collect::<Result<_, _>>()?])?;
            session.register_table(table.name(), Arc::new(rows))?;
        }
        let AdHocTables { restricted, .. } = &self.tables;
        for (name, table) in restricted.iter().filter(|(name, _)| catalog.sources.contains_key(name)) {
            session.deregister_table(name.as_str())?;
            session.register_table(name.as_str(), Arc::clone(table))?;
        }
        for (name, _) in in_dependency_order(catalog, &session)? {
            let mut query = catalog.views[&name].query.clone();
            rewrite(&mut query, Sessions::Batch)?;
            let plan = session.state().statement_to_plan(query).await?;
            session.register_table(name, Arc::new(ViewTable::new(plan, None)))?;
        }
        Ok(session)
    }
}

/// Rows that one side has more often than the other, as JSON.
fn different_rows(told: &RecordBatch, batch: &[RecordBatch]) -> Result<Vec<String>> {
    let mut times: HashMap<Vec<u8>, i64> = HashMap::new();
    for row in sink::rows(told)? {
        *times.entry(row).or_default() += 1;
    }
    for part in batch {
        let part =
            RecordBatch::try_new(told.schema(), part.columns().into()).unwrap_or_else(|_| part.clone());
        for row in sink::rows(&part)? {
            *times.entry(row).or_default() -= 1;
        }
    }
    let differing: BTreeMap<Vec<u8>, i64> = times.into_iter().filter(|(_, times)| *times != 0).collect();
    Ok(differing.into_keys().map(|row| format!("row {}", String::from_utf8_lossy(&row))).collect())
}

/// Prints what was compared as a table; whether nothing differs.
pub fn print(checked: &[Checked], out: &mut impl std::io::Write) -> std::io::Result<bool> {
    let width = checked.iter().map(|c| c.what.chars().count()).max().unwrap_or(0);
    writeln!(out, "{:<width$}  {:>10}  {:>11}", "what", "compared", "differences")?;
    for Checked { what, compared, differences, first } in checked {
        writeln!(out, "{what:<width$}  {compared:>10}  {differences:>11}")?;
        if let Some(first) = first {
            writeln!(out, "    first: {first}")?;
        }
    }
    Ok(checked.iter().all(|checked| checked.differences == 0))
}
