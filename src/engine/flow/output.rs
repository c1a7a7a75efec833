//! A view's rows at the end of its dataflow: what readers see, and the changelog.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::{exec_datafusion_err, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, SubqueryAlias};

use super::Delta;
use super::cut::with_keys;
use super::graph::{Changes, Graph};
use crate::batches::{self, renamed};
use crate::checkpoint::{Loader, Saver};
use crate::engine::bound::unaliased;
use crate::engine::view::{Changelog, Op, Ring, RowSource};
use crate::engine::view_rows::ViewRows;

/// A view that a dataflow keeps up to date.
pub struct FlowView {
    /// The part whose rows are the view's.
    pub root: usize,
    /// That and every part below it.
    pub parts: BTreeSet<usize>,
    rows: Shown,
    order: Option<Ordered>,
    /// Changes that the view does not show yet, since something below it has failed.
    pending: Vec<Delta>,
    hold_rows_max: Option<usize>,
    /// Whether it has held more.
    pub is_over: bool,
}

/// The rows that a view shows.
pub enum Shown {
    /// All.
    All(Box<ViewRows>),
    /// The newest: rows only come, and each is told once.
    Newest(Ring),
}

impl Shown {
    /// Their columns.
    pub fn schema(&self) -> &SchemaRef {
        match self {
            Shown::All(rows) => rows.schema(),
            Shown::Newest(ring) => ring.schema(),
        }
    }

    fn total(&self) -> usize {
        match self {
            Shown::All(rows) => rows.total(),
            Shown::Newest(ring) => ring.total(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Shown::All(rows) => rows.bytes(),
            Shown::Newest(ring) => ring.bytes(),
        }
    }

    fn snapshot(&self) -> Arc<dyn RowSource> {
        match self {
            Shown::All(rows) => rows.snapshot(),
            Shown::Newest(ring) => Arc::new(ring.clone()),
        }
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        match self {
            Shown::All(rows) => rows.save(saver),
            Shown::Newest(ring) => ring.save(saver),
        }
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        match self {
            Shown::All(rows) => rows.load(loader),
            Shown::Newest(ring) => ring.load(loader),
        }
    }

    /// Takes a consolidated delta in.
    fn apply(&mut self, delta: &Delta) -> Result<Changelog> {
        match self {
            Shown::All(rows) => rows.apply(delta),
            Shown::Newest(_) if delta.retracts() => internal_err!("a row is taken back that was told"),
            Shown::Newest(ring) => {
                let rows = renamed(&delta.repeated()?, ring.schema())?;
                ring.push(&rows)?;
                Ok(Changelog { ops: vec![Op::Insert; rows.num_rows()], rows })
            }
        }
    }
}

/// Columns, and how each sorts.
pub type OrderBy = Vec<(usize, SortOptions)>;

/// The order in which a query says that its rows are read.
#[derive(Clone, Debug)]
pub struct Order {
    /// Columns, of those that are read and those that only say the order, and how each sorts.
    pub by: OrderBy,
    /// The columns that are read and, after them, those that only say the order.
    pub schema: SchemaRef,
}

struct Ordered {
    order: Arc<Order>,
    /// All rows with the columns that only say the order, if there are such.
    rows: Option<ViewRows>,
}

impl FlowView {
    /// A view without rows over the part `root` of a graph. `order`: how the query orders them; `hold_rows_max`: how
    /// many rows the parts below may hold.
    pub fn new(
        graph: &Graph,
        root: usize,
        rows: Shown,
        order: Option<Order>,
        hold_rows_max: Option<usize>,
    ) -> Result<FlowView> {
        let visible = rows.schema().fields().len();
        let append_only = graph.vertices()[root].append_only;
        let of_root = |rows: ViewRows| if append_only { rows.append_only() } else { rows };
        let rows = match rows {
            Shown::All(rows) => Shown::All(Box::new(of_root(*rows))),
            newest => newest,
        };
        let order = match order {
            None => None,
            Some(order) => {
                let has_more = order.schema.fields().len() > visible;
                let rows = has_more.then(|| ViewRows::new(Arc::clone(&order.schema), &[])).transpose()?;
                Some(Ordered { order: Arc::new(order), rows: rows.map(of_root) })
            }
        };
        let parts = graph.below(root);
        Ok(FlowView { root, parts, rows, order, pending: Vec::new(), hold_rows_max, is_over: false })
    }

    /// Bytes held for rows.
    pub fn bytes(&self) -> usize {
        let ordered = self.order.as_ref().and_then(|order| order.rows.as_ref());
        let pending = self.pending.iter().map(|delta| delta.rows.get_array_memory_size());
        self.rows.bytes() + ordered.map_or(0, ViewRows::bytes) + pending.sum::<usize>()
    }

    /// Gives its rows to a checkpoint. It may not be over its limit.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let FlowView { root: _, parts: _, rows, order, pending, hold_rows_max: _, is_over: _ } = self;
        rows.save(saver)?;
        if let Some(Ordered { order: _, rows: Some(rows) }) = order {
            rows.save(saver)?;
        }
        saver.value(&pending.len())?;
        pending.iter().try_for_each(|delta| delta.save(saver))
    }

    /// Takes its rows from a checkpoint.
    pub fn load(&mut self, loader: &mut Loader, graph: &Graph) -> Result<()> {
        self.rows.load(loader)?;
        if let Some(Ordered { rows: Some(rows), .. }) = &mut self.order {
            rows.load(loader)?;
        }
        let schema = &graph.vertices()[self.root].schema;
        let deltas: usize = loader.value()?;
        self.pending = (0..deltas).map(|_| Delta::load(loader, schema)).collect::<Result<_>>()?;
        Ok(())
    }

    /// The rows in the order in which they are read.
    pub fn shown(&self) -> Arc<dyn RowSource> {
        let Some(Ordered { order, rows }) = &self.order else { return self.rows.snapshot() };
        let rows = rows.as_ref().map_or_else(|| self.rows.snapshot(), ViewRows::snapshot);
        Arc::new(OrderedRows { rows, order: Arc::clone(order), schema: Arc::clone(self.rows.schema()) })
    }

    /// All rows, for output mode `complete`.
    pub fn complete(&self, changelog: &Changelog) -> Result<Changelog> {
        match &self.rows {
            Shown::All(rows) => rows.complete(changelog),
            Shown::Newest(_) => internal_err!("only the newest rows are there"),
        }
    }

    /// Whether it tells each row once and then forgets it.
    pub fn forgets(&self) -> bool {
        matches!(self.rows, Shown::Newest(_))
    }

    /// Why it can't go on: it would hold more rows than it may.
    fn over_limit(&self, graph: &Graph) -> Option<String> {
        let max = self.hold_rows_max?;
        let held = match graph.held_rows(self.parts.iter().copied()) {
            // Nothing is held but what it shows.
            0 => {
                let pending = self.pending.iter().flat_map(|delta| delta.weights.values());
                usize::try_from(self.rows.total() as i64 + pending.sum::<i64>()).unwrap_or(0)
            }
            held => held,
        };
        (self.is_over || held > max).then(|| {
            format!(
                "it needs more than its hold_rows = {max} rows of the stream: allow more, or ask for less, and start \
                 again"
            )
        })
    }

    /// Takes what changed in the dataflow; what that changes in the view. None: nothing.
    ///
    /// # Errors
    /// While something below has failed, or two rows have one key: the change is kept until it can be taken.
    pub fn follow(&mut self, changes: &Changes, graph: &Graph) -> Result<Option<Changelog>> {
        if !self.is_over {
            self.pending.extend(changes.get(&self.root).filter(|delta| !delta.is_empty()).cloned());
        }
        if let Some(reason) = graph.failure(&self.parts) {
            return Err(exec_datafusion_err!("{reason}"));
        }
        if let Some(reason) = self.over_limit(graph) {
            self.is_over = true;
            self.pending.clear();
            return Err(exec_datafusion_err!("{reason}"));
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        let schema = &graph.vertices()[self.root].schema;
        let delta = Delta::concat(schema, &self.pending)?.consolidate()?;
        let visible = self.rows.schema().fields().len();
        let shown = Delta {
            rows: delta.rows.project(&(0..visible).collect::<Vec<_>>())?,
            weights: delta.weights.clone(),
        };
        let shown = if visible < delta.rows.num_columns() { shown.consolidate()? } else { shown };
        let changelog = self.rows.apply(&shown)?;
        if let Some(Ordered { rows: Some(rows), .. }) = &mut self.order {
            rows.apply(&delta)?;
        }
        self.pending.clear();
        Ok(Some(changelog))
    }
}

/// Rows that are sorted when somebody reads them.
#[derive(Debug)]
struct OrderedRows {
    rows: Arc<dyn RowSource>,
    order: Arc<Order>,
    schema: SchemaRef,
}

impl RowSource for OrderedRows {
    fn total(&self) -> usize {
        self.rows.total()
    }

    fn batch(&self) -> crate::error::Result<RecordBatch> {
        let rows = self.rows.batch()?;
        let visible: Vec<usize> = (0..self.schema.fields().len()).collect();
        let by = &self.order.by;
        let keys: Vec<ArrayRef> = by.iter().map(|(column, _)| Arc::clone(rows.column(*column))).collect();
        let fields = keys.iter().zip(by);
        let fields = fields
            .map(|(key, (_, options))| SortField::new_with_options(key.data_type().clone(), *options))
            .collect();
        let converter = RowConverter::new(fields).map_err(datafusion::error::DataFusionError::from)?;
        Ok(batches::sorted(&rows.project(&visible)?, &keys, &converter)?)
    }
}

/// The plan with the columns that say its order, where the query orders its rows; and that order.
pub fn with_order(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, OrderBy)>> {
    Ok(Some(match plan {
        LogicalPlan::Sort(sort) => {
            let keys: Vec<Expr> = sort.expr.iter().map(|by| by.expr.clone()).collect();
            let (input, columns) = with_keys(&sort.input, &keys, "order")?;
            let mut by = Vec::new();
            let mut sorted = sort.clone();
            for (key, column) in sorted.expr.iter_mut().zip(columns) {
                if let Expr::Column(column) = &column {
                    let options = SortOptions { descending: !key.asc, nulls_first: key.nulls_first };
                    by.push((input.schema().index_of_column(column)?, options));
                }
                key.expr = column;
            }
            sorted.input = Arc::new(input);
            (LogicalPlan::Sort(sorted), by)
        }
        LogicalPlan::Projection(projection) => {
            let Some((input, by)) = with_order(&projection.input)? else { return Ok(None) };
            let mut columns = projection.expr.clone();
            let mut places = Vec::new();
            for (column, options) in by {
                let asked = Expr::Column(input.schema().columns()[column].clone());
                let place = columns.iter().position(|expr| *unaliased(expr) == asked);
                places.push((place.unwrap_or(columns.len()), options));
                if place.is_none() {
                    columns.push(asked.alias(format!("__order_{}", columns.len())));
                }
            }
            (LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?), places)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some((input, by)) = with_order(&alias.input)? else { return Ok(None) };
            let over = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            (LogicalPlan::SubqueryAlias(over), by)
        }
        LogicalPlan::Limit(limit) => {
            let Some((input, by)) = with_order(&limit.input)? else { return Ok(None) };
            let mut over = limit.clone();
            over.input = Arc::new(input);
            (LogicalPlan::Limit(over), by)
        }
        _ => return Ok(None),
    }))
}
