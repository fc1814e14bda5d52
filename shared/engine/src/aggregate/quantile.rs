//! `approx_percentile(x, p)`: the smallest value with a share of at least `p` of the values at or below it. The values
//! themselves are kept while they are few, then a sketch.
//!
//! The sketch is Apache DataSketches' KLL (Karnin, Lang, Liberty, FOCS 2016) with k = 200. With 99 % certainty the rank of
//! what it says is off by at most 1.33 % of the values, which the bounds say in values.

use std::collections::BTreeMap;

use datasketches::common::SearchCriteria;
use datasketches::kll::{KllFloat, KllSketch};
use polars::prelude::*;

use super::distinct::lists;
use super::{Finished, Keep, Number, State, canonical, whole};

const K: u16 = 200;

/// With more values than this a group goes on as a sketch, where memory is bounded.
const MOST_VALUES: usize = 512;

type Sketch = KllSketch<KllFloat<f64>>;

/// The values of each group.
#[derive(Debug)]
pub(super) struct Quantile {
    fraction: f64,
    keep: Keep,
    /// The values that are in no sketch, in no order.
    values: Vec<Vec<f64>>,
    /// Where memory is bounded, one of a group, which then has all its values. Where it isn't they stay apart, and values that
    /// come beside them too: a sketch throws dice, and everybody who adds up the same is to say the same.
    sketches: BTreeMap<u32, Vec<Sketch>>,
    /// How many values there are in no sketch.
    held: usize,
}

fn broken(error: impl std::fmt::Display) -> PolarsError {
    polars_err!(ComputeError: "a sketch of quantiles can't be used: {error}")
}

impl Quantile {
    pub fn new(fraction: f64, keep: Keep) -> Self {
        Self { fraction, keep, values: Vec::new(), sketches: BTreeMap::new(), held: 0 }
    }

    fn add(&mut self, group: usize, value: f64) {
        match self.sketches.get_mut(&(group as u32)).map(Vec::as_mut_slice) {
            Some([sketch]) if self.keep == Keep::Bounded => update(sketch, value),
            _ if value.is_nan() => {}
            _ => {
                self.values[group].push(value);
                self.held += 1;
            }
        }
    }

    /// A group's sketches and values in one sketch.
    fn sketch(&self, group: u32) -> PolarsResult<Sketch> {
        let mut all = Sketch::new(K).map_err(broken)?;
        let parts = self.sketches.get(&group).into_iter().flatten();
        parts.into_iter().try_for_each(|part| all.merge(part)).map_err(broken)?;
        self.values[group as usize].iter().for_each(|&value| update(&mut all, value));
        Ok(all)
    }

    fn keep_bounded(&mut self, groups: &[u32]) -> PolarsResult<()> {
        if self.keep == Keep::Bounded {
            for &group in groups {
                let is_sketched = self.sketches.contains_key(&group);
                if self.values[group as usize].len() > if is_sketched { 0 } else { MOST_VALUES } {
                    let sketch = self.sketch(group)?;
                    self.sketches.insert(group, vec![sketch]);
                    self.held -= std::mem::take(&mut self.values[group as usize]).len();
                }
            }
        }
        Ok(())
    }
}

/// NaN has no rank.
fn update(sketch: &mut Sketch, value: f64) {
    if let Ok(value) = KllFloat::<f64>::new(value) {
        sketch.update(value);
    }
}

/// The smallest value with a share of at least `fraction` of the values, and of what the sketches have seen, at or below it.
/// It is looked for among all numbers by halving, in the order of their bits.
fn of_sketches(parts: &[Sketch], values: &[f64], fraction: f64) -> Option<f64> {
    let parts: Vec<_> = parts.iter().filter(|part| !part.is_empty()).collect();
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let total = parts.iter().map(|part| part.n()).sum::<u64>() + values.len() as u64;
    let ends = |of: fn(&Sketch) -> Option<&KllFloat<f64>>, value: Option<&f64>| {
        let all = parts.iter().filter_map(|part| of(part)).map(|item| item.into_inner()).chain(value.copied());
        all.collect::<Vec<_>>()
    };
    let least = ends(Sketch::min_item, values.first()).into_iter().min_by(f64::total_cmp)?;
    let most = ends(Sketch::max_item, values.last()).into_iter().max_by(f64::total_cmp)?;
    // A sketch may have forgotten the largest value among the others, but not which it was.
    if fraction >= 1.0 {
        return Some(most);
    }
    // Ranks are shares, so the sum of what they stand for is rounded.
    let (wanted, slack) = (total as f64 * fraction, total as f64 * 1e-12);
    let views: Vec<_> = parts.iter().map(|part| (part.n() as f64, part.sorted_view())).collect();
    let at_or_below = |value: f64| {
        let below = values.partition_point(|other| *other <= value) as f64;
        let Ok(value) = KllFloat::<f64>::new(value) else { return below };
        below
            + views.iter().map(|(n, view)| n * view.rank(&value, SearchCriteria::Inclusive).unwrap_or(0.0)).sum::<f64>()
    };
    let (mut low, mut high) = (ordered(least), ordered(most));
    while low < high {
        let middle = low + (high - low) / 2;
        if at_or_below(unordered(middle)) + slack >= wanted { high = middle } else { low = middle + 1 }
    }
    Some(unordered(high))
}

/// Bits that are ordered as the numbers are.
fn ordered(value: f64) -> i128 {
    let bits = value.to_bits();
    if value.is_sign_negative() { -i128::from(bits & !(1 << 63)) } else { i128::from(bits) }
}

fn unordered(bits: i128) -> f64 {
    if bits < 0 { -f64::from_bits((-bits) as u64) } else { f64::from_bits(bits as u64) }
}

fn of_values(values: &[f64], fraction: f64) -> Option<f64> {
    let mut values = values.to_vec();
    let rank = (values.len() as f64 * fraction).ceil() as usize;
    let at = rank.max(1) - 1;
    (at < values.len()).then(|| *values.select_nth_unstable_by(at, f64::total_cmp).1)
}

impl State for Quantile {
    fn grow(&mut self, groups: usize) {
        self.values.resize(groups, Vec::new());
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        f64::each(groups, &values[0], |group, value| self.add(group, canonical(value)))?;
        self.keep_bounded(groups)
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        let (values, sketches) = (whole(&states[0]), whole(&states[1]));
        for (&group, bytes) in groups.iter().zip(sketches.binary()?.iter()) {
            let Some(bytes) = bytes else { continue };
            let other = Sketch::deserialize(bytes).map_err(broken)?;
            match self.sketches.entry(group).or_default() {
                parts if self.keep == Keep::Bounded && !parts.is_empty() => parts[0].merge(&other).map_err(broken)?,
                parts => parts.push(other),
            }
        }
        for (&group, list) in groups.iter().zip(values.list()?.amortized_iter()) {
            let Some(list) = list else { continue };
            list.as_ref().f64()?.iter().flatten().for_each(|value| self.add(group as usize, value));
        }
        self.keep_bounded(groups)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let is_sketched = |group: u32| self.sketches.contains_key(&group);
        let plain = (0..).zip(&self.values).filter(|(group, _)| !is_sketched(*group)).flat_map(|(_, values)| values);
        let all: Float64Chunked = plain.map(|&value| Some(value)).collect();
        let lengths = (0..).zip(&self.values).map(|(group, values)| (!is_sketched(group)).then_some(values.len()));
        let values = lists(&all.into_series(), lengths)?;
        let sketch = |group: u32| is_sketched(group).then(|| Ok(self.sketch(group)?.serialize())).transpose();
        let sketches = (0..self.values.len() as u32).map(sketch).collect::<PolarsResult<Vec<_>>>()?;
        Ok(vec![values, sketches.into_iter().collect::<BinaryChunked>().into_column()])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = |shift: f64| {
            let of = |(group, values): (u32, &Vec<f64>)| match self.sketches.get(&group) {
                Some(parts) => {
                    let error = parts.iter().map(Sketch::normalized_rank_error).fold(0.0, f64::max);
                    of_sketches(parts, values, self.fraction + shift * error)
                }
                None => of_values(values, self.fraction),
            };
            f64::column((0..).zip(&self.values).map(of))
        };
        let value = each(0.0);
        if self.sketches.is_empty() {
            return Ok(value.into());
        }
        Ok(Finished { value, bounds: Some((each(-1.0), each(1.0))) })
    }

    fn bytes(&self) -> usize {
        // A vector may have room for twice as many, and has half of that on average.
        let values = self.held * 12;
        let sketches: usize = self.sketches.values().flatten().map(|sketch| sketch.num_retained() * 8 + 256).sum();
        self.values.capacity() * size_of::<Vec<f64>>() + values + sketches
    }
}
