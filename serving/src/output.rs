//! Outputs, as the API shows them: views of plain rows, which are written to topics and not kept here.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anabranch_log::LogError;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_plan::view::Output;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{Server, log_problem, positions_json, rejected};
use crate::metric::Measure;
use crate::problem::Problem;
use crate::routes::views::ViewColumn;
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

type Ask<T> = Arc<dyn Fn(&Output) -> Result<T, LogError> + Send + Sync>;

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
        positions: impl Fn(&Output) -> Result<Positions, LogError> + Send + Sync + 'static,
        stopped: impl Fn() -> Vec<StoppedOutput> + Send + Sync + 'static,
    ) -> Self {
        Self { positions: Arc::new(positions), stopped: Arc::new(stopped) }
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

/// A view of plain rows, and how far they are written.
#[derive(Serialize, ToSchema)]
pub struct OutputDetail {
    /// Its name.
    name: String,
    /// Its statement.
    sql: String,
    /// `sha256:…`; changes with its meaning.
    definition: String,
    /// The topic whose events it is made of.
    topic: String,
    /// The table that it reads.
    table: String,
    /// The columns of its records.
    columns: Vec<ViewColumn>,
    /// Where its records are.
    sink: OutputSink,
    /// Up to where the topic's partitions are written, by topic; without those that were never begun.
    positions: BTreeMap<String, BTreeMap<String, u64>>,
    /// Where the topic's partitions end, by topic.
    log_end: BTreeMap<String, BTreeMap<String, u64>>,
    /// Records of the topic that aren't written yet.
    lag: u64,
    /// Records of the topic that were rejected.
    rejected: u64,
    /// Why partitions have stopped, as far as this process writes them.
    stopped: BTreeMap<String, String>,
}

/// Where an output's records are.
#[derive(Serialize, ToSchema)]
pub struct OutputSink {
    /// `kafka`.
    kind: &'static str,
    /// The topic.
    topic: String,
    /// `exactly_once`, `at_least_once` or `at_most_once`.
    delivery: &'static str,
    /// The column whose text is a record's key.
    #[schema(required = true)]
    partition_by: Option<String>,
}

/// How far an output is written, per partition of its table's topic: the position, if there is one, and what the log holds.
type Progress = BTreeMap<Partition, (Option<Offset>, Range<Offset>)>;

/// Up to where outputs are written.
pub(crate) fn positions<'a>(
    server: &Server,
    outputs: impl IntoIterator<Item = &'a Arc<Output>>,
) -> Result<Vec<(&'a Arc<Output>, Positions)>, Problem> {
    let asked = outputs.into_iter().map(|output| Ok((output, (server.app.outputs.positions)(output)?)));
    asked.collect::<Result<_, LogError>>().map_err(|error| log_problem(&error))
}

fn progress(output: &Output, positions: &Positions, topics: &mut Topics<'_>) -> Result<Progress, Problem> {
    let held = topics.bounds(&output.table.topic)?.clone();
    Ok(held.into_iter().map(|(p, held)| (p, (positions.get(&p).copied(), held))).collect())
}

fn lag((position, held): &(Option<Offset>, Range<Offset>)) -> u64 {
    held.end.saturating_sub(position.unwrap_or(held.start))
}

/// An output's numbers.
pub(crate) fn measures(
    output: &Output,
    positions: Positions,
    topics: &mut Topics<'_>,
) -> Result<Vec<Measure>, Problem> {
    let help = "Records that aren't written to the topic yet";
    let measure = |(partition, progress): (&Partition, _)| {
        let measure = Measure::gauge("anabranch_output_lag_records", help, lag(progress) as f64);
        measure.of("view", &output.name).of("partition", partition)
    };
    Ok(progress(output, &positions, topics)?.iter().map(measure).collect())
}

/// An output: its definition, and how far it is written.
pub(crate) fn detail(
    server: &Server,
    output: &Output,
    positions: &Positions,
    topics: &mut Topics<'_>,
) -> Result<OutputDetail, Problem> {
    let rejected = rejected(&server.app.rejects, &output.table.topic)?;
    let progress = progress(output, positions, topics)?;
    let positions: Positions = progress.iter().filter_map(|(&p, (position, _))| Some((p, (*position)?))).collect();
    let log_end: Positions = progress.iter().map(|(&p, (_, held))| (p, held.end)).collect();
    let stopped = server.app.outputs.stopped().into_iter().filter(|stopped| stopped.view == output.name);
    Ok(OutputDetail {
        name: output.name.clone(),
        sql: output.sql.clone(),
        definition: output.definition.clone(),
        topic: output.table.topic.clone(),
        table: output.table.name.clone(),
        columns: output.fields.iter().map(|field| ViewColumn::field(&field.name, &field.expr.data_type())).collect(),
        sink: OutputSink {
            kind: "kafka",
            topic: output.topic.clone(),
            delivery: output.delivery.name(),
            partition_by: output.partition_by.map(|field| output.fields[field].name.clone()),
        },
        positions: positions_json(&output.table.topic, &positions),
        log_end: positions_json(&output.table.topic, &log_end),
        lag: progress.values().map(lag).sum(),
        rejected,
        stopped: stopped.map(|stopped| (stopped.partition.to_string(), stopped.why)).collect(),
    })
}
