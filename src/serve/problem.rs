//! Errors as RFC 9457 problem JSON. The detail says what is wrong and what to do; internals stay in the log.

use std::borrow::Cow;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use datafusion::error::DataFusionError;
use serde::{Deserialize, Deserializer, Serialize};
use tracing::error;

use crate::error::Error;

use super::sql::TableFailed;

/// Title of a query's end by its memory limit.
pub(super) const TOO_MUCH_MEMORY: &str = "The query needs too much memory";

/// The answer to a request that can't be met.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Problem {
    #[serde(rename = "type", skip_deserializing)]
    kind: AboutBlank,
    title: Cow<'static, str>,
    #[serde(serialize_with = "as_number", deserialize_with = "from_number")]
    status: StatusCode,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

/// The type of every problem here: its status says what kind it is.
#[derive(Clone, Copy, Debug, Default)]
struct AboutBlank;

impl Serialize for AboutBlank {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("about:blank")
    }
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

fn from_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StatusCode, D::Error> {
    StatusCode::from_u16(u16::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl Problem {
    /// A problem whose title is the status's own.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem {
            kind: AboutBlank,
            title: status.canonical_reason().unwrap_or("Error").into(),
            status,
            detail: detail.into(),
            line: None,
            column: None,
            retry_after_s: None,
        }
    }

    /// The same, saying when to try again.
    pub fn retry_after_s(self, seconds: u64) -> Self {
        Problem { retry_after_s: Some(seconds), ..self }
    }

    /// Its JSON, for another process.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: texts and numbers")
    }

    /// With a title of its own.
    pub fn titled(self, title: &'static str) -> Self {
        Problem { title: title.into(), ..self }
    }

    /// What a query's error means to whoever wrote the query.
    pub fn sql(error: &DataFusionError) -> Self {
        let root = error.find_root();
        let status = match root {
            DataFusionError::ResourcesExhausted(_) => StatusCode::UNPROCESSABLE_ENTITY,
            DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            DataFusionError::External(e) if e.is::<Error>() || e.is::<TableFailed>() => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        let detail = match root {
            DataFusionError::SQL(parser, _) => parser.to_string(),
            _ => root.strip_backtrace(),
        };
        let (line, column) = position(error, &detail).unzip();
        let title = match status {
            StatusCode::BAD_REQUEST => "SQL error",
            StatusCode::UNPROCESSABLE_ENTITY => TOO_MUCH_MEMORY,
            _ => status.canonical_reason().unwrap_or("Error"),
        };
        Problem { line, column, ..Problem::new(status, detail).titled(title) }
    }
}

/// Line and column, both from 1: of the planner's diagnostic, else as the parser writes them into its message.
fn position(error: &DataFusionError, message: &str) -> Option<(u64, u64)> {
    if let Some(span) = error.diagnostic().and_then(|d| d.span) {
        return Some((span.start.line, span.start.column));
    }
    let (_, place) = message.rsplit_once("Line: ")?;
    let (line, rest) = place.split_once(", Column: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((line.parse().ok()?, rest[..digits].parse().ok()?))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let retry_after_s = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tally\""));
        }
        response
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Problem::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Problem::new(rejection.status(), rejection.body_text())
    }
}

impl From<DataFusionError> for Problem {
    fn from(error: DataFusionError) -> Self {
        Problem::sql(&error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        error!("answering a request: {error}");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this can't be answered now; the server's log says why",
        )
    }
}
