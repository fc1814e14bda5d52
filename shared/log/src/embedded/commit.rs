//! The committer: the one thread that changes the log.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use super::state::{Fields, PartitionState};
use super::store::{BatchKey, Change, Piece, Store, StoredEpoch, age_key, pack, request_key, topic_key};
use super::{CommitError, Shared, State, Topic, open_error};
use crate::clock::{Micros, written};
use crate::position::{Offset, Partition, Positions};
use crate::{Append, Appended, Digest, Idempotency, LogError, Payloads, Retention, check_same};

/// Appends are stored together until their payloads reach this many bytes.
const GROUP_BYTES: usize = 32 << 20;
/// Idempotency keys are forgotten after this long.
const REMEMBERED: Micros = 24 * 3600 * 1_000_000;
/// More idempotency keys than this are not kept: the oldest are forgotten first.
const MAX_REMEMBERED: usize = 1_000_000;
/// One commit forgets at most this many idempotency keys.
const FORGOTTEN_AT_ONCE: usize = 1000;
/// One commit of retention deletes at most this many stored batches.
const DELETED_AT_ONCE: usize = 10_000;
/// Retention that deleted this many bytes, or a quarter of what is left, is followed by a compaction.
const COMPACTED_BYTES: u64 = 64 << 20;
/// What a remembered request with a digest begins with. Those of earlier programs begin with their time, whose first byte is 0.
const WITH_DIGEST: u8 = 1;

type Answer<T> = SyncSender<Result<T, LogError>>;

/// What the committer is asked to do.
pub(super) enum Request {
    Append {
        topic: String,
        append: Append,
        answer: Answer<Appended>,
    },
    CreateTopic {
        topic: String,
        partitions: u32,
        answer: Answer<()>,
    },
    /// Answered with whether so much was deleted that a compaction is worth its while.
    Retain {
        topic: String,
        retention: Retention,
        keep_from: Positions,
        answer: Answer<bool>,
    },
}

impl Request {
    fn refuse(self, error: LogError) {
        // Whoever asked may have gone: nobody misses the answer then.
        let _ = match self {
            Self::Append { answer, .. } => answer.send(Err(error)).is_ok(),
            Self::CreateTopic { answer, .. } => answer.send(Err(error)).is_ok(),
            Self::Retain { answer, .. } => answer.send(Err(error)).is_ok(),
        };
    }
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    /// How many idempotency keys are stored.
    remembered: usize,
    /// No idempotency key is older than this one, by its age key.
    oldest: Vec<u8>,
    /// Payload bytes deleted since the last compaction.
    deleted_bytes: u64,
    /// Whether this process's epoch is stored.
    has_begun: bool,
}

/// Appends that are stored by one commit.
#[derive(Default)]
struct Group {
    bytes: usize,
    answers: Vec<(Answer<Appended>, Appended)>,
    /// By topic name and partition: the state after the commit, and what is added.
    added: BTreeMap<(String, Partition), Added>,
    /// By request key: what is to be remembered.
    named: BTreeMap<Vec<u8>, Named>,
}

/// A request that is to be remembered.
struct Named {
    offsets: BTreeMap<Partition, Range<Offset>>,
    digest: Option<Digest>,
    note: Vec<u8>,
}

struct Added {
    topic: u32,
    state: PartitionState,
    pieces: Vec<Piece>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let remembered = shared.store.read().as_ref().map_or(0, |store| store.prefix(b"a").count());
        Self { shared, remembered, oldest: b"a".to_vec(), deleted_bytes: 0, has_begun: false }
    }

    /// Makes changes durably and, if they are the process's first, its epoch with them.
    fn commit_in_epoch(&mut self, step: &str, mut changes: Vec<Change>) -> Result<(), CommitError> {
        let begun = (!self.has_begun).then(|| {
            let state = self.shared.state.lock();
            (state.epochs.len() as u64, state.next_epoch())
        });
        if let Some((number, epoch)) = &begun {
            changes.insert(0, (StoredEpoch::key(*number).into(), Some(epoch.encode().into())));
        }
        self.shared.commit(step, &changes)?;
        self.shared.state.lock().epochs.extend(begun.map(|(_, epoch)| epoch));
        self.has_begun = true;
        Ok(())
    }

    /// Serves requests until there is nobody left to make any.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        while let Ok(request) = requests.recv() {
            if let Err(error) = self.open() {
                request.refuse(error.into());
                continue;
            }
            let mut next = Some(request);
            let mut group = Group::default();
            while let Some(Request::Append { topic, append, answer }) = next {
                self.join(&mut group, topic, append, answer);
                next = if group.bytes < GROUP_BYTES { requests.try_recv().ok() } else { None };
            }
            self.commit(group);
            // Whoever asked may have gone: nobody misses the answer then.
            match next {
                Some(Request::CreateTopic { topic, partitions, answer }) => {
                    let _ = answer.send(self.create_topic(topic, partitions));
                }
                Some(Request::Retain { topic, retention, keep_from, answer }) => {
                    let _ = answer.send(self.retain(&topic, retention, &keep_from));
                }
                Some(Request::Append { .. }) | None => {}
            }
        }
    }

    /// Opens the database if that had failed, and takes what it holds for the truth.
    fn open(&mut self) -> Result<(), CommitError> {
        let mut store = self.shared.store.write();
        if store.is_some() {
            return Ok(());
        }
        let failed = |error| open_error(&self.shared.path, error);
        let opened = Store::open(&self.shared.path).map_err(failed)?;
        opened.sync().map_err(failed)?;
        *self.shared.state.lock() = State::load(&opened).map_err(failed)?;
        *store = Some(opened);
        drop(store);
        self.shared.grown.notify_all();
        *self = Self::new(self.shared.clone());
        Ok(())
    }

    /// Gives an append its offsets, or answers it at once if it can't be stored or is stored already.
    fn join(&self, group: &mut Group, topic: String, append: Append, answer: Answer<Appended>) {
        match self.place(group, &topic, append) {
            Ok(appended) => group.answers.push((answer, appended)),
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    fn place(&self, group: &mut Group, topic: &str, mut append: Append) -> Result<Appended, LogError> {
        let id = {
            let state = self.shared.state.lock();
            let known = state.topic(topic)?;
            append.parts.iter().try_for_each(|&(partition, _)| known.check(topic, partition))?;
            known.id
        };
        if let Some(Idempotency { key, digest, .. }) = &append.idempotency {
            let found = match group.named.get(&request_key(id, key)) {
                Some(Named { offsets, digest, note }) => Some((*digest, offsets.clone(), note.clone())),
                None => self.find_request(&request_key(id, key))?.map(|it| (it.digest, it.offsets, it.note)),
            };
            if let Some((first, offsets, note)) = found {
                check_same(topic, key, first, *digest)?;
                return Ok(Appended { offsets, repeated: Some(note) });
            }
        }

        let state = self.shared.state.lock();
        let known = state.topic(topic)?;
        let mut offsets = BTreeMap::<_, Range<Offset>>::new();
        let is_keyed = self.shared.options.keyed.contains(topic);
        for (partition, payloads) in append.parts {
            let stored = &known.partitions[partition as usize];
            let end = group.added.get(&(topic.to_owned(), partition)).map_or(stored.end, |added| added.state.end);
            let range = offsets.entry(partition).or_insert(end..end);
            if payloads.is_empty() {
                continue;
            }
            let added = group.added.entry((topic.to_owned(), partition)).or_insert_with(|| Added {
                topic: id,
                state: *stored,
                pieces: Vec::new(),
            });
            added.state.end += payloads.len() as u64;
            added.state.bytes += payloads.bytes().len() as u64;
            range.end = added.state.end;
            let keys = is_keyed.then(|| {
                let given = append.keys.remove(&partition).filter(|keys| keys.len() == payloads.len());
                given.unwrap_or_else(|| Payloads::from_iter(vec![""; payloads.len()]))
            });
            group.bytes += [Some(&payloads), keys.as_ref()].into_iter().flatten().map(room).sum::<usize>();
            added.pieces.push(Piece { payloads, keys });
        }
        let appended = Appended { offsets, repeated: None };
        if let Some(Idempotency { key, digest, note }) = append.idempotency {
            group.bytes += key.len() + note.len();
            group.named.insert(request_key(id, &key), Named { offsets: appended.offsets.clone(), digest, note });
        }
        Ok(appended)
    }

    /// Stores a group, publishes it to readers, and answers everyone.
    fn commit(&mut self, group: Group) {
        if group.answers.is_empty() {
            return;
        }
        let stored = if group.added.is_empty() && group.named.is_empty() {
            Ok(())
        } else {
            self.store(group.added, group.named, group.bytes as u64)
        };
        for (answer, appended) in group.answers {
            let _ = answer.send(stored.clone().map(|()| appended).map_err(LogError::from));
        }
    }

    fn store(
        &mut self,
        mut added: BTreeMap<(String, Partition), Added>,
        named: BTreeMap<Vec<u8>, Named>,
        bytes: u64,
    ) -> Result<(), CommitError> {
        self.shared.check_room(bytes)?;
        let now = self.shared.clock.now();
        let mut changes = Vec::new();
        for ((name, partition), Added { topic, state, pieces }) in &mut added {
            state.log_time = log_time(name, *partition, state.log_time, now);
            let records: usize = pieces.iter().map(|piece| piece.payloads.len()).sum();
            let (base, log_time) = (state.end - records as u64, state.log_time);
            let key = BatchKey { topic: *topic, partition: *partition, base, log_time, records: 0, bytes: 0 };
            pack(key, pieces, &mut changes);
        }
        let batches = changes.len();
        for ((_, partition), Added { topic, state, .. }) in &added {
            changes.push((PartitionState::key(*topic, *partition).into(), Some(state.encode().into())));
        }
        let (remembered, oldest) = self.remember(named, now, &mut changes)?;

        fail::fail_point!("log::before_commit");
        self.commit_in_epoch("storing appended records", changes)?;
        fail::fail_point!("log::after_commit");
        (self.remembered, self.oldest) = (remembered, oldest);
        self.shared.batches.fetch_add(batches as u64, Ordering::Relaxed);
        let mut state = self.shared.state.lock();
        for ((topic, partition), added) in added {
            if let Some(topic) = state.topics.get_mut(&topic) {
                topic.partitions[partition as usize] = added.state;
            }
        }
        drop(state);
        self.shared.grown.notify_all();
        Ok(())
    }

    fn find_request(&self, key: &[u8]) -> Result<Option<Remembered>, LogError> {
        let found = self.shared.with_store(|store| store.get(key)).map_err(|source| LogError::Backend {
            step: "looking up an idempotency key".to_owned(),
            source: source.into(),
        })?;
        let remembered = found.and_then(|value| Remembered::decode(&value));
        Ok(remembered.filter(|remembered| remembered.time > self.shared.clock.now().saturating_sub(REMEMBERED)))
    }

    /// Adds the changes that remember new idempotency keys and forget old ones. Returns how many there are then, and
    /// an age key that none of them is below.
    fn remember(
        &self,
        named: BTreeMap<Vec<u8>, Named>,
        now: Micros,
        changes: &mut Vec<Change>,
    ) -> Result<(usize, Vec<u8>), CommitError> {
        let (mut remembered, mut oldest) = (self.remembered, self.oldest.clone());
        let failed = |source| CommitError::Failed {
            step: "looking for idempotency keys to forget".to_owned(),
            source: Arc::new(source),
        };
        if remembered > 0 {
            let by_age = self.shared.with_store(|store| Ok(store.range(&self.oldest..b"b"))).map_err(failed)?;
            for guard in by_age.take(FORGOTTEN_AT_ONCE) {
                let age_key = guard.key().map_err(failed)?;
                let time = Fields(&age_key[1..]).u64().unwrap_or(0).cast_signed();
                if time > now.saturating_sub(REMEMBERED) && remembered + named.len() <= MAX_REMEMBERED {
                    break;
                }
                remembered -= 1;
                oldest = age_key.to_vec();
                // A name that is used again keeps its new entry.
                if !named.contains_key(&age_key[9..]) {
                    changes.push((age_key[9..].into(), None));
                }
                changes.push((age_key, None));
            }
        }
        remembered += named.len();
        for (key, Named { offsets, digest, note }) in named {
            let value = Remembered { time: now, offsets, digest, note }.encode();
            let age_key = age_key(now, &key);
            oldest = oldest.min(age_key.clone());
            changes.push((key.into(), Some(value.into())));
            changes.push((age_key.into(), Some(Vec::new().into())));
        }
        Ok((remembered, oldest))
    }

    fn create_topic(&mut self, topic: String, partitions: u32) -> Result<(), LogError> {
        let state = self.shared.state.lock();
        let mut created = state.topics.get(&topic).cloned().unwrap_or_else(|| {
            let id = state.topics.values().map(|topic| topic.id + 1).max().unwrap_or(0);
            Topic { id, partitions: Vec::new() }
        });
        let known = state.topics.contains_key(&topic);
        let has_epochs = !state.epochs.is_empty();
        drop(state);
        let existing = created.partitions.len() as u32;
        if existing > partitions {
            return Err(LogError::FewerPartitions { topic, existing, wanted: partitions });
        }
        // A log from before there were epochs has its first one as soon as it is used.
        if known && existing == partitions && has_epochs {
            return Ok(());
        }
        let value = [created.id.to_be_bytes(), partitions.to_be_bytes()].concat();
        let mut changes: Vec<Change> = vec![(topic_key(&topic).into(), Some(value.into()))];
        for partition in existing..partitions {
            let (key, state) = (PartitionState::key(created.id, partition), PartitionState::default());
            changes.push((key.into(), Some(state.encode().into())));
            created.partitions.push(state);
        }
        self.shared.check_room(0)?;
        self.commit_in_epoch(&format!("creating topic `{topic}`"), changes)?;
        self.shared.state.lock().topics.insert(topic, created);
        Ok(())
    }

    fn retain(&mut self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<bool, LogError> {
        let Topic { id, partitions } = self.shared.state.lock().topic(topic)?.clone();
        let now = self.shared.clock.now();
        let oldest = retention
            .age
            .map_or(Micros::MIN, |age| now.saturating_sub(Micros::try_from(age.as_micros()).unwrap_or(Micros::MAX)));
        let most_bytes = retention.bytes.unwrap_or(u64::MAX);
        for (partition, mut state) in (0..).zip(partitions) {
            let Some(&keep_from) = keep_from.get(&partition) else { continue };
            let ahead = self.taken_ahead(topic, id, partition, &state, now, oldest)?;
            loop {
                let before = state;
                let deletable = |state: &PartitionState, key: &BatchKey| {
                    key.end() <= keep_from && (key.log_time < oldest || key.end() <= ahead || state.bytes > most_bytes)
                };
                let deleted = self.delete_batches(topic, id, partition, &mut state, deletable)?;
                self.deleted_bytes += before.bytes - state.bytes;
                if deleted < DELETED_AT_ONCE {
                    break;
                }
            }
        }
        let state = self.shared.state.lock();
        let left: u64 = state.topics.values().flat_map(|topic| &topic.partitions).map(|held| held.bytes).sum();
        let compact = self.deleted_bytes > 0 && self.deleted_bytes >= COMPACTED_BYTES.min(left / 4);
        if compact {
            self.deleted_bytes = 0;
        }
        Ok(compact)
    }

    /// The end of what a partition begins with that was taken while the clock was ahead, and is older than what is too old.
    fn taken_ahead(
        &self,
        topic: &str,
        id: u32,
        partition: Partition,
        state: &PartitionState,
        now: Micros,
        oldest: Micros,
    ) -> Result<Offset, LogError> {
        let failed = |source: fjall::Error| LogError::Backend {
            step: format!("looking at the records of topic `{topic}` partition {partition}"),
            source: source.into(),
        };
        let (from, to) = (BatchKey::bound(id, partition, state.start), BatchKey::bound(id, partition, state.end));
        for guard in self.shared.with_store(|store| Ok(store.range(&from..&to))).map_err(failed)? {
            let Some(key) = BatchKey::decode(&guard.key().map_err(failed)?) else { break };
            if key.log_time <= now {
                return Ok(if key.log_time < oldest { key.base } else { state.start });
            }
        }
        Ok(state.start)
    }

    /// Deletes batches from a partition's start, as long as they may be, up to so many at once.
    fn delete_batches(
        &self,
        topic: &str,
        id: u32,
        partition: Partition,
        state: &mut PartitionState,
        deletable: impl Fn(&PartitionState, &BatchKey) -> bool,
    ) -> Result<usize, LogError> {
        let step = format!("deleting old records of topic `{topic}` partition {partition}");
        let failed = |source: fjall::Error| LogError::Backend { step: step.clone(), source: source.into() };
        let (from, to) = (BatchKey::bound(id, partition, state.start), BatchKey::bound(id, partition, state.end));
        let mut changes: Vec<Change> = vec![(Vec::new().into(), None)];
        let keys = self.shared.with_store(|store| Ok(store.range(&from..&to))).map_err(failed)?;
        for guard in keys.take(DELETED_AT_ONCE) {
            let stored = guard.key().map_err(failed)?;
            let Some(key) = BatchKey::decode(&stored).filter(|key| deletable(state, key)) else { break };
            state.start = key.end();
            state.bytes -= u64::from(key.bytes);
            changes.push((stored, None));
        }
        let deleted = changes.len() - 1;
        if deleted > 0 {
            changes[0] = (PartitionState::key(id, partition).into(), Some(state.encode().into()));
            fail::fail_point!("log::before_retain");
            self.shared.commit(&step, &changes)?;
            fail::fail_point!("log::after_retain");
            if let Some(topic) = self.shared.state.lock().topics.get_mut(topic) {
                topic.partitions[partition as usize] = *state;
            }
        }
        Ok(deleted)
    }
}

/// When the log takes a record, as its partition's last one was taken at `last`: never earlier, unless the clock was set back
/// by so much that waiting for it to catch up would be worse.
fn log_time(topic: &str, partition: Partition, last: Micros, now: Micros) -> Micros {
    const SET_BACK: Micros = 60_000_000;
    if now >= last.saturating_sub(SET_BACK) {
        return last.max(now);
    }
    let (last, now_is) = (written(last), written(now));
    tracing::warn!(
        topic,
        partition,
        last,
        now_is,
        "the clock was set back: the times of the topic's records go back, too"
    );
    now
}

/// The bytes that payloads take, with where each ends.
fn room(payloads: &Payloads) -> usize {
    payloads.bytes().len() + 4 * payloads.len()
}

/// What is stored under an idempotency key.
struct Remembered {
    time: Micros,
    offsets: BTreeMap<Partition, Range<Offset>>,
    digest: Option<Digest>,
    note: Vec<u8>,
}

impl Remembered {
    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        if let Some(digest) = &self.digest {
            value.push(WITH_DIGEST);
            value.extend(digest);
        }
        value.extend(self.time.to_be_bytes());
        value.extend((self.offsets.len() as u32).to_be_bytes());
        for (partition, range) in &self.offsets {
            value.extend(partition.to_be_bytes());
            value.extend(range.start.to_be_bytes());
            value.extend(range.end.to_be_bytes());
        }
        value.extend(&self.note);
        value
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (digest, value) = match value.strip_prefix(&[WITH_DIGEST]) {
            Some(value) => value.split_first_chunk().map(|(digest, rest)| (Some(*digest), rest))?,
            None => (None, value),
        };
        let mut fields = Fields(value);
        let time = fields.u64()?.cast_signed();
        let mut offsets = BTreeMap::new();
        for _ in 0..fields.u32()? {
            offsets.insert(fields.u32()?, fields.u64()?..fields.u64()?);
        }
        Some(Self { time, offsets, digest, note: fields.0.to_vec() })
    }
}
