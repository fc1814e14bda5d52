//! Versions of views, and how their tables are read: looked for on the storage, and announced to whoever works with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::edition::Reading;
use anabranch_log::position::TopicPartition;
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Catalog, Kept, Unit};
use anabranch_store::table::{DataFile, DeltaTable, Notes, TableError, commit_damage};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, watch};

use super::{Published, Troubles, Version, Versions};
use crate::note::{FORMAT, Noted, other_format};
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

/// What the commit of a view's version says of itself. Before format 2 it didn't name its topic, which is then `""` here:
/// [`CommittedVersion::of`] names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedVersion {
    /// What it says to readers.
    published: Published,
    /// What it says to the next recompute, by topic.
    archives: BTreeMap<String, ArchiveRead>,
}

/// The fields that were not by topic before format 2.
const BY_TOPIC: [&str; 3] = ["coverage", "event_times", "log"];

impl CommittedVersion {
    /// A commit's note: a [`Published`], with what was read of the archive beside its fields; of several by topic.
    pub fn note(published: &Published, archives: &BTreeMap<String, ArchiveRead>) -> serde_json::Result<Value> {
        let mut note = serde_json::to_value(published)?;
        note["format"] = FORMAT.into();
        match archives.values().next().filter(|_| archives.len() == 1) {
            Some(only) => note["archive"] = serde_json::to_value(only)?,
            None => note["archives"] = serde_json::to_value(archives)?,
        }
        Ok(note)
    }

    /// What of the archive of a topic it was computed from; nothing of one that it doesn't know.
    pub fn archive(&self, topic: &str) -> ArchiveRead {
        self.archives.get(topic).cloned().unwrap_or_default()
    }

    /// What it says to readers, if it holds what a view says of its tables' topics.
    pub fn of(&self, view: &Kept) -> Option<Published> {
        if self.published.definition != view.id.definition {
            return None;
        }
        let published = self.published.clone().of_topic(&view.table().topic);
        let said = published.coverage.partitions().chain(published.event_times.keys());
        let is_of_view = said.map(|partition| view.table_of_topic(&partition.topic)).all(|table| table.is_some());
        is_of_view.then_some(published)
    }

    /// The same, with the name of the topic if it doesn't say it.
    pub fn named(self, topic: &str) -> Self {
        let of_topic = |(said, read): (String, _)| (if said.is_empty() { topic.to_owned() } else { said }, read);
        let archives = self.archives.into_iter().map(of_topic).collect();
        Self { published: self.published.of_topic(topic), archives }
    }

    /// What it says to readers, whatever view and topics it is of.
    pub fn published(&self) -> &Published {
        &self.published
    }
}

impl Published {
    /// The same, with the name of the topic if it doesn't say it.
    fn of_topic(mut self, topic: &str) -> Self {
        let partitions = || self.coverage.partitions().chain(self.event_times.keys());
        if self.log.contains_key("") || partitions().any(|partition| partition.topic.is_empty()) {
            let name = |partition: TopicPartition| match partition.topic.is_empty() {
                true => TopicPartition::new(topic, partition.partition),
                false => partition,
            };
            self.coverage = self.coverage.iter().map(|(p, range)| (name(p.clone()), range.clone())).collect();
            self.event_times = self.event_times.into_iter().map(|(p, time)| (name(p), time)).collect();
            let mark = self.log.remove("");
            self.log.extend(mark.map(|mark| (topic.to_owned(), mark)));
        }
        self
    }
}

impl<'de> Deserialize<'de> for CommittedVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut note = Value::deserialize(deserializer)?;
        match note.get("format").map(Value::as_u64) {
            Some(Some(FORMAT)) => {}
            Some(_) => return Err(D::Error::custom(other_format(&note["format"]))),
            None => {
                for field in BY_TOPIC {
                    if let Some(said) = note.get_mut(field) {
                        *said = serde_json::json!({ "": said.take() });
                    }
                }
            }
        }
        let topics = note.get("coverage").and_then(Value::as_object);
        let topic = topics.and_then(|topics| topics.keys().next()).cloned().unwrap_or_default();
        let archives = match (note.get("archive").cloned(), note.get("archives").cloned()) {
            (Some(only), _) => BTreeMap::from([(topic, serde_json::from_value(only).map_err(D::Error::custom)?)]),
            (None, Some(all)) => serde_json::from_value(all).map_err(D::Error::custom)?,
            (None, None) => BTreeMap::new(),
        };
        let published = serde_json::from_value(note).map_err(D::Error::custom)?;
        Ok(Self { published, archives })
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
    Ok(table.note::<CommittedVersion>().await?.map(|(_, committed)| committed))
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
            && kept.last().is_none_or(|(_, newer)| newer.published().version != committed.published().version)
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

/// How a table is read, by its archive.
#[derive(Debug)]
struct OfTable {
    archive: Notes<Noted<Reading>>,
    reading: watch::Sender<Reading>,
}

/// Tables that are read together, and the versions of the views that are made of them.
#[derive(Debug)]
struct OfUnit {
    tables: Vec<Arc<Mutex<OfTable>>>,
    views: Mutex<Vec<OfView>>,
    troubles: Troubles,
}

#[derive(Debug)]
struct OfView {
    view: Kept,
    table: Notes<CommittedVersion>,
    sender: watch::Sender<Option<Arc<Version>>>,
}

/// Where new versions are announced, and new ways to read a table.
#[derive(Debug)]
pub struct Publishers {
    tables: BTreeMap<String, Arc<Mutex<OfTable>>>,
    units: Vec<(Unit, OfUnit)>,
}

/// Reads how each table of the catalog is read, and the newest version of each view, from the data folder. A version of another
/// definition than the catalog's is as good as none: its partials hold something else. Versions of a view that can't be read are
/// no reason to fail: [`Versions::trouble`] has the reason, and they are looked for again.
pub async fn open_versions(data: &Path, catalog: &Catalog) -> Result<(Versions, Readings, Publishers), TableError> {
    let (mut versions, mut readings) = (Versions::default(), Readings::default());
    let mut tables = BTreeMap::new();
    for table in catalog.tables.keys() {
        let (reading, receiver) = watch::channel(Reading::default());
        readings.0.insert(table.clone(), receiver);
        let archive = Notes::of(archive_root(data, table));
        tables.insert(table.clone(), Arc::new(Mutex::new(OfTable { archive, reading })));
    }
    let mut units = Vec::new();
    for unit in catalog.units() {
        let mut views = Vec::new();
        for view in unit.views.clone() {
            let (sender, receiver) = watch::channel(None);
            versions.0.insert(view.id.clone(), receiver);
            let table = Notes::of(view_root(&data.join("views"), &view.id.name));
            views.push(OfView { view, table, sender });
        }
        let of_tables = unit.tables.iter().filter_map(|table| tables.get(&table.name).cloned()).collect();
        let of_unit = OfUnit { tables: of_tables, views: Mutex::new(views), troubles: versions.1.clone() };
        units.push((unit, of_unit));
    }
    let publishers = Publishers { tables, units };
    publishers.refresh().await?;
    Ok((versions, readings, publishers))
}

impl Publishers {
    /// Looks for what has been committed since the last look, by this process or another. An archive that can't be read is told of
    /// once all others have been looked at.
    pub async fn refresh(&self) -> Result<(), TableError> {
        let mut looked = Ok(());
        for (_, unit) in &self.units {
            looked = looked.and(unit.refresh().await);
        }
        let is_of_unit = |name: &str| self.units.iter().any(|(unit, _)| unit.reads(name));
        for (_, table) in self.tables.iter().filter(|(name, _)| !is_of_unit(name)) {
            looked = looked.and(table.lock().await.refresh().await.map(|_| ()));
        }
        looked
    }

    /// Looks for what has been committed of one table and the views that read it.
    pub async fn refresh_table(&self, table: &str) -> Result<(), TableError> {
        let mut looked = match self.tables.get(table) {
            Some(table) => table.lock().await.refresh().await.map(|_| ()),
            None => Ok(()),
        };
        for (_, unit) in self.units.iter().filter(|(unit, _)| unit.reads(table)) {
            looked = looked.and(unit.refresh().await);
        }
        looked
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
    /// Looks for how the table is read; how often its archive has been rebuilt.
    async fn refresh(&mut self) -> Result<u64, TableError> {
        self.archive.look().await?;
        let reading = self.archive.newest().map(|noted| noted.said.clone()).unwrap_or_default();
        let rebuilds = reading.rebuilds;
        self.reading.send_if_modified(|current| {
            let is_new = *current != reading;
            *current = reading;
            is_new
        });
        Ok(rebuilds)
    }
}

impl OfUnit {
    async fn refresh(&self) -> Result<(), TableError> {
        let mut views = self.views.lock().await;
        for OfView { view, table, .. } in &mut *views {
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
        let mut rebuilds = 0;
        for table in &self.tables {
            rebuilds += table.lock().await.refresh().await?;
        }
        for OfView { view, table, sender } in &*views {
            let newest = table.newest().and_then(|committed| committed.of(view));
            let newest = newest.map(|published| (published.rebuilds != rebuilds, published));
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
        let now_read: CommittedVersion = serde_json::from_value(now.clone()).expect("read");
        assert_eq!(now_read.published.coverage.partitions().next().map(|p| &*p.topic), Some("events"));
        let written = CommittedVersion::note(&now_read.published, &now_read.archives).expect("a note");
        assert_eq!(written, now, "the format is another: raise its number and store a note of it");
        let before: CommittedVersion = serde_json::from_value(before).expect("read");
        assert_eq!(before.published.coverage.partitions().next().map(|p| &*p.topic), Some(""));
        assert_eq!(before.named("events"), now_read);
    }

    #[test]
    fn a_note_of_two_topics_says_what_was_read_of_each_archive() {
        let now: CommittedVersion = serde_json::from_str(include_str!("note-2.json")).expect("read");
        let mut published = now.published.clone();
        published.coverage.extend(TopicPartition::new("users", 0), 0..7);
        let archives = BTreeMap::from([
            ("events".to_owned(), now.archive("events")),
            ("users".to_owned(), ArchiveRead { version: 4, ..ArchiveRead::default() }),
        ]);
        let note = CommittedVersion::note(&published, &archives).expect("a note");
        let read: CommittedVersion = serde_json::from_value(note).expect("read");
        assert_eq!((&read.published, &read.archives), (&published, &archives));
    }

    #[test]
    fn a_note_of_a_later_format_is_refused() {
        let mut note: Value = serde_json::from_str(include_str!("note-2.json")).expect("JSON");
        note["format"] = 3.into();
        let refused = serde_json::from_value::<CommittedVersion>(note).expect_err("later");
        assert!(refused.to_string().contains("format 3"), "{refused}");
    }
}
