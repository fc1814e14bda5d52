//! One view's failure is its own.
//!
//! What evaluates a view may fail, or panic: that stops the view, and nothing else. A micro-batch may be half absorbed then,
//! so the open chunk is given up for what was exported of it before; chunks never change after that. There the view stays,
//! and says why, while the table's other views go on.
//!
//! It goes on from there by itself ([`CatchUp`]): after a restart, which brings a new build, from the log; while the process
//! runs, from the frontier of a batch version beyond. A view that is defined anew begins anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::position::{Coverage, Positions, TopicPartition};

use crate::checkpoint::ViewImage;
use crate::chunk::Open;
use crate::error::{SpeedError, Stop, reason};
use crate::late::LateWriter;
use crate::refold::{Read, Readers, Replay, topics};
use crate::state::{Mark, ViewState};
use crate::watermark::Tracker;

/// What a view says that catches up.
const CATCHING_UP: &str = "it catches up with what it has missed, from where it had stopped";

impl ViewState {
    /// Does what evaluates the view. If that fails, or panics, the view stops: none then, and for a view that has stopped.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, SpeedError>) -> Option<T> {
        if self.stopped.is_some() {
            return None;
        }
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        match done {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => self.stop(Stop::of_view(&self.view.id.name, error)),
            Err(panic) => self.stop(Stop::panicked(&*panic)),
        }
        None
    }

    /// Goes back to the last chunk that is whole, and stays there.
    pub fn stop(&mut self, stop: Stop) {
        tracing::error!(view = self.view.id.name, reason = stop.reason, "the view has stopped; others go on");
        let mut ends = self.open.coverage.starts();
        let broken = std::mem::take(&mut self.open);
        let since = broken.since;
        if let Some(last) = broken.last_exported() {
            ends.extend(last.chunk.coverage.ends());
            self.closed.push(last);
        }
        self.open = Open::new(&ends, since);
        self.late = self.mark.late;
        // It isn't gone on with, and takes memory.
        self.across = None;
        self.stopped = Some(stop);
    }

    /// Notes that others may see what it has now, with the watermarks there.
    pub fn set_mark(&mut self, tracker: Arc<Tracker>) {
        self.mark = Mark { tracker: Some(tracker), late: self.late };
    }

    /// The state as others see it; of a view that has stopped, as it was when it was whole. What is the table's is left out. `own`
    /// are the watermarks of a view that catches up.
    pub fn show(&mut self, tracker: &Arc<Tracker>, own: Option<&Tracker>) -> Snapshot {
        let open = self.attempt(|state| {
            // The rows that settle by the watermark which is shown are shown with it.
            state.settle(own.map_or_else(|| tracker.watermark(), Tracker::watermark))?;
            let pending = state.pending()?;
            let is_empty = state.open.coverage.is_empty() && pending.is_none();
            let open = if is_empty { None } else { Some(state.open.export(&state.view)?) };
            state.shown_pending = pending;
            state.set_mark(own.map_or_else(|| tracker.clone(), |own| Arc::new(own.clone())));
            Ok(open)
        });
        let chunks = self.closed.iter().map(|closed| closed.chunk.clone()).chain(open.flatten());
        let chunks = chunks.chain(self.shown_pending.clone()).collect();
        let delay = self.view.delay();
        let own_stop = own.map(|_| CATCHING_UP.to_owned());
        let settled = self.across.as_ref().filter(|_| self.stopped.is_none()).and_then(|across| across.settled());
        let watermark = self.mark.tracker.as_ref().and_then(|tracker| tracker.watermark()).max(settled);
        Snapshot {
            base: self.base,
            coverage: self.coverage(),
            chunks,
            watermark: watermark.map(|it| it.saturating_sub(delay)),
            late: self.late,
            stopped: self.stopped.as_ref().map(|stop| stop.reason.clone()).or(own_stop),
            alone: self.stopped.is_some() || own.is_some(),
            lost: self.stopped.as_ref().map_or_else(Coverage::new, |stop| stop.lost.clone()),
            ..Snapshot::default()
        }
    }

    /// What a checkpoint keeps of it. `tracker` are the pipeline's watermarks, `own` those of a view that catches up. None of a view whose
    /// operators are gone, as it has stopped.
    pub fn image(&mut self, tracker: &Arc<Tracker>, own: Option<&Tracker>) -> Option<ViewImage> {
        let image = self.attempt(|state| {
            // To what is exported the view may go back, so what waits has to be what waits here.
            let (pending, chunks) = (state.pending()?, state.chunks()?);
            state.shown_pending = pending;
            state.set_mark(own.map_or_else(|| tracker.clone(), |own| Arc::new(own.clone())));
            Ok((chunks, state.across.as_ref().map(|across| across.image(&state.view)).transpose()?))
        });
        let (chunks, across) = match image {
            Some(image) => image,
            None if self.looks_across() => return None,
            None => (self.closed.clone(), None),
        };
        let tracker = if self.stopped.is_some() { self.mark.tracker.as_deref().cloned() } else { own.cloned() };
        Some(ViewImage { base: self.base, late: self.late, coverage: self.coverage(), tracker, chunks, across })
    }
}

/// A view on its way to where its table's other views are, a micro-batch at a time.
pub(crate) struct CatchUp {
    /// The watermarks where the view's state ends.
    pub tracker: Tracker,
    readers: Option<Readers>,
    /// Whether the log had something for it the last time.
    pub is_fed: bool,
}

/// How far a view has come that catches up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It lacks more.
    Lacking,
    /// It has all that the others have.
    Done,
}

impl CatchUp {
    /// From where a state ends, under the watermarks there.
    pub fn new(tracker: Tracker) -> Self {
        Self { tracker, readers: None, is_fed: true }
    }

    /// Folds the next micro-batch of what a state lacks up to `to`.
    pub fn step(
        &mut self,
        state: &mut ViewState,
        to: &Positions<TopicPartition>,
        replay: &mut Replay,
        late: &mut LateWriter,
        chunk_records: u64,
    ) -> Result<Step, SpeedError> {
        let lacking: Vec<_> = to.iter().filter(|&(p, &end)| state.next(p) < end).map(|(p, _)| p).collect();
        if lacking.is_empty() {
            return Ok(Step::Done);
        }
        self.is_fed = match self.next(state, &lacking, to, replay) {
            Ok(Some(read)) => {
                replay.feed(state, read, None, &mut self.tracker, chunk_records, late)?;
                true
            }
            Ok(None) => false,
            Err(error) if error.may_pass() => {
                tracing::warn!(view = state.view.id.name, reason = reason(&error), "reading failed; trying again");
                self.readers = None;
                false
            }
            Err(error) => return Err(error),
        };
        Ok(Step::Lacking)
    }

    fn next(
        &mut self,
        state: &ViewState,
        lacking: &[&TopicPartition],
        to: &Positions<TopicPartition>,
        replay: &Replay,
    ) -> Result<Option<Read>, SpeedError> {
        let mut readers = match self.readers.take() {
            // A topic may have grown since it was opened.
            Some(readers) if lacking.iter().all(|p| readers.has(p)) => readers,
            _ => replay.readers(&to.keys().map(|p| (p.clone(), state.next(p))).collect())?,
        };
        let read = replay.poll_once(&mut readers, &topics(lacking.iter().copied(), &self.tracker));
        self.readers = Some(readers);
        read
    }
}
