//! Server-sent events of the views' changes. A connection is a stream that is asked for its next event only when
//! the one before has been taken: a slow reader holds nothing up, and gets a snapshot when it is too far behind.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::shutdown::Shutdown;

use super::auth::Caller;
use super::feed::{Feed, PUSHED_ROWS_MAX, Position, Told, Wanted};
use super::problem::Problem;
use super::readers::{Readers, Seen};

/// Readers at one time; the next one is refused.
const READERS_MAX: usize = 20_000;

/// What a connection begins with: how long a browser waits before it connects again.
const GREETING: Bytes = Bytes::from_static(b"retry: 2000\n\n");

const ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// The feeds, and who may still join.
#[derive(Clone)]
pub(super) struct Changes {
    readers: Readers,
    releases: Arc<Feed>,
    epochs: Arc<Feed>,
    places: Arc<Semaphore>,
    /// Tells the events of this run from those of another, which count their releases from 1 too.
    run: u64,
}

impl Changes {
    pub(super) fn start(readers: Readers, shutdown: Shutdown) -> Changes {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Changes {
            releases: Arc::new(Feed::of_releases(&readers, shutdown.clone())),
            epochs: Arc::new(Feed::of_epochs(&readers, shutdown)),
            places: Arc::new(Semaphore::new(READERS_MAX)),
            readers,
            run,
        }
    }

    fn answer(&self, seen: &Seen, wanted: Wanted, headers: &HeaderMap) -> Result<Response, Problem> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let detail = format!("{READERS_MAX} readers follow already, which is the most; try again later");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after_s(10)
        })?;
        let feed = if seen.operator { &self.epochs } else { &self.releases };
        let reader = FeedReader {
            told: feed.follow(),
            beats: None,
            position: self.resumed(headers),
            wanted,
            run: self.run,
            is_greeted: false,
            _place: place,
        };
        let body = Body::from_stream(stream::unfold(reader, FeedReader::next));
        let headers =
            [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (VARY, "authorization")];
        Ok((headers, body).into_response())
    }

    /// Where a reader was who comes back; none: it begins, or was a reader of another run.
    fn resumed(&self, headers: &HeaderMap) -> Option<Position> {
        let id = headers.get("last-event-id")?.to_str().ok()?;
        let (position, run) = id.split_once('.')?;
        (run.parse() == Ok(self.run)).then(|| position.parse().ok())?
    }
}

struct FeedReader {
    told: watch::Receiver<Told>,
    /// The clock's beat when the reader was last told anything.
    beats: Option<u64>,
    position: Option<Position>,
    wanted: Wanted,
    run: u64,
    is_greeted: bool,
    _place: OwnedSemaphorePermit,
}

impl FeedReader {
    /// Waits for the next event.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if !std::mem::replace(&mut self.is_greeted, true) {
            return Some((Ok(GREETING), self));
        }
        loop {
            let Told { held, beats } = self.told.borrow_and_update().clone();
            let before = self.beats.replace(beats);
            while let Some((event, position)) = held.after(self.position, &self.wanted, self.run) {
                self.position = Some(position);
                if let Some(event) = event {
                    return Some((Ok(event), self));
                }
            }
            if before.is_some_and(|before| before != beats) {
                return Some((Ok(ALIVE), self));
            }
            drop(held);
            self.told.changed().await.ok()?;
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Names of views, with commas between them; without it, all that the reader may see.
    views: Option<String>,
}

/// The changes of several views.
pub(super) async fn of_many(
    State(changes): State<Changes>,
    which: Result<Query<Which>, QueryRejection>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(Which { views }) = which?;
    let seen = changes.readers.see(caller);
    let wanted = match views {
        None => None,
        Some(views) => {
            let mut names: Vec<String> = views
                .split(',')
                .map(|name| name.trim().to_string())
                .filter(|name| !name.is_empty())
                .collect();
            names.sort();
            names.dedup();
            for name in &names {
                may_follow(&seen, name)?;
            }
            Some(names.into())
        }
    };
    changes.answer(&seen, wanted, &headers)
}

/// The changes of one view.
pub(super) async fn of_one(
    State(changes): State<Changes>,
    Path(name): Path<String>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let seen = changes.readers.see(caller);
    may_follow(&seen, &name)?;
    changes.answer(&seen, Some([name].into()), &headers)
}

/// Whether a view's changes can be read. One that is not released yet can: its snapshot comes with the release.
fn may_follow(seen: &Seen, name: &str) -> Result<(), Problem> {
    let view = seen.find_any(name)?;
    if view.total_rows() > PUSHED_ROWS_MAX {
        let detail = format!(
            "view {name} has {} rows; one of at most {PUSHED_ROWS_MAX} is pushed: read it in pages at /api/views/{name}",
            view.total_rows()
        );
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    Ok(())
}
