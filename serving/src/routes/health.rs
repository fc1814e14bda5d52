//! `/healthz` and `/readyz`: probes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::Readiness;
use crate::server::Server;

/// The process answers.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
    /// The identity of the project that it runs.
    project: String,
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, description = "It does", body = Health)))]
pub(crate) async fn healthz(State(server): State<Arc<Server>>) -> Json<Health> {
    Json(Health { status: "ok", project: server.app.project.clone() })
}

/// Whether everything has recovered, every source is running, and events can be stored.
#[utoipa::path(
    get, path = "/readyz", tag = "operation",
    responses((status = 200, description = "It is fit to answer", body = Readiness), (status = 503, description = "Not yet, or no more", body = Readiness))
)]
pub(crate) async fn readyz(State(server): State<Arc<Server>>) -> (StatusCode, Json<Readiness>) {
    let readiness = server.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
