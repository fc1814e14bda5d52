//! The clock of the processes, which jumps, and the runs that are due by it: those of a view with a schedule of each full hour.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anabranch_log::clock::{Clock as _, SystemClock};
use anabranch_plan::time::{Micros, parse_timestamp};
use serde_json::Value;

const SECOND: Micros = 1_000_000;
const HOUR: Micros = 3_600 * SECOND;

/// Hours are counted from the one in which the test begins. The clock is always put to the beginning of one, so none begins by
/// itself while a test lasts less than an hour.
pub struct Clock {
    /// Tells processes by how much their clock is ahead.
    pub file: PathBuf,
    begin: Micros,
    hour: i64,
}

impl Clock {
    pub fn new(file: PathBuf) -> Self {
        let begin = SystemClock.now() / HOUR * HOUR;
        let clock = Self { file, begin, hour: 0 };
        clock.shift(0);
        clock
    }

    pub fn hour(&self) -> i64 {
        self.hour
    }

    /// Puts the clock to an hour.
    pub fn set(&mut self, hour: i64) {
        self.hour = hour;
        self.shift(0);
    }

    /// Puts the clock to so many seconds before or after the beginning of its hour.
    pub fn shift(&self, seconds: i64) {
        let time = self.start_of(self.hour) + (3 + seconds) * SECOND;
        let next = self.file.with_extension("next");
        std::fs::write(&next, (time - SystemClock.now()).to_string()).expect("written");
        std::fs::rename(&next, &self.file).expect("renamed");
    }

    pub fn start_of(&self, hour: i64) -> Micros {
        self.begin + hour * HOUR
    }

    /// In seconds since 1970, as metrics have it.
    pub fn next_due(&self) -> f64 {
        (self.start_of(self.hour + 1) / SECOND) as f64
    }

    fn hour_of(&self, time: &Value) -> Option<i64> {
        Some((parse_timestamp(time.as_str()?)? - self.begin).div_euclid(HOUR))
    }
}

/// Which runs of a view have to be there.
pub struct Due {
    view: &'static str,
    catch_up: &'static str,
    /// The hour at which the schedule was last seen to be dealt with.
    rested: i64,
    /// The jobs that there were then.
    known: BTreeSet<String>,
    /// Whether the clock was set back since.
    is_set_back: bool,
    /// The hours that the clock has come to, as often as it has.
    come: Vec<RangeInclusive<i64>>,
}

impl Due {
    pub fn new(view: &'static str, catch_up: &'static str) -> Self {
        Self { view, catch_up, rested: 0, known: BTreeSet::new(), is_set_back: false, come: Vec::new() }
    }

    /// The clock goes from one hour to another.
    pub fn jump(&mut self, from: i64, to: i64) {
        if to > from {
            self.come.push(from + 1..=to);
        } else {
            self.is_set_back = true;
        }
    }

    /// Whether a run has to come by now that wasn't there when the schedule was last dealt with.
    pub fn is_awaited(&self, clock: &Clock) -> bool {
        self.catch_up != "none" && !self.is_set_back && clock.hour() > self.rested
    }

    /// Whether a run that is awaited has been asked for, or made up for by one that a client asked for.
    pub fn is_asked_for(&self, clock: &Clock, jobs: &[Value]) -> bool {
        let is_late = |job: &Value| clock.hour_of(&job["started"]).is_some_and(|hour| hour >= clock.hour());
        self.new_ones(jobs).any(|job| job["trigger"] == "schedule" || is_late(job))
    }

    fn new_ones<'a>(&'a self, jobs: &'a [Value]) -> impl Iterator<Item = &'a Value> {
        let is_of_view = |job: &&Value| job["views"].as_array().is_some_and(|views| views.contains(&self.view.into()));
        jobs.iter().filter(is_of_view).filter(|job| !self.known.contains(job["id"].as_str().expect("an id")))
    }

    /// The schedule is dealt with: every run that was due is among the jobs, and none is there twice.
    pub fn check(&mut self, clock: &Clock, jobs: &[Value]) {
        let ids: BTreeSet<String> = jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(ids.len(), jobs.len(), "a job is there twice: {jobs:#?}");
        // Also by a job that failed for another view.
        let succeeded = |job: &&Value| job["versions"][self.view].is_u64();
        let scheduled = |job: &Value| clock.hour_of(&job["scheduled"]);
        let (hour, now) = (clock.hour(), format!("in hour {}, after hour {}: {jobs:#?}", clock.hour(), self.rested));
        if self.is_awaited(clock) {
            let new: Vec<&Value> = self.new_ones(jobs).filter(succeeded).collect();
            if self.catch_up == "all" {
                for due in self.rested + 1..=hour {
                    let made = new.iter().filter(|job| scheduled(job) == Some(due)).count();
                    assert_eq!(made, 1, "runs for hour {due} {now}");
                }
            } else {
                let made = |job: &&Value| scheduled(job).max(clock.hour_of(&job["started"])) == Some(hour);
                assert!(new.iter().any(made), "no run for the last hour {now}");
            }
        }
        for job in jobs.iter().filter(succeeded) {
            let Some(due) = scheduled(job) else { continue };
            let made = jobs.iter().filter(succeeded).filter(|job| scheduled(job) == Some(due)).count();
            let came = self.come.iter().filter(|hours| hours.contains(&due)).count();
            assert!(made <= came, "{made} runs for hour {due}, which came {came} times, {now}");
            if self.catch_up == "none" {
                let queued = job["queued"].as_str().and_then(parse_timestamp).expect("a time");
                assert!(queued - clock.start_of(due) < 61 * SECOND, "that was to be passed over: {job}");
            }
        }
        (self.rested, self.known, self.is_set_back) = (hour, ids, false);
    }
}
