//! The topics that `queries/` name: creates the missing ones, leaves the others as they are, and says which of
//! them would lose messages or can't be used.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::catalog::{Catalog, TopicUse};
use crate::clients::{self, CONNECT_TIMEOUT};
use crate::config::Config;
use crate::describe::{Description, Question, describe, only_broker};
use crate::epoch_log;
use crate::error::{Error, Result};

/// A topic that was created a moment ago may not be known everywhere.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(3);
const UNKNOWN_RETRY: Duration = Duration::from_millis(200);

/// What became of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was there.
    Kept,
}

/// What is known of topics that can be used.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Most bytes of a record, by topic, where the broker tells it.
    pub bytes_max: BTreeMap<String, usize>,
    /// What will go wrong later, each a sentence with what to do.
    pub warnings: Vec<String>,
}

/// Every topic that the configured `queries/` name, and `others`, which are read.
pub async fn needed(config: &Config, others: &[&str]) -> Result<BTreeMap<String, TopicUse>> {
    let mut topics = Catalog::load(config.queries.as_deref()).await?.topics();
    topics.insert(epoch_log::topic(&config.engine_id), TopicUse::EpochLog);
    topics.extend(others.iter().map(|topic| (topic.to_string(), TopicUse::Source)));
    Ok(topics)
}

/// Creates the missing ones of `topics`. What is read, and what is told nowhere else, is kept for ever.
pub async fn create(config: &Config, topics: &BTreeMap<String, TopicUse>) -> Result<Vec<(String, Outcome)>> {
    clients::check_kafka(config).await?;
    let admin = admin(config)?;
    let new = topics.iter().map(|(name, purpose)| {
        let partitions = if *purpose == TopicUse::EpochLog { 1 } else { config.partitions };
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(config.replication));
        match purpose {
            TopicUse::EpochLog | TopicUse::Source | TopicUse::NewestByKey | TopicUse::DeadLetters => {
                topic.set("retention.ms", "-1").set("retention.bytes", "-1")
            }
            TopicUse::Changelog { keyed: true } => topic.set("cleanup.policy", "compact"),
            TopicUse::Changelog { keyed: false } => topic,
        }
    });
    let options = AdminOptions::new().operation_timeout(Some(CONNECT_TIMEOUT));
    let results = admin
        .create_topics(&new.collect::<Vec<_>>(), &options)
        .await
        .map_err(|e| Error::kafka("creating topics", e))?;
    let outcome = |result| match result {
        Ok(name) => Ok((name, Outcome::Created)),
        Err((name, Code::TopicAlreadyExists)) => Ok((name, Outcome::Kept)),
        Err((name, code)) => Err(Error::kafka(
            format!("creating topic {name}"),
            format!(
                "{code}; are `partitions` and `replication` ({}) what the cluster allows?",
                config.replication
            ),
        )),
    };
    results.into_iter().map(outcome).collect()
}

/// Creates the epoch log if it is missing: who runs the engine may not know of it.
pub async fn ensure_epoch_log(config: &Config, topic: &str) -> Result<()> {
    let consumer: BaseConsumer =
        clients::kafka(config).create().map_err(|e| Error::kafka("describing the topics", e))?;
    let name = topic.to_string();
    let described = tokio::task::spawn_blocking(move || {
        let broker = only_broker(consumer.client(), &name, CONNECT_TIMEOUT);
        let question = Question { names: &[&name], operations: false, broker, timeout: CONNECT_TIMEOUT };
        describe(consumer.client(), question, || true)
    });
    let failed = |reason: String| Error::kafka(format!("describing topic {topic}"), reason);
    let described = described.await.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
    let is_missing = |topic: &Description| topic.error == Some(Code::UnknownTopicOrPartition);
    if described.iter().any(is_missing) {
        create(config, &BTreeMap::from([(topic.to_string(), TopicUse::EpochLog)])).await?;
        tracing::info!("created topic {topic}, the epoch log");
    }
    Ok(())
}

/// Checks that all of `topics` are there and may be used as they are meant; if not, says all that is wrong.
pub async fn check(config: &Config, topics: &BTreeMap<String, TopicUse>) -> Result<Checked> {
    if topics.is_empty() {
        return Ok(Checked::default());
    }
    // A consumer: a producer that asks for a topic may have the broker create it.
    let consumer: BaseConsumer =
        clients::kafka(config).create().map_err(|e| Error::kafka("describing the topics", e))?;
    let names: Vec<String> = topics.keys().cloned().collect();
    let looked = tokio::task::spawn_blocking(move || look(&consumer, &names)).await;
    let (broker, found) = looked.map_err(|e| Error::kafka("describing the topics", e))??;
    refuse_unusable(topics, &found)?;
    let admin = admin(config)?;
    // A broker that does not tell its settings, or a user who may not ask, is no reason not to start.
    Ok(match settings(&admin, broker, topics).await {
        Ok(settings) => judge_settings(topics, &settings),
        Err(reason) => {
            tracing::debug!("the topics' settings are not known: {reason}");
            Checked::default()
        }
    })
}

fn admin(config: &Config) -> Result<AdminClient<DefaultClientContext>> {
    clients::kafka(config).create().map_err(|e| Error::kafka("opening the admin client", e))
}

/// Describes topics. Waits some seconds for what was created a moment ago. Blocks.
fn look(consumer: &BaseConsumer, names: &[String]) -> Result<(Option<i32>, Vec<Description>)> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let broker = only_broker(consumer.client(), names.first().copied().unwrap_or_default(), CONNECT_TIMEOUT);
    let question = Question { names: &names, operations: true, broker, timeout: CONNECT_TIMEOUT };
    let begun = Instant::now();
    loop {
        let found = describe(consumer.client(), question, || true)
            .map_err(|reason| Error::kafka("describing the topics", reason))?;
        let is_missing = |topic: &Description| topic.error == Some(Code::UnknownTopicOrPartition);
        if begun.elapsed() >= UNKNOWN_PATIENCE || !found.iter().any(is_missing) {
            return Ok((broker, found));
        }
        std::thread::sleep(UNKNOWN_RETRY);
    }
}

fn refuse_unusable(topics: &BTreeMap<String, TopicUse>, found: &[Description]) -> Result<()> {
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for topic in found {
        let name = topic.name.as_str();
        let needs = match topics.get(name) {
            Some(TopicUse::Source | TopicUse::NewestByKey) => "read",
            _ => "write",
        };
        match topic.error {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => missing.push(name),
            Some(Code::TopicAuthorizationFailed) => wrong.push(format!("{name} may not be described")),
            Some(code) => wrong.push(format!("{name}: {code}")),
            None if topic.forbidden.contains(&needs) => {
                wrong.push(format!("this user may not {needs} {name}"));
            }
            None => {}
        }
    }
    if !missing.is_empty() {
        wrong.insert(0, format!("missing: {}; `tally topics` creates them", missing.join(", ")));
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::kafka("checking the topics", wrong.join("; "))),
    }
}

type Settings = BTreeMap<String, BTreeMap<String, String>>;

/// The settings of topics, by topic and name.
async fn settings(
    admin: &AdminClient<DefaultClientContext>,
    broker: Option<i32>,
    topics: &BTreeMap<String, TopicUse>,
) -> Result<Settings, String> {
    let resources: Vec<_> = topics.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(CONNECT_TIMEOUT)).broker_id(broker);
    let found = admin.describe_configs(&resources, &options).await.map_err(|e| e.to_string())?;
    let of = |resource: ConfigResource| match resource.specifier {
        OwnedResourceSpecifier::Topic(name) => {
            let entries = resource.entries.into_iter();
            Some((name, entries.filter_map(|entry| Some((entry.name, entry.value?))).collect()))
        }
        _ => None,
    };
    Ok(found.into_iter().flatten().filter_map(of).collect())
}

fn judge_settings(topics: &BTreeMap<String, TopicUse>, settings: &Settings) -> Checked {
    let mut checked = Checked::default();
    for (name, purpose) in topics {
        let Some(settings) = settings.get(name) else { continue };
        let setting = |key: &str| settings.get(key).map(String::as_str);
        if let Some(bytes) = setting("max.message.bytes").and_then(|bytes| bytes.parse().ok()) {
            checked.bytes_max.insert(name.clone(), bytes);
        }
        let deletes = setting("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
        let compacts = setting("cleanup.policy").is_some_and(|policy| policy.contains("compact"));
        let what_goes = match purpose {
            TopicUse::Source | TopicUse::NewestByKey => {
                "its messages, and a later start is refused or counts less"
            }
            TopicUse::DeadLetters => "what was not counted and why",
            TopicUse::EpochLog => "what was counted, without which a start is refused",
            TopicUse::Changelog { .. } => "the newest rows of a view",
        };
        let finite = |key| setting(key).filter(|value| deletes && !value.starts_with('-'));
        for (key, value) in ["retention.ms", "retention.bytes"].map(|key| (key, finite(key))) {
            let matters = !matches!(purpose, TopicUse::Changelog { keyed: false });
            if let Some(value) = value.filter(|_| matters) {
                checked.warnings.push(format!(
                    "topic {name} has {key} = {value}: Kafka will delete {what_goes}; set it to -1 (kafka-configs.sh \
                     --alter --entity-type topics --entity-name {name} --add-config {key}=-1)"
                ));
            }
        }
        if compacts && *purpose == TopicUse::EpochLog {
            checked.warnings.push(format!("topic {name} is compacted: Kafka will delete what was counted"));
        }
        if compacts && *purpose == TopicUse::Source {
            checked.warnings.push(format!(
                "topic {name} is compacted: of messages with the same key Kafka deletes all but the newest, which a \
                 restart then does not count"
            ));
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::Broker;

    fn settings_of(topic: &str, settings: &[(&str, &str)]) -> Settings {
        let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        BTreeMap::from([(topic.to_string(), settings.collect())])
    }

    #[test]
    fn a_topic_that_would_lose_what_is_needed_is_warned_of() {
        let use_of = |purpose| BTreeMap::from([("votes".to_string(), purpose)]);
        let week = [("retention.ms", "604800000"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")];
        let checked = judge_settings(&use_of(TopicUse::Source), &settings_of("votes", &week));
        let [warning] = checked.warnings.as_slice() else { panic!("{:?}", checked.warnings) };
        assert!(warning.contains("votes has retention.ms = 604800000"), "{warning}");
        let keyed = TopicUse::Changelog { keyed: true };
        let compacted =
            [("retention.ms", "604800000"), ("cleanup.policy", "compact"), ("max.message.bytes", "9")];
        let checked = judge_settings(&use_of(keyed), &settings_of("votes", &compacted));
        assert_eq!((checked.warnings.len(), checked.bytes_max["votes"]), (0, 9));
        let checked = judge_settings(&use_of(TopicUse::Source), &settings_of("votes", &compacted));
        assert_eq!(checked.warnings.len(), 1, "{:?}", checked.warnings);
        let checked = judge_settings(&use_of(TopicUse::NewestByKey), &settings_of("votes", &compacted));
        assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_missing_topics_are_told_at_once() {
        let broker = Broker::start().unwrap();
        broker.create_topic("there", 1).unwrap();
        let mut config = Config::default();
        config.kafka.insert("bootstrap.servers".into(), broker.bootstrap_servers());
        let topics = |names: &[&str]| names.iter().map(|n| (n.to_string(), TopicUse::Source)).collect();
        check(&config, &topics(&["there"])).await.unwrap();
        let error = check(&config, &topics(&["one", "there", "two"])).await.unwrap_err().to_string();
        assert!(error.contains("missing: one, two; `tally topics` creates them"), "{error}");
    }
}
