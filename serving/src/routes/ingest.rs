//! `POST /v1/topics/{topic}/events`: events into the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::ingest::{IngestError, Receipt};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{Server, blocking, log_problem};
use crate::patience::was_too_slow;
use crate::problem::Problem;

/// The longest `Idempotency-Key`.
const MAX_KEY_BYTES: usize = 255;

/// What became of a request.
#[derive(ToSchema, Serialize)]
#[schema(example = json!({"accepted": 3, "rejected": [{"line": 3, "error": "not JSON"}], "offsets": {"0": [12, 15]}}))]
pub struct EventsReceipt {
    /// How many records the log has.
    accepted: u64,
    /// Those that it has not.
    rejected: Vec<EventRejected>,
    /// Where they are: `{"partition":[first,next)}`.
    offsets: BTreeMap<String, [u64; 2]>,
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
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a retry safe: the same key is answered as it was the first time, and nothing is stored twice; at most 255 bytes"),
    ),
    request_body(description = "One JSON object a line, a JSON array of objects, or one object", content(
        (String = "application/x-ndjson"), (Vec<serde_json::Value> = "application/json"),
    )),
    responses(
        (status = 200, description = "The log has the accepted ones", body = EventsReceipt),
        (status = 400, description = "The body can't be split into records", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No table has such a topic", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is encoded", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "No room; nothing was stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn append_events(
    State(server): State<Arc<Server>>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, Problem> {
    if server.app.catalog.table_of_topic(&topic).is_none() {
        let topics = server.app.catalog.tables.values().map(|table| table.topic.as_str());
        return Err(Problem::unknown("topic", &topic, topics));
    }
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let detail = format!("the body is encoded as {encoding:?}; send it as it is");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded-body", detail));
    }
    let key = headers.get("idempotency-key").map(|key| {
        let key = key.to_str().ok().filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()));
        key.map(str::to_owned).ok_or_else(|| {
            let detail = format!("`Idempotency-Key` has 1 to {MAX_KEY_BYTES} visible ASCII characters");
            Problem::bad_request("bad-idempotency-key", detail)
        })
    });
    let key = key.transpose()?;
    let body = read_body(&headers, body, server.app.limits.body_bytes).await?;
    let ingest = Arc::clone(&server.app.ingest);
    let name = topic.clone();
    let receipt =
        blocking(move || ingest.ingest(&name, &body, key.as_deref())).await?.map_err(|error| match error {
            IngestError::UnknownTopic { topic, existing } => {
                Problem::unknown("topic", &topic, existing.iter().map(String::as_str))
            }
            IngestError::Changelog(_) => Problem::bad_request("changelog", error.to_string()),
            IngestError::Body(_) => Problem::bad_request("bad-body", error.to_string()),
            IngestError::Pin(..) => Problem::internal(&error),
            IngestError::Log(error) => log_problem(&error),
        })?;
    server.metrics.accepted(&topic, receipt.accepted, receipt.rejected.len() as u64);
    if !receipt.rejected.is_empty() {
        server.note_rejects();
    }
    Ok(Json(receipt))
}

/// A client that sends without listening loses the answer when its connection is closed, so a body that is too long by
/// no more than this is read and dropped before it is refused.
const DRAINED_BYTES: u64 = 16 << 20;

/// Reads a body of at most `max` bytes.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, max: usize) -> Result<bytes::Bytes, Problem> {
    let too_long = || {
        let detail = format!("the body is longer than {max} bytes; send it in parts");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", detail)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = announced.filter(|&length| length > max as u64) {
        if length <= max as u64 + DRAINED_BYTES {
            let mut rest = body.into_data_stream();
            while let Some(Ok(_)) = rest.next().await {}
        }
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
