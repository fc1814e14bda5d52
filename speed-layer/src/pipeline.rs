//! One table's pipeline: a thread that reads and decodes, and one that folds, publishes and keeps checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anabranch_shared::clock::{Clock, Micros};
use anabranch_shared::position::{Coverage, Partition, Positions};
use anabranch_shared::schema::Table;
use anabranch_shared::snapshot::Snapshot;
use anabranch_shared::version::Version;
use anabranch_shared::view::View;
use tokio::sync::watch;

use crate::checkpoint::{Image, ViewImage};
use crate::error::{SpeedError, Stop, reason};
use crate::late::LateWriter;
use crate::memory::Share;
use crate::metrics::{Counters, add, add_time};
use crate::micro_batch::MicroBatch;
use crate::recovery::{self, Bases, Bounds, Origin, Start};
use crate::refold::{Place, Replay};
use crate::settings::{Settings, micros};
use crate::state::ViewState;
use crate::watermark::{self, Tracker};
use crate::writer::Writer;

/// A snapshot may take this share of the time: one part in so many.
const SNAPSHOT_SHARE: u32 = 5;

/// What the reader tells the folder.
pub(crate) enum Input {
    /// Records.
    Batch(MicroBatch),
    /// At that time, these partitions held nothing unread.
    CaughtUp(Vec<Partition>, Micros),
    /// These partitions hold records and deliver none; all others don't stall.
    Stalled(BTreeSet<Partition>),
    /// The reader can't go on.
    Failed(Stop),
}

/// What a pipeline is made of.
pub(crate) struct Parts {
    pub table: Arc<Table>,
    pub views: Vec<Arc<View>>,
    pub versions: Bases,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub replay: Replay,
    pub late: LateWriter,
    pub writer: Option<Writer>,
    pub counters: Arc<Counters>,
    pub senders: BTreeMap<String, watch::Sender<Arc<Snapshot>>>,
    pub memory: Share,
}

/// The folding side of a pipeline.
pub(crate) struct Pipeline {
    parts: Parts,
    tracker: Tracker,
    positions: Positions,
    stalled: BTreeSet<Partition>,
    states: Vec<ViewState>,
    /// Versions that wait, by view, until the state has read as far.
    waiting: BTreeMap<String, u64>,
    /// Versions seen, by view: a refold that failed isn't tried again with the same one.
    seen: BTreeMap<String, u64>,
    sequence: u64,
    changed: bool,
    published: Instant,
    cost: Duration,
    checkpointed: Micros,
    since_checkpoint: bool,
    /// When the log took the records that no snapshot has yet, and how many at each time.
    unshown: Vec<(Micros, u64)>,
}

/// Recovers, tells the reader where to begin, and folds until the reader ends. Whatever goes wrong ends up in the
/// views' snapshots.
pub(crate) fn run(parts: Parts, origin: &Origin, begin: &SyncSender<Positions>, inputs: &Receiver<Input>) {
    let (senders, counters) = (parts.senders.clone(), parts.counters.clone());
    let table = parts.table.name.clone();
    let tell = |stop: Stop, shown: bool| {
        *counters.stopped.lock() = Some(stop.clone());
        for sender in senders.values().filter(|_| shown) {
            let mut last = Snapshot::clone(&sender.borrow());
            last.sequence += 1;
            (last.stopped, last.lost) = (Some(stop.reason.clone()), stop.lost.clone());
            sender.send_replace(Arc::new(last));
        }
    };
    let done = catch_unwind(AssertUnwindSafe(|| {
        let found = origin.find(&parts.views, |why| {
            // Other processes keep what the partition's last owner has told, which is more than nothing.
            tell(Stop { reason: why, lost: Coverage::new() }, origin.only.is_none());
        });
        let Some((image, bounds)) = found? else { return Ok(()) };
        let mut pipeline = Pipeline::recover(parts, image, &bounds)?;
        *counters.stopped.lock() = None;
        // The reader may have ended before it began.
        begin.send(pipeline.positions.clone()).ok();
        pipeline.fold_all(inputs)
    }));
    let stopped = match done {
        Ok(Ok(())) => return,
        Ok(Err(stop)) => stop,
        Err(panic) => Stop::panicked(&*panic),
    };
    tracing::error!(table, reason = stopped.reason, "the source has stopped");
    tell(stopped, true);
}

impl Pipeline {
    fn recover(mut parts: Parts, image: Option<Image>, bounds: &Bounds) -> Result<Self, SpeedError> {
        let now = parts.clock.now();
        let Parts { views, versions, replay, settings, .. } = &mut parts;
        let records = settings.chunk_records;
        let Start { tracker, positions, states } =
            recovery::recover(views, versions, image, bounds, replay, records, now)?;
        // It may have been told what is waited for.
        let sequence = parts.senders.values().map(|sender| sender.borrow().sequence).max().unwrap_or(0);
        Ok(Self {
            parts,
            tracker,
            positions,
            stalled: BTreeSet::new(),
            states,
            waiting: BTreeMap::new(),
            seen: BTreeMap::new(),
            sequence,
            changed: true,
            published: Instant::now(),
            cost: Duration::ZERO,
            checkpointed: now,
            since_checkpoint: true,
            unshown: Vec::new(),
        })
    }

    fn fold_all(&mut self, inputs: &Receiver<Input>) -> Result<(), Stop> {
        self.adopt_versions()?;
        self.publish()?;
        loop {
            let stop = match inputs.recv_timeout(self.until_publishing()) {
                Ok(input) => self.take(input)?,
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(self.finish()?),
            };
            if let Some(stop) = stop {
                self.finish()?;
                return Err(stop);
            }
            self.keep_up()?;
        }
    }

    /// What else there is to do after an input.
    fn keep_up(&mut self) -> Result<(), SpeedError> {
        self.adopt_versions()?;
        let now = self.parts.clock.now();
        let before = now.saturating_sub(micros(self.parts.settings.chunk_interval));
        for state in &mut self.states {
            state.close_chunk(before, self.parts.settings.chunk_records, now)?;
        }
        if self.changed && self.until_publishing().is_zero() {
            self.publish()?;
        }
        let due = now.saturating_sub(self.checkpointed) >= micros(self.parts.settings.checkpoint_interval);
        if due && self.parts.writer.as_ref().is_some_and(Writer::is_free) && self.lacks_checkpoint() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Whether there is something that no checkpoint holds.
    fn lacks_checkpoint(&self) -> bool {
        self.since_checkpoint || self.parts.writer.as_ref().is_some_and(Writer::has_failed)
    }

    fn take(&mut self, input: Input) -> Result<Option<Stop>, SpeedError> {
        match input {
            Input::Failed(stop) => return Ok(Some(stop)),
            Input::CaughtUp(partitions, at) => {
                let shown = |tracker: &Tracker| (tracker.watermark(), tracker.progress(&self.stalled));
                let before = shown(&self.tracker);
                self.tracker.caught_up(&partitions, at, micros(self.parts.settings.idle_after));
                self.changed |= before != shown(&self.tracker);
            }
            Input::Stalled(partitions) => {
                self.stalled = partitions;
                self.changed = true;
            }
            Input::Batch(batch) => self.fold(&batch)?,
        }
        Ok(None)
    }

    fn fold(&mut self, batch: &MicroBatch) -> Result<(), SpeedError> {
        let begun = Instant::now();
        let met = self.tracker.begin(batch.partition, batch.at);
        let each = met.each(&batch.times, self.tracker.delay());
        let late = |states: &[ViewState]| states.iter().map(|state| state.late).sum::<u64>();
        let late_before = late(&self.states);
        for state in &mut self.states {
            let late = state.apply(batch, met, &each)?;
            self.parts.late.write(&state.view, batch, &late)?;
        }
        self.limit()?;
        fail::fail_point!("speed::after_fold");
        if let Some(newest) = batch.newest() {
            self.tracker.end(batch.partition, newest);
        }
        self.positions.insert(batch.partition, batch.coverage.end);
        self.unshown.extend_from_slice(&batch.taken);
        (self.changed, self.since_checkpoint) = (true, true);
        let counters = &self.parts.counters;
        add(&counters.events, batch.times.len() as u64);
        add(&counters.batches, 1);
        add(&counters.rejected, batch.rejected as u64);
        add(&counters.late, late(&self.states) - late_before);
        add_time(&counters.fold_micros, begun.elapsed());
        Ok(())
    }

    /// Keeps the process to its limit.
    fn limit(&mut self) -> Result<(), SpeedError> {
        while !self.parts.memory.take(self.states.iter().map(ViewState::bytes).sum()) && self.degrade()? {}
        Ok(())
    }

    /// The view that takes most gives way by one pane, or else the next. Whether that made any smaller.
    fn degrade(&mut self) -> Result<bool, SpeedError> {
        let mut states: Vec<&mut ViewState> = self.states.iter_mut().collect();
        states.sort_by_key(|state| std::cmp::Reverse(state.bytes()));
        for state in states {
            if state.degrade()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves views to the frontiers of versions that were published.
    fn adopt_versions(&mut self) -> Result<(), SpeedError> {
        for i in 0..self.states.len() {
            let view = self.states[i].view.clone();
            let Some(version) = self.parts.versions.fitting(&view) else { continue };
            let number = version.published.version;
            if self.states[i].base == Some(number) || self.seen.get(&view.name) == Some(&number) {
                continue;
            }
            let frontier = version.published.coverage.ends();
            let place = self.states[i].place(&frontier);
            if place == Place::Ahead {
                if self.waiting.insert(view.name.clone(), number) != Some(number) {
                    tracing::info!(
                        view = view.name,
                        version = number,
                        "a version is ahead; waiting to have read as far"
                    );
                }
                continue;
            }
            self.waiting.remove(&view.name);
            self.seen.insert(view.name.clone(), number);
            match place {
                Place::Start | Place::Ahead => self.states[i].base = Some(number),
                Place::Inside => {
                    let newest = &version.published.event_times;
                    if let Err(error) = self.states[i].advance(number, &frontier, newest, &mut self.parts.replay) {
                        let reason = reason(&error);
                        tracing::warn!(
                            view = view.name,
                            version = number,
                            reason,
                            "the state stays on its old version"
                        );
                        continue;
                    }
                }
                Place::Before => self.rebuild(i, &version)?,
            }
            fail::fail_point!("speed::after_drop");
            tracing::info!(view = view.name, version = number, %version.published.coverage, "stands on a version");
            (self.changed, self.since_checkpoint) = (true, true);
            // The serving layer changes over with this snapshot: not a moment to wait.
            self.publish()?;
        }
        Ok(())
    }

    fn rebuild(&mut self, i: usize, version: &Version) -> Result<(), SpeedError> {
        let (view, number) = (self.states[i].view.clone(), version.published.version);
        tracing::warn!(view = view.name, version = number, "a version begins before the state, which is folded anew");
        let now = self.parts.clock.now();
        let frontier = version.published.coverage.ends();
        let from = self.positions.keys().map(|&p| (p, frontier.get(&p).copied().unwrap_or(0))).collect();
        let mut state = ViewState::new(view, Some(number), &from, now);
        let mut tracker = self.tracker.restarted();
        for (&partition, &newest) in &version.published.event_times {
            tracker.seed(partition, newest);
        }
        let records = self.parts.settings.chunk_records;
        self.parts.replay.rebuild(&mut state, &self.positions, tracker, records)?;
        self.states[i] = state;
        Ok(())
    }

    /// How long until the next snapshot may be made.
    fn until_publishing(&self) -> Duration {
        let interval = self.parts.settings.snapshot_interval;
        if !self.changed {
            return interval;
        }
        interval.max(self.cost * SNAPSHOT_SHARE).saturating_sub(self.published.elapsed())
    }

    fn publish(&mut self) -> Result<(), SpeedError> {
        let begun = Instant::now();
        self.sequence += 1;
        let (watermark, partitions) = (self.tracker.watermark(), self.tracker.progress(&self.stalled));
        let mut rows = 0;
        for state in &mut self.states {
            let snapshot = Snapshot { partitions: partitions.clone(), ..state.snapshot(self.sequence, watermark)? };
            rows += state.rows() as u64;
            if let Some(sender) = self.parts.senders.get(&state.view.name) {
                sender.send_replace(Arc::new(snapshot));
            }
        }
        (self.changed, self.published, self.cost) = (false, Instant::now(), begun.elapsed());
        let (counters, now) = (&self.parts.counters, self.parts.clock.now());
        for (taken, records) in self.unshown.drain(..) {
            // Another machine's clock may be ahead.
            counters.freshness.observe(now.saturating_sub(taken).max(0) as f64 / 1e6, records);
        }
        add(&counters.snapshots, 1);
        add_time(&counters.snapshot_micros, self.cost);
        counters.state_rows.store(rows, Ordering::Relaxed);
        counters.state_bytes.store(self.parts.memory.used() as u64, Ordering::Relaxed);
        counters.watermark.store(watermark.unwrap_or(watermark::NONE), Ordering::Relaxed);
        fail::fail_point!("speed::after_publish");
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), SpeedError> {
        fail::fail_point!("speed::before_checkpoint");
        let mut views = BTreeMap::new();
        for state in &mut self.states {
            let image = ViewImage {
                definition: state.view.definition.clone(),
                base: state.base,
                late: state.late,
                coverage: state.coverage(),
                chunks: state.chunks()?,
            };
            views.insert(state.view.name.clone(), image);
        }
        let editions = self.parts.replay.editions().clone();
        let image = Image { tracker: self.tracker.clone(), positions: self.positions.clone(), editions, views };
        if let Some(writer) = &self.parts.writer {
            writer.write(image);
        }
        (self.checkpointed, self.since_checkpoint) = (self.parts.clock.now(), false);
        Ok(())
    }

    /// The last snapshot and the last checkpoint.
    fn finish(&mut self) -> Result<(), SpeedError> {
        self.publish()?;
        if self.lacks_checkpoint() {
            self.checkpoint()?;
        }
        if let Some(writer) = self.parts.writer.take() {
            writer.finish();
        }
        Ok(())
    }
}
