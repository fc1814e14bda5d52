//! One role in a process of its own, on Kafka: what `up` does in one process, shared out among many.
//!
//! | role | does | its consumer group shares out |
//! |------|------|-------------------------------|
//! | `ingest` | takes events in | nothing: any number, each for itself |
//! | `speed` | folds, and publishes snapshots to the log | the partitions of all topics |
//! | `archive` | archives | the tables: whoever has a topic's partition 0 archives the table |
//! | `batch` | follows schedules and runs jobs | the one partition of the jobs' topic: the others stand by |
//! | `serve` | answers, from the snapshots in the log and the versions on the storage; writes the rows of views that aggregate | the topics that these are written to |
//!
//! All share the data folder, which holds the archive, the versions and, unless `[storage]` says otherwise, the checkpoints.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anabranch_batch_layer::member::{self, ArchiveMember, JobsMember};
use anabranch_exchange::job::relay::{self, RemoteJobs};
use anabranch_exchange::reading::Readings;
use anabranch_exchange::snapshot::wire;
use anabranch_exchange::version::{Versions, open_versions};
use anabranch_log::kafka::group::{self, GroupOptions, Member};
use anabranch_log::position::{Partition, Positions};
use anabranch_log::{Log, LogError};
use anabranch_serving::{Api, Emissions, Measures, Stops};
use anabranch_speed_layer::{Context, SpeedError, SpeedMember};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Role, RoleKind};
use crate::failure::Failure;
use crate::measure;
use crate::platform::{self, Opened, Platform};
use crate::report::{self, Report};
use crate::signal::interrupted;

/// How often versions that other processes publish are looked for.
const VERSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// After how long brokers are asked again that didn't answer.
const AGAIN: Duration = Duration::from_secs(1);

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
    if let Some(why) = platform.catalog.units().iter().find_map(|unit| unit.check_shared().err()) {
        return Err(Failure::usage(format!("{why}. `anabranch up` runs every role in one process, on Kafka too")));
    }
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

    /// The topics of the speed layer's snapshots, each with as many partitions as the tables have that it is about. Brokers that have
    /// answered before, and don't now, are waited for.
    fn create_snapshot_topics(&self) -> Result<(), Failure> {
        let log = &self.opened.own_log;
        for unit in self.platform.catalog.units() {
            let (table, topic) = (unit.name(), wire::topic(&unit.name()));
            let create = |partitions| {
                log.create_topic(&topic, partitions).map_err(|source| SpeedError::Log { table: table.clone(), source })
            };
            loop {
                match anabranch_speed_layer::partitions(&**log, &unit).and_then(create) {
                    Ok(()) => break,
                    // Other views can be answered.
                    Err(error @ SpeedError::Unlike { .. }) => {
                        tracing::error!("{error}");
                        break;
                    }
                    Err(SpeedError::Log { source: error @ LogError::Backend { .. }, .. })
                        if !self.shutdown.is_cancelled() =>
                    {
                        tracing::warn!(topic, %error, "the topic of snapshots can't be made; trying again");
                        std::thread::sleep(AGAIN);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// The topics whose partitions bring work to the speed layer: the first that is shared out of each unit, and those that outputs read.
    fn speed_topics(&self) -> Vec<String> {
        let catalog = &self.platform.catalog;
        let units = catalog.units();
        let first = units.iter().filter_map(|unit| unit.first_shared().map(|table| table.topic.clone()));
        let sent = catalog.sent().map(|view| view.table().topic.clone());
        let topics: BTreeSet<String> = first.chain(sent).collect();
        // A group has to be about something.
        if topics.is_empty() { self.topics() } else { topics.into_iter().collect() }
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
    async fn answer(self, report: Report) -> Result<(), Failure> {
        let Self { platform, opened, shutdown, .. } = self;
        let (log, catalog, clock) = (opened.log.clone(), platform.catalog.clone(), opened.clock.clone());
        let jobs = tokio::task::spawn_blocking(move || RemoteJobs::open(log, &catalog, clock)).await?;
        let jobs = Arc::new(jobs.map_err(|error| Failure::new(error.to_string()))?);
        platform.serve(opened, jobs, report, shutdown).await;
        Ok(())
    }

    async fn ingest(self) -> Result<(), Failure> {
        self.answer(Report::nothing(Api::Ingest)).await
    }

    async fn serve(self) -> Result<(), Failure> {
        self.create_snapshot_topics()?;
        let (versions, _) = self.versions().await?;
        let (snapshots, threads) = anabranch_serving::collect(&self.log(), &self.platform.catalog, &self.shutdown)?;
        let ready = report::readiness(snapshots.clone(), "no speed layer has been heard of yet");
        let outputs = report::outputs(self.opened.outlets.clone(), Vec::new);
        let (owned, topics) = watch::channel(BTreeSet::new());
        let emissions = Some(Emissions::new(self.opened.outlets.clone(), topics));
        let written: Vec<String> = self.platform.catalog.emitted().map(|(_, emission)| emission.topic).collect();
        // The topics that views' rows are written to are shared out, so that each is written by one process.
        let group = match written.is_empty() {
            true => None,
            false => Some(group::join(&self.group, &written, EmissionsMember { owned }, self.shutdown.clone())?),
        };
        self.answer(Report { snapshots, versions, ready, outputs, emissions, ..Report::nothing(Api::Whole) }).await?;
        if let Some(group) = group {
            leave(group).await?;
        }
        tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(std::thread::JoinHandle::join))
            .await?
            .map_err(|_| Failure::new("a thread that collects snapshots has failed"))
    }

    async fn speed(self) -> Result<(), Failure> {
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        let (versions, readings) = self.versions().await?;
        let context = Context { versions, readings, ..self.platform.speed_context(&self.opened)? };
        let member = SpeedMember::new(context);
        let (numbers, states) = (member.metrics_reader(), member.outputs_reader());
        let group = group::join(&self.group, &self.speed_topics(), member, self.shutdown.clone())?;
        let of_all = states.clone();
        let stopped = move || of_all().iter().flat_map(report::stopped).collect();
        let outputs = report::outputs(self.opened.outlets.clone(), stopped);
        let of_all = numbers.clone();
        let stops = Stops::new(move || {
            of_all()
                .iter()
                .flat_map(|(table, partition, numbers)| measure::speed_stops(table, *partition, numbers))
                .collect()
        });
        let measures = Measures::new(move || {
            let each = numbers().into_iter();
            let each = each.flat_map(|(table, partition, numbers)| measure::speed(&table, Some(partition), &numbers));
            each.chain(states().iter().flat_map(measure::outputs)).collect()
        });
        self.answer(Report { measures, stops, outputs, ..Report::nothing(Api::Probes) }).await?;
        leave(group).await
    }

    async fn archive(self) -> Result<(), Failure> {
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        let rejects = Arc::clone(self.opened.ingest.rejects());
        tokio::spawn(platform::retain_rejects(rejects, &self.platform.config, self.shutdown.clone()));
        let (versions, _) = self.versions().await?;
        let member = ArchiveMember::new(self.batch_context(), versions);
        let archivers = member.archivers();
        let group = group::join(&self.group, &self.topics(), member, self.shutdown.clone())?;
        let at_work = archivers.clone();
        let stops =
            Stops::new(move || at_work().iter().filter_map(|archiver| measure::archive_stop(archiver)).collect());
        let measures = Measures::new(move || archivers().iter().flat_map(|one| measure::archive(one)).collect());
        self.answer(Report { measures, stops, ..Report::nothing(Api::Probes) }).await?;
        leave(group).await
    }

    async fn batch(self) -> Result<(), Failure> {
        self.platform.declare(&self.opened.data, &self.opened.log).await?;
        self.log().create_topic(relay::TOPIC, 1)?;
        let mut context = self.batch_context();
        context.settings.archives = false;
        let member = JobsMember::new(context);
        let queue = member.queue();
        let group = group::join(&self.group, &[relay::TOPIC.to_owned()], member, self.shutdown.clone())?;
        let at_work = queue.clone();
        let stops = Stops::new(move || at_work().iter().filter_map(|queue| measure::jobs_trouble(queue)).collect());
        let measures = Measures::new(move || queue().map_or_else(Vec::new, |queue| measure::jobs(&queue.metrics())));
        self.answer(Report { measures, stops, ..Report::nothing(Api::Probes) }).await?;
        leave(group).await
    }

    /// What the batch layer's members work with.
    fn batch_context(&self) -> member::Context {
        let Opened { data, log, ingest, clock, .. } = &self.opened;
        member::Context {
            settings: platform::batch_settings(&self.platform.config),
            data: data.clone(),
            catalog: self.platform.catalog.clone(),
            log: log.clone(),
            rejects: ingest.rejects().clone(),
            clock: clock.clone(),
        }
    }
}

/// The topics that this process writes views' rows to: those whose partition 0 it has.
struct EmissionsMember {
    owned: watch::Sender<BTreeSet<String>>,
}

impl Member for EmissionsMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        if partition == 0 {
            self.owned.send_if_modified(|owned| owned.insert(topic.to_owned()));
        }
    }

    // Whoever takes a topic over fences off what is still being written.
    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        if partition == 0 {
            self.owned.send_if_modified(|owned| owned.remove(topic));
        }
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        Vec::new()
    }
}

/// Waits until everything is given up.
async fn leave(group: std::thread::JoinHandle<()>) -> Result<(), Failure> {
    let left = tokio::task::spawn_blocking(|| group.join()).await?;
    left.map_err(|_| Failure::new("the thread of the consumer group has failed"))
}
