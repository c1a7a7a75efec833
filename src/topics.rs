//! Creates the topics that `queries/` and the election name. A topic that is there is left as it is.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use crate::catalog::Catalog;
use crate::clients::{self, CONNECT_TIMEOUT};
use crate::config::Config;
use crate::election::VOTERS_TOPIC;
use crate::engine::session;
use crate::error::{Error, Result};
use crate::queries;

/// What became of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was there.
    Kept,
}

/// Every topic that the configured `queries/` and the election need, and whether it is a changelog of
/// keyed rows, of which Kafka may forget all but the newest of each key.
pub async fn needed(config: &Config) -> Result<BTreeMap<String, bool>> {
    let (_, files) = queries::load(config.queries.as_deref())?;
    let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
    let mut topics = catalog.topics();
    topics.insert(VOTERS_TOPIC.into(), false);
    Ok(topics)
}

/// Creates the missing ones of `topics`.
pub async fn create(config: &Config, topics: &BTreeMap<String, bool>) -> Result<Vec<(String, Outcome)>> {
    clients::check_kafka(config).await?;
    let admin: AdminClient<DefaultClientContext> =
        clients::kafka(config).create().map_err(|e| Error::kafka("opening the admin client", e))?;
    let new = topics.iter().map(|(name, compacted)| {
        let topic = NewTopic::new(name, config.partitions, TopicReplication::Fixed(config.replication));
        if *compacted { topic.set("cleanup.policy", "compact") } else { topic }
    });
    let options = AdminOptions::new().operation_timeout(Some(CONNECT_TIMEOUT));
    let results = admin
        .create_topics(&new.collect::<Vec<_>>(), &options)
        .await
        .map_err(|e| Error::kafka("creating topics", e))?;
    let outcome = |result| match result {
        Ok(name) => Ok((name, Outcome::Created)),
        Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => Ok((name, Outcome::Kept)),
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
