//! What the roles of a process report to its API.

use anabranch_exchange::snapshot::Snapshots;
use anabranch_exchange::version::Versions;
use anabranch_log::kafka::outlet::Outlets;
use anabranch_log::position::{Partition, Positions};
use anabranch_plan::view::Sent;
use anabranch_serving::{Api, Emissions, Measures, Outputs, Readiness, StoppedOutput, Stops};
use anabranch_speed_layer::{OutputStates, OutputStatus};
use tokio::sync::watch;

/// What a process's API shows of the layers.
pub struct Report {
    /// How much of the API there is.
    pub api: Api,
    /// What the speed layer says.
    pub snapshots: Snapshots,
    /// What the batch layer has published.
    pub versions: Versions,
    /// How far the outputs are.
    pub outputs: Outputs,
    /// Which views' rows it writes to topics, if it writes any.
    pub emissions: Option<Emissions>,
    /// The layers' numbers.
    pub measures: Measures,
    /// Why the layers no longer do their work, where no snapshot says so.
    pub stops: Stops,
    /// Whether the layers have recovered.
    pub ready: watch::Receiver<Readiness>,
}

impl Report {
    /// Nothing of the layers: there is nothing to wait for.
    pub fn nothing(api: Api) -> Self {
        Self {
            api,
            snapshots: Snapshots::default(),
            versions: Versions::default(),
            outputs: Outputs::default(),
            emissions: None,
            measures: Measures::default(),
            stops: Stops::default(),
            ready: watch::channel(Readiness::ready()).1,
        }
    }
}

/// Ready once every view has a snapshot; until then not, for this reason.
pub fn readiness(snapshots: Snapshots, reason: &str) -> watch::Receiver<Readiness> {
    let (ready, readiness) = watch::channel(Readiness::not_ready([reason]));
    tokio::spawn(async move {
        for (_, mut snapshot) in snapshots.0 {
            if snapshot.wait_for(|snapshot| snapshot.sequence > 0 || snapshot.stopped.is_some()).await.is_err() {
                return;
            }
        }
        ready.send_replace(Readiness::ready());
    });
    readiness
}

/// How far the outputs are, for serving.
pub fn outputs(outlets: Option<Outlets>, stopped: impl Fn() -> Vec<StoppedOutput> + Send + Sync + 'static) -> Outputs {
    let positions = move |output: &Sent| {
        outlets.as_ref().map_or(Ok(Positions::new()), |all| all.positions(&output.id.name, &output.table().topic))
    };
    Outputs::new(positions, stopped)
}

/// The outputs that have stopped.
pub fn stopped(states: &OutputStates) -> Vec<StoppedOutput> {
    let stopped = |((view, partition), state): ((String, Partition), OutputStatus)| {
        Some(StoppedOutput { view, partition, why: state.stopped? })
    };
    states.all().into_iter().filter_map(stopped).collect()
}
