//! What the commits of a table say that they changed, whoever made them, and what a table asks of its readers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::{DeltaTable, NOTE, TableError, delta, existing_log, name};

/// What a commit says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// The table's version that it made.
    pub version: u64,
    /// What was done, in the words of the program that did it: `DELETE`.
    pub operation: String,
    /// Whether it carries a note of ours. Another program's doesn't.
    pub is_ours: bool,
    /// Where files with new or changed rows were added, by the value of the partition column; empty where that isn't said.
    pub added: BTreeSet<String>,
    /// Where files were removed with rows that aren't there any more, or not as they were.
    pub removed: BTreeSet<String>,
}

/// The commits that made these versions of the table in a folder, oldest first; none if one of them isn't there any more.
pub async fn commits(root: &Path, versions: Range<u64>) -> Result<Option<Vec<Commit>>, TableError> {
    let Some((store, _)) = existing_log(root).await? else { return Ok(None) };
    let mut commits = Vec::new();
    for version in versions {
        let read = store.read_commit_entry(version).await.map_err(delta(root, "reading a commit"))?;
        let Some(bytes) = read else { return Ok(None) };
        let damaged = |source| TableError::Note { table: name(root), version, source };
        let mut commit = Commit { version, ..Commit::default() };
        for action in serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>() {
            commit.read(&action.map_err(damaged)?);
        }
        commits.push(commit);
    }
    Ok(Some(commits))
}

impl Commit {
    fn read(&mut self, action: &Value) {
        if let Some(info) = action.get("commitInfo") {
            self.operation = info["operation"].as_str().unwrap_or_default().to_owned();
            self.is_ours = info.get(NOTE).is_some();
        }
        let value = |kind: &str| {
            let file = action.get(kind).filter(|file| file["dataChange"] != false)?;
            let named = || file["path"].as_str()?.split_once('/')?.0.split_once('=').map(|(_, value)| value);
            let values = file["partitionValues"].as_object().and_then(|values| values.values().next()?.as_str());
            Some(values.or_else(named).unwrap_or_default().to_owned())
        };
        self.added.extend(value("add"));
        self.removed.extend(value("remove"));
    }
}

/// What a table may ask of readers that it isn't read any differently for here. Of columns' mapping and of deletion vectors it is
/// looked up whether they are in use.
const FEATURES: [&str; 5] = ["columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"];

impl DeltaTable {
    /// Fails if the table's rows aren't those of its files as they are.
    pub(super) fn check_readable(&self) -> Result<(), TableError> {
        let refused = |what: String| Err(TableError::Unsupported { table: name(&self.root), what });
        let protocol = serde_json::to_value(self.state.protocol()).unwrap_or_default();
        let features = protocol["readerFeatures"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(feature) = features.into_iter().find(|feature| !FEATURES.contains(feature)) {
            return refused(format!("it asks its readers for the feature `{feature}`"));
        }
        let mapping = self.state.metadata().configuration().get("delta.columnMapping.mode");
        if let Some(mode) = mapping.filter(|mode| *mode != "none") {
            return refused(format!("its columns are mapped by `{mode}`"));
        }
        let deletes = self.state.log_data().iter().find(|file| file.deletion_vector_descriptor().is_some());
        match deletes {
            Some(file) => refused(format!("its file {} has a deletion vector", file.path())),
            None => Ok(()),
        }
    }
}
