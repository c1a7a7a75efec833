//! On the broker and the Postgres that `demo` starts.

use tally::config::Config;
use tally::election::VOTERS_TOPIC;
use tally::embedded::{Broker, Postgres, partitions_for};
use tally::topics;

use crate::election;

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_counted_exactly() {
    let broker = Broker::start().unwrap();
    let mut config = Config::default();
    for topic in topics::needed(&config, &[VOTERS_TOPIC]).await.unwrap().keys() {
        broker.create_topic(topic, partitions_for(4_000, 700)).unwrap();
    }
    let postgres = Postgres::start(&|_| {}).await.unwrap();
    config.kafka.insert("bootstrap.servers".into(), broker.bootstrap_servers());
    config.postgres_url = postgres.url().into();
    election::is_counted_exactly(&config).await;
    postgres.stop().await.unwrap();
}
