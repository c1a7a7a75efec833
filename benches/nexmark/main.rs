//! Nexmark: how many events of a second each query takes, in micro-batches that are decoded already, beside Feldera's
//! figures. `cargo bench --bench nexmark [-- [--events N] [--micro-batch N] QUERY…]`
//!
//! Time is that of the processor, on one thread: what else the machine does counts little, and Feldera's figures are
//! by core too (the Rust queries of its README, 16 cores). What makes the events is not counted.

mod events;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cpu_time::ProcessTime;
use tally::catalog::Catalog;
use tally::engine::{Engine, session};
use tally::queries::QueryFile;

use self::events::{Events, Pace, side_input};

const PACE: Pace = Pace { per_second: 10_000, out_of_order: 1 };
const SEED: u64 = 1;

/// Thousands of events of a second on one core.
const FELDERA: [(&str, f64); 13] = [
    ("q0", 435.0),
    ("q3", 413.0),
    ("q4", 265.0),
    ("q5", 412.0),
    ("q7", 196.0),
    ("q8", 415.0),
    ("q9", 57.0),
    ("q15", 221.0),
    ("q16", 51.0),
    ("q17", 242.0),
    ("q18", 85.0),
    ("q19", 75.0),
    ("q20", 84.0),
];

struct Options {
    events: usize,
    micro_batch: usize,
    queries: Vec<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options> {
        let mut options = Options { events: 1_000_000, micro_batch: 1000, queries: Vec::new() };
        while let Some(arg) = args.next() {
            let mut number = || args.next().context("a number is missing")?.parse().context("no number");
            match arg.as_str() {
                // Cargo says so.
                "--bench" => {}
                "--events" => options.events = number()?,
                "--micro-batch" => options.micro_batch = number()?,
                query if !query.starts_with('-') => options.queries.push(query.into()),
                other => bail!("{other} is no option"),
            }
        }
        Ok(options)
    }
}

/// What a run of a query took.
struct Run {
    /// Of the processor, by micro-batch.
    times: Vec<Duration>,
    elapsed: Duration,
    rows_changed: usize,
    state_bytes: usize,
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nexmark");
    let tables = std::fs::read_to_string(folder.join("tables.sql"))?;
    println!("{} events in micro-batches of {}", options.events, options.micro_batch);
    println!(
        "{:5} {:>12} {:>10} {:>6} {:>9} {:>9} {:>9} {:>12} {:>10}",
        "query",
        "events/s",
        "Feldera",
        "times",
        "wall/s",
        "µs at 1/10",
        "µs at end",
        "rows changed",
        "state MB"
    );
    for number in 0..=22 {
        let name = format!("q{number}");
        if !options.queries.is_empty() && !options.queries.contains(&name) {
            continue;
        }
        let query = std::fs::read_to_string(folder.join(format!("q{number:02}.sql")))?;
        // The events of each query are the same, and nothing of one run is there in the next.
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let run = runtime.block_on(run(format!("{tables}\n{query}"), &options))?;
        report(&name, &run, &options);
    }
    Ok(())
}

async fn run(text: String, options: &Options) -> Result<Run> {
    let files = [QueryFile { path: PathBuf::from("nexmark.sql"), text }];
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    let side = side_input();
    let mut engine = Engine::plan(&catalog, &[("side_input".into(), side.schema())]).await?;
    engine.set_reference("side_input", vec![side]);
    engine.start().await?;
    let mut events = Events::new(SEED, PACE);
    let mut run = Run { times: Vec::new(), elapsed: Duration::ZERO, rows_changed: 0, state_bytes: 0 };
    for _ in 0..options.events / options.micro_batch {
        let micro_batch = events.take(options.micro_batch);
        let (start, on_cpu) = (Instant::now(), ProcessTime::now());
        for (stream, rows) in micro_batch {
            let applied = engine.apply(stream, rows, None).await?;
            run.rows_changed +=
                applied.changes.iter().map(|change| change.changelog.ops.len()).sum::<usize>();
        }
        run.times.push(on_cpu.elapsed());
        run.elapsed += start.elapsed();
    }
    if let Some(failure) = engine.failures().first() {
        bail!("{} has failed: {}", failure.view, failure.reason);
    }
    run.state_bytes = engine.state_bytes();
    Ok(run)
}

fn report(name: &str, run: &Run, options: &Options) {
    let on_cpu: Duration = run.times.iter().sum();
    let per_second = options.events as f64 / on_cpu.as_secs_f64();
    let feldera = FELDERA.iter().find(|(query, _)| *query == name).map(|(_, thousands)| thousands * 1000.0);
    let mean = |from: usize| {
        let part = &run.times[from..(from + run.times.len().div_ceil(10)).min(run.times.len())];
        (part.iter().sum::<Duration>() / part.len() as u32).as_micros()
    };
    let text = |number: Option<f64>, digits: usize| number.map_or("".into(), |n| format!("{n:.digits$}"));
    println!(
        "{name:5} {per_second:>12.0} {:>10} {:>6} {:>9.2} {:>9} {:>9} {:>12} {:>10}",
        text(feldera, 0),
        text(feldera.map(|feldera| per_second / feldera), 2),
        run.elapsed.as_secs_f64(),
        mean(run.times.len() / 10),
        mean(run.times.len() * 9 / 10),
        run.rows_changed,
        run.state_bytes / 1_000_000,
    );
}
