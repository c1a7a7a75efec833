//! Projects as their owners use them: `tally init`, `test`, `replay` and `dev`, each as the program that they run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

fn tally(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    command.current_dir(folder).args(arguments).env_remove("RUST_LOG");
    command
}

/// Exit code, and what was said on standard output and standard error.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    said(tally(folder, arguments).output().unwrap())
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn write(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A fresh copy of an example.
fn project(example: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, errors) = run(folder.path(), &["init", "mine", "--example", example]);
    assert_eq!(code, 0, "{errors}");
    folder
}

#[test]
fn every_example_passes_its_tests() {
    for example in ["shop", "clicks", "sensors", "cdc", "election"] {
        let (code, said, errors) = run(repository(), &["test", &format!("examples/{example}")]);
        assert_eq!(code, 0, "{said}{errors}");
        assert!(said.contains(" 0 failed"), "{said}");
    }
}

#[test]
fn the_files_of_tests_sql_hold_where_their_rows_are_messages_too() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository().join("tests/sql")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let (code, said, errors) = run(folder.path(), &["test"]);
    assert_eq!(code, 0, "{said}{errors}");
}

#[test]
fn a_fresh_project_passes_its_tests_and_its_check() {
    for example in ["shop", "clicks", "sensors", "cdc"] {
        let folder = project(example);
        let mine = folder.path().join("mine");
        let (code, said, errors) = run(&mine, &["test"]);
        assert_eq!(code, 0, "{said}{errors}");
        let (code, _, errors) = run(&mine, &["check"]);
        assert_eq!(code, 0, "{errors}");
        let (_, config, _) = run(&mine, &["config"]);
        assert!(config.contains("release_ballots = 1\n"), "{config}");
    }
}

#[test]
fn a_test_that_fails_says_how_and_can_be_brought_up_to_date() {
    let folder = project("shop");
    let mine = folder.path().join("mine");
    let views = std::fs::read_to_string(mine.join("queries/views.sql")).unwrap();
    write(&mine, "queries/views.sql", &views.replace("SUM(amount)", "MAX(amount)"));
    let (code, said, errors) = run(&mine, &["test", "--junit", "report.xml"]);
    assert_eq!(code, 4, "{said}{errors}");
    assert!(errors.contains("1 of 2 tests failed"), "{errors}");
    assert!(said.contains("FAILED  ./tests/revenue.slt"), "{said}");
    assert!(said.contains("./tests/revenue.slt:24: these rows are expected (-)"), "{said}");
    assert!(said.contains("-DE 2 32.90\n        +DE 2 25.00"), "{said}");
    let report = std::fs::read_to_string(mine.join("report.xml")).unwrap();
    assert!(report.contains(r#"tests="2""#) && report.contains(r#"failures="1""#), "{report}");
    assert!(report.contains("+DE 2 25.00"), "{report}");
    let (code, said, _) = run(&mine, &["test", "--update"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("what came out was written"), "{said}");
    let test = std::fs::read_to_string(mine.join("tests/revenue.slt")).unwrap();
    assert!(test.contains("----\nDE 2 25.00"), "{test}");
    assert_eq!(run(&mine, &["test"]).0, 0);
}

#[test]
fn a_folder_of_given_rows_fails_for_another_view_another_changelog_and_a_message_that_is_not_counted() {
    let folder = project("shop");
    let mine = folder.path().join("mine");
    let expected = "tests/late_shipment/expected";
    write(&mine, &format!("{expected}/open_orders.csv"), "order_id,customer,ordered_at\n");
    std::fs::remove_file(mine.join(expected).join("dead_letters.csv")).unwrap();
    let (code, said, _) = run(&mine, &["test", "tests/late_shipment"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("+o1,Ann,2026-03-02T09:00:00"), "{said}");
    assert!(said.contains("+shipments,3,not_null(shipped_at)"), "{said}");
    let (code, said, _) = run(&mine, &["test", "--update"]);
    assert_eq!(code, 0, "{said}");
    write(&mine, &format!("{expected}/opened.csv"), "");
    let (_, said, _) = run(&mine, &["test"]);
    assert!(said.contains("expected/opened.csv: ") && said.contains("no view `opened`"), "{said}");
}

#[test]
fn what_is_no_project_and_what_is_no_query_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, errors) = run(folder.path(), &["test"]);
    assert_eq!(code, 1);
    assert!(errors.contains("no tests in .") && errors.contains("tally init shop"), "{errors}");
    let (code, _, errors) = run(folder.path(), &["dev"]);
    assert_eq!(code, 1);
    assert!(errors.contains("no folder queries here") && errors.contains("tally init shop"), "{errors}");
    write(folder.path(), "queries/a.sql", "CREATE MATERIALIZED VEIW v AS SELECT 1;");
    write(folder.path(), "tests/a.slt", "statement ok\nINSERT INTO orders VALUES (1)\n");
    let (code, _, errors) = run(folder.path(), &["test"]);
    assert_eq!(code, 1);
    assert!(errors.contains("queries/a.sql:1:"), "{errors}");
}

const STREAM: &str = "CREATE UNBOUNDED EXTERNAL TABLE orders (id VARCHAR NOT NULL, customer VARCHAR, PRIMARY KEY (id))
    STORED AS KAFKA LOCATION 'orders';
    CREATE EXTERNAL TABLE customers (customer VARCHAR, country VARCHAR) STORED AS CSV LOCATION 'customers.csv';
    CREATE MATERIALIZED VIEW countries AS SELECT c.country, COUNT(*) AS n
    FROM orders o JOIN customers c ON c.customer = o.customer GROUP BY c.country;
    CREATE MATERIALIZED VIEW total AS SELECT COUNT(*) AS n FROM orders;";

fn stream() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "queries/all.sql", STREAM);
    write(folder.path(), "customers.csv", "country,customer\nDE,ann\n");
    write(folder.path(), "later.csv", "customer,country\nann,FR\nben,FR\n");
    let lines = r#"{"id": "1", "customer": "ann"}
{"id": "2", "customer": "ben"}
{"id": "3", "customer": "ann"}
{"id": "4", "customer": "ben"}
{"id": "4", "customer": "ben"}
"#;
    write(folder.path(), "orders.ndjson", lines);
    folder
}

#[test]
fn replay_reads_standard_input_prints_several_views_and_changes_tables_meanwhile() {
    let folder = stream();
    let arguments =
        ["replay", "--input", "orders=-", "--table", "customers@2=later.csv", "--view", "countries"];
    let mut command = tally(folder.path(), &arguments);
    command.args(["--view", "total", "--format", "json"]).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = std::fs::read(folder.path().join("orders.ndjson")).unwrap();
    child.stdin.take().unwrap().write_all(&lines).unwrap();
    let (code, rows, errors) = said(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{errors}");
    let expected = r#"{"view":"countries","row":{"country":"DE","n":1}}
{"view":"countries","row":{"country":"FR","n":2}}
{"view":"total","row":{"n":4}}
"#;
    assert_eq!(rows, expected, "the first two orders met the first table, the others the second");
    assert!(errors.contains("-:5: primary_key(id)"), "{errors}");
    let (code, _, errors) = run(
        folder.path(),
        &["replay", "--input", "orders=orders.ndjson", "--table", "customers@9=later.csv", "--view", "total"],
    );
    assert_eq!(code, 1);
    assert!(errors.contains("customers was to change after 9 messages, and only 5 came"), "{errors}");
}

#[test]
fn replay_compares_with_a_file_and_fails_for_a_rejected_line_where_it_is_told_to() {
    let folder = stream();
    let base = ["replay", "--input", "orders=orders.ndjson", "--view", "total", "--format", "csv"];
    let with = |more: &[&str]| run(folder.path(), &[&base[..], more].concat());
    write(folder.path(), "expected.csv", "n\n4\n");
    assert_eq!(with(&["--expect", "expected.csv"]).0, 0);
    let (code, _, errors) = with(&["--strict"]);
    assert_eq!(code, 4);
    assert!(errors.contains("orders.ndjson:5: primary_key(id)"), "{errors}");
    write(folder.path(), "expected.csv", "n\n5\n");
    let (code, diff, errors) = with(&["--expect", "expected.csv"]);
    assert_eq!(code, 4);
    assert!(diff.contains("-5\n+4\n"), "{diff}");
    assert!(errors.contains("expected.csv: this is expected (-)"), "{errors}");
}

/// `tally dev` while it runs. It is ended as by Ctrl-C.
struct Dev {
    child: Child,
    said: std::sync::mpsc::Receiver<String>,
    all: String,
    page: String,
}

impl Dev {
    fn start(folder: &Path, arguments: &[&str]) -> Dev {
        let mut command = tally(folder, &["dev", "--listen", "127.0.0.1:0"]);
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (sender, said) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut dev = Dev { child, said, all: String::new(), page: String::new() };
        let page = dev.wait_for("page  ");
        dev.page = page.trim_start_matches("page").trim().to_string();
        dev
    }

    /// The next line that has this text.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("{text:?} was not said, but\n{}", self.all));
            self.all += &format!("{line}\n");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until the rows of a view are these.
    async fn wait_for_rows(&self, view: &str, rows: &Value) {
        let (begun, mut found) = (Instant::now(), Value::Null);
        while begun.elapsed() < PATIENCE {
            if let Ok(answer) = reqwest::get(format!("{}api/views/{view}", self.page)).await {
                found = answer.json().await.unwrap_or_default();
                if found["rows"] == *rows {
                    return;
                }
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("{view} is {found:#}, and not {rows:#}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::INT).ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_follows_edits_and_goes_on_where_one_is_wrong() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let folder = project("shop");
    let mine = folder.path().join("mine");
    let inputs = ["--input", "orders=data/orders.ndjson", "--input", "shipments=data/shipments.ndjson"];
    let mut dev = Dev::start(&mine, &inputs);
    dev.wait_for("3 views over 2 sources; edits are followed");
    let carriers = serde_json::json!([
        {"carrier": "bike", "shipments": 2, "hours": 1.8},
        {"carrier": "post", "shipments": 3, "hours": 16.7},
    ]);
    dev.wait_for_rows("carriers", &carriers).await;

    let views = std::fs::read_to_string(mine.join("queries/views.sql")).unwrap();
    write(&mine, "queries/more.sql", "CREATE MATERIALIZED VIEW by_customer AS SELECT custmer FROM orders;");
    dev.wait_for("queries/more.sql:1:");
    dev.wait_for("The version before goes on.");
    dev.wait_for_rows("carriers", &carriers).await;

    write(
        &mine,
        "queries/more.sql",
        "CREATE MATERIALIZED VIEW best AS SELECT customer, SUM(amount) AS amount FROM orders GROUP BY customer \
         ORDER BY amount DESC, customer LIMIT 1;",
    );
    write(&mine, "queries/views.sql", &views.replace(" / 3600", " / 60"));
    dev.wait_for("4 views over 2 sources, counted again from the beginning");
    dev.wait_for_rows("best", &serde_json::json!([{"customer": "Cleo", "amount": 80.0}])).await;
    let orders = std::fs::read_to_string(mine.join("queries/orders.sql")).unwrap();
    write(&mine, "queries/orders.sql", &orders.replace("amount > 0", "amount >= 0"));
    dev.wait_for("counted again from the beginning");
    let revenue = serde_json::json!([
        {"country": "DE", "orders": 4, "revenue": 186.19},
        {"country": "FR", "orders": 3, "revenue": 89.6},
        {"country": "IT", "orders": 2, "revenue": 7.9},
    ]);
    dev.wait_for_rows("revenue", &revenue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_starts_a_postgres_where_a_table_is_named_and_fills_it() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let folder = project("sensors");
    let mine = folder.path().join("mine");
    let mut dev = Dev::start(&mine, &["--input", "readings=data/readings.ndjson"]);
    dev.wait_for("postgres  ");
    dev.wait_for("stations: 3 rows of data/stations.csv");
    let seen = |station: &str, readings: u64, newest: &str| serde_json::json!({"station": station, "readings": readings, "newest": newest});
    let rows = Value::Array(vec![
        seen("s1", 3, "2026-03-02T09:02:05Z"),
        seen("s2", 3, "2026-03-02T09:02:40Z"),
        seen("s3", 3, "2026-03-02T09:04:00Z"),
    ]);
    dev.wait_for_rows("stations_seen", &rows).await;
}
