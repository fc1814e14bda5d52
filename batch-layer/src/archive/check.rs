//! Looking through stored tables for files that aren't what was written.

use std::fs::File;
use std::path::{Path, PathBuf};

use anabranch_exchange::version::{PaneFile, StateFile, committed_version};
use anabranch_store::table::{DeltaTable, damage, log_damage};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::error::{BatchError, blocking};

/// What was looked at in a table.
#[derive(Debug, Default)]
pub struct Checked {
    /// How many files of rows or partials there are.
    pub files: usize,
    /// How many of them have no digest: only their footers say something.
    pub undigested: usize,
    /// The files that aren't what was written, with what was found.
    pub damaged: Vec<(PathBuf, String)>,
}

/// A file of a table, and what is known of it.
struct Known {
    path: PathBuf,
    rows: Option<u64>,
    sha256: Option<String>,
}

/// Looks at a table's log, at each of its files, and at the partials of its newest version if it is a view's: by their digests, and
/// whether they hold as many rows as their commits say. None if there is no table.
pub async fn check_table(root: &Path) -> Result<Option<Checked>, BatchError> {
    let mut checked = Checked { damaged: log_damage(root)?, ..Checked::default() };
    let files = match files(root).await {
        Ok(Some(files)) => files,
        Ok(None) => return Ok(None),
        // The log's damage says it, unless that has no digest.
        Err(error) => {
            if checked.damaged.is_empty() {
                checked.damaged.push((root.to_owned(), error.chain()));
            }
            return Ok(Some(checked));
        }
    };
    let looked = move || {
        for Known { path, rows, sha256 } in files {
            checked.files += 1;
            checked.undigested += usize::from(sha256.is_none());
            let read = |source| BatchError::File { step: "reading", path: path.clone(), source };
            let found = match damage(&path, sha256.as_deref()).map_err(read)? {
                None if path.extension().is_some_and(|kind| kind == "parquet") => other_rows(&path, rows),
                None => None,
                damaged => damaged,
            };
            checked.damaged.extend(found.map(|found| (path, found)));
        }
        Ok(Some(checked))
    };
    blocking("checking files", looked).await
}

async fn files(root: &Path) -> Result<Option<Vec<Known>>, BatchError> {
    let Some(table) = DeltaTable::open(root).await? else { return Ok(None) };
    let files = table.files().into_iter();
    let mut known: Vec<Known> =
        files.map(|file| Known { path: root.join(file.path), rows: file.rows, sha256: file.sha256 }).collect();
    if table.note::<serde_json::Value>().await?.is_some_and(|(_, note)| note.get("panes").is_some())
        && let Some(version) = committed_version(&table).await?
    {
        let pane = |PaneFile { path, rows, sha256, .. }| Known { path: root.join(path), rows: Some(rows), sha256 };
        let published = version.published().clone();
        known.extend(published.panes.into_iter().map(pane));
        let state = |StateFile { path, sha256, .. }| Known { path: root.join(path), rows: None, sha256: Some(sha256) };
        known.extend(published.state.map(state));
    }
    Ok(Some(known))
}

/// That a file has another number of rows than its commit says, or no footer that says any.
fn other_rows(path: &Path, rows: Option<u64>) -> Option<String> {
    let footer = File::open(path).map_err(Into::into).and_then(SerializedFileReader::new);
    match footer {
        Err(error) => Some(format!("its footer can't be read: {error}")),
        Ok(reader) => {
            let held = u64::try_from(reader.metadata().file_metadata().num_rows()).ok();
            (rows.is_some() && rows != held)
                .then(|| format!("it holds {} rows, and its commit says {}", held.unwrap_or(0), rows.unwrap_or(0)))
        }
    }
}
