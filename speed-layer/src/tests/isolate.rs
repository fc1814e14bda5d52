//! One view that fails beside others that don't.

use std::sync::Arc;

use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::Log;
use anabranch_log::position::Coverage;
use anabranch_plan::aggregation::Late;
use anabranch_plan::expr::{Expr, Function};
use anabranch_plan::window::Window;

use super::kit::{SECOND, named, partition, rows_of, sums, with};
use super::pipeline::{Rig, stream};
use crate::SpeedLayer;

/// A rig whose catalog has a view beside `sums`, which is like it but for its name and how it takes late events.
fn with_neighbour(name: &str, late: Late) -> Rig {
    let mut rig = Rig::new(1);
    let like = sums(rig.view.table(), Some(Window::sliding(10 * SECOND, 5 * SECOND)), 0);
    let view = named(&with(&like, |kept| kept.late = late), name, &format!("sha256:{name}"));
    rig.add(&view);
    rig
}

/// Has the evaluation of one view do so, until this is dropped.
struct Failpoint(String);

impl Failpoint {
    fn set(view: &str, action: &str) -> Self {
        let name = format!("speed::evaluate::{view}");
        fail::cfg(&name, action).expect("an action");
        Self(name)
    }
}

impl Drop for Failpoint {
    fn drop(&mut self) {
        fail::remove(&self.0);
    }
}

/// What a stopped view and its neighbour say once the neighbour has all of the log.
fn stopped(rig: &Rig, layer: &SpeedLayer, view: &str) -> Arc<Snapshot> {
    let stopped = rig
        .wait(layer, view, |snapshot| snapshot.stopped.as_ref().is_some_and(|why| !why.starts_with("it catches up")));
    assert!(stopped.alone && stopped.lost.is_empty());
    rig.check(&rig.wait_for_all(layer));
    assert_eq!(layer.metrics()["clicks"].stopped, None, "the source goes on");
    let (why, of_neighbour) = {
        let views = &layer.metrics()["clicks"].views;
        (views[view].clone(), views["sums"].clone())
    };
    assert_eq!((why, of_neighbour), (stopped.stopped.clone(), None));
    stopped
}

/// Waits until a view says of the whole log what its neighbour says.
fn healed(rig: &Rig, layer: &SpeedLayer, view: &str) {
    let expected = rig.wait_for_all(layer);
    rig.check(&expected);
    let ends = expected.coverage.ends();
    let healed = rig.wait(layer, view, |snapshot| snapshot.stopped.is_none() && snapshot.coverage.ends() == ends);
    assert_eq!((rows_of(&healed), healed.late), (rows_of(&expected), expected.late));
    assert_eq!(healed.watermark, expected.watermark);
}

fn a_view_that_fails_stops_alone(view: &str, action: &str, why: &str) {
    let mut rig = with_neighbour(view, Late::Discard);
    let events = stream();
    let layer = rig.start();
    rig.append(0, &events[..6]);
    let before = rig.wait(&layer, view, |snapshot| snapshot.coverage.len() == 6);
    let failpoint = Failpoint::set(view, action);
    rig.append(0, &events[6..9]);
    let first = stopped(&rig, &layer, view);
    let reason = first.stopped.clone().expect("a reason");
    assert!(reason.starts_with(why), "{reason}");
    // What the failed micro-batch had left of itself counts nowhere.
    assert_eq!((&first.coverage, rows_of(&first)), (&before.coverage, rows_of(&before)));
    assert_eq!((first.late, first.watermark), (before.late, before.watermark));
    // Its neighbours go on, and it stays where it is.
    rig.append(0, &events[9..12]);
    rig.check(&rig.wait_for_all(&layer));
    assert_eq!(rig.wait(&layer, view, |_| true).coverage, first.coverage);
    layer.stop();
    // Another life that finds it no better.
    let layer = rig.start();
    let again = stopped(&rig, &layer, view);
    assert_eq!((&again.coverage, again.late), (&first.coverage, first.late));
    layer.stop();
    drop(failpoint);
    // And one after the fix, while more comes.
    let layer = rig.start();
    rig.append(0, &events[12..]);
    healed(&rig, &layer, view);
    assert!(rig.oracle.late() > 3, "the stream has late events");
    layer.stop();
    let layer = rig.start();
    healed(&rig, &layer, view);
    assert_eq!(layer.metrics()["clicks"].events, 0, "nothing was left to fold");
    layer.stop();
}

#[test]
fn a_view_whose_evaluation_fails_stops_alone_and_catches_up_after_a_fix() {
    a_view_that_fails_stops_alone("failing", "return", "evaluating a micro-batch failed: a failpoint is set");
}

#[test]
fn a_view_whose_evaluation_panics_stops_alone_and_catches_up_after_a_fix() {
    a_view_that_fails_stops_alone("panicking", "panic", "a fault in the program: failpoint speed::evaluate::panicking");
}

#[test]
fn a_view_that_cannot_be_lowered_stops_alone() {
    let mut rig = with_neighbour("broken", Late::Discard);
    let view = rig.context.catalog.kept_view("broken").expect("a view");
    // No planner leaves a call without its argument.
    rig.add(&with(&view, |kept| kept.keys[0].expr = Expr::Call(Function::Lower, vec![])));
    let layer = rig.start();
    rig.append(0, &stream());
    let reason = stopped(&rig, &layer, "broken").stopped.clone().expect("a reason");
    assert!(reason.starts_with("a fault in the program: index out of bounds"), "{reason}");
    layer.stop();
}

#[test]
fn a_view_that_fails_in_a_refold_stops_alone() {
    let mut rig = with_neighbour("refolding", Late::Discard);
    let layer = rig.start();
    rig.append(0, &stream());
    let whole = rig.wait_for_all(&layer);
    let before = rig.wait(&layer, "refolding", |snapshot| snapshot.coverage == whole.coverage);
    let failpoint = Failpoint::set("refolding", "return");
    rig.publish_of("refolding", 1, &[(0, 5)]);
    let stopped = stopped(&rig, &layer, "refolding");
    assert_eq!((stopped.base, &stopped.coverage), (None, &before.coverage), "it stays on what it stood on");
    assert_eq!(rows_of(&stopped), rows_of(&before));
    layer.stop();
    drop(failpoint);
    let layer = rig.start();
    let healed = rig.wait(&layer, "refolding", |snapshot| snapshot.base == Some(1) && snapshot.stopped.is_none());
    assert_eq!(healed.coverage, Coverage::from_iter([(partition(0), 5..16)]));
    layer.stop();
}

#[test]
fn a_stopped_view_goes_on_from_a_version_beyond_without_a_restart() {
    let mut rig = with_neighbour("overtaken", Late::Discard);
    let layer = rig.start();
    rig.append(0, &stream()[..4]);
    rig.wait_for_all(&layer);
    let failpoint = Failpoint::set("overtaken", "return");
    rig.append(0, &stream()[4..8]);
    stopped(&rig, &layer, "overtaken");
    drop(failpoint);
    rig.append(0, &stream()[8..]);
    rig.check(&rig.wait_for_all(&layer));
    rig.publish_of("overtaken", 1, &[(0, 8)]);
    let wanted = Coverage::from_iter([(partition(0), 8..16)]);
    let snapshot = rig.wait(&layer, "overtaken", |snapshot| snapshot.stopped.is_none());
    assert_eq!((snapshot.base, &snapshot.coverage), (Some(1), &wanted));
    layer.stop();
}

#[test]
fn late_events_that_have_nowhere_to_go_stop_their_view_alone_and_are_written_once_they_have() {
    let mut rig = with_neighbour("telling", Late::Topic("nowhere".to_owned()));
    let layer = rig.start();
    rig.append(0, &stream());
    let stopped = stopped(&rig, &layer, "telling");
    let reason = stopped.stopped.clone().expect("a reason");
    assert!(reason.contains("writing late events failed"), "{reason}");
    layer.stop();
    rig.log.create_topic("nowhere", 1).expect("a topic");
    let layer = rig.start();
    healed(&rig, &layer, "telling");
    layer.stop();
    assert_eq!(rig.log.length("nowhere"), rig.oracle.late(), "each of them once");
}

#[test]
fn what_retention_took_of_a_stopped_view_stops_no_other() {
    let mut rig = with_neighbour("forgotten", Late::Discard);
    let layer = rig.start();
    rig.append(0, &stream()[..4]);
    rig.wait_for_all(&layer);
    let failpoint = Failpoint::set("forgotten", "return");
    rig.append(0, &stream()[4..12]);
    let at = stopped(&rig, &layer, "forgotten").coverage.next(&partition(0));
    layer.stop();
    drop(failpoint);
    rig.log.forget_before("clicks", 0, 12);
    let layer = rig.start();
    rig.append(0, &stream()[12..]);
    let snapshot = rig.wait(&layer, "forgotten", |snapshot| !snapshot.lost.is_empty());
    assert!(snapshot.alone && snapshot.stopped.as_ref().is_some_and(|why| why.contains("are wanted")), "{snapshot:?}");
    assert_eq!(snapshot.lost, Coverage::from_iter([(partition(0), at..12)]));
    let neighbour = rig.wait_for_all(&layer);
    rig.check(&neighbour);
    layer.stop();
}
