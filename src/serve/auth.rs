//! Who asks: the operator, who sends the token, or anybody. The token is compared and never shown; wrong ones are
//! logged and slowed.

use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use tokio::sync::Semaphore;

use super::connections::Peer;
use super::problem::Problem;

/// How long the answer to a wrong token takes. One is answered after the other, whoever sends them.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(500);

/// Wrong tokens that wait for their answer; more are refused at once.
const WRONG_TOKENS_MAX: usize = 20;

/// Wrong tokens are logged so often, with their number.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who asks. As an extractor it answers a wrong token itself: whoever sends one expects more than the public sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Sent the token.
    Operator,
    /// Sent none.
    Public,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Problem> {
        let guard = parts.extensions.get::<Arc<Guard>>().cloned();
        let guard = guard.expect("invariant: the router gives every request its guard");
        let peer = parts.extensions.get::<Peer>().copied();
        guard.check(&parts.headers, peer).await
    }
}

/// Knows the token.
pub struct Guard {
    token: String,
    /// Whose wrong token is answered next.
    turn: Semaphore,
    waiting: Semaphore,
    wrong: Mutex<Wrong>,
}

/// Wrong tokens since they were logged.
#[derive(Default)]
struct Wrong {
    tokens: u64,
    logged: Option<Instant>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard(…)")
    }
}

impl Guard {
    /// Lets in who has the token; an empty one lets in nobody.
    pub fn new(token: impl Into<String>) -> Self {
        Guard {
            token: token.into(),
            turn: Semaphore::new(1),
            waiting: Semaphore::new(WRONG_TOKENS_MAX),
            wrong: Mutex::default(),
        }
    }

    /// Who sent these headers. A wrong token is an error, after a while.
    pub async fn check(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Caller, Problem> {
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Caller::Public) };
        let given = header.to_str().ok().and_then(|value| value.split_once(' '));
        match given {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && self.is(token.trim()) => {
                Ok(Caller::Operator)
            }
            _ => Err(self.refuse(peer).await),
        }
    }

    async fn refuse(&self, peer: Option<Peer>) -> Problem {
        self.log(peer);
        let Ok(_waiting) = self.waiting.try_acquire() else {
            let detail = "too many wrong tokens were sent; send none, or the one printed at start";
            return Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after_s(10);
        };
        let _turn = self.turn.acquire().await.expect("invariant: the semaphore is never closed");
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "this is not the operator's token; send `Authorization: Bearer TOKEN` with the one printed at start, or none",
        )
    }

    fn log(&self, peer: Option<Peer>) {
        let mut wrong = self.wrong.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        wrong.tokens += 1;
        if wrong.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            let from = peer.map_or_else(|| "an unknown address".into(), |Peer(address)| address.to_string());
            tracing::warn!("{} requests with a wrong token, the last from {from}", wrong.tokens);
            *wrong = Wrong { tokens: 0, logged: Some(Instant::now()) };
        }
    }

    /// Takes the same time wherever the two differ, so that the token can't be guessed byte by byte.
    fn is(&self, given: &str) -> bool {
        let (own, given) = (self.token.as_bytes(), given.as_bytes());
        let differs = own.iter().zip(given).fold(0, |differs, (a, b)| black_box(differs | (a ^ b)));
        !own.is_empty() && own.len() == given.len() && differs == 0
    }
}
