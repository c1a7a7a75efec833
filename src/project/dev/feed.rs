//! Feeds files to topics, a line a message, as a producer would: keyed by the source's primary key.

use std::thread;
use std::time::{Duration, Instant};

use indicatif::MultiProgress;

use super::say;
use crate::catalog::{Catalog, SourceDef};
use crate::cli::Dev;
use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::replay::{InputFile, Lines, STDIN};
use crate::shutdown::Shutdown;
use crate::sink::CheckedProducer;

/// How often a feed that waits looks whether it shall end.
const PAUSE: Duration = Duration::from_millis(20);

/// Files that are not fed yet.
pub struct Feed {
    inputs: Vec<InputFile>,
    rate: Option<f64>,
    repeat: bool,
}

impl Feed {
    /// As the flags say.
    ///
    /// # Errors
    /// For a file that can't be read.
    pub fn open(options: &Dev) -> Result<Feed> {
        let inputs = options.inputs.files()?;
        for input in &inputs {
            if options.repeat && input.path.as_os_str() == STDIN {
                return Err(Error::Config("--loop: standard input can be read once; give a file".into()));
            }
            Lines::open(input)?;
        }
        Ok(Feed { inputs, rate: options.rate.filter(|rate| *rate > 0.0), repeat: options.repeat })
    }

    /// An error if there is an input whose topic no source reads.
    pub fn check(&self, catalog: &Catalog) -> Result<()> {
        self.inputs.iter().try_for_each(|input| source_of(catalog, &input.topic).map(|_| ()))
    }

    /// Starts feeding, each input in a thread of its own.
    ///
    /// # Errors
    /// For an input whose topic no source reads.
    pub fn start(
        self,
        config: &Config,
        catalog: &Catalog,
        bars: &MultiProgress,
        shutdown: &Shutdown,
    ) -> Result<()> {
        let mut threads = Vec::new();
        for input in self.inputs {
            let source = source_of(catalog, &input.topic)?.clone();
            let producer = CheckedProducer::open(clients::kafka(config), &[])?;
            threads.push(Fed { input, source, producer, rate: self.rate, repeat: self.repeat });
        }
        for fed in threads {
            let (bars, shutdown) = (bars.clone(), shutdown.clone());
            let feed = move || match fed.run(&shutdown) {
                Ok(sent) if !shutdown.is_cancelled() => say(
                    &bars,
                    &format!("fed {sent} lines of {} to {}", fed.input.path.display(), fed.source.topic),
                ),
                Ok(_) => {}
                Err(error) => say(&bars, &format!("feeding {}: {error}", fed.source.topic)),
            };
            let started = thread::Builder::new().name("feed".into()).spawn(feed);
            started.map_err(|source| Error::Io { action: "starting to feed".into(), source })?;
        }
        Ok(())
    }
}

/// The source that reads a topic, or has that name.
pub fn source_of<'c>(catalog: &'c Catalog, topic: &str) -> Result<&'c SourceDef> {
    let found = catalog.sources.values().find(|def| def.topic == topic || def.name == topic);
    found.ok_or_else(|| {
        let known: Vec<_> = catalog.sources.values().map(|def| def.topic.as_str()).collect();
        Error::Config(format!(
            "--input {topic}: no source reads that topic; declared are {}",
            known.join(", ")
        ))
    })
}

struct Fed {
    input: InputFile,
    source: SourceDef,
    producer: CheckedProducer,
    rate: Option<f64>,
    repeat: bool,
}

impl Fed {
    /// How many lines were sent.
    fn run(&self, shutdown: &Shutdown) -> Result<u64> {
        let (begun, mut sent) = (Instant::now(), 0_u64);
        loop {
            let (mut lines, before) = (Lines::open(&self.input)?, sent);
            while lines.read()? {
                let (key, payload) = lines.message();
                if key.is_none() && payload.is_none() {
                    continue;
                }
                let own_key = key.is_none().then(|| key_of(&self.source, payload)).flatten();
                let key = key.or(own_key.as_deref().map(str::as_bytes));
                self.producer.send(&self.source.topic, key, payload, None)?;
                sent += 1;
                if let Some(rate) = self.rate {
                    self.wait_until(begun + Duration::from_secs_f64(sent as f64 / rate), shutdown)?;
                }
                if shutdown.is_cancelled() {
                    return Ok(sent);
                }
            }
            self.producer.flush()?;
            if !self.repeat || sent == before {
                return Ok(sent);
            }
        }
    }

    /// Sees to it that what was sent is there, and waits until the next message is due.
    fn wait_until(&self, due: Instant, shutdown: &Shutdown) -> Result<()> {
        if Instant::now() < due {
            self.producer.flush()?;
        }
        while Instant::now() < due && !shutdown.is_cancelled() {
            thread::sleep(PAUSE.min(due.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// The message key of a JSON row: its primary key; none without one, and for what is no such row.
fn key_of(source: &SourceDef, payload: Option<&[u8]>) -> Option<String> {
    let row: serde_json::Value = serde_json::from_slice(payload?).ok()?;
    // Of an envelope, the row as it is, or was.
    let rows = [Some(&row), row.get("after"), row.get("before")];
    let value = |column: &String| rows.iter().flatten().find_map(|row| row.get(column)).cloned();
    let mut values = source.primary_key()?.iter().map(|column| Some((column.clone(), value(column)?)));
    let values: serde_json::Map<_, _> = values.by_ref().collect::<Option<_>>()?;
    match values.values().next() {
        Some(serde_json::Value::String(text)) if values.len() == 1 => Some(text.clone()),
        Some(value) if values.len() == 1 => Some(value.to_string()),
        _ => Some(serde_json::Value::Object(values).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::session;
    use crate::queries::QueryFile;

    #[tokio::test]
    async fn messages_are_keyed_by_the_primary_key() {
        let declared = |key: &str| {
            let text = format!(
                "CREATE UNBOUNDED EXTERNAL TABLE s (id VARCHAR, part INT {key}) STORED AS KAFKA LOCATION 't'"
            );
            [QueryFile { path: "s.sql".into(), text }]
        };
        let key = async |key: &str, message: &str| {
            let catalog = Catalog::parse(&declared(key), &session::continuous().state()).await.unwrap();
            key_of(source_of(&catalog, "t").unwrap(), Some(message.as_bytes()))
        };
        let row = r#"{"part": 7, "id": "a"}"#;
        assert_eq!(key(", PRIMARY KEY (id)", row).await.as_deref(), Some("a"));
        assert_eq!(key(", PRIMARY KEY (part)", row).await.as_deref(), Some("7"));
        assert_eq!(key(", PRIMARY KEY (id, part)", row).await.as_deref(), Some(r#"{"id":"a","part":7}"#));
        let deleted = format!(r#"{{"before": {row}, "after": null, "op": "d"}}"#);
        assert_eq!(key(", PRIMARY KEY (id)", &deleted).await.as_deref(), Some("a"));
        assert_eq!(key(", PRIMARY KEY (id)", "not json").await, None);
        assert_eq!(key("", row).await, None);
    }
}
