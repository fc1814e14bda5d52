//! The whole layer, with its threads, on a log in memory and a clock that stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::snapshot::Snapshot;
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::Log;
use anabranch_log::clock::{Clock, ManualClock};
use anabranch_log::position::{Coverage, Partition, Positions};
use anabranch_plan::schema::Table;
use anabranch_plan::view::{Catalog, Kept, ViewId};
use anabranch_plan::window::Window;
use anabranch_store::storage::Location;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kit::{Event, Oracle, SECOND, checkpoints, event, named, partition, rows_of, sums, table, top};
use super::log::TestLog;
use crate::{Context, Memory, Settings, SpeedLayer, SpeedMetrics, run};

pub(super) struct Rig {
    pub log: TestLog,
    pub clock: Arc<ManualClock>,
    pub view: Kept,
    /// By view.
    versions: BTreeMap<ViewId, watch::Sender<Option<Arc<Version>>>>,
    pub context: Context,
    pub oracle: Oracle,
    /// How often the archive was rebuilt that versions are published of.
    pub rebuilds: u64,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    pub fn new(partitions: u32) -> Self {
        Self::of(table(2 * SECOND), partitions)
    }

    pub fn of(table: Arc<Table>, partitions: u32) -> Self {
        let window = Some(Window::sliding(10 * SECOND, 5 * SECOND));
        let view = sums(&table, window, 0);
        let top = top(&table, None, 1_000);
        let catalog = Catalog { tables: [(table.name.clone(), table)].into(), ..Catalog::default() };
        let log = TestLog::default();
        log.create_topic("clicks", partitions).expect("a topic");
        let clock = Arc::new(ManualClock::new(0));
        let folder = tempfile::tempdir().expect("a folder");
        let context = Context {
            log: Arc::new(log.clone()),
            catalog: Arc::new(catalog),
            versions: Versions::default(),
            readings: Default::default(),
            checkpoints: Some(checkpoints(Location::Folder(folder.path().to_owned()))),
            outlets: None,
            rejects: Arc::new(RejectLog::open(Arc::new(log.clone()), clock.clone()).expect("rejects")),
            clock: clock.clone(),
            memory: Memory::new(usize::MAX),
            settings: Settings {
                batch_wait: Duration::from_millis(1),
                snapshot_interval: Duration::from_millis(1),
                ..Settings::default()
            },
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (versions, oracle) = (BTreeMap::new(), Oracle::new(partitions));
        let mut rig = Self { log, clock, view, versions, context, oracle, rebuilds: 0, folder, runtime };
        rig.add(&rig.view.clone());
        rig.add(&top);
        rig
    }

    /// From now on the catalog has this view under its name, and versions of it can be published.
    pub fn add(&mut self, view: &Kept) {
        let mut catalog = Catalog::clone(&self.context.catalog);
        catalog.views.insert(view.id.name.clone(), Arc::clone(view));
        self.context.catalog = Arc::new(catalog);
        let (sender, receiver) = watch::channel(None);
        self.versions.insert(view.id.clone(), sender);
        self.context.versions.0.insert(view.id.clone(), receiver);
    }

    fn id(&self, view: &str) -> &ViewId {
        &self.context.catalog.views[view].id
    }

    pub fn start(&self) -> SpeedLayer {
        run(&self.context, &CancellationToken::new()).expect("started")
    }

    pub fn append(&mut self, partition: Partition, events: &[Event]) {
        for event in events {
            let offset = self.log.bounds("clicks").expect("bounds")[&partition].end;
            self.oracle.take(&self.view, partition, offset, event);
            self.log.add("clicks", partition, &event.json());
        }
    }

    /// Waits for a snapshot that is as asked for.
    pub fn wait(&self, layer: &SpeedLayer, view: &str, mut is: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
        let (view, snapshots) = (self.id(view), layer.snapshots());
        let mut receiver = snapshots.0[view].clone();
        let waiting = async {
            let found = receiver.wait_for(|snapshot| is(snapshot)).await.map(|snapshot| snapshot.clone());
            found.expect("the layer works")
        };
        let patient = async { tokio::time::timeout(Duration::from_secs(60), waiting).await };
        self.runtime.block_on(patient).unwrap_or_else(|_| panic!("in vain: {:?}", snapshots.get(view)))
    }

    pub fn wait_for_all(&self, layer: &SpeedLayer) -> Arc<Snapshot> {
        let bounds = self.log.bounds("clicks").expect("bounds").into_iter();
        let ends: Positions<_> = bounds.map(|(p, r)| (partition(p), r.end)).collect();
        self.wait(layer, "sums", |snapshot| snapshot.coverage.ends() == ends)
    }

    /// Waits for numbers that are as asked for.
    pub fn wait_for_metrics(layer: &SpeedLayer, is: impl Fn(&SpeedMetrics) -> bool) {
        let begun = Instant::now();
        while !is(&layer.metrics()["clicks"]) {
            assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {:?}", layer.metrics());
            std::thread::yield_now();
        }
    }

    /// Has the storage of checkpoints fail, until what this returns is called.
    fn away(&self) -> impl FnOnce() + use<> {
        let (here, away) = (self.folder.path().to_owned(), self.folder.path().with_extension("away"));
        std::fs::rename(&here, &away).expect("moved");
        std::fs::write(&here, b"not a folder").expect("written");
        move || {
            std::fs::remove_file(&here).expect("removed");
            std::fs::rename(&away, &here).expect("moved");
        }
    }

    pub fn check(&self, snapshot: &Snapshot) {
        assert_eq!(snapshot.stopped, None);
        assert_eq!(rows_of(snapshot), self.oracle.rows(&self.view, &snapshot.coverage.starts()));
        assert_eq!((snapshot.late, snapshot.watermark), (self.oracle.late(), self.oracle.watermark));
    }

    pub fn publish(&self, version: u64, frontier: &[(Partition, u64)], event_times: &[(Partition, i64)]) {
        self.publish_of_view("sums", version, frontier, event_times);
    }

    /// Publishes a version of another view.
    pub fn publish_of(&self, view: &str, version: u64, frontier: &[(Partition, u64)]) {
        self.publish_of_view(view, version, frontier, &[]);
    }

    fn publish_of_view(&self, view: &str, version: u64, frontier: &[(Partition, u64)], times: &[(Partition, i64)]) {
        let coverage = frontier.iter().map(|&(p, end)| (partition(p), 0..end)).collect();
        let published = Published {
            version,
            definition: self.id(view).definition.clone(),
            coverage,
            event_times: times.iter().map(|&(p, time)| (partition(p), time)).collect(),
            published: 0,
            run: String::new(),
            rebuilds: self.rebuilds,
            erased: BTreeSet::new(),
            panes: vec![],
            state: None,
            log: Default::default(),
        };
        self.versions[self.id(view)].send_replace(Some(Arc::new(Version::new(PathBuf::new(), published, false))));
    }
}

pub(super) fn stream() -> Vec<Event> {
    let seconds = [1, 3, 2, 12, 4, 17, 6, 9, 30, 1, 28, 14, 31, 45, 29, 44];
    seconds.iter().zip((0..).map(|i| ["a", "b", "c"][i % 3])).map(|(&second, key)| event(second, key, second)).collect()
}

#[test]
fn events_are_in_the_next_snapshot() {
    let mut rig = Rig::new(1);
    let layer = rig.start();
    for event in stream() {
        rig.append(0, &[event]);
        rig.check(&rig.wait_for_all(&layer));
    }
    assert!(rig.oracle.late() > 3, "the stream has late events");
    let all = rig.wait(&layer, "top", |snapshot| snapshot.coverage.len() == 16);
    assert_eq!(rows_of(&all).values().map(|(count, _)| count).sum::<i64>(), 16);
    let metrics = layer.metrics()["clicks"].clone();
    assert_eq!((metrics.events, metrics.late, metrics.rejected), (16, rig.oracle.late(), 0));
    layer.stop();
}

#[test]
fn freshness_is_the_time_from_the_log_to_the_snapshot() {
    let mut rig = Rig::new(1);
    rig.log.set_time(7 * SECOND);
    rig.clock.set(10 * SECOND);
    let layer = rig.start();
    rig.append(0, &stream());
    rig.wait_for_all(&layer);
    let read = layer.metrics_reader();
    layer.stop();
    let freshness = read()["clicks"].freshness.clone();
    assert_eq!((freshness.count(), freshness.sum), (16, 48.0));
    assert_eq!(freshness.buckets.iter().find(|(_, count)| *count > 0), Some(&(5.0, 16)), "3 s, so above 2 and up to 5");
}

#[test]
fn a_restart_after_any_event_changes_nothing() {
    let events = stream();
    for cut in 0..=events.len() {
        let mut rig = Rig::new(1);
        rig.append(0, &events[..cut]);
        let layer = rig.start();
        rig.wait_for_all(&layer);
        layer.stop();
        rig.append(0, &events[cut..]);
        let layer = rig.start();
        rig.check(&rig.wait_for_all(&layer));
        layer.stop();
    }
}

#[test]
fn a_damaged_checkpoint_means_the_one_before_or_the_log() {
    let events = stream();
    let mut rig = Rig::new(1);
    for part in events.chunks(6) {
        rig.append(0, part);
        let layer = rig.start();
        rig.wait_for_all(&layer);
        layer.stop();
    }
    for damaged in [1, 2] {
        let files = std::fs::read_dir(rig.folder.path().join("clicks")).expect("a folder");
        let mut files: Vec<PathBuf> = files.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "checkpoint"));
        files.sort();
        assert_eq!(files.len(), 2);
        for file in files.iter().rev().take(damaged) {
            std::fs::write(file, b"nonsense").expect("damaged");
        }
        let layer = rig.start();
        rig.check(&rig.wait_for_all(&layer));
        layer.stop();
    }
}

#[test]
fn while_no_checkpoint_can_be_stored_folding_goes_on_and_the_next_one_lands() {
    let mut rig = Rig::new(1);
    let layer = rig.start();
    rig.append(0, &stream()[..9]);
    rig.wait_for_all(&layer);
    let back = rig.away();
    rig.clock.set(11 * SECOND);
    Rig::wait_for_metrics(&layer, |metrics| metrics.checkpoint_failures == 1);
    rig.append(0, &stream()[9..]);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::new()));
    rig.clock.set(22 * SECOND);
    Rig::wait_for_metrics(&layer, |metrics| metrics.checkpoint_failures == 2);
    back();
    // There is nothing new, but the state isn't stored yet.
    rig.clock.set(33 * SECOND);
    Rig::wait_for_metrics(&layer, |metrics| metrics.checkpoints == 1);
    layer.stop();
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::new()));
    assert_eq!(layer.metrics()["clicks"].events, 0, "all of it was in the checkpoint");
    layer.stop();
}

#[test]
fn checkpoints_that_cant_be_read_are_waited_for() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    let layer = rig.start();
    rig.wait_for_all(&layer);
    layer.stop();
    let back = rig.away();
    let start = || {
        let layer = rig.start();
        let waiting = rig.wait(&layer, "sums", |snapshot| snapshot.stopped.is_some());
        let reason = waiting.stopped.clone().expect("a reason");
        assert!(reason.starts_with("it waits for what it begins with: checkpoint `"), "{reason}");
        assert!(waiting.chunks.is_empty() && layer.metrics()["clicks"].stopped.is_some());
        (layer, waiting.sequence)
    };
    start().0.stop();
    let (layer, sequence) = start();
    back();
    let snapshot = rig.wait_for_all(&layer);
    assert!(snapshot.sequence > sequence);
    rig.check(&snapshot);
    let metrics = &layer.metrics()["clicks"];
    assert!(metrics.events == 0 && metrics.stopped.is_none(), "it went on from its checkpoint: {metrics:?}");
    layer.stop();
}

#[test]
fn records_that_are_no_events_are_covered_and_counted() {
    let mut rig = Rig::new(1);
    rig.log.add("clicks", 0, "{\"ts\":");
    rig.append(0, &[event(1, "a", 1)]);
    rig.log.add("clicks", 0, "[]");
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(snapshot.coverage.len(), 3);
    rig.check(&snapshot);
    assert_eq!(layer.metrics()["clicks"].rejected, 2);
    layer.stop();
}

#[test]
fn an_idle_partition_lets_the_watermark_go_on() {
    let mut rig = Rig::new(2);
    let layer = rig.start();
    rig.append(0, &[event(20, "a", 1)]);
    assert_eq!(rig.wait_for_all(&layer).watermark, None, "partition 1 may have older events");
    rig.clock.set(rig.clock.now() + 20 * SECOND);
    rig.append(0, &[event(30, "a", 1)]);
    // Only partition 1 has been still for so long.
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.watermark.is_some());
    assert_eq!(snapshot.watermark, Some(28 * SECOND));
    layer.stop();
}

#[test]
fn a_topic_that_grows_is_read_in_all_its_partitions() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream()[..3]);
    let layer = rig.start();
    rig.wait_for_all(&layer);
    rig.log.create_topic("clicks", 2).expect("grown");
    rig.oracle.newest.insert(1, None);
    rig.append(1, &[event(40, "new", 1)]);
    // The reader looks for new partitions now and then, by the clock.
    rig.clock.set(5 * SECOND);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(snapshot.coverage, [(partition(0), 0..3), (partition(1), 0..1)].into_iter().collect());
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::new()));
    layer.stop();
    rig.append(1, &[event(41, "new", 1)]);
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::new()));
    layer.stop();
}

#[test]
fn a_version_takes_over_what_it_covers() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    let layer = rig.start();
    rig.check(&rig.wait_for_all(&layer));
    for (version, frontier) in [(1, 3), (2, 11), (3, 11), (4, 16)] {
        rig.publish(version, &[(0, frontier)], &[]);
        let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(version));
        assert_eq!(snapshot.coverage, [(partition(0), frontier..16)].into_iter().collect());
        rig.check(&snapshot);
    }
    layer.stop();
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((snapshot.base, snapshot.coverage.len()), (Some(4), 0));
    layer.stop();
}

#[test]
fn a_version_ahead_is_waited_for() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream()[..4]);
    let layer = rig.start();
    rig.wait_for_all(&layer);
    rig.publish(1, &[(0, 6)], &[]);
    rig.append(0, &stream()[4..5]);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(snapshot.base, None);
    rig.append(0, &stream()[5..8]);
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(1));
    assert_eq!(snapshot.coverage.starts(), Positions::from([(partition(0), 6)]));
    rig.check(&rig.wait_for_all(&layer));
    layer.stop();
}

#[test]
fn a_rollback_folds_anew_from_the_older_frontier() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    let layer = rig.start();
    rig.publish(2, &[(0, 12)], &[]);
    rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(2));
    // The newest of the first five events.
    rig.publish(1, &[(0, 5)], &[(0, 12 * SECOND)]);
    // If it was still reading for another view, it gets there by reading on.
    let wanted = Coverage::from_iter([(partition(0), 5..16)]);
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(1) && snapshot.coverage == wanted);
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::from([(partition(0), 5)])));
    let late = rig.oracle.seen[5..].iter().filter(|seen| seen.missed > 0).count();
    assert_eq!(snapshot.late, late as u64, "the state began anew");
    layer.stop();
}

#[test]
fn without_a_checkpoint_a_version_is_the_beginning() {
    let mut rig = Rig::new(1);
    rig.context.checkpoints = None;
    rig.append(0, &stream());
    rig.publish(1, &[(0, 5)], &[(0, 12 * SECOND)]);
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((snapshot.base, snapshot.coverage.starts()), (Some(1), Positions::from([(partition(0), 5)])));
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::from([(partition(0), 5)])));
    assert_eq!(snapshot.watermark, rig.oracle.watermark);
    layer.stop();
}

#[test]
fn a_version_of_another_definition_is_ignored() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    let catalog = rig.context.catalog.clone();
    rig.add(&named(&rig.view, "sums", "sha256:other"));
    rig.publish(1, &[(0, 5)], &[]);
    rig.context.catalog = catalog;
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!(snapshot.base, None);
    rig.check(&snapshot);
    layer.stop();
}

#[test]
fn a_view_that_is_new_catches_up_before_the_others_go_on() {
    let mut rig = Rig::new(2);
    let events = stream();
    rig.append(0, &events[..8]);
    let all = rig.context.catalog.clone();
    let mut fewer = Catalog::clone(&all);
    fewer.views.remove("sums");
    rig.context.catalog = Arc::new(fewer);
    let layer = rig.start();
    rig.wait(&layer, "top", |snapshot| snapshot.coverage.len() == 8);
    layer.stop();
    rig.context.catalog = all;
    rig.append(0, &events[8..]);
    let layer = rig.start();
    rig.check(&rig.wait_for_all(&layer));
    let top = rig.wait(&layer, "top", |snapshot| snapshot.coverage.len() == 16);
    assert_eq!(rows_of(&top).values().map(|(count, _)| count).sum::<i64>(), 16, "nothing twice");
    layer.stop();
}

#[test]
fn a_view_whose_beginning_retention_took_waits_for_a_version_of_what_is_left() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    rig.log.forget_before("clicks", 0, 4);
    let layer = rig.start();
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.stopped.is_some());
    let reason = snapshot.stopped.clone().expect("a reason");
    assert!(reason.contains("offsets 0.. are wanted, but the log holds 4..16"), "{reason}");
    let metrics = layer.metrics()["clicks"].clone();
    assert_eq!((&metrics.stopped, &metrics.views["sums"]), (&None, &Some(reason)));
    assert_eq!(snapshot.lost, Coverage::from_iter([(partition(0), 0..4)]));
    rig.publish(1, &[(0, 5)], &[(0, 12 * SECOND)]);
    let snapshot =
        rig.wait(&layer, "sums", |snapshot| snapshot.stopped.is_none() && snapshot.coverage.next(&partition(0)) == 16);
    assert_eq!(snapshot.base, Some(1));
    assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::from([(partition(0), 5)])));
    layer.stop();
}

#[test]
fn a_view_that_is_new_harms_no_other_where_the_log_has_lost_its_start() {
    for has_checkpoint in [true, false] {
        let mut rig = Rig::new(1);
        let all = rig.context.catalog.clone();
        let mut fewer = Catalog::clone(&all);
        fewer.views.remove("top");
        rig.context.catalog = Arc::new(fewer);
        rig.append(0, &stream()[..8]);
        let layer = rig.start();
        rig.wait_for_all(&layer);
        rig.publish(1, &[(0, 5)], &[(0, 12 * SECOND)]);
        rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(1));
        layer.stop();
        if !has_checkpoint {
            rig.context.checkpoints = None;
        }
        rig.log.forget_before("clicks", 0, 5);
        rig.context.catalog = all;
        let layer = rig.start();
        let top = rig.wait(&layer, "top", |snapshot| snapshot.stopped.is_some());
        assert_eq!((&top.lost, top.alone), (&Coverage::from_iter([(partition(0), 0..5)]), true), "{has_checkpoint}");
        rig.append(0, &stream()[8..]);
        let sums = rig.wait_for_all(&layer);
        assert_eq!((sums.base, &sums.stopped), (Some(1), &None));
        assert_eq!(rows_of(&sums), rig.oracle.rows(&rig.view, &Positions::from([(partition(0), 5)])));
        rig.publish_of("top", 1, &[(0, 7)]);
        let top = rig
            .wait(&layer, "top", |snapshot| snapshot.stopped.is_none() && snapshot.coverage.next(&partition(0)) == 16);
        assert_eq!((top.base, &top.coverage), (Some(1), &Coverage::from_iter([(partition(0), 7..16)])));
        layer.stop();
    }
}

#[test]
fn a_log_that_lost_its_end_stops_the_source() {
    let mut rig = Rig::new(1);
    rig.append(0, &stream());
    let layer = rig.start();
    rig.wait_for_all(&layer);
    layer.stop();
    let shorter = TestLog::default();
    shorter.create_topic("clicks", 1).expect("a topic");
    rig.context.log = Arc::new(shorter);
    let layer = rig.start();
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.stopped.is_some());
    let reason = snapshot.stopped.clone().expect("a reason");
    assert!(reason.contains("a checkpoint of its views is of: it reaches offset 16"), "{reason}");
    assert!(snapshot.other_log, "what its answers lack can't be named");
    layer.stop();
}

#[test]
fn many_chunks_and_checkpoints_by_the_clock() {
    let mut rig = Rig::new(1);
    let layer = rig.start();
    let events: BTreeMap<u64, Event> = (0..).zip(stream().into_iter().cycle().take(60)).collect();
    for (i, event) in events {
        rig.append(0, &[event]);
        rig.clock.set(i as i64 * 40 * SECOND);
        let snapshot = rig.wait_for_all(&layer);
        assert!(snapshot.chunks.len() <= 9, "{} chunks", snapshot.chunks.len());
        assert_eq!(rows_of(&snapshot), rig.oracle.rows(&rig.view, &Positions::new()));
    }
    layer.stop();
}
