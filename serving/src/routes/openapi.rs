//! `/openapi.json` and the page `/docs` that shows it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use crate::app::Server;

/// The description of the API, but for its paths, which come with the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Anabranch",
        description = "Views over event logs: an approximate answer within moments and an exact one soon after, merged at a log offset. Every answer says how exact it is and what it was made of.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "views", description = "What exists, its rows, and its changes as they happen"),
        (name = "events", description = "Events in, and those that were refused"),
        (name = "truth", description = "How the answers have held, and what has been corrected"),
        (name = "jobs", description = "Exact recomputation"),
        (name = "operation", description = "Probes and metrics"),
    )
)]
pub(crate) struct ApiDoc;

/// The API's description.
pub(crate) async fn openapi(State(server): State<Arc<Server>>) -> Response {
    with_type(server.openapi.clone(), "application/json")
}

/// The page that shows the API's description.
pub(crate) async fn docs() -> Response {
    with_type(include_str!("../docs/docs.html"), "text/html; charset=utf-8")
}

/// Its script.
pub(crate) async fn docs_script() -> Response {
    with_type(include_str!("../docs/docs.js"), "text/javascript; charset=utf-8")
}

/// Its style.
pub(crate) async fn docs_style() -> Response {
    with_type(include_str!("../docs/docs.css"), "text/css; charset=utf-8")
}

fn with_type(body: impl IntoResponse, content_type: &'static str) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
