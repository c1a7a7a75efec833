//! What the views' readers are pushed: a snapshot, then the changes of each release (the operator: of each epoch).
//! An event is encoded once, and all who want the same views share its bytes. Only a bounded number of events is
//! kept; whoever is further behind gets a snapshot again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::engine::{Op, ViewRows};
use crate::error::Result;
use crate::shutdown::Shutdown;
use crate::snapshot::ViewSnapshot;

use super::json::{self, ColumnInfo, column_list, rfc3339};
use super::readers::Readers;

/// Most rows of a view that is pushed; a larger one is read in pages.
pub(super) const PUSHED_ROWS_MAX: usize = 100_000;

/// Most events that are kept, …
const EVENTS_MAX: usize = 128;

/// … and most bytes of them.
const EVENT_BYTES_MAX: usize = 8 << 20;

/// Most combinations of views for which an event is kept ready; the others are put together each time.
const READY_MAX: usize = 8;

/// A connection over which nothing comes is told so often that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The views that a reader wants; none: all.
pub(super) type Wanted = Option<Arc<[String]>>;

/// What readers of a feed have in common. It ends at the shutdown, and with it all that follow.
pub(super) struct Feed {
    told: watch::Receiver<Told>,
    /// Told when somebody begins to read.
    begun: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// What all readers wait for. One clock for all: thousands of them would each have to set one at each event.
#[derive(Clone, Default)]
pub(super) struct Told {
    pub(super) held: Arc<Held>,
    /// How often the clock has said that who has heard nothing is told so.
    pub(super) beats: u64,
}

/// The newest rows, and how they came about.
#[derive(Default)]
pub(super) struct Held {
    newest: Option<Event>,
    /// From the oldest on, each with the changes since the one before.
    changes: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// Where a reader is: the number of a release or an epoch.
pub(super) type Position = u64;

/// A snapshot, or what changed since the event before.
struct Event {
    head: Head,
    name: &'static str,
    /// Where its reader must be for it.
    after: Position,
    position: Position,
    views: BTreeMap<String, Part>,
    ready: Mutex<HashMap<Wanted, Bytes>>,
}

#[derive(Clone, Serialize)]
struct Head {
    release: u64,
    epoch: u64,
    at: String,
}

/// One view's part of an event, as JSON.
#[derive(Clone)]
enum Part {
    Changes(Bytes),
    /// Encoded for the first who reads it.
    Rows(Arc<Rows>),
}

struct Rows {
    view: Arc<ViewSnapshot>,
    json: OnceLock<Bytes>,
}

/// The views as of now, before anything is made of them.
struct Now {
    position: Position,
    head: Head,
    views: BTreeMap<String, Arc<ViewSnapshot>>,
}

impl Feed {
    /// For the public: by release.
    pub(super) fn of_releases(readers: &Readers, shutdown: Shutdown) -> Feed {
        let mut released = readers.released.clone();
        released.mark_changed();
        let now = move |readers: &Readers| {
            let release = Arc::clone(&readers.released.borrow());
            let head =
                Head { release: release.number, epoch: release.published.epoch, at: rfc3339(release.at) };
            (release.number > 0).then(|| Now {
                position: release.number,
                head,
                views: release.published.views.clone(),
            })
        };
        Feed::start(readers.clone(), released, now, true, shutdown)
    }

    /// For the operator: by epoch, and only while somebody reads.
    pub(super) fn of_epochs(readers: &Readers, shutdown: Shutdown) -> Feed {
        let mut published = readers.published.clone();
        published.mark_changed();
        let now = move |readers: &Readers| {
            let published = Arc::clone(&readers.published.borrow());
            let head = Head {
                release: readers.released.borrow().number,
                epoch: published.epoch,
                at: rfc3339(SystemTime::now()),
            };
            Some(Now { position: published.epoch, head, views: published.views.clone() })
        };
        Feed::start(readers.clone(), published, now, false, shutdown)
    }

    fn start<T: Send + Sync + 'static>(
        readers: Readers,
        mut changes: watch::Receiver<T>,
        now: impl Fn(&Readers) -> Option<Now> + Send + 'static,
        always: bool,
        shutdown: Shutdown,
    ) -> Feed {
        let (sender, told) = watch::channel(Told::default());
        let begun = Arc::new(Notify::new());
        let begins = Arc::clone(&begun);
        let task = tokio::spawn(async move {
            let tell = |held: Arc<Held>| sender.send_modify(|told| told.held = held);
            let mut rows = ViewsRows::default();
            let mut clock = tokio::time::interval(KEEP_ALIVE);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = begins.notified() => {}
                    _ = clock.tick() => {
                        sender.send_modify(|told| told.beats += 1);
                        continue;
                    }
                    () = shutdown.cancelled() => return,
                }
                // One receiver is the feed's own.
                if !always && sender.receiver_count() == 1 {
                    rows = ViewsRows::default();
                    tell(Arc::default());
                    continue;
                }
                let Some(now) = now(&readers) else { continue };
                let before = Arc::clone(&sender.borrow().held);
                // Large views take long to compare: not on a thread that answers requests.
                let made = tokio::task::spawn_blocking(move || {
                    let next = before.next(now, &mut rows);
                    (rows, next)
                });
                let next;
                (rows, next) = match made.await {
                    Ok(made) => made,
                    Err(failed) if failed.is_cancelled() => return,
                    Err(failed) => {
                        error!("a feed of changes begins anew: {failed}");
                        tell(Arc::default());
                        (ViewsRows::default(), Ok(None))
                    }
                };
                match next {
                    Ok(Some(next)) => tell(Arc::new(next)),
                    Ok(None) => {}
                    Err(failed) => {
                        error!("a feed of changes begins anew: {failed}");
                        rows = ViewsRows::default();
                        tell(Arc::default());
                    }
                }
            }
        });
        Feed { told, begun, _task: AbortOnDropHandle::new(task) }
    }

    /// For a reader of it.
    pub(super) fn follow(&self) -> watch::Receiver<Told> {
        let mut receiver = self.told.clone();
        receiver.mark_changed();
        self.begun.notify_one();
        receiver
    }
}

impl Held {
    /// What a reader at a position gets next, and where it is then; none: nothing new. `encode` is the run that the
    /// ids are of.
    pub(super) fn after(
        &self,
        position: Option<Position>,
        wanted: &Wanted,
        run: u64,
    ) -> Option<(Option<Bytes>, Position)> {
        let newest = self.newest.as_ref()?;
        let Some(position) = position else { return Some((newest.encode(wanted, run), newest.position)) };
        if position == newest.position {
            return None;
        }
        match self.changes.iter().find(|event| event.after == position) {
            Some(event) => Some((event.encode(wanted, run), event.position)),
            None => Some((newest.encode(wanted, run), newest.position)),
        }
    }

    /// With what has changed until now; none: nothing has.
    fn next(&self, now: Now, rows: &mut ViewsRows) -> Result<Option<Held>> {
        let Now { position, head, mut views } = now;
        views.retain(|_, view| view.total_rows() <= PUSHED_ROWS_MAX);
        let before = self.newest.as_ref();
        let parts = rows.parts(&views, before.is_some())?;
        if before.is_some_and(|before| parts.is_empty() && before.views.len() == views.len()) {
            return Ok(None);
        }
        let kept = |name: &String, view: &Arc<ViewSnapshot>| match before
            .and_then(|before| before.views.get(name))
        {
            Some(Part::Rows(rows)) if Arc::ptr_eq(&rows.view, view) => Arc::clone(rows),
            _ => Arc::new(Rows { view: Arc::clone(view), json: OnceLock::new() }),
        };
        let all = views.iter().map(|(name, view)| (name.clone(), Part::Rows(kept(name, view)))).collect();
        let newest = Event::new(&head, "snapshot", 0, position, all);
        let mut held = Held { newest: Some(newest), changes: self.changes.clone(), bytes: self.bytes };
        if let Some(before) = before {
            let event = Event::new(&head, "changes", before.position, position, parts);
            held.bytes += event.bytes();
            held.changes.push_back(Arc::new(event));
            while (held.changes.len() > EVENTS_MAX || held.bytes > EVENT_BYTES_MAX)
                && let Some(oldest) = held.changes.pop_front()
            {
                held.bytes -= oldest.bytes();
            }
        }
        Ok(Some(held))
    }
}

impl Event {
    fn new(
        head: &Head,
        name: &'static str,
        after: Position,
        position: Position,
        views: BTreeMap<String, Part>,
    ) -> Event {
        Event { head: head.clone(), name, after, position, views, ready: Mutex::default() }
    }

    /// Bytes of its changes. As it is sent it has about as many again, for each combination of views.
    fn bytes(&self) -> usize {
        let bytes = |part: &Part| match part {
            Part::Changes(json) => json.len(),
            Part::Rows(_) => 0,
        };
        self.views.values().map(bytes).sum()
    }

    /// As it is sent to who wants these views; none: it has none of them.
    fn encode(&self, wanted: &Wanted, run: u64) -> Option<Bytes> {
        let is_wanted = |name: &String| wanted.as_ref().is_none_or(|wanted| wanted.contains(name));
        if self.name == "changes" && !self.views.keys().any(is_wanted) {
            return None;
        }
        let mut ready = self.ready.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bytes) = ready.get(wanted) {
            return Some(bytes.clone());
        }
        let head = serde_json::to_string(&self.head).expect("invariant: numbers and a text");
        let mut text = format!("id: {}.{run}\nevent: {}\ndata: ", self.position, self.name).into_bytes();
        text.extend_from_slice(head.trim_end_matches('}').as_bytes());
        text.extend_from_slice(b",\"views\":{");
        let mut is_first = true;
        for (name, part) in self.views.iter().filter(|(name, _)| is_wanted(name)) {
            // A view that can't be encoded is told in the log, and is missing here.
            let Some(json) = part.json() else { continue };
            if !std::mem::take(&mut is_first) {
                text.push(b',');
            }
            text.extend(serde_json::to_vec(name).expect("invariant: a text"));
            text.push(b':');
            text.extend_from_slice(&json);
        }
        text.extend_from_slice(b"}}\n\n");
        let bytes = Bytes::from(text);
        if ready.len() < READY_MAX {
            ready.insert(wanted.clone(), bytes.clone());
        }
        Some(bytes)
    }
}

#[derive(Serialize)]
struct RowsHead {
    columns: Vec<ColumnInfo>,
    total_rows: usize,
}

impl Part {
    fn json(&self) -> Option<Bytes> {
        let rows = match self {
            Part::Changes(json) => return Some(json.clone()),
            Part::Rows(rows) => rows,
        };
        if let Some(json) = rows.json.get() {
            return Some(json.clone());
        }
        let info = &rows.view.info;
        let encode = || -> Result<Bytes> {
            let head = RowsHead { columns: column_list(&info.schema), total_rows: rows.view.total_rows() };
            Ok(Bytes::from(json::body(&head, &[rows.view.batch()?])?))
        };
        match encode() {
            Ok(json) => Some(rows.json.get_or_init(|| json).clone()),
            Err(failed) => {
                error!("pushing view {}: {failed}", info.name);
                None
            }
        }
    }
}

/// Of each view, the rows that were pushed last.
#[derive(Default)]
struct ViewsRows(BTreeMap<String, (Arc<ViewSnapshot>, ViewRows)>);

impl ViewsRows {
    /// Of each view that has changed, how, as JSON. Without `encode` it is only noted.
    fn parts(
        &mut self,
        views: &BTreeMap<String, Arc<ViewSnapshot>>,
        encode: bool,
    ) -> Result<BTreeMap<String, Part>> {
        let mut parts = BTreeMap::new();
        for (name, view) in views {
            if self.0.get(name).is_some_and(|(pushed, _)| Arc::ptr_eq(pushed, view)) {
                continue;
            }
            let mut rows = match self.0.remove(name) {
                Some((_, rows)) => rows,
                None => ViewRows::new(Arc::clone(&view.info.schema), &view.info.key)?,
            };
            let changed = rows.replace(&view.batch()?)?;
            self.0.insert(name.clone(), (Arc::clone(view), rows));
            if !changed.ops.is_empty() && encode {
                let json = changes_json(&changed.ops, &json::row_objects(&changed.rows)?);
                parts.insert(name.clone(), Part::Changes(json));
            }
        }
        let gone: Vec<String> = self.0.keys().filter(|name| !views.contains_key(*name)).cloned().collect();
        for name in gone {
            self.0.remove(&name);
            parts.insert(name, Part::Changes(Bytes::from_static(br#"{"changes":[],"too_many_rows":true}"#)));
        }
        Ok(parts)
    }
}

fn changes_json(ops: &[Op], rows: &[Vec<u8>]) -> Bytes {
    let mut json = b"{\"changes\":[".to_vec();
    for (i, (op, row)) in ops.iter().zip(rows).enumerate() {
        if i > 0 {
            json.push(b',');
        }
        json.extend_from_slice(format!("{{\"op\":\"{}\",\"row\":", op.as_str()).as_bytes());
        json.extend_from_slice(row);
        json.push(b'}');
    }
    json.extend_from_slice(b"]}");
    Bytes::from(json)
}
