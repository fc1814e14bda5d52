//! What of its topics a pipeline has, as one of several processes.

use std::collections::BTreeSet;

use anabranch_engine::operator::Part;
use anabranch_log::position::Partition;
use anabranch_plan::view::Unit;

/// One partition of the topics that are shared out, and all of those that everybody reads whole.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub part: Part,
    shared: BTreeSet<String>,
}

impl Own {
    /// A part of what a unit reads.
    pub fn of(unit: &Unit, part: Part) -> Self {
        Self { part, shared: unit.shared_topics() }
    }

    /// Whether the pipeline has a partition of a topic.
    pub fn has(&self, topic: &str, partition: Partition) -> bool {
        !self.shared.contains(topic) || partition == self.part.partition
    }
}
