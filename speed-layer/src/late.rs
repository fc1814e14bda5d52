//! Late events on the side, for the views that ask for them: to the rejects log, or as records of a topic.
//!
//! Those of a partition are written in the order of their offsets, before a checkpoint passes over them: so a crash loses
//! none. What is at or below the highest offset that is there already is not written again, so it leaves none twice either.
//! The rejects log sees to that itself; of a topic the last records tell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::render::write_json_text;
use anabranch_engine::row::ROW;
use anabranch_exchange::reject::{RejectLog, Rejected};
use anabranch_log::position::{Offset, Partition, Positions, TopicPartition};
use anabranch_log::{Append, Batch, Log, LogError, Payloads, ReadLimit};
use anabranch_plan::aggregation::Late;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Kept;
use polars::prelude::*;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::error::{SpeedError, reason};
use crate::fold::{Evaluator, failed};
use crate::micro_batch::MicroBatch;
use crate::wait::{pause, wait};

/// How many of a topic's last records are looked through for where it ends, before more are.
const TAIL: u64 = 1_000;

/// An event that came too late for windows of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LateEvent {
    /// Its row in the micro-batch.
    pub row: usize,
    /// How many of its windows were closed for good.
    pub missed: i32,
    /// The watermark that it met.
    pub met: Micros,
}

/// Those of a micro-batch's `events`, which are its `rows`, that had missed windows and that the view makes rows of.
/// `each` is what the rows of the micro-batch met.
pub(crate) fn events(
    view: &Kept,
    evaluator: &Evaluator,
    mut events: DataFrame,
    missed: &[i32],
    rows: Range<usize>,
    each: &[Micros],
) -> Result<Vec<LateEvent>, SpeedError> {
    let is_late: BooleanChunked = missed.iter().map(|&missed| missed > 0).collect();
    let numbers: Vec<IdxSize> = (0..missed.len() as IdxSize).collect();
    let taken = || {
        events.with_column(Column::new(ROW.into(), numbers))?;
        evaluator.rows(view).taken(events.filter(&is_late)?.lazy())
    };
    let taken = taken().map_err(failed(view, "finding what came late"))?;
    let event = |row: IdxSize| {
        let (row, missed) = (rows.start + row as usize, missed[row as usize]);
        LateEvent { row, missed, met: each[row] }
    };
    Ok(taken.into_iter().map(event).collect())
}

/// Writes the late events of a pipeline's views.
pub(crate) struct LateWriter {
    log: Arc<dyn Log>,
    rejects: Arc<RejectLog>,
    shutdown: CancellationToken,
    /// The highest offset of each partition that the topic of a view has.
    written: BTreeMap<(String, TopicPartition), Option<Offset>>,
}

impl LateWriter {
    pub fn new(log: Arc<dyn Log>, rejects: Arc<RejectLog>, shutdown: CancellationToken) -> Self {
        Self { log, rejects, shutdown, written: BTreeMap::new() }
    }

    /// Writes the events of a micro-batch that came late for a view, where the view wants them. Blocks until they are stored.
    pub fn write(&mut self, view: &Kept, batch: &MicroBatch, late: &[LateEvent]) -> Result<(), SpeedError> {
        let Some(records) = batch.records.as_ref().filter(|_| !late.is_empty()) else { return Ok(()) };
        let mut failures = 0;
        loop {
            let written = match &view.aggregation().late {
                Late::Discard => Ok(()),
                Late::Rejects => self.reject(view, batch, records, late),
                Late::Topic(topic) => self.send(topic, view, batch, records, late),
            };
            fail::fail_point!("speed::after_late");
            let Err(source) = written else { return Ok(()) };
            let may_pass = matches!(source, LogError::Backend { .. } | LogError::StorageFull { .. });
            let error = SpeedError::Late { view: view.id.name.clone(), source };
            if !may_pass || self.shutdown.is_cancelled() {
                return Err(error);
            }
            tracing::warn!(
                view = view.id.name,
                reason = reason(&error),
                "late events wait to be written; trying again"
            );
            wait(&self.shutdown, pause(failures));
            failures += 1;
        }
    }

    fn reject(&self, view: &Kept, batch: &MicroBatch, records: &Batch, late: &[LateEvent]) -> Result<(), LogError> {
        let rejected = late.iter().map(|event| {
            let told = Told::of(view, batch, records, event);
            let reason = match told.windows {
                1 => "late: its window was closed for good".to_owned(),
                windows => format!("late: {} of its {windows} windows were closed for good", event.missed),
            };
            Rejected {
                partition: Some(batch.partition.partition),
                offset: Some(told.offset),
                view: Some(view.id.name.clone()),
                behind_ms: Some(told.behind_ms),
                ..self.rejects.rejected(&batch.partition.topic, reason, records.payloads.get(told.index))
            }
        });
        self.rejects.record(&rejected.collect::<Vec<_>>())
    }

    fn send(
        &mut self,
        topic: &str,
        view: &Kept,
        batch: &MicroBatch,
        records: &Batch,
        late: &[LateEvent],
    ) -> Result<(), LogError> {
        let partitions = self.log.bounds(topic)?.len().max(1) as u32;
        let place = batch.partition.partition % partitions;
        let of = (view.id.name.clone(), batch.partition.clone());
        let written = match self.written.get(&of) {
            Some(written) => *written,
            None => self.highest(topic, place, view, &batch.partition)?,
        };
        let told = late.iter().map(|event| Told::of(view, batch, records, event));
        let told = told.filter(|told| written.is_none_or(|written| told.offset > written));
        let told: Vec<_> = told.map(|told| (told.key(records), record(view, batch, records, &told))).collect();
        self.append(topic, place, &told)?;
        let last = late.last().map(|event| batch.offsets[event.row]);
        self.written.insert(of, written.max(last));
        Ok(())
    }

    fn append(&self, topic: &str, place: Partition, records: &[(&[u8], Vec<u8>)]) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        let payloads: Payloads = records.iter().map(|(_, record)| record).collect();
        let keys: Payloads = records.iter().map(|(key, _)| key).collect();
        let append = Append { parts: vec![(place, payloads)], keys: [(place, keys)].into(), ..Append::default() };
        match (self.log.append(topic, append), records) {
            (Err(error @ LogError::TooLarge { .. }), [_]) => {
                tracing::error!(topic, reason = reason(&error), "a late event isn't written");
                Ok(())
            }
            (Err(LogError::TooLarge { .. }), _) => {
                records.chunks(1).try_for_each(|record| self.append(topic, place, record))
            }
            (appended, _) => appended.map(drop),
        }
    }

    /// The highest offset of a partition that the topic of a view has.
    fn highest(
        &self,
        topic: &str,
        place: Partition,
        view: &Kept,
        of: &TopicPartition,
    ) -> Result<Option<Offset>, LogError> {
        let held = self.log.bounds(topic)?.remove(&place).unwrap_or(0..0);
        let (mut tail, mut end, mut highest) = (TAIL, held.end, None);
        while highest.is_none() && end > held.start {
            let start = end.saturating_sub(tail).max(held.start);
            let mut reader = self.log.reader(topic, &Positions::from([(place, start)]))?;
            let limit = ReadLimit { records: TAIL as usize, bytes: 8 << 20 };
            while let Some(batch) = reader.poll(limit, Duration::from_secs(1))? {
                let origins = batch.payloads.iter().filter_map(|record| serde_json::from_slice::<Origin>(record).ok());
                let ours = origins.filter(|origin| {
                    origin.view == view.id.name && *origin.topic == *of.topic && origin.partition == of.partition
                });
                highest = ours.map(|origin| origin.offset).max().max(highest);
                if batch.coverage.end >= end {
                    break;
                }
            }
            (end, tail) = (start, tail * 8);
        }
        Ok(highest)
    }
}

/// What a topic says of a late event.
fn record(view: &Kept, batch: &MicroBatch, records: &Batch, told: &Told) -> Vec<u8> {
    let Told { index, offset, time, behind_ms, windows, event } = *told;
    let mut record = b"{\"view\":".to_vec();
    write_json_text(&view.id.name, &mut record);
    record.extend_from_slice(b",\"topic\":");
    write_json_text(&batch.partition.topic, &mut record);
    let (partition, missed) = (batch.partition.partition, event.missed);
    let (time, watermark) = (format_timestamp(time), format_timestamp(event.met));
    let numbers = format!(
        ",\"partition\":{partition},\"offset\":{offset},\"event_time\":\"{time}\",\"watermark\":\"{watermark}\",\
         \"behind_ms\":{behind_ms},\"missed\":{missed},\"windows\":{windows}"
    );
    record.extend_from_slice(numbers.as_bytes());
    let key = told.key(records);
    if !key.is_empty() {
        record.extend_from_slice(b",\"key\":");
        write_json_text(&String::from_utf8_lossy(key), &mut record);
    }
    if let Some(headers) = records.headers.as_ref().map(|all| all.get(index)).filter(|text| !text.is_empty()) {
        record.extend_from_slice(b",\"headers\":");
        record.extend_from_slice(headers);
    }
    record.extend_from_slice(b",\"record\":");
    record.extend_from_slice(records.payloads.get(index));
    record.push(b'}');
    record
}

/// Where a record of a topic of late events came from.
#[derive(Deserialize)]
struct Origin {
    view: String,
    topic: String,
    partition: Partition,
    offset: Offset,
}

/// What is told of a late event.
struct Told<'a> {
    /// Its place among the records that the log delivered.
    index: usize,
    offset: Offset,
    time: Micros,
    behind_ms: i64,
    /// How many windows would have held it.
    windows: usize,
    event: &'a LateEvent,
}

impl<'a> Told<'a> {
    fn of(view: &Kept, batch: &MicroBatch, records: &Batch, event: &'a LateEvent) -> Self {
        let (offset, time) = (batch.offsets[event.row], batch.times[event.row]);
        let index = records.offsets.partition_point(|&other| other < offset);
        let windows = view.aggregation().window.map_or(0, |window| window.starts(time).count());
        Self { index, offset, time, behind_ms: (event.met - time) / 1_000, windows, event }
    }

    /// The record's key; empty if it has none, or the log keeps none.
    fn key<'b>(&self, records: &'b Batch) -> &'b [u8] {
        records.keys.as_ref().map_or(&[], |keys| keys.get(self.index))
    }
}
