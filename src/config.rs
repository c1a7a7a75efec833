//! The settings: defaults, then `tally.toml`, then `TALLY_*` environment variables, then flags, each
//! overriding the one before. Reads no file but the configuration file and opens no connection.

mod secrets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::secrets::{is_secret, redacted_url};
use crate::error::{Error, Result};

/// The file read when `--config` names no other. It may be missing.
pub const CONFIG_FILE: &str = "tally.toml";

const ENV_PREFIX: &str = "TALLY_";
const BOOTSTRAP_SERVERS: &str = "bootstrap.servers";
const HIDDEN: &str = "********";

/// Every setting, with its default from [`Config::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the dashboard and the HTTP API listen, as HOST:PORT; port 0 takes any free one.
    pub listen: String,
    /// The operator's token. Without one, a random token is made at start and printed.
    #[serde(deserialize_with = "optional_text")]
    pub token: Option<String>,
    /// A file that holds the token and nothing else; it is read instead of `token`.
    pub token_file: Option<PathBuf>,
    /// Names under which the server may be asked, beside localhost and addresses. Needed where a proxy passes a
    /// public name on; without any, a server that listens on loopback answers to no other name.
    #[serde(deserialize_with = "names")]
    pub hosts: Vec<String>,
    /// Most HTTP connections at one time.
    pub http_connections_max: usize,
    /// Directory of the dashboard's files; without it, those built into the binary.
    pub web_dir: Option<PathBuf>,
    /// Directory of the `.sql` files. Default: `queries` here if it exists, else those built in.
    pub queries: Option<PathBuf>,
    /// Postgres, as postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    pub postgres_url: String,
    /// A file that holds this URL and nothing else; it is read instead of `postgres_url`.
    pub postgres_url_file: Option<PathBuf>,
    /// The Postgres schema whose tables are reference tables.
    pub postgres_schema: String,
    /// Tells engines on one Kafka apart: each has an epoch log of its own, and one of the same id ends another.
    pub engine_id: String,
    /// Where checkpoints go, so that a start does not execute the whole history: a directory, or the URL of one. Empty:
    /// there are none.
    pub data_dir: String,
    /// Seconds from one checkpoint to the next; 0: there are none.
    pub checkpoint_interval_s: u64,
    /// Partitions of the topics that `tally topics` creates.
    pub partitions: i32,
    /// Copies of each partition of those topics.
    pub replication: i32,
    /// Most messages of a micro-batch.
    pub batch_rows: usize,
    /// Longest wait, in milliseconds, for a micro-batch to fill.
    pub trigger_ms: u64,
    /// Seconds after which a reference table is read again even if Postgres announced no change.
    pub reference_refresh_s: u64,
    /// Most bytes of state: primary keys, groups, held rows, views' rows. At the limit the engine stops and
    /// says what takes them; 0: no limit.
    pub state_bytes_max: usize,
    /// Least milliseconds between two releases, which are what the public sees of the views.
    pub release_interval_ms: u64,
    /// Least newly counted rows of a release.
    pub release_ballots: u64,
    /// Seconds without a new row after which a release has all rows that are counted; unless a view says when the
    /// count is complete (`complete_when`).
    pub release_quiet_s: u64,
    /// Groups of fewer rows are not shown in views with `secret_by`.
    pub small_cell: u64,
    /// Whether anybody may ask ad-hoc SQL of the views; otherwise the operator alone.
    pub public_sql: bool,
    /// Longest an ad-hoc query may run, in seconds.
    pub sql_timeout_s: u64,
    /// Most rows an ad-hoc query may return.
    pub sql_rows_max: usize,
    /// Most bytes of memory an ad-hoc query may take.
    pub sql_bytes_max: usize,
    /// Most ad-hoc queries at one time, of the operator and of the public each; of the public no more than half as
    /// many as there are cores.
    pub sql_concurrency_max: usize,
    /// librdkafka properties by name, such as `bootstrap.servers` or `security.protocol`.
    #[serde(deserialize_with = "kafka_properties")]
    pub kafka: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: "127.0.0.1:8080".into(),
            token: None,
            token_file: None,
            hosts: Vec::new(),
            http_connections_max: 10_000,
            web_dir: None,
            queries: None,
            postgres_url: "postgres://postgres:postgres@127.0.0.1:5432/voting".into(),
            postgres_url_file: None,
            postgres_schema: "public".into(),
            engine_id: "tally".into(),
            data_dir: "tally-data".into(),
            checkpoint_interval_s: 60,
            partitions: 4,
            replication: 1,
            batch_rows: 50_000,
            trigger_ms: 50,
            reference_refresh_s: 300,
            state_bytes_max: 8 << 30,
            release_interval_ms: 2_000,
            release_ballots: 10,
            release_quiet_s: 10,
            small_cell: 10,
            public_sql: false,
            sql_timeout_s: 30,
            sql_rows_max: 10_000,
            sql_bytes_max: 256 << 20,
            sql_concurrency_max: 4,
            kafka: BTreeMap::from([(BOOTSTRAP_SERVERS.into(), "127.0.0.1:9092".into())]),
        }
    }
}

impl Config {
    /// The effective settings. `file` is `--config`'s (it must then exist); `flags` and `command` have only
    /// the settings that were given on the command line, by name.
    pub fn load(file: Option<&Path>, flags: &Flags, command: &impl Serialize) -> Result<Config> {
        let variables = std::env::vars_os();
        let texts =
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load_with(Environment(texts.collect()), file, flags, command)
    }

    fn load_with(
        env: Environment,
        file: Option<&Path>,
        flags: &Flags,
        command: &impl Serialize,
    ) -> Result<Config> {
        let toml = match file {
            Some(path) if !path.is_file() => {
                return Err(Error::Config(format!(
                    "{} is not a file; give --config an existing TOML file, or leave it out",
                    path.display()
                )));
            }
            Some(path) => Toml::file_exact(path),
            None => Toml::file(CONFIG_FILE),
        };
        let layers = [Figment::from(toml), Figment::from(env)];
        let mut config: Config = Figment::from(Serialized::defaults(Config::default()))
            .merge(&layers[0])
            .merge(&layers[1])
            .merge(Serialized::defaults(flags))
            .merge(Serialized::defaults(command))
            .extract()
            .map_err(explain)?;
        // A property's name has dots, which a layer may write as tables or quoted: merged by whole names.
        config.kafka = Config::default().kafka;
        for layer in layers.iter().filter(|layer| layer.contains("kafka")) {
            let Properties(properties) = layer.extract_inner("kafka").map_err(explain)?;
            config.kafka.extend(properties);
        }
        if let Some(brokers) = &flags.brokers {
            config.kafka.insert(BOOTSTRAP_SERVERS.into(), brokers.clone());
        }
        for property in &flags.kafka_properties {
            let (name, value) = property.split_once('=').ok_or_else(|| {
                Error::Config(format!(
                    "-X {property}: write it as NAME=VALUE, for example -X security.protocol=SSL"
                ))
            })?;
            config.kafka.insert(name.trim().into(), value.trim().into());
        }
        if let Some(file) = &config.token_file {
            config.token = Some(secret_in(file, "token_file")?);
        }
        if let Some(file) = &config.postgres_url_file {
            config.postgres_url = secret_in(file, "postgres_url_file")?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The brokers' addresses.
    pub fn bootstrap_servers(&self) -> &str {
        self.kafka.get(BOOTSTRAP_SERVERS).map_or("", String::as_str)
    }

    /// The same settings with every secret hidden, as TOML that [`Config::load`] reads back.
    pub fn to_toml(&self) -> String {
        let mut shown = self.clone();
        shown.token = shown.token.map(|_| HIDDEN.into());
        shown.postgres_url = redacted_url(&shown.postgres_url);
        for (name, value) in &mut shown.kafka {
            if is_secret(name) {
                *value = HIDDEN.into();
            }
        }
        toml::to_string(&shown).unwrap_or_else(|e| format!("# these settings can't be shown as TOML: {e}\n"))
    }

    /// librdkafka's own words for a wrong property hold its value, which may be a secret.
    fn validate_kafka(&self) -> Result<()> {
        for (name, value) in &self.kafka {
            let Err(error) = ClientConfig::new().set(name, value).create_native_config() else { continue };
            let reason = match error {
                KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => {
                    "librdkafka knows no such property; its CONFIGURATION.md lists them".to_string()
                }
                _ if is_secret(name) => "its value is not valid, or this build does not support it".into(),
                KafkaError::ClientConfig(_, reason, ..) => reason,
                _ => "it can't be set".into(),
            };
            return Err(Error::Config(format!("kafka.{name}: {reason}")));
        }
        Ok(())
    }

    fn validate(&self) -> Result<()> {
        self.validate_kafka()?;
        let least = |name: &str, value: u64, least: u64| {
            if value >= least {
                return Ok(());
            }
            Err(Error::Config(format!("{name} is {value}; it must be at least {least}")))
        };
        least("partitions", self.partitions.max(0) as u64, 1)?;
        least("replication", self.replication.max(0) as u64, 1)?;
        least("batch_rows", self.batch_rows as u64, 1)?;
        least("trigger_ms", self.trigger_ms, 1)?;
        least("reference_refresh_s", self.reference_refresh_s, 1)?;
        least("release_ballots", self.release_ballots, 1)?;
        least("small_cell", self.small_cell, 1)?;
        least("release_quiet_s", self.release_quiet_s, 1)?;
        least("sql_timeout_s", self.sql_timeout_s, 1)?;
        least("sql_rows_max", self.sql_rows_max as u64, 1)?;
        least("sql_bytes_max", self.sql_bytes_max as u64, 1 << 20)?;
        least("sql_concurrency_max", self.sql_concurrency_max as u64, 1)?;
        least("http_connections_max", self.http_connections_max as u64, 1)?;
        let (id, fits) = (&self.engine_id, |c: char| c.is_ascii_alphanumeric() || "._-".contains(c));
        if id.is_empty() || id.len() > 200 || !id.chars().all(fits) {
            let reason = "a part of a topic's name is up to 200 letters, digits, `.`, `_` and `-`";
            return Err(Error::Config(format!("engine_id is {id:?}; {reason}")));
        }
        let most = |name: &str, value: u64, most: u64| {
            if value <= most {
                return Ok(());
            }
            Err(Error::Config(format!("{name} is {value}; it must be at most {most}")))
        };
        // What these bound are waits, threads and memory: more is a slip of the hand.
        most("partitions", self.partitions as u64, 10_000)?;
        most("replication", self.replication as u64, 100)?;
        most("batch_rows", self.batch_rows as u64, 10_000_000)?;
        most("trigger_ms", self.trigger_ms, 60_000)?;
        most("reference_refresh_s", self.reference_refresh_s, 365 * 24 * 3600)?;
        most("checkpoint_interval_s", self.checkpoint_interval_s, 7 * 24 * 3600)?;
        most("release_interval_ms", self.release_interval_ms, 24 * 3_600_000)?;
        most("release_quiet_s", self.release_quiet_s, 24 * 3600)?;
        most("sql_timeout_s", self.sql_timeout_s, 24 * 3600)?;
        most("sql_rows_max", self.sql_rows_max as u64, 100_000_000)?;
        most("sql_bytes_max", self.sql_bytes_max as u64, 1 << 40)?;
        most("sql_concurrency_max", self.sql_concurrency_max as u64, 256)?;
        most("http_connections_max", self.http_connections_max as u64, 10_000_000)?;
        if self.listen.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).is_none() {
            return Err(Error::Config(format!(
                "listen is {:?}; write HOST:PORT, for example 127.0.0.1:8080",
                self.listen
            )));
        }
        Ok(())
    }
}

/// The flags of every command that reach Kafka or Postgres. A flag that was not given overrides nothing.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct Flags {
    /// Kafka brokers, HOST:PORT[,HOST:PORT…]; short for -X bootstrap.servers=…
    #[arg(short, long, value_name = "BROKERS")]
    #[serde(skip)]
    pub brokers: Option<String>,

    /// Any librdkafka property, as NAME=VALUE; may be repeated
    #[arg(short = 'X', value_name = "NAME=VALUE")]
    #[serde(skip)]
    pub kafka_properties: Vec<String>,

    /// Postgres, as postgres://USER:PASSWORD@HOST:PORT/DATABASE; `ps` shows it to every user of this machine
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_url: Option<String>,

    /// A file that holds this URL, which then nobody sees
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_url_file: Option<PathBuf>,

    /// Postgres schema whose tables are reference tables
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_schema: Option<String>,

    /// Directory of the .sql files [default: ./queries if it exists, else those built in]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queries: Option<PathBuf>,
}

/// Environment variables, of which those of ours are settings.
struct Environment(Vec<(String, String)>);

impl Environment {
    fn settings(&self) -> impl Iterator<Item = (String, &str)> {
        self.0.iter().filter_map(|(name, value)| {
            let name = name
                .get(..ENV_PREFIX.len())
                .filter(|p| p.eq_ignore_ascii_case(ENV_PREFIX))
                .map(|_| name[ENV_PREFIX.len()..].to_lowercase())?;
            // Variables of ours that are no settings: of the tests, and where Postgres is installed.
            if name.starts_with("test_") || name.starts_with("oracle_") || name == "pg_bin" {
                return None;
            }
            let key = match name.strip_prefix("kafka_") {
                Some(property) => format!("kafka.{}", property.replace('_', ".")),
                None => name,
            };
            Some((key, value.as_str()))
        })
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment variables (TALLY_…)")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for (key, value) in self.settings() {
            // What looks like a number or a boolean is one.
            let value: Value = value.parse().unwrap_or_else(|never| match never {});
            if let Value::Dict(_, nested) = figment::util::nest(&key, value) {
                merge(&mut dict, nested);
            }
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// Adds `kafka.a.b` beside `kafka.a.c`.
fn merge(into: &mut Dict, from: Dict) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Dict(_, known)), Value::Dict(_, more)) => merge(known, more),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Figment's errors name the source (file, variable) and the key; ours says what to do.
fn explain(error: figment::Error) -> Error {
    let first = error.into_iter().next();
    Error::Config(match first {
        Some(e) => {
            let place = e.metadata.as_ref().map(|m| {
                let source = m.source.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
                format!(" in {}{source}", m.name)
            });
            format!(
                "{e}{}; `tally config --help` lists the settings",
                if e.to_string().contains(" in ") { String::new() } else { place.unwrap_or_default() }
            )
        }
        None => "the settings can't be read".into(),
    })
}

/// Text, or what looks like a number or a boolean in an environment variable but is meant as text. Empty
/// text is no value: an empty token would let everybody in.
fn optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Value>::deserialize(deserializer)?
        .and_then(|value| text(&value))
        .filter(|text| !text.is_empty()))
}

/// The text of a file without the line's end.
fn secret_in(file: &Path, setting: &str) -> Result<String> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::Config(format!("{setting}: {} can't be read: {e}", file.display())))?;
    match text.trim() {
        "" => Err(Error::Config(format!("{setting}: {} is empty", file.display()))),
        secret => Ok(secret.into()),
    }
}

/// Names in a list, or in a text with commas, as an environment variable has them.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().into()).collect(),
    };
    Ok(names.into_iter().filter(|name| !name.is_empty()).collect())
}

#[derive(Deserialize)]
struct Properties(#[serde(deserialize_with = "kafka_properties")] BTreeMap<String, String>);

/// `bootstrap.servers = "…"` in TOML is a table within a table; librdkafka's names are flat.
fn kafka_properties<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    fn flatten(prefix: &str, dict: &Dict, into: &mut BTreeMap<String, String>) -> Result<(), String> {
        for (key, value) in dict {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Dict(_, inner) => flatten(&name, inner, into)?,
                other => {
                    let text = text(other)
                        .ok_or_else(|| format!("kafka.{name} must be text, a number or a boolean"))?;
                    into.insert(name, text);
                }
            }
        }
        Ok(())
    }
    let mut properties = BTreeMap::new();
    flatten("", &Dict::deserialize(deserializer)?, &mut properties).map_err(serde::de::Error::custom)?;
    Ok(properties)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, s) => Some(s.clone()),
        Value::Char(_, c) => Some(c.to_string()),
        Value::Bool(_, b) => Some(b.to_string()),
        Value::Num(_, n) => {
            let unsigned = n.to_u128().map(|number| number.to_string());
            let signed = || n.to_i128().map(|number| number.to_string());
            unsigned.or_else(signed).or_else(|| n.to_f64().map(|number| number.to_string()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
