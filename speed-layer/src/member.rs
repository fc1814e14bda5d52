//! The speed layer as a member of a consumer group: it folds the partitions that it is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_log::kafka::group::Member;
use anabranch_log::position::{Partition, Positions, TopicPartition};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::reason;
use crate::metrics::SpeedMetrics;
use crate::output::OutputStates;
use crate::publish::claim;
use crate::{Context, Owned, SpeedLayer, run_partition};

/// Folds the partitions that it has.
pub struct SpeedMember {
    context: Context,
    running: Arc<Mutex<BTreeMap<(String, Partition), Running>>>,
    /// What couldn't be started yet.
    waiting: Vec<(String, Partition)>,
}

struct Running {
    layer: SpeedLayer,
    stop: CancellationToken,
}

impl SpeedMember {
    /// Has no partition yet.
    pub fn new(context: Context) -> Self {
        Self { context, running: Arc::default(), waiting: Vec::new() }
    }

    /// A function that reads the numbers of each partition that is folded, with the table's name.
    pub fn metrics_reader(&self) -> impl Fn() -> Vec<(String, Partition, SpeedMetrics)> + Clone + Send + Sync + use<> {
        let running = Arc::clone(&self.running);
        move || {
            let running = running.lock();
            let each = running.iter().flat_map(|((_, partition), one)| {
                one.layer.metrics().into_iter().map(move |(table, numbers)| (table, *partition, numbers))
            });
            each.collect()
        }
    }

    /// A function that reads how the outputs of each partition do.
    pub fn outputs_reader(&self) -> impl Fn() -> Vec<OutputStates> + Clone + Send + Sync + use<> {
        let running = Arc::clone(&self.running);
        move || running.lock().values().map(|one| one.layer.outputs()).collect()
    }

    fn start(&mut self, topic: &str, partition: Partition) {
        let Some(table) = self.context.catalog.table_of_topic(topic) else { return };
        let stop = CancellationToken::new();
        let started =
            claim(&*self.context.log, &table.name, partition).map_err(|error| reason(&error)).and_then(|epoch| {
                let owned = Owned { partition, epoch };
                run_partition(&self.context, &table.name, owned, &stop).map_err(|error| reason(&error))
            });
        match started {
            Ok(layer) => drop(self.running.lock().insert((topic.to_owned(), partition), Running { layer, stop })),
            Err(error) => {
                tracing::warn!(topic, partition, error, "a partition can't be taken on; trying again");
                self.waiting.push((topic.to_owned(), partition));
            }
        }
    }
}

impl Member for SpeedMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        self.start(topic, partition);
    }

    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        self.waiting.retain(|(t, p)| (t.as_str(), *p) != (topic, partition));
        let running = self.running.lock().remove(&(topic.to_owned(), partition));
        if let Some(Running { layer, stop }) = running {
            stop.cancel();
            layer.stop();
        }
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        for (topic, partition) in std::mem::take(&mut self.waiting) {
            self.start(&topic, partition);
        }
        let done = |((topic, partition), running): (&(String, Partition), &Running)| {
            let snapshots = running.layer.snapshots();
            let of_topic = TopicPartition::new(topic.as_str(), *partition);
            let ends = snapshots.0.keys().filter_map(|view| Some(snapshots.get(view)?.coverage.get(&of_topic)?.end));
            Some((topic.clone(), Positions::from([(*partition, ends.min()?)])))
        };
        self.running.lock().iter().filter_map(done).collect()
    }
}
