//! Puts finished aggregates together to rows, with their bounds.

use anabranch_plan::aggregation::{AggregateFunction, Aggregation, OutputColumn};
use anabranch_plan::time::Micros;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::Slack;
use crate::aggregate;
use crate::transform::{lower, polars_type};

/// Which windows are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that hold data.
    All,
    /// The one that starts there.
    One(Micros),
    /// Those that start in `[from, to]`; of sessions, those wholly inside.
    Range(Micros, Micros),
}

/// One source's part of one pane.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub pane: Micros,
    pub rows: DataFrame,
    /// Whether some of its rows missed a window.
    pub has_missed: bool,
    pub slack: Option<Slack>,
}

/// Finished windows.
#[derive(Debug, Clone)]
pub struct Finished {
    /// `window_start` and `window_end` (if the view has windows), then the keys and aggregates under their own names in the
    /// order of the SELECT list, each aggregate followed by its bounds.
    pub rows: DataFrame,
    /// Whether some panes are degraded.
    pub is_degraded: bool,
    /// Whether some bounds are those of a sketch of values, which hold with the certainty that it states.
    pub is_sketched: bool,
    /// Whether the rows are surely those that belong into the answer: of a view with a limit, whether no row that was cut off
    /// could be among the first by its bounds.
    pub is_certain: bool,
}

/// What rows have beside their aggregates.
pub(super) struct Shape {
    pub starts: Vec<Micros>,
    pub ends: Vec<Micros>,
    pub keys: Vec<Column>,
    /// How much of each count may be too much.
    pub down: Vec<i64>,
    /// How many events each row may lack, if some pane is degraded.
    pub up: Option<Vec<i64>>,
    /// Which rows are of the answer; all if none.
    pub named: Option<Vec<bool>>,
}

/// Puts rows together: of the aggregates over the events in time, and of those over all if some came late, which bound them.
/// Such rows are certain if nothing came late.
pub(super) fn finish(
    aggregation: &Aggregation,
    shape: Shape,
    in_time: Vec<aggregate::Finished>,
    all: Option<Vec<aggregate::Finished>>,
) -> PolarsResult<Finished> {
    let Shape { starts, ends, keys, down, up, named } = shape;
    let height = starts.len();
    let (is_certain, is_degraded) = (all.is_none(), up.is_some());
    let mut columns = Vec::new();
    if aggregation.window.is_some() {
        let timestamp = polars_type(&anabranch_plan::schema::DataType::Timestamp);
        columns.push(Column::new("window_start".into(), starts).cast(&timestamp)?);
        columns.push(Column::new("window_end".into(), ends).cast(&timestamp)?);
    }
    let mut is_sketched = false;
    for &column in &aggregation.columns {
        match column {
            OutputColumn::WindowStart | OutputColumn::WindowEnd => {}
            OutputColumn::Key(i) => columns.push(keys[i].clone().with_name(aggregation.keys[i].name.as_str().into())),
            OutputColumn::Aggregate(i) => {
                let aggregate::Finished { value, bounds } = in_time[i].clone();
                is_sketched |= bounds.is_some();
                let (mut least, mut most) = bounds.unwrap_or_else(|| (value.clone(), value.clone()));
                if let Some(all) = &all {
                    let aggregate::Finished { value, bounds } = all[i].clone();
                    is_sketched |= bounds.is_some();
                    let (all_least, all_most) = bounds.unwrap_or_else(|| (value.clone(), value));
                    least = better(&least, &all_least, Expr::lt)?;
                    most = better(&most, &all_most, Expr::gt)?;
                }
                if let Some(up) = &up {
                    // An event that was refused may have held two sessions together.
                    let is_session = aggregation.window.is_some_and(Window::is_session);
                    let is_count = aggregation.aggregates[i].function == AggregateFunction::Count && !is_session;
                    (least, most) = if is_count {
                        let moved = |by: &[i64]| Column::new(PlSmallStr::EMPTY, by);
                        ((least - moved(&down))?, (most + moved(up))?)
                    } else {
                        // Of keys that a degraded pane doesn't name it knows nothing but how many events they had.
                        let unknown = Column::full_null(PlSmallStr::EMPTY, height, value.dtype());
                        (unknown.clone(), unknown)
                    };
                }
                let name = &aggregation.aggregates[i].name;
                let named = [(value, name.clone()), (least, format!("{name}_lower")), (most, format!("{name}_upper"))];
                columns.extend(named.map(|(column, name)| column.with_name(name.into())));
            }
        }
    }
    let mut rows = DataFrame::new(height, columns)?;
    if let Some(named) = named {
        rows = rows.filter(&named.into_iter().collect::<BooleanChunked>())?;
    }
    if let Some(having) = &aggregation.having {
        rows = rows.lazy().filter(lower(having)).collect()?;
    }
    Ok(Finished { rows: ordered(aggregation, rows)?, is_degraded, is_sketched, is_certain })
}

/// Of two bounds the one that is below or above the other: of the events in time and of all of them. Null where no value
/// came in time: the bound is then that of what came late.
fn better(in_time: &Column, all: &Column, is_better: fn(Expr, Expr) -> Expr) -> PolarsResult<Column> {
    let columns = vec![in_time.clone().with_name("in_time".into()), all.clone().with_name("all".into())];
    let (in_time, all) = (col("in_time"), col("all"));
    let chosen = ternary_expr(is_better(all.clone(), in_time.clone()), all.clone(), in_time);
    let bound = DataFrame::new(columns[0].len(), columns)?.lazy().select([coalesce(&[chosen, all]).alias("bound")]);
    Ok(bound.collect()?.column("bound")?.clone())
}

/// Puts a window's rows in the view's order, ties by key.
fn ordered(aggregation: &Aggregation, rows: DataFrame) -> PolarsResult<DataFrame> {
    let order = aggregation.order.iter().map(|order| (aggregation.column_name(order.column), order.descending));
    let (by, descending): (Vec<&str>, Vec<bool>) =
        order.chain(aggregation.keys.iter().map(|k| (k.name.as_str(), false))).unzip();
    if by.is_empty() || rows.height() < 2 {
        return Ok(rows);
    }
    let options = SortMultipleOptions::default().with_order_descending_multi(descending).with_nulls_last(true);
    rows.sort(by, options)
}
