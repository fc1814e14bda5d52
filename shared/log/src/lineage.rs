//! Which log offsets are of. An offset means nothing without its log: another log has other records at the same offsets.
//!
//! A log's life is cut into [`Epoch`]s, each with a [`Mark`] that no other has. The embedded log begins one with the first
//! change of each process that opens it, and stores it in the same commit; on Kafka a topic has one for as long as it lives,
//! named by the cluster's id and the topic's. Whatever carries offsets notes the newest mark beside them, asked for after
//! the offsets were read. It fits a log if the log knows the mark, and if it reaches no further than to where the next epoch
//! begins, or the newest ends:
//!
//! | the log that is there …                         | what was noted …                              | found by              |
//! |-------------------------------------------------|-----------------------------------------------|-----------------------|
//! | is the one that it was                          | fits                                          |                       |
//! | was lost, or is another one                     | has a mark that it doesn't know               | the mark              |
//! | was restored from an older copy, and has grown  | goes beyond where the copy's next epoch begins | that epoch            |
//! | was restored from an older copy, and hasn't     | goes beyond its end                           | its end               |
//!
//! On Kafka a cluster that was restored from an older copy has the ids that it had. So archive and checkpoints note when the log took
//! their last records, too: whatever came in their places was taken at another time.
//!
//! What was noted before there were marks has none: it fits as long as it doesn't go beyond the log's end.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, written};
use crate::position::{Offset, Partition, Positions};

/// The name of an epoch of a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(String);

impl Mark {
    /// An epoch's name, which no other epoch of any log may have.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which logs the offsets of several topics are of, by topic. A topic whose log has no marks isn't named.
pub type Marks = BTreeMap<String, Mark>;

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a log's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its name.
    pub mark: Mark,
    /// Where the topic's partitions ended when it began; at 0 those that aren't named.
    pub begins: Positions,
}

/// What a log knows of itself, as of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Its epochs, oldest first; none of a log that has no marks.
    pub epochs: Vec<Epoch>,
    /// Where each partition ends.
    pub ends: Positions,
}

/// Why offsets don't fit a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// They are of another log.
    #[error("it is of the log {noted}, and the one that is there is {there}")]
    Other {
        /// The mark beside the offsets.
        noted: Mark,
        /// The newest of the log.
        there: Mark,
    },
    /// The log went on without some of them.
    #[error(
        "it reaches offset {reached} of partition {partition}, and the log went on from {begun}: it was restored from an older copy"
    )]
    Forked {
        /// The partition.
        partition: Partition,
        /// Where the offsets end.
        reached: Offset,
        /// Where the log's next epoch began.
        begun: Offset,
    },
    /// The log has other records at its end.
    #[error(
        "its record at offset {offset} of partition {partition} was taken at {}, and the log's at {}: it was restored from an older copy",
        written(*noted), written(*there)
    )]
    Elsewhere {
        /// The partition.
        partition: Partition,
        /// The record's offset.
        offset: Offset,
        /// When the record was taken that was read.
        noted: Micros,
        /// When that of the log was.
        there: Micros,
    },
    /// The log doesn't hold as many.
    #[error(
        "it reaches offset {reached} of partition {partition}, and the log ends at {end}: it has lost records, or is an older copy"
    )]
    Beyond {
        /// The partition.
        partition: Partition,
        /// Where the offsets end.
        reached: Offset,
        /// Where the log ends.
        end: Offset,
    },
}

/// The last record before the end of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Its offset.
    pub offset: Offset,
    /// When the log took it.
    pub log_time: Micros,
}

/// The last record of each partition.
pub type Tails = BTreeMap<Partition, Tail>;

/// Compares what was read last with when the log took what it has there.
pub fn check_tails(tails: &Tails, taken: &BTreeMap<Partition, Micros>) -> Result<(), Misfit> {
    for (&partition, &Tail { offset, log_time: noted }) in tails {
        if let Some(&there) = taken.get(&partition).filter(|&&there| there != noted) {
            return Err(Misfit::Elsewhere { partition, offset, noted, there });
        }
    }
    Ok(())
}

impl Lineage {
    /// The mark to be noted now.
    pub fn newest(&self) -> Option<&Mark> {
        self.epochs.last().map(|epoch| &epoch.mark)
    }

    /// Whether the log knows a mark.
    pub fn knows(&self, mark: &Mark) -> bool {
        self.epochs.is_empty() || self.epochs.iter().any(|epoch| epoch.mark == *mark)
    }

    /// Where offsets of an epoch end at the latest: where the next one begins, by partition. None in the newest.
    pub fn left_at(&self, mark: &Mark) -> Option<&Positions> {
        let next = self.epochs.iter().position(|epoch| epoch.mark == *mark)? + 1;
        self.epochs.get(next).map(|epoch| &epoch.begins)
    }

    /// Up to where a partition holds what another log held of which these epochs were noted, oldest first; none if the two never
    /// were the same.
    pub fn parted(&self, noted: &[Epoch], partition: Partition) -> Option<Offset> {
        let common = noted.iter().rposition(|noted| self.epochs.iter().any(|epoch| epoch.mark == noted.mark))?;
        let of = |begins: &Positions| begins.get(&partition).copied().unwrap_or(0);
        let end = self.ends.get(&partition).copied().unwrap_or(0);
        let here = self.left_at(&noted[common].mark).map_or(end, of).min(end);
        Some(noted.get(common + 1).map_or(here, |next| here.min(of(&next.begins))))
    }

    /// Whether offsets up to `reached`, with this mark beside them, are this log's.
    pub fn check(&self, mark: Option<&Mark>, reached: &Positions) -> Result<(), Misfit> {
        let reached = || reached.iter().filter(|&(_, &end)| end > 0);
        if let (Some(mark), Some(there)) = (mark, self.newest()) {
            if !self.knows(mark) {
                return Err(Misfit::Other { noted: mark.clone(), there: there.clone() });
            }
            let left = self.left_at(mark);
            let begun = |partition: Partition| left.map(|left| left.get(&partition).copied().unwrap_or(0));
            for (&partition, &reached) in reached() {
                if let Some(begun) = begun(partition).filter(|&begun| begun < reached) {
                    return Err(Misfit::Forked { partition, reached, begun });
                }
            }
        }
        for (&partition, &reached) in reached() {
            let end = self.ends.get(&partition).copied().unwrap_or(0);
            if end < reached {
                return Err(Misfit::Beyond { partition, reached, end });
            }
        }
        Ok(())
    }
}

/// How another log's offsets go on where those of the log before it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// How often a log was adopted: offsets that were noted before are none of this one's.
    pub count: u32,
    /// Where the logs join, by partition: the first offset that is read of the log that is there, and which one it is above.
    pub joints: BTreeMap<Partition, Joint>,
}

/// Where two logs join in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// The offset in the log that is there.
    pub own: Offset,
    /// What it is above the log.
    pub shown: Offset,
}

impl Adoption {
    /// An offset of the log that is there, as it is above. What lies before the joint isn't read.
    pub fn shown(&self, partition: Partition, own: Offset) -> Offset {
        self.joints.get(&partition).map_or(own, |joint| joint.shown + own.saturating_sub(joint.own))
    }

    /// An offset above, as it is in the log that is there; none of one that lies before the joint.
    pub fn own(&self, partition: Partition, shown: Offset) -> Option<Offset> {
        self.joints.get(&partition).map_or(Some(shown), |joint| Some(joint.own + shown.checked_sub(joint.shown)?))
    }

    /// A mark as it is noted above.
    pub fn mark(&self, mark: &Mark) -> Mark {
        if self.count == 0 { mark.clone() } else { Mark(format!("{mark}+{}", self.count)) }
    }

    /// What the log that is there knows of itself, as it is above.
    pub fn lineage(&self, own: Lineage) -> Lineage {
        let shown = |positions: Positions| -> Positions {
            let own = positions.into_iter().map(|(p, offset)| (p, self.shown(p, offset)));
            // A partition that isn't named is at its beginning; and one that the log doesn't have ends where it was left.
            self.joints.iter().map(|(&p, joint)| (p, joint.shown)).chain(own).collect()
        };
        let epochs = own.epochs.into_iter();
        let epochs = epochs.map(|epoch| Epoch { mark: self.mark(&epoch.mark), begins: shown(epoch.begins) }).collect();
        Lineage { epochs, ends: shown(own.ends) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(mark: &str, begins: &[(Partition, Offset)]) -> Epoch {
        Epoch { mark: Mark::new(mark), begins: begins.iter().copied().collect() }
    }

    fn lineage() -> Lineage {
        let epochs = vec![epoch("a", &[]), epoch("b", &[(0, 100)]), epoch("c", &[(0, 150), (1, 7)])];
        Lineage { epochs, ends: Positions::from([(0, 200), (1, 9)]) }
    }

    #[test]
    fn what_was_noted_fits_until_the_next_epoch_begins() {
        let fits =
            |mark: &str, p: Partition, end| lineage().check(Some(&Mark::new(mark)), &Positions::from([(p, end)]));
        for (mark, partition, end) in [("a", 0, 100), ("b", 0, 150), ("b", 1, 7), ("c", 0, 200), ("a", 5, 0)] {
            assert_eq!(fits(mark, partition, end), Ok(()), "{mark} {partition} {end}");
        }
        assert_eq!(fits("a", 0, 101), Err(Misfit::Forked { partition: 0, reached: 101, begun: 100 }));
        assert_eq!(fits("a", 1, 1), Err(Misfit::Forked { partition: 1, reached: 1, begun: 0 }), "it wasn't there yet");
        assert_eq!(fits("c", 0, 201), Err(Misfit::Beyond { partition: 0, reached: 201, end: 200 }));
        assert_eq!(fits("c", 2, 1), Err(Misfit::Beyond { partition: 2, reached: 1, end: 0 }));
        assert_eq!(fits("d", 0, 1), Err(Misfit::Other { noted: Mark::new("d"), there: Mark::new("c") }));
        assert_eq!(fits("d", 0, 0), Err(Misfit::Other { noted: Mark::new("d"), there: Mark::new("c") }));
    }

    #[test]
    fn what_has_no_mark_fits_up_to_the_end() {
        assert_eq!(lineage().check(None, &Positions::from([(0, 120)])), Ok(()));
        assert!(lineage().check(None, &Positions::from([(0, 201)])).is_err());
    }

    #[test]
    fn two_logs_part_where_the_first_of_them_went_on_alone() {
        let noted = |epochs: &[(&str, Offset)]| -> Vec<Epoch> {
            epochs.iter().map(|&(mark, begin)| epoch(mark, &[(0, begin)])).collect()
        };
        let parted = |epochs: &[(&str, Offset)]| lineage().parted(&noted(epochs), 0);
        assert_eq!(parted(&[("a", 0), ("b", 100)]), Some(150), "the copy went on from there");
        assert_eq!(parted(&[("a", 0), ("x", 70)]), Some(70), "what was noted went on from there, and the copy later");
        assert_eq!(parted(&[("a", 0), ("x", 130)]), Some(100), "or earlier");
        assert_eq!(parted(&[("b", 100), ("c", 150)]), Some(200), "they didn't part, but for its end");
        assert_eq!(parted(&[("x", 0), ("y", 9)]), None);
        assert_eq!(parted(&[]), None);
    }

    #[test]
    fn an_adopted_logs_offsets_go_on_where_the_others_ended() {
        let joints = [(0, Joint { own: 50, shown: 120 }), (3, Joint { own: 0, shown: 40 })];
        let adoption = Adoption { count: 2, joints: joints.into() };
        assert_eq!((adoption.shown(0, 50), adoption.shown(0, 61), adoption.shown(0, 7)), (120, 131, 120));
        assert_eq!((adoption.own(0, 120), adoption.own(0, 131), adoption.own(0, 119)), (Some(50), Some(61), None));
        assert_eq!((adoption.shown(1, 8), adoption.own(1, 8)), (8, Some(8)), "a partition that is new");
        let seen = adoption.lineage(lineage());
        assert_eq!(seen.ends, Positions::from([(0, 270), (1, 9), (3, 40)]), "one that is gone ends where it was left");
        assert_eq!(seen.newest(), Some(&Mark::new("c+2")));
        assert!(seen.check(Some(&Mark::new("b+2")), &Positions::from([(0, 220), (3, 40)])).is_ok());
        assert!(seen.check(Some(&Mark::new("b+2")), &Positions::from([(0, 221)])).is_err());
        assert!(
            seen.check(Some(&Mark::new("c")), &Positions::from([(0, 130)])).is_err(),
            "noted before it was adopted"
        );
    }
}
