//! GROUP BY over rows that come and go: groups with the weight of their rows, and of each function what rows can be
//! taken back from. A delta costs its rows and the groups that it touches.

mod function;
mod grouping_sets;
mod groups;
mod linear;
mod multiset;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array,
    make_comparator,
};
use arrow::compute::{SortOptions, cast, filter_record_batch, take};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::common::{exec_err, internal_err};
use datafusion::error::Result;

pub use self::function::{FunctionSpec, supports};
use self::grouping_sets::GroupingSets;
pub use self::grouping_sets::keys_and_sets;
use self::groups::{Groups, Touched};
use self::state::{Answers, Change, NOT_THERE, State};
use super::{Delta, Operator, Run};
use crate::checkpoint::{Loader, Saver};
use crate::engine::bound::Bound;
use crate::engine::watermark::nanoseconds;

/// An aggregate whose keys and arguments are columns of its input.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    /// Its rows: the keys; with grouping sets their number; the functions.
    pub schema: SchemaRef,
    /// Rows of its input.
    pub input: SchemaRef,
    /// Positions of the keys.
    pub keys: Vec<usize>,
    /// Of each grouping set, for each key whether it is left out; none: GROUP BY all keys.
    pub grouping_sets: Option<Vec<Vec<bool>>>,
    /// The functions.
    pub functions: Vec<FunctionSpec>,
    /// The key that tells when a group is final.
    pub bound: Option<Bound>,
}

/// The groups of an aggregate.
#[derive(Debug)]
pub struct Aggregate {
    spec: AggregateSpec,
    sets: GroupingSets,
    groups: Groups,
    functions: Vec<Function>,
    /// Of float keys the least of the group's rows: 0.0 and −0.0 are one group.
    shown_keys: Vec<Function>,
    /// Groups by when they are final.
    ends: BTreeSet<(i64, u32)>,
    prepared: Option<Prepared>,
}

/// A function, and where its arguments are.
#[derive(Debug)]
struct Function {
    /// Of its answers among the columns.
    column: usize,
    arguments: Vec<usize>,
    filter: Option<usize>,
    state: Box<dyn State>,
}

#[derive(Debug)]
struct Prepared {
    delta: Delta,
    touched: Touched,
    /// When each touched group is final, where that is known.
    ends: Option<Int64Array>,
}

impl Aggregate {
    /// An aggregate over no rows.
    ///
    /// # Errors
    /// A function that rows can't be taken back from; see [`supports`].
    pub fn new(spec: AggregateSpec) -> Result<Aggregate> {
        let sets = GroupingSets::new(&spec)?;
        let first = sets.key_schema().fields().len();
        let functions = spec.functions.iter().enumerate().map(|(i, function)| {
            Ok(Function {
                column: first + i,
                arguments: function.arguments.clone(),
                filter: function.filter,
                state: function.state(&spec.input)?,
            })
        });
        let functions = functions.collect::<Result<Vec<_>>>()?;
        let key_schema = SchemaRef::clone(sets.key_schema());
        let floats = key_schema.fields().iter().enumerate().filter(|(_, key)| key.data_type().is_floating());
        let shown_keys = floats.map(|(column, key)| {
            let state = multiset::extreme(key.data_type(), false)?;
            Ok(Function { column, arguments: vec![column], filter: None, state })
        });
        Ok(Aggregate {
            groups: Groups::new(&key_schema)?,
            shown_keys: shown_keys.collect::<Result<_>>()?,
            functions,
            sets,
            spec,
            ends: BTreeSet::new(),
            prepared: None,
        })
    }

    fn functions(&mut self) -> impl Iterator<Item = &mut Function> {
        self.functions.iter_mut().chain(&mut self.shown_keys)
    }

    fn prepare_rows(&mut self, keys: &[ArrayRef], rows: &RecordBatch, weights: &[i64]) -> Result<Prepared> {
        let touched = self.groups.touch(keys, weights)?;
        self.prepare_touched(touched, keys, rows, weights)
    }

    fn prepare_touched(
        &mut self,
        touched: Touched,
        keys: &[ArrayRef],
        rows: &RecordBatch,
        weights: &[i64],
    ) -> Result<Prepared> {
        if touched.after.iter().any(|weight| *weight < 0) {
            return exec_err!("{NOT_THERE}");
        }
        let first_rows = UInt32Array::from(touched.first_rows.clone());
        let shown = keys.iter().map(|key| Ok(take(key, &first_rows, None)?)).collect::<Result<Vec<_>>>()?;
        let ends = match self.spec.bound {
            Some(bound) => {
                Some(nanoseconds(&shown[bound.key])?.unary(|key: i64| key.saturating_add(bound.after)))
            }
            None => None,
        };
        let (mut before, mut after) = (shown.clone(), shown);
        let functions = self.functions.iter_mut().map(|function| (rows.columns(), function));
        // Of groups of all rows there is no key.
        let with_keys = keys.iter().all(|key| key.len() == weights.len());
        let shown_keys = self.shown_keys.iter_mut().filter(|_| with_keys).map(|function| (keys, function));
        for (columns, function) in functions.chain(shown_keys) {
            let Answers { before: old, after: new } = function.prepare(columns, &touched, weights)?;
            if function.column < before.len() {
                (before[function.column], after[function.column]) = (old, new);
            } else {
                before.push(old);
                after.push(new);
            }
        }
        let delta = self.delta(&before, &after, &touched)?;
        Ok(Prepared { delta, touched, ends })
    }

    /// Rows of groups that were there and are not, or are others now, go; those that are there now and were not, or
    /// were others, come.
    fn delta(&self, before: &[ArrayRef], after: &[ArrayRef], touched: &Touched) -> Result<Delta> {
        let columns = self.functions.iter().chain(&self.shown_keys).map(|function| function.column);
        let comparators = columns
            .map(|column| Ok(make_comparator(&before[column], &after[column], SortOptions::default())?));
        let comparators = comparators.collect::<Result<Vec<_>>>()?;
        let same = |i: usize| comparators.iter().all(|compare| compare(i, i).is_eq());
        let (mut goes, mut comes) = (Vec::new(), Vec::new());
        for (i, group) in touched.groups.iter().enumerate() {
            let was = touched.known[i];
            let is = self.groups.is_there(*group, touched.after[i]);
            let same = was && is && same(i);
            goes.push(was && !same);
            comes.push(is && !same);
        }
        let rows = |columns: &[ArrayRef], kept: Vec<bool>| {
            let fields = self.spec.schema.fields().iter();
            let columns =
                columns.iter().zip(fields).map(|(column, field)| Ok(cast(column, field.data_type())?));
            let options = RecordBatchOptions::new().with_row_count(Some(touched.groups.len()));
            let schema = SchemaRef::clone(&self.spec.schema);
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let rows = RecordBatch::try_new_with_options(schema, columns, &options)?;
            Ok::<_, datafusion::error::DataFusionError>(filter_record_batch(
                &rows,
                &BooleanArray::from(kept),
            )?)
        };
        Delta::of_change(&rows(before, goes)?, &rows(after, comes)?)
    }

    fn forget(&mut self, group: u32) {
        self.groups.remove(group);
        self.functions().for_each(|function| function.state.free(group));
    }
}

impl Function {
    fn prepare(&mut self, columns: &[ArrayRef], touched: &Touched, weights: &[i64]) -> Result<Answers> {
        let filtered: Option<Vec<i64>> = self.filter.map(|filter| {
            let filter = columns[filter].as_boolean();
            let seen = |row: usize| filter.is_valid(row) && filter.value(row);
            weights.iter().enumerate().map(|(row, weight)| if seen(row) { *weight } else { 0 }).collect()
        });
        let arguments: Vec<_> = self.arguments.iter().map(|at| Arc::clone(&columns[*at])).collect();
        self.state.prepare(&Change {
            groups: &touched.groups,
            group_weights: &touched.after,
            positions: &touched.positions,
            weights: filtered.as_deref().unwrap_or(weights),
            arguments: &arguments,
        })
    }
}

#[async_trait]
impl Operator for Aggregate {
    async fn start(&mut self, _: &Run<'_>) -> Result<Delta> {
        let empty = RecordBatch::new_empty(SchemaRef::clone(&self.spec.input));
        let (keys, totals) = self.sets.totals(&self.spec.input)?;
        if totals == 0 {
            return Ok(Delta::empty(&self.spec.schema));
        }
        let touched = self.groups.start(&keys, totals)?;
        self.prepared = Some(self.prepare_touched(touched, &keys, &empty, &[])?);
        self.commit()
    }

    async fn prepare(&mut self, inputs: &[Delta], _: &Run<'_>) -> Result<()> {
        self.prepared = None;
        let [delta] = inputs else { return internal_err!("an aggregate has one input") };
        let (keys, rows, weights) = self.sets.expand(delta)?;
        self.prepared = Some(self.prepare_rows(&keys, &rows, &weights)?);
        Ok(())
    }

    fn commit(&mut self) -> Result<Delta> {
        let Some(Prepared { delta, mut touched, ends }) = self.prepared.take() else {
            return internal_err!("nothing was prepared");
        };
        self.groups.commit(&mut touched);
        self.functions().for_each(|function| function.state.commit(&touched.groups));
        for (i, group) in touched.groups.iter().enumerate() {
            let end = ends.as_ref().filter(|ends| ends.is_valid(i)).map(|ends| (ends.value(i), *group));
            if self.groups.is_there(*group, touched.after[i]) {
                self.ends.extend(end);
            } else {
                if let Some(end) = end {
                    self.ends.remove(&end);
                }
                self.forget(*group);
            }
        }
        Ok(delta)
    }

    fn advance(&mut self, final_until: &[i64]) -> Result<()> {
        let until = final_until.iter().min().copied().unwrap_or(i64::MIN);
        if until == i64::MIN {
            return Ok(());
        }
        self.prepared = None;
        while let Some((_, group)) = self.ends.first().copied().filter(|(end, _)| *end <= until) {
            self.ends.pop_first();
            self.forget(group);
        }
        Ok(())
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Aggregate { spec: _, sets: _, groups, functions, shown_keys, ends, prepared: _ } = self;
        saver.mark("groups")?;
        groups.save(saver)?;
        saver.value(ends)?;
        let states = functions.iter().chain(shown_keys);
        for Function { column: _, arguments: _, filter: _, state } in states {
            state.save(saver)?;
        }
        Ok(())
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        loader.mark("groups")?;
        self.groups.load(loader)?;
        self.ends = loader.value()?;
        self.functions().try_for_each(|function| function.state.load(loader))
    }

    fn held_rows(&self) -> usize {
        0
    }

    fn bytes(&self) -> usize {
        let functions = self.functions.iter().chain(&self.shown_keys);
        self.groups.bytes()
            + self.ends.len() * size_of::<(i64, u32)>() * 3 / 2
            + functions.map(|function| function.state.bytes()).sum::<usize>()
    }
}
