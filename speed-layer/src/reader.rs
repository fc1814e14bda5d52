//! The reading side of a pipeline: records off the log, decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use anabranch_engine::decode::Decoder;
use anabranch_engine::edition::Editions;
use anabranch_log::clock::{Clock, has_passed};
use anabranch_log::position::{Partition, Positions, TopicPartition, of_topic};
use anabranch_log::{Log, LogError, LogReader};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use tokio_util::sync::CancellationToken;

use crate::error::{SpeedError, Stop, reason};
use crate::input::Input;
use crate::micro_batch::{MicroBatch, decoder, extras};
use crate::own::Own;
use crate::settings::{Settings, micros};
use crate::wait::{pause, wait};

/// Reads the topics of tables.
pub(crate) struct Reader {
    pub log: Arc<dyn Log>,
    /// The tables, each with the definitions that its records are read by.
    pub tables: Vec<(Arc<Table>, Editions)>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub views: Vec<Kept>,
    /// What it has of the topics; none if all, those partitions too that they get.
    pub own: Option<Own>,
    pub shutdown: CancellationToken,
}

/// A topic as it is read.
struct Topic {
    table: Arc<Table>,
    name: Arc<str>,
    reader: Box<dyn LogReader>,
    positions: Positions,
    decoder: Decoder,
    /// The newest event time that it has come to.
    reached: Micros,
    failures: u32,
}

impl Topic {
    fn partition(&self, partition: Partition) -> TopicPartition {
        TopicPartition::new(self.name.clone(), partition)
    }
}

/// Why nothing more is read.
enum Halt {
    /// It was shut down, or nobody takes what is read any more.
    Ended,
    /// It can't go on.
    Stopped(Stop),
}

impl From<SpeedError> for Halt {
    fn from(error: SpeedError) -> Self {
        Self::Stopped(error.into())
    }
}

impl Reader {
    /// Reads from where `begin` says until shutdown, or until the folding side has ended.
    pub fn run(&self, begin: &Receiver<Positions<TopicPartition>>, inputs: &SyncSender<Input>) {
        let Ok(positions) = begin.recv() else { return };
        let failed = match catch_unwind(AssertUnwindSafe(|| self.read(&positions, inputs))) {
            Ok(Ok(()) | Err(Halt::Ended)) => return,
            Ok(Err(Halt::Stopped(stop))) => stop,
            Err(panic) => Stop::panicked(&*panic),
        };
        // If the other side has ended, it has told why.
        inputs.send(Input::Failed(failed)).ok();
    }

    fn read(&self, positions: &Positions<TopicPartition>, inputs: &SyncSender<Input>) -> Result<(), Halt> {
        let mut topics = Vec::new();
        for (table, editions) in &self.tables {
            let positions = of_topic(&table.topic, positions);
            let reader = self.open(table, &positions)?;
            let (table, name, decoder) =
                (table.clone(), table.topic.as_str().into(), decoder(table, &self.views, editions));
            topics.push(Topic { table, name, reader, positions, decoder, reached: Micros::MIN, failures: 0 });
        }
        let send = |input| inputs.send(input).map_err(|_| Halt::Ended);
        let (mut looked, mut stalled) = (self.clock.now(), BTreeSet::new());
        // Of several topics, whether the last round of them brought nothing.
        let mut is_quiet = true;
        while !self.shutdown.is_cancelled() {
            let at = self.clock.now();
            let now_stalled = self.stalled(&topics);
            if now_stalled != stalled {
                stalled = now_stalled;
                send(Input::Stalled(stalled.clone()))?;
            }
            if let [topic] = topics.as_mut_slice() {
                self.poll(topic, self.settings.batch_wait, at, &send)?;
            } else {
                // Whichever is behind is read first, so that little has to be kept for it.
                topics.sort_by_key(|topic| topic.reached);
                let share = u32::try_from(topics.len()).unwrap_or(1);
                let wait = if is_quiet { self.settings.batch_wait / share } else { Duration::ZERO };
                is_quiet = true;
                for topic in &mut topics {
                    if self.poll(topic, wait, at, &send)? {
                        is_quiet = false;
                        break;
                    }
                }
            }
            // While some partitions are busy, others may be caught up; and topics may have grown.
            if has_passed(looked, at, self.look_every()) {
                looked = at;
                for topic in &mut topics {
                    let (still, new) = self.look(topic)?;
                    send(Input::CaughtUp(still.into_iter().map(|p| topic.partition(p)).collect(), at))?;
                    if !new.is_empty() {
                        tracing::info!(table = topic.table.name, partitions = ?new, "the topic has new partitions");
                        topic.positions.extend(new.into_iter().map(|p| (p, 0)));
                        topic.reader = self.open(&topic.table, &topic.positions)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads what a topic has next, and sends it on. Whether it had anything.
    fn poll(
        &self,
        topic: &mut Topic,
        wait_for: Duration,
        at: Micros,
        send: &dyn Fn(Input) -> Result<(), Halt>,
    ) -> Result<bool, Halt> {
        let polled = match topic.reader.poll(self.settings.read_limit(), wait_for) {
            Ok(polled) => polled,
            Err(error @ LogError::Backend { .. }) => {
                tracing::warn!(table = topic.table.name, reason = reason(&error), "reading failed; trying again");
                wait(&self.shutdown, pause(topic.failures));
                topic.failures += 1;
                return Ok(false);
            }
            Err(error) => return Err(failed(&topic.table, error)),
        };
        topic.failures = 0;
        let Some(batch) = polled else {
            // One that was hardly waited for may have more.
            if wait_for.is_zero() {
                return Ok(false);
            }
            let partitions = topic.positions.keys().map(|&partition| topic.partition(partition)).collect();
            return send(Input::CaughtUp(partitions, at)).map(|()| false);
        };
        fail::fail_point!("speed::after_read");
        topic.positions.insert(batch.partition, batch.coverage.end);
        let decoded = MicroBatch::decode(&mut topic.decoder, &topic.name, &batch, self.clock.now())?;
        topic.reached = topic.reached.max(decoded.newest().unwrap_or(Micros::MIN));
        let keeps_records = self.views.iter().any(|view| view.aggregation().late != Late::Discard);
        let records = keeps_records.then(|| Box::new(batch));
        send(Input::Batch(MicroBatch { records, ..decoded })).map(|()| true)
    }

    fn look_every(&self) -> Micros {
        (micros(self.settings.idle_after) / 4).max(1)
    }

    /// The partitions that hold nothing unread, and those that weren't there before.
    fn look(&self, topic: &Topic) -> Result<(Vec<Partition>, Vec<Partition>), Halt> {
        let (table, positions) = (&topic.table, &topic.positions);
        let bounds = match self.log.bounds(&table.topic) {
            Ok(bounds) => bounds,
            Err(LogError::Backend { .. }) => BTreeMap::new(),
            Err(error) => return Err(failed(table, error)),
        };
        let still = bounds.iter().filter(|(p, range)| positions.get(p).is_some_and(|&next| next >= range.end));
        let is_own = |p: Partition| self.own.as_ref().is_none_or(|own| own.has(&table.topic, p));
        let new = bounds.keys().filter(|&&p| is_own(p) && !positions.contains_key(&p));
        Ok((still.map(|(&p, _)| p).collect(), new.copied().collect()))
    }

    /// The partitions that hold records and deliver none.
    fn stalled(&self, topics: &[Topic]) -> BTreeSet<TopicPartition> {
        let stalls = self.log.stalls().into_iter().filter(|(_, stalls)| stalls.stands);
        let of_topic = |((name, partition), _): ((String, Partition), _)| {
            topics.iter().find(|topic| *topic.name == *name).map(|topic| topic.partition(partition))
        };
        stalls.filter_map(of_topic).collect()
    }

    /// A reader from these positions on, once the log can be reached.
    fn open(&self, table: &Table, positions: &Positions) -> Result<Box<dyn LogReader>, Halt> {
        let mut failures = 0;
        while !self.shutdown.is_cancelled() {
            match self.log.reader(&table.topic, positions) {
                Ok(mut reader) => {
                    reader.bring(extras(&self.views));
                    return Ok(reader);
                }
                Err(error @ LogError::Backend { .. }) => {
                    let reason = reason(&error);
                    tracing::warn!(table = table.name, reason, "reading can't begin; trying again");
                    wait(&self.shutdown, pause(failures));
                    failures += 1;
                }
                Err(error) => return Err(failed(table, error)),
            }
        }
        Err(Halt::Ended)
    }
}

fn failed(table: &Table, source: LogError) -> Halt {
    SpeedError::Log { table: table.name.clone(), source }.into()
}
