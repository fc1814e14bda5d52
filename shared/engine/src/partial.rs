//! Partial aggregates: what every layer computes, stores and merges.
//!
//! A frame of partials has one row per pane and group. Its columns are:
//!
//! | column    | type    | what |
//! |-----------|---------|------|
//! | `__pane`  | BIGINT  | the start of the pane in microseconds; 0 in a view without windows |
//! | `__missed`| INTEGER | how many of the pane's windows, from the earliest, were closed when these events came |
//! | `__first`, `__last` | BIGINT | in a view of sessions: the times of the first and last of these events, see [`session`] |
//! | `k0`, `k1`, … |     | the keys |
//! | `a0`, `a0n`, … |    | per aggregate its state: see [`crate::aggregate`] |
//!
//! Partials are a commutative monoid, as the states of their aggregates are ([`crate::aggregate`]): the empty frame is the
//! identity, and [`merge`] is associative and commutative, so any split of the events into batches, chunks, layers or
//! workers gives the same sum. [`partials`] of all events equals the merge of the partials of its parts.
//!
//! [`windows`] adds the panes of each window and finishes the aggregates. It finishes each twice: over the events that
//! came in time, which is the answer, and over all of them, which is what the batch layer will say. The two differ only
//! where events came too late, and are then the answer's bounds.

mod contender;
mod finish;
mod session;
mod slack;
#[cfg(test)]
mod tests;
mod whole;
mod windows;

use std::collections::BTreeMap;

use anabranch_plan::aggregation::Aggregation;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;

use crate::group::{Groups, Keep};
use crate::row::Lowered;
use crate::transform::{constant, lower, polars_type};

pub use finish::{Finished, Scope};
pub use slack::Slack;
pub use whole::whole_sessions;
pub use windows::{Part, windows};

pub use crate::frame::{FIRST, LAST, MISSED, PANE, key, schema};

/// Partials that were stored or sent, if they have the columns that the view's have: a program of another edition keeps
/// others, which mean something else.
pub fn checked(view: &Kept, partials: DataFrame) -> PolarsResult<DataFrame> {
    let wanted = schema(view.aggregation());
    if **partials.schema() != wanted {
        polars_bail!(ComputeError: "partials of view `{}` are of another format", view.id.name);
    }
    Ok(partials)
}

/// What the aggregates of a view are over, by row: [`PANE`], [`MISSED`], the keys, and as `v0`, `p0`, `v1`, … the values. What
/// the view's expressions need is made once, for all micro-batches.
#[derive(Debug)]
pub struct Inputs {
    rows: Lowered,
    columns: Vec<Expr>,
}

impl Inputs {
    /// Those of a view.
    pub fn new(view: &Kept) -> Self {
        let aggregation = view.aggregation();
        // Without windows it is any column of each row: a frame of nothing but constants would have one row.
        let by = aggregation.time.clone().or_else(|| view.rows.event_times().into_iter().next());
        let columns = view.rows.schema();
        let by = columns.iter().find(|column| by.as_ref().is_none_or(|time| column.name == *time));
        let by = by.map(|column| anabranch_plan::expr::Expr::Column(column.name.clone(), column.data_type.clone()));
        let rows = match view.rows.looks_across() {
            true => Lowered::nothing(),
            false => Lowered::new(&view.rows, aggregation.expressions().chain(&by)),
        };
        let by = by.as_ref().map_or_else(|| constant(0_i64), lower);
        let time = by.clone().cast(DataType::Int64);
        let pane = match aggregation.window {
            None => by.is_null().cast(DataType::Int64) * constant(0_i64),
            Some(Window::Sliding(sliding)) => {
                let (offset, pane) = (constant(sliding.offset), constant(sliding.pane()));
                (time.clone() - offset.clone()).floor_div(pane.clone()) * pane + offset
            }
            Some(window) => {
                time.clone().map(move |times| Ok(panes_of(window, times.i64()?)), |_, field| Ok(field.clone()))
            }
        };
        let mut columns = vec![pane.alias(PANE)];
        if aggregation.window.is_some_and(Window::is_session) {
            columns.extend([time.clone().alias(FIRST), time.alias(LAST)]);
        }
        columns.extend(aggregation.keys.iter().enumerate().map(|(i, k)| lower(&k.expr).alias(key(i))));
        for (i, aggregate) in aggregation.aggregates.iter().enumerate() {
            let filtered = |value: &anabranch_plan::expr::Expr| match &aggregate.filter {
                None => lower(value),
                Some(filter) => {
                    let nothing = lit(NULL).cast(polars_type(&value.data_type()));
                    ternary_expr(lower(filter), lower(value), nothing)
                }
            };
            match (&aggregate.argument, &aggregate.filter) {
                (None, None) => {}
                (None, Some(filter)) => columns.push(lower(filter).alias(format!("v{i}"))),
                (Some(argument), _) => columns.push(filtered(argument).alias(format!("v{i}"))),
            }
            if let Some(place) = &aggregate.place {
                columns.push(filtered(place).alias(format!("p{i}")));
            }
        }
        Self { rows, columns }
    }

    /// Those of events. `events` has the table's columns, and [`MISSED`] if `has_missed` (else no event missed a window). Of a view whose
    /// rows are made of several records, `events` are these rows, as [operators](crate::operator) make them.
    pub fn of(&self, events: LazyFrame, has_missed: bool) -> LazyFrame {
        let missed = if has_missed { col(MISSED) } else { constant(0_i32) };
        let columns: Vec<Expr> = self.columns.iter().cloned().chain([missed.alias(MISSED)]).collect();
        let also = has_missed.then(|| MISSED.into());
        self.rows.of(events, also.as_slice()).select(columns)
    }

    /// Those of events that the view makes rows of, by their numbers. `events` has the table's columns, and
    /// [`row::ROW`](crate::row::ROW).
    pub fn taken(&self, events: LazyFrame) -> PolarsResult<Vec<IdxSize>> {
        self.rows.taken(events)
    }
}

/// The [`Inputs`] of events, lowered for them alone.
pub fn inputs(view: &Kept, events: LazyFrame, has_missed: bool) -> LazyFrame {
    Inputs::new(view).of(events, has_missed)
}

/// The pane of each time. Most are in that of the one before.
fn panes_of(window: Window, times: &Int64Chunked) -> Column {
    let (mut start, mut end) = (0, 0);
    let panes = times.iter().map(|time| {
        let time = time?;
        if !(start..end).contains(&time) {
            start = window.pane_of(time);
            end = window.pane_end(start);
        }
        Some(start)
    });
    panes.collect::<Int64Chunked>().with_name(times.name().clone()).into_column()
}

/// Partials in the making, of any panes.
#[derive(Debug)]
pub struct Partials<'a> {
    aggregation: &'a Aggregation,
    keep: Keep,
    panes: BTreeMap<(Micros, i32), Groups>,
}

impl<'a> Partials<'a> {
    /// The partials of no events.
    pub fn new(aggregation: &'a Aggregation, keep: Keep) -> Self {
        Self { aggregation, keep, panes: BTreeMap::new() }
    }

    /// Adds [`inputs`].
    pub fn absorb(&mut self, rows: DataFrame) -> PolarsResult<()> {
        for (of, rows) in split(rows)? {
            self.panes
                .entry(of)
                .or_insert_with(|| Groups::new(self.aggregation, self.keep))
                .absorb(self.aggregation, &rows)?;
        }
        Ok(())
    }

    /// Adds partials.
    pub fn merge(&mut self, partials: DataFrame) -> PolarsResult<()> {
        for (of, partials) in split(partials)? {
            self.panes
                .entry(of)
                .or_insert_with(|| Groups::new(self.aggregation, self.keep))
                .merge(self.aggregation, &partials)?;
        }
        Ok(())
    }

    /// Adds others.
    pub fn append(&mut self, others: Self) -> PolarsResult<()> {
        for ((pane, missed), groups) in others.panes {
            match self.panes.entry((pane, missed)) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(groups)),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    entry.get_mut().merge(self.aggregation, &groups.partials(self.aggregation, pane, missed)?)?;
                }
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn groups(&self) -> usize {
        self.panes.values().map(Groups::len).sum()
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        self.panes.values().map(Groups::bytes).sum()
    }

    /// The frame of them, in order of pane.
    pub fn into_frame(self) -> PolarsResult<DataFrame> {
        let mut all = DataFrame::empty_with_schema(&schema(self.aggregation));
        for ((pane, missed), groups) in &self.panes {
            all.vstack_mut(&groups.partials(self.aggregation, *pane, *missed)?)?;
        }
        Ok(all)
    }
}

/// Aggregates events into exact partials. `events` has the table's columns, and [`MISSED`] if `has_missed`.
pub fn partials(view: &Kept, events: LazyFrame, has_missed: bool) -> PolarsResult<DataFrame> {
    let mut partials = Partials::new(view.aggregation(), Keep::Everything);
    partials.absorb(inputs(view, events, has_missed).collect()?)?;
    partials.into_frame()
}

/// Adds up partials of the same pane and group.
pub fn merge(
    aggregation: &Aggregation,
    frames: impl IntoIterator<Item = DataFrame>,
    keep: Keep,
) -> PolarsResult<DataFrame> {
    let mut partials = Partials::new(aggregation, keep);
    frames.into_iter().try_for_each(|frame| partials.merge(frame))?;
    partials.into_frame()
}

/// Cuts partials that are in order of pane at their panes.
pub fn by_pane(partials: &DataFrame) -> PolarsResult<Vec<(Micros, DataFrame)>> {
    let panes = partials.column(PANE)?.as_materialized_series().rechunk();
    let (mut split, mut start) = (Vec::new(), 0);
    for run in panes.i64()?.cont_slice()?.chunk_by(|a, b| a == b) {
        split.push((run[0], partials.slice(start as i64, run.len())));
        start += run.len();
    }
    Ok(split)
}

/// Splits rows or partials by pane and by what was missed.
pub fn split(frame: DataFrame) -> PolarsResult<Vec<((Micros, i32), DataFrame)>> {
    if frame.height() == 0 {
        return Ok(Vec::new());
    }
    let panes = frame.column(PANE)?.as_materialized_series().rechunk();
    let missed = frame.column(MISSED)?.as_materialized_series().rechunk();
    let (panes, missed) = (panes.i64()?.cont_slice()?, missed.i32()?.cont_slice()?);
    let mut runs: BTreeMap<(Micros, i32), Vec<std::ops::Range<usize>>> = BTreeMap::new();
    let mut start = 0;
    for end in 1..=panes.len() {
        if end == panes.len() || panes[end] != panes[start] || missed[end] != missed[start] {
            runs.entry((panes[start], missed[start])).or_default().push(start..end);
            start = end;
        }
    }
    let part = |(of, runs): ((Micros, i32), Vec<std::ops::Range<usize>>)| {
        let part = match runs.as_slice() {
            [run] if run.len() == frame.height() => frame.clone(),
            [run] => frame.slice(run.start as i64, run.len()),
            runs => {
                let rows: IdxCa = runs.iter().cloned().flatten().map(|row| Some(row as IdxSize)).collect();
                frame.take(&rows)?
            }
        };
        Ok((of, part))
    };
    runs.into_iter().map(part).collect()
}
