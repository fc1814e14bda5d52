//! Sessions: windows that each group makes for itself.

use anabranch_engine::partial::{self, Finished, Scope, whole_sessions};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::pane::{newest_pane, oldest_pane};
use super::{Answer, Ask, Doubt, Final, Span, parts, quality};
use crate::source::Sources;

/// Merges what the sources hold of the sessions asked for.
pub(super) fn answer(view: &Kept, sources: &Sources, ask: Ask) -> PolarsResult<Answer> {
    let everything = (Micros::MIN, Micros::MAX);
    let Some(held) = held(view, sources)? else {
        let span = match ask {
            Ask::End(end) => Span::Ending(end),
            Ask::Range { from, to } => Span::Range { from, to },
            Ask::Latest | Ask::Current | Ask::Closed => Span::Nothing,
        };
        return nothing(view, sources, span, everything);
    };
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
        Ask::End(end) => {
            let finished = of(&|_, ends| ends == end, end.saturating_sub(1), end)?;
            ending(view, sources, Span::Ending(end), finished, (end.saturating_sub(gap(view)), end))
        }
        Ask::Latest => {
            let newest = newest_pane(view, sources)?.unwrap_or(held.0);
            let (finished, about) = last(view, sources, held, held.1, held.1.saturating_sub(newest))?;
            ending(view, sources, Span::Nothing, finished, about)
        }
        Ask::Closed => match sources.watermark {
            Some(watermark) => {
                let (finished, about) = newest_closed(view, sources, held, watermark)?;
                ending(view, sources, Span::Nothing, finished, about)
            }
            None => nothing(view, sources, Span::Nothing, everything),
        },
        Ask::Current => {
            let open = sources.watermark.unwrap_or(Micros::MIN);
            let finished = of(&|_, end| end > open, open.max(held.0), held.1)?;
            let first = micros(&finished.rows, "window_start")?.min().unwrap_or(open);
            whole(view, sources, Span::Open, finished, (first.min(open), Micros::MAX))
        }
    }
}

fn gap(view: &Kept) -> Micros {
    if let Some(Window::Session { gap }) = view.aggregation().window { gap } else { 0 }
}

/// Sessions, with the events that could have made others of them.
type Found = (Finished, (Micros, Micros));

/// The last of the sessions that have ended by `closed`, with some before them.
fn newest_closed(view: &Kept, sources: &Sources, held: (Micros, Micros), closed: Micros) -> PolarsResult<Found> {
    last(view, sources, held, closed, held.1.saturating_sub(held.0).min(3_600_000_000))
}

/// The last of the sessions that have ended by `closed`, with some before them: they are sought so far back at first, and
/// then further.
fn last(
    view: &Kept,
    sources: &Sources,
    held: (Micros, Micros),
    closed: Micros,
    mut step: Micros,
) -> PolarsResult<Found> {
    loop {
        step = step.max(1);
        let from = closed.saturating_sub(step);
        let mut finished = overlapping(view, sources, held, from, closed.saturating_add(1))?;
        keep(&mut finished, |_, end| end <= closed)?;
        if finished.rows.height() > 0 {
            return Ok((finished, (closed, closed)));
        }
        if from <= held.0 {
            return Ok((finished, (Micros::MIN, closed)));
        }
        step = step.saturating_mul(4);
    }
}

/// The sessions that have ended by `closed` and come next after one, in order; without one, the last.
pub(super) fn finals(
    view: &Kept,
    sources: &Sources,
    closed: Micros,
    after: Option<Final>,
) -> PolarsResult<Vec<(Final, Answer)>> {
    let Some(held) = held(view, sources)? else { return Ok(Vec::new()) };
    let Some(after) = after else {
        let (mut finished, (from, to)) = newest_closed(view, sources, held, closed)?;
        let Some(newest) = bounds(&finished.rows)?.last().copied() else { return Ok(Vec::new()) };
        keep(&mut finished, |start, end| Final { end, start } == newest)?;
        let about = (from.min(newest.start), to.max(newest.end));
        return Ok(vec![(newest, alone(view, sources, newest, finished, about)?)]);
    };
    let (from, last) = (after.end.max(held.0), closed.min(held.1));
    let mut step = view.aggregation().window.map_or(1, |window| window.end_of(0));
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

/// The rows of the sessions that [`super::may_change`].
pub(super) fn rows_since(view: &Kept, sources: &Sources, from: Option<Micros>) -> PolarsResult<DataFrame> {
    let Some(held) = held(view, sources)? else {
        return Ok(partial::windows(view.aggregation(), &[], Scope::All)?.rows);
    };
    let first = from.map_or(held.0, |from| from.saturating_sub(gap(view)).max(held.0 - 1));
    sources.about(held.1);
    let mut finished = overlapping(view, sources, held, first, held.1.saturating_add(1))?;
    keep(&mut finished, |start, end| super::may_change(view, from, Final { end, start }))?;
    Ok(finished.rows)
}

/// The answers of sessions that are in order, one for all that begin and end alike.
fn each(view: &Kept, sources: &Sources, finished: &Finished) -> PolarsResult<Vec<(Final, Answer)>> {
    let mut first = 0;
    let bounds = bounds(&finished.rows)?;
    let answers = bounds.chunk_by(|a, b| a == b).map(|alike| {
        let rows = finished.rows.slice(first as i64, alike.len());
        first += alike.len();
        let Finished { is_degraded, is_sketched, is_certain, .. } = *finished;
        let finished = Finished { rows, is_degraded, is_sketched, is_certain };
        let Final { end, start } = alike[0];
        Ok((alike[0], alone(view, sources, alike[0], finished, (start, end))?))
    });
    answers.collect()
}

/// Where the first pane begins and the last ends; none without any.
fn held(view: &Kept, sources: &Sources) -> PolarsResult<Option<(Micros, Micros)>> {
    let (Some(window), Some(oldest)) = (view.aggregation().window, oldest_pane(sources)) else { return Ok(None) };
    let newest = newest_pane(view, sources)?.unwrap_or(oldest);
    Ok(Some((oldest, window.end_of(newest))))
}

fn overlapping(
    view: &Kept,
    sources: &Sources,
    held: (Micros, Micros),
    from: Micros,
    to: Micros,
) -> PolarsResult<Finished> {
    whole_sessions(view.aggregation(), (from, to), held, |from, to| parts(view, sources, None, from, to))
}

fn micros(rows: &DataFrame, name: &str) -> PolarsResult<Int64Chunked> {
    rows.column(name)?.cast(&DataType::Int64)?.i64().cloned()
}

/// Each row's session.
fn bounds(rows: &DataFrame) -> PolarsResult<Vec<Final>> {
    let (starts, ends) = (micros(rows, "window_start")?, micros(rows, "window_end")?);
    Ok(ends.iter().zip(starts.iter()).filter_map(|(end, start)| Some(Final { end: end?, start: start? })).collect())
}

/// Keeps the sessions for whose start and end `wanted` says so.
fn keep(finished: &mut Finished, wanted: impl Fn(Micros, Micros) -> bool) -> PolarsResult<()> {
    let kept = bounds(&finished.rows)?.into_iter().map(|Final { end, start }| wanted(start, end));
    finished.rows = finished.rows.filter(&kept.collect())?;
    Ok(())
}

/// Those of some sessions that end last, whenever they began; the answer is about `none` without any. Events in `asked` could
/// have made others the last.
fn ending(
    view: &Kept,
    sources: &Sources,
    none: Span,
    mut finished: Finished,
    asked: (Micros, Micros),
) -> PolarsResult<Answer> {
    let Some(last) = micros(&finished.rows, "window_end")?.max() else { return nothing(view, sources, none, asked) };
    keep(&mut finished, |_, end| end == last)?;
    let first = micros(&finished.rows, "window_start")?.min().unwrap_or(last);
    let about = (asked.0.min(first), asked.1.max(last));
    whole(view, sources, Span::Ending(last), finished, about)
}

/// Sessions that all begin and end alike.
fn alone(
    view: &Kept,
    sources: &Sources,
    Final { end, start }: Final,
    finished: Finished,
    about: (Micros, Micros),
) -> PolarsResult<Answer> {
    let mut answer = whole(view, sources, Span::Session { start, end }, finished, about)?;
    answer.rows = answer.rows.drop_many(["window_start", "window_end"]);
    Ok(answer)
}

fn whole(
    view: &Kept,
    sources: &Sources,
    span: Span,
    mut finished: Finished,
    about: (Micros, Micros),
) -> PolarsResult<Answer> {
    let doubt = doubt(view, sources, about);
    finished.is_degraded |= doubt.is_degraded;
    finished.is_certain &= !finished.is_degraded;
    let quality = quality(view, sources, &mut finished, doubt.late, doubt.is_unsure)?;
    Ok(Answer { span, quality, rows: finished.rows, late: doubt.late })
}

fn nothing(view: &Kept, sources: &Sources, span: Span, about: (Micros, Micros)) -> PolarsResult<Answer> {
    super::nothing(view, sources, span, doubt(view, sources, about))
}

/// What may change the sessions that lie in a span. An event up to the gap before it may be of one of them. Of which session
/// a late event would have been isn't known: all those of the panes are counted.
fn doubt(view: &Kept, sources: &Sources, (from, to): (Micros, Micros)) -> Doubt {
    let from = from.saturating_sub(gap(view));
    let from = if from < Micros::MIN / 2 {
        Micros::MIN
    } else {
        view.aggregation().window.map_or(from, |window| window.pane_of(from))
    };
    Doubt::of(sources, from, to)
}
