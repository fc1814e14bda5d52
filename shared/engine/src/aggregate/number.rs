//! `count`, and `sum` and `avg` of whole numbers.

use std::collections::BTreeMap;

use anabranch_plan::aggregation::Aggregate;
use polars::prelude::*;

use super::{Finished, Number, State, whole};

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

/// The sum of whole numbers and how many there were, of which the mean is known, too. The sum of none is null, and so is one
/// that doesn't fit 64 bits in the end; what it was on the way there doesn't matter.
#[derive(Debug)]
pub(super) struct Wholes {
    is_mean: bool,
    /// The lower 64 bits.
    sums: Vec<i64>,
    /// How often 2^64 has to be added, of those groups for which it has to be.
    carries: BTreeMap<u32, i64>,
    counts: Vec<i64>,
}

impl Wholes {
    pub fn new(is_mean: bool) -> Self {
        Self { is_mean, sums: Vec::new(), carries: BTreeMap::new(), counts: Vec::new() }
    }

    /// Adds each value to its group's sum. The slices stay where they are, so that a loop over values need not look them up.
    fn add(&mut self, groups: &[u32], values: &Column, mut and: impl FnMut(&mut [i64], usize)) -> PolarsResult<()> {
        let Self { sums, carries, counts, .. } = self;
        let (sums, counts) = (sums.as_mut_slice(), counts.as_mut_slice());
        i64::each(groups, values, |group, value| {
            let (sum, is_over) = sums[group].overflowing_add(value);
            sums[group] = sum;
            if is_over {
                carry(carries, group, value.signum());
            }
            and(counts, group);
        })
    }

    fn carry_of(&self, group: usize) -> Option<i64> {
        self.carries.get(&(group as u32)).copied()
    }
}

#[cold]
fn carry(carries: &mut BTreeMap<u32, i64>, group: usize, by: i64) {
    let carry = carries.entry(group as u32).or_default();
    *carry += by;
    if *carry == 0 {
        carries.remove(&(group as u32));
    }
}

/// `sum / count`, rounded once.
fn mean(sum: i128, count: i64) -> f64 {
    let (whole, by) = (sum.unsigned_abs(), u128::from(count.unsigned_abs()));
    let mean = if whole < 1 << 53 {
        whole as f64 / by as f64
    } else {
        // The mean is 1 or more, so 64 digits behind the point are enough, the last of which stands for all after it.
        let (quotient, rest) = (whole / by, whole % by);
        let (digits, rest) = ((rest << 64) / by, (rest << 64) % by);
        (quotient << 64 | digits | u128::from(rest != 0)) as f64 / 2_f64.powi(64)
    };
    if sum < 0 { -mean } else { mean }
}

impl State for Wholes {
    fn grow(&mut self, groups: usize) {
        self.sums.resize(groups, 0);
        self.counts.resize(groups, 0);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        self.add(groups, &values[0], |counts, group| counts[group] += 1)
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        self.add(groups, &states[0], |_, _| {})?;
        if states[1].null_count() < groups.len() {
            i64::each(groups, &states[1], |group, by| carry(&mut self.carries, group, by))?;
        }
        i64::each(groups, &states[2], |group, count| self.counts[group] += count)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let carries = if self.carries.is_empty() {
            Column::full_null(PlSmallStr::EMPTY, self.sums.len(), &DataType::Int64)
        } else {
            i64::column((0..self.sums.len()).map(|group| self.carry_of(group)))
        };
        Ok(vec![counts(&self.sums), carries, counts(&self.counts)])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = || (0..).zip(&self.sums).zip(&self.counts);
        if !self.is_mean {
            let fits = |group, count| count > 0 && (self.carries.is_empty() || self.carry_of(group).is_none());
            return Ok(i64::column(each().map(|((group, &sum), &count)| fits(group, count).then_some(sum))).into());
        }
        let all = |group, sum| (i128::from(self.carry_of(group).unwrap_or(0)) << 64) + i128::from(sum);
        Ok(f64::column(each().map(|((group, &sum), &count)| (count > 0).then(|| mean(all(group, sum), count)))).into())
    }

    fn bytes(&self) -> usize {
        (self.sums.capacity() + self.counts.capacity()) * 8 + self.carries.len() * 32
    }
}
