//! `GET /v1/rejects`: records that are no rows, with the reason; and events that came too late, of views that ask for it.

use std::sync::Arc;

use anabranch_exchange::reject::Rejected;
use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::problem::{Problem, limited, log_problem};
use crate::server::{Server, blocking};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// The parameters of a request for rejects.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RejectsParameters {
    /// Only those of this topic.
    topic: Option<String>,
    /// How many at most, 1 to 1,000; 100 if absent.
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Some rejects.
#[derive(Serialize, ToSchema)]
pub struct RejectsPage {
    /// Newest first.
    rejects: Vec<Reject>,
    /// How many there are in all.
    total: u64,
    /// Goes on where this page ends; null if it is the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// A record that was rejected.
#[derive(Serialize, ToSchema)]
pub struct Reject {
    /// The topic that it was found in, or sent to.
    topic: String,
    /// The partition that it was found in.
    #[schema(required = true)]
    partition: Option<u32>,
    /// Its offset, if it is in the log.
    #[schema(required = true)]
    offset: Option<u64>,
    /// Its line in what a client sent, if it never reached the log.
    #[schema(required = true)]
    line: Option<u64>,
    /// The view that it came too late for; null if it is no row.
    #[schema(required = true)]
    view: Option<String>,
    /// How far behind the watermark it came, in milliseconds.
    #[schema(required = true)]
    behind_ms: Option<i64>,
    /// What is wrong with it.
    reason: String,
    /// Its text, perhaps cut.
    record: String,
    /// When it was rejected.
    rejected_at: String,
}

impl From<Rejected> for Reject {
    fn from(reject: Rejected) -> Self {
        let Rejected { topic, partition, offset, line, view, behind_ms, reason, record, rejected_at } = reject;
        Self { topic, partition, offset, line, view, behind_ms, reason, record, rejected_at }
    }
}

/// The rejects, newest first.
#[utoipa::path(
    get, path = "/v1/rejects", tag = "events", params(RejectsParameters),
    responses(
        (status = 200, description = "A page of them", body = RejectsPage),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No table has such a topic", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_rejects(
    State(server): State<Arc<Server>>,
    parameters: Result<Query<RejectsParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<RejectsPage>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request("bad-query", error.body_text()))?;
    let limit = limited(parameters.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let cursor = parameters.cursor.as_deref().map(|cursor| {
        cursor.parse().map_err(|_| {
            let detail = "the cursor is not one of this server's; begin again without `cursor`";
            Problem::bad_request("bad-cursor", detail)
        })
    });
    let cursor = cursor.transpose()?;
    let catalog = &server.app.catalog;
    if let Some(topic) = parameters.topic.as_deref().filter(|topic| catalog.table_of_topic(topic).is_none()) {
        return Err(Problem::unknown("topic", topic, catalog.tables.values().map(|table| table.topic.as_str())));
    }
    let rejects = Arc::clone(&server.app.rejects);
    let page = blocking(move || {
        let topic = parameters.topic.as_deref();
        Ok((rejects.list(topic, cursor, limit)?, rejects.total(topic)?))
    });
    let (page, total) = page.await?.map_err(|error| log_problem(&error))?;
    Ok(Json(RejectsPage {
        rejects: page.rejects.into_iter().map(Reject::from).collect(),
        total,
        next_cursor: page.next.map(|offset| offset.to_string()),
    }))
}
