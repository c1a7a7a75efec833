//! Random queries over random rows in random micro-batches, each compared with its oracle. A failure prints the
//! seed and the smallest case that still fails; `TALLY_ORACLE_SEED` runs one seed, `TALLY_ORACLE_CASES` as many
//! as wanted.

mod data;
mod draw;
mod expressions;
mod runner;

use arrow::array::RecordBatch;
use rand::prelude::*;

use self::data::{Declared, Step};
use self::draw::{Draw, View};
use self::runner::for_each_seed;
use super::oracle::{Pair, assert_same};
use crate::error::Result;

/// Faults that are known and not mended yet, each with the parts of the SQL that has it: a view of that kind is drawn
/// anew.
const KNOWN: &[(&str, &[&str])] = &[];

/// The same where only how rows are cut shows it.
const KNOWN_WHEN_CUT: &[(&str, &str)] =
    &[("rows of one micro-batch join a session that was final between them (seed 172)", "session(")];

/// An engine, and what it is told.
#[derive(Clone, Debug)]
pub struct Case {
    declared: Declared,
    views: Vec<View>,
    steps: Vec<Step>,
}

impl Case {
    /// Several views of one engine, so that they may share state.
    fn draw(seed: u64) -> Case {
        let mut draw = Draw::new(seed);
        let has_watermark = draw.chance(4);
        let declared = Declared::draw(&mut draw, has_watermark);
        let views = draw.views(&declared);
        let partitions = if has_watermark { draw.0.random_range(1..4) } else { 1 };
        let batches = draw.0.random_range(1..6);
        let steps = declared.steps(&mut draw, batches, partitions);
        Case { declared, views, steps }
    }

    /// The engine with its views, and no row.
    async fn pair(&self) -> Result<Pair> {
        let mut pair = Pair::new();
        let views = self.views.iter().enumerate().map(|(i, view)| view.sql(&format!("v{i}")));
        let texts: Vec<String> = std::iter::once(self.declared.sql()).chain(views).collect();
        pair.declare(&texts.join(";\n")).await?;
        Ok(pair)
    }

    /// Tells everything to the engine; after each step every view must be what it should be.
    async fn run(&self) {
        let mut pair = self.pair().await.unwrap_or_else(|e| panic!("{e}"));
        for step in &self.steps {
            tell(&mut pair, step).await;
            pair.check().await;
        }
    }

    /// The cases that lack one thing of this one.
    fn smaller(&self) -> Vec<Case> {
        let without_view = (0..self.views.len()).filter(|_| self.views.len() > 1).map(|i| {
            let mut case = self.clone();
            case.views.remove(i);
            case
        });
        let without_step = (0..self.steps.len()).rev().map(|i| {
            let mut case = self.clone();
            case.steps.remove(i);
            case
        });
        let without_row = (0..self.steps.len()).flat_map(|i| {
            let Step::Rows { rows, .. } = &self.steps[i] else { return Vec::new() };
            let of = if rows.len() > 1 { rows.len() } else { 0 };
            let remove = |row: usize| {
                let mut case = self.clone();
                if let Step::Rows { rows, partitions, .. } = &mut case.steps[i] {
                    rows.remove(row);
                    partitions.remove(row);
                }
                case
            };
            (0..of).map(remove).collect()
        });
        without_view.chain(without_step).chain(without_row).collect()
    }
}

async fn tell(pair: &mut Pair, step: &Step) {
    match step {
        Step::Rows { source, rows, partitions } => {
            let rows = data::batch(rows, &pair.schema(source).unwrap());
            pair.insert_from(source, rows, partitions.clone()).await;
        }
        Step::Reference { table, rows } => {
            let rows = data::table(rows, &pair.schema(table).unwrap());
            pair.set(table, vec![rows]).await;
        }
    }
}

/// Why a view may be refused: what it asks for is not there yet, and the message says what to write instead.
fn is_refusal(error: &str) -> bool {
    ["hold_rows", "mode append", "mode complete writes all rows"].iter().any(|word| error.contains(word))
}

#[test]
fn random_views_equal_a_recount_after_every_micro_batch() {
    for_each_seed(Case::draw, |case| Box::pin(async move { case.run().await }));
}

/// With a watermark rows are late and windows become final: how the rows of a partition are cut must not matter.
#[test]
fn how_rows_are_cut_changes_no_answer() {
    let draw = |seed| {
        let mut draw = Draw::new(seed);
        let declared = Declared { has_primary_key: false, ..Declared::draw(&mut draw, true) };
        let mut views = draw.views(&declared);
        views.retain(|view| !KNOWN_WHEN_CUT.iter().any(|(_, part)| view.sql("v").contains(part)));
        let mut steps = declared.steps(&mut draw, 0, 1);
        let rows = declared.rows(&mut draw, 40, &mut 0);
        steps.push(Step::Rows { source: "events", partitions: vec![0; rows.len()], rows });
        (Case { declared, views, steps }, draw)
    };
    for_each_seed(
        |seed| draw(seed).0,
        move |case| {
            Box::pin(async move {
                let (mut whole, mut cut) = (case.pair().await.unwrap(), case.pair().await.unwrap());
                for step in &case.steps {
                    tell(&mut whole, step).await;
                    let Step::Rows { source, rows, .. } = step else {
                        tell(&mut cut, step).await;
                        continue;
                    };
                    let rows: RecordBatch = data::batch(rows, &cut.schema(source).unwrap());
                    let (mut at, mut lengths) = (0, Draw::new(rows.num_rows() as u64));
                    while at < rows.num_rows() {
                        let length = lengths.0.random_range(1..9).min(rows.num_rows() - at);
                        cut.insert(source, rows.slice(at, length)).await;
                        at += length;
                    }
                }
                let (whole, cut) = (whole.shown(), cut.shown());
                for (view, (rows, late)) in &whole {
                    assert_same(view, rows, &cut[view].0);
                    assert_eq!(*late, cut[view].1, "{view}");
                }
            })
        },
    );
}
