//! The archive: every event of a topic, exactly once, in a Delta table.
//!
//! An [`Archiver`] reads the topic from where the table's newest commit says that it ends, writes the events into one
//! file per day of event time, and commits the files together with the offsets that they cover. If it fails or the
//! process is killed anywhere in between, the next one asks the table where it stopped: files without a commit are in
//! no version, so nothing is there twice, and nothing is left out.
//!
//! Records that are no rows are recorded as rejects before the commit that passes over them. They may be recorded
//! again after a crash: rejects are known by their offsets.

mod compact;
mod declare;
mod file;
mod rebuild;

#[cfg(test)]
mod edition_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_shared::clock::{Clock, Micros};
use anabranch_shared::decode::Decoder;
use anabranch_shared::edition::Editions;
use anabranch_shared::log::{Batch, Log, LogError, LogReader, ReadLimit, Retention};
use anabranch_shared::position::{Coverage, Offset, Partition, Positions};
use anabranch_shared::reject::{RejectLog, Rejected};
use anabranch_shared::schema::Table;
use anabranch_shared::table::{Change, DataFile, DeltaTable, Layout, Sweeper, TableError};
use anabranch_shared::version::Version;
use arrow::array::RecordBatch;
use fail::fail_point;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

pub use self::declare::{declare, preview};
use self::file::Shape;
pub use self::file::{LOG_TIME, OFFSET, PARTITION, layout};
pub use self::rebuild::Rebuild;
use crate::day::parse_day;
use crate::error::{BatchError, blocking};

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
}

/// How an archive stands.
#[derive(Debug, Clone, Default)]
pub struct ArchiveStatus {
    /// What it holds.
    pub archived: Archived,
    /// Where the log's partitions ended when that was last looked at.
    pub log_ends: Positions,
    /// Events archived since the process started.
    pub rows: u64,
    /// Set once archiving has stopped for good: why.
    pub stopped: Option<String>,
    /// What retention had taken when it was to be archived.
    pub lost: Coverage,
}

impl ArchiveStatus {
    /// How many offsets of each partition wait to be archived.
    pub fn waiting(&self) -> Positions {
        let ends = self.log_ends.iter();
        ends.map(|(&partition, &end)| (partition, end.saturating_sub(self.archived.coverage.next(partition)))).collect()
    }
}

/// One version of an archive, to compute from.
#[derive(Debug, Clone)]
pub struct ArchiveSnapshot {
    /// The archive's folder.
    pub root: PathBuf,
    /// The version of its table.
    pub version: u64,
    /// What it holds.
    pub archived: Archived,
    /// All columns that its files may have.
    pub layout: Layout,
    /// The files of each day of event time.
    pub days: BTreeMap<i64, Vec<DataFile>>,
}

impl ArchiveSnapshot {
    /// The archive in a folder as it is now; `None` if there is none.
    pub async fn open(root: &Path) -> Result<Option<Self>, BatchError> {
        let Some(table) = DeltaTable::open(root).await? else { return Ok(None) };
        let archived = table.note::<Archived>().await?.map(|(_, archived)| archived).unwrap_or_default();
        Ok(Some(Self::of(&table, archived)?))
    }

    fn of(table: &DeltaTable, archived: Archived) -> Result<Self, BatchError> {
        let mut days: BTreeMap<i64, Vec<DataFile>> = BTreeMap::new();
        for file in table.files() {
            let day = file.partition.values().next().and_then(|value| parse_day(value.as_deref()?));
            days.entry(day.unwrap_or(0)).or_default().push(file);
        }
        let (root, layout) = (table.root().to_owned(), table.layout()?);
        Ok(Self { root, version: table.version(), archived, layout, days })
    }

    /// How many events a day has; none if a file doesn't say.
    pub fn rows(&self, day: i64) -> Option<u64> {
        self.days.get(&day).map_or(Some(0), |files| files.iter().map(|file| file.rows).sum())
    }
}

/// Archives one topic.
pub struct Archiver {
    root: PathBuf,
    table: Arc<Table>,
    log: Arc<dyn Log>,
    rejects: Arc<RejectLog>,
    clock: Arc<dyn Clock>,
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

/// What has been read and not yet committed.
struct Gathered {
    batches: Vec<RecordBatch>,
    archived: Archived,
    rejected: Vec<Rejected>,
    rows: usize,
}

impl Archiver {
    /// Opens the archive of a table in a folder, creating it if need be. The table's definition has to be the one in force
    /// there, as [`declare`] makes it.
    pub async fn open(
        root: PathBuf,
        table: Arc<Table>,
        log: Arc<dyn Log>,
        rejects: Arc<RejectLog>,
        clock: Arc<dyn Clock>,
        settings: ArchiveSettings,
    ) -> Result<Self, BatchError> {
        let archiver = Self {
            root,
            table,
            log,
            rejects,
            clock,
            settings,
            status: watch::channel(ArchiveStatus::default()).0,
            state: Mutex::new(None),
            sweeper: Mutex::new(Sweeper::default()),
            views: Vec::new(),
        };
        let state = archiver.load().await?;
        archiver.status.send_modify(|status| status.archived = state.archived.clone());
        *archiver.state.lock().await = Some(state);
        Ok(archiver)
    }

    /// Retention spares what these views' newest versions don't cover yet: the speed layer may have to read it again.
    pub fn sparing(mut self, views: Vec<watch::Receiver<Option<Arc<Version>>>>) -> Self {
        self.views = views;
        self
    }

    /// The offsets that are archived and that every view's newest version covers, per partition.
    fn settled(&self, archived: &Archived) -> Positions {
        let covered = |view: &watch::Receiver<Option<Arc<Version>>>, partition| {
            view.borrow().as_ref().map_or(0, |version| version.published.coverage.next(partition))
        };
        let ends = archived.coverage.ends().into_iter();
        ends.map(|(partition, end)| {
            (partition, self.views.iter().map(|view| covered(view, partition)).fold(end, u64::min))
        })
        .collect()
    }

    /// The table whose events it archives.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// How it stands, now and later.
    pub fn status(&self) -> watch::Receiver<ArchiveStatus> {
        self.status.subscribe()
    }

    async fn load(&self) -> Result<State, BatchError> {
        let layout = layout(&self.table);
        let delta = DeltaTable::open_or_create(&self.root, &layout).await?;
        let mut archived = delta.note::<Archived>().await?.map(|(_, archived)| archived).unwrap_or_default();
        for (partition, range) in archived.coverage.iter() {
            let committed = delta.transaction(&app_id(&self.table, partition)).await?;
            if committed != Some(range.end as i64) {
                let why = format!(
                    "its table says that partition {partition} ends at {}, but the transaction says {committed:?}",
                    range.end
                );
                return Err(BatchError::Stopped { topic: self.table.topic.clone(), why });
            }
        }
        match archived.editions.newest() {
            Some(newest) if newest.reads_as(&self.table) => {}
            Some(_) => {
                let why = format!(
                    "another process has started with another definition of table `{}`: start this one again with the project as it is",
                    self.table.name
                );
                return Err(BatchError::Stopped { topic: self.table.topic.clone(), why });
            }
            None if archived.coverage.is_empty() => {
                let declared = archived.editions.declared(&self.table, &Positions::new(), &delta.layout()?)?;
                archived.editions = declared.unwrap_or_default();
            }
            None => {
                archived.editions = declare(&self.root, &self.table).await?;
                return Box::pin(self.load()).await;
            }
        }
        let shape = Arc::new(Shape::of(&self.table, &archived.editions, &delta.layout()?));
        Ok(State { delta, shape, archived, reader: None })
    }

    /// A commit that says that the table holds this.
    fn change(&self, archived: &Archived) -> Result<Change, BatchError> {
        change(&self.root, &self.table, archived)
    }

    /// Archives what waits, up to the target, in one commit; returns how many offsets that was.
    pub async fn step(&self) -> Result<u64, BatchError> {
        let mut slot = self.state.lock().await;
        self.step_locked(&mut slot, Duration::ZERO).await
    }

    /// Archives until the table covers these ends, and returns it as it is then.
    pub async fn archive_to(&self, ends: &Positions) -> Result<ArchiveSnapshot, BatchError> {
        let mut slot = self.state.lock().await;
        let mut patience = 10;
        loop {
            let mut state = match slot.take() {
                Some(state) => state,
                None => self.load().await?,
            };
            if state.delta.is_superseded().await? {
                state = self.load().await?;
            }
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
            if patience == 0 {
                return Err(BatchError::Stalled { topic: self.table.topic.clone(), partition, end, reached });
            }
            let progress = match self.step_locked(&mut slot, Duration::from_secs(1)).await {
                // Another process archives too, and was faster: see how far it has come.
                Err(BatchError::Table(TableError::Superseded { .. })) => continue,
                progress => progress?,
            };
            patience = if progress == 0 { patience - 1 } else { 10 };
        }
    }

    /// The ends of the topic's partitions now.
    pub async fn log_ends(&self) -> Result<Positions, BatchError> {
        let bounds = self.bounds().await?;
        Ok(bounds.into_iter().map(|(partition, range)| (partition, range.end)).collect())
    }

    /// What the topic's partitions hold. The log may be far away, so it isn't asked on the reactor.
    async fn bounds(&self) -> Result<BTreeMap<Partition, std::ops::Range<Offset>>, BatchError> {
        let (log, topic) = (self.log.clone(), self.table.topic.clone());
        blocking("asking the log what it holds", move || Ok(log.bounds(&topic)?)).await
    }

    async fn step_locked(&self, slot: &mut Option<State>, wait: Duration) -> Result<u64, BatchError> {
        if let Some(why) = self.status.borrow().stopped.clone() {
            return Err(BatchError::Stopped { topic: self.table.topic.clone(), why });
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
            Err(BatchError::Log(error @ LogError::OutOfRange { .. })) => {
                let why = error.to_string();
                tracing::error!(topic = self.table.topic, %error, "events are lost: archiving stops");
                self.status.send_modify(|status| {
                    (status.stopped, status.lost) = (Some(why.clone()), error.lost());
                });
                Err(BatchError::Stopped { topic: self.table.topic.clone(), why })
            }
            Err(error) => Err(error),
        }
    }

    async fn advance(&self, mut state: State, wait: Duration) -> Result<(State, u64), BatchError> {
        let positions = self.positions(&state.archived).await?;
        let reader = state.reader.take().filter(|(_, at)| *at == positions).map(|(reader, _)| reader);
        let (table, before, rejects) = (self.table.clone(), state.archived.clone(), self.rejects.clone());
        let (rows, bytes) = (self.settings.target_rows, self.settings.target_bytes);
        let (log, shape) = (self.log.clone(), state.shape.clone());
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
        let bounds = self.bounds().await?;
        let position = |(partition, held): (Partition, std::ops::Range<Offset>)| {
            (partition, archived.coverage.get(partition).map_or(held.start, |range| range.end))
        };
        Ok(bounds.into_iter().map(position).collect())
    }

    async fn commit(&self, state: &mut State, gathered: Gathered) -> Result<(), BatchError> {
        let Gathered { batches, archived, rejected, rows } = gathered;
        if !rejected.is_empty() {
            let (rejects, topic) = (self.rejects.clone(), self.table.topic.clone());
            let recorded = move || rejects.record(&rejected).map_err(|source| BatchError::Rejects { topic, source });
            blocking("recording rejects", recorded).await?;
        }
        let (root, shape, now) = (self.root.clone(), state.shape.clone(), self.clock.now());
        let each = || {
            fail_point!("archive::file_written", |_| Err(BatchError::Failpoint("archive::file_written")));
            Ok(())
        };
        let add = blocking("writing files", move || file::write_days(&root, &shape, &batches, now, each)).await?;
        fail_point!("archive::before_commit", |_| Err(BatchError::Failpoint("archive::before_commit")));
        state.delta.commit(Change { add, ..self.change(&archived)? }).await?;
        fail_point!("archive::after_commit", |_| Err(BatchError::Failpoint("archive::after_commit")));
        state.archived = archived;
        self.status.send_modify(|status| {
            status.archived = state.archived.clone();
            status.rows += rows as u64;
        });
        if let Some(retention) = self.settings.retention {
            let (log, topic, settled) = (self.log.clone(), self.table.topic.clone(), self.settled(&state.archived));
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
            if self.status.borrow().stopped.is_some() {
                continue;
            }
            let due = since.elapsed() >= self.settings.interval;
            match waiting {
                Ok(waiting) if waiting >= self.settings.target_rows as u64 || (due && waiting > 0) => {
                    since = tokio::time::Instant::now();
                    if let Err(error) = self.step().await
                        && !matches!(error, BatchError::Table(TableError::Superseded { .. }))
                    {
                        tracing::warn!(topic = self.table.topic, error = error.chain(), "archiving failed, will go on");
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(topic = self.table.topic, error = error.chain(), "the log can't be read"),
            }
            if tended.elapsed() >= self.settings.interval * 6 {
                tended = tokio::time::Instant::now();
                if let Err(error) = self.tend().await {
                    tracing::warn!(topic = self.table.topic, error = error.chain(), "tidying the archive failed");
                }
            }
        }
    }
}

fn app_id(table: &Table, partition: Partition) -> String {
    format!("anabranch.archive.{}.{partition}", table.topic)
}

/// A commit that says that a table's archive holds this.
fn change(root: &Path, table: &Table, archived: &Archived) -> Result<Change, BatchError> {
    let ends = archived.coverage.iter().map(|(partition, range)| (app_id(table, partition), range.end as i64));
    let note = serde_json::to_value(archived).map_err(|source| TableError::Note {
        table: root.display().to_string(),
        version: 0,
        source,
    })?;
    Ok(Change { transactions: ends.collect(), note, ..Default::default() })
}

fn gather(
    mut reader: Box<dyn LogReader>,
    (table, shape): (&Arc<Table>, &Shape),
    rejects: &RejectLog,
    mut archived: Archived,
    (target_rows, target_bytes): (usize, usize),
    mut wait: Duration,
) -> Result<(Box<dyn LogReader>, Gathered), BatchError> {
    reader.bring(table.extras());
    let mut decoder = Decoder::new(table.clone());
    let (mut batches, mut rejected) = (Vec::new(), Vec::new());
    let (mut rows, mut records, mut bytes) = (0, 0, 0);
    while records < target_rows && bytes < target_bytes {
        let limit =
            ReadLimit { records: (target_rows - records).min(100_000), bytes: (target_bytes - bytes).min(32 << 20) };
        let Some(batch) = reader.poll(limit, wait)? else { break };
        wait = Duration::ZERO;
        let mut decoded = decoder.decode_batch(&batch);
        let Batch { partition, coverage, offsets, log_times, payloads, .. } = batch;
        archived
            .coverage
            .try_apply(partition, coverage)
            .map_err(|source| BatchError::Position { topic: table.topic.clone(), source })?;
        records += payloads.len();
        bytes += payloads.bytes().len();
        rejected.extend(std::mem::take(&mut decoded.rejects).into_iter().map(|reject| {
            let index = reject.index as usize;
            let rejected = rejects.rejected(&table.topic, reject.reason, payloads.get(index));
            Rejected { partition: Some(partition), offset: Some(offsets[index]), ..rejected }
        }));
        if let Some(&newest) = decoded.event_times().iter().max() {
            let time = archived.event_times.entry(partition).or_insert(newest);
            *time = newest.max(*time);
            rows += decoded.kept.len();
            batches.push(file::with_origin(
                &shape.schema,
                &decoded.batch,
                &decoded.kept,
                partition,
                &offsets,
                &log_times,
            ));
        }
    }
    Ok((reader, Gathered { batches, archived, rejected, rows }))
}
