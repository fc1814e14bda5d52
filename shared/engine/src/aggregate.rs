//! Aggregates: what is kept of each group, and how it is added up.
//!
//! Each aggregate has a [`State`], which holds it for any number of groups, column by column. A state is a commutative
//! monoid: a new group is the identity, [`State::merge`] is associative and commutative, and to absorb all rows is the
//! same as to absorb parts of them and merge, to the last bit. So of doubles there is one zero and one NaN, which is greater than
//! all numbers.
//!
//! | aggregate  | state                      | merged by        |
//! |------------|----------------------------|------------------|
//! | `count`    | how many                   | sum              |
//! | `sum`, `avg` | the exact sum ([`exact`]), and how many values | sum |
//! | `min`, `max` | the value, if there was any | the better one  |
//! | `var_samp`, `stddev_pop`, … | the exact sums of the values and of their squares, how many | sum |
//! | `arg_max`, `arg_min` | the value and its place | the better place |
//! | `count(DISTINCT x)`, `approx_count_distinct` | the values, or a sketch | union |
//! | `approx_percentile` | the values, or a sketch | all of them     |

mod distinct;
mod double;
mod exact;
mod extreme;
pub(crate) mod keys;
mod moment;
mod number;
mod place;
mod quantile;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt::Debug;

use anabranch_plan::aggregation::{Aggregate, AggregateFunction};
use polars::prelude::*;

use crate::transform::{canonical, polars_type};

/// How much of a group is kept where values are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of it, so that the answer is exact: what the batch layer does.
    Everything,
    /// As much as fits a bounded state per group, which then goes on as a sketch: what the speed layer does.
    Bounded,
}

/// What an aggregate says of every group.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub value: Column,
    /// Lower and upper bounds, if a sketch stands in for values.
    pub bounds: Option<(Column, Column)>,
}

impl Finished {
    /// What it says of some groups.
    pub fn take(self, groups: &IdxCa) -> PolarsResult<Self> {
        let bounds = self.bounds.map(|(lower, upper)| PolarsResult::Ok((lower.take(groups)?, upper.take(groups)?)));
        Ok(Self { value: self.value.take(groups)?, bounds: bounds.transpose()? })
    }
}

impl From<Column> for Finished {
    fn from(value: Column) -> Self {
        Self { value, bounds: None }
    }
}

/// One aggregate of some groups, by the groups' numbers.
pub(crate) trait State: Debug + Send + Sync {
    /// From now on there are this many groups, never fewer than before. New ones are empty.
    fn grow(&mut self, groups: usize);

    /// Adds rows: the i-th is of group `groups[i]`. `values` holds the aggregate's arguments, null where its filter isn't
    /// true; of `count(*)` with a filter, whether it is true; of `count(*)` nothing.
    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()>;

    /// Adds states: the i-th is of group `groups[i]`. The columns are as [`State::columns`] gives them.
    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()>;

    /// The states, each column with a value for every group.
    fn columns(&self) -> PolarsResult<Vec<Column>>;

    /// The aggregate's value in every group.
    fn finish(&self) -> PolarsResult<Finished>;

    /// The bytes that it takes.
    fn bytes(&self) -> usize;
}

/// The type of an aggregate's argument.
fn argument_type(aggregate: &Aggregate) -> DataType {
    polars_type(&aggregate.argument.as_ref().map_or(anabranch_plan::schema::DataType::BigInt, |x| x.data_type()))
}

/// What follows an aggregate's number in the names of its columns of state, and their types.
pub(crate) fn layout(aggregate: &Aggregate) -> Vec<(&'static str, DataType)> {
    use AggregateFunction as A;
    let argument = argument_type(aggregate);
    match aggregate.function {
        A::Count => vec![("", DataType::Int64)],
        A::Sum | A::Avg if argument == DataType::Float64 => {
            vec![("", argument), ("r", DataType::Float64), ("w", DataType::Binary), ("n", DataType::Int64)]
        }
        A::Sum | A::Avg => vec![("", argument), ("c", DataType::Int64), ("n", DataType::Int64)],
        A::Min | A::Max => vec![("", argument)],
        A::Spread(_) => vec![("", DataType::Binary), ("n", DataType::Int64)],
        A::ArgMin | A::ArgMax => vec![("", argument), ("p", place_type(aggregate))],
        A::CountDistinct | A::ApproxCountDistinct => {
            vec![("", DataType::List(Box::new(argument))), ("h", DataType::Binary)]
        }
        A::ApproxPercentile(_) => vec![("", DataType::List(Box::new(DataType::Float64))), ("k", DataType::Binary)],
    }
}

fn place_type(aggregate: &Aggregate) -> DataType {
    polars_type(&aggregate.place.as_ref().map_or(anabranch_plan::schema::DataType::BigInt, |x| x.data_type()))
}

/// The state of an aggregate in no group yet.
pub(crate) fn state(aggregate: &Aggregate, keep: Keep) -> Box<dyn State> {
    use AggregateFunction as A;
    let data_type = argument_type(aggregate);
    match aggregate.function {
        A::Count => Box::new(number::Count::new(aggregate)),
        function @ (A::Sum | A::Avg) if data_type == DataType::Float64 => {
            Box::new(double::Doubles::new(function == A::Avg))
        }
        function @ (A::Sum | A::Avg) => Box::new(number::Wholes::new(function == A::Avg)),
        function @ (A::Min | A::Max) => {
            let largest = function == A::Max;
            match data_type {
                DataType::String => Box::new(extreme::Text::new(largest)),
                DataType::Float64 => Box::new(extreme::Extreme::<f64>::new(largest, data_type)),
                _ => Box::new(extreme::Extreme::<i64>::new(largest, data_type)),
            }
        }
        A::Spread(spread) => Box::new(moment::Moments::new(spread)),
        function @ (A::ArgMin | A::ArgMax) => {
            Box::new(place::Placed::new(function == A::ArgMax, data_type, place_type(aggregate)))
        }
        A::CountDistinct | A::ApproxCountDistinct => Box::new(distinct::Distinct::new(data_type, keep)),
        A::ApproxPercentile(fraction) => Box::new(quantile::Quantile::new(fraction, keep)),
    }
}

/// What is better, as the comparison with what was kept says it.
fn better(largest: bool) -> Ordering {
    if largest { Ordering::Greater } else { Ordering::Less }
}

/// A column that lies in memory as one piece.
fn whole(column: &Column) -> Series {
    column.as_materialized_series().rechunk()
}

/// A number or a time, as states hold it.
trait Number: Copy + Debug + Default + Send + Sync + 'static {
    /// Goes through the values of a column and the group of each; nulls are left out.
    fn each(groups: &[u32], column: &Column, add: impl FnMut(usize, Self)) -> PolarsResult<()>;

    /// NaN is larger than all others.
    fn order(&self, other: &Self) -> Ordering;

    /// The one that stands for all that are equal to it.
    fn canonical(self) -> Self {
        self
    }

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

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> Column {
        values.collect::<Int64Chunked>().into_column()
    }
}

impl Number for f64 {
    fn each(groups: &[u32], column: &Column, add: impl FnMut(usize, Self)) -> PolarsResult<()> {
        each(groups, whole(column).f64()?, add)
    }

    fn order(&self, other: &Self) -> Ordering {
        canonical(*self).total_cmp(&canonical(*other))
    }

    fn canonical(self) -> Self {
        canonical(self)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> Column {
        values.collect::<Float64Chunked>().into_column()
    }
}
