//! Which panes the sources hold data in. Those of the speed layer are at hand; of a version's files the bounds are known, and only
//! a file that a bound cuts is read.

use std::sync::Arc;

use anabranch_engine::partial::PANE;
use anabranch_exchange::snapshot::Pane;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::source::Sources;

/// The panes of the speed layer's chunks that start in `[from, to)`.
pub fn panes(sources: &Sources, from: Micros, to: Micros) -> impl Iterator<Item = (Micros, &Arc<Pane>)> {
    let chunks = sources.chunks.iter().filter(move |_| from < to);
    chunks.flat_map(move |chunk| chunk.panes.range(from..to).map(|(&start, pane)| (start, pane)))
}

/// The oldest pane with data.
pub fn oldest_pane(sources: &Sources) -> Option<Micros> {
    let speed = sources.chunks.iter().filter_map(|chunk| chunk.panes.keys().next().copied());
    let batch = sources.version.iter().flat_map(|version| version.published.panes.iter().map(|file| file.first));
    speed.chain(batch).min()
}

/// The newest pane with data.
pub fn newest_pane(view: &Kept, sources: &Sources) -> PolarsResult<Option<Micros>> {
    newest_before(view, sources, Micros::MAX)
}

/// The newest pane with data that starts before `before`.
pub fn newest_before(view: &Kept, sources: &Sources, before: Micros) -> PolarsResult<Option<Micros>> {
    let speed = sources.chunks.iter().filter_map(|chunk| {
        let mut panes = chunk.panes.range(..before).rev();
        panes.find(|(_, pane)| holds_data(pane)).map(|(&start, _)| start)
    });
    let mut newest = speed.max();
    if let Some(version) = &sources.version {
        let files = version.published.panes.iter().filter(|file| file.rows > 0 && file.first < before);
        let (whole, cut): (Vec<_>, Vec<_>) = files.partition(|file| file.last < before);
        newest = newest.max(whole.iter().map(|file| file.last).max());
        let from = cut.iter().map(|file| file.first).min();
        if let Some(from) = from.map(|from| newest.map_or(from, |newest| newest.max(from))) {
            for partials in sources.partials(view, from, before) {
                newest = newest.max(partials.column(PANE)?.i64()?.max());
            }
        }
    }
    Ok(newest)
}

/// The oldest pane with data that starts in `[from, to)`.
pub fn oldest_between(view: &Kept, sources: &Sources, from: Micros, to: Micros) -> PolarsResult<Option<Micros>> {
    if from >= to {
        return Ok(None);
    }
    let speed = sources.chunks.iter().filter_map(|chunk| {
        let mut panes = chunk.panes.range(from..to);
        panes.find(|(_, pane)| holds_data(pane)).map(|(&start, _)| start)
    });
    let mut oldest = speed.min();
    if let Some(version) = &sources.version {
        let files = version.published.panes.iter().filter(|file| file.rows > 0 && from <= file.last && file.first < to);
        let (whole, cut): (Vec<_>, Vec<_>) = files.partition(|file| from <= file.first);
        oldest = oldest.into_iter().chain(whole.iter().map(|file| file.first)).min();
        if !cut.is_empty() {
            for partials in sources.partials(view, from, oldest.unwrap_or(to)) {
                oldest = oldest.into_iter().chain(partials.column(PANE)?.i64()?.min()).min();
            }
        }
    }
    Ok(oldest)
}

/// Whether a pane has rows, or had some that it refused.
fn holds_data(pane: &Pane) -> bool {
    pane.partials.height() > 0 || pane.slack.is_some()
}
