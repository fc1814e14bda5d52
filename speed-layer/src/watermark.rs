//! Watermarks: up to which event time a table, or those that are read together, are thought complete.
//!
//! A partition's watermark is its newest event time less its table's delay. The tables' is the least of those of its
//! partitions that aren't idle, and never moves back. It is kept per **record**, not per micro-batch: a record meets
//! the watermark that its partition's earlier records and the other partitions had brought about. So what counts as
//! late doesn't depend on how records fall into micro-batches.
//!
//! | a partition …                                        | … then                                             |
//! |------------------------------------------------------|----------------------------------------------------|
//! | never had an event, and isn't idle                   | holds the watermark back                           |
//! | has unread records                                   | isn't idle                                         |
//! | is caught up and has had nothing new for a while     | is idle: left out of the minimum                   |
//! | is idle, as all others are                           | the watermark stays as it is                       |
//! | wakes up with older events                           | is in the minimum again; the watermark doesn't fall |
//!
//! The end of the input is not the end of time: a caught-up reader moves no watermark.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_exchange::snapshot::Progress;
use anabranch_log::position::{ByTopic, Partition, TopicPartition, named};
use anabranch_plan::time::Micros;
use serde::{Deserialize, Serialize};

/// Stands for "no watermark yet", and in checkpoints too: it is before every event.
pub(crate) const NONE: Micros = Micros::MIN;

/// The watermark, if there is one.
pub(crate) fn known(watermark: Micros) -> Option<Micros> {
    (watermark != NONE).then_some(watermark)
}

/// All that the watermarks met by a micro-batch's records follow from, beside their own times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Met {
    /// The partition's newest event time before the first record.
    pub before: Micros,
    /// The least watermark of the other partitions that weren't idle; `i64::MAX` if there were none.
    pub others: Micros,
    /// The table's watermark, below which none is.
    pub floor: Micros,
}

impl Met {
    /// The watermark once the partition's newest event time is `newest`.
    pub fn at(&self, newest: Micros, delay: Micros) -> Micros {
        newest.saturating_sub(delay).min(self.others).max(self.floor)
    }

    /// The watermark that each record meets.
    pub fn each(&self, times: &[Micros], delay: Micros) -> Vec<Micros> {
        let mut newest = self.before;
        let met = times.iter().map(|&time| {
            let met = self.at(newest, delay);
            newest = newest.max(time);
            met
        });
        met.collect()
    }
}

/// A partition as the tracker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    newest: Micros,
    idle: bool,
    /// When it last had records, by the clock; not worth remembering across a restart.
    #[serde(skip)]
    active: Micros,
}

/// How far the watermark stays behind the newest event of each topic.
pub(crate) type Delays = BTreeMap<Arc<str>, Micros>;

/// The watermark of tables that are read together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ByTopic<TrackerOfTopic>", from = "ByTopic<TrackerOfTopic>")]
pub(crate) struct Tracker {
    delays: Delays,
    merged: Micros,
    partitions: BTreeMap<TopicPartition, Source>,
}

/// How it is stored, by topic. The watermark is the same for each.
#[derive(Serialize, Deserialize)]
pub(crate) struct TrackerOfTopic {
    delay: Micros,
    merged: Micros,
    partitions: BTreeMap<Partition, Source>,
}

impl From<Tracker> for ByTopic<TrackerOfTopic> {
    fn from(Tracker { delays, merged, partitions }: Tracker) -> Self {
        ByTopic::grouped(&partitions).map_named(|topic, partitions| {
            let delay = delays.get(topic).copied().unwrap_or_default();
            TrackerOfTopic { delay, merged, partitions }
        })
    }
}

impl From<ByTopic<TrackerOfTopic>> for Tracker {
    fn from(stored: ByTopic<TrackerOfTopic>) -> Self {
        let mut tracker = Self::new(Delays::new(), [], 0);
        for (topic, TrackerOfTopic { delay, merged, partitions }) in stored {
            tracker.merged = merged;
            tracker.partitions.extend(named(&topic, partitions));
            tracker.delays.insert(topic, delay);
        }
        tracker
    }
}

impl Tracker {
    /// A tracker of partitions that have had no event.
    pub fn new(delays: Delays, partitions: impl IntoIterator<Item = TopicPartition>, now: Micros) -> Self {
        let mut tracker = Self { delays, merged: NONE, partitions: BTreeMap::new() };
        partitions.into_iter().for_each(|p| tracker.add(p, now));
        tracker
    }

    /// Adds a partition, unless it is known.
    pub fn add(&mut self, partition: TopicPartition, now: Micros) {
        self.partitions.entry(partition).or_insert(Source { newest: NONE, idle: false, active: now });
    }

    /// The partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    /// The same partitions before any event.
    pub fn restarted(&self) -> Self {
        let mut tracker = Self { merged: NONE, ..self.clone() };
        tracker.partitions.values_mut().for_each(|source| source.newest = NONE);
        tracker
    }

    /// Takes up a partition's newest event time from elsewhere, such as a batch version.
    pub fn seed(&mut self, partition: &TopicPartition, newest: Micros) {
        if let Some(source) = self.partitions.get_mut(partition) {
            source.newest = source.newest.max(newest);
        }
        self.advance();
    }

    /// After a restore: every partition was active now, and only those that have nothing unread may be idle still.
    pub fn resume(&mut self, now: Micros, has_unread: impl Fn(&TopicPartition) -> bool) {
        for (partition, source) in &mut self.partitions {
            source.active = now;
            source.idle &= !has_unread(partition);
        }
    }

    /// How far the watermark stays behind the newest event of a partition.
    pub fn delay(&self, partition: &TopicPartition) -> Micros {
        self.delays.get(&partition.topic).copied().unwrap_or_default()
    }

    /// The least event time that a topic's partitions have all come to, as far as they aren't idle.
    pub fn reached(&self, topic: &str) -> Micros {
        let awake = self.partitions.iter().filter(|(p, source)| *p.topic == *topic && !source.idle);
        awake.map(|(_, source)| source.newest).min().unwrap_or(Micros::MAX)
    }

    /// The watermark of the tables.
    pub fn watermark(&self) -> Option<Micros> {
        known(self.merged)
    }

    /// How far each partition is. Those that are `stalled` hold records and deliver none.
    pub fn progress(&self, stalled: &BTreeSet<TopicPartition>) -> BTreeMap<TopicPartition, Progress> {
        let each = self.partitions.iter().map(|(partition, source)| {
            let watermark = known(source.newest.saturating_sub(self.delay(partition)));
            (partition.clone(), Progress { watermark, idle: source.idle, stalled: stalled.contains(partition) })
        });
        each.collect()
    }

    /// What the next records of a partition meet. The partition isn't idle any more.
    pub fn begin(&mut self, partition: &TopicPartition, at: Micros) -> Met {
        self.add(partition.clone(), at);
        let mut met = Met { before: NONE, others: Micros::MAX, floor: self.merged };
        let delays = &self.delays;
        for (p, source) in &mut self.partitions {
            if p == partition {
                (source.active, source.idle) = (at, false);
                met.before = source.newest;
            } else if !source.idle {
                let delay = delays.get(&p.topic).copied().unwrap_or_default();
                met.others = met.others.min(source.newest.saturating_sub(delay));
            }
        }
        met
    }

    /// Takes in the newest event time of the records begun.
    pub fn end(&mut self, partition: &TopicPartition, newest: Micros) {
        self.seed(partition, newest);
    }

    /// These partitions had no unread records at `at`: those that have been still for long enough become idle.
    pub fn caught_up(&mut self, partitions: &[TopicPartition], at: Micros, idle_after: Micros) {
        for partition in partitions {
            if let Some(source) = self.partitions.get_mut(partition) {
                // A clock that was set back isn't waited for until it has caught up.
                source.active = source.active.min(at.saturating_add(idle_after));
                source.idle |= at.saturating_sub(source.active) >= idle_after;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        let awake = self.partitions.iter().filter(|(_, source)| !source.idle);
        if let Some(least) = awake.map(|(p, source)| source.newest.saturating_sub(self.delay(p))).min() {
            self.merged = self.merged.max(least);
        }
    }
}

#[cfg(test)]
mod tests;
