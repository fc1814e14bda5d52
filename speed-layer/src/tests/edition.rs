//! Records that another definition of their table governs.

use anabranch_shared::edition::Editions;
use anabranch_shared::position::Positions;
use anabranch_shared::schema::Table;
use anabranch_shared::snapshot::Snapshot;
use anabranch_shared::table::Layout;

use super::kit::{event, rows_of};
use super::pipeline::Rig;

/// How many events there are, and the sum of their values.
fn totals(snapshot: &Snapshot) -> (i64, i64) {
    rows_of(snapshot).values().fold((0, 0), |(n, total), row| (n + row.0, total + row.1))
}

/// The table had no `v` before offset 3.
fn editions(table: &Table) -> Editions {
    let layout = Layout { columns: Vec::new(), partition_by: Vec::new() };
    let mut old = table.clone();
    old.columns.truncate(2);
    let first = Editions::default().declared(&old, &Positions::new(), &layout).expect("declared").expect("new");
    first.declared(table, &Positions::from([(0, 3)]), &layout).expect("declared").expect("another")
}

#[test]
fn a_column_is_null_below_its_beginning_and_state_that_says_otherwise_is_folded_anew() {
    let mut rig = Rig::new(1);
    rig.append(0, &[event(1, "a", 1), event(2, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"1970-01-01T00:00:03Z","k":"a"}"#);
    rig.append(0, &[event(4, "a", 1), event(5, "a", 1)]);
    rig.log.add("clicks", 0, r#"{"ts":"1970-01-01T00:00:06Z","k":"a"}"#);
    // As if there had never been another definition: both records without `v` are rejected.
    let layer = rig.start();
    assert_eq!(totals(&rig.wait_for_all(&layer)), (4, 4));
    layer.stop();
    rig.context.editions = [("clicks".to_owned(), editions(&rig.view.table))].into();
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
