//! Accepts connections, and bounds them: how many there are, how long a request's head may take, how long a
//! connection may be silent, and how long it may take nothing of an answer. When there are too many, a new one
//! takes the place of the one that has been silent for longest.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::shutdown::Shutdown;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;

/// Open files that are not connections: Kafka, Postgres, the processes of ad-hoc SQL.
const FILES_RESERVED: u64 = 256;

/// How long nothing is accepted after the system refused a connection, which it does when something has run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Most at one time.
    pub max: usize,
    /// Longest that the head of a request may take, from the connection's start or the last answer: so also the
    /// longest silence.
    pub head_timeout: Duration,
    /// Longest that a client may take nothing of its answer.
    pub write_timeout: Duration,
}

impl ConnectionLimits {
    /// With the usual times.
    pub fn of(max: usize) -> ConnectionLimits {
        ConnectionLimits {
            max,
            head_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(30),
        }
    }

    /// No more than this process may have open. The limit that it may raise itself, it raises.
    pub fn within_open_files(self) -> ConnectionLimits {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: maximum, maximum };
        let files = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
        // None: there is no limit.
        let Some(files) = files else { return self };
        let max = usize::try_from(files.saturating_sub(FILES_RESERVED).max(files / 2)).unwrap_or(usize::MAX);
        if max < self.max {
            warn!(
                "at most {max} connections are accepted instead of http_connections_max = {}: this process may have \
                 {files} open files (`ulimit -n`)",
                self.max
            );
        }
        ConnectionLimits { max: self.max.min(max), ..self }
    }
}

/// Who is at the other end of a connection; an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves until `shutdown`, then until the open requests have ended.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(limits.max));
    let silent = Arc::new(Silent::default());
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    if !is_of_one_connection(&e) {
                        warn!("accepting a connection: {e}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            },
        };
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) if silent.close_oldest() => {
                Arc::clone(&places).acquire_owned().await.expect("invariant: the semaphore is never closed")
            }
            Err(_) => {
                debug!("{peer} is not served: all connections are busy");
                continue;
            }
        };
        let connection = Connection {
            peer: Peer(peer),
            router: router.clone(),
            silence: Arc::new(Silence::of(&silent)),
            limits,
            shutdown: shutdown.clone(),
            _place: place,
        };
        connections.spawn(connection.serve(stream));
    }
    connections.close();
    connections.wait().await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

struct Connection {
    peer: Peer,
    router: Router,
    silence: Arc<Silence>,
    limits: ConnectionLimits,
    shutdown: Shutdown,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // An event must not wait for the next one.
        stream.set_nodelay(true).ok();
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.limits.write_timeout));
        let silence = &self.silence;
        let service = service_fn(|request| answer(self.router.clone(), silence.clone(), self.peer, request));
        let http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut http = std::pin::pin!(http);
        let ended = tokio::select! {
            ended = &mut http => ended,
            () = silence.closed.cancelled() => return,
            () = self.shutdown.cancelled() => {
                http.as_mut().graceful_shutdown();
                http.await
            }
        };
        if let Err(e) = ended {
            debug!("connection of {}: {e}", self.peer.0);
        }
    }
}

async fn answer(
    router: Router,
    silence: Arc<Silence>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let speaking = Speaking::begin(silence);
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(peer);
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| Answer { body, _speaking: speaking }))
}

/// An answer's body; while there is some left, its connection is not silent.
struct Answer {
    body: Body,
    _speaking: Speaking,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The silent connections, the longest silent first.
#[derive(Default)]
struct Silent(Mutex<(u64, BTreeMap<u64, CancellationToken>)>);

impl Silent {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, CancellationToken>)> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether there was one.
    fn close_oldest(&self) -> bool {
        let oldest = self.lock().1.pop_first();
        oldest.inspect(|(_, connection)| connection.cancel()).is_some()
    }
}

/// Whether one connection is silent, and since when in the order of all.
struct Silence {
    all: Arc<Silent>,
    /// Its number among the silent ones.
    number: Mutex<u64>,
    closed: CancellationToken,
}

impl Silence {
    fn of(all: &Arc<Silent>) -> Silence {
        let silence =
            Silence { all: Arc::clone(all), number: Mutex::new(0), closed: CancellationToken::new() };
        silence.begin();
        silence
    }

    fn begin(&self) {
        let mut all = self.all.lock();
        all.0 += 1;
        let number = all.0;
        all.1.insert(number, self.closed.clone());
        *self.number.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = number;
    }

    fn end(&self) {
        let mut all = self.all.lock();
        all.1.remove(&*self.number.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.end();
    }
}

/// From a request's head to the end of its answer.
struct Speaking(Arc<Silence>);

impl Speaking {
    fn begin(silence: Arc<Silence>) -> Speaking {
        silence.end();
        Speaking(silence)
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.0.begin();
    }
}
