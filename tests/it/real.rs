//! On a real Kafka and a real Postgres, which `.ci/run` starts (`scripts/real-kafka`, `scripts/real-postgres`).

use tally::clients;
use tally::config::Config;
use tally::election::VOTERS_TOPIC;
use tally::topics::{self, Outcome};

use crate::election;

/// The variables' values. Without them the test is skipped, loudly; under CI that is a failure.
pub(crate) fn servers<const N: usize>(names: [&str; N]) -> Option<[String; N]> {
    let values = names.map(|name| std::env::var(name).unwrap_or_default());
    if values.iter().all(|value| !value.is_empty()) {
        return Some(values);
    }
    let missing = names.join(", ");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "under CI these must be set: {missing}");
    eprintln!("SKIPPED: needs {missing}; scripts/real-kafka and scripts/real-postgres start the servers");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_counted_exactly() {
    let Some([kafka, postgres]) = servers(["TALLY_TEST_KAFKA", "TALLY_TEST_POSTGRES"]) else { return };
    // A database of its own; the topics must be new, since their names are fixed.
    let mut config = Config { postgres_url: postgres, data_dir: String::new(), ..Config::default() };
    config.kafka.insert("bootstrap.servers".into(), kafka);
    let pool = clients::postgres(&config).await.unwrap();
    let name = format!("tally_it_{}", std::process::id());
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    let (server, _) = config.postgres_url.rsplit_once('/').unwrap();
    config.postgres_url = format!("{server}/{name}");

    let needed = topics::needed(&config, &[VOTERS_TOPIC]).await.unwrap();
    let first = topics::create(&config, &needed).await.unwrap();
    let created = first.iter().filter(|(_, outcome)| *outcome == Outcome::Created).count();
    assert_eq!(created, needed.len(), "this test needs a Kafka without its topics: {first:?}");
    let second = topics::create(&config, &needed).await.unwrap();
    assert!(second.iter().all(|(_, outcome)| *outcome == Outcome::Kept), "{second:?}");
    election::is_counted_exactly(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_properties_reach_an_encrypted_listener() {
    let names =
        ["TALLY_TEST_KAFKA_TLS", "TALLY_TEST_KAFKA_CA", "TALLY_TEST_KAFKA_USER", "TALLY_TEST_KAFKA_PASSWORD"];
    let Some([address, ca, user, password]) = servers(names) else { return };
    let mut config = Config::default();
    for (name, value) in [
        ("bootstrap.servers", address.as_str()),
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "PLAIN"),
        ("ssl.ca.location", &ca),
        ("sasl.username", &user),
        ("sasl.password", &password),
    ] {
        config.kafka.insert(name.into(), value.into());
    }
    clients::check_kafka(&config).await.unwrap();
    config.kafka.insert("sasl.password".into(), "wrong".into());
    let error = clients::check_kafka(&config).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("security settings"), "{error}");
}
