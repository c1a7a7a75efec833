//! The operator's token. It is compared and never shown.

use std::fmt;
use std::hint::black_box;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};

use super::problem::Problem;

/// The token that opens the restricted tables.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// The token itself; an empty one opens nothing.
    pub fn new(token: impl Into<String>) -> Self {
        Token(token.into())
    }

    /// Whether the request is the operator's. A wrong token is an error rather than a public request: whoever
    /// sends one expects more than the public sees.
    pub fn check(&self, headers: &HeaderMap) -> Result<bool, Problem> {
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(false) };
        let given = header.to_str().ok().and_then(|value| value.split_once(' '));
        match given {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && self.is(token.trim()) => {
                Ok(true)
            }
            _ => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "this is not the operator's token; send `Authorization: Bearer TOKEN` with the one printed at start, or none",
            )),
        }
    }

    /// Takes the same time wherever the two differ, so that the token can't be guessed byte by byte.
    fn is(&self, given: &str) -> bool {
        let (own, given) = (self.0.as_bytes(), given.as_bytes());
        let differs = own.iter().zip(given).fold(0, |differs, (a, b)| black_box(differs | (a ^ b)));
        !own.is_empty() && own.len() == given.len() && differs == 0
    }
}
