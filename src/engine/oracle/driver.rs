//! The one place where the oracle and the random queries touch an engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::told::Messages;
use crate::catalog::{Catalog, Mode};
use crate::checkpoint::{self, Saver};
use crate::decode::{self, Decoded, Judged, RuleSet, TakenBack};
use crate::engine::work::Work;
use crate::engine::{Engine, ViewChange, ViewInfo, session};
use crate::error::Result;
use crate::queries::QueryFile;
use crate::source::Origin;

/// An engine, and the rules that rows are judged by before it sees them.
pub struct Driver {
    pub catalog: Catalog,
    text: String,
    engine: Engine,
    rules: BTreeMap<String, RuleSet>,
}

/// What a micro-batch did.
pub struct Step {
    pub changes: Vec<ViewChange>,
    /// The rows that kept the rules, with weights where rows can be taken back, …
    pub rows: RecordBatch,
    /// … and of each the position of its message.
    pub counted: Vec<u32>,
    /// Positions among the rows of those that came too late for a view.
    pub late: Vec<(u32, String)>,
    /// Positions among the rows of those that an expression of a view can't take.
    pub errors: Vec<(u32, String)>,
}

impl Driver {
    /// Plans statements.
    pub async fn new(text: String) -> Result<Driver> {
        let files = [QueryFile { path: PathBuf::from("test.sql"), text: text.clone() }];
        let planning = session::continuous().state();
        let catalog = Catalog::parse(&files, &planning).await?;
        let tables: Vec<_> =
            catalog.tables.values().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
        let engine = Engine::plan(&catalog, &tables).await?;
        let mut rules = BTreeMap::new();
        for source in catalog.sources.values() {
            rules.insert(source.name.clone(), decode::of_source(source, None, &planning)?.1);
        }
        Ok(Driver { catalog, text, engine, rules })
    }

    /// The views before the first row.
    pub async fn start(&mut self) -> Result<Vec<ViewChange>> {
        self.engine.start().await
    }

    /// Stops, is planned anew, and goes on from what it has saved: what the views show then. None: a part has stopped for
    /// good, and can't be saved.
    pub async fn restart(&mut self) -> Result<Option<Vec<ViewChange>>> {
        if self.engine.unsaved().is_some() {
            return Ok(None);
        }
        let mut saver = Saver::default();
        self.engine.save(&mut saver)?;
        self.rules.values().try_for_each(|rules| rules.save(&mut saver))?;
        let mut anew = Driver::new(self.text.clone()).await?;
        for (name, table) in &self.engine.references {
            anew.engine.set_reference(name, self.engine.inputs.reference(table).to_vec());
        }
        let mut loader = checkpoint::through_bytes(saver)?;
        let shown = anew.engine.load(&mut loader)?;
        anew.rules.values_mut().try_for_each(|rules| rules.load(&mut loader))?;
        loader.finish()?;
        *self = anew;
        Ok(Some(shown))
    }

    /// Judges what messages say and applies what keeps the rules.
    pub async fn apply(&mut self, source: &str, messages: &Messages) -> Result<Step> {
        let rules = self.rules.get_mut(source).expect("a source that is not declared");
        let origin = |message: u32| Origin {
            timestamp_ms: None,
            partition: messages.partitions[message as usize],
            offset: i64::from(message),
        };
        let mut decoded = Decoded::of_rows(messages.came.clone(), messages.of_came.clone());
        if self.catalog.sources[source].retracts() {
            let (rows, messages) = (messages.back.clone(), messages.of_back.clone());
            decoded.taken_back = Some(TakenBack { rows, messages, silent: 0 });
        }
        let (Judged { rows, messages: counted, .. }, _) = rules.judge(decoded, &origin, &NoKeys)?;
        let origins: Vec<Origin> = counted.iter().map(|message| origin(*message)).collect();
        let applied = self.engine.apply(source, rows.clone(), Some(&origins)).await?;
        let errors = applied.errors.into_iter().filter_map(|error| Some((error.row?, error.view))).collect();
        Ok(Step { changes: applied.changes, rows, counted, late: applied.late, errors })
    }

    /// Replaces the rows of a reference table.
    pub async fn set_reference(&mut self, table: &str, rows: Vec<RecordBatch>) -> Result<Vec<ViewChange>> {
        self.engine.set_reference(table, rows);
        self.engine.refresh(&[table.to_string()].into()).await
    }

    /// Why a view shows its last good rows and not the present ones, if it does.
    pub fn failure(&self, view: &str) -> Option<String> {
        self.engine.failures().into_iter().find(|failure| failure.view == view).map(|failure| failure.reason)
    }

    /// A view, as it is served.
    pub fn info(&self, view: &str) -> Arc<ViewInfo> {
        Arc::clone(self.engine.views().find(|info| info.name == view).expect("a view that is not declared"))
    }

    /// Whether a view has no state: what it has said it will not say again.
    pub fn is_stateless(&self, view: &str) -> bool {
        let found = self.engine.views.iter().find(|known| known.info.name == view);
        match found.map(|view| &view.work) {
            Some(Work::Append { .. }) => true,
            Some(Work::Flow { view, .. }) => view.forgets(),
            _ => false,
        }
    }

    /// Whether a view writes a row only when it is final.
    pub fn is_append(&self, view: &str) -> bool {
        self.info(view).mode == Mode::Append.as_str()
    }
}

/// No foreign key is drawn.
struct NoKeys;

impl decode::ForeignKeys for NoKeys {
    fn contains(
        &self,
        _: &str,
        _: &[String],
        values: &[arrow::array::ArrayRef],
    ) -> Result<arrow::array::BooleanArray> {
        Ok(arrow::array::BooleanArray::from(vec![true; values.first().map_or(0, |column| column.len())]))
    }
}
