//! Snapshots of views from the processes that each have some partitions of their tables: read from the log, where they
//! are published as [`anabranch_exchange::snapshot::wire`] says, and laid side by side.
//!
//! Partitions go over to a new batch version one after the other. An answer needs all of them on one version, so of each
//! partition the newest snapshot on each of the last two versions is held, and the newest version that all have in common
//! is taken. Until the last partition has gone over, answers stay where they were.
//!
//! A changelog that is looked up is read whole by each process. What each says of rows that wait then depends on how far it has read that,
//! so while they differ these rows are unsure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::{Chunk, Snapshot, Snapshots, wire};
use anabranch_log::lineage::Lineage;
use anabranch_log::position::{Coverage, Offset, Partition, Positions, TopicPartition};
use anabranch_log::{Log, LogError, LogReader, ReadLimit};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Catalog, Kept, Unit, ViewId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LIMIT: ReadLimit = ReadLimit { records: 1_000, bytes: 64 << 20 };

/// How long one read waits.
const WAIT: Duration = Duration::from_millis(100);

/// How often new partitions are looked for, and a log that has failed is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// After how long reading begins anew once it has failed.
const SOON: Duration = Duration::from_secs(1);

/// How often the log is asked whether it still is the one that the snapshots are of.
const CHECK: Duration = Duration::from_secs(1);

/// Whoever has a partition tells of it each second. After so long its owner is thought lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Follows the snapshots of all views, until `shutdown`.
pub fn collect(
    log: &Arc<dyn Log>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
) -> std::io::Result<(Snapshots, Vec<JoinHandle<()>>)> {
    let mut snapshots = Snapshots::default();
    let mut threads = Vec::new();
    for unit in catalog.units() {
        let mut senders = BTreeMap::new();
        for view in &unit.views {
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            snapshots.0.insert(view.id.clone(), receiver);
            senders.insert(view.id.clone(), sender);
        }
        let name = format!("collect-{}", unit.name());
        let collector = Collector {
            log: log.clone(),
            shared: unit.shared_topics(),
            unit,
            senders,
            partitions: BTreeMap::new(),
            sequence: 0,
            watermarks: BTreeMap::new(),
            checked: None,
            other_log: None,
        };
        let shutdown = shutdown.clone();
        threads.push(std::thread::Builder::new().name(name).spawn(move || collector.run(&shutdown))?);
    }
    Ok((snapshots, threads))
}

struct Collector {
    log: Arc<dyn Log>,
    unit: Unit,
    /// The topics whose partitions are shared out.
    shared: BTreeSet<String>,
    senders: BTreeMap<ViewId, watch::Sender<Arc<Snapshot>>>,
    partitions: BTreeMap<Partition, Held>,
    sequence: u64,
    /// The last watermark of each view, below which none is.
    watermarks: BTreeMap<ViewId, Micros>,
    /// When the log was last asked whether it is the one that the snapshots are of.
    checked: Option<Instant>,
    /// Why it isn't.
    other_log: Option<String>,
}

/// What is known of one partition.
#[derive(Default)]
pub(crate) struct Held {
    decoder: wire::Decoder,
    /// Each view's newest snapshot on each of the last two versions, the newest first, and the epoch of who told it.
    views: BTreeMap<ViewId, (u64, VecDeque<Arc<Snapshot>>)>,
    heard: Option<Instant>,
}

impl Held {
    /// Takes in a record of the partition; whether that tells anything new.
    pub fn take(&mut self, offset: Offset, record: &[u8], views: &[Kept]) -> bool {
        self.decoder.take(offset, record, views).is_some_and(|told| self.hold(told))
    }

    /// Takes in what a partition's owner says; whether that is anything new.
    pub fn hold(&mut self, told: wire::Views) -> bool {
        let (mut news, epoch) = (self.is_lost(), self.decoder.epoch());
        for (view, snapshot) in told {
            let (teller, held) = self.views.entry(view).or_default();
            // A new owner has to come as far as the one before it had.
            if *teller != epoch && held.front().is_some_and(|known| is_further(known, &snapshot)) {
                continue;
            }
            *teller = epoch;
            news |= held.front().is_none_or(|known| !says_the_same(known, &snapshot));
            held.retain(|known| place(known) != place(&snapshot));
            held.push_front(snapshot);
            held.truncate(2);
        }
        self.heard = Some(Instant::now());
        news
    }

    fn is_lost(&self) -> bool {
        self.heard.is_none_or(|at| at.elapsed() >= PATIENCE)
    }
}

/// What a snapshot can only be put together by: how its events were read, and the version that it stands on.
fn place(snapshot: &Snapshot) -> (u64, Option<u64>) {
    (snapshot.rebuilds, snapshot.base)
}

/// Whether a snapshot tells more of what another one tells of.
fn is_further(one: &Snapshot, other: &Snapshot) -> bool {
    let is_of_same = (place(one), one.parts, &one.log) == (place(other), other.parts, &other.log);
    let reaches = |p: &TopicPartition, range: &Range<Offset>| other.coverage.next(p) <= range.end;
    is_of_same
        && one.stopped.is_none()
        && other.stopped.is_none()
        && one.coverage.iter().all(|(p, range)| reaches(p, range))
        && (one.coverage != other.coverage || other.watermark < one.watermark)
}

fn says_the_same(one: &Snapshot, other: &Snapshot) -> bool {
    (place(one), one.watermark, one.late) == (place(other), other.watermark, other.late)
        && (&one.partitions, &one.coverage, &one.stopped) == (&other.partitions, &other.coverage, &other.stopped)
}

impl Collector {
    fn run(mut self, shutdown: &CancellationToken) {
        let topic = wire::topic(&self.unit.name());
        let mut reader: Option<Box<dyn LogReader>> = None;
        let (mut look_at, mut is_failing) = (Instant::now(), false);
        let (mut lost, mut news) = (Vec::new(), false);
        while !shutdown.is_cancelled() {
            // Also while the log can't be read: then everybody is lost before long.
            let now_lost = self.lost();
            if self.check() || now_lost != lost {
                lost = now_lost;
                self.show();
            }
            if look_at <= Instant::now() {
                look_at = Instant::now() + LOOK;
                let opened = self.open(&topic, &mut reader);
                match &opened {
                    Ok(()) if is_failing => tracing::info!(topic, "the speed layer's snapshots are read again"),
                    Err(error) if !is_failing => {
                        tracing::warn!(topic, %error, "the speed layer's snapshots can't be read; trying until they can");
                    }
                    _ => {}
                }
                is_failing = opened.is_err();
            }
            let Some(open) = &mut reader else {
                std::thread::sleep(WAIT);
                continue;
            };
            match open.poll(LIMIT, WAIT) {
                Ok(Some(batch)) => {
                    let held = self.partitions.entry(batch.partition).or_default();
                    for (&offset, record) in batch.offsets.iter().zip(batch.payloads.iter()) {
                        news |= held.take(offset, record, &self.unit.views);
                    }
                    // While more is there, what was read is old.
                    if news && batch.coverage.end >= batch.log_end {
                        news = false;
                        self.show();
                    }
                }
                Ok(None) if news => {
                    news = false;
                    self.show();
                }
                Ok(None) => {}
                Err(LogError::OutOfRange { .. }) => {
                    // What is deleted was replaced by what is there.
                    (reader, look_at) = (None, Instant::now());
                }
                Err(error) => {
                    tracing::info!(topic, %error, "reading the speed layer's snapshots begins anew");
                    (reader, look_at) = (None, look_at.min(Instant::now() + SOON));
                }
            }
        }
    }

    /// Has the reader read all partitions there are, from where it was. If they can't be asked for, it goes on with those
    /// that it has.
    fn open(&mut self, topic: &str, reader: &mut Option<Box<dyn LogReader>>) -> Result<(), LogError> {
        let bounds = self.log.bounds(topic)?;
        if reader.as_ref().is_some_and(|reader| reader.positions().len() == bounds.len()) {
            return Ok(());
        }
        let starts: Positions = bounds.iter().map(|(&partition, held)| (partition, held.start)).collect();
        for &partition in bounds.keys() {
            self.partitions.entry(partition).or_default();
        }
        *reader = Some(self.log.reader(topic, &starts)?);
        Ok(())
    }

    fn lost(&self) -> Vec<Partition> {
        self.partitions.iter().filter(|(_, held)| held.is_lost()).map(|(&partition, _)| partition).collect()
    }

    /// Finds out, once a second, whether the snapshots are of the log that is there. Whether that is news.
    fn check(&mut self) -> bool {
        if self.checked.is_some_and(|at| at.elapsed() < CHECK) {
            return false;
        }
        self.checked = Some(Instant::now());
        let before = self.other_log.take();
        let (mut found, mut is_known) = (None, true);
        for table in &self.unit.tables {
            match self.log.bounds(&table.topic).and_then(|_| self.log.lineage(&table.topic)) {
                Ok(lineage) => found = found.or_else(|| self.misfit(&table.topic, &lineage)),
                Err(error @ LogError::OtherLog { .. }) => found = Some(error.to_string()),
                Err(_) => is_known = false,
            }
        }
        self.other_log = found.or_else(|| before.clone().filter(|_| !is_known));
        self.other_log != before
    }

    /// Why a snapshot isn't of the log that is there. The next owner of its partition will have another one.
    fn misfit(&self, topic: &str, lineage: &Lineage) -> Option<String> {
        let newest = self.partitions.values().flat_map(|held| held.views.values()).filter_map(|(_, told)| told.front());
        let checked =
            newest.map(|snapshot| lineage.check(snapshot.log.get(topic), &snapshot.coverage.of(topic).ends()));
        let misfit = checked.filter_map(Result::err).next()?;
        Some(format!("topic `{topic}` isn't what the speed layer has told of: {misfit}"))
    }

    fn show(&mut self) {
        self.check();
        self.sequence += 1;
        for view in &self.unit.views {
            let Some(sender) = self.senders.get(&view.id) else { continue };
            let mut snapshot = compose(view, &self.shared, &self.partitions);
            snapshot.sequence = self.sequence;
            if let Some(why) = &self.other_log {
                (snapshot.stopped, snapshot.alone, snapshot.other_log) = (Some(why.clone()), false, true);
            }
            // Where rows settle by it, it goes back with them if an owner has to begin anew.
            if let Some(least) = self.watermarks.get(&view.id).filter(|_| !view.rows.looks_across()) {
                snapshot.watermark = snapshot.watermark.max(Some(*least));
            }
            if let Some(watermark) = snapshot.watermark {
                self.watermarks.insert(view.id.clone(), watermark);
            }
            sender.send_replace(Arc::new(snapshot));
        }
    }
}

/// A view's snapshot over all partitions of these topics, which are shared out, and of others that each process reads whole.
pub(crate) fn compose(view: &Kept, shared: &BTreeSet<String>, partitions: &BTreeMap<Partition, Held>) -> Snapshot {
    let known: BTreeMap<Partition, &VecDeque<Arc<Snapshot>>> = partitions
        .iter()
        .filter_map(|(&partition, held)| Some((partition, &held.views.get(&view.id)?.1)))
        .filter(|(_, held)| !held.is_empty())
        .collect();
    let places: BTreeSet<(u64, Option<u64>)> =
        known.values().flat_map(|held| held.iter().map(|snapshot| place(snapshot))).collect();
    let in_common = |it: &&(u64, Option<u64>)| known.values().all(|held| held.iter().any(|one| place(one) == **it));
    let chosen = places.iter().rev().find(in_common).or(places.last()).copied().unwrap_or_default();
    let looks_across = view.rows.looks_across();
    // Rows that wait are told of with those that have settled behind one version: by all partitions or by none.
    let is_told = |partition| {
        let is_shown = |one: &Arc<Snapshot>| {
            place(one) == chosen && !one.chunks.is_empty() && one.parts == Some(partitions.len() as u32)
        };
        known.get(partition).is_some_and(|held| held.iter().any(is_shown))
    };
    let is_shown = !looks_across || partitions.keys().all(is_told);
    // Rows that stay alone come when the own watermark of their partition has passed them, idle or not.
    let tells_absence = view.rows.tells_absence();
    let mut whole = Snapshot { rebuilds: chosen.0, base: chosen.1.filter(|_| is_shown), ..Snapshot::default() };
    let (mut awake, mut idle, mut shown) = (Vec::new(), Vec::new(), Vec::new());
    let (mut stopped, mut lost, mut alone) = (Vec::new(), BTreeMap::new(), true);
    // One that nobody has told of yet may be behind all others.
    let mut is_known = !known.is_empty() && known.len() == partitions.len();
    for (&partition, held) in &known {
        let newest = &held[0];
        let told = held.iter().find(|snapshot| place(snapshot) == chosen).unwrap_or(newest);
        if told.rebuilds == chosen.0 {
            shown.extend(is_shown.then_some((partition, told)));
            whole.late += told.late;
        } else {
            stopped.push(format!("partition {partition}: it is read as before the table's archive was rebuilt"));
            alone = false;
        }
        // Its watermark goes with what is shown of it.
        match told.watermark {
            None if told.is_idle() && !(tells_absence && told.partitions.values().any(|it| it.watermark.is_some())) => {
            }
            None => is_known = false,
            Some(watermark) if told.is_idle() && !tells_absence => idle.push(watermark),
            Some(watermark) => awake.push(watermark),
        }
        for (p, progress) in &newest.partitions {
            let known = whole.partitions.entry(p.clone()).or_insert(*progress);
            if progress.watermark < known.watermark {
                *known = *progress;
            }
        }
        stopped.extend(newest.stopped.as_ref().map(|why| format!("partition {partition}: {why}")));
        alone &= newest.stopped.is_none() || newest.alone;
        whole.other_log |= newest.other_log;
        if whole.log.is_empty() {
            whole.log.clone_from(&newest.log);
        }
        lost.extend(newest.lost.iter().map(|(p, range)| (p.clone(), range.clone())));
    }
    whole.coverage = covered(shared, &shown);
    whole.chunks = shown.iter().flat_map(|(_, snapshot)| snapshot.chunks.iter().cloned()).collect();
    if let Some(from) = unsure_from(view, shared, &whole.coverage, &shown) {
        whole.chunks.push(Arc::new(Chunk { unsure: Some((from, Micros::MAX)), ..Chunk::default() }));
    }
    whole.watermark = awake.into_iter().min().or(idle.into_iter().max()).filter(|_| is_known);
    whole.lost = lost.into_iter().collect();
    for (partition, held) in partitions {
        if !known.contains_key(partition) {
            stopped.push(format!("partition {partition}: no speed layer has told of it"));
            alone = false;
        } else if held.is_lost() {
            stopped.push(format!("partition {partition}: its speed layer hasn't been heard of for a while"));
            alone = false;
        }
    }
    if !is_shown && stopped.is_empty() {
        stopped.push("its partitions stand on different versions, or have been made more".to_owned());
        alone = false;
    }
    whole.alone = alone && !stopped.is_empty();
    whole.stopped = (!stopped.is_empty()).then(|| stopped.join("; "));
    whole
}

/// What partitions' snapshots cover together: of topics that are shared out each its own part, of the others what all of them do.
fn covered(shared: &BTreeSet<String>, shown: &[(Partition, &Arc<Snapshot>)]) -> Coverage<TopicPartition> {
    let mut coverage = BTreeMap::<TopicPartition, Range<Offset>>::new();
    for (partition, snapshot) in shown {
        let is_own = |p: &TopicPartition| p.partition == *partition || !shared.contains(&*p.topic);
        for (p, range) in snapshot.coverage.iter().filter(|(p, _)| is_own(p)) {
            let known = coverage.entry(p.clone()).or_insert_with(|| range.clone());
            *known = known.start.max(range.start)..known.end.min(range.end);
        }
    }
    // One that somebody hasn't begun with isn't covered by all.
    for (p, range) in coverage.iter_mut().filter(|(p, _)| !shared.contains(&*p.topic)) {
        if shown.iter().any(|(_, snapshot)| snapshot.coverage.get(p).is_none()) {
            range.end = range.start;
        }
    }
    coverage.into_iter().collect()
}

/// From which time on rows may be joined with more of a changelog than is covered, if some snapshots have read further in it than others.
fn unsure_from(
    view: &Kept,
    shared: &BTreeSet<String>,
    covered: &Coverage<TopicPartition>,
    shown: &[(Partition, &Arc<Snapshot>)],
) -> Option<Micros> {
    let is_beyond = |coverage: &Coverage<TopicPartition>| {
        let of_whole = coverage.iter().filter(|(p, _)| !shared.contains(&*p.topic));
        of_whole.into_iter().any(|(p, range)| range.end > covered.next(p))
    };
    if !shown.iter().any(|(_, snapshot)| is_beyond(&snapshot.coverage)) {
        return None;
    }
    // Rows that wait, and those that have settled with a version that isn't covered.
    let lateness = view.aggregation().allowed_lateness;
    let waiting = shown.iter().map(|(_, one)| one.watermark.map_or(Micros::MIN, |it| it.saturating_sub(lateness)));
    let beyond = shown.iter().flat_map(|(_, one)| &one.chunks).filter(|chunk| is_beyond(&chunk.coverage));
    waiting.chain(beyond.filter_map(|chunk| chunk.looked_up)).min()
}
