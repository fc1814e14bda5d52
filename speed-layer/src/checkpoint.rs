//! Checkpoints: the state of a table's views and the offsets that it stands for, in one atomic object.
//!
//! Format 1, integers little-endian:
//!
//! | bytes | what |
//! |-------|------|
//! | 8     | `ANABSPD\n` |
//! | 4     | the format's version, 1 |
//! | 8     | the length of the metadata |
//! | …     | the metadata, JSON: table, positions, the log that they are of, watermarks, and per view its definition, base, late events and chunks |
//! | …     | per chunk that holds any, its partials as one Parquet file; the metadata says where in this part |
//! | 4     | CRC-32 of everything before |

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use anabranch_engine::edition::Editions;
use anabranch_engine::partial::{self, Slack};
use anabranch_exchange::snapshot::{Chunk, Early, Pane};
use anabranch_log::lineage::{Mark, Tails};
use anabranch_log::position::{Coverage, Positions};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use bytes::Bytes;
use object_store::PutPayload;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::chunk::Closed;
use crate::journal::Entry;
use crate::watermark::Tracker;

mod store;

pub use store::Checkpoints;

const MAGIC: &[u8; 8] = b"ANABSPD\n";
const FORMAT: u32 = 1;

/// All that a table's pipeline needs to go on.
#[derive(Debug)]
pub(crate) struct Image {
    pub tracker: Tracker,
    pub positions: Positions,
    /// By which definitions the records were read.
    pub editions: Editions,
    /// The views by name.
    pub views: BTreeMap<String, ViewImage>,
    /// Which log the offsets are of; none in what was written before logs had marks.
    pub log: Option<Mark>,
    /// The last records that were read.
    pub tails: Tails,
}

/// One view's state.
#[derive(Debug)]
pub(crate) struct ViewImage {
    pub definition: String,
    pub base: Option<u64>,
    pub late: u64,
    pub coverage: Coverage,
    /// The watermarks where it ends, if that is before the table's positions: it had stopped, or was catching up.
    pub tracker: Option<Tracker>,
    pub chunks: Vec<Closed>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    table: String,
    tracker: Tracker,
    positions: Positions,
    #[serde(default)]
    editions: Editions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<Mark>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tails: Tails,
    views: BTreeMap<String, ViewMetadata>,
}

#[derive(Serialize, Deserialize)]
struct ViewMetadata {
    definition: String,
    base: Option<u64>,
    late: u64,
    coverage: Coverage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracker: Option<Tracker>,
    chunks: Vec<ChunkMetadata>,
}

#[derive(Serialize, Deserialize)]
struct ChunkMetadata {
    coverage: Coverage,
    #[serde(default, skip_serializing_if = "Early::is_empty")]
    early: Early,
    journal: Vec<Entry>,
    panes: BTreeMap<Micros, PaneMetadata>,
    /// Where its Parquet file begins after the metadata, and how long it is.
    frame: Option<(usize, usize)>,
}

#[derive(Serialize, Deserialize)]
struct PaneMetadata {
    late: BTreeMap<i32, u64>,
    slack: Option<Slack>,
}

impl Image {
    /// The bytes of a checkpoint, in pieces: there is never a second copy of it.
    pub fn encode(&self, table: &str) -> PolarsResult<PutPayload> {
        let mut frames = Frames::default();
        let mut views = BTreeMap::new();
        for (name, image) in &self.views {
            let chunks =
                image.chunks.iter().map(|closed| encode_chunk(closed, &mut frames)).collect::<Result<_, _>>()?;
            let ViewImage { definition, base, late, coverage, tracker, .. } = image;
            let (definition, base, late, coverage) = (definition.clone(), *base, *late, coverage.clone());
            let tracker = tracker.clone();
            views.insert(name.clone(), ViewMetadata { definition, base, late, coverage, tracker, chunks });
        }
        let (tracker, positions, editions) = (self.tracker.clone(), self.positions.clone(), self.editions.clone());
        let (table, log, tails) = (table.to_owned(), self.log.clone(), self.tails.clone());
        let metadata = serde_json::to_vec(&Metadata { table, tracker, positions, editions, log, tails, views })
            .map_err(|error| polars_err!(ComputeError: "metadata: {error}"))?;
        let header = [&MAGIC[..], &FORMAT.to_le_bytes(), &(metadata.len() as u64).to_le_bytes()].concat();
        let mut pieces: Vec<Bytes> = vec![header.into(), metadata.into()];
        pieces.extend(frames.pieces);
        let mut sum = crc32fast::Hasher::new();
        pieces.iter().for_each(|piece| sum.update(piece));
        pieces.push(sum.finalize().to_le_bytes().to_vec().into());
        Ok(pieces.into_iter().collect())
    }

    /// Reads a checkpoint of a table: those of its views that are still defined as they were. Says what is wrong with
    /// it otherwise.
    pub fn decode(bytes: &[u8], table: &str, views: &[Kept]) -> Result<Self, String> {
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or("it is cut off")?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err("its checksum doesn't match".to_owned());
        }
        let (magic, rest) = body.split_first_chunk::<8>().ok_or("it is cut off")?;
        let (format, rest) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or("it is cut off")?;
        if magic != MAGIC || u32::from_le_bytes(*format) != FORMAT {
            return Err(format!("it isn't a checkpoint of format {FORMAT}"));
        }
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (metadata, frames) = rest.split_at_checked(length).ok_or("it is cut off")?;
        let mut metadata: Metadata = serde_json::from_slice(metadata).map_err(|error| error.to_string())?;
        if metadata.table != table {
            return Err(format!("it is of table `{}`", metadata.table));
        }
        let mut images = BTreeMap::new();
        for (name, image) in std::mem::take(&mut metadata.views) {
            let Some(view) = views.iter().find(|v| v.id.name == name && v.id.definition == image.definition) else {
                continue;
            };
            let chunks =
                image.chunks.into_iter().map(|chunk| decode_chunk(view, chunk, frames)).collect::<Result<_, _>>();
            let chunks = chunks.map_err(|error: PolarsError| format!("view `{name}`: {error}"))?;
            let ViewMetadata { definition, base, late, coverage, tracker, .. } = image;
            images.insert(name, ViewImage { definition, base, late, coverage, tracker, chunks });
        }
        let Metadata { tracker, positions, editions, log, tails, .. } = metadata;
        Ok(Self { tracker, positions, editions, views: images, log, tails })
    }
}

/// The Parquet files of a checkpoint, one after the other.
#[derive(Default)]
struct Frames {
    pieces: Vec<Bytes>,
    length: usize,
}

/// The rows of a row group: of small panes as many as make one.
const ROWS: usize = 262_144;

fn encode_chunk(closed: &Closed, frames: &mut Frames) -> PolarsResult<ChunkMetadata> {
    let pane = |pane: &Pane| PaneMetadata { late: pane.late.clone(), slack: pane.slack };
    let panes = closed.chunk.panes.iter().map(|(&start, it)| (start, pane(it))).collect();
    let mut held = closed.chunk.panes.values().map(|pane| &pane.partials).filter(|frame| frame.height() > 0).peekable();
    let mut place = None;
    if let Some(first) = held.peek() {
        let mut file = Vec::new();
        let writer = ParquetWriter::new(&mut file).with_compression(ParquetCompression::Lz4Raw).set_parallel(false);
        let mut writer = writer.batched(first.schema())?;
        let mut rows: Option<DataFrame> = None;
        while let Some(frame) = held.next() {
            let mut all = match rows.take() {
                None => frame.clone(),
                Some(mut all) => all.vstack_mut(frame).cloned()?,
            };
            if all.height() < ROWS && held.peek().is_some() {
                rows = Some(all);
                continue;
            }
            all.rechunk_mut();
            for start in (0..all.height()).step_by(ROWS) {
                writer.write_batch(&all.slice(start as i64, ROWS))?;
            }
        }
        writer.finish()?;
        drop(writer);
        file.shrink_to_fit();
        place = Some((frames.length, file.len()));
        frames.length += file.len();
        frames.pieces.push(file.into());
    }
    let Chunk { coverage, early, .. } = &*closed.chunk;
    let (coverage, early, journal) = (coverage.clone(), early.clone(), closed.journal.to_vec());
    Ok(ChunkMetadata { coverage, early, journal, panes, frame: place })
}

fn decode_chunk(view: &Kept, chunk: ChunkMetadata, frames: &[u8]) -> PolarsResult<Closed> {
    let ChunkMetadata { coverage, early, journal, panes: held, frame } = chunk;
    let mut partials = BTreeMap::new();
    if let Some((start, length)) = frame {
        let bytes = frames.get(start..start.saturating_add(length));
        let bytes = bytes.ok_or_else(|| polars_err!(ComputeError: "a frame is outside the file"))?;
        partials.extend(partial::by_pane(&partial::checked(
            view.aggregation(),
            ParquetReader::new(Cursor::new(bytes)).finish()?,
        )?)?);
    }
    let mut panes = BTreeMap::new();
    for (start, PaneMetadata { late, slack }) in held {
        let empty = || DataFrame::empty_with_schema(&partial::schema(view.aggregation()));
        let partials = partials.remove(&start).unwrap_or_else(empty);
        panes.insert(start, Arc::new(Pane { partials, late, slack }));
    }
    Ok(Closed::new(Chunk { coverage, panes, early }, Arc::new(journal)))
}

#[cfg(test)]
mod tests;
