//! Sessions: windows that each group makes for itself.

use anabranch_shared::clock::Micros;
use anabranch_shared::partial::{Finished, whole_sessions};
use anabranch_shared::view::View;
use polars::prelude::*;

use super::{Answer, Ask, Final, Span, newest_pane, oldest_pane, parts, quality};
use crate::source::Sources;

/// Merges what the sources hold of the sessions asked for.
pub(super) fn answer(view: &View, sources: &Sources, ask: Ask) -> PolarsResult<Answer> {
    let Some(held) = held(view, sources)? else { return nothing(view, sources) };
    match ask {
        Ask::Range { from, to } => {
            let mut finished = overlapping(view, sources, held, from, to)?;
            keep(&mut finished, |start, end| start >= from && end <= to)?;
            whole(view, sources, Span::Range { from, to }, finished)
        }
        Ask::Start(start) => {
            let mut finished = overlapping(view, sources, held, start, start.saturating_add(1))?;
            keep(&mut finished, |begins, _| begins == start)?;
            one(view, sources, finished)
        }
        Ask::End(end) => {
            let mut finished = overlapping(view, sources, held, end.saturating_sub(1), end)?;
            keep(&mut finished, |_, ends| ends == end)?;
            one(view, sources, finished)
        }
        // The one that ends last is that of the newest event.
        Ask::Latest => {
            let newest = newest_pane(view, sources)?.unwrap_or(held.0);
            one(view, sources, overlapping(view, sources, held, newest, held.1)?)
        }
        Ask::Closed => match sources.watermark {
            Some(watermark) => newest_closed(view, sources, held, watermark),
            None => nothing(view, sources),
        },
        Ask::Current => {
            let open = sources.watermark.unwrap_or(Micros::MIN);
            let mut finished = overlapping(view, sources, held, open.max(held.0), held.1)?;
            keep(&mut finished, |_, end| end > open)?;
            whole(view, sources, Span::Open, finished)
        }
    }
}

/// The last of the sessions that have ended by `closed`.
fn newest_closed(view: &View, sources: &Sources, held: (Micros, Micros), closed: Micros) -> PolarsResult<Answer> {
    let mut step = held.1.saturating_sub(held.0).clamp(1, 3_600_000_000);
    loop {
        let from = closed.saturating_sub(step);
        let mut finished = overlapping(view, sources, held, from, closed.saturating_add(1))?;
        keep(&mut finished, |_, end| end <= closed)?;
        if finished.rows.height() > 0 || from <= held.0 {
            return one(view, sources, finished);
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
        Ok((Final { end, start }, alone(view, sources, (start, end), finished)?))
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

/// The last of the sessions: those of all groups that begin and end when it does.
fn one(view: &View, sources: &Sources, mut finished: Finished) -> PolarsResult<Answer> {
    let (starts, ends) = (micros(&finished.rows, "window_start")?, micros(&finished.rows, "window_end")?);
    let spans = ends.iter().flatten().zip(starts.iter().flatten());
    let Some((last_end, last_start)) = spans.max() else { return nothing(view, sources) };
    keep(&mut finished, |start, end| (start, end) == (last_start, last_end))?;
    alone(view, sources, (last_start, last_end), finished)
}

/// Sessions that all begin and end alike.
fn alone(view: &View, sources: &Sources, (start, end): (Micros, Micros), finished: Finished) -> PolarsResult<Answer> {
    let mut answer = whole(view, sources, Span::Session { start, end }, finished)?;
    answer.rows = answer.rows.drop_many(["window_start", "window_end"]);
    Ok(answer)
}

fn whole(view: &View, sources: &Sources, span: Span, finished: Finished) -> PolarsResult<Answer> {
    let (from, to) = match span {
        Span::Session { start, end } => (start, end),
        Span::Range { from, to } => (from, to),
        _ => (Micros::MIN, Micros::MAX),
    };
    // Of which session a late event would have been isn't known: those of the panes are counted.
    let from = view.window.map_or(from, |window| if from == Micros::MIN { from } else { window.pane_of(from) });
    let panes = sources.chunks.iter().flat_map(|chunk| chunk.panes.range(from..to).map(|(_, pane)| pane));
    let late = panes.flat_map(|pane| pane.late.values()).sum();
    Ok(Answer { span, quality: quality(view, sources, &finished, late)?, rows: finished.rows, late })
}

fn nothing(view: &View, sources: &Sources) -> PolarsResult<Answer> {
    super::nothing(view, sources)
}
