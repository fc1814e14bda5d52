//! Finding files that no version names any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anabranch_plan::time::Micros;
use serde::{Deserialize, Serialize};

use super::{TableError, write_file};

/// Where a table keeps what its sweeper has seen. Readers of Delta tables pass over names that begin so.
const SEEN: &str = "_sweep.json";

/// The folder of a table's log, in which only what a crash left of a write is ours to delete.
const LOG: &str = "_delta_log";

/// Deletes files of a table once they have been without a reference for a while: left by a crash, or by versions that
/// are not kept. The while is counted from when a sweeper first saw them so, over restarts too, so that a reader that holds
/// an older version, or a writer that is about to commit, has that long to finish. What counts is the time between two
/// sweeps, but no more than half of the while, and none if the clock was set back: so no jump of it deletes a file early.
#[derive(Debug, Default)]
pub struct Sweeper {
    /// None before the first sweep.
    seen: Option<Seen>,
}

/// What a sweeper has seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    /// When it last looked.
    at: Micros,
    /// For how long each file has been unreferenced, in microseconds.
    unreferenced: BTreeMap<String, Micros>,
}

impl Sweeper {
    /// Looks through the table's folders and deletes what has been unreferenced for `grace` or longer; returns how many files
    /// that was. `referenced` holds paths relative to `root`.
    pub fn sweep(
        &mut self,
        root: &Path,
        referenced: &BTreeSet<String>,
        now: Micros,
        grace: Micros,
    ) -> Result<usize, TableError> {
        let mut present = Vec::new();
        list(root, "", &mut present)?;
        let known = self.seen.take().unwrap_or_else(|| Seen::read(root));
        let passed = now.saturating_sub(known.at).clamp(0, grace / 2);
        let mut seen = Seen { at: now, unreferenced: BTreeMap::new() };
        let mut swept = 0;
        for path in present.into_iter().filter(|path| !referenced.contains(path)) {
            let age = known.unreferenced.get(&path).map_or(0, |age| age.saturating_add(passed));
            if age < grace {
                seen.unreferenced.insert(path, age);
                continue;
            }
            let file = root.join(&path);
            match fs::remove_file(&file) {
                Ok(()) => swept += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(TableError::File { step: "deleting", path: file, source }),
            }
        }
        if !(seen.unreferenced.is_empty() && known.unreferenced.is_empty()) {
            seen.write(root);
        }
        self.seen = Some(seen);
        Ok(swept)
    }
}

impl Seen {
    fn read(root: &Path) -> Self {
        let path = root.join(SEEN);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        read.unwrap_or_else(|error: io::Error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "unreferenced files are counted from now on");
            }
            Self::default()
        })
    }

    /// Writes it down. If that fails, a restart forgets.
    fn write(&self, root: &Path) {
        let path = root.join(SEEN);
        let written = write_file(&path, |file| file.write_all(&serde_json::to_vec(self)?));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "which files are unreferenced can't be written down");
        }
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
            list(root, &relative, found)?;
        } else if relative != SEEN && (!relative.starts_with(LOG) || is_staged(&name)) {
            found.push(relative);
        }
    }
    Ok(())
}

/// Whether a file was being written under a name of its own when the process ended, see [`super::durable`].
fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
}
