//! Who has which partitions: membership of a consumer group.
//!
//! The group only shares out partitions, cooperatively: those that stay where they are go on without a pause. Records
//! are read by [`super::KafkaLog`]'s readers from positions that are kept with the state; the group's own consumer
//! pauses what it is assigned. The offsets that it commits are for tools that show lag, nothing begins at them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::{ClientContext, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::closing::close;
use super::{KafkaOptions, backend, numbered};
use crate::LogError;
use crate::position::{Partition, Positions};

/// How often offsets are committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(2);

/// What a member does with its partitions. Called by one thread, one at a time.
pub trait Member: Send + 'static {
    /// The partition is this member's from now on.
    fn gain(&mut self, topic: &str, partition: Partition);

    /// The partition goes to somebody else: returns once nothing is done for it any more. If it is `lost`, somebody else
    /// may have it already.
    fn give_up(&mut self, topic: &str, partition: Partition, lost: bool);

    /// Called every other second: how far this member's topics are done, which is what lag is measured by.
    fn tick(&mut self) -> Vec<(String, Positions)>;
}

/// How a group is joined.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// The cluster.
    pub kafka: KafkaOptions,
    /// The group's name.
    pub group: String,
    /// A member that hasn't been heard of for so long loses its partitions.
    pub session_timeout: Duration,
}

struct Context<M> {
    member: Mutex<M>,
    prefix: String,
}

impl<M: Member> ClientContext for Context<M> {}

impl<M: Member> Context<M> {
    fn each(&self, list: &TopicPartitionList, mut each: impl FnMut(&mut M, &str, Partition)) {
        let mut member = self.member.lock();
        for element in list.elements() {
            let topic = element.topic().strip_prefix(&self.prefix).unwrap_or(element.topic());
            each(&mut member, topic, element.partition().unsigned_abs());
        }
    }
}

// Only these two: a `rebalance` of our own would have to do the assigning as well.
impl<M: Member> ConsumerContext for Context<M> {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let lost = consumer.assignment_lost();
            self.each(list, |member, topic, partition| {
                tracing::info!(topic, partition, lost, "gives up a partition");
                member.give_up(topic, partition, lost);
            });
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                if let Err(error) = consumer.pause(list) {
                    tracing::warn!(%error, "partitions can't be paused");
                }
                self.each(list, |member, topic, partition| {
                    tracing::info!(topic, partition, "has a partition");
                    member.gain(topic, partition);
                });
            }
            Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => tracing::warn!(%error, "sharing out partitions failed, and is tried again"),
        }
    }
}

/// Joins a group and stays in it until `shutdown`; then everything is given up.
pub fn join<M: Member>(
    options: &GroupOptions,
    topics: &[String],
    member: M,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, LogError> {
    let step = || format!("joining group `{}`", options.group);
    let session = options.session_timeout.as_millis().to_string();
    let heartbeat = (options.session_timeout.as_millis() / 6).max(100).to_string();
    let settings = [
        ("group.id", options.group.as_str()),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("session.timeout.ms", &session),
        ("heartbeat.interval.ms", &heartbeat),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
        // Nothing is read here: no need to hold much.
        ("queued.max.messages.kbytes", "1024"),
        ("topic.metadata.refresh.interval.ms", "5000"),
    ];
    let prefix = options.kafka.topic_prefix.clone();
    let context = Context { member: Mutex::new(member), prefix: prefix.clone() };
    let consumer: BaseConsumer<Context<M>> =
        options.kafka.client(&settings).create_with_context(context).map_err(|source| backend(step(), source))?;
    let names: Vec<String> = topics.iter().map(|topic| format!("{prefix}{topic}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    consumer.subscribe(&names).map_err(|source| backend(step(), source))?;
    let session = options.session_timeout;
    let work = move || {
        let consumer = Arc::new(consumer);
        stay(&consumer, &prefix, &shutdown);
        // So the group knows at once that this member has left; after this time it does by itself.
        close(consumer).recv_timeout(session).ok();
    };
    let thread = std::thread::Builder::new().name(format!("group-{}", options.group)).spawn(work);
    thread.map_err(|source| LogError::Backend { step: step(), source: source.into() })
}

fn stay<M: Member>(consumer: &Arc<BaseConsumer<Context<M>>>, prefix: &str, shutdown: &CancellationToken) {
    let mut committed = Instant::now();
    while !shutdown.is_cancelled() {
        // Rebalances are served in here.
        if let Some(Err(error)) = consumer.poll(Duration::from_millis(100)) {
            tracing::warn!(%error, "the group's consumer complains");
        }
        if committed.elapsed() >= COMMIT_INTERVAL {
            committed = Instant::now();
            commit(consumer, prefix, CommitMode::Async);
        }
    }
    commit(consumer, prefix, CommitMode::Sync);
    // What is still assigned is given up as after a rebalance, and the group told.
    if let Ok(list) = consumer.assignment() {
        consumer.context().each(&list, |member, topic, partition| member.give_up(topic, partition, false));
    }
    consumer.unsubscribe();
}

fn commit<M: Member>(consumer: &BaseConsumer<Context<M>>, prefix: &str, mode: CommitMode) {
    let done = consumer.context().member.lock().tick();
    let mut list = TopicPartitionList::new();
    for (topic, positions) in done {
        for (partition, offset) in positions {
            let offset = rdkafka::Offset::Offset(offset.cast_signed());
            list.add_partition_offset(&format!("{prefix}{topic}"), numbered(partition), offset).ok();
        }
    }
    if list.count() > 0
        && let Err(error) = consumer.commit(&list, mode)
    {
        // During a rebalance it can't be done; lag tools see it a little later.
        tracing::debug!(%error, "offsets weren't committed");
    }
}
