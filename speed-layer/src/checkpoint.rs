//! Checkpoints: the state of a pipeline's views and the offsets that it stands for, in one atomic object.
//!
//! It is an [envelope](anabranch_store::envelope) of kind `ANABSPD\n`. The header has the pipeline's name, and by topic positions, the log
//! that they are of and watermarks; of each view its name and definition, base, late events and chunks. The frames are the partials of
//! each chunk that holds any, one Parquet file a chunk, and those of what the operators of a view keep. Format 1 had no topics, in
//! format 2 views went by their names alone, and format 3 was of one topic and had no operators. These are read no more: the state is
//! built again.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use anabranch_engine::edition::Editions;
use anabranch_engine::partial::{self, Slack};
use anabranch_exchange::snapshot::{Chunk, Early, Pane};
use anabranch_exchange::version::state;
use anabranch_log::lineage::{Marks, Tail};
use anabranch_log::position::{Coverage, Positions, TopicPartition, by_topic, check_topics};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, ViewId};
use anabranch_store::envelope::{EnvelopeError, Frames, Kind, Place, Read};
use object_store::PutPayload;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::across::Image as AcrossImage;
use crate::chunk::Closed;
use crate::journal::{self, Entry};
use crate::watermark::Tracker;

mod store;

pub use store::Checkpoints;

/// What operators keep is in it: if that is stored otherwise, this version is raised with theirs.
const KIND: Kind = Kind { magic: b"ANABSPD\n", version: 4, name: "a checkpoint" };

/// All that a pipeline needs to go on.
#[derive(Debug)]
pub(crate) struct Image {
    pub tracker: Tracker,
    pub positions: Positions<TopicPartition>,
    /// By which definitions the records of each topic were read.
    pub editions: BTreeMap<String, Editions>,
    /// Among how many pipelines the tables were shared out; none if they weren't.
    pub parts: Option<u32>,
    /// The views.
    pub views: BTreeMap<ViewId, ViewImage>,
    /// Which logs the offsets are of.
    pub log: Marks,
    /// The last records that were read.
    pub tails: BTreeMap<TopicPartition, Tail>,
}

/// One view's state.
#[derive(Debug)]
pub(crate) struct ViewImage {
    pub base: Option<u64>,
    pub late: u64,
    pub coverage: Coverage<TopicPartition>,
    /// The watermarks where it ends, if that is before the pipeline's positions: it had stopped, or was catching up.
    pub tracker: Option<Tracker>,
    pub chunks: Vec<Closed>,
    /// What its operators keep, if it has any.
    pub across: Option<AcrossImage>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    tracker: Tracker,
    #[serde(with = "by_topic")]
    positions: Positions<TopicPartition>,
    editions: BTreeMap<String, Editions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<u32>,
    log: Marks,
    #[serde(with = "by_topic")]
    tails: BTreeMap<TopicPartition, Tail>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    across: Option<AcrossHeader>,
}

#[derive(Serialize, Deserialize)]
struct AcrossHeader {
    state: state::Header,
    settled: Option<Micros>,
    unsure: Option<(Micros, Micros)>,
}

#[derive(Serialize, Deserialize)]
struct ChunkHeader {
    coverage: Coverage<TopicPartition>,
    #[serde(default, skip_serializing_if = "Early::is_empty")]
    early: Early,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsure: Option<(Micros, Micros)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looked_up: Option<Micros>,
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
    pub fn encode(&self, name: &str) -> PolarsResult<PutPayload> {
        let mut frames = Frames::default();
        let mut views = Vec::new();
        for (id, image) in &self.views {
            let chunks = image.chunks.iter().map(|closed| encode_chunk(closed, &mut frames));
            let chunks = chunks.collect::<Result<_, _>>()?;
            let across = |AcrossImage { state, settled, unsure }: &AcrossImage| {
                let state = state::put(state, &mut frames)?;
                PolarsResult::Ok(AcrossHeader { state, settled: *settled, unsure: *unsure })
            };
            views.push(ViewHeader {
                name: id.name.clone(),
                definition: id.definition.clone(),
                base: image.base,
                late: image.late,
                coverage: image.coverage.clone(),
                tracker: image.tracker.clone(),
                chunks,
                across: image.across.as_ref().map(across).transpose()?,
            });
        }
        let header = Header {
            name: name.to_owned(),
            tracker: self.tracker.clone(),
            positions: self.positions.clone(),
            editions: self.editions.clone(),
            parts: self.parts,
            log: self.log.clone(),
            tails: self.tails.clone(),
            views,
        };
        let pieces = frames.seal(KIND, &header).map_err(|error| polars_err!(ComputeError: "header: {error}"))?;
        Ok(pieces.into_iter().collect())
    }

    /// Reads a checkpoint of a pipeline and its topics: those of its views that are still defined as they were. Says what is
    /// wrong with it otherwise.
    pub fn decode(bytes: &[u8], name: &str, topics: &[&str], views: &[Kept]) -> Result<Self, EnvelopeError> {
        let (header, frames) = KIND.open::<Header>(bytes)?;
        if header.name != name {
            return Err(EnvelopeError::Content(format!("it is of `{}`", header.name)));
        }
        let mut images = BTreeMap::new();
        for ViewHeader { name, definition, base, late, coverage, tracker, chunks, across } in header.views {
            let id = ViewId { name, definition };
            let Some(view) = views.iter().find(|view| view.id == id) else { continue };
            let chunks =
                chunks.into_iter().map(|chunk| decode_chunk(view, topics, chunk, frames)).collect::<Result<_, _>>()?;
            let of_tracker = tracker.iter().flat_map(Tracker::partitions);
            check_topics(topics, coverage.partitions().chain(of_tracker)).map_err(EnvelopeError::content)?;
            let kept = |AcrossHeader { state, settled, unsure }| {
                Ok::<_, EnvelopeError>(AcrossImage { state: state::take(state, frames)?, settled, unsure })
            };
            let across = across.map(kept).transpose()?;
            images.insert(id, ViewImage { base, late, coverage, tracker, chunks, across });
        }
        check_topics(topics, header.tracker.partitions()).map_err(EnvelopeError::content)?;
        check_topics(topics, header.positions.keys()).map_err(EnvelopeError::content)?;
        Ok(Self {
            tracker: header.tracker,
            positions: header.positions,
            editions: header.editions,
            parts: header.parts,
            views: images,
            log: header.log,
            tails: header.tails,
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
    let Chunk { coverage, early, unsure, looked_up, .. } = &*closed.chunk;
    Ok(ChunkHeader {
        coverage: coverage.clone(),
        early: early.clone(),
        unsure: *unsure,
        looked_up: *looked_up,
        journal: closed.journal.to_vec(),
        panes,
        frame: place,
    })
}

fn decode_chunk(view: &Kept, topics: &[&str], chunk: ChunkHeader, frames: Read<'_>) -> Result<Closed, EnvelopeError> {
    let read = |file| partial::by_pane(&partial::checked(view, ParquetReader::new(Cursor::new(file)).finish()?)?);
    let ChunkHeader { coverage, early, unsure, looked_up, journal, panes: held, frame } = chunk;
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
    check_topics(topics, partitions).map_err(EnvelopeError::content)?;
    Ok(Closed::new(Chunk { coverage, panes, early, unsure, looked_up }, Arc::new(journal)))
}

#[cfg(test)]
mod tests;
