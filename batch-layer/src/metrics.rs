//! What the batch layer has done, as plain numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_exchange::histogram::{Counts, Histogram};
use anabranch_plan::time::Micros;

use crate::error::BatchError;

/// Upper bounds of how long runs take, in seconds.
const RUNS: [f64; 12] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0];

/// The states in which a run ends.
const STATES: [&str; 3] = ["succeeded", "failed", "cancelled"];

/// The jobs' numbers at one instant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobMetrics {
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that are at work.
    pub running: u64,
    /// How long runs of each view took, by the state in which they ended, since the process started.
    pub runs: Vec<(String, &'static str, Counts)>,
    /// The schedules that are followed.
    pub schedules: Vec<ScheduleMetrics>,
    /// How often the clock was found to be set back since the process started.
    pub set_back: u64,
}

/// A view's schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleMetrics {
    /// The view.
    pub view: String,
    /// The first time that no run has dealt with: the next one, unless a run is due.
    pub due: Option<Micros>,
    /// How many runs in succession have failed.
    pub failures: u32,
}

/// What is counted since the process started.
#[derive(Debug)]
pub(crate) struct Runs {
    ended: BTreeMap<(String, &'static str), Histogram>,
    set_back: AtomicU64,
}

impl Runs {
    pub fn new<'a>(views: impl Iterator<Item = &'a String>) -> Self {
        let each = views.flat_map(|view| STATES.map(|state| (view.clone(), state)));
        Self { ended: each.map(|run| (run, Histogram::new(RUNS))).collect(), set_back: AtomicU64::new(0) }
    }

    /// Counts a view's run with its error, if it had one.
    pub fn ended(&self, view: &str, error: Option<&BatchError>, took: Duration) {
        let state = match error {
            None => "succeeded",
            Some(BatchError::Cancelled) => "cancelled",
            Some(_) => "failed",
        };
        if let Some(histogram) = self.ended.get(&(view.to_owned(), state)) {
            histogram.observe(took.as_secs_f64(), 1);
        }
    }

    pub fn read(&self) -> Vec<(String, &'static str, Counts)> {
        self.ended.iter().map(|((view, state), histogram)| (view.clone(), *state, histogram.read())).collect()
    }

    /// Counts that the clock was found to be set back.
    pub fn note_set_back(&self) {
        self.set_back.fetch_add(1, Ordering::Relaxed);
    }

    pub fn set_back(&self) -> u64 {
        self.set_back.load(Ordering::Relaxed)
    }
}
