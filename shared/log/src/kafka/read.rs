//! Reading partitions of a topic.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::queue::{Message, Queue};
use super::{At, Cluster, backend, numbered};
use crate::clock::Clock;
use crate::position::{Offset, Partition, Positions};
use crate::{Batch, Extras, LogError, LogReader, PayloadsBuilder, ReadLimit};

/// How often the broker is asked where the partitions end, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How many messages are taken from librdkafka's queue at once.
const TAKEN: usize = 65_536;

/// A reader's consumer. It has a group's name because librdkafka wants one; it never joins the group, nor commits.
const SETTINGS: [(&str, &str); 10] = [
    ("group.id", "anabranch.reader"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    // Its offset tells how far past the last record the transaction markers go.
    ("enable.partition.eof", "true"),
    // How long after the last record the end of a partition is told.
    ("fetch.wait.max.ms", "100"),
    // By default a consumer whose queue was full pauses for a second.
    ("fetch.queue.backoff.ms", "5"),
    ("max.partition.fetch.bytes", "8388608"),
    ("queued.max.messages.kbytes", "131072"),
];

/// Reads partitions of a topic.
pub(crate) struct KafkaReader {
    cluster: Arc<Cluster>,
    clock: Arc<dyn Clock>,
    topic: String,
    full: CString,
    /// Before the queue, so that it is dropped before: librdkafka waits for its messages when a consumer is closed.
    sources: BTreeMap<Partition, Source>,
    queue: Queue,
    /// The partitions in the order in which they have their turn.
    turns: VecDeque<Partition>,
    pending: usize,
    extras: Extras,
    assigned: bool,
    /// When the broker was last asked where the partitions end.
    looked: Option<Instant>,
}

/// One partition.
struct Source {
    /// The next offset that the caller lacks.
    next: Offset,
    /// Fetched, and not yet returned.
    pending: VecDeque<Message>,
    /// Where the partition ended when everything before was fetched.
    ended: Option<Offset>,
    /// The end as the broker last said.
    end: Offset,
    /// When it last delivered anything, or had nothing to deliver.
    alive: Instant,
    /// Whether it has stalled and delivered nothing since.
    stalled: bool,
}

impl Source {
    fn at(next: Offset) -> Self {
        Self { next, pending: VecDeque::new(), ended: None, end: 0, alive: Instant::now(), stalled: false }
    }

    /// Whether a batch can be made of it.
    fn is_ready(&self) -> bool {
        !self.pending.is_empty() || self.ended.is_some_and(|end| end > self.next)
    }
}

/// For tests of stalls: of a partition that is left out nothing comes, as of one that librdkafka has lost sight of.
fn is_left_out(topic: &str, partition: Partition) -> bool {
    fail::fail_point!(&format!("kafka::assign {topic}/{partition}"), |_| true);
    false
}

impl KafkaReader {
    pub fn new(cluster: Arc<Cluster>, clock: Arc<dyn Clock>, topic: &str, from: &Positions) -> Result<Self, LogError> {
        let step = || format!("making a reader of topic `{topic}`");
        let consumer = cluster.options.client(&SETTINGS).create::<BaseConsumer>();
        let consumer = Arc::new(consumer.map_err(|source| backend(step(), source))?);
        let none = || LogError::Backend { step: step(), source: "librdkafka has no queue for it".into() };
        let queue = Queue::of(consumer).ok_or_else(none)?;
        let full = CString::new(cluster.full(topic)).unwrap_or_default();
        let source = |next, partition| Source { stalled: cluster.stalls.begin(topic, partition), ..Source::at(next) };
        let sources = from.iter().map(|(&partition, &next)| (partition, source(next, partition))).collect();
        let turns = from.keys().copied().collect();
        let topic = topic.to_owned();
        Ok(Self {
            cluster,
            clock,
            topic,
            full,
            queue,
            sources,
            turns,
            pending: 0,
            extras: Extras::default(),
            assigned: false,
            looked: None,
        })
    }

    /// Has a partition not count as read before this offset.
    pub fn reaches(&mut self, partition: Partition, end: Offset) {
        if let Some(source) = self.sources.get_mut(&partition) {
            source.end = source.end.max(end);
        }
    }

    /// Has librdkafka fetch from where the caller is.
    fn assign(&mut self) -> Result<(), LogError> {
        let failed = |source| backend(format!("assigning partitions of topic `{}`", self.topic), source);
        let full = self.cluster.full(&self.topic);
        let bounds = self.cluster.bounds(&self.topic)?;
        let mut list = TopicPartitionList::new();
        for (&partition, source) in &mut self.sources {
            let held = bounds.get(&partition).cloned().unwrap_or(0..0);
            if !(held.start..=held.end).contains(&source.next) {
                let (topic, wanted) = (self.topic.clone(), source.next);
                return Err(LogError::OutOfRange { topic, partition, wanted, held });
            }
            *source = Source { end: held.end, stalled: source.stalled, ..Source::at(source.next) };
            if is_left_out(&full, partition) {
                continue;
            }
            let offset = rdkafka::Offset::Offset(source.next.cast_signed());
            list.add_partition_offset(&full, numbered(partition), offset).map_err(failed)?;
        }
        self.queue.consumer().assign(&list).map_err(failed)?;
        (self.pending, self.assigned, self.looked) = (0, true, Some(Instant::now()));
        Ok(())
    }

    /// Takes over what librdkafka has fetched.
    fn fetch(&mut self, wait: Duration) -> Result<(), LogError> {
        fail::fail_point!("kafka::fetch", |_| Ok(()));
        for message in self.queue.take(TAKEN.saturating_sub(self.pending), wait) {
            let partition = message.partition();
            let Some(source) = self.sources.get_mut(&partition) else { continue };
            match message.error() {
                None => {
                    if message.offset() >= source.next {
                        source.pending.push_back(message);
                        self.pending += 1;
                    }
                }
                Some(RDKafkaErrorCode::PartitionEOF) => source.ended = Some(message.offset()),
                Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset) => {
                    let wanted = source.pending.back().map_or(source.next, |last| last.offset() + 1);
                    self.assigned = false;
                    return Err(self.cluster.out_of_range(&self.topic, partition, wanted));
                }
                Some(code) => {
                    self.assigned = false;
                    let step = format!("reading topic `{}` partition {partition}", self.topic);
                    return Err(backend(step, KafkaError::MessageConsumption(code)));
                }
            }
            source.alive = Instant::now();
            if std::mem::take(&mut source.stalled) {
                self.cluster.stalls.delivered(&self.topic, partition);
            }
        }
        Ok(())
    }

    /// The next batch of what was fetched.
    fn batch(&mut self, limit: ReadLimit) -> Option<Batch> {
        let turn = self.turns.iter().position(|partition| self.sources[partition].is_ready())?;
        let partition = self.turns.remove(turn)?;
        self.turns.push_back(partition);
        let source = self.sources.get_mut(&partition)?;
        let (mut offsets, mut log_times, mut payloads) = (Vec::new(), Vec::new(), PayloadsBuilder::default());
        let mut keys = self.extras.keys.then(PayloadsBuilder::default);
        let mut headers = self.extras.headers.then(PayloadsBuilder::default);
        let has_own_time = source.pending.front().is_some_and(Message::has_own_time);
        while let Some(message) = source.pending.front() {
            let payload = message.payload();
            let is_full = offsets.len() >= limit.records || payloads.bytes() + payload.len() > limit.bytes;
            if !offsets.is_empty() && (is_full || message.has_own_time() != has_own_time) {
                break;
            }
            payloads.push(payload);
            if let Some(keys) = &mut keys {
                keys.push(message.key());
            }
            if let Some(headers) = &mut headers {
                headers.push(message.headers().as_bytes());
            }
            offsets.push(message.offset());
            log_times.push(message.time());
            source.pending.pop_front();
            self.pending -= 1;
        }
        let fetched = offsets.last().map_or(source.next, |last| last + 1);
        let next = match source.ended {
            Some(end) if source.pending.is_empty() => end.max(fetched),
            _ => fetched,
        };
        let coverage = source.next..next;
        source.next = next;
        let said = self.queue.end(&self.full, partition).unwrap_or(0);
        source.end = source.end.max(said);
        let log_end = if source.ended == Some(next) { next } else { source.end.max(next) };
        let (payloads, keys) = (payloads.finish(), keys.map(PayloadsBuilder::finish));
        let headers = headers.map(PayloadsBuilder::finish);
        let read_at = has_own_time.then(|| self.clock.now());
        Some(Batch { partition, coverage, offsets, log_times, read_at, payloads, keys, headers, log_end })
    }

    /// Asks where the partitions end, unless that was done a moment ago. A partition that holds records and has delivered
    /// none for long is read again from where the caller is: librdkafka may have lost sight of it.
    fn look(&mut self) -> Result<(), LogError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return Ok(());
        }
        let ends = self.cluster.offsets(&self.topic, self.sources.keys().copied(), At::End)?;
        self.looked = Some(Instant::now());
        for (&partition, source) in &mut self.sources {
            source.end = ends.get(&partition).copied().unwrap_or(0);
            if source.end <= source.next || source.is_ready() {
                source.alive = Instant::now();
            } else if source.alive.elapsed() >= self.cluster.options.stall {
                (self.assigned, source.stalled) = (false, true);
                self.cluster.stalls.stalled(&self.topic, partition);
                let waited = source.alive.elapsed().as_secs_f32();
                let step = format!("reading topic `{}` partition {partition}", self.topic);
                let what = format!("offsets {}..{} wait, and none came for {waited:.1} s", source.next, source.end);
                return Err(LogError::Backend { step, source: what.into() });
            }
        }
        Ok(())
    }

    fn is_caught_up(&self) -> bool {
        self.sources.values().all(|source| source.next >= source.end && !source.is_ready())
    }
}

impl LogReader for KafkaReader {
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError> {
        let until = Instant::now() + wait;
        if self.sources.is_empty() {
            std::thread::sleep(wait);
            return Ok(None);
        }
        if !self.assigned {
            self.assign()?;
        }
        // Also while other partitions are busy.
        if self.looked.is_some_and(|at| at.elapsed() >= self.cluster.options.stall / 4) {
            self.look()?;
        }
        loop {
            self.fetch(Duration::ZERO)?;
            if let Some(batch) = self.batch(limit) {
                return Ok(Some(batch));
            }
            self.look()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && self.is_caught_up() {
                return Ok(None);
            }
            // Beyond the caller's patience only while there is something to come.
            self.fetch(left.clamp(Duration::from_millis(1), Duration::from_millis(100)))?;
        }
    }

    fn positions(&self) -> Positions {
        self.sources.iter().map(|(&partition, source)| (partition, source.next)).collect()
    }

    fn bring(&mut self, extras: Extras) {
        self.extras = extras;
    }
}
