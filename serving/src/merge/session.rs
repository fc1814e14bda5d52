//! Sessions: windows that each group makes for itself.

use anabranch_shared::clock::Micros;
use anabranch_shared::partial::{Finished, whole_sessions};
use anabranch_shared::view::View;
use anabranch_shared::window::Window;
use polars::prelude::*;

use super::{Answer, Ask, Doubt, Final, Span, newest_pane, oldest_pane, parts, quality};
use crate::source::Sources;

/// Merges what the sources hold of the sessions asked for.
pub(super) fn answer(view: &View, sources: &Sources, ask: Ask) -> PolarsResult<Answer> {
    let everything = (Micros::MIN, Micros::MAX);
    let Some(held) = held(view, sources)? else { return nothing(view, sources, everything) };
    let of = |wanted: &dyn Fn(Micros, Micros) -> bool, from: Micros, to: Micros| {
        let mut finished = overlapping(view, sources, held, from, to)?;
        keep(&mut finished, wanted)?;
        PolarsResult::Ok(finished)
    };
    match ask {
        Ask::Range { from, to } => {
            let finished = of(&|start, end| start >= from && end <= to, from, to)?;
            whole(view, sources, Span::Range { from, to }, finished, (from, to))
        }
        Ask::Start(start) => {
            let finished = of(&|begins, _| begins == start, start, start.saturating_add(1))?;
            one(view, sources, finished, (start, start.saturating_add(1)))
        }
        Ask::End(end) => {
            let finished = of(&|_, ends| ends == end, end.saturating_sub(1), end)?;
            one(view, sources, finished, (end.saturating_sub(gap(view)), end))
        }
        Ask::Session { start, end } => {
            let finished = of(&|begins, ends| (begins, ends) == (start, end), end.saturating_sub(1), end)?;
            alone(view, sources, (start, end), finished, (start, end))
        }
        Ask::Latest => {
            let newest = newest_pane(view, sources)?.unwrap_or(held.0);
            last(view, sources, held, held.1, held.1.saturating_sub(newest))
        }
        Ask::Closed => match sources.watermark {
            Some(watermark) => newest_closed(view, sources, held, watermark),
            None => nothing(view, sources, everything),
        },
        Ask::Current => {
            let open = sources.watermark.unwrap_or(Micros::MIN);
            let finished = of(&|_, end| end > open, open.max(held.0), held.1)?;
            let first = micros(&finished.rows, "window_start")?.min().unwrap_or(open);
            whole(view, sources, Span::Open, finished, (first.min(open), Micros::MAX))
        }
    }
}

fn gap(view: &View) -> Micros {
    if let Some(Window::Session { gap }) = view.window { gap } else { 0 }
}

/// The last of the sessions that have ended by `closed`.
fn newest_closed(view: &View, sources: &Sources, held: (Micros, Micros), closed: Micros) -> PolarsResult<Answer> {
    last(view, sources, held, closed, held.1.saturating_sub(held.0).min(3_600_000_000))
}

/// The last of the sessions that have ended by `closed`, which is sought so far back at first, and then further.
fn last(
    view: &View,
    sources: &Sources,
    held: (Micros, Micros),
    closed: Micros,
    mut step: Micros,
) -> PolarsResult<Answer> {
    loop {
        step = step.max(1);
        let from = closed.saturating_sub(step);
        let mut finished = overlapping(view, sources, held, from, closed.saturating_add(1))?;
        keep(&mut finished, |_, end| end <= closed)?;
        if finished.rows.height() > 0 {
            return one(view, sources, finished, (closed, closed));
        }
        if from <= held.0 {
            return one(view, sources, finished, (Micros::MIN, closed));
        }
        step = step.saturating_mul(4);
    }
}

/// The sessions that have ended by `closed` and come next after one, in order; without one, the last.
pub(super) fn finals(
    view: &View,
    sources: &Sources,
    closed: Micros,
    after: Option<Final>,
) -> PolarsResult<Vec<(Final, Answer)>> {
    let Some(held) = held(view, sources)? else { return Ok(Vec::new()) };
    let Some(after) = after else {
        let answer = newest_closed(view, sources, held, closed)?;
        let Span::Session { start, end } = answer.span else { return Ok(Vec::new()) };
        return Ok(vec![(Final { end, start }, answer)]);
    };
    let (from, last) = (after.end.max(held.0), closed.min(held.1));
    let mut step = view.window.map_or(1, |window| window.end_of(0));
    if from > last {
        return Ok(Vec::new());
    }
    loop {
        let to = last.min(from.saturating_add(step));
        let mut finished = overlapping(view, sources, held, from - 1, to.saturating_add(1))?;
        keep(&mut finished, |start, end| Final { end, start } > after && end <= to)?;
        if finished.rows.height() > 0 {
            return each(view, sources, &finished);
        }
        if to == last {
            return Ok(Vec::new());
        }
        step = step.saturating_mul(4);
    }
}

/// The answers of sessions that are in order, one for all that begin and end alike.
fn each(view: &View, sources: &Sources, finished: &Finished) -> PolarsResult<Vec<(Final, Answer)>> {
    let (starts, ends) = (micros(&finished.rows, "window_start")?, micros(&finished.rows, "window_end")?);
    let bounds: Vec<_> = starts.iter().zip(ends.iter()).filter_map(|(start, end)| start.zip(end)).collect();
    let mut first = 0;
    let answers = bounds.chunk_by(|a, b| a == b).map(|alike| {
        let (start, end) = alike[0];
        let rows = finished.rows.slice(first as i64, alike.len());
        first += alike.len();
        let Finished { is_degraded, is_sketched, is_certain, .. } = *finished;
        let finished = Finished { rows, is_degraded, is_sketched, is_certain };
        Ok((Final { end, start }, alone(view, sources, (start, end), finished, (start, end))?))
    });
    answers.collect()
}

/// Where the first pane begins and the last ends; none without any.
fn held(view: &View, sources: &Sources) -> PolarsResult<Option<(Micros, Micros)>> {
    let (Some(window), Some(oldest)) = (view.window, oldest_pane(sources)) else { return Ok(None) };
    let newest = newest_pane(view, sources)?.unwrap_or(oldest);
    Ok(Some((oldest, window.end_of(newest))))
}

fn overlapping(
    view: &View,
    sources: &Sources,
    held: (Micros, Micros),
    from: Micros,
    to: Micros,
) -> PolarsResult<Finished> {
    whole_sessions(view, (from, to), held, |from, to| parts(view, sources, None, from, to))
}

fn micros(rows: &DataFrame, name: &str) -> PolarsResult<Int64Chunked> {
    rows.column(name)?.cast(&DataType::Int64)?.i64().cloned()
}

/// Keeps the sessions for whose start and end `wanted` says so.
fn keep(finished: &mut Finished, wanted: impl Fn(Micros, Micros) -> bool) -> PolarsResult<()> {
    let (starts, ends) = (micros(&finished.rows, "window_start")?, micros(&finished.rows, "window_end")?);
    let kept: BooleanChunked = starts
        .iter()
        .zip(ends.iter())
        .map(|(start, end)| start.zip(end).is_some_and(|(start, end)| wanted(start, end)))
        .collect();
    finished.rows = finished.rows.filter(&kept)?;
    Ok(())
}

/// The last of the sessions: those of all groups that begin and end when it does. Events in `asked` could have made another
/// the last.
fn one(view: &View, sources: &Sources, mut finished: Finished, asked: (Micros, Micros)) -> PolarsResult<Answer> {
    let (starts, ends) = (micros(&finished.rows, "window_start")?, micros(&finished.rows, "window_end")?);
    let spans = ends.iter().flatten().zip(starts.iter().flatten());
    let Some((last_end, last_start)) = spans.max() else { return nothing(view, sources, asked) };
    keep(&mut finished, |start, end| (start, end) == (last_start, last_end))?;
    let about = (asked.0.min(last_start), asked.1.max(last_end));
    alone(view, sources, (last_start, last_end), finished, about)
}

/// Sessions that all begin and end alike.
fn alone(
    view: &View,
    sources: &Sources,
    (start, end): (Micros, Micros),
    finished: Finished,
    about: (Micros, Micros),
) -> PolarsResult<Answer> {
    let mut answer = whole(view, sources, Span::Session { start, end }, finished, about)?;
    answer.rows = answer.rows.drop_many(["window_start", "window_end"]);
    Ok(answer)
}

fn whole(
    view: &View,
    sources: &Sources,
    span: Span,
    mut finished: Finished,
    about: (Micros, Micros),
) -> PolarsResult<Answer> {
    let doubt = doubt(view, sources, about);
    finished.is_degraded |= doubt.is_degraded;
    finished.is_certain &= !finished.is_degraded;
    let quality = quality(view, sources, &finished, doubt.late)?;
    Ok(Answer { span, quality, rows: finished.rows, late: doubt.late })
}

fn nothing(view: &View, sources: &Sources, about: (Micros, Micros)) -> PolarsResult<Answer> {
    super::nothing(view, sources, doubt(view, sources, about))
}

/// What may change the sessions that lie in a span. An event up to the gap before it may be of one of them. Of which session
/// a late event would have been isn't known: all those of the panes are counted.
fn doubt(view: &View, sources: &Sources, (from, to): (Micros, Micros)) -> Doubt {
    let from = from.saturating_sub(gap(view));
    let from =
        if from < Micros::MIN / 2 { Micros::MIN } else { view.window.map_or(from, |window| window.pane_of(from)) };
    Doubt::of(sources, from, to)
}
