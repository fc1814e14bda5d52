//! Errors as clients see them: problem details of RFC 9457, each telling what would be right.

use anabranch_log::LogError;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong, as RFC 9457 has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "about:blank#unknown-view", "title": "unknown view", "status": 404,
    "detail": "no view named `x`; there are `a`, `b`",
}))]
pub struct Problem {
    /// `about:blank#` and the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong here, and what would be right.
    detail: String,
    /// Seconds after which it is worth trying again.
    #[serde(skip)]
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem of a kind, named `like-this`.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("about:blank#{kind}"),
            title: kind.replace('-', " "),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// The request makes no sense.
    pub fn bad_request(kind: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail)
    }

    /// There is nothing of that name; `existing` are the names that there are.
    pub fn unknown<'a>(what: &str, name: &str, existing: impl Iterator<Item = &'a str>) -> Self {
        let existing = quoted(existing);
        let there_are = if existing.is_empty() { "there are none".into() } else { format!("there are {existing}") };
        Self::new(StatusCode::NOT_FOUND, &format!("unknown-{what}"), format!("no {what} named `{name}`; {there_are}"))
    }

    /// This server's fault: logged here, told to the client without its insides.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = with_causes(error), "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", "the server failed; its log says why".to_owned())
    }

    /// Says after how many seconds it is worth trying again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status(), Body::from(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A failure of the log as the client sees it.
pub(crate) fn log_problem(error: &LogError) -> Problem {
    match error {
        LogError::UnknownTopic { topic, existing } => {
            Problem::unknown("topic", topic, existing.iter().map(String::as_str))
        }
        LogError::StorageFull { .. } => {
            let detail = format!("{error}; nothing of this request was stored");
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "storage-full", detail).retry_after(30)
        }
        LogError::KeyReused { .. } => {
            let detail = format!("{error}; nothing of this request was stored: give it another key");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail)
        }
        LogError::TooLarge { .. } => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "record-too-large", error.to_string()),
        LogError::Refused { .. } => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "refused-by-log", with_causes(error))
        }
        LogError::OtherLog { .. } => {
            let detail = format!("{error}; nothing of this request was stored for sure");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "other-log", detail)
        }
        LogError::Closed => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-closed", "the server is stopping").retry_after(5)
        }
        LogError::Backend { step, .. } => {
            tracing::warn!(?error, "the log failed a request");
            let detail = format!(
                "the event log can't be reached or failed: {step} failed; try again, with the same Idempotency-Key if there was one"
            );
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unavailable", detail).retry_after(1)
        }
        other => Problem::internal(other),
    }
}

/// A method that a resource doesn't have.
pub(crate) async fn method_not_allowed(request: Request) -> Problem {
    let detail = format!("`{}` doesn't take {}; `/docs` shows what there is", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
}

/// An error and what is behind it, in one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Names in backticks, with commas.
pub fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// How many of something a request wants: as many as it says, from 1 to `most`.
pub fn limited(limit: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(default);
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::bad_request("bad-limit", format!("`limit` is {limit}; it can be 1 to {most}")))
}
