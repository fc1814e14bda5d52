//! Snapshots that come through the log, partition by partition.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_engine::partial::Slack;
use anabranch_exchange::snapshot::wire::{self, Decoder, Encoder, Views};
use anabranch_exchange::snapshot::{Chunk, Progress, Snapshot, Snapshots};
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::lineage::Mark;
use anabranch_log::position::{Coverage, Partition, Positions, TopicPartition};
use anabranch_log::{Log, Payloads};
use anabranch_plan::view::{Catalog, Kept, View, ViewId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::support::{Event, MemoryLog, event, hop, partition, snapshot, view};
use crate::collect::{Held, collect, compose};
use crate::source::{LayerStore, Mode, Sources};

struct Wire {
    view: Kept,
    events: Vec<Event>,
}

impl Wire {
    fn new() -> Self {
        let view = view("trending", Some(hop()), true, None);
        let events = (0..40).map(|i| event(i * 10, ["a", "b", "c"][i as usize % 3], i)).collect();
        Self { view, events }
    }

    fn snapshot(&self, base: Option<u64>, cuts: &[usize]) -> Arc<Snapshot> {
        Arc::new(snapshot(&self.view, &self.events, base, cuts))
    }

    fn encode(&self, encoder: &mut Encoder, snapshot: &Arc<Snapshot>, full: bool) -> Payloads {
        encoder.update(vec![(self.view.clone(), snapshot.clone())], full).encode().expect("encoded")
    }

    fn decode(&self, decoder: &mut Decoder, offset: u64, records: &Payloads) -> Option<Arc<Snapshot>> {
        let views = std::slice::from_ref(&self.view);
        let told = records.iter().filter_map(|record| decoder.take(offset, record, views)).last()?;
        Some(told[&self.view.id].clone())
    }
}

fn assert_same(got: &Snapshot, expected: &Snapshot) {
    assert_eq!((got.base, got.watermark, got.late), (expected.base, expected.watermark, expected.late));
    assert_eq!(got.rebuilds, expected.rebuilds);
    assert_eq!(got.partitions, expected.partitions);
    assert_eq!((&got.coverage, &got.stopped, &got.lost), (&expected.coverage, &expected.stopped, &expected.lost));
    assert_eq!((got.alone, got.other_log, &got.log), (expected.alone, expected.other_log, &expected.log));
    assert_eq!(got.chunks.len(), expected.chunks.len());
    for (got, expected) in got.chunks.iter().zip(&expected.chunks) {
        assert_eq!(got.coverage, expected.coverage);
        assert_eq!(got.panes.keys().collect::<Vec<_>>(), expected.panes.keys().collect::<Vec<_>>());
        for (start, pane) in &got.panes {
            assert!(pane.partials.equals_missing(&expected.panes[start].partials));
            assert_eq!((&pane.late, pane.slack), (&expected.panes[start].late, expected.panes[start].slack));
        }
    }
}

/// The first snapshot with one more chunk, which shares the others.
fn grown(wire: &Wire, first: &Snapshot, to: usize) -> Arc<Snapshot> {
    let from = first.coverage.next(&partition(0)) as usize;
    let mut more = Snapshot::clone(&wire.snapshot(first.base, &[from, to]));
    more.chunks = first.chunks.iter().cloned().chain(more.chunks).collect();
    more.coverage =
        [(partition(0), first.coverage.get(&partition(0)).expect("a range").start..to as u64)].into_iter().collect();
    Arc::new(more)
}

#[test]
fn an_update_brings_what_is_new_and_a_full_one_everything() {
    let wire = Wire::new();
    let (mut encoder, mut decoder) = (Encoder::new(5), Decoder::default());
    let first = wire.snapshot(None, &[0, 10, 20, 30]);
    let second = grown(&wire, &first, 31);
    let records = wire.encode(&mut encoder, &first, true);
    assert_same(&wire.decode(&mut decoder, 6, &records).expect("a snapshot"), &first);
    let update = wire.encode(&mut encoder, &second, false);
    assert!(update.bytes().len() * 2 < records.bytes().len(), "only the new chunk's panes are sent");
    let got = wire.decode(&mut decoder, 7, &update).expect("a snapshot");
    assert_same(&got, &second);
    let nothing_new = wire.encode(&mut encoder, &second, false);
    let again = wire.decode(&mut decoder, 8, &nothing_new).expect("a snapshot");
    let panes = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.chunks.iter().flat_map(|chunk| chunk.panes.values().map(Arc::as_ptr)).collect()
    };
    assert_eq!(panes(&again), panes(&got), "panes that are known stay where they are");
    let mut late_comer = Decoder::default();
    assert!(wire.decode(&mut late_comer, 9, &update).is_none(), "it lacks what came before");
    let full = wire.encode(&mut encoder, &second, true);
    assert_same(&wire.decode(&mut late_comer, 10, &full).expect("a snapshot"), &second);
}

#[test]
fn what_is_lost_torn_or_of_a_former_owner_is_passed_over() {
    let wire = Wire::new();
    let (mut encoder, mut decoder) = (Encoder::new(5), Decoder::default());
    let first = wire.snapshot(None, &[0, 10]);
    let second = grown(&wire, &first, 20);
    let third = grown(&wire, &second, 30);
    let records = wire.encode(&mut encoder, &first, true);
    assert!(wire.decode(&mut decoder, 6, &records).is_some());
    let _lost = wire.encode(&mut encoder, &second, false);
    let update = wire.encode(&mut encoder, &third, false);
    assert!(wire.decode(&mut decoder, 8, &update).is_none(), "panes of the lost one are missing");
    let full = wire.encode(&mut encoder, &third, true);
    let mut torn = full.get(0).to_vec();
    torn.truncate(torn.len() - 7);
    assert!(wire.decode(&mut decoder, 9, &Payloads::from_iter([torn])).is_none());
    assert_same(&wire.decode(&mut decoder, 10, &full).expect("a snapshot"), &third);

    let stopped = Snapshot {
        rebuilds: 1,
        stopped: Some("records are gone".to_owned()),
        alone: true,
        lost: [(partition(0), 30..35)].into_iter().collect(),
        log: [("posts".to_owned(), Mark::new("kafka:one:two"))].into(),
        other_log: true,
        ..Snapshot::clone(&third)
    };
    let stopped = Arc::new(stopped);
    let update = wire.encode(&mut encoder, &stopped, false);
    assert_same(&wire.decode(&mut decoder, 10, &update).expect("a snapshot"), &stopped);

    // Somebody else claims the partition: the former owner is not listened to any more.
    assert!(wire.decode(&mut decoder, 11, &wire::claim()).is_none());
    assert_eq!(decoder.epoch(), 11);
    assert!(wire.decode(&mut decoder, 12, &full).is_none());
    let records = wire.encode(&mut Encoder::new(11), &second, true);
    assert_same(&wire.decode(&mut decoder, 13, &records).expect("a snapshot"), &second);
    assert!(wire.decode(&mut decoder, 14, &Payloads::from_iter(["not ours"])).is_none());
}

#[test]
fn an_update_of_many_records_is_put_together() {
    let wire = Wire::new();
    let events: Vec<Event> = (0..60_000).map(|i| event(i / 100, &format!("tag {}", i * 7_919 % 60_000), i)).collect();
    let large = Arc::new(snapshot(&wire.view, &events, None, &[0, 60_000]));
    let records = wire.encode(&mut Encoder::new(1), &large, true);
    assert!(records.len() > 1, "{} records", records.len());
    assert!(records.iter().all(|record| record.len() < 1_000_000), "Kafka's default limit");
    let mut decoder = Decoder::default();
    // Without its second record it is nothing, and harms nothing.
    let torn: Payloads = (0..records.len()).filter(|i| *i != 1).map(|i| records.get(i)).collect();
    assert!(wire.decode(&mut decoder, 2, &torn).is_none());
    assert_same(&wire.decode(&mut decoder, 3, &records).expect("a snapshot"), &large);
    assert!(wire.decode(&mut decoder, 3, &records).is_none(), "read again, it is old");
}

/// A pane that has forgotten no late event is told of as it was before those were forgotten.
#[test]
fn what_a_degraded_pane_lacks_goes_along() {
    let wire = Wire::new();
    for (slack, text) in [
        (Slack { down: 1, up: 3, late: 0 }, "\"slack\":[1,3]}"),
        (Slack { down: 1, up: 3, late: 2 }, "\"slack\":[1,3,2]}"),
    ] {
        let mut degraded = Snapshot::clone(&wire.snapshot(None, &[0, 10]));
        let mut chunk = Chunk::clone(&degraded.chunks[0]);
        chunk.panes.values_mut().for_each(|pane| Arc::make_mut(pane).slack = Some(slack));
        degraded.chunks = vec![Arc::new(chunk)];
        let degraded = Arc::new(degraded);
        let records = wire.encode(&mut Encoder::new(5), &degraded, true);
        assert!(String::from_utf8_lossy(records.get(0)).contains(text), "{text}");
        assert_same(&wire.decode(&mut Decoder::default(), 6, &records).expect("a snapshot"), &degraded);
    }
}

fn id() -> ViewId {
    ViewId { name: "trending".to_owned(), definition: "sha256:trending".to_owned() }
}

fn shared() -> BTreeSet<String> {
    [partition(0).topic.to_string()].into()
}

/// What is held of some partitions.
struct Partitions(BTreeMap<Partition, Held>);

impl Partitions {
    fn told(&mut self, number: Partition, snapshot: &Snapshot, change: impl FnOnce(&mut Snapshot)) {
        let mut moved = snapshot.clone();
        let place =
            |coverage: &Coverage<_>| coverage.iter().map(|(_, range)| (partition(number), range.clone())).collect();
        moved.coverage = place(&snapshot.coverage);
        let chunk = |chunk: &Arc<Chunk>| Arc::new(Chunk { coverage: place(&chunk.coverage), ..Chunk::clone(chunk) });
        moved.chunks = snapshot.chunks.iter().map(chunk).collect();
        change(&mut moved);
        let told: Views = [(id(), Arc::new(moved))].into();
        self.0.entry(number).or_default().hold(told);
    }

    fn whole(&self) -> Snapshot {
        compose(&Wire::new().view, &shared(), &self.0)
    }
}

#[test]
fn partitions_stand_on_the_newest_version_that_all_have_in_common() {
    let wire = Wire::new();
    let (before, after) = (wire.snapshot(None, &[0, 10, 20]), wire.snapshot(Some(1), &[10, 30]));
    let mut partitions = Partitions(BTreeMap::new());
    partitions.told(0, &before, |_| {});
    partitions.told(1, &before, |_| {});
    let whole = partitions.whole();
    assert_eq!((whole.base, whole.chunks.len(), &whole.stopped), (None, 4, &None));
    assert_eq!(whole.coverage, [(partition(0), 0..20), (partition(1), 0..20)].into_iter().collect());
    partitions.told(0, &after, |_| {});
    let whole = partitions.whole();
    assert_eq!(whole.base, None, "partition 1 has no other yet");
    assert_eq!(whole.coverage, [(partition(0), 0..20), (partition(1), 0..20)].into_iter().collect());
    partitions.told(1, &after, |_| {});
    let whole = partitions.whole();
    assert_eq!((whole.base, whole.chunks.len()), (Some(1), 2));
    assert_eq!(whole.coverage, [(partition(0), 10..30), (partition(1), 10..30)].into_iter().collect());
}

#[test]
fn partitions_that_are_read_otherwise_since_a_rebuild_are_not_put_together_with_others() {
    let wire = Wire::new();
    let (before, after) = (wire.snapshot(Some(1), &[10, 20]), wire.snapshot(Some(2), &[10, 30]));
    let mut partitions = Partitions(BTreeMap::new());
    partitions.told(0, &before, |_| {});
    partitions.told(1, &before, |_| {});
    // The first has noticed the rebuild, and has nothing at first.
    let empty = Snapshot { rebuilds: 1, stopped: Some("it is folded anew".to_owned()), ..Snapshot::default() };
    partitions.told(0, &empty, |_| {});
    let whole = partitions.whole();
    assert_eq!((whole.rebuilds, whole.base, whole.chunks.len()), (0, Some(1), 2), "what both have");
    assert_eq!(whole.stopped.as_deref(), Some("partition 0: it is folded anew"));
    partitions.told(0, &after, |snapshot| snapshot.rebuilds = 1);
    let whole = partitions.whole();
    assert_eq!((whole.rebuilds, whole.base, whole.chunks.len()), (1, Some(2), 1), "the other's are of before");
    assert_eq!(whole.coverage, [(partition(0), 10..30)].into_iter().collect());
    let why = whole.stopped.expect("a reason");
    assert_eq!(why, "partition 1: it is read as before the table's archive was rebuilt");
    partitions.told(1, &after, |snapshot| snapshot.rebuilds = 1);
    let whole = partitions.whole();
    assert_eq!((whole.rebuilds, whole.base, whole.chunks.len(), whole.stopped), (1, Some(2), 2, None));
}

#[test]
fn two_generations_of_a_view_are_put_together_each_by_itself() {
    let (wire, other) = (Wire::new(), ViewId { definition: "sha256:other".to_owned(), ..id() });
    let mut held = Held::default();
    held.hold([(id(), wire.snapshot(None, &[0, 10])), (other.clone(), wire.snapshot(Some(3), &[4, 20]))].into());
    let partitions = [(0, held)].into();
    let of = |id: &ViewId| {
        let view = View { id: id.clone(), ..View::clone(&wire.view) };
        compose(&Kept::of(&Arc::new(view)).expect("it keeps an aggregation"), &shared(), &partitions)
    };
    assert_eq!((of(&id()).base, of(&id()).coverage), (None, [(partition(0), 0..10)].into_iter().collect()));
    assert_eq!((of(&other).base, of(&other).coverage), (Some(3), [(partition(0), 4..20)].into_iter().collect()));
}

#[test]
fn a_partition_that_nobody_tells_of_is_named() {
    let wire = Wire::new();
    let mut partitions = Partitions([(0, Held::default()), (1, Held::default())].into());
    let nothing = partitions.whole();
    assert!(nothing.stopped.is_some_and(|why| why.contains("no speed layer has told of it")));
    partitions.told(1, &wire.snapshot(None, &[0, 10]), |_| {});
    let whole = partitions.whole();
    assert!(whole.stopped.is_some_and(|why| why.starts_with("partition 0:")));
    assert_eq!(whole.watermark, None, "partition 0 may be behind");
    partitions.told(0, &wire.snapshot(None, &[0, 10]), |snapshot| snapshot.stopped = Some("lost events".to_owned()));
    assert_eq!(partitions.whole().stopped.as_deref(), Some("partition 0: lost events"));
    let lost = |number, range| [(partition(number), range)].into_iter().collect();
    partitions.told(1, &wire.snapshot(None, &[0, 10]), |snapshot| {
        (snapshot.stopped, snapshot.lost) = (Some("more".to_owned()), lost(1, 10..17));
    });
    let whole = partitions.whole();
    assert_eq!(whole.stopped.as_deref(), Some("partition 0: lost events; partition 1: more"));
    assert_eq!(whole.lost, lost(1, 10..17));
}

#[test]
fn the_watermark_is_the_least_of_the_partitions_that_are_not_idle() {
    let wire = Wire::new();
    let snapshot = wire.snapshot(None, &[0, 10]);
    let mut partitions = Partitions(BTreeMap::new());
    let mut told = |number, watermark: Option<i64>, idle| {
        partitions.told(number, &snapshot, |snapshot| {
            snapshot.watermark = watermark;
            snapshot.partitions = [(partition(number), Progress { watermark, idle, stalled: false })].into();
        });
        let whole = partitions.whole();
        assert_eq!(whole.partitions[&partition(number)], Progress { watermark, idle, stalled: false });
        (whole.watermark, whole.is_idle())
    };
    assert_eq!(told(0, Some(50), false), (Some(50), false));
    assert_eq!(told(1, Some(20), false), (Some(20), false));
    assert_eq!(told(1, Some(20), true), (Some(50), false), "an idle partition holds nothing back");
    assert_eq!(told(2, None, false), (None, false), "one that never had an event and isn't idle does");
    assert_eq!(told(2, None, true), (Some(50), false));
    assert_eq!(told(0, Some(50), true), (Some(50), true));
}

/// A view of rows that wait, over these tables.
fn waiting(select: &str) -> (Kept, BTreeSet<String>) {
    let sql = format!(
        "CREATE TABLE clicks (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
         CREATE TABLE buys (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
         CREATE TABLE users (id TEXT PRIMARY KEY, plan TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
         CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '1 second') AS {select};"
    );
    let catalog = anabranch_plan::sql::plan(&[("v.sql".to_owned(), sql)]).expect("a project");
    let unit = catalog.units().remove(0);
    (unit.views[0].clone(), unit.shared().into_iter().map(|table| table.topic.clone()).collect())
}

/// What one partition says that stands on a version: a chunk that covers so much of each topic's partition, and one of rows that wait.
fn told(base: Option<u64>, covered: &[(&str, Partition, Range<u64>)], watermark: i64) -> Arc<Snapshot> {
    let range = |(topic, partition, range): &(&str, Partition, Range<u64>)| {
        (TopicPartition::new(*topic, *partition), range.clone())
    };
    let coverage: Coverage<TopicPartition> = covered.iter().map(range).collect();
    let chunks = vec![Arc::new(Chunk { coverage: coverage.clone(), ..Chunk::default() }), Arc::default()];
    let progress =
        |p: &TopicPartition| (p.clone(), Progress { watermark: Some(watermark), idle: false, stalled: false });
    let partitions = coverage.partitions().map(progress).collect();
    let (watermark, parts) = (Some(watermark), Some(2));
    Arc::new(Snapshot { base, coverage, chunks, watermark, partitions, parts, ..Snapshot::default() })
}

#[test]
fn rows_that_wait_are_shown_by_all_partitions_on_one_version_or_by_none() {
    let (view, shared) = waiting("SELECT count(*) AS n FROM clicks c JOIN buys b ON b.u = c.u AND b.ts = c.ts");
    let of = |base, partition| told(base, &[("buys", partition, 0..4), ("clicks", partition, 0..7)], 10);
    let mut partitions: BTreeMap<Partition, Held> = [(0, Held::default()), (1, Held::default())].into();
    let mut tell = |partition: Partition, snapshot: Arc<Snapshot>| {
        partitions.entry(partition).or_default().hold([(view.id.clone(), snapshot)].into());
        let whole = compose(&view, &shared, &partitions);
        (whole.base, whole.chunks.len(), whole.coverage.partitions().count(), whole.stopped.unwrap_or_default())
    };
    let lacking = "partition 1: no speed layer has told of it".to_owned();
    assert_eq!(tell(0, of(None, 0)), (None, 0, 0, lacking), "what waits in partition 1 isn't known");
    // One that has stopped before it showed anything doesn't know either.
    let stopped = Arc::new(Snapshot { stopped: Some("it can't".to_owned()), ..Snapshot::default() });
    assert_eq!(tell(1, stopped), (None, 0, 0, "partition 1: it can't".to_owned()));
    assert_eq!(tell(1, of(None, 1)), (None, 4, 4, String::new()));
    assert_eq!(tell(0, of(Some(1), 0)), (None, 4, 4, String::new()), "partition 1 has no other yet");
    let apart = "its partitions stand on different versions, or have been made more".to_owned();
    assert_eq!(tell(0, of(Some(2), 0)), (None, 0, 0, apart.clone()), "nothing in common");
    assert_eq!(tell(1, of(Some(2), 1)), (Some(2), 4, 4, String::new()));
    // One that has its records by a place among others than the rest.
    let among_four = Arc::new(Snapshot { parts: Some(4), ..Snapshot::clone(&of(Some(2), 1)) });
    assert_eq!(tell(1, among_four), (None, 0, 0, apart));
}

#[test]
fn while_a_changelog_isnt_read_as_far_by_all_rows_that_wait_are_unsure() {
    let (view, shared) = waiting(
        "SELECT plan, count(*) AS n FROM clicks c JOIN users FOR SYSTEM_TIME AS OF c.ts AS u ON u.id = c.u GROUP BY plan",
    );
    assert_eq!(shared, ["clicks".to_owned()].into());
    let of =
        |partition, users, watermark| told(Some(3), &[("clicks", partition, 5..9), ("users", 0, users)], watermark);
    let whole = |one, other| {
        let held = |snapshot: Arc<Snapshot>| {
            let mut held = Held::default();
            held.hold([(view.id.clone(), snapshot)].into());
            held
        };
        let whole = compose(&view, &shared, &[(0, held(one)), (1, held(other))].into());
        let unsure = whole.chunks.iter().filter_map(|chunk| chunk.unsure).collect::<Vec<_>>();
        (whole.coverage.get(&TopicPartition::new("users", 0)).cloned(), whole.coverage.partitions().count(), unsure)
    };
    assert_eq!(whole(of(0, 2..6, 10_000_000), of(1, 2..6, 20_000_000)), (Some(2..6), 3, vec![]));
    // Less the allowed lateness: what is older has settled, whatever came since.
    let expected = (Some(2..4), 3, vec![(9_000_000, i64::MAX)]);
    assert_eq!(whole(of(0, 2..6, 10_000_000), of(1, 2..4, 20_000_000)), expected);
}

#[test]
fn a_new_owner_is_listened_to_once_it_has_come_as_far_as_the_one_before_it() {
    let wire = Wire::new();
    let mut partitions: BTreeMap<Partition, Held> = [(0, Held::default())].into();
    let mut take = |offset, records: Payloads| {
        let views = std::slice::from_ref(&wire.view);
        let held = partitions.entry(0).or_default();
        for record in records.iter() {
            held.take(offset, record, views);
        }
        let whole = compose(&wire.view, &shared(), &partitions);
        (whole.coverage.next(&partition(0)), whole.stopped.is_some())
    };
    let at = |to| wire.snapshot(Some(1), &[0, to]);
    assert_eq!(take(6, wire.encode(&mut Encoder::new(5), &at(20), true)), (20, false));
    assert_eq!(take(30, wire::claim()), (20, false));
    let mut next = Encoder::new(30);
    assert_eq!(take(31, wire.encode(&mut next, &at(0), true)), (20, false), "it has just begun");
    assert_eq!(take(32, wire.encode(&mut next, &at(10), true)), (20, false));
    let stopped = Arc::new(Snapshot { stopped: Some("it can't".to_owned()), ..Snapshot::clone(&at(10)) });
    assert_eq!(take(33, wire.encode(&mut next, &stopped, true)), (10, true), "nobody goes on");
    assert_eq!(take(34, wire.encode(&mut next, &at(12), true)), (12, false), "it is the owner now");
    assert_eq!(take(35, wire.encode(&mut next, &at(25), true)), (25, false));
}

#[test]
fn a_watermark_goes_with_the_rows_that_are_shown() {
    let (view, shared) = waiting("SELECT count(*) AS n FROM clicks c LEFT JOIN buys b ON b.u = c.u AND b.ts = c.ts");
    let of = |base, partition, watermark| {
        told(Some(base), &[("buys", partition, 0..4), ("clicks", partition, 0..7)], watermark)
    };
    let mut held = [Held::default(), Held::default()];
    for (i, snapshot) in [(0, of(1, 0, 499)), (0, of(2, 0, 502)), (1, of(1, 1, 503))] {
        held[i].hold([(view.id.clone(), snapshot)].into());
    }
    let whole = compose(&view, &shared, &(0..).zip(held).collect());
    assert_eq!((whole.base, whole.watermark), (Some(1), Some(499)), "not that of rows on version 2");
}

#[test]
fn a_version_of_a_partition_that_nobody_tells_of_is_answered_with_all_its_rows_that_wait() {
    let (view, _) = waiting("SELECT count(*) AS n FROM clicks c JOIN buys b ON b.u = c.u AND b.ts = c.ts");
    let (publishes, published) = watch::channel(None);
    let (shows, shown) = watch::channel(Arc::new(Snapshot::default()));
    let snapshots = Snapshots([(view.id.clone(), shown)].into());
    let store = LayerStore::new(snapshots, Versions([(view.id.clone(), published)].into(), Default::default()));
    let coverage = |partitions: Range<Partition>| {
        let of = |p| ["buys", "clicks"].map(|topic| (TopicPartition::new(topic, p), 0..5));
        partitions.flat_map(of).collect::<Coverage<TopicPartition>>()
    };
    let publish = |coverage| {
        let published = Published {
            version: 3,
            definition: view.id.definition.clone(),
            coverage,
            event_times: Default::default(),
            published: 0,
            run: String::new(),
            rebuilds: 0,
            erased: Default::default(),
            panes: Vec::new(),
            state: None,
            log: Default::default(),
        };
        publishes.send_replace(Some(Arc::new(Version::new("nowhere".into(), published, false))));
    };
    shows.send_replace(told(Some(3), &[("buys", 0, 5..9), ("clicks", 0, 5..9)], 10));
    let chunks = || Sources::choose(&view, Mode::Merged, &store.get(&view), &Positions::new()).chunks.len();
    publish(coverage(0..1));
    assert_eq!(chunks(), 2);
    publish(coverage(0..2));
    assert_eq!(chunks(), 0, "what waits in partition 1 is only in the version");
}

#[test]
fn a_silent_partition_holds_back_what_says_that_nobody_came() {
    let progress = |watermark, idle| Progress { watermark: Some(watermark), idle, stalled: false };
    for (join, expected) in [("JOIN", Some(50)), ("LEFT JOIN", Some(20))] {
        let select = format!("SELECT count(*) AS n FROM clicks c {join} buys b ON b.u = c.u AND b.ts = c.ts");
        let (view, shared) = waiting(&select);
        let held = |partition: Partition, watermark, idle| {
            let mut snapshot =
                Snapshot::clone(&told(None, &[("clicks", partition, 0..1), ("buys", partition, 0..1)], watermark));
            snapshot.partitions.values_mut().for_each(|it| *it = progress(watermark, idle));
            let mut held = Held::default();
            held.hold([(view.id.clone(), Arc::new(snapshot))].into());
            (partition, held)
        };
        let whole = compose(&view, &shared, &[held(0, 50, false), held(1, 20, true)].into());
        assert_eq!(whole.watermark, expected, "{join}");
        // Some of its records have a time, and it has none yet as a whole.
        let mut begun = Held::default();
        let snapshot = told(None, &[("clicks", 1, 0..1), ("buys", 1, 0..1)], 20);
        let mut snapshot = Snapshot { watermark: None, ..Snapshot::clone(&snapshot) };
        snapshot.partitions.values_mut().for_each(|it| *it = progress(20, true));
        begun.hold([(view.id.clone(), Arc::new(snapshot))].into());
        let whole = compose(&view, &shared, &[held(0, 50, false), (1, begun)].into());
        assert_eq!(whole.watermark, expected.filter(|_| join == "JOIN"), "{join}");
    }
}

#[test]
fn a_log_that_is_away_is_asked_again_after_a_while_and_not_all_the_time() {
    let log = MemoryLog::default();
    log.set_away();
    let view = view("trending", Some(hop()), true, None);
    let catalog = Catalog {
        tables: [(view.table().name.clone(), view.table().clone())].into(),
        rows: BTreeMap::new(),
        views: [(view.id.name.clone(), Arc::clone(&view))].into(),
    };
    let shutdown = CancellationToken::new();
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    let (_snapshots, threads) = collect(&shared, &catalog, &shutdown).expect("started");
    let started = Instant::now();
    let mut asked = 0;
    while asked == 0 || started.elapsed() < Duration::from_millis(600) {
        asked += log.asked();
        std::thread::sleep(Duration::from_millis(10));
    }
    // Every five seconds for its snapshots, and every second whether it is another one.
    let seconds = started.elapsed().as_secs() as usize;
    assert!(asked <= 2 + seconds / 5 + seconds, "asked {asked} times in {:?}", started.elapsed());
    shutdown.cancel();
    threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
}
