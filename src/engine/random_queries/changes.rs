//! Draws what sources are told that take rows back: rows that come, change, and go, also several times within one
//! micro-batch; and now and then messages that change nothing.

use std::collections::BTreeMap;

use rand::prelude::*;

use super::data::{Declared, Kind, Message, Row, SOURCES, Step};
use super::draw::Draw;

impl Declared {
    /// The reference tables at first, micro-batches, and changes of reference tables between them.
    pub fn changing_steps(&self, draw: &mut Draw, batches: usize, partitions: i32) -> Vec<Step> {
        let mut steps = vec![draw.places(), draw.sizes()];
        let mut next_id = 0;
        let mut there: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
        for _ in 0..batches {
            if draw.chance(2) {
                steps.push(if draw.chance(5) { draw.places() } else { draw.sizes() });
            }
            let source = if draw.chance(6) { SOURCES[0] } else { SOURCES[1] };
            let rows = there.entry(source).or_default();
            let messages = (0..draw.0.random_range(1..9))
                .map(|_| self.message(draw, self.kind(source), rows, &mut next_id, partitions));
            steps.push(Step::Messages { source, messages: messages.collect() });
        }
        steps
    }

    /// A message, and what it makes of the rows that are there.
    fn message(
        &self,
        draw: &mut Draw,
        kind: Kind,
        rows: &mut Vec<Row>,
        next_id: &mut i64,
        partitions: i32,
    ) -> Message {
        let new = self.row(draw, next_id);
        let place = (!rows.is_empty()).then(|| draw.0.random_range(0..rows.len()));
        let is_keyed = matches!(kind, Kind::Replace | Kind::Debezium);
        let (came, back) = match (place, draw.0.random_range(0..20)) {
            _ if kind == Kind::Append => (Some(new), None),
            // What takes back a row that is not there.
            (_, 0) => (None, Some(new)),
            // The same row again.
            (Some(place), 1) => (Some(rows[place].clone()), None),
            (Some(place), 2) if kind != Kind::Replace => {
                (Some(rows[place].clone()), Some(rows[place].clone()))
            }
            (Some(place), 3..=8) => {
                (Some(altered(&rows[place], &new, kind, draw)), Some(rows[place].clone()))
            }
            // Its key changes too, maybe to that of another row.
            (Some(place), 9) if kind != Kind::Replace => {
                let id = if is_keyed && draw.chance(5) {
                    rows[draw.0.random_range(0..rows.len())].id
                } else {
                    new.id
                };
                (Some(Row { id, ..altered(&rows[place], &new, kind, draw) }), Some(rows[place].clone()))
            }
            (Some(place), 10..=13) => (None, Some(rows[place].clone())),
            _ => (Some(new), None),
        };
        // A source without envelopes doesn't say which row it replaces.
        let back = back.filter(|_| kind != Kind::Replace || came.is_none());
        let gone = |row: &Row| match (is_keyed, &back) {
            (true, _) => [&back, &came].into_iter().flatten().any(|other| other.id == row.id),
            (false, Some(back)) => back == row,
            (false, None) => false,
        };
        match is_keyed {
            true => rows.retain(|row| !gone(row)),
            false => rows.iter().position(gone).into_iter().for_each(|place| drop(rows.remove(place))),
        }
        rows.extend(came.clone());
        // All messages of a key are in one partition, as producers have it, or anywhere.
        let key = came.as_ref().or(back.as_ref()).map_or(0, |row| row.id);
        let partition = match draw.chance(1) {
            true => draw.0.random_range(0..partitions),
            false => (key % i64::from(partitions)) as i32,
        };
        Message { came, back, partition }
    }
}

/// The row with some values of the other. Where rows are known whole it gets the other's `id` too: views order rows
/// by it.
fn altered(row: &Row, other: &Row, kind: Kind, draw: &mut Draw) -> Row {
    let (mut row, other) = (row.clone(), other.clone());
    if kind == Kind::DebeziumWhole {
        row.id = other.id;
    }
    for _ in 0..draw.0.random_range(1..4) {
        match draw.0.random_range(0..11) {
            0 => row.k = other.k,
            1 => row.g = other.g,
            2 | 3 => row.x = other.x,
            4 => row.i = other.i,
            5 => row.u = other.u,
            6 => row.f = other.f,
            7 => row.d = other.d,
            8 => row.s = other.s,
            9 => row.at = other.at,
            _ => (row.z, row.tags) = (other.z, other.tags.clone()),
        }
    }
    row
}
