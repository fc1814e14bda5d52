//! Versions of views, and how their tables are read: looked for on the storage, and announced to whoever works with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::edition::Reading;
use anabranch_log::position::Partition;
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Catalog, Kept};
use anabranch_store::table::{DataFile, DeltaTable, Notes, TableError, commit_damage, name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, watch};

use super::{Published, Troubles, Version, Versions};
use crate::note::{Note, Noted};
use crate::reading::Readings;

/// What of the archive a version was computed from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRead {
    /// The archive table's version.
    pub version: u64,
    /// The archive table's id; none in what earlier builds wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// How many events each day had (days since 1970), as far as its files said.
    pub days: BTreeMap<i64, u64>,
    /// Each day's files, by their fingerprint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<i64, String>,
}

impl ArchiveRead {
    /// What tells files from others: which they are, how large, and their digests.
    pub fn fingerprint(files: &[DataFile]) -> String {
        let line =
            |file: &DataFile| format!("{} {} {}", file.path, file.size, file.sha256.as_deref().unwrap_or_default());
        let mut all: Vec<String> = files.iter().map(line).collect();
        all.sort();
        let hash = Sha256::digest(all.join("\n").as_bytes());
        hash.iter().take(16).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

/// What the commit of a view's version says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedVersion {
    /// The topic whose offsets it speaks of; none in what earlier builds wrote.
    pub topic: Option<String>,
    /// What it says to readers.
    pub published: Published<Partition>,
    /// What it says to the next recompute.
    pub archive: ArchiveRead,
}

impl CommittedVersion {
    /// A commit's note: a [`Published`], with `archive` beside its fields.
    pub fn note(topic: &str, published: &Published, archive: &ArchiveRead) -> serde_json::Result<Value> {
        let mut note = published.of(topic).to_note(topic)?;
        note["archive"] = serde_json::to_value(archive)?;
        Ok(note)
    }

    fn from_note(note: Value) -> serde_json::Result<Self> {
        let archive =
            note.get("archive").cloned().map_or_else(|| Ok(ArchiveRead::default()), serde_json::from_value)?;
        let Noted { topic, said: published } = serde_json::from_value(note)?;
        Ok(Self { topic, published, archive })
    }

    /// Whether it holds what a view says of its table's topic.
    pub fn is_of(&self, view: &Kept) -> bool {
        let is_of_topic = self.topic.as_ref().is_none_or(|topic| *topic == view.table().topic);
        is_of_topic && self.published.definition == view.id.definition
    }
}

/// The folder of a table's archive, inside the data folder.
pub fn archive_root(data: &Path, table: &str) -> PathBuf {
    data.join("archive").join(table)
}

/// The folder of a view's table, inside the folder of all views.
pub fn view_root(views: &Path, view: &str) -> PathBuf {
    views.join(view)
}

/// The application that a view's versions are transactions of.
pub fn view_app_id(view: &str) -> String {
    format!("anabranch.view.{view}")
}

/// The newest version of a view that its table holds.
pub async fn committed_version(table: &DeltaTable) -> Result<Option<CommittedVersion>, TableError> {
    let Some((version, note)) = table.note::<Value>().await? else { return Ok(None) };
    let damaged = |source| TableError::Note { table: name(table.root()), version, source };
    CommittedVersion::from_note(note).map(Some).map_err(damaged)
}

/// The newest `keep` versions of a view with the table as it was at each, newest first. Ends early where the table's
/// log does.
pub async fn kept_versions(table: &DeltaTable, keep: usize) -> Result<Vec<(DeltaTable, CommittedVersion)>, TableError> {
    let mut kept: Vec<(DeltaTable, CommittedVersion)> = Vec::new();
    let mut at = table.clone();
    while kept.len() < keep {
        let Some((version, _)) = at.note::<Value>().await? else { break };
        if version < at.version() {
            at = match table.at(version).await {
                Ok(table) => table,
                Err(_) => break,
            };
        }
        if let Some(committed) = committed_version(&at).await?
            && kept.last().is_none_or(|(_, newer)| newer.published.version != committed.published.version)
        {
            kept.push((at.clone(), committed));
        }
        let Some(before) = version.checked_sub(1) else { break };
        at = match table.at(before).await {
            Ok(table) => table,
            Err(_) => break,
        };
    }
    Ok(kept)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string);
    std::iter::once(error.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
}

/// Sets the table of a view's versions aside that can't be read: its folder is renamed, not deleted. Returns the number of its newest
/// version, as far as that can be known.
pub fn set_aside(root: &Path, now: Micros) -> Result<u64, TableError> {
    let version = last_number(&root.join("_delta_log"));
    let mut aside = root.as_os_str().to_owned();
    aside.push(format!(".aside-{now}"));
    let aside = PathBuf::from(aside);
    std::fs::rename(root, &aside).map_err(|source| TableError::File {
        step: "setting aside",
        path: root.to_owned(),
        source,
    })?;
    tracing::warn!(table = %root.display(), aside = %aside.display(), version, "a table that can't be read was set aside");
    Ok(version)
}

/// The number of a view's newest version by its table's commits: by the newest that can be read, and one more for each after it.
fn last_number(log: &Path) -> u64 {
    let names =
        std::fs::read_dir(log).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let number = |name: String| name.strip_suffix(".json")?.parse::<u64>().ok();
    let commits: BTreeSet<u64> = names.filter_map(number).collect();
    let version = |commit: u64| {
        let content = std::fs::read(log.join(format!("{commit:020}.json"))).ok()?;
        if commit_damage(&content).is_some() {
            return None;
        }
        let actions = serde_json::Deserializer::from_slice(&content).into_iter::<Value>().flatten();
        actions.filter_map(|action| action.pointer("/commitInfo/anabranch/version")?.as_u64()).next()
    };
    let Some(&newest) = commits.last() else { return 0 };
    // Without any that can be read: each version is a commit, and so was the table's creation.
    let known = commits.iter().rev().find_map(|&commit| Some(version(commit)? + (newest - commit)));
    known.unwrap_or(newest)
}

/// One table: its archive, and the versions of its views.
#[derive(Debug)]
struct OfTable {
    archive: Notes<Noted<Reading>>,
    reading: watch::Sender<Reading>,
    views: Vec<OfView>,
    troubles: Troubles,
}

#[derive(Debug)]
struct OfView {
    view: Kept,
    table: Notes<Noted<Published<Partition>>>,
    sender: watch::Sender<Option<Arc<Version>>>,
}

/// Where new versions are announced, and new ways to read a table.
#[derive(Debug)]
pub struct Publishers(BTreeMap<String, Mutex<OfTable>>);

/// Reads how each table of the catalog is read, and the newest version of each view, from the data folder. A version of another
/// definition than the catalog's is as good as none: its partials hold something else. Versions of a view that can't be read are
/// no reason to fail: [`Versions::trouble`] has the reason, and they are looked for again.
pub async fn open_versions(data: &Path, catalog: &Catalog) -> Result<(Versions, Readings, Publishers), TableError> {
    let (mut versions, mut readings) = (Versions::default(), Readings::default());
    let mut publishers = BTreeMap::new();
    for table in catalog.tables.keys() {
        let (reading, receiver) = watch::channel(Reading::default());
        readings.0.insert(table.clone(), receiver);
        let mut views = Vec::new();
        for view in catalog.kept_of(table) {
            let (sender, receiver) = watch::channel(None);
            versions.0.insert(view.id.clone(), receiver);
            let table = Notes::of(view_root(&data.join("views"), &view.id.name));
            views.push(OfView { view, table, sender });
        }
        let archive = Notes::of(archive_root(data, table));
        let troubles = versions.1.clone();
        publishers.insert(table.clone(), Mutex::new(OfTable { archive, reading, views, troubles }));
    }
    let publishers = Publishers(publishers);
    publishers.refresh().await?;
    Ok((versions, readings, publishers))
}

impl Publishers {
    /// Looks for what has been committed since the last look, by this process or another. An archive that can't be read is told of
    /// once all others have been looked at.
    pub async fn refresh(&self) -> Result<(), TableError> {
        let mut looked = Ok(());
        for table in self.0.values() {
            looked = looked.and(table.lock().await.refresh().await);
        }
        looked
    }

    /// Looks for what has been committed of one table and its views.
    pub async fn refresh_table(&self, table: &str) -> Result<(), TableError> {
        match self.0.get(table) {
            Some(table) => table.lock().await.refresh().await,
            None => Ok(()),
        }
    }

    /// Looks for what is new again and again, until it is dropped.
    pub async fn follow(&self, every: Duration) {
        let mut failing = false;
        loop {
            tokio::time::sleep(every).await;
            match self.refresh().await {
                Ok(()) => failing = false,
                // Said once: the versions read before go on being served.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(error = &error as &dyn std::error::Error, "can't look for new versions of views");
                }
                Err(_) => {}
            }
        }
    }
}

impl OfTable {
    async fn refresh(&mut self) -> Result<(), TableError> {
        for OfView { view, table, .. } in &mut self.views {
            let name = &view.id.name;
            let trouble = table.look().await.err().map(|error| chain(&error));
            let mut troubles = self.troubles.lock();
            if let Some(why) = trouble {
                // Said once: the versions read before go on being served.
                if troubles.get(name) != Some(&why) {
                    tracing::warn!(view = name, why, "the view's versions can't be read");
                }
                troubles.insert(name.clone(), why);
            } else if troubles.remove(name).is_some() {
                tracing::info!(view = name, "the view's versions can be read again");
            }
        }
        // After the versions: so none of them is of a rebuild that isn't known.
        self.archive.look().await?;
        let reading = self.archive.newest().map(|noted| noted.said.clone()).unwrap_or_default();
        let rebuilds = reading.rebuilds;
        self.reading.send_if_modified(|current| {
            let is_new = *current != reading;
            *current = reading;
            is_new
        });
        for OfView { view, table, sender } in &self.views {
            let topic = &view.table().topic;
            let newest = table.newest().filter(|noted| noted.is_of(topic)).map(|noted| &noted.said);
            let newest = newest.filter(|published| published.definition == view.id.definition);
            let newest = newest.map(|published| (published.rebuilds != rebuilds, published.clone().named(topic)));
            sender.send_if_modified(|current| {
                let known = current.as_ref().map(|version| (version.is_stale, &version.published));
                if known == newest.as_ref().map(|(is_stale, published)| (*is_stale, published)) {
                    return false;
                }
                let version = |(is_stale, published)| Version::new(table.root().to_owned(), published, is_stale);
                *current = newest.map(version).map(Arc::new);
                true
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_each_format_say_the_same_and_the_newest_is_written() {
        let [before, now] = [include_str!("note-1.json"), include_str!("note-2.json")];
        let [before, now]: [Value; 2] = [before, now].map(|note| serde_json::from_str(note).expect("JSON"));
        let CommittedVersion { topic, published, archive } = CommittedVersion::from_note(now.clone()).expect("read");
        assert_eq!(topic.as_deref(), Some("events"));
        let written = CommittedVersion::note("events", &published.clone().named("events"), &archive).expect("a note");
        assert_eq!(written, now, "the format is another: raise its number and store a note of it");
        let unnamed = CommittedVersion { topic: None, published, archive };
        assert_eq!(CommittedVersion::from_note(before).expect("read"), unnamed);
    }
}
