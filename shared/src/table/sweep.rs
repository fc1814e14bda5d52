//! Finding files that no version names any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::TableError;
use crate::clock::Micros;

/// Deletes files of a table once they have been without a reference for a while: left by a crash, or by versions that
/// are not kept. The while is counted from when the sweeper first saw them so, so that a reader that holds an older
/// version, or a writer that is about to commit, has that long to finish.
#[derive(Debug, Default)]
pub struct Sweeper {
    unreferenced: BTreeMap<String, Micros>,
}

impl Sweeper {
    /// Looks through the table's folders (not `_delta_log`) and deletes what has been unreferenced for `grace` or longer;
    /// returns how many files that was. `referenced` holds paths relative to `root`.
    pub fn sweep(
        &mut self,
        root: &Path,
        referenced: &BTreeSet<String>,
        now: Micros,
        grace: Micros,
    ) -> Result<usize, TableError> {
        let mut present = Vec::new();
        list(root, "", &mut present)?;
        let mut unreferenced = BTreeMap::new();
        let mut swept = 0;
        for path in present.into_iter().filter(|path| !referenced.contains(path)) {
            let since = self.unreferenced.get(&path).copied().unwrap_or(now);
            if now.saturating_sub(since) < grace {
                unreferenced.insert(path, since);
                continue;
            }
            let file = root.join(&path);
            match fs::remove_file(&file) {
                Ok(()) => swept += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(TableError::File { step: "deleting", path: file, source }),
            }
        }
        self.unreferenced = unreferenced;
        Ok(swept)
    }
}

fn list(root: &Path, folder: &str, found: &mut Vec<String>) -> Result<(), TableError> {
    let path = root.join(folder);
    let failed = |source| TableError::File { step: "listing", path: path.clone(), source };
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let relative = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type().map_err(failed)?.is_dir() {
            if name != "_delta_log" {
                list(root, &relative, found)?;
            }
        } else {
            found.push(relative);
        }
    }
    Ok(())
}
