//! Partitions that hold records and deliver none: how often each was read again, and whether that has helped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::Stalls;
use crate::position::Partition;

/// The partitions that this process reads or has read.
#[derive(Default)]
pub(crate) struct StallBook(Mutex<BTreeMap<(String, Partition), Entry>>);

#[derive(Default)]
struct Entry {
    count: u64,
    /// The last stall, unless the partition has delivered since.
    last: Option<Instant>,
}

impl StallBook {
    /// Takes note that somebody reads a partition. Whether it stands since an earlier reader's stall.
    pub fn begin(&self, topic: &str, partition: Partition) -> bool {
        self.0.lock().entry((topic.to_owned(), partition)).or_default().last.is_some()
    }

    pub fn stalled(&self, topic: &str, partition: Partition) {
        let mut book = self.0.lock();
        let entry = book.entry((topic.to_owned(), partition)).or_default();
        (entry.count, entry.last) = (entry.count + 1, Some(Instant::now()));
    }

    pub fn delivered(&self, topic: &str, partition: Partition) {
        if let Some(entry) = self.0.lock().get_mut(&(topic.to_owned(), partition)) {
            entry.last = None;
        }
    }

    /// A partition that stands stalls again each `stall`: one that nobody here has tried for long isn't ours any more.
    pub fn read(&self, stall: Duration) -> BTreeMap<(String, Partition), Stalls> {
        let stands = |entry: &Entry| entry.last.is_some_and(|at| at.elapsed() < stall * 4);
        let book = self.0.lock();
        let each = book.iter();
        each.map(|(name, entry)| (name.clone(), Stalls { count: entry.count, stands: stands(entry) })).collect()
    }
}
