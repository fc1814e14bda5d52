//! What serving is given.

use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::ingest::Ingest;
use anabranch_exchange::job::Jobs;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::snapshot::Snapshots;
use anabranch_exchange::version::Versions;
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_plan::view::Catalog;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::admission::Hosts;
use crate::emission::Emissions;
use crate::metric::{Measures, Stops};
use crate::output::Outputs;

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
    /// Which views' rows this process writes to topics; none writes none.
    pub emissions: Option<Emissions>,
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
