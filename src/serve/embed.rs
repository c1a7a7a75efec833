//! The one page that others may show in a frame: the result alone, with nothing to press.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, X_FRAME_OPTIONS};
use axum::middleware::Next;
use axum::response::Response;

const PATH: &str = "/embed.html";
const CSP: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors *";

/// Lets that page be framed, which the headers of all answers forbid.
pub(super) async fn allow(request: Request, next: Next) -> Response {
    let framed = request.uri().path() == PATH;
    let mut response = next.run(request).await;
    if framed {
        response.headers_mut().remove(X_FRAME_OPTIONS);
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    }
    response
}
