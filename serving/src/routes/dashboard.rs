//! `/` and `/assets/*`: the dashboard's files, which are part of the binary.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::problem::{Problem, method_not_allowed};
use crate::rendered::is_known;

#[derive(RustEmbed)]
#[folder = "../dashboards/dist"]
struct Files;

/// Serves a file of the dashboard. Assets carry a hash in their name, so they never change.
pub(crate) async fn file(request: Request) -> Response {
    let path = match request.uri().path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    match Files::get(path) {
        Some(file) if matches!(*request.method(), Method::GET | Method::HEAD) => respond(path, file, request.headers()),
        Some(_) => {
            let mut response = method_not_allowed(request).await.into_response();
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
            response
        }
        None => {
            let detail = format!("there is nothing at `{}`; `/docs` shows what there is", request.uri().path());
            Problem::new(StatusCode::NOT_FOUND, "not-found", detail).into_response()
        }
    }
}

/// What a process without a dashboard answers.
pub(crate) async fn nothing(uri: Uri) -> Response {
    let detail = format!("there is nothing at `{}` in this role; `anabranch serve` has the whole API", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "not-found", detail).into_response()
}

fn respond(path: &str, file: EmbeddedFile, headers: &HeaderMap) -> Response {
    let hex: String = file.metadata.sha256_hash().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("W/\"{hex}\"");
    let is_known = is_known(headers, &etag);
    let mut response =
        if is_known { StatusCode::NOT_MODIFIED.into_response() } else { file.data.into_owned().into_response() };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(path)));
    let caching = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    response
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        Some("webmanifest") => "application/manifest+json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
