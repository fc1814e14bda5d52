//! The heart: adds up what the two layers hold of a window and says how exact the sum is.
//!
//! The batch part and the chunks of the speed part are partials of disjoint offsets that join exactly
//! ([`crate::source`]), so laying them end to end and merging is the whole of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_shared::clock::Micros;
use anabranch_shared::partial::{self, DOWN, MISSED, PANE, Quality, Scope, UP};
use anabranch_shared::snapshot::{Pane, Slack};
use anabranch_shared::view::{OutputColumn, View};
use anabranch_shared::window::Window;
use polars::prelude::*;

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
    /// The window that starts there.
    Start(Micros),
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
    /// Its rows, ordered and limited as the view says; with `window_start` and `window_end` if several windows were
    /// asked for.
    pub rows: DataFrame,
    /// Whether the rows are what the batch layer will say of the same events.
    pub exact: bool,
    /// Events that came too late for the windows asked for.
    pub late: u64,
}

/// Whether a window may still change.
pub fn state(view: &View, end: Micros, watermark: Option<Micros>) -> &'static str {
    match watermark {
        Some(watermark) if watermark >= end.saturating_add(view.allowed_lateness) => "closed",
        Some(watermark) if watermark >= end => "closing",
        _ => "open",
    }
}

/// Merges what the sources hold of the windows asked for.
pub fn answer(view: &View, sources: &Sources, ask: Ask) -> PolarsResult<Answer> {
    let Some(window) = view.window else {
        return one(view, sources, Span::Everything, 0, 1);
    };
    let start = match ask {
        Ask::Range { from, to } => return range(view, window, sources, from, to),
        Ask::Start(start) => Some(start),
        Ask::Latest => newest_pane(view, sources, None)?.map(|pane| window.last_start(pane)),
        Ask::Current => newest_pane(view, sources, None)?.map(|pane| window.first_start(pane)),
        Ask::Closed => newest_closed(view, window, sources)?,
    };
    match start {
        Some(start) => one(view, sources, Span::One(start), start, start.saturating_add(window.size)),
        None => {
            let exact = sources.missing.is_empty();
            Ok(Answer { span: Span::Nothing, rows: DataFrame::empty(), exact, late: 0 })
        }
    }
}

fn one(view: &View, sources: &Sources, span: Span, from: Micros, to: Micros) -> PolarsResult<Answer> {
    let parts = Parts::collect(view, sources, Scope::One(from), from, to)?;
    let late = view.window.map_or(0, |window| late(window, sources, from, from));
    let mut rows = parts.finish(view, Scope::One(from))?;
    if view.window.is_some() {
        rows = rows.drop_many(["window_start", "window_end"]);
    }
    let exact = sources.missing.is_empty() && late == 0 && parts.slack.is_none() && parts.is_tight(view, &rows)?;
    Ok(Answer { span, rows, exact, late })
}

fn range(view: &View, window: Window, sources: &Sources, from: Micros, to: Micros) -> PolarsResult<Answer> {
    let span = Span::Range { from, to };
    let (first, last) = starts_inside(window, from, to);
    if first > last {
        let rows = partial::windows(view, nothing(view).lazy(), Scope::Range(first, first), Quality::default())?;
        return Ok(Answer { span, rows: rows.collect()?, exact: sources.missing.is_empty(), late: 0 });
    }
    let late = late(window, sources, first, last);
    let mut exact = sources.missing.is_empty() && late == 0;
    let mut rows: Option<DataFrame> = None;
    for scope in scopes(window, sources, first, last) {
        let (scope_first, scope_last) = match scope {
            Scope::One(start) => (start, start),
            Scope::Range(first, last) => (first, last),
            Scope::All => (first, last),
        };
        let parts = Parts::collect(view, sources, scope, scope_first, scope_last.saturating_add(window.size))?;
        let part = parts.finish(view, scope)?;
        exact = exact && parts.slack.is_none() && parts.is_tight(view, &part)?;
        match &mut rows {
            None => rows = Some(part),
            Some(rows) => {
                rows.vstack_mut(&part)?;
            }
        }
    }
    Ok(Answer { span, rows: rows.unwrap_or_default(), exact, late })
}

/// The starts of the first and the last window wholly inside `[from, to]`; the first is after the last if there is none.
pub fn starts_inside(window: Window, from: Micros, to: Micros) -> (Micros, Micros) {
    let first = from.div_euclid(window.slide) + i64::from(from.rem_euclid(window.slide) != 0);
    let last = to.saturating_sub(window.size).div_euclid(window.slide);
    (first.saturating_mul(window.slide), last.saturating_mul(window.slide))
}

/// Windows with a degraded pane are answered one by one, as its slack is a window's, the others between them at once.
fn scopes(window: Window, sources: &Sources, first: Micros, last: Micros) -> Vec<Scope> {
    let degraded: BTreeSet<Micros> = panes(sources, first, last.saturating_add(window.size))
        .filter(|(_, pane)| pane.slack.is_some())
        .flat_map(|(start, _)| window.starts(start))
        .filter(|start| (first..=last).contains(start))
        .collect();
    let mut scopes = Vec::new();
    let mut next = first;
    for start in degraded {
        if next < start {
            scopes.push(Scope::Range(next, start - window.slide));
        }
        scopes.push(Scope::One(start));
        next = start + window.slide;
    }
    if next <= last {
        scopes.push(Scope::Range(next, last));
    }
    scopes
}

fn panes(sources: &Sources, from: Micros, to: Micros) -> impl Iterator<Item = (Micros, &Arc<Pane>)> {
    let chunks = sources.chunks.iter().filter(move |_| from < to);
    chunks.flat_map(move |chunk| chunk.panes.range(from..to).map(|(&start, pane)| (start, pane)))
}

/// The events that missed at least one of the windows that start in `[first, last]`.
fn late(window: Window, sources: &Sources, first: Micros, last: Micros) -> u64 {
    let panes = panes(sources, first, last.saturating_add(window.size)).filter(|(_, pane)| !pane.late.is_empty());
    let counts = panes.map(|(start, pane)| {
        let earliest = window.first_start(start);
        // Events miss a pane's windows from the earliest on: this is the earliest that is asked for.
        let asked = earliest.max(first);
        if asked > last.min(window.last_start(start)) {
            return 0;
        }
        let index = i32::try_from((asked - earliest) / window.slide).unwrap_or(i32::MAX);
        pane.late.iter().filter(|&(&missed, _)| missed > index).map(|(_, events)| events).sum::<u64>()
    });
    counts.sum()
}

/// The newest pane with data that starts before `before`.
fn newest_pane(view: &View, sources: &Sources, before: Option<Micros>) -> PolarsResult<Option<Micros>> {
    let before = before.unwrap_or(Micros::MAX);
    let speed = sources.chunks.iter().filter_map(|chunk| {
        let mut panes = chunk.panes.range(..before).rev();
        panes.find(|(_, pane)| pane.partials.height() > 0).map(|(&start, _)| start)
    });
    let mut newest = speed.max();
    if let Some(version) = &sources.version {
        let files = version.published.panes.iter().filter(|file| file.rows > 0 && file.first < before);
        let (whole, cut): (Vec<_>, Vec<_>) = files.partition(|file| file.last < before);
        newest = newest.max(whole.iter().map(|file| file.last).max());
        let from = cut.iter().map(|file| file.first).min();
        if let Some(from) = from.map(|from| newest.map_or(from, |newest| newest.max(from))) {
            let last = version.partials(view, from, before)?.select([col(PANE).max()]).collect()?;
            newest = newest.max(last.column(PANE)?.i64()?.get(0));
        }
    }
    Ok(newest)
}

fn newest_closed(view: &View, window: Window, sources: &Sources) -> PolarsResult<Option<Micros>> {
    let Some(watermark) = sources.watermark else { return Ok(None) };
    let last_closed = watermark.saturating_sub(window.size).div_euclid(window.slide).saturating_mul(window.slide);
    let newest = newest_pane(view, sources, Some(last_closed.saturating_add(window.size)))?;
    Ok(newest.map(|pane| window.last_start(pane).min(last_closed)))
}

fn nothing(view: &View) -> DataFrame {
    DataFrame::empty_with_schema(&partial::schema(view))
}

/// The partials of some panes, from both layers, laid end to end.
struct Parts {
    partials: LazyFrame,
    has_missed: bool,
    slack: Option<i64>,
}

impl Parts {
    fn collect(view: &View, sources: &Sources, scope: Scope, from: Micros, to: Micros) -> PolarsResult<Self> {
        let panes: Vec<&Arc<Pane>> = panes(sources, from, to).map(|(_, pane)| pane).collect();
        let slacks = panes.iter().filter_map(|pane| pane.slack).map(|slack| slack.up);
        let slack = panes.iter().any(|pane| pane.slack.is_some()).then(|| slacks.sum());
        let has_missed = panes.iter().any(|pane| pane.late.keys().any(|&missed| missed > 0));

        let mut speed = if slack.is_some() { without_slack(nothing(view))? } else { nothing(view) };
        let names: Vec<String> = partial::schema(view).iter_names().map(|name| name.to_string()).collect();
        for pane in panes.iter().filter(|pane| pane.partials.height() > 0) {
            let partials = pane.partials.select(&names)?;
            let partials = match (slack, pane.slack) {
                (None, _) => partials,
                (Some(_), None) => without_slack(partials)?,
                (Some(_), Some(own)) => with_own_slack(partials, own)?,
            };
            speed.vstack_mut(&partials)?;
        }
        let mut partials = speed.lazy();
        if let Some(version) = &sources.version {
            let mut batch = match scope {
                Scope::One(_) => version.window_partials(view, from, to)?.lazy(),
                _ => version.partials(view, from, to)?,
            };
            if slack.is_some() {
                batch = batch.with_columns([lit(0_i64).alias(DOWN), lit(0_i64).alias(UP)]);
            }
            let options = UnionArgs { maintain_order: false, ..Default::default() };
            partials = concat([batch, partials], options)?;
        }
        Ok(Self { partials, has_missed, slack })
    }

    fn finish(&self, view: &View, scope: Scope) -> PolarsResult<DataFrame> {
        let quality = Quality { has_missed: self.has_missed, slack: self.slack };
        partial::windows(view, self.partials.clone(), scope, quality)?.collect()
    }

    /// Whether every bound is the value itself.
    fn is_tight(&self, view: &View, rows: &DataFrame) -> PolarsResult<bool> {
        if !self.has_missed && self.slack.is_none() {
            return Ok(true);
        }
        let differs = view.columns.iter().filter_map(|&column| match column {
            OutputColumn::Aggregate(i) => {
                let name = &view.aggregates[i].name;
                let bound = |suffix: &str| col(format!("{name}_{suffix}")).neq_missing(col(name.as_str()));
                Some(bound("lower").or(bound("upper")))
            }
            _ => None,
        });
        let Some(any) = differs.reduce(|any, one| any.or(one)) else { return Ok(true) };
        let loose = rows.clone().lazy().select([any.any(true).alias("loose")]).collect()?;
        Ok(loose.column("loose")?.bool()?.get(0) != Some(true))
    }
}

fn without_slack(mut partials: DataFrame) -> PolarsResult<DataFrame> {
    let height = partials.height();
    for name in [DOWN, UP] {
        partials.with_column(Column::new_scalar(name.into(), Scalar::from(0_i64), height))?;
    }
    Ok(partials)
}

/// Slack speaks of a key's row that missed nothing; a key that has others as well has the slack once.
fn with_own_slack(partials: DataFrame, slack: Slack) -> PolarsResult<DataFrame> {
    let once = |amount: i64, name: &str| {
        ternary_expr(col(MISSED).eq(lit(0_i32)), lit(amount), lit(0_i64)).cast(DataType::Int64).alias(name)
    };
    partials.lazy().with_columns([once(slack.down, DOWN), once(slack.up, UP)]).collect()
}
