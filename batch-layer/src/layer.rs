//! The batch layer as a whole.

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::job::{JobError, JobKind, JobRequest, Jobs, Trigger};
use anabranch_exchange::reading::Readings;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::{Publishers, Versions, archive_root, open_versions};
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_plan::view::{Catalog, Kept};
use anabranch_store::table::Sweeper;
use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveSettings, ArchiveSnapshot, Archiver};
use crate::error::BatchError;
use crate::jobs::{JobQueue, Retry, ViewRun, Work};
use crate::recompute::{Recompute, sweep};
use crate::schedule::Scheduler;

/// How the batch layer works.
#[derive(Debug, Clone)]
pub struct BatchSettings {
    /// Whether events are archived in the background, not only before each run.
    pub archives: bool,
    /// Whether views' schedules ask for runs.
    pub scheduler: bool,
    /// How archives are kept.
    pub archive: ArchiveSettings,
    /// How many versions of a view are kept.
    pub keep_versions: usize,
    /// For how long files of versions that are no longer kept stay for those who still read them.
    pub grace: Duration,
    /// How steps that failed for their storage are tried again.
    pub retry: Retry,
    /// How long a job may take.
    pub timeout: Option<Duration>,
    /// How often versions that another process publishes are looked for.
    pub refresh: Duration,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            archives: true,
            scheduler: true,
            archive: ArchiveSettings::default(),
            keep_versions: 5,
            grace: Duration::from_secs(3600),
            retry: Retry::default(),
            timeout: None,
            refresh: Duration::from_secs(1),
        }
    }
}

/// Why the batch layer can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A table or the log can't be opened.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The history of runs can't be opened.
    #[error(transparent)]
    Jobs(#[from] JobError),
}

/// The batch layer of one process.
pub struct BatchLayer {
    settings: BatchSettings,
    worker: Arc<Worker>,
    queue: Arc<JobQueue>,
    readings: Readings,
}

impl BatchLayer {
    /// Opens archives, versions and history below the data folder. The topics of the catalog's tables must exist.
    pub async fn open(
        settings: BatchSettings,
        data: &Path,
        log: Arc<dyn Log>,
        catalog: &Catalog,
        rejects: Arc<RejectLog>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let (versions, readings, publishers) = open_versions(data, catalog).await.map_err(BatchError::from)?;
        let archivers = open_archivers(&settings.archive, data, &log, catalog, &rejects, &clock, &versions).await?;
        let queue = JobQueue::open(data, catalog, clock.clone(), settings.retry)?.with_timeout(settings.timeout);
        let queue = Arc::new(queue);
        let worker = Worker {
            catalog: catalog.clone(),
            views: data.join("views"),
            audits: AuditLog::new(data.join("audit")),
            archivers,
            versions,
            publishers,
            clock,
            keep_versions: settings.keep_versions,
            grace: settings.grace,
            sweepers: Mutex::default(),
        };
        Ok(Self { settings, worker: Arc::new(worker), queue, readings })
    }

    /// The archive of each table, by the table's name.
    pub fn archivers(&self) -> &BTreeMap<String, Arc<Archiver>> {
        &self.worker.archivers
    }

    /// The jobs, to be submitted and watched.
    pub fn jobs(&self) -> Arc<JobQueue> {
        self.queue.clone()
    }

    /// The newest version of each view.
    pub fn versions(&self) -> Versions {
        self.worker.versions.clone()
    }

    /// How the records of each table are read.
    pub fn readings(&self) -> Readings {
        self.readings.clone()
    }

    /// Asks for versions of the views that can't go on without one: those whose newest one is from before a rebuild of the archive,
    /// which ended too early to compute them, and those that would begin with records that the log has lost.
    async fn ask_for_wanted(worker: Arc<Worker>, queue: Arc<JobQueue>) {
        let mut views = Vec::new();
        for view in worker.catalog.kept() {
            let name = &view.id.name;
            let is_stale = worker.versions.newest(&view.id).is_some_and(|version| version.is_stale);
            let is_wanted = is_stale || worker.has_lost_its_start(&view).await;
            // A job that waits since the last process does it, too.
            if is_wanted && !queue.is_busy(name) {
                views.push(name.clone());
            }
        }
        if views.is_empty() {
            return;
        }
        tracing::info!(
            ?views,
            "these views need a version to begin with: the archive was rebuilt, or the log has lost their start"
        );
        let request = JobRequest { kind: JobKind::Batch, views, full: false, from: None, to: None };
        if let Err(error) = queue.submit(request, Trigger::Cli) {
            tracing::error!(%error, "no run asked for");
        }
    }

    /// Works until it is told to stop. What is at work then is cancelled; nothing is half done.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        if self.settings.archives {
            for archiver in self.worker.archivers.values() {
                let (archiver, shutdown) = (Arc::clone(archiver), shutdown.clone());
                tasks.spawn(async move { archiver.run(shutdown).await });
            }
        }
        let (queue, worker, token) = (self.queue.clone(), self.worker.clone(), shutdown.clone());
        tasks.spawn(async move { queue.run(worker, token).await });
        if self.settings.scheduler {
            tasks.spawn(Self::ask_for_wanted(self.worker.clone(), self.queue.clone()));
            let Worker { catalog, clock, .. } = &*self.worker;
            let scheduler = Scheduler::new(catalog, self.queue.clone(), clock.clone());
            tasks.spawn(scheduler.run(shutdown.clone()));
        }
        let (worker, every) = (self.worker.clone(), self.settings.refresh);
        tasks.spawn(async move {
            shutdown.run_until_cancelled(worker.publishers.follow(every)).await;
        });
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the batch layer has failed");
            }
        }
    }

    /// Runs the jobs that wait, and no others.
    #[cfg(test)]
    pub async fn work_once(&self) {
        let done = CancellationToken::new();
        let idle = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if !self.queue.has_open() {
                    done.cancel();
                    return;
                }
            }
        };
        tokio::join!(self.queue.run(self.worker.clone(), done.clone()), idle);
    }
}

async fn open_archivers(
    settings: &ArchiveSettings,
    data: &Path,
    log: &Arc<dyn Log>,
    catalog: &Catalog,
    rejects: &Arc<RejectLog>,
    clock: &Arc<dyn Clock>,
    versions: &Versions,
) -> Result<BTreeMap<String, Arc<Archiver>>, BatchError> {
    let mut archivers = BTreeMap::new();
    for table in catalog.tables.values() {
        let archive = Archive {
            root: archive_root(data, &table.name),
            table: table.clone(),
            log: log.clone(),
            rejects: rejects.clone(),
            clock: clock.clone(),
        };
        archivers.insert(table.name.clone(), open_archiver(archive, settings.clone(), catalog, versions).await?);
    }
    Ok(archivers)
}

/// Opens a table's archive. Retention spares what the newest versions of its views don't cover yet, and a topic that a view writes its
/// rows to: what that holds is how far the view's writer is.
pub(crate) async fn open_archiver(
    archive: Archive,
    mut settings: ArchiveSettings,
    catalog: &Catalog,
    versions: &Versions,
) -> Result<Arc<Archiver>, BatchError> {
    if catalog.emitted().any(|(_, emission)| emission.topic == archive.table.topic) {
        settings.retention = None;
    }
    let views = catalog.kept_of(&archive.table.name).filter_map(|view| versions.0.get(&view.id).cloned()).collect();
    Ok(Arc::new(Archiver::open(archive, settings).await?.sparing(views)))
}

struct Worker {
    catalog: Catalog,
    views: PathBuf,
    audits: AuditLog,
    archivers: BTreeMap<String, Arc<Archiver>>,
    versions: Versions,
    publishers: Publishers,
    clock: Arc<dyn Clock>,
    keep_versions: usize,
    grace: Duration,
    sweepers: Mutex<BTreeMap<String, Sweeper>>,
}

#[async_trait]
impl Work for Worker {
    async fn archive(&self, views: &[String], cancel: &CancellationToken) -> Result<(), BatchError> {
        let views = views.iter().filter_map(|view| self.catalog.kept_view(view));
        let tables =
            views.flat_map(|view| view.tables().into_iter().map(|table| table.name.clone()).collect::<Vec<_>>());
        for table in tables.collect::<std::collections::BTreeSet<_>>() {
            if let Some(archiver) = self.archivers.get(&table) {
                archiver.archive_until(&archiver.log_ends().await?, cancel).await?;
            }
        }
        Ok(())
    }

    async fn recompute(
        &self,
        run: ViewRun,
        progress: Arc<dyn Fn(f64) + Send + Sync>,
        cancel: CancellationToken,
    ) -> Result<u64, BatchError> {
        let Some(view) = self.catalog.kept_view(&run.view) else { return Err(BatchError::UnknownView(run.view)) };
        self.publishers.refresh_table(&view.table().name).await?;
        let newest = self.versions.newest(&view.id);
        let mut archives: Vec<ArchiveSnapshot> = Vec::new();
        for table in view.tables() {
            let Some(archiver) = self.archivers.get(&table.name) else { return Err(BatchError::UnknownView(run.view)) };
            if let Some(newest) = &newest {
                archiver.verify_version(&view.id.name, &newest.published).await?;
            }
            archives.push(archiver.archive_to(&Default::default()).await?);
        }
        let recompute = Recompute {
            view: view.clone(),
            views: self.views.clone(),
            audits: self.audits.clone(),
            archives,
            full: run.full,
            times: run.times,
            run: run.run,
            clock: self.clock.clone(),
            cancel,
            progress,
        };
        let published = recompute.run().await;
        // Also after a failure: another process may have published, which is why this one failed.
        self.publishers.refresh_table(&view.table().name).await?;
        let version = match published? {
            Some(published) => published.version,
            None => self.versions.newest(&view.id).map_or(0, |version| version.published.version),
        };
        if let Err(error) = self.sweep(&run.view).await {
            tracing::warn!(view = run.view, error = error.chain(), "files of old versions weren't swept");
        }
        Ok(version)
    }

    async fn tend(&self) {
        for view in self.catalog.kept_names() {
            if let Err(error) = self.sweep(view).await {
                tracing::warn!(view, error = error.chain(), "files that no version names weren't swept");
            }
        }
    }
}

impl Worker {
    /// Whether the log no longer holds the records with which a view would begin: those behind its newest version, or all.
    async fn has_lost_its_start(&self, view: &Kept) -> bool {
        let newest = self.versions.newest(&view.id);
        for table in view.tables() {
            let Some(archiver) = self.archivers.get(&table.name) else { continue };
            let held = archiver.held().await.inspect_err(|error| {
                tracing::warn!(table = table.name, error = error.chain(), "what the log holds isn't known");
            });
            let covered =
                newest.as_ref().map(|version| version.published.coverage.of(&table.topic)).unwrap_or_default();
            if held.is_ok_and(|held| held.iter().any(|(partition, range)| covered.next(partition) < range.start)) {
                return true;
            }
        }
        false
    }

    async fn sweep(&self, name: &str) -> Result<(), BatchError> {
        let Some(view) = self.catalog.kept_view(name) else { return Ok(()) };
        let mut sweepers = self.sweepers.lock().await;
        let sweeper = sweepers.entry(name.to_owned()).or_default();
        let grace = i64::try_from(self.grace.as_micros()).unwrap_or(i64::MAX);
        sweep(&self.views, &view, sweeper, self.keep_versions, self.clock.now(), grace).await?;
        Ok(())
    }
}
