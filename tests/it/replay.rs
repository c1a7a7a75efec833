//! Golden pipelines: files in, a view or its changes out, at several sizes of micro-batches. With
//! TALLY_UPDATE_GOLDEN set the expected files are written anew: look at the difference.

use std::path::{Path, PathBuf};

use tally::queries;
use tally::replay::{Format, InputFile, Replay, Script, Show, replay};
use tally::{election, reference};

/// What is printed for a folder of `tests/golden`, and what is said of lines that are not counted.
async fn run(folder: &str, inputs: &[&str], tables: &[&str], size: usize, show: &Show) -> (String, String) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let named = |names: &[&str], extension: &str| -> Vec<(String, PathBuf)> {
        names.iter().map(|name| (name.to_string(), dir.join(format!("{name}.{extension}")))).collect()
    };
    let (_, files) = queries::load(Some(&dir)).unwrap();
    let engine = Replay::open(&files, &named(tables, "csv")).await.unwrap();
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let of_lines = |(topic, path)| InputFile { topic, path, is_keyed: false };
    let inputs: Vec<_> = named(inputs, "ndjson").into_iter().map(of_lines).collect();
    let shows = vec![show.clone()];
    let script = Script { inputs, tables: Vec::new(), batch_rows: size, shows, format: Format::Table };
    replay(engine, &script, &mut out, &mut errors).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(dir.to_str().unwrap(), ".");
    (text(out), text(errors))
}

async fn check(folder: &str, inputs: &[&str], tables: &[&str], views: &[&str]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut expected = String::new();
    for view in views {
        let show = Show::View(view.to_string());
        let (rows, errors) = run(folder, inputs, tables, 1000, &show).await;
        for size in [1, 2, 7] {
            let (same, same_errors) = run(folder, inputs, tables, size, &show).await;
            assert_eq!(same, rows, "{view} in micro-batches of {size}");
            assert_eq!(sorted_lines(&same_errors), sorted_lines(&errors), "{view} by {size}");
        }
        if *view == views[0] {
            expected += &errors;
        }
        let (changes, _) = run(folder, inputs, tables, 3, &Show::Changelog(view.to_string())).await;
        expected += &format!("\n{view}\n{rows}\n{view}, changes by micro-batches of 3\n{changes}");
    }
    let file = dir.join("expected.txt");
    if std::env::var_os("TALLY_UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &expected).unwrap();
    }
    assert_eq!(expected, std::fs::read_to_string(&file).unwrap());
}

/// Several files are read in turn, so that their lines are told in another order.
fn sorted_lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_read_and_aggregated() {
    check("types", &["readings", "ticks"], &[], &["as_read", "extremes", "ticks_as_read"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_become_final_and_late_rows_are_told() {
    check("windows", &["clicks"], &[], &["per_minute", "final_minutes", "visits"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ballots_that_break_a_rule_are_told_by_line() {
    check("rules", &["ballots"], &["choices"], &["result", "leaders"]).await;
}

#[tokio::test]
async fn check_says_what_is_kept_what_it_costs_and_what_is_not_certain() {
    let (_, files) = queries::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("queries"))).unwrap();
    let tables = reference::tables_of_migrations(&election::MIGRATIONS);
    let text = tally::replay::check(&files, &[], tables).await.unwrap().text(false);
    for said in [
        "source votes ← votes_topic",
        "rules: check(vote = 1), foreign_key(candidate_id), foreign_key(voter_id), not_null(candidate_id)",
        "warning: votes_topic need not be keyed by voter_id",
        "view votes_over_time keeps a group for each",
        "until the watermark has passed their end",
        "mode: update",
    ] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
}

#[tokio::test]
async fn check_says_what_a_source_keeps_so_that_rows_can_be_taken_back() {
    let declared = |name: &str, key: &str, options: &str| {
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE {name} (id VARCHAR, n INT{key}) STORED AS KAFKA LOCATION '{name}' \
             OPTIONS ({options});"
        )
    };
    let key = ", PRIMARY KEY (id)";
    let text = declared("replaced", key, "'on_conflict' 'replace'")
        + &declared("changed", key, "'format' 'debezium-json'")
        + &declared("rows", "", "'format' 'debezium-json'");
    let files = [queries::QueryFile { path: PathBuf::from("s.sql"), text }];
    let text = tally::replay::check(&files, &[], Vec::new()).await.unwrap().text(false);
    for said in [
        "takes back: keeps the newest row of each id; a later message replaces it, an empty message with that key",
        "takes back: keeps the newest row of each id; `after` replaces it, op d deletes it",
        "takes back: keeps every row, whole",
        "of two messages with one id in two partitions the newest by the broker's timestamp counts",
        "warning: rows needs one partition, or a PRIMARY KEY",
        "source rows ← rows\n  columns: id Utf8, n Int32\n  kept: id, n\n",
    ] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
}
