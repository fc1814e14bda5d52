//! What of an archive differs from what a version of a view was computed from.
//!
//! Events are only ever added by us, but other programs delete them, change them, put them back, and write the same rows to other
//! files. So days are compared by their files:
//!
//! | the day's files …                                       | its events …                                      |
//! |---------------------------------------------------------|---------------------------------------------------|
//! | are the same                                            | are the same                                      |
//! | differ, and each commit since says "no change of data"  | are the same                                      |
//! | differ, and commits since are gone                      | may differ: the day is computed                   |
//! | differ otherwise                                        | differ; were files removed, some are erased       |

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anabranch_exchange::version::{ArchiveRead, CommittedVersion};
use anabranch_log::position::Partition;
use anabranch_store::table::{Commit, commits};

use crate::archive::ArchiveSnapshot;
use crate::day::parse_day;
use crate::error::BatchError;

/// What of an archive differs from what a version was computed from.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// The days whose events differ, or may.
    pub days: BTreeSet<i64>,
    /// Those of which another program has erased or changed events, and that have no new ones.
    pub erased: BTreeSet<i64>,
    /// Whether it is another archive, was rebuilt, or isn't known to be the same: the version is no start for the next one.
    pub is_other: bool,
}

/// What a version says of the archive that it is computed from.
pub(super) fn archive_read(archive: &ArchiveSnapshot) -> ArchiveRead {
    let days = archive.days.keys().filter_map(|&day| Some((day, archive.rows(day)?)));
    let files = archive.days.iter().map(|(&day, files)| (day, ArchiveRead::fingerprint(files)));
    let table = Some(archive.table.clone());
    ArchiveRead { version: archive.version, table, days: days.collect(), files: files.collect() }
}

impl Difference {
    /// Compares the archive of a topic with what a version was computed from. The archives of the version's tables have been rebuilt so
    /// often, in sum.
    pub async fn of(
        version: &CommittedVersion,
        archive: &ArchiveSnapshot,
        (topic, rebuilds): (&str, u64),
    ) -> Result<Self, BatchError> {
        let (then, now) = (&version.archive(topic), archive_read(archive));
        let is_rebuilt = version.published().rebuilds != rebuilds;
        let begins = |partition: &Partition| archive.archived.coverage.get(partition).map(|range| range.start);
        let covered = version.published().coverage.of(topic);
        let is_same_start = covered.iter().all(|(p, range)| begins(p) == Some(range.start));
        let is_other = is_rebuilt || then.table != now.table || !is_same_start;
        // A rebuild writes the same events to other files, and earlier builds didn't say which files there were.
        let by_rows = is_rebuilt || then.table.is_none();
        let all: BTreeSet<i64> = [&then.days, &now.days]
            .into_iter()
            .flat_map(|days| days.keys().copied())
            .chain(then.files.keys().copied())
            .chain(now.files.keys().copied())
            .collect();
        let differs = |day: &i64| {
            if by_rows { then.days.get(day) != now.days.get(day) } else { then.files.get(day) != now.files.get(day) }
        };
        let days: BTreeSet<i64> = all.into_iter().filter(differs).collect();
        let is_less = |day: &i64| match (then.days.get(day), now.days.get(day)) {
            (Some(then), Some(now)) => now < then,
            (_, None) => !now.files.contains_key(day),
            (None, Some(_)) => false,
        };
        let since = then.version + 1..now.version + 1;
        // Of days that weren't there before it is clear.
        let is_unclear = !is_other && !since.is_empty() && days.iter().any(|day| then.files.contains_key(day));
        let commits = if is_unclear { commits(&archive.root, since).await? } else { None };
        if let Some(changes) = commits.and_then(|commits| Changes::of(&commits)) {
            let days: BTreeSet<i64> = days.intersection(&changes.all).copied().collect();
            let erased = days.iter().filter(|day| changes.erased.contains(day) && !changes.new.contains(day));
            return Ok(Self { erased: erased.copied().collect(), days, is_other });
        }
        let erased = days.iter().copied().filter(|day| !is_rebuilt && is_less(day)).collect();
        Ok(Self { days, erased, is_other })
    }

    /// Adds what differs of another archive.
    pub fn add(&mut self, other: Self) {
        self.days.extend(other.days);
        self.erased.extend(other.erased);
        self.is_other |= other.is_other;
    }

    /// Whether a window with events of these days has the same ones.
    pub fn is_same(&self, days: RangeInclusive<i64>) -> bool {
        self.days.range(days).next().is_none()
    }

    /// Whether of a window with events of these days some were erased, and none are new.
    pub fn is_erased(&self, days: RangeInclusive<i64>) -> bool {
        let mut touched = self.days.range(days).peekable();
        touched.peek().is_some() && touched.all(|day| self.erased.contains(day))
    }
}

/// The days of which commits changed events.
#[derive(Default)]
struct Changes {
    all: BTreeSet<i64>,
    new: BTreeSet<i64>,
    erased: BTreeSet<i64>,
}

impl Changes {
    /// None if a commit doesn't say of which day a file is.
    fn of(commits: &[Commit]) -> Option<Self> {
        let mut changes = Self::default();
        for commit in commits {
            let days = |values: &BTreeSet<String>| values.iter().map(|value| parse_day(value)).collect::<Option<_>>();
            let (added, removed): (BTreeSet<i64>, BTreeSet<i64>) = (days(&commit.added)?, days(&commit.removed)?);
            changes.all.extend(added.iter().chain(&removed));
            // What another program adds where it removes is what is left.
            changes.new.extend(added.iter().filter(|day| commit.is_ours || !removed.contains(day)));
            changes.erased.extend(removed);
        }
        Some(changes)
    }
}
