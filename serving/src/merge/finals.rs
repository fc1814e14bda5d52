//! Finals: windows that are closed for good, each once, in the order of their ends.
//!
//! A window is final once no event can be in time for it any more: when the watermark has passed its end and the view's
//! allowed lateness. A session is only after another gap, as until then an event in time may still join it.

use anabranch_plan::time::{Micros, format_timestamp, parse_timestamp};
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::pane::{newest_before, oldest_between, oldest_pane};
use super::{Answer, Span, one, session};
use crate::source::Sources;

/// A window by its bounds. Finals are in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Final {
    /// The first instant after it.
    pub end: Micros,
    /// Its first instant.
    pub start: Micros,
}

impl Final {
    /// Stands before every window.
    pub const BEFORE_ALL: Self = Self { end: Micros::MIN, start: Micros::MIN };

    /// Its name in event ids: its start and its end as ISO 8601 has intervals. What stands before all has an empty one.
    pub fn name(self) -> String {
        let Self { end, start } = self;
        if self == Self::BEFORE_ALL {
            return String::new();
        }
        format!("{}/{}", format_timestamp(start), format_timestamp(end))
    }

    /// The window of the view that has this name.
    pub fn named(view: &Kept, name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::BEFORE_ALL);
        }
        let (start, end) = name.split_once('/')?;
        let (start, end) = (parse_timestamp(start)?, parse_timestamp(end)?);
        let is_window = match view.aggregation().window? {
            Window::Session { .. } => start < end,
            window => window.end_of(start) == end && window.first_start(end - 1) == start,
        };
        is_window.then_some(Self { end, start })
    }
}

/// Those finals with data that come next after one; without one, the newest. There may be more after them, unless there are
/// none. It can't be told while the sources lack records, or while there is data but no watermark.
pub fn finals(view: &Kept, sources: &Sources, after: Option<Final>) -> PolarsResult<Option<Vec<(Final, Answer)>>> {
    let finals = next(view, sources, after)?;
    // Only now it is known whether all that was to be read could be.
    Ok(finals.filter(|_| sources.is_whole()))
}

fn next(view: &Kept, sources: &Sources, after: Option<Final>) -> PolarsResult<Option<Vec<(Final, Answer)>>> {
    let Some(window) = view.aggregation().window.filter(|_| sources.is_whole()) else { return Ok(None) };
    let Some(oldest) = oldest_pane(sources) else { return Ok(Some(Vec::new())) };
    let Some(watermark) = sources.watermark else { return Ok(None) };
    let closed = watermark.saturating_sub(view.aggregation().allowed_lateness);
    if let Window::Session { gap } = window {
        return session::finals(view, sources, closed.saturating_sub(gap), after).map(Some);
    }
    let (_, last) = window.inside(Micros::MIN / 2, closed);
    let pane = match after {
        None => newest_before(view, sources, window.end_of(last))?.map(|pane| window.last_start(pane).min(last)),
        Some(after) => {
            let first = window.first_start(oldest);
            let from = if after.start < first { first } else { window.inside(after.start + 1, after.start + 1).0 };
            let pane = oldest_between(view, sources, from, window.end_of(last))?;
            pane.map(|pane| window.first_start(pane).max(from)).filter(|start| *start <= last)
        }
    };
    let Some(start) = pane else { return Ok(Some(Vec::new())) };
    let end = window.end_of(start);
    Ok(Some(vec![(Final { end, start }, one(view, sources, Span::One(start), start, end)?)]))
}
