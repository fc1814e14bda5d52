//! `/healthz` and `/readyz`: probes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{Readiness, Server};
use crate::output::StoppedOutput;

/// The process answers.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether everything has recovered and every source is running.
#[utoipa::path(
    get, path = "/readyz", tag = "operation",
    responses((status = 200, body = Readiness), (status = 503, description = "Not yet, or no more", body = Readiness))
)]
pub(crate) async fn readyz(State(server): State<Arc<Server>>) -> (StatusCode, Json<Readiness>) {
    let mut readiness = server.app.ready.borrow().clone();
    for (name, snapshot) in &server.layers.snapshots().0 {
        if let Some(why) = &snapshot.borrow().stopped {
            readiness.ready = false;
            let reason = format!("view `{name}`: its source has stopped: {why}");
            if !readiness.reasons.contains(&reason) {
                readiness.reasons.push(reason);
            }
        }
    }
    for StoppedOutput { view, partition, why } in server.app.outputs.stopped() {
        readiness.ready = false;
        readiness.reasons.push(format!("view `{view}`: writing what partition {partition} gives has stopped: {why}"));
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
