//! Sessions with all that belongs to them, of a range that may cut them.

use anabranch_plan::aggregation::Aggregation;
use anabranch_plan::time::Micros;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::finish::{Finished, Scope};
use super::key;
use super::windows::{Part, windows};
use crate::aggregate::keys::Keys;
use crate::fragment::spans;

/// From where to where the sessions of all events reach that overlap `[from, to)`.
fn reach(
    aggregation: &Aggregation,
    window: Window,
    parts: &[Part],
    (from, to): (Micros, Micros),
) -> PolarsResult<Option<(Micros, Micros)>> {
    let Window::Session { gap } = window else { return Ok(None) };
    let mut keys = Keys::of(aggregation);
    let mut fragments = Vec::new();
    for rows in parts.iter().map(|part| &part.partials) {
        let columns =
            (0..aggregation.keys.len()).map(|k| rows.column(&key(k)).cloned()).collect::<PolarsResult<Vec<_>>>()?;
        let groups = keys.number(&columns, rows.height())?;
        let (first, last) = spans(rows)?;
        fragments.extend(groups.into_iter().zip(first).zip(last).map(|((group, first), last)| (group, first, last)));
    }
    fragments.sort_unstable();
    let mut sessions: Vec<(u32, Micros, Micros)> = Vec::new();
    for (group, first, last) in fragments {
        match sessions.last_mut() {
            Some(before) if before.0 == group && first.saturating_sub(before.2) < gap => before.2 = before.2.max(last),
            _ => sessions.push((group, first, last)),
        }
    }
    let inside = sessions.iter().map(|&(_, first, last)| (first, last.saturating_add(gap)));
    let inside = inside.filter(|&(start, end)| start < to && end > from);
    Ok(inside.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1))))
}

/// All sessions that overlap `[from, to)`, whole: as many panes are loaded on either side as it takes to see where they begin
/// and end. `load` gives the partials of the panes that start in a range, `held` is where the first begins and the last ends.
pub fn whole_sessions(
    aggregation: &Aggregation,
    (from, to): (Micros, Micros),
    held: (Micros, Micros),
    load: impl Fn(Micros, Micros) -> PolarsResult<Vec<Part>>,
) -> PolarsResult<Finished> {
    let Some(window) = aggregation.window.filter(|window| window.is_session()) else {
        polars_bail!(ComputeError: "the view has no sessions")
    };
    // A pane further than the gap from its neighbour can't be of the same session.
    let margin = window.end_of(0);
    let (mut before, mut after) = (margin, margin);
    loop {
        let (first, end) = (from.saturating_sub(before), to.saturating_add(after));
        let parts = load(window.pane_of(first.max(held.0)), end)?;
        // Late events belong to what must be whole, as the bounds are about them; and a HAVING must not see a part.
        let reach = reach(aggregation, window, &parts, (from, to))?;
        let is_cut_before = first > held.0 && reach.is_some_and(|(start, _)| start < first.saturating_add(margin));
        let is_cut_after = end < held.1 && reach.is_some_and(|(_, last)| last.saturating_add(margin) > end);
        if !is_cut_before && !is_cut_after {
            let mut finished = windows(aggregation, &parts, Scope::All)?;
            let micros = |name: &str| finished.rows.column(name)?.cast(&DataType::Int64)?.i64().cloned();
            let (starts, ends) = (micros("window_start")?, micros("window_end")?);
            let overlaps = |(start, end): (Option<Micros>, Option<Micros>)| start < Some(to) && end > Some(from);
            let mask: BooleanChunked = starts.iter().zip(ends.iter()).map(overlaps).collect();
            finished.rows = finished.rows.filter(&mask)?;
            return Ok(finished);
        }
        before = if is_cut_before { before.saturating_mul(4) } else { before };
        after = if is_cut_after { after.saturating_mul(4) } else { after };
    }
}
