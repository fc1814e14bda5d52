//! What the speed layer has done, as plain numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anabranch_exchange::histogram::{Counts, Histogram};
use anabranch_log::position::{Coverage, TopicPartition};
use anabranch_plan::time::Micros;
use parking_lot::Mutex;

use crate::error::Stop;
use crate::watermark;

/// Upper bounds of freshness, in seconds: a snapshot is due every tenth, and a backlog may be hours old.
const FRESHNESS: [f64; 14] = [0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0];

/// One table's numbers at one instant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpeedMetrics {
    /// Events folded, since the process started.
    pub events: u64,
    /// Micro-batches folded.
    pub batches: u64,
    /// Records that were no events.
    pub rejected: u64,
    /// Events that came too late for at least one window, summed over the table's views.
    pub late: u64,
    /// Seconds spent folding.
    pub fold_seconds: f64,
    /// Snapshots published.
    pub snapshots: u64,
    /// Seconds spent making snapshots.
    pub snapshot_seconds: f64,
    /// Checkpoints stored.
    pub checkpoints: u64,
    /// Checkpoints that could not be stored.
    pub checkpoint_failures: u64,
    /// When the last checkpoint was stored, by the clock; none before the first.
    pub checkpoint_at: Option<Micros>,
    /// The size of the last checkpoint.
    pub checkpoint_bytes: u64,
    /// Rows of state, over all views.
    pub state_rows: u64,
    /// Bytes of state, over all views, and of the update that is on its way to the processes that serve.
    pub state_bytes: u64,
    /// The table's watermark.
    pub watermark: Option<Micros>,
    /// How long after the log took a record a snapshot had it, in seconds.
    pub freshness: Counts,
    /// Why the source has stopped, if it has.
    pub stopped: Option<String>,
    /// What retention had taken when the source wanted it.
    pub lost: Coverage<TopicPartition>,
    /// The table's views, each with why it has stopped by itself, if it has.
    pub views: BTreeMap<String, Option<String>>,
}

#[derive(Debug)]
pub(crate) struct Counters {
    pub events: AtomicU64,
    pub batches: AtomicU64,
    pub rejected: AtomicU64,
    pub late: AtomicU64,
    pub fold_micros: AtomicU64,
    pub snapshots: AtomicU64,
    pub snapshot_micros: AtomicU64,
    pub checkpoints: AtomicU64,
    pub checkpoint_failures: AtomicU64,
    pub checkpoint_at: AtomicI64,
    pub checkpoint_bytes: AtomicU64,
    pub state_rows: AtomicU64,
    pub state_bytes: AtomicU64,
    pub unsent_bytes: AtomicU64,
    pub watermark: AtomicI64,
    pub freshness: Histogram,
    pub stopped: Mutex<Option<Stop>>,
    pub views: Mutex<BTreeMap<String, Option<String>>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            events: AtomicU64::default(),
            batches: AtomicU64::default(),
            rejected: AtomicU64::default(),
            late: AtomicU64::default(),
            fold_micros: AtomicU64::default(),
            snapshots: AtomicU64::default(),
            snapshot_micros: AtomicU64::default(),
            checkpoints: AtomicU64::default(),
            checkpoint_failures: AtomicU64::default(),
            checkpoint_at: AtomicI64::new(watermark::NONE),
            checkpoint_bytes: AtomicU64::default(),
            state_rows: AtomicU64::default(),
            state_bytes: AtomicU64::default(),
            unsent_bytes: AtomicU64::default(),
            watermark: AtomicI64::new(watermark::NONE),
            freshness: Histogram::new(FRESHNESS),
            stopped: Mutex::default(),
            views: Mutex::default(),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
    add(counter, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
}

impl Counters {
    pub fn read(&self) -> SpeedMetrics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = |counter: &AtomicU64| count(counter) as f64 / 1e6;
        let stopped = self.stopped.lock().clone();
        SpeedMetrics {
            events: count(&self.events),
            batches: count(&self.batches),
            rejected: count(&self.rejected),
            late: count(&self.late),
            fold_seconds: seconds(&self.fold_micros),
            snapshots: count(&self.snapshots),
            snapshot_seconds: seconds(&self.snapshot_micros),
            checkpoints: count(&self.checkpoints),
            checkpoint_failures: count(&self.checkpoint_failures),
            checkpoint_at: watermark::known(self.checkpoint_at.load(Ordering::Relaxed)),
            checkpoint_bytes: count(&self.checkpoint_bytes),
            state_rows: count(&self.state_rows),
            state_bytes: count(&self.state_bytes) + count(&self.unsent_bytes),
            watermark: watermark::known(self.watermark.load(Ordering::Relaxed)),
            freshness: self.freshness.read(),
            stopped: stopped.as_ref().map(|stop| stop.reason.clone()),
            lost: stopped.map(|stop| stop.lost).unwrap_or_default(),
            views: self.views.lock().clone(),
        }
    }
}
