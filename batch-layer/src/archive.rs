//! The archive: every event of a topic, exactly once, in a Delta table.
//!
//! An [`Archiver`] reads the topic from where the table's newest commit says that it ends, writes the events into one
//! file per day of event time, and commits the files together with the offsets that they cover. If it fails or the
//! process is killed anywhere in between, the next one asks the table where it stopped: files without a commit are in
//! no version, so nothing is there twice, and nothing is left out. If the table doesn't say it ([`coverage`]), it archives nothing.
//!
//! Records that are no rows are recorded as rejects before the commit that passes over them. They may be recorded
//! again after a crash: rejects are known by their offsets.

mod anchor;
mod check;
mod compact;
mod coverage;
mod declare;
mod file;
mod gather;
mod rebuild;
mod snapshot;

#[cfg(test)]
mod anchor_tests;
#[cfg(test)]
mod coverage_tests;
#[cfg(test)]
mod edition_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::edition::Editions;
use anabranch_exchange::note::Note;
use anabranch_exchange::reject::{RejectLog, Rejected};
use anabranch_exchange::version::Version;
use anabranch_log::clock::Clock;
use anabranch_log::lineage::{Adoption, Epoch, Mark, Tails};
use anabranch_log::position::{Coverage, Offset, Partition, Positions, TopicPartition};
use anabranch_log::{Log, LogReader, Retention};
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_store::table::{Change, DeltaTable, Sweeper, TableError};
use fail::fail_point;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use self::anchor::note;
pub use self::anchor::{Adopt, anchor, renew};
pub use self::check::{Checked, check_table};
use self::coverage::{Noted, change, noted};
pub use self::declare::{declare, preview};
use self::file::Shape;
pub use self::file::{LOG_TIME, OFFSET, PARTITION, check_files, file_damage, layout};
use self::gather::{Gathered, gather};
pub use self::rebuild::Rebuild;
pub use self::snapshot::ArchiveSnapshot;
use crate::error::{BatchError, blocking};

/// Where a table's archive is, and what it is made from.
#[derive(Clone)]
pub struct Archive {
    /// Its folder.
    pub root: PathBuf,
    /// The table.
    pub table: Arc<Table>,
    /// Where events come from.
    pub log: Arc<dyn Log>,
    /// Where records are recorded that are no events.
    pub rejects: Arc<RejectLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// How an archive is kept.
#[derive(Debug, Clone)]
pub struct ArchiveSettings {
    /// How long events wait for others before they are archived together.
    pub interval: Duration,
    /// How many waiting events are archived at once without waiting longer; no more are held in memory.
    pub target_rows: usize,
    /// How many bytes of records are held in memory at most.
    pub target_bytes: usize,
    /// A day with more small files than this gets them rewritten as one.
    pub small_files: usize,
    /// For how long files that the newest version doesn't name are kept for readers of older ones.
    pub grace: Duration,
    /// What of the log may go once it is archived.
    pub retention: Option<Retention>,
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            target_rows: 1_000_000,
            target_bytes: 256 << 20,
            small_files: 16,
            grace: Duration::from_secs(3600),
            retention: None,
        }
    }
}

/// What a commit of the archive says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// The offsets whose events the table holds.
    pub coverage: Coverage,
    /// The newest event time so far, by partition.
    pub event_times: BTreeMap<Partition, Micros>,
    /// By which definitions the events were read.
    #[serde(default)]
    pub editions: Editions,
    /// How often it was made anew: versions of views from before are no start for the next.
    #[serde(default)]
    pub rebuilds: u64,
    /// Which log the offsets are of; none in what was written before logs had marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Mark>,
    /// That log's last epochs when its mark was noted, oldest first: by them it is found where a copy of it has parted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<Epoch>,
    /// The last record of each partition, as the log had it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tails: Tails,
    /// How that log's own offsets become these, if others came before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<Adoption>,
    /// How many rows the table has; none if another program's file doesn't say, and in what earlier builds wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

impl Note for Archived {
    const BY_TOPIC: &'static [&'static str] =
        &["coverage", "event_times", "editions", "log", "epochs", "tails", "adoption"];
}

/// How an archive stands.
#[derive(Debug, Clone, Default)]
pub struct ArchiveStatus {
    /// What it holds.
    pub archived: Archived,
    /// The version of the table whose commit says so.
    pub version: u64,
    /// Where the log's partitions ended when that was last looked at.
    pub log_ends: Positions,
    /// Events archived since the process started.
    pub rows: u64,
    /// Why it archives nothing: for good if records are lost, or for as long as another definition is in force.
    pub stopped: Option<String>,
    /// Why the last attempt to archive in the background failed, if it did; it goes on trying.
    pub failing: Option<String>,
    /// What retention had taken when it was to be archived.
    pub lost: Coverage<TopicPartition>,
}

impl ArchiveStatus {
    /// How many offsets of each partition wait to be archived.
    pub fn waiting(&self) -> Positions {
        let ends = self.log_ends.iter();
        ends.map(|(&partition, &end)| (partition, end.saturating_sub(self.archived.coverage.next(&partition))))
            .collect()
    }
}

/// Archives one topic.
pub struct Archiver {
    archive: Archive,
    settings: ArchiveSettings,
    status: watch::Sender<ArchiveStatus>,
    /// Taken out while it is at work, and put back only if that went well: after a failure the table is asked anew.
    state: Mutex<Option<State>>,
    sweeper: Mutex<Sweeper>,
    views: Vec<watch::Receiver<Option<Arc<Version>>>>,
}

struct State {
    delta: DeltaTable,
    shape: Arc<Shape>,
    archived: Archived,
    reader: Option<(Box<dyn LogReader>, Positions)>,
}

impl Archiver {
    /// Opens an archive, creating it if need be. The table's definition has to be the one in force there, as [`declare`] makes
    /// it: as long as it isn't, the archiver archives nothing and says why.
    pub async fn open(archive: Archive, settings: ArchiveSettings) -> Result<Self, BatchError> {
        let archiver = Self {
            archive,
            settings,
            status: watch::channel(ArchiveStatus::default()).0,
            state: Mutex::new(None),
            sweeper: Mutex::new(Sweeper::default()),
            views: Vec::new(),
        };
        let state = match archiver.load().await {
            Ok(state) => Some(state),
            Err(BatchError::Stopped { .. }) if archiver.status.borrow().stopped.is_some() => None,
            Err(error) => return Err(error),
        };
        *archiver.state.lock().await = state;
        Ok(archiver)
    }

    /// Retention spares what these views' newest versions don't cover yet: the speed layer may have to read it again.
    pub fn sparing(mut self, views: Vec<watch::Receiver<Option<Arc<Version>>>>) -> Self {
        self.views = views;
        self
    }

    /// The offsets that are archived and that every view's newest version covers, per partition.
    fn settled(&self, archived: &Archived) -> Positions {
        let covered = |view: &watch::Receiver<Option<Arc<Version>>>, partition: &TopicPartition| {
            let version = view.borrow().clone().filter(|version| !version.is_stale);
            version.map_or(0, |version| version.published.coverage.next(partition))
        };
        let ends = archived.coverage.ends().into_iter();
        ends.map(|(partition, end)| {
            let of_topic = TopicPartition::new(self.archive.table.topic.as_str(), partition);
            (partition, self.views.iter().map(|view| covered(view, &of_topic)).fold(end, u64::min))
        })
        .collect()
    }

    /// The table whose events it archives.
    pub fn table(&self) -> &Arc<Table> {
        &self.archive.table
    }

    /// How it stands, now and later.
    pub fn status(&self) -> watch::Receiver<ArchiveStatus> {
        self.status.subscribe()
    }

    async fn load(&self) -> Result<State, BatchError> {
        let Archive { root, table, .. } = &self.archive;
        let mut delta = DeltaTable::open_or_create(root, &layout(table)).await?;
        let known = Some(self.status.borrow()).map(|status| (status.version, status.archived.clone()));
        let Noted { mut archived, version } = match noted(&delta, table, known).await {
            Err(BatchError::Stopped { why, .. }) => return Err(self.halted(why)),
            noted => noted?,
        };
        self.archive.verify(&archived).await.map_err(|error| self.stopped(error))?;
        if let Some(why) = archived.editions.refusal(table) {
            return Err(self.halted(why));
        }
        if archived.editions.newest().is_none() {
            if !archived.coverage.is_empty() {
                declare(root, table, &self.archive.log).await?;
                return Box::pin(self.load()).await;
            }
            let declared = archived.editions.declared(table, &Positions::new(), &delta.layout()?)?;
            archived.editions = declared.unwrap_or_default();
        }
        match self.follow_others(&mut delta, &mut archived, version).await {
            Err(BatchError::Table(TableError::Superseded { .. })) => return Box::pin(self.load()).await,
            followed => followed?,
        }
        self.status.send_modify(|status| {
            (status.archived, status.version) = (archived.clone(), delta.version());
            status.stopped.take_if(|_| status.lost.is_empty());
        });
        let shape = Arc::new(Shape::of(table, &archived.editions, &delta.layout()?));
        Ok(State { delta, shape, archived, reader: None })
    }

    /// An error after which nothing is archived until the table is another one: the status says so.
    fn halted(&self, why: String) -> BatchError {
        if self.status.borrow().stopped.as_ref() != Some(&why) {
            tracing::error!(table = self.table().name, why, "archiving has stopped");
        }
        self.status.send_modify(|status| status.stopped = Some(why.clone()));
        BatchError::Stopped { topic: self.topic(), why }
    }

    /// How the archive stands, read again if another process has committed to it.
    async fn current(&self, slot: &mut Option<State>) -> Result<State, BatchError> {
        let Some(state) = slot.take() else { return self.load().await };
        let delta = &state.delta;
        if delta.is_superseded().await? { self.load().await } else { Ok(state) }
    }

    /// Looks whether another process has committed.
    async fn look(&self) -> Result<(), BatchError> {
        let mut slot = self.state.lock().await;
        *slot = Some(self.current(&mut slot).await?);
        Ok(())
    }

    /// Archives what waits, up to the target, in one commit; returns how many offsets that was.
    pub async fn step(&self) -> Result<u64, BatchError> {
        let mut slot = self.state.lock().await;
        self.step_locked(&mut slot, Duration::ZERO).await
    }

    /// Archives until the table covers these ends, and returns it as it is then.
    pub async fn archive_to(&self, ends: &Positions) -> Result<ArchiveSnapshot, BatchError> {
        self.archive_until(ends, &CancellationToken::new()).await
    }

    /// The same, unless it is cancelled: what is archived by then stays.
    pub async fn archive_until(
        &self,
        ends: &Positions,
        cancel: &CancellationToken,
    ) -> Result<ArchiveSnapshot, BatchError> {
        let mut slot = self.state.lock().await;
        let mut patience = 10;
        loop {
            let state = self.current(&mut slot).await?;
            let positions = self.positions(&state.archived).await?;
            let short = ends.iter().find_map(|(&partition, &end)| {
                let reached = positions.get(&partition).copied().unwrap_or(0);
                (reached < end).then_some((partition, end, reached))
            });
            let Some((partition, end, reached)) = short else {
                let snapshot = ArchiveSnapshot::of(&state.delta, state.archived.clone())?;
                *slot = Some(state);
                return Ok(snapshot);
            };
            *slot = Some(state);
            if cancel.is_cancelled() {
                return Err(BatchError::Cancelled);
            }
            if patience == 0 {
                return Err(BatchError::Stalled { topic: self.topic(), partition, end, reached });
            }
            let progress = match self.step_locked(&mut slot, Duration::from_secs(1)).await {
                // Another process archives too, and was faster: see how far it has come.
                Err(BatchError::Table(TableError::Superseded { .. })) => continue,
                progress => progress?,
            };
            patience = if progress == 0 { patience - 1 } else { 10 };
        }
    }

    /// What the topic's partitions hold now.
    pub async fn held(&self) -> Result<BTreeMap<Partition, Range<Offset>>, BatchError> {
        self.archive.bounds().await.map_err(|error| self.stopped(error))
    }

    /// Where they end.
    pub async fn log_ends(&self) -> Result<Positions, BatchError> {
        Ok(self.held().await?.into_iter().map(|(partition, range)| (partition, range.end)).collect())
    }

    fn topic(&self) -> String {
        self.archive.table.topic.clone()
    }

    async fn step_locked(&self, slot: &mut Option<State>, wait: Duration) -> Result<u64, BatchError> {
        let lost = |status: &ArchiveStatus| status.stopped.clone().filter(|_| !status.lost.is_empty());
        if let Some(why) = lost(&self.status.borrow()) {
            return Err(BatchError::Stopped { topic: self.topic(), why });
        }
        let state = match slot.take() {
            Some(state) => state,
            None => self.load().await?,
        };
        match self.advance(state, wait).await {
            Ok((state, offsets)) => {
                *slot = Some(state);
                Ok(offsets)
            }
            Err(error) => Err(self.stopped(error)),
        }
    }

    async fn advance(&self, mut state: State, wait: Duration) -> Result<(State, u64), BatchError> {
        let positions = self.positions(&state.archived).await?;
        let reader = state.reader.take().filter(|(_, at)| *at == positions).map(|(reader, _)| reader);
        let Archive { table, log, rejects, .. } = self.archive.clone();
        let (before, shape) = (state.archived.clone(), state.shape.clone());
        let (rows, bytes) = (self.settings.target_rows, self.settings.target_bytes);
        let read = move || {
            let reader = reader.map_or_else(|| log.reader(&table.topic, &positions), Ok)?;
            gather(reader, (&table, &shape), &rejects, before, (rows, bytes), wait)
        };
        let (reader, gathered) = blocking("reading the log", read).await?;
        fail_point!("archive::after_read", |_| Err(BatchError::Failpoint("archive::after_read")));
        let offsets = gathered.archived.coverage.len() - state.archived.coverage.len();
        if gathered.archived != state.archived {
            self.commit(&mut state, gathered).await?;
        }
        let positions = self.positions(&state.archived).await?;
        state.reader = Some((reader, positions));
        Ok((state, offsets))
    }

    /// Where each partition goes on: where the table ends, or at the partition's start if the table doesn't know it.
    async fn positions(&self, archived: &Archived) -> Result<Positions, BatchError> {
        let bounds = self.archive.bounds().await?;
        let position = |(partition, held): (Partition, Range<Offset>)| {
            (partition, archived.coverage.get(&partition).map_or(held.start, |range| range.end))
        };
        Ok(bounds.into_iter().map(position).collect())
    }

    async fn commit(&self, state: &mut State, gathered: Gathered) -> Result<(), BatchError> {
        let Gathered { batches, mut archived, rejected, rows, .. } = gathered;
        // After they were read: what came from another log is left out.
        let mut noted = state.archived.clone();
        note(&self.archive.log, &self.archive.table, &mut noted).await?;
        (archived.log, archived.epochs) = (noted.log, noted.epochs);
        let archive = self.archive.clone();
        blocking("recording rejects", move || archive.reject(&rejected)).await?;
        let (root, shape, now) = (self.archive.root.clone(), state.shape.clone(), self.archive.clock.now());
        let each = || {
            fail_point!("archive::file_written", |_| Err(BatchError::Failpoint("archive::file_written")));
            Ok(())
        };
        let add = blocking("writing files", move || file::write_days(&root, &shape, &batches, now, each)).await?;
        fail_point!("archive::before_commit", |_| Err(BatchError::Failpoint("archive::before_commit")));
        archived.rows = state.archived.rows.zip(coverage::rows(&add)).map(|(before, new)| before + new);
        let change = change(&state.delta, &self.archive.table, &archived)?;
        let version = state.delta.commit(Change { add, ..change }).await?;
        fail_point!("archive::after_commit", |_| Err(BatchError::Failpoint("archive::after_commit")));
        state.archived = archived;
        self.status.send_modify(|status| {
            (status.archived, status.version) = (state.archived.clone(), version);
            status.rows += rows as u64;
        });
        if let Some(retention) = self.settings.retention {
            let (log, topic, settled) = (self.archive.log.clone(), self.topic(), self.settled(&state.archived));
            blocking("applying retention", move || Ok(log.retain(&topic, retention, &settled)?)).await?;
        }
        Ok(())
    }

    /// How many offsets wait to be archived.
    async fn waiting(&self) -> Result<u64, BatchError> {
        let log_ends = self.log_ends().await?;
        self.status.send_modify(|status| status.log_ends = log_ends);
        Ok(self.status.borrow().waiting().values().sum())
    }

    /// Archives in the background until it is told to stop.
    pub async fn run(&self, shutdown: CancellationToken) {
        let tick = self.settings.interval.min(Duration::from_millis(500));
        let mut since = tokio::time::Instant::now();
        let mut tended = since;
        while shutdown.run_until_cancelled(tokio::time::sleep(tick)).await.is_some() {
            let waiting = self.waiting().await;
            let due = since.elapsed() >= self.settings.interval;
            let done = match waiting {
                Ok(waiting) if due || waiting >= self.settings.target_rows as u64 => {
                    since = tokio::time::Instant::now();
                    Some(("archiving failed, will go on", self.archive_waiting(waiting).await))
                }
                Ok(_) => None,
                Err(error) => Some(("the log can't be read", Err(error))),
            };
            if let Some((what, outcome)) = done {
                self.note(&outcome);
                self.warn(what, outcome);
            }
            if tended.elapsed() >= self.settings.interval * 6 {
                tended = tokio::time::Instant::now();
                self.warn("tidying the archive failed", self.tend().await);
            }
        }
    }

    async fn archive_waiting(&self, waiting: u64) -> Result<(), BatchError> {
        if waiting > 0 { self.step().await.map(drop) } else { self.look().await }
    }

    /// Notes whether archiving fails. That it has stopped, the status says already.
    fn note(&self, outcome: &Result<(), BatchError>) {
        let failing = match outcome {
            Ok(()) | Err(BatchError::Table(TableError::Superseded { .. }) | BatchError::Stopped { .. }) => None,
            Err(error) => Some(error.chain()),
        };
        self.status.send_modify(|status| status.failing = failing);
    }

    fn warn(&self, what: &str, outcome: Result<(), BatchError>) {
        match outcome {
            // Another process was faster; or the status says it.
            Ok(()) | Err(BatchError::Table(TableError::Superseded { .. }) | BatchError::Stopped { .. }) => {}
            Err(error) => tracing::warn!(topic = self.topic(), error = error.chain(), "{what}"),
        }
    }
}

impl Archive {
    /// What the topic's partitions hold. The log may be far away, so it isn't asked on the reactor.
    async fn bounds(&self) -> Result<BTreeMap<Partition, Range<Offset>>, BatchError> {
        let (log, topic) = (self.log.clone(), self.table.topic.clone());
        blocking("asking the log what it holds", move || Ok(log.bounds(&topic)?)).await
    }

    /// Records records that are no events.
    fn reject(&self, rejected: &[Rejected]) -> Result<(), BatchError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let failed = |source| BatchError::Rejects { topic: self.table.topic.clone(), source };
        self.rejects.record(rejected).map_err(failed)
    }
}
