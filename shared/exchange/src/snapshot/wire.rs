//! Snapshots on their way from the processes that fold to those that serve: through a topic of the log itself.
//!
//! Each partition of tables that are read together has one owner at a time, which writes to the same partition of the topic [`topic`]. It first
//! appends a *claim*; the claim's offset is the owner's *epoch*. Whoever reads knows the highest epoch, and passes over
//! what an earlier owner may still write. Then come *updates*. An update says what the state consists of, and brings
//! along the panes that were not in the updates before; a *full* one brings them all, so that a reader can begin there.
//! Before the last full update nothing is needed, and it is deleted.
//!
//! A pane is never changed, and every chunk names the offsets that it speaks for. So an update that is lost, torn or
//! repeated is seen to be so: correctness doesn't rest on how the topic was written.
//!
//! A record of the topic, integers little-endian:
//!
//! | bytes | what |
//! |-------|------|
//! | 4     | `ANSP` |
//! | 8     | the epoch; 0 in a claim |
//! | 8     | the update's number in the epoch |
//! | 4, 4  | which part of the update it is, of how many; 0 of 0 in a claim |
//! | …     | the part's bytes |
//!
//! The parts together are an [envelope](anabranch_store::envelope) of kind `ANABUPD\n`, whose header says by topic which offsets the
//! state is of, and whose frames are the panes (Parquet). An update of another build's format is passed over: readers are
//! without a snapshot until an owner of their own build writes. Claims are read whoever made them.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::sync::{Arc, Weak};

use anabranch_engine::partial::{self, Slack};
use anabranch_log::lineage::Marks;
use anabranch_log::position::{Coverage, TopicPartition, by_topic};
use anabranch_log::{Payloads, PayloadsBuilder};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, ViewId};
use anabranch_store::envelope::{EnvelopeError, Frames, Kind, Place, Read};
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Chunk, Early, Pane, Progress, Snapshot};

const MAGIC: &[u8; 4] = b"ANSP";
const HEADER: usize = 4 + 8 + 8 + 4 + 4;

/// What the parts of an update are together. Before format 4 an update was of one topic, before format 3 views went by their names alone,
/// and before format 2 there was neither a kind nor a version.
const KIND: Kind = Kind { magic: b"ANABUPD\n", version: 4, name: "an update of this build's format" };

/// Below the record size that Kafka takes unless told otherwise.
const PART_BYTES: usize = 512 << 10;

/// The topic of the snapshots of tables that are read together, whose [name](anabranch_plan::view::Unit::name) is given. It has as many
/// partitions as theirs.
pub fn topic(unit: &str) -> String {
    // Kafka has no other sign that no table's name has, and that goes with underscores.
    format!("_speed_{}", unit.replace('+', "-"))
}

/// The snapshots of views, of one partition, by view.
pub type Views = BTreeMap<ViewId, Arc<Snapshot>>;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    full: bool,
    views: Vec<ViewHeader>,
    /// The panes that come along.
    panes: BTreeMap<u64, PaneHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ViewHeader {
    name: String,
    definition: String,
    base: Option<u64>,
    rebuilds: u64,
    coverage: Coverage<TopicPartition>,
    watermark: Option<Micros>,
    #[serde(with = "by_topic")]
    partitions: BTreeMap<TopicPartition, Progress>,
    late: u64,
    stopped: Option<String>,
    alone: bool,
    lost: Coverage<TopicPartition>,
    parts: Option<u32>,
    log: Marks,
    other_log: bool,
    chunks: Vec<ChunkHeader>,
}

impl ViewHeader {
    /// A topic of which it says something, and which a view doesn't read.
    fn other_topic(&self, view: &Kept) -> Option<&str> {
        let in_chunks = self.chunks.iter().flat_map(|it| it.coverage.partitions().chain(it.early.offsets.partitions()));
        let own = self.coverage.partitions().chain(self.partitions.keys()).chain(self.lost.partitions());
        let topics = own.chain(in_chunks).map(|partition| &*partition.topic);
        let mut topics = topics.chain(self.log.keys().map(String::as_str));
        topics.find(|topic| view.table_of_topic(topic).is_none())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct ChunkHeader {
    coverage: Coverage<TopicPartition>,
    #[serde(default, skip_serializing_if = "Early::is_empty")]
    early: Early,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsure: Option<(Micros, Micros)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looked_up: Option<Micros>,
    /// The panes by their start.
    panes: BTreeMap<Micros, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PaneHeader {
    /// None if the pane has no rows.
    place: Option<Place>,
    late: BTreeMap<i32, u64>,
    slack: Option<Slack>,
}

/// A claim to be the one who writes. Its offset becomes the epoch.
pub fn claim() -> Payloads {
    Payloads::from_iter([header(0, 0, 0, 0)])
}

/// Whether a record is such a claim.
pub fn is_claim(record: &[u8]) -> bool {
    record == header(0, 0, 0, 0)
}

fn header(epoch: u64, number: u64, part: u32, parts: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&part.to_le_bytes());
    bytes.extend_from_slice(&parts.to_le_bytes());
    bytes
}

/// Turns snapshots into updates.
#[derive(Debug)]
pub struct Encoder {
    epoch: u64,
    number: u64,
    next_pane: u64,
    /// The panes of the last update by their address. Nothing else gets a pane's address while it is here, and the pane's
    /// content isn't kept by it.
    sent: HashMap<usize, (u64, Weak<Pane>)>,
}

impl Encoder {
    /// Updates of an epoch.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, number: 0, next_pane: 0, sent: HashMap::new() }
    }

    /// An update to these snapshots. If it isn't published, the next one has to be full.
    pub fn update(&mut self, views: Vec<(Kept, Arc<Snapshot>)>, full: bool) -> Update {
        let (mut sent, mut panes, mut all) = (HashMap::new(), Vec::new(), Vec::new());
        for (view, snapshot) in views {
            let mut chunks = Vec::new();
            for chunk in &snapshot.chunks {
                let mut panes_of_chunk = BTreeMap::new();
                for (&start, pane) in &chunk.panes {
                    let address = Arc::as_ptr(pane).addr();
                    let known = self.sent.get(&address).map(|(id, _)| *id);
                    let id = known.unwrap_or_else(|| {
                        self.next_pane += 1;
                        self.next_pane
                    });
                    if known.is_none() || full {
                        panes.push((id, pane.clone()));
                    }
                    sent.insert(address, (id, Arc::downgrade(pane)));
                    panes_of_chunk.insert(start, id);
                }
                let (coverage, early) = (chunk.coverage.clone(), chunk.early.clone());
                let (unsure, looked_up) = (chunk.unsure, chunk.looked_up);
                chunks.push(ChunkHeader { coverage, early, unsure, looked_up, panes: panes_of_chunk });
            }
            let told = Snapshot::clone(&snapshot);
            let ViewId { name, definition } = view.id.clone();
            all.push(ViewHeader {
                name,
                definition,
                base: told.base,
                rebuilds: told.rebuilds,
                coverage: told.coverage,
                watermark: told.watermark,
                partitions: told.partitions,
                late: told.late,
                stopped: told.stopped,
                alone: told.alone,
                lost: told.lost,
                parts: told.parts,
                log: told.log,
                other_log: told.other_log,
                chunks,
            });
        }
        (self.sent, self.number) = (sent, self.number + 1);
        Update { epoch: self.epoch, number: self.number, full, views: all, panes }
    }
}

/// An update that isn't yet bytes. Of the snapshots it holds only the panes that it brings.
#[derive(Debug)]
pub struct Update {
    epoch: u64,
    number: u64,
    full: bool,
    views: Vec<ViewHeader>,
    panes: Vec<(u64, Arc<Pane>)>,
}

impl Update {
    /// The panes that it brings.
    pub fn panes(&self) -> impl Iterator<Item = &Pane> {
        self.panes.iter().map(|(_, pane)| &**pane)
    }

    /// Its records. Each pane is let go once it is written, and there are never more than two copies of the bytes.
    pub fn encode(self) -> PolarsResult<Payloads> {
        let (mut panes, mut frames) = (BTreeMap::new(), Frames::default());
        for (id, pane) in self.panes {
            panes.insert(id, encode_pane(&pane, &mut frames)?);
        }
        let sealed = frames.seal(KIND, &Header { full: self.full, views: self.views, panes });
        let pieces = sealed.map_err(|error| polars_err!(ComputeError: "header: {error}"))?;
        let count = pieces.iter().map(|piece| piece.len()).sum::<usize>().div_ceil(PART_BYTES) as u32;
        let (mut records, mut part) = (PayloadsBuilder::default(), 0);
        let mut record = header(self.epoch, self.number, part, count);
        for mut piece in pieces {
            while !piece.is_empty() {
                if record.len() == HEADER + PART_BYTES {
                    records.push(&record);
                    part += 1;
                    record = header(self.epoch, self.number, part, count);
                }
                let room = HEADER + PART_BYTES - record.len();
                record.extend_from_slice(&piece.split_to(room.min(piece.len())));
            }
        }
        records.push(&record);
        Ok(records.finish())
    }
}

fn encode_pane(pane: &Pane, frames: &mut Frames) -> PolarsResult<PaneHeader> {
    let mut place = None;
    if pane.partials.height() > 0 {
        let mut file = Vec::new();
        let mut partials = pane.partials.clone();
        partials.rechunk_mut();
        ParquetWriter::new(&mut file)
            .with_compression(ParquetCompression::Lz4Raw)
            .set_parallel(false)
            .finish(&mut partials)?;
        place = Some(frames.push(file));
    }
    Ok(PaneHeader { place, late: pane.late.clone(), slack: pane.slack })
}

/// Turns one partition's updates back into snapshots.
#[derive(Debug, Default)]
pub struct Decoder {
    epoch: u64,
    /// The update that is being put together, by its number: how many parts it has so far, and their bytes.
    open: Option<(u64, u32, Vec<u8>)>,
    panes: HashMap<u64, Arc<Pane>>,
    /// Whether a full update was seen in this epoch.
    begun: bool,
    /// The last update that was used: what is read again after it is old.
    last: Option<u64>,
    /// Whether it was said that one of this epoch can't be used.
    is_said: bool,
}

impl Decoder {
    /// The epoch of the owner that is listened to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a record in; returns the snapshots once an update is whole. What can't be used is passed over: the next
    /// full update makes up for it.
    pub fn take(&mut self, offset: u64, record: &[u8], views: &[Kept]) -> Option<Views> {
        let (head, part) = record.split_at_checked(HEADER)?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let (parts, _) = rest.split_first_chunk::<4>()?;
        let (number, index, parts) =
            (u64::from_le_bytes(*number), u32::from_le_bytes(*index), u32::from_le_bytes(*parts));
        if magic != MAGIC {
            return None;
        }
        let epoch = if parts == 0 { offset } else { u64::from_le_bytes(*epoch) };
        if epoch > self.epoch || (epoch == self.epoch && parts == 0) {
            *self = Self { epoch, ..Self::default() };
        }
        if epoch < self.epoch || parts == 0 || self.last.is_some_and(|last| number <= last) {
            return None;
        }
        match &mut self.open {
            _ if index == 0 => self.open = Some((number, 1, part.to_vec())),
            Some((open, count, bytes)) if *open == number && *count == index => {
                *count += 1;
                bytes.extend_from_slice(part);
            }
            _ => {
                self.open = None;
                return None;
            }
        }
        let (_, _, body) = self.open.take_if(|(_, count, _)| *count == parts)?;
        let updated = self.update(&body, views);
        if let Err(problem) = &updated
            && !self.is_said
        {
            self.is_said = true;
            let table = views.first().map(|view| view.table().name.as_str());
            let problem = problem.to_string();
            tracing::warn!(table, epoch, offset, problem, "an update of the speed layer's snapshots can't be used");
        }
        let views = updated.ok()??;
        self.last = Some(number);
        Some(views)
    }

    /// The snapshots once the parts are together; none if an update between was lost.
    fn update(&mut self, body: &[u8], views: &[Kept]) -> Result<Option<Views>, EnvelopeError> {
        let (header, frames) = KIND.open::<Header>(body)?;
        if !header.full && !self.begun {
            return Ok(None);
        }
        let mut used: HashMap<u64, Arc<Pane>> = HashMap::new();
        let mut snapshots = Views::new();
        for told in header.views {
            let is_told = |view: &&Kept| (&view.id.name, &view.id.definition) == (&told.name, &told.definition);
            let Some(view) = views.iter().find(is_told) else { continue };
            if let Some(topic) = told.other_topic(view) {
                return Err(EnvelopeError::content(format!("it is of topic `{topic}`, which the view doesn't read")));
            }
            let mut chunks = Vec::new();
            for chunk in told.chunks {
                let mut panes = BTreeMap::new();
                for (start, id) in chunk.panes {
                    let pane = match (used.get(&id).or_else(|| self.panes.get(&id)), header.panes.get(&id)) {
                        (Some(pane), _) => pane.clone(),
                        (None, Some(pane)) => Arc::new(decode_pane(view, pane, frames)?),
                        (None, None) => {
                            self.begun = false;
                            return Ok(None);
                        }
                    };
                    used.insert(id, pane.clone());
                    panes.insert(start, pane);
                }
                let ChunkHeader { coverage, early, unsure, looked_up, .. } = chunk;
                chunks.push(Arc::new(Chunk { coverage, panes, early, unsure, looked_up }));
            }
            let snapshot = Snapshot {
                sequence: 0,
                base: told.base,
                rebuilds: told.rebuilds,
                coverage: told.coverage,
                chunks,
                watermark: told.watermark,
                partitions: told.partitions,
                late: told.late,
                stopped: told.stopped,
                alone: told.alone,
                lost: told.lost,
                parts: told.parts,
                log: told.log,
                other_log: told.other_log,
            };
            snapshots.insert(view.id.clone(), Arc::new(snapshot));
        }
        (self.panes, self.begun) = (used, true);
        Ok(Some(snapshots))
    }
}

fn decode_pane(view: &Kept, pane: &PaneHeader, frames: Read<'_>) -> Result<Pane, EnvelopeError> {
    let read = |file| partial::checked(view, ParquetReader::new(Cursor::new(file)).finish()?);
    let partials = match pane.place {
        None => DataFrame::empty_with_schema(&partial::schema(view.aggregation())),
        Some(place) => read(frames.at(place)?).map_err(|error: PolarsError| EnvelopeError::content(error))?,
    };
    Ok(Pane { partials, late: pane.late.clone(), slack: pane.slack })
}

#[cfg(test)]
mod tests;
