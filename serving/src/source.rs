//! What an answer is made of: which batch version, which chunks of the speed layer, and what neither covers.
//!
//! A snapshot says on which version it stands; its chunks begin at that version's frontier, so the two join exactly.
//! If that version isn't at hand (after a rollback, or a restart of one layer alone) the newest one is taken, chunks
//! that overlap it are left out, and the ranges that nothing covers then are named: an answer is never silently short,
//! and nothing is counted twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, Range};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use anabranch_engine::operator::either;
use anabranch_exchange::snapshot::{Chunk, Early, Snapshot, Snapshots};
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::lineage::Mark;
use anabranch_log::position::{Coverage, Offset, Positions, TopicPartition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, ViewId};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use polars::prelude::DataFrame;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::WatchStream;

/// Which layers an answer takes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Both, joined at the frontier.
    #[default]
    Merged,
    /// The newest version alone.
    Batch,
    /// The speed layer's chunks alone.
    Speed,
}

impl Mode {
    /// Its name in queries and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Batch => "batch",
            Self::Speed => "speed",
        }
    }
}

/// How many versions of a view are kept at hand: the newest, and the one that the speed layer may still stand on.
const VERSIONS_KEPT: usize = 2;

/// How many windows' partials of a version are kept in memory, and how large each may be.
const WINDOWS_KEPT: usize = 4;
const MAX_KEPT_BYTES: usize = 16 << 20;

/// A version at hand, with what was read of it last: while a window is open its answer is asked for with every change
/// of the speed layer, but its batch part stays the same.
#[derive(Debug)]
pub struct HeldVersion {
    version: Arc<Version>,
    /// The same without what rows make that wait; none if there are no such rows.
    settled: Option<Arc<HeldVersion>>,
    read: Mutex<VecDeque<(Micros, Micros, Vec<DataFrame>)>>,
}

impl HeldVersion {
    /// Holds a version.
    pub fn new(version: Arc<Version>) -> Self {
        let has_pending = version.published.panes.iter().any(|file| file.pending);
        let settled = has_pending.then(|| Arc::new(Self::new(Arc::new(version.settled()))));
        Self { version, settled, read: Mutex::default() }
    }

    /// What adds up with chunks that stand on it.
    fn settled(held: &Arc<Self>) -> Arc<Self> {
        held.settled.as_ref().unwrap_or(held).clone()
    }

    /// The partials of one window's panes, which start in `[from, to)`, and what is wrong with those that can't be read.
    fn window_partials(&self, view: &Kept, from: Micros, to: Micros) -> (Vec<DataFrame>, Option<String>) {
        let kept = self.read.lock().iter().find(|part| (part.0, part.1) == (from, to)).map(|part| part.2.clone());
        if let Some(partials) = kept {
            return (partials, None);
        }
        let (partials, damage) = self.version.whole_partials(view.aggregation(), from, to);
        if damage.is_none() && partials.iter().map(DataFrame::estimated_size).sum::<usize>() <= MAX_KEPT_BYTES {
            let mut read = self.read.lock();
            read.push_front((from, to, partials.clone()));
            read.truncate(WINDOWS_KEPT);
        }
        (partials, damage)
    }
}

impl Deref for HeldVersion {
    type Target = Version;

    fn deref(&self) -> &Version {
        &self.version
    }
}

/// What an answer depends on: while it is the same, so is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    snapshot: Option<u64>,
    version: Option<u64>,
    rejects: u64,
    log_end: u64,
}

/// What both layers say of a view at one instant.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The newest snapshot; none if no speed layer feeds this process.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The versions at hand, newest first.
    pub versions: Vec<Arc<HeldVersion>>,
    /// That the log is another one than that which they have read, if it says so itself.
    pub other_log: Option<String>,
    /// Why the versions can't be read, if they can't.
    pub unread: Option<String>,
}

impl Layers {
    /// Which log the offsets in a topic are of.
    fn log(&self, topic: &str) -> Option<&Mark> {
        let of_version = || self.versions.first().and_then(|version| version.published.log.get(topic));
        self.snapshot.as_ref().and_then(|snapshot| snapshot.log.get(topic)).or_else(of_version)
    }

    /// Which logs the offsets in a view's topics are of.
    pub fn logs(&self, view: &Kept) -> Vec<Mark> {
        let each: BTreeSet<&Mark> = view.tables().iter().filter_map(|table| self.log(&table.topic)).collect();
        each.into_iter().cloned().collect()
    }

    /// Changes whenever an answer made from these layers, the log's end and that many rejects may change.
    pub fn stamp(&self, log_end: &Positions<TopicPartition>, rejects: u64) -> Stamp {
        let version = self.versions.first().map(|version| version.published.version);
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.sequence);
        Stamp { snapshot, version, rejects, log_end: log_end.values().sum() }
    }

    /// Whether a live speed layer works on what the log still holds beyond its coverage.
    fn follow_the_log(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|s| s.stopped.is_none() && s.coverage.iter().next().is_some())
    }

    /// Whether an answer depends on where the log ends: where nobody works on what lies beyond the coverage, and where nothing
    /// is covered.
    pub fn need_log_end(&self) -> bool {
        let batch = self.versions.iter().map(|version| &version.published.coverage);
        let speed = self.snapshot.iter().map(|snapshot| &snapshot.coverage);
        !self.follow_the_log() || batch.chain(speed).all(Coverage::is_empty)
    }
}

/// Tells of each change of a layer.
pub type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// The snapshots and the versions of all views, the newest and the one before it.
#[derive(Debug, Default)]
pub struct LayerStore {
    snapshots: Snapshots,
    versions: Versions,
    kept: BTreeMap<ViewId, Mutex<VecDeque<Arc<HeldVersion>>>>,
}

impl LayerStore {
    /// Follows these snapshots and versions.
    pub fn new(snapshots: Snapshots, versions: Versions) -> Self {
        let kept = versions.0.keys().map(|view| (view.clone(), Mutex::default())).collect();
        Self { snapshots, versions, kept }
    }

    /// What the layers say of a view now. What was read before the archive was rebuilt can't be added to what was read since.
    pub fn get(&self, view: &Kept) -> Layers {
        // In this order: the version that a snapshot stands on was published before the snapshot was.
        let snapshot = self.snapshots.get(&view.id);
        let newest = self.versions.get(&view.id);
        let mut versions = Vec::new();
        if let Some(kept) = self.kept.get(&view.id) {
            let mut kept = kept.lock();
            if let Some(newest) = newest {
                if kept.front().is_none_or(|known| !Arc::ptr_eq(&known.version, &newest)) {
                    kept.retain(|known| known.published.version != newest.published.version);
                    kept.push_front(Arc::new(HeldVersion::new(newest)));
                    kept.truncate(VERSIONS_KEPT);
                }
                versions.extend(kept.iter().cloned());
            }
        }
        let of_versions = versions.first().map(|version: &Arc<HeldVersion>| version.published.rebuilds);
        let rebuilds = of_versions.max(snapshot.as_ref().map(|snapshot| snapshot.rebuilds));
        versions.retain(|version| Some(version.published.rebuilds) == rebuilds);
        // One that only says why there is nothing can stay.
        let goes_along = |snapshot: &Arc<Snapshot>| {
            Some(snapshot.rebuilds) == rebuilds || (snapshot.stopped.is_some() && snapshot.chunks.is_empty())
        };
        let unread = self.versions.trouble(&view.id.name).map(|why| format!("the batch versions can't be read: {why}"));
        Layers { snapshot: snapshot.filter(goes_along), versions, other_log: None, unread }
    }

    /// Says of which of these views, by its place, a layer has changed.
    pub fn changes(&self, views: &[Kept]) -> StreamMap<(usize, bool), Changes> {
        let mut changes = StreamMap::new();
        for (i, view) in views.iter().enumerate() {
            if let Some(snapshot) = self.snapshots.0.get(&view.id) {
                let stream: Changes = Box::pin(WatchStream::from_changes(snapshot.clone()).map(drop));
                changes.insert((i, false), stream);
            }
            if let Some(version) = self.versions.0.get(&view.id) {
                let stream: Changes = Box::pin(WatchStream::from_changes(version.clone()).map(drop));
                changes.insert((i, true), stream);
            }
        }
        changes
    }

    /// What tells of each change of a view's snapshot.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// What tells of each change of a view's version.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }
}

/// Why an answer lacks records that came.
const EARLY: &str = "records of the topic are further ahead of the clock than its table's `max_future` allows: whether they are \
                     events is decided as they are archived, and the next run has them if they are";

/// What one answer is made of.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Which layers were asked for.
    pub mode: Mode,
    /// The version that the batch part comes from.
    pub version: Option<Arc<HeldVersion>>,
    /// The chunks that the speed part comes from.
    pub chunks: Vec<Arc<Chunk>>,
    /// What those chunks cover; none if the speed layer has no part.
    pub speed: Option<Coverage<TopicPartition>>,
    /// What neither covers and the answer therefore lacks.
    pub missing: Coverage<TopicPartition>,
    /// Records that may be events to the archive, and are none to the speed layer.
    pub early: Early,
    /// Set once the answer is about times of which those may be.
    pub is_early: OnceLock<()>,
    /// Up to which watermark rows have settled, of a view whose rows are made of several records.
    pub settled: Option<Micros>,
    /// Between which times rows may be wrong or lacking, as records came too late to be joined: bounds aren't known there.
    pub unsure: Option<(Micros, Micros)>,
    /// The number of the snapshot that the speed part comes from, of such a view.
    pub sequence: Option<u64>,
    /// Whether it is made of no record, although the log may hold some: then it says nothing of those.
    pub is_void: bool,
    /// Whether the log is another one than that which the layers have read: what the answer lacks can't be named.
    pub other_log: bool,
    /// Why the speed layer goes on no further, if it has stopped; or why there is no batch part.
    pub stopped: Option<String>,
    /// What is wrong with a file of the version that was to be read, see [`Sources::partials`].
    pub damage: OnceLock<String>,
    /// No event with an earlier time is expected any more.
    pub watermark: Option<Micros>,
}

impl Sources {
    /// Chooses what a view's answer is made of. `log_end` matters only where [`Layers::need_log_end`] says so; unknown, it is
    /// empty.
    pub fn choose(view: &Kept, mode: Mode, layers: &Layers, log_end: &Positions<TopicPartition>) -> Self {
        let snapshot = layers.snapshot.as_deref();
        let other_log = snapshot.is_some_and(|snapshot| snapshot.other_log) || layers.other_log.is_some();
        let stopped = snapshot.and_then(|snapshot| snapshot.stopped.clone()).or_else(|| layers.other_log.clone());
        let newest = layers.versions.first();
        let version = match mode {
            Mode::Speed => None,
            Mode::Batch => newest.cloned(),
            Mode::Merged => base(layers).cloned(),
        };
        let mut sources = Self {
            mode,
            watermark: watermark(view, mode, layers),
            version,
            chunks: Vec::new(),
            speed: None,
            missing: Coverage::new(),
            early: Early::default(),
            is_early: OnceLock::new(),
            settled: None,
            unsure: None,
            sequence: None,
            is_void: false,
            other_log,
            stopped: stopped.filter(|_| mode != Mode::Batch || other_log).or_else(|| layers.unread.clone()),
            damage: OnceLock::new(),
        };
        if mode != Mode::Batch
            && let Some(snapshot) = snapshot
        {
            sources.take_chunks(view, snapshot);
        }
        if mode == Mode::Merged && !layers.follow_the_log() {
            sources.name_missing(log_end);
        }
        sources.chunks.iter().for_each(|chunk| sources.early.merge(&chunk.early));
        sources.unsure = sources.chunks.iter().fold(None, |unsure, chunk| either(unsure, chunk.unsure));
        sources.settled = sources.watermark.filter(|_| view.rows.looks_across());
        sources.sequence = snapshot.map(|snapshot| snapshot.sequence).filter(|_| view.rows.looks_across());
        if view.aggregation().window.is_none() {
            sources.about(Micros::MAX);
        }
        let is_log_empty = !log_end.is_empty() && log_end.values().all(|&end| end == 0);
        sources.is_void = !is_log_empty && !sources.coverages().any(|coverage| !coverage.is_empty());
        sources
    }

    fn take_chunks(&mut self, view: &Kept, snapshot: &Snapshot) {
        let looks_across = view.rows.looks_across();
        // Rows that wait go with those that settled behind the same version, and with no others.
        let is_of_base = self.version.as_ref().map(|version| version.published.version) == snapshot.base;
        // A version may know of partitions that nobody tells of yet.
        let is_told =
            |(p, range): (&TopicPartition, &Range<Offset>)| range.is_empty() || snapshot.coverage.get(p).is_some();
        let are_told = |version: &Arc<HeldVersion>| version.published.coverage.iter().all(is_told);
        let is_other = self.mode == Mode::Merged && looks_across && !(is_of_base && self.version.iter().all(are_told));
        if is_other && let Some(version) = &self.version {
            self.watermark = settled(view, &version.published);
        }
        // A state that was ever shown says what waits, if nothing does too.
        let says_what_waits = !is_other && !snapshot.chunks.is_empty();
        if says_what_waits && let Some(version) = &mut self.version {
            *version = HeldVersion::settled(version);
        }
        let batch = self.version.as_ref().map(|version| &version.published.coverage);
        let frontier = |p: &TopicPartition| batch.map_or(0, |coverage| coverage.next(p));
        let (used, left): (Vec<_>, Vec<_>) = snapshot.chunks.iter().cloned().partition(|chunk| {
            let joins = |p: &TopicPartition, range: &Range<Offset>| {
                range.is_empty() || batch.is_none() || range.start >= frontier(p)
            };
            !is_other && chunk.coverage.iter().all(|(p, range)| joins(p, range))
        });
        if left.is_empty() {
            self.speed = Some(snapshot.coverage.clone());
        } else {
            let mut covered = Coverage::new();
            for (p, range) in used.iter().flat_map(|chunk| chunk.coverage.iter()).filter(|(_, range)| !range.is_empty())
            {
                covered.extend(p.clone(), range.clone());
            }
            self.speed = Some(covered);
        }
        self.chunks = used;
        // Chunks that stand on a version lack its part where no version is at hand.
        if self.mode == Mode::Merged && (batch.is_some() || snapshot.base.is_some()) {
            let speed = self.speed.clone().unwrap_or_default();
            let holes = snapshot.coverage.iter().filter_map(|(p, range)| {
                let begins = speed.get(p).filter(|used| !used.is_empty()).map_or(range.end, |used| used.start);
                (frontier(p) < begins).then(|| (p.clone(), frontier(p)..begins))
            });
            self.missing = holes.collect();
        }
    }

    fn name_missing(&mut self, log_end: &Positions<TopicPartition>) {
        for (p, &end) in log_end {
            let begins = self.missing.get(p).map_or_else(|| self.covered_to(p), |hole| hole.start);
            if begins < end {
                self.missing.extend(p.clone(), begins..end);
            }
        }
    }

    /// Whether it lacks something that there is.
    pub fn is_incomplete(&self) -> bool {
        !self.missing.is_empty() || self.other_log || self.is_cut()
    }

    /// Whether it lacks something of the times that it is about, as far as these are known yet: see [`Sources::about`] and
    /// [`Sources::partials`].
    pub fn is_cut(&self) -> bool {
        self.damage.get().is_some() || self.is_early.get().is_some()
    }

    /// The answer is about times up to `end`: from then on these sources aren't whole if early records may be of those.
    pub fn about(&self, end: Micros) {
        if self.early.from.is_some_and(|from| from < end) {
            self.is_early.get_or_init(|| ());
        }
    }

    /// Whether rows with times in `[from, to)` may be wrong or lacking, and nobody knows by how much.
    pub fn is_unsure(&self, from: Micros, to: Micros) -> bool {
        self.unsure.is_some_and(|(first, last)| first < to && from <= last)
    }

    /// What the answer lacks.
    pub fn lacking(&self) -> Coverage<TopicPartition> {
        let mut lacking = self.missing.clone();
        if self.is_early.get().is_some() {
            self.early.offsets.iter().for_each(|(partition, range)| lacking.extend(partition.clone(), range.clone()));
        }
        lacking
    }

    /// Whether it has all that it is about.
    pub fn is_whole(&self) -> bool {
        !self.is_incomplete() && !self.is_void
    }

    /// Why it hasn't, as far as there is a reason.
    pub fn reason(&self) -> Option<String> {
        let damage = self.damage.get().map(String::as_str);
        let early = self.is_early.get().map(|()| EARLY);
        let reasons: Vec<&str> = self.stopped.as_deref().into_iter().chain(damage).chain(early).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// The batch part of the panes that start in `[from, to)`. If a file of it can't be read, the answer lacks it, and from then on
    /// these sources aren't whole.
    pub fn partials(&self, view: &Kept, from: Micros, to: Micros) -> Vec<DataFrame> {
        self.noting(self.version.as_ref().map(|version| version.whole_partials(view.aggregation(), from, to)))
    }

    /// The same of the panes of one window.
    pub fn window_partials(&self, view: &Kept, from: Micros, to: Micros) -> Vec<DataFrame> {
        self.noting(self.version.as_ref().map(|version| version.window_partials(view, from, to)))
    }

    fn noting(&self, read: Option<(Vec<DataFrame>, Option<String>)>) -> Vec<DataFrame> {
        let (partials, damage) = read.unwrap_or_default();
        if let Some(damage) = damage {
            self.damage.get_or_init(|| damage);
        }
        partials
    }

    fn coverages(&self) -> impl Iterator<Item = &Coverage<TopicPartition>> {
        let batch = self.version.as_ref().map(|version| &version.published.coverage);
        batch.into_iter().chain(&self.speed)
    }

    /// The first offset that neither part covers.
    pub fn covered_to(&self, partition: &TopicPartition) -> Offset {
        self.coverages().map(|coverage| coverage.next(partition)).max().unwrap_or(0)
    }

    /// How many records there are up to the log's end that neither part covers.
    pub fn lag(&self, log_end: &Positions<TopicPartition>) -> u64 {
        log_end.iter().map(|(partition, &end)| end.saturating_sub(self.covered_to(partition))).sum()
    }
}

/// The version that the snapshot stands on, or the newest if that one isn't at hand.
fn base(layers: &Layers) -> Option<&Arc<HeldVersion>> {
    let newest = layers.versions.first();
    let Some(snapshot) = &layers.snapshot else { return newest };
    match snapshot.base {
        Some(base) => layers.versions.iter().find(|version| version.published.version == base).or(newest),
        // Chunks that begin where the log did need no version; others do, and there may be one by now.
        None => newest.filter(|version| {
            let coverage = &version.published.coverage;
            coverage.iter().any(|(p, batch)| {
                !batch.is_empty() && snapshot.coverage.get(p).is_none_or(|speed| speed.start > batch.start)
            })
        }),
    }
}

fn watermark(view: &Kept, mode: Mode, layers: &Layers) -> Option<Micros> {
    let newest = || layers.versions.first().map(|version| &version.published);
    // What has settled in a version is a matter of its own watermark.
    if mode == Mode::Batch && view.rows.looks_across() {
        return settled(view, newest()?);
    }
    match &layers.snapshot {
        Some(snapshot) => snapshot.watermark,
        None if view.rows.looks_across() => settled(view, newest()?),
        None => newest()?.event_times.values().min().map(|time| time - view.table().watermark_delay),
    }
}

/// Up to which watermark a version has all rows that have settled.
fn settled(view: &Kept, published: &Published) -> Option<Micros> {
    Some(published.state.as_ref()?.watermark?.saturating_sub(view.delay()))
}
