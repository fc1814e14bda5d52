//! Snapshots of a table's views from the processes that each have some of its partitions: read from the log, where they
//! are published as [`anabranch_exchange::snapshot::wire`] says, and laid side by side.
//!
//! Partitions go over to a new batch version one after the other. An answer needs all of them on one version, so of each
//! partition the newest snapshot on each of the last two versions is held, and the newest version that all have in common
//! is taken. Until the last partition has gone over, answers stay where they were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::{Snapshot, Snapshots, wire};
use anabranch_log::lineage::Lineage;
use anabranch_log::position::{Partition, Positions};
use anabranch_log::{Log, LogError, LogReader, ReadLimit};
use anabranch_plan::schema::Table;
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

/// Follows the snapshots of every table that has views, until `shutdown`.
pub fn collect(
    log: &Arc<dyn Log>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
) -> std::io::Result<(Snapshots, Vec<JoinHandle<()>>)> {
    let mut snapshots = Snapshots::default();
    let mut threads = Vec::new();
    for Unit { tables, views } in catalog.units() {
        // Views over several tables aren't shared out among processes.
        let [table] = tables.as_slice() else { continue };
        let mut senders = BTreeMap::new();
        for view in &views {
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            snapshots.0.insert(view.id.clone(), receiver);
            senders.insert(view.id.clone(), sender);
        }
        let collector = Collector {
            log: log.clone(),
            table: table.clone(),
            views,
            senders,
            partitions: BTreeMap::new(),
            sequence: 0,
            watermarks: BTreeMap::new(),
            checked: None,
            other_log: None,
        };
        let shutdown = shutdown.clone();
        let name = format!("collect-{}", table.name);
        threads.push(std::thread::Builder::new().name(name).spawn(move || collector.run(&shutdown))?);
    }
    Ok((snapshots, threads))
}

struct Collector {
    log: Arc<dyn Log>,
    table: Arc<Table>,
    views: Vec<Kept>,
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
    /// Each view's newest snapshot on each of the last two versions, the newest first.
    views: BTreeMap<ViewId, VecDeque<Arc<Snapshot>>>,
    heard: Option<Instant>,
}

impl Held {
    /// Takes in what a partition's owner says; whether that is anything new.
    pub fn hold(&mut self, told: wire::Views) -> bool {
        let mut news = self.is_lost();
        for (view, snapshot) in told {
            let held = self.views.entry(view).or_default();
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

fn says_the_same(one: &Snapshot, other: &Snapshot) -> bool {
    (place(one), one.watermark, one.late) == (place(other), other.watermark, other.late)
        && (&one.partitions, &one.coverage, &one.stopped) == (&other.partitions, &other.coverage, &other.stopped)
}

impl Collector {
    fn run(mut self, shutdown: &CancellationToken) {
        let topic = wire::topic(&self.table.name);
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
                        if let Some(told) = held.decoder.take(offset, record, &self.views) {
                            news |= held.hold(told);
                        }
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
        self.other_log = match self.log.bounds(&self.table.topic).and_then(|_| self.log.lineage(&self.table.topic)) {
            Ok(lineage) => self.misfit(&lineage),
            Err(error @ LogError::OtherLog { .. }) => Some(error.to_string()),
            Err(_) => before.clone(),
        };
        self.other_log != before
    }

    /// Why a snapshot isn't of the log that is there. The next owner of its partition will have another one.
    fn misfit(&self, lineage: &Lineage) -> Option<String> {
        let newest = self.partitions.values().flat_map(|held| held.views.values()).filter_map(VecDeque::front);
        let ends = |snapshot: &Snapshot| snapshot.coverage.of(&self.table.topic).ends();
        let checked = newest.map(|snapshot| lineage.check(snapshot.log.get(&self.table.topic), &ends(snapshot)));
        let misfit = checked.filter_map(Result::err).next()?;
        Some(format!("topic `{}` isn't what the speed layer has told of: {misfit}", self.table.topic))
    }

    fn show(&mut self) {
        self.check();
        self.sequence += 1;
        for (view, sender) in &self.senders {
            let mut snapshot = compose(view, &self.partitions);
            snapshot.sequence = self.sequence;
            if let Some(why) = &self.other_log {
                (snapshot.stopped, snapshot.alone, snapshot.other_log) = (Some(why.clone()), false, true);
            }
            if let Some(least) = self.watermarks.get(view) {
                snapshot.watermark = snapshot.watermark.max(Some(*least));
            }
            if let Some(watermark) = snapshot.watermark {
                self.watermarks.insert(view.clone(), watermark);
            }
            sender.send_replace(Arc::new(snapshot));
        }
    }
}

/// A view's snapshot over all partitions.
pub(crate) fn compose(view: &ViewId, partitions: &BTreeMap<Partition, Held>) -> Snapshot {
    let known: BTreeMap<Partition, &VecDeque<Arc<Snapshot>>> =
        partitions.iter().filter_map(|(&partition, held)| Some((partition, held.views.get(view)?))).collect();
    let places: BTreeSet<(u64, Option<u64>)> =
        known.values().flat_map(|held| held.iter().map(|snapshot| place(snapshot))).collect();
    let in_common = |it: &&(u64, Option<u64>)| known.values().all(|held| held.iter().any(|one| place(one) == **it));
    let chosen = places.iter().rev().find(in_common).or(places.last()).copied().unwrap_or_default();
    let mut whole = Snapshot { rebuilds: chosen.0, base: chosen.1, ..Snapshot::default() };
    let (mut awake, mut idle, mut coverage) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (mut stopped, mut lost, mut alone) = (Vec::new(), BTreeMap::new(), true);
    // One that nobody has told of yet may be behind all others.
    let mut is_known = !known.is_empty() && known.len() == partitions.len();
    for (&partition, held) in &known {
        // How far the partition is follows from the newest, whatever it stands on.
        let Some(newest) = held.front() else { continue };
        if let Some(snapshot) = held.iter().find(|snapshot| place(snapshot) == chosen).or(held.front())
            && snapshot.rebuilds == chosen.0
        {
            let own = snapshot.coverage.iter().filter(|(p, _)| p.partition == partition);
            coverage.extend(own.map(|(p, range)| (p.clone(), range.clone())));
            whole.chunks.extend(snapshot.chunks.iter().cloned());
            whole.late += snapshot.late;
        } else {
            stopped.push(format!("partition {partition}: it is read as before the table's archive was rebuilt"));
            alone = false;
        }
        match newest.watermark {
            None if newest.is_idle() => {}
            None => is_known = false,
            Some(watermark) if newest.is_idle() => idle.push(watermark),
            Some(watermark) => awake.push(watermark),
        }
        whole.partitions.extend(newest.partitions.clone());
        stopped.extend(newest.stopped.as_ref().map(|why| format!("partition {partition}: {why}")));
        alone &= newest.stopped.is_none() || newest.alone;
        whole.other_log |= newest.other_log;
        if whole.log.is_empty() {
            whole.log.clone_from(&newest.log);
        }
        lost.extend(newest.lost.iter().map(|(p, range)| (p.clone(), range.clone())));
    }
    whole.coverage = coverage.into_iter().collect();
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
    whole.alone = alone && !stopped.is_empty();
    whole.stopped = (!stopped.is_empty()).then(|| stopped.join("; "));
    whole
}
