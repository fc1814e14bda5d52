//! The columns of partials, by name and type.

use anabranch_plan::aggregation::{Aggregate, Aggregation};
use anabranch_plan::window::Window;
use polars::prelude::*;

use crate::aggregate;
use crate::transform::polars_type;

/// The start of the pane, in microseconds.
pub const PANE: &str = "__pane";
/// How many of the pane's windows were closed for good when the events came.
pub const MISSED: &str = "__missed";
/// In a view of sessions, the time of a fragment's first event, in microseconds.
pub const FIRST: &str = "__first";
/// The time of its last event.
pub const LAST: &str = "__last";

/// The name of the i-th key in a frame of partials.
pub fn key(i: usize) -> String {
    format!("k{i}")
}

/// The names of the columns that hold the i-th aggregate's state.
pub(crate) fn state_names(aggregation: &Aggregation, i: usize) -> impl Iterator<Item = PlSmallStr> + use<> {
    let layout = aggregate::layout(&aggregation.aggregates[i]).into_iter();
    layout.map(move |(suffix, _)| format!("a{i}{suffix}").into())
}

/// The schema of a frame of the view's partials.
pub fn schema(aggregation: &Aggregation) -> Schema {
    let mut schema = Schema::default();
    schema.insert(PANE.into(), DataType::Int64);
    schema.insert(MISSED.into(), DataType::Int32);
    if aggregation.window.is_some_and(Window::is_session) {
        schema.insert(FIRST.into(), DataType::Int64);
        schema.insert(LAST.into(), DataType::Int64);
    }
    for (i, k) in aggregation.keys.iter().enumerate() {
        schema.insert(key(i).into(), polars_type(&k.expr.data_type()));
    }
    for (i, aggregate) in aggregation.aggregates.iter().enumerate() {
        let types = aggregate::layout(aggregate).into_iter().map(|(_, data_type)| data_type);
        schema.extend(state_names(aggregation, i).zip(types));
    }
    schema
}

/// What the i-th aggregate is over: a column, two, or none.
pub(crate) fn value_columns(aggregation: &Aggregation, rows: &DataFrame, i: usize) -> PolarsResult<Vec<Column>> {
    let Aggregate { argument, place, filter, .. } = &aggregation.aggregates[i];
    let value = (argument.is_some() || filter.is_some()).then(|| format!("v{i}"));
    let place = place.is_some().then(|| format!("p{i}"));
    value.iter().chain(&place).map(|name| rows.column(name).cloned()).collect()
}
