//! What the batch layer has done, as plain numbers.

use std::collections::BTreeMap;

use anabranch_shared::clock::Micros;
use anabranch_shared::histogram::{Counts, Histogram};

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
}

/// The runs that have ended.
#[derive(Debug)]
pub(crate) struct Runs(BTreeMap<(String, &'static str), Histogram>);

impl Runs {
    pub fn new(views: &[String]) -> Self {
        let each = views.iter().flat_map(|view| STATES.map(|state| (view.clone(), state)));
        Self(each.map(|run| (run, Histogram::new(RUNS))).collect())
    }

    /// Counts a view's run with its outcome.
    pub fn ended<T>(&self, view: &str, outcome: &Result<T, BatchError>, took: Micros) {
        let state = match outcome {
            Ok(_) => "succeeded",
            Err(BatchError::Cancelled) => "cancelled",
            Err(_) => "failed",
        };
        if let Some(histogram) = self.0.get(&(view.to_owned(), state)) {
            histogram.observe(took.max(0) as f64 / 1e6, 1);
        }
    }

    pub fn read(&self) -> Vec<(String, &'static str, Counts)> {
        self.0.iter().map(|((view, state), histogram)| (view.clone(), *state, histogram.read())).collect()
    }
}
