//! Offsets and coverage: which part of the log a state, a file or an answer speaks for.
//!
//! A [`Coverage`] with the range `[first, next)` for a partition reads: "the sum of all records of that partition with
//! offset in `[first, next)`". Two coverages may only be added where the second begins at the very offset at which
//! the first ends, so a record is never counted twice and never skipped:
//!
//! | covered  | applied   | outcome                       |
//! |----------|-----------|-------------------------------|
//! | nothing  | `[a, b)`  | `[a, b)`                      |
//! | `[a, b)` | `[b, c)`  | `[a, c)`                      |
//! | `[a, b)` | `[c, d)`, `c < b` | [`PositionError::Overlap`], state unchanged |
//! | `[a, b)` | `[c, d)`, `c > b` | [`PositionError::Hole`], state unchanged |
//!
//! Offsets that the log itself skips (compaction, transaction markers) are inside the ranges that a reader reports, so
//! they are not holes.
//!
//! A topic's log and its archive go by [`Partition`]. Views' states, snapshots, versions and answers go by
//! [`TopicPartition`], so that they can be made of several topics. In JSON these are written by topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A partition's number within its topic.
pub type Partition = u32;

/// A record's number within its partition.
pub type Offset = u64;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name. A clone shares it.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: Partition,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<Arc<str>>, partition: Partition) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// The next offset to be read, per partition.
pub type Positions<K = Partition> = BTreeMap<K, Offset>;

/// Why a range can't be added to a coverage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError<K = Partition> {
    /// Some of the range is covered already.
    #[error("partition {partition}: offsets {applied:?} overlap {covered:?}, which is covered already")]
    Overlap {
        /// The partition concerned.
        partition: K,
        /// What is covered.
        covered: Range<Offset>,
        /// What was to be added.
        applied: Range<Offset>,
    },
    /// Offsets between the covered range and the new one would be skipped.
    #[error("partition {partition}: offsets {missing:?} are missing before {applied:?}")]
    Hole {
        /// The partition concerned.
        partition: K,
        /// What would be skipped.
        missing: Range<Offset>,
        /// What was to be added.
        applied: Range<Offset>,
    },
    /// A range that ends before it begins.
    #[error("partition {partition}: offsets {applied:?} end before they begin")]
    Backwards {
        /// The partition concerned.
        partition: K,
        /// What was to be added.
        applied: Range<Offset>,
    },
}

/// One half-open offset range per partition. Written in JSON as `{"partition":[first,next]}`; by
/// [`TopicPartition`] as `{"topic":{"partition":[first,next]}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage<K = Partition>(BTreeMap<K, Range<Offset>>);

impl<K> Default for Coverage<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Coverage<K> {
    /// A coverage of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Covers nothing, but says where each partition would begin.
    pub fn starting_at(positions: &Positions<K>) -> Self {
        Self(positions.iter().map(|(p, &offset)| (p.clone(), offset..offset)).collect())
    }

    /// The range of a partition, or none if the coverage doesn't speak of it.
    pub fn get(&self, partition: &K) -> Option<&Range<Offset>> {
        self.0.get(partition)
    }

    /// The first offset not covered; 0 for a partition that the coverage doesn't speak of.
    pub fn next(&self, partition: &K) -> Offset {
        self.0.get(partition).map_or(0, |range| range.end)
    }

    /// The first offset not covered, per partition.
    pub fn ends(&self) -> Positions<K> {
        self.0.iter().map(|(p, range)| (p.clone(), range.end)).collect()
    }

    /// The first covered offset, per partition.
    pub fn starts(&self) -> Positions<K> {
        self.0.iter().map(|(p, range)| (p.clone(), range.start)).collect()
    }

    /// The ranges in order of partition, empty ones included.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Range<Offset>)> {
        self.0.iter()
    }

    /// The partitions that the coverage speaks of.
    pub fn partitions(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// The number of offsets covered.
    pub fn len(&self) -> u64 {
        self.0.values().map(|range| range.end - range.start).sum()
    }

    /// Whether no offset is covered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `[first, next)` of a partition, or says why that would count something twice or skip it.
    pub fn try_apply(&mut self, partition: K, applied: Range<Offset>) -> Result<(), PositionError<K>> {
        if applied.end < applied.start {
            return Err(PositionError::Backwards { partition, applied });
        }
        match self.0.get_mut(&partition) {
            None => {
                self.0.insert(partition, applied);
            }
            Some(covered) if applied.start == covered.end => covered.end = applied.end,
            Some(covered) if applied.start < covered.end => {
                return Err(PositionError::Overlap { partition, covered: covered.clone(), applied });
            }
            Some(covered) => {
                return Err(PositionError::Hole { partition, missing: covered.end..applied.start, applied });
            }
        }
        Ok(())
    }

    /// Makes a partition's range reach over another one too, and over what lies between them.
    pub fn extend(&mut self, partition: K, other: Range<Offset>) {
        let range = self.0.entry(partition).or_insert_with(|| other.clone());
        *range = range.start.min(other.start)..range.end.max(other.end);
    }

    /// Adds another coverage that begins where this one ends, in every partition or in none.
    pub fn try_append(&mut self, other: &Self) -> Result<(), PositionError<K>> {
        let mut sum = self.clone();
        for (partition, range) in other.iter() {
            sum.try_apply(partition.clone(), range.clone())?;
        }
        *self = sum;
        Ok(())
    }

    /// The ranges below `frontier` that this coverage leaves out: what an answer lacks if it is all there is.
    pub fn missing_before(&self, frontier: &Positions<K>) -> Self {
        let missing = frontier.iter().filter(|&(p, &end)| self.next(p) < end);
        missing.map(|(p, &end)| (p.clone(), self.next(p)..end)).collect()
    }
}

impl Coverage {
    /// The same, of a topic that is named.
    pub fn named(self, topic: &str) -> Coverage<TopicPartition> {
        Coverage(named(topic, self.0))
    }
}

impl Coverage<TopicPartition> {
    /// The part of one topic.
    pub fn of(&self, topic: &str) -> Coverage {
        Coverage(of_topic(topic, &self.0))
    }

    /// Each topic's part.
    pub fn by_topic(&self) -> ByTopic<Coverage> {
        ByTopic::grouped(&self.0).map(Coverage)
    }
}

impl<K: Ord> FromIterator<(K, Range<Offset>)> for Coverage<K> {
    fn from_iter<I: IntoIterator<Item = (K, Range<Offset>)>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl<K: fmt::Display> fmt::Display for Coverage<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (partition, range)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{partition}: [{}, {})", range.start, range.end)?;
        }
        f.write_str("}")
    }
}

impl Serialize for Coverage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(p, range)| (p.to_string(), [range.start, range.end])))
    }
}

impl<'de> Deserialize<'de> for Coverage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranges = BTreeMap::<String, [Offset; 2]>::deserialize(deserializer)?;
        ranges
            .into_iter()
            .map(|(p, [first, next])| match p.parse() {
                Ok(p) if first <= next => Ok((p, first..next)),
                _ => {
                    Err(serde::de::Error::custom(format!("`{p}`: [{first}, {next}] is no offset range of a partition")))
                }
            })
            .collect()
    }
}

impl Serialize for Coverage<TopicPartition> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_topic().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Coverage<TopicPartition> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranges = ByTopic::<Coverage>::deserialize(deserializer)?;
        Ok(Self(ranges.map(|ranges| ranges.0).named()))
    }
}

/// How other maps by [`TopicPartition`] are written in JSON, such as [`Positions`]: `{"topic":{"partition":…}}`.
pub mod by_topic {
    use super::*;

    /// For `#[serde(with = "by_topic")]`.
    pub fn serialize<V: Serialize + Clone, S: Serializer>(
        said: &BTreeMap<TopicPartition, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        ByTopic::grouped(said).serialize(serializer)
    }

    /// For `#[serde(with = "by_topic")]`.
    pub fn deserialize<'de, V: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<TopicPartition, V>, D::Error> {
        Ok(ByTopic::deserialize(deserializer)?.named())
    }
}

/// What is said of a topic's partitions, with the topic named.
pub fn named<V>(topic: &str, said: BTreeMap<Partition, V>) -> BTreeMap<TopicPartition, V> {
    ByTopic::of(topic, said).named()
}

/// What is said of one topic's partitions.
pub fn of_topic<V: Clone>(topic: &str, said: &BTreeMap<TopicPartition, V>) -> BTreeMap<Partition, V> {
    let of_topic = said.iter().filter(|(partition, _)| *partition.topic == *topic);
    of_topic.map(|(partition, said)| (partition.partition, said.clone())).collect()
}

/// Refuses what is said of partitions of other topics than these, or not of all of them.
pub fn check_topics<'a>(
    topics: &[&str],
    said: impl IntoIterator<Item = &'a TopicPartition>,
) -> Result<(), OtherTopics> {
    let there: BTreeSet<&str> = said.into_iter().map(|partition| &*partition.topic).collect();
    let wanted: BTreeSet<&str> = topics.iter().copied().collect();
    if there == wanted {
        return Ok(());
    }
    let owned = |topics: BTreeSet<&str>| topics.into_iter().map(str::to_owned).collect();
    Err(OtherTopics { there: owned(there), wanted: owned(wanted) })
}

/// What is stored or sent by topic. Written in JSON as `{"topic":…}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByTopic<T>(BTreeMap<String, T>);

/// What was stored or sent isn't of the topics that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is of the topics {there:?}, and {wanted:?} are wanted")]
pub struct OtherTopics {
    /// The topics that it is of.
    pub there: Vec<String>,
    /// Those that are wanted.
    pub wanted: Vec<String>,
}

impl<T> ByTopic<T> {
    /// What is said of one topic.
    pub fn of(topic: &str, said: T) -> Self {
        Self(BTreeMap::from([(topic.to_owned(), said)]))
    }

    /// What is said of a topic, if it is said of that one alone.
    pub fn only(mut self, topic: &str) -> Result<T, OtherTopics> {
        if self.0.len() == 1
            && let Some(said) = self.0.remove(topic)
        {
            return Ok(said);
        }
        Err(OtherTopics { there: self.0.into_keys().collect(), wanted: vec![topic.to_owned()] })
    }

    /// The topics.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The same topics, with something made of what is said of each.
    pub fn map<U>(self, mut make: impl FnMut(T) -> U) -> ByTopic<U> {
        self.map_named(|_, said| make(said))
    }

    /// The same, with something made of each topic and what is said of it.
    pub fn map_named<U>(self, mut make: impl FnMut(&str, T) -> U) -> ByTopic<U> {
        let each = self.0.into_iter().map(|(topic, said)| {
            let made = make(&topic, said);
            (topic, made)
        });
        ByTopic(each.collect())
    }
}

impl<V> ByTopic<BTreeMap<Partition, V>> {
    /// The same, by partitions that name their topic.
    fn named(self) -> BTreeMap<TopicPartition, V> {
        let each = self.into_iter().flat_map(|(topic, said)| {
            said.into_iter().map(move |(partition, said)| (TopicPartition::new(topic.clone(), partition), said))
        });
        each.collect()
    }
}

impl<V: Clone> ByTopic<BTreeMap<Partition, V>> {
    /// What is said of partitions that name their topic.
    pub fn grouped(said: &BTreeMap<TopicPartition, V>) -> Self {
        said.iter().map(|(partition, said)| (&*partition.topic, (partition.partition, said.clone()))).collect()
    }
}

impl<'a, T: Default + Extend<X>, X> FromIterator<(&'a str, X)> for ByTopic<T> {
    fn from_iter<I: IntoIterator<Item = (&'a str, X)>>(said: I) -> Self {
        let mut all = BTreeMap::<String, T>::new();
        said.into_iter().for_each(|(topic, one)| all.entry(topic.to_owned()).or_default().extend([one]));
        Self(all)
    }
}

impl<T> IntoIterator for ByTopic<T> {
    type Item = (Arc<str>, T);
    type IntoIter = std::iter::Map<std::collections::btree_map::IntoIter<String, T>, fn((String, T)) -> (Arc<str>, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(|(topic, said)| (topic.into(), said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(ranges: &[(Partition, Range<Offset>)]) -> Coverage {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn a_range_is_applied_only_where_the_last_one_ended() {
        let mut covered = coverage(&[(0, 5..10)]);
        let overlap = covered.try_apply(0, 9..12);
        assert!(matches!(overlap, Err(PositionError::Overlap { partition: 0, .. })), "{overlap:?}");
        let hole = covered.try_apply(0, 11..12);
        assert_eq!(hole, Err(PositionError::Hole { partition: 0, missing: 10..11, applied: 11..12 }));
        assert_eq!(covered, coverage(&[(0, 5..10)]), "a refused range leaves the state as it was");
        covered.try_apply(0, 10..12).expect("adjacent");
        covered.try_apply(1, 3..3).expect("a new partition");
        assert_eq!(covered, coverage(&[(0, 5..12), (1, 3..3)]));
    }

    #[test]
    fn an_append_is_all_or_nothing() {
        let mut covered = coverage(&[(0, 0..10), (1, 0..4)]);
        assert!(covered.try_append(&coverage(&[(0, 10..20), (1, 5..6)])).is_err());
        assert_eq!(covered, coverage(&[(0, 0..10), (1, 0..4)]));
        covered.try_append(&coverage(&[(0, 10..20), (1, 4..6)])).expect("adjacent");
        assert_eq!(covered.len(), 26);
    }

    #[test]
    fn json_is_an_array_per_partition() {
        let covered = coverage(&[(0, 0..1200), (11, 7..9)]);
        let json = serde_json::to_string(&covered).expect("json");
        assert_eq!(json, r#"{"0":[0,1200],"11":[7,9]}"#);
        assert_eq!(serde_json::from_str::<Coverage>(&json).expect("back"), covered);
        assert!(serde_json::from_str::<Coverage>(r#"{"0":[5,1]}"#).is_err());
    }

    #[test]
    fn a_partition_of_a_topic_is_ordered_by_topic_and_then_by_number() {
        let mut all = [("b", 1), ("a", 10), ("a", 9)].map(|(topic, partition)| TopicPartition::new(topic, partition));
        all.sort();
        assert_eq!(all.each_ref().map(TopicPartition::to_string), ["a[9]", "a[10]", "b[1]"]);
    }

    #[test]
    fn what_is_said_of_several_topics_is_written_by_topic() {
        let clicks = coverage(&[(0, 0..5)]);
        let tweets = coverage(&[(2, 3..4), (11, 0..1200)]);
        let mut both = tweets.clone().named("tweets");
        both.try_append(&clicks.clone().named("clicks")).expect("another topic");
        let json = serde_json::to_string(&both).expect("json");
        assert_eq!(json, r#"{"clicks":{"0":[0,5]},"tweets":{"2":[3,4],"11":[0,1200]}}"#);
        assert_eq!(serde_json::from_str::<Coverage<TopicPartition>>(&json).expect("back"), both);
        assert!(serde_json::from_str::<Coverage<TopicPartition>>(r#"{"clicks":{"0":[5,1]}}"#).is_err());
        assert_eq!((both.of("clicks"), both.of("tweets"), both.of("no")), (clicks, tweets, Coverage::new()));
        assert_eq!(both.to_string(), "{clicks[0]: [0, 5), tweets[2]: [3, 4), tweets[11]: [0, 1200)}");
    }

    #[test]
    fn positions_in_several_topics_are_written_by_topic() {
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        struct Stored(#[serde(with = "by_topic")] Positions<TopicPartition>);
        let (clicks, tweets) = (Positions::from([(0, 12)]), Positions::from([(2, 7), (11, 9)]));
        let both = named("clicks", clicks.clone()).into_iter().chain(named("tweets", tweets.clone())).collect();
        let json = serde_json::to_string(&Stored(both)).expect("json");
        assert_eq!(json, r#"{"clicks":{"0":12},"tweets":{"2":7,"11":9}}"#);
        let Stored(both) = serde_json::from_str(&json).expect("back");
        assert_eq!((of_topic("clicks", &both), of_topic("tweets", &both)), (clicks, tweets));
    }

    #[test]
    fn one_topic_is_written_the_same_in_every_way_and_others_are_refused() {
        let stored = ByTopic::of("tweets", coverage(&[(0, 0..1200)]));
        let json = serde_json::to_string(&stored).expect("json");
        assert_eq!(json, r#"{"tweets":{"0":[0,1200]}}"#);
        assert_eq!(serde_json::from_str::<ByTopic<Coverage>>(&json).expect("back"), stored);
        let named: Coverage<TopicPartition> = serde_json::from_str(&json).expect("read");
        assert_eq!(serde_json::to_string(&named).expect("json"), json);
        assert_eq!(stored.clone().only("tweets"), Ok(coverage(&[(0, 0..1200)])));
        assert_eq!(check_topics(&["tweets"], named.partitions()), Ok(()));
        let other = stored.only("clicks").expect_err("another topic");
        assert_eq!(other.to_string(), r#"it is of the topics ["tweets"], and ["clicks"] are wanted"#);
        assert_eq!(check_topics(&["clicks"], named.partitions()), Err(other));
        for json in ["{}", r#"{"a":{"0":[0,1]},"b":{"0":[0,1]}}"#] {
            let stored: ByTopic<Coverage> = serde_json::from_str(json).expect("json");
            assert!(stored.only("a").is_err(), "{json}");
            let named: Coverage<TopicPartition> = serde_json::from_str(json).expect("json");
            assert!(check_topics(&["a"], named.partitions()).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_missing_before_a_frontier_is_named() {
        let covered = coverage(&[(0, 0..10), (1, 0..4)]);
        let missing = covered.missing_before(&Positions::from([(0, 10), (1, 6), (2, 1)]));
        assert_eq!(missing, coverage(&[(1, 4..6), (2, 0..1)]));
    }
}
