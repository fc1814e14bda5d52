//! `/metrics`, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anabranch_log::Log;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::view::Kept;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::emission;
use crate::metric::Measure;
use crate::output;
use crate::problem::Problem;
use crate::server::{Server, blocking};
use crate::source::{Layers, Mode, Sources};
use crate::topic::{Topics, rejected};

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Everything that is counted.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"))
)]
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, Problem> {
    let measured = Arc::clone(&server);
    let text = blocking(move || {
        let server = measured;
        let mut measures = server.app.measures.now();
        measures.extend(server.metrics.ingested());
        measures.extend(server.metrics.audits());
        measures.extend(own(&server));
        measures.extend(emission::measures(&server.emissions));
        measures.extend(stalls(&*server.app.log));
        let views = server.app.catalog.kept().map(|view| (server.layers.get(&view), view)).collect::<Vec<_>>();
        let outputs = server.app.outputs.positions(server.app.catalog.sent())?;
        let mut topics = Topics::new(&*server.app.log);
        for (mut layers, view) in views {
            let ends = topics.ends(&view, &mut layers)?;
            measures.extend(of_view(&server, &view, &layers, &ends));
        }
        for (output, positions) in outputs {
            measures.extend(output::measures(&output, positions, &mut topics)?);
        }
        for table in server.app.catalog.tables.values() {
            let count = rejected(&server.app.rejects, &table.topic)?;
            let help = "Records that are no rows of their table";
            measures.push(Measure::counter("anabranch_rejected", help, count as f64).of("topic", &table.topic));
        }
        server.metrics.encode(measures).map_err(|error| Problem::internal(&error))
    });
    let mut response = text.await??.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    Ok(response)
}

fn own(server: &Server) -> Vec<Measure> {
    let (hits, misses) = server.answers.hits_and_misses();
    let open = server.app.limits.streams - server.streams.available_permits().min(server.app.limits.streams);
    let connections = &server.metrics.connections;
    let (connected, refused) = (connections.open.load(Ordering::Relaxed), connections.refused.load(Ordering::Relaxed));
    vec![
        Measure::gauge("anabranch_open_connections", "HTTP connections that are open", connected as f64),
        Measure::counter("anabranch_connections_refused", "HTTP connections there was no room for", refused as f64),
        Measure::counter("anabranch_rows_cache_hits", "Requests for rows answered from the cache", hits as f64),
        Measure::counter("anabranch_rows_cache_misses", "Requests for rows that had to be computed", misses as f64),
        Measure::gauge("anabranch_open_streams", "Event streams that are open", open as f64),
        Measure::gauge("anabranch_ready", "1 if fit to answer", f64::from(u8::from(server.readiness().ready))),
    ]
}

fn stalls(log: &dyn Log) -> Vec<Measure> {
    let each = log.stalls().into_iter().flat_map(|((topic, partition), stalls)| {
        let help = "How often a partition held records and delivered none, and was read again";
        let count = Measure::counter("anabranch_stalls", help, stalls.count as f64);
        let help = "1 if a partition that stalled has delivered nothing since";
        let stands = Measure::gauge("anabranch_stalled", help, f64::from(u8::from(stalls.stands)));
        [count, stands].map(|measure| measure.of("topic", &topic).of("partition", partition))
    });
    each.collect()
}

fn of_view(server: &Server, view: &Kept, layers: &Layers, log_end: &Positions<TopicPartition>) -> Vec<Measure> {
    let sources = Sources::choose(view, Mode::Merged, layers, log_end);
    let now = server.app.clock.now();
    let seconds = |micros: i64| micros as f64 / 1e6;
    let gauge = |name: &str, help, value: f64| Measure::gauge(name, help, value).of("view", &view.id.name);
    let mut measures = Vec::new();
    for (partition, &end) in log_end {
        let lag = end.saturating_sub(sources.covered_to(partition));
        let help = "Records that neither layer covers yet";
        measures.push(gauge("anabranch_lag_records", help, lag as f64).of("partition", partition.partition));
    }
    if let Some(watermark) = sources.watermark {
        let help = "How far the watermark is behind the clock";
        measures.push(gauge("anabranch_watermark_lag_seconds", help, seconds(now - watermark)));
    }
    if let Some(snapshot) = &layers.snapshot {
        let help = "Events that came too late for at least one of their windows";
        let late = Measure::counter("anabranch_late_events", help, snapshot.late as f64).of("view", &view.id.name);
        let rows = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.values()).map(|pane| pane.partials.height());
        let degraded = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.values()).any(|pane| pane.slack.is_some());
        measures.push(late);
        let help = "Rows of partials that the speed layer serves";
        measures.push(gauge("anabranch_snapshot_rows", help, rows.sum::<usize>() as f64));
        let help = "1 if a pane of the speed layer is degraded";
        measures.push(gauge("anabranch_degraded", help, f64::from(u8::from(degraded))));
        let help = "1 if the source has stopped";
        let of_source = snapshot.stopped.is_some() && !snapshot.alone;
        measures.push(gauge("anabranch_source_stopped", help, f64::from(u8::from(of_source))));
        let help = "1 if the view itself has stopped, while its source goes on";
        measures.push(gauge("anabranch_view_stopped", help, f64::from(u8::from(snapshot.alone))));
        let lost = Measure::lost("anabranch_lost_offsets", &snapshot.lost).into_iter();
        measures.extend(lost.map(|measure| measure.of("view", &view.id.name)));
    }
    if let Some(version) = layers.versions.first() {
        let help = "The newest version of the view";
        measures.push(gauge("anabranch_batch_version", help, version.published.version as f64));
        let help = "How long ago the newest version was published";
        measures.push(gauge("anabranch_frontier_age_seconds", help, seconds(now - version.published.published)));
    }
    measures
}
