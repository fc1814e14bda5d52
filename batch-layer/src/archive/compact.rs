//! Tending the archive: few large files instead of many small ones, and none that nobody needs.

use std::collections::BTreeSet;

use anabranch_store::table::{Change, DataFile};
use fail::fail_point;

use super::coverage::change;
use super::{ArchiveSnapshot, Archiver, file};
use crate::error::{BatchError, blocking};

impl Archiver {
    /// Rewrites the small files of days that have too many, and deletes files that no reader needs any more.
    pub async fn tend(&self) -> Result<(), BatchError> {
        let compacted = async {
            while self.compact().await? {}
            Ok(())
        };
        // Also if a damaged file can't be rewritten.
        let compacted = compacted.await;
        self.sweep().await?;
        compacted
    }

    /// Rewrites the small files of one day as one, in a commit that covers the same offsets; `false` if no day has too
    /// many. The old files stay for a while for readers of older versions.
    pub async fn compact(&self) -> Result<bool, BatchError> {
        let mut slot = self.state.lock().await;
        let mut state = self.current(&mut slot).await?;
        let snapshot = ArchiveSnapshot::of(&state.delta, state.archived.clone())?;
        let Some(remove) = snapshot.days.into_values().find_map(|files| self.small(files)) else {
            *slot = Some(state);
            return Ok(false);
        };
        let (root, now) = (self.archive.root.clone(), self.archive.clock.now());
        // With the columns of earlier definitions, too.
        let shape = state.shape.whole(&state.delta.layout()?);
        let (small, table) = (remove.clone(), self.archive.table.clone());
        let rewrite = move || {
            file::check_files(&root, &table, &small)?;
            let batches = file::read_files(&root, &shape, &small)?;
            file::write_days(&root, &shape, &batches, now, || Ok(()))
        };
        let add = blocking("compacting", rewrite).await?;
        fail_point!("compact::before_commit", |_| Err(BatchError::Failpoint("compact::before_commit")));
        let change =
            Change { add, remove, is_rearrangement: true, ..change(&state.delta, self.table(), &state.archived)? };
        let version = state.delta.commit(change).await?;
        self.status.send_modify(|status| status.version = version);
        fail_point!("compact::after_commit", |_| Err(BatchError::Failpoint("compact::after_commit")));
        *slot = Some(state);
        Ok(true)
    }

    /// The small files of a day, as many as are to become one; none if there are few.
    fn small(&self, files: Vec<DataFile>) -> Option<Vec<DataFile>> {
        let target = self.settings.target_rows as u64;
        let mut small: Vec<DataFile> =
            files.into_iter().filter(|file| file.rows.is_some_and(|rows| rows < target / 4)).collect();
        if small.len() <= self.settings.small_files {
            return None;
        }
        small.sort_by_key(|file| file.rows);
        let mut rows = 0;
        small.retain(|file| {
            rows += file.rows.unwrap_or(0);
            rows <= target
        });
        (small.len() > 1).then_some(small)
    }

    /// Deletes files that the newest version has not named for the grace period; returns how many.
    pub async fn sweep(&self) -> Result<usize, BatchError> {
        let mut slot = self.state.lock().await;
        let state = self.current(&mut slot).await?;
        let referenced: BTreeSet<String> = state.delta.files().into_iter().map(|file| file.path).collect();
        *slot = Some(state);
        // Held, so that no file is written and not yet committed meanwhile.
        let grace = i64::try_from(self.settings.grace.as_micros()).unwrap_or(i64::MAX);
        let swept =
            self.sweeper.lock().await.sweep(&self.archive.root, &referenced, self.archive.clock.now(), grace)?;
        drop(slot);
        Ok(swept)
    }
}
