//! Emissions: the rows of views that aggregate, which are written to topics. Which of them this process writes, and how they do.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_log::kafka::outlet::Outlets;
use anabranch_log::position::{Positions, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::metric::Measure;

/// Which topics this process writes, and how.
#[derive(Clone)]
pub struct Emissions {
    pub(crate) outlets: Option<Outlets>,
    pub(crate) owned: watch::Receiver<BTreeSet<String>>,
}

impl Emissions {
    /// Those whose topics are `owned`, as long as they are. On Kafka they are written by outlets.
    pub fn new(outlets: Option<Outlets>, owned: watch::Receiver<BTreeSet<String>>) -> Self {
        Self { outlets, owned }
    }
}

/// How an emission does in this process.
#[derive(Debug, Clone, Default)]
pub struct EmissionStatus {
    /// Up to where the view's topics are read in what is written; nothing of a topic that another process writes.
    pub positions: Positions<TopicPartition>,
    /// Records written, since the process started.
    pub records: u64,
    /// Writes that came to nothing, and were or will be tried again.
    pub failures: u64,
    /// Why nothing is written at the moment, though this process would.
    pub waiting: Option<String>,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
}

/// How those of a process do, by view.
pub type EmissionStates = BTreeMap<String, Mutex<EmissionStatus>>;

/// The emissions' numbers.
pub fn measures(states: &EmissionStates) -> Vec<Measure> {
    let each = states.iter().flat_map(|(view, state)| {
        let EmissionStatus { records, failures, waiting, stopped, .. } = state.lock().clone();
        let help = "Records written to the topic of a view that aggregates";
        let records = Measure::counter("anabranch_emission_records", help, records as f64);
        let help = "Writes to that topic that came to nothing and were tried again";
        let failures = Measure::counter("anabranch_emission_failures", help, failures as f64);
        let flag = |is_set: bool| f64::from(u8::from(is_set));
        let help = "1 while nothing is written, as the answer lacks something or the topic can't be written";
        let waiting = Measure::gauge("anabranch_emission_waiting", help, flag(waiting.is_some()));
        let help = "1 if writing has stopped for good";
        let stopped = Measure::gauge("anabranch_emission_stopped", help, flag(stopped.is_some()));
        [records, failures, waiting, stopped].map(|measure| measure.of("view", view))
    });
    each.collect()
}
