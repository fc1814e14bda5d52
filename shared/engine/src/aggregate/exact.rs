//! Sums of doubles without rounding.
//!
//! A finite double is a whole number of 53 bits times a power of two, so a sum of doubles is a whole number times a power of
//! two as well. It is kept as that: the sum doesn't depend on the order of its terms, nor on how they were split, and is
//! rounded once, when it is read. The idea is Kulisch's long accumulator (Kulisch and Miranker, SIAM Review 28(1), 1986; Neal,
//! arXiv:1505.05571, 2015). Most sums span few powers of two, so most are kept in one window of 126 bits that lies where the
//! terms are; a [`Wide`] number takes over where the terms are too far apart for that.
//!
//! Infinities and NaN are no such numbers. The states that use this keep them apart.

use polars::prelude::{PolarsResult, polars_err};

/// The exponent of infinities and NaN, as [`split`] gives it.
pub(super) const SPECIAL: i32 = 972;

/// The largest distance of a double's last bit from the window's.
pub(super) const ROOM: u32 = 73;

/// The bits of a window, its sign aside.
const BITS: i32 = 126;

/// No window begins higher: an infinity is outside of every window.
const HIGHEST: i32 = SPECIAL - 1 - ROOM as i32;

/// The base of a sum that has no window: of nothing, and of what is kept elsewhere.
pub(super) const EMPTY: i16 = i16::MAX;
pub(super) const BEYOND: i16 = i16::MAX - 1;

/// A double as `whole × 2^exponent`, where the whole number has at most 53 bits.
#[inline]
pub(super) fn split(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let (biased, sign) = ((bits >> 52 & 0x7ff) as i32, bits.cast_signed() >> 63);
    let is_normal = i32::from(biased != 0);
    let whole = (bits & ((1 << 52) - 1)).cast_signed() | i64::from(is_normal) << 52;
    ((whole ^ sign) - sign, biased - is_normal - 1074)
}

/// `value × 2^exponent`, where the value is 0 or from 1 to 2^128.
pub(super) fn scale(value: f64, exponent: i32) -> f64 {
    // In two steps: the power may itself be too large or too small for a double.
    let (exponent, power) = (exponent.clamp(-2044, 2044), |e: i32| f64::from_bits(((e + 1023) as u64) << 52));
    value * power(exponent / 2) * power(exponent - exponent / 2)
}

/// The double nearest to a whole number, ties to even, and what it has to be multiplied by: a power of 2. `rest` says whether
/// there is more below the last bit.
pub(super) fn nearest(limbs: &[u64], rest: bool) -> (f64, i32) {
    let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else { return (0.0, 0) };
    let (below, lower) = match top.checked_sub(1) {
        None => (0, &[][..]),
        Some(next) => (limbs[next], &limbs[..next]),
    };
    // At least 65 bits, so the last one is below those that are kept and stands for all that follow.
    let rest = rest || lower.iter().any(|&limb| limb != 0);
    let whole = u128::from(limbs[top]) << 64 | u128::from(below) | u128::from(rest);
    (whole as f64, 64 * (top as i32 - 1))
}

/// Any sum of doubles, or of their squares: a whole number in two's complement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wide {
    /// The power of 2^64 that the first limb counts.
    pub first: i32,
    /// 64 bits each, the lowest first. The last is the sign: all zeros or all ones. Zero may have none.
    pub limbs: Vec<u64>,
}

impl Wide {
    pub fn of(whole: i128, exponent: i32) -> Self {
        let mut wide = Self::default();
        wide.add(whole, exponent);
        wide
    }

    pub fn add_double(&mut self, value: f64) {
        let (whole, exponent) = split(value);
        self.add(whole.into(), exponent);
    }

    /// Adds `whole × 2^exponent`.
    pub fn add(&mut self, whole: i128, exponent: i32) {
        if whole == 0 {
            return;
        }
        let (at, shift) = (exponent.div_euclid(64), exponent.rem_euclid(64) as u32);
        let sign = (whole >> 127) as u64;
        let low = whole.cast_unsigned() << shift;
        let high = if shift == 0 { sign } else { (whole >> (128 - shift)) as u64 };
        let added = [low as u64, (low >> 64) as u64, high];
        if self.limbs.is_empty() {
            (self.first, self.limbs) = (at, vec![0]);
        }
        let missing = usize::try_from(self.first - at).unwrap_or(0);
        if missing > 0 {
            self.limbs.splice(..0, std::iter::repeat_n(0, missing));
        }
        self.first = self.first.min(at);
        let start = (at - self.first) as usize;
        // With the sign's limb above both there is room for the sum.
        let len = self.limbs.len().max(start + added.len() + 1);
        self.limbs.resize(len, self.sign());
        let mut carry = 0;
        for (i, limb) in self.limbs[start..].iter_mut().enumerate() {
            let added = added.get(i).copied().unwrap_or(sign);
            // A sign of zeros without a carry changes nothing above, nor does one of ones with a carry.
            if i > 2 && added.wrapping_add(carry) == 0 {
                break;
            }
            let (sum, over) = limb.overflowing_add(added);
            let (sum, over_again) = sum.overflowing_add(carry);
            (*limb, carry) = (sum, u64::from(over | over_again));
        }
        let top = self.limbs[len - 1];
        if top != 0 && top != u64::MAX {
            self.limbs.push((top.cast_signed() >> 63).cast_unsigned());
        }
    }

    /// Adds another.
    pub fn merge(&mut self, other: &Self) {
        let Some((&sign, limbs)) = other.limbs.split_last() else { return };
        let place = |i: usize| 64 * (other.first + i as i32);
        limbs.iter().enumerate().for_each(|(i, &limb)| self.add(limb.into(), place(i)));
        self.add(sign.cast_signed().into(), place(limbs.len()));
    }

    fn sign(&self) -> u64 {
        self.limbs.last().copied().unwrap_or(0)
    }

    /// The number without its sign.
    pub fn magnitude(&self) -> Vec<u64> {
        let mut limbs = self.limbs.clone();
        if self.sign() != 0 {
            let mut carry = true;
            for limb in &mut limbs {
                (*limb, carry) = (!*limb).overflowing_add(carry.into());
            }
        }
        limbs
    }

    /// The nearest double, ties to even, and the power of two that it has to be multiplied by.
    pub fn nearest(&self) -> (f64, i32) {
        let (nearest, exponent) = nearest(&self.magnitude(), false);
        (if self.sign() == 0 { nearest } else { -nearest }, exponent + 64 * self.first)
    }

    /// The lowest bit that is set, and how far those reach that differ from the sign; none of zero.
    pub fn span(&self) -> Option<(i32, i32)> {
        let lowest = self.limbs.iter().position(|&limb| limb != 0)?;
        let place = |i: usize| 64 * (self.first + i as i32);
        let sign = self.sign();
        let low = place(lowest) + self.limbs[lowest].trailing_zeros() as i32;
        let highest = self.limbs.iter().rposition(|&limb| limb != sign);
        let high = highest.map_or(low, |i| place(i) + 64 - (self.limbs[i] ^ sign).leading_zeros() as i32);
        Some((low, high))
    }

    /// The 128 bits from a place on.
    pub fn bits_at(&self, at: i32) -> u128 {
        let limb = |i: usize| u128::from(self.limbs.get(i).copied().unwrap_or_else(|| self.sign()));
        let shifts = (0..).map(|i| (i, 64 * (self.first + i as i32) - at)).take_while(|(_, shift)| *shift < 128);
        shifts.filter(|(_, shift)| *shift > -64).fold(0, |bits, (i, shift)| match u32::try_from(shift) {
            Ok(shift) => bits | limb(i) << shift,
            Err(_) => bits | limb(i) >> shift.unsigned_abs(),
        })
    }

    /// As two doubles, of which the first is the nearest, if their sum is all of it.
    pub fn pair(&self) -> Option<(f64, f64)> {
        let mut rest = self.clone();
        let mut next = || {
            let (nearest, exponent) = rest.nearest();
            let double = scale(nearest, exponent);
            if double.is_finite() {
                rest.add_double(-double);
            }
            double
        };
        let pair = (next(), next());
        (pair.0.is_finite() && rest.span().is_none()).then_some(pair)
    }

    /// Writes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        write(self.first, &self.limbs, out);
    }

    /// Reads what was written, and passes over it.
    pub fn read(bytes: &mut &[u8]) -> PolarsResult<Self> {
        let broken = || polars_err!(ComputeError: "a sum of doubles can't be read: it is cut off");
        let (first, rest) = bytes.split_first_chunk::<2>().ok_or_else(broken)?;
        let (&count, rest) = rest.split_first().ok_or_else(broken)?;
        let (limbs, rest) = rest.split_at_checked(8 * usize::from(count)).ok_or_else(broken)?;
        let limbs = limbs.as_chunks::<8>().0.iter().map(|limb| u64::from_le_bytes(*limb)).collect();
        *bytes = rest;
        Ok(Self { first: i16::from_le_bytes(*first).into(), limbs })
    }

    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.limbs.capacity() * 8
    }
}

/// Writes a number: the first limb's place, the number of limbs, and the limbs, as few as say it.
fn write(first: i32, limbs: &[u64], out: &mut Vec<u8>) {
    let (mut first, mut limbs) = (first, limbs);
    while let [0, rest @ ..] = limbs {
        (first, limbs) = (first + 1, rest);
    }
    while let [rest @ .., next, last] = limbs
        && next == last
    {
        limbs = &limbs[..=rest.len()];
    }
    if limbs.is_empty() {
        first = 0;
    }
    out.extend_from_slice(&(first as i16).to_le_bytes());
    out.push(limbs.len() as u8);
    limbs.iter().for_each(|limb| out.extend_from_slice(&limb.to_le_bytes()));
}

/// Writes `whole × 2^exponent` as the [`Wide`] number that it is. The limbs are four at most, and `sign` stands for those above.
pub(super) fn write_whole(whole: &[u64], sign: u64, exponent: i32, out: &mut Vec<u8>) {
    let (first, shift) = (exponent.div_euclid(64), exponent.rem_euclid(64));
    let limb = |i: usize| u128::from(whole.get(i).copied().unwrap_or(sign));
    let below = |i: usize| i.checked_sub(1).map_or(0, limb);
    let limbs: [u64; 6] = std::array::from_fn(|i| ((limb(i) << 64 | below(i)) << shift >> 64) as u64);
    write(first, &limbs, out);
}

/// Where a window begins whose first value has this exponent: in its middle, as others may be smaller or larger.
pub(super) fn window_around(exponent: i32) -> i32 {
    (exponent - ROOM as i32 / 2).min(HIGHEST)
}

/// Where a window begins that holds these bits, with room on both sides: below for terms whose last bits are zeros, which
/// are most, and above for the sum to grow. None if it would be too small.
pub(super) fn window(low: i32, high: i32) -> Option<i32> {
    let spare = BITS - 1 - (high - low);
    let base = (low - (spare / 2).min(53)).min(HIGHEST);
    (spare >= 0 && high - base <= BITS).then_some(base)
}
