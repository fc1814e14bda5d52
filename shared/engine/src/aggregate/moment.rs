//! `var` and `stddev`, from the exact sums of the values and of their squares: the variance is
//! `(count × squares − sum²) / (count × divisor)`, whose numerator is exact as well, so that nothing cancels and the quotient is
//! rounded once. (Twice if it is below 2^-1022.) The standard deviation is the root of that, rounded again.
//!
//! Where a value is an infinity or NaN, both are NaN.

use anabranch_plan::aggregation::Spread;
use polars::prelude::*;

use super::exact::{BEYOND, EMPTY, ROOM, Wide, nearest, scale, split, window, window_around, write_whole};
use super::{Finished, Number, State, whole};

/// The sums of each group.
#[derive(Debug)]
pub(super) struct Moments {
    spread: Spread,
    groups: Vec<Group>,
    /// Sums that no window holds. Their groups say where, in place of the sum.
    beyond: Vec<Sums>,
}

/// The sum of the values is `whole × 2^base`, that of their squares `(low + high × 2^128) × 2^(2 base)`.
#[derive(Debug, Clone, Copy)]
struct Group {
    whole: i128,
    low: u128,
    high: u128,
    count: i64,
    base: i16,
}

/// The sums of the values and of their squares; none if one of them was no finite number.
type Sums = Option<Box<(Wide, Wide)>>;

impl Group {
    const NONE: Self = Self { whole: 0, low: 0, high: 0, count: 0, base: EMPTY };

    /// Adds `whole × 2^shift` and its square, both in the window's units. Whether there is room.
    #[inline]
    fn add(&mut self, whole: i64, shift: u32) -> bool {
        let square = u128::from(whole.unsigned_abs()).pow(2);
        let (low, high) = match 2 * shift {
            0 => (square, 0),
            by @ 1..128 => (square << by, square >> (128 - by)),
            by => (0, square << (by - 128)),
        };
        self.add_sums(i128::from(whole) << shift, low, high)
    }

    #[inline]
    fn add_sums(&mut self, whole: i128, low: u128, high: u128) -> bool {
        let Some(whole) = self.whole.checked_add(whole) else { return false };
        let (low, is_over) = self.low.overflowing_add(low);
        let Some(high) = self.high.checked_add(high).and_then(|high| high.checked_add(is_over.into())) else {
            return false;
        };
        (self.whole, self.low, self.high) = (whole, low, high);
        true
    }

    fn wide(&self) -> (Wide, Wide) {
        let (base, mut squares) = (i32::from(self.base), Wide::default());
        for (i, limb) in self.squares().into_iter().enumerate() {
            squares.add(limb.into(), 2 * base + 64 * i as i32);
        }
        (Wide::of(self.whole, base), squares)
    }

    /// Writes what [`Group::wide`] gives.
    fn write(&self, out: &mut Vec<u8>) {
        let (base, whole) = (i32::from(self.base), self.whole.cast_unsigned());
        write_whole(&[whole as u64, (whole >> 64) as u64], (self.whole >> 127) as u64, base, out);
        write_whole(&self.squares(), 0, 2 * base, out);
    }

    fn squares(&self) -> [u64; 4] {
        [self.low as u64, (self.low >> 64) as u64, self.high as u64, (self.high >> 64) as u64]
    }
}

/// `whole` and `low + high × 2^128` in multiples of 2^base and its square.
fn in_units((sum, squares): &(Wide, Wide), base: i32) -> (i128, u128, u128) {
    (sum.bits_at(base).cast_signed(), squares.bits_at(2 * base), squares.bits_at(2 * base + 128))
}

/// The lowest bit of both, and how far they reach; of the squares by their roots.
fn span((sum, squares): &(Wide, Wide)) -> Option<(i32, i32)> {
    let (low, high) = squares.span()?;
    let (low, high) = (low.div_euclid(2), (high + 1).div_euclid(2));
    Some(sum.span().map_or((low, high), |(l, h)| (low.min(l), high.max(h))))
}

impl Moments {
    pub fn new(spread: Spread) -> Self {
        Self { spread, groups: Vec::new(), beyond: Vec::new() }
    }

    #[inline]
    fn add(&mut self, group: usize, value: f64) {
        let (whole, exponent) = split(value);
        let sums = &mut self.groups[group];
        sums.count += 1;
        let shift = (exponent - i32::from(sums.base)).cast_unsigned();
        if shift > ROOM || !sums.add(whole, shift) {
            self.add_outside(group, value);
        }
    }

    /// Adds a value whose bits aren't all inside the window, or that makes a sum too large for it.
    #[cold]
    #[inline(never)]
    fn add_outside(&mut self, group: usize, value: f64) {
        let (whole, exponent) = split(value);
        let sums = &mut self.groups[group];
        if whole == 0 {
            return;
        }
        if sums.base == EMPTY && value.is_finite() {
            let base = window_around(exponent);
            sums.base = base as i16;
            if sums.add(whole, (exponent - base).cast_unsigned()) {
                return;
            }
        }
        let below = i32::from(sums.base) - exponent;
        if (0..53).contains(&below) && whole.trailing_zeros().cast_signed() >= below && sums.add(whole >> below, 0) {
            return;
        }
        let square = value.is_finite().then(|| i128::from(whole).pow(2));
        self.change(
            group,
            square.map(|square| {
                move |(sum, squares): &mut (Wide, Wide)| {
                    sum.add(whole.into(), exponent);
                    squares.add(square, 2 * exponent);
                }
            }),
        );
    }

    /// Changes a group's sums, to none at all if there is no change that could be made.
    fn change(&mut self, group: usize, change: Option<impl FnOnce(&mut (Wide, Wide))>) {
        let sums = self.groups[group];
        let held = (sums.base == BEYOND).then(|| self.beyond[sums.whole as usize].take());
        let mut all = held.unwrap_or_else(|| Some(Box::new(sums.wide())));
        match (&mut all, change) {
            (Some(all), Some(change)) => change(all),
            _ => all = None,
        }
        if sums.base == BEYOND {
            self.beyond[sums.whole as usize] = all;
        } else {
            self.put(group, all);
        }
    }

    /// Sets the sums of a group that has a window, or has had none.
    fn put(&mut self, group: usize, all: Sums) {
        let Group { whole, low, high, base, .. } = &mut self.groups[group];
        let place = all.as_deref().map(|all| span(all).map(|(low, high)| window(low, high)));
        match (&all, place) {
            (_, Some(None)) => {}
            (Some(all), Some(Some(Some(place)))) => {
                (*whole, *low, *high) = in_units(all, place);
                *base = place as i16;
            }
            _ => {
                (*whole, *low, *high, *base) = (self.beyond.len() as i128, 0, 0, BEYOND);
                self.beyond.push(all);
            }
        }
    }

    fn merge_sums(&mut self, group: usize, other: (Wide, Wide)) {
        let Some((low, high)) = span(&other) else { return };
        let sums = &mut self.groups[group];
        let base = i32::from(sums.base);
        if sums.base == EMPTY {
            return self.put(group, Some(Box::new(other)));
        }
        if base <= low && high - base <= 126 && sums.base != BEYOND {
            let (whole, low, high) = in_units(&other, base);
            if sums.add_sums(whole, low, high) {
                return;
            }
        }
        self.change(
            group,
            Some(move |(sum, squares): &mut (Wide, Wide)| {
                sum.merge(&other.0);
                squares.merge(&other.1);
            }),
        );
    }

    /// Null where it isn't defined: of no values, and over a sample of one.
    fn finished(&self, sums: &Group) -> Option<f64> {
        let Spread { is_sample, is_root } = self.spread;
        let count = u64::try_from(sums.count).ok()?;
        let divisor = count.checked_sub(is_sample.into()).filter(|&divisor| divisor > 0)?;
        let (variance, exponent) = if sums.base == BEYOND {
            let Some(all) = &self.beyond[sums.whole as usize] else { return Some(f64::NAN) };
            let (sum, squares) = &**all;
            // Both in limbs that one is the square of the other's.
            let first = sum.first.min(squares.first.div_euclid(2));
            let limbs = |of: &Wide, first: i32| {
                let mut limbs = vec![0; (of.first - first) as usize];
                limbs.extend(of.magnitude());
                limbs
            };
            variance([count, divisor], &limbs(sum, first), &limbs(squares, 2 * first), 128 * first)
        } else {
            let sum = sums.whole.unsigned_abs();
            variance([count, divisor], &[sum as u64, (sum >> 64) as u64], &sums.squares(), 2 * i32::from(sums.base))
        };
        Some(match (is_root, exponent.rem_euclid(2)) {
            (false, _) => scale(variance, exponent),
            (true, odd) => scale((variance * f64::from(1 + odd)).sqrt(), (exponent - odd) / 2),
        })
    }
}

/// `(count × squares − sum²) / (count × divisor)`, in multiples of 2^exponent, with the power of two that it has to be
/// multiplied by.
fn variance(by: [u64; 2], sum: &[u64], squares: &[u64], exponent: i32) -> (f64, i32) {
    let low = |x: u128| x as u64;
    let mut limbs = vec![0; squares.len().max(2 * sum.len()) + 1];
    let mut carry = 0;
    for (i, limb) in limbs.iter_mut().enumerate() {
        carry += u128::from(by[0]) * u128::from(squares.get(i).copied().unwrap_or(0));
        *limb = low(carry);
        carry >>= 64;
    }
    for (i, &one) in sum.iter().enumerate() {
        let mut borrow = 0;
        for (j, limb) in limbs[i..].iter_mut().enumerate() {
            borrow += u128::from(one) * u128::from(sum.get(j).copied().unwrap_or(0));
            let (rest, is_below) = limb.overflowing_sub(low(borrow));
            *limb = rest;
            borrow = (borrow >> 64) + u128::from(is_below);
        }
    }
    // More than 192 bits are enough: the divisors have 126 at most, and 65 of the quotient are wanted.
    let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else { return (0.0, 0) };
    let mut quotient = [0; 4];
    for (i, limb) in quotient.iter_mut().enumerate() {
        *limb = (top + i).checked_sub(3).map_or(0, |at| limbs[at]);
    }
    let mut has_rest = top > 3 && limbs[..top - 3].iter().any(|&limb| limb != 0);
    for by in by {
        let mut rest = 0;
        for limb in quotient.iter_mut().rev() {
            let all = rest << 64 | u128::from(*limb);
            *limb = low(all / u128::from(by));
            rest = all - u128::from(*limb) * u128::from(by);
        }
        has_rest |= rest != 0;
    }
    let (nearest, of_limbs) = nearest(&quotient, has_rest);
    (nearest, exponent + 64 * (top as i32 - 3) + of_limbs)
}

impl State for Moments {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, Group::NONE);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        f64::each(groups, &values[0], |group, value| self.add(group, value))
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        i64::each(groups, &states[1], |group, count| self.groups[group].count += count)?;
        for (&group, bytes) in groups.iter().zip(whole(&states[0]).binary()?.iter()) {
            match bytes {
                None => {}
                Some(&[]) => self.change(group as usize, None::<fn(&mut (Wide, Wide))>),
                Some(mut bytes) => {
                    let sums = (Wide::read(&mut bytes)?, Wide::read(&mut bytes)?);
                    self.merge_sums(group as usize, sums);
                }
            }
        }
        Ok(())
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let mut stored = BinaryChunkedBuilder::new(PlSmallStr::EMPTY, self.groups.len());
        let mut bytes = Vec::new();
        for sums in &self.groups {
            bytes.clear();
            if sums.base != BEYOND {
                sums.write(&mut bytes);
            } else if let Some(all) = &self.beyond[sums.whole as usize] {
                all.0.write(&mut bytes);
                all.1.write(&mut bytes);
            }
            stored.append_value(&bytes);
        }
        let counts = i64::column(self.groups.iter().map(|sums| Some(sums.count)));
        Ok(vec![stored.finish().into_column(), counts])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        Ok(f64::column(self.groups.iter().map(|sums| self.finished(sums))).into())
    }

    fn bytes(&self) -> usize {
        let wide = |sums: &Sums| sums.as_ref().map_or(0, |sums| sums.0.bytes() + sums.1.bytes());
        let beyond = self.beyond.capacity() * size_of::<Sums>() + self.beyond.iter().map(wide).sum::<usize>();
        self.groups.capacity() * size_of::<Group>() + beyond
    }
}
