//! The reading side of a pipeline: records off the log, decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use anabranch_engine::edition::Editions;
use anabranch_log::clock::{Clock, has_passed};
use anabranch_log::position::{Partition, Positions, TopicPartition};
use anabranch_log::{Log, LogError, LogReader};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use tokio_util::sync::CancellationToken;

use crate::error::{SpeedError, Stop, reason};
use crate::input::Input;
use crate::micro_batch::{MicroBatch, decoder, extras};
use crate::settings::{Settings, micros};
use crate::wait::{pause, wait};

/// Reads one table's topic.
pub(crate) struct Reader {
    pub log: Arc<dyn Log>,
    pub table: Arc<Table>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub views: Vec<Kept>,
    pub editions: Editions,
    /// Whether the partitions are those that it begins with, for ever.
    pub fixed: bool,
    pub shutdown: CancellationToken,
}

impl Reader {
    /// Reads from where `begin` says until shutdown, or until the folding side has ended.
    pub fn run(&self, begin: &Receiver<Positions>, inputs: &SyncSender<Input>) {
        let Ok(positions) = begin.recv() else { return };
        let failed = match catch_unwind(AssertUnwindSafe(|| self.read(positions, inputs))) {
            Ok(Ok(())) => return,
            Ok(Err(stop)) => stop,
            Err(panic) => Stop::panicked(&*panic),
        };
        // If the other side has ended, it has told why.
        inputs.send(Input::Failed(failed)).ok();
    }

    fn read(&self, mut positions: Positions, inputs: &SyncSender<Input>) -> Result<(), Stop> {
        let Some(mut reader) = self.open(&positions)? else { return Ok(()) };
        let mut decoder = decoder(&self.table, &self.views, &self.editions);
        let keeps_records = self.views.iter().any(|view| view.aggregation().late != Late::Discard);
        let topic: Arc<str> = self.table.topic.as_str().into();
        let of_topic = |partition: Partition| TopicPartition::new(topic.clone(), partition);
        let (mut failures, mut looked, mut stalled) = (0, self.clock.now(), BTreeSet::new());
        while !self.shutdown.is_cancelled() {
            let at = self.clock.now();
            let polled = reader.poll(self.settings.read_limit(), self.settings.batch_wait);
            let now_stalled = self.stalled();
            if now_stalled != stalled {
                stalled = now_stalled;
                if inputs.send(Input::Stalled(stalled.iter().copied().map(of_topic).collect())).is_err() {
                    return Ok(());
                }
            }
            let polled = match polled {
                Ok(polled) => polled,
                Err(error @ LogError::Backend { .. }) => {
                    tracing::warn!(table = self.table.name, reason = reason(&error), "reading failed; trying again");
                    wait(&self.shutdown, pause(failures));
                    failures += 1;
                    continue;
                }
                Err(error) => return Err(self.failed(error)),
            };
            failures = 0;
            let input = match polled {
                Some(batch) => {
                    fail::fail_point!("speed::after_read");
                    positions.insert(batch.partition, batch.coverage.end);
                    let decoded = MicroBatch::decode(&mut decoder, &topic, &batch, self.clock.now())?;
                    Input::Batch(MicroBatch { records: keeps_records.then(|| Box::new(batch)), ..decoded })
                }
                None => Input::CaughtUp(positions.keys().copied().map(of_topic).collect(), at),
            };
            if inputs.send(input).is_err() {
                return Ok(());
            }
            // While some partitions are busy, others may be caught up; and topics may have grown.
            if has_passed(looked, at, self.look_every()) {
                looked = at;
                let (still, new) = self.look(&positions)?;
                if inputs.send(Input::CaughtUp(still.into_iter().map(of_topic).collect(), at)).is_err() {
                    return Ok(());
                }
                if !new.is_empty() {
                    tracing::info!(table = self.table.name, partitions = ?new, "the topic has new partitions");
                    positions.extend(new.into_iter().map(|p| (p, 0)));
                    let Some(opened) = self.open(&positions)? else { return Ok(()) };
                    reader = opened;
                }
            }
        }
        Ok(())
    }

    fn look_every(&self) -> Micros {
        (micros(self.settings.idle_after) / 4).max(1)
    }

    /// The partitions that hold nothing unread, and those that weren't there before.
    fn look(&self, positions: &Positions) -> Result<(Vec<Partition>, Vec<Partition>), Stop> {
        let bounds = match self.log.bounds(&self.table.topic) {
            Ok(bounds) => bounds,
            Err(LogError::Backend { .. }) => BTreeMap::new(),
            Err(error) => return Err(self.failed(error)),
        };
        let still = bounds.iter().filter(|(p, range)| positions.get(p).is_some_and(|&next| next >= range.end));
        let new = bounds.keys().filter(|p| !self.fixed && !positions.contains_key(p));
        Ok((still.map(|(&p, _)| p).collect(), new.copied().collect()))
    }

    /// The partitions that hold records and deliver none.
    fn stalled(&self) -> BTreeSet<Partition> {
        let stalls = self.log.stalls().into_iter().filter(|(_, stalls)| stalls.stands);
        stalls.filter(|((topic, _), _)| *topic == self.table.topic).map(|((_, partition), _)| partition).collect()
    }

    /// A reader from these positions on, once the log can be reached; none at a shutdown.
    fn open(&self, positions: &Positions) -> Result<Option<Box<dyn LogReader>>, Stop> {
        let mut failures = 0;
        while !self.shutdown.is_cancelled() {
            match self.log.reader(&self.table.topic, positions) {
                Ok(mut reader) => {
                    reader.bring(extras(&self.views));
                    return Ok(Some(reader));
                }
                Err(error @ LogError::Backend { .. }) => {
                    tracing::warn!(
                        table = self.table.name,
                        reason = reason(&error),
                        "reading can't begin; trying again"
                    );
                    wait(&self.shutdown, pause(failures));
                    failures += 1;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(None)
    }

    fn failed(&self, source: LogError) -> Stop {
        SpeedError::Log { table: self.table.name.clone(), source }.into()
    }
}
