//! Serving: where the two layers' answers rejoin. REST, Server-Sent Events, metrics and the dashboard's files on one
//! port.
//!
//! This crate knows what the layers show each other (snapshots, published versions, jobs) and the event log; nothing
//! of how they work inside.

mod admission;
mod app;
mod audit;
mod cache;
mod change;
mod collect;
mod connection;
mod emission;
mod emit;
mod format;
mod frame;
mod leftover;
mod merge;
mod metric;
mod output;
mod page;
mod patience;
mod problem;
mod proof;
mod query;
mod rendered;
mod routes;
mod server;
mod shape;
mod source;
mod topic;
mod total;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::trace::TraceLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use crate::admission::Hosts;
pub use crate::app::{Api, App, Limits, Readiness};
pub use crate::collect::collect;
pub use crate::emission::Emissions;
pub use crate::metric::{Measure, Measures, Stops, Value};
pub use crate::output::{Outputs, StoppedOutput};

use crate::problem::method_not_allowed;
use crate::routes::{
    audit as audit_routes, dashboard, health, ingest, jobs, metrics, openapi, rejects, rows, stream, views,
};
use crate::server::Server;

/// Serves until `shutdown`, then lets requests end for as long as the limits' grace. Needs a runtime of several threads,
/// as Polars does.
pub async fn serve(listener: TcpListener, app: App, shutdown: impl Future<Output = ()> + Send + 'static) {
    let (stop, stopped) = watch::channel(false);
    let limits = app.limits.clone();
    let server = Arc::new(Server::new(app, openapi_json(), stopped.clone()));
    let _followers = follow_versions(&server);
    let _emissions = write_emissions(&server);
    let count = Arc::clone(&server.metrics.connections);
    let ending = async {
        shutdown.await;
        stop.send_replace(true);
        tokio::time::sleep(limits.grace).await;
    };
    tokio::select! {
        () = connection::serve(listener, routes(server), &limits, count, stopped) => {}
        () = ending => {}
    }
}

/// The API and the dashboard, to be called without a port.
pub fn router(app: App) -> Router {
    // Whoever holds no sender can't stop it.
    let (_, never) = watch::channel(false);
    routes(Arc::new(Server::new(app, openapi_json(), never)))
}

/// The description of the API, as `/openapi.json` serves it.
pub fn openapi_json() -> Bytes {
    let mut api = documented(Api::Whole).split_for_parts().1;
    openapi::complete(&mut api);
    let mut text = api.to_pretty_json().unwrap_or_default();
    text.push('\n');
    Bytes::from(text)
}

fn documented(api: Api) -> OpenApiRouter<Arc<Server>> {
    let probes = OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .routes(routes!(metrics::metrics))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz));
    if api == Api::Probes {
        return probes;
    }
    let ingest = probes
        .routes(routes!(ingest::append_events))
        .routes(routes!(ingest::delete_row))
        .routes(routes!(rejects::list_rejects));
    if api == Api::Ingest {
        return ingest;
    }
    ingest
        .routes(routes!(views::list_views))
        .routes(routes!(views::get_view))
        .routes(routes!(rows::rows))
        .routes(routes!(audit_routes::audit))
        .routes(routes!(audit_routes::corrections))
        .routes(routes!(stream::stream_view))
        .routes(routes!(stream::stream_views))
        .routes(routes!(jobs::list_jobs, jobs::submit_job))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::cancel_job))
}

fn routes(server: Arc<Server>) -> Router {
    let large = SizeAbove::new(1_024).and(NotForContentType::SSE).and(NotForContentType::IMAGES);
    let (api, _) = documented(server.app.api).split_for_parts();
    let api = match server.app.api {
        Api::Whole => api
            .route("/openapi.json", get(openapi::openapi))
            .route("/docs", get(openapi::docs))
            .route("/docs/docs.js", get(openapi::docs_script))
            .route("/docs/docs.css", get(openapi::docs_style))
            .fallback(dashboard::file),
        Api::Ingest | Api::Probes => api.fallback(dashboard::nothing),
    };
    let pace = server.app.limits.transfer;
    api.method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::clone(&server))
        .layer(CompressionLayer::new().gzip(true).compress_when(large))
        .layer(CatchPanicLayer::custom(shape::panicked))
        .layer(axum::middleware::from_fn_with_state(server, shape::shape))
        .layer(TraceLayer::new_for_http())
        .layer(axum::middleware::from_fn_with_state(pace, leftover::drain))
}

/// Sees each version as it comes, so that the one before the newest is at hand when the speed layer still stands on it; and
/// scores what was said until then.
fn follow_versions(server: &Arc<Server>) -> JoinSet<()> {
    let mut followers = JoinSet::new();
    for view in server.app.catalog.kept() {
        let Some(mut versions) = server.layers.versions().0.get(&view.id).cloned() else { continue };
        let server = Arc::clone(server);
        followers.spawn(audit::follow(Arc::clone(&server), view.clone()));
        followers.spawn(async move {
            loop {
                server.layers.get(&view);
                if versions.changed().await.is_err() {
                    return;
                }
            }
        });
    }
    followers
}

/// Writes the rows of views to topics, as far as this process is to.
fn write_emissions(server: &Arc<Server>) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    if let Some(emissions) = &server.app.emissions {
        for (view, emission) in server.app.catalog.emitted() {
            writers.spawn(emit::run(Arc::clone(server), view, emission, emissions.clone()));
        }
    }
    writers
}
