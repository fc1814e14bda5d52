//! Snapshots on their way from the processes that fold to those that serve: through a topic of the log itself.
//!
//! Each partition of a table has one owner at a time, which writes to the same partition of the topic [`topic`]. It first
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
//! The parts together are the length of the metadata (8), the metadata (JSON), the panes (Parquet) and a CRC-32 (4).

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::sync::{Arc, Weak};

use anabranch_engine::partial::{self, Slack};
use anabranch_log::Payloads;
use anabranch_log::lineage::Mark;
use anabranch_log::position::{Coverage, Partition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Chunk, Early, Pane, Progress, Snapshot};

const MAGIC: &[u8; 4] = b"ANSP";
const HEADER: usize = 4 + 8 + 8 + 4 + 4;

/// Below the record size that Kafka takes unless told otherwise.
const PART_BYTES: usize = 512 << 10;

/// The topic of a table's snapshots. It has as many partitions as the table's own topic.
pub fn topic(table: &str) -> String {
    format!("_speed_{table}")
}

/// The snapshots of a table's views, of one partition, by view.
pub type Views = BTreeMap<String, Arc<Snapshot>>;

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    full: bool,
    views: BTreeMap<String, ViewMetadata>,
    /// The panes that come along: where each begins after the metadata and how long it is.
    panes: BTreeMap<u64, PaneMetadata>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ViewMetadata {
    definition: String,
    base: Option<u64>,
    #[serde(default)]
    rebuilds: u64,
    coverage: Coverage,
    watermark: Option<Micros>,
    #[serde(default)]
    partitions: BTreeMap<Partition, Progress>,
    late: u64,
    stopped: Option<String>,
    #[serde(default)]
    alone: bool,
    #[serde(default)]
    lost: Coverage,
    #[serde(default)]
    log: Option<Mark>,
    #[serde(default)]
    other_log: bool,
    chunks: Vec<ChunkMetadata>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ChunkMetadata {
    coverage: Coverage,
    #[serde(default, skip_serializing_if = "Early::is_empty")]
    early: Early,
    /// The panes by their start.
    panes: BTreeMap<Micros, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PaneMetadata {
    /// None if the pane has no rows.
    place: Option<(usize, usize)>,
    late: BTreeMap<i32, u64>,
    slack: Option<Slack>,
}

/// A claim to be the one who writes. Its offset becomes the epoch.
pub fn claim() -> Payloads {
    Payloads::from_iter([header(0, 0, 0, 0)])
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
        let (mut sent, mut panes, mut all) = (HashMap::new(), Vec::new(), BTreeMap::new());
        for (view, snapshot) in views {
            let mut chunks = Vec::new();
            for chunk in &snapshot.chunks {
                let mut named = BTreeMap::new();
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
                    named.insert(start, id);
                }
                let (coverage, early) = (chunk.coverage.clone(), chunk.early.clone());
                chunks.push(ChunkMetadata { coverage, early, panes: named });
            }
            let told = Snapshot::clone(&snapshot);
            let metadata = ViewMetadata {
                definition: view.id.definition.clone(),
                base: told.base,
                rebuilds: told.rebuilds,
                coverage: told.coverage,
                watermark: told.watermark,
                partitions: told.partitions,
                late: told.late,
                stopped: told.stopped,
                alone: told.alone,
                lost: told.lost,
                log: told.log,
                other_log: told.other_log,
                chunks,
            };
            all.insert(view.id.name.clone(), metadata);
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
    views: BTreeMap<String, ViewMetadata>,
    panes: Vec<(u64, Arc<Pane>)>,
}

impl Update {
    /// The panes that it brings.
    pub fn panes(&self) -> impl Iterator<Item = &Pane> {
        self.panes.iter().map(|(_, pane)| &**pane)
    }

    /// Its records. Each pane is let go once it is written, and there are never more than two copies of the bytes.
    pub fn encode(self) -> PolarsResult<Payloads> {
        let (mut panes, mut frames) = (BTreeMap::new(), Vec::new());
        for (id, pane) in self.panes {
            panes.insert(id, encode_pane(&pane, &mut frames)?);
        }
        let metadata = serde_json::to_vec(&Metadata { full: self.full, views: self.views, panes })
            .map_err(|error| polars_err!(ComputeError: "metadata: {error}"))?;
        let mut body = Vec::with_capacity(8 + metadata.len() + frames.len() + 4);
        body.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        body.extend_from_slice(&metadata);
        body.extend_from_slice(&frames);
        drop(frames);
        body.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        let parts = body.chunks(PART_BYTES);
        let count = parts.len() as u32;
        let record = |(i, part): (u32, &[u8])| [header(self.epoch, self.number, i, count).as_slice(), part].concat();
        Ok((0..).zip(parts).map(record).collect())
    }
}

fn encode_pane(pane: &Pane, frames: &mut Vec<u8>) -> PolarsResult<PaneMetadata> {
    let mut place = None;
    if pane.partials.height() > 0 {
        let start = frames.len();
        let mut partials = pane.partials.clone();
        partials.rechunk_mut();
        ParquetWriter::new(&mut *frames)
            .with_compression(ParquetCompression::Lz4Raw)
            .set_parallel(false)
            .finish(&mut partials)?;
        place = Some((start, frames.len() - start));
    }
    Ok(PaneMetadata { place, late: pane.late.clone(), slack: pane.slack })
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
}

impl Decoder {
    /// The epoch of the owner that is listened to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a record in; returns the snapshots once an update is whole. What can't be used is passed over: the next
    /// full update makes up for it.
    pub fn take(&mut self, offset: u64, record: &[u8], views: &BTreeMap<String, Kept>) -> Option<Views> {
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
        let views = self.update(&body, views)?;
        self.last = Some(number);
        Some(views)
    }

    fn update(&mut self, body: &[u8], views: &BTreeMap<String, Kept>) -> Option<Views> {
        let (body, sum) = body.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (length, rest) = body.split_first_chunk::<8>()?;
        let (metadata, frames) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let metadata: Metadata = serde_json::from_slice(metadata).ok()?;
        if !metadata.full && !self.begun {
            return None;
        }
        self.begun = true;
        let mut named: HashMap<u64, Arc<Pane>> = HashMap::new();
        let mut snapshots = Views::new();
        for (name, told) in metadata.views {
            let Some(view) = views.get(&name).filter(|view| view.id.definition == told.definition) else { continue };
            let mut chunks = Vec::new();
            for chunk in told.chunks {
                let mut panes = BTreeMap::new();
                for (start, id) in chunk.panes {
                    let pane = match (named.get(&id).or_else(|| self.panes.get(&id)), metadata.panes.get(&id)) {
                        (Some(pane), _) => pane.clone(),
                        (None, Some(pane)) => Arc::new(decode_pane(view, pane, frames).ok()?),
                        (None, None) => {
                            // An update between was lost.
                            self.begun = false;
                            return None;
                        }
                    };
                    named.insert(id, pane.clone());
                    panes.insert(start, pane);
                }
                chunks.push(Arc::new(Chunk { coverage: chunk.coverage, panes, early: chunk.early }));
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
                log: told.log,
                other_log: told.other_log,
            };
            snapshots.insert(name, Arc::new(snapshot));
        }
        self.panes = named;
        Some(snapshots)
    }
}

fn decode_pane(view: &Kept, pane: &PaneMetadata, frames: &[u8]) -> PolarsResult<Pane> {
    let partials = match pane.place {
        None => DataFrame::empty_with_schema(&partial::schema(view.aggregation())),
        Some((start, length)) => {
            let bytes = frames.get(start..start.saturating_add(length));
            let bytes = bytes.ok_or_else(|| polars_err!(ComputeError: "a pane is outside the update"))?;
            partial::checked(view.aggregation(), ParquetReader::new(Cursor::new(bytes)).finish()?)?
        }
    };
    Ok(Pane { partials, late: pane.late.clone(), slack: pane.slack })
}
