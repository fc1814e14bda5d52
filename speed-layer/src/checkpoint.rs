//! Checkpoints: the state of a table's views and the offsets that it stands for, in one atomic object.
//!
//! It is an [envelope](anabranch_store::envelope) of kind `ANABSPD\n`. The header has the table, and by topic its positions, the log
//! that they are of and watermarks; of each view its name and definition, base, late events and chunks. The frames are the partials of
//! each chunk that holds any, one Parquet file a chunk. Format 1 had no topics, and in format 2 views went by their names alone.
//! Both are read no more: the state is built again.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use anabranch_engine::edition::Editions;
use anabranch_engine::partial::{self, Slack};
use anabranch_exchange::snapshot::{Chunk, Early, Pane};
use anabranch_log::lineage::{Mark, Tails};
use anabranch_log::position::{ByTopic, Coverage, Positions, TopicPartition, by_topic, check_topic};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, ViewId};
use anabranch_store::envelope::{EnvelopeError, Frames, Kind, Place, Read};
use object_store::PutPayload;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::chunk::Closed;
use crate::journal::{self, Entry};
use crate::watermark::Tracker;

mod store;

pub use store::Checkpoints;

const KIND: Kind = Kind { magic: b"ANABSPD\n", version: 3, name: "a checkpoint" };

/// All that a table's pipeline needs to go on.
#[derive(Debug)]
pub(crate) struct Image {
    pub tracker: Tracker,
    pub positions: Positions<TopicPartition>,
    /// By which definitions the records were read.
    pub editions: Editions,
    /// The views.
    pub views: BTreeMap<ViewId, ViewImage>,
    /// Which log the offsets are of; none in what was written before logs had marks.
    pub log: Option<Mark>,
    /// The last records that were read.
    pub tails: Tails,
}

/// One view's state.
#[derive(Debug)]
pub(crate) struct ViewImage {
    pub base: Option<u64>,
    pub late: u64,
    pub coverage: Coverage<TopicPartition>,
    /// The watermarks where it ends, if that is before the table's positions: it had stopped, or was catching up.
    pub tracker: Option<Tracker>,
    pub chunks: Vec<Closed>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    table: String,
    tracker: Tracker,
    #[serde(with = "by_topic")]
    positions: Positions<TopicPartition>,
    editions: ByTopic<Editions>,
    log: Option<ByTopic<Mark>>,
    tails: ByTopic<Tails>,
    views: Vec<ViewHeader>,
}

#[derive(Serialize, Deserialize)]
struct ViewHeader {
    name: String,
    definition: String,
    base: Option<u64>,
    late: u64,
    coverage: Coverage<TopicPartition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracker: Option<Tracker>,
    chunks: Vec<ChunkHeader>,
}

#[derive(Serialize, Deserialize)]
struct ChunkHeader {
    coverage: Coverage<TopicPartition>,
    #[serde(default, skip_serializing_if = "Early::is_empty")]
    early: Early,
    #[serde(with = "journal")]
    journal: Vec<Entry>,
    panes: BTreeMap<Micros, PaneHeader>,
    /// Where its Parquet file is.
    frame: Option<Place>,
}

#[derive(Serialize, Deserialize)]
struct PaneHeader {
    late: BTreeMap<i32, u64>,
    slack: Option<Slack>,
}

impl Image {
    /// The bytes of a checkpoint, in pieces: there is never a second copy of it.
    pub fn encode(&self, table: &str, topic: &str) -> PolarsResult<PutPayload> {
        let mut frames = Frames::default();
        let mut views = Vec::new();
        for (id, image) in &self.views {
            let chunks = image.chunks.iter().map(|closed| encode_chunk(closed, &mut frames));
            views.push(ViewHeader {
                name: id.name.clone(),
                definition: id.definition.clone(),
                base: image.base,
                late: image.late,
                coverage: image.coverage.clone(),
                tracker: image.tracker.clone(),
                chunks: chunks.collect::<Result<_, _>>()?,
            });
        }
        let header = Header {
            table: table.to_owned(),
            tracker: self.tracker.clone(),
            positions: self.positions.clone(),
            editions: ByTopic::of(topic, self.editions.clone()),
            log: self.log.clone().map(|log| ByTopic::of(topic, log)),
            tails: ByTopic::of(topic, self.tails.clone()),
            views,
        };
        let pieces = frames.seal(KIND, &header).map_err(|error| polars_err!(ComputeError: "header: {error}"))?;
        Ok(pieces.into_iter().collect())
    }

    /// Reads a checkpoint of a table and its topic: those of its views that are still defined as they were. Says what is wrong
    /// with it otherwise.
    pub fn decode(bytes: &[u8], table: &str, topic: &str, views: &[Kept]) -> Result<Self, EnvelopeError> {
        let (header, frames) = KIND.open::<Header>(bytes)?;
        if header.table != table {
            return Err(EnvelopeError::Content(format!("it is of table `{}`", header.table)));
        }
        let mut images = BTreeMap::new();
        for ViewHeader { name, definition, base, late, coverage, tracker, chunks } in header.views {
            let id = ViewId { name, definition };
            let Some(view) = views.iter().find(|view| view.id == id) else { continue };
            let chunks =
                chunks.into_iter().map(|chunk| decode_chunk(view, topic, chunk, frames)).collect::<Result<_, _>>()?;
            let of_tracker = tracker.iter().flat_map(Tracker::partitions);
            check_topic(topic, coverage.partitions().chain(of_tracker)).map_err(EnvelopeError::content)?;
            images.insert(id, ViewImage { base, late, coverage, tracker, chunks });
        }
        check_topic(topic, header.tracker.partitions()).map_err(EnvelopeError::content)?;
        check_topic(topic, header.positions.keys()).map_err(EnvelopeError::content)?;
        Ok(Self {
            tracker: header.tracker,
            positions: header.positions,
            editions: header.editions.only(topic).map_err(EnvelopeError::content)?,
            views: images,
            log: header.log.map(|log| log.only(topic)).transpose().map_err(EnvelopeError::content)?,
            tails: header.tails.only(topic).map_err(EnvelopeError::content)?,
        })
    }
}

/// The rows of a row group: of small panes as many as make one.
const ROWS: usize = 262_144;

fn encode_chunk(closed: &Closed, frames: &mut Frames) -> PolarsResult<ChunkHeader> {
    let pane = |pane: &Pane| PaneHeader { late: pane.late.clone(), slack: pane.slack };
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
        place = Some(frames.push(file));
    }
    let Chunk { coverage, early, .. } = &*closed.chunk;
    Ok(ChunkHeader {
        coverage: coverage.clone(),
        early: early.clone(),
        journal: closed.journal.to_vec(),
        panes,
        frame: place,
    })
}

fn decode_chunk(view: &Kept, topic: &str, chunk: ChunkHeader, frames: Read<'_>) -> Result<Closed, EnvelopeError> {
    let read = |file| partial::by_pane(&partial::checked(view, ParquetReader::new(Cursor::new(file)).finish()?)?);
    let ChunkHeader { coverage, early, journal, panes: held, frame } = chunk;
    let mut partials = BTreeMap::new();
    if let Some(place) = frame {
        partials.extend(read(frames.at(place)?).map_err(|error: PolarsError| EnvelopeError::content(error))?);
    }
    let mut panes = BTreeMap::new();
    for (start, PaneHeader { late, slack }) in held {
        let empty = || DataFrame::empty_with_schema(&partial::schema(view.aggregation()));
        let partials = partials.remove(&start).unwrap_or_else(empty);
        panes.insert(start, Arc::new(Pane { partials, late, slack }));
    }
    let of_journal = journal.iter().map(|entry| &entry.partition);
    let partitions = coverage.partitions().chain(early.offsets.partitions()).chain(of_journal);
    check_topic(topic, partitions).map_err(EnvelopeError::content)?;
    Ok(Closed::new(Chunk { coverage, panes, early, unsure: None, looked_up: None }, Arc::new(journal)))
}

#[cfg(test)]
mod tests;
