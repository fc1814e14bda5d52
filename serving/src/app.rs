//! What serving is given, and what it keeps while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::ingest::Ingest;
use anabranch_exchange::job::Jobs;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::snapshot::Snapshots;
use anabranch_exchange::version::Versions;
use anabranch_log::clock::Clock;
use anabranch_log::lineage::Mark;
use anabranch_log::position::{Offset, Positions};
use anabranch_log::{Log, LogError};
use anabranch_plan::view::{Catalog, View};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use utoipa::ToSchema;

use crate::admission::Hosts;
use crate::cache::Cache;
use crate::metric::{Measures, Metrics, Stops};
use crate::output::{Outputs, StoppedOutput};
use crate::page::{Reading, Sent};
use crate::problem::{Problem, with_causes};
use crate::routes::heartbeat::Ends;
use crate::routes::stream::{Finals, Frames};
use crate::source::{LayerStore, Layers};
use crate::topic::Asked;

/// Whether this process is fit to answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Readiness {
    /// Whether it is.
    pub ready: bool,
    /// Why it isn't.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Fit to answer.
    pub fn ready() -> Self {
        Self { ready: true, reasons: Vec::new() }
    }

    /// Not fit to answer, for these reasons.
    pub fn not_ready(reasons: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { ready: false, reasons: reasons.into_iter().map(Into::into).collect() }
    }
}

/// How much one client, or all of them, may ask.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest body that is read.
    pub body_bytes: usize,
    /// How many event streams may be open.
    pub streams: usize,
    /// How many answers may be computed at once.
    pub computing: usize,
    /// How long computing an answer may take.
    pub timeout: Duration,
    /// How often a stream says that it lives.
    pub heartbeat: Duration,
    /// How many rows of an answer a stream has.
    pub stream_rows: usize,
    /// How many connections may be open.
    pub connections: usize,
    /// How many of them may come from one address; a proxy is one.
    pub connections_per_address: usize,
    /// How long a client may take to send the head of a request, and may wait before it sends one.
    pub head: Duration,
    /// How far a body may fall behind the slowest pace, on its way in or out.
    pub transfer: Duration,
    /// How much of finished answers is kept.
    pub cache_bytes: usize,
    /// How long requests may still take once the process is to end.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            body_bytes: 16 << 20,
            streams: 1_000,
            computing: cores.max(2),
            timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(5),
            stream_rows: 100_000,
            connections: 4_096,
            connections_per_address: 2_048,
            head: Duration::from_secs(30),
            transfer: Duration::from_secs(30),
            cache_bytes: 64 << 20,
            grace: Duration::from_secs(5),
        }
    }
}

/// How much of the API a process offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Api {
    /// All of it, and the dashboard.
    #[default]
    Whole,
    /// Events in, and what was rejected of them.
    Ingest,
    /// Only what tells how the process is.
    Probes,
}

/// What serving works with.
#[derive(Clone)]
pub struct App {
    /// How much of the API there is.
    pub api: Api,
    /// By which names it may be called.
    pub hosts: Hosts,
    /// The tables and views.
    pub catalog: Arc<Catalog>,
    /// The event log.
    pub log: Arc<dyn Log>,
    /// Takes events in.
    pub ingest: Arc<Ingest>,
    /// The rejects log.
    pub rejects: Arc<RejectLog>,
    /// What the speed layer says.
    pub snapshots: Snapshots,
    /// What the batch layer has published.
    pub versions: Versions,
    /// How far the outputs are.
    pub outputs: Outputs,
    /// The batch runs.
    pub jobs: Arc<dyn Jobs>,
    /// What the audits of answers find.
    pub audits: AuditLog,
    /// Plain numbers from the layers, for `/metrics`.
    pub measures: Measures,
    /// Whether everything behind this has recovered.
    pub ready: watch::Receiver<Readiness>,
    /// Why it no longer is fit to answer, where no snapshot says so.
    pub stops: Stops,
    /// Which project it is.
    pub project: String,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub limits: Limits,
}

/// What an answer depends on: while it is the same, so is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    layers: (Option<u64>, Option<u64>),
    rejects: u64,
    log_end: u64,
}

/// A finished answer.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// Its bytes.
    pub body: Bytes,
    /// What names these bytes.
    pub etag: axum::http::HeaderValue,
    /// What is known of the rows, where the body can't say it.
    pub proof: Option<axum::http::HeaderValue>,
}

/// How much is kept of what clients were sent, where the answer itself isn't kept.
const SENT_BYTES: usize = 8 << 20;

/// What pages are made from.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The answers that they are cut from, by what they were read from.
    pub readings: Cache<(), Reading>,
    /// The rows that were sent up to a cursor, by what it was read from and how many rows of that come before.
    pub sent: Cache<(), Sent>,
}

/// Everything that the handlers share.
pub(crate) struct Server {
    pub app: App,
    pub layers: LayerStore,
    pub metrics: Arc<Metrics>,
    pub answers: Cache<Stamp, Rendered>,
    /// What pages are made from.
    pub pages: Arc<Pages>,
    /// Of each view the newest answer that streams have, as long as one has it.
    pub frames: Frames,
    /// Where topics ended a moment ago.
    pub ends: Ends,
    pub finals: Cache<Stamp, Option<Finals>>,
    pub computing: Arc<Semaphore>,
    pub streams: Arc<Semaphore>,
    pub openapi: Bytes,
    pub shutdown: watch::Receiver<bool>,
    rejects_seen: AtomicU64,
}

impl Server {
    pub fn new(app: App, openapi: Bytes, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            layers: LayerStore::new(app.snapshots.clone(), app.versions.clone()),
            metrics: Arc::new(Metrics::default()),
            answers: Cache::new(app.limits.cache_bytes),
            pages: Arc::new(Pages { readings: Cache::new(app.limits.cache_bytes / 2), sent: Cache::new(SENT_BYTES) }),
            frames: app.catalog.views.keys().map(|name| (name.clone(), Default::default())).collect(),
            ends: Ends::default(),
            finals: Cache::new(app.limits.cache_bytes / 8),
            computing: Arc::new(Semaphore::new(app.limits.computing)),
            streams: Arc::new(Semaphore::new(app.limits.streams)),
            openapi,
            shutdown,
            rejects_seen: AtomicU64::new(0),
            app,
        }
    }

    /// The view of that name, which has rows.
    pub fn view(&self, name: &str) -> Result<&Arc<View>, Problem> {
        let Catalog { views, outputs, .. } = &*self.app.catalog;
        if let Some(output) = outputs.get(name) {
            let detail =
                format!("`{name}` keeps no rows here: they are in Kafka's topic `{}`, to be read there", output.topic);
            return Err(Problem::new(axum::http::StatusCode::NOT_FOUND, "rows-elsewhere", detail));
        }
        let names = || views.keys().chain(outputs.keys()).map(String::as_str);
        views.get(name).ok_or_else(|| Problem::unknown("view", name, names()))
    }

    /// Whether everything has recovered and every source is running.
    pub fn readiness(&self) -> Readiness {
        let mut readiness = self.app.ready.borrow().clone();
        let snapshots = self.layers.snapshots().0.iter();
        let views = snapshots.filter_map(|(name, snapshot)| {
            let snapshot = snapshot.borrow();
            let why = snapshot.stopped.as_ref()?;
            let what = if snapshot.alone { "it has stopped" } else { "its source has stopped" };
            Some(format!("view `{name}`: {what}: {why}"))
        });
        let outputs = self.app.outputs.stopped().into_iter().map(|StoppedOutput { view, partition, why }| {
            format!("view `{view}`: writing what partition {partition} gives has stopped: {why}")
        });
        let accepts = matches!(self.app.api, Api::Whole | Api::Ingest);
        let refused = accepts.then(|| self.app.log.accepts().err()).flatten();
        let refused = refused.map(|error| format!("events can't be stored: {}", with_causes(&error)));
        let unread = self.layers.versions().troubles();
        for reason in views.chain(outputs).chain(unread).chain(self.app.stops.now()).chain(refused) {
            readiness.ready = false;
            if !readiness.reasons.contains(&reason) {
                readiness.reasons.push(reason);
            }
        }
        readiness
    }

    /// Takes note that a request had records rejected, which no snapshot tells of.
    pub fn note_rejects(&self) {
        self.rejects_seen.fetch_add(1, Ordering::Relaxed);
    }

    /// What the layers say of a view, where its log ends if that matters, and the stamp of it all.
    pub async fn instant(&self, view: &Arc<View>) -> Result<(Layers, Positions, Stamp), Problem> {
        let mut layers = self.layers.get(view);
        let log_end = if layers.need_log_end() { self.log_end(view, &mut layers).await? } else { Positions::new() };
        let stamp = self.stamp(&layers, &log_end);
        Ok((layers, log_end, stamp))
    }

    /// The stamp of an answer made of these.
    pub fn stamp(&self, layers: &Layers, log_end: &Positions) -> Stamp {
        let rejects = self.rejects_seen.load(Ordering::Relaxed);
        Stamp { layers: layers.stamp(), rejects, log_end: log_end.values().sum() }
    }

    /// Where the partitions of a view's topic end. That it is another one than that which the layers have read is told to them.
    pub async fn log_end(&self, view: &Arc<View>, layers: &mut Layers) -> Result<Positions, Problem> {
        let (log, topic) = (Arc::clone(&self.app.log), view.table.topic.clone());
        let bounds = blocking(move || log.bounds(&topic)).await?;
        Ok(Asked::of(bounds)?.ends(layers))
    }

    /// Refuses what a client brings along that is of another log than the one that is there.
    pub async fn check_log(
        &self,
        view: &Arc<View>,
        layers: &Layers,
        mark: &Mark,
        what: &str,
        way_out: &str,
    ) -> Result<(), Problem> {
        if layers.log().is_none_or(|log| log == mark) {
            return Ok(());
        }
        let (log, topic) = (Arc::clone(&self.app.log), view.table.topic.clone());
        let lineage = blocking(move || log.lineage(&topic)).await?.map_err(|error| log_problem(&error))?;
        if lineage.knows(mark) {
            return Ok(());
        }
        let there = lineage.newest().map(Mark::to_string).unwrap_or_default();
        let detail = format!("{what} is of the log {mark}, and view `{}` is of {there} now: {way_out}", view.name);
        Err(Problem::new(axum::http::StatusCode::GONE, "other-log", detail))
    }

    /// Runs work that may take long outside the reactor, a bounded number at once, and not for ever.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let permits = Arc::clone(&self.computing);
        let computing = async move {
            let permit = permits.acquire_owned().await.map_err(|error| Problem::internal(&error))?;
            blocking(move || {
                let result = work();
                drop(permit);
                result
            })
            .await?
        };
        let seconds = self.app.limits.timeout.as_secs();
        tokio::time::timeout(self.app.limits.timeout, computing).await.unwrap_or_else(|_| {
            let detail = format!("no answer within {seconds} seconds; ask for fewer windows, or later");
            Err(Problem::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).retry_after(5))
        })
    }
}

/// Runs blocking work outside the reactor.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}

/// A failure of the log as the client sees it.
pub(crate) fn log_problem(error: &LogError) -> Problem {
    use axum::http::StatusCode;
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

/// Rejects by topic.
pub(crate) fn rejected(rejects: &RejectLog, topic: &str) -> Result<u64, Problem> {
    rejects.count(Some(topic)).map_err(|error| log_problem(&error))
}

/// Positions in a topic as the API writes them: `{"topic":{"0":next}}`.
pub(crate) fn positions_json(topic: &str, positions: &Positions) -> BTreeMap<String, BTreeMap<String, Offset>> {
    let of_topic = positions.iter().map(|(partition, offset)| (partition.to_string(), *offset)).collect();
    [(topic.to_owned(), of_topic)].into()
}
