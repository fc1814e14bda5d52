//! The speed layer: what has happened since the last batch version, within a fraction of a second.
//!
//! One pipeline per table, or for tables that views join, reads their topics, decodes each micro-batch once and folds it into every view
//! of just these tables. A view's state is a list of chunks of partials ([`anabranch_engine::partial`]) whose coverages join without
//! a gap from the frontier of a batch version to the newest record; [`Snapshots`] shows it to the serving layer.
//!
//! ```text
//! log ──► reader thread ──► fold thread ──► snapshots
//!         poll, decode      watermark         └──► checkpoint thread
//!                           fold, chunks
//! ```
//!
//! An output, which is a view of plain rows, needs no state: a thread for each partition writes its rows to a topic.
//!
//! What this crate never does: write to the archive, know the batch or the serving layer, or read the wall
//! clock for anything that an answer depends on.

mod across;
mod checkpoint;
mod chunk;
mod display;
mod error;
mod fold;
mod input;
mod isolate;
mod journal;
mod late;
mod member;
mod memory;
mod metrics;
mod micro_batch;
mod output;
mod own;
mod pane;
mod pipeline;
mod publish;
mod reader;
mod reading;
mod recovery;
mod refold;
mod settings;
mod sketch;
mod source;
mod state;
mod wait;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_engine::operator::Part;
use anabranch_exchange::reading::Readings;
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::snapshot::{Snapshot, Snapshots, wire};
use anabranch_exchange::version::Versions;
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_log::kafka::outlet::Outlets;
use anabranch_log::position::Partition;
use anabranch_plan::view::{Catalog, Kept, Unit};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::checkpoint::Checkpoints;
pub use crate::error::SpeedError;
pub use crate::member::SpeedMember;
pub use crate::memory::Memory;
pub use crate::metrics::SpeedMetrics;
pub use crate::output::{OutputStates, OutputStatus};
pub use crate::settings::Settings;

use crate::display::Display;
use crate::metrics::Counters;
use crate::output::{OutputWriter, WRITES};
use crate::publish::{Publisher, claim};
use crate::source::Source;

/// What the speed layer works with.
#[derive(Clone)]
pub struct Context {
    /// Where events come from.
    pub log: Arc<dyn Log>,
    /// The tables and views.
    pub catalog: Arc<Catalog>,
    /// The batch versions, as they are published. Those that exist are there before the layer starts.
    pub versions: Versions,
    /// How each table's records are read, now and later.
    pub readings: Readings,
    /// Where state is kept across restarts; none keeps it nowhere.
    pub checkpoints: Option<Checkpoints>,
    /// Where outputs are written; none writes none.
    pub outlets: Option<Outlets>,
    /// Where late events are recorded, of views that ask for it.
    pub rejects: Arc<RejectLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How often and how much.
    pub settings: Settings,
    /// How much memory there is for state.
    pub memory: Memory,
}

/// The speed layer at work.
#[derive(Debug)]
pub struct SpeedLayer {
    snapshots: Snapshots,
    counters: BTreeMap<String, Arc<Counters>>,
    outputs: OutputStates,
    threads: Vec<JoinHandle<()>>,
    shutdown: CancellationToken,
    /// Of a partition, how many there are of each topic whose records have their place among them.
    placed: BTreeMap<String, u32>,
    /// Whether somebody else has claimed it since.
    superseded: Arc<AtomicBool>,
}

/// How long such a thread may take to end. It may wait for brokers without an end (confluentinc/librdkafka#5456). Whoever opens its
/// output next fences it off, or repeats what is delivered at least once.
const OUTPUT_END: Duration = Duration::from_secs(60);

/// Starts a pipeline for each unit of tables that has views, and the outputs. They run until `shutdown` is cancelled, and pipelines
/// then store a last checkpoint. A pipeline that can't go on says so in its views' snapshots; the others go on.
pub fn run(context: &Context, shutdown: &CancellationToken) -> Result<SpeedLayer, SpeedError> {
    let mut layer = SpeedLayer::new(shutdown);
    for unit in context.catalog.units() {
        layer.start(context, unit, None)?;
    }
    for table in context.catalog.tables.keys() {
        layer.start_outputs(context, table, None)?;
    }
    Ok(layer)
}

/// One partition of tables, as one of several processes has it that share the partitions among them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owned {
    /// The partition.
    pub part: Part,
    /// Higher than that of whoever had the partition before: what those write later is passed over.
    pub epoch: u64,
}

/// Starts what one partition of a table is for: pipelines for the units whose first shared table it is, which have this partition of their
/// other shared tables too, and the outputs that read it. Their checkpoints are the partition's own, so the partition's next owner goes on
/// from them; their snapshots go to the log, for other processes to serve, in an epoch that is claimed there. An error starts nothing
/// that goes on.
pub fn run_partition(
    context: &Context,
    table: &str,
    partition: Partition,
    shutdown: &CancellationToken,
) -> Result<SpeedLayer, SpeedError> {
    start_works(context, table, &works(&context.catalog, table), partition, shutdown)
}

/// Starts some of that.
fn start_works(
    context: &Context,
    table: &str,
    works: &[Work],
    partition: Partition,
    shutdown: &CancellationToken,
) -> Result<SpeedLayer, SpeedError> {
    let mut layer = SpeedLayer::new(shutdown);
    match works.iter().try_for_each(|work| layer.take_on(context, table, work, partition)) {
        Ok(()) => Ok(layer),
        Err(error) => {
            layer.stop();
            Err(error)
        }
    }
}

/// What there is to do with each partition of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// The pipeline of the unit of this name, of which it is the first table that is shared out.
    Unit(String),
    /// The outputs that read it.
    Outputs,
}

/// All that there is to do.
fn works(catalog: &Catalog, table: &str) -> Vec<Work> {
    let units = catalog.units().into_iter();
    let first = units.filter(|unit| unit.first_shared().is_some_and(|first| first.name == table));
    let outputs = catalog.sent_of(table).next().map(|_| Work::Outputs);
    first.map(|unit| Work::Unit(unit.name())).chain(outputs).collect()
}

impl SpeedLayer {
    /// Starts a piece of work for a partition of a table. After an error the layer is to be stopped.
    fn take_on(&mut self, context: &Context, table: &str, work: &Work, partition: Partition) -> Result<(), SpeedError> {
        match work {
            Work::Outputs => self.start_outputs(context, table, Some(partition)),
            Work::Unit(name) => match context.catalog.units().into_iter().find(|unit| unit.name() == *name) {
                Some(unit) => self.start_partition(context, unit, partition),
                None => Ok(()),
            },
        }
    }

    /// Starts a unit's pipeline for a partition, and what publishes its snapshots.
    fn start_partition(&mut self, context: &Context, unit: Unit, partition: Partition) -> Result<(), SpeedError> {
        let (name, views) = (unit.name(), unit.views.clone());
        let part = Part { partition, partitions: partitions(&*context.log, &unit)? };
        if unit.views.iter().any(|view| view.rows.looks_across()) {
            self.placed.extend(unit.shared_topics().into_iter().map(|topic| (topic, part.partitions)));
        }
        let claimed = context.log.create_topic(&wire::topic(&name), part.partitions);
        let claimed = claimed.and_then(|()| claim(&*context.log, &name, partition));
        let epoch = claimed.map_err(|source| SpeedError::Log { table: name.clone(), source })?;
        self.start(context, unit, Some(Owned { part, epoch }))?;
        let receiver = |view: Kept| Some((view.clone(), self.snapshots.0.get(&view.id)?.clone()));
        let counters = self.counters.get(&name).cloned().unwrap_or_default();
        let publisher = Publisher {
            log: context.log.clone(),
            unit: name,
            partition,
            epoch,
            superseded: Arc::clone(&self.superseded),
            views: views.into_iter().filter_map(receiver).collect(),
            interval: context.settings.snapshot_interval,
            memory: context.memory.share(),
            counters,
            shutdown: self.shutdown.clone(),
        };
        self.threads.push(publisher.start()?);
        Ok(())
    }

    fn new(shutdown: &CancellationToken) -> Self {
        let (snapshots, outputs) = (Snapshots::default(), OutputStates::default());
        let (counters, placed, threads) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let superseded = Arc::default();
        Self { snapshots, counters, outputs, threads, shutdown: shutdown.clone(), placed, superseded }
    }

    /// Whether somebody else has claimed a partition that it folds.
    fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    /// Each view's newest snapshot.
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// Each table's numbers.
    pub fn metrics(&self) -> BTreeMap<String, SpeedMetrics> {
        self.counters.iter().map(|(table, counters)| (table.clone(), counters.read())).collect()
    }

    /// How the outputs do, now and later.
    pub fn outputs(&self) -> OutputStates {
        self.outputs.clone()
    }

    /// A function that reads each table's numbers, for whoever outlives this handle.
    pub fn metrics_reader(&self) -> impl Fn() -> BTreeMap<String, SpeedMetrics> + Send + Sync + use<> {
        let counters = self.counters.clone();
        move || counters.iter().map(|(table, counters)| (table.clone(), counters.read())).collect()
    }

    /// Shuts down, and waits until the last checkpoints are stored. Blocks.
    pub fn stop(self) {
        self.shutdown.cancel();
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if name.starts_with(WRITES) && !ends_within(&thread, OUTPUT_END) {
                tracing::error!(name, "a thread that writes an output doesn't end, and is left behind");
                continue;
            }
            if thread.join().is_err() {
                tracing::error!(name, "a thread of the speed layer has failed");
            }
        }
    }

    fn start(&mut self, context: &Context, unit: Unit, owned: Option<Owned>) -> Result<(), SpeedError> {
        let counters = Arc::new(Counters::default());
        self.counters.insert(unit.name(), counters.clone());
        let mut senders = BTreeMap::new();
        for view in &unit.views {
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            self.snapshots.0.insert(view.id.clone(), receiver);
            senders.insert(view.id.clone(), sender);
        }
        let (context, shutdown) = (context.clone(), self.shutdown.clone());
        let display = Display { counters, senders };
        let source = Source { context, unit, owned, display, shutdown };
        self.spawn(format!("fold-{}", source.name()), move || source.run())
    }

    /// Starts the outputs that read a table, for one of its partitions or for all.
    fn start_outputs(&mut self, context: &Context, table: &str, only: Option<Partition>) -> Result<(), SpeedError> {
        let Some(outlets) = &context.outlets else { return Ok(()) };
        for output in context.catalog.sent_of(table) {
            let writer = OutputWriter {
                log: context.log.clone(),
                outlets: outlets.clone(),
                output: output.clone(),
                settings: context.settings.clone(),
                clock: context.clock.clone(),
                states: self.outputs.clone(),
                shutdown: self.shutdown.clone(),
            };
            match only {
                Some(partition) => self.threads.push(writer.start(partition)?),
                None => self.spawn(format!("{WRITES}{}", output.id.name), move || writer.run_all())?,
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), SpeedError> {
        let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
        self.threads.push(thread.map_err(|source| SpeedError::Thread { name, source })?);
        Ok(())
    }
}

/// Waits until a thread has ended, but not for longer. Whether it has.
fn ends_within(thread: &JoinHandle<()>, limit: Duration) -> bool {
    let begun = Instant::now();
    while !thread.is_finished() && begun.elapsed() < limit {
        // The standard library has no join with a limit.
        std::thread::sleep(Duration::from_millis(10));
    }
    thread.is_finished()
}

/// How many partitions each of the tables has that a unit's owners share out. Tables that are joined need to have as many.
pub fn partitions(log: &dyn Log, unit: &Unit) -> Result<u32, SpeedError> {
    let shared = unit.shared();
    let counts = shared.iter().map(|table| {
        let bounds =
            log.bounds(&table.topic).map_err(|source| SpeedError::Log { table: table.name.clone(), source })?;
        Ok((table.topic.as_str(), bounds.len() as u32))
    });
    let counts: BTreeMap<&str, u32> = counts.collect::<Result<_, SpeedError>>()?;
    let first = counts.values().next().copied().unwrap_or(1);
    if counts.values().all(|&count| count == first) {
        return Ok(first);
    }
    let each: Vec<String> = counts.iter().map(|(topic, count)| format!("`{topic}` has {count}")).collect();
    Err(SpeedError::Unlike { unit: unit.name(), partitions: each.join(", ") })
}
