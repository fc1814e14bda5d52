//! What the speed layer says of a view at one instant. The serving layer knows the speed layer by this alone.
//!
//! A snapshot is immutable and complete: its chunks' coverages join without a gap, from the frontier of the batch
//! version that it stands on (or from the beginning of the log) to the newest record folded.

pub mod wire;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anabranch_engine::partial::Slack;
use anabranch_log::lineage::Marks;
use anabranch_log::position::{ByTopic, Coverage, Offset, TopicPartition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::ViewId;
use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A view's speed state at one instant.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Rises with every change of the state, never falls while the process lives.
    pub sequence: u64,
    /// The batch version at whose frontier the chunks begin; none if they begin where the log did.
    pub base: Option<u64>,
    /// How often the tables' archives had been rebuilt, in sum, by which the events are read.
    pub rebuilds: u64,
    /// What the chunks cover together.
    pub coverage: Coverage<TopicPartition>,
    /// The state, in order of coverage. A chunk that covers nothing holds what rows make that wait for others to come: it is part of
    /// this snapshot, and adds up with no other.
    pub chunks: Vec<Arc<Chunk>>,
    /// No event with an earlier time is expected any more; none before any event.
    pub watermark: Option<Micros>,
    /// How far each partition is that it is made of.
    pub partitions: BTreeMap<TopicPartition, Progress>,
    /// How many events came too late for at least one of their windows since the state began.
    pub late: u64,
    /// Why it goes on no further, if its source or the view itself has stopped: the state is served as it was then.
    pub stopped: Option<String>,
    /// Whether that is the view's own, and its source goes on: evaluating it has failed, or it catches up after that.
    pub alone: bool,
    /// What retention had taken when the source wanted it, which is why it has stopped.
    pub lost: Coverage<TopicPartition>,
    /// Among how many partitions a record's key has its place, if processes share these out.
    pub parts: Option<u32>,
    /// Which logs the offsets are of.
    pub log: Marks,
    /// Whether the source has stopped because the log that is there is another one: what an answer lacks can't be named.
    pub other_log: bool,
}

impl Snapshot {
    /// Whether all its partitions are idle, so that it holds no other's watermark back.
    pub fn is_idle(&self) -> bool {
        !self.partitions.is_empty() && self.partitions.values().all(|progress| progress.idle)
    }
}

/// How far a partition is, as whoever reads it sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its own watermark; none before any event.
    pub watermark: Option<Micros>,
    /// Whether it is caught up and has had nothing new for a while: the table's watermark doesn't wait for it.
    pub idle: bool,
    /// Whether it holds records and has delivered none for long.
    pub stalled: bool,
}

/// "The sum of the events with an offset in `coverage`", by pane.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The offsets that it speaks for.
    pub coverage: Coverage<TopicPartition>,
    /// The panes that hold any of these events, by their start; 0 alone in a view without windows.
    pub panes: BTreeMap<Micros, Arc<Pane>>,
    /// Its records that may be events to whoever reads them later.
    pub early: Early,
    /// Between which times rows may be wrong or lacking, as some of the records that make them came too late to be joined: see
    /// [`Unsure`](anabranch_engine::operator::Unsure).
    pub unsure: Option<(Micros, Micros)>,
    /// The least time among the records that it covers of changelogs which each process reads whole; none without any.
    pub looked_up: Option<Micros>,
}

/// Records that are ahead of their reader's clock, see [`Reject::early`](anabranch_engine::decode::Reject::early).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ByTopic<EarlyOfTopic>", from = "ByTopic<EarlyOfTopic>")]
pub struct Early {
    /// The offsets from the first to the last of them.
    pub offsets: Coverage<TopicPartition>,
    /// The least of their event times; none without any.
    pub from: Option<Micros>,
}

/// How they are stored and sent, by topic.
#[derive(Serialize, Deserialize)]
struct EarlyOfTopic {
    offsets: Coverage,
    from: Option<Micros>,
}

impl From<Early> for ByTopic<EarlyOfTopic> {
    fn from(early: Early) -> Self {
        early.offsets.by_topic().map(|offsets| EarlyOfTopic { offsets, from: early.from })
    }
}

impl From<ByTopic<EarlyOfTopic>> for Early {
    fn from(stored: ByTopic<EarlyOfTopic>) -> Self {
        let mut early = Self::default();
        for (topic, EarlyOfTopic { offsets, from }) in stored {
            early.merge(&Self { offsets: offsets.named(&topic), from });
        }
        early
    }
}

impl Early {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Adds records of a partition, none of which is of a time before `from`.
    pub fn add(&mut self, partition: TopicPartition, offsets: Range<Offset>, from: Micros) {
        if !offsets.is_empty() {
            self.offsets.extend(partition, offsets);
            self.from = Some(self.from.map_or(from, |least| least.min(from)));
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        let Some(from) = other.from else { return };
        other.offsets.iter().for_each(|(partition, range)| self.add(partition.clone(), range.clone(), from));
    }

    /// Those of them with an offset in the partition's range.
    pub fn within(&self, range: impl Fn(&TopicPartition) -> Range<Offset>) -> Self {
        let mut left = Self::default();
        for (partition, offsets) in self.offsets.iter() {
            let range = range(partition);
            let offsets = offsets.start.max(range.start)..offsets.end.min(range.end);
            self.from.iter().for_each(|&from| left.add(partition.clone(), offsets.clone(), from));
        }
        left
    }
}

/// A chunk's part of one pane.
#[derive(Debug, Clone, Default)]
pub struct Pane {
    /// Partials as in [`anabranch_engine::partial`], one row per group and number of windows missed.
    pub partials: DataFrame,
    /// Events that had missed some of the pane's windows, by how many they had missed.
    pub late: BTreeMap<i32, u64>,
    /// Set once memory ran out.
    pub slack: Option<Slack>,
}

/// The newest snapshot of each view.
#[derive(Debug, Clone, Default)]
pub struct Snapshots(pub BTreeMap<ViewId, watch::Receiver<Arc<Snapshot>>>);

impl Snapshots {
    /// The newest snapshot of a view.
    pub fn get(&self, view: &ViewId) -> Option<Arc<Snapshot>> {
        self.0.get(view).map(|receiver| receiver.borrow().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_records_of_two_topics_are_stored_by_topic() {
        let mut early = Early::default();
        early.add(TopicPartition::new("clicks", 0), 3..4, 70);
        early.add(TopicPartition::new("tweets", 2), 5..7, 60);
        let json = serde_json::to_value(&early).expect("json");
        let of_topic =
            |partition: &str, range: [u64; 2]| serde_json::json!({"offsets": {partition: range}, "from": 60});
        let expected = serde_json::json!({"clicks": of_topic("0", [3, 4]), "tweets": of_topic("2", [5, 7])});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Early>(json).expect("back"), early);
    }
}
