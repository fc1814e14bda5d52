//! A table's newest note, read without what the table holds, and looked for again and again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use deltalake_core::kernel::Snapshot;
use deltalake_core::logstore::LogStoreRef;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{TableError, delta, existing_log, name};

/// The newest of our notes up to a version, with the version that it is of; none if no commit that is still there has one.
pub(super) async fn newest_note<T: DeserializeOwned>(
    store: &LogStoreRef,
    root: &Path,
    newest: u64,
) -> Result<Option<(u64, T)>, TableError> {
    for version in (0..=newest).rev() {
        let commit = store.read_commit_entry(version).await.map_err(delta(root, "reading a commit"))?;
        let Some(commit) = commit else { return Ok(None) };
        let damaged = |source| TableError::Note { table: name(root), version, source };
        for action in serde_json::Deserializer::from_slice(&commit).into_iter::<Value>() {
            let mut action = action.map_err(damaged)?;
            if let Some(note) = action.pointer_mut("/commitInfo/anabranch") {
                return serde_json::from_value(note.take()).map(|note| Some((version, note))).map_err(damaged);
            }
        }
    }
    Ok(None)
}

/// The newest version of a table, of which a version is known.
pub(super) async fn newest_version(store: &LogStoreRef, root: &Path, known: u64) -> Result<u64, TableError> {
    let failed = || delta(root, "looking for newer versions");
    let mut newest = known;
    while store.read_commit_entry(newest + 1).await.map_err(failed())?.is_some() {
        newest += 1;
    }
    // Log clean-up by another program may have deleted the commits between.
    if newest == known && store.read_commit_entry(known).await.map_err(failed())?.is_none() {
        newest = Snapshot::try_new(store, None).await.map_err(failed())?.version();
    }
    Ok(newest)
}

/// The newest note of a table that may be there only later.
#[derive(Debug)]
pub struct Notes<T> {
    root: PathBuf,
    /// The table's log, which folder that is, and the version that was the newest at the last look.
    log: Option<(LogStoreRef, u64, u64)>,
    newest: Option<T>,
}

impl<T: DeserializeOwned> Notes<T> {
    /// Those of the table in a folder.
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
        // A table that was begun anew has another folder of its name.
        let folder = std::fs::metadata(self.root.join("_delta_log")).map(|folder| folder.ino()).ok();
        let known = self.log.as_ref().filter(|(_, known, _)| Some(*known) == folder);
        let (store, version) = match known {
            Some((store, _, version)) => {
                let newest = newest_version(store, &self.root, *version).await?;
                if newest == *version {
                    return Ok(());
                }
                (store.clone(), newest)
            }
            None => {
                let (Some((store, _)), Some(_)) = (existing_log(&self.root).await?, folder) else { return Ok(()) };
                let newest = match Snapshot::try_new(&store, None).await {
                    Ok(snapshot) => snapshot.version(),
                    // A checkpoint may be damaged, beside whole commits.
                    Err(_) => {
                        store.get_latest_version(0).await.map_err(delta(&self.root, "looking for newer versions"))?
                    }
                };
                (store, newest)
            }
        };
        match newest_note(&store, &self.root, version).await? {
            Some((_, note)) => self.newest = Some(note),
            // Log clean-up may have deleted it. It is still true of the table, and whoever archives commits it again.
            None if known.is_some() => {}
            None => self.newest = None,
        }
        self.log = folder.map(|folder| (store, folder, version));
        Ok(())
    }
}
