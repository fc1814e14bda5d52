//! Events from clients to the log: what `POST /v1/topics/{topic}/events`, `DELETE /v1/topics/{topic}/events/{key}` and
//! `anabranch produce` share.
//!
//! Records are checked by the [`Decoder`] that the layers use, so what is accepted here is a row there, but for one
//! whose event time is judged by the log's own clock. The good ones are appended as they were sent, all or none (see [`Log::append`]); the
//! bad ones go to the rejects log, and the client is told of the first of them. A deletion is one tombstone: an empty record that has
//! the row's key.
//!
//! A body may hold millions of records, good or bad. So it is read piece by piece, and what is kept until its end are the good
//! records' bytes and the errors that the client is told. The pieces that hold bad records are decoded once more to record these.

mod body;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;

use anabranch_engine::columnar::to_polars;
use anabranch_engine::decode::{DELETED, Decoded, Decoder, key};
use anabranch_engine::partitioner::{self, Partitioner};
use anabranch_engine::transform;
use anabranch_log::clock::Clock;
use anabranch_log::position::Coverage;
use anabranch_log::{Append, Batch, Idempotency, Log, LogError, Payloads, PayloadsBuilder};
use anabranch_plan::schema::{DataType, Format, Table};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Catalog;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::body::{Form, Record, Records, split};
use crate::reject::{RejectLog, Rejected};

/// The errors of so many records are told to the client.
pub const MAX_TOLD: usize = 100;

/// So many records are decoded at once, unless they have [`PIECE_BYTES`] before.
const PIECE_RECORDS: usize = 8_192;

/// So many bytes of records are decoded at once.
const PIECE_BYTES: usize = 1 << 20;

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
    /// The topic's records are the rows of a view, which writes them itself.
    #[error("topic `{0}` has the rows of view `{1}`, which writes them itself, and nothing else may")]
    Rows(String, String),
    /// No row of the table can be deleted by one value: see the way out.
    #[error("{0}")]
    NotByKey(String),
    /// A row's key isn't of the type of the table's.
    #[error("nothing is deleted: {0}")]
    Key(String),
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// How many records are in the log.
    pub accepted: u64,
    /// Those that are not, in order: the first [`MAX_TOLD`].
    pub rejected: Vec<RejectedLine>,
    /// How many are not.
    pub rejected_count: u64,
    /// The offsets of those that are.
    pub offsets: Coverage,
    /// Whether it is the answer to an earlier request with this key, and nothing was stored now.
    #[serde(skip)]
    pub repeated: bool,
}

/// A record that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLine {
    /// Its line in the body, or its place in the array, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub error: String,
}

/// What the log remembers of a request with a key, beside its offsets.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    accepted: u64,
    rejected: Vec<RejectedLine>,
    /// Not in notes of earlier programs, which told all errors.
    #[serde(default)]
    rejected_count: u64,
    /// The time by which its records were judged.
    #[serde(default)]
    at: Option<Micros>,
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
    /// While the log remembers `key`, a retry with it is given the first answer, and nothing is stored; another body with it is
    /// refused.
    pub fn ingest(&self, topic: &str, body: &[u8], form: Form, key: Option<&str>) -> Result<Receipt, IngestError> {
        let table = self.table(topic)?;
        let records = split(body, form).map_err(IngestError::Body)?;
        let sent = Sent { table, records, tombstone: None, now: self.clock.now() };
        let judged = self.judge(&sent)?;
        if judged.receipt == Receipt::default() {
            return Ok(judged.receipt);
        }
        self.store(sent, judged, key.map(|key| (key, body)))
    }

    /// Deletes the row of a changelog whose primary key, one column, has a value, which may be there or not. Otherwise as
    /// [`Ingest::ingest`].
    pub fn delete(&self, topic: &str, value: &str, key: Option<&str>) -> Result<Receipt, IngestError> {
        let table = self.table(topic)?;
        let [column] = table.primary_key[..] else { return Err(not_by_key(table)) };
        let column = &table.columns[column];
        let of_row = match column.data_type {
            DataType::Text if !key::is_plain(value) => key::object([(column.name.as_str(), value.into())]),
            _ => value.to_owned(),
        };
        let records = Records::One(Record { line: 1, text: b"".into() });
        let sent = Sent { table, records, tombstone: Some(of_row), now: self.clock.now() };
        let judged = self.judge(&sent)?;
        if let Some(rejected) = judged.receipt.rejected.first() {
            return Err(IngestError::Key(rejected.error.clone()));
        }
        let request = format!("DELETE {value}");
        self.store(sent, judged, key.map(|key| (key, request.as_bytes())))
    }

    /// The table whose events may be sent to a topic.
    fn table(&self, topic: &str) -> Result<&Arc<Table>, IngestError> {
        let table = self.catalog.table_of_topic(topic).ok_or_else(|| IngestError::UnknownTopic {
            topic: topic.to_owned(),
            existing: self.catalog.tables.values().map(|table| table.topic.clone()).collect(),
        })?;
        if let Some((view, _)) = self.catalog.emitted().find(|(_, emission)| emission.topic == topic) {
            return Err(IngestError::Rows(topic.to_owned(), view.id.name.clone()));
        }
        match table.format {
            Format::DebeziumJson => Err(IngestError::Changelog(topic.to_owned())),
            Format::Json => Ok(table),
        }
    }

    /// Stores what was judged to be good, with a key for one request, which is known by these bytes.
    fn store(
        &self,
        mut sent: Sent<'_>,
        mut judged: Judged,
        request: Option<(&str, &[u8])>,
    ) -> Result<Receipt, IngestError> {
        let topic = &sent.table.topic;
        let Some((key, body)) = request else {
            // Rejects first: events that are stored and not acknowledged would be sent again.
            self.record_rejects(&sent, judged.receipt.rejected_count, None)?;
            if judged.receipt.accepted > 0 {
                let appended = self.log.append(topic, judged.append())?;
                judged.receipt.offsets = appended.offsets.into_iter().collect();
            }
            return Ok(judged.receipt);
        };
        let Receipt { accepted, rejected, rejected_count, .. } = judged.receipt.clone();
        let note = Note { accepted, rejected, rejected_count, at: Some(sent.now) };
        let idempotency = Idempotency {
            key: key.to_owned(),
            digest: Some(Sha256::digest(body).into()),
            note: serde_json::to_vec(&note).unwrap_or_default(),
        };
        let appended = self.log.append(topic, Append { idempotency: Some(idempotency), ..judged.append() })?;
        let mut receipt = Receipt { repeated: appended.repeated.is_some(), ..judged.receipt };
        if let Some(first) = appended.repeated.as_deref().and_then(|note| serde_json::from_slice::<Note>(note).ok()) {
            (receipt.accepted, receipt.rejected) = (first.accepted, first.rejected);
            receipt.rejected_count = first.rejected_count.max(receipt.rejected.len() as u64);
            sent.now = first.at.unwrap_or(sent.now);
        }
        receipt.offsets = appended.offsets.into_iter().collect();
        // Rejects last: a key that came with another body before records none. The first request may have died before it did.
        self.record_rejects(&sent, receipt.rejected_count, Some(key))?;
        Ok(receipt)
    }

    /// Judges all records, and gathers the good ones by partition.
    fn judge(&self, sent: &Sent<'_>) -> Result<Judged, IngestError> {
        let table = sent.table;
        let topics = self.log.topics()?;
        let Some(&partitions) = topics.get(&table.topic) else {
            let existing = topics.into_keys().collect();
            return Err(LogError::UnknownTopic { topic: table.topic.clone(), existing }.into());
        };
        let mut parts: Vec<Part> = (0..partitions).map(|_| Part::default()).collect();
        let mut receipt = Receipt::default();
        for (piece, decoded) in sent.pieces() {
            receipt.accepted += decoded.kept.len() as u64;
            receipt.rejected_count += decoded.rejects.len() as u64;
            let told = decoded.rejects.iter().take(MAX_TOLD - receipt.rejected.len());
            receipt.rejected.extend(
                told.map(|reject| RejectedLine {
                    line: piece.lines[reject.index as usize],
                    error: reject.reason.clone(),
                }),
            );
            let pinned = table.pin.as_ref().map(|pin| transform::holds(pin, to_polars(&decoded.batch)?));
            let pinned = pinned.transpose().map_err(|error| IngestError::Pin(table.name.clone(), error.to_string()))?;
            let keys = partitioner::record_keys(&decoded.batch, table);
            let chosen = self.partitioner.assign(decoded.kept.len(), keys.as_deref(), pinned.as_deref(), partitions);
            for (row, (&record, &partition)) in decoded.kept.iter().zip(&chosen).enumerate() {
                let part = &mut parts[partition as usize];
                part.payloads.push(piece.payloads.get(record as usize));
                if let Some(keys) = &keys {
                    part.keys.push(keys[row].as_deref().unwrap_or("").as_bytes());
                }
            }
        }
        Ok(Judged { receipt, parts })
    }

    /// Records a request's bad records, of which there are so many: if it has a key, once for each key.
    fn record_rejects(&self, sent: &Sent<'_>, mut count: u64, key: Option<&str>) -> Result<(), LogError> {
        let topic = &sent.table.topic;
        let mut pieces = sent.pieces().enumerate();
        while count > 0
            && let Some((i, (piece, decoded))) = pieces.next()
        {
            count = count.saturating_sub(decoded.rejects.len() as u64);
            let rejects = decoded.rejects.into_iter().map(|reject| {
                let record = piece.payloads.get(reject.index as usize);
                let line = Some(piece.lines[reject.index as usize]);
                Rejected { line, ..self.rejects.rejected(topic, reject.reason, record) }
            });
            let key = key.map(|key| format!("{topic} {key} {i}"));
            self.rejects.record_sent(rejects, key.as_deref())?;
        }
        Ok(())
    }
}

/// Why no row of a table is known by one value.
fn not_by_key(table: &Table) -> IngestError {
    let name = &table.name;
    let key: Vec<&str> = table.primary_key.iter().map(|&column| table.columns[column].name.as_str()).collect();
    IngestError::NotByKey(match &key[..] {
        [] => format!(
            "table `{name}` has no PRIMARY KEY: what was sent to it stays, and only the rows of a changelog can be deleted"
        ),
        key => {
            let object: String = key.iter().map(|column| format!("\"{column}\": …, ")).collect();
            format!(
                "the primary key of table `{name}` has several columns: send the event {{{object}\"{DELETED}\": true}} to delete a row"
            )
        }
    })
}

/// A request's records.
struct Sent<'a> {
    table: &'a Arc<Table>,
    records: Records<'a>,
    /// The key of the one record, if that is a tombstone.
    tombstone: Option<String>,
    /// The time by which they are judged.
    now: Micros,
}

/// Some consecutive records of a request.
struct Piece {
    lines: Vec<u64>,
    payloads: Payloads,
}

impl Sent<'_> {
    /// All records, piece by piece, and what the decoder makes of them.
    fn pieces(&self) -> impl Iterator<Item = (Piece, Decoded)> {
        let mut decoder = Decoder::new(self.table.clone());
        let mut records = self.records.iter();
        let pieces = std::iter::from_fn(move || {
            let (mut lines, mut payloads) = (Vec::new(), PayloadsBuilder::default());
            while lines.len() < PIECE_RECORDS && payloads.bytes() < PIECE_BYTES {
                let Some(record) = records.next() else { break };
                lines.push(record.line);
                payloads.push(&record.text);
            }
            (!lines.is_empty()).then(|| Piece { lines, payloads: payloads.finish() })
        });
        pieces.map(move |piece| {
            let batch = Batch {
                log_times: vec![self.now; piece.lines.len()],
                payloads: piece.payloads.clone(),
                keys: self.tombstone.as_ref().map(|key| Payloads::from_iter([key])),
                ..Batch::default()
            };
            (piece, decoder.decode_batch(&batch))
        })
    }
}

/// The good records of one partition, in their order.
#[derive(Default)]
struct Part {
    payloads: PayloadsBuilder,
    /// Their keys, if the table has such; a record without one has an empty one.
    keys: PayloadsBuilder,
}

/// A request whose records have been judged.
struct Judged {
    /// Still without offsets.
    receipt: Receipt,
    parts: Vec<Part>,
}

impl Judged {
    /// What is to be stored; it is taken out.
    fn append(&mut self) -> Append {
        let mut append = Append::default();
        for (partition, part) in (0..).zip(std::mem::take(&mut self.parts)) {
            let (payloads, keys) = (part.payloads.finish(), part.keys.finish());
            if !payloads.is_empty() {
                append.parts.push((partition, payloads));
            }
            if !keys.is_empty() {
                append.keys.insert(partition, keys);
            }
        }
        append
    }
}
