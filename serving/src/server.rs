//! What serving keeps while it runs, shared by all requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_log::lineage::Mark;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::view::{Catalog, Kept, Sent, ViewId};
use axum::http::StatusCode;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::app::{Api, App, Readiness};
use crate::cache::Cache;
use crate::emission::EmissionStates;
use crate::frame::{Finals, Frames};
use crate::metric::Metrics;
use crate::output::StoppedOutput;
use crate::page::Pages;
use crate::problem::{Problem, log_problem, with_causes};
use crate::rendered::Rendered;
use crate::source::{LayerStore, Layers, Stamp};
use crate::topic::Asked;

/// How old the log's ends may be of which streams tell, and how long asking for newer ones may hold one up.
const AGE: Duration = Duration::from_secs(1);

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
    pub finals: Cache<Stamp, Option<Finals>>,
    /// How the emissions do that this process writes.
    pub emissions: EmissionStates,
    pub computing: Arc<Semaphore>,
    pub streams: Arc<Semaphore>,
    pub openapi: Bytes,
    pub shutdown: watch::Receiver<bool>,
    /// Where topics ended a moment ago.
    ends: Mutex<BTreeMap<String, (Instant, Positions<TopicPartition>)>>,
    rejects_seen: AtomicU64,
}

impl Server {
    pub fn new(app: App, openapi: Bytes, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            layers: LayerStore::new(app.snapshots.clone(), app.versions.clone()),
            metrics: Arc::new(Metrics::default()),
            answers: Cache::new(app.limits.cache_bytes),
            pages: Arc::new(Pages::new(app.limits.cache_bytes / 2)),
            frames: app.catalog.kept().map(|view| (view.id.clone(), Default::default())).collect(),
            finals: Cache::new(app.limits.cache_bytes / 8),
            emissions: app.catalog.emitted().map(|(view, _)| (view.id.name.clone(), Default::default())).collect(),
            computing: Arc::new(Semaphore::new(app.limits.computing)),
            streams: Arc::new(Semaphore::new(app.limits.streams)),
            openapi,
            shutdown,
            ends: Mutex::default(),
            rejects_seen: AtomicU64::new(0),
            app,
        }
    }

    /// The view of that name, which has rows.
    pub fn view(&self, name: &str) -> Result<Kept, Problem> {
        let Catalog { views, .. } = &*self.app.catalog;
        let view = views.get(name).ok_or_else(|| Problem::unknown("view", name, views.keys().map(String::as_str)))?;
        Kept::of(view).ok_or_else(|| {
            let to = Sent::of(view).map(|view| view.sink().topic.clone()).unwrap_or_default();
            let detail = format!("`{name}` keeps no rows here: they are in Kafka's topic `{to}`, to be read there");
            Problem::new(StatusCode::NOT_FOUND, "rows-elsewhere", detail)
        })
    }

    /// Whether everything has recovered and every source is running.
    pub fn readiness(&self) -> Readiness {
        let mut readiness = self.app.ready.borrow().clone();
        let snapshots = self.layers.snapshots().0.iter();
        let views = snapshots.filter_map(|(ViewId { name, .. }, snapshot)| {
            let snapshot = snapshot.borrow();
            let why = snapshot.stopped.as_ref()?;
            let what = if snapshot.alone { "it has stopped" } else { "its source has stopped" };
            Some(format!("view `{name}`: {what}: {why}"))
        });
        let outputs = self.app.outputs.stopped().into_iter().map(|StoppedOutput { view, partition, why }| {
            format!("view `{view}`: writing what partition {partition} gives has stopped: {why}")
        });
        let emissions = self.emissions.iter().filter_map(|(view, state)| {
            let stopped = state.lock().stopped.clone()?;
            Some(format!("view `{view}`: writing its rows has stopped: {stopped}"))
        });
        let accepts = matches!(self.app.api, Api::Whole | Api::Ingest);
        let refused = accepts.then(|| self.app.log.accepts().err()).flatten();
        let refused = refused.map(|error| format!("events can't be stored: {}", with_causes(&error)));
        let unread = self.layers.versions().troubles();
        for reason in views.chain(outputs).chain(emissions).chain(unread).chain(self.app.stops.now()).chain(refused) {
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
    pub async fn instant(&self, view: &Kept) -> Result<(Layers, Positions<TopicPartition>, Stamp), Problem> {
        let mut layers = self.layers.get(view);
        let log_end = if layers.need_log_end() { self.log_end(view, &mut layers).await? } else { Positions::new() };
        let stamp = self.stamp(&layers, &log_end);
        Ok((layers, log_end, stamp))
    }

    /// The stamp of an answer made of these.
    pub fn stamp(&self, layers: &Layers, log_end: &Positions<TopicPartition>) -> Stamp {
        layers.stamp(log_end, self.rejects_seen.load(Ordering::Relaxed))
    }

    /// Where the partitions of a view's topics end. That one is another one than that which the layers have read is told to them.
    pub async fn log_end(&self, view: &Kept, layers: &mut Layers) -> Result<Positions<TopicPartition>, Problem> {
        let mut ends = Positions::new();
        for table in view.tables() {
            let (log, topic) = (Arc::clone(&self.app.log), table.topic.clone());
            let bounds = blocking(move || log.bounds(&topic)).await?;
            ends.extend(Asked::of(bounds)?.ends(&table.topic, layers));
        }
        Ok(ends)
    }

    /// Where a view's topics end, or ended when the log last answered; all streams of the server ask it once a second.
    pub async fn recent_log_end(&self, view: &Kept, layers: &mut Layers) -> Option<Positions<TopicPartition>> {
        let topics = view.tables().into_iter().map(|table| table.topic.as_str()).collect::<Vec<_>>().join(",");
        let known = self.ends.lock().get(&topics).cloned();
        if let Some((asked, end)) = &known
            && asked.elapsed() < AGE
        {
            return Some(end.clone());
        }
        let end = tokio::time::timeout(AGE, self.log_end(view, layers)).await;
        let Ok(Ok(end)) = end else { return known.map(|(_, end)| end) };
        if layers.other_log.is_none() {
            self.ends.lock().insert(topics, (Instant::now(), end.clone()));
        }
        Some(end)
    }

    /// Refuses what a client brings along that is of another log than the one that is there.
    pub async fn check_logs(
        &self,
        view: &Kept,
        layers: &Layers,
        marks: &[Mark],
        what: &str,
        way_out: &str,
    ) -> Result<(), Problem> {
        let there = layers.logs(view);
        if there.is_empty() || marks.iter().all(|mark| there.contains(mark)) {
            return Ok(());
        }
        let log = Arc::clone(&self.app.log);
        let topics: Vec<String> = view.tables().iter().map(|table| table.topic.clone()).collect();
        let lineages = blocking(move || topics.iter().map(|topic| log.lineage(topic)).collect::<Result<Vec<_>, _>>());
        let lineages = lineages.await?.map_err(|error| log_problem(&error))?;
        let Some(mark) = marks.iter().find(|mark| !lineages.iter().any(|lineage| lineage.knows(mark))) else {
            return Ok(());
        };
        let there: BTreeSet<&str> = lineages.iter().filter_map(|lineage| Some(lineage.newest()?.as_str())).collect();
        let there = there.into_iter().collect::<Vec<_>>().join(" and ");
        let detail = format!("{what} is of the log {mark}, and view `{}` is of {there} now: {way_out}", view.id.name);
        Err(Problem::new(StatusCode::GONE, "other-log", detail))
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
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).retry_after(5))
        })
    }
}

/// Runs blocking work outside the reactor.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}

/// Waits until the server is to end.
pub(crate) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}
