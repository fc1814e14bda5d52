//! Where a stream is written that is made of another topic's records: records to one topic, and beside them how far the
//! partition that they are made of is done.
//!
//! That position is an offset of a consumer group of the stream's own, which has no members. What holds after a failure
//! is a matter of order ([`Commit`]).
//!
//! A transactional producer's name is that of the stream and the partition. Whoever opens an outlet takes the name over,
//! which ends the transaction of the one before and fences it off: so the position that is read then is the last one.
//! An outlet whose records may be there again fences nobody, as it can do no harm but to repeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;

use super::append::{self, DELIVERY, Deliveries, Kafka, TRANSACTION_MILLIS};
use super::closing::Closing;
use super::{At, Cluster, TIMEOUT, backend, numbered};
use crate::position::{Offset, Partition, Positions};
use crate::{LogError, Payloads};

/// The records of each partition of a topic.
pub type Parts = Vec<(Partition, Payloads)>;

/// Their keys, one for each record; an empty one is none.
pub type Keys = BTreeMap<Partition, Payloads>;

/// When a position is stored, by which it is decided what holds of the records after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// In one transaction with the records: each is there once, to readers of committed records.
    WithRecords,
    /// After the records: none is lost; some may be there again.
    AfterRecords,
    /// Before the records: none is there twice; some may be lost.
    BeforeRecords,
}

/// A stream of records that are made of a topic's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// The topic that it is made of.
    pub from: String,
    /// The topic that it is written to.
    pub to: String,
    /// When its positions are stored.
    pub commit: Commit,
}

/// Makes the brokers forget records that one of the same key follows.
const COMPACTED: &[(&str, &str)] = &[("cleanup.policy", "compact")];

/// The outlets of a cluster.
#[derive(Clone)]
pub struct Outlets {
    cluster: Arc<Cluster>,
    group: String,
    /// What speaks for each stream's group.
    groups: Arc<Mutex<BTreeMap<String, Arc<BaseConsumer>>>>,
}

impl Outlets {
    pub(super) fn new(cluster: Arc<Cluster>, group: &str) -> Self {
        Self { cluster, group: group.to_owned(), groups: Arc::default() }
    }

    /// The consumer group that holds a stream's positions.
    pub fn group(&self, stream: &str) -> String {
        format!("{}.output.{stream}", self.group)
    }

    fn client(&self, stream: &str) -> Result<Arc<BaseConsumer>, LogError> {
        let mut groups = self.groups.lock();
        if let Some(client) = groups.get(stream) {
            return Ok(client.clone());
        }
        let group = self.group(stream);
        let settings = [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            // So that a transaction that is just ending is waited for.
            ("isolation.level", "read_committed"),
        ];
        let client = self.cluster.options.client(&settings).create();
        let client = Arc::new(client.map_err(|source| backend(format!("making a client of group `{group}`"), source))?);
        groups.insert(stream.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// Up to where the partitions are done of the topic that a stream is made of, but for those that were never begun.
    pub fn positions(&self, stream: &str, from: &str) -> Result<Positions, LogError> {
        let partitions = self.cluster.partitions(from)?;
        self.committed((stream, from), &*self.client(stream)?, 0..partitions)
    }

    fn committed(
        &self,
        (stream, from): (&str, &str),
        client: &BaseConsumer,
        partitions: impl IntoIterator<Item = Partition>,
    ) -> Result<Positions, LogError> {
        let failed = |source| backend(format!("asking for the offsets of group `{}`", self.group(stream)), source);
        let deadline = Instant::now() + TIMEOUT;
        let full = self.cluster.full(from);
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition(&full, numbered(partition));
        }
        let answered = loop {
            match client.committed_offsets(asked.clone(), TIMEOUT) {
                // The broker that keeps the group is only becoming it.
                Err(error) if is_moving(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                answered => break answered.map_err(failed)?,
            }
        };
        let mut positions = Positions::new();
        for element in answered.elements() {
            element.error().map_err(failed)?;
            if let rdkafka::Offset::Offset(offset) = element.offset() {
                positions.insert(element.partition().unsigned_abs(), offset.unsigned_abs());
            }
        }
        Ok(positions)
    }

    /// Creates a topic that a stream is to write, unless it is there: of the records of one key the last is kept at least, if it is
    /// to be `compacted`.
    pub fn create_topic(&self, topic: &str, partitions: u32, compacted: bool) -> Result<(), LogError> {
        match self.cluster.partitions(topic) {
            Ok(_) => Ok(()),
            Err(LogError::UnknownTopic { .. }) => {
                self.cluster.create(topic, partitions, if compacted { COMPACTED } else { &[] })
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a stream's outlet for what is made of a partition of its topic, and says from which offset on that
    /// is to be read: the position, or where the partition begins if there never was one. The topic that is written is
    /// created if it isn't there.
    pub fn open(&self, stream: &Arc<Stream>, partition: Partition) -> Result<(Outlet, Offset), LogError> {
        self.create_topic(&stream.to, self.cluster.partitions(&stream.from)?, false)?;
        let outlet = self.take_over(stream, partition)?;
        let Stream { name, from, .. } = &*outlet.stream;
        if let Some(&next) = self.committed((name, from), &outlet.group, [partition])?.get(&partition) {
            return Ok((outlet, next));
        }
        let starts = self.cluster.offsets(from, [partition], At::Start)?;
        let start = starts.get(&partition).copied().unwrap_or(0);
        // From now on it is known what is wanted, should the log delete it.
        outlet.write(&Parts::new(), &Keys::new(), start)?;
        Ok((outlet, start))
    }

    /// Takes a stream's outlet over from whoever had it, whose last write then is stored or never will be. Positions are none of
    /// its matter: [`Outlet::write_records`].
    pub fn take_over(&self, stream: &Arc<Stream>, partition: Partition) -> Result<Outlet, LogError> {
        let name = format!("{}{}-{partition}", self.cluster.options.topic_prefix, self.group(&stream.name));
        let transactional = [
            ("transactional.id", name.as_str()),
            ("transaction.timeout.ms", TRANSACTION_MILLIS),
            // Adding offsets to a transaction has no time limit (confluentinc/librdkafka#5456): having lost the group's
            // coordinator it waits until any connection changes. One that is idle then ends within this time, and it asks anew.
            ("connections.max.idle.ms", "5000"),
        ];
        let is_transactional = stream.commit != Commit::AfterRecords;
        let settings = if is_transactional { &transactional[..] } else { &[] };
        let producer = append::config(&self.cluster.options, settings).create_with_context(Deliveries);
        let producer = producer.map_err(|source| backend(format!("making the producer `{name}`"), source))?;
        let (cluster, group, stream) = (self.cluster.clone(), self.client(&stream.name)?, stream.clone());
        let outlet = Outlet { cluster, group, stream, partition, name, producer: Closing::new(producer) };
        if is_transactional {
            let begun = outlet.producer.init_transactions(DELIVERY);
            begun.map_err(|source| outlet.failed("beginning to use transactions as", source))?;
        }
        fail::fail_point!("output::opened");
        Ok(outlet)
    }
}

fn is_moving(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress))
}

/// Where what is made of one partition is written.
pub struct Outlet {
    cluster: Arc<Cluster>,
    group: Arc<BaseConsumer>,
    stream: Arc<Stream>,
    /// The partition that the records are made of.
    partition: Partition,
    name: String,
    producer: Closing<Kafka>,
}

impl Outlet {
    /// How many partitions the topic has that it writes.
    pub fn partitions(&self) -> Result<u32, LogError> {
        self.cluster.partitions(&self.stream.to)
    }

    /// Stores records, and that all is done that was read before the offset `next`. After an error it isn't known what is
    /// stored: open it again.
    pub fn write(&self, parts: &Parts, keys: &Keys, next: Offset) -> Result<(), LogError> {
        match self.stream.commit {
            Commit::WithRecords => self.transaction(|| {
                self.send(parts, keys)?;
                self.send_position(next)
            }),
            Commit::AfterRecords => {
                self.send(parts, keys)?;
                fail::fail_point!("output::before_commit");
                let committed = self.group.commit(&self.position(next)?, CommitMode::Sync);
                committed.map_err(|source| self.failed("committing the position of", source))?;
                fail::fail_point!("output::after_commit");
                Ok(())
            }
            Commit::BeforeRecords => {
                self.transaction(|| self.send_position(next))?;
                // A second one, so that whoever is fenced off meanwhile can't store them after those of its successor.
                if parts.is_empty() { Ok(()) } else { self.transaction(|| self.send(parts, keys)) }
            }
        }
    }

    /// Stores records, all or none, and no position. After an error it isn't known what is stored: take the outlet over again.
    pub fn write_records(&self, parts: &Parts, keys: &Keys) -> Result<(), LogError> {
        self.transaction(|| self.send(parts, keys))
    }

    fn transaction(&self, work: impl FnOnce() -> Result<(), LogError>) -> Result<(), LogError> {
        let begun = self.producer.begin_transaction();
        begun.map_err(|source| self.failed("beginning a transaction of", source))?;
        let done = work().and_then(|()| {
            fail::fail_point!("output::before_commit");
            let committed = self.producer.commit_transaction(DELIVERY);
            committed.map_err(|source| self.failed("committing a transaction of", source))
        });
        if done.is_err() {
            // Readers wait for its end. If this fails too, whoever opens the outlet next ends it.
            self.producer.abort_transaction(TIMEOUT).ok();
        } else {
            fail::fail_point!("output::after_commit");
        }
        done
    }

    fn send(&self, parts: &Parts, keys: &Keys) -> Result<(), LogError> {
        let topic = self.cluster.full(&self.stream.to);
        let sent = append::send(&self.producer, &Mutex::new(()), &topic, parts, keys);
        sent.map_err(|source| {
            append::not_stored(&self.stream.to, parts, source, |source| self.failed("storing records of", source))
        })?;
        fail::fail_point!("output::produced");
        Ok(())
    }

    fn send_position(&self, next: Offset) -> Result<(), LogError> {
        let step = "adding the position to a transaction of";
        let none = || LogError::Backend { step: format!("{step} `{}`", self.name), source: "it has no group".into() };
        let group = self.group.group_metadata().ok_or_else(none)?;
        let sent = self.producer.send_offsets_to_transaction(&self.position(next)?, &group, DELIVERY);
        sent.map_err(|source| self.failed(step, source))
    }

    fn position(&self, next: Offset) -> Result<TopicPartitionList, LogError> {
        let mut list = TopicPartitionList::new();
        let (topic, partition) = (self.cluster.full(&self.stream.from), numbered(self.partition));
        let added = list.add_partition_offset(&topic, partition, rdkafka::Offset::Offset(next.cast_signed()));
        added.map_err(|source| self.failed("naming the position of", source))?;
        Ok(list)
    }

    fn failed(&self, step: &str, source: KafkaError) -> LogError {
        // A producer that is done for says so once, and then only that nothing can be done.
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        match fatal.or(source.rdkafka_error_code()) {
            Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => {
                LogError::Fenced { writer: self.name.clone() }
            }
            _ => backend(format!("{step} `{}`", self.name), source),
        }
    }
}

#[cfg(test)]
mod tests;
