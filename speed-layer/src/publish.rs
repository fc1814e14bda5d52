//! Shows a partition's snapshots to processes that serve: through the log, as [`anabranch_exchange::snapshot::wire`] says.
//!
//! At most one update of a partition is on its way. The publisher's thread makes the next one once the log has stored the one
//! before or has given it up, and makes it of the newest snapshots: those that came meanwhile have replaced each other, and
//! nothing keeps them. The update counts toward the process's memory ([`crate::memory`]) until then. While it is made it counts
//! twice what its panes take: what isn't written yet is still there, though the pipeline may have replaced it, and what is
//! written is there twice. Then it counts twice its bytes, as the log's client keeps a copy.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::{Snapshot, wire};
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Log, LogError, Payloads, ReadLimit, Retention};
use anabranch_plan::view::Kept;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::chunk;
use crate::error::{SpeedError, reason};
use crate::memory::Share;
use crate::metrics::Counters;
use crate::wait::until_any;

/// Telling may take this share of the time: one part in so many.
const SHARE: u32 = 10;

/// After so long without a change the last state is told again, so that readers know that its owner lives.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often an update is a full one, and what came before it is deleted.
const FULL: Duration = Duration::from_secs(10);

/// How long it may take to read what others have written.
const PATIENCE: Duration = Duration::from_secs(10);

/// Claims a partition of the tables of a unit: the epoch is higher than that of everybody who had it before.
pub fn claim(log: &dyn Log, unit: &str, partition: Partition) -> Result<u64, LogError> {
    append(log, &wire::topic(unit), partition, wire::claim()).map(|claim| claim.start)
}

/// Where the records are.
fn append(log: &dyn Log, topic: &str, partition: Partition, records: Payloads) -> Result<Range<Offset>, LogError> {
    let appended = log.append(topic, Append { parts: vec![(partition, records)], ..Append::default() })?;
    Ok(appended.offsets.get(&partition).cloned().unwrap_or_default())
}

/// What a publisher works with.
pub(crate) struct Publisher {
    pub log: Arc<dyn Log>,
    pub unit: String,
    pub partition: Partition,
    pub epoch: u64,
    /// Set once somebody else has claimed the partition since: readers hear nobody else any more.
    pub superseded: Arc<AtomicBool>,
    pub views: Vec<(Kept, watch::Receiver<Arc<Snapshot>>)>,
    /// The least time between two updates.
    pub interval: Duration,
    /// What updates take on their way.
    pub memory: Share,
    pub counters: Arc<Counters>,
    pub shutdown: CancellationToken,
}

impl Publisher {
    /// Starts a thread that publishes until the pipeline has ended. If that has stopped by itself, it is told until
    /// `shutdown`: nobody else has the partition.
    pub fn start(self) -> Result<JoinHandle<()>, SpeedError> {
        let name = format!("publish-{}-{}", self.unit, self.partition);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || self.run());
        thread.map_err(|source| SpeedError::Thread { name, source })
    }

    fn run(mut self) {
        let topic = wire::topic(&self.unit);
        let mut encoder = wire::Encoder::new(self.epoch);
        let (mut told, mut full): (Option<Instant>, Option<Instant>) = (None, None);
        let mut cost = Duration::ZERO;
        // Behind what this process has written last.
        let mut end = self.epoch + 1;
        loop {
            let ended = self.views.iter().any(|(_, snapshot)| snapshot.has_changed().is_err());
            let stopped = self.views.iter().any(|(_, snapshot)| snapshot.borrow().stopped.is_some());
            let ended = ended && (!stopped || self.shutdown.is_cancelled());
            let changed = self.views.iter().any(|(_, snapshot)| snapshot.has_changed().unwrap_or(false));
            let waited = told.map_or(Duration::MAX, |at| at.elapsed());
            let apart = self.interval.max(cost * SHARE).min(HEARTBEAT);
            if !ended && waited < apart {
                std::thread::sleep(apart - waited);
                continue;
            }
            if !ended && !changed && waited < HEARTBEAT {
                self.wait(HEARTBEAT - waited);
                continue;
            }
            let begun = Instant::now();
            let views: Vec<_> = self
                .views
                .iter_mut()
                .map(|(view, snapshot)| (view.clone(), snapshot.borrow_and_update().clone()))
                .collect();
            // Before its first snapshot a pipeline has nothing to say.
            if views.iter().all(|(_, snapshot)| snapshot.sequence > 0 || snapshot.stopped.is_some()) {
                let is_full = full.is_none_or(|at| at.elapsed() >= FULL);
                match self.tell(&topic, encoder.update(views, is_full)) {
                    Ok(told) => {
                        if is_full {
                            full = Some(Instant::now());
                        }
                        if told.start > end && self.is_claimed(&topic, end..told.start) {
                            let (unit, partition) = (&self.unit, self.partition);
                            tracing::warn!(unit, partition, "somebody else has claimed the partition since");
                            self.superseded.store(true, Ordering::Release);
                            return;
                        }
                        if is_full {
                            self.forget_before(&topic, told.start);
                        }
                        end = told.end;
                    }
                    Err(problem) => {
                        tracing::warn!(unit = self.unit, partition = self.partition, problem, "publishing failed");
                        // Readers may lack what this update brought.
                        full = None;
                    }
                }
            }
            (told, cost) = (Some(Instant::now()), begun.elapsed());
            if ended {
                return;
            }
        }
    }

    /// Waits for a change, or where a pipeline has ended for the shutdown.
    fn wait(&mut self, time: Duration) {
        let mut events: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for (_, snapshot) in &self.views {
            let mut snapshot = snapshot.clone();
            match snapshot.has_changed() {
                Ok(_) => events.push(Box::pin(async move { drop(snapshot.changed().await) })),
                Err(_) => events.push(Box::pin(self.shutdown.cancelled())),
            }
        }
        until_any(events, time);
    }

    /// Whether somebody has claimed the partition among records of others. It is told a lost partition late, or came with its claim
    /// after that: whoever has the partition claims it again then.
    fn is_claimed(&self, topic: &str, others: Range<Offset>) -> bool {
        let begun = Instant::now();
        let mut reader = match self.log.reader(topic, &Positions::from([(self.partition, others.start)])) {
            Ok(reader) => reader,
            // What was written there is deleted, by whom it was.
            Err(error) => return matches!(error, LogError::OutOfRange { .. }),
        };
        let limit = ReadLimit { records: 1_000, bytes: 64 << 20 };
        while begun.elapsed() < PATIENCE {
            match reader.poll(limit, Duration::from_millis(100)) {
                Ok(Some(batch)) => {
                    let is_other = |offset: &Offset| others.contains(offset);
                    let mut records = batch.offsets.iter().zip(batch.payloads.iter());
                    if records.any(|(offset, record)| is_other(offset) && wire::is_claim(record)) {
                        return true;
                    }
                    if batch.coverage.end >= others.end {
                        return false;
                    }
                }
                Ok(None) => {}
                Err(error) => return matches!(error, LogError::OutOfRange { .. }),
            }
        }
        false
    }

    /// Publishes an update; returns where it is.
    fn tell(&mut self, topic: &str, update: wire::Update) -> Result<Range<Offset>, String> {
        self.take(2 * update.panes().map(|pane| chunk::bytes(&pane.partials)).sum::<usize>());
        let told = update.encode().map_err(|error| reason(&error)).and_then(|records| {
            self.take(2 * records.bytes().len());
            append(&*self.log, topic, self.partition, records).map_err(|error| reason(&error))
        });
        self.take(0);
        told
    }

    /// From now on the update takes so much. A pipeline that is over the limit then gives way.
    fn take(&mut self, bytes: usize) {
        self.memory.take(bytes);
        self.counters.unsent_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// Deletes what a full update has replaced. If that fails, the next full update's turn will do.
    fn forget_before(&self, topic: &str, first: Offset) {
        let everything = Retention { age: Some(Duration::ZERO), bytes: Some(0) };
        if let Err(error) = self.log.retain(topic, everything, &Positions::from([(self.partition, first)])) {
            let reason = reason(&error);
            tracing::info!(unit = self.unit, partition = self.partition, reason, "old snapshots weren't deleted");
        }
    }
}
