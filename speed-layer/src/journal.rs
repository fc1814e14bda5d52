//! What has to be remembered of micro-batches to fold them again with the very same late decisions.

use anabranch_log::position::{Offset, Partition};
use anabranch_plan::time::Micros;
use serde::{Deserialize, Serialize};

use crate::watermark::Met;

/// Entries are joined up to about this many offsets, so that a refold reads little more than it needs.
const JOINED_OFFSETS: u64 = 262_144;

/// One micro-batch, or several that could have been one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The partition of its records.
    pub partition: Partition,
    /// The first offset that it spoke for.
    pub first: Offset,
    /// The offset after the last that it spoke for.
    pub next: Offset,
    /// What the watermarks that its records met follow from.
    pub met: Met,
}

/// Adds a micro-batch. Where the partition's last one ended there and nothing but the partition itself had moved the
/// watermark since, they become one entry: its records meet the very same watermarks.
pub(crate) fn push(journal: &mut Vec<Entry>, entry: Entry, delay: Micros) {
    let last = journal.iter_mut().rev().take(64).find(|last| last.partition == entry.partition);
    if let Some(last) = last
        && last.next == entry.first
        && last.met.others == entry.met.others
        && last.met.at(entry.met.before, delay) == entry.met.floor
        && entry.next - last.first <= JOINED_OFFSETS
    {
        last.next = entry.next;
    } else {
        journal.push(entry);
    }
}

/// The entries of a partition that overlap `[first, next)`.
pub(crate) fn overlapping(journal: &[Entry], partition: Partition, first: Offset, next: Offset) -> Vec<&Entry> {
    journal.iter().filter(|e| e.partition == partition && e.next > first && e.first < next).collect()
}
