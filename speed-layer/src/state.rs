//! A view's state: chunks that join without a gap, standing on the frontier of a batch version.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anabranch_engine::operator::Part;
use anabranch_exchange::snapshot::Chunk;
use anabranch_exchange::version::Version;
use anabranch_log::position::{Coverage, Offset, Positions, TopicPartition};
use anabranch_plan::aggregation::Late;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;

use crate::across::Across;
use crate::checkpoint::ViewImage;
use crate::chunk::{Closed, Open};
use crate::error::{SpeedError, Stop};
use crate::fold::{Added, Evaluator};
use crate::journal::{self, Entry};
use crate::late::{self, LateEvent};
use crate::micro_batch::MicroBatch;
use crate::watermark::{Met, Tracker};

/// With more closed chunks, neighbours are merged.
const CLOSED_CHUNKS: usize = 8;

/// Positions, and for partitions that they don't have those of `zero`.
pub(crate) fn with(
    zero: &Positions<TopicPartition>,
    positions: &Positions<TopicPartition>,
) -> Positions<TopicPartition> {
    zero.iter().chain(positions).map(|(p, &offset)| (p.clone(), offset)).collect()
}

/// How far a state had come when its newest chunk was exported or closed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mark {
    /// The watermarks; none before the first time.
    pub tracker: Option<Arc<Tracker>>,
    /// The events that had come too late.
    pub late: u64,
}

/// The state of one view.
#[derive(Debug)]
pub(crate) struct ViewState {
    /// The view.
    pub view: Kept,
    /// What evaluates it.
    pub evaluator: Evaluator,
    /// What its rows go through that are made of several records.
    pub across: Option<Across>,
    /// The batch version that it stands on.
    pub base: Option<u64>,
    /// The chunks that take no more records, in order of coverage.
    pub closed: Vec<Closed>,
    /// The chunk that does.
    pub open: Open,
    /// How many events came too late for a window, since the state began.
    pub late: u64,
    /// Where the last chunk that others may see ends.
    pub mark: Mark,
    /// What the rows make that wait, as it was shown last.
    pub shown_pending: Option<Arc<Chunk>>,
    /// Why it goes on no further, if evaluating the view has failed.
    pub stopped: Option<Stop>,
    /// How far the watermark stays behind.
    delay: Micros,
}

impl ViewState {
    /// A state that covers nothing yet and begins at these positions. It is of a part of the tables, or of all.
    pub fn new(
        view: Kept,
        base: Option<u64>,
        from: &Positions<TopicPartition>,
        part: Option<Part>,
        now: Micros,
    ) -> Self {
        let (delay, evaluator) = (view.table().watermark_delay, Evaluator::new(&view));
        let (mark, open) = (Mark::default(), Open::new(from, now));
        let mut state = Self {
            view,
            evaluator,
            across: None,
            base,
            closed: Vec::new(),
            open,
            late: 0,
            mark,
            shown_pending: None,
            stopped: None,
            delay,
        };
        state.across = state.attempt(|state| Across::new(&state.view, part)).flatten();
        state
    }

    /// A state that begins at the frontier of a version; the pipeline's partitions begin at these positions.
    pub fn standing_on(
        view: Kept,
        version: &Version,
        from: &Positions<TopicPartition>,
        part: Option<Part>,
        now: Micros,
    ) -> Self {
        let mut state = Self::new(view, Some(version.published.version), from, part, now);
        state.across = state.attempt(|state| Across::standing_on(&state.view, version, part)).flatten();
        state
    }

    /// A state that goes on from what a checkpoint has of it, where these are the watermarks. It has stopped if that can't be. The
    /// pipeline's partitions begin at `zero`.
    pub fn restored(
        view: Kept,
        image: ViewImage,
        tracker: &Tracker,
        zero: &Positions<TopicPartition>,
        part: Option<Part>,
        now: Micros,
    ) -> Self {
        let ViewImage { base, late, coverage, chunks, across, .. } = image;
        let mut state = Self::new(view, base, &with(zero, &coverage.ends()), part, now);
        (state.closed, state.late) = (chunks, late);
        state.set_mark(Arc::new(tracker.clone()));
        state.attempt(|state| {
            state.across = Across::restored(&state.view, across, part)?;
            state.shown_pending = state.pending()?;
            Ok(())
        });
        state
    }

    /// Whether its rows are made of several records.
    pub fn looks_across(&self) -> bool {
        self.view.rows.looks_across()
    }

    /// What the chunks cover together.
    pub fn coverage(&self) -> Coverage<TopicPartition> {
        let all = self.closed.iter().map(|closed| &closed.chunk.coverage).chain([&self.open.coverage]);
        let mut sum: BTreeMap<TopicPartition, Range<Offset>> = Default::default();
        for (partition, range) in all.flat_map(Coverage::iter) {
            sum.entry(partition.clone()).or_insert(range.start..range.start).end = range.end;
        }
        sum.into_iter().collect()
    }

    /// The next offset of a partition that it lacks.
    pub fn next(&self, partition: &TopicPartition) -> Offset {
        self.open.coverage.next(partition)
    }

    /// Folds what it lacks of a micro-batch, whose records met `each`, which follows from `met`. Hands out what came too late,
    /// if the view wants to know.
    pub fn apply(&mut self, batch: &MicroBatch, met: Met, each: &[Micros]) -> Result<Vec<LateEvent>, SpeedError> {
        let (partition, next) = (&batch.partition, self.next(&batch.partition));
        if batch.coverage.end <= next {
            return Ok(Vec::new());
        }
        let range = batch.coverage.start.max(next)..batch.coverage.end;
        let mut coverage = self.open.coverage.clone();
        coverage
            .try_apply(partition.clone(), range.clone())
            .map_err(|source| SpeedError::Position { view: self.view.id.name.clone(), source })?;
        let rows = batch.rows(&range);
        let events = batch.events.slice(rows.start as i64, rows.len());
        let Self { view, evaluator, across, .. } = self;
        let (added, missed) = match across {
            Some(across) => {
                (across.fold((view, evaluator), partition, events.clone(), &batch.offsets[rows.clone()])?, None)
            }
            None => evaluator.fold(view, events.clone(), &batch.times[rows.clone()], &each[rows.clone()])?,
        };
        let late = match missed {
            Some(missed) if view.aggregation().late != Late::Discard => {
                late::events(view, evaluator, events, &missed, rows, each)?
            }
            _ => Vec::new(),
        };
        self.add(added)?;
        self.evaluator.fault(&self.view)?;
        self.open.coverage = coverage;
        self.open.early.merge(&batch.early.within(|_| range.clone()));
        if self.across.as_ref().is_some_and(|across| across.reads_whole(&partition.topic)) {
            let least = batch.times[batch.rows(&range)].iter().min().copied();
            self.open.looked_up = self.open.looked_up.into_iter().chain(least).min();
        }
        // What looks across records is never folded again from a chunk's records alone.
        if self.across.is_none() {
            let Range { start: first, end: next } = batch.coverage;
            let entry = Entry { partition: partition.clone(), first, next, met };
            journal::push(&mut self.open.journal, entry, self.delay);
        }
        self.limit()?;
        Ok(late)
    }

    fn add(&mut self, added: BTreeMap<Micros, Added>) -> Result<(), SpeedError> {
        let late = added.values().flat_map(|added| added.late.values()).sum::<u64>();
        self.open.add(&self.view, added)?;
        match &mut self.across {
            // The records that came too late, not the rows that they make.
            Some(across) => {
                self.open.unsure = across.unsure();
                self.late += across.take_late();
            }
            None => self.late += late,
        }
        Ok(())
    }

    /// Folds the rows that settle as the tables' watermark has come so far. Whether there was anything to do.
    pub fn settle(&mut self, watermark: Option<Micros>) -> Result<bool, SpeedError> {
        let Self { view, evaluator, across: Some(across), .. } = self else { return Ok(false) };
        let Some(added) = across.settle(view, evaluator, watermark)? else { return Ok(false) };
        self.add(added)?;
        self.limit()?;
        Ok(true)
    }

    /// What the rows make that wait, as others see it; none if the view's rows are each made of one record.
    pub fn pending(&mut self) -> Result<Option<Arc<Chunk>>, SpeedError> {
        let Self { view, evaluator, across, .. } = self;
        across.as_mut().map(|across| across.pending(view, evaluator)).transpose()
    }

    /// Closes the open chunk if it has taken records since `before`, or more than `records`. It stays open while
    /// there is no room for another. `tracker` knows the watermarks where it ends.
    pub fn close_chunk(
        &mut self,
        before: Micros,
        records: u64,
        now: Micros,
        tracker: &Tracker,
    ) -> Result<(), SpeedError> {
        let covered = self.open.coverage.len();
        if covered == 0 {
            self.open.since = now;
        } else if (self.open.since <= before || now < self.open.since || covered >= records) && self.make_room()? {
            self.settle(tracker.watermark())?;
            // Should the view go back to this chunk, what waits is what waited here.
            let pending = self.pending()?;
            self.closed.push(self.open.close(&self.view, now)?);
            self.shown_pending = pending;
            self.set_mark(Arc::new(tracker.clone()));
        }
        Ok(())
    }

    fn make_room(&mut self) -> Result<bool, SpeedError> {
        if self.closed.len() < CLOSED_CHUNKS {
            return Ok(true);
        }
        let pairs = self.closed.windows(2).enumerate().filter(|(_, pair)| pair[0].can_merge(&pair[1]));
        let Some((i, _)) = pairs.min_by_key(|(_, pair)| pair[0].rows() + pair[1].rows()) else { return Ok(false) };
        self.closed[i] = self.closed[i].merge(&self.closed[i + 1], &self.view)?;
        self.closed.remove(i + 1);
        Ok(true)
    }

    /// The rows of state.
    pub fn rows(&self) -> usize {
        self.closed.iter().map(Closed::rows).sum::<usize>() + self.open.rows()
    }

    /// The bytes of state.
    pub fn bytes(&self) -> usize {
        self.panes_bytes() + self.across.as_ref().map_or(0, Across::bytes)
    }

    fn panes_bytes(&self) -> usize {
        self.closed.iter().map(|closed| closed.bytes).sum::<usize>() + self.open.bytes()
    }

    /// Keeps to the view's limits.
    pub fn limit(&mut self) -> Result<(), SpeedError> {
        let lacks_rows = |state: &Self| state.rows() > state.view.aggregation().max_rows;
        let lacks_bytes = |state: &Self| state.view.aggregation().memory.is_some_and(|memory| state.bytes() > memory);
        while (lacks_rows(self) || lacks_bytes(self)) && self.degrade(lacks_bytes(self))? {}
        Ok(())
    }

    /// Gives up rows that are kept for others to come.
    fn give_way(&mut self) -> Result<bool, SpeedError> {
        let Self { view, evaluator, across: Some(across), .. } = self else { return Ok(false) };
        let (added, is_smaller) = across.give_way(view, evaluator)?;
        // They are kept for their keys.
        let too_large = (!is_smaller).then(|| across.is_too_large(view));
        self.add(added)?;
        tracing::warn!(view = self.view.id.name, "rows that wait for others were given up: memory has run out");
        too_large.map_or(Ok(true), Err)
    }

    /// Degrades the pane with most rows to save, or where bytes are lacking gives up rows that wait, if these take most of it. Whether that
    /// made the state smaller.
    pub fn degrade(&mut self, lacks_bytes: bool) -> Result<bool, SpeedError> {
        let (rows, bytes) = (self.rows(), self.bytes());
        if lacks_bytes && self.across.as_ref().is_some_and(|across| across.bytes() > self.panes_bytes()) {
            return self.give_way();
        }
        let Some((chunk, start)) = self.largest() else { return Ok(false) };
        let again = match chunk {
            Some(i) => self.closed[i].degrade(&self.view, start)?,
            None => {
                self.open.touch();
                let Some(pane) = self.open.panes.get_mut(&start) else { return Ok(false) };
                pane.degrade(&self.view)?
            }
        };
        if again {
            tracing::debug!(view = self.view.id.name, pane = start, rows, bytes, "a pane was degraded further");
        } else {
            tracing::warn!(
                view = self.view.id.name,
                pane = start,
                rows,
                bytes,
                "a pane was degraded: memory has run out"
            );
        }
        Ok(self.rows() < rows || self.bytes() < bytes)
    }

    /// The pane with most rows to save, and the closed chunk that it is in. A closed pane takes no keys, so there is none to
    /// refuse; only a sketch makes it smaller.
    fn largest(&self) -> Option<(Option<usize>, Micros)> {
        let is_top_k = self.view.aggregation().is_top_k_by_count();
        let closed = self.closed.iter().enumerate().filter(|_| is_top_k).flat_map(|(i, closed)| {
            closed.chunk.panes.keys().map(move |&start| (closed.spare_rows(start), (Some(i), start)))
        });
        let open = self.open.panes.iter().map(|(&start, pane)| (pane.spare_rows(&self.view), (None, start)));
        closed.chain(open).filter(|(rows, _)| *rows > 0).max_by_key(|(rows, _)| *rows).map(|(_, pane)| pane)
    }

    /// All chunks, the open one as if it were closed.
    pub fn chunks(&mut self) -> Result<Vec<Closed>, SpeedError> {
        let mut chunks = self.closed.clone();
        if !self.open.is_empty() {
            let journal = Arc::new(self.open.journal.clone());
            chunks.push(Closed::of(self.open.export(&self.view)?, journal));
        }
        Ok(chunks)
    }
}
