//! Every role wired together in one process: the log, the speed layer, the batch layer and serving.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_batch_layer::archive::{ArchiveSettings, Archiver, anchor, declare};
use anabranch_batch_layer::{BatchError, BatchLayer, BatchSettings};
use anabranch_engine::{decode, transform};
use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::ingest::Ingest;
use anabranch_exchange::job::Jobs;
use anabranch_exchange::reading::Readings;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::{Versions, archive_root};
use anabranch_log::anchored::AnchoredLog;
use anabranch_log::clock::Clock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::KafkaLog;
use anabranch_log::kafka::outlet::Outlets;
use anabranch_log::{Log, LogError, Retention};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::sink::Emission;
use anabranch_plan::view::Catalog;
use anabranch_serving::{Api, App, Emissions, Hosts, Limits, Measures, Stops};
use anabranch_speed_layer::{Checkpoints, Context, Memory, Settings, SpeedLayer};
use anabranch_store::storage::{Location, Storage};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::clock;
use crate::config::{self, Config};
use crate::failure::Failure;
use crate::measure;
use crate::nofile;
use crate::project::{self, Project};
use crate::report::{Report, outputs, readiness, stopped};

/// How often old rejects are deleted.
const REJECTS_INTERVAL: Duration = Duration::from_secs(10);

/// A project that is loaded and can be started.
pub struct Platform {
    /// The project folder.
    pub dir: PathBuf,
    /// Its settings.
    pub config: Config,
    /// Its tables and views.
    pub catalog: Arc<Catalog>,
}

/// What every role needs.
pub struct Opened {
    /// Where the API will be.
    pub url: String,
    /// Listens there already, so that a taken port costs nothing.
    pub listener: TcpListener,
    /// How much its clients may ask.
    pub limits: Limits,
    /// Where data is.
    pub data: PathBuf,
    /// Which project it is.
    pub project: String,
    /// The event log, with each table's topic held to what the table's archive is of.
    pub log: Arc<dyn Log>,
    /// The same as it is.
    pub own_log: Arc<dyn Log>,
    /// Where outputs are written, if that can be done.
    pub outlets: Option<Outlets>,
    /// The way in.
    pub ingest: Arc<Ingest>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A platform at work.
pub struct Started {
    /// Where its API is.
    pub url: String,
    /// The event log.
    pub log: Arc<dyn Log>,
    /// The way in.
    pub ingest: Arc<Ingest>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Tells every part to end.
    pub shutdown: CancellationToken,
    speed: SpeedLayer,
    tasks: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Platform {
    /// Loads a project; every mistake in it is in the failure.
    pub fn load(dir: &Path) -> Result<Self, Failure> {
        let project = Project::load(dir, std::env::vars()).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self { dir: project.dir, config: project.config, catalog: Arc::new(project.catalog) })
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Result<Arc<Table>, Failure> {
        let tables = &self.catalog.tables;
        let existing = || tables.keys().collect::<Vec<_>>();
        let unknown = || Failure::usage(format!("no table named `{name}`; there are {:?}", existing()));
        tables.get(name).cloned().ok_or_else(unknown)
    }

    /// Where the project's data is.
    pub fn data(&self) -> PathBuf {
        self.dir.join(".anabranch")
    }

    /// Starts it for one command: on a free port of loopback, without schedules, and without writing outputs.
    pub async fn start_for_command(mut self) -> Result<Started, Failure> {
        self.config.server.listen = "127.0.0.1:0".to_owned();
        self.config.batch.scheduler = false;
        let opened = self.open().await?;
        self.start_with(Opened { outlets: None, ..opened }, false).await
    }

    /// Opens the log, with the topics of the tables, and listens.
    pub async fn open(&self) -> Result<Opened, Failure> {
        let Self { config, catalog, .. } = self;
        let limits = limits(&config.server);
        tokio::task::spawn_blocking(transform::start_threads).await??;
        let data = self.data();
        std::fs::create_dir_all(&data)
            .map_err(|error| Failure::new(format!("the data folder {} can't be made: {error}", data.display())))?;
        let project = project::identity(&data)
            .map_err(|error| Failure::from(error).at(&format!("the data folder {} can't be named", data.display())))?;
        let listener = listen(config).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let clock = clock();
        let (log, outlets) = open_log(config, catalog, &data, &clock)?;
        let topics = topics(config, &log)?;
        for (view, Emission { topic, .. }) in catalog.emitted() {
            let read = catalog.table_of_topic(&topic).map(|reader| reader.partitions);
            let source = view.table();
            let made = || topics.get(&source.topic).copied().unwrap_or(source.partitions);
            let partitions = read.unwrap_or_else(made);
            match &outlets {
                Some(outlets) => outlets.create_topic(&topic, partitions, true)?,
                None if topics.contains_key(&topic) => {}
                None => log.create_topic(&topic, partitions)?,
            }
        }
        for table in catalog.tables.values() {
            if let Some(&existing) = topics.get(&table.topic).filter(|&&existing| existing < table.partitions) {
                let (table, topic, wanted) = (&table.name, &table.topic, table.partitions);
                tracing::warn!(
                    "table `{table}` says `partitions = {wanted}`, and topic `{topic}` has {existing}, which is left as it is; \
                     `anabranch views partitions {table} {wanted}` raises it and says what that does to keys"
                );
                continue;
            }
            match log.create_topic(&table.topic, table.partitions) {
                // A topic of somebody else's making is as large as they made it.
                Err(LogError::FewerPartitions { .. }) if config.kafka.brokers.is_some() => {}
                created => created?,
            }
        }
        for view in catalog.kept() {
            let Late::Topic(topic) = &view.aggregation().late else { continue };
            match log.create_topic(topic, log.bounds(&view.table().topic)?.len() as u32) {
                Err(LogError::FewerPartitions { .. }) => {}
                created => created?,
            }
        }
        let own_log = log;
        let log = self.anchor(&own_log, &data).await?;
        let ingest = Arc::new(Ingest::new(Arc::clone(&log), Arc::clone(catalog), Arc::clone(&clock))?);
        Ok(Opened { url, listener, limits, data, project, log, own_log, outlets, ingest, clock })
    }

    /// The log with each table's topic held to what the table's archive is of.
    pub async fn anchor(&self, log: &Arc<dyn Log>, data: &Path) -> Result<Arc<dyn Log>, Failure> {
        let mut anchors = BTreeMap::new();
        for table in self.catalog.tables.values() {
            let anchor = anchor(&archive_root(data, &table.name), table).await;
            anchors.insert(table.topic.clone(), anchor.map_err(|error| Failure::new(error.chain()))?);
        }
        Ok(Arc::new(AnchoredLog::new(log.clone(), anchors)))
    }

    /// What the speed layer works with; it knows no versions yet.
    pub fn speed_context(&self, opened: &Opened) -> Result<Context, Failure> {
        Ok(Context {
            log: Arc::clone(&opened.log),
            catalog: Arc::clone(&self.catalog),
            versions: Versions::default(),
            readings: Readings::default(),
            checkpoints: Some(self.checkpoints(opened)?),
            outlets: opened.outlets.clone(),
            rejects: Arc::clone(opened.ingest.rejects()),
            clock: Arc::clone(&opened.clock),
            settings: speed_settings(&self.config),
            memory: Memory::new(usize::try_from(self.config.speed.memory).unwrap_or(usize::MAX)),
        })
    }

    /// Where the speed layer's state is kept.
    pub fn checkpoints(&self, opened: &Opened) -> Result<Checkpoints, Failure> {
        let location = match &self.config.storage.checkpoints {
            None => Location::Folder(opened.data.join("checkpoints")),
            Some(Location::Folder(folder)) => Location::Folder(self.dir.join(folder)),
            Some(s3) => s3.clone(),
        };
        let storage = Storage::open(location, &self.config.storage.options)?;
        Ok(Checkpoints::new(storage, Handle::current()))
    }

    /// Has the tables' definitions begin where their archives end, unless they are in force already: before anything is read. A
    /// table whose archive can't go on with its definition is left as it is: its source and its archiving say why they stop.
    pub async fn declare(&self, data: &Path, log: &Arc<dyn Log>) -> Result<(), Failure> {
        for table in self.catalog.tables.values() {
            match declare(&archive_root(data, &table.name), table, log).await {
                Ok(_) => {}
                Err(error @ BatchError::Definition(_)) => {
                    tracing::error!(error = error.chain(), "the table is stopped")
                }
                Err(error) => return Err(Failure::new(error.chain())),
            }
        }
        Ok(())
    }

    /// Starts every role.
    pub async fn start(self) -> Result<Started, Failure> {
        let opened = self.open().await?;
        self.start_with(opened, true).await
    }

    /// Whether it `writes` what views have written to topics.
    async fn start_with(self, opened: Opened, writes: bool) -> Result<Started, Failure> {
        self.declare(&opened.data, &opened.log).await?;
        let context = self.speed_context(&opened)?;
        let (url, log, clock) = (opened.url.clone(), Arc::clone(&opened.log), Arc::clone(&opened.clock));
        let (ingest, outlets) = (Arc::clone(&opened.ingest), opened.outlets.clone());
        let rejects = Arc::clone(ingest.rejects());

        let batch = BatchLayer::open(
            batch_settings(&self.config),
            &opened.data,
            Arc::clone(&log),
            &self.catalog,
            Arc::clone(&rejects),
            Arc::clone(&clock),
        );
        let batch = batch.await?;
        let (jobs, versions) = (batch.jobs(), batch.versions());
        let archivers: Vec<Arc<Archiver>> = batch.archivers().values().cloned().collect();

        let shutdown = CancellationToken::new();
        let context = Context { versions: versions.clone(), readings: batch.readings(), ..context };
        let speed = anabranch_speed_layer::run(&context, &shutdown)?;
        let token = shutdown.clone();
        let batch = tokio::spawn(async move {
            batch.run(token).await;
            Ok(())
        });
        let measures = {
            let (archivers, queue, states) = (archivers.clone(), jobs.clone(), speed.outputs());
            let speed = speed.metrics_reader();
            Measures::new(move || {
                let speed = speed().into_iter().flat_map(|(table, numbers)| measure::speed(&table, None, &numbers));
                let outputs = measure::outputs(&states);
                let archives = archivers.iter().flat_map(|archiver| measure::archive(archiver));
                speed.chain(outputs).chain(archives).chain(measure::jobs(&queue.metrics())).collect()
            })
        };
        let queue = jobs.clone();
        let stops = Stops::new(move || {
            let archives = archivers.iter().filter_map(|archiver| measure::archive_stop(archiver));
            archives.chain(measure::jobs_trouble(&queue)).collect()
        });
        let report = Report {
            api: Api::Whole,
            snapshots: speed.snapshots(),
            versions,
            outputs: outputs(outlets, {
                let states = speed.outputs();
                move || stopped(&states)
            }),
            measures,
            stops,
            emissions: writes.then(|| {
                let topics = self.catalog.emitted().map(|(_, emission)| emission.topic).collect();
                Emissions::new(opened.outlets.clone(), watch::channel(topics).1)
            }),
            ready: readiness(speed.snapshots(), "the speed layer recovers its state"),
        };
        let retention = tokio::spawn(retain_rejects(rejects, &self.config, shutdown.clone()));
        let token = shutdown.clone();
        let serving = tokio::spawn(async move {
            self.serve(opened, jobs, report, token).await;
            Ok(())
        });
        Ok(Started { url, log, ingest, clock, shutdown, speed, tasks: vec![batch, serving, retention] })
    }

    /// Answers HTTP until shutdown.
    pub async fn serve(self, opened: Opened, jobs: Arc<dyn Jobs>, report: Report, shutdown: CancellationToken) {
        let Opened { listener, limits, data, project, log, ingest, clock, .. } = opened;
        let Report { api, snapshots, versions, outputs, emissions, measures, stops, ready } = report;
        let catalog = match api {
            Api::Whole => self.catalog,
            // This process knows nothing of the views, and says nothing of them.
            Api::Ingest | Api::Probes => {
                Arc::new(Catalog { tables: self.catalog.tables.clone(), ..Catalog::default() })
            }
        };
        let server = &self.config.server;
        let app = App {
            api,
            hosts: Hosts::new(&server.listen, &server.hosts),
            catalog,
            log,
            rejects: Arc::clone(ingest.rejects()),
            ingest,
            snapshots,
            versions,
            outputs,
            emissions,
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
    }
}

impl Started {
    /// Ends every role: requests are answered, jobs are cancelled, a last checkpoint is stored.
    pub async fn stop(self) -> Result<(), Failure> {
        self.shutdown.cancel();
        tokio::task::spawn_blocking(|| self.speed.stop()).await?;
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

/// The event log that the settings choose, and where outputs are written, if it has a place for them.
fn open_log(
    config: &Config,
    catalog: &Catalog,
    data: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<(Arc<dyn Log>, Option<Outlets>), Failure> {
    validate(config, catalog)?;
    let Some(options) = config.kafka.log_options() else {
        return Ok((Arc::new(open_embedded(config, catalog, data, clock)?), None));
    };
    let log = KafkaLog::open(options, Arc::clone(clock))?;
    let outlets = log.outlets(&config.kafka.group);
    Ok((Arc::new(log), Some(outlets)))
}

/// The topics that the log has. A cluster that can't be reached is named with the setting that is to be corrected.
fn topics(config: &Config, log: &Arc<dyn Log>) -> Result<BTreeMap<String, u32>, Failure> {
    let topics = log.topics().map_err(Failure::from);
    let Some(brokers) = &config.kafka.brokers else { return topics };
    topics.map_err(|failure| {
        let meaning = "set `brokers` under [kafka] in anabranch.toml, or ANABRANCH__KAFKA__BROKERS; security is set under \
                       [kafka.options]";
        failure.at(&format!("the Kafka cluster at `{brokers}` can't be reached")).meaning(meaning)
    })
}

/// Deletes old rejects now and then, until shutdown.
pub fn retain_rejects(
    rejects: Arc<RejectLog>,
    config: &Config,
    shutdown: CancellationToken,
) -> impl Future<Output = Result<(), Failure>> + use<> {
    let retention = Retention { age: Some(config.log.rejects_age), bytes: Some(config.log.rejects_bytes) };
    let mut ticks = tokio::time::interval(REJECTS_INTERVAL);
    async move {
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let rejects = Arc::clone(&rejects);
            if let Err(error) = tokio::task::spawn_blocking(move || rejects.retain(retention)).await? {
                tracing::warn!(%error, "old rejects can't be deleted");
            }
        }
        Ok(())
    }
}

/// Where the embedded log is below the data folder.
pub fn embedded_root(data: &Path) -> PathBuf {
    data.join("log")
}

/// The embedded log.
pub fn open_embedded(
    config: &Config,
    catalog: &Catalog,
    data: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<EmbeddedLog, LogError> {
    let keyed = catalog.tables.values().filter(|table| decode::extras(table).keys).map(|table| table.topic.clone());
    let keyed = keyed.chain(catalog.emitted().map(|(_, emission)| emission.topic)).collect();
    let options = EmbeddedOptions { reserve_bytes: config.log.reserve, keyed };
    EmbeddedLog::open(embedded_root(data), options, Arc::clone(clock))
}

/// Refuses what the settings' log doesn't have.
pub fn validate(config: &Config, catalog: &Catalog) -> Result<(), Failure> {
    if config.kafka.log_options().is_some() {
        if config.log.retention_bytes.is_some() {
            let message =
                "`retention_bytes` under [log] is the embedded log's: on Kafka set `retention.bytes` of the topics";
            return Err(Failure::usage(message.to_owned()));
        }
        return Ok(());
    }
    if let Some(table) = catalog.tables.values().find(|table| table.headers.is_some()) {
        let name = &table.name;
        return Err(Failure::usage(format!(
            "table `{name}` has `headers`, which records have on Kafka only: set `brokers` under [kafka], or leave it out"
        )));
    }
    if let Some(output) = catalog.sent().next() {
        return Err(Failure::usage(format!(
            "view `{}` writes its rows to a topic of Kafka, and this project's log is the embedded one: set `brokers` \
             under [kafka], or leave the view out",
            output.id.name
        )));
    }
    Ok(())
}

/// Listens where the settings say, but not in public by mistake.
async fn listen(config: &Config) -> Result<TcpListener, Failure> {
    let address = &config.server.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Failure::new(format!("{address} can't be listened on: {error}")))?;
    if !listener.local_addr()?.ip().is_loopback() && !config.server.public {
        return Err(Failure::usage(format!(
            "{address} can be reached by others and nothing authenticates them: listen on 127.0.0.1, or set `public = true` \
             under [server] if something else guards it"
        )));
    }
    Ok(listener)
}

/// How much clients may ask. Connections leave half of the files that the process may have open to everything else.
fn limits(server: &config::Server) -> Limits {
    let files = nofile::raise();
    let connections = server.max_connections.min(files / 2);
    let mut of_one = server.max_connections_per_address;
    if connections < server.max_connections {
        of_one = of_one.min(connections / 2);
        tracing::warn!(
            files,
            connections,
            "fewer connections are taken than `max_connections` says: that takes twice as many open files (`ulimit -Hn`)"
        );
    }
    Limits {
        body_bytes: usize::try_from(server.max_body).unwrap_or(usize::MAX),
        connections,
        connections_per_address: of_one,
        ..Limits::default()
    }
}

fn speed_settings(config: &Config) -> Settings {
    let speed = &config.speed;
    Settings {
        batch_records: speed.batch_records,
        batch_wait: speed.batch_wait,
        snapshot_interval: speed.snapshot_interval,
        checkpoint_interval: speed.checkpoint_interval,
        chunk_interval: speed.chunk_interval,
        idle_after: speed.idle_after,
        ..Settings::default()
    }
}

/// How the settings have the batch layer work.
pub fn batch_settings(config: &Config) -> BatchSettings {
    let (age, bytes) = (config.log.retention_age, config.log.retention_bytes);
    BatchSettings {
        scheduler: config.batch.scheduler,
        keep_versions: config.batch.keep_versions,
        timeout: config.batch.timeout,
        archive: ArchiveSettings {
            interval: config.archive.interval,
            target_rows: config.archive.target_rows,
            retention: (age.is_some() || bytes.is_some()).then_some(Retention { age, bytes }),
            ..Default::default()
        },
        ..Default::default()
    }
}
