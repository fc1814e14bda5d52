//! Appending records, with and without an idempotency key.
//!
//! An append with a key is one transaction. It begins with a *claim*, an empty record in the partition of [`TOPIC`] that
//! the key belongs to, and ends with the *answer*, which holds the key and the offsets. Whoever has claimed reads the
//! partition up to its own claim before it stores anything. As that shows committed records only, it waits for every
//! transaction that had claimed before: of two equal requests the later one sees the answer of the earlier one,
//! whichever process took them. Nobody waits for anyone who claimed later, so there is no deadlock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use serde::{Deserialize, Serialize};

use super::closing::Closing;
use super::read::KafkaReader;
use super::{At, Cluster, KafkaOptions, TIMEOUT, backend, numbered};
use crate::clock::{Clock, Micros};
use crate::key::by_key;
use crate::position::{Partition, Positions};
use crate::{Append, Appended, Digest, Idempotency, LogError, LogReader, Payloads, ReadLimit, check_same};

/// The topic of claims and answers.
pub(crate) const TOPIC: &str = "_requests";

/// Its partitions: so many requests can be at work at once in the whole cluster.
const PARTITIONS: u32 = 8;

/// For how long a request is remembered.
const MEMORY: Micros = 24 * 3600 * 1_000_000;

/// How long records may take to be stored on all replicas.
pub(super) const DELIVERY: Duration = Duration::from_secs(30);

/// A transaction that has taken this long is ended by the broker, as its producer must have died.
pub(super) const TRANSACTION_MILLIS: &str = "40000";

/// What producers have in common.
pub(super) fn config(options: &KafkaOptions, settings: &[(&str, &str)]) -> ClientConfig {
    let mut all = vec![
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("delivery.timeout.ms", "30000"),
        ("linger.ms", "2"),
        ("compression.type", "lz4"),
        ("batch.size", "1000000"),
        // Above the largest record that ingest takes.
        ("message.max.bytes", "8388608"),
        ("queue.buffering.max.messages", "1000000"),
        // What is sent waits for room in it.
        ("queue.buffering.max.kbytes", "65536"),
    ];
    all.extend_from_slice(settings);
    options.client(&all)
}

/// Records that are on their way.
#[derive(Default)]
pub(super) struct Sent {
    state: Mutex<SentState>,
    changed: Condvar,
}

#[derive(Default)]
struct SentState {
    waiting: usize,
    /// The first offset and the one after the last, by partition.
    offsets: BTreeMap<Partition, (u64, u64)>,
    failed: Option<KafkaError>,
}

/// Tells of each record what became of it.
pub(super) struct Deliveries;

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Sent>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, sent: Arc<Sent>) {
        let mut state = sent.state.lock();
        state.waiting -= 1;
        match delivered {
            Ok(message) => {
                let offset = message.offset().unsigned_abs();
                let range = state.offsets.entry(message.partition().unsigned_abs()).or_insert((offset, offset + 1));
                *range = (range.0.min(offset), range.1.max(offset + 1));
            }
            // The first says why; the rest of a transaction fails for it.
            Err((error, _)) => drop(state.failed.get_or_insert_with(|| error.clone())),
        }
        if state.waiting == 0 || state.failed.is_some() {
            sent.changed.notify_all();
        }
    }
}

pub(super) type Kafka = ThreadedProducer<Deliveries>;

/// Hands records to librdkafka, and waits until all are stored or one is given up: the others of a transaction would then wait
/// in vain until it is aborted.
pub(super) fn send(
    producer: &Kafka,
    order: &Mutex<()>,
    topic: &str,
    parts: &[(Partition, Payloads)],
    keys: &BTreeMap<Partition, Payloads>,
) -> Result<BTreeMap<Partition, (u64, u64)>, KafkaError> {
    let sent = Arc::new(Sent::default());
    // So that an append's records lie together.
    let in_turn = order.lock();
    let mut refused = None;
    'parts: for (partition, payloads) in parts {
        let keys = keys.get(partition).filter(|keys| keys.len() == payloads.len());
        for (i, payload) in payloads.iter().enumerate() {
            sent.state.lock().waiting += 1;
            let record = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, sent.clone());
            let mut record = record.partition(numbered(*partition));
            let key = keys.map(|keys| keys.get(i)).filter(|key| !key.is_empty());
            if let Some(key) = key {
                record = record.key(key);
            }
            // To compaction an empty payload is a value like others, and only a null is a deletion.
            if key.is_none() || !payload.is_empty() {
                record = record.payload(payload);
            }
            while let Err((error, again)) = producer.send(record) {
                // Once a record was given up, the others needn't be sent.
                let waits = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                if !waits || sent.state.lock().failed.is_some() {
                    sent.state.lock().waiting -= 1;
                    refused = Some(error).filter(|_| !waits);
                    break 'parts;
                }
                std::thread::sleep(Duration::from_millis(1));
                record = again;
            }
        }
    }
    drop(in_turn);
    let mut state = sent.state.lock();
    while state.waiting > 0 && state.failed.is_none() {
        sent.changed.wait(&mut state);
    }
    match refused.or(state.failed.take()) {
        None => Ok(std::mem::take(&mut state.offsets)),
        Some(error) => Err(error),
    }
}

/// Why records aren't stored: because the topic never takes them, or else as `otherwise` has it.
pub(super) fn not_stored(
    topic: &str,
    parts: &[(Partition, Payloads)],
    source: KafkaError,
    otherwise: impl FnOnce(KafkaError) -> LogError,
) -> LogError {
    let topic = topic.to_owned();
    match source.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            let sizes = parts.iter().flat_map(|(_, payloads)| payloads.iter().map(<[u8]>::len));
            LogError::TooLarge { topic, bytes: sizes.max().unwrap_or(0) }
        }
        Some(
            RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidTimestamp | RDKafkaErrorCode::PolicyViolation,
        ) => LogError::Refused { topic, source: source.into() },
        _ => otherwise(source),
    }
}

/// What became of an append's parts. One without records is where its partition ends.
fn offsets(
    cluster: &Cluster,
    topic: &str,
    parts: &[(Partition, Payloads)],
    stored: &BTreeMap<Partition, (u64, u64)>,
) -> Result<BTreeMap<Partition, std::ops::Range<u64>>, LogError> {
    let empty = parts.iter().filter(|(_, payloads)| payloads.is_empty()).map(|(partition, _)| *partition);
    let ends = cluster.offsets(topic, empty, At::End)?;
    let ends = ends.into_iter().map(|(partition, end)| (partition, end..end));
    Ok(ends.chain(stored.iter().map(|(&partition, &(first, next))| (partition, first..next))).collect())
}

/// Appends without a key.
pub(crate) struct Producer {
    options: KafkaOptions,
    producer: Mutex<Arc<Closing<Kafka>>>,
    order: Mutex<()>,
}

impl Producer {
    pub fn open(options: &KafkaOptions) -> Result<Self, LogError> {
        let producer = Mutex::new(Self::client(options)?);
        Ok(Self { options: options.clone(), producer, order: Mutex::new(()) })
    }

    fn client(options: &KafkaOptions) -> Result<Arc<Closing<Kafka>>, LogError> {
        let producer = config(options, &[]).create_with_context(Deliveries);
        Ok(Arc::new(Closing::new(producer.map_err(|source| backend("making a producer", source))?)))
    }

    /// The producer, or another one once librdkafka says that it stores nothing any more, as after records that brokers have lost.
    pub fn current(&self) -> Result<Arc<Closing<Kafka>>, LogError> {
        let mut producer = self.producer.lock();
        if let Some((_, why)) = producer.client().fatal_error() {
            tracing::warn!(why, "a producer has failed for good; another one takes its place");
            *producer = Self::client(&self.options)?;
        }
        Ok(Arc::clone(&producer))
    }

    pub fn append(
        &self,
        cluster: &Cluster,
        topic: &str,
        Append { parts, keys, .. }: &Append,
    ) -> Result<Appended, LogError> {
        let producer = self.current()?;
        let stored = send(&producer, &self.order, &cluster.full(topic), parts, keys).map_err(|source| {
            let step = format!("appending to topic `{topic}`, of which some records may be stored all the same,");
            not_stored(topic, parts, source, |source| backend(step, source))
        })?;
        Ok(Appended { offsets: offsets(cluster, topic, parts, &stored)?, repeated: None })
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Err(error) = self.producer.lock().flush(DELIVERY) {
            tracing::warn!(%error, "records that nobody waits for were not stored");
        }
    }
}

/// What was answered to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    topic: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    note: Vec<u8>,
    offsets: BTreeMap<Partition, (u64, u64)>,
}

/// Appends with a key.
pub(crate) struct Requests {
    cluster: Arc<Cluster>,
    clock: Arc<dyn Clock>,
    state: Mutex<Option<State>>,
}

struct State {
    producer: Closing<Kafka>,
    reader: KafkaReader,
    known: HashMap<(String, String), Answer>,
    /// The known requests and when they were answered, in that order but for the partitions' small differences.
    ages: VecDeque<(Micros, (String, String))>,
}

/// Why an append with a key came to nothing.
enum Failure {
    /// The transaction is to be given up; the producer is as good as before.
    Abort(LogError),
    /// The answer was there already.
    Repeated(Box<Answer>),
}

impl Requests {
    pub fn new(cluster: Arc<Cluster>, clock: Arc<dyn Clock>) -> Self {
        Self { cluster, clock, state: Mutex::new(None) }
    }

    fn open(&self) -> Result<State, LogError> {
        let age = (MEMORY / 1_000).to_string();
        let properties = [("retention.ms", age.as_str()), ("segment.ms", "3600000")];
        match self.cluster.create(TOPIC, PARTITIONS, &properties) {
            Err(LogError::FewerPartitions { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let id = format!("{}anabranch-{}", self.cluster.options.topic_prefix, uuid::Uuid::new_v4());
        let settings = [("transactional.id", id.as_str()), ("transaction.timeout.ms", TRANSACTION_MILLIS)];
        let producer: Kafka = config(&self.cluster.options, &settings)
            .create_with_context(Deliveries)
            .map_err(|source| backend("making a transactional producer", source))?;
        producer.init_transactions(TIMEOUT).map_err(|source| backend("beginning to use transactions", source))?;
        let bounds = self.cluster.bounds(TOPIC)?;
        let starts: Positions = bounds.into_iter().map(|(partition, held)| (partition, held.start)).collect();
        let reader = KafkaReader::new(self.cluster.clone(), self.clock.clone(), TOPIC, &starts)?;
        Ok(State { producer: Closing::new(producer), reader, known: HashMap::new(), ages: VecDeque::new() })
    }

    pub fn append(&self, topic: &str, append: &Append, request: &Idempotency) -> Result<Appended, LogError> {
        let mut slot = self.state.lock();
        let mut state = match slot.take() {
            Some(state) => state,
            None => self.open()?,
        };
        state.forget_before(self.clock.now() - MEMORY);
        state.producer.begin_transaction().map_err(|source| backend("beginning a transaction", source))?;
        let outcome = match self.store(&mut state, topic, append, request) {
            Ok(answer) => {
                fail::fail_point!("kafka::before_commit");
                let committed = state.producer.commit_transaction(DELIVERY);
                committed.map_err(|source| backend(format!("committing an append to topic `{topic}`"), source))?;
                fail::fail_point!("kafka::after_commit");
                return self.done(&mut slot, state, answer, None);
            }
            Err(failure) => failure,
        };
        // A producer that can't even do this is given up, and its transaction ends by the broker's clock.
        let aborted = state.producer.abort_transaction(TIMEOUT);
        match outcome {
            Failure::Repeated(answer) => {
                let note = Some(answer.note.clone());
                match aborted {
                    Ok(()) => self.done(&mut slot, state, *answer, note),
                    Err(_) => Ok(appended(&answer, note)),
                }
            }
            Failure::Abort(error) => {
                if aborted.is_ok() {
                    *slot = Some(state);
                }
                Err(error)
            }
        }
    }

    fn done(
        &self,
        slot: &mut Option<State>,
        mut state: State,
        answer: Answer,
        repeated: Option<Vec<u8>>,
    ) -> Result<Appended, LogError> {
        let appended = appended(&answer, repeated);
        state.learn(answer, self.clock.now());
        *slot = Some(state);
        Ok(appended)
    }

    fn store(
        &self,
        state: &mut State,
        topic: &str,
        Append { parts, keys, .. }: &Append,
        request: &Idempotency,
    ) -> Result<Answer, Failure> {
        let failed = |what: &'static str| {
            move |source| Failure::Abort(backend(format!("{what} an append to topic `{topic}`"), source))
        };
        let (order, no_keys) = (Mutex::new(()), BTreeMap::new());
        let requests = self.cluster.full(TOPIC);
        let place = by_key(format!("{topic}\n{}", request.key).as_bytes(), PARTITIONS);
        let claim = [(place, Payloads::from_iter([""]))];
        let claimed =
            send(&state.producer, &order, &requests, &claim, &no_keys).map_err(failed("claiming the key of"))?;
        fail::fail_point!("kafka::claimed");
        let claim = claimed.get(&place).map_or(0, |&(first, _)| first);
        state.read_to(&self.cluster, place, claim).map_err(Failure::Abort)?;
        if let Some(answer) = state.known.get(&(topic.to_owned(), request.key.clone())) {
            check_same(topic, &request.key, answer.digest, request.digest).map_err(Failure::Abort)?;
            return Err(Failure::Repeated(Box::new(answer.clone())));
        }
        let stored = send(&state.producer, &order, &self.cluster.full(topic), parts, keys).map_err(|source| {
            let step = format!("sending an append to topic `{topic}`");
            Failure::Abort(not_stored(topic, parts, source, |source| backend(step, source)))
        })?;
        let offsets = offsets(&self.cluster, topic, parts, &stored).map_err(Failure::Abort)?;
        let answer = Answer {
            topic: topic.to_owned(),
            key: request.key.clone(),
            digest: request.digest,
            note: request.note.clone(),
            offsets: offsets.into_iter().map(|(partition, range)| (partition, (range.start, range.end))).collect(),
        };
        let record = serde_json::to_vec(&answer).unwrap_or_default();
        let answered = [(place, Payloads::from_iter([record]))];
        send(&state.producer, &order, &requests, &answered, &no_keys).map_err(failed("noting the answer to"))?;
        Ok(answer)
    }
}

fn appended(answer: &Answer, repeated: Option<Vec<u8>>) -> Appended {
    let offsets = answer.offsets.iter().map(|(&partition, &(first, next))| (partition, first..next)).collect();
    Appended { offsets, repeated }
}

impl State {
    /// Learns of all answers before a claim, once every transaction that had claimed before has ended.
    fn read_to(&mut self, cluster: &Cluster, place: Partition, claim: u64) -> Result<(), LogError> {
        let deadline = Instant::now() + DELIVERY;
        while cluster.offsets(TOPIC, [place], At::End)?.get(&place).is_none_or(|&stable| stable < claim) {
            if Instant::now() > deadline {
                let step = "waiting for earlier requests".to_owned();
                return Err(LogError::Backend { step, source: "another one has not ended in 30 s".into() });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let limit = ReadLimit { records: 10_000, bytes: 8 << 20 };
        // What it has heard last of the partition's end may be from before.
        self.reader.reaches(place, claim);
        while self.reader.positions().get(&place).is_some_and(|&next| next < claim) {
            let Some(batch) = self.reader.poll(limit, Duration::ZERO)? else {
                let step = "reading the answers to earlier requests".to_owned();
                return Err(LogError::Backend { step, source: "the broker says that there are no more".into() });
            };
            for (payload, &at) in batch.payloads.iter().zip(&batch.log_times).filter(|(payload, _)| !payload.is_empty())
            {
                match serde_json::from_slice(payload) {
                    Ok(answer) => self.learn(answer, at),
                    Err(error) => tracing::warn!(%error, "a record of the requests' topic can't be understood"),
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, answer: Answer, at: Micros) {
        let name = (answer.topic.clone(), answer.key.clone());
        self.ages.push_back((at, name.clone()));
        self.known.insert(name, answer);
    }

    fn forget_before(&mut self, time: Micros) {
        while let Some((at, _)) = self.ages.front()
            && *at < time
        {
            if let Some((_, name)) = self.ages.pop_front() {
                self.known.remove(&name);
            }
        }
    }
}
