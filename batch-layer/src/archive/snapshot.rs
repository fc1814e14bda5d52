//! One version of an archive, to compute from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anabranch_engine::edition::Reading;
use anabranch_exchange::note::Noted;
use anabranch_plan::schema::Layout;
use anabranch_plan::schema::Table;
use anabranch_store::table::{DataFile, DeltaTable};

use super::Archived;
use super::coverage::archived;
use crate::day::parse_day;
use crate::error::BatchError;

/// One version of an archive, to compute from.
#[derive(Debug, Clone)]
pub struct ArchiveSnapshot {
    /// The archive's folder.
    pub root: PathBuf,
    /// Its table's id.
    pub table: String,
    /// The version of its table.
    pub version: u64,
    /// What it holds.
    pub archived: Archived,
    /// All columns that its files may have.
    pub layout: Layout,
    /// The files of each day of event time.
    pub days: BTreeMap<i64, Vec<DataFile>>,
}

impl ArchiveSnapshot {
    /// A table's archive in a folder as it is now; `None` if there is none. Fails if it isn't known which offsets it holds.
    pub async fn open(root: &Path, table: &Table) -> Result<Option<Self>, BatchError> {
        let Some(delta) = DeltaTable::open(root).await? else { return Ok(None) };
        let archived = archived(&delta, table).await?;
        Ok(Some(Self::of(&delta, archived)?))
    }

    pub(super) fn of(table: &DeltaTable, archived: Archived) -> Result<Self, BatchError> {
        let mut days: BTreeMap<i64, Vec<DataFile>> = BTreeMap::new();
        for file in table.files() {
            let day = file.partition.values().next().and_then(|value| parse_day(value.as_deref()?));
            days.entry(day.unwrap_or(0)).or_default().push(file);
        }
        let (root, layout) = (table.root().to_owned(), table.layout()?);
        Ok(Self { root, table: table.id().to_owned(), version: table.version(), archived, layout, days })
    }

    /// Fails if the archive has been rebuilt since, or doesn't say whether it was.
    pub async fn check(&self) -> Result<(), BatchError> {
        let Some(table) = DeltaTable::open(&self.root).await? else { return Ok(()) };
        let now = table.note::<Noted<Reading>>().await?.map(|(_, noted)| noted.said.rebuilds);
        if now == Some(self.archived.rebuilds) || now.is_none() && self.archived.coverage.is_empty() {
            return Ok(());
        }
        Err(BatchError::Rebuilt { archive: self.root.clone() })
    }

    /// How many events a day has; none if a file doesn't say.
    pub fn rows(&self, day: i64) -> Option<u64> {
        self.days.get(&day).map_or(Some(0), |files| files.iter().map(|file| file.rows).sum())
    }
}
