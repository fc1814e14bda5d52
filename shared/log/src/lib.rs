//! The event log: topics of partitions of records, each record with an offset.
//!
//! What every adapter promises:
//! - **Order.** Within a partition, records are read in the order of their offsets. Across partitions there is no order.
//! - **Durability.** [`Log::append`] returns after the records would survive the loss of power. All parts of one
//!   append are stored, or none is; on Kafka that holds for those with an idempotency key, and an error of another one
//!   says that parts may be stored.
//! - **Coverage.** A [`Batch`] names the half-open offset range that it speaks for. Consecutive batches of a partition
//!   join without a gap: where the log itself has none at some offsets (compaction, transaction markers), they lie
//!   inside a batch's range although no record has them.
//! - **Restart.** A reader starts at the positions that its caller kept together with its own state. The log keeps no
//!   position for anybody that correctness rests on.
//! - **Retention.** If a wanted offset has been deleted, reading fails with [`LogError::OutOfRange`] and names the
//!   range; it never goes on at another offset by itself.
//! - **Identity.** A log can be told from every other, and from an older copy of itself, by its [`lineage`](Log::lineage).
//! - **Time.** Each record carries the time at which the log took it, never earlier than that of the record before,
//!   unless a Kafka topic has its producers' times (then a batch says when it was read as well), or the clock was set back by more
//!   than a minute, which the embedded log says.

pub mod anchored;
pub mod clock;
pub mod embedded;
pub mod kafka;
pub mod key;
pub mod lineage;
pub mod position;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use self::lineage::{Lineage, Mark, Tails, check_tails};
use crate::clock::Micros;
use crate::position::{Coverage, Offset, Partition, Positions, TopicPartition};

/// What went wrong in the log, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no such topic: create it, or correct the name.
    #[error("no topic named `{topic}`; there are {existing:?}")]
    UnknownTopic {
        /// The name asked for.
        topic: String,
        /// The names that exist.
        existing: Vec<String>,
    },
    /// There is no such partition.
    #[error("topic `{topic}` has {partitions} partitions; partition {partition} doesn't exist")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: Partition,
        /// How many there are.
        partitions: u32,
    },
    /// Wanted offsets are gone, by retention: what they held is lost to this reader.
    #[error("topic `{topic}` partition {partition}: offsets {wanted}.. are wanted, but the log holds {held:?} only")]
    OutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The offset asked for.
        wanted: Offset,
        /// What the log holds.
        held: Range<Offset>,
    },
    /// There is no room to store records: free some, then try again. Reading goes on.
    #[error("no room in `{path}` to store records: {free_bytes} bytes free, {reserve_bytes} kept in reserve")]
    StorageFull {
        /// Where the log is stored.
        path: String,
        /// What the file system has left.
        free_bytes: u64,
        /// What has to stay free.
        reserve_bytes: u64,
    },
    /// A topic exists with more partitions than asked for.
    #[error("topic `{topic}` has {existing} partitions and can't be reduced to {wanted}")]
    FewerPartitions {
        /// The topic.
        topic: String,
        /// How many it has.
        existing: u32,
        /// How many were asked for.
        wanted: u32,
    },
    /// What is stored can't be understood: it was damaged, or written by a newer version.
    #[error("topic `{topic}` partition {partition} at offset {offset}: the stored batch is damaged: {what}")]
    Damaged {
        /// The topic.
        topic: String,
        /// The partition.
        partition: Partition,
        /// Its base offset.
        offset: Offset,
        /// What doesn't fit.
        what: String,
    },
    /// Somebody else writes under this name by now; what was written before stands.
    #[error("`{writer}` was taken over by somebody else")]
    Fenced {
        /// The name.
        writer: String,
    },
    /// An idempotency key came with another request than the first time; nothing of this one is stored.
    #[error("idempotency key `{key}` came before with other records for topic `{topic}`")]
    KeyReused {
        /// The topic.
        topic: String,
        /// The key.
        key: String,
    },
    /// The topic doesn't take such records, however often they are sent.
    #[error("topic `{topic}` refuses the records; its configuration on the brokers says what it takes")]
    Refused {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record is larger than its topic takes.
    #[error("topic `{topic}` doesn't take a record of {bytes} bytes; raise its `max.message.bytes`, or select less")]
    TooLarge {
        /// The topic.
        topic: String,
        /// How long the largest record is.
        bytes: usize,
    },
    /// The log that is there isn't the one that offsets are of which were kept.
    #[error(transparent)]
    OtherLog(Box<OtherLog>),
    /// The storage or the broker failed.
    #[error("{step} failed")]
    Backend {
        /// What was tried, such as "append to topic `tweets`".
        step: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
}

/// The log that is there isn't the one that offsets are of which were kept, so none of them can be relied on: say what is so.
#[derive(Debug, thiserror::Error)]
#[error(
    "topic `{topic}` isn't what {carrier} is of: {misfit}; `anabranch log adopt {table}` goes on behind what is archived, \
     `anabranch log reset {table}` begins anew, both say first what they will do"
)]
pub struct OtherLog {
    /// The topic.
    pub topic: String,
    /// The table that reads it.
    pub table: String,
    /// What the offsets were kept with.
    pub carrier: String,
    /// Why they don't fit.
    pub misfit: lineage::Misfit,
}

impl LogError {
    /// That a topic isn't what was kept in `carrier`.
    fn other(topic: &str, table: &str, carrier: &str, misfit: lineage::Misfit) -> Self {
        let [topic, table, carrier] = [topic, table, carrier].map(str::to_owned);
        Self::OtherLog(Box::new(OtherLog { topic, table, carrier, misfit }))
    }

    /// The offsets that retention has taken although they are wanted, if that is what is wrong.
    pub fn lost(&self) -> Coverage<TopicPartition> {
        match self {
            Self::OutOfRange { topic, partition, wanted, held } if *wanted < held.start => {
                Coverage::from_iter([(TopicPartition::new(topic.as_str(), *partition), *wanted..held.start)])
            }
            _ => Coverage::new(),
        }
    }
}

/// Payloads one after the other in one buffer, so that a batch costs a handful of allocations, not one per record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payloads {
    bytes: Bytes,
    ends: Vec<u32>,
}

impl Payloads {
    /// Payloads in `bytes`, the i-th of which ends before `ends[i]`. `None` unless the ends rise to `bytes.len()`.
    pub fn new(bytes: Bytes, ends: Vec<u32>) -> Option<Self> {
        let rising = ends.is_sorted() && ends.last().map_or(0, |&end| end as usize) == bytes.len();
        rising.then_some(Self { bytes, ends })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The i-th payload. Panics if there is none.
    pub fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.bytes[start..self.ends[i] as usize]
    }

    /// All payloads in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The bytes of all payloads, one after the other.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where each payload ends in [`Payloads::bytes`].
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Payloads {
    fn from_iter<I: IntoIterator<Item = T>>(payloads: I) -> Self {
        let mut builder = PayloadsBuilder::default();
        payloads.into_iter().for_each(|payload| builder.push(payload.as_ref()));
        builder.finish()
    }
}

/// Payloads in the making.
#[derive(Debug, Default)]
pub struct PayloadsBuilder {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl PayloadsBuilder {
    /// Adds a payload.
    pub fn push(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.ends.push(u32::try_from(self.bytes.len()).expect("a batch of payloads is below 4 GiB"));
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All that was added.
    pub fn finish(self) -> Payloads {
        Payloads { bytes: self.bytes.into(), ends: self.ends }
    }
}

/// What a reader brings along beside each record's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// Its key.
    pub keys: bool,
    /// Its headers.
    pub headers: bool,
}

/// Consecutive records of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The partition they come from.
    pub partition: Partition,
    /// The offsets that this batch speaks for.
    pub coverage: Range<Offset>,
    /// Each record's offset: rising, inside `coverage`.
    pub offsets: Vec<Offset>,
    /// When the log took each record.
    pub log_times: Vec<Micros>,
    /// The reader's clock, if `log_times` are the producers', which may be anything.
    pub read_at: Option<Micros>,
    /// Each record's bytes.
    pub payloads: Payloads,
    /// Each record's key, if the reader was asked for keys; empty where there is none.
    pub keys: Option<Payloads>,
    /// Each record's headers as the text of a JSON object, if the reader was asked for them; empty where there are none.
    pub headers: Option<Payloads>,
    /// The end of the partition when the batch was read: the reader is caught up if `coverage.end` has reached it.
    pub log_end: Offset,
}

/// How much one read may return. A single record larger than `bytes` is returned by itself.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// Records at most.
    pub records: usize,
    /// Payload bytes at most.
    pub bytes: usize,
}

/// Records to be stored as one.
#[derive(Debug, Default)]
pub struct Append {
    /// The records for each partition; a partition may be named once.
    pub parts: Vec<(Partition, Payloads)>,
    /// The keys of a partition's records, one for each, if they have any; an empty one is none. On Kafka compaction goes by
    /// them, and an empty record with a key is stored as a null, which deletes those before it. The embedded log keeps the keys of
    /// the topics that it is told to.
    pub keys: BTreeMap<Partition, Payloads>,
    /// Makes a retry safe: while the key is remembered, the same append is answered with the first one's outcome.
    pub idempotency: Option<Idempotency>,
}

/// A SHA-256.
pub type Digest = [u8; 32];

/// A client's name for one request, with what is to be remembered beside it.
#[derive(Debug, Clone, Default)]
pub struct Idempotency {
    /// The client's key, unique within the topic.
    pub key: String,
    /// What tells this request from others: the key with another digest is [`LogError::KeyReused`]. A request without one, now or
    /// the first time, is taken for the same.
    pub digest: Option<Digest>,
    /// Kept with the key in the same commit and returned to a retry.
    pub note: Vec<u8>,
}

/// Refuses a key that came with another digest the first time.
pub fn check_same(topic: &str, key: &str, first: Option<Digest>, now: Option<Digest>) -> Result<(), LogError> {
    match (first, now) {
        (Some(first), Some(now)) if first != now => {
            Err(LogError::KeyReused { topic: topic.to_owned(), key: key.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Where an append's records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The offsets given to each part.
    pub offsets: BTreeMap<Partition, Range<Offset>>,
    /// Set if the idempotency key was known already, in which case nothing was stored now: the first request's note.
    pub repeated: Option<Vec<u8>>,
}

/// What is deleted from the start of each partition of a topic, and when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Records older than this, by the log's time.
    pub age: Option<Duration>,
    /// The oldest records, while a partition holds more than this.
    pub bytes: Option<u64>,
}

/// How often a partition held records and delivered none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How often it was therefore read again, since the process started.
    pub count: u64,
    /// Whether it has delivered nothing since.
    pub stands: bool,
}

/// The event log.
pub trait Log: Send + Sync {
    /// Creates a topic, or adds partitions to it. A topic that has as many already is left as it is.
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError>;

    /// The topics and how many partitions each has.
    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError>;

    /// The offsets that each partition holds, from its start to its end.
    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError>;

    /// What the log knows of itself, as of a topic: which offsets are its own. No epochs, of a log that has no marks.
    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        let ends = self.bounds(topic)?.into_iter().map(|(partition, held)| (partition, held.end)).collect();
        Ok(Lineage { epochs: Vec::new(), ends })
    }

    /// Whether the offsets up to `reached` that were kept in `carrier`, with this mark beside them, are this log's. Returns the
    /// mark to be noted from now on.
    fn verify(
        &self,
        topic: &str,
        carrier: &str,
        mark: Option<&Mark>,
        reached: &Positions,
    ) -> Result<Option<Mark>, LogError> {
        let lineage = self.lineage(topic)?;
        lineage.check(mark, reached).map_err(|misfit| LogError::other(topic, "TABLE", carrier, misfit))?;
        Ok(lineage.newest().cloned())
    }

    /// When the log took the records at these offsets, of those that it still has. None of a log whose marks tell copies apart.
    fn taken(&self, _: &str, _: &Positions) -> Result<BTreeMap<Partition, Micros>, LogError> {
        Ok(BTreeMap::new())
    }

    /// The first offset of each partition whose record was taken later, if the log can look that up.
    fn first_after(&self, _: &str, _: &BTreeMap<Partition, Micros>) -> Result<Positions, LogError> {
        Ok(Positions::new())
    }

    /// Whether the last records that were kept in `carrier` are those that the log has there.
    fn verify_tails(&self, topic: &str, carrier: &str, tails: &Tails) -> Result<(), LogError> {
        let at = tails.iter().map(|(&partition, tail)| (partition, tail.offset)).collect();
        let taken = self.taken(topic, &at)?;
        check_tails(tails, &taken).map_err(|misfit| LogError::other(topic, "TABLE", carrier, misfit))
    }

    /// Stores records durably and says where. Blocks until they are stored; concurrent appends share one sync.
    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError>;

    /// A reader of the given partitions of a topic, each from its position.
    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError>;

    /// Applies retention to the partitions of a topic that `keep_from` names, but keeps every record at or after it.
    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError>;

    /// Whether an append of a record would be stored, as far as can be said without waiting.
    fn accepts(&self) -> Result<(), LogError> {
        Ok(())
    }

    /// The stalls of each partition of each topic that this process has read; none of a log that knows no stalls.
    fn stalls(&self) -> BTreeMap<(String, Partition), Stalls> {
        BTreeMap::new()
    }
}

/// Reads some partitions of a topic, in turn.
pub trait LogReader: Send {
    /// The next batch of one of the partitions, fairly among those that have records; `None` if `wait` passed and
    /// there was none, that is, if the reader is caught up with every partition.
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError>;

    /// Where each partition will be read next.
    fn positions(&self) -> Positions;

    /// From now on batches bring this along, if the log has it. Unless asked they bring nothing.
    fn bring(&mut self, _: Extras) {}
}
