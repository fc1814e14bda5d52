//! Records that another definition of their table governs.

use anabranch_engine::edition::{Editions, Reading};
use anabranch_exchange::reading::Readings;
use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::position::Positions;
use anabranch_plan::schema::Layout;
use anabranch_plan::schema::{DataType, Table};
use tokio::sync::watch;

use super::kit::{event, partition, rows_of};
use super::pipeline::Rig;

/// How many events there are, and the sum of their values.
fn totals(snapshot: &Snapshot) -> (i64, i64) {
    rows_of(snapshot).values().fold((0, 0), |(n, total), row| (n + row.0, total + row.1))
}

/// The editions of these definitions, each of which begins at an offset.
fn editions(tables: &[(u64, &Table)]) -> Editions {
    let layout = Layout { columns: Vec::new(), partition_by: Vec::new() };
    tables.iter().fold(Editions::default(), |editions, &(begin, table)| {
        let begins = Positions::from([(0, begin)]);
        editions.declared(table, &begins, &layout).expect("declared").expect("another")
    })
}

/// The table had no `v` before offset 3.
fn without_v(table: &Table) -> Editions {
    let mut old = table.clone();
    old.columns.truncate(2);
    editions(&[(0, &old), (3, table)])
}

/// Has the rig's table be read like this, until something else is sent.
fn read(rig: &mut Rig, reading: Reading) -> watch::Sender<Reading> {
    let (sender, receiver) = watch::channel(reading);
    rig.context.readings = Readings([("clicks".to_owned(), receiver)].into());
    sender
}

/// Six records, the third and the last of which have no `v`.
fn six(rig: &mut Rig) {
    rig.append(0, &[event(1, "a", 1), event(2, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"1970-01-01T00:00:03Z","k":"a"}"#);
    rig.append(0, &[event(4, "a", 1), event(5, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"1970-01-01T00:00:06Z","k":"a"}"#);
}

#[test]
fn a_column_is_null_below_its_beginning_and_state_that_says_otherwise_is_folded_anew() {
    let mut rig = Rig::new(1);
    six(&mut rig);
    // As if there had never been another definition: both records without `v` are rejected.
    let layer = rig.start();
    assert_eq!(totals(&rig.wait_for_all(&layer)), (4, 4));
    layer.stop();
    let reading = Reading { editions: without_v(rig.view.table()), rebuilds: 0 };
    let _sender = read(&mut rig, reading);
    for _ in 0..2 {
        let layer = rig.start();
        let snapshot = rig.wait_for_all(&layer);
        assert_eq!(
            (totals(&snapshot), &snapshot.stopped),
            ((5, 2), &None),
            "the checkpoint is of the same records otherwise"
        );
        layer.stop();
    }
    // A frontier below the beginning: the rest of the chunk is read again, by the same definitions.
    rig.publish(1, &[(0, 2)], &[(0, 2_000_000)]);
    let layer = rig.start();
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(1));
    assert_eq!(totals(&snapshot), (3, 2));
    layer.stop();
}

#[test]
fn a_source_at_work_begins_anew_once_its_archive_is_rebuilt() {
    let mut rig = Rig::new(1);
    six(&mut rig);
    let sender = read(&mut rig, Reading::default());
    let layer = rig.start();
    rig.wait_for_all(&layer);
    rig.publish(1, &[(0, 2)], &[(0, 2_000_000)]);
    rig.wait(&layer, "sums", |snapshot| snapshot.base == Some(1) && totals(snapshot) == (2, 2));
    sender.send_replace(Reading { editions: without_v(rig.view.table()), rebuilds: 1 });
    // The view that has no version is folded from the log's beginning.
    let top = rig.wait(&layer, "top", |snapshot| snapshot.rebuilds == 1 && snapshot.coverage.len() == 6);
    assert_eq!((totals(&top).0, &top.stopped), (5, &None));
    // The version of the other was computed before. There is nothing of it, and why, until there is one from since.
    let waiting = rig.wait(&layer, "sums", |snapshot| snapshot.rebuilds == 1 && snapshot.alone);
    assert!(
        waiting.stopped.as_ref().is_some_and(|why| why.contains("no version is computed from it yet")),
        "{waiting:?}"
    );
    assert_eq!((waiting.chunks.len(), waiting.coverage.len(), waiting.base), (0, 0, None));
    rig.rebuilds = 1;
    rig.publish(2, &[(0, 3)], &[(0, 3_000_000)]);
    let snapshot = rig.wait(&layer, "sums", |snapshot| {
        assert_eq!(snapshot.rebuilds, 1);
        snapshot.base == Some(2) && snapshot.stopped.is_none()
    });
    assert_eq!((totals(&snapshot), snapshot.coverage.get(&partition(0))), ((2, 2), Some(&(3..6))));
    // A version of before isn't gone over to.
    rig.rebuilds = 0;
    rig.publish(3, &[(0, 4)], &[]);
    rig.append(0, &[event(7, "a", 1)]);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((totals(&snapshot), snapshot.base), ((3, 3), Some(2)));
    layer.stop();
}

#[test]
fn no_view_is_folded_from_what_the_log_has_let_go_while_its_version_is_awaited() {
    let mut rig = Rig::new(1);
    six(&mut rig);
    rig.publish(1, &[(0, 4)], &[(0, 4_000_000)]);
    rig.publish_of("top", 1, &[(0, 4)]);
    rig.log.forget_before("clicks", 0, 4);
    let reading = Reading { editions: without_v(rig.view.table()), rebuilds: 1 };
    let _sender = read(&mut rig, reading);
    let layer = rig.start();
    rig.wait(&layer, "sums", |snapshot| snapshot.alone);
    rig.append(0, &[event(7, "a", 1)]);
    rig.rebuilds = 1;
    rig.publish(2, &[(0, 4)], &[(0, 4_000_000)]);
    let snapshot = rig.wait(&layer, "sums", |snapshot| snapshot.coverage.len() == 3 && snapshot.stopped.is_none());
    assert_eq!((totals(&snapshot), snapshot.base), ((2, 2), Some(2)));
    layer.stop();
}

#[test]
fn another_definition_elsewhere_disturbs_no_source_and_is_what_its_records_are_read_by_afterwards() {
    let mut rig = Rig::new(1);
    let own = rig.view.table().clone();
    let mut other = own.as_ref().clone();
    other.columns[2].data_type = DataType::Text;
    let mut then = vec![(0, &*own)];
    let sender = read(&mut rig, Reading { editions: editions(&then), rebuilds: 0 });
    rig.append(0, &[event(1, "a", 1), event(2, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"1970-01-01T00:00:03Z","k":"a","v":"x"}"#);
    rig.append(0, &[event(4, "a", 1)]);
    let layer = rig.start();
    assert_eq!(totals(&rig.wait_for_all(&layer)), (3, 3));
    then.push((2, &other));
    sender.send_replace(Reading { editions: editions(&then), rebuilds: 0 });
    rig.append(0, &[event(5, "a", 1)]);
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((totals(&snapshot), &snapshot.stopped), ((4, 4), &None), "by the definition that it began with");
    // Its own is in force again, and the third record was an event by the other, the fourth was none.
    then.push((4, &own));
    sender.send_replace(Reading { editions: editions(&then), rebuilds: 0 });
    let snapshot = rig.wait(&layer, "sums", |snapshot| totals(snapshot) == (4, 3));
    assert_eq!(snapshot.stopped, None);
    layer.stop();
}

#[test]
fn a_source_does_not_begin_under_a_definition_that_is_not_in_force() {
    let mut rig = Rig::new(1);
    let own = rig.view.table().clone();
    let mut other = own.as_ref().clone();
    other.columns[0].name = "at".to_owned();
    let sender = read(&mut rig, Reading { editions: editions(&[(0, &other)]), rebuilds: 0 });
    six(&mut rig);
    let layer = rig.start();
    let stopped = rig.wait(&layer, "sums", |snapshot| snapshot.stopped.is_some());
    let why = stopped.stopped.as_ref().expect("a reason");
    assert!(why.contains("its event time is `ts` now") && why.contains("archive rebuild clicks"), "{why}");
    assert_eq!((stopped.alone, stopped.chunks.len()), (false, 0));
    assert_eq!(layer.metrics()["clicks"].stopped.as_ref(), Some(why));
    sender.send_replace(Reading { editions: editions(&[(0, &own)]), rebuilds: 1 });
    let snapshot = rig.wait_for_all(&layer);
    assert_eq!((totals(&snapshot), &snapshot.stopped), ((4, 4), &None));
    assert_eq!(layer.metrics()["clicks"].stopped, None);
    layer.stop();
}
