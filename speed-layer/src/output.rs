//! Outputs: what a view of plain rows makes of a partition's records, written to a topic.
//!
//! ```text
//! log ──► poll, decode ──► rows ──► records ──► outlet
//! ```
//!
//! One thread does it all for one partition: the outlet says where to begin, and each micro-batch is one write, with the
//! position behind it. Nothing is kept here: after a failure the outlet is opened again and says where to go on.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_engine::columnar::to_arrow;
use anabranch_engine::decode::{self, Decoder};
use anabranch_engine::partitioner;
use anabranch_engine::render::Rows;
use anabranch_engine::row;
use anabranch_log::clock::{Clock, has_passed};
use anabranch_log::kafka::outlet::{Commit, Keys, Outlets, Parts, Stream};
use anabranch_log::key::by_key;
use anabranch_log::position::{Coverage, Offset, Partition, Positions, TopicPartition};
use anabranch_log::{Log, LogError, Payloads};
use anabranch_plan::schema::{Column, DataType};
use anabranch_plan::sink::{Delivery, Sink};
use anabranch_plan::view::Sent;
use parking_lot::Mutex;
use polars::prelude::{DataFrame, IntoLazy, PolarsError, PolarsResult};
use tokio_util::sync::CancellationToken;

use crate::error::{SpeedError, Stop, reason};
use crate::micro_batch::MicroBatch;
use crate::settings::{Settings, micros};
use crate::wait::{pause, wait};

/// The least time from one write to the next, unless a micro-batch is full: each costs the brokers a commit.
const INTERVAL: Duration = Duration::from_millis(200);

/// Who finds an output's partition taken over looks again after so long: perhaps it was taken by somebody who had lost it.
const TAKEN_OVER: Duration = Duration::from_secs(1);

/// A position that stays the same is stored again after so long, as brokers forget groups that nobody speaks for.
const REMEMBER: Duration = Duration::from_secs(3_600);

/// What the names of threads begin with that write outputs.
pub(crate) const WRITES: &str = "write-";

/// How an output does with one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputStatus {
    /// Up to where its records are written.
    pub position: Offset,
    /// Records written, since the process started.
    pub records: u64,
    /// Writes that came to nothing, and were or will be tried again.
    pub failures: u64,
    /// Records of the log that were no events.
    pub rejected: u64,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
    /// What retention had taken when it was wanted.
    pub lost: Coverage<TopicPartition>,
}

/// How the outputs of a process do, by view and partition.
#[derive(Debug, Clone, Default)]
pub struct OutputStates(Arc<Mutex<BTreeMap<(String, Partition), OutputStatus>>>);

impl OutputStates {
    /// All of them.
    pub fn all(&self) -> BTreeMap<(String, Partition), OutputStatus> {
        self.0.lock().clone()
    }
}

/// What writes one output.
#[derive(Clone)]
pub(crate) struct OutputWriter {
    pub log: Arc<dyn Log>,
    pub outlets: Outlets,
    pub output: Sent,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub states: OutputStates,
    pub shutdown: CancellationToken,
}

impl OutputWriter {
    /// Writes what all partitions give until shutdown, those too that the topic gets meanwhile.
    pub fn run_all(self) {
        let mut threads = BTreeMap::new();
        while !self.shutdown.is_cancelled() {
            match self.log.bounds(&self.output.table().topic) {
                Ok(bounds) => {
                    for partition in bounds.into_keys().filter(|p| !threads.contains_key(p)).collect::<Vec<_>>() {
                        match self.clone().start(partition) {
                            Ok(thread) => drop(threads.insert(partition, thread)),
                            Err(error) => {
                                tracing::warn!(reason = reason(&error), "an output can't begin; trying again")
                            }
                        }
                    }
                }
                Err(error) => {
                    let view = &self.output.id.name;
                    tracing::warn!(view, reason = reason(&error), "its partitions can't be listed; trying again");
                }
            }
            wait(&self.shutdown, self.settings.idle_after / 4);
        }
        for (partition, thread) in threads {
            if thread.join().is_err() {
                tracing::error!(view = self.output.id.name, partition, "a thread that writes an output has failed");
            }
        }
    }

    /// Starts a thread that writes what one partition gives until shutdown.
    pub fn start(self, partition: Partition) -> Result<JoinHandle<()>, SpeedError> {
        let name = format!("{WRITES}{}-{partition}", self.output.id.name);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || self.run(partition));
        thread.map_err(|source| SpeedError::Thread { name, source })
    }

    fn run(&self, partition: Partition) {
        let (view, mut failures) = (&self.output.id.name, 0);
        while !self.shutdown.is_cancelled() {
            let error = match catch_unwind(AssertUnwindSafe(|| self.write(partition, &mut failures))) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => return self.stop(partition, Stop::panicked(&*panic)),
            };
            self.note(partition, |state| state.failures += 1);
            match &error {
                SpeedError::Output { source: LogError::Fenced { .. }, .. } => {
                    tracing::info!(view, partition, "an output is written by somebody else now");
                    wait(&self.shutdown, TAKEN_OVER);
                }
                SpeedError::Output { source: LogError::Backend { .. }, .. }
                | SpeedError::Log { source: LogError::Backend { .. }, .. } => {
                    tracing::warn!(view, partition, reason = reason(&error), "writing an output failed; trying again");
                    wait(&self.shutdown, pause(failures));
                    failures += 1;
                }
                _ => return self.stop(partition, error.into()),
            }
        }
    }

    /// Opens the outlet, and goes on from where it says until something fails.
    fn write(&self, partition: Partition, failures: &mut u32) -> Result<(), SpeedError> {
        let (name, table, topic) = (&self.output.id.name, self.output.table(), &self.output.sink().topic);
        let writing = |source| SpeedError::Output { view: name.clone(), topic: topic.clone(), source };
        let reading = |source| SpeedError::Log { table: table.name.clone(), source };
        let (outlet, mut next) = self.outlets.open(&Arc::new(stream(&self.output)), partition).map_err(writing)?;
        let mut reader = self.log.reader(&table.topic, &Positions::from([(partition, next)])).map_err(reading)?;
        reader.bring(decode::extras(table));
        self.note(partition, |state| state.position = next);
        let (mut decoder, made) = (Decoder::new(table.clone()), row::Records::new(&self.output.rows));
        let (mut stored, of) = (self.clock.now(), table.topic.as_str().into());
        while !self.shutdown.is_cancelled() {
            let (begun, now) = (Instant::now(), self.clock.now());
            let Some(batch) = reader.poll(self.settings.read_limit(), self.settings.batch_wait).map_err(reading)?
            else {
                if has_passed(stored, now, micros(REMEMBER)) {
                    outlet.write(&Parts::new(), &Keys::new(), next).map_err(writing)?;
                    stored = now;
                }
                continue;
            };
            fail::fail_point!("output::after_read");
            let decoded = MicroBatch::decode(&mut decoder, &of, &batch, now)?;
            let partitions = outlet.partitions().map_err(writing)?;
            let rows = made.of(decoded.events.lazy()).collect();
            let written = rows
                .and_then(|rows| records(self.output.sink(), &self.output.rows.schema(), &rows, partition, partitions));
            let (parts, keys) = written.map_err(|source| SpeedError::Evaluate {
                view: name.clone(),
                step: "making records of a micro-batch",
                source,
            })?;
            outlet.write(&parts, &keys, batch.coverage.end).map_err(writing)?;
            (next, stored, *failures) = (batch.coverage.end, now, 0);
            self.note(partition, |state| {
                state.position = next;
                state.records += parts.iter().map(|(_, payloads)| payloads.len() as u64).sum::<u64>();
                state.rejected += decoded.rejected as u64;
            });
            if batch.payloads.len() < self.settings.batch_records {
                wait(&self.shutdown, INTERVAL.saturating_sub(begun.elapsed()));
            }
        }
        Ok(())
    }

    fn note(&self, partition: Partition, note: impl FnOnce(&mut OutputStatus)) {
        note(self.states.0.lock().entry((self.output.id.name.clone(), partition)).or_default());
    }

    fn stop(&self, partition: Partition, Stop { reason, lost, .. }: Stop) {
        tracing::error!(view = self.output.id.name, partition, reason, "an output has stopped");
        self.note(partition, |state| (state.stopped, state.lost) = (Some(reason), lost));
    }
}

/// The stream that an output writes.
fn stream(output: &Sent) -> Stream {
    let Sink { topic, delivery, .. } = output.sink();
    let commit = match delivery {
        Delivery::ExactlyOnce => Commit::WithRecords,
        Delivery::AtLeastOnce => Commit::AfterRecords,
        Delivery::AtMostOnce => Commit::BeforeRecords,
    };
    Stream { name: output.id.name.clone(), from: output.table().topic.clone(), to: topic.clone(), commit }
}

/// Rows of a partition with these columns as records, and their keys. Those without a key go to the partition of the
/// events' own number, as far as there are so many: so they stay in order.
fn records(
    sink: &Sink,
    columns: &[Column],
    rows: &DataFrame,
    partition: Partition,
    partitions: u32,
) -> PolarsResult<(Parts, Keys)> {
    let keys = match sink.partition_by {
        None => None,
        Some(field) => {
            let batch = to_arrow(rows).map_err(|error| PolarsError::ComputeError(error.to_string().into()))?;
            Some(partitioner::keys(&batch, field))
        }
    };
    let key = |row: usize| keys.as_ref().and_then(|keys| keys[row].as_deref());
    let mut chosen = BTreeMap::<Partition, Vec<usize>>::new();
    for row in 0..rows.height() {
        let place = key(row).map_or(partition % partitions, |key| by_key(key.as_bytes(), partitions));
        chosen.entry(place).or_default().push(row);
    }
    let is_json = |name: &str| {
        let of_name = columns.iter().find(|column| column.name == name);
        of_name.is_some_and(|column| column.data_type == DataType::Json)
    };
    let cells = Rows::of(rows)?.with_json(is_json);
    let record = |&row: &usize| {
        let mut record = Vec::new();
        cells.write_json_object(row, |_| true, &mut record);
        record
    };
    let parts = chosen.iter().map(|(&place, rows)| (place, rows.iter().map(record).collect::<Payloads>()));
    let parts = parts.collect();
    let keys_of = |rows: &Vec<usize>| rows.iter().map(|&row| key(row).unwrap_or("")).collect::<Payloads>();
    let keys = if keys.is_none() { Keys::new() } else { chosen.iter().map(|(&p, rows)| (p, keys_of(rows))).collect() };
    Ok((parts, keys))
}
