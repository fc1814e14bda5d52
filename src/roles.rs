//! One role in a process of its own, on Kafka: what `up` does in one process, shared out among many.
//!
//! | role | does | its consumer group shares out |
//! |------|------|-------------------------------|
//! | `ingest` | takes events in | nothing: any number, each for itself |
//! | `speed` | folds, and publishes snapshots to the log | the partitions of all topics |
//! | `archive` | archives | the tables: whoever has a topic's partition 0 archives the table |
//! | `batch` | follows schedules and runs jobs | the one partition of the jobs' topic: the others stand by |
//! | `serve` | answers, from the snapshots in the log and the versions on the storage | nothing |
//!
//! All share the data folder, which holds the archive, the versions and, unless `[storage]` says otherwise, the checkpoints.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anabranch_batch_layer::archive::{Archive, Archiver};
use anabranch_batch_layer::jobs::JobQueue;
use anabranch_batch_layer::{BatchLayer, BatchSettings};
use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::job::Jobs;
use anabranch_exchange::job::relay::{self, Foreman, RemoteJobs};
use anabranch_exchange::reading::Readings;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::snapshot::{Snapshots, wire};
use anabranch_exchange::version::{Versions, archive_root, open_versions};
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_log::kafka::group::{self, GroupOptions, Member};
use anabranch_log::position::{Partition, Positions};
use anabranch_plan::view::Catalog;
use anabranch_serving::{Api, App, Hosts, Measures, Outputs, Readiness, Stops};
use anabranch_speed_layer::{Context, Owned, SpeedLayer, SpeedMetrics};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Role, RoleKind};
use crate::failure::Failure;
use crate::measure;
use crate::platform::{self, Opened, Platform};
use crate::signal::interrupted;

/// How often the batch role looks for jobs.
const JOBS_INTERVAL: Duration = Duration::from_millis(250);

/// How often versions that other processes publish are looked for.
const VERSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs one role until Ctrl-C or SIGTERM.
pub async fn run(kind: RoleKind, role: Role) -> Result<ExitCode, Failure> {
    let mut platform = Platform::load(&role.folder.path())?;
    if let Some(listen) = role.listen {
        platform.config.server.listen = listen;
    }
    let Some(kafka) = platform.config.kafka.log_options() else {
        return Err(Failure::usage(
            "a role by itself needs a Kafka cluster: set `brokers` under [kafka]; `anabranch up` runs every role in one \
             process, on the embedded log",
        ));
    };
    let opened = platform.open().await?;
    let process = Process {
        group: GroupOptions {
            group: format!("{}.{}", platform.config.kafka.group, kind.name()),
            session_timeout: platform.config.kafka.session_timeout,
            kafka,
        },
        platform,
        opened,
        shutdown: CancellationToken::new(),
    };
    eprintln!("Anabranch's role {} is at {}", kind.name(), process.opened.url);
    let shutdown = process.shutdown.clone();
    tokio::spawn(async move {
        if let Err(error) = interrupted().await {
            tracing::error!(%error, "signals can't be waited for");
        }
        shutdown.cancel();
    });
    match kind {
        RoleKind::Ingest => process.ingest().await,
        RoleKind::Speed => process.speed().await,
        RoleKind::Archive => process.archive().await,
        RoleKind::Batch => process.batch().await,
        RoleKind::Serve => process.serve().await,
    }?;
    Ok(ExitCode::SUCCESS)
}

/// What a role tells of itself.
type Told = (Measures, Stops, Outputs);

struct Process {
    group: GroupOptions,
    platform: Platform,
    opened: Opened,
    shutdown: CancellationToken,
}

impl Process {
    fn log(&self) -> Arc<dyn Log> {
        self.opened.log.clone()
    }

    fn topics(&self) -> Vec<String> {
        self.platform.catalog.tables.values().map(|table| table.topic.clone()).collect()
    }

    /// The topics of the speed layer's snapshots, each as wide as its table's.
    fn create_snapshot_topics(&self) -> Result<(), Failure> {
        let log = &self.opened.own_log;
        for table in self.platform.catalog.tables.values() {
            let partitions = log.bounds(&table.topic)?.len() as u32;
            log.create_topic(&wire::topic(&table.name), partitions)?;
        }
        Ok(())
    }

    /// The versions on the storage, and how tables are read, followed until shutdown.
    async fn versions(&self) -> Result<(Versions, Readings), Failure> {
        let opened = open_versions(&self.opened.data, &self.platform.catalog).await;
        let (versions, readings, publishers) = opened.map_err(|error| Failure::new(error.to_string()))?;
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(publishers.follow(VERSIONS_INTERVAL)).await });
        Ok((versions, readings))
    }

    /// Answers HTTP until shutdown.
    async fn answer(
        self,
        api: Api,
        snapshots: Snapshots,
        versions: Versions,
        ready: watch::Receiver<Readiness>,
        (measures, stops, outputs): Told,
    ) -> Result<(), Failure> {
        let Self { platform, opened, shutdown, .. } = self;
        let Opened { log, clock, ingest, listener, limits, data, project, .. } = opened;
        let mut catalog = platform.catalog;
        let jobs: Arc<dyn Jobs> = {
            let (log, catalog, clock) = (log.clone(), catalog.clone(), clock.clone());
            let open = move || RemoteJobs::open(log, &catalog, clock);
            Arc::new(tokio::task::spawn_blocking(open).await?.map_err(|error| Failure::new(error.to_string()))?)
        };
        if api != Api::Whole {
            // This process knows nothing of the views, and says nothing of them.
            catalog = Arc::new(Catalog { tables: catalog.tables.clone(), ..Catalog::default() });
        }
        let rejects = Arc::clone(ingest.rejects());
        let server = &platform.config.server;
        let app = App {
            api,
            hosts: Hosts::new(&server.listen, &server.hosts),
            catalog,
            log,
            rejects,
            ingest,
            snapshots,
            versions,
            outputs,
            jobs,
            audits: AuditLog::new(data.join("audit")),
            measures,
            ready,
            stops,
            project,
            clock,
            limits,
        };
        anabranch_serving::serve(listener, app, shutdown.cancelled_owned()).await;
        Ok(())
    }

    /// Answers only how the process is.
    async fn answer_probes(self, told: Told) -> Result<(), Failure> {
        let (_ready, readiness) = watch::channel(Readiness::ready());
        self.answer(Api::Probes, Snapshots::default(), Versions::default(), readiness, told).await
    }

    async fn ingest(self) -> Result<(), Failure> {
        let (_ready, readiness) = watch::channel(Readiness::ready());
        self.answer(Api::Ingest, Snapshots::default(), Versions::default(), readiness, Told::default()).await
    }

    async fn serve(self) -> Result<(), Failure> {
        self.create_snapshot_topics()?;
        let (versions, _) = self.versions().await?;
        let (snapshots, threads) = anabranch_serving::collect(&self.log(), &self.platform.catalog, &self.shutdown)?;
        let readiness = platform::readiness(snapshots.clone(), "no speed layer has been heard of yet");
        let outputs = platform::outputs(self.opened.outlets.clone(), Vec::new);
        let told = (Measures::default(), Stops::default(), outputs);
        self.answer(Api::Whole, snapshots, versions, readiness, told).await?;
        tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(std::thread::JoinHandle::join))
            .await?
            .map_err(|_| Failure::new("a thread that collects snapshots has failed"))
    }

    async fn speed(self) -> Result<(), Failure> {
        self.create_snapshot_topics()?;
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        let (versions, readings) = self.versions().await?;
        let context = Context { versions, readings, ..self.platform.speed_context(&self.opened)? };
        let tables = &self.platform.catalog.tables;
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let member = SpeedMember {
            tables: tables.values().map(|table| (table.topic.clone(), table.name.clone())).collect(),
            context,
            running: running.clone(),
            waiting: Vec::new(),
        };
        let group = group::join(&self.group, &self.topics(), member, self.shutdown.clone())?;
        let all = running.clone();
        let stopped = move || all.lock().values().flat_map(|one| platform::stopped(&one.layer.outputs())).collect();
        let outputs = platform::outputs(self.opened.outlets.clone(), stopped);
        let all = running.clone();
        let numbers = move || -> Vec<(String, Partition, SpeedMetrics)> {
            let running = all.lock();
            let each = running.iter().flat_map(|((_, partition), one): (&(String, Partition), &Running)| {
                one.layer.metrics().into_iter().map(move |(table, numbers)| (table, *partition, numbers))
            });
            each.collect()
        };
        let stops = {
            let numbers = numbers.clone();
            Stops::new(move || {
                let each = numbers().into_iter().flat_map(|(table, partition, numbers)| {
                    let of = format!("table `{table}` partition {partition}");
                    let source = numbers.stopped.map(|why| format!("{of}: its source has stopped: {why}"));
                    let views = numbers.views.into_iter().filter_map(|(view, why)| Some((view, why?)));
                    let views = views.map(|(view, why)| format!("{of}: view `{view}` has stopped: {why}"));
                    source.into_iter().chain(views).collect::<Vec<_>>()
                });
                each.collect()
            })
        };
        let measures = Measures::new(move || {
            let each = numbers().into_iter();
            let each = each.flat_map(|(table, partition, numbers)| measure::speed(&table, Some(partition), &numbers));
            let running = running.lock();
            each.chain(running.values().flat_map(|one| measure::outputs(&one.layer.outputs()))).collect()
        });
        self.answer_probes((measures, stops, outputs)).await?;
        leave(group).await
    }

    async fn archive(self) -> Result<(), Failure> {
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        let rejects = Arc::clone(self.opened.ingest.rejects());
        tokio::spawn(platform::retain_rejects(rejects, &self.platform.config, self.shutdown.clone()));
        let (versions, _) = self.versions().await?;
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let member = ArchiveMember {
            runtime: Handle::current(),
            settings: platform::batch_settings(&self.platform.config),
            data: self.opened.data.clone(),
            catalog: self.platform.catalog.clone(),
            log: self.log(),
            rejects: self.opened.ingest.rejects().clone(),
            clock: self.opened.clock.clone(),
            versions,
            running: running.clone(),
            waiting: Vec::new(),
        };
        let group = group::join(&self.group, &self.topics(), member, self.shutdown.clone())?;
        let archivers = move || -> Vec<Arc<Archiver>> {
            running.lock().values().map(|task: &Task<Arc<Archiver>>| task.about.clone()).collect()
        };
        let stops = {
            let archivers = archivers.clone();
            Stops::new(move || archivers().iter().filter_map(|archiver| measure::archive_stop(archiver)).collect())
        };
        let measures = Measures::new(move || archivers().iter().flat_map(|one| measure::archive(one)).collect());
        self.answer_probes((measures, stops, Outputs::default())).await?;
        leave(group).await
    }

    async fn batch(self) -> Result<(), Failure> {
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        self.log().create_topic(relay::TOPIC, 1)?;
        let queue = Arc::new(Mutex::new(None));
        let member = BatchMember {
            runtime: Handle::current(),
            settings: BatchSettings { archives: false, ..platform::batch_settings(&self.platform.config) },
            data: self.opened.data.clone(),
            catalog: self.platform.catalog.clone(),
            log: self.log(),
            rejects: self.opened.ingest.rejects().clone(),
            clock: self.opened.clock.clone(),
            queue: queue.clone(),
            running: None,
        };
        let group = group::join(&self.group, &[relay::TOPIC.to_owned()], member, self.shutdown.clone())?;
        let stops = {
            let queue = queue.clone();
            Stops::new(move || queue.lock().iter().filter_map(|queue| measure::jobs_trouble(queue)).collect())
        };
        let measures = Measures::new(move || {
            let queue: Option<Arc<JobQueue>> = queue.lock().clone();
            queue.map_or_else(Vec::new, |queue| measure::jobs(&queue.metrics()))
        });
        self.answer_probes((measures, stops, Outputs::default())).await?;
        leave(group).await
    }
}

/// Waits until everything is given up.
async fn leave(group: std::thread::JoinHandle<()>) -> Result<(), Failure> {
    let left = tokio::task::spawn_blocking(|| group.join()).await?;
    left.map_err(|_| Failure::new("the thread of the consumer group has failed"))
}

struct Running {
    layer: SpeedLayer,
    stop: CancellationToken,
}

/// Folds the partitions that it has.
struct SpeedMember {
    context: Context,
    /// The table of each topic.
    tables: BTreeMap<String, String>,
    running: Arc<Mutex<BTreeMap<(String, Partition), Running>>>,
    /// What couldn't be started yet.
    waiting: Vec<(String, Partition)>,
}

impl SpeedMember {
    fn start(&mut self, topic: &str, partition: Partition) {
        let Some(table) = self.tables.get(topic) else { return };
        let stop = CancellationToken::new();
        let started = anabranch_speed_layer::claim(&*self.context.log, table, partition)
            .map_err(Failure::from)
            .and_then(|epoch| {
                let owned = Owned { partition, epoch };
                Ok(anabranch_speed_layer::run_partition(&self.context, table, owned, &stop)?)
            });
        match started {
            Ok(layer) => drop(self.running.lock().insert((topic.to_owned(), partition), Running { layer, stop })),
            Err(error) => {
                tracing::warn!(topic, partition, %error, "a partition can't be taken on; trying again");
                self.waiting.push((topic.to_owned(), partition));
            }
        }
    }
}

impl Member for SpeedMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        self.start(topic, partition);
    }

    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        self.waiting.retain(|(t, p)| (t.as_str(), *p) != (topic, partition));
        let running = self.running.lock().remove(&(topic.to_owned(), partition));
        if let Some(Running { layer, stop }) = running {
            stop.cancel();
            layer.stop();
        }
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        for (topic, partition) in std::mem::take(&mut self.waiting) {
            self.start(&topic, partition);
        }
        let done = |((topic, partition), running): (&(String, Partition), &Running)| {
            let snapshots = running.layer.snapshots();
            let ends = snapshots.0.keys().filter_map(|view| Some(snapshots.get(view)?.coverage.get(*partition)?.end));
            Some((topic.clone(), Positions::from([(*partition, ends.min()?)])))
        };
        self.running.lock().iter().filter_map(done).collect()
    }
}

/// Something that a task of the runtime does until it is stopped.
struct Task<T> {
    about: T,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl<T> Task<T> {
    fn end(self, runtime: &Handle) {
        self.stop.cancel();
        if let Err(error) = runtime.block_on(self.task) {
            tracing::error!(%error, "a task has failed");
        }
    }
}

/// Archives the tables whose partition 0 it has.
struct ArchiveMember {
    runtime: Handle,
    settings: BatchSettings,
    data: PathBuf,
    catalog: Arc<Catalog>,
    log: Arc<dyn Log>,
    rejects: Arc<RejectLog>,
    clock: Arc<dyn Clock>,
    versions: Versions,
    running: Arc<Mutex<BTreeMap<String, Task<Arc<Archiver>>>>>,
    waiting: Vec<String>,
}

impl ArchiveMember {
    fn start(&mut self, topic: &str) {
        let Some(table) = self.catalog.table_of_topic(topic).cloned() else { return };
        let views = self.catalog.kept_of(&table.name).filter_map(|view| self.versions.0.get(&view.id.name).cloned());
        let views = views.collect();
        let (log, rejects, clock) = (self.log.clone(), self.rejects.clone(), self.clock.clone());
        let archive = Archive { root: archive_root(&self.data, &table.name), table, log, rejects, clock };
        let opened = Archiver::open(archive, self.settings.archive.clone());
        match self.runtime.block_on(opened) {
            Ok(archiver) => {
                let archiver = Arc::new(archiver.sparing(views));
                let stop = CancellationToken::new();
                let (about, token) = (archiver.clone(), stop.clone());
                let task = self.runtime.spawn(async move { archiver.run(token).await });
                self.running.lock().insert(topic.to_owned(), Task { about, stop, task });
            }
            Err(error) => {
                tracing::warn!(topic, error = error.chain(), "an archive can't be opened; trying again");
                self.waiting.push(topic.to_owned());
            }
        }
    }
}

impl Member for ArchiveMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        if partition == 0 {
            self.start(topic);
        }
    }

    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        if partition == 0 {
            self.waiting.retain(|waiting| waiting != topic);
            let task = self.running.lock().remove(topic);
            if let Some(task) = task {
                task.end(&self.runtime);
            }
        }
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        for topic in std::mem::take(&mut self.waiting) {
            self.start(&topic);
        }
        let running = self.running.lock();
        let done = running.iter();
        done.map(|(topic, task)| (topic.clone(), task.about.status().borrow().archived.coverage.ends())).collect()
    }
}

/// Runs the jobs while it has the jobs' topic.
struct BatchMember {
    runtime: Handle,
    settings: BatchSettings,
    data: PathBuf,
    catalog: Arc<Catalog>,
    log: Arc<dyn Log>,
    rejects: Arc<RejectLog>,
    clock: Arc<dyn Clock>,
    /// The jobs, while this process runs them.
    queue: Arc<Mutex<Option<Arc<JobQueue>>>>,
    running: Option<Task<()>>,
}

impl Member for BatchMember {
    fn gain(&mut self, _: &str, _: Partition) {
        let stop = CancellationToken::new();
        let (settings, data, catalog) = (self.settings.clone(), self.data.clone(), self.catalog.clone());
        let (log, rejects, clock, token) = (self.log.clone(), self.rejects.clone(), self.clock.clone(), stop.clone());
        let queue = self.queue.clone();
        let work = async move {
            while !token.is_cancelled() {
                let layer =
                    BatchLayer::open(settings.clone(), &data, log.clone(), &catalog, rejects.clone(), clock.clone());
                match layer.await {
                    Ok(layer) => {
                        *queue.lock() = Some(layer.jobs());
                        return run_jobs(layer, log, clock, token).await;
                    }
                    Err(error) => tracing::warn!(%error, "the batch layer can't be opened; trying again"),
                }
                token.run_until_cancelled(tokio::time::sleep(VERSIONS_INTERVAL)).await;
            }
        };
        let task = self.runtime.spawn(work);
        self.running = Some(Task { about: (), stop, task });
    }

    fn give_up(&mut self, _: &str, _: Partition, _lost: bool) {
        if let Some(task) = self.running.take() {
            task.end(&self.runtime);
        }
        *self.queue.lock() = None;
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        Vec::new()
    }
}

/// Works until it is told to stop; meanwhile takes on what is asked for in the jobs' topic.
async fn run_jobs(layer: BatchLayer, log: Arc<dyn Log>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let jobs = layer.jobs();
    let ended = CancellationToken::new();
    let token = ended.clone();
    let foreman = tokio::task::spawn_blocking(move || {
        let (mut foreman, mut is_failing) = (None::<Foreman>, false);
        loop {
            // Once more at the end, to tell of what was cut off.
            let is_last = token.is_cancelled();
            let open = || Foreman::open(log.clone(), jobs.clone(), clock.clone());
            let worked = foreman.take().map_or_else(open, Ok).and_then(|open| foreman.insert(open).work());
            if let Err(error) = &worked
                && !is_failing
            {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "the jobs' topic can't be worked on; trying until it can");
            }
            is_failing = worked.is_err();
            if is_last {
                return;
            }
            std::thread::sleep(JOBS_INTERVAL);
        }
    });
    layer.run(stop).await;
    ended.cancel();
    if let Err(error) = foreman.await {
        tracing::error!(%error, "taking on jobs has failed");
    }
}
