//! A table's newest note, looked for again and again, without reading what the table holds.

use std::path::{Path, PathBuf};

use deltalake_core::logstore::LogStoreRef;
use serde::de::DeserializeOwned;

use super::{TableError, delta, existing_log, newest_note};

/// The newest note of a table that may be there only later.
#[derive(Debug)]
pub(super) struct Notes<T> {
    root: PathBuf,
    /// The table's log, and the version that was the newest at the last look.
    log: Option<(LogStoreRef, u64)>,
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
        let (store, version) = match &self.log {
            Some((store, version)) => {
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
                let Some(store) = existing_log(&self.root).await? else { return Ok(()) };
                let newest = store.get_latest_version(0).await.map_err(failed())?;
                (store, newest)
            }
        };
        self.newest = newest_note(&store, &self.root, version).await?.map(|(_, note)| note);
        self.log = Some((store, version));
        Ok(())
    }
}
