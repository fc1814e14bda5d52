//! What stream processors are known to fall into. `docs/reliability.md` lists all of it.

use std::sync::Arc;

use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::position::{Partition, Positions};
use anabranch_plan::schema::Table;

use super::kit::{Event, Rows, SECOND, event, partition, rows_of, table};
use super::pipeline::Rig;

const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

/// Events a minute apart, in order.
fn minutes(from: i64, count: i64) -> Vec<Event> {
    (0..count).map(|minute| event(from + minute * 60, ["a", "b"][minute as usize % 2], minute)).collect()
}

/// A rig whose table turns away what lies more than a minute ahead of the log's time.
fn with_max_future(now: i64) -> Rig {
    let rig = Rig::of(Arc::new(Table { max_future: Some(60 * SECOND), ..Table::clone(&table(2 * SECOND)) }), 1);
    rig.log.set_time(now * SECOND);
    rig
}

fn idle(snapshot: &Snapshot) -> Vec<Partition> {
    snapshot.partitions.iter().filter(|(_, progress)| progress.idle).map(|(of, _)| of.partition).collect()
}

#[test]
fn a_timestamp_in_2099_is_rejected_and_moves_no_watermark() {
    let mut rig = with_max_future(100);
    let layer = rig.start();
    rig.append(0, &[event(90, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"2099-12-31T23:59:59Z","k":"a","v":1}"#);
    rig.append(0, &[event(85, "a", 1), event(160, "a", 1)]);
    let snapshot = rig.wait_for_all(&layer);
    rig.check(&snapshot);
    assert_eq!(
        (snapshot.watermark, layer.metrics()["clicks"].rejected),
        (Some(158 * SECOND), 1),
        "160 is just near enough"
    );
    layer.stop();
}

#[test]
fn a_restart_readmits_nothing_that_was_rejected() {
    let mut rig = with_max_future(100);
    // What counts is when the log took it, so it's also rejected by whoever reads it once its time has come.
    rig.context.checkpoints = None;
    rig.append(0, &[event(90, "a", 1)]);
    rig.log.add("clicks", 0, &event(161, "a", 1).json());
    rig.append(0, &[event(20, "late", 1)]);
    assert_eq!(rig.oracle.late(), 1);
    for now in [100, 200, YEAR] {
        rig.clock.set(now * SECOND);
        let layer = rig.start();
        rig.check(&rig.wait_for_all(&layer));
        assert_eq!(layer.metrics()["clicks"].rejected, 1);
        layer.stop();
    }
}

#[test]
fn a_late_event_is_late_after_a_restart_too() {
    let mut rig = Rig::new(1);
    rig.append(0, &[event(90, "a", 1)]);
    let layer = rig.start();
    rig.wait_for_all(&layer);
    layer.stop();
    rig.append(0, &[event(20, "late", 1)]);
    let layer = rig.start();
    let snapshot = rig.wait_for_all(&layer);
    rig.check(&snapshot);
    assert_eq!((snapshot.late, layer.metrics()["clicks"].events), (1, 1), "the watermark was in the checkpoint");
    layer.stop();
}

#[test]
fn a_reader_that_was_paused_finds_no_partition_idle() {
    let mut rig = Rig::new(2);
    rig.context.settings.batch_records = 1;
    let layer = rig.start();
    rig.append(0, &[event(1, "a", 1)]);
    rig.append(1, &[event(1, "a", 1)]);
    rig.wait_for_all(&layer);
    rig.log.hold_up(true);
    rig.append(0, &[event(100, "a", 1), event(110, "a", 1)]);
    rig.append(1, &[event(50, "b", 1), event(52, "b", 1), event(55, "b", 1)]);
    rig.clock.set(2 * HOUR * SECOND);
    rig.log.hold_up(false);
    let snapshot = rig.wait_for_all(&layer);
    rig.check(&snapshot);
    assert_eq!(
        (snapshot.late, snapshot.watermark),
        (0, Some(53 * SECOND)),
        "partition 1 had unread records all the time"
    );
    layer.stop();
}

#[test]
fn the_end_of_the_input_is_not_the_end_of_time() {
    let mut rig = Rig::new(2);
    let layer = rig.start();
    rig.append(0, &[event(100, "a", 1)]);
    rig.append(1, &[event(103, "b", 1)]);
    rig.wait_for_all(&layer);
    rig.clock.set(YEAR * SECOND);
    let snapshot = rig.wait(&layer, "sums", Snapshot::is_idle);
    assert_eq!(snapshot.watermark, Some(98 * SECOND), "the newest window isn't complete because nothing comes");
    rig.check(&snapshot);
    rig.append(1, &[event(101, "b", 1)]);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((snapshot.late, idle(&snapshot)), (0, vec![0]));
    layer.stop();
}

#[test]
fn partitions_two_hours_apart_give_the_same_answers_however_they_are_read() {
    let read = |turns: &[&[Partition]]| -> (Rows, Option<i64>) {
        let mut rig = Rig::new(2);
        rig.context.settings.batch_records = 1;
        let layer = std::cell::OnceCell::new();
        for partitions in turns {
            for &partition in *partitions {
                rig.append(partition, &minutes((10 - 2 * i64::from(partition)) * HOUR, 180));
            }
            rig.wait_for_all(layer.get_or_init(|| rig.start()));
        }
        let layer = layer.into_inner().expect("started");
        let snapshot = rig.wait_for_all(&layer);
        assert_eq!(snapshot.late, 0, "read as {turns:?}");
        layer.stop();
        (rows_of(&snapshot), snapshot.watermark)
    };
    let interleaved = read(&[&[0, 1]]);
    assert_eq!(interleaved.0.values().map(|(count, _)| count).sum::<i64>(), 360);
    assert_eq!(interleaved.1, Some((8 * HOUR + 179 * 60 - 2) * SECOND));
    assert_eq!(read(&[&[0], &[1]]), interleaved);
    assert_eq!(read(&[&[1], &[0]]), interleaved);
}

#[test]
fn a_clock_set_back_makes_no_partition_idle_and_moves_no_watermark() {
    let mut rig = Rig::new(2);
    rig.clock.set(HOUR * SECOND);
    let layer = rig.start();
    rig.append(0, &minutes(0, 20));
    rig.append(1, &minutes(0, 20));
    let before = rig.wait_for_all(&layer);
    rig.check(&before);
    for now in [10, 15, 25] {
        rig.clock.set(now * SECOND);
        let second = 1_140 + now;
        rig.append(0, &[event(second, "a", 1)]);
        let snapshot = rig.wait_for_all(&layer);
        rig.check(&snapshot);
        assert_eq!((snapshot.watermark, idle(&snapshot)), (before.watermark, vec![]), "partition 1 is waited for");
    }
    // Once it has gone on for long enough from there, the partition is idle after all: not only once it has caught up.
    rig.clock.set(40 * SECOND);
    rig.append(0, &[event(1_200, "a", 1)]);
    let snapshot = rig.wait(&layer, "sums", |snapshot| idle(snapshot) == [1]);
    assert_eq!(snapshot.watermark, Some(1_198 * SECOND));
    layer.stop();
}

#[test]
fn offsets_that_compaction_left_out_are_covered_and_no_event_is_lost() {
    let mut rig = Rig::new(1);
    rig.append(0, &minutes(0, 12));
    for gone in [0, 4, 5, 6, 11] {
        rig.log.compact("clicks", 0, gone);
        rig.oracle.seen.retain(|seen| seen.offset != gone);
    }
    for records in [1, 3, 100] {
        rig.context.settings.batch_records = records;
        rig.context.checkpoints = None;
        let layer = rig.start();
        let snapshot = rig.wait_for_all(&layer);
        assert_eq!(snapshot.coverage.starts(), Positions::from([(partition(0), 0)]));
        assert_eq!((rows_of(&snapshot), snapshot.late), (rig.oracle.rows(&rig.view, &Positions::new()), 0));
        layer.stop();
    }
    // A version may end in the midst of a hole.
    let layer = rig.start();
    for (version, frontier) in [(1, 1), (2, 5), (3, 6), (4, 12)] {
        rig.wait_for_all(&layer);
        rig.publish(version, &[(0, frontier)], &[]);
        let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(version));
        let from = Positions::from([(partition(0), frontier)]);
        assert_eq!((rows_of(&snapshot), snapshot.coverage.starts()), (rig.oracle.rows(&rig.view, &from), from));
    }
    layer.stop();
}
