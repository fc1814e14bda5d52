//! Chunks: a view's state cut by coverage.
//!
//! Only the newest chunk, the open one, takes records. The others are closed: immutable, shared with snapshots and
//! checkpoints, dropped once a batch version covers them.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::Arc;

use anabranch_engine::columnar::compact;
use anabranch_engine::operator::either;
use anabranch_engine::partial::Slack;
use anabranch_exchange::snapshot::{Chunk, Early, Pane};
use anabranch_log::position::{Coverage, Positions, TopicPartition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::fold::{Added, failed, merge};
use crate::journal::Entry;
use crate::pane::OpenPane;
use crate::sketch;

/// A chunk that takes no more records.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    /// What others see of it.
    pub chunk: Arc<Chunk>,
    /// The micro-batches that it was folded from.
    pub journal: Arc<Vec<Entry>>,
    /// The bytes that it takes.
    pub bytes: usize,
}

impl Closed {
    pub fn new(chunk: Chunk, journal: Arc<Vec<Entry>>) -> Self {
        Self::of(Arc::new(chunk), journal)
    }

    pub fn of(chunk: Arc<Chunk>, journal: Arc<Vec<Entry>>) -> Self {
        // Half of it again is the most that a checkpoint takes of it while it is encoded.
        let bytes = chunk.panes.values().map(|pane| bytes(&pane.partials)).sum::<usize>() * 3 / 2;
        Self { chunk, journal, bytes }
    }

    /// The rows of its panes.
    pub fn rows(&self) -> usize {
        self.chunk.panes.values().map(|pane| pane.partials.height()).sum()
    }

    /// Whether the sum of this chunk and the next can be said in one. A pane that refuses keys can't be added to
    /// another: what it refused may be named by the other.
    pub fn can_merge(&self, next: &Closed) -> bool {
        let refuses = |pane: &Pane| pane.slack.is_some_and(|slack| slack.down != slack.up);
        let shared = self.chunk.panes.iter().filter_map(|(start, pane)| Some((pane, next.chunk.panes.get(start)?)));
        !shared.into_iter().any(|(one, other)| refuses(one) || refuses(other))
    }

    /// The sum of this chunk and the next.
    pub fn merge(&self, next: &Closed, view: &Kept) -> Result<Closed, SpeedError> {
        let mut coverage = self.chunk.coverage.clone();
        coverage
            .try_append(&next.chunk.coverage)
            .map_err(|source| SpeedError::Position { view: view.id.name.clone(), source })?;
        let mut panes = self.chunk.panes.clone();
        for (&start, pane) in &next.chunk.panes {
            match panes.entry(start) {
                btree_map::Entry::Vacant(entry) => {
                    entry.insert(pane.clone());
                }
                btree_map::Entry::Occupied(mut entry) => {
                    let sum = merge_panes(view, entry.get(), pane)?;
                    entry.insert(Arc::new(sum));
                }
            }
        }
        let mut early = self.chunk.early.clone();
        early.merge(&next.chunk.early);
        let unsure = either(self.chunk.unsure, next.chunk.unsure);
        let looked_up = self.chunk.looked_up.into_iter().chain(next.chunk.looked_up).min();
        let journal = [self.journal.as_slice(), next.journal.as_slice()].concat();
        Ok(Self::new(Chunk { coverage, panes, early, unsure, looked_up }, Arc::new(journal)))
    }

    /// How many rows degrading one of its panes (further) may save.
    pub fn spare_rows(&self, start: Micros) -> usize {
        let partials = self.chunk.panes.get(&start).map(|pane| &pane.partials);
        partials.map_or(0, |partials| sketch::spare(sketch::rows_in_time(partials), partials.height()).0)
    }

    /// Forgets the smaller half of one pane's keys. Whether it had before.
    pub fn degrade(&mut self, view: &Kept, start: Micros) -> Result<bool, SpeedError> {
        let Some(pane) = self.chunk.panes.get(&start) else { return Ok(false) };
        let again = pane.slack.is_some();
        let (_, is_late) = sketch::spare(sketch::rows_in_time(&pane.partials), pane.partials.height());
        let cut = sketch::cut_pane(&pane.partials, is_late).and_then(|(taken, left)| Ok((taken, compact(left)?)));
        let (taken, partials) = cut.map_err(failed(view, "forgetting keys"))?;
        let mut slack = pane.slack.unwrap_or_default();
        if is_late {
            slack.late += taken;
        } else {
            let taken = taken.max(slack.down);
            (slack.down, slack.up) = (taken, taken);
        }
        let halved = Pane { partials, late: pane.late.clone(), slack: Some(slack) };
        let mut chunk = Chunk::clone(&self.chunk);
        chunk.panes.insert(start, Arc::new(halved));
        *self = Self::new(chunk, self.journal.clone());
        Ok(again)
    }
}

/// The bytes of a frame. Texts are counted by their own lengths, as they may share memory with other panes'.
pub(crate) fn bytes(frame: &DataFrame) -> usize {
    let column = |column: &Column| match column {
        // It takes that only once it is looked at as a column.
        Column::Scalar(scalar) => scalar.len() * 8,
        Column::Series(series) => match series.str() {
            Ok(texts) => texts.downcast_iter().map(|array| array.len() * 16 + array.total_bytes_len()).sum(),
            Err(_) => series.estimated_size(),
        },
    };
    frame.columns().iter().map(column).sum()
}

/// Adds up two parts of a pane. Where a sketch made them, each count of events in time is first brought down to its lower
/// end, and the sum brought up by both errors: just as the sketches themselves would be merged.
fn merge_panes(view: &Kept, one: &Pane, other: &Pane) -> Result<Pane, SpeedError> {
    let mut late = one.late.clone();
    for (&missed, &events) in &other.late {
        *late.entry(missed).or_default() += events;
    }
    let slack = |pane: &Pane| pane.slack.unwrap_or_default();
    let error = |pane: &Pane| slack(pane).down;
    let (sum, lacking) = (error(one) + error(other), slack(one).late + slack(other).late);
    let lowered =
        |pane: &Pane| sketch::raise(&pane.partials, -error(pane)).map_err(failed(view, "merging degraded panes"));
    let partials = merge(view, vec![lowered(one)?, lowered(other)?])?;
    let slack = (one.slack.is_some() || other.slack.is_some()).then_some(Slack { down: sum, up: sum, late: lacking });
    let partials = sketch::raise(&partials, sum).map_err(failed(view, "merging degraded panes"))?;
    Ok(Pane { partials, late, slack })
}

/// The chunk that takes records.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// The offsets folded into it.
    pub coverage: Coverage<TopicPartition>,
    /// Its panes by their start.
    pub panes: BTreeMap<Micros, OpenPane>,
    /// As in [`Chunk`].
    pub early: Early,
    /// As in [`Chunk`].
    pub unsure: Option<(Micros, Micros)>,
    /// As in [`Chunk`].
    pub looked_up: Option<Micros>,
    /// The micro-batches that it was folded from.
    pub journal: Vec<Entry>,
    /// When it was opened, by the clock.
    pub since: Micros,
    /// The chunk as it was exported last.
    exported: Option<Arc<Chunk>>,
    /// Whether something has changed since.
    is_stale: bool,
}

impl Open {
    /// A chunk that will go on at these positions.
    pub fn new(positions: &Positions<TopicPartition>, since: Micros) -> Self {
        Self { coverage: Coverage::starting_at(positions), since, ..Self::default() }
    }

    /// Adds what some events make.
    pub fn add(&mut self, view: &Kept, added: BTreeMap<Micros, Added>) -> Result<(), SpeedError> {
        self.is_stale = true;
        for (start, added) in added {
            self.panes.entry(start).or_default().add(view, added)?;
        }
        Ok(())
    }

    /// Whether there is nothing to be said of it. Rows may settle without a record.
    pub fn is_empty(&self) -> bool {
        self.coverage.is_empty() && self.panes.is_empty() && self.unsure.is_none()
    }

    /// Something changed: what was exported is outdated.
    pub fn touch(&mut self) {
        self.is_stale = true;
    }

    /// The rows of its panes, those that are yet to be merged included.
    pub fn rows(&self) -> usize {
        self.panes.values().map(OpenPane::rows).sum()
    }

    /// The bytes that it takes, what others see of it included.
    pub fn bytes(&self) -> usize {
        self.panes.values().map(OpenPane::bytes).sum()
    }

    /// The chunk as others see it.
    pub fn export(&mut self, view: &Kept) -> Result<Arc<Chunk>, SpeedError> {
        if let Some(exported) = self.exported.as_ref().filter(|_| !self.is_stale) {
            return Ok(exported.clone());
        }
        let panes = self.panes.iter_mut().map(|(&start, pane)| Ok((start, pane.export(view, start)?)));
        let panes = panes.collect::<Result<_, SpeedError>>()?;
        let (coverage, early) = (self.coverage.clone(), self.early.clone());
        let (unsure, looked_up) = (self.unsure, self.looked_up);
        let chunk = Arc::new(Chunk { coverage, panes, early, unsure, looked_up });
        (self.exported, self.is_stale) = (Some(chunk.clone()), false);
        Ok(chunk)
    }

    /// Closes it, and begins another behind it. After an error it is as it was.
    pub fn close(&mut self, view: &Kept, now: Micros) -> Result<Closed, SpeedError> {
        let chunk = self.export(view)?;
        let next = Self::new(&self.coverage.ends(), now);
        Ok(Closed::of(chunk, Arc::new(std::mem::replace(self, next).journal)))
    }

    /// The chunk as it was exported last, with the micro-batches that it had been folded from by then. Nothing that went
    /// wrong since has a part in it.
    pub fn last_exported(self) -> Option<Closed> {
        // Rows may settle without a record.
        let chunk = self.exported.filter(|chunk| !chunk.coverage.is_empty() || !chunk.panes.is_empty())?;
        let end = |entry: &Entry| chunk.coverage.next(&entry.partition);
        let known = self.journal.into_iter().filter(|entry| entry.first < end(entry));
        let journal = known.map(|entry| Entry { next: entry.next.min(end(&entry)), ..entry }).collect();
        Some(Closed::of(chunk, Arc::new(journal)))
    }
}
