//! Joins of two changing inputs, of every kind. Both inputs are held by their key; a delta costs the rows that it
//! matches. What an outer, semi, anti or mark join says of a row changes only when that row's first match comes or
//! its last one goes: whether a row matches is told by the other side's keys, or, where that is not enough (there is
//! a filter, or the other side's rows are let go), by how many rows it matched.

mod change;
mod layout;
mod pairs;
mod residual;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::common::{JoinType, exec_err, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::physical_plan::PhysicalExpr;

use self::change::Change;
use self::layout::{Layout, Role};
use self::residual::Residual;
use super::arrangement::Arrangement;
use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};

/// A join.
#[derive(Debug)]
pub struct JoinSpec {
    /// Inner, left, right, full, or one of the semi, anti and mark joins.
    pub kind: JoinType,
    /// The first input.
    pub left: Side,
    /// The second input.
    pub right: Side,
    /// What pairs must fulfil beside having one key: over the columns of `left` and then of `right`.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Whether NULL matches NULL in keys.
    pub nulls_equal: bool,
    /// Which columns are put out, of those that a join of that kind has: left and then right; only one side's for
    /// semi and anti joins; that and the mark.
    pub output: Vec<usize>,
}

/// An input of a join.
#[derive(Clone, Debug)]
pub struct Side {
    /// The columns of its rows.
    pub schema: SchemaRef,
    /// The columns of its key; as many and of the same types as the other side's. Without any all rows match.
    pub key: Vec<usize>,
    /// Its rows are never taken back.
    pub append_only: bool,
    /// A column and nanoseconds: a row is let go at so long after its time, by what [`Operator::advance`] is told of
    /// this side. By then no row of the other side may come or go that it meets, nor the row itself be taken back.
    pub time: Option<(usize, i64)>,
}

/// The operator.
#[derive(Debug)]
pub struct Join {
    layout: Layout,
    pairs: bool,
    filter: Option<Residual>,
    nulls_equal: bool,
    sides: [Held; 2],
    prepared: Option<Prepared>,
}

/// A side's rows.
#[derive(Debug)]
struct Held {
    rows: Arrangement,
    role: Role,
    append_only: bool,
    /// Of each slot how many rows it matched, if that is counted.
    matches: Option<Vec<u32>>,
    /// Rows that match are not needed any more.
    forgets_matched: bool,
    /// One row of a key is enough.
    one_by_key: bool,
}

#[derive(Debug)]
struct Prepared {
    output: Vec<Delta>,
    sides: [Next; 2],
}

/// How a side changes.
#[derive(Debug)]
struct Next {
    /// Slots of rows that go.
    gone: Vec<u32>,
    rows: RecordBatch,
    /// Of each of `rows` how many it matches, if that is counted; …
    matches: Vec<u32>,
    /// … and that of slots where it changed.
    changed: Vec<(u32, u32)>,
}

impl Held {
    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Held { rows, role: _, append_only: _, matches, forgets_matched: _, one_by_key: _ } = self;
        rows.save(saver)?;
        let by_row = matches.as_ref().map(|matches| {
            let slots = rows.slots();
            slots.into_iter().map(|slot| matches[slot as usize]).collect::<Vec<_>>()
        });
        saver.value(&by_row)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let slots = self.rows.load(loader)?;
        let by_row: Option<Vec<u32>> = loader.value()?;
        match (&mut self.matches, by_row) {
            (None, None) => {}
            (Some(matches), Some(by_row)) if by_row.len() == slots.len() => {
                matches.resize(slots.iter().max().map_or(0, |slot| *slot as usize + 1), 0);
                slots.into_iter().zip(by_row).for_each(|(slot, count)| matches[slot as usize] = count);
            }
            _ => return exec_err!("it does not say of each row of a join how many rows it matches"),
        }
        Ok(())
    }
}

impl Join {
    /// # Errors
    /// The parts do not fit.
    pub fn new(spec: JoinSpec) -> Result<Join> {
        let JoinSpec { kind, left, right, filter, nulls_equal, output } = spec;
        let schemas = [&left.schema, &right.schema];
        let types = |side: &Side| -> Vec<_> {
            side.key.iter().map(|column| side.schema.field(*column).data_type().clone()).collect()
        };
        if types(&left) != types(&right) {
            return plan_err!("a join of keys of different types: {:?}, {:?}", types(&left), types(&right));
        }
        let layout = Layout::new(kind, schemas, &output)?;
        let filter = filter.map(|filter| Residual::new(filter, schemas)).transpose()?;
        let (roles, pairs) = Role::of(kind);
        let held = |side: &Side, other: &Side, [role, other_role]: [Role; 2]| -> Result<Held> {
            let for_good = side.append_only && other.append_only;
            let forgets_matched = for_good && matches!(role, Role::Semi | Role::Anti | Role::Mark);
            let keys_tell = filter.is_none() && side.time.is_none();
            let one_by_key = keys_tell && side.append_only && !pairs && other_role != Role::Nothing;
            let counts = role != Role::Nothing && !(filter.is_none() && other.time.is_none());
            let (schema, key) = (Arc::clone(&side.schema), side.key.clone());
            let mut rows = Arrangement::new(schema, key, !side.append_only, nulls_equal);
            if let Some((column, after_ns)) = side.time {
                rows = rows.with_time(column, after_ns)?;
            } else if forgets_matched {
                rows = rows.with_deletions();
            }
            let matches = counts.then(Vec::new);
            Ok(Held { rows, role, append_only: side.append_only, matches, forgets_matched, one_by_key })
        };
        let sides = [held(&left, &right, roles)?, held(&right, &left, [roles[1], roles[0]])?];
        Ok(Join { layout, pairs, filter, nulls_equal, sides, prepared: None })
    }

    /// The columns of what it puts out.
    #[cfg(test)]
    pub fn schema(&self) -> &SchemaRef {
        &self.layout.schema
    }

    fn change(&self, side: usize, delta: &Delta) -> Result<Change> {
        let held = &self.sides[side];
        if held.append_only && delta.retracts() {
            return internal_err!("a row is taken back of an input that says it never does");
        }
        Change::new(delta.clone().consolidate()?, &held.rows, self.nulls_equal)
    }
}

#[async_trait]
impl Operator for Join {
    async fn start(&mut self, _: &Run<'_>) -> Result<Delta> {
        Ok(Delta::empty(&self.layout.schema))
    }

    async fn prepare(&mut self, inputs: &[Delta], _: &Run<'_>) -> Result<()> {
        self.prepared = None;
        let [left, right] = inputs else { return internal_err!("a join of {} inputs", inputs.len()) };
        let mut changes = [self.change(0, left)?, self.change(1, right)?];
        let both = changes.iter().all(|change| !change.is_empty());
        for (side, change) in changes.iter_mut().enumerate() {
            let other = &self.sides[1 - side];
            let tells = other.role != Role::Nothing && other.matches.is_none();
            if !change.is_empty() && (tells || both && side == 1) {
                change.make_index(&self.sides[side].rows)?;
            }
        }
        self.prepared = Some(self.prepare_changes(&changes)?);
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(Prepared { output, sides }) = self.prepared.take() else {
            return internal_err!("nothing was prepared");
        };
        for (held, next) in self.sides.iter_mut().zip(sides) {
            held.rows.delete(&next.gone)?;
            let slots = held.rows.insert(&next.rows)?;
            if let Some(matches) = &mut held.matches {
                let end = slots.iter().map(|slot| *slot as usize + 1).max().unwrap_or(0);
                matches.resize(matches.len().max(end), 0);
                // A slot that is free now may be that of a new row.
                for (slot, count) in next.changed.into_iter().chain(slots.into_iter().zip(next.matches)) {
                    matches[slot as usize] = count;
                }
            }
        }
        match <[Delta; 1]>::try_from(output) {
            Ok([one]) => Ok(one),
            Err(several) => Delta::concat(&self.layout.schema, &several),
        }
    }

    fn advance(&mut self, final_until: &[i64]) -> Result<()> {
        for (held, until) in self.sides.iter_mut().zip(final_until) {
            held.rows.evict(*until)?;
        }
        Ok(())
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Join { layout: _, pairs: _, filter: _, nulls_equal: _, sides, prepared: _ } = self;
        saver.mark("a join")?;
        sides.iter().try_for_each(|held| held.save(saver))
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("a join")?;
        self.sides.iter_mut().try_for_each(|held| held.load(loader))
    }

    fn held_rows(&self) -> usize {
        self.sides.iter().map(|held| held.rows.len()).sum()
    }

    fn bytes(&self) -> usize {
        let held = |held: &Held| {
            held.rows.bytes()
                + held.matches.as_ref().map_or(0, |matches| matches.capacity() * size_of::<u32>())
        };
        self.sides.iter().map(held).sum()
    }
}
