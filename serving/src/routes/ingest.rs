//! `POST /v1/topics/{topic}/events` and `DELETE /v1/topics/{topic}/events/{key}`: events into the log.

mod coding;

use std::sync::Arc;

use anabranch_exchange::ingest::{Form, IngestError, Receipt};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::patience::was_too_slow;
use crate::problem::{Problem, log_problem};
use crate::proof::Ranges;
use crate::routes::ingest::coding::Coding;
use crate::server::{Server, blocking};

/// The longest `Idempotency-Key`.
const MAX_KEY_BYTES: usize = 255;

/// What says that an answer is that of an earlier request with the same `Idempotency-Key`.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What became of a request.
#[derive(ToSchema, Serialize)]
#[schema(example = json!({
    "accepted": 3, "rejected": [{"line": 3, "error": "not JSON"}], "rejected_count": 1, "offsets": {"0": [12, 15]},
}))]
pub struct EventsReceipt {
    /// How many records the log has.
    accepted: u64,
    /// The first 100 of those that it has not.
    rejected: Vec<EventRejected>,
    /// How many it has not.
    rejected_count: u64,
    /// Where they are.
    offsets: Ranges,
}

/// A record that was not accepted.
#[derive(ToSchema, Serialize)]
pub struct EventRejected {
    /// Its line, or its place in the array, from 1.
    line: u64,
    /// What is wrong with it.
    error: String,
}

/// Appends events to a topic; answered once the log has them durably.
#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/events",
    tag = "events",
    params(
        ("topic" = String, Path, description = "The topic of a table"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a retry safe: for a day the same key is answered as it was the first time, with the header `Idempotent-Replayed: true`, and nothing is stored twice; at most 255 bytes"),
        ("Content-Encoding" = Option<String>, Header, description = "`gzip` or `zstd`; what the body unfolds to has the same limit as any"),
    ),
    request_body(description = "One JSON object a line, a JSON array of objects, or one object. As `application/x-ndjson` it is lines in any case, each judged by itself. Of a table with a PRIMARY KEY, an object with the key and `\"__deleted\": true` deletes the row", content(
        (String = "application/x-ndjson"), (Vec<serde_json::Value> = "application/json"),
    )),
    responses(
        (status = 200, description = "The log has the accepted ones", body = EventsReceipt),
        (status = 400, description = "The body can't be split into records", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No table has such a topic", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body, what it unfolds to, or a record is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is encoded in another way than `gzip` or `zstd`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The `Idempotency-Key` came before with another body, or the Kafka topic takes no such records; nothing was stored", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "No room; nothing was stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn append_events(
    State(server): State<Arc<Server>>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    check_topic(&server, &topic)?;
    let coding = Coding::of(&headers)?;
    let key = idempotency_key(&headers)?;
    let form = if is_lines(&headers) { Form::Lines } else { Form::Any };
    let max = server.app.limits.body_bytes;
    let body = read_body(&headers, body, max).await?;
    let ingest = Arc::clone(&server.app.ingest);
    let name = topic.clone();
    let receipt = blocking(move || {
        let body = coding.unfold(body, max)?;
        ingest.ingest(&name, &body, form, key.as_deref()).map_err(problem)
    });
    Ok(answer(&server, &topic, receipt.await??))
}

/// Deletes a row of a changelog: appends a record without a payload that has the row's key; answered once the log has it durably.
/// Whether there is such a row isn't looked at.
#[utoipa::path(
    delete,
    path = "/v1/topics/{topic}/events/{key}",
    tag = "events",
    params(
        ("topic" = String, Path, description = "The topic of a table with a PRIMARY KEY of one column"),
        ("key" = String, Path, description = "The row's value in that column"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a retry safe, as with `POST /v1/topics/{topic}/events`"),
    ),
    responses(
        (status = 200, description = "The log has the deletion", body = EventsReceipt),
        (status = 400, description = "The table has no PRIMARY KEY of one column, or the key isn't of its type", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No table has such a topic", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The Kafka topic takes no key as long as this one", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The `Idempotency-Key` came before with another request, or the Kafka topic takes no such records; nothing was stored", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "No room; nothing was stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_row(
    State(server): State<Arc<Server>>,
    Path((topic, row)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    check_topic(&server, &topic)?;
    let key = idempotency_key(&headers)?;
    let ingest = Arc::clone(&server.app.ingest);
    let name = topic.clone();
    let receipt = blocking(move || ingest.delete(&name, &row, key.as_deref()).map_err(problem));
    Ok(answer(&server, &topic, receipt.await??))
}

/// Refuses a topic that no table has.
fn check_topic(server: &Server, topic: &str) -> Result<(), Problem> {
    if server.app.catalog.table_of_topic(topic).is_some() {
        return Ok(());
    }
    let topics = server.app.catalog.tables.values().map(|table| table.topic.as_str());
    Err(Problem::unknown("topic", topic, topics))
}

/// Why nothing was stored, as the client sees it.
fn problem(error: IngestError) -> Problem {
    match error {
        IngestError::UnknownTopic { topic, existing } => {
            Problem::unknown("topic", &topic, existing.iter().map(String::as_str))
        }
        IngestError::Changelog(_) => Problem::bad_request("changelog", error.to_string()),
        IngestError::Rows(..) => Problem::bad_request("rows-of-a-view", error.to_string()),
        IngestError::NotByKey(_) => Problem::bad_request("not-by-key", error.to_string()),
        IngestError::Key(_) => Problem::bad_request("bad-key", error.to_string()),
        IngestError::Body(_) => Problem::bad_request("bad-body", error.to_string()),
        IngestError::Pin(..) => Problem::internal(&error),
        IngestError::Log(error) => log_problem(&error),
    }
}

/// The answer to a request; it is counted unless it was answered before.
fn answer(server: &Server, topic: &str, receipt: Receipt) -> Response {
    if receipt.repeated {
        return ([(REPLAYED, "true")], Json(receipt)).into_response();
    }
    server.metrics.accepted(topic, receipt.accepted, receipt.rejected_count);
    if receipt.rejected_count > 0 {
        server.note_rejects();
    }
    Json(receipt).into_response()
}

/// The key that a request names, if any.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut said = headers.get_all("idempotency-key").iter();
    let Some(key) = said.next() else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()) && said.next().is_none());
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        let detail = format!("`Idempotency-Key` is there once and has 1 to {MAX_KEY_BYTES} visible ASCII characters");
        Problem::bad_request("bad-idempotency-key", detail)
    })
}

/// Whether a body is said to be one JSON value a line, by any of the names for that.
fn is_lines(headers: &HeaderMap) -> bool {
    let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let of_lines = ["ndjson", "x-ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines"];
    media_type.strip_prefix("application/").is_some_and(|name| of_lines.contains(&name))
}

/// Reads a body of at most `max` bytes.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, max: usize) -> Result<bytes::Bytes, Problem> {
    let too_long = || {
        let detail = format!("the body is longer than {max} bytes; send it in parts");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", detail)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(too_long());
    }
    axum::body::to_bytes(body, max).await.map_err(|error| {
        if was_too_slow(&error) {
            let detail = "the body came too slowly; send less at a time";
            return Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", detail);
        }
        let is_long = std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("length limit"));
        if is_long { too_long() } else { Problem::bad_request("bad-body", "the body broke off") }
    })
}
