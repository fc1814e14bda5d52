//! The pipeline of a table, or of tables that are read together: a thread that reads and decodes, and one that folds, publishes and
//! keeps checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::Snapshot;
use anabranch_exchange::version::Version;
use anabranch_log::clock::{Clock, has_passed};
use anabranch_log::lineage::{Marks, Tail};
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, ViewId};

use crate::checkpoint::Image;
use crate::display::Display;
use crate::error::{Stop, reason};
use crate::input::Input;
use crate::isolate::{CatchUp, Step};
use crate::late::LateWriter;
use crate::memory::Share;
use crate::metrics::{add, add_time};
use crate::micro_batch::MicroBatch;
use crate::reading::Readings;
use crate::recovery::{self, Bases, Found, Origin, Start};
use crate::refold::{Place, Replay};
use crate::settings::{Settings, micros};
use crate::state::ViewState;
use crate::watermark::{self, Tracker};
use crate::writer::Writer;

/// A snapshot may take this share of the time: one part in so many.
const SNAPSHOT_SHARE: u32 = 20;

/// How often versions and what time brings about are looked at if no records come.
const IDLE: Duration = Duration::from_millis(100);

/// How a pipeline has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was shut down.
    Shutdown,
    /// It can't go on, and has said why.
    Stopped,
    /// The table is read otherwise by now.
    Outdated,
}

/// What a pipeline is made of.
pub(crate) struct Parts {
    /// What is read, in words.
    pub name: String,
    pub views: Vec<Kept>,
    pub versions: Bases,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub replay: Replay,
    pub late: LateWriter,
    pub writer: Option<Writer>,
    pub display: Display,
    pub memory: Share,
    /// How records are read, by it and by now.
    pub readings: Readings,
}

/// The folding side of a pipeline.
pub(crate) struct Pipeline {
    parts: Parts,
    /// Which logs it reads, as it was when it began.
    log: Marks,
    /// The last records that it has read.
    tails: BTreeMap<TopicPartition, Tail>,
    tracker: Tracker,
    positions: Positions<TopicPartition>,
    stalled: BTreeSet<TopicPartition>,
    states: Vec<ViewState>,
    /// Those of them that catch up, by their place.
    behind: BTreeMap<usize, CatchUp>,
    /// Versions that wait, by view, until the state has read as far.
    waiting: BTreeMap<ViewId, u64>,
    /// Versions seen, by view: a refold that failed isn't tried again with the same one.
    seen: BTreeMap<ViewId, u64>,
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
pub(crate) fn run(
    parts: Parts,
    origin: &Origin,
    begin: &SyncSender<Positions<TopicPartition>>,
    inputs: &Receiver<Input>,
) -> End {
    let (display, table) = (parts.display.clone(), parts.name.clone());
    let done = catch_unwind(AssertUnwindSafe(|| {
        let found = origin.find(&parts.views, &parts.versions, |reason| {
            let stop = Stop::because(reason);
            // Other processes keep what the partition's last owner has told, which is more than nothing.
            if origin.own.is_some() { display.note(&stop) } else { display.stop(&stop) }
        });
        let Some(found) = found? else { return Ok(End::Shutdown) };
        let mut pipeline = Pipeline::recover(parts, found);
        *display.counters.stopped.lock() = None;
        // The reader may have ended before it began.
        begin.send(pipeline.positions.clone()).ok();
        pipeline.fold_all(inputs)
    }));
    let stopped = match done {
        Ok(Ok(end)) => return end,
        Ok(Err(stop)) => stop,
        Err(panic) => Stop::panicked(&*panic),
    };
    tracing::error!(table, reason = stopped.reason, "the source has stopped");
    display.stop(&stopped);
    End::Stopped
}

impl Pipeline {
    fn recover(mut parts: Parts, Found { image, bounds, log }: Found) -> Self {
        let now = parts.clock.now();
        let Parts { views, versions, replay, late, settings, .. } = &mut parts;
        let tails = image.as_ref().map(|image| image.tails.clone()).unwrap_or_default();
        let records = settings.chunk_records;
        let Start { tracker, positions, states, behind } =
            recovery::recover(views, versions, image, &bounds, (replay, late), records, now);
        // It may have been told what is waited for.
        let sequence = parts.display.senders.values().map(|sender| sender.borrow().sequence).max().unwrap_or(0);
        Self {
            parts,
            log,
            tails,
            tracker,
            positions,
            stalled: BTreeSet::new(),
            states,
            behind,
            waiting: BTreeMap::new(),
            seen: BTreeMap::new(),
            sequence,
            changed: true,
            published: Instant::now(),
            cost: Duration::ZERO,
            checkpointed: now,
            since_checkpoint: true,
            unshown: Vec::new(),
        }
    }

    fn fold_all(&mut self, inputs: &Receiver<Input>) -> Result<End, Stop> {
        self.adopt_versions();
        self.publish();
        while !self.parts.readings.are_outdated() {
            let stop = match inputs.recv_timeout(self.until_next()) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish();
                    return Ok(End::Shutdown);
                }
            };
            if let Some(stop) = stop {
                self.finish();
                return Err(stop);
            }
            self.keep_up();
        }
        self.parts.writer.take().into_iter().for_each(Writer::finish);
        Ok(End::Outdated)
    }

    /// What else there is to do after an input.
    fn keep_up(&mut self) {
        self.adopt_versions();
        self.catch_up();
        let (now, records) = (self.parts.clock.now(), self.parts.settings.chunk_records);
        let before = now.saturating_sub(micros(self.parts.settings.chunk_interval));
        for (i, state) in self.states.iter_mut().enumerate() {
            let tracker = self.behind.get(&i).map_or(&self.tracker, |behind| &behind.tracker);
            state.attempt(|state| state.close_chunk(before, records, now, tracker));
        }
        if self.changed && self.until_publishing().is_zero() {
            self.publish();
        }
        let due = has_passed(self.checkpointed, now, micros(self.parts.settings.checkpoint_interval));
        if due && self.parts.writer.as_ref().is_some_and(Writer::is_free) && self.lacks_checkpoint() {
            self.checkpoint();
        }
    }

    /// Has the views that are behind the others fold a micro-batch more each.
    fn catch_up(&mut self) {
        let Self { behind, states, positions, parts, changed, since_checkpoint, .. } = self;
        let records = parts.settings.chunk_records;
        behind.retain(|&i, one| {
            let state = &mut states[i];
            let step = state.attempt(|state| one.step(state, positions, &mut parts.replay, &mut parts.late, records));
            if step == Some(Step::Done) {
                tracing::info!(view = state.view.id.name, "has caught up with the table's other views");
            }
            (*changed, *since_checkpoint) = (true, true);
            step == Some(Step::Lacking)
        });
    }

    /// Whether there is something that no checkpoint holds.
    fn lacks_checkpoint(&self) -> bool {
        self.since_checkpoint || self.parts.writer.as_ref().is_some_and(Writer::has_failed)
    }

    fn take(&mut self, input: Input) -> Option<Stop> {
        match input {
            Input::Failed(stop) => return Some(stop),
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
            Input::Batch(batch) => self.fold(&batch),
        }
        self.settle();
        None
    }

    /// Folds the rows that settle as the watermark is.
    fn settle(&mut self) {
        let watermark = self.tracker.watermark();
        for (_, state) in self.states.iter_mut().enumerate().filter(|(i, _)| !self.behind.contains_key(i)) {
            self.changed |= state.attempt(|state| state.settle(watermark)).unwrap_or(false);
        }
    }

    fn fold(&mut self, batch: &MicroBatch) {
        let begun = Instant::now();
        let met = self.tracker.begin(&batch.partition, batch.at);
        let each = met.each(&batch.times, self.tracker.delay(&batch.partition));
        let (mut late, writer) = (0, &mut self.parts.late);
        for (_, state) in self.states.iter_mut().enumerate().filter(|(i, _)| !self.behind.contains_key(i)) {
            let before = state.late;
            state.attempt(|state| {
                let events = state.apply(batch, met, &each)?;
                writer.write(&state.view, batch, &events)
            });
            late += state.late.saturating_sub(before);
        }
        self.limit();
        fail::fail_point!("speed::after_fold");
        if let Some(newest) = batch.newest() {
            self.tracker.end(&batch.partition, newest);
        }
        self.positions.insert(batch.partition.clone(), batch.coverage.end);
        self.tails.extend(batch.tail.map(|tail| (batch.partition.clone(), tail)));
        self.unshown.extend_from_slice(&batch.taken);
        (self.changed, self.since_checkpoint) = (true, true);
        let counters = &self.parts.display.counters;
        add(&counters.events, batch.times.len() as u64);
        add(&counters.batches, 1);
        add(&counters.rejected, batch.rejected as u64);
        add(&counters.late, late);
        add_time(&counters.fold_micros, begun.elapsed());
    }

    /// Keeps the process to its limit.
    fn limit(&mut self) {
        while !self.parts.memory.take(self.states.iter().map(ViewState::bytes).sum()) && self.degrade() {}
    }

    /// The view that takes most gives way by one pane, or else the next. Whether that made any smaller.
    fn degrade(&mut self) -> bool {
        let mut states: Vec<&mut ViewState> = self.states.iter_mut().collect();
        states.sort_by_key(|state| std::cmp::Reverse(state.bytes()));
        states.into_iter().any(|state| {
            let before = state.bytes();
            // One that fails at it stops, and gives up its open chunk.
            state.attempt(|state| state.degrade(true)).unwrap_or_else(|| state.bytes() < before)
        })
    }

    /// Moves views to the frontiers of versions that were published.
    fn adopt_versions(&mut self) {
        for i in 0..self.states.len() {
            let view = self.states[i].view.clone();
            let Some(version) = self.parts.versions.fitting(&view) else { continue };
            let number = version.published.version;
            if self.states[i].base == Some(number) || self.seen.get(&view.id) == Some(&number) {
                continue;
            }
            let frontier = version.published.coverage.ends();
            let place = self.states[i].place(&frontier);
            // A view that has stopped, or is behind, goes on from a version that others have reached.
            let is_behind = self.states[i].stopped.is_some() || self.behind.contains_key(&i);
            let is_reached =
                frontier.iter().all(|(p, &offset)| self.positions.get(p).is_some_and(|&next| offset <= next));
            let goes_on = place == Place::Ahead && is_behind && is_reached;
            if place == Place::Ahead && !goes_on {
                if self.waiting.insert(view.id.clone(), number) != Some(number) {
                    tracing::info!(
                        view = view.id.name,
                        version = number,
                        "a version is ahead; waiting to have read as far"
                    );
                }
                continue;
            }
            self.waiting.remove(&view.id);
            self.seen.insert(view.id.clone(), number);
            match place {
                Place::Ahead => self.begin_anew(i, &version, &frontier),
                _ if self.states[i].looks_across() => self.rebuild(i, &version, &frontier),
                Place::Start => self.states[i].base = Some(number),
                Place::Inside => {
                    if !self.advance(i, &version, &frontier) {
                        continue;
                    }
                }
                Place::Before => {
                    tracing::warn!(
                        view = view.id.name,
                        version = number,
                        "a version begins before the state, which is folded anew"
                    );
                    self.rebuild(i, &version, &frontier);
                }
            }
            fail::fail_point!("speed::after_drop");
            tracing::info!(view = view.id.name, version = number, %version.published.coverage, "stands on a version");
            (self.changed, self.since_checkpoint) = (true, true);
            // The serving layer changes over with this snapshot: not a moment to wait.
            self.publish();
        }
    }

    /// Drops what a version covers of a view's state. Whether the state stands on the version now.
    fn advance(&mut self, i: usize, version: &Version, frontier: &Positions<TopicPartition>) -> bool {
        let (state, replay) = (&mut self.states[i], &mut self.parts.replay);
        let (number, newest) = (version.published.version, &version.published.event_times);
        let advanced = catch_unwind(AssertUnwindSafe(|| state.advance(number, frontier, newest, replay)));
        let stop = match advanced {
            Ok(Ok(())) => return true,
            Ok(Err(error)) if error.is_of_view() => Stop::of_view(&state.view.id.name, error),
            Ok(Err(error)) => {
                let reason = reason(&error);
                tracing::warn!(
                    view = state.view.id.name,
                    version = number,
                    reason,
                    "the state stays on its old version"
                );
                return false;
            }
            Err(panic) => Stop::panicked(&*panic),
        };
        if state.stopped.is_none() {
            state.stop(stop);
        }
        self.changed = true;
        false
    }

    /// A state that begins at the frontier of a version, and the watermarks there.
    fn standing_on(&self, i: usize, version: &Version, frontier: &Positions<TopicPartition>) -> (ViewState, Tracker) {
        let from: Positions<TopicPartition> =
            self.positions.keys().map(|p| (p.clone(), frontier.get(p).copied().unwrap_or(0))).collect();
        let (view, now) = (self.states[i].view.clone(), self.parts.clock.now());
        let mut tracker = self.tracker.restarted();
        if view.rows.looks_across() {
            // What it reads again isn't idle, however long ago it came.
            tracker.resume(now, |p| from.get(p) < self.positions.get(p));
        }
        for (partition, &newest) in &version.published.event_times {
            tracker.seed(partition, newest);
        }
        (ViewState::standing_on(view, version, &from, self.parts.versions.part(), now), tracker)
    }

    /// Has a view that had stopped go on from the frontier of a version.
    fn begin_anew(&mut self, i: usize, version: &Version, frontier: &Positions<TopicPartition>) {
        let (state, tracker) = self.standing_on(i, version, frontier);
        if let Some(stop) = &state.stopped {
            let (view, version) = (&state.view.id.name, version.published.version);
            tracing::error!(view, version, reason = stop.reason, "the state stays on its old version");
            return;
        }
        tracing::info!(view = state.view.id.name, version = state.base, "goes on from the frontier of a version");
        self.states[i] = state;
        self.behind.insert(i, CatchUp::new(tracker));
    }

    /// Folds a view's state anew from the frontier of a version. If that fails, the view stops as it was; if what the version's operators
    /// kept can't be read, it goes on as it was.
    fn rebuild(&mut self, i: usize, version: &Version, frontier: &Positions<TopicPartition>) {
        let (mut state, tracker) = self.standing_on(i, version, frontier);
        if let Some(stop) = &state.stopped {
            let (view, version) = (&state.view.id.name, version.published.version);
            tracing::error!(view, version, reason = stop.reason, "the state stays on its old version");
            return;
        }
        let Parts { replay, late, settings, .. } = &mut self.parts;
        let (positions, records) = (&self.positions, settings.chunk_records);
        if state.looks_across() {
            // The log alone may fail for now: the state that is there is as good as it was.
            let read = catch_unwind(AssertUnwindSafe(|| replay.rebuild(&mut state, positions, tracker, records, late)));
            match read {
                Ok(Err(error)) if !error.is_of_view() => {
                    let (view, version, reason) = (&state.view.id.name, version.published.version, reason(&error));
                    tracing::warn!(view, version, reason, "the state stays on its old version");
                    if error.may_pass() {
                        self.seen.remove(&state.view.id);
                    }
                    return;
                }
                Ok(Err(error)) => state.stop(Stop::of_view(&state.view.id.name.clone(), error)),
                Ok(Ok(())) => {}
                Err(panic) => state.stop(Stop::panicked(&*panic)),
            }
        } else {
            state.attempt(|state| replay.rebuild(state, positions, tracker, records, late));
        }
        match state.stopped {
            Some(stop) if self.states[i].stopped.is_none() => self.states[i].stop(stop),
            Some(_) => {}
            None => {
                self.states[i] = state;
                self.behind.remove(&i);
            }
        }
    }

    /// How long until there is something to do if nothing comes.
    fn until_next(&self) -> Duration {
        let is_busy = self.behind.values().any(|behind| behind.is_fed);
        match (is_busy, self.changed) {
            (true, _) => Duration::ZERO,
            (false, true) => self.until_publishing(),
            (false, false) => IDLE,
        }
    }

    /// How long until the next snapshot may be made.
    fn until_publishing(&self) -> Duration {
        let interval = self.parts.settings.snapshot_interval;
        interval.max(self.cost * SNAPSHOT_SHARE).saturating_sub(self.published.elapsed())
    }

    fn publish(&mut self) {
        let begun = Instant::now();
        self.sequence += 1;
        let (watermark, partitions) = (self.tracker.watermark(), self.tracker.progress(&self.stalled));
        let (mut rows, mut stopped, mut shown) = (0, BTreeMap::new(), Vec::new());
        let tracker = Arc::new(self.tracker.clone());
        for (i, state) in self.states.iter_mut().enumerate() {
            let own = self.behind.get(&i).map(|behind| &behind.tracker);
            let snapshot = Snapshot {
                sequence: self.sequence,
                rebuilds: self.parts.readings.rebuilds(),
                log: self.log.clone(),
                parts: self.parts.versions.part().map(|part| part.partitions),
                partitions: partitions.clone(),
                ..state.show(&tracker, own)
            };
            rows += state.rows() as u64;
            stopped.insert(state.view.id.name.clone(), snapshot.stopped.clone());
            shown.extend(self.parts.display.senders.get(&state.view.id).map(|sender| (sender, Arc::new(snapshot))));
        }
        *self.parts.display.counters.views.lock() = stopped;
        for (sender, snapshot) in shown {
            sender.send_replace(snapshot);
        }
        (self.changed, self.published, self.cost) = (false, Instant::now(), begun.elapsed());
        let (counters, now) = (&self.parts.display.counters, self.parts.clock.now());
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
    }

    fn checkpoint(&mut self) {
        fail::fail_point!("speed::before_checkpoint");
        let (mut views, tracker) = (BTreeMap::new(), Arc::new(self.tracker.clone()));
        for (i, state) in self.states.iter_mut().enumerate() {
            let image = state.image(&tracker, self.behind.get(&i).map(|behind| &behind.tracker));
            views.extend(image.map(|image| (state.view.id.clone(), image)));
        }
        let image = Image {
            tracker: self.tracker.clone(),
            positions: self.positions.clone(),
            editions: self.parts.replay.editions(),
            parts: self.parts.versions.part().map(|part| part.partitions),
            views,
            log: self.log.clone(),
            tails: self.tails.clone(),
        };
        if let Some(writer) = &self.parts.writer {
            writer.write(image);
        }
        (self.checkpointed, self.since_checkpoint) = (self.parts.clock.now(), false);
    }

    /// The last snapshot and the last checkpoint.
    fn finish(&mut self) {
        self.publish();
        if self.lacks_checkpoint() {
            self.checkpoint();
        }
        if let Some(writer) = self.parts.writer.take() {
            writer.finish();
        }
    }
}
