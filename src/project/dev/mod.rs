//! `tally dev`: a project on this machine. A broker in this process, a private Postgres where a query reads a table, the
//! inputs fed to their topics, the engine and the page. Edits of the `.sql` files are followed: a folder that can be
//! planned takes over, of any other the error is told and the old version goes on.

mod edits;
mod feed;
mod servers;

use std::collections::BTreeMap;

use indicatif::MultiProgress;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::edits::{Edits, Found};
use self::feed::Feed;
use self::servers::Servers;
use crate::catalog::Catalog;
use crate::cli::Dev;
use crate::commands::{operator_token, run_engine, url};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::serve::{self, SqlProgram};
use crate::shutdown::Shutdown;

/// A version of the project that runs, also while the next one is planned.
struct Running {
    files: Found,
    stop: Shutdown,
    version: JoinHandle<Result<()>>,
}

impl Running {
    async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until it has ended.
    async fn ended(&mut self) -> Result<()> {
        let ended = (&mut self.version).await;
        ended.unwrap_or_else(|error| Err(Error::Limit(format!("the engine has panicked: {error}"))))
    }
}

/// Runs a project until `shutdown`; then stops its servers and removes their files.
pub async fn dev(mut config: Config, options: &Dev, bars: &MultiProgress, shutdown: Shutdown) -> Result<()> {
    if !options.queries.is_dir() {
        return Err(Error::Config(format!(
            "no folder {} here: go into a project's folder, or `tally init shop` writes one",
            options.queries.display()
        )));
    }
    let feed = Feed::open(options)?;
    // What can't be planned is told later, and may be mended while we run; a wrong flag can't.
    if let Ok(catalog) = Catalog::load(Some(&options.queries)).await {
        feed.check(&catalog)?;
    }
    let (listener, address) = serve::bind(&config.listen).await?;
    let mut servers = Servers::start(options)?;
    config.kafka = BTreeMap::from([("bootstrap.servers".into(), servers.bootstrap_servers())]);
    // What was counted is gone with the broker.
    config.data_dir.clear();
    let token = operator_token(&config);
    config.token = Some(token.clone());
    say(bars, &format!("page       {}", url(address)));
    say(bars, &format!("console    {}console.html#token={token}", url(address)));
    say(bars, &format!("kafka      {}", servers.bootstrap_servers()));
    let listener = listener.into_std().map_err(|source| Error::Io { action: "listening".into(), source })?;
    let mut project = Project { config, bars, shutdown: shutdown.clone(), listener, feed: Some(feed) };
    let result = project.follow(&mut servers, Edits::of(&options.queries)).await;
    let stopped = servers.stop().await;
    if shutdown.is_cancelled() { stopped } else { result.and(stopped) }
}

/// A line for the user, above whatever else is shown.
fn say(bars: &MultiProgress, line: &str) {
    bars.suspend(|| println!("{line}"));
}

struct Project<'a> {
    config: Config,
    bars: &'a MultiProgress,
    shutdown: Shutdown,
    /// Stays open while versions come and go: who connects meanwhile waits.
    listener: std::net::TcpListener,
    /// Until it is fed.
    feed: Option<Feed>,
}

impl Project<'_> {
    /// Runs the newest version that can be planned, whatever becomes of the folder.
    async fn follow(&mut self, servers: &mut Servers, mut edits: Edits) -> Result<()> {
        let shutdown = self.shutdown.clone();
        let mut running: Option<Running> = None;
        loop {
            let files = edits.told().clone();
            match servers.prepare(&mut self.config, self.bars).await {
                Ok(_) if running.as_ref().is_some_and(|running| running.files == files) => {
                    say(self.bars, "\nThe queries are again those that run.");
                }
                Ok(catalog) => {
                    let is_first = self.feed.is_some();
                    if let Some(running) = running.take() {
                        running.end().await?;
                    }
                    running = self.start(&catalog, files, is_first).await?;
                }
                Err(error) => {
                    let then = match running {
                        Some(_) => "The version before goes on.",
                        None => "Nothing runs until that is mended.",
                    };
                    say(self.bars, &format!("\n{error}\n{then}"));
                }
            }
            let ended = async {
                match &mut running {
                    Some(running) => running.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = ended => return result,
                () = edits.next() => {}
                () = shutdown.cancelled() => {
                    return match running.take() {
                        Some(running) => running.end().await,
                        None => Ok(()),
                    };
                }
            }
        }
    }

    /// Starts what the folder says now; none if it can't be opened, which is told.
    async fn start(&mut self, catalog: &Catalog, files: Found, is_first: bool) -> Result<Option<Running>> {
        let pipeline = match Pipeline::open(self.config.clone()).await {
            // Sources that have changed: which rows would have counted is not known.
            Err(Error::Log(_)) => Pipeline::rebuild(self.config.clone()).await,
            opened => opened,
        };
        let pipeline = match pipeline {
            Ok(pipeline) => pipeline,
            Err(error) => {
                say(self.bars, &format!("\n{error}\nNothing runs until that is mended."));
                return Ok(None);
            }
        };
        let number =
            |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let views = catalog.views.values().filter(|view| view.materialized).count();
        let found = format!("{} over {}", number(views, "view"), number(catalog.sources.len(), "source"));
        say(
            self.bars,
            &match is_first {
                true => format!("queries    {found}; edits are followed\nPress Ctrl-C to stop.\n"),
                false => format!("\nThe queries have changed: {found}, counted again from the beginning."),
            },
        );
        let io = |source| Error::Io { action: "listening".into(), source };
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).map_err(io)?;
        if let Some(feed) = self.feed.take() {
            feed.start(&self.config, catalog, self.bars, &self.shutdown)?;
        }
        let (stop, config) = (self.shutdown.child_token(), self.config.clone());
        let token = operator_token(&config);
        let until = stop.clone();
        let version =
            async move { run_engine(pipeline, &config, listener, token, SqlProgram::own(), until).await };
        Ok(Some(Running { files, stop, version: tokio::spawn(version) }))
    }
}
