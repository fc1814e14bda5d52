//! `var` and `stddev`: the mean and the sum of squared distances from it, by Welford (Technometrics 4(3), 1962), merged as by
//! Chan, Golub and LeVeque (COMPSTAT 1982), which lose no digits where the values lie close together.

use polars::prelude::*;

use super::{Finished, Number, State};
use crate::view::Spread;

/// The moments of each group.
#[derive(Debug)]
pub(super) struct Moments {
    spread: Spread,
    groups: Vec<Moment>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    count: i64,
    mean: f64,
    /// The sum of the squared distances from the mean.
    squares: f64,
}

impl Moment {
    fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        let share = other.count as f64 / count as f64;
        self.squares += other.squares + apart * apart * self.count as f64 * share;
        self.mean += apart * share;
        self.count = count;
    }

    /// Null where it isn't defined: of no values, and over a sample of one.
    fn finish(&self, spread: Spread) -> Option<f64> {
        let count = if spread.is_sample { self.count - 1 } else { self.count };
        let variance = (count > 0).then(|| self.squares / count as f64)?;
        Some(if spread.is_root { variance.sqrt() } else { variance })
    }
}

impl Moments {
    pub fn new(spread: Spread) -> Self {
        Self { spread, groups: Vec::new() }
    }
}

impl State for Moments {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, Moment::default());
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        let moments = &mut self.groups;
        f64::each(groups, &values[0], |group, value| {
            moments[group].merge(Moment { count: 1, mean: value, squares: 0.0 });
        })
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        let column = |i: usize| states[i].as_materialized_series().rechunk();
        let (means, squares, counts) = (column(0), column(1), column(2));
        let each = means.f64()?.iter().zip(squares.f64()?.iter()).zip(counts.i64()?.iter());
        for (&group, ((mean, squares), count)) in groups.iter().zip(each) {
            if let (Some(mean), Some(squares), Some(count)) = (mean, squares, count) {
                self.groups[group as usize].merge(Moment { count, mean, squares });
            }
        }
        Ok(())
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let groups = || self.groups.iter();
        Ok(vec![
            f64::column(groups().map(|moment| Some(moment.mean))),
            f64::column(groups().map(|moment| Some(moment.squares))),
            i64::column(groups().map(|moment| Some(moment.count))),
        ])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        Ok(f64::column(self.groups.iter().map(|moment| moment.finish(self.spread))).into())
    }

    fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Moment>()
    }
}
