//! Where outputs write: records to one topic, and beside them how far the partition that they are made of is done.
//!
//! That position is an offset of a consumer group of the output's own, which has no members. What holds after a failure
//! is a matter of order: exactly once, if records and position are one transaction; at least once, if the records are
//! stored before the position; at most once, if the position is.
//!
//! A transactional producer's name is that of the output and the partition. Whoever opens an outlet takes the name over,
//! which ends the transaction of the one before and fences it off: so the position that is read then is the last one.
//! An outlet that delivers at least once fences nobody, as it can do no harm but to repeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;

use super::append::{self, DELIVERY, Deliveries, Kafka, TRANSACTION_MILLIS};
use super::{At, Cluster, TIMEOUT, backend, numbered};
use crate::log::{LogError, Payloads};
use crate::position::{Offset, Partition, Positions};
use crate::view::{Delivery, Output};

/// The records of each partition of a topic.
pub type Parts = Vec<(Partition, Payloads)>;

/// Their keys, one for each record; an empty one is none.
pub type Keys = BTreeMap<Partition, Payloads>;

/// The outlets of a cluster.
#[derive(Clone)]
pub struct Outlets {
    cluster: Arc<Cluster>,
    group: String,
    /// What speaks for each output's group.
    groups: Arc<Mutex<BTreeMap<String, Arc<BaseConsumer>>>>,
}

impl Outlets {
    pub(super) fn new(cluster: Arc<Cluster>, group: &str) -> Self {
        Self { cluster, group: group.to_owned(), groups: Arc::default() }
    }

    /// The consumer group that holds an output's positions.
    pub fn group(&self, output: &Output) -> String {
        format!("{}.output.{}", self.group, output.name)
    }

    fn client(&self, output: &Output) -> Result<Arc<BaseConsumer>, LogError> {
        let mut groups = self.groups.lock();
        if let Some(client) = groups.get(&output.name) {
            return Ok(client.clone());
        }
        let group = self.group(output);
        let settings = [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            // So that a transaction that is just ending is waited for.
            ("isolation.level", "read_committed"),
        ];
        let client = self.cluster.options.client(&settings).create();
        let client = Arc::new(client.map_err(|source| backend(format!("making a client of group `{group}`"), source))?);
        groups.insert(output.name.clone(), Arc::clone(&client));
        Ok(client)
    }

    /// Up to where the partitions of its table's topic are done, but for those that were never begun.
    pub fn positions(&self, output: &Output) -> Result<Positions, LogError> {
        let partitions = self.cluster.partitions(&output.table.topic)?;
        self.committed(output, &*self.client(output)?, 0..partitions)
    }

    fn committed(
        &self,
        output: &Output,
        client: &BaseConsumer,
        partitions: impl IntoIterator<Item = Partition>,
    ) -> Result<Positions, LogError> {
        let failed = |source| backend(format!("asking for the offsets of group `{}`", self.group(output)), source);
        let deadline = Instant::now() + TIMEOUT;
        let full = self.cluster.full(&output.table.topic);
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

    /// Opens an output's outlet for what is made of a partition of its table's topic, and says from which offset on that
    /// is to be read: the position, or where the partition begins if there never was one. The topic that is written is
    /// created if it isn't there.
    pub fn open(&self, output: &Arc<Output>, partition: Partition) -> Result<(Outlet, Offset), LogError> {
        let partitions = self.cluster.partitions(&output.table.topic)?;
        match self.cluster.partitions(&output.topic) {
            Ok(_) => {}
            Err(LogError::UnknownTopic { .. }) => self.cluster.create(&output.topic, partitions, &[])?,
            Err(error) => return Err(error),
        }
        let name = format!("{}{}-{partition}", self.cluster.options.topic_prefix, self.group(output));
        let transactional = [
            ("transactional.id", name.as_str()),
            ("transaction.timeout.ms", TRANSACTION_MILLIS),
            // Adding offsets to a transaction has no time limit (confluentinc/librdkafka#5456): having lost the group's
            // coordinator it waits until any connection changes. One that is idle then ends within this time, and it asks anew.
            ("connections.max.idle.ms", "5000"),
        ];
        let is_transactional = output.delivery != Delivery::AtLeastOnce;
        let settings = if is_transactional { &transactional[..] } else { &[] };
        let producer = append::config(&self.cluster.options, settings).create_with_context(Deliveries);
        let producer = producer.map_err(|source| backend(format!("making the producer `{name}`"), source))?;
        let (cluster, group, output) = (self.cluster.clone(), self.client(output)?, output.clone());
        let outlet = Outlet { cluster, group, output, partition, name, producer };
        if is_transactional {
            let begun = outlet.producer.init_transactions(DELIVERY);
            begun.map_err(|source| outlet.failed("beginning to use transactions as", source))?;
        }
        fail::fail_point!("output::opened");
        if let Some(&next) = self.committed(&outlet.output, &outlet.group, [partition])?.get(&partition) {
            return Ok((outlet, next));
        }
        let starts = self.cluster.offsets(&outlet.output.table.topic, [partition], At::Start)?;
        let start = starts.get(&partition).copied().unwrap_or(0);
        // From now on it is known what is wanted, should the log delete it.
        outlet.write(&Parts::new(), &Keys::new(), start)?;
        Ok((outlet, start))
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
    output: Arc<Output>,
    /// The partition that the records are made of.
    partition: Partition,
    name: String,
    producer: Kafka,
}

impl Outlet {
    /// How many partitions the topic has that it writes.
    pub fn partitions(&self) -> Result<u32, LogError> {
        self.cluster.partitions(&self.output.topic)
    }

    /// Stores records, and that all is done that was read before the offset `next`. After an error it isn't known what is
    /// stored: open it again.
    pub fn write(&self, parts: &Parts, keys: &Keys, next: Offset) -> Result<(), LogError> {
        match self.output.delivery {
            Delivery::ExactlyOnce => self.transaction(|| {
                self.send(parts, keys)?;
                self.send_position(next)
            }),
            Delivery::AtLeastOnce => {
                self.send(parts, keys)?;
                fail::fail_point!("output::before_commit");
                let committed = self.group.commit(&self.position(next)?, CommitMode::Sync);
                committed.map_err(|source| self.failed("committing the position of", source))?;
                fail::fail_point!("output::after_commit");
                Ok(())
            }
            Delivery::AtMostOnce => {
                self.transaction(|| self.send_position(next))?;
                // A second one, so that whoever is fenced off meanwhile can't store them after those of its successor.
                if parts.is_empty() { Ok(()) } else { self.transaction(|| self.send(parts, keys)) }
            }
        }
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
        let topic = self.cluster.full(&self.output.topic);
        let sent = append::send(&self.producer, &Mutex::new(()), &topic, parts, keys);
        sent.map_err(|source| {
            append::not_stored(&self.output.topic, parts, source, |source| self.failed("storing records of", source))
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
        let (topic, partition) = (self.cluster.full(&self.output.table.topic), numbered(self.partition));
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
