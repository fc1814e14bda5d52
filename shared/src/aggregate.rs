//! Aggregates: what is kept of each group, and how it is added up.
//!
//! Each aggregate has a [`State`], which holds it for any number of groups, column by column. A state is a commutative
//! monoid: a new group is the identity, [`State::merge`] is associative and commutative, and to absorb all rows is the
//! same as to absorb parts of them and merge. Sums of `DOUBLE`s are so up to rounding.
//!
//! | aggregate  | state                      | merged by        |
//! |------------|----------------------------|------------------|
//! | `count`    | how many                   | sum              |
//! | `sum`, `avg` | the sum, and how many values | sum            |
//! | `min`, `max` | the value, if there was any | the better one  |

mod extreme;
pub(crate) mod keys;
mod number;

use std::cmp::Ordering;
use std::fmt::Debug;

use polars::prelude::*;

use crate::transform::polars_type;
use crate::view::{Aggregate, AggregateFunction};

/// One aggregate of some groups, by the groups' numbers.
pub(crate) trait State: Debug + Send + Sync {
    /// From now on there are this many groups, never fewer than before. New ones are empty.
    fn grow(&mut self, groups: usize);

    /// Adds rows: the i-th is of group `groups[i]`. `values` holds the aggregate's argument, null where its filter isn't
    /// true; of `count(*)` with a filter, whether it is true; of `count(*)` nothing.
    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()>;

    /// Adds states: the i-th is of group `groups[i]`. The columns are as [`State::columns`] gives them.
    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()>;

    /// The states, each column with a value for every group.
    fn columns(&self) -> PolarsResult<Vec<Column>>;

    /// The aggregate's value in every group.
    fn finish(&self) -> PolarsResult<Column>;

    /// The bytes that it takes.
    fn bytes(&self) -> usize;
}

/// The type of an aggregate's argument.
fn argument_type(aggregate: &Aggregate) -> DataType {
    polars_type(&aggregate.argument.as_ref().map_or(crate::schema::DataType::BigInt, |x| x.data_type()))
}

/// What follows an aggregate's number in the names of its columns of state, and their types.
pub(crate) fn layout(aggregate: &Aggregate) -> Vec<(&'static str, DataType)> {
    match aggregate.function {
        AggregateFunction::Count => vec![("", DataType::Int64)],
        AggregateFunction::Sum | AggregateFunction::Avg => vec![("", argument_type(aggregate)), ("n", DataType::Int64)],
        AggregateFunction::Min | AggregateFunction::Max => vec![("", argument_type(aggregate))],
    }
}

/// The state of an aggregate in no group yet.
pub(crate) fn state(aggregate: &Aggregate) -> Box<dyn State> {
    let data_type = argument_type(aggregate);
    match aggregate.function {
        AggregateFunction::Count => Box::new(number::Count::new(aggregate)),
        AggregateFunction::Sum if data_type == DataType::Float64 => Box::new(number::Sum::<f64>::default()),
        AggregateFunction::Sum => Box::new(number::Sum::<i64>::default()),
        AggregateFunction::Avg if data_type == DataType::Float64 => Box::new(number::Average(number::Sum::<f64>::default())),
        AggregateFunction::Avg => Box::new(number::Average(number::Sum::<i64>::default())),
        AggregateFunction::Min | AggregateFunction::Max => {
            let largest = aggregate.function == AggregateFunction::Max;
            match data_type {
                DataType::String => Box::new(extreme::Text::new(largest)),
                DataType::Float64 => Box::new(extreme::Extreme::<f64>::new(largest, data_type)),
                _ => Box::new(extreme::Extreme::<i64>::new(largest, data_type)),
            }
        }
    }
}

/// A column that lies in memory as one piece.
fn whole(column: &Column) -> Series {
    column.as_materialized_series().rechunk()
}

/// A number or a time, as states hold it.
trait Number: Copy + Debug + Default + Send + Sync + 'static {
    /// Goes through the values of a column and the group of each; nulls are left out.
    fn each(groups: &[u32], column: &Column, add: impl FnMut(usize, Self)) -> PolarsResult<()>;

    /// The sum. Integers wrap.
    fn plus(self, other: Self) -> Self;

    /// NaN is larger than all others.
    fn order(&self, other: &Self) -> Ordering;

    fn as_double(self) -> f64;

    fn column(values: impl Iterator<Item = Option<Self>>) -> Column;
}

fn each<T: PolarsNumericType>(
    groups: &[u32],
    values: &ChunkedArray<T>,
    mut add: impl FnMut(usize, T::Native),
) -> PolarsResult<()> {
    match values.cont_slice() {
        Ok(values) => groups.iter().zip(values).for_each(|(&group, &value)| add(group as usize, value)),
        Err(_) => {
            let there = groups.iter().zip(values.iter()).filter_map(|(&group, value)| Some((group, value?)));
            there.for_each(|(group, value)| add(group as usize, value));
        }
    }
    Ok(())
}

impl Number for i64 {
    fn each(groups: &[u32], column: &Column, add: impl FnMut(usize, Self)) -> PolarsResult<()> {
        each(groups, whole(column).to_physical_repr().i64()?, add)
    }

    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn as_double(self) -> f64 {
        self as f64
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> Column {
        values.collect::<Int64Chunked>().into_column()
    }
}

impl Number for f64 {
    fn each(groups: &[u32], column: &Column, add: impl FnMut(usize, Self)) -> PolarsResult<()> {
        each(groups, whole(column).f64()?, add)
    }

    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn order(&self, other: &Self) -> Ordering {
        self.total_cmp(other)
    }

    fn as_double(self) -> f64 {
        self
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> Column {
        values.collect::<Float64Chunked>().into_column()
    }
}

