//! Releases of a small election that is counted ballot by ballot, by a clock of the test's own.

mod declared;
mod history;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use rand::prelude::*;
use rand::rngs::ChaCha8Rng;

use super::*;
use crate::catalog::Access;
use crate::engine::{Disclosure, Secret, ViewInfo};
use crate::snapshot::{FailureStatus, SourceStatus, Status, ViewSnapshot};

const POLICY: Policy =
    Policy { interval: Duration::from_secs(2), rows_min: 10, quiet: Duration::from_secs(10), cell_min: 10 };

/// Ballots as (place, choice), and what is published of them.
struct Count {
    ballots: Vec<(String, String)>,
    epoch: u64,
    expected: Option<u64>,
    failed: bool,
    /// Which view has failed then.
    failed_view: &'static str,
    /// Which places are in the view by place and choice; none: there is no such view.
    places: Option<fn(&Count, &str) -> bool>,
    /// How many ballots each place has in the end.
    sizes: BTreeMap<&'static str, usize>,
    /// Whether a view of the operator's has all places.
    tells_operator: bool,
    releaser: Releaser,
    begin: Instant,
    now: Duration,
    releases: Vec<Arc<Release>>,
    /// The total by choice that is shown while its view has failed.
    totals: Option<Arc<ViewSnapshot>>,
}

fn snapshot(
    name: &str,
    keys: &[(&str, Vec<String>)],
    votes: Vec<i64>,
    by: Option<&[&str]>,
    epoch: u64,
) -> Arc<ViewSnapshot> {
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for (column, values) in keys {
        columns.push((column, Arc::new(StringArray::from(values.clone()))));
    }
    columns.push(("votes", Arc::new(Int64Array::from(votes))));
    let rows =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let key: Vec<String> = keys.iter().map(|(column, _)| column.to_string()).collect();
    let secret = by.map(|by| Secret {
        by: by.iter().map(|column| column.to_string()).collect(),
        choice: key.iter().filter(|column| !by.contains(&column.as_str())).cloned().collect(),
        counted_in: "votes".into(),
    });
    of(name, rows, key, Disclosure { secret, ..Disclosure::default() }, epoch)
}

fn of(
    name: &str,
    rows: RecordBatch,
    key: Vec<String>,
    disclosure: Disclosure,
    epoch: u64,
) -> Arc<ViewSnapshot> {
    let info = ViewInfo {
        name: name.into(),
        schema: rows.schema(),
        key,
        mode: "update",
        topic: None,
        upkeep: Default::default(),
        plan: String::new(),
        disclosure,
        sql: String::new(),
    };
    Arc::new(ViewSnapshot::new(Arc::new(info), epoch, None, Arc::new(rows)))
}

/// A view of votes by place and choice.
fn of_places(
    name: &str,
    counts: &BTreeMap<(String, String), i64>,
    access: Access,
    epoch: u64,
) -> Arc<ViewSnapshot> {
    let (places, choices) = counts.keys().cloned().unzip();
    let keys = [("place", places), ("choice", choices)];
    let public = snapshot(name, &keys, counts.values().copied().collect(), Some(&["place"]), epoch);
    let info = &public.info;
    let disclosure = Disclosure { access, ..info.disclosure.clone() };
    of(name, public.batch().unwrap(), info.key.clone(), disclosure, epoch)
}

impl Count {
    fn new(policy: Policy) -> Count {
        Count {
            ballots: Vec::new(),
            epoch: 0,
            expected: None,
            failed: false,
            failed_view: "totals",
            places: None,
            sizes: BTreeMap::new(),
            tells_operator: true,
            releaser: Releaser::new(policy),
            begin: Instant::now(),
            now: Duration::ZERO,
            releases: Vec::new(),
            totals: None,
        }
    }

    fn by<K: Ord>(&self, key: impl Fn(&(String, String)) -> K) -> BTreeMap<K, i64> {
        let mut counts = BTreeMap::new();
        self.ballots.iter().for_each(|ballot| *counts.entry(key(ballot)).or_default() += 1);
        counts
    }

    fn published(&mut self) -> Published {
        let epoch = self.epoch;
        let (keys, votes) = self.by(|ballot| ballot.1.clone()).into_iter().unzip();
        let totals = snapshot("totals", &[("choice", keys)], votes, Some(&[]), epoch);
        let totals = match &self.totals {
            Some(last_good) if self.failed && self.failed_view == "totals" => Arc::clone(last_good),
            _ => totals,
        };
        self.totals = Some(Arc::clone(&totals));
        let (keys, votes) = self.by(|ballot| ballot.0.clone()).into_iter().unzip();
        let turnout = snapshot("turnout", &[("place", keys)], votes, None, epoch);
        let mut views = BTreeMap::from([("totals".into(), totals), ("turnout".into(), turnout)]);
        if let Some(is_there) = self.places {
            let mut counts = self.by(|ballot| ballot.clone());
            if self.tells_operator {
                views.insert("of_places".into(), of_places("of_places", &counts, Access::Operator, epoch));
            }
            counts.retain(|(place, _), _| is_there(self, place));
            views.insert("by_place".into(), of_places("by_place", &counts, Access::Public, epoch));
        }
        if let Some(expected) = self.expected {
            let is = BooleanArray::from(vec![self.ballots.len() as u64 >= expected]);
            let rows = RecordBatch::try_from_iter([("is_complete", Arc::new(is) as ArrayRef)]).unwrap();
            let disclosure =
                Disclosure { complete_when: Some("is_complete".into()), ..Disclosure::default() };
            views.insert("progress".into(), of("progress", rows, Vec::new(), disclosure, epoch));
        }
        let failed = FailureStatus {
            view: self.failed_view.into(),
            epoch,
            since: String::new(),
            reason: String::new(),
            file: String::new(),
            line: 1,
        };
        let status = Status {
            ready: true,
            failed_views: if self.failed { vec![failed] } else { Vec::new() },
            sources: vec![SourceStatus { counted: self.ballots.len() as u64, ..SourceStatus::default() }],
            ..Status::starting(SystemTime::now())
        };
        Published { epoch, views, status: Arc::new(status) }
    }

    /// Publishes what is counted, after so long.
    fn publish(&mut self, after: Duration) {
        self.now += after;
        let published = Arc::new(self.published());
        let release = self.releaser.step(&published, self.begin + self.now, SystemTime::now());
        self.releases.extend(release);
    }

    fn count(&mut self, place: &str, choice: &str) {
        self.ballots.push((place.into(), choice.into()));
        self.epoch += 1;
        self.publish(Duration::from_millis(100));
    }

    fn is_quiet(&mut self) {
        self.publish(POLICY.quiet);
    }

    fn released(&self) -> Vec<u64> {
        self.releases.iter().map(|release| release.rows).collect()
    }

    /// How often each choice stands in a release.
    fn totals(&self, release: usize) -> BTreeMap<String, i64> {
        values(&self.releases[release].published.views["totals"])
    }
}

/// By place and choice, what a release shows.
fn by_place(release: &Release) -> BTreeMap<(String, String), i64> {
    let rows = release.published.views["by_place"].batch().unwrap();
    let text =
        |column: usize, row| arrow::util::display::array_value_to_string(rows.column(column), row).unwrap();
    let votes = rows.column(2).as_any().downcast_ref::<Int64Array>().unwrap().clone();
    (0..rows.num_rows()).map(|row| ((text(0, row), text(1, row)), votes.value(row))).collect()
}

fn values(view: &ViewSnapshot) -> BTreeMap<String, i64> {
    let rows = view.batch().unwrap();
    let text = |row| arrow::util::display::array_value_to_string(rows.column(0), row).unwrap();
    let votes = rows.column_by_name("votes").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().clone();
    (0..rows.num_rows()).map(|row| (text(row), votes.value(row))).collect()
}

#[test]
fn a_release_has_ten_new_rows_and_leaves_ten() {
    let mut count = Count::new(POLICY);
    count.publish(Duration::ZERO);
    assert_eq!(count.released(), [0], "the candidates, before the first ballot");
    for i in 0..19 {
        count.count("Kent", if i % 2 == 0 { "a" } else { "b" });
    }
    count.publish(Duration::from_secs(3));
    assert_eq!(count.released(), [0], "9 are too few to be left");
    count.count("Kent", "b");
    assert_eq!(count.released(), [0, 10]);
    count.publish(Duration::from_secs(3));
    assert_eq!(count.released(), [0, 10]);
    count.is_quiet();
    assert_eq!(count.released(), [0, 10, 20]);
    count.count("Kent", "a");
    count.is_quiet();
    assert_eq!(count.released(), [0, 10, 20], "one more is never told by itself");
}

#[test]
fn a_release_waits_for_the_interval() {
    let mut count = Count::new(POLICY);
    count.publish(Duration::ZERO);
    for i in 0..200 {
        count.count("Kent", if i % 2 == 0 { "a" } else { "b" });
    }
    // In 20 s.
    assert_eq!(count.released(), [0, 10, 30, 50, 70, 90, 110, 130, 150, 170, 190]);
}

#[test]
fn who_all_choose_alike_wait_for_others() {
    let mut count = Count::new(POLICY);
    count.publish(Duration::ZERO);
    (0..60).for_each(|_| count.count("Kent", "a"));
    count.is_quiet();
    assert_eq!(count.released(), [0]);
    count.count("Kent", "b");
    count.is_quiet();
    assert_eq!(count.released(), [0, 61]);
}

#[test]
fn all_is_released_when_all_that_is_expected_is_counted() {
    let mut count = Count::new(POLICY);
    count.expected = Some(23);
    count.publish(Duration::ZERO);
    for i in 0..22 {
        count.count("Kent", if i % 2 == 0 { "a" } else { "b" });
    }
    count.is_quiet();
    count.is_quiet();
    assert_eq!(count.released(), [0, 10], "quiet is not the end");
    count.count("Kent", "a");
    assert_eq!(count.released(), [0, 10, 23]);
    assert!(count.releases[2].is_complete && !count.releases[1].is_complete);
}

#[test]
fn a_failed_view_is_shown_as_it_was_in_the_last_release() {
    let mut count = Count::new(POLICY);
    count.publish(Duration::ZERO);
    let ballot =
        |count: &mut Count, i: usize| count.count("Kent", if i.is_multiple_of(2) { "a" } else { "b" });
    (0..25).for_each(|i| ballot(&mut count, i));
    count.failed = true;
    (25..60).for_each(|i| ballot(&mut count, i));
    count.is_quiet();
    let last = count.releases.len() - 1;
    assert_eq!(count.released()[last], 60);
    assert_eq!(
        count.totals(last),
        count.totals(1),
        "and not as of the 25th ballot: {:?}",
        count.totals(last)
    );
    count.failed = false;
    count.epoch += 1;
    count.publish(Duration::from_secs(3));
    assert_eq!(count.totals(last + 1), BTreeMap::from([("a".into(), 30), ("b".into(), 30)]));
}

#[test]
fn after_a_restart_nothing_is_told_before_it_is_enough_or_the_end() {
    let mut count = Count::new(POLICY);
    count.ballots = (0..30).map(|i| ("Kent".into(), if i % 2 == 0 { "a" } else { "b" }.into())).collect();
    count.publish(Duration::ZERO);
    count.publish(Duration::from_secs(5));
    (0..9).for_each(|_| count.count("Kent", "a"));
    count.is_quiet();
    assert_eq!(count.released(), [] as [u64; 0], "the last run may have released 30");
    for i in 0..12 {
        count.count("Kent", if i % 2 == 0 { "a" } else { "b" });
    }
    assert_eq!(count.released(), [41]);
    let mut count = Count::new(POLICY);
    count.ballots = vec![("Kent".into(), "a".into()); 30];
    count.publish(Duration::ZERO);
    count.is_quiet();
    assert_eq!(count.released(), [30]);
}

/// Ballots that an attacker puts a name to who sees these totals one after the other, and knows when each person voted:
/// those that came between two of them, if all chose alike.
fn named(totals: &[BTreeMap<String, i64>]) -> i64 {
    let between = |pair: &[BTreeMap<String, i64>]| {
        let moved = pair[1].iter().map(|(choice, n)| n - pair[0].get(choice).unwrap_or(&0));
        let moved: Vec<i64> = moved.filter(|n| *n != 0).collect();
        if moved.len() == 1 { moved[0] } else { 0 }
    };
    totals.windows(2).map(between).sum()
}

#[test]
fn who_sees_epochs_names_everybody_and_who_sees_releases_nobody() {
    let mut count = Count::new(POLICY);
    count.publish(Duration::ZERO);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut epochs = vec![BTreeMap::new()];
    for _ in 0..300 {
        count.count("Kent", if random.random_bool(0.8) { "a" } else { "b" });
        epochs.push(count.by(|ballot| ballot.1.clone()));
    }
    count.is_quiet();
    let releases: Vec<_> = (0..count.releases.len()).map(|release| count.totals(release)).collect();
    assert_eq!((named(&epochs), named(&releases)), (300, 0));
    assert_eq!(count.released().last(), Some(&300));
}

/// Whatever pair of releases he subtracts.
#[test]
fn no_difference_of_two_releases_tells_a_small_set_of_choices() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..50 {
        let mut count = Count::new(POLICY);
        count.publish(Duration::ZERO);
        let bias = random.random_range(0.5..0.98);
        for _ in 0..random.random_range(0..300) {
            let choice = if random.random_bool(bias) { "a" } else { "b" };
            count.count(["Kent", "Leeds", "York"].choose(&mut random).unwrap(), choice);
            count.publish(Duration::from_millis(random.random_range(0..2_000)));
            if random.random_bool(0.02) {
                count.is_quiet();
            }
        }
        count.is_quiet();
        for newer in 1..count.releases.len() {
            for older in 0..newer {
                let (then, now) = (count.totals(older), count.totals(newer));
                let moved: Vec<i64> = now
                    .iter()
                    .map(|(choice, n)| n - then.get(choice).unwrap_or(&0))
                    .filter(|n| *n != 0)
                    .collect();
                assert!(moved.len() > 1 && moved.iter().sum::<i64>() >= 10, "{moved:?}");
            }
        }
    }
}

/// Ballots by their number, and whether they are added or taken away: what an attacker makes of published figures.
type Set = Vec<i8>;

/// The sets of ballots whose choices the releases tell.
fn told(count: &Count) -> Vec<Set> {
    let mut told: Vec<Set> = Vec::new();
    let set =
        |is_in: &dyn Fn(usize) -> bool| (0..count.ballots.len()).map(|i| is_in(i) as i8).collect::<Set>();
    let mut until: BTreeMap<(String, i64), usize> = BTreeMap::new();
    let mut seen: BTreeMap<String, i64> = BTreeMap::new();
    for (i, (place, _)) in count.ballots.iter().enumerate() {
        let n = seen.entry(place.clone()).or_default();
        *n += 1;
        until.insert((place.clone(), *n), i);
    }
    for release in &count.releases {
        told.push(set(&|i| i < release.rows as usize));
        let mut of_place: BTreeMap<String, i64> = BTreeMap::new();
        if release.published.views.contains_key("by_place") {
            for ((place, _), votes) in by_place(release) {
                *of_place.entry(place).or_default() += votes;
            }
        }
        for (place, votes) in of_place {
            let last = until[&(place.clone(), votes)];
            told.push(set(&|i| i <= last && count.ballots[i].0 == place));
        }
    }
    told.sort();
    told.dedup();
    told
}

/// Sets of few, or of people who all chose alike, that adding and subtracting at most three figures tells.
fn exposed(count: &Count) -> Vec<(usize, Vec<String>)> {
    let told = told(count);
    let mut exposed = Vec::new();
    let none = vec![0; count.ballots.len()];
    let mut look = |parts: [&Set; 3], signs: [i8; 3]| {
        let mut members = Vec::new();
        for (i, ((a, b), c)) in parts[0].iter().zip(parts[1]).zip(parts[2]).enumerate() {
            match a * signs[0] + b * signs[1] + c * signs[2] {
                0 => {}
                1 => members.push(i),
                _ => return,
            }
        }
        let mut choices: Vec<String> = members.iter().map(|i| count.ballots[*i].1.clone()).collect();
        choices.sort();
        let alike = choices.first() == choices.last();
        if !members.is_empty() && (members.len() < POLICY.cell_min as usize || alike) {
            exposed.push((members[0], choices));
        }
    };
    for (i, a) in told.iter().enumerate() {
        look([a, &none, &none], [1, 0, 0]);
        for b in &told {
            look([a, b, &none], [1, -1, 0]);
            for (_, c) in told.iter().enumerate().filter(|(k, _)| *k > i) {
                look([a, b, c], [1, -1, 1]);
            }
            for c in &told {
                look([a, b, c], [1, -1, -1]);
            }
        }
    }
    exposed
}

fn random_night(seed: u64, places: fn(&Count, &str) -> bool) -> Count {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut count = Count::new(POLICY);
    count.places = Some(places);
    count.publish(Duration::ZERO);
    let mut ballots = Vec::new();
    for place in ["Kent", "Leeds", "York", "Rutland"] {
        let (size, bias) = (random.random_range(3..60), random.random_range(0.3..0.9));
        for _ in 0..size {
            ballots.push((place, if random.random_bool(bias) { "a" } else { "b" }));
        }
    }
    ballots.shuffle(&mut random);
    for (place, choice) in ballots {
        count.count(place, choice);
        count.publish(Duration::from_millis(random.random_range(0..2_000)));
    }
    count.is_quiet();
    count
}

#[test]
fn who_adds_and_subtracts_places_that_are_shown_live_finds_nobody() {
    let (mut shown, mut nights) = (0, 0);
    for seed in 0..20 {
        let count = random_night(seed, |_, _| true);
        shown += by_place(count.releases.last().unwrap()).len();
        nights += 1;
        assert_eq!(exposed(&count), [], "seed {seed}");
    }
    assert!(shown > nights * 3, "{shown} rows in {nights} nights");
}
