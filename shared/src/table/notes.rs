//! A table's newest note, looked for again and again, without reading what the table holds.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use deltalake_core::logstore::LogStoreRef;
use serde::de::DeserializeOwned;

use super::{TableError, delta, existing_log, newest_note};

/// The newest note of a table that may be there only later.
#[derive(Debug)]
pub(super) struct Notes<T> {
    root: PathBuf,
    /// The table's log, which folder that is, and the version that was the newest at the last look.
    log: Option<(LogStoreRef, u64, u64)>,
    newest: Option<T>,
}

impl<T: DeserializeOwned> Notes<T> {
    pub fn of(root: PathBuf) -> Self {
        Self { root, log: None, newest: None }
    }

    /// The table's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The newest note at the last look.
    pub fn newest(&self) -> Option<&T> {
        self.newest.as_ref()
    }

    /// Looks for a newer one.
    pub async fn look(&mut self) -> Result<(), TableError> {
        let failed = || delta(&self.root, "looking for newer versions");
        // A table that was begun anew has another folder of its name.
        let folder = std::fs::metadata(self.root.join("_delta_log")).map(|folder| folder.ino()).ok();
        let (store, version) = match self.log.as_ref().filter(|(_, known, _)| Some(*known) == folder) {
            Some((store, _, version)) => {
                let mut newest = *version;
                while store.read_commit_entry(newest + 1).await.map_err(failed())?.is_some() {
                    newest += 1;
                }
                if newest == *version {
                    return Ok(());
                }
                (store.clone(), newest)
            }
            None => {
                let Some((store, _)) = existing_log(&self.root).await? else { return Ok(()) };
                let newest = store.get_latest_version(0).await.map_err(failed())?;
                (store, newest)
            }
        };
        self.newest = newest_note(&store, &self.root, version).await?.map(|(_, note)| note);
        self.log = folder.map(|folder| (store, folder, version));
        Ok(())
    }
}
