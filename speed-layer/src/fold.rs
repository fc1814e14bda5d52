//! Folding: events and the watermarks that they met become partials by pane.

use std::collections::BTreeMap;

use anabranch_shared::clock::Micros;
use anabranch_shared::partial::{self, MISSED, PANE};
use anabranch_shared::view::View;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::watermark::known;

/// What some events add to one pane.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// Partials of this pane alone; none if only filtered-out events were late.
    pub partials: Option<DataFrame>,
    /// Events by how many of the pane's windows they had missed, where that is any.
    pub late: BTreeMap<i32, u64>,
}

/// Folds events. The i-th had the time `times[i]` and met the watermark `met[i]`; `met` never falls.
pub(crate) fn fold(
    view: &View,
    events: DataFrame,
    times: &[Micros],
    met: &[Micros],
) -> Result<BTreeMap<Micros, Added>, SpeedError> {
    let mut panes: BTreeMap<Micros, Added> = BTreeMap::new();
    if times.is_empty() {
        return Ok(panes);
    }
    let missed = missed(view, times, met);
    let mut events = events;
    if let (Some(missed), Some(window)) = (&missed, view.window) {
        for (&time, &missed) in times.iter().zip(missed).filter(|&(_, &missed)| missed > 0) {
            *panes.entry(window.pane_of(time)).or_default().late.entry(missed).or_default() += 1;
        }
        let column = Column::new(MISSED.into(), missed.as_slice());
        events.with_column(column).map_err(failed(view, "adding what was missed"))?;
    }
    let partials = partial::partials(view, events.lazy(), missed.is_some())
        .collect()
        .map_err(failed(view, "aggregating a micro-batch"))?;
    for (pane, partials) in by_pane(partials).map_err(failed(view, "splitting partials by pane"))? {
        panes.entry(pane).or_default().partials = Some(partials);
    }
    Ok(panes)
}

/// How many windows each event had missed; none if no event had missed any.
fn missed(view: &View, times: &[Micros], met: &[Micros]) -> Option<Vec<i32>> {
    let (window, lateness) = (view.window?, view.allowed_lateness);
    let (&earliest, &last) = (times.iter().min()?, met.last()?);
    if window.missed(earliest, known(last), lateness) == 0 {
        return None;
    }
    let missed = times.iter().zip(met).map(|(&time, &met)| window.missed(time, known(met), lateness));
    let missed: Vec<i32> = missed.collect();
    missed.iter().any(|&missed| missed > 0).then_some(missed)
}

/// Splits partials by pane.
pub(crate) fn by_pane(partials: DataFrame) -> PolarsResult<Vec<(Micros, DataFrame)>> {
    if partials.height() == 0 {
        return Ok(Vec::new());
    }
    let pane_of = |frame: &DataFrame| -> PolarsResult<Option<Micros>> { Ok(frame.column(PANE)?.i64()?.get(0)) };
    let panes = partials.column(PANE)?.i64()?;
    let mut split = Vec::new();
    if panes.min() == panes.max() {
        split.extend(pane_of(&partials)?.map(|pane| (pane, partials)));
        return Ok(split);
    }
    for frame in partials.partition_by([PANE], true)? {
        split.extend(pane_of(&frame)?.map(|pane| (pane, frame)));
    }
    Ok(split)
}

/// Adds up frames of partials.
pub(crate) fn merge(view: &View, frames: Vec<DataFrame>) -> Result<DataFrame, SpeedError> {
    let mut frames = frames;
    if frames.len() == 1 {
        return Ok(frames.swap_remove(0));
    }
    let failed = failed(view, "merging partials");
    let frames: Vec<LazyFrame> = frames.into_iter().map(IntoLazy::lazy).collect();
    if frames.is_empty() {
        return Ok(DataFrame::empty_with_schema(&partial::schema(view)));
    }
    concat(frames, UnionArgs { maintain_order: false, rechunk: false, ..Default::default() })
        .and_then(|all| partial::merge(view, all).collect())
        .map_err(failed)
}

pub(crate) fn failed<'a>(view: &'a View, step: &'static str) -> impl FnOnce(PolarsError) -> SpeedError + use<'a> {
    move |source| SpeedError::Evaluate { view: view.name.clone(), step, source }
}
