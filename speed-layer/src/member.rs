//! The speed layer as a member of a consumer group: it folds the partitions that it is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_log::kafka::group::Member;
use anabranch_log::position::{Partition, Positions};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::reason;
use crate::metrics::SpeedMetrics;
use crate::output::OutputStates;
use crate::{Context, SpeedLayer, Work, start_works, works};

/// Folds the partitions that it has.
pub struct SpeedMember {
    context: Context,
    running: Arc<Mutex<BTreeMap<Task, Running>>>,
    /// What couldn't be started yet.
    waiting: Vec<Task>,
}

/// A piece of work for a partition of a topic. Each is started, and fails, by itself.
type Task = (String, Partition, Work);

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
            let each = running.iter().flat_map(|((_, partition, _), one)| {
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

    /// What was begun when topics whose records find each other by their place had fewer partitions.
    fn outgrown(&self) -> Vec<Task> {
        let running = self.running.lock();
        if running.values().all(|one| one.layer.placed.is_empty()) {
            return Vec::new();
        }
        // It is asked again soon.
        let Ok(counts) = self.context.log.topics() else { return Vec::new() };
        let is_outgrown = |one: &Running| one.layer.placed.iter().any(|(topic, count)| counts.get(topic) > Some(count));
        running.iter().filter(|(_, one)| is_outgrown(one)).map(|(task, _)| task.clone()).collect()
    }

    /// What somebody else has claimed although the group says that it is this member's.
    fn superseded(&self) -> Vec<Task> {
        let running = self.running.lock();
        running.iter().filter(|(_, one)| one.layer.is_superseded()).map(|(task, _)| task.clone()).collect()
    }

    fn start(&mut self, task: Task) {
        let (topic, partition, work) = &task;
        let Some(table) = self.context.catalog.table_of_topic(topic) else { return };
        let stop = CancellationToken::new();
        match start_works(&self.context, &table.name, std::slice::from_ref(work), *partition, &stop) {
            Ok(layer) => drop(self.running.lock().insert(task, Running { layer, stop })),
            Err(error) => {
                let error = reason(&error);
                tracing::warn!(topic, partition, ?work, error, "a partition can't be taken on; trying again");
                self.waiting.push(task);
            }
        }
    }

    fn end(&mut self, task: &Task) {
        let running = self.running.lock().remove(task);
        if let Some(Running { layer, stop }) = running {
            stop.cancel();
            layer.stop();
        }
    }
}

impl Member for SpeedMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        let Some(table) = self.context.catalog.table_of_topic(topic).cloned() else { return };
        for work in works(&self.context.catalog, &table.name) {
            self.start((topic.to_owned(), partition, work));
        }
    }

    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        let is_of = |(of_topic, own, _): &Task| (of_topic.as_str(), *own) == (topic, partition);
        self.waiting.retain(|task| !is_of(task));
        let tasks: Vec<Task> = self.running.lock().keys().filter(|task| is_of(task)).cloned().collect();
        tasks.iter().for_each(|task| self.end(task));
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        let outgrown =
            self.outgrown().into_iter().map(|task| (task, "topics that are joined have more partitions now"));
        let superseded = self.superseded().into_iter().map(|task| (task, "somebody else has claimed the partition"));
        for (task, why) in outgrown.chain(superseded).collect::<BTreeMap<_, _>>() {
            let (topic, partition, work) = &task;
            tracing::warn!(topic, partition, ?work, why, "a partition's work begins anew");
            self.end(&task);
            self.waiting.push(task);
        }
        for task in std::mem::take(&mut self.waiting) {
            self.start(task);
        }
        let mut done = BTreeMap::<String, Positions>::new();
        for ((_, partition, _), running) in self.running.lock().iter() {
            let snapshots = running.layer.snapshots();
            for snapshot in snapshots.0.keys().filter_map(|view| snapshots.get(view)) {
                // Of a topic that everybody reads whole, each tells of the partition of its own number.
                for (of_topic, range) in
                    snapshot.coverage.iter().filter(|(of_topic, _)| of_topic.partition == *partition)
                {
                    let positions = done.entry(of_topic.topic.to_string()).or_default();
                    let least = positions.entry(*partition).or_insert(range.end);
                    *least = range.end.min(*least);
                }
            }
        }
        done.into_iter().collect()
    }
}
