//! Events from clients to the log: what `POST /v1/topics/{topic}/events` and `anabranch produce` share.
//!
//! Records are checked by the [`Decoder`] that the layers use, so what is accepted here is a row there, but for one
//! whose event time is judged by the log's own clock. The good ones are appended as they were sent, all or none (see [`Log::append`]); the
//! bad ones go to the rejects log, and the client is told.

mod body;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::body::{Record, split};
use crate::clock::Clock;
use crate::columnar::to_polars;
use crate::decode::Decoder;
use crate::log::{Append, Idempotency, Log, LogError, Payloads};
use crate::partitioner::{self, Partitioner};
use crate::position::{Coverage, Partition};
use crate::reject::{RejectLog, Rejected};
use crate::schema::Format;
use crate::transform;
use crate::view::Catalog;

/// Why nothing of a request was stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// No table reads the topic: correct its name, or define a table.
    #[error("no table has the topic `{topic}`; topics that have one: {}", existing.join(", "))]
    UnknownTopic {
        /// The name given.
        topic: String,
        /// The topics of the tables.
        existing: Vec<String>,
    },
    /// The topic's records are a changelog, which its connector writes to the log itself.
    #[error("topic `{0}` has format debezium-json: its connector writes it to Kafka, and nothing else may")]
    Changelog(String),
    /// The body can't be split into records: send one that can.
    #[error("the body is refused: {0}")]
    Body(String),
    /// The table's `pin` couldn't be evaluated.
    #[error("table `{0}`: its `pin` can't be evaluated: {1}")]
    Pin(String, String),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// How many records are in the log.
    pub accepted: u64,
    /// Those that are not, in order.
    pub rejected: Vec<RejectedLine>,
    /// The offsets of those that are.
    pub offsets: Coverage,
}

/// A record that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLine {
    /// Its line in the body, or its place in the array, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub error: String,
}

/// Takes events in.
pub struct Ingest {
    log: Arc<dyn Log>,
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    rejects: Arc<RejectLog>,
    partitioner: Partitioner,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

impl Ingest {
    /// Takes events into the topics of a project's tables, which have to exist.
    pub fn new(log: Arc<dyn Log>, catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let rejects = Arc::new(RejectLog::open(log.clone(), clock.clone())?);
        Ok(Self { log, catalog, clock, rejects, partitioner: Partitioner::default() })
    }

    /// The rejects log that it writes to.
    pub fn rejects(&self) -> &Arc<RejectLog> {
        &self.rejects
    }

    /// Stores the good records of a body durably and says where. Blocks until they are stored.
    ///
    /// While the log remembers `idempotency_key`, a retry with it is given the first answer, and nothing is stored.
    pub fn ingest(&self, topic: &str, body: &[u8], idempotency_key: Option<&str>) -> Result<Receipt, IngestError> {
        let table = self.catalog.table_of_topic(topic).ok_or_else(|| IngestError::UnknownTopic {
            topic: topic.to_owned(),
            existing: self.catalog.tables.values().map(|table| table.topic.clone()).collect(),
        })?;
        if table.format == Format::DebeziumJson {
            return Err(IngestError::Changelog(topic.to_owned()));
        }
        let records = split(body).map_err(IngestError::Body)?;
        if records.is_empty() {
            return Ok(Receipt::default());
        }
        let topics = self.log.topics()?;
        let Some(&partitions) = topics.get(topic) else {
            let existing = topics.into_keys().collect();
            return Err(LogError::UnknownTopic { topic: topic.to_owned(), existing }.into());
        };

        let payloads = records.iter().map(|record| record.text.as_bytes()).collect::<Payloads>();
        let decoded = Decoder::new(table.clone()).decode(&payloads, &vec![self.clock.now(); payloads.len()]);
        let rejected = decoded
            .rejects
            .iter()
            .map(|reject| RejectedLine { line: records[reject.index as usize].line, error: reject.reason.clone() });
        let rejected = rejected.collect::<Vec<_>>();

        // Rejects first: should the rest fail, a retry finds them stored.
        let rejects = decoded.rejects.iter().zip(&rejected).map(|(reject, line)| Rejected {
            line: Some(line.line),
            ..self.rejects.rejected(topic, line.error.clone(), payloads.get(reject.index as usize))
        });
        let rejects = rejects.collect::<Vec<_>>();
        match idempotency_key {
            Some(key) => self.rejects.record_once(&format!("{topic} {key}"), &rejects)?,
            None => self.rejects.record(&rejects)?,
        }

        let mut receipt = Receipt { accepted: decoded.kept.len() as u64, rejected, offsets: Coverage::new() };
        let pinned = table.pin.as_ref().map(|pin| transform::holds(pin, to_polars(&decoded.batch)?));
        let pinned = pinned.transpose().map_err(|error| IngestError::Pin(table.name.clone(), error.to_string()))?;
        let chosen = self.partitioner.assign(&decoded.batch, table.partition_by, pinned.as_deref(), partitions);
        let idempotency = idempotency_key
            .map(|key| Idempotency { key: key.to_owned(), note: serde_json::to_vec(&receipt).unwrap_or_default() });
        let parts = parts(&payloads, &decoded.kept, &chosen, partitions);
        let keys = table.partition_by.map(|key| keys_of(&partitioner::keys(&decoded.batch, key), &chosen));
        if parts.is_empty() && idempotency.is_none() {
            return Ok(receipt);
        }
        let appended = self.log.append(topic, Append { parts, keys: keys.unwrap_or_default(), idempotency })?;
        if let Some(first) = appended.repeated.as_deref().and_then(|note| serde_json::from_slice(note).ok()) {
            receipt = first;
        }
        receipt.offsets = appended.offsets.into_iter().collect();
        Ok(receipt)
    }
}

/// The kept payloads of each partition that has some, in their order.
fn parts(payloads: &Payloads, kept: &[u32], chosen: &[Partition], partitions: u32) -> Vec<(Partition, Payloads)> {
    if let (1, true) = (partitions, kept.len() == payloads.len()) {
        return vec![(0, payloads.clone())];
    }
    let mut parts = vec![Vec::new(); partitions as usize];
    for (&record, &partition) in kept.iter().zip(chosen) {
        parts[partition as usize].push(payloads.get(record as usize));
    }
    let parts = (0..).zip(parts).filter(|(_, payloads)| !payloads.is_empty());
    parts.map(|(partition, payloads)| (partition, payloads.into_iter().collect())).collect()
}

/// The keys of each partition's records, in their order; a record without a key has an empty one.
fn keys_of(keys: &[Option<String>], chosen: &[Partition]) -> BTreeMap<Partition, Payloads> {
    let mut parts = BTreeMap::<Partition, Vec<&str>>::new();
    for (key, &partition) in keys.iter().zip(chosen) {
        parts.entry(partition).or_default().push(key.as_deref().unwrap_or(""));
    }
    parts.into_iter().map(|(partition, keys)| (partition, keys.into_iter().collect())).collect()
}
