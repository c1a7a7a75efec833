//! Runs drawn cases on all cores, makes what fails smaller, and says what is left of it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use futures::future::LocalBoxFuture;

use super::show::show;
use super::{Case, REFUSED};

/// Cases of a test, unless `TALLY_ORACLE_CASES` says otherwise.
const CASES: u64 = 130;
/// Runs that making a failed case smaller may take, unless `TALLY_ORACLE_SHRINK` says otherwise.
const SHRINKING_RUNS: u64 = 300;

thread_local! {
    /// Whether panics of this thread are expected, and not worth a line each.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs every seed's case; the first that fails is told in full, of the others their seeds.
pub fn for_each_seed<Run>(draw: impl Fn(u64) -> Case + Sync, run: Run)
where
    Run: Fn(Case) -> LocalBoxFuture<'static, ()> + Sync,
{
    hush();
    let seeds = seeds();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed: Vec<(u64, String)> = std::thread::scope(|scope| {
        let part = |part: usize| {
            let (seeds, draw, run) = (&seeds, &draw, &run);
            scope.spawn(move || {
                QUIET.set(true);
                let of_part = seeds.iter().filter(|seed| **seed as usize % threads == part);
                of_part.filter_map(|seed| fail(*seed, draw, run)).collect::<Vec<_>>()
            })
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    failed.sort();
    if std::env::var_os("TALLY_ORACLE_ALL").is_some() {
        failed.iter().for_each(|(_, text)| eprintln!("{text}\n"));
    }
    if let Some((_, first)) = failed.first() {
        let others: Vec<_> = failed.iter().map(|(seed, _)| seed.to_string()).collect();
        panic!(
            "{} of {} failed: seeds {}; the first:\n{first}",
            failed.len(),
            seeds.len(),
            others.join(", ")
        );
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seeds() -> Vec<u64> {
    match number("TALLY_ORACLE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TALLY_ORACLE_CASES").unwrap_or(CASES)).collect(),
    }
}

/// How a seed's case fails, once it is as small as it gets.
fn fail<Run>(seed: u64, draw: impl Fn(u64) -> Case, run: Run) -> Option<(u64, String)>
where
    Run: Fn(Case) -> LocalBoxFuture<'static, ()>,
{
    let attempt = |case: &Case| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let attempt = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(case.clone()))));
        attempt.err().map(|panic| match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (_, Some(text)) => text.to_string(),
            _ => String::new(),
        })
    };
    let drawn = catch_unwind(AssertUnwindSafe(|| draw(seed)));
    let Ok(mut case) = drawn else {
        return Some((seed, format!("seed {seed}: no case can be drawn")));
    };
    let mut reason = attempt(&case)?;
    let mut left = number("TALLY_ORACLE_SHRINK").unwrap_or(SHRINKING_RUNS);
    'smaller: loop {
        for smaller in case.smaller() {
            if left == 0 {
                break 'smaller;
            }
            left -= 1;
            // What is no view any more is not smaller.
            let is_same = |text: &String| text.starts_with(REFUSED) == reason.starts_with(REFUSED);
            if let Some(text) = attempt(&smaller).filter(is_same) {
                (case, reason) = (smaller, text);
                continue 'smaller;
            }
        }
        break;
    }
    let reason = reason.replace(&case.texts().join(";\n"), "");
    Some((seed, format!("seed {seed}: {reason}\n{}", show(&case))))
}

/// Panics of the threads that run cases are told by the test itself.
fn hush() {
    static HUSHED: Once = Once::new();
    HUSHED.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                others(panic);
            }
        }));
    });
}
