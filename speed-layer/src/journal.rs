//! What has to be remembered of micro-batches to fold them again with the very same late decisions.

use anabranch_log::position::{ByTopic, Offset, Partition, TopicPartition};
use anabranch_plan::time::Micros;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::watermark::Met;

/// Entries are joined up to about this many offsets, so that a refold reads little more than it needs.
const JOINED_OFFSETS: u64 = 262_144;

/// One micro-batch, or several that could have been one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry<K = TopicPartition> {
    /// The partition of its records.
    pub partition: K,
    /// The first offset that it spoke for.
    pub first: Offset,
    /// The offset after the last that it spoke for.
    pub next: Offset,
    /// What the watermarks that its records met follow from.
    pub met: Met,
}

impl<K> Entry<K> {
    /// The same, of a partition that is named otherwise.
    fn with<L>(&self, partition: L) -> Entry<L> {
        Entry { partition, first: self.first, next: self.next, met: self.met }
    }
}

/// Writes entries by topic: `{"topic":[…]}`.
pub(crate) fn serialize<S: Serializer>(entries: &[Entry], serializer: S) -> Result<S::Ok, S::Error> {
    let of_topic = |entry: &Entry| entry.with(entry.partition.partition);
    let stored = entries.iter().map(|entry| (&*entry.partition.topic, of_topic(entry)));
    stored.collect::<ByTopic<Vec<_>>>().serialize(serializer)
}

/// Reads entries that were written by topic.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
    let stored = ByTopic::<Vec<Entry<Partition>>>::deserialize(deserializer)?.into_iter();
    let entries = stored.flat_map(|(topic, entries)| {
        let named = |entry: Entry<Partition>| entry.with(TopicPartition::new(topic.clone(), entry.partition));
        entries.into_iter().map(named).collect::<Vec<_>>()
    });
    Ok(entries.collect())
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
pub(crate) fn overlapping<'a>(
    journal: &'a [Entry],
    partition: &TopicPartition,
    first: Offset,
    next: Offset,
) -> Vec<&'a Entry> {
    journal.iter().filter(|e| e.partition == *partition && e.next > first && e.first < next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_of_two_topics_is_stored_by_topic() {
        let entry = |topic, first| {
            let met = Met { before: 1, others: 2, floor: 3 };
            Entry { partition: TopicPartition::new(topic, 4), first, next: first + 2, met }
        };
        let mut json = Vec::new();
        let folded = [entry("tweets", 5), entry("clicks", 0), entry("tweets", 7)];
        serialize(&folded, &mut serde_json::Serializer::new(&mut json)).expect("json");
        let stored: serde_json::Value = serde_json::from_slice(&json).expect("json");
        let expected =
            serde_json::json!({"partition": 4, "first": 7, "next": 9, "met": {"before": 1, "others": 2, "floor": 3}});
        assert_eq!((&stored["tweets"][1], stored["clicks"].as_array().map(Vec::len)), (&expected, Some(1)));
        let read = deserialize(&mut serde_json::Deserializer::from_slice(&json)).expect("back");
        let of = |topic: &str, all: &[Entry]| -> Vec<Entry> {
            all.iter().filter(|entry| *entry.partition.topic == *topic).cloned().collect()
        };
        for topic in ["clicks", "tweets"] {
            assert_eq!(of(topic, &read), of(topic, &folded), "in their order");
        }
    }
}
