//! Opens Kafka clients and the Postgres pool from the settings. The only place that turns a setting
//! into a connection, so that an unreachable server is reported once, in one sentence.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};

use crate::config::{Config, redacted_url};
use crate::error::{Error, Result};

/// How long a first answer of Kafka or Postgres may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const POSTGRES_CONNECTIONS_MAX: u32 = 8;

/// A Kafka client's settings: the user's librdkafka properties, to which a caller adds its own.
pub fn kafka(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "tally");
    for (name, value) in &config.kafka {
        client.set(name, value);
    }
    client
}

/// Asks the brokers for their metadata, so that a wrong address or credential is found before any work.
pub async fn check_kafka(config: &Config) -> Result<()> {
    let action = format!("connecting to {}", config.bootstrap_servers());
    let mut client = kafka(config);
    let config_action = action.clone();
    tokio::task::spawn_blocking(move || {
        // librdkafka repeats a refused connection in its log; the error below says it once.
        client.set("log_level", "0");
        let consumer: BaseConsumer = client.create().map_err(|e| Error::kafka(config_action, e))?;
        consumer.fetch_metadata(None, CONNECT_TIMEOUT).map_err(|e| {
            Error::kafka(
                action,
                format!("{e}; is the broker running, and are `kafka.bootstrap.servers` and the security settings right?"),
            )
        })?;
        Ok(())
    })
    .await
    .map_err(|e| Error::kafka("connecting", e))?
}

/// A pool of connections to the configured Postgres, tried once.
pub async fn postgres(config: &Config) -> Result<PgPool> {
    let shown = redacted_url(&config.postgres_url);
    let action = || format!("connecting to {shown}");
    let options: PgConnectOptions = config
        .postgres_url
        .parse()
        .map_err(|e| Error::Config(format!("postgres_url {shown} is no valid Postgres URL: {e}")))?;
    let options = options.application_name("tally").options([("timezone", "UTC")]);
    let failed = |reason: String| {
        Error::postgres(action(), format!("{reason}; is the server running, and is `postgres_url` right?"))
    };
    // A pool would try again until its timeout, and then not say why.
    let first = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
    let first = first.map_err(|_| failed("no answer".into()))?.map_err(|e| failed(e.to_string()))?;
    first.close().await.map_err(|e| failed(e.to_string()))?;
    PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|e| failed(e.to_string()))
}
