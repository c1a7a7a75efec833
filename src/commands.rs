//! The commands: settings → connections → work. One function each.

use std::net::SocketAddr;
use std::path::Path;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::net::TcpListener;

use crate::catalog::Catalog;
use crate::cli::{CheckFormat, Cli, Command, None as NoSettings, Population};
use crate::clients;
use crate::config::{Config, Flags};
use crate::demo;
use crate::election::{self, Pace, SeedOptions, VOTERS_TOPIC, VoteOptions};
use crate::error::{Error, Result};
use crate::pipeline::{AdHocTables, Pipeline, audit};
use crate::project::{self, testing};
use crate::queries;
use crate::reference::{self, TriggerOutcome, tables_of_migrations};
use crate::rejects::{self, Listing};
use crate::replay::{self, Replay, Script, Show};
use crate::serve::{self, App, ConnectionLimits, SqlProgram, SqlTables};
use crate::shutdown::{self, Shutdown};
use crate::topics::{self, Outcome};

/// Runs the command until it is done or a signal ends it.
pub async fn run(cli: Cli, bars: &MultiProgress) -> Result<()> {
    let shutdown = shutdown::on_signal()?;
    let file = cli.config.as_deref();
    match cli.command {
        Command::Demo(options) => {
            let flags = Flags { queries: options.queries.clone(), ..Flags::default() };
            let config = Config::load(file, &flags, &options.run)?;
            demo::run(config, &options, bars, shutdown).await
        }
        Command::Topics { flags, topics } => create_topics(&Config::load(file, &flags, &topics)?).await,
        Command::Seed { flags, population } => {
            let config = Config::load(file, &flags, &NoSettings {})?;
            seed(&config, &population, bars, &shutdown).await
        }
        Command::Vote { flags, voting, rate, seed, follow } => {
            let config = Config::load(file, &flags, &NoSettings {})?;
            let options = VoteOptions {
                pace: if rate > 0.0 { Pace::PerSecond(rate) } else { Pace::Unlimited },
                habits: voting.habits(),
                seed,
                follow,
            };
            vote(&config, &options, bars, &shutdown).await
        }
        Command::Run { flags, run, rebuild } => {
            serve_engine(Config::load(file, &flags, &run)?, rebuild, shutdown).await
        }
        Command::Audit { flags, run } => audit(Config::load(file, &flags, &run)?).await,
        Command::Rejects { flags, reason, follow, json, replay } => {
            let config = Config::load(file, &flags, &NoSettings {})?;
            clients::check_kafka(&config).await?;
            match replay {
                Some(file) => send_back(&config, &file),
                None => {
                    let listing = Listing { reason, follow, json };
                    let told = rejects::list(&config, &listing, &mut std::io::stdout(), &shutdown).await?;
                    eprintln!("{told} messages");
                    Ok(())
                }
            }
        }
        Command::Triggers { flags, tables, remove } => {
            triggers(&Config::load(file, &flags, &NoSettings {})?, &tables, remove).await
        }
        Command::Check { queries, tables, plan, format } => {
            let (_, files) = queries::load(queries.as_deref())?;
            let report = replay::check(&files, &tables, tables_of_migrations(&election::MIGRATIONS)).await?;
            match format {
                CheckFormat::Text => print!("{}", report.text(plan)),
                CheckFormat::Json => {
                    let json = serde_json::to_string_pretty(&report);
                    let action = "print the report".to_string();
                    println!("{}", json.map_err(|error| Error::Io { action, source: error.into() })?);
                }
            }
            Ok(())
        }
        Command::Replay {
            queries,
            inputs,
            tables,
            batch_rows,
            views,
            changelogs,
            format,
            expect,
            strict,
        } => {
            let (_, files) = queries::load(queries.as_deref())?;
            let (tables, at_start): (Vec<_>, Vec<_>) = tables.into_iter().partition(|table| table.after > 0);
            let at_start: Vec<_> = at_start.into_iter().map(|table| (table.name, table.path)).collect();
            let engine = Replay::open(&files, &at_start).await?;
            let views = views.into_iter().map(Show::View);
            let shows = views.chain(changelogs.into_iter().map(Show::Changelog)).collect();
            let inputs = inputs.files()?;
            let script = Script { inputs, tables, batch_rows: batch_rows as usize, shows, format };
            replay_files(engine, &script, expect.as_deref(), strict).await
        }
        Command::Init { folder, example } => {
            let written = project::init(&folder, &example)?;
            written.files.iter().for_each(|file| println!("wrote  {}", file.display()));
            println!("\nNext:\n  cd {}\n  {}", folder.display(), written.next.join("\n  "));
            Ok(())
        }
        Command::Test { path, queries, update, junit } => {
            test(&testing::Options { path, queries, update }, junit.as_deref()).await
        }
        Command::Dev(options) => {
            let flags = Flags { queries: Some(options.queries.clone()), ..Flags::default() };
            let config = Config::load(file, &flags, &options.run)?;
            project::dev(config, &options, bars, shutdown).await
        }
        // It has run before there was a runtime.
        Command::SqlWorker => Ok(()),
        Command::Config { flags, run } => {
            print!("{}", Config::load(file, &flags, &run)?.to_toml());
            Ok(())
        }
    }
}

async fn replay_files(engine: Replay, script: &Script, expect: Option<&Path>, strict: bool) -> Result<()> {
    let (mut out, mut errors) = (std::io::stdout(), std::io::stderr());
    let replayed = match expect {
        None => replay::replay(engine, script, &mut out, &mut errors).await?,
        Some(expected) => {
            let text = std::fs::read_to_string(expected).map_err(|e| Error::io("reading", expected, e))?;
            let mut found = Vec::new();
            let replayed = replay::replay(engine, script, &mut found, &mut errors).await?;
            if let Some(diff) = replay::differences(&text, &String::from_utf8_lossy(&found)) {
                print!("{diff}");
                let reason = "this is expected (-), that came out (+)";
                return Err(Error::Differs(format!("{}: {reason}", expected.display())));
            }
            replayed
        }
    };
    match strict && replayed.told > 0 {
        true => Err(Error::Differs(format!(
            "--strict: {} times a line was rejected, late or left out of a view, as told above",
            replayed.told
        ))),
        false => Ok(()),
    }
}

async fn test(options: &testing::Options, junit: Option<&Path>) -> Result<()> {
    let known = tables_of_migrations(&election::MIGRATIONS);
    let outcomes = testing::run(options, known, &mut std::io::stdout()).await?;
    if let Some(file) = junit {
        std::fs::write(file, testing::junit(&outcomes)?).map_err(|e| Error::io("writing", file, e))?;
    }
    match outcomes.iter().filter(|outcome| outcome.failure.is_some()).count() {
        0 => Ok(()),
        failed => Err(Error::Differs(format!("{failed} of {} tests failed", outcomes.len()))),
    }
}

async fn create_topics(config: &Config) -> Result<()> {
    let needed = topics::needed(config, &[VOTERS_TOPIC]).await?;
    for (name, outcome) in topics::create(config, &needed).await? {
        match outcome {
            Outcome::Created => println!("created  {name}"),
            Outcome::Kept => println!("kept     {name}"),
        }
    }
    for warning in topics::check(config, &needed).await?.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

async fn audit(config: Config) -> Result<()> {
    let catalog = Catalog::load(config.queries.as_deref()).await?;
    let checked = Pipeline::open_to_audit(config).await?.audit(&catalog).await?;
    let equal = audit::print(&checked, &mut std::io::stdout())
        .map_err(|source| Error::Io { action: "writing the audit".into(), source })?;
    match checked.iter().find(|checked| checked.differences > 0) {
        Some(first) if !equal => {
            let example = first.first.as_deref().unwrap_or_default();
            Err(Error::Differs(format!("the audit has found differences: {}: {example}", first.what)))
        }
        _ => Ok(()),
    }
}

fn send_back(config: &Config, file: &Path) -> Result<()> {
    let sent = match file.to_str() {
        Some("-") => rejects::replay(config, std::io::stdin().lock())?,
        _ => {
            let opened = std::fs::File::open(file).map_err(|error| Error::io("opening", file, error))?;
            rejects::replay(config, std::io::BufReader::new(opened))?
        }
    };
    println!("{sent} messages were sent back");
    Ok(())
}

async fn triggers(config: &Config, tables: &[String], remove: bool) -> Result<()> {
    let pool = clients::postgres(config).await?;
    let outcomes = match remove {
        true => reference::remove_triggers(&pool, &config.postgres_schema, tables).await?,
        false => reference::install_triggers(&pool, &config.postgres_schema, tables).await?,
    };
    for (table, outcome) in outcomes {
        match outcome {
            TriggerOutcome::Installed => println!("installed  {table}"),
            TriggerOutcome::Kept => println!("kept       {table}"),
            TriggerOutcome::Removed => println!("removed    {table}"),
            TriggerOutcome::Absent => println!("absent     {table}"),
        }
    }
    Ok(())
}

async fn seed(
    config: &Config,
    population: &Population,
    bars: &MultiProgress,
    shutdown: &Shutdown,
) -> Result<()> {
    clients::check_kafka(config).await?;
    let pool = clients::postgres(config).await?;
    let bar = bars.add(bar(population.voters, "voters"));
    let report = election::seed(config, &pool, &seed_options(population), &bar, shutdown).await?;
    bar.finish_and_clear();
    println!("{report}");
    Ok(())
}

async fn vote(
    config: &Config,
    options: &VoteOptions,
    bars: &MultiProgress,
    shutdown: &Shutdown,
) -> Result<()> {
    clients::check_kafka(config).await?;
    let pool = clients::postgres(config).await?;
    let bar = bars.add(bar(0, "votes"));
    let report = election::vote(config, &pool, options, &bar, shutdown).await?;
    bar.finish_and_clear();
    println!("{report}");
    Ok(())
}

async fn serve_engine(config: Config, rebuild: bool, shutdown: Shutdown) -> Result<()> {
    let (listener, address) = serve::bind(&config.listen).await?;
    let token = operator_token(&config);
    println!("dashboard  {}", url(address));
    println!("token      {}", if config.token.is_some() { "as configured" } else { &token });
    let pipeline = match rebuild {
        true => Pipeline::rebuild(config.clone()).await?,
        false => Pipeline::open(config.clone()).await?,
    };
    run_engine(pipeline, &config, listener, token, SqlProgram::own(), shutdown).await
}

/// Runs the engine and the server until one fails or `shutdown`. `program` runs a query of ad-hoc SQL.
pub async fn run_engine(
    pipeline: Pipeline,
    config: &Config,
    listener: TcpListener,
    token: String,
    program: SqlProgram,
    shutdown: Shutdown,
) -> Result<()> {
    let AdHocTables { restricted, plain_views } = pipeline.tables();
    let app = App {
        published: pipeline.reader(),
        policy: config.into(),
        tables: SqlTables { restricted, restricted_hint: "a ballot is secret", plain_views },
        program,
        token,
        web_dir: config.web_dir.clone(),
        limits: config.into(),
        connections: ConnectionLimits::of(config.http_connections_max),
        hosts: config.hosts.clone(),
        extra: election::portraits(),
    };
    let stop = shutdown.child_token();
    let server = serve::run_in_thread(listener, app, stop.clone())?;
    // Whichever ends first ends the other, which then has time to close what it holds.
    let engine = async {
        let result = pipeline.run(stop.clone()).await;
        stop.cancel();
        result
    };
    let server = async {
        let result = server.await;
        stop.cancel();
        result
    };
    let (engine, server) = tokio::join!(engine, server);
    engine.and(server)
}

/// The configured token, or a new random one.
pub fn operator_token(config: &Config) -> String {
    config.token.clone().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()))
}

/// The people of a run.
pub fn seed_options(population: &Population) -> SeedOptions {
    SeedOptions { voters: population.voters, candidates: population.candidates, seed: population.seed }
}

/// A progress bar; of no length when the number to come is not known.
pub fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = if length == 0 {
        "{spinner} {prefix:<8} {human_pos} ({per_sec}) {msg}"
    } else {
        "  {prefix:<8} {bar:40.cyan/dim} {human_pos}/{human_len} ({per_sec}) {msg}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if length == 0 { ProgressBar::no_length() } else { ProgressBar::new(length) };
    bar.with_style(style).with_prefix(what)
}

/// How an address is written in a URL: a server that listens everywhere is reached here at loopback.
pub fn url(address: SocketAddr) -> String {
    let host = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && !address.ip().is_unspecified() { format!("[{host}]") } else { host };
    format!("http://{host}:{}/", address.port())
}
