//! `sum` and `avg` of doubles: the exact sum of the values, rounded to the nearest double when it is read, as Python's
//! `math.fsum` does it, and divided by how many there were. So neither depends on the order of the values.
//!
//! A sum beyond the largest double is an infinity, but a mean is that of the sum before it was rounded. Values that are no
//! finite numbers add up as everywhere: an infinity stays, and two of different signs are NaN.

use polars::prelude::*;

use super::exact::{BEYOND, EMPTY, ROOM, Wide, scale, split, window, window_around};
use super::{Finished, Number, State, canonical, whole};

/// The sums of each group, and how many values there were.
#[derive(Debug)]
pub(super) struct Doubles {
    is_mean: bool,
    groups: Vec<Group>,
    /// Sums that no window holds. Their groups say where, in place of the sum.
    beyond: Vec<Beyond>,
}

/// A sum of `whole × 2^base`.
#[derive(Debug, Clone, Copy)]
struct Group {
    whole: i128,
    count: i64,
    base: i16,
}

#[derive(Debug)]
enum Beyond {
    Wide(Wide),
    /// An infinity or NaN, which no finite value changes.
    Special(f64),
}

impl Beyond {
    fn add(&mut self, value: f64) {
        match self {
            Self::Wide(wide) if value.is_finite() => wide.add_double(value),
            Self::Special(special) if !value.is_finite() => *special += value,
            Self::Wide(_) => *self = Self::Special(value),
            Self::Special(_) => {}
        }
    }
}

impl Group {
    const NONE: Self = Self { whole: 0, count: 0, base: EMPTY };

    fn wide(&self) -> Wide {
        Wide::of(self.whole, self.base.into())
    }

    /// As [`Wide::pair`] says it. None also where only that can tell.
    fn pair(&self) -> Option<(f64, f64)> {
        let first = self.whole as f64;
        if first.abs() >= (1_i128 << 126) as f64 {
            return None;
        }
        let rest = self.whole - first as i128;
        let second = rest as f64;
        let pair = (scale(first, self.base.into()), scale(second, self.base.into()));
        (second as i128 == rest && pair.0.is_finite()).then_some(pair)
    }
}

/// What a group's state is, column by column.
enum Stored {
    Pair(f64, f64),
    Wide(Vec<u8>),
}

impl Doubles {
    pub fn new(is_mean: bool) -> Self {
        Self { is_mean, groups: Vec::new(), beyond: Vec::new() }
    }

    #[inline]
    fn add(&mut self, group: usize, value: f64) {
        let (whole, exponent) = split(value);
        let sum = &mut self.groups[group];
        let shift = (exponent - i32::from(sum.base)).cast_unsigned();
        match sum.whole.checked_add(i128::from(whole) << (shift & 127)) {
            Some(all) if shift <= ROOM => sum.whole = all,
            _ => self.add_outside(group, value),
        }
    }

    /// Adds a value whose bits aren't all inside the window, or that makes the sum too large for it.
    #[cold]
    #[inline(never)]
    fn add_outside(&mut self, group: usize, value: f64) {
        let (whole, exponent) = split(value);
        let sum = &mut self.groups[group];
        let below = i32::from(sum.base) - exponent;
        if whole == 0 {
            return;
        }
        if sum.base == EMPTY && value.is_finite() {
            let base = window_around(exponent);
            (sum.whole, sum.base) = (i128::from(whole) << (exponent - base), base as i16);
            return;
        }
        if (0..53).contains(&below)
            && whole.trailing_zeros().cast_signed() >= below
            && let Some(all) = sum.whole.checked_add((whole >> below).into())
        {
            sum.whole = all;
            return;
        }
        if sum.base == BEYOND {
            return self.beyond[sum.whole as usize].add(value);
        }
        let mut all = Beyond::Wide(sum.wide());
        all.add(value);
        self.put(group, all);
    }

    fn add_wide(&mut self, group: usize, other: &Wide) {
        let sum = self.groups[group];
        if sum.base != BEYOND {
            let mut all = sum.wide();
            all.merge(other);
            self.put(group, Beyond::Wide(all));
        } else if let Beyond::Wide(wide) = &mut self.beyond[sum.whole as usize] {
            wide.merge(other);
        }
    }

    /// Sets the sum of a group that has a window, or has had none.
    fn put(&mut self, group: usize, all: Beyond) {
        let sum = &mut self.groups[group];
        (sum.whole, sum.base) = match &all {
            Beyond::Wide(wide) => match wide.span() {
                None => (0, EMPTY),
                Some((low, high)) => match window(low, high) {
                    Some(base) => (wide.bits_at(base).cast_signed(), base as i16),
                    None => (self.beyond.len() as i128, BEYOND),
                },
            },
            Beyond::Special(_) => (self.beyond.len() as i128, BEYOND),
        };
        if sum.base == BEYOND {
            self.beyond.push(all);
        }
    }

    fn stored(&self, sum: &Group) -> Stored {
        let of_wide = |wide: &Wide| match wide.pair() {
            Some((first, second)) => Stored::Pair(first, second),
            None => {
                let mut bytes = Vec::new();
                wide.write(&mut bytes);
                Stored::Wide(bytes)
            }
        };
        match sum.base {
            BEYOND => match &self.beyond[sum.whole as usize] {
                Beyond::Wide(wide) => of_wide(wide),
                Beyond::Special(special) => Stored::Pair(canonical(*special), 0.0),
            },
            _ => match sum.pair() {
                Some((first, second)) => Stored::Pair(first, second),
                None => of_wide(&sum.wide()),
            },
        }
    }

    fn finished(&self, sum: &Group) -> f64 {
        let (nearest, exponent) = match sum.base {
            BEYOND => match &self.beyond[sum.whole as usize] {
                Beyond::Wide(wide) => wide.nearest(),
                Beyond::Special(special) => return canonical(*special),
            },
            base => (sum.whole as f64, base.into()),
        };
        let (all, count) = (scale(nearest, exponent), sum.count as f64);
        match self.is_mean {
            false => all,
            true if all.is_finite() => all / count,
            true => scale(nearest / count, exponent),
        }
    }
}

impl State for Doubles {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, Group::NONE);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        f64::each(groups, &values[0], |group, value| {
            self.groups[group].count += 1;
            self.add(group, value);
        })
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        f64::each(groups, &states[0], |group, first| self.add(group, first))?;
        f64::each(groups, &states[1], |group, second| {
            if second != 0.0 {
                self.add(group, second);
            }
        })?;
        if states[2].null_count() < groups.len() {
            for (&group, bytes) in groups.iter().zip(whole(&states[2]).binary()?.iter()) {
                if let Some(mut bytes) = bytes {
                    self.add_wide(group as usize, &Wide::read(&mut bytes)?);
                }
            }
        }
        i64::each(groups, &states[3], |group, count| self.groups[group].count += count)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let mut pairs = Vec::with_capacity(self.groups.len());
        let mut wide = Vec::new();
        for (group, sum) in self.groups.iter().enumerate() {
            pairs.push(match self.stored(sum) {
                Stored::Pair(first, second) => Some((first, second)),
                Stored::Wide(bytes) => {
                    wide.push((group, bytes));
                    None
                }
            });
        }
        let doubles = |of: fn((f64, f64)) -> f64| f64::column(pairs.iter().map(|pair| pair.map(of)));
        let mut columns = vec![doubles(|pair| pair.0), doubles(|pair| pair.1)];
        columns.push(if wide.is_empty() {
            Column::full_null(PlSmallStr::EMPTY, pairs.len(), &DataType::Binary)
        } else {
            let mut wide = wide.iter().peekable();
            let bytes = (0..pairs.len()).map(|group| Some(&*wide.next_if(|(of, _)| *of == group)?.1));
            bytes.collect::<BinaryChunked>().into_column()
        });
        columns.push(i64::column(self.groups.iter().map(|sum| Some(sum.count))));
        Ok(columns)
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let each = self.groups.iter();
        Ok(f64::column(each.map(|sum| (sum.count > 0).then(|| self.finished(sum)))).into())
    }

    fn bytes(&self) -> usize {
        let wide = |beyond: &Beyond| if let Beyond::Wide(wide) = beyond { wide.bytes() } else { 0 };
        let beyond = self.beyond.capacity() * size_of::<Beyond>() + self.beyond.iter().map(wide).sum::<usize>();
        self.groups.capacity() * size_of::<Group>() + beyond
    }
}
