//! `count`, `sum` and `avg`.

use polars::prelude::*;

use super::{Finished, Number, State, whole};
use crate::view::Aggregate;

fn counts(counts: &[i64]) -> Column {
    Column::new(PlSmallStr::EMPTY, counts)
}

/// How many rows, or values, or rows for which a condition holds.
#[derive(Debug)]
pub(super) struct Count {
    of: Counted,
    counts: Vec<i64>,
}

#[derive(Debug)]
enum Counted {
    Rows,
    Held,
    Values,
}

impl Count {
    pub fn new(aggregate: &Aggregate) -> Self {
        let of = match (&aggregate.argument, &aggregate.filter) {
            (None, None) => Counted::Rows,
            (None, Some(_)) => Counted::Held,
            (Some(_), _) => Counted::Values,
        };
        Self { of, counts: Vec::new() }
    }
}

impl State for Count {
    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        match (&self.of, values) {
            (Counted::Held, [held]) => {
                for (&group, held) in groups.iter().zip(whole(held).bool()?.iter()) {
                    self.counts[group as usize] += i64::from(held == Some(true));
                }
            }
            (Counted::Values, [values]) if values.null_count() > 0 => {
                for (&group, is_there) in groups.iter().zip(whole(values).is_not_null().iter()) {
                    self.counts[group as usize] += i64::from(is_there == Some(true));
                }
            }
            _ => groups.iter().for_each(|&group| self.counts[group as usize] += 1),
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        i64::each(groups, &states[0], |group, count| self.counts[group] += count)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        Ok(vec![self.finish()?.value])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        Ok(counts(&self.counts).into())
    }

    fn bytes(&self) -> usize {
        self.counts.capacity() * 8
    }
}

/// The sum of the values, and how many there were: the sum of none is null.
#[derive(Debug, Default)]
pub(super) struct Sum<T> {
    sums: Vec<T>,
    counts: Vec<i64>,
}

impl<T: Number> State for Sum<T> {
    fn grow(&mut self, groups: usize) {
        self.sums.resize(groups, T::default());
        self.counts.resize(groups, 0);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        let Self { sums, counts } = self;
        T::each(groups, &values[0], |group, value| {
            sums[group] = sums[group].plus(value);
            counts[group] += 1;
        })
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        let Self { sums, counts } = self;
        T::each(groups, &states[0], |group, sum| sums[group] = sums[group].plus(sum))?;
        i64::each(groups, &states[1], |group, count| counts[group] += count)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        Ok(vec![T::column(self.sums.iter().copied().map(Some)), counts(&self.counts)])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = self.sums.iter().zip(&self.counts);
        Ok(T::column(each.map(|(&sum, &count)| (count > 0).then_some(sum))).into())
    }

    fn bytes(&self) -> usize {
        self.sums.capacity() * size_of::<T>() + self.counts.capacity() * 8
    }
}

/// The mean of the values.
#[derive(Debug)]
pub(super) struct Average<T>(pub Sum<T>);

impl<T: Number> State for Average<T> {
    fn grow(&mut self, groups: usize) {
        self.0.grow(groups);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        self.0.absorb(groups, values)
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        self.0.merge(groups, states)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        self.0.columns()
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = self.0.sums.iter().zip(&self.0.counts);
        Ok(f64::column(each.map(|(sum, &count)| (count > 0).then(|| sum.as_double() / count as f64))).into())
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
