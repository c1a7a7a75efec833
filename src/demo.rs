//! `tally demo`: the whole election in one process tree. Everything it starts, it stops; everything it
//! writes is in temporary directories that go with it.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::Array;
use arrow::util::display::array_value_to_string;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::net::TcpListener;

use crate::cli::Demo;
use crate::clients;
use crate::commands::{bar, operator_token, run_engine, url};
use crate::config::Config;
use crate::election::{self, Pace, SeedOptions, VOTERS_TOPIC, VoteOptions};
use crate::embedded::{Broker, Postgres, partitions_for};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::serve::{self, SqlProgram};
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
    let partitions = partitions_for(options.voters, MESSAGE_BYTES);
    for topic in topics.keys() {
        broker.create_topic(topic, partitions)?;
    }
    let postgres = Postgres::start(&|line| note.set_message(line.to_string())).await?;
    note.finish_and_clear();
    // Properties of another broker, such as TLS, do not fit this one.
    config.kafka = BTreeMap::from([("bootstrap.servers".into(), broker.bootstrap_servers())]);
    config.postgres_url = postgres.url().into();
    // What was counted is gone with the broker.
    config.data_dir = String::new();

    let token = operator_token(&config);
    println!("dashboard  {}", url(address));
    println!("kafka      {}", broker.bootstrap_servers());
    println!("postgres   {}", postgres.url());
    println!("token      {token}");
    println!("Press Ctrl-C to stop.");
    println!("{}", to_try(&url(address), &broker.bootstrap_servers(), &token));
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
    let population =
        SeedOptions { voters: options.voters, candidates: options.candidates, seed: options.seed };
    let voters = bars.add(bar(options.voters, "voters"));
    election::seed(config, &pool, &population, &voters, shutdown).await?;
    voters.finish_and_clear();

    let pipeline = Pipeline::open(config.clone()).await?;
    let published = pipeline.reader();
    let voting = VoteOptions {
        pace: match options.rate {
            None => Pace::Night(options.night),
            Some(rate) if rate > 0.0 => Pace::PerSecond(rate),
            Some(_) => Pace::Unlimited,
        },
        habits: options.voting.habits(),
        seed: options.seed,
        follow: false,
    };
    let stop = shutdown.child_token();
    let _stop_the_rest = stop.clone().drop_guard();
    let counted = bars.add(ballots_bar());
    let votes = async {
        // Its length is the number of ballots, which is known before the first is cast.
        let cast = ProgressBar::hidden();
        let casting = election::vote(config, &pool, &voting, &cast, &stop);
        let report = tokio::select! {
            report = casting => report?,
            () = follow(&published, &counted, &cast, None) => return Ok(()),
        };
        follow(&published, &counted, &cast, Some(report.messages())).await;
        counted.finish_and_clear();
        if !stop.is_cancelled() {
            println!("{report}.");
            println!("{}The dashboard stays; Ctrl-C ends it.", sentence(headline(&published)));
        }
        // The dashboard stays until it is stopped.
        std::future::pending().await
    };
    tokio::select! {
        result = run_engine(pipeline, config, listener, token, SqlProgram::own(), stop.clone()) => result,
        result = votes => result,
    }
}

/// Shows how many ballots are counted, and what that says, until `messages` were received, or for ever.
async fn follow(published: &Reader, counted: &ProgressBar, cast: &ProgressBar, messages: Option<u64>) {
    let mut interval = tokio::time::interval(COUNTED_INTERVAL);
    loop {
        interval.tick().await;
        let (mut received, mut votes, mut rejected) = (0, 0, 0);
        for source in &published.borrow().status.sources {
            received += source.received;
            votes += source.counted;
            rejected += source.rejected;
        }
        if let Some(ballots) = cast.length() {
            counted.set_length(ballots);
        }
        counted.set_position(votes);
        let rejected = if rejected > 0 { format!("{rejected} rejected. ") } else { String::new() };
        counted.set_message(rejected + &sentence(headline(published)));
        if messages.is_some_and(|messages| received >= messages) {
            return;
        }
    }
}

fn ballots_bar() -> ProgressBar {
    let template = "  {bar:30.cyan/dim} {human_pos} of {human_len} ballots counted. {wide_msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// What the view `election_call` says of the result, in a sentence.
fn headline(published: &Reader) -> Option<String> {
    let view = published.borrow().views.get("election_call").cloned()?;
    let rows = view.batch().ok()?;
    let headlines = rows.column_by_name("headline")?;
    if headlines.is_empty() {
        return None;
    }
    array_value_to_string(headlines, 0).ok()
}

/// The headline to stand before another sentence; nothing where there is none.
fn sentence(headline: Option<String>) -> String {
    headline.map(|headline| headline + " ").unwrap_or_default()
}

/// What a newcomer may do while the votes are counted.
fn to_try(dashboard: &str, kafka: &str, token: &str) -> String {
    format!(
        "
Meanwhile, try
  the result as JSON         curl -s {dashboard}api/views/election_call
  every change of it         kcat -C -b {kafka} -t aggregated_standings
  SQL over all tables        {dashboard}console.html#token={token}
  how the engine is doing    {dashboard}operations.html#token={token}
  a view of your own         put a .sql file into queries/ and start again
"
    )
}
