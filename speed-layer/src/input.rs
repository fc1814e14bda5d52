//! What goes from the thread that reads to the one that folds.

use std::collections::BTreeSet;

use anabranch_log::position::TopicPartition;
use anabranch_plan::time::Micros;

use crate::error::Stop;
use crate::micro_batch::MicroBatch;

/// What the reader tells the folder.
pub(crate) enum Input {
    /// Records.
    Batch(MicroBatch),
    /// At that time, these partitions held nothing unread.
    CaughtUp(Vec<TopicPartition>, Micros),
    /// These partitions hold records and deliver none; all others don't stall.
    Stalled(BTreeSet<TopicPartition>),
    /// The reader can't go on.
    Failed(Stop),
}
