//! The log on [Apache Kafka](https://kafka.apache.org), through librdkafka.
//!
//! **Reading.** A reader assigns partitions at the positions that its caller kept, never by a group, and sees only what
//! is committed. Offsets that no record has (compaction, transaction markers, aborted records) lie inside the coverage of
//! the batch around them. A partition that the broker says holds more, but delivers nothing, is named and read again
//! from its position; see [`KafkaOptions::stall`].
//!
//! **Appending.** Records go through an idempotent producer with `acks=all`. An append with an idempotency key is one
//! transaction that also holds the key, so it is stored whole or not at all, and once; see [`append`]. One without is
//! stored in parts if the brokers fail halfway, and says so.
//!
//! **Order.** Records of one append to one partition are in their order. Other producers' records may lie between them,
//! so the offsets that [`Appended`] names span the append's records, and perhaps others.
//!
//! **Time.** Topics that are created here have `message.timestamp.type=LogAppendTime`. Where a topic has its producers'
//! times instead, those are the log times, and a batch says when it was read as well: a producer's clock may show anything.
//!
//! **Identity.** A topic has one epoch, by the cluster's id and its own: made anew it is another topic; see [`super::lineage`].
//!
//! **Outputs** are written through [`outlet`], in transactions that also hold how far their source is done.
//!
//! **Retention** is the topic's own. [`Log::retain`] can delete by age, sooner than Kafka does; not by bytes.

mod append;
mod closing;
pub mod group;
mod identity;
pub mod outlet;
mod queue;
mod read;
mod stall;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};

use self::append::{Producer, Requests};
use self::outlet::Outlets;
use self::read::KafkaReader;
use self::stall::StallBook;
use super::lineage::{Epoch, Lineage};
use super::{Append, Appended, Log, LogError, LogReader, ReadLimit, Retention, Stalls};
use crate::clock::{Clock, Micros};
use crate::position::{Offset, Partition, Positions};

/// How long a broker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What brokers say that don't know of the same leader.
const LEADER_CHANGES: [RDKafkaErrorCode; 4] = [
    RDKafkaErrorCode::UnknownLeaderEpoch,
    RDKafkaErrorCode::FencedLeaderEpoch,
    RDKafkaErrorCode::NotLeaderForPartition,
    RDKafkaErrorCode::LeaderNotAvailable,
];

/// How long after that they are asked again.
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// For how long the topics and their partitions are taken as they were last seen.
const METADATA_AGE: Duration = Duration::from_secs(5);

/// How a Kafka cluster is used.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Where the cluster is: `host:port`, several with commas.
    pub brokers: String,
    /// Put before every topic's name, so that several projects can share a cluster.
    pub topic_prefix: String,
    /// How many brokers keep a copy of the topics that are created; the cluster's default if none.
    pub replication: Option<i32>,
    /// More properties of librdkafka, such as `security.protocol`; they go to every client.
    pub properties: BTreeMap<String, String>,
    /// A partition that holds records but delivers none for so long is read again from its position.
    pub stall: Duration,
}

impl KafkaOptions {
    /// A cluster with default settings.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic_prefix: String::new(),
            replication: None,
            properties: BTreeMap::new(),
            stall: Duration::from_secs(30),
        }
    }

    /// A client's settings: ours, and those that the user passes through.
    pub(crate) fn client(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "anabranch");
        // Who loses a broker should find another one within a moment, not within the 10 s of the default.
        config.set("reconnect.backoff.max.ms", "1000");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

/// The log on a Kafka cluster.
pub struct KafkaLog {
    cluster: Arc<Cluster>,
    producer: Producer,
    requests: Requests,
    clock: Arc<dyn Clock>,
    /// Why the last append failed; none if it didn't, or the cluster has answered since.
    failing: Arc<Mutex<Option<String>>>,
    /// Whether the cluster is being asked if it answers again.
    probing: Arc<AtomicBool>,
}

/// What readers and appends have in common.
pub(crate) struct Cluster {
    pub options: KafkaOptions,
    consumer: BaseConsumer,
    admin: AdminClient<DefaultClientContext>,
    topics: Mutex<Option<(Instant, BTreeMap<String, u32>)>>,
    stalls: StallBook,
}

pub(crate) fn backend(step: impl Into<String>, source: KafkaError) -> LogError {
    LogError::Backend { step: step.into(), source: source.into() }
}

/// A partition as Kafka numbers it.
pub(crate) fn numbered(partition: Partition) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

impl Cluster {
    pub fn open(options: KafkaOptions) -> Result<Self, LogError> {
        let step = |what: &str| format!("making a {what} of the Kafka cluster at {}", options.brokers);
        let config = options.client(&[("isolation.level", "read_committed")]);
        let consumer = config.create().map_err(|source| backend(step("consumer"), source))?;
        let admin = options.client(&[]).create().map_err(|source| backend(step("client"), source))?;
        Ok(Self { options, consumer, admin, topics: Mutex::new(None), stalls: StallBook::default() })
    }

    /// A topic's name in Kafka.
    pub fn full(&self, topic: &str) -> String {
        format!("{}{topic}", self.options.topic_prefix)
    }

    /// The topics and how many partitions each has, as seen at most `age` ago.
    fn topics(&self, age: Duration) -> Result<BTreeMap<String, u32>, LogError> {
        let mut seen = self.topics.lock();
        if let Some((at, topics)) = &*seen
            && at.elapsed() < age
        {
            return Ok(topics.clone());
        }
        let metadata = self.consumer.fetch_metadata(None, TIMEOUT);
        let metadata = metadata.map_err(|source| backend("listing the topics", source))?;
        let ours = metadata.topics().iter().filter(|topic| topic.error().is_none()).filter_map(|topic| {
            let name = topic.name().strip_prefix(&self.options.topic_prefix)?;
            Some((name.to_owned(), topic.partitions().len() as u32))
        });
        let topics: BTreeMap<_, _> = ours.filter(|(name, _)| !name.starts_with("__")).collect();
        *seen = Some((Instant::now(), topics.clone()));
        Ok(topics)
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, topic: &str) -> Result<u32, LogError> {
        if let Some(&partitions) = self.topics(METADATA_AGE)?.get(topic) {
            return Ok(partitions);
        }
        let topics = self.topics(Duration::ZERO)?;
        let shown = || topics.keys().filter(|name| !name.starts_with('_')).cloned().collect();
        let unknown = || LogError::UnknownTopic { topic: topic.to_owned(), existing: shown() };
        topics.get(topic).copied().ok_or_else(unknown)
    }

    pub fn check(&self, topic: &str, partitions: u32, partition: Partition) -> Result<(), LogError> {
        let unknown = || LogError::UnknownPartition { topic: topic.to_owned(), partition, partitions };
        (partition < partitions).then_some(()).ok_or_else(unknown)
    }

    /// The offsets at which partitions begin, end, or had come to by a time.
    pub fn offsets(
        &self,
        topic: &str,
        partitions: impl IntoIterator<Item = Partition>,
        at: At,
    ) -> Result<Positions, LogError> {
        let full = self.full(topic);
        let failed = |source| backend(format!("asking for the offsets of topic `{topic}`"), source);
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition_offset(&full, numbered(partition), at.asked()).map_err(failed)?;
        }
        if asked.count() == 0 {
            return Ok(Positions::new());
        }
        let begun = Instant::now();
        let answered = loop {
            let answered = self.consumer.offsets_for_times(asked.clone(), TIMEOUT).map_err(failed)?;
            let told = answered.elements().iter().try_for_each(|element| element.error());
            match told.map_err(|error| (error.rdkafka_error_code(), error)) {
                Ok(()) => break answered,
                // Brokers know for a moment of different leaders, such as when a cluster starts.
                Err((Some(code), _)) if LEADER_CHANGES.contains(&code) && begun.elapsed() < TIMEOUT => {
                    std::thread::sleep(LEADER_PAUSE);
                }
                Err((_, error)) => return Err(failed(error)),
            }
        };
        let mut offsets = Positions::new();
        for element in answered.elements() {
            let partition = element.partition().unsigned_abs();
            match element.offset() {
                rdkafka::Offset::Offset(offset) => offsets.insert(partition, offset.unsigned_abs()),
                // No record is that young.
                rdkafka::Offset::End if matches!(at, At::Time(_)) => None,
                other => {
                    let what = format!("the broker says {other:?} of partition {partition}");
                    return Err(LogError::Backend {
                        step: format!("asking for the offsets of topic `{topic}`"),
                        source: what.into(),
                    });
                }
            };
        }
        Ok(offsets)
    }

    /// What each partition holds.
    pub fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        let partitions = 0..self.partitions(topic)?;
        let starts = self.offsets(topic, partitions.clone(), At::Start)?;
        let ends = self.offsets(topic, partitions, At::End)?;
        let range = |(partition, end): (Partition, Offset)| {
            let start = starts.get(&partition).copied().unwrap_or(0);
            (partition, start..end.max(start))
        };
        Ok(ends.into_iter().map(range).collect())
    }

    /// Why a position can't be read.
    pub fn out_of_range(&self, topic: &str, partition: Partition, wanted: Offset) -> LogError {
        match self.bounds(topic) {
            Ok(mut bounds) => {
                let held = bounds.remove(&partition).unwrap_or(0..0);
                LogError::OutOfRange { topic: topic.to_owned(), partition, wanted, held }
            }
            Err(error) => error,
        }
    }

    fn create(&self, topic: &str, partitions: u32, properties: &[(&str, &str)]) -> Result<(), LogError> {
        let step = || format!("creating topic `{topic}`");
        let full = self.full(topic);
        let existing = self.topics(Duration::ZERO)?.get(topic).copied();
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
        let results = match existing {
            Some(existing) if existing == partitions => return Ok(()),
            Some(existing) if existing > partitions => {
                return Err(LogError::FewerPartitions { topic: topic.to_owned(), existing, wanted: partitions });
            }
            Some(_) => {
                block_on(self.admin.create_partitions(&[NewPartitions::new(&full, partitions as usize)], &options))
            }
            None => {
                let copies = TopicReplication::Fixed(self.options.replication.unwrap_or(-1));
                let new = NewTopic::new(&full, numbered(partitions), copies);
                let new = new.set("message.timestamp.type", "LogAppendTime");
                let new = properties.iter().fold(new, |new, (key, value)| new.set(key, value));
                block_on(self.admin.create_topics(&[new], &options))
            }
        };
        for result in results.map_err(|source| backend(step(), source))? {
            match result {
                // Another process was faster.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(backend(step(), KafkaError::AdminOp(code))),
            }
        }
        self.wait_for(topic, partitions)
    }

    /// Waits until every partition of a new topic has a leader.
    fn wait_for(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let there = self.topics(Duration::ZERO)?.get(topic).is_some_and(|&count| count >= partitions);
            match self.offsets(topic, 0..partitions, At::End) {
                Ok(_) if there => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                _ if Instant::now() > deadline => {
                    let step = format!("waiting for topic `{topic}`");
                    return Err(backend(step, KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable)));
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn delete_before(&self, topic: &str, before: &Positions) -> Result<(), LogError> {
        let step = || format!("deleting old records of topic `{topic}`");
        let failed = |source| backend(step(), source);
        let full = self.full(topic);
        let mut list = TopicPartitionList::new();
        for (&partition, &offset) in before {
            let offset = rdkafka::Offset::Offset(offset.cast_signed());
            list.add_partition_offset(&full, numbered(partition), offset).map_err(failed)?;
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
        let delete = || {
            let deleted = block_on(self.admin.delete_records(&list, &options)).map_err(failed)?;
            deleted.elements().iter().try_for_each(|element| element.error().map_err(failed))
        };
        delete().or_else(|_| {
            // The client may remember a leader that no longer is one.
            self.admin.inner().fetch_metadata(Some(&full), TIMEOUT).map_err(failed)?;
            delete()
        })
    }
}

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// The first that it holds.
    Start,
    /// The one after its last committed record.
    End,
    /// The first whose log time, in milliseconds since 1970, is not before this.
    Time(i64),
}

impl At {
    /// As `ListOffsets` has it, where a time goes into the field of the offset.
    fn asked(self) -> rdkafka::Offset {
        match self {
            Self::Start => rdkafka::Offset::Beginning,
            Self::End => rdkafka::Offset::End,
            Self::Time(time) => rdkafka::Offset::Offset(time.max(0)),
        }
    }
}

impl KafkaLog {
    /// Uses a cluster. Nothing is asked of it yet.
    pub fn open(options: KafkaOptions, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let cluster = Arc::new(Cluster::open(options)?);
        let producer = Producer::open(&cluster.options)?;
        let requests = Requests::new(cluster.clone(), clock.clone());
        Ok(Self { cluster, producer, requests, clock, failing: Arc::default(), probing: Arc::default() })
    }

    /// Asks in the background whether the cluster answers again, unless that is being done.
    fn probe(&self) {
        if self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (cluster, failing, probing) = (self.cluster.clone(), self.failing.clone(), self.probing.clone());
        std::thread::spawn(move || {
            if cluster.topics(Duration::ZERO).is_ok() {
                *failing.lock() = None;
            }
            probing.store(false, Ordering::Release);
        });
    }

    /// Where outputs write, which keep their positions under consumer groups whose names begin with `group`.
    pub fn outlets(&self, group: &str) -> Outlets {
        Outlets::new(self.cluster.clone(), group)
    }
}

impl Log for KafkaLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.cluster.create(topic, partitions, &[])
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        let topics = self.cluster.topics(METADATA_AGE)?.into_iter();
        Ok(topics.filter(|(name, _)| name != append::TOPIC).collect())
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        self.cluster.bounds(topic)
    }

    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        let partitions = 0..self.cluster.partitions(topic)?;
        let mark = self.cluster.mark(topic)?;
        let ends = self.cluster.offsets(topic, partitions, At::End)?;
        Ok(Lineage { epochs: vec![Epoch { mark, begins: Positions::new() }], ends })
    }

    fn taken(&self, topic: &str, at: &Positions) -> Result<BTreeMap<Partition, Micros>, LogError> {
        let held = self.bounds(topic)?;
        let is_held = |(p, offset): &(&Partition, &Offset)| held.get(p).is_some_and(|held| held.contains(offset));
        let mut left: Positions = at.iter().filter(is_held).map(|(&p, &offset)| (p, offset)).collect();
        let mut taken = BTreeMap::new();
        let (deadline, one) = (Instant::now() + TIMEOUT, ReadLimit { records: 1, bytes: 1 });
        let mut reader = if left.is_empty() { return Ok(taken) } else { self.reader(topic, &left)? };
        while !left.is_empty() {
            match reader.poll(one, Duration::from_millis(100))? {
                Some(batch) => {
                    let wanted = left.remove(&batch.partition);
                    // Compaction may have taken it.
                    let is_it = batch.offsets.first().is_some_and(|&first| wanted == Some(first));
                    taken.extend(batch.log_times.first().filter(|_| is_it).map(|&time| (batch.partition, time)));
                }
                None if Instant::now() > deadline => {
                    let step = format!("reading the last known records of topic `{topic}`");
                    return Err(backend(step, KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
                }
                None => {}
            }
        }
        Ok(taken)
    }

    fn first_after(&self, topic: &str, times: &BTreeMap<Partition, Micros>) -> Result<Positions, LogError> {
        let mut first = Positions::new();
        for (&partition, &time) in times {
            first.extend(self.cluster.offsets(topic, [partition], At::Time(time / 1_000 + 1))?);
        }
        Ok(first)
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let partitions = self.cluster.partitions(topic)?;
        append.parts.iter().try_for_each(|(partition, _)| self.cluster.check(topic, partitions, *partition))?;
        let appended = match &append.idempotency {
            Some(request) => self.requests.append(topic, &append, request),
            None => self.producer.append(&self.cluster, topic, &append),
        };
        match &appended {
            Err(LogError::Backend { step, source }) => *self.failing.lock() = Some(format!("{step} failed: {source}")),
            Err(_) => {}
            Ok(_) => *self.failing.lock() = None,
        }
        appended
    }

    /// An append that failed says no, until another one doesn't or the cluster answers.
    fn accepts(&self) -> Result<(), LogError> {
        let Some(why) = self.failing.lock().clone() else { return Ok(()) };
        self.probe();
        Err(LogError::Backend { step: "the last append".to_owned(), source: why.into() })
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        let partitions = self.cluster.partitions(topic)?;
        from.keys().try_for_each(|&partition| self.cluster.check(topic, partitions, partition))?;
        Ok(Box::new(KafkaReader::new(self.cluster.clone(), self.clock.clone(), topic, from)?))
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        let partitions = self.cluster.partitions(topic)?;
        let Some(age) = retention.age else { return Ok(()) };
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        // Brokers name the first record of a time or later. One of just that age is old enough.
        let time = (self.clock.now() / 1_000).saturating_sub(age) + 1;
        let young = self.cluster.offsets(topic, 0..partitions, At::Time(time))?;
        let held = self.cluster.bounds(topic)?;
        let before = keep_from.iter().filter_map(|(&partition, &keep)| {
            let held = held.get(&partition)?;
            let before = young.get(&partition).copied().unwrap_or(held.end).min(keep);
            (before > held.start).then_some((partition, before))
        });
        let before: Positions = before.collect();
        if before.is_empty() { Ok(()) } else { self.cluster.delete_before(topic, &before) }
    }

    fn stalls(&self) -> BTreeMap<(String, Partition), Stalls> {
        self.cluster.stalls.read(self.cluster.options.stall)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a request to the cluster, which another thread answers.
fn block_on<T>(request: impl Future<Output = KafkaResult<T>>) -> KafkaResult<T> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut request = pin!(request);
    loop {
        match request.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => std::thread::park(),
        }
    }
}
