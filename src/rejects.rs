//! Dead letters: lists them with their reason, place and payload, and sends them back to where they came from, corrected
//! or because they can be counted now.

use std::io::{BufRead, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::sink::CheckedProducer;
use crate::source::{Bounds, KafkaSource, RawBatch, Source, Start};

const POLL_ROWS: usize = 1000;
const POLL_WAIT: Duration = Duration::from_millis(200);
/// Header of a message that was sent back: where it stood before.
const SENT_BACK: &str = "sent_back_from";

/// A dead letter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// The rule that the message broke.
    pub rule: String,
    /// Why, for a person.
    #[serde(default)]
    pub reason: String,
    /// Where the message stood: topic, …
    pub topic: String,
    /// … partition, …
    pub partition: String,
    /// … and offset.
    pub offset: String,
    /// Its key.
    #[serde(default)]
    pub key: Option<String>,
    /// Its value, as text.
    #[serde(default)]
    pub payload: Option<String>,
    /// How many bytes it had, if only its beginning is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_from_bytes: Option<String>,
}

impl Letter {
    fn of(batch: &RawBatch, position: u32) -> Letter {
        let message = batch.get(position);
        let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let header = |name: &str| text(batch.header(position, name));
        Letter {
            rule: header("rule").unwrap_or_default(),
            reason: header("reason").unwrap_or_default(),
            topic: header("topic").unwrap_or_default(),
            partition: header("partition").unwrap_or_default(),
            offset: header("offset").unwrap_or_default(),
            key: text(message.key),
            payload: text(message.payload),
            cut_from_bytes: header("cut_from_bytes"),
        }
    }
}

/// Which letters are listed, and how.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Those of rules that contain this.
    pub reason: Option<String>,
    /// Whether those to come are too.
    pub follow: bool,
    /// One JSON object a line, as [`replay`] takes them.
    pub json: bool,
}

/// Lists the letters of all sources that `queries/` declare; how many. Blocks.
pub async fn list(
    config: &Config,
    listing: &Listing,
    out: &mut impl Write,
    shutdown: &Shutdown,
) -> Result<u64> {
    let catalog = Catalog::load(config.queries.as_deref()).await?;
    let mut topics: Vec<_> = catalog.sources.values().filter_map(|s| s.dead_letter_topic.clone()).collect();
    topics.sort();
    topics.dedup();
    if topics.is_empty() {
        return Err(Error::Config("no source of queries/ has a dead_letter_topic".into()));
    }
    let bounds = if listing.follow { Bounds::Endless } else { Bounds::UntilNow };
    let open = |topic: &String| KafkaSource::open(config, topic, bounds, Start::EarliestAvailable);
    let mut sources = topics.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut told = 0;
    while !sources.is_empty() && !shutdown.is_cancelled() {
        let mut ended = Vec::new();
        for source in &mut sources {
            let polled = tokio::task::block_in_place(|| source.poll(POLL_ROWS, POLL_WAIT));
            for position in 0..polled.batch.len() as u32 {
                let letter = Letter::of(&polled.batch, position);
                if listing.reason.as_ref().is_none_or(|reason| letter.rule.contains(reason)) {
                    told += 1;
                    show(&letter, listing.json, out)?;
                }
            }
            ended.push(polled.state.ended);
        }
        let mut ended = ended.into_iter();
        sources.retain(|_| !ended.next().unwrap_or(false));
        tokio::task::yield_now().await;
    }
    Ok(told)
}

fn show(letter: &Letter, json: bool, out: &mut impl Write) -> Result<()> {
    let line = match json {
        true => serde_json::to_string(letter).expect("invariant: a letter is texts"),
        false => {
            let Letter { rule, reason, topic, partition, offset, payload, .. } = letter;
            let payload = payload.as_deref().unwrap_or("(no value)");
            format!("{topic}/{partition}@{offset}  {rule}: {reason}\n    {payload}")
        }
    };
    writeln!(out, "{line}").map_err(|source| Error::Io { action: "writing the letters".into(), source })
}

/// Sends letters, one JSON object a line, to the topics that they came from; how many.
pub fn replay(config: &Config, lines: impl BufRead) -> Result<u64> {
    let producer = CheckedProducer::open(clients::kafka(config), &[])?;
    let mut sent = 0;
    for (number, line) in lines.lines().enumerate() {
        let line = line.map_err(|source| Error::Io { action: "reading the letters".into(), source })?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| Error::Config(format!("line {}: {reason}", number + 1));
        let letter: Letter = serde_json::from_str(&line).map_err(|error| {
            wrong(format!("{error}; it must be a line of `tally rejects --json`, with a corrected payload"))
        })?;
        if letter.topic.is_empty() {
            return Err(wrong("it has no topic to be sent to".into()));
        }
        if letter.cut_from_bytes.is_some() {
            return Err(wrong(format!(
                "its payload is cut: read it whole from {}/{} at offset {}, and leave cut_from_bytes out",
                letter.topic, letter.partition, letter.offset
            )));
        }
        let from = format!("{}/{}/{}", letter.topic, letter.partition, letter.offset);
        let header = rdkafka::message::Header { key: SENT_BACK, value: Some(from.as_bytes()) };
        let headers = rdkafka::message::OwnedHeaders::new().insert(header);
        let (key, payload) = (letter.key.as_deref(), letter.payload.as_deref());
        producer.send(&letter.topic, key.map(str::as_bytes), payload.map(str::as_bytes), Some(headers))?;
        sent += 1;
    }
    producer.flush()?;
    Ok(sent)
}
