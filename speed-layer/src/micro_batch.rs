//! A micro-batch: consecutive records of one partition, decoded.

use std::ops::Range;
use std::sync::Arc;

use anabranch_engine::columnar::to_polars;
use anabranch_engine::decode::{self, Decoder, Reject};
use anabranch_engine::edition::Editions;
use anabranch_exchange::snapshot::Early;
use anabranch_log::lineage::Tail;
use anabranch_log::position::{Offset, TopicPartition};
use anabranch_log::{Batch, Extras};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::error::SpeedError;

/// The rows that a log batch's good records make.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    /// The partition of all records.
    pub partition: TopicPartition,
    /// The offsets that it speaks for.
    pub coverage: Range<Offset>,
    /// The table's columns.
    pub events: DataFrame,
    /// Each row's offset, ascending.
    pub offsets: Vec<Offset>,
    /// Each row's event time.
    pub times: Vec<Micros>,
    /// When the log took the records, and how many in a row at each time.
    pub taken: Vec<(Micros, u64)>,
    /// How many records were no rows.
    pub rejected: usize,
    /// Its records that may be rows to whoever reads them later.
    pub early: Early,
    /// When it was read, by the clock.
    pub at: Micros,
    /// The last record, as the log has it.
    pub tail: Option<Tail>,
    /// The records as they are in the log, if a view wants them of late events.
    pub records: Option<Box<Batch>>,
}

impl MicroBatch {
    /// Decodes a batch of a topic that was read at `at`.
    pub fn decode(decoder: &mut Decoder, topic: &Arc<str>, batch: &Batch, at: Micros) -> Result<Self, SpeedError> {
        let decoded = decoder.decode_batch(batch);
        let partition = TopicPartition::new(topic.clone(), batch.partition);
        let mut early = Early::default();
        for Reject { index, early: time, .. } in &decoded.rejects {
            let offset = batch.offsets[*index as usize];
            time.iter().for_each(|&time| early.add(partition.clone(), offset..offset + 1, time));
        }
        let events = to_polars(&decoded.batch)
            .map_err(|source| SpeedError::Columns { table: decoder.table().name.clone(), source })?;
        Ok(Self {
            partition,
            coverage: batch.coverage.clone(),
            events,
            offsets: decoded.kept.iter().map(|&i| batch.offsets[i as usize]).collect(),
            times: decoded.event_times().to_vec(),
            taken: batch.log_times.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u64)).collect(),
            rejected: decoded.rejects.len(),
            early,
            at,
            tail: batch
                .offsets
                .last()
                .zip(batch.log_times.last())
                .map(|(&offset, &log_time)| Tail { offset, log_time }),
            records: None,
        })
    }

    /// What is before an offset.
    pub fn until(mut self, end: Offset) -> Self {
        if end < self.coverage.end {
            self.coverage.end = end.max(self.coverage.start);
            let rows = self.rows(&self.coverage).len();
            self.events = self.events.slice(0, rows);
            self.offsets.truncate(rows);
            self.times.truncate(rows);
        }
        self
    }

    /// The rows with an offset in the range.
    pub fn rows(&self, offsets: &Range<Offset>) -> Range<usize> {
        let start = self.offsets.partition_point(|&offset| offset < offsets.start);
        let end = self.offsets.partition_point(|&offset| offset < offsets.end);
        start..end.max(start)
    }

    /// The newest event time.
    pub fn newest(&self) -> Option<Micros> {
        self.times.iter().copied().max()
    }
}

/// A decoder that makes what the views read, of each record by the definition that governs it.
pub(crate) fn decoder(table: &Arc<Table>, views: &[Kept], editions: &Editions) -> Decoder {
    Decoder::reading(table.clone(), |column| views.iter().any(|view| view.reads(column))).by(editions)
}

/// What records have to bring along for the views: late events are written with all of it.
pub(crate) fn extras(views: &[Kept]) -> Extras {
    let any = |a: Extras, b: Extras| Extras { keys: a.keys || b.keys, headers: a.headers || b.headers };
    let of_view = |view: &Kept| match view.aggregation().late {
        Late::Topic(_) => Extras { keys: true, headers: true },
        Late::Discard | Late::Rejects => {
            view.tables().into_iter().map(|table| decode::extras(table)).fold(Extras::default(), any)
        }
    };
    views.iter().map(of_view).fold(Extras::default(), any)
}
