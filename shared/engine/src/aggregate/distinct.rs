//! `count(DISTINCT x)` and `approx_count_distinct(x)`: the values themselves while they are few, then a HyperLogLog sketch.
//!
//! The sketch is Apache DataSketches' (Flajolet and others, AofA 2007, with its HIP and composite estimators), of 2^12
//! registers, which errs by 1.6 %; its bounds hold with 99.7 % certainty. Texts go in as their UTF-8 bytes, integers, times
//! and truth values as 64-bit integers, so sketches of other programs can be merged with ours.

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
    /// Pairs of a group and a value. Those of a group that is sketched are of no use any more.
    pairs: Keys,
    /// How many are of no use.
    outdated: usize,
    /// The pairs of each group that isn't sketched.
    counts: Vec<u32>,
    sketches: Vec<Option<Box<HllSketch>>>,
}

impl Distinct {
    pub fn new(data_type: DataType, keep: Keep) -> Self {
        let pairs = pairs(&data_type);
        Self { data_type, keep, pairs, outdated: 0, counts: Vec::new(), sketches: Vec::new() }
    }

    fn is_sketched(&self, group: u32) -> bool {
        self.sketches[group as usize].is_some()
    }

    /// Adds values, each to its group. None is null.
    fn add(&mut self, groups: &[u32], values: &Column) -> PolarsResult<()> {
        if !groups.iter().any(|&group| self.is_sketched(group)) {
            return self.add_values(groups, values);
        }
        let hashed = Hashed::of(values)?;
        let mut others = Vec::new();
        for (row, &group) in groups.iter().enumerate() {
            match &mut self.sketches[group as usize] {
                Some(sketch) => hashed.add_to(sketch, row),
                None => others.push(row as IdxSize),
            }
        }
        let groups: Vec<u32> = others.iter().map(|&row| groups[row as usize]).collect();
        self.add_values(&groups, &values.take(&IdxCa::from_vec(PlSmallStr::EMPTY, others))?)
    }

    /// Adds values to groups that aren't sketched.
    fn add_values(&mut self, groups: &[u32], values: &Column) -> PolarsResult<()> {
        let numbers = groups.iter().map(|&group| i64::from(group)).collect();
        let numbers = Int64Chunked::from_vec(PlSmallStr::EMPTY, numbers);
        let mut next = self.pairs.len() as u32;
        let pairs = self.pairs.number(&[numbers.into_column(), values.clone()], groups.len())?;
        let mut large = Vec::new();
        for (&group, &pair) in groups.iter().zip(&pairs) {
            if pair == next {
                next += 1;
                let count = &mut self.counts[group as usize];
                *count += 1;
                if *count == MOST_VALUES + 1 {
                    large.push(group);
                }
            }
        }
        if self.keep == Keep::Bounded { self.sketch(&large) } else { Ok(()) }
    }

    /// Lets groups that aren't sketched go on as sketches, and forgets their values.
    fn sketch(&mut self, groups: &[u32]) -> PolarsResult<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let mut is_new = vec![false; self.counts.len()];
        for &group in groups {
            is_new[group as usize] = true;
            self.sketches[group as usize] = Some(Box::new(empty()?));
            self.outdated += std::mem::take(&mut self.counts[group as usize]) as usize;
        }
        let columns = self.pairs.columns()?;
        let owners = whole(&columns[0]);
        let owners = owners.i64()?.cont_slice()?;
        let hashed = Hashed::of(&columns[1])?;
        for (row, &owner) in owners.iter().enumerate().filter(|(_, owner)| is_new[**owner as usize]) {
            if let Some(sketch) = &mut self.sketches[owner as usize] {
                hashed.add_to(sketch, row);
            }
        }
        if self.outdated * 2 > self.pairs.len() {
            let kept = (0..).zip(owners).filter(|(_, owner)| !self.is_sketched(**owner as u32)).map(|(row, _)| row);
            let kept = IdxCa::from_vec(PlSmallStr::EMPTY, kept.collect());
            let columns: Vec<Column> = columns.iter().map(|column| column.take(&kept)).collect::<PolarsResult<_>>()?;
            (self.pairs, self.outdated) = (pairs(&self.data_type), 0);
            self.pairs.number(&columns, kept.len())?;
        }
        Ok(())
    }

    /// The values of each group, null for those that are sketched.
    fn values(&self) -> PolarsResult<Column> {
        let columns = self.pairs.columns()?;
        let owners = whole(&columns[0]);
        let mut next: Vec<usize> =
            self.counts.iter().scan(0, |next, &count| Some(std::mem::replace(next, *next + count as usize))).collect();
        let mut rows = vec![0; self.pairs.len() - self.outdated];
        for (row, &owner) in (0..).zip(owners.i64()?.cont_slice()?) {
            if !self.is_sketched(owner as u32) {
                let next = &mut next[owner as usize];
                rows[*next] = row;
                *next += 1;
            }
        }
        let values = columns[1].take(&IdxCa::from_vec(PlSmallStr::EMPTY, rows))?;
        let lengths = self.counts.iter().zip(&self.sketches).map(|(&n, sketch)| sketch.is_none().then_some(n as usize));
        lists(&whole(&values), lengths)
    }
}

/// No pairs yet.
fn pairs(data_type: &DataType) -> Keys {
    Keys::new(vec![DataType::Int64, data_type.clone()])
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
        self.sketches.resize(groups, None);
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
        let mut sketched: Vec<u32> = groups
            .iter()
            .zip(values.is_null().iter())
            .filter(|(group, is_null)| *is_null == Some(true) && !self.is_sketched(**group))
            .map(|(&group, _)| group)
            .collect();
        sketched.sort_unstable();
        sketched.dedup();
        self.sketch(&sketched)?;
        for (&group, bytes) in groups.iter().zip(sketches.binary()?.iter()) {
            if let (Some(sketch), Some(bytes)) = (&mut self.sketches[group as usize], bytes) {
                let mut union = HllUnion::new(LG_K).map_err(broken)?;
                union.update(sketch);
                union.update(&HllSketch::deserialize(bytes).map_err(broken)?);
                **sketch = union.to_sketch(HllType::Hll4);
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
        let sketches = self.sketches.iter().map(|sketch| sketch.as_ref().map(|sketch| sketch.serialize()));
        Ok(vec![self.values()?, sketches.collect::<BinaryChunked>().into_column()])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = |of: fn(&HllSketch) -> f64| {
            let groups = self.counts.iter().zip(&self.sketches);
            i64::column(
                groups
                    .map(|(&count, sketch)| Some(sketch.as_ref().map_or(i64::from(count), |sketch| of(sketch) as i64))),
            )
        };
        let value = each(|sketch| sketch.estimate().round());
        if self.sketches.iter().all(Option::is_none) {
            return Ok(value.into());
        }
        let lower = each(|sketch| sketch.lower_bound(NumStdDev::Three).floor());
        let upper = each(|sketch| sketch.upper_bound(NumStdDev::Three).ceil());
        Ok(Finished { value, bounds: Some((lower, upper)) })
    }

    fn bytes(&self) -> usize {
        let sketches: usize = self.sketches.iter().flatten().map(|sketch| sketch.estimated_size() + 64).sum();
        self.pairs.bytes() + self.counts.capacity() * 4 + self.sketches.capacity() * 8 + sketches
    }
}
