//! Versions of views, read from and announced to whoever serves them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::{DeltaTable, TableError, name};
use crate::version::{Published, Version, Versions};
use crate::view::{Catalog, View};

/// What of the archive a version was computed from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRead {
    /// The archive table's version.
    pub version: u64,
    /// How often the archive had been made anew.
    #[serde(default)]
    pub rebuilds: u64,
    /// How many events each day had (days since 1970). Events are only ever added, so a day with as many is the same,
    /// in whichever files they are by now.
    pub days: BTreeMap<i64, u64>,
}

/// What the commit of a view's version says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedVersion {
    /// What it says to readers.
    pub published: Published,
    /// What it says to the next recompute.
    pub archive: ArchiveRead,
}

impl CommittedVersion {
    /// The commit's note: a [`Published`], with `archive` beside its fields.
    pub fn to_note(&self) -> serde_json::Result<Value> {
        let mut note = serde_json::to_value(&self.published)?;
        if let Value::Object(fields) = &mut note {
            fields.insert("archive".into(), serde_json::to_value(&self.archive)?);
        }
        Ok(note)
    }

    fn from_note(note: Value) -> serde_json::Result<Self> {
        let archive =
            note.get("archive").cloned().map_or_else(|| Ok(ArchiveRead::default()), serde_json::from_value)?;
        Ok(Self { archive, published: serde_json::from_value(note)? })
    }
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

#[derive(Debug)]
struct Publisher {
    root: PathBuf,
    definition: String,
    sender: watch::Sender<Option<Arc<Version>>>,
    table: Mutex<Option<DeltaTable>>,
}

/// Where new versions are announced.
#[derive(Debug)]
pub struct Publishers(BTreeMap<String, Publisher>);

/// Reads the newest version of each view of the catalog from the tables in a folder. A version of another definition
/// than the catalog's is as good as none: its partials hold something else.
pub async fn open_versions(views: &Path, catalog: &Catalog) -> Result<(Versions, Publishers), TableError> {
    let publisher = |view: &View| Publisher {
        root: view_root(views, &view.name),
        definition: view.definition.clone(),
        sender: watch::channel(None).0,
        table: Mutex::new(None),
    };
    let publishers = Publishers(catalog.views.values().map(|view| (view.name.clone(), publisher(view))).collect());
    publishers.refresh().await?;
    let receivers = publishers.0.iter().map(|(view, publisher)| (view.clone(), publisher.sender.subscribe()));
    Ok((Versions(receivers.collect()), publishers))
}

impl Publishers {
    /// Looks for versions that have been committed since the last look, by this process or another.
    pub async fn refresh(&self) -> Result<(), TableError> {
        for publisher in self.0.values() {
            publisher.refresh().await?;
        }
        Ok(())
    }

    /// The newest version of a view that has been announced.
    pub fn newest(&self, view: &str) -> Option<Arc<Version>> {
        self.0.get(view).and_then(|publisher| publisher.sender.borrow().clone())
    }

    /// Looks for new versions of one view.
    pub async fn refresh_view(&self, view: &str) -> Result<(), TableError> {
        match self.0.get(view) {
            Some(publisher) => publisher.refresh().await,
            None => Ok(()),
        }
    }

    /// Looks for new versions again and again, until it is dropped.
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

impl Publisher {
    async fn refresh(&self) -> Result<(), TableError> {
        let mut table = self.table.lock().await;
        match table.as_mut() {
            None => *table = DeltaTable::open(&self.root).await?,
            Some(table) => {
                if !table.is_superseded().await? {
                    return Ok(());
                }
                table.refresh().await?;
            }
        }
        let committed = match table.as_ref() {
            Some(table) => committed_version(table).await?,
            None => None,
        };
        let newest = committed.map(|committed| committed.published).filter(|it| it.definition == self.definition);
        self.sender.send_if_modified(|current| {
            if current.as_ref().map(|version| &version.published) == newest.as_ref() {
                return false;
            }
            *current = newest.map(|published| Arc::new(Version { root: self.root.clone(), published }));
            true
        });
        Ok(())
    }
}
