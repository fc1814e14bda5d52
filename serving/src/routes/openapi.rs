//! `/openapi.json` and the page `/docs` that shows it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};

use crate::problem::MEDIA_TYPE;
use crate::server::Server;

/// The description of the API, but for its paths, which come with the handlers.
#[derive(utoipa::OpenApi)]
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

/// What any request may be answered.
const COMMON: [(&str, &str); 5] = [
    ("400", "The request names no host, or says something twice"),
    (
        "403",
        "The host that it names isn't this server, or it is a page's of another origin that would change something",
    ),
    ("429", "Too many connections are open from the same address"),
    ("500", "The server failed"),
    (
        "503",
        "The server stops, has too many connections, or can't reach the event log; `Retry-After` says when to try again",
    ),
];

/// What one with a body may be answered besides.
const WITH_BODY: [(&str, &str); 1] = [("408", "The body came too slowly")];

/// Adds to the description what holds for all operations: their common answers, and that no parameter is ever null.
pub(crate) fn complete(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
            let more = operation.request_body.iter().flat_map(|_| WITH_BODY);
            for (status, description) in COMMON.into_iter().chain(more) {
                operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(description));
            }
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(Parameter { schema: Some(RefOr::T(Schema::Object(object))), .. }) = parameter
                    && let SchemaType::Array(types) = &object.schema_type
                    && let [one, Type::Null] = types.as_slice()
                {
                    object.schema_type = SchemaType::Type(one.clone());
                }
            }
        }
    }
}

fn problem(description: &str) -> RefOr<utoipa::openapi::Response> {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    ResponseBuilder::new().description(description).content(MEDIA_TYPE, content).build().into()
}

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
