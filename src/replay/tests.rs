//! The golden files over an engine that stops after each micro-batch and goes on from what it has saved.

use std::path::Path;
use std::time::Instant;

use super::*;
use crate::checkpoint::{self, Header, Objects, Saver, State, Writer};
use crate::epoch_log::Definitions;
use crate::queries;
use crate::source::MessageRef;

impl Replay {
    /// Another engine of the same plans goes on from what this one saves.
    async fn restored(mut self, files: &[QueryFile], tables: &[(String, PathBuf)]) -> Replay {
        let mut saver = Saver::default();
        self.executor.save(&mut saver).unwrap();
        let mut anew = Replay::open(files, tables).await.unwrap();
        let mut loader = checkpoint::through_bytes(saver).unwrap();
        anew.executor.load(&mut loader).unwrap();
        loader.finish().unwrap();
        anew.epoch = self.epoch;
        anew
    }
}

/// What is said of the lines of a folder in micro-batches of so many: changed rows and lines that are not counted.
async fn told(folder: &str, inputs: &[&str], tables: &[&str], size: usize, restores: bool) -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let tables: Vec<_> =
        tables.iter().map(|name| (name.to_string(), dir.join(format!("{name}.csv")))).collect();
    let (_, files) = queries::load(Some(&dir)).unwrap();
    let mut replay = Replay::open(&files, &tables).await.unwrap();
    let mut told = Vec::new();
    let mut outputs = vec![replay.start().await.unwrap()];
    for name in inputs {
        let path = dir.join(format!("{name}.ndjson"));
        let input = InputFile { topic: name.to_string(), path, is_keyed: false };
        let source = replay.source_of(name).unwrap();
        let mut input = Lines::open(&input).unwrap();
        loop {
            let lines = input.next(size, RawBatch::default()).unwrap();
            if lines.is_empty() {
                break;
            }
            if restores {
                replay = replay.restored(&files, &tables).await;
            }
            outputs.push(replay.feed(source, lines).await.unwrap());
        }
    }
    for output in outputs {
        for change in output.changes {
            let changed = arrow::util::pretty::pretty_format_batches(&[change.changelog.rows]).unwrap();
            let all = arrow::util::pretty::pretty_format_batches(&[change.rows.batch().unwrap()]).unwrap();
            let (name, ops) = (&change.info.name, &change.changelog.ops);
            told.push(format!("{} {name} {ops:?}\n{changed}\n{all}", output.epoch));
        }
        told.extend(output.counted.iter().flat_map(|counted| &counted.rejects).map(|r| format!("{r:?}")));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_files_say_the_same_when_each_micro_batch_meets_a_restored_engine() {
    let folders: [(&str, &[&str], &[&str]); 3] = [
        ("types", &["readings", "ticks"], &[]),
        ("windows", &["clicks"], &[]),
        ("rules", &["ballots"], &["choices"]),
    ];
    for (folder, inputs, tables) in folders {
        for size in [1, 7] {
            let whole = told(folder, inputs, tables, size, false).await;
            assert!(whole.len() > 5, "{whole:?}");
            assert_eq!(told(folder, inputs, tables, size, true).await, whole, "{folder} by {size}");
        }
    }
}

/// Resident bytes of this process.
fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() >> 10
}

const FIGURES: &str = "
CREATE UNBOUNDED EXTERNAL TABLE votes (id VARCHAR, town BIGINT, n BIGINT, PRIMARY KEY (id))
  STORED AS KAFKA LOCATION 'votes';
CREATE MATERIALIZED VIEW by_town WITH (key = 'town') AS
  SELECT town, COUNT(*) AS votes, SUM(n) AS n, MAX(n) AS most FROM votes GROUP BY town;
CREATE UNBOUNDED EXTERNAL TABLE keys (id VARCHAR, PRIMARY KEY (id)) STORED AS KAFKA LOCATION 'keys';
CREATE MATERIALIZED VIEW all_keys AS SELECT COUNT(*) AS n FROM keys;";

/// Feeds `rows` rows with numbers from `first` on.
async fn feed(replay: &mut Replay, topic: &str, first: usize, rows: usize) {
    let source = replay.source_of(topic).unwrap();
    for from in (first..first + rows).step_by(50_000) {
        let mut batch = RawBatch::default();
        for row in from..(from + 50_000).min(first + rows) {
            let text = match topic {
                "votes" => format!(r#"{{"id":"v{row:015}","town":{},"n":{}}}"#, row % 1_000_000, row % 9),
                _ => format!(r#"{{"id":"v{row:015}"}}"#),
            };
            let (offset, payload) = (row as i64, Some(text.as_bytes()));
            batch.push(MessageRef { offset, payload, ..MessageRef::default() });
        }
        replay.feed(source, batch).await.unwrap();
    }
}

/// Seconds to take a snapshot, and to write it; and its bytes, of which so many are new.
async fn figures(replay: &mut Replay, writer: &mut Writer, what: &str) {
    let begun = Instant::now();
    let mut saver = Saver::default();
    replay.executor.save(&mut saver).unwrap();
    let (tables, values) = saver.into_parts();
    let taken = begun.elapsed();
    let header = Header {
        program: Header::this_program(),
        engine_id: "figures".into(),
        epoch: replay.epoch,
        entry: String::new(),
        at_ms: 0,
        definitions: Definitions::default(),
    };
    let (begun, tables_count) = (Instant::now(), tables.len());
    let written = writer.write(State { header, tables, values }).await.unwrap();
    println!(
        "{what}: snapshot {:.1} ms of {tables_count} tables, written in {:.2} s, {} MB, {} MB new, resident {} MiB",
        taken.as_secs_f64() * 1e3,
        begun.elapsed().as_secs_f64(),
        written.bytes / 1_000_000,
        written.new_bytes / 1_000_000,
        resident_mib()
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn checkpoints_in_figures() {
    let files = [QueryFile { path: "f.sql".into(), text: FIGURES.into() }];
    let directory = tempfile::TempDir::new().unwrap();
    let objects = Objects::open(directory.path().to_str().unwrap(), "figures").unwrap();
    let mut writer = Writer::new(objects.clone(), None);
    let mut replay = Replay::open(&files, &[]).await.unwrap();
    replay.start().await.unwrap();
    feed(&mut replay, "votes", 0, 1_000_000).await;
    figures(&mut replay, &mut writer, "1e6 groups, 1e6 keys").await;
    feed(&mut replay, "votes", 1_000_000, 10_000).await;
    figures(&mut replay, &mut writer, "10,000 rows more").await;
    figures(&mut replay, &mut writer, "nothing more").await;
    let found = checkpoint::found(&objects).await.unwrap().remove(0);
    let begun = Instant::now();
    let mut loader = found.read(&objects).await.unwrap();
    let read = begun.elapsed();
    let mut anew = Replay::open(&files, &[]).await.unwrap();
    let begun = Instant::now();
    let shown = anew.executor.load(&mut loader).unwrap();
    println!(
        "recovery: read in {:.2} s, loaded in {:.2} s, {} rows",
        read.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        shown[1].rows.total()
    );
    drop((anew, shown, replay));
    let mut replay = Replay::open(&files, &[]).await.unwrap();
    replay.start().await.unwrap();
    let before = resident_mib();
    feed(&mut replay, "keys", 0, 10_000_000).await;
    println!(
        "1e7 keys of 16 bytes: {} MiB, as told {} MB",
        resident_mib() - before,
        replay.executor.state_bytes() / 1_000_000
    );
    figures(&mut replay, &mut writer, "1e7 keys").await;
    feed(&mut replay, "keys", 10_000_000, 100_000).await;
    figures(&mut replay, &mut writer, "1e5 keys more").await;
}
