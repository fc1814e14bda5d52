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
//! These types are of one topic, which they don't name. Where they are stored or sent, [`ByTopic`] names it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A partition's number within its topic.
pub type Partition = u32;

/// A record's number within its partition.
pub type Offset = u64;

/// The next offset to be read, per partition.
pub type Positions = BTreeMap<Partition, Offset>;

/// Why a range can't be added to a coverage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Some of the range is covered already.
    #[error("partition {partition}: offsets {applied:?} overlap {covered:?}, which is covered already")]
    Overlap {
        /// The partition concerned.
        partition: Partition,
        /// What is covered.
        covered: Range<Offset>,
        /// What was to be added.
        applied: Range<Offset>,
    },
    /// Offsets between the covered range and the new one would be skipped.
    #[error("partition {partition}: offsets {missing:?} are missing before {applied:?}")]
    Hole {
        /// The partition concerned.
        partition: Partition,
        /// What would be skipped.
        missing: Range<Offset>,
        /// What was to be added.
        applied: Range<Offset>,
    },
    /// A range that ends before it begins.
    #[error("partition {partition}: offsets {applied:?} end before they begin")]
    Backwards {
        /// The partition concerned.
        partition: Partition,
        /// What was to be added.
        applied: Range<Offset>,
    },
}

/// One half-open offset range per partition. Written in JSON as `{"partition":[first,next]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Partition, Range<Offset>>);

impl Coverage {
    /// A coverage of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Covers nothing, but says where each partition would begin.
    pub fn starting_at(positions: &Positions) -> Self {
        Self(positions.iter().map(|(&p, &offset)| (p, offset..offset)).collect())
    }

    /// The range of a partition, or none if the coverage doesn't speak of it.
    pub fn get(&self, partition: Partition) -> Option<&Range<Offset>> {
        self.0.get(&partition)
    }

    /// The first offset not covered; 0 for a partition that the coverage doesn't speak of.
    pub fn next(&self, partition: Partition) -> Offset {
        self.0.get(&partition).map_or(0, |range| range.end)
    }

    /// The first offset not covered, per partition.
    pub fn ends(&self) -> Positions {
        self.0.iter().map(|(&p, range)| (p, range.end)).collect()
    }

    /// The first covered offset, per partition.
    pub fn starts(&self) -> Positions {
        self.0.iter().map(|(&p, range)| (p, range.start)).collect()
    }

    /// The ranges in order of partition, empty ones included.
    pub fn iter(&self) -> impl Iterator<Item = (Partition, &Range<Offset>)> {
        self.0.iter().map(|(&p, range)| (p, range))
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
    pub fn try_apply(&mut self, partition: Partition, applied: Range<Offset>) -> Result<(), PositionError> {
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
    pub fn extend(&mut self, partition: Partition, other: Range<Offset>) {
        let range = self.0.entry(partition).or_insert_with(|| other.clone());
        *range = range.start.min(other.start)..range.end.max(other.end);
    }

    /// Adds another coverage that begins where this one ends, in every partition or in none.
    pub fn try_append(&mut self, other: &Coverage) -> Result<(), PositionError> {
        let mut sum = self.clone();
        for (partition, range) in other.iter() {
            sum.try_apply(partition, range.clone())?;
        }
        *self = sum;
        Ok(())
    }

    /// The ranges below `frontier` that this coverage leaves out: what an answer lacks if it is all there is.
    pub fn missing_before(&self, frontier: &Positions) -> Coverage {
        Coverage(
            frontier.iter().filter(|&(&p, &end)| self.next(p) < end).map(|(&p, &end)| (p, self.next(p)..end)).collect(),
        )
    }
}

impl FromIterator<(Partition, Range<Offset>)> for Coverage {
    fn from_iter<I: IntoIterator<Item = (Partition, Range<Offset>)>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (partition, range)) in self.iter().enumerate() {
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

/// What is stored or sent of partitions, by their topic. Written in JSON as `{"topic":…}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByTopic<T>(BTreeMap<String, T>);

/// What was stored or sent isn't of the one topic that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is of the topics {there:?}, and `{wanted}` alone is wanted")]
pub struct OtherTopic {
    /// The topics that it is of.
    pub there: Vec<String>,
    /// The one that is wanted.
    pub wanted: String,
}

impl<T> ByTopic<T> {
    /// What is said of one topic.
    pub fn of(topic: &str, said: T) -> Self {
        Self(BTreeMap::from([(topic.to_owned(), said)]))
    }

    /// What is said of a topic, if it is said of that one alone.
    pub fn only(mut self, topic: &str) -> Result<T, OtherTopic> {
        if self.0.len() == 1
            && let Some(said) = self.0.remove(topic)
        {
            return Ok(said);
        }
        Err(OtherTopic { there: self.0.into_keys().collect(), wanted: topic.to_owned() })
    }

    /// The topics.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
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
    fn what_is_stored_names_its_topic_and_is_of_no_other() {
        let stored = ByTopic::of("tweets", coverage(&[(0, 0..1200)]));
        let json = serde_json::to_string(&stored).expect("json");
        assert_eq!(json, r#"{"tweets":{"0":[0,1200]}}"#);
        assert_eq!(serde_json::from_str::<ByTopic<Coverage>>(&json).expect("back"), stored);
        assert_eq!(stored.clone().only("tweets"), Ok(coverage(&[(0, 0..1200)])));
        let other = stored.only("clicks").expect_err("another topic");
        assert_eq!(other.to_string(), r#"it is of the topics ["tweets"], and `clicks` alone is wanted"#);
        for json in ["{}", r#"{"a":{},"b":{}}"#] {
            let stored: ByTopic<Coverage> = serde_json::from_str(json).expect("json");
            assert!(stored.only("a").is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_missing_before_a_frontier_is_named() {
        let covered = coverage(&[(0, 0..10), (1, 0..4)]);
        let missing = covered.missing_before(&Positions::from([(0, 10), (1, 6), (2, 1)]));
        assert_eq!(missing, coverage(&[(1, 4..6), (2, 0..1)]));
    }
}
