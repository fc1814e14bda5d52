//! Which offsets an archive holds, and whether that is known.
//!
//! The note of the newest commit that has one says it all, but it is gone once another program's log clean-up has deleted that
//! commit. The transactions of a table survive that. Each commit of ours has these:
//!
//! | transaction                                  | says                                             |
//! |----------------------------------------------|--------------------------------------------------|
//! | `anabranch.archive.<topic>.<partition>`      | the offset at which what is archived ends        |
//! | `anabranch.archive.<topic>.<partition>.start`| the offset at which it begins                    |
//! | `anabranch.archive.<topic>.note`             | the version of this commit, which has the note   |
//!
//! An archive whose note is gone, or says something else than the transactions, isn't read and isn't written to. Only the
//! archiver that has the very note in memory goes on, and commits it again.

use anabranch_engine::decode::DELETED;
use anabranch_engine::edition::Editions;
use anabranch_exchange::note::{self, Note};
use anabranch_log::position::Partition;
use anabranch_plan::schema::{ColumnType, Layout, Table};
use anabranch_store::table::{Change, DataFile, DeltaTable, TableError, commits};

use super::{Archived, Archiver};
use crate::error::BatchError;

/// What an archive says of itself.
pub(super) struct Noted {
    pub archived: Archived,
    /// The version whose commit says so; none if nothing was ever committed.
    pub version: Option<u64>,
}

fn end_id(table: &Table, partition: Partition) -> String {
    format!("anabranch.archive.{}.{partition}", table.topic)
}

fn start_id(table: &Table, partition: Partition) -> String {
    format!("anabranch.archive.{}.{partition}.start", table.topic)
}

fn note_id(table: &Table) -> String {
    format!("anabranch.archive.{}.note", table.topic)
}

/// What an archive says of itself.
pub(super) async fn archived(delta: &DeltaTable, table: &Table) -> Result<Archived, BatchError> {
    Ok(noted(delta, table, None).await?.archived)
}

/// What an archive says of itself, or said in the note of a version that is known from before. Fails if that isn't known.
pub(super) async fn noted(
    delta: &DeltaTable,
    table: &Table,
    known: Option<(u64, Archived)>,
) -> Result<Noted, BatchError> {
    let stopped = |why: String| {
        let why = format!("{}: {why}", delta.root().display());
        Err(BatchError::Stopped { topic: table.topic.clone(), why })
    };
    let noted_at = delta.transaction(&note_id(table)).await?;
    let known = || known.filter(|(version, _)| noted_at == Some(*version as i64));
    let noted = delta.note::<note::Noted<Archived>>().await?;
    if let Some((_, noted)) = noted.as_ref().filter(|(_, noted)| !noted.is_of(&table.topic)) {
        return stopped(format!(
            "it is of topic `{}`, and the table's is `{}`; give the table another name, and so an archive of its own",
            noted.topic.as_deref().unwrap_or_default(),
            table.topic
        ));
    }
    let (version, archived) = match noted.map(|(version, noted)| (version, noted.said)).or_else(known) {
        Some((version, archived)) => (Some(version), archived),
        None => (None, Archived::default()),
    };
    let partitions = 0..table.partitions.max(archived.coverage.ends().keys().max().map_or(0, |last| last + 1));
    let mut has_transactions = noted_at.is_some();
    for partition in partitions {
        let end = delta.transaction(&end_id(table, partition)).await?;
        let start = delta.transaction(&start_id(table, partition)).await?;
        has_transactions |= end.is_some();
        let Some((_, range)) = version.and_then(|version| Some((version, archived.coverage.get(&partition)?))) else {
            if version.is_some() && end.is_some() {
                return stopped(format!(
                    "its note doesn't have partition {partition}, of which a transaction has {end:?}"
                ));
            }
            continue;
        };
        // Archives of earlier builds don't have the starts.
        let is_other = end != Some(range.end as i64) || start.is_some_and(|start| start != range.start as i64);
        if is_other {
            return stopped(format!(
                "its table says that partition {partition} has the offsets {} to {}, but the transactions say {start:?} to {end:?}",
                range.start, range.end
            ));
        }
    }
    let is_unknown = version.is_none() && has_transactions || archived.coverage.is_empty() && !delta.files().is_empty();
    if is_unknown {
        return stopped(
            "it isn't known which offsets the archive holds, as no commit is left that says so; another program has deleted the \
             commits of its log. Put back its folder `_delta_log` from a backup, or move the archive's folder away: then \
             what the log still holds is archived anew, and nothing else"
                .to_owned(),
        );
    }
    Ok(Noted { archived, version })
}

/// A layout with the columns that the newest edition stores.
pub(super) fn grown(layout: &Layout, editions: &Editions) -> Layout {
    let mut grown = layout.clone();
    let Some(newest) = editions.newest() else { return grown };
    let columns = newest.columns.iter().map(|column| (column.stored.clone(), ColumnType::from(&column.data_type)));
    let deleted = (!newest.primary_key.is_empty()).then(|| (DELETED.to_owned(), ColumnType::Boolean));
    for column in columns.chain(deleted) {
        if !grown.columns.iter().any(|(name, _)| *name == column.0) {
            grown.columns.push(column);
        }
    }
    grown
}

/// The next commit of a table, which says that its archive holds this.
pub(super) fn change(delta: &DeltaTable, table: &Table, archived: &Archived) -> Result<Change, BatchError> {
    let version = delta.version() + 1;
    let ranges = archived.coverage.iter();
    let of_range = |(&partition, range): (&Partition, &std::ops::Range<u64>)| {
        [(end_id(table, partition), range.end as i64), (start_id(table, partition), range.start as i64)]
    };
    let mut transactions: Vec<(String, i64)> = ranges.flat_map(of_range).collect();
    transactions.push((note_id(table), version as i64));
    let note = archived.to_note(&table.topic).map_err(|source| TableError::Note {
        table: delta.root().display().to_string(),
        version,
        source,
    })?;
    Ok(Change { transactions, note, ..Change::default() })
}

/// How many rows files have; none if one doesn't say.
pub(super) fn rows<'a>(files: impl IntoIterator<Item = &'a DataFile>) -> Option<u64> {
    files.into_iter().map(|file| file.rows).sum()
}

impl Archiver {
    /// Looks at what other programs have done since our newest commit. The note is committed again behind their commits: so it
    /// is in a young commit, which log clean-up spares, and says how many rows there are by now.
    pub(super) async fn follow_others(
        &self,
        delta: &mut DeltaTable,
        archived: &mut Archived,
        noted: Option<u64>,
    ) -> Result<(), BatchError> {
        let present = rows(&delta.files());
        let (before, newest) = (archived.rows, delta.version());
        archived.rows = present;
        let Some(noted) = noted else { return Ok(()) };
        let is_other = before.is_some() && before != present;
        if is_other {
            let others = commits(delta.root(), noted + 1..newest + 1).await?.unwrap_or_default();
            let others = others.into_iter().filter(|commit| !commit.is_ours);
            let operations: Vec<String> =
                others.map(|commit| format!("{} in version {}", commit.operation, commit.version)).collect();
            tracing::warn!(
                table = self.table().name,
                rows = present,
                rows_before = before,
                operations = operations.join(", "),
                "another program has changed the archive's rows; answers are of those that are there now after the next run"
            );
        }
        if is_other || noted < newest {
            // A RESTORE puts the columns of an earlier version back, too.
            let existing = delta.layout()?;
            let layout = Some(grown(&existing, &archived.editions)).filter(|grown| *grown != existing);
            let change = Change { is_rearrangement: true, layout, ..change(delta, self.table(), archived)? };
            delta.commit(change).await?;
        }
        Ok(())
    }
}
