use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_exchange::job::{Job, JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_log::clock::{Clock, ManualClock};
use anabranch_plan::schedule::{CatchUp, Schedule};
use anabranch_plan::time::{Micros, format_timestamp, parse_timestamp};
use anabranch_plan::view::Catalog;

use super::{Scheduler, pause};
use crate::fixture::{SECOND, catalog, table, view, with};
use crate::jobs::{JobQueue, Retry};

/// A process that follows the schedule of one view, again and again, and whose runs end as a test says.
struct Rig {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    catalog: Catalog,
    running: Option<(Arc<JobQueue>, Scheduler)>,
}

impl Rig {
    fn new(cron: &str, catch_up: CatchUp, now: &str) -> Self {
        let clock = Arc::new(ManualClock::new(0));
        let mut rig =
            Self { dir: tempfile::tempdir().expect("directory"), clock, catalog: Catalog::default(), running: None };
        rig.set(now);
        rig.reschedule(cron, catch_up);
        rig
    }

    /// Starts with another schedule.
    fn reschedule(&mut self, cron: &str, catch_up: CatchUp) {
        let schedule = Schedule::parse(cron, "UTC".parse().expect("UTC"), catch_up).ok();
        let view = with(&view("one", Arc::new(table()), None), |kept| kept.schedule = schedule);
        self.catalog = catalog(vec![view]);
        self.start();
    }

    fn set(&self, time: &str) {
        self.clock.set(parse_timestamp(&format!("2024-01-{time}Z")).expect("time"));
    }

    fn stop(&mut self) {
        self.running = None;
    }

    fn start(&mut self) {
        self.stop();
        let jobs = JobQueue::open(self.dir.path(), &self.catalog, self.clock.clone(), Retry::default());
        let jobs = Arc::new(jobs.expect("open"));
        let scheduler = Scheduler::new(&self.catalog, jobs.clone(), self.clock.clone());
        self.running = Some((jobs, scheduler));
    }

    fn jobs(&self) -> &JobQueue {
        &self.running.as_ref().expect("started").0
    }

    /// The run that is asked for now, if one is.
    fn step(&mut self) -> Option<Job> {
        let asked = self.running.as_mut().expect("started").1.step();
        assert!(asked.len() <= 1);
        asked.into_iter().next()
    }

    /// The time for which a run is asked for now.
    fn due(&mut self) -> Option<String> {
        self.step().map(|job| job.scheduled.expect("a time")[8..16].to_owned())
    }

    fn end(&self, state: JobState) {
        self.jobs().end_all(state, self.clock.now());
    }

    /// Lets a second pass after the other; the runs that are asked for until a time, each with when that was. All succeed.
    fn until(&mut self, time: &str) -> Vec<(String, String)> {
        let end = parse_timestamp(&format!("2024-01-{time}Z")).expect("time");
        let mut asked = Vec::new();
        let mut now: Micros = self.clock.now();
        while now < end {
            if let Some(due) = self.due() {
                asked.push((format_timestamp(now)[8..19].to_owned(), due));
                self.end(JobState::Succeeded);
            }
            now += SECOND;
            self.clock.set(now);
        }
        asked
    }
}

fn asked(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(at, due)| (at.to_owned(), due.to_owned())).collect()
}

#[test]
fn a_run_is_asked_for_when_its_time_has_come() {
    let mut rig = Rig::new("*/15 * * * *", CatchUp::Last, "15T10:07:30");
    assert_eq!(rig.step(), None);
    rig.set("15T10:14:59.999999");
    assert_eq!(rig.step(), None);
    rig.set("15T10:15:00");
    let job = rig.step().expect("a run");
    assert_eq!((job.views.as_slice(), job.trigger), (["one".to_owned()].as_slice(), Trigger::Schedule));
    assert_eq!(job.scheduled.as_deref(), Some("2024-01-15T10:15:00Z"));
    assert_eq!(rig.step(), None);
    // It waits still when the next time has come, and the one after that: one run makes up for both.
    rig.set("15T10:31:00");
    assert_eq!(rig.step(), None);
    rig.jobs().cancel(&job.id).expect("cancel");
    assert_eq!(rig.due().as_deref(), Some("15T10:30"), "that one was wanted no more, this one is");
    assert_eq!(rig.step(), None);
}

#[test]
fn every_due_run_is_made_once_in_a_day_of_seconds() {
    for catch_up in CatchUp::ALL {
        let mut rig = Rig::new("0 */6 * * *", catch_up, "15T00:00:01");
        let expected = [
            ("15T06:00:00", "15T06:00"),
            ("15T12:00:00", "15T12:00"),
            ("15T18:00:00", "15T18:00"),
            ("16T00:00:00", "16T00:00"),
        ];
        assert_eq!(rig.until("16T05:59:00"), asked(&expected), "{catch_up:?}");
    }
}

#[test]
fn a_run_that_ends_while_the_scheduler_looks_is_not_asked_for_again() {
    let mut rig = Rig::new("* * * * *", CatchUp::All, "15T00:00:00");
    rig.set("15T01:00:00");
    let (jobs, now, done) = (rig.running.as_ref().expect("started").0.clone(), rig.clock.now(), AtomicBool::new(false));
    let mut asked = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                jobs.end_all(JobState::Succeeded, now);
            }
        });
        while jobs.standing("one").expect("followed").dealt < now {
            asked.extend(rig.due());
        }
        done.store(true, Ordering::SeqCst);
    });
    let minutes: Vec<String> = (1..=60).map(|minute| format!("15T{:02}:{:02}", minute / 60, minute % 60)).collect();
    assert_eq!(asked, minutes);
}

#[test]
fn times_at_which_the_process_was_down_are_made_up_for_by_the_views_policy() {
    for (catch_up, expected) in [
        (CatchUp::Last, vec![("15T13:03:10", "15T13:00")]),
        (
            CatchUp::All,
            vec![
                ("15T13:03:10", "15T10:30"),
                ("15T13:03:11", "15T11:00"),
                ("15T13:03:12", "15T11:30"),
                ("15T13:03:13", "15T12:00"),
                ("15T13:03:14", "15T12:30"),
                ("15T13:03:15", "15T13:00"),
            ],
        ),
        (CatchUp::None, vec![]),
    ] {
        let mut rig = Rig::new("*/30 * * * *", catch_up, "15T09:59:59");
        assert_eq!(rig.until("15T10:10:00"), asked(&[("15T10:00:00", "15T10:00")]));
        rig.stop();
        rig.set("15T13:03:10");
        rig.start();
        let expected = [expected, vec![("15T13:30:00", "15T13:30")]].concat();
        assert_eq!(rig.until("15T13:40:00"), asked(&expected), "{catch_up:?}");
    }
}

#[test]
fn a_view_that_never_had_a_run_has_its_missed_ones_made_up_for_too() {
    let mut rig = Rig::new("0 3 * * *", CatchUp::Last, "15T10:00:00");
    // It is always down at that time.
    for day in 16..19 {
        rig.stop();
        rig.set(&format!("{day}T08:00:00"));
        rig.start();
        assert_eq!(rig.due(), Some(format!("{day}T03:00")));
        rig.end(JobState::Succeeded);
        assert_eq!(rig.step(), None);
    }
}

#[test]
fn a_minute_is_not_missed_by_a_quick_restart() {
    let mut rig = Rig::new("0 * * * *", CatchUp::None, "15T10:59:59");
    rig.stop();
    rig.set("15T11:00:40");
    rig.start();
    assert_eq!(rig.due().as_deref(), Some("15T11:00"));
    rig.end(JobState::Succeeded);
    rig.start();
    assert_eq!(rig.step(), None, "and not had twice");
    rig.set("15T12:00:00");
    let running = rig.step().expect("a run");
    // It is at work for so long that the next time passes, and the one after that.
    rig.set("15T14:00:30");
    assert_eq!(rig.step(), None);
    rig.set("15T14:01:30");
    rig.jobs().cancel(&running.id).expect("cancel");
    assert_eq!(rig.until("15T15:30:00"), asked(&[("15T15:00:00", "15T15:00")]));
}

#[test]
fn only_a_run_that_succeeded_counts_and_failed_ones_are_tried_again_after_longer_and_longer_pauses() {
    let mut rig = Rig::new("0 * * * *", CatchUp::Last, "15T10:59:59");
    let mut failed_at = Vec::new();
    let end = parse_timestamp("2024-01-15T12:30:00Z").expect("time");
    let mut now = parse_timestamp("2024-01-15T11:00:00Z").expect("time");
    while now < end {
        rig.clock.set(now);
        if rig.due().is_some() {
            failed_at.push(format_timestamp(now)[11..19].to_owned());
            rig.end(JobState::Failed);
            // Over restarts, too.
            rig.start();
        }
        now += SECOND;
    }
    let expected = [
        "11:00:00", "11:00:10", "11:00:30", "11:01:10", "11:02:30", "11:05:10", "11:10:30", "11:21:10", "11:42:30",
        "12:25:10",
    ];
    assert_eq!(failed_at, expected);
    assert_eq!(rig.jobs().metrics().schedules[0].failures, 10);
    rig.set("15T13:26:00");
    assert_eq!(rig.due().as_deref(), Some("15T13:00"));
    rig.end(JobState::Succeeded);
    let schedules = rig.jobs().metrics().schedules;
    assert_eq!((schedules[0].failures, schedules[0].due), (0, parse_timestamp("2024-01-15T14:00:00Z")));
    assert_eq!(rig.until("15T14:10:00"), asked(&[("15T14:00:00", "15T14:00")]));
    assert_eq!((pause(9), pause(10), pause(u32::MAX)), (2_560 * SECOND, 3_600 * SECOND, 3_600 * SECOND));
}

#[test]
fn with_all_a_failed_time_is_tried_again_before_the_next_one() {
    let mut rig = Rig::new("*/10 * * * *", CatchUp::All, "15T10:09:59");
    rig.set("15T10:10:00");
    assert_eq!(rig.due().as_deref(), Some("15T10:10"));
    rig.end(JobState::Failed);
    rig.set("15T10:20:00");
    assert_eq!(rig.due().as_deref(), Some("15T10:10"));
    rig.end(JobState::Succeeded);
    assert_eq!(rig.due().as_deref(), Some("15T10:20"));
}

#[test]
fn with_none_a_failed_time_is_not_tried_again() {
    let mut rig = Rig::new("*/10 * * * *", CatchUp::None, "15T10:09:59");
    rig.set("15T10:10:00");
    assert_eq!(rig.due().as_deref(), Some("15T10:10"));
    rig.end(JobState::Failed);
    assert_eq!(rig.until("15T10:25:00"), asked(&[("15T10:20:00", "15T10:20")]));
}

#[test]
fn a_run_by_hand_makes_up_for_the_times_before_it() {
    for (catch_up, expected) in [(CatchUp::Last, None), (CatchUp::All, Some("15T11:00"))] {
        let mut rig = Rig::new("0 * * * *", catch_up, "15T10:30:00");
        rig.set("15T11:20:00");
        let request = JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
        rig.jobs().submit(request, Trigger::Api).expect("submit");
        assert_eq!(rig.step(), None, "one run at a time");
        rig.end(JobState::Succeeded);
        assert_eq!(rig.due().as_deref(), expected, "{catch_up:?}");
    }
}

#[test]
fn a_clock_that_was_far_ahead_and_is_set_back_is_said_and_not_waited_for() {
    for catch_up in CatchUp::ALL {
        let mut rig = Rig::new("0 * * * *", catch_up, "15T10:30:00");
        let ahead = parse_timestamp("2025-02-18T10:59:59Z").expect("time");
        rig.clock.set(ahead);
        rig.start();
        while rig.step().is_some() {
            rig.end(JobState::Succeeded);
            if catch_up == CatchUp::All {
                // The rest of some 9,600.
                break;
            }
        }
        rig.clock.set(ahead + SECOND);
        rig.step();
        rig.end(JobState::Succeeded);
        rig.set("15T10:40:00");
        // Also after a restart, and only once.
        for restart in 0..2 {
            rig.start();
            if catch_up == CatchUp::All {
                while rig.step().is_some() {
                    rig.end(JobState::Succeeded);
                }
            }
            assert_eq!(rig.step(), None);
            assert_eq!(rig.jobs().metrics().set_back, 1 - restart, "{catch_up:?}");
        }
        assert_eq!(rig.until("15T12:01:00"), asked(&[("15T11:00:00", "15T11:00"), ("15T12:00:00", "15T12:00")]));
    }
}

#[test]
fn a_clock_that_is_set_back_by_a_little_makes_no_run_twice() {
    let mut rig = Rig::new("* * * * *", CatchUp::Last, "15T10:29:59");
    assert_eq!(rig.until("15T10:30:05").len(), 1);
    rig.set("15T10:29:58");
    assert_eq!(rig.until("15T10:31:30"), asked(&[("15T10:31:00", "15T10:31")]));
    assert_eq!(rig.jobs().metrics().set_back, 0);
}

#[test]
fn another_schedule_begins_anew() {
    for catch_up in CatchUp::ALL {
        let mut rig = Rig::new("0 3 * * *", catch_up, "15T10:00:00");
        rig.set("15T20:00:00");
        rig.reschedule("*/15 * * * *", catch_up);
        assert_eq!(rig.step(), None, "no time of it was before it was there");
        rig.set("15T20:15:00");
        assert_eq!(rig.due().as_deref(), Some("15T20:15"));
        rig.end(JobState::Succeeded);
        // The same schedule by another policy goes on.
        rig.stop();
        rig.set("15T20:35:00");
        rig.reschedule("*/15 * * * *", CatchUp::All);
        assert_eq!(rig.due().as_deref(), Some("15T20:30"));
    }
}

#[test]
fn a_run_that_cannot_be_asked_for_is_asked_for_again_after_longer_and_longer_pauses() {
    let mut rig = Rig::new("0 * * * *", CatchUp::Last, "15T10:59:59");
    rig.set("15T11:00:00");
    rig.jobs().fill();
    assert_eq!(rig.step(), None);
    rig.jobs().free();
    rig.set("15T11:00:09");
    assert_eq!(rig.step(), None, "it isn't tried each second");
    rig.set("15T11:00:10");
    assert_eq!(rig.due().as_deref(), Some("15T11:00"));
}

#[test]
fn a_schedule_that_the_build_before_followed_goes_on() {
    let mut rig = Rig::new("0 * * * *", CatchUp::Last, "15T10:30:00");
    rig.stop();
    std::fs::remove_dir_all(rig.dir.path().join("runs")).expect("removed");
    let job = serde_json::json!({
        "id": "run-000000000000000a", "kind": "batch", "views": ["one"], "state": "succeeded", "trigger": "schedule",
        "progress": 1.0, "queued": "2024-01-15T10:00:00Z", "started": "2024-01-15T10:00:00Z",
        "ended": "2024-01-15T10:00:01Z", "error": null, "versions": {"one": 3},
    });
    std::fs::write(rig.dir.path().join("runs.jsonl"), format!("{job}\n")).expect("written");
    rig.set("15T12:30:00");
    rig.start();
    assert_eq!(rig.due().as_deref(), Some("15T12:00"));
}

// What has been reported of other schedulers, and is tried here.

#[test]
fn a_machine_that_slept_for_a_year_goes_on_at_once() {
    let mut rig = Rig::new("* * * * *", CatchUp::Last, "15T10:00:30");
    rig.clock.set(parse_timestamp("2025-01-15T10:00:30Z").expect("time"));
    assert_eq!(rig.step().expect("a run").scheduled.as_deref(), Some("2025-01-15T10:00:00Z"));
    rig.end(JobState::Succeeded);
    assert_eq!(rig.step(), None);
    rig.clock.set(parse_timestamp("2025-01-15T10:01:00Z").expect("time"));
    assert!(rig.step().is_some());
}

#[test]
fn a_clock_that_is_set_back_and_then_right_again_makes_up_for_what_was_missed() {
    let mut rig = Rig::new("0 17 * * *", CatchUp::Last, "16T16:59:00");
    rig.set("15T16:59:00");
    assert_eq!(rig.step(), None);
    rig.set("16T17:00:30");
    assert_eq!(rig.due().as_deref(), Some("16T17:00"));
    rig.end(JobState::Succeeded);
    assert_eq!(rig.until("17T17:01:00"), asked(&[("17T17:00:00", "17T17:00")]));
}

#[test]
fn a_schedule_that_was_taken_out_and_put_in_again_makes_up_for_nothing() {
    for catch_up in CatchUp::ALL {
        let mut rig = Rig::new("*/15 * * * *", catch_up, "15T10:00:00");
        rig.catalog = catalog(vec![view("one", Arc::new(table()), None)]);
        rig.start();
        rig.set("15T12:05:00");
        rig.reschedule("*/15 * * * *", catch_up);
        assert_eq!(rig.step(), None, "{catch_up:?}");
        assert_eq!(rig.until("15T12:16:00"), asked(&[("15T12:15:00", "15T12:15")]));
    }
}

#[test]
fn a_long_run_of_one_view_holds_up_another_and_has_it_miss_nothing() {
    let mut rig = Rig::new("*/10 * * * *", CatchUp::Last, "15T10:09:59");
    let schedule = Schedule::utc("*/10 * * * *").ok();
    let often = |name| with(&view(name, Arc::new(table()), None), |kept| kept.schedule = schedule.clone());
    rig.catalog = catalog(vec![often("one"), often("two")]);
    rig.start();
    rig.set("15T10:10:00");
    let (jobs, scheduler) = rig.running.as_mut().expect("started");
    assert_eq!(scheduler.step().len(), 2);
    // One is at work, the other waits for as long as that takes, and isn't asked for again.
    let (first, _) = jobs.begin(&Default::default()).expect("it begins");
    rig.set("15T10:55:00");
    assert_eq!(rig.running.as_mut().expect("started").1.step(), []);
    rig.jobs().finish(&first, JobState::Succeeded, 0);
    rig.end(JobState::Succeeded);
    rig.set("15T10:56:00");
    let asked = rig.running.as_mut().expect("started").1.step();
    assert_eq!(asked.iter().map(|job| job.views[0].as_str()).collect::<Vec<_>>(), [first.views[0].as_str()]);
}

#[test]
fn a_job_that_ends_without_having_begun_has_its_times() {
    let rig = Rig::new("* * * * *", CatchUp::Last, "15T10:00:00");
    let request = JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
    let job = rig.jobs().submit(request, Trigger::Api).expect("submit");
    rig.set("15T10:00:05");
    let cancelled = rig.jobs().cancel(&job.id).expect("cancel");
    assert_eq!((cancelled.started, cancelled.ended.as_deref()), (None, Some("2024-01-15T10:00:05Z")));
}
