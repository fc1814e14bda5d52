//! `/v1/jobs`: batch runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::job::{Job, JobError, JobRequest, JobState, Trigger, is_full};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::{Problem, log_problem};
use crate::routes::ingest::read_body;
use crate::server::{Server, blocking};

const MAX_REQUEST_BYTES: usize = 64 << 10;

/// All jobs that are remembered.
#[derive(Serialize, ToSchema)]
pub struct JobList {
    /// Newest first.
    #[schema(value_type = Vec<JobDetail>)]
    jobs: Vec<Job>,
}

/// What to run.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"kind": "batch", "views": ["trending_hashtags"], "full": false, "from": null, "to": null}))]
pub struct NewJob {
    /// `batch`.
    kind: String,
    /// The views to recompute; every view if empty or absent.
    #[schema(nullable = false)]
    views: Option<Vec<String>>,
    /// Recompute everything, not only what new events touch.
    #[schema(nullable = false)]
    full: Option<bool>,
    /// Event times from here on in any case.
    from: Option<String>,
    /// Event times before this in any case.
    to: Option<String>,
}

/// Where a job stands.
#[derive(ToSchema)]
#[schema(as = JobState, rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape for the API's description")]
pub enum JobStateShape {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// A job.
#[derive(Serialize, ToSchema)]
pub struct JobDetail {
    id: String,
    /// `batch`.
    kind: String,
    views: Vec<String>,
    /// Everything was asked for, not only what new events touch.
    full: bool,
    /// Event times from here on were asked for in any case.
    #[schema(required = true)]
    from: Option<String>,
    /// Event times before this were asked for in any case.
    #[schema(required = true)]
    to: Option<String>,
    #[schema(value_type = JobStateShape)]
    state: String,
    /// `schedule`, `api` or `cli`.
    trigger: String,
    /// The time of the schedule that it is for.
    #[schema(required = true)]
    scheduled: Option<String>,
    /// How often it has begun: more than once if a process ended before it did.
    attempts: u32,
    /// From 0 to 1.
    progress: f64,
    queued: String,
    #[schema(required = true)]
    started: Option<String>,
    #[schema(required = true)]
    ended: Option<String>,
    #[schema(required = true)]
    error: Option<String>,
    /// The version of each view that it published.
    versions: BTreeMap<String, u64>,
}

/// The batch runs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses((status = 200, description = "Those that are remembered", body = JobList)))]
pub(crate) async fn list_jobs(State(server): State<Arc<Server>>) -> Result<Json<JobList>, Problem> {
    let jobs = run(&server, |server| server.app.jobs.list()).await?;
    Ok(Json(JobList { jobs }))
}

/// Queues a batch run.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", request_body = NewJob,
    responses(
        (status = 202, description = "Queued", body = JobDetail),
        (status = 400, description = "The request makes no sense", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The request is longer than 64 KiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The log can't be reached", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn submit_job(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let detail = "send the job as JSON, with `Content-Type: application/json`";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", detail));
    }
    let body = read_body(&headers, body, MAX_REQUEST_BYTES).await?;
    let request: JobRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request("bad-job", format!("the job can't be read: {error}")))?;
    // The command line says that it is it, for the history.
    let trigger =
        if headers.get("x-anabranch-trigger").is_some_and(|by| by == "cli") { Trigger::Cli } else { Trigger::Api };
    let job = run(&server, move |server| server.app.jobs.submit(request, trigger)).await?;
    let location = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id));
    let mut response = (StatusCode::ACCEPTED, Json(job)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// One batch run.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job as it stands", body = JobDetail),
        (status = 404, description = "No such job", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_job(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Json<Job>, Problem> {
    run(&server, move |server| server.app.jobs.get(&id)).await.map(Json)
}

/// Asks a job to stop; it publishes nothing more.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "It is cancelled", body = JobDetail),
        (status = 202, description = "It will stop", body = JobDetail),
        (status = 404, description = "No such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn cancel_job(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let job = run(&server, move |server| server.app.jobs.cancel(&id)).await?;
    let status = if job.state == JobState::Cancelled { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(job)))
}

async fn run<T: Send + 'static>(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<T, JobError> + Send + 'static,
) -> Result<T, Problem> {
    let server = Arc::clone(server);
    blocking(move || work(&server)).await?.map_err(|error| match &error {
        JobError::UnknownView { name, existing } => Problem::unknown("view", name, existing.iter().map(String::as_str)),
        JobError::UnknownJob(_) => Problem::new(StatusCode::NOT_FOUND, "unknown-job", error.to_string()),
        JobError::Invalid(_) => Problem::bad_request("bad-job", error.to_string()),
        JobError::Ended(_) => Problem::new(StatusCode::CONFLICT, "job-ended", error.to_string()),
        JobError::History { source, .. } if is_full(source) => {
            let detail = format!("{error}: {source}; nothing was changed");
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "storage-full", detail).retry_after(30)
        }
        JobError::History { .. } => Problem::internal(&error),
        JobError::Log { source, .. } => log_problem(source),
    })
}
