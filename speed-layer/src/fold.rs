//! Folding: events and the watermarks that they met become rows by pane.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use anabranch_engine::group::Keep;
use anabranch_engine::partial::{self, Inputs, MISSED};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::watermark::known;

/// What some events add to one pane.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// Rows of this pane, by how many of its windows they had missed.
    pub rows: Vec<(i32, DataFrame)>,
    /// Events by how many of the pane's windows they had missed, where that is any.
    pub late: BTreeMap<i32, u64>,
}

/// What events add to each pane, and how many windows each had missed, if any had missed any.
pub(crate) type Folded = (BTreeMap<Micros, Added>, Option<Vec<i32>>);

/// What evaluates a view's micro-batches.
#[derive(Debug)]
pub(crate) struct Evaluator {
    /// Lowered with the first micro-batch: a panic there is the view's own.
    rows: OnceCell<Inputs>,
    failpoint: String,
}

impl Evaluator {
    pub fn new(view: &Kept) -> Self {
        Self { rows: OnceCell::new(), failpoint: format!("speed::evaluate::{}", view.id.name) }
    }

    /// The rows that the view makes of events.
    pub fn rows(&self, view: &Kept) -> &Inputs {
        self.rows.get_or_init(|| Inputs::new(view))
    }

    /// Folds events. The i-th had the time `times[i]` and met the watermark `met[i]`; `met` never falls.
    pub fn fold(&self, view: &Kept, events: DataFrame, times: &[Micros], met: &[Micros]) -> Result<Folded, SpeedError> {
        let mut panes: BTreeMap<Micros, Added> = BTreeMap::new();
        if times.is_empty() {
            return Ok((panes, None));
        }
        let missed = missed(view, times, met);
        let mut events = events;
        if let (Some(missed), Some(window)) = (&missed, view.aggregation().window) {
            for (&time, &missed) in times.iter().zip(missed).filter(|&(_, &missed)| missed > 0) {
                *panes.entry(window.pane_of(time)).or_default().late.entry(missed).or_default() += 1;
            }
            let column = Column::new(MISSED.into(), missed.as_slice());
            events.with_column(column).map_err(failed(view, "adding what was missed"))?;
        }
        let rows = self.rows(view).of(events.lazy(), missed.is_some());
        let rows = rows.collect().map_err(failed(view, "evaluating a micro-batch"))?;
        for ((pane, of), rows) in partial::split(rows).map_err(failed(view, "splitting rows by pane"))? {
            panes.entry(pane).or_default().rows.push((of, rows));
        }
        Ok((panes, missed))
    }

    /// Where tests have the view's evaluation fail, after a micro-batch is absorbed and before its offsets are covered.
    pub fn fault(&self, view: &Kept) -> Result<(), SpeedError> {
        let injected = || failed(view, "evaluating a micro-batch")(polars_err!(ComputeError: "a failpoint is set"));
        fail::fail_point!(&self.failpoint, |_| Err(injected()));
        Ok(())
    }
}

/// How many windows each event had missed; none if no event had missed any.
fn missed(view: &Kept, times: &[Micros], met: &[Micros]) -> Option<Vec<i32>> {
    let (window, lateness) = (view.aggregation().window?, view.aggregation().allowed_lateness);
    let (&earliest, &last) = (times.iter().min()?, met.last()?);
    if window.missed(earliest, known(last), lateness) == 0 {
        return None;
    }
    let missed = times.iter().zip(met).map(|(&time, &met)| window.missed(time, known(met), lateness));
    let missed: Vec<i32> = missed.collect();
    missed.iter().any(|&missed| missed > 0).then_some(missed)
}

/// Adds up frames of partials.
pub(crate) fn merge(view: &Kept, frames: Vec<DataFrame>) -> Result<DataFrame, SpeedError> {
    let mut frames = frames;
    if frames.len() == 1 {
        return Ok(frames.swap_remove(0));
    }
    partial::merge(view.aggregation(), frames, Keep::Bounded).map_err(failed(view, "merging partials"))
}

pub(crate) fn failed<'a>(view: &'a Kept, step: &'static str) -> impl FnOnce(PolarsError) -> SpeedError + use<'a> {
    move |source| SpeedError::Evaluate { view: view.id.name.clone(), step, source }
}
