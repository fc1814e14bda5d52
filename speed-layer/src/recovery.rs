//! Where the pipeline of a table begins, or of tables that are read together.
//!
//! | there is …                                                        | a view's state begins …                      |
//! |-------------------------------------------------------------------|----------------------------------------------|
//! | a checkpoint with the same definition, on a base that still exists | as the checkpoint says                       |
//! | none, or another definition; a batch version of this definition   | at the version's frontier                    |
//! | none of both                                                      | at offset 0                                  |
//! | a checkpoint that was folded by other editions of a table          | as if there were none                         |
//! | one of a join, when the tables had another number of partitions    | as if there were none                         |
//! | a batch version beyond all that the checkpoint had read           | at the version's frontier                    |
//! | a checkpoint in which the view had stopped                         | as the checkpoint says, and it catches up; of a join, as if there were none |
//! | a batch version from before the archive was rebuilt                | stopped, until there is one from since       |
//! | a beginning that the log no longer holds                           | stopped, until a version covers what is gone |
//!
//! What the log no longer holds is not made up for: the view stops and names the range, and others go on. A version brings
//! it from the archive. Checkpoints that can't be read now are waited for: without them state would be lost that the log
//! may no longer hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::operator::Part;
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::lineage::{Mark, Marks};
use anabranch_log::position::{Offset, Positions, TopicPartition, named, of_topic};
use anabranch_log::{Log, LogError};
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoints, Image, ViewImage};
use crate::error::{SpeedError, Stop, reason};
use crate::isolate::CatchUp;
use crate::late::LateWriter;
use crate::own::Own;
use crate::refold::Replay;
use crate::state::{ViewState, with};
use crate::wait::wait;
use crate::watermark::Tracker;

/// How long after a failure it is tried again to find out what there is.
const PAUSE: Duration = Duration::from_secs(1);

/// What each partition of the log holds.
pub(crate) type Bounds = BTreeMap<TopicPartition, Range<Offset>>;

/// Where a pipeline finds out what there is to begin with.
pub(crate) struct Origin {
    pub log: Arc<dyn Log>,
    pub tables: Vec<Arc<Table>>,
    /// What the pipeline has of the topics; none if all.
    pub own: Option<Own>,
    pub checkpoints: Option<Checkpoints>,
    /// What the pipeline's checkpoints are stored under.
    pub name: String,
    pub shutdown: CancellationToken,
}

impl Origin {
    /// The newest checkpoint, and what the log holds. A storage or a log that can't be reached is waited for, and `tell`
    /// is told why. None at a shutdown. A checkpoint, or a version of a view, that is of another log is an error.
    pub fn find(&self, views: &[Kept], versions: &Bases, tell: impl Fn(String)) -> Result<Option<Found>, SpeedError> {
        loop {
            match self.look(views, versions) {
                Err(error) if error.may_pass() => {
                    let reason = reason(&error);
                    tracing::warn!(
                        table = self.name,
                        reason,
                        "what there is to begin with can't be read; trying again"
                    );
                    tell(format!("it waits for what it begins with: {reason}"));
                }
                found => return found,
            }
            wait(&self.shutdown, PAUSE);
        }
    }

    fn look(&self, views: &[Kept], versions: &Bases) -> Result<Option<Found>, SpeedError> {
        let mut image = None;
        if let Some(checkpoints) = &self.checkpoints {
            let topics: Vec<&str> = self.tables.iter().map(|table| table.topic.as_str()).collect();
            let load = self.shutdown.run_until_cancelled(checkpoints.load((&self.name, &topics), views));
            let Some(loaded) = checkpoints.block_on(load) else { return Ok(None) };
            image = loaded?;
        }
        let (mut bounds, mut log) = (Bounds::new(), Marks::new());
        for table in &self.tables {
            let topic = &table.topic;
            // After the checkpoint: so the log reaches as far as that does.
            let failed = |source| SpeedError::Log { table: table.name.clone(), source };
            let mut held = self.log.bounds(topic).map_err(failed)?;
            held.retain(|&partition, _| self.own.as_ref().is_none_or(|own| own.has(topic, partition)));
            bounds.extend(named(topic, held));
            let verify = |carrier: &str, mark: Option<&Mark>, reached: &Positions<TopicPartition>| {
                self.log.verify(topic, carrier, mark, &of_topic(topic, reached)).map_err(failed)
            };
            let mut newest = self.log.lineage(topic).map_err(failed)?.newest().cloned();
            if let Some(image) = &image {
                let carrier = "a checkpoint of its views";
                newest = verify(carrier, image.log.get(topic), &image.positions)?;
                self.log.verify_tails(topic, carrier, &of_topic(topic, &image.tails)).map_err(failed)?;
            }
            for view in views {
                let Some(version) = versions.fitting(view).or_else(|| versions.outdated(view)) else { continue };
                let Published { version, log: marks, coverage, .. } = &version.published;
                let carrier = format!("version {version} of view `{}`", view.id.name);
                newest = verify(&carrier, marks.get(topic), &coverage.ends())?;
            }
            log.extend(newest.map(|mark| (topic.clone(), mark)));
        }
        Ok(Some(Found { image, bounds, log }))
    }
}

/// What there is to begin with.
pub(crate) struct Found {
    pub image: Option<Image>,
    pub bounds: Bounds,
    /// The marks of the logs.
    pub log: Marks,
}

/// What a pipeline begins with.
pub(crate) struct Start {
    pub tracker: Tracker,
    pub positions: Positions<TopicPartition>,
    pub states: Vec<ViewState>,
    /// Those of the views that catch up while the others go on, by their place among them.
    pub behind: BTreeMap<usize, CatchUp>,
}

/// The batch versions, as a pipeline sees them.
#[derive(Debug)]
pub(crate) struct Bases {
    pub versions: Versions,
    /// How often the archives had been rebuilt, in sum, by which the pipeline reads.
    pub rebuilds: u64,
    /// What the pipeline has of the topics; none if all.
    pub own: Option<Own>,
}

impl Bases {
    /// The version of a view that its definition is of, as far as it speaks of the pipeline's partitions.
    pub fn fitting(&self, view: &Kept) -> Option<Arc<Version>> {
        self.newest(view).filter(|version| version.published.rebuilds == self.rebuilds)
    }

    /// Such a version from before the archive was rebuilt, if there is none from since.
    pub fn outdated(&self, view: &Kept) -> Option<Arc<Version>> {
        self.newest(view).filter(|version| version.published.rebuilds != self.rebuilds)
    }

    /// The part of the tables that is the pipeline's; none if it has them all.
    pub fn part(&self) -> Option<Part> {
        self.own.as_ref().map(|own| own.part)
    }

    fn newest(&self, view: &Kept) -> Option<Arc<Version>> {
        let version = self.versions.newest(&view.id)?;
        let Version { root, published, is_stale, .. } = &*version;
        let Some(own) = &self.own else { return Some(version) };
        let is_own = |p: &TopicPartition| own.has(&p.topic, p.partition);
        let coverage =
            published.coverage.iter().filter(|(p, _)| is_own(p)).map(|(p, range)| (p.clone(), range.clone()));
        let times = published.event_times.iter().filter(|(p, _)| is_own(p)).map(|(p, &time)| (p.clone(), time));
        let published = Published {
            version: published.version,
            definition: published.definition.clone(),
            coverage: coverage.collect(),
            event_times: times.collect(),
            published: published.published,
            run: published.run.clone(),
            rebuilds: published.rebuilds,
            erased: published.erased.clone(),
            panes: Vec::new(),
            state: published.state.clone(),
            log: published.log.clone(),
        };
        Some(Arc::new(Version::new(root.clone(), published, *is_stale)))
    }
}

/// Finds out where to begin, and folds what views lack that begin before the others.
pub(crate) fn recover(
    views: &[Kept],
    versions: &Bases,
    image: Option<Image>,
    bounds: &Bounds,
    (replay, late): (&mut Replay, &mut LateWriter),
    chunk_records: u64,
    now: Micros,
) -> Start {
    let zero: Positions<_> = bounds.keys().map(|p| (p.clone(), 0)).collect();
    let end = |p: &TopicPartition| bounds.get(p).map_or(0, |range| range.end);
    // What was folded by other definitions isn't what would be folded now.
    let editions = replay.editions();
    let folds = |image: &Image| {
        let folds_as = |(topic, own)| image.editions.get(topic).is_some_and(|editions| editions.folds_as(own));
        editions.iter().all(folds_as)
    };
    // Other views may have had a topic read whole that is shared out now.
    let is_own = |image: &Image| image.positions.keys().all(|p| bounds.contains_key(p));
    let mut image = image.filter(|image| folds(image) && is_own(image));
    if let Some(image) = &mut image {
        // Among other numbers of partitions, keys had other places.
        let is_placed = image.parts == versions.part().map(|part| part.partitions);
        image.views.retain(|id, _| is_placed || views.iter().any(|view| view.id == *id && !view.rows.looks_across()));
    }
    let mut image = image.filter(|image| !image.views.is_empty());
    let mut tracker = image
        .as_ref()
        .map_or_else(|| Tracker::new(replay.delays(), bounds.keys().cloned(), now), |image| image.tracker.clone());
    let read = image.as_ref().map(|image| with(&zero, &image.positions));
    let (mut states, mut behind) = (Vec::new(), BTreeMap::new());
    for view in views {
        let version = versions.fitting(view);
        let is_outdated = version.is_none() && versions.outdated(view).is_some();
        let usable = |image: &ViewImage| {
            (version.is_some() || image.base.is_none())
                && !is_outdated
                && !version.as_ref().is_some_and(|version| is_beyond(version, image))
        };
        let held = image.as_mut().and_then(|image| image.views.remove(&view.id)).filter(usable);
        let restored = held.and_then(|image| restored(view, image, &tracker, &zero, versions.part(), now));
        let state = match (restored, &version) {
            _ if is_outdated => {
                let mut state = ViewState::new(view.clone(), None, &zero, versions.part(), now);
                let reason = "the table's archive was rebuilt, and no version is computed from it yet: `anabranch batch run` does so";
                state.stopped = Some(Stop::because(reason.to_owned()));
                state
            }
            (Some((state, own)), _) => {
                if let Some(mut own) = own {
                    if state.looks_across() {
                        own.resume(now, |p| state.next(p) < end(p));
                    }
                    behind.insert(states.len(), CatchUp::new(own));
                }
                state
            }
            (_, Some(version)) => {
                let number = version.published.version;
                tracing::warn!(view = view.id.name, version = number, "begins at the frontier of a batch version");
                let from = with(&zero, &version.published.coverage.ends());
                ViewState::standing_on(view.clone(), version, &from, versions.part(), now)
            }
            _ => {
                // A view that is new, or has changed, has nothing else to begin with.
                tracing::debug!(view = view.id.name, "begins at the start of the log");
                ViewState::new(view.clone(), None, &zero, versions.part(), now)
            }
        };
        states.push(state);
    }
    for state in states.iter_mut().filter(|state| state.stopped.is_none()) {
        if let Some(error) = lost(state, bounds) {
            state.stop(error.into());
        }
    }
    // Views that begin before the point at which the others go on catch up first. What had stopped may fail again, and doesn't
    // hold up the others; nor does what looks across records.
    if let Some(read) = &read {
        for (i, state) in states.iter_mut().enumerate() {
            let lacks = |p: &TopicPartition| read.get(p).is_some_and(|&end| state.next(p) < end);
            let is_there = state.mark.tracker.is_some() && !read.keys().any(lacks);
            if behind.contains_key(&i) || state.stopped.is_some() || is_there {
                continue;
            }
            let mut before = tracker.restarted();
            if state.looks_across() {
                // What it reads again isn't idle, however long ago it came.
                before.resume(now, lacks);
            }
            seed(&mut before, &state.open.coverage.ends(), views, versions);
            if state.looks_across() {
                state.set_mark(Arc::new(before.clone()));
                behind.insert(i, CatchUp::new(before));
            } else {
                state.attempt(|state| replay.rebuild(state, read, before, chunk_records, late));
            }
        }
    }
    let going = || states.iter().enumerate().filter(|(i, state)| state.stopped.is_none() && !behind.contains_key(i));
    let read = read.unwrap_or_else(|| frontiers(&zero, views, versions));
    let least =
        |p: &TopicPartition| going().map(|(_, state)| state.next(p)).min().or(read.get(p).copied()).unwrap_or(0);
    let positions: Positions<_> = bounds.iter().map(|(p, held)| (p.clone(), least(p).max(held.start))).collect();
    for partition in bounds.keys() {
        tracker.add(partition.clone(), now);
    }
    // First: what has unread records holds the watermark back.
    tracker.resume(now, |p| positions.get(p).copied().unwrap_or(0) < end(p));
    seed(&mut tracker, &positions, views, versions);
    Start { tracker, positions, states, behind }
}

/// A view's state as a checkpoint has it, and its own watermarks if it was behind; none if that can't be gone on from.
fn restored(
    view: &Kept,
    image: ViewImage,
    tracker: &Tracker,
    zero: &Positions<TopicPartition>,
    part: Option<Part>,
    now: Micros,
) -> Option<(ViewState, Option<Tracker>)> {
    let (own, coverage, base) = (image.tracker.clone(), image.coverage.clone(), image.base);
    let state = ViewState::restored(view.clone(), image, own.as_ref().unwrap_or(tracker), zero, part, now);
    if let Some(stop) = &state.stopped {
        let reason = &stop.reason;
        tracing::warn!(view = view.id.name, reason, "what a checkpoint has of the view can't be gone on from");
        return None;
    }
    tracing::info!(view = view.id.name, %coverage, base, "goes on from a checkpoint");
    Some((state, own))
}

/// What the log no longer holds of what a state wants next, if anything.
fn lost(state: &ViewState, bounds: &Bounds) -> Option<SpeedError> {
    let gone = bounds.iter().map(|(p, held)| (p, state.next(p), held)).find(|(_, wanted, held)| *wanted < held.start);
    gone.map(|(TopicPartition { topic, partition }, wanted, held)| SpeedError::Log {
        table: state.view.table_of_topic(topic).map_or_else(|| topic.to_string(), |table| table.name.clone()),
        source: LogError::OutOfRange { topic: topic.to_string(), partition: *partition, wanted, held: held.clone() },
    })
}

/// Where a pipeline begins none of whose views can: at the least frontier of their versions from before a rebuild. The versions to
/// come cover at least as much.
fn frontiers(zero: &Positions<TopicPartition>, views: &[Kept], versions: &Bases) -> Positions<TopicPartition> {
    let outdated: Vec<_> = views.iter().filter_map(|view| versions.outdated(view)).collect();
    let least =
        |p: &TopicPartition| outdated.iter().map(|version| version.published.coverage.next(p)).min().unwrap_or(0);
    zero.keys().map(|p| (p.clone(), least(p))).collect()
}

/// Takes up the newest event times below these positions from the versions whose frontiers lie there.
fn seed(tracker: &mut Tracker, positions: &Positions<TopicPartition>, views: &[Kept], versions: &Bases) {
    for version in views.iter().filter_map(|view| versions.fitting(view)) {
        for (partition, &newest) in &version.published.event_times {
            if version.published.coverage.next(partition) <= positions.get(partition).copied().unwrap_or(0) {
                tracker.seed(partition, newest);
            }
        }
    }
}

/// Whether a version covers all that a checkpoint had read, and more than its beginning: what it had stopped before, perhaps.
fn is_beyond(version: &Version, image: &ViewImage) -> bool {
    let frontier = &version.published.coverage;
    image.coverage.iter().all(|(p, range)| frontier.next(p) >= range.end)
        && image.coverage.iter().any(|(p, range)| frontier.next(p) > range.start)
}
