//! The command line: what can be said, and the text of `--help`. Runs nothing.

mod help;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use self::help::{DEV_EXAMPLES, EXAMPLES, INIT_EXAMPLES, TEST_EXAMPLES};
use crate::config::Flags;
use crate::election::Habits;
use crate::error::{Error, Result};
use crate::project::EXAMPLES as EXAMPLES_OF_PROJECTS;
use crate::queries::QUERIES_DIR;
use crate::replay::{Format, InputFile, STDIN, TableFile};

/// A streaming SQL engine: views of Kafka topics, kept up to date.
#[derive(Debug, Parser)]
#[command(name = "tally", version, about, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// Settings file; without it, tally.toml here if it exists
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How `tally check` prints its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// One command and its flags.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole system: a broker, a Postgres, voters, votes, the engine and the dashboard
    Demo(Demo),
    /// Create the topics; those that exist are left as they are
    Topics {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// Their partitions and copies.
        #[command(flatten)]
        topics: Topics,
    },
    /// Fill Postgres with candidates and voters, and announce the voters on their topic
    Seed {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// How many.
        #[command(flatten)]
        population: Population,
    },
    /// Let the announced voters vote
    Vote {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// How.
        #[command(flatten)]
        voting: Voting,
        /// Votes per second; 0: as fast as it goes
        #[arg(long, default_value_t = 0.0, value_name = "VOTES/S", allow_negative_numbers = true, value_parser = rate)]
        rate: f64,
        /// Makes a run repeatable
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Go on as further voters are announced, until stopped
        #[arg(long)]
        follow: bool,
    },
    /// Run the engine, the HTTP API and the dashboard
    Run {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// How it runs and listens.
        #[command(flatten)]
        run: Run,
        /// Forget what was counted, count the topics from their beginning, and write what then differs
        #[arg(long)]
        rebuild: bool,
    },
    /// Count everything once more and compare it with what was published; exit code 4 if anything differs
    Audit {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// How the engine runs that is audited.
        #[command(flatten)]
        run: Run,
    },
    /// List the messages that were not counted, each with its reason and place, or send them back
    Rejects {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// Only those of rules that contain this text, such as `foreign_key`
        #[arg(long, value_name = "RULE")]
        reason: Option<String>,
        /// Go on as further ones come, until stopped
        #[arg(long)]
        follow: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Send the letters of a file (`-`: of standard input), lines of --json with corrected payloads, to the topics
        /// that they came from
        #[arg(long, value_name = "FILE", conflicts_with_all = ["reason", "follow", "json"])]
        replay: Option<PathBuf>,
    },
    /// Let Postgres announce each change of tables that views join, by a trigger on each
    Triggers {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// Tables of the configured schema
        #[arg(required = true, value_name = "TABLE")]
        tables: Vec<String>,
        /// Take the triggers away
        #[arg(long)]
        remove: bool,
    },
    /// Check a folder of .sql files without any server: columns, key, mode and upkeep of each view
    Check {
        /// Directory of the .sql files [default: ./queries if it exists, else those built in]
        #[arg(long, value_name = "DIR")]
        queries: Option<PathBuf>,
        /// Columns of a reference table that neither migrations/ nor a CREATE EXTERNAL TABLE declares, from a
        /// file; may be repeated
        #[arg(long = "table", value_name = "NAME=FILE", value_parser = named_file)]
        tables: Vec<(String, PathBuf)>,
        /// Each view's operators and plans too
        #[arg(long)]
        plan: bool,
        /// How the answer is printed
        #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
        format: CheckFormat,
    },
    /// Run files through the engine instead of Kafka and Postgres, and print a view or its changes
    Replay {
        /// Directory of the .sql files [default: ./queries if it exists, else those built in]
        #[arg(long, value_name = "DIR")]
        queries: Option<PathBuf>,
        /// The messages.
        #[command(flatten)]
        inputs: Inputs,
        /// A reference table, from .csv with a header or .ndjson; NAME@N=FILE has the rows that it has after N messages;
        /// may be repeated [default: the LOCATION of its declaration, if there is that file]
        #[arg(long = "table", value_name = "NAME[@N]=FILE", value_parser = table_file)]
        tables: Vec<TableFile>,
        /// Lines of a micro-batch; changes what a changelog shows, never the view
        #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        batch_rows: u32,
        /// Print this view as it is at the end; may be repeated
        #[arg(long = "view", required_unless_present = "changelogs")]
        views: Vec<String>,
        /// Print every change of this view, with its op and epoch; may be repeated
        #[arg(long = "changelog", value_name = "VIEW")]
        changelogs: Vec<String>,
        /// Output format
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Print how the output differs from this file instead; exit code 4 if it does
        #[arg(long, value_name = "FILE")]
        expect: Option<PathBuf>,
        /// Exit code 4 if a line is rejected, late, or left out of a view
        #[arg(long)]
        strict: bool,
    },
    /// Write a small project of your own: queries, sample rows, tests
    #[command(after_help = INIT_EXAMPLES)]
    Init {
        /// The folder, which must be new or empty
        #[arg(value_name = "NAME")]
        folder: PathBuf,
        /// What it is a copy of
        #[arg(long, default_value = EXAMPLES_OF_PROJECTS[0], value_parser = EXAMPLES_OF_PROJECTS)]
        example: String,
    },
    /// Run a project's tests without any server; exit code 4 if one fails
    #[command(after_help = TEST_EXAMPLES)]
    Test {
        /// A project, a folder of tests, or one test
        #[arg(default_value = ".")]
        path: PathBuf,
        /// Directory of the .sql files [default: the nearest queries/ at the path or above it]
        #[arg(long, value_name = "DIR")]
        queries: Option<PathBuf>,
        /// Write what comes out into the tests, as what is expected
        #[arg(long)]
        update: bool,
        /// Write a JUnit report too
        #[arg(long, value_name = "FILE.xml")]
        junit: Option<PathBuf>,
    },
    /// Run a project on this machine: a broker, a Postgres if a query needs it, the engine and the page; edits are
    /// followed
    #[command(after_help = DEV_EXAMPLES)]
    Dev(Dev),
    /// Run one query for the server, which speaks to it on standard input
    #[command(hide = true)]
    SqlWorker,
    /// Print the effective settings, without secrets
    Config {
        /// Kafka, Postgres and queries.
        #[command(flatten)]
        flags: Flags,
        /// How it runs and listens.
        #[command(flatten)]
        run: Run,
    },
}

/// Files whose lines are messages.
#[derive(Clone, Debug, Default, Args)]
pub struct Inputs {
    /// A file whose lines are the messages of a topic, `-` for standard input; may be repeated
    #[arg(long = "input", value_name = "TOPIC=FILE.ndjson", value_parser = named_file)]
    pub inputs: Vec<(String, PathBuf)>,
    /// The same, of lines that are a key, a tab and a value, or no value for an empty message; may be repeated
    #[arg(long = "keyed-input", value_name = "TOPIC=FILE", value_parser = named_file)]
    pub keyed_inputs: Vec<(String, PathBuf)>,
}

impl Inputs {
    /// Both kinds.
    ///
    /// # Errors
    /// If standard input is to be read twice.
    pub fn files(&self) -> Result<Vec<InputFile>> {
        let file = |is_keyed: bool| {
            move |(topic, path): &(String, PathBuf)| InputFile {
                topic: topic.clone(),
                path: path.clone(),
                is_keyed,
            }
        };
        let keyed = self.keyed_inputs.iter().map(file(true));
        let files: Vec<_> = self.inputs.iter().map(file(false)).chain(keyed).collect();
        if files.iter().filter(|file| file.path.as_os_str() == STDIN).count() > 1 {
            return Err(Error::Config(
                "standard input (`-`) can be read once: give the others as files".into(),
            ));
        }
        Ok(files)
    }
}

/// Flags of `dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Directory of the .sql files, whose edits are followed
    #[arg(long, value_name = "DIR", default_value = QUERIES_DIR)]
    pub queries: PathBuf,
    /// What is fed to topics.
    #[command(flatten)]
    pub inputs: Inputs,
    /// Messages of each input in a second [default: as fast as it goes]
    #[arg(long, value_name = "LINES/S", allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,
    /// Feed the inputs again and again, with the same times and keys: behind a watermark they come late
    #[arg(long = "loop")]
    pub repeat: bool,
    /// Rows of a Postgres table, from .csv with a header or .ndjson; may be repeated [default: the LOCATION of its
    /// declaration]
    #[arg(long = "table", value_name = "NAME=FILE", value_parser = named_file)]
    pub tables: Vec<(String, PathBuf)>,
    /// How the engine runs and listens.
    #[command(flatten)]
    pub run: Run,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Registered voters
    #[arg(long, default_value_t = 20_000)]
    pub voters: u64,
    /// Candidates
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub candidates: u32,
    /// Makes a run repeatable: the same seed makes the same people and choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How they vote.
    #[command(flatten)]
    pub voting: Voting,
    /// How long the night is, in which places count and declare one after another, as in 90s or 5m
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = night)]
    pub night: Duration,
    /// Instead, votes from everywhere, so many a second; 0: as fast as it goes
    #[arg(long, value_name = "VOTES/S", conflicts_with = "night", allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,
    /// Directory of the .sql files [default: ./queries if it exists, else those built in]
    #[arg(long, value_name = "DIR")]
    pub queries: Option<PathBuf>,
    /// How the engine runs and listens.
    #[command(flatten)]
    pub run: Run,
}

/// Who may vote, and for whom.
#[derive(Clone, Debug, Args)]
pub struct Population {
    /// Registered voters
    #[arg(long, default_value_t = 1000)]
    pub voters: u64,
    /// Candidates
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub candidates: u32,
    /// Makes a run repeatable: the same seed makes the same people
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How voters vote.
#[derive(Clone, Debug, Args)]
pub struct Voting {
    /// Share of the voters who vote, from 0 to 1
    #[arg(long, default_value_t = 0.7, value_parser = share)]
    pub turnout: f64,
    /// Share of additional bad messages, from 0 to 1: broken JSON, strangers, second votes, …
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub faulty: f64,
    /// Share of the voters who vote again, from 0 to 1; needs 'on_conflict' 'replace' in votes.sql: the last vote
    /// counts then
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub revote: f64,
}

impl Voting {
    /// The shares.
    pub fn habits(&self) -> Habits {
        let Voting { turnout, faulty, revote } = *self;
        Habits { turnout, faulty, revote }
    }
}

/// Settings of new topics.
#[derive(Debug, Args, Serialize)]
pub struct Topics {
    /// Partitions of each topic
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Copies of each partition
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<i32>,
}

/// Settings of the engine and the server.
#[derive(Debug, Args, Serialize)]
pub struct Run {
    /// Address of the dashboard and the API, HOST:PORT; port 0 takes any free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The operator's token; `ps` shows it to every user of this machine [default: a random one, printed at start]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A file that holds the token, which then nobody sees
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Let anybody ask ad-hoc SQL of the views, not the operator alone
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub public_sql: bool,
    /// Tells engines on one Kafka apart; one of the same id ends another [default: tally]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
    /// Directory of the checkpoints, which make a start short; "": none are written [default: tally-data]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<String>,
    /// Directory of the dashboard's files [default: those built in]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_dir: Option<PathBuf>,
    /// Most messages of a micro-batch [default: 50000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_rows: Option<usize>,
    /// Longest wait for a micro-batch to fill, in milliseconds [default: 50]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_ms: Option<u64>,
}

/// No setting of its own.
#[derive(Debug, Serialize)]
pub struct None {}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to 1, such as 0.05".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("a number a second, such as 500; 0: as fast as it goes".into()),
    }
}

/// "90s", "5m", "2h".
fn night(text: &str) -> Result<Duration, String> {
    let (number, unit_s) = match text.trim_end_matches(['s', 'm', 'h']) {
        number if text == format!("{number}s") => (number, 1),
        number if text == format!("{number}m") => (number, 60),
        number if text == format!("{number}h") => (number, 3600),
        _ => ("", 0),
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s)) {
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("a time of up to a day, such as 90s, 5m or 2h".into()),
    }
}

/// "customers=customers.csv", "customers@1000=later.csv".
fn table_file(text: &str) -> Result<TableFile, String> {
    let (name, path) = named_file(text)?;
    let (name, after) = match name.split_once('@') {
        Some((name, after)) => {
            (name.to_string(), after.parse().map_err(|_| format!("{after:?} is no number of messages"))?)
        }
        None => (name, 0),
    };
    Ok(TableFile { name, after, path })
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.into(), file.into())),
        _ => Err("NAME=FILE, such as orders=data/orders.ndjson".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_is_a_number_with_its_unit() {
        let seconds = |text| night(text).map(|night| night.as_secs());
        assert_eq!((seconds("90s"), seconds("5m"), seconds("2h")), (Ok(90), Ok(300), Ok(7200)));
        for wrong in ["", "5", "m", "5ms", "-5m", "0s", "25h", "5 m", "99999999999999999999h"] {
            assert!(night(wrong).is_err(), "{wrong}");
        }
    }
}
