//! Tables of files: Parquet under Delta Lake commits, without a query engine.
//!
//! A [`DeltaTable`] is one version of a table as it was read. [`DeltaTable::commit`] builds the next one on it and is
//! refused with [`TableError::Superseded`] if anybody has committed since: of two writers that read the same version
//! one wins, and the other one has to look at what has changed. Nothing is ever overwritten.
//!
//! A commit carries, under `anabranch` in its `commitInfo`, a note of ours: which offsets it covers, for example. So
//! data and offsets are one atomic fact. Commits of other programs (an `OPTIMIZE` by Spark) carry none: the newest note
//! is then that of an earlier commit. Log clean-up deletes old commits with their notes; transactions survive it.
//!
//! Files are written before the commit that names them ([`write_file`]); a crash in between leaves files that no
//! version names, and a [`Sweeper`] finds them.

mod commits;
mod digest;
pub(crate) mod durable;
mod notes;
mod sweep;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_plan::schema::{ColumnType, Layout};
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake_core::kernel::{
    Action, Add, DataType as DeltaType, LogicalFileView, MetadataExt, Remove, StructField, StructType, Transaction,
    new_metadata,
};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, logstore_with};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::state::DeltaTableState;
use deltalake_core::{DeltaResult, DeltaTableError};
use object_store::local::LocalFileSystem;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::commits::{Commit, commits};
use self::digest::SHA256_TAG;
pub use self::digest::{Digesting, Written, commit_damage, damage, log_damage, write_digested};
use self::durable::{DAMAGED, Durable};
pub use self::notes::Notes;
use self::notes::{newest_note, newest_version};
pub use self::sweep::Sweeper;
pub use self::write::write_file;

/// The key of our note in a commit's `commitInfo`.
const NOTE: &str = "anabranch";

/// How many commits there are between two checkpoints of a table.
const CHECKPOINT_INTERVAL: u64 = 100;

/// What went wrong with a table, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Somebody has committed since the table was read: read it again and decide anew.
    #[error("table {table}: version {version} has been superseded by another writer")]
    Superseded {
        /// The table.
        table: String,
        /// The version that the commit was built on.
        version: u64,
    },
    /// A column has a type that we never write.
    #[error("table {table}: column `{column}` is stored as {existing}, not as {wanted}")]
    Column {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What it is.
        existing: String,
        /// What it should be.
        wanted: String,
    },
    /// Our note in a commit can't be understood.
    #[error("table {table}: what version {version} says of itself can't be understood")]
    Note {
        /// The table.
        table: String,
        /// The version.
        version: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Another program has made the table such that its files alone don't say which rows it has.
    #[error(
        "table {table} can't be read: {what}, which isn't supported; turn that off with the program that turned it on, and have it \
         write the files anew"
    )]
    Unsupported {
        /// The table.
        table: String,
        /// What it is.
        what: String,
    },
    /// A file of the table's log isn't what was written.
    #[error("table {table}: {found}")]
    Damaged {
        /// The table.
        table: String,
        /// The file, and what was found.
        found: String,
    },
    /// A file can't be read or written.
    #[error("{step} {path} failed")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The table's log can't be read or written.
    #[error("table {table}: {step} failed")]
    Delta {
        /// What was tried.
        step: &'static str,
        /// The table.
        table: String,
        /// Why it failed.
        #[source]
        source: Box<DeltaTableError>,
    },
}

impl TableError {
    /// Whether what is stored can't be understood: reading it again won't help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Note { .. } => true,
            Self::Delta { .. } => !self.is_transient(),
            _ => false,
        }
    }

    /// Whether the same might work a moment later: the storage failed, not what was asked of it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::File { .. } => true,
            Self::Delta { source, .. } => {
                matches!(**source, DeltaTableError::ObjectStore { .. } | DeltaTableError::Io { .. })
            }
            _ => false,
        }
    }
}

fn delta_type(column_type: ColumnType) -> DeltaType {
    match column_type {
        ColumnType::Text => DeltaType::STRING,
        ColumnType::Integer => DeltaType::INTEGER,
        ColumnType::BigInt => DeltaType::LONG,
        ColumnType::Double => DeltaType::DOUBLE,
        ColumnType::Boolean => DeltaType::BOOLEAN,
        ColumnType::Timestamp => DeltaType::TIMESTAMP,
        ColumnType::Date => DeltaType::DATE,
    }
}

fn fields(layout: &Layout) -> Vec<StructField> {
    layout.columns.iter().map(|(name, column)| StructField::nullable(name.clone(), delta_type(*column))).collect()
}

/// A file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Its path, relative to the table.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// How many rows it has; unknown if another program wrote it and didn't say.
    pub rows: Option<u64>,
    /// The values of the partition columns.
    pub partition: BTreeMap<String, Option<String>>,
    /// When it was written, in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Delta's statistics, in JSON.
    pub stats: Option<String>,
    /// The SHA-256 of its bytes, in hexadecimal digits; none if another program wrote it, or an earlier build.
    pub sha256: Option<String>,
}

/// The next version of a table.
#[derive(Debug, Default)]
pub struct Change {
    /// Files that are new. They must have been written.
    pub add: Vec<DataFile>,
    /// Files that are no longer part of the table.
    pub remove: Vec<DataFile>,
    /// How far each application has come, in this commit or before.
    pub transactions: Vec<(String, i64)>,
    /// What the commit says of itself.
    pub note: Value,
    /// Set if the rows look different from now on.
    pub layout: Option<Layout>,
    /// The same rows in other files: readers of changes can pass over this commit.
    pub is_rearrangement: bool,
}

/// One version of a table.
#[derive(Debug, Clone)]
pub struct DeltaTable {
    root: PathBuf,
    store: LogStoreRef,
    files: Arc<Durable>,
    state: DeltaTableState,
}

/// What a table is called in messages.
pub fn name(root: &Path) -> String {
    root.display().to_string()
}

fn delta<'a>(root: &'a Path, step: &'static str) -> impl FnOnce(DeltaTableError) -> TableError + 'a {
    move |source| match damaged(&source) {
        Some(found) => TableError::Damaged { table: name(root), found },
        None => TableError::Delta { step, table: name(root), source: Box::new(source) },
    }
}

/// Which file of a table's log is damaged, if that is why an operation failed. Delta's library hands causes on as text only.
fn damaged(error: &DeltaTableError) -> Option<String> {
    let text = error.to_string();
    let at = text.find("_delta_log/").filter(|&at| text[at..].contains(DAMAGED))?;
    Some(text[at..].to_owned())
}

/// The log of the table in a local folder, which has to be there. The folder is the root of its store: its own name is in no URL,
/// so it may have any.
fn log_store(root: &Path) -> Result<(LogStoreRef, Arc<Durable>), TableError> {
    let opened = LocalFileSystem::new_with_prefix(root).map_err(DeltaTableError::from).and_then(|files| {
        let files = Arc::new(Durable::new(files));
        let url =
            url::Url::parse("file:///").map_err(|error| DeltaTableError::InvalidTableLocation(error.to_string()))?;
        Ok((logstore_with(files.clone(), &url, StorageConfig::default())?, files))
    });
    opened.map_err(delta(root, "opening it"))
}

/// The log of the table in a local folder; none if there is no table.
async fn existing_log(root: &Path) -> Result<Option<(LogStoreRef, Arc<Durable>)>, TableError> {
    if !root.join("_delta_log").is_dir() {
        return Ok(None);
    }
    let (store, files) = log_store(root)?;
    let is_there = is_table(&store).await.map_err(delta(root, "looking for it"))?;
    Ok(is_there.then_some((store, files)))
}

/// Reads a version of a table, the newest by default. If that fails with a checkpoint of Delta's, it is read by an earlier one
/// and the commits since, or by the commits alone.
async fn read_state(
    root: &Path,
    (store, files): (&LogStoreRef, &Durable),
    version: Option<u64>,
) -> DeltaResult<DeltaTableState> {
    let first = match DeltaTableState::try_new(store, version).await {
        Ok(state) => return Ok(state),
        Err(error) => error,
    };
    while files.pass_over_checkpoint() {
        if let Ok(state) = DeltaTableState::try_new(store, version).await {
            tracing::warn!(table = %root.display(), error = %first, "a checkpoint of the table's log is passed over");
            return Ok(state);
        }
    }
    Err(first)
}

impl DeltaTable {
    /// Reads the newest version of the table in a folder; `None` if there is no table.
    pub async fn open(root: &Path) -> Result<Option<Self>, TableError> {
        let Some((store, files)) = existing_log(root).await? else { return Ok(None) };
        let state = read_state(root, (&store, &files), None).await.map_err(delta(root, "reading it"))?;
        let table = Self { root: root.to_owned(), store, files, state };
        table.check_readable()?;
        Ok(Some(table))
    }

    /// Reads the newest version of the table in a folder, or creates the table.
    pub async fn open_or_create(root: &Path, layout: &Layout) -> Result<Self, TableError> {
        if let Some(table) = Self::open(root).await? {
            return Ok(table);
        }
        std::fs::create_dir_all(root).map_err(|source| TableError::File {
            step: "creating",
            path: root.to_owned(),
            source,
        })?;
        let created = CreateBuilder::new()
            .with_log_store(log_store(root)?.0)
            .with_columns(fields(layout))
            .with_partition_columns(layout.partition_by.iter().cloned())
            .with_configuration(configuration().map(|(key, value)| (key, Some(value))))
            .await;
        match (created, Self::open(root).await?) {
            // Either way there is a table now: ours, or that of somebody who was faster.
            (_, Some(table)) => Ok(table),
            (Err(error), None) => Err(delta(root, "creating it")(error)),
            (Ok(_), None) => {
                Err(delta(root, "creating it")(DeltaTableError::NotATable("gone after it was created".into())))
            }
        }
    }

    /// Reads another version of the table.
    pub async fn at(&self, version: u64) -> Result<Self, TableError> {
        let state = read_state(&self.root, (&self.store, &self.files), Some(version))
            .await
            .map_err(delta(&self.root, "reading an earlier version"))?;
        Ok(Self { state, ..self.clone() })
    }

    /// Reads the newest version.
    pub async fn refresh(&mut self) -> Result<(), TableError> {
        if self.state.update(&self.store, None).await.is_err() {
            let state = read_state(&self.root, (&self.store, &self.files), None).await;
            self.state = state.map_err(delta(&self.root, "reading it"))?;
        }
        self.check_readable()
    }

    /// Whether there is a newer version, or another table in its place.
    pub async fn is_superseded(&self) -> Result<bool, TableError> {
        let newest = newest_version(&self.store, &self.root, self.version()).await?;
        Ok(newest != self.version())
    }

    /// The table's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What tells this table from another one that takes its folder.
    pub fn id(&self) -> &str {
        self.state.metadata().id()
    }

    /// Which version this is.
    pub fn version(&self) -> u64 {
        self.state.version()
    }

    /// What the rows look like, or the first column of a type that we never write.
    pub fn layout(&self) -> Result<Layout, TableError> {
        let columns = self.state.schema().fields().map(|field| self.stored(field)).collect::<Result<_, _>>()?;
        Ok(Layout { columns, partition_by: self.state.metadata().partition_columns().to_vec() })
    }

    fn stored(&self, field: &StructField) -> Result<(String, ColumnType), TableError> {
        use ColumnType::*;
        let known = [Text, Integer, BigInt, Double, Boolean, Timestamp, Date];
        let found = known.into_iter().find(|&known| delta_type(known) == *field.data_type());
        found.map(|data_type| (field.name().clone(), data_type)).ok_or_else(|| TableError::Column {
            table: name(&self.root),
            column: field.name().clone(),
            existing: format!("{}", field.data_type()),
            wanted: "a type that this program writes".into(),
        })
    }

    /// The files that make up this version, in order of their paths.
    pub fn files(&self) -> Vec<DataFile> {
        let file = |view: LogicalFileView| {
            let stats = view.stats();
            let said = || serde_json::from_str::<Value>(stats.as_deref()?).ok()?.get("numRecords")?.as_u64();
            DataFile {
                path: view.path().into_owned(),
                size: u64::try_from(view.size()).unwrap_or(0),
                rows: view.num_records().map(|rows| rows as u64).or_else(said),
                partition: view.partition_values_map().into_iter().collect(),
                modified_ms: view.modification_time(),
                stats,
                sha256: sha256(&view),
            }
        };
        let mut files: Vec<DataFile> = self.state.log_data().iter().map(file).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// The newest of our notes, in this version or the last one before it that has any; with that version.
    pub async fn note<T: DeserializeOwned>(&self) -> Result<Option<(u64, T)>, TableError> {
        newest_note(&self.store, &self.root, self.version()).await
    }

    /// How far an application has come.
    pub async fn transaction(&self, app_id: &str) -> Result<Option<i64>, TableError> {
        let version = self.state.transaction_version(&self.store, app_id).await;
        version.map_err(delta(&self.root, "reading its transactions"))
    }

    /// Commits the next version, or fails with [`TableError::Superseded`] if this one isn't the newest any more.
    pub async fn commit(&mut self, change: Change) -> Result<u64, TableError> {
        let base = self.version();
        let superseded = || TableError::Superseded { table: name(&self.root), version: base };
        let prepared = self.prepare(change).map_err(delta(&self.root, "preparing a commit"))?;
        let (builder, operation) = prepared;
        let commit = builder.build(Some(&self.state), self.store.clone(), operation);
        let committed = match commit.into_prepared_commit_future().await {
            Ok(prepared) => prepared.await,
            Err(error) => Err(error),
        };
        let committed = committed.map_err(|error| match error {
            DeltaTableError::VersionAlreadyExists(_) => superseded(),
            DeltaTableError::Transaction {
                source: TransactionError::MaxCommitAttempts(_) | TransactionError::CommitConflict(_),
            } => superseded(),
            error => delta(&self.root, "committing")(error),
        })?;
        let version = committed.version;
        // From here on the version is there, whatever becomes of checkpoints and old log files.
        match committed.await {
            Ok(finished) => {
                self.state = finished.snapshot;
                let checkpoint = self.root.join(format!("_delta_log/{version:020}.checkpoint.parquet"));
                if let Err(error) = digest::seal_checkpoint(&checkpoint) {
                    tracing::warn!(checkpoint = %checkpoint.display(), %error, "its digest can't be written");
                }
            }
            Err(error) => {
                tracing::warn!(table = %self.root.display(), version, %error, "the table's log wasn't tidied");
                self.refresh().await?;
            }
        }
        Ok(version)
    }

    fn prepare(&self, change: Change) -> DeltaResult<(CommitBuilder, DeltaOperation)> {
        let mut actions = Vec::new();
        if let Some(layout) = &change.layout {
            let schema = StructType::try_new(fields(layout))?;
            let metadata = new_metadata(&schema, &layout.partition_by, configuration())?;
            actions.push(Action::Metadata(metadata.with_table_id(self.state.metadata().id().to_owned())?));
        }
        let data_change = !change.is_rearrangement;
        let removed_at = change.add.iter().chain(&change.remove).map(|file| file.modified_ms).max();
        let removes_all = !change.remove.is_empty() && data_change;
        actions.extend(change.remove.into_iter().map(|file| Action::Remove(remove(file, data_change, removed_at))));
        actions.extend(change.add.into_iter().map(|file| Action::Add(add(file, data_change))));
        let operation = if change.is_rearrangement {
            DeltaOperation::Optimize { predicate: None, target_size: 0 }
        } else {
            let mode = if removes_all { SaveMode::Overwrite } else { SaveMode::Append };
            let partition_by = Some(self.state.metadata().partition_columns().to_vec());
            DeltaOperation::Write { mode, partition_by, predicate: None }
        };
        let tidies = (self.version() + 1).is_multiple_of(CHECKPOINT_INTERVAL);
        let transactions = change.transactions.into_iter().map(|(app_id, version)| Transaction::new(app_id, version));
        // No retries: a retry would put a note that was true of one version onto another.
        let properties = CommitProperties::default()
            .with_metadata(HashMap::from([(NOTE.to_owned(), change.note)]))
            .with_application_transactions(transactions.collect())
            .with_cleanup_expired_logs(Some(tidies))
            .with_max_retries(0);
        Ok((CommitBuilder::from(properties).with_actions(actions), operation))
    }
}

#[expect(deprecated, reason = "nothing else gives a file's tags")]
fn sha256(file: &LogicalFileView) -> Option<String> {
    file.add_action().tags?.remove(SHA256_TAG)?
}

async fn is_table(store: &LogStoreRef) -> DeltaResult<bool> {
    store.is_delta_table_location().await
}

fn configuration() -> impl Iterator<Item = (String, String)> {
    [
        ("delta.checkpointInterval", CHECKPOINT_INTERVAL.to_string()),
        ("delta.logRetentionDuration", "interval 7 days".to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
}

fn add(file: DataFile, data_change: bool) -> Add {
    Add {
        path: file.path,
        partition_values: file.partition.into_iter().collect(),
        size: file.size as i64,
        modification_time: file.modified_ms,
        data_change,
        stats: file.stats,
        tags: file.sha256.map(|sha256| HashMap::from([(SHA256_TAG.to_owned(), Some(sha256))])),
        ..Default::default()
    }
}

fn remove(file: DataFile, data_change: bool, at: Option<i64>) -> Remove {
    Remove {
        path: file.path,
        data_change,
        deletion_timestamp: at,
        extended_file_metadata: Some(true),
        partition_values: Some(file.partition.into_iter().collect()),
        size: Some(file.size as i64),
        ..Default::default()
    }
}
