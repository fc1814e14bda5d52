//! The heart: adds up what the two layers hold of a window and says how exact the sum is.
//!
//! The batch part and the chunks of the speed part are partials of disjoint offsets that join exactly
//! ([`crate::source`]), so laying them end to end and merging is the whole of it.

mod finals;
mod pane;
mod session;

use anabranch_engine::partial::{self, Finished, Part, Scope};
use anabranch_exchange::snapshot::Pane;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;

pub use self::finals::{Final, finals};
use self::pane::{newest_before, newest_pane, oldest_pane, panes};
use crate::source::Sources;

/// Which windows are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The newest window that holds data; of a view without windows, all there is.
    Latest,
    /// The window that the newest event ends next: full, and still open.
    Current,
    /// The newest window with data that the watermark has passed.
    Closed,
    /// The window that ends there; of sessions, all that do.
    End(Micros),
    /// The windows wholly inside `[from, to]`.
    Range {
        /// Where the first may start.
        from: Micros,
        /// Where the last may end.
        to: Micros,
    },
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// All of time.
    Everything,
    /// No window holds data yet.
    Nothing,
    /// One window, by its start.
    One(Micros),
    /// The sessions that begin and end there: each is final.
    Session {
        /// The first event.
        start: Micros,
        /// The end.
        end: Micros,
    },
    /// The sessions that end there, if nothing more comes.
    Ending(Micros),
    /// The sessions that are open.
    Open,
    /// The windows wholly inside `[from, to]`.
    Range {
        /// Where the first may start.
        from: Micros,
        /// Where the last may end.
        to: Micros,
    },
}

/// A finished answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What it is about.
    pub span: Span,
    /// Its rows, ordered and limited as the view says; with `window_start` and `window_end` if they may be of several windows.
    pub rows: DataFrame,
    /// How far it can be relied on.
    pub quality: Quality,
    /// Events that came too late for the windows asked for.
    pub late: u64,
}

/// How far an answer can be relied on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Whether the rows are what the batch layer will say of the same events.
    pub exact: bool,
    /// Whether these are surely the rows that the view's limit keeps.
    pub certain: bool,
    /// With which probability each bound holds: 1 unless a sketch states it.
    pub confidence: f64,
}

/// The least that a sketch of values promises: DataSketches' KLL 99 %, HLL with three standard deviations 99.7 %.
const SKETCH_CONFIDENCE: f64 = 0.99;

/// Whether a window may still change.
pub fn state(view: &Kept, end: Micros, watermark: Option<Micros>) -> &'static str {
    match watermark {
        Some(watermark) if watermark >= end.saturating_add(view.aggregation().allowed_lateness) => "closed",
        Some(watermark) if watermark >= end => "closing",
        _ => "open",
    }
}

/// Merges what the sources hold of the windows asked for.
pub fn answer(view: &Kept, sources: &Sources, ask: Ask) -> PolarsResult<Answer> {
    let window = match view.aggregation().window {
        None => return one(view, sources, Span::Everything, 0, 1),
        Some(Window::Session { .. }) => return session::answer(view, sources, ask),
        Some(window) => window,
    };
    let start = match ask {
        Ask::Range { from, to } => return range(view, window, sources, from, to),
        // The window that ends there starts where the last instant before is first in one.
        Ask::End(end) => Some(window.first_start(end - 1)),
        Ask::Latest => newest_pane(view, sources)?.map(|pane| window.last_start(pane)),
        Ask::Current => newest_pane(view, sources)?.map(|pane| window.first_start(pane)),
        Ask::Closed => newest_closed(view, window, sources)?,
    };
    match start {
        Some(start) => one(view, sources, Span::One(start), start, window.end_of(start)),
        None => nothing(view, sources, Span::Nothing, Doubt::of(sources, Micros::MIN, Micros::MAX)),
    }
}

/// What may make another answer of the same events once batch has them.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// Events that came late.
    late: u64,
    /// Whether a pane is degraded.
    is_degraded: bool,
    /// Whether rows may be wrong, as records came too late to be joined.
    is_unsure: bool,
}

impl Doubt {
    /// That of the panes that start in `[from, to)`.
    fn of(sources: &Sources, from: Micros, to: Micros) -> Self {
        sources.about(to);
        let panes = || panes(sources, from, to).map(|(_, pane)| pane);
        Self {
            late: panes().flat_map(|pane| pane.late.values()).sum(),
            is_degraded: panes().any(|pane| pane.slack.is_some()),
            is_unsure: sources.is_unsure(from, to),
        }
    }
}

/// There is no such window among the events that came in time. Late events, or those that a degraded pane refused, may have
/// made one; and without a watermark it can't be told which windows are closed.
fn nothing(view: &Kept, sources: &Sources, span: Span, doubt: Doubt) -> PolarsResult<Answer> {
    let is_told = sources.watermark.is_some() || oldest_pane(sources).is_none();
    let exact = sources.is_whole() && doubt.late == 0 && !doubt.is_degraded && !doubt.is_unsure && is_told;
    let quality = Quality { exact, certain: exact, confidence: 1.0 };
    let mut rows = partial::windows(view.aggregation(), &[], Scope::All)?.rows;
    if !view.aggregation().window.is_some_and(Window::is_session) {
        rows = rows.drop_many(["window_start", "window_end"]);
    }
    Ok(Answer { span, rows, quality, late: doubt.late })
}

fn one(view: &Kept, sources: &Sources, span: Span, from: Micros, to: Micros) -> PolarsResult<Answer> {
    let late = view.aggregation().window.map_or(0, |window| late(window, sources, from, from));
    let mut finished =
        partial::windows(view.aggregation(), &parts(view, sources, Some(from), from, to)?, Scope::One(from))?;
    if view.aggregation().window.is_some() {
        finished.rows = finished.rows.drop_many(["window_start", "window_end"]);
    } else if sources.is_void {
        // The one row that a view without keys has of nothing.
        finished.rows = without_bounds(view, finished.rows)?;
    }
    // Without windows all times are in one pane.
    let times = view.aggregation().window.map_or((Micros::MIN, Micros::MAX), |_| (from, to));
    let quality = quality(view, sources, &mut finished, late, sources.is_unsure(times.0, times.1))?;
    Ok(Answer { span, rows: finished.rows, quality, late })
}

fn range(view: &Kept, window: Window, sources: &Sources, from: Micros, to: Micros) -> PolarsResult<Answer> {
    let (first, last) = window.inside(from, to);
    let (late, end) =
        if first <= last { (late(window, sources, first, last), window.end_of(last)) } else { (0, first) };
    let mut finished =
        partial::windows(view.aggregation(), &parts(view, sources, None, first, end)?, Scope::Range(first, last))?;
    let quality = quality(view, sources, &mut finished, late, sources.is_unsure(first, end))?;
    Ok(Answer { span: Span::Range { from, to }, rows: finished.rows, quality, late })
}

/// Whether a window may have other rows where panes that start at `from` or later are others. Without `from` any may.
pub fn may_change(view: &Kept, from: Option<Micros>, window: Final) -> bool {
    let Some(from) = from else { return true };
    match view.aggregation().window {
        None => true,
        // An event may prolong a session that ended up to a gap before it.
        Some(Window::Session { gap }) => window.end > from.saturating_sub(gap),
        Some(of) => window.start >= of.first_start(from),
    }
}

/// The rows of all windows that [`may_change`]. Whether it is known by how much they may be off is not looked at.
pub fn rows_since(view: &Kept, sources: &Sources, from: Option<Micros>) -> PolarsResult<DataFrame> {
    let Some(window) = view.aggregation().window else {
        return Ok(partial::windows(view.aggregation(), &parts(view, sources, Some(0), 0, 1)?, Scope::One(0))?.rows);
    };
    let (Some(oldest), Some(newest)) = (oldest_pane(sources), newest_pane(view, sources)?) else {
        return Ok(partial::windows(view.aggregation(), &[], Scope::All)?.rows);
    };
    if window.is_session() {
        return session::rows_since(view, sources, from);
    }
    let (first, last) = (window.first_start(from.map_or(oldest, |from| from.max(oldest))), window.last_start(newest));
    let end = window.end_of(last);
    sources.about(end);
    // Up to the end of all time, so that what was read of a version is at hand while newer panes come.
    let parts = joined(sources.window_partials(view, first, Micros::MAX), sources, first, end);
    Ok(partial::windows(view.aggregation(), &parts, Scope::Range(first, last))?.rows)
}

/// How far rows can be relied on. If it isn't known by how much they may be off, their bounds go.
fn quality(
    view: &Kept,
    sources: &Sources,
    finished: &mut Finished,
    late: u64,
    is_unsure: bool,
) -> PolarsResult<Quality> {
    if is_unsure {
        finished.rows = without_bounds(view, std::mem::take(&mut finished.rows))?;
        return Ok(Quality { exact: false, certain: false, confidence: 1.0 });
    }
    let is_whole = sources.is_whole();
    let is_tight = !finished.is_degraded && !finished.is_sketched && is_tight(view, &finished.rows)?;
    let exact = is_whole && late == 0 && is_tight;
    Ok(Quality {
        exact,
        // Late events that missed other windows of a pane leave this one's rows as they are.
        certain: exact || (is_whole && finished.is_certain),
        confidence: if finished.is_sketched { SKETCH_CONFIDENCE } else { 1.0 },
    })
}

/// The events that missed at least one of the windows that start in `[first, last]`.
fn late(window: Window, sources: &Sources, first: Micros, last: Micros) -> u64 {
    let panes = panes(sources, first, window.end_of(last)).filter(|(_, pane)| !pane.late.is_empty());
    let counts = panes.map(|(start, pane)| {
        // Events miss a pane's windows from the earliest on: this is the earliest that is asked for.
        let asked = window.first_start(start).max(first);
        if asked > last.min(window.last_start(start)) {
            return 0;
        }
        let index = i32::try_from(window.index_of(asked, start)).unwrap_or(i32::MAX);
        pane.late.iter().filter(|&(&missed, _)| missed > index).map(|(_, events)| events).sum::<u64>()
    });
    counts.sum()
}

fn newest_closed(view: &Kept, window: Window, sources: &Sources) -> PolarsResult<Option<Micros>> {
    let Some(watermark) = sources.watermark else { return Ok(None) };
    let (_, last_closed) = window.inside(Micros::MIN / 2, watermark);
    let newest = newest_before(view, sources, window.end_of(last_closed))?;
    Ok(newest.map(|pane| window.last_start(pane).min(last_closed)))
}

/// The rows, of whose values nothing is known.
fn without_bounds(view: &Kept, mut rows: DataFrame) -> PolarsResult<DataFrame> {
    for aggregate in &view.aggregation().aggregates {
        for bound in ["lower", "upper"].map(|bound| format!("{}_{bound}", aggregate.name)) {
            let unknown = Column::full_null(bound.as_str().into(), rows.height(), rows.column(&bound)?.dtype());
            rows.replace(&bound, unknown)?;
        }
    }
    Ok(rows)
}

/// Whether every bound is the value itself.
fn is_tight(view: &Kept, rows: &DataFrame) -> PolarsResult<bool> {
    for aggregate in &view.aggregation().aggregates {
        let value = rows.column(&aggregate.name)?;
        for bound in ["lower", "upper"] {
            let bound = rows.column(&format!("{}_{bound}", aggregate.name))?;
            if !value.equals_missing(bound) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The partials of the panes that start in `[from, to)`, of both layers; of one window if it starts at `window`.
fn parts(view: &Kept, sources: &Sources, window: Option<Micros>, from: Micros, to: Micros) -> PolarsResult<Vec<Part>> {
    sources.about(to);
    let batch = match window {
        Some(_) => sources.window_partials(view, from, to),
        None => sources.partials(view, from, to),
    };
    Ok(joined(batch, sources, from, to))
}

/// Partials of the batch layer, and those of the speed layer's panes that start in `[from, to)`.
fn joined(batch: Vec<DataFrame>, sources: &Sources, from: Micros, to: Micros) -> Vec<Part> {
    let slack = |start, pane: &Pane| pane.slack.map(|slack| (start, slack));
    let speed = panes(sources, from, to);
    let speed = speed.map(|(start, pane)| Part { partials: pane.partials.clone(), slack: slack(start, pane) });
    batch.into_iter().map(|partials| Part { partials, slack: None }).chain(speed).collect()
}
