//! The dashboard's files: built into the binary, or from a directory while they are being edited.

use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use rust_embed::RustEmbed;
use tower_http::services::ServeDir;

use super::problem::Problem;
use super::views::is_not_modified;

#[derive(RustEmbed)]
#[folder = "web/"]
struct Embedded;

/// Whatever no route has: a file of the dashboard, or nothing.
pub(super) async fn file(web_dir: Option<PathBuf>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/api" || path.starts_with("/api/") {
        return missing(&path);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let problem =
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} can only be read: GET or HEAD"));
        return ([(ALLOW, "GET, HEAD")], problem).into_response();
    }
    match web_dir {
        Some(dir) => from_directory(dir, &path, request).await,
        None => embedded(&path, &request),
    }
}

fn missing(path: &str) -> Response {
    let detail = format!("there is nothing at {path}; the API has /api/views, /api/sql and /api/status");
    Problem::new(StatusCode::NOT_FOUND, detail).into_response()
}

async fn from_directory(dir: PathBuf, path: &str, request: Request) -> Response {
    if !is_inside(&dir, path).await {
        return missing(path);
    }
    match ServeDir::new(dir).try_call(request).await {
        Ok(response) if response.status() == StatusCode::NOT_FOUND => missing(path),
        Ok(response) => ([(CACHE_CONTROL, "no-cache")], response.map(Body::new)).into_response(),
        Err(e) if matches!(e.kind(), NotFound | NotADirectory | PermissionDenied) => missing(path),
        Err(e) => {
            tracing::error!("reading {path} from the web directory: {e}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "this file can't be read").into_response()
        }
    }
}

/// Whether the file that a path names stands in the directory itself, where no symbolic link leads out of it.
async fn is_inside(dir: &Path, path: &str) -> bool {
    let Ok(path) = percent_decode_str(path).decode_utf8() else { return false };
    let file = dir.join(path.trim_start_matches('/'));
    let (dir, file) = (tokio::fs::canonicalize(dir).await, tokio::fs::canonicalize(file).await);
    matches!((dir, file), (Ok(dir), Ok(file)) if file.starts_with(&dir))
}

fn embedded(path: &str, request: &Request) -> Response {
    let name = match path.trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let Some(file) = Embedded::get(name) else { return missing(path) };
    let hash = file.metadata.sha256_hash();
    let etag = format!("W/\"{}\"", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    // The names have no version in them, so a browser must ask each time; the answer is mostly 304.
    let headers = [(ETAG, etag.clone()), (CACHE_CONTROL, "no-cache".into())];
    if is_not_modified(request.headers(), &etag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let content_type = [(CONTENT_TYPE, file.metadata.mimetype().to_owned())];
    let bytes = match file.data {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => Bytes::from(bytes),
    };
    (headers, content_type, bytes).into_response()
}
