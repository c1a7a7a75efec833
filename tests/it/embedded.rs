//! On the broker and the Postgres that `demo` starts.

use std::path::Path;

use tally::config::Config;
use tally::election::VOTERS_TOPIC;
use tally::embedded::{Broker, Postgres, partitions_for};
use tally::topics;

use crate::election;

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_counted_exactly() {
    let config = Config { data_dir: String::new(), ..Config::default() };
    let (config, _broker, postgres) = servers(config).await;
    election::is_counted_exactly(&config).await;
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_option_the_last_vote_counts() {
    let queries = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("queries")).unwrap() {
        let file = file.unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let text =
            text.replace("OPTIONS ('format' 'json'", "OPTIONS ('on_conflict' 'replace', 'format' 'json'");
        std::fs::write(queries.path().join(file.file_name()), text).unwrap();
    }
    let config = Config {
        queries: Some(queries.path().into()),
        data_dir: queries.path().join("data").display().to_string(),
        ..Config::default()
    };
    let (config, _broker, postgres) = servers(config).await;
    election::is_counted_by_the_last_votes(&config).await;
    postgres.stop().await.unwrap();
}

async fn servers(mut config: Config) -> (Config, Broker, Postgres) {
    let broker = Broker::start().unwrap();
    for topic in topics::needed(&config, &[VOTERS_TOPIC]).await.unwrap().keys() {
        broker.create_topic(topic, partitions_for(4_000, 700)).unwrap();
    }
    let postgres = Postgres::start(&|_| {}).await.unwrap();
    config.kafka.insert("bootstrap.servers".into(), broker.bootstrap_servers());
    config.postgres_url = postgres.url().into();
    (config, broker, postgres)
}
