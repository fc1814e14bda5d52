//! Moving a view's state to the frontier of a batch version.
//!
//! | the frontier is …                                  | the state …                                                  |
//! |----------------------------------------------------|--------------------------------------------------------------|
//! | where the state begins                             | stays as it is                                               |
//! | beyond what was read, in any partition             | waits until that has been read                               |
//! | inside what the state covers                       | drops the chunks below it; those that it cuts are folded again |
//! | before the state, in any partition (a rollback)    | is folded anew from there, up to what was read               |
//!
//! What a cut chunk keeps is read from the log again and folded under the watermarks that its journal recorded: the
//! very same events are late as were before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::decode::Decoder;
use anabranch_engine::edition::Editions;
use anabranch_exchange::snapshot::Chunk;
use anabranch_log::clock::Clock;
use anabranch_log::position::{Coverage, Offset, Positions, TopicPartition, of_topic};
use anabranch_log::{Batch, Extras, Log, LogError, LogReader, ReadLimit};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;

use crate::chunk::{Closed, Open};
use crate::error::SpeedError;
use crate::fold::Evaluator;
use crate::journal::{self, Entry};
use crate::late::LateWriter;
use crate::micro_batch::{MicroBatch, decoder, extras};
use crate::state::ViewState;
use crate::watermark::Tracker;

/// How long the log may take to deliver again what it had delivered before: so many waits.
const WAITS: usize = 30;
const WAIT: Duration = Duration::from_secs(1);

/// What is there at once comes within this time, also over a network.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Where a frontier lies relative to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the state begins.
    Start,
    /// Inside what the state covers.
    Inside,
    /// Beyond what was read.
    Ahead,
    /// Before the state.
    Before,
}

impl ViewState {
    /// Where a frontier lies.
    pub fn place(&self, frontier: &Positions<TopicPartition>) -> Place {
        let coverage = self.coverage();
        let at = |p: &TopicPartition| frontier.get(p).copied().unwrap_or(0);
        if frontier.iter().any(|(p, &offset)| offset > coverage.next(p)) {
            Place::Ahead
        } else if coverage.iter().any(|(p, range)| at(p) < range.start) {
            Place::Before
        } else if coverage.iter().all(|(p, range)| at(p) == range.start) {
            Place::Start
        } else {
            Place::Inside
        }
    }

    /// Drops what is below a frontier inside the state. After an error the state is as it was.
    ///
    /// `newest` are the newest event times below the frontier, where they are known: a partition is then read again
    /// from the frontier on, and needs nothing of the log that retention may take once a version covers it.
    pub fn advance(
        &mut self,
        version: u64,
        frontier: &Positions<TopicPartition>,
        newest: &BTreeMap<TopicPartition, Micros>,
        replay: &mut Replay,
    ) -> Result<(), SpeedError> {
        let at = |p: &TopicPartition| frontier.get(p).copied().unwrap_or(0);
        let mut kept = Vec::new();
        for closed in self.chunks()? {
            let coverage = &closed.chunk.coverage;
            let above: Coverage<_> =
                coverage.iter().map(|(p, range)| (p.clone(), range.start.max(at(p))..range.end.max(at(p)))).collect();
            if above.is_empty() {
                continue;
            }
            let panes = if above.len() == coverage.len() {
                closed.chunk.panes.clone()
            } else {
                let begins = newest.iter().filter_map(|(p, &newest)| Some((p, (*frontier.get(p)?, newest))));
                replay.refold((&self.view, &self.evaluator), &closed.journal, &above, &begins.collect())?
            };
            let entries = closed.journal.iter().filter(|entry| entry.next > at(&entry.partition));
            let journal = Arc::new(entries.cloned().collect());
            let early = closed.chunk.early.within(|p| at(p)..Offset::MAX);
            kept.push(Closed::new(Chunk { coverage: above, panes, early }, journal));
        }
        let mut ends = self.open.coverage.ends();
        for (p, &offset) in frontier {
            ends.entry(p.clone()).or_insert(offset);
        }
        self.open = Open::new(&ends, self.open.since);
        self.closed = kept;
        self.base = Some(version);
        self.limit()
    }
}

/// Reads parts of a table's log again.
pub(crate) struct Replay {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    topic: Arc<str>,
    decoder: Decoder,
    editions: Editions,
    extras: Extras,
    limit: ReadLimit,
}

impl Replay {
    pub fn new(
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        table: Arc<Table>,
        (views, editions): (&[Kept], Editions),
        limit: ReadLimit,
    ) -> Self {
        let (topic, decoder) = (table.topic.as_str().into(), decoder(&table, views, &editions));
        Self { log, clock, topic, decoder, editions, extras: extras(views), limit }
    }

    /// The table whose log it is.
    pub fn table(&self) -> &Arc<Table> {
        self.decoder.table()
    }

    /// By which definitions its records are read.
    pub fn editions(&self) -> &Editions {
        &self.editions
    }

    fn failed(&self, source: LogError) -> SpeedError {
        SpeedError::Log { table: self.table().name.clone(), source }
    }

    /// Reads the log from these positions on.
    pub fn reader(&self, from: &Positions<TopicPartition>) -> Result<Box<dyn LogReader>, SpeedError> {
        let from = of_topic(&self.topic, from);
        let mut reader = self.log.reader(&self.topic, &from).map_err(|source| self.failed(source))?;
        reader.bring(self.extras);
        Ok(reader)
    }

    /// What the log has next, if it has it at once.
    pub fn poll_once(&self, reader: &mut dyn LogReader) -> Result<Option<Batch>, SpeedError> {
        reader.poll(self.limit, AT_ONCE).map_err(|source| self.failed(source))
    }

    fn poll(&self, reader: &mut dyn LogReader) -> Result<Option<Batch>, SpeedError> {
        for _ in 0..WAITS {
            if let Some(batch) = reader.poll(self.limit, WAIT).map_err(|source| self.failed(source))? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    fn unread(&self, partition: &TopicPartition, missing: Range<Offset>) -> SpeedError {
        let missing = Coverage::from_iter([(partition.clone(), missing)]);
        SpeedError::Unread { table: self.table().name.clone(), missing }
    }

    /// The panes of the events in `wanted`, each of which meets the watermark that it met first. That follows from where
    /// a micro-batch began, or from an offset whose newest event time is known.
    fn refold(
        &mut self,
        (view, evaluator): (&Kept, &Evaluator),
        journal: &[Entry],
        wanted: &Coverage<TopicPartition>,
        known: &BTreeMap<&TopicPartition, (Offset, Micros)>,
    ) -> Result<BTreeMap<Micros, Arc<anabranch_exchange::snapshot::Pane>>, SpeedError> {
        let mut open = Open::default();
        for (partition, range) in wanted.iter().filter(|(_, range)| !range.is_empty()) {
            let entries = journal::overlapping(journal, partition, range.start, range.end);
            let Some(first) = entries.first() else { return Err(self.unread(partition, range.clone())) };
            let known = known.get(partition).filter(|(offset, _)| (first.first..=range.start).contains(offset));
            let (mut next, newest) = known.copied().unwrap_or((first.first, first.met.before));
            let mut met = MetAgain { entries: &entries, at: 0, newest };
            let mut reader = self.reader(&Positions::from([(partition.clone(), next)]))?;
            while next < range.end {
                let batch = self.poll(&mut *reader)?.ok_or_else(|| self.unread(partition, next..range.end))?;
                next = batch.coverage.end;
                let batch =
                    MicroBatch::decode(&mut self.decoder, &self.topic, &batch, self.clock.now())?.until(range.end);
                let each = met.each(&batch, view.table().watermark_delay);
                let each = each.ok_or_else(|| self.unread(partition, batch.coverage.clone()))?;
                let rows = batch.rows(range);
                let events = batch.events.slice(rows.start as i64, rows.len());
                open.add(view, evaluator.fold(view, events, &batch.times[rows.clone()], &each[rows])?.0)?;
                evaluator.fault(view)?;
            }
        }
        Ok(open.export(view)?.panes.clone())
    }

    /// Feeds a view's state from where it ends up to `to`, under watermarks kept by `tracker`.
    pub fn rebuild(
        &mut self,
        state: &mut ViewState,
        to: &Positions<TopicPartition>,
        mut tracker: Tracker,
        chunk_records: u64,
        late: &mut LateWriter,
    ) -> Result<(), SpeedError> {
        state.set_mark(Arc::new(tracker.clone()));
        let lacking = |state: &ViewState| -> Positions<TopicPartition> {
            to.iter().filter(|&(p, &end)| state.next(p) < end).map(|(p, _)| (p.clone(), state.next(p))).collect()
        };
        let from = lacking(state);
        let mut reader = if from.is_empty() { return Ok(()) } else { self.reader(&from)? };
        while let Some((partition, &next)) = lacking(state).first_key_value() {
            let end = to.get(partition).copied().unwrap_or(next);
            let batch = self.poll(&mut *reader)?.ok_or_else(|| self.unread(partition, next..end))?;
            let end = to.get(&TopicPartition::new(self.topic.clone(), batch.partition)).copied().unwrap_or(0);
            if batch.coverage.start >= end {
                continue;
            }
            self.feed(state, batch, Some(end), &mut tracker, chunk_records, late)?;
        }
        Ok(())
    }

    /// Folds what the log gave, before an offset if it says one, into a view's state, under watermarks kept by `tracker`.
    pub fn feed(
        &mut self,
        state: &mut ViewState,
        batch: Batch,
        end: Option<Offset>,
        tracker: &mut Tracker,
        chunk_records: u64,
        late: &mut LateWriter,
    ) -> Result<(), SpeedError> {
        let decoded = MicroBatch::decode(&mut self.decoder, &self.topic, &batch, self.clock.now())?;
        let decoded = decoded.until(end.unwrap_or(Offset::MAX));
        let batch = MicroBatch {
            records: (state.view.aggregation().late != Late::Discard).then(|| Box::new(batch)),
            ..decoded
        };
        let met = tracker.begin(&batch.partition, batch.at);
        let events = state.apply(&batch, met, &met.each(&batch.times, tracker.delay()))?;
        late.write(&state.view, &batch, &events)?;
        if let Some(newest) = batch.newest() {
            tracker.end(&batch.partition, newest);
        }
        state.close_chunk(Micros::MIN, chunk_records, batch.at, tracker)
    }
}

/// The watermarks that records met, by the journal.
struct MetAgain<'a> {
    entries: &'a [&'a Entry],
    at: usize,
    newest: Micros,
}

impl MetAgain<'_> {
    /// What each row met; none if the journal doesn't know.
    fn each(&mut self, batch: &MicroBatch, delay: Micros) -> Option<Vec<Micros>> {
        let mut each = Vec::with_capacity(batch.times.len());
        for (&offset, &time) in batch.offsets.iter().zip(&batch.times) {
            while offset >= self.entries.get(self.at)?.next {
                self.at += 1;
                self.newest = self.entries.get(self.at)?.met.before;
            }
            let entry = self.entries.get(self.at).filter(|entry| entry.first <= offset)?;
            each.push(entry.met.at(self.newest, delay));
            self.newest = self.newest.max(time);
        }
        Some(each)
    }
}
