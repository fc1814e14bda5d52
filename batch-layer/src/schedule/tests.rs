use std::path::Path;
use std::sync::Arc;

use anabranch_shared::clock::{ManualClock, parse_timestamp};
use anabranch_shared::job::{Jobs, Trigger};
use anabranch_shared::version::Versions;
use anabranch_shared::view::Catalog;

use super::{Schedule, validate};
use crate::fixture::{catalog, table, view};
use crate::jobs::{JobQueue, Retry};

fn scheduled() -> Catalog {
    let mut quarters = view("quarters", Arc::new(table()), None);
    quarters.schedule = Some("*/15 * * * *".into());
    catalog(vec![quarters, view("never", Arc::new(table()), None)])
}

fn open(dir: &Path, clock: &Arc<ManualClock>) -> (Arc<JobQueue>, Schedule) {
    let path = dir.join("runs.jsonl");
    let jobs = Arc::new(JobQueue::open(&path, &scheduled(), clock.clone(), Retry::default()).expect("open"));
    let schedule = Schedule::new(&scheduled(), jobs.clone(), &Versions::default(), clock.clone()).expect("schedule");
    (jobs, schedule)
}

fn set(clock: &ManualClock, time: &str) {
    clock.set(parse_timestamp(&format!("2024-01-15T{time}Z")).expect("time"));
}

#[test]
fn expressions_are_checked() {
    for good in ["*/15 * * * *", "0 3 * * 1-5", "@hourly", "30 2 1 1 *"] {
        assert_eq!(validate(good), Ok(()), "{good}");
    }
    for bad in ["", "* * *", "61 * * * *", "every minute", "* * * * * *", "0 0 30 2 *"] {
        let why = validate(bad).expect_err(bad);
        assert!(why.contains(&format!("`{bad}`")), "{why}");
    }
}

#[test]
fn a_run_is_asked_for_when_its_time_has_come() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(0));
    set(&clock, "10:07:30");
    let (jobs, mut schedule) = open(dir.path(), &clock);
    assert!(schedule.step().is_empty());
    set(&clock, "10:14:59.999999");
    assert!(schedule.step().is_empty());
    set(&clock, "10:15:00");
    let asked = schedule.step();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].views.as_slice(), asked[0].trigger), (["quarters".to_owned()].as_slice(), Trigger::Schedule));
    assert!(schedule.step().is_empty());
    // The run still waits when the next time has come, and the one after that: one run makes up for both.
    set(&clock, "10:31:00");
    assert!(schedule.step().is_empty());
    jobs.cancel(&asked[0].id).expect("cancel");
    assert_eq!(schedule.step().len(), 1);
    assert!(schedule.step().is_empty());
}

#[test]
fn times_missed_while_the_process_was_down_are_made_up_for_once() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(0));
    set(&clock, "10:14:00");
    let (jobs, mut schedule) = open(dir.path(), &clock);
    set(&clock, "10:15:00");
    let asked = schedule.step();
    jobs.cancel(&asked[0].id).expect("cancel");
    drop((jobs, schedule));
    set(&clock, "13:03:00");
    let (jobs, mut schedule) = open(dir.path(), &clock);
    let made_up = schedule.step();
    assert_eq!(made_up.len(), 1);
    jobs.cancel(&made_up[0].id).expect("cancel");
    assert!(schedule.step().is_empty());
    set(&clock, "13:15:00");
    assert_eq!(schedule.step().len(), 1);
}
