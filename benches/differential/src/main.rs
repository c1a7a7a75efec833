//! The case `join` of tally's bench `operators`, by differential-dataflow: two streams of the same rows, in micro-batches of
//! 1000 of each, joined as `SELECT b.id, a.v AS av, b.v FROM a JOIN b ON b.k = a.k`. `scripts/bench-join` runs both.
//!
//! Time is that of the processor, on one thread, as there; making the rows is not in it. What the join puts out is counted
//! here and not kept, while tally also keeps the view's rows and tells its changelog.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cpu_time::ProcessTime;
use differential_dataflow::input::Input;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const MICRO_BATCH: usize = 1000;
/// Micro-batches whose mean is told.
const MEASURED: usize = 50;

/// A key, and what is asked of the row that has it.
type A = (i64, i64);
type B = (i64, (i64, i64));

/// Rows that come, of both streams: the draws of the other bench in their order. The keys of `a` are all different; each
/// of `b` is one of `a` so far.
struct Rows {
    random: ChaCha8Rng,
    made: usize,
}

impl Rows {
    fn new() -> Rows {
        Rows { random: ChaCha8Rng::seed_from_u64(1), made: 0 }
    }

    fn next(&mut self) -> (Vec<A>, Vec<B>) {
        let ids = self.made..self.made + MICRO_BATCH;
        self.made += MICRO_BATCH;
        let of_a = ids.clone().map(|id| (id as i64, self.random.random_range(0..1_000_000))).collect();
        let keys: Vec<i64> = ids.clone().map(|_| self.random.random_range(0..ids.end) as i64).collect();
        let row = |(id, key): (usize, i64)| (key, (id as i64, self.random.random_range(0..1_000_000)));
        (of_a, ids.clone().zip(keys).map(row).collect())
    }
}

/// What each micro-batch takes, and how many rows the join puts out in all.
fn join(micro_batches: usize) -> (Vec<Duration>, i64) {
    timely::execute_directly(move |worker| {
        let joined = Rc::new(Cell::new(0));
        let counter = Rc::clone(&joined);
        let (mut a, mut b, probe) = worker.dataflow::<u32, _, _>(|scope| {
            let (a, of_a) = scope.new_collection::<A, isize>();
            let (b, of_b) = scope.new_collection::<B, isize>();
            let (probe, _) = of_b
                .join_map(of_a, |_, (id, v), av| (*id, *av, *v))
                .inspect(move |(_, _, times)| counter.set(counter.get() + *times as i64))
                .probe();
            (a, b, probe)
        });
        let mut rows = Rows::new();
        let mut times = Vec::with_capacity(micro_batches);
        for micro_batch in 0..micro_batches {
            let (of_a, of_b) = rows.next();
            let start = ProcessTime::now();
            of_a.into_iter().for_each(|row| a.insert(row));
            of_b.into_iter().for_each(|row| b.insert(row));
            let next = micro_batch as u32 + 1;
            a.advance_to(next);
            b.advance_to(next);
            a.flush();
            b.flush();
            worker.step_while(|| probe.less_than(&next));
            times.push(start.elapsed());
        }
        (times, joined.get())
    })
}

fn mean(times: &[Duration]) -> f64 {
    times.iter().map(Duration::as_secs_f64).sum::<f64>() * 1e6 / times.len().max(1) as f64
}

fn main() -> Result<()> {
    let mut rows = 1_000_000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        ensure!(arg == "--rows", "{arg} is not known; --rows N says how many rows each stream has");
        rows = args.next().context("--rows needs a number")?.parse().context("--rows needs a number")?;
    }
    ensure!(rows >= MICRO_BATCH, "--rows must be {MICRO_BATCH} or more: a micro-batch has as many");
    let (times, joined) = join(rows / MICRO_BATCH);
    let given = times.len() * MICRO_BATCH;
    ensure!(joined == given as i64, "each row of b meets one of a, but {joined} of {given} came out");
    let tenth = times.len() / 10;
    let early = &times[tenth.saturating_sub(MEASURED / 2)..(tenth + MEASURED / 2).min(times.len())];
    let late = &times[times.len().saturating_sub(MEASURED)..];
    let all = times.iter().sum::<Duration>().as_secs_f64();
    println!("{given} rows of each stream; µs of a micro-batch of {MICRO_BATCH} of each, s of all");
    println!(
        "{:24} {:>10} {:>9} {:>9} {:>6} {:>9} {:>7} {:>12}",
        "", "", "at 1/10", "at end", "times", "worst", "all", "rows/s"
    );
    println!(
        "{:24} {:>10} {:>9.0} {:>9.0} {:>6.2} {:>9} {all:>7.2} {:>12.0}",
        "differential join",
        "append",
        mean(early),
        mean(late),
        mean(late) / mean(early),
        times.iter().max().map_or(0, Duration::as_micros),
        2.0 * given as f64 / all,
    );
    Ok(())
}
