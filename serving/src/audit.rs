//! Scores what was said against what a new version knows.
//!
//! When the speed layer goes over to a new version, the windows of which nothing is left in its chunks are batch's alone from
//! then on: exact. The last snapshot before said something of the same events. The two are compared, value by value, and with
//! a third answer: that of the last snapshot if it had counted late events as if they had come in time. A value that the
//! third has right was off for late events; where it is off itself, a sketch was. What was erased from the archive meanwhile says
//! nothing of the answers, so windows of such days aren't scored.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_exchange::audit::{Audit, Cause, ColumnAudit, Compared, Deviation, Findings, MOST_CORRECTIONS, is_same};
use anabranch_log::position::Positions;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::merge::{self, Ask};
use crate::server::Server;
use crate::source::{Layers, Mode, Sources};

/// How many windows are scored at most: the newest.
const MOST_WINDOWS: usize = 10_000;

/// Follows a view's snapshots, and scores each that is the last on its version.
pub(crate) async fn follow(server: Arc<Server>, view: Kept) {
    let layers = server.layers.get(&view);
    let Some(mut snapshots) = server.layers.snapshots().0.get(&view.id).cloned() else { return };
    let mut before = layers;
    while snapshots.changed().await.is_ok() {
        snapshots.borrow_and_update();
        let after = server.layers.get(&view);
        let base = |layers: &Layers| layers.snapshot.as_ref().and_then(|snapshot| snapshot.base);
        if base(&after).is_some() && base(&after) != base(&before) {
            let (said, known) = (before.clone(), after.clone());
            let (server, view) = (Arc::clone(&server), view.clone());
            let scored = tokio::task::spawn_blocking(move || score(&server, &view, &said, &known)).await;
            if let Err(error) = scored {
                tracing::error!(%error, "scoring answers has failed");
            }
        }
        before = after;
    }
}

fn score(server: &Server, view: &Kept, said: &Layers, known: &Layers) {
    let now = format_timestamp(server.app.clock.now());
    match findings(view, said, known, now) {
        Ok(Some(findings)) => match server.app.audits.record(&view.id.name, &findings) {
            Ok(true) => server.metrics.audited(&view.id.name, &findings.audit),
            Ok(false) => {}
            Err(error) => tracing::warn!(view = view.id.name, %error, "what an audit found can't be stored"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!(view = view.id.name, %error, "answers can't be scored"),
    }
}

/// Compares what was said with what is known; none if no window has become exact.
pub(crate) fn findings(view: &Kept, said: &Layers, known: &Layers, at: String) -> PolarsResult<Option<Findings>> {
    let (Some(before), Some(after)) = (&said.snapshot, &known.snapshot) else { return Ok(None) };
    let Some(version) = after.base else { return Ok(None) };
    let nowhere = Positions::new();
    let old = Sources::choose(view, Mode::Merged, said, &nowhere);
    let new = Sources::choose(view, Mode::Merged, known, &nowhere);
    let Some(truth) = new.version.as_ref().filter(|held| held.published.version == version) else { return Ok(None) };
    // The answers must have been about all that the version covers, and about no gap.
    let is_comparable = old.is_whole()
        && truth.published.coverage.iter().all(|(partition, range)| old.covered_to(partition) >= range.end);
    if !is_comparable {
        return Ok(None);
    }
    let starts = |layers: &anabranch_exchange::snapshot::Snapshot| -> BTreeSet<Micros> {
        let panes = layers.chunks.iter().flat_map(|chunk| chunk.panes.keys().copied());
        panes
            .flat_map(|pane| view.aggregation().window.map_or(vec![0], |window| window.starts(pane).collect()))
            .collect()
    };
    let open = starts(after);
    // While a window is open, rows may be lacking that settle later, though all records were there.
    let watermark = before.watermark.unwrap_or(Micros::MIN);
    let is_closed = |start: Micros| {
        let end = view.aggregation().window.map_or(Micros::MAX, |window| window.end_of(start));
        !view.rows.looks_across() || end.saturating_add(view.aggregation().allowed_lateness) <= watermark
    };
    let exact: BTreeSet<Micros> =
        starts(before).into_iter().filter(|start| !open.contains(start) && is_closed(*start)).collect();
    let exact: BTreeSet<Micros> = exact.into_iter().rev().take(MOST_WINDOWS).collect();
    let (Some(&first), Some(&last)) = (exact.first(), exact.last()) else { return Ok(None) };
    let rows = |sources: &Sources| {
        let to = view.aggregation().window.map_or(1, |window| window.end_of(last));
        let ask = if view.aggregation().window.is_some() { Ask::Range { from: first, to } } else { Ask::Latest };
        inside(view, merge::answer(view, sources, ask)?.rows, &exact)
    };
    let all = Sources {
        chunks: old.chunks.iter().map(|chunk| in_time(view, chunk)).collect::<PolarsResult<_>>()?,
        ..old.clone()
    };
    let (said, in_time, known) = (rows(&old)?, rows(&all)?, rows(&new)?);
    if [&old, &all, &new].into_iter().any(|sources| sources.is_cut()) {
        return Ok(None);
    }
    let compared = compared(view, &said, &in_time, &known)?;
    let erased = is_erased(view, &compared, &truth.published.erased)?;
    let about = Scored { erased: &erased, was_unsure: old.unsure.is_some() };
    Ok(Some(scored(view, &compared, (version, before.base), exact.len() as u64, at, &about)?))
}

/// A chunk as if its events had all come in time.
fn in_time(
    view: &Kept,
    chunk: &anabranch_exchange::snapshot::Chunk,
) -> PolarsResult<Arc<anabranch_exchange::snapshot::Chunk>> {
    use anabranch_engine::group::Keep;
    use anabranch_engine::partial::{self, MISSED};
    use anabranch_exchange::snapshot::{Chunk, Pane};
    let mut panes = std::collections::BTreeMap::new();
    for (&start, pane) in &chunk.panes {
        let mut partials = pane.partials.clone();
        if !pane.late.is_empty() && partials.height() > 0 {
            partials.replace(MISSED, Column::new_scalar(MISSED.into(), Scalar::from(0_i32), partials.height()))?;
            partials = partial::merge(view.aggregation(), [partials], Keep::Everything)?;
        }
        panes.insert(start, Arc::new(Pane { partials, slack: pane.slack, ..Pane::default() }));
    }
    Ok(Arc::new(Chunk { panes, ..chunk.clone() }))
}

/// The rows of these windows. A session is known by the pane that it starts in.
fn inside(view: &Kept, rows: DataFrame, starts: &BTreeSet<Micros>) -> PolarsResult<DataFrame> {
    let Some(window) = view.aggregation().window else { return Ok(rows) };
    let times = rows.column("window_start")?.cast(&DataType::Int64)?;
    let wanted = times.i64()?.iter().map(|start| start.is_some_and(|start| starts.contains(&window.last_start(start))));
    rows.filter(&wanted.collect())
}

/// The rows as they were said, as they would have been said with late events, and as they are.
const SAID: &str = "__said";
const ALL: &str = "__all";
const TRUE: &str = "";

fn compared(view: &Kept, said: &DataFrame, all: &DataFrame, truth: &DataFrame) -> PolarsResult<Compared> {
    let aggregates = view.aggregation().aggregates.iter().map(|aggregate| aggregate.name.as_str());
    let values: Vec<String> =
        aggregates.flat_map(|name| ["", "_lower", "_upper"].map(|suffix| format!("{name}{suffix}"))).collect();
    Compared::of(view.aggregation().identity(), &values, &[(TRUE, truth), (SAID, said), (ALL, all)])
}

/// Which rows are of windows with events of a day of which events were erased.
fn is_erased(view: &Kept, compared: &Compared, erased: &BTreeSet<i64>) -> PolarsResult<Vec<bool>> {
    const DAY: Micros = 86_400_000_000;
    if erased.is_empty() || view.aggregation().window.is_none() {
        return Ok(vec![!erased.is_empty(); compared.height()]);
    }
    let micros = |name: &str, row: usize| -> PolarsResult<Option<Micros>> {
        Ok(compared.value(name, TRUE, row)?.to_physical().extract())
    };
    let touches = |row: usize| -> PolarsResult<bool> {
        let (start, end) = (micros("window_start", row)?, micros("window_end", row)?);
        let days = start.zip(end).map(|(start, end)| start.div_euclid(DAY)..=(end - 1).div_euclid(DAY));
        Ok(days.is_some_and(|days| erased.range(days).next().is_some()))
    };
    (0..compared.height()).map(touches).collect()
}

/// What is known of the rows that are scored.
struct Scored<'a> {
    /// Of which of them events were erased.
    erased: &'a [bool],
    /// Whether records had come too late to be joined. They aren't in what was held, so counting them in can't mend it.
    was_unsure: bool,
}

fn scored(
    view: &Kept,
    compared: &Compared,
    (version, base): (u64, Option<u64>),
    windows: u64,
    at: String,
    about: &Scored<'_>,
) -> PolarsResult<Findings> {
    let (is_true, was_said) = (compared.is_in(TRUE)?, compared.is_in(SAID)?);
    let (mut columns, mut corrections, mut total) = (Vec::new(), Vec::new(), 0);
    for aggregate in &view.aggregation().aggregates {
        let (score, changes) = score_column(compared, &aggregate.name, (&is_true, &was_said), about)?;
        columns.push(score);
        total += changes.len() as u64;
        let room = MOST_CORRECTIONS - corrections.len();
        corrections.extend(compared.corrections(&aggregate.name, (SAID, TRUE), changes.into_iter().take(room))?);
    }
    corrections.sort_by(|a, b| a.window_end.cmp(&b.window_end));
    let only = |one: &[bool], other: &[bool]| one.iter().zip(other).filter(|(one, other)| **one && !**other).count();
    let (missing, extra) = (only(&is_true, &was_said) as u64, only(&was_said, &is_true) as u64);
    let audit =
        Audit { version, base, at, windows, rows_missing: missing, rows_extra: extra, columns, corrections: total };
    Ok(Findings { audit, corrections })
}

/// How well an aggregate was said, and the rows in which it has changed, each with the cause.
fn score_column(
    compared: &Compared,
    name: &str,
    (is_true, was_said): (&[bool], &[bool]),
    Scored { erased, was_unsure }: &Scored<'_>,
) -> PolarsResult<(ColumnAudit, Vec<(usize, Cause)>)> {
    let mut score = ColumnAudit { column: name.to_owned(), ..ColumnAudit::default() };
    let (mut late, mut sketch, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..compared.height() {
        let value = |mark| compared.value(name, mark, row);
        let (said, all, truth) = (value(SAID)?, value(ALL)?, value(TRUE)?);
        let is_both = is_true[row] && was_said[row] && !erased[row];
        if is_both {
            score.values += 1;
            let bound = |which| compared.value(&format!("{name}_{which}"), SAID, row);
            if let Some(held) = holds(&[bound("lower")?, bound("upper")?], &said, &truth) {
                score.bounded += 1;
                score.held += u64::from(held);
            }
        }
        if is_same(&said, &truth) && is_true[row] == was_said[row] {
            continue;
        }
        if erased[row] {
            changes.push((row, Cause::Erased));
            continue;
        }
        // What counting late events in mends is theirs; the rest is the sketch's.
        let is_late = *was_unsure || is_same(&all, &truth);
        let (cause, off) = if is_late { (Cause::Late, &mut late) } else { (Cause::Sketch, &mut sketch) };
        if is_both {
            off.push((said, truth));
        }
        changes.push((row, cause));
    }
    (score.late, score.sketch) = (deviation(&late), deviation(&sketch));
    Ok((score, changes))
}

/// Whether bounds held; none if they weren't known.
fn holds([lower, upper]: &[AnyValue; 2], said: &AnyValue, truth: &AnyValue) -> Option<bool> {
    if lower.is_null() && upper.is_null() {
        return if said.is_null() { Some(truth.is_null()) } else { None };
    }
    let not_above = |one: &AnyValue, other: &AnyValue| is_same(one, other) || one <= other;
    Some(not_above(lower, truth) && not_above(truth, upper))
}

fn deviation(values: &[(AnyValue, AnyValue)]) -> Deviation {
    let number = |value: &AnyValue| if value.is_primitive_numeric() { value.extract::<f64>() } else { None };
    let pairs = values.iter().filter_map(|(said, truth)| Some((number(said)?, number(truth)?)));
    let mut apart: Vec<(f64, f64)> = pairs.map(|(said, truth)| ((said - truth).abs(), truth)).collect();
    apart.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let shares = apart.iter().filter(|(_, truth)| *truth != 0.0).map(|(apart, truth)| apart / truth.abs());
    Deviation {
        values: values.len() as u64,
        median: apart.get(apart.len() / 2).map(|(apart, _)| *apart),
        worst: apart.last().map(|(apart, _)| *apart),
        worst_share: shares.max_by(f64::total_cmp),
    }
}
