//! `GET /v1/views/{view}/audit` and `…/corrections`: what answers were worth, and what has changed since.

use std::sync::Arc;

use anabranch_exchange::audit::{Audit, AuditLog, Correction, Redefined};
use axum::Json;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::problem::{Problem, limited};
use crate::proof::{Cell, Row};
use crate::server::{Server, blocking};

const DEFAULT_AUDITS: usize = 20;
const MAX_AUDITS: usize = 500;
const DEFAULT_CORRECTIONS: usize = 100;
const MAX_CORRECTIONS: usize = 10_000;

/// The parameters of a request for audits.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditParameters {
    /// How many at most, 1 to 500; 20 if absent.
    limit: Option<usize>,
}

/// The parameters of a request for corrections.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CorrectionParameters {
    /// Those of this version; the newest that has any if absent.
    version: Option<u64>,
    /// How many at most, 1 to 10,000; 100 if absent.
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<usize>,
}

/// How the answers of a view have held.
#[derive(Serialize, ToSchema)]
pub struct Audits {
    /// The view.
    view: String,
    /// The score of the answers that each version has replaced, newest first.
    #[schema(value_type = Vec<AuditShape>)]
    audits: Vec<Audit>,
}

/// The score of the answers that a version has replaced.
#[derive(ToSchema)]
#[schema(as = Audit)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct AuditShape {
    /// The version that knows better.
    version: u64,
    /// The version that the answers stood on.
    #[schema(required = true)]
    base: Option<u64>,
    /// When it was scored.
    at: String,
    /// How many windows became exact.
    windows: u64,
    /// Rows that batch has and the answers lacked.
    rows_missing: u64,
    /// Rows that the answers had and batch lacks.
    rows_extra: u64,
    /// Each aggregate's score.
    columns: Vec<ColumnShape>,
    /// How many values changed.
    corrections: u64,
}

/// The score of one aggregate.
#[derive(ToSchema)]
#[schema(as = ColumnAudit)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct ColumnShape {
    /// Its name.
    column: String,
    /// How many values were said.
    values: u64,
    /// How many of them had bounds.
    bounded: u64,
    /// How many of these held.
    held: u64,
    /// Values that were off because events came too late.
    late: DeviationShape,
    /// Values that were off because a sketch stood in.
    sketch: DeviationShape,
}

/// How far off values were.
#[derive(ToSchema)]
#[schema(as = Deviation)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct DeviationShape {
    /// How many.
    values: u64,
    /// The median distance from the truth.
    #[schema(required = true)]
    median: Option<f64>,
    /// The largest distance.
    #[schema(required = true)]
    worst: Option<f64>,
    /// The largest distance as a share of the truth.
    #[schema(required = true)]
    worst_share: Option<f64>,
}

/// What a version changed of what had been said.
#[derive(Serialize, ToSchema)]
pub struct Corrections {
    /// The view.
    view: String,
    /// The version; null if there has been none with corrections.
    #[schema(required = true)]
    version: Option<u64>,
    /// In order of window and key; those that a changed definition or an erasure caused come first.
    #[schema(value_type = Vec<CorrectionShape>)]
    corrections: Vec<Value>,
    /// How many there are in all; of each kind the first 10,000 are kept.
    total: u64,
    /// Goes on where this page ends; null if it is the last.
    #[schema(required = true)]
    next_cursor: Option<usize>,
    /// The versions that can be asked for, newest first.
    versions: Vec<u64>,
}

/// A value that was said, and what is true.
#[derive(ToSchema)]
#[schema(as = Correction)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct CorrectionShape {
    /// The window's first instant.
    #[schema(nullable = false)]
    window_start: Option<String>,
    /// The first instant after it.
    #[schema(nullable = false)]
    window_end: Option<String>,
    /// The row's keys.
    key: Row,
    /// The aggregate.
    column: String,
    /// What was said; null if the row wasn't there.
    old: Cell,
    /// What is true; null if there is no such row.
    new: Cell,
    /// Why they differ.
    cause: CauseShape,
}

/// `late`: events came too late. `sketch`: memory had run out. `redefined`: the view's definition has changed since the version
/// before; of days that have had no events since. `erased`: another program has erased archived events, or changed them.
#[derive(ToSchema)]
#[schema(as = Cause, rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape for the API's description")]
pub enum CauseShape {
    Late,
    Sketch,
    Redefined,
    Erased,
}

fn unreadable(error: std::io::Error) -> Problem {
    Problem::internal(&error)
}

/// How often the bounds of a view's answers held, and how far off its values were, once batch knew.
#[utoipa::path(
    get, path = "/v1/views/{view}/audit", tag = "truth",
    params(("view" = String, Path, description = "The view's name"), AuditParameters),
    responses(
        (status = 200, description = "The scores, newest first", body = Audits),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn audit(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    parameters: Result<Query<AuditParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Audits>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request("bad-query", error.body_text()))?;
    let limit = limited(parameters.limit, DEFAULT_AUDITS, MAX_AUDITS)?;
    let view = server.view(&name)?.id.name.clone();
    let read = blocking(move || {
        let log = &server.app.audits;
        let versions = log.versions(&view)?.into_iter().take(limit);
        let found = versions.map(|version| log.read(&view, version)).filter_map(std::io::Result::transpose);
        let audits = found.map(|found| Ok(found?.audit)).collect::<std::io::Result<_>>()?;
        Ok(Audits { view, audits })
    });
    Ok(Json(read.await?.map_err(unreadable)?))
}

/// What a version changed of what the view's answers had said, and why.
#[utoipa::path(
    get, path = "/v1/views/{view}/corrections", tag = "truth",
    params(("view" = String, Path, description = "The view's name"), CorrectionParameters),
    responses(
        (status = 200, description = "A page of them", body = Corrections),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or nothing is kept of the version", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn corrections(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    parameters: Result<Query<CorrectionParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Corrections>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request("bad-query", error.body_text()))?;
    let limit = limited(parameters.limit, DEFAULT_CORRECTIONS, MAX_CORRECTIONS)?;
    let view = server.view(&name)?.id.name.clone();
    let (wanted, offset) = (parameters.version, parameters.cursor.unwrap_or(0));
    let read = blocking(move || -> std::io::Result<Result<Corrections, Problem>> {
        let log = &server.app.audits;
        let versions = log.versions(&view)?;
        let version = match wanted {
            Some(version) if !versions.contains(&version) => {
                let detail = format!("nothing is kept of version {version}; there are {versions:?}");
                return Ok(Err(Problem::new(axum::http::StatusCode::NOT_FOUND, "unknown-version", detail)));
            }
            Some(version) => Some(version),
            None => newest_with_corrections(&view, &versions, log)?,
        };
        let (all, total) = version.map_or(Ok((Vec::new(), 0)), |version| of_version(&view, version, log))?;
        let page = all.iter().skip(offset).take(limit).map(serde_json::to_value);
        let corrections = page.collect::<Result<Vec<_>, _>>()?;
        let next = offset + corrections.len();
        let next_cursor = (next < all.len()).then_some(next);
        Ok(Ok(Corrections { view, version, next_cursor, total, corrections, versions }))
    });
    read.await?.map_err(unreadable)?.map(Json)
}

fn newest_with_corrections(view: &str, versions: &[u64], log: &AuditLog) -> std::io::Result<Option<u64>> {
    for &version in versions {
        if of_version(view, version, log)?.1 > 0 {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// The corrections of a version that are kept, and how many there are: those of its definition or of an erasure first.
fn of_version(view: &str, version: u64, log: &AuditLog) -> std::io::Result<(Vec<Correction>, u64)> {
    let Redefined { mut corrections, mut total } = log.redefined(view, version)?;
    if let Some(found) = log.read(view, version)? {
        corrections.extend(found.corrections);
        total += found.audit.corrections;
    }
    Ok((corrections, total))
}
