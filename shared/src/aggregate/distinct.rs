//! `count(DISTINCT x)` and `approx_count_distinct(x)`: the values themselves while they are few, then a HyperLogLog sketch.
//!
//! The sketch is Apache DataSketches' (Flajolet and others, AofA 2007, with its HIP and composite estimators), of 2^12
//! registers, which errs by 1.6 %; its bounds hold with 99.7 % certainty. Texts go in as their UTF-8 bytes, integers, times
//! and truth values as 64-bit integers, so sketches of other programs can be merged with ours.

use std::collections::BTreeMap;

use datasketches::common::NumStdDev;
use datasketches::hash::value::{canonical_float, raw_bytes};
use datasketches::hll::{HllSketch, HllType, HllUnion};
use polars::prelude::*;
use polars_arrow::array::ListArray;

use super::keys::Keys;
use super::{Finished, Keep, Number, State, whole};

/// How large a sketch is: 2^12 registers.
const LG_K: u8 = 12;

/// With more values than this a group goes on as a sketch, where memory is bounded.
const MOST_VALUES: u32 = 256;

/// The distinct values of each group.
#[derive(Debug)]
pub(super) struct Distinct {
    data_type: DataType,
    keep: Keep,
    /// Pairs of a group that isn't sketched and a value.
    pairs: Keys,
    counts: Vec<u32>,
    sketches: BTreeMap<u32, HllSketch>,
}

impl Distinct {
    pub fn new(data_type: DataType, keep: Keep) -> Self {
        let pairs = Keys::new(vec![DataType::Int64, data_type.clone()]);
        Self { data_type, keep, pairs, counts: Vec::new(), sketches: BTreeMap::new() }
    }

    /// Adds values, each to its group. None is null.
    fn add(&mut self, groups: &[u32], values: &Column) -> PolarsResult<()> {
        if self.sketches.is_empty() {
            return self.add_values(groups, values);
        }
        let hashed = Hashed::of(values)?;
        let mut others = Vec::new();
        for (row, group) in groups.iter().enumerate() {
            match self.sketches.get_mut(group) {
                Some(sketch) => hashed.add_to(sketch, row),
                None => others.push(row as IdxSize),
            }
        }
        let groups: Vec<u32> = others.iter().map(|&row| groups[row as usize]).collect();
        self.add_values(&groups, &values.take(&IdxCa::from_vec(PlSmallStr::EMPTY, others))?)
    }

    /// Adds values to groups that aren't sketched.
    fn add_values(&mut self, groups: &[u32], values: &Column) -> PolarsResult<()> {
        let numbers: Int64Chunked = groups.iter().map(|&group| Some(i64::from(group))).collect();
        let known = self.pairs.len();
        let pairs = self.pairs.number(&[numbers.into_column(), values.clone()], groups.len())?;
        let mut next = known as u32;
        for (&group, &pair) in groups.iter().zip(&pairs) {
            if pair == next {
                next += 1;
                self.counts[group as usize] += 1;
            }
        }
        if self.keep == Keep::Bounded {
            let is_large = |group: &u32| self.counts[*group as usize] > MOST_VALUES;
            let mut large: Vec<u32> = groups.iter().copied().filter(is_large).collect();
            large.sort_unstable();
            large.dedup();
            self.sketch(&large)?;
        }
        Ok(())
    }

    /// Lets groups go on as sketches, and forgets their values.
    fn sketch(&mut self, groups: &[u32]) -> PolarsResult<()> {
        if groups.is_empty() {
            return Ok(());
        }
        for &group in groups {
            self.sketches.insert(group, empty()?);
        }
        let columns = self.pairs.columns()?;
        let owners = columns[0].i64()?.clone();
        let hashed = Hashed::of(&columns[1])?;
        let mut kept = Vec::new();
        for (row, owner) in owners.iter().enumerate() {
            let owner = owner.map_or(u32::MAX, |owner| owner as u32);
            match self.sketches.get_mut(&owner) {
                Some(sketch) => hashed.add_to(sketch, row),
                None => kept.push(row as IdxSize),
            }
        }
        let rows = IdxCa::from_vec(PlSmallStr::EMPTY, kept);
        let columns: Vec<Column> = columns.iter().map(|column| column.take(&rows)).collect::<PolarsResult<_>>()?;
        self.pairs = Keys::new(vec![DataType::Int64, self.data_type.clone()]);
        self.pairs.number(&columns, rows.len())?;
        Ok(())
    }

    /// The values of each group, null for those that are sketched.
    fn values(&self) -> PolarsResult<Column> {
        let columns = self.pairs.columns()?;
        let owners: Vec<i64> = columns[0].i64()?.iter().flatten().collect();
        let mut rows: Vec<IdxSize> = (0..owners.len() as IdxSize).collect();
        rows.sort_by_key(|&row| owners[row as usize]);
        let values = columns[1].take(&IdxCa::from_vec(PlSmallStr::EMPTY, rows))?;
        let sketched = |group: u32| self.sketches.contains_key(&group);
        let lengths =
            (0..).zip(&self.counts).map(|(group, &count)| if sketched(group) { None } else { Some(count as usize) });
        lists(&whole(&values), lengths)
    }
}

/// Cuts values, one after the other, into lists of these lengths; without a length a list is null.
pub(super) fn lists(values: &Series, lengths: impl Iterator<Item = Option<usize>>) -> PolarsResult<Column> {
    let (mut ends, mut there) = (vec![0_i64], Vec::new());
    for length in lengths {
        ends.push(ends.last().copied().unwrap_or(0) + length.unwrap_or(0) as i64);
        there.push(length.is_some());
    }
    let array = values.to_physical_repr().rechunk().to_arrow(0, CompatLevel::newest());
    let data_type = ListArray::<i64>::default_datatype(array.dtype().clone());
    let lists = ListArray::try_new(data_type, ends.try_into()?, array, Some(there.into_iter().collect()))?;
    ListChunked::with_chunk(PlSmallStr::EMPTY, lists)
        .into_column()
        .cast(&DataType::List(Box::new(values.dtype().clone())))
}

/// Values on their way into sketches.
enum Hashed {
    Text(StringChunked),
    Double(Float64Chunked),
    Word(Int64Chunked),
}

impl Hashed {
    fn of(column: &Column) -> PolarsResult<Self> {
        let series = whole(column);
        Ok(match series.dtype() {
            DataType::String => Self::Text(series.str()?.clone()),
            DataType::Float64 => Self::Double(series.f64()?.clone()),
            DataType::Boolean => Self::Word(series.cast(&DataType::Int64)?.i64()?.clone()),
            _ => Self::Word(series.to_physical_repr().i64()?.clone()),
        })
    }

    fn add_to(&self, sketch: &mut HllSketch, row: usize) {
        match self {
            Self::Text(values) => {
                if let Some(value) = values.get(row) {
                    sketch.update(raw_bytes::from_str(value));
                }
            }
            Self::Double(values) => {
                if let Some(value) = values.get(row) {
                    sketch.update(canonical_float::from_f64(value));
                }
            }
            Self::Word(values) => {
                if let Some(value) = values.get(row) {
                    sketch.update(value);
                }
            }
        }
    }
}

fn broken(error: impl std::fmt::Display) -> PolarsError {
    polars_err!(ComputeError: "a sketch of distinct values can't be used: {error}")
}

fn empty() -> PolarsResult<HllSketch> {
    HllSketch::new(LG_K, HllType::Hll4).map_err(broken)
}

impl State for Distinct {
    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        let values = &values[0];
        if values.null_count() == 0 {
            return self.add(groups, values);
        }
        let there = values.is_not_null();
        let groups: Vec<u32> = groups
            .iter()
            .zip(there.iter())
            .filter(|(_, there)| *there == Some(true))
            .map(|(&group, _)| group)
            .collect();
        self.add(&groups, &values.filter(&there)?)
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        let (values, sketches) = (whole(&states[0]), whole(&states[1]));
        let sketched: Vec<u32> = groups
            .iter()
            .zip(values.is_null().iter())
            .filter(|(group, is_null)| *is_null == Some(true) && !self.sketches.contains_key(group))
            .map(|(&group, _)| group)
            .collect();
        self.sketch(&sketched)?;
        for (&group, bytes) in groups.iter().zip(sketches.binary()?.iter()) {
            if let (Some(sketch), Some(bytes)) = (self.sketches.get_mut(&group), bytes) {
                let mut union = HllUnion::new(LG_K).map_err(broken)?;
                union.update(sketch);
                union.update(&HllSketch::deserialize(bytes).map_err(broken)?);
                *sketch = union.to_sketch(HllType::Hll4);
            }
        }
        // A sketched group's values, if they are there too, are in its sketch.
        let lists = values.list()?;
        let mut owners = Vec::new();
        for (&group, list) in groups.iter().zip(lists.amortized_iter()) {
            owners.extend(std::iter::repeat_n(group, list.map_or(0, |list| list.as_ref().len())));
        }
        let exploded = lists.explode(ExplodeOptions { empty_as_null: false, keep_nulls: false })?;
        self.add(&owners, &exploded.into_column())
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let sketches = (0..self.counts.len() as u32).map(|group| self.sketches.get(&group).map(HllSketch::serialize));
        Ok(vec![self.values()?, sketches.collect::<BinaryChunked>().into_column()])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = |of: fn(&HllSketch) -> f64| {
            i64::column((0..).zip(&self.counts).map(|(group, &count)| {
                Some(self.sketches.get(&group).map_or(i64::from(count), |sketch| of(sketch) as i64))
            }))
        };
        let value = each(|sketch| sketch.estimate().round());
        if self.sketches.is_empty() {
            return Ok(value.into());
        }
        let lower = each(|sketch| sketch.lower_bound(NumStdDev::Three).floor());
        let upper = each(|sketch| sketch.upper_bound(NumStdDev::Three).ceil());
        Ok(Finished { value, bounds: Some((lower, upper)) })
    }

    fn bytes(&self) -> usize {
        let sketches: usize = self.sketches.values().map(|sketch| sketch.estimated_size() + 64).sum();
        self.pairs.bytes() + self.counts.capacity() * 4 + sketches
    }
}
