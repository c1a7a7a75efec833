//! `tally demo`: the whole election in one process tree. Everything it starts, it stops; everything it
//! writes is in temporary directories that go with it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar};
use tokio::net::TcpListener;

use crate::cli::Demo;
use crate::clients;
use crate::commands::{bar, operator_token, run_engine, seed_options, url};
use crate::config::Config;
use crate::election::{self, VOTERS_TOPIC, VoteOptions};
use crate::embedded::{Broker, Postgres, partitions_for};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::serve;
use crate::shutdown::Shutdown;
use crate::snapshot::Reader;
use crate::topics;

/// A voter's message, the largest there is many of.
const MESSAGE_BYTES: u64 = 700;
const COUNTED_INTERVAL: Duration = Duration::from_millis(100);

/// Runs until `shutdown`; then stops the broker and Postgres and removes their files.
pub async fn run(mut config: Config, options: &Demo, bars: &MultiProgress, shutdown: Shutdown) -> Result<()> {
    let topics = topics::needed(&config, &[VOTERS_TOPIC]).await?;
    let (listener, address) = serve::bind(&config.listen).await?;
    let note = bars.add(ProgressBar::new_spinner());
    note.enable_steady_tick(COUNTED_INTERVAL);
    let broker = Broker::start()?;
    let partitions = partitions_for(options.population.voters, MESSAGE_BYTES);
    for topic in topics.keys() {
        broker.create_topic(topic, partitions)?;
    }
    let postgres = Postgres::start(&|line| note.set_message(line.to_string())).await?;
    note.finish_and_clear();
    // Properties of another broker, such as TLS, do not fit this one.
    config.kafka = BTreeMap::from([("bootstrap.servers".into(), broker.bootstrap_servers())]);
    config.postgres_url = postgres.url().into();

    let token = operator_token(&config);
    println!("dashboard  {}", url(address));
    println!("kafka      {}", broker.bootstrap_servers());
    println!("postgres   {}", postgres.url());
    println!("token      {token}");
    println!("Press Ctrl-C to stop.");
    let result = election_night(&config, options, bars, listener, token, &shutdown).await;
    drop(broker);
    let stopped = postgres.stop().await;
    if shutdown.is_cancelled() {
        return stopped;
    }
    result.and(stopped)
}

async fn election_night(
    config: &Config,
    options: &Demo,
    bars: &MultiProgress,
    listener: TcpListener,
    token: String,
    shutdown: &Shutdown,
) -> Result<()> {
    let pool = clients::postgres(config).await?;
    let voters = bars.add(bar(options.population.voters, "voters"));
    election::seed(config, &pool, &seed_options(&options.population), &voters, shutdown).await?;
    voters.finish_and_clear();

    let pipeline = Pipeline::open(config.clone()).await?;
    let published = pipeline.reader();
    let voting = VoteOptions {
        rate: (options.rate > 0.0).then_some(options.rate),
        turnout: options.voting.turnout,
        faulty: options.voting.faulty,
        seed: options.population.seed,
        follow: false,
    };
    let cast = bars.add(bar((options.population.voters as f64 * options.voting.turnout) as u64, "cast"));
    let counted = bars.add(bar(cast.length().unwrap_or_default(), "counted"));
    let stop = shutdown.child_token();
    let _stop_the_rest = stop.clone().drop_guard();
    let votes = async {
        let report = election::vote(config, &pool, &voting, &cast, &stop).await?;
        cast.finish();
        follow(&published, &counted, Some(report.messages())).await;
        counted.finish();
        if !std::io::stderr().is_terminal() {
            println!("{report}");
        }
        // The dashboard stays until it is stopped.
        std::future::pending().await
    };
    tokio::select! {
        result = run_engine(pipeline, config, listener, token, stop.clone()) => result,
        result = votes => result,
        () = follow(&published, &counted, None) => Ok(()),
    }
}

/// Shows how many votes are counted, until `messages` were received, or for ever.
async fn follow(published: &Reader, counted: &ProgressBar, messages: Option<u64>) {
    let mut interval = tokio::time::interval(COUNTED_INTERVAL);
    loop {
        interval.tick().await;
        let (mut received, mut votes, mut rejected) = (0, 0, 0);
        for source in &published.borrow().status.sources {
            received += source.received;
            votes += source.counted;
            rejected += source.rejected;
        }
        counted.set_position(votes);
        if rejected > 0 {
            counted.set_message(format!("{rejected} rejected"));
        }
        if messages.is_some_and(|messages| received >= messages) {
            return;
        }
    }
}
