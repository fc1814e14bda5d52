//! The log on one machine, without a broker: batches of records in a [fjall](https://docs.rs/fjall) database.
//!
//! One thread, the committer, makes all changes. It takes every append that waits, stores them with one sync, and
//! answers them all, so that many small appends cost little more than one. Readers work beside it, and are woken by it.
//!
//! **Full disk.** Nothing is written unless the reserve stays free, because fjall refuses all writes after one that
//! failed. Should a write fail all the same, the database is opened anew and says whether the append is stored.
//!
//! **Copies.** The first change of each process is stored together with a new epoch, see [`super::lineage`]. So two copies of a
//! folder that were both written to know different ones.

mod commit;
mod damage;
mod read;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, RwLock};
use uuid::Uuid;

use self::commit::{Committer, Request};
use self::damage::Damage;
use self::read::EmbeddedReader;
use self::state::{Fields, PartitionState};
use self::store::{Change, Store, StoredEpoch, is_damage, is_full};
use super::lineage::{Epoch, Lineage, Mark};
use super::{Append, Appended, Log, LogError, LogReader, Retention};
use crate::clock::Clock;
use crate::position::{Offset, Partition, Positions};

/// How many requests may wait for the committer before callers wait to hand in theirs.
const QUEUED_REQUESTS: usize = 1024;

/// How an [`EmbeddedLog`] is kept.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Bytes of the file system that stay free: an append that would use them is refused with
    /// [`LogError::StorageFull`]. 64 MiB unless set.
    pub reserve_bytes: u64,
    /// The topics whose records' keys are kept, from now on. Records have no headers here.
    pub keyed: BTreeSet<String>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { reserve_bytes: 64 << 20, keyed: BTreeSet::new() }
    }
}

/// What an [`EmbeddedLog`] has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmbeddedStats {
    /// Appends handed in, waiting or answered.
    pub appends: u64,
    /// Batches stored.
    pub batches: u64,
    /// Durable commits, each of which is one sync.
    pub commits: u64,
}

/// The log on one machine. Dropping it ends its readers with [`LogError::Closed`].
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    requests: Option<SyncSender<Request>>,
    committer: Option<JoinHandle<()>>,
}

/// What the committer and the readers work on.
struct Shared {
    path: PathBuf,
    options: EmbeddedOptions,
    clock: Arc<dyn Clock>,
    /// None once the log is closed, and while a database that failed can't be opened anew.
    store: RwLock<Option<Store>>,
    /// What is durably stored. Changed by the committer only.
    state: Mutex<State>,
    /// Notified after records were added, or the log was closed.
    grown: Condvar,
    appends: AtomicU64,
    batches: AtomicU64,
    commits: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<String, Topic>,
    /// The epochs, oldest first.
    epochs: Vec<StoredEpoch>,
    closed: bool,
}

#[derive(Debug, Clone)]
struct Topic {
    id: u32,
    partitions: Vec<PartitionState>,
}

impl State {
    fn topic(&self, name: &str) -> Result<&Topic, LogError> {
        self.topics.get(name).ok_or_else(|| LogError::UnknownTopic {
            topic: name.to_owned(),
            existing: self.topics.keys().cloned().collect(),
        })
    }

    fn load(store: &Store) -> fjall::Result<Self> {
        let unreadable = |what| fjall::Error::Io(Damage::error(format!("{what} can't be understood")));
        let mut topics = BTreeMap::new();
        for guard in store.prefix(b"t") {
            let (key, value) = guard.into_inner()?;
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            let mut fields = Fields(&value);
            let (Some(id), Some(count)) = (fields.u32(), fields.u32()) else {
                return Err(unreadable(format!("topic `{name}`")));
            };
            let mut partitions = Vec::with_capacity(count as usize);
            for partition in 0..count {
                let state = store.get(&PartitionState::key(id, partition))?;
                let state = state.and_then(|state| PartitionState::decode(&state));
                partitions.push(state.ok_or_else(|| unreadable(format!("topic `{name}` partition {partition}")))?);
            }
            topics.insert(name, Topic { id, partitions });
        }
        let mut epochs = Vec::new();
        for guard in store.prefix(b"e") {
            let (_, value) = guard.into_inner()?;
            epochs.push(StoredEpoch::decode(&value).ok_or_else(|| unreadable("an epoch".to_owned()))?);
        }
        Ok(Self { topics, epochs, closed: false })
    }

    /// An epoch that begins now.
    fn next_epoch(&self) -> StoredEpoch {
        let ends = |topic: &Topic| {
            let id = topic.id;
            (0..).zip(&topic.partitions).map(move |(partition, held)| ((id, partition), held.end)).collect::<Vec<_>>()
        };
        StoredEpoch { id: Uuid::new_v4(), begins: self.topics.values().flat_map(ends).collect() }
    }
}

impl Topic {
    fn check(&self, topic: &str, partition: Partition) -> Result<(), LogError> {
        let partitions = self.partitions.len() as u32;
        let known = partition < partitions;
        known.then_some(()).ok_or_else(|| LogError::UnknownPartition { topic: topic.to_owned(), partition, partitions })
    }
}

/// Why a commit failed; answered to everyone who waits for it.
#[derive(Debug, Clone)]
enum CommitError {
    Full { path: String, free_bytes: u64, reserve_bytes: u64 },
    Failed { step: String, source: Arc<dyn std::error::Error + Send + Sync> },
}

impl From<CommitError> for LogError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full { path, free_bytes, reserve_bytes } => {
                Self::StorageFull { path, free_bytes, reserve_bytes }
            }
            CommitError::Failed { step, source } => Self::Backend { step, source: source.into() },
        }
    }
}

impl Shared {
    fn free_bytes(&self) -> Result<u64, CommitError> {
        fs4::available_space(&self.path).map_err(|error| {
            let step = format!("asking for the free space of `{}`", self.path.display());
            CommitError::Failed { step, source: Arc::new(error) }
        })
    }

    fn full(&self, free_bytes: u64) -> CommitError {
        let path = self.path.display().to_string();
        CommitError::Full { path, free_bytes, reserve_bytes: self.options.reserve_bytes }
    }

    /// Whether there is room for `bytes`, for what has yet to be written a second time, and for the reserve.
    fn check_room(&self, bytes: u64) -> Result<(), CommitError> {
        let unflushed = self.store.read().as_ref().map_or(0, Store::unflushed_bytes);
        let free_bytes = self.free_bytes()?;
        let needed = self.options.reserve_bytes.saturating_add(unflushed).saturating_add(bytes);
        if free_bytes < needed { Err(self.full(free_bytes)) } else { Ok(()) }
    }

    /// Makes all changes durably, or none. The first of them must differ from what is stored.
    fn commit(&self, step: &str, changes: &[Change]) -> Result<(), CommitError> {
        let attempt = self.with_store(|store| write(store, changes));
        if let Err(error) = attempt.or_else(|error| self.settle(changes, error)) {
            if is_full(&error) {
                return Err(self.full(self.free_bytes().unwrap_or(0)));
            }
            return Err(CommitError::Failed { step: step.to_owned(), source: Arc::new(error) });
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// After a failed write, which leaves open whether its changes are stored and lets fjall take no more: opens the
    /// database anew, which tells. If that fails too, the next request begins with it.
    fn settle(&self, changes: &[Change], failed: fjall::Error) -> fjall::Result<()> {
        tracing::warn!(error = %failed, path = %self.path.display(), "the log's database is opened anew");
        let mut store = self.store.write();
        drop(store.take());
        let opened = Store::open(&self.path)?;
        let (key, value) = &changes[0];
        let settled = if opened.get(key)? == *value {
            opened.sync()?;
            Ok(())
        } else if matches!(failed, fjall::Error::Poisoned) {
            // An earlier write had failed, in the background, and this one wasn't tried.
            write(&opened, changes)?;
            Ok(())
        } else {
            Err(failed)
        };
        *store = Some(opened);
        settled
    }

    fn with_store<T>(&self, use_it: impl FnOnce(&Store) -> fjall::Result<T>) -> fjall::Result<T> {
        self.store.read().as_ref().map_or(Err(fjall::Error::Poisoned), use_it)
    }
}

fn write(store: &Store, changes: &[Change]) -> fjall::Result<()> {
    fail::fail_point!("log::write", |_| Err(fjall::Error::Io(std::io::ErrorKind::StorageFull.into())));
    store.write(changes)?;
    fail::fail_point!("log::written", |_| Err(fjall::Error::Io(std::io::Error::other("injected"))));
    Ok(())
}

fn open_error(path: &Path, error: fjall::Error) -> CommitError {
    let step = match error {
        fjall::Error::Locked => format!("opening the log in `{}`, which another process has open,", path.display()),
        _ => format!("opening the log in `{}`", path.display()),
    };
    let source = match error {
        error if is_damage(&error) => Damage::error(error.to_string()),
        fjall::Error::Io(error) => error,
        error => std::io::Error::other(error),
    };
    CommitError::Failed { step, source: Arc::new(source) }
}

impl EmbeddedLog {
    /// Opens the log in a directory, which is created if it doesn't exist. No other process may have it open.
    pub fn open(path: impl AsRef<Path>, options: EmbeddedOptions, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let path = path.as_ref().to_owned();
        let failed = |error| LogError::from(open_error(&path, error));
        let store = Store::open(&path).map_err(failed)?;
        let state = State::load(&store).map_err(failed)?;
        let shared = Arc::new(Shared {
            path: path.clone(),
            options,
            clock,
            store: RwLock::new(Some(store)),
            state: Mutex::new(state),
            grown: Condvar::new(),
            appends: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            commits: AtomicU64::new(0),
        });
        let (requests, received) = sync_channel(QUEUED_REQUESTS);
        let committer = Committer::new(shared.clone());
        let committer = std::thread::Builder::new()
            .name("log-commit".to_owned())
            .spawn(move || committer.run(&received))
            .map_err(|error| failed(error.into()))?;
        Ok(Self { shared, requests: Some(requests), committer: Some(committer) })
    }

    /// What the log has done since it was opened.
    pub fn stats(&self) -> EmbeddedStats {
        EmbeddedStats {
            appends: self.shared.appends.load(Ordering::Relaxed),
            batches: self.shared.batches.load(Ordering::Relaxed),
            commits: self.shared.commits.load(Ordering::Relaxed),
        }
    }

    /// Hands a request to the committer.
    fn send<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request) -> Result<Receiver<T>, LogError> {
        let (answer, answered) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or(LogError::Closed)?;
        requests.send(request(answer)).map_err(|_| LogError::Closed)?;
        Ok(answered)
    }
}

impl Log for EmbeddedLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        let answered = self.send(|answer| Request::CreateTopic { topic: topic.to_owned(), partitions, answer })?;
        answered.recv().map_err(|_| LogError::Closed)?
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        let state = self.shared.state.lock();
        Ok(state.topics.iter().map(|(name, topic)| (name.clone(), topic.partitions.len() as u32)).collect())
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        let state = self.shared.state.lock();
        let partitions = state.topic(topic)?.partitions.iter();
        Ok((0..).zip(partitions.map(|partition| partition.start..partition.end)).collect())
    }

    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        let state = self.shared.state.lock();
        let topic = state.topic(topic)?;
        let begins = |epoch: &StoredEpoch| -> Positions {
            let of_topic = epoch.begins.range((topic.id, 0)..=(topic.id, Partition::MAX));
            of_topic.map(|(&(_, partition), &end)| (partition, end)).collect()
        };
        let mark = |epoch: &StoredEpoch| Mark::new(format!("embedded:{}", epoch.id.simple()));
        let epochs = state.epochs.iter().map(|epoch| Epoch { mark: mark(epoch), begins: begins(epoch) });
        let ends = (0..).zip(&topic.partitions).map(|(partition, held)| (partition, held.end));
        Ok(Lineage { epochs: epochs.collect(), ends: ends.collect() })
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let answered = self.send(|answer| Request::Append { topic: topic.to_owned(), append, answer })?;
        self.shared.appends.fetch_add(1, Ordering::Relaxed);
        answered.recv().map_err(|_| LogError::Closed)?
    }

    fn accepts(&self) -> Result<(), LogError> {
        Ok(self.shared.check_room(1)?)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        let state = self.shared.state.lock();
        let known = state.topic(topic)?;
        from.keys().try_for_each(|&partition| known.check(topic, partition))?;
        Ok(Box::new(EmbeddedReader::new(self.shared.clone(), topic, known.id, from)))
    }

    /// Deletes whole stored batches. A partition's bytes are those of its payloads, without keys.
    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        let keep_from = keep_from.clone();
        let answered = self.send(|answer| Request::Retain { topic: topic.to_owned(), retention, keep_from, answer })?;
        if answered.recv().map_err(|_| LogError::Closed)?? {
            self.shared.with_store(Store::compact).map_err(|source| {
                let step = format!("giving back the room of what retention deleted from topic `{topic}`");
                LogError::Backend { step, source: source.into() }
            })?;
        }
        Ok(())
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("the log's committer had panicked");
        }
        self.shared.state.lock().closed = true;
        self.shared.grown.notify_all();
        drop(self.shared.store.write().take());
    }
}
