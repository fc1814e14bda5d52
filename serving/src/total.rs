//! Totals of windows over all keys.

use std::collections::{BTreeMap, HashSet};

use anabranch_engine::transform::polars_type;
use anabranch_plan::aggregation::{Aggregate, AggregateFunction, Aggregation, OutputColumn};
use anabranch_plan::schema::DataType as Type;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::merge::Quality;

/// How many rows each window has, and the sums of the columns whose values may be added up, with their bounds. Without
/// `window_end` among the rows they are of one window; and of sessions, which are each key's own, all rows count as one.
/// A bound is null where some row's is, or where it isn't sure that these are all the rows. `answer` gives the same rows of
/// another view of the same state.
pub fn totals(
    view: &Kept,
    rows: &DataFrame,
    quality: Quality,
    answer: impl FnOnce(&Kept) -> PolarsResult<DataFrame>,
) -> PolarsResult<DataFrame> {
    let beyond = beyond(view, rows, answer)?;
    let bounds =
        |name: &str| PolarsResult::Ok(rows.column(name)?.cast(&DataType::Int64)?.i64()?.iter().collect::<Vec<_>>());
    let is_session = view.aggregation().window.is_some_and(anabranch_plan::window::Window::is_session);
    let is_split = !is_session && rows.get_column_index("window_end").is_some();
    let mut windows: BTreeMap<(Option<Micros>, Option<Micros>), Vec<usize>> = BTreeMap::new();
    if is_split {
        let each = bounds("window_end")?.into_iter().zip(bounds("window_start")?);
        each.enumerate().for_each(|(row, window)| windows.entry(window).or_default().push(row));
    } else {
        windows.insert((None, None), (0..rows.height()).collect());
    }
    let mut columns = Vec::new();
    if is_split {
        let timestamp = polars_type(&Type::Timestamp);
        let column = |name: &str, times: Vec<Option<Micros>>| Column::new(name.into(), times).cast(&timestamp);
        columns.push(column("window_start", windows.keys().map(|window| window.1).collect())?);
        columns.push(column("window_end", windows.keys().map(|window| window.0).collect())?);
    }
    let heights: Vec<i64> = windows.values().map(|rows| rows.len() as i64).collect();
    columns.push(Column::new("rows".into(), heights));
    for aggregate in shown(view).filter(|aggregate| aggregate.function.is_additive()) {
        let name = &aggregate.name;
        let value = sums(rows.column(name)?, &windows, |row| beyond.contains(&(name.as_str(), row)))?;
        for bound in [format!("{name}_lower"), format!("{name}_upper")] {
            let bounded = if quality.exact {
                value.clone()
            } else if quality.certain {
                sums(rows.column(&bound)?, &windows, |_| true)?
            } else {
                Column::full_null(PlSmallStr::EMPTY, windows.len(), value.dtype())
            };
            columns.push(bounded.with_name(bound.into()));
        }
        columns.insert(columns.len() - 2, value.with_name(name.as_str().into()));
    }
    // A column of that name has the word.
    let is_taken = columns.iter().filter(|column| column.name() == "rows").count() > 1;
    if is_taken && let Some(at) = columns.iter().position(|column| column.name() == "rows") {
        columns.remove(at);
    }
    DataFrame::new(windows.len(), columns)
}

/// The aggregates that an answer has.
fn shown(view: &Kept) -> impl Iterator<Item = &Aggregate> {
    view.aggregation().columns.iter().filter_map(|column| match column {
        OutputColumn::Aggregate(i) => Some(&view.aggregation().aggregates[*i]),
        _ => None,
    })
}

/// Which sums are null because they are beyond 64 bits, by aggregate and row, rather than because there was no value: those
/// whose values have an average, which is made of the same state.
fn beyond<'a>(
    view: &'a Kept,
    rows: &DataFrame,
    answer: impl FnOnce(&Kept) -> PolarsResult<DataFrame>,
) -> PolarsResult<HashSet<(&'a str, usize)>> {
    let is_whole = |of: &Aggregate| of.function == AggregateFunction::Sum && of.data_type() == Type::BigInt;
    let mut unclear = Vec::new();
    for aggregate in shown(view).filter(|aggregate| is_whole(aggregate)) {
        if rows.column(&aggregate.name)?.null_count() > 0 {
            unclear.push(aggregate.name.as_str());
        }
    }
    if unclear.is_empty() {
        return Ok(HashSet::new());
    }
    let mut means = Aggregation { having: None, order: Vec::new(), limit: None, ..view.aggregation().clone() };
    for aggregate in means.aggregates.iter_mut().filter(|aggregate| is_whole(aggregate)) {
        aggregate.function = AggregateFunction::Avg;
    }
    let keys = view.aggregation().keys.iter().map(|key| key.name.as_str()).chain(["window_start", "window_end"]);
    let keys: Vec<&str> = keys.filter(|name| rows.get_column_index(name).is_some()).collect();
    let mut means = answer(&view.keeping(means))?.select(keys.iter().chain(&unclear).copied())?;
    // A view without keys and windows has one row.
    if !keys.is_empty() {
        let (how, on) = (JoinArgs::new(JoinType::Left), keys.iter().map(|key| col(*key)).collect::<Vec<_>>());
        let how = how.with_coalesce(JoinCoalesce::CoalesceColumns);
        let how = JoinArgs { nulls_equal: true, maintain_order: MaintainOrderJoin::Left, ..how };
        means = rows.select(keys)?.lazy().join(means.lazy(), on.clone(), on, how).collect()?;
    }
    let mut beyond = HashSet::new();
    for name in unclear {
        let (sums, means) = (rows.column(name)?.is_null(), means.column(name)?.is_not_null());
        let both = sums.iter().zip(means.iter()).enumerate();
        beyond.extend(both.filter(|(_, both)| *both == (Some(true), Some(true))).map(|(row, _)| (name, row)));
    }
    Ok(beyond)
}

/// The sum of each window's values: null if there is none, if it is beyond 64 bits, or if a null is of a row of which
/// nothing is known.
fn sums<K>(
    column: &Column,
    windows: &BTreeMap<K, Vec<usize>>,
    is_unknown: impl Fn(usize) -> bool,
) -> PolarsResult<Column> {
    let column = column.as_materialized_series().rechunk();
    if let Ok(values) = column.i64() {
        let each = windows.values().map(|rows| {
            let mut sum = None;
            for &row in rows {
                match values.get(row) {
                    Some(value) => sum = Some(sum.unwrap_or(0_i128) + i128::from(value)),
                    None if is_unknown(row) => return None,
                    None => {}
                }
            }
            sum.and_then(|sum| i64::try_from(sum).ok())
        });
        return Ok(each.collect::<Int64Chunked>().into_column());
    }
    let values = column.f64()?;
    let each = windows.values().map(|rows| {
        let (mut sum, mut rest, mut any) = (0.0_f64, 0.0_f64, false);
        for &row in rows {
            let Some(value) = values.get(row) else {
                if is_unknown(row) {
                    return None;
                }
                continue;
            };
            // Neumaier's sum: what rounding takes from one is kept beside it.
            let next = sum + value;
            rest += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
            (sum, any) = (next, true);
        }
        any.then_some(if sum.is_finite() { sum + rest } else { sum })
    });
    Ok(each.collect::<Float64Chunked>().into_column())
}
