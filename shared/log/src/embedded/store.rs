//! What is stored, and how: one fjall keyspace whose keys begin with a letter for their kind.
//!
//! | key | value |
//! |---|---|
//! | `v` | version of this layout |
//! | `t` name | a topic: its number, its count of partitions |
//! | `p` topic partition | a partition: start, end, last log time, stored payload bytes |
//! | `b` topic partition base log-time records bytes | a batch: version, CRC-32, where each payload ends, payloads; with keys, where each key ends, keys |
//! | `i` topic name | an idempotency key: when it was stored, offsets, note |
//! | `a` time `i`-key | nothing: idempotency keys by age |
//! | `e` number | an epoch: its uuid, then topic, partition and end of each partition when it began |
//!
//! Numbers are big-endian in keys, so that keys sort as their offsets do, and little-endian in batches. A batch's
//! size and time stand in its key, so that retention reads no values. Its CRC covers its key too.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fjall::{
    CompressionType, Database, Guard, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError, PersistMode,
    Slice,
};
use uuid::Uuid;

use super::damage::{self, Damage};
use super::state::{Fields, PartitionState};
use crate::Payloads;
use crate::clock::Micros;
use crate::position::{Offset, Partition};

/// A stored batch holds at most this many payload bytes, unless a single record is larger.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// A stored batch holds at most this many records.
const MAX_BATCH_RECORDS: usize = 1 << 16;
/// Values from this size on are written to blob files once, and not again by compactions.
const BLOB_BYTES: u32 = 512;
/// So many files of the log are kept open: fjall's own 900 are most of what a process may open on many machines.
const CACHED_FILES: usize = 256;
const LAYOUT: u8 = 1;
/// The version of a batch that has its records' keys as well.
const KEYED: u8 = 2;
const HEADER_BYTES: usize = 5;
const BATCH_KEY_BYTES: usize = 33;

/// One change to what is stored; no value removes the key.
pub(super) type Change = (Slice, Option<Slice>);

/// The fjall database.
pub(super) struct Store {
    db: Database,
    keyspace: Keyspace,
}

impl Store {
    pub(super) fn open(path: &Path) -> fjall::Result<Self> {
        let ends = damage::check(path)?;
        // Compressed blobs take a third of the room (JSON) for a quarter of the scan's speed. The journal is short-lived,
        // and compressing it would only make appends wait.
        let db = Database::builder(path)
            .journal_compression(CompressionType::None)
            .max_cached_files(Some(CACHED_FILES))
            .open()?;
        let blobs = KvSeparationOptions::default().separation_threshold(BLOB_BYTES).compression(CompressionType::Lz4);
        let options = || KeyspaceCreateOptions::default().with_kv_separation(Some(blobs));
        let keyspace = db.keyspace("log", options)?;
        let store = Self { db, keyspace };
        for (key, end) in ends {
            let held = store.get(&key)?.and_then(|state| PartitionState::decode(&state)).unwrap_or_default().end;
            if held < end {
                let path = path.display();
                let what =
                    format!("a partition ends at offset {end} by the journals in `{path}`, and opened at {held}");
                return Err(Damage::error(what).into());
            }
        }
        match store.get(b"v")? {
            None => store.write(&[(b"v".into(), Some([LAYOUT].into()))])?,
            Some(layout) if layout[..] == [LAYOUT] => {}
            Some(layout) => {
                let unknown = std::io::Error::other(format!("its layout has version {layout:?}, known is {LAYOUT}"));
                return Err(fjall::Error::Io(unknown));
            }
        }
        Ok(store)
    }

    /// Makes all changes durably, or none. No key may be changed twice.
    pub(super) fn write(&self, changes: &[Change]) -> fjall::Result<()> {
        self.wait_for_flushes(2)?;
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.keyspace, key.clone(), value.clone()),
                None => batch.remove(&self.keyspace, key.clone()),
            }
        }
        batch.commit()
    }

    /// Makes durable what an earlier process may have left to the operating system.
    pub(super) fn sync(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::SyncAll)
    }

    pub(super) fn get(&self, key: &[u8]) -> fjall::Result<Option<Slice>> {
        self.keyspace.get(key)
    }

    pub(super) fn prefix(&self, prefix: &[u8]) -> impl DoubleEndedIterator<Item = Guard> + use<> {
        self.keyspace.prefix(prefix)
    }

    pub(super) fn range(&self, range: Range<&[u8]>) -> impl DoubleEndedIterator<Item = Guard> + use<> {
        self.keyspace.range(range)
    }

    /// Bytes acknowledged and in the journal that have yet to be written a second time, to tables and blob files.
    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.db.write_buffer_size()
    }

    /// Gives the room of removed batches back to the file system.
    pub(super) fn compact(&self) -> fjall::Result<()> {
        // A removal takes effect in compactions only when something has been written after it.
        self.write(&[(b"v".into(), Some([LAYOUT].into()))])?;
        self.flush()?;
        // The first drops the keys and finds out which blobs nobody needs then; the second drops these.
        self.keyspace.major_compact()?;
        self.keyspace.major_compact()
    }

    /// Moves what is in memory to tables and blob files.
    pub(super) fn flush(&self) -> fjall::Result<()> {
        self.keyspace.rotate_memtable()?;
        self.wait_for_flushes(0)
    }

    /// The size of all files.
    #[cfg(test)]
    pub(super) fn disk_bytes(&self) -> fjall::Result<u64> {
        self.db.disk_space()
    }

    /// Waits until at most so many memtables are yet to be flushed. fjall's own wait, at four of them, would never end
    /// after its flushing thread failed: this one then says so.
    fn wait_for_flushes(&self, most: usize) -> fjall::Result<()> {
        while self.keyspace.sealed_memtable_count() > most {
            self.db.persist(PersistMode::Buffer)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether what was read can't be what was written.
pub(super) fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => {
            error.kind() == ErrorKind::UnexpectedEof
        }
        fjall::Error::Poisoned | fjall::Error::Locked => false,
        _ => true,
    }
}

/// Whether an error says that the file system is full.
pub(super) fn is_full(error: &fjall::Error) -> bool {
    let (fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error))) = error else { return false };
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

pub(super) fn topic_key(name: &str) -> Vec<u8> {
    [b"t", name.as_bytes()].concat()
}

pub(super) fn request_key(topic: u32, name: &str) -> Vec<u8> {
    [b"i", &topic.to_be_bytes()[..], name.as_bytes()].concat()
}

/// The key under which an idempotency key is found by age. Times before 1970 sort as 1970.
pub(super) fn age_key(time: Micros, request_key: &[u8]) -> Vec<u8> {
    [b"a", &time.max(0).to_be_bytes()[..], request_key].concat()
}

/// A process's time with the log, from its first change on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredEpoch {
    pub(super) id: Uuid,
    /// Where each partition of each topic ended.
    pub(super) begins: BTreeMap<(u32, Partition), Offset>,
}

impl StoredEpoch {
    pub(super) fn key(number: u64) -> Vec<u8> {
        [b"e", &number.to_be_bytes()[..]].concat()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = self.id.as_bytes().to_vec();
        for ((topic, partition), end) in &self.begins {
            value.extend(topic.to_be_bytes());
            value.extend(partition.to_be_bytes());
            value.extend(end.to_be_bytes());
        }
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk()?;
        let mut fields = Fields(rest);
        let mut begins = BTreeMap::new();
        while !fields.0.is_empty() {
            begins.insert((fields.u32()?, fields.u32()?), fields.u64()?);
        }
        Some(Self { id: Uuid::from_bytes(*id), begins })
    }
}

/// A stored batch's key: where it is and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchKey {
    pub(super) topic: u32,
    pub(super) partition: Partition,
    pub(super) base: Offset,
    pub(super) log_time: Micros,
    pub(super) records: u32,
    pub(super) bytes: u32,
}

impl BatchKey {
    /// The key, or a bound between keys, at which the batches from an offset on begin.
    pub(super) fn bound(topic: u32, partition: Partition, offset: Offset) -> Vec<u8> {
        [b"b", &topic.to_be_bytes()[..], &partition.to_be_bytes(), &offset.to_be_bytes()].concat()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut key = Self::bound(self.topic, self.partition, self.base);
        key.extend(self.log_time.to_be_bytes());
        key.extend(self.records.to_be_bytes());
        key.extend(self.bytes.to_be_bytes());
        key
    }

    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let mut fields = Fields(key.get(1..BATCH_KEY_BYTES)?);
        let (topic, partition, base) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let log_time = fields.u64()?.cast_signed();
        Some(Self { topic, partition, base, log_time, records: fields.u32()?, bytes: fields.u32()? })
    }

    pub(super) fn end(&self) -> Offset {
        self.base + u64::from(self.records)
    }
}

/// A stored batch, read and found whole.
#[derive(Debug, Clone)]
pub(super) struct StoredBatch {
    pub(super) key: BatchKey,
    pub(super) payloads: Section,
    /// The records' keys, if they were kept.
    pub(super) keys: Option<Section>,
}

/// Something of each record: where each ends, and the bytes of all.
#[derive(Debug, Clone)]
pub(super) struct Section {
    ends: Bytes,
    bytes: Bytes,
}

impl StoredBatch {
    /// Checks a value that was read; the error says what is wrong with it.
    pub(super) fn decode(key: BatchKey, value: Bytes) -> Result<Self, String> {
        let header = value.get(..HEADER_BYTES).ok_or_else(|| format!("it has only {} bytes", value.len()))?;
        if ![LAYOUT, KEYED].contains(&header[0]) {
            return Err(format!("its layout has version {}, known are {LAYOUT} and {KEYED}", header[0]));
        }
        let stored = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let actual = checksum(&key.encode(), &value[HEADER_BYTES..]);
        if stored != actual {
            return Err(format!("its CRC is {actual:08x} where {stored:08x} is due"));
        }
        let mut rest = value.slice(HEADER_BYTES..);
        let payloads = Section::take(&mut rest, key.records);
        let keys = if header[0] == KEYED { Some(Section::take(&mut rest, key.records)) } else { None };
        let (Some(payloads), None | Some(Some(_)), true) = (payloads, &keys, rest.is_empty()) else {
            return Err(format!("its {} bytes aren't those of {} records", value.len(), key.records));
        };
        Ok(Self { key, payloads, keys: keys.flatten() })
    }
}

impl Section {
    /// Takes the section of so many records off the front.
    fn take(from: &mut Bytes, records: u32) -> Option<Self> {
        let mut take = |length: usize| (length <= from.len()).then(|| from.split_to(length));
        let mut section = Self { ends: take(4 * records as usize)?, bytes: Bytes::new() };
        section.bytes = take(section.end_of(records as usize))?;
        Some(section)
    }

    /// Where what belongs to the first `records` ends.
    pub(super) fn end_of(&self, records: usize) -> usize {
        let Some(last) = records.checked_sub(1) else { return 0 };
        let field = &self.ends[4 * last..4 * last + 4];
        u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize
    }

    /// Where what belongs to each of some records ends, counted from the first of them.
    pub(super) fn ends(&self, records: Range<usize>) -> impl Iterator<Item = usize> {
        let start = self.end_of(records.start);
        let fields = self.ends[4 * records.start..4 * records.end].chunks_exact(4);
        fields.map(move |end| u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize - start)
    }

    /// The bytes of some records.
    pub(super) fn bytes(&self, records: Range<usize>) -> Bytes {
        self.bytes.slice(self.end_of(records.start)..self.end_of(records.end))
    }
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(body);
    crc.finalize()
}

/// Records to be stored.
pub(super) struct Piece {
    pub(super) payloads: Payloads,
    /// Their keys, if those are kept: then of every piece of a partition.
    pub(super) keys: Option<Payloads>,
}

/// Packs records into as few batches as their greatest size allows, from a base offset on.
pub(super) fn pack(mut key: BatchKey, pieces: &[Piece], changes: &mut Vec<Change>) {
    let mut runs: Vec<(&Piece, Range<usize>)> = Vec::new();
    let (mut records, mut bytes) = (0, 0);
    let mut seal = |runs: &mut Vec<_>, records: &mut usize, bytes: &mut usize| {
        if *records > 0 {
            (key.records, key.bytes) = (*records as u32, *bytes as u32);
            changes.push(encode_batch(&key, runs));
            key.base = key.end();
        }
        runs.clear();
        (*records, *bytes) = (0, 0);
    };
    for piece in pieces {
        let payloads = &piece.payloads;
        let mut first = 0;
        while first < payloads.len() {
            let start = start_of(payloads, first);
            let fits = |&end: &u32| end as usize - start <= MAX_BATCH_BYTES.saturating_sub(bytes);
            let most = &payloads.ends()[first..payloads.len().min(first + MAX_BATCH_RECORDS - records)];
            let taken = most.partition_point(fits).max(usize::from(records == 0));
            if taken > 0 {
                let run = first..first + taken;
                records += taken;
                bytes += start_of(payloads, run.end) - start;
                first = run.end;
                runs.push((piece, run));
            }
            if first < payloads.len() {
                seal(&mut runs, &mut records, &mut bytes);
            }
        }
    }
    seal(&mut runs, &mut records, &mut bytes);
}

fn start_of(payloads: &Payloads, record: usize) -> usize {
    record.checked_sub(1).map_or(0, |before| payloads.ends()[before] as usize)
}

fn encode_batch(key: &BatchKey, runs: &[(&Piece, Range<usize>)]) -> Change {
    let mut value = Vec::with_capacity(HEADER_BYTES + 4 * key.records as usize + key.bytes as usize);
    let is_keyed = runs.first().is_some_and(|(piece, _)| piece.keys.is_some());
    value.extend([if is_keyed { KEYED } else { LAYOUT }, 0, 0, 0, 0]);
    write_section(&mut value, runs.iter().map(|(piece, run)| (&piece.payloads, run)));
    write_section(&mut value, runs.iter().filter_map(|(piece, run)| Some((piece.keys.as_ref()?, run))));
    let key = key.encode();
    let crc = checksum(&key, &value[HEADER_BYTES..]);
    value[1..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    (key.into(), Some(value.into()))
}

fn write_section<'a>(value: &mut Vec<u8>, runs: impl Iterator<Item = (&'a Payloads, &'a Range<usize>)> + Clone) {
    let mut written = 0;
    for (payloads, run) in runs.clone() {
        let start = start_of(payloads, run.start) as u32;
        for end in &payloads.ends()[run.clone()] {
            value.extend((written + end - start).to_le_bytes());
        }
        written += start_of(payloads, run.end) as u32 - start;
    }
    for (payloads, run) in runs {
        value.extend_from_slice(&payloads.bytes()[start_of(payloads, run.start)..start_of(payloads, run.end)]);
    }
}
