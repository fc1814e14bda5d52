//! What the API shows of an output: a view of plain rows, which are written to a topic and not kept here.

use std::collections::BTreeMap;

use anabranch_log::position::Positions;
use anabranch_plan::view::Sent;
use serde::Serialize;
use utoipa::ToSchema;

use crate::output::{lag, progress};
use crate::problem::Problem;
use crate::proof::positions_json;
use crate::routes::column::ViewColumn;
use crate::server::Server;
use crate::topic::{Topics, rejected};

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

/// An output: its definition, and how far it is written.
pub(crate) fn detail(
    server: &Server,
    output: &Sent,
    positions: &Positions,
    topics: &mut Topics<'_>,
) -> Result<OutputDetail, Problem> {
    let rejected = rejected(&server.app.rejects, &output.table().topic)?;
    let progress = progress(output, positions, topics)?;
    let positions: Positions = progress.iter().filter_map(|(&p, (position, _))| Some((p, (*position)?))).collect();
    let log_end: Positions = progress.iter().map(|(&p, (_, held))| (p, held.end)).collect();
    let stopped = server.app.outputs.stopped().into_iter().filter(|stopped| stopped.view == output.id.name);
    let (columns, sink) = (output.rows.schema(), output.sink());
    Ok(OutputDetail {
        name: output.id.name.clone(),
        sql: output.sql.clone(),
        definition: output.id.definition.clone(),
        topic: output.table().topic.clone(),
        table: output.table().name.clone(),
        columns: columns.iter().map(|column| ViewColumn::field(&column.name, &column.data_type)).collect(),
        sink: OutputSink {
            kind: "kafka",
            topic: sink.topic.clone(),
            delivery: sink.delivery.name(),
            partition_by: sink.partition_by.map(|column| columns[column].name.clone()),
        },
        positions: positions_json(&output.table().topic, &positions),
        log_end: positions_json(&output.table().topic, &log_end),
        lag: progress.values().map(lag).sum(),
        rejected,
        stopped: stopped.map(|stopped| (stopped.partition.to_string(), stopped.why)).collect(),
    })
}
