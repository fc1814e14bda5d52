//! Partial aggregates: what every layer computes, stores and merges.
//!
//! A frame of partials has one row per pane and group. Its columns are:
//!
//! | column    | type    | what |
//! |-----------|---------|------|
//! | `__pane`  | BIGINT  | the start of the pane in microseconds; 0 in a view without windows |
//! | `__missed`| INTEGER | how many of the pane's windows, from the earliest, were closed when these events came |
//! | `k0`, `k1`, … |     | the keys |
//! | `a0`, `a0n`, … |    | per aggregate its state: see [`states`] |
//!
//! Partials are a commutative monoid: the empty frame is the identity, and [`merge`] of frames laid end to end is
//! associative and commutative, so any split of the events into batches, chunks, layers or workers gives the same
//! sum. `absorb` ([`partials`]) of all events equals the merge of the partials of its parts.
//!
//! [`windows`] adds the panes of each window and finishes the aggregates. It finishes each twice: over the events that
//! came in time, which is the answer, and over all of them, which is what the batch layer will say. The two differ only
//! where events came too late, and are then the answer's bounds.

use polars::prelude::*;

use crate::clock::Micros;
use crate::row;
use crate::transform::{lower, polars_type};
use crate::view::{AggregateFunction, OutputColumn, View};
use crate::window::Window;

/// The start of the pane, in microseconds.
pub const PANE: &str = "__pane";
/// How many of the pane's windows were closed for good when the events came.
pub const MISSED: &str = "__missed";
/// The start of the window, in microseconds.
pub const WINDOW: &str = "__window";
const ON_TIME: &str = "__on_time";
/// How much a degraded pane may have overcounted a key that it names.
pub const DOWN: &str = "__down";
/// How much of a degraded pane's slack doesn't apply to a key, as the pane names it.
pub const UP: &str = "__up";

/// The name of the i-th key in a frame of partials.
pub fn key(i: usize) -> String {
    format!("k{i}")
}

fn keys(view: &View) -> Vec<Expr> {
    (0..view.keys.len()).map(|i| col(key(i))).collect()
}

/// How two states of one column are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// They are added.
    Sum,
    /// The smaller is kept; null is none.
    Min,
    /// The larger is kept; null is none.
    Max,
}

/// The state columns of the i-th aggregate: `count` keeps how many; `sum` and `avg` the sum and, in `a{i}n`, how many
/// values; `min` and `max` the value.
pub fn states(view: &View, i: usize) -> Vec<(String, Merge)> {
    let name = format!("a{i}");
    match view.aggregates[i].function {
        AggregateFunction::Count => vec![(name, Merge::Sum)],
        AggregateFunction::Sum | AggregateFunction::Avg => {
            vec![(name.clone(), Merge::Sum), (format!("{name}n"), Merge::Sum)]
        }
        AggregateFunction::Min => vec![(name, Merge::Min)],
        AggregateFunction::Max => vec![(name, Merge::Max)],
    }
}

fn all_states(view: &View) -> Vec<(String, Merge)> {
    (0..view.aggregates.len()).flat_map(|i| states(view, i)).collect()
}

/// The schema of a frame of the view's partials.
pub fn schema(view: &View) -> Schema {
    let mut schema = Schema::default();
    schema.insert(PANE.into(), DataType::Int64);
    schema.insert(MISSED.into(), DataType::Int32);
    for (i, k) in view.keys.iter().enumerate() {
        schema.insert(key(i).into(), polars_type(&k.expr.data_type()));
    }
    for (i, aggregate) in view.aggregates.iter().enumerate() {
        let value = match aggregate.function {
            AggregateFunction::Count => DataType::Int64,
            _ => polars_type(&aggregate.argument.as_ref().map_or(crate::schema::DataType::BigInt, |x| x.data_type())),
        };
        for (name, _) in states(view, i) {
            let data_type = if name.ends_with('n') { DataType::Int64 } else { value.clone() };
            schema.insert(name.into(), data_type);
        }
    }
    schema
}

/// The rows of a view before aggregation: `events` has the table's columns, and [`MISSED`] if `has_missed`.
fn rows(view: &View, events: LazyFrame, has_missed: bool) -> LazyFrame {
    let View { table, unnest, filter, .. } = view;
    let time = table.event_time_column().name.as_str();
    let values = view.aggregates.iter().flat_map(|a| a.argument.iter().chain(a.filter.iter()));
    let later = view.keys.iter().map(|k| &k.expr).chain(values);
    let also = [time, MISSED];
    let also = if has_missed { &also[..] } else { &also[..1] };
    let events = row::rows(events, table, unnest.as_ref(), filter.as_ref(), later, also);
    let time = col(time).cast(DataType::Int64);
    // A literal's type is otherwise narrowed to what holds it.
    let pane = match view.window {
        None => lit(0_i64).cast(DataType::Int64),
        Some(window) => time.floor_div(lit(window.pane())) * lit(window.pane()),
    };
    let missed = if has_missed { col(MISSED) } else { lit(0_i32).cast(DataType::Int32) };
    let mut columns = vec![pane.alias(PANE), missed.alias(MISSED)];
    columns.extend(view.keys.iter().enumerate().map(|(i, k)| lower(&k.expr).alias(key(i))));
    for (i, aggregate) in view.aggregates.iter().enumerate() {
        let value = match (&aggregate.argument, &aggregate.filter) {
            (None, None) => continue,
            (None, Some(filter)) => lower(filter),
            (Some(argument), None) => lower(argument),
            (Some(argument), Some(filter)) => {
                let nothing = lit(NULL).cast(polars_type(&argument.data_type()));
                ternary_expr(lower(filter), lower(argument), nothing)
            }
        };
        columns.push(value.alias(format!("v{i}")));
    }
    events.select(columns)
}

/// Aggregates events into partials. `events` has the table's columns, and [`MISSED`] if `has_missed` (else no event
/// missed a window).
pub fn partials(view: &View, events: LazyFrame, has_missed: bool) -> LazyFrame {
    let aggregates = view.aggregates.iter().enumerate().flat_map(|(i, aggregate)| {
        let (state, value) = (format!("a{i}"), col(format!("v{i}")));
        let count = |x: Expr| x.cast(DataType::Int64);
        match aggregate.function {
            AggregateFunction::Count => vec![match (&aggregate.argument, &aggregate.filter) {
                (None, None) => count(len()).alias(state),
                (None, Some(_)) => count(value.sum()).alias(state),
                (Some(_), _) => count(value.count()).alias(state),
            }],
            AggregateFunction::Sum | AggregateFunction::Avg => {
                vec![value.clone().sum().alias(state.as_str()), count(value.count()).alias(format!("{state}n"))]
            }
            AggregateFunction::Min => vec![value.min().alias(state)],
            AggregateFunction::Max => vec![value.max().alias(state)],
        }
    });
    let aggregates: Vec<Expr> = aggregates.collect();
    let groups: Vec<Expr> = [col(PANE), col(MISSED)].into_iter().chain(keys(view)).collect();
    rows(view, events, has_missed).group_by(groups).agg(aggregates)
}

fn merged(view: &View, only: Option<Expr>, suffix: &str) -> Vec<Expr> {
    let states = all_states(view).into_iter().map(|(name, merge)| {
        let state = match &only {
            None => col(name.as_str()),
            Some(condition) => col(name.as_str()).filter(condition.clone()),
        };
        let merged = match merge {
            Merge::Sum => state.sum(),
            Merge::Min => state.min(),
            Merge::Max => state.max(),
        };
        merged.alias(format!("{name}{suffix}"))
    });
    states.collect()
}

/// Adds up partials of the same pane and group.
pub fn merge(view: &View, partials: LazyFrame) -> LazyFrame {
    let groups: Vec<Expr> = [col(PANE), col(MISSED)].into_iter().chain(keys(view)).collect();
    partials.group_by(groups).agg(merged(view, None, ""))
}

/// Which windows are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that hold data.
    All,
    /// The one that starts there.
    One(Micros),
    /// Those that start in `[from, to]`.
    Range(Micros, Micros),
}

/// What is known of the partials beyond their columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quality {
    /// Some rows have a [`MISSED`] above 0.
    pub has_missed: bool,
    /// Some panes are degraded: the columns [`DOWN`] and [`UP`] are there, and keys that the degraded panes of the one
    /// window asked for don't name may have had up to this many events in them.
    pub slack: Option<i64>,
}

/// Adds up partials to the windows asked for, finishes the aggregates, and puts each window's rows in the view's order,
/// cut at its limit. The result has `window_start` and `window_end` (if the view has windows), then the keys and
/// aggregates under their own names in the order of the SELECT list, each aggregate followed by its bounds.
pub fn windows(view: &View, partials: LazyFrame, scope: Scope, quality: Quality) -> PolarsResult<LazyFrame> {
    let late = quality.has_missed && view.window.is_some();
    let spread = match view.window {
        None => partials.with_column(lit(0_i64).alias(WINDOW)),
        Some(window) => spread(window, partials, scope, late)?,
    };
    let mut groups = keys(view);
    if matches!(scope, Scope::All | Scope::Range(..)) || groups.is_empty() {
        groups.insert(0, col(WINDOW));
    }
    let mut columns = merged(view, None, "_all");
    if late {
        columns.extend(merged(view, Some(col(ON_TIME)), ""));
        columns.push(col(ON_TIME).any(true).alias(ON_TIME));
    }
    if quality.slack.is_some() {
        columns.extend([col(DOWN).sum(), col(UP).sum()]);
    }
    let mut sums = spread.group_by(groups).agg(columns);
    if late {
        sums = sums.filter(col(ON_TIME));
    }
    if let Scope::One(start) = scope {
        sums = sums.with_column(lit(start).alias(WINDOW));
    }
    let finished = sums.select(finished(view, late, quality.slack));
    ordered(view, finished, scope)
}

/// One row per window that a partial belongs to.
fn spread(window: Window, partials: LazyFrame, scope: Scope, late: bool) -> PolarsResult<LazyFrame> {
    let first = || (col(PANE) - lit(window.size)).floor_div(lit(window.slide)) * lit(window.slide) + lit(window.slide);
    let on_time = |index: Expr| if late { col(MISSED).cast(DataType::Int64).lt_eq(index) } else { lit(true) };
    if let Scope::One(start) = scope {
        let inside = col(PANE).gt_eq(lit(start)).and(col(PANE).lt(lit(start + window.size)));
        let index = (lit(start) - first()).floor_div(lit(window.slide));
        return Ok(partials.filter(inside).with_columns([lit(start).alias(WINDOW), on_time(index).alias(ON_TIME)]));
    }
    let partials = match scope {
        Scope::Range(from, to) => {
            partials.filter(col(PANE).gt_eq(lit(from)).and(col(PANE).lt(lit(to.saturating_add(window.size)))))
        }
        _ => partials,
    };
    let each = (0..window.overlap()).map(|i| {
        let start = first() + lit(i * window.slide);
        let mut rows = partials.clone().with_columns([start.alias(WINDOW), on_time(lit(i)).alias(ON_TIME)]);
        if window.size % window.slide != 0 {
            rows = rows.filter(col(WINDOW).lt_eq(col(PANE)));
        }
        match scope {
            Scope::Range(from, to) => rows.filter(col(WINDOW).gt_eq(lit(from)).and(col(WINDOW).lt_eq(lit(to)))),
            _ => rows,
        }
    });
    concat(each.collect::<Vec<_>>(), UnionArgs { maintain_order: false, ..Default::default() })
}

fn finished(view: &View, late: bool, slack: Option<i64>) -> Vec<Expr> {
    let mut columns = Vec::new();
    let timestamp = polars_type(&crate::schema::DataType::Timestamp);
    if let Some(window) = view.window {
        columns.push(col(WINDOW).cast(timestamp.clone()).alias("window_start"));
        columns.push((col(WINDOW) + lit(window.size)).cast(timestamp).alias("window_end"));
    }
    for &column in &view.columns {
        match column {
            OutputColumn::WindowStart | OutputColumn::WindowEnd => {}
            OutputColumn::Key(i) => columns.push(col(key(i)).alias(view.keys[i].name.as_str())),
            OutputColumn::Aggregate(i) => {
                let name = view.aggregates[i].name.as_str();
                let all = finish(view, i, "_all");
                let value = if late { finish(view, i, "") } else { all.clone() };
                let (lower, upper) = bounds(view, i, value.clone(), all, late, slack);
                columns.extend([
                    value.alias(name),
                    lower.alias(format!("{name}_lower")),
                    upper.alias(format!("{name}_upper")),
                ]);
            }
        }
    }
    columns
}

fn finish(view: &View, i: usize, suffix: &str) -> Expr {
    let state = col(format!("a{i}{suffix}"));
    let count = col(format!("a{i}n{suffix}"));
    let empty = count.clone().eq(lit(0_i64));
    match view.aggregates[i].function {
        AggregateFunction::Count | AggregateFunction::Min | AggregateFunction::Max => state,
        AggregateFunction::Sum => ternary_expr(empty, lit(NULL), state),
        AggregateFunction::Avg => {
            ternary_expr(empty, lit(NULL), state.cast(DataType::Float64) / count.cast(DataType::Float64))
        }
    }
}

/// A degraded pane keeps counts within its slack. Of other aggregates it says nothing about keys that it doesn't name,
/// so their bounds are unknown (null) in a window with a degraded pane.
fn bounds(view: &View, i: usize, value: Expr, all: Expr, late: bool, slack: Option<i64>) -> (Expr, Expr) {
    let is_count = view.aggregates[i].function == AggregateFunction::Count;
    let (lower, upper) = if late {
        let least = ternary_expr(all.clone().lt(value.clone()), all.clone(), value.clone());
        let most = ternary_expr(all.clone().gt(value.clone()), all.clone(), value.clone());
        // Null where no value came in time: the bounds are then what came late.
        (coalesce(&[least, all.clone()]), coalesce(&[most, all]))
    } else {
        (value.clone(), value)
    };
    match slack {
        None => (lower, upper),
        Some(slack) if is_count => (lower - col(DOWN), upper + lit(slack) - col(UP)),
        Some(_) => {
            let nothing = lit(NULL).cast(polars_type(&view.aggregates[i].data_type()));
            (nothing.clone(), nothing)
        }
    }
}

/// Puts rows in order of window and then of the view, and cuts each window at the view's limit.
fn ordered(view: &View, finished: LazyFrame, scope: Scope) -> PolarsResult<LazyFrame> {
    let several = view.window.is_some() && !matches!(scope, Scope::One(_));
    let mut by = Vec::new();
    let mut descending = Vec::new();
    if several {
        by.push(col("window_end"));
        descending.push(false);
    }
    for order in &view.order {
        by.push(col(view.column_name(order.column)));
        descending.push(order.descending);
    }
    for k in &view.keys {
        by.push(col(k.name.as_str()));
        descending.push(false);
    }
    if by.is_empty() {
        return Ok(finished);
    }
    let options = SortMultipleOptions::default().with_order_descending_multi(descending).with_nulls_last(true);
    let Some(limit) = view.limit else { return Ok(finished.sort_by_exprs(by, options)) };
    if !several {
        return Ok(finished.sort_by_exprs(by, options).limit(limit as IdxSize));
    }
    // Sorting every window's every row to keep a few of them costs more than finding each window's k-th value first.
    let first = view.order[0];
    let name = view.column_name(first.column);
    let threshold = if first.descending {
        col(name).top_k(lit(limit as u64)).min()
    } else {
        col(name).bottom_k(lit(limit as u64)).max()
    };
    let thresholds = finished.clone().group_by([col("window_end")]).agg([threshold.alias("__threshold")]);
    let reaches =
        if first.descending { col(name).gt_eq(col("__threshold")) } else { col(name).lt_eq(col("__threshold")) };
    // Nulls rank last: with fewer than k other rows they are kept.
    let candidates = finished
        .inner_join(thresholds, col("window_end"), col("window_end"))
        .filter(reaches.or(col(name).is_null()).or(col("__threshold").is_null()))
        .drop(by_name(["__threshold"], true, false));
    let rank = int_range(lit(0_i64), len(), 1, DataType::Int64).over([col("window_end")])?;
    Ok(candidates
        .sort_by_exprs(by, options)
        .with_column(rank.alias("__rank"))
        .filter(col("__rank").lt(lit(limit as i64)))
        .drop(by_name(["__rank"], true, false)))
}
