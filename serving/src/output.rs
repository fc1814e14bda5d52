//! Outputs: views of plain rows, which are written to topics and not kept here; and how far they are written.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anabranch_log::LogError;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_plan::view::Sent;

use crate::metric::Measure;
use crate::problem::{Problem, log_problem};
use crate::topic::Topics;

/// A partition whose rows are no longer written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedOutput {
    /// The view.
    pub view: String,
    /// The partition of its table's topic.
    pub partition: Partition,
    /// Why it has stopped.
    pub why: String,
}

type Ask<T> = Arc<dyn Fn(&Sent) -> Result<T, LogError> + Send + Sync>;

/// What is known of the outputs.
#[derive(Clone)]
pub struct Outputs {
    positions: Ask<Positions>,
    stopped: Arc<dyn Fn() -> Vec<StoppedOutput> + Send + Sync>,
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs").field("stopped", &self.stopped()).finish_non_exhaustive()
    }
}

impl Outputs {
    /// `positions` asks the cluster up to where an output's partitions are written, `stopped` which of this process have
    /// stopped.
    pub fn new(
        positions: impl Fn(&Sent) -> Result<Positions, LogError> + Send + Sync + 'static,
        stopped: impl Fn() -> Vec<StoppedOutput> + Send + Sync + 'static,
    ) -> Self {
        Self { positions: Arc::new(positions), stopped: Arc::new(stopped) }
    }

    /// Up to where outputs are written.
    pub(crate) fn positions(&self, outputs: impl IntoIterator<Item = Sent>) -> Result<Vec<(Sent, Positions)>, Problem> {
        let asked = outputs.into_iter().map(|output| (self.positions)(&output).map(|positions| (output, positions)));
        asked.collect::<Result<_, LogError>>().map_err(|error| log_problem(&error))
    }

    /// The outputs that have stopped in this process.
    pub fn stopped(&self) -> Vec<StoppedOutput> {
        (self.stopped)()
    }
}

impl Default for Outputs {
    fn default() -> Self {
        Self::new(|_| Ok(Positions::new()), Vec::new)
    }
}

/// How far an output is written, per partition of its table's topic: the position, if there is one, and what the log holds.
pub(crate) type Progress = BTreeMap<Partition, (Option<Offset>, Range<Offset>)>;

/// How far an output is written that has these positions.
pub(crate) fn progress(output: &Sent, positions: &Positions, topics: &mut Topics<'_>) -> Result<Progress, Problem> {
    let held = topics.bounds(&output.table().topic)?.clone();
    Ok(held.into_iter().map(|(p, held)| (p, (positions.get(&p).copied(), held))).collect())
}

/// How many records of a partition aren't written yet.
pub(crate) fn lag((position, held): &(Option<Offset>, Range<Offset>)) -> u64 {
    held.end.saturating_sub(position.unwrap_or(held.start))
}

/// An output's numbers.
pub(crate) fn measures(output: &Sent, positions: Positions, topics: &mut Topics<'_>) -> Result<Vec<Measure>, Problem> {
    let help = "Records that aren't written to the topic yet";
    let measure = |(partition, progress): (&Partition, _)| {
        let measure = Measure::gauge("anabranch_output_lag_records", help, lag(progress) as f64);
        measure.of("view", &output.id.name).of("partition", partition)
    };
    Ok(progress(output, &positions, topics)?.iter().map(measure).collect())
}
