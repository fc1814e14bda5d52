//! Reading the log for the archive.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::decode::{self, Decoder};
use anabranch_exchange::reject::{RejectLog, Rejected};
use anabranch_log::lineage::Tail;
use anabranch_log::position::{Offset, Partition};
use anabranch_log::{Batch, LogReader, ReadLimit};
use anabranch_plan::schema::Table;
use arrow::array::RecordBatch;

use super::Archived;
use super::file::{self, Shape};
use crate::error::BatchError;

/// What has been read and not yet committed.
pub(super) struct Gathered {
    pub batches: Vec<RecordBatch>,
    pub archived: Archived,
    pub rejected: Vec<Rejected>,
    pub rows: usize,
    /// Offsets at which the log has no record: it was compacted, or a transaction ended there.
    pub gaps: Vec<(Partition, Range<Offset>)>,
}

/// Reads what the log has for the archive, up to so many records and bytes.
pub(super) fn gather(
    mut reader: Box<dyn LogReader>,
    (table, shape): (&Arc<Table>, &Shape),
    rejects: &RejectLog,
    mut archived: Archived,
    (target_rows, target_bytes): (usize, usize),
    mut wait: Duration,
) -> Result<(Box<dyn LogReader>, Gathered), BatchError> {
    reader.bring(decode::extras(table));
    let mut decoder = Decoder::new(table.clone());
    let (mut batches, mut rejected, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rows, mut records, mut bytes) = (0, 0, 0);
    while records < target_rows && bytes < target_bytes {
        let limit =
            ReadLimit { records: (target_rows - records).min(100_000), bytes: (target_bytes - bytes).min(32 << 20) };
        let Some(batch) = reader.poll(limit, wait)? else { break };
        wait = Duration::ZERO;
        let mut decoded = decoder.decode_batch(&batch);
        let Batch { partition, coverage, offsets, log_times, payloads, .. } = batch;
        let records_and_end =
            offsets.iter().map(|&offset| offset..offset + 1).chain(std::iter::once(coverage.end..coverage.end));
        records_and_end.fold(coverage.start, |next, held| {
            if held.start > next {
                gaps.push((partition, next..held.start));
            }
            held.end
        });
        archived
            .coverage
            .try_apply(partition, coverage)
            .map_err(|source| BatchError::Position { topic: table.topic.clone(), source })?;
        if let (Some(&offset), Some(&log_time)) = (offsets.last(), log_times.last()) {
            archived.tails.insert(partition, Tail { offset, log_time });
        }
        records += payloads.len();
        bytes += payloads.bytes().len();
        rejected.extend(std::mem::take(&mut decoded.rejects).into_iter().map(|reject| {
            let index = reject.index as usize;
            let rejected = rejects.rejected(&table.topic, reject.reason, payloads.get(index));
            Rejected { partition: Some(partition), offset: Some(offsets[index]), ..rejected }
        }));
        if let Some(&newest) = decoded.event_times().iter().max() {
            let time = archived.event_times.entry(partition).or_insert(newest);
            *time = newest.max(*time);
            rows += decoded.kept.len();
            batches.push(file::with_origin(
                &shape.schema,
                &decoded.batch,
                &decoded.kept,
                partition,
                &offsets,
                &log_times,
            ));
        }
    }
    Ok((reader, Gathered { batches, archived, rejected, rows, gaps }))
}
