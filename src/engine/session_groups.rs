//! Finds the session of each row: a row's own session, from its time to the gap after it, is merged with
//! those of its key that it meets. Sessions that meet become one, with a new number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef, TimeUnit, UInt32Type, UInt64Type};
use datafusion::common::exec_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::aggregate::Touched;
use super::bound::SessionKeys;
use super::input::{FINAL_UNTIL, ROW};
use super::watermark::nanoseconds;
use crate::batches::Owned;
use crate::checkpoint::{Loader, Saver, numbers};

/// Fewer keys than this are not worth forgetting.
const KEYS_MIN: usize = 1024;

/// A session that is not final.
#[derive(Clone, Copy, Debug)]
struct Session {
    end: i64,
    /// Its number; while a batch is applied, of a touched one, its position among the batch's.
    id: Id,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    Group(u32),
    Touched(usize),
}

/// The open sessions of every key.
pub struct SessionGroups {
    keys: SessionKeys,
    others: Vec<usize>,
    /// Numbers of the keys; none if there is no key but the window.
    by_key: Option<Owned<Box<dyn GroupValues>>>,
    key_schema: SchemaRef,
    /// By key, by start.
    open: HashMap<usize, BTreeMap<i64, Session>>,
    /// Of each group: its key, start and end.
    place: HashMap<u32, (usize, i64, i64)>,
    /// What the prepared rows have changed, to undo it if they do not count.
    undo: Vec<Undo>,
}

/// What makes a change undone.
enum Undo {
    /// The session of a key that starts then was this, or there was none.
    Open(usize, i64, Option<Session>),
    /// The place of a group was this, or there was none.
    Place(u32, Option<(usize, i64, i64)>),
}

impl SessionGroups {
    /// No session yet. `schema` is that of the group's keys, windows among them.
    pub fn new(keys: SessionKeys, schema: &SchemaRef) -> Result<Self> {
        let is_window = |i: &usize| keys.start.contains(i) || keys.end.contains(i);
        let others: Vec<usize> = (0..schema.fields().len()).filter(|i| !is_window(i)).collect();
        let key_schema: SchemaRef = Arc::new(Schema::project(schema, &others)?);
        let by_key = match others.as_slice() {
            [] => None,
            _ => Some(Owned::new(new_group_values(Arc::clone(&key_schema), &GroupOrdering::None)?)),
        };
        Ok(SessionGroups {
            keys,
            others,
            by_key,
            key_schema,
            open: HashMap::new(),
            place: HashMap::new(),
            undo: Vec::new(),
        })
    }

    /// Puts each row of `batch` into its session. New groups are numbered from `next`. A session that was final when a
    /// row came takes it no more.
    pub fn touch(&mut self, keys: &[ArrayRef], batch: &RecordBatch, next: u32) -> Result<Touched> {
        let rows = batch.num_rows();
        let final_until = batch.column_by_name(FINAL_UNTIL).map(|column| column.as_primitive::<Int64Type>());
        let mut ids = Vec::with_capacity(rows);
        match &mut self.by_key {
            Some(by_key) => {
                let others: Vec<ArrayRef> = self.others.iter().map(|i| Arc::clone(&keys[*i])).collect();
                by_key.get_mut().intern(&others, &mut ids)?;
            }
            None => ids.resize(rows, 0),
        }
        let starts = match (self.keys.start.first(), self.keys.end.first()) {
            (Some(start), _) => nanoseconds(&keys[*start])?,
            (None, Some(end)) => {
                let gap = self.keys.gap;
                nanoseconds(&keys[*end])?.unary(|end| end - gap)
            }
            (None, None) => Int64Array::from(Vec::<i64>::new()),
        };
        let mut merging = Merging { of_row: vec![0; rows], ..Merging::default() };
        for row in as_they_came(batch) {
            let (key, start) = (ids[row], starts.value(row));
            let open = self.open.entry(key).or_default();
            let closed_until = final_until.filter(|until| until.is_valid(row)).map(|until| until.value(row));
            let mut own = (start, start.saturating_add(self.keys.gap));
            let mut met = Vec::new();
            for (other, session) in open.range(..own.1).rev() {
                if session.end <= start {
                    break;
                }
                if closed_until.is_none_or(|until| session.end > until) {
                    met.push((*other, *session));
                }
            }
            let touched = merging.new_session(row as u32);
            for (other, session) in met {
                self.undo.push(Undo::Open(key, other, open.remove(&other)));
                own = (own.0.min(other), own.1.max(session.end));
                merging.merge(session.id, touched);
            }
            let root = merging.root(touched);
            let replaced = open.insert(own.0, Session { end: own.1, id: Id::Touched(root) });
            self.undo.push(Undo::Open(key, own.0, replaced));
            merging.set(root, key, own);
            merging.of_row[row] = touched;
        }
        Ok(self.number(merging, next))
    }

    /// Gives the sessions of a batch their numbers.
    fn number(&mut self, mut merging: Merging, next: u32) -> Touched {
        let roots: Vec<usize> = (0..merging.parent.len()).filter(|i| merging.parent[*i] == *i).collect();
        // Those that have an old state first.
        let (with, without): (Vec<usize>, Vec<usize>) =
            roots.into_iter().partition(|root| !merging.old[*root].is_empty());
        let mut position = vec![0; merging.parent.len()];
        let mut touched = Touched {
            groups: Vec::new(),
            old: Vec::new(),
            old_positions: Vec::new(),
            with_old: with.len(),
            first_rows: Vec::new(),
            positions: Vec::new(),
        };
        for (i, root) in with.into_iter().chain(without).enumerate() {
            position[root] = i;
            let group = next + i as u32;
            let (key, (start, end)) = merging.span[root];
            for old in &merging.old[root] {
                self.undo.push(Undo::Place(*old, self.place.remove(old)));
            }
            self.undo.push(Undo::Place(group, self.place.insert(group, (key, start, end))));
            if let Some(session) = self.open.get_mut(&key).and_then(|open| open.get_mut(&start)) {
                session.id = Id::Group(group);
            }
            touched.groups.push(group);
            touched.first_rows.push(merging.first_row[root]);
            touched.old_positions.extend(std::iter::repeat_n(i, merging.old[root].len()));
            touched.old.extend(&merging.old[root]);
        }
        let of_row = std::mem::take(&mut merging.of_row);
        touched.positions = of_row.into_iter().map(|session| position[merging.root(session)]).collect();
        touched
    }

    /// What was touched since the last call counts.
    pub fn commit(&mut self) {
        self.undo.clear();
    }

    /// Undoes what was touched and does not count.
    pub fn discard(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Open(key, start, session) => {
                    let open = self.open.entry(key).or_default();
                    match session {
                        Some(session) => open.insert(start, session),
                        None => open.remove(&start),
                    };
                    if open.is_empty() {
                        self.open.remove(&key);
                    }
                }
                Undo::Place(group, Some(place)) => drop(self.place.insert(group, place)),
                Undo::Place(group, None) => drop(self.place.remove(&group)),
            }
        }
    }

    /// Sets the window columns of the keys of `groups`: so far they are those of single rows.
    pub fn set_windows(&self, columns: &mut [ArrayRef], groups: &[u32], schema: &SchemaRef) -> Result<()> {
        let column = |value: fn(&(usize, i64, i64)) -> i64, data_type: &DataType| -> Result<ArrayRef> {
            let values = Int64Array::from_iter_values(groups.iter().map(|group| value(&self.place[group])));
            let zone = match data_type {
                DataType::Timestamp(_, zone) => zone.clone(),
                _ => None,
            };
            let exact = cast(&values, &DataType::Timestamp(TimeUnit::Nanosecond, zone))?;
            Ok(cast(&exact, data_type)?)
        };
        for start in &self.keys.start {
            columns[*start] = column(|place| place.1, schema.field(*start).data_type())?;
        }
        for end in &self.keys.end {
            columns[*end] = column(|place| place.2, schema.field(*end).data_type())?;
        }
        Ok(())
    }

    /// When a session ends, if no further row comes.
    pub fn end(&self, group: u32) -> Option<i64> {
        Some(self.place.get(&group)?.2)
    }

    /// Forgets final sessions, and their keys once most have no session.
    pub fn remove(&mut self, groups: &[u32]) -> Result<()> {
        for group in groups {
            if let Some((key, start, _)) = self.place.remove(group)
                && let Some(open) = self.open.get_mut(&key)
            {
                open.remove(&start);
                if open.is_empty() {
                    self.open.remove(&key);
                }
            }
        }
        self.forget_keys()
    }

    fn forget_keys(&mut self) -> Result<()> {
        let Some(by_key) = self.by_key.as_mut().map(Owned::get_mut) else { return Ok(()) };
        if by_key.len() < KEYS_MIN || by_key.len() < 2 * self.open.len() {
            return Ok(());
        }
        let living: Vec<usize> = self.open.keys().copied().collect();
        let positions = UInt64Array::from_iter_values(living.iter().map(|key| *key as u64));
        let columns = by_key.emit(EmitTo::All)?;
        let columns =
            columns.iter().map(|column| Ok(take(column, &positions, None)?)).collect::<Result<Vec<_>>>()?;
        let (mut anew, mut numbers) =
            (new_group_values(Arc::clone(&self.key_schema), &GroupOrdering::None)?, Vec::new());
        if !living.is_empty() {
            anew.intern(&columns, &mut numbers)?;
        }
        *by_key = anew;
        let number: HashMap<usize, usize> = living.into_iter().zip(numbers).collect();
        let open = std::mem::take(&mut self.open);
        self.open = open.into_iter().map(|(key, sessions)| (number[&key], sessions)).collect();
        for (key, _, _) in self.place.values_mut() {
            *key = number[key];
        }
        Ok(())
    }

    /// Gives the groups their new numbers.
    pub fn renumber(&mut self, number: &[u32]) {
        let place = std::mem::take(&mut self.place);
        self.place = place.into_iter().map(|(group, at)| (number[group as usize], at)).collect();
        for (group, (key, start, _)) in &self.place {
            if let Some(session) = self.open.get_mut(key).and_then(|open| open.get_mut(start)) {
                session.id = Id::Group(*group);
            }
        }
    }

    /// Gives the sessions to a checkpoint: the keys, by number, and the places of the groups. Nothing may be prepared.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let SessionGroups { keys: _, others: _, by_key: _, key_schema: _, open, place, undo: _ } = self;
        let mut places: Vec<_> =
            place.iter().map(|(group, (key, start, end))| (*group, *key, *start, *end)).collect();
        places.sort_unstable();
        saver.columns(as_columns(&places))?;
        let sessions = open.iter().flat_map(|(key, open)| open.iter().map(move |session| (*key, session)));
        let sessions = sessions.map(|(key, (start, session))| match session.id {
            Id::Group(group) => Ok((group, key, *start, session.end)),
            Id::Touched(_) => Err(exec_datafusion_err!("a session is in the middle of a change")),
        });
        let mut sessions = sessions.collect::<Result<Vec<_>>>()?;
        sessions.sort_unstable();
        saver.columns(as_columns(&sessions))
    }

    /// Takes the sessions of a checkpoint into this, which has none. `keys_of` gives the key columns of groups.
    pub fn load(
        &mut self,
        loader: &mut Loader,
        keys_of: impl FnOnce(&[u32]) -> Result<Vec<ArrayRef>>,
    ) -> Result<()> {
        let places = of_columns(loader.columns()?)?;
        let groups: Vec<u32> = places.iter().map(|(group, ..)| *group).collect();
        let mut numbers = vec![0; groups.len()];
        if let Some(by_key) = self.by_key.as_mut().filter(|_| !groups.is_empty()) {
            let keys = keys_of(&groups)?;
            let others: Vec<ArrayRef> = self.others.iter().map(|i| Arc::clone(&keys[*i])).collect();
            by_key.get_mut().intern(&others, &mut numbers)?;
        }
        let number: HashMap<usize, usize> = places.iter().map(|(_, key, ..)| *key).zip(numbers).collect();
        self.place =
            places.iter().map(|(group, key, start, end)| (*group, (number[key], *start, *end))).collect();
        for (group, key, start, end) in of_columns(loader.columns()?)? {
            let key = number.get(&key).ok_or_else(|| exec_datafusion_err!("a session has no key"))?;
            self.open.entry(*key).or_default().insert(start, Session { end, id: Id::Group(group) });
        }
        Ok(())
    }

    /// Bytes held, about.
    pub fn bytes(&self) -> usize {
        let keys = self.by_key.as_ref().map_or(0, |by_key| by_key.read(|by_key| by_key.size()));
        keys + self.place.len() * (size_of::<(u32, usize, i64, i64)>() + size_of::<(i64, Session)>())
    }
}

/// The rows in the order in which they came: a function that wants an order has them sorted by it.
fn as_they_came(batch: &RecordBatch) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..batch.num_rows()).collect();
    if let Some(places) = batch.column_by_name(ROW).map(|column| column.as_primitive::<UInt32Type>()) {
        rows.sort_by_key(|row| places.value(*row));
    }
    rows
}

/// Group, key, start and end.
type Saved = (u32, usize, i64, i64);

fn as_columns(sessions: &[Saved]) -> Vec<ArrayRef> {
    vec![
        Arc::new(UInt32Array::from_iter_values(sessions.iter().map(|(group, ..)| *group))),
        Arc::new(UInt64Array::from_iter_values(sessions.iter().map(|(_, key, ..)| *key as u64))),
        Arc::new(Int64Array::from_iter_values(sessions.iter().map(|(_, _, start, _)| *start))),
        Arc::new(Int64Array::from_iter_values(sessions.iter().map(|(.., end)| *end))),
    ]
}

fn of_columns(columns: [ArrayRef; 4]) -> Result<Vec<Saved>> {
    let (groups, keys) = (numbers::<UInt32Type>(&columns[0])?, numbers::<UInt64Type>(&columns[1])?);
    let (starts, ends) = (numbers::<Int64Type>(&columns[2])?, numbers::<Int64Type>(&columns[3])?);
    let row = |i: usize| (groups.value(i), keys.value(i) as usize, starts.value(i), ends.value(i));
    Ok((0..groups.len()).map(row).collect())
}

/// The sessions of one batch while rows merge them: a union-find forest.
#[derive(Default)]
struct Merging {
    parent: Vec<usize>,
    first_row: Vec<u32>,
    /// Of a root: the groups that went into it.
    old: Vec<Vec<u32>>,
    /// Of a root: its key and window.
    span: Vec<(usize, (i64, i64))>,
    of_row: Vec<usize>,
}

impl Merging {
    fn new_session(&mut self, row: u32) -> usize {
        self.parent.push(self.parent.len());
        self.first_row.push(row);
        self.old.push(Vec::new());
        self.span.push((0, (0, 0)));
        self.parent.len() - 1
    }

    fn root(&mut self, mut session: usize) -> usize {
        while self.parent[session] != session {
            self.parent[session] = self.parent[self.parent[session]];
            session = self.parent[session];
        }
        session
    }

    fn merge(&mut self, other: Id, session: usize) {
        let root = self.root(session);
        match other {
            Id::Group(group) => self.old[root].push(group),
            Id::Touched(other) => {
                let other = self.root(other);
                if other != root {
                    // The older one stays, so that a session's first row is its first.
                    self.parent[root] = other;
                    let moved = std::mem::take(&mut self.old[root]);
                    self.old[other].extend(moved);
                }
            }
        }
    }

    fn set(&mut self, root: usize, key: usize, span: (i64, i64)) {
        self.span[root] = (key, span);
    }
}
