//! How often and how much: what an operator may tune without changing any answer.

use std::time::Duration;

use anabranch_log::ReadLimit;
use anabranch_plan::time::Micros;

/// The speed layer's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Records of a micro-batch at most.
    pub batch_records: usize,
    /// Payload bytes of a micro-batch at most.
    pub batch_bytes: usize,
    /// How long a read waits for records.
    pub batch_wait: Duration,
    /// A partition that is caught up and has had nothing new for so long doesn't hold the watermark back.
    pub idle_after: Duration,
    /// A chunk takes records for so long.
    pub chunk_interval: Duration,
    /// A chunk takes about so many records.
    pub chunk_records: u64,
    /// The least time from one snapshot to the next. Stretched to 20 times what a snapshot costs: after a pause what comes is shown
    /// at once.
    pub snapshot_interval: Duration,
    /// The time from one checkpoint to the next while records come.
    pub checkpoint_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_records: 65_536,
            batch_bytes: 32 << 20,
            batch_wait: Duration::from_millis(20),
            idle_after: Duration::from_secs(10),
            chunk_interval: Duration::from_secs(30),
            chunk_records: 8_000_000,
            snapshot_interval: Duration::from_millis(5),
            checkpoint_interval: Duration::from_secs(10),
        }
    }
}

impl Settings {
    pub(crate) fn read_limit(&self) -> ReadLimit {
        ReadLimit { records: self.batch_records, bytes: self.batch_bytes }
    }
}

/// A duration in the unit of the clock.
pub(crate) fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}
