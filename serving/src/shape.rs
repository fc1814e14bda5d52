//! What every response has in common: security headers, and errors in one form.

use std::any::Any;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::admission;
use crate::problem::{MEDIA_TYPE, Problem};
use crate::server::Server;

/// The content security policy of pages.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// That of scripts, which binds those that run as workers: the dashboard's asks the API for all its tabs.
const SCRIPT_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; connect-src 'self'; frame-ancestors 'none'");
/// That of everything else: it is data.
const DATA_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Refuses requests that aren't to be answered. Gives a response its security headers, and an error that isn't a problem yet the
/// form of one.
pub(crate) async fn shape(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if let Err(problem) = admission::check(&request, &server.app.hosts) {
        return finish(problem.into_response());
    }
    let response = next.run(request).await;
    let status = response.status();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE);
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if (status.is_client_error() || status.is_server_error()) && !is_problem && !is_json {
        return finish(as_problem(response).await);
    }
    finish(response)
}

fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let policy = match kind {
        kind if kind.starts_with(b"text/html") => PAGE_POLICY,
        kind if kind.starts_with(b"text/javascript") => SCRIPT_POLICY,
        _ => DATA_POLICY,
    };
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

async fn as_problem(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let said = axum::body::to_bytes(body, 4 << 10).await.unwrap_or_default();
    let detail = String::from_utf8_lossy(&said).into_owned();
    let reason = parts.status.canonical_reason().unwrap_or("error").to_lowercase();
    let kind = reason.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let detail = if detail.is_empty() { reason } else { detail };
    Problem::new(parts.status, &kind, detail).into_response()
}

/// A bug: told to the client as this server's fault.
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = said.unwrap_or("unknown"), "a handler panicked");
    let detail = "the server failed; its log says why";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", detail).into_response()
}
