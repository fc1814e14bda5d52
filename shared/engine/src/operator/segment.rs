//! Rows that are kept to be found again, sorted: those of one key lie together, in order of time.
//!
//! New rows make a segment of their own. Segments of like size are merged into one, as a log-structured merge tree does it (O'Neil et al.
//! 1996), so there are few to look into, and each row is moved a logarithmic number of times.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::{Position, given};
use crate::aggregate::keys::Given;
use crate::columnar::compact;

/// Sorted rows.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// The rows, in order of hash, time and position.
    pub rows: DataFrame,
    /// Of each row, the hash of its key. Rows of different keys may have the same one.
    pub hashes: Vec<u64>,
    /// Of each row, its time.
    pub times: Vec<Micros>,
    /// From the first time to the last.
    pub span: (Micros, Micros),
    /// Whether each row has been dealt with; empty if nobody asks.
    pub done: Vec<bool>,
    /// The rows in order of time, and how many of them are settled.
    by_time: (Vec<IdxSize>, usize),
    /// The key columns, once they are asked for.
    keys: OnceLock<Arc<Vec<Given>>>,
}

impl Segment {
    /// Sorts rows. `hashes` and `times` are theirs.
    pub fn new(rows: &DataFrame, hashes: &[u64], times: &[Micros]) -> PolarsResult<Self> {
        let position = Position::of(rows)?;
        let mut order: Vec<(u64, Micros, IdxSize)> =
            hashes.iter().zip(times).zip(0..).map(|((&hash, &time), row)| (hash, time, row)).collect();
        order.sort_unstable_by(|a, b| {
            let by_position = || position.compare(a.2 as usize, &position, b.2 as usize);
            (a.0, a.1).cmp(&(b.0, b.1)).then_with(by_position).then(a.2.cmp(&b.2))
        });
        let (hashes, times) = order.iter().map(|(hash, time, _)| (*hash, *time)).unzip();
        Self::sorted(rows, order.into_iter().map(|(.., row)| row).collect(), hashes, times, Vec::new())
    }

    fn sorted(
        rows: &DataFrame,
        order: Vec<IdxSize>,
        hashes: Vec<u64>,
        times: Vec<Micros>,
        done: Vec<bool>,
    ) -> PolarsResult<Self> {
        let rows = take(rows, order)?;
        let span =
            times.iter().fold((Micros::MAX, Micros::MIN), |(first, last), &time| (first.min(time), last.max(time)));
        let (by_time, keys) = (Default::default(), OnceLock::new());
        let mut segment = Self { rows, hashes, times, span, done: Vec::new(), by_time, keys };
        if !done.is_empty() {
            segment.watch(done);
        }
        Ok(segment)
    }

    /// From now on it is known of each row whether it has been dealt with.
    pub fn watch(&mut self, done: Vec<bool>) {
        let mut by_time: Vec<IdxSize> = (0..self.len() as IdxSize).collect();
        by_time.sort_unstable_by_key(|&row| self.times[row as usize]);
        (self.done, self.by_time) = (done, (by_time, 0));
    }

    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// The bytes that it takes, about.
    fn bytes(&self) -> usize {
        let (hash, time, done, by_time) = (8, 8, 1, if self.done.is_empty() { 0 } else { 4 });
        self.rows.estimated_size() + self.len() * (hash + time + done + by_time)
    }

    /// Of each row of a watched segment, whether it has been dealt with or is settled.
    pub fn finished(&self) -> Vec<bool> {
        let (order, settled) = &self.by_time;
        let mut finished = self.done.clone();
        order[..*settled].iter().for_each(|&row| finished[row as usize] = true);
        finished
    }

    /// Settles the rows of a watched segment that are earlier than `least`: those of them that haven't been dealt with, if any.
    pub fn settle(&mut self, least: Micros) -> PolarsResult<Option<DataFrame>> {
        let Self { times, done, by_time: (order, next), .. } = self;
        let settled = order[*next..].partition_point(|&row| times[row as usize] < least);
        let open: Vec<IdxSize> =
            order[*next..*next + settled].iter().copied().filter(|&row| !done[row as usize]).collect();
        *next += settled;
        if open.is_empty() { Ok(None) } else { take(&self.rows, open).map(Some) }
    }

    /// The sum of two segments.
    fn merge(one: &Self, other: &Self) -> PolarsResult<Self> {
        let (positions, mut a, mut b) = ((Position::of(&one.rows)?, Position::of(&other.rows)?), 0, 0);
        let is_watched = !one.done.is_empty() || !other.done.is_empty();
        let (mut hashes, mut times, mut order, mut done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while a < one.len() || b < other.len() {
            let is_first = match (one.at(a), other.at(b)) {
                (Some(x), Some(y)) => {
                    x.cmp(&y).then_with(|| positions.0.compare(a, &positions.1, b)) != Ordering::Greater
                }
                (x, _) => x.is_some(),
            };
            let (segment, row, place) = if is_first { (one, a, a) } else { (other, b, one.len() + b) };
            hashes.push(segment.hashes[row]);
            times.push(segment.times[row]);
            order.push(place as IdxSize);
            if is_watched {
                done.push(segment.done[row]);
            }
            if is_first { a += 1 } else { b += 1 }
        }
        let mut rows = one.rows.vstack(&other.rows)?;
        rows.rechunk_mut();
        Self::sorted(&rows, order, hashes, times, done)
    }

    fn at(&self, row: usize) -> Option<(u64, Micros)> {
        Some((*self.hashes.get(row)?, self.times[row]))
    }

    /// The same without the rows of which `keeps` says no, in no more memory than it needs.
    pub fn filter(&self, keeps: impl Fn(&Self, usize) -> bool) -> PolarsResult<Self> {
        let kept: Vec<usize> = (0..self.len()).filter(|&row| keeps(self, row)).collect();
        let done = if self.done.is_empty() { Vec::new() } else { kept.iter().map(|&row| self.done[row]).collect() };
        let (hashes, times) = kept.iter().map(|&row| (self.hashes[row], self.times[row])).unzip();
        let segment = Self::sorted(&self.rows, kept.iter().map(|&row| row as IdxSize).collect(), hashes, times, done)?;
        Ok(Self { rows: compact(segment.rows)?, ..segment })
    }

    /// The key columns, which have these names.
    pub fn keys(&self, names: &[String]) -> PolarsResult<Arc<Vec<Given>>> {
        if let Some(keys) = self.keys.get() {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(given(&self.rows, names)?);
        Ok(Arc::clone(self.keys.get_or_init(|| keys)))
    }

    /// The rows of a hash, of which there are none before `from`.
    pub fn of_hash(&self, hash: u64, from: usize) -> Range<usize> {
        // Hashes are spread evenly, so where one stands can be guessed.
        let guess = ((u128::from(hash) * self.len() as u128) >> 64) as usize;
        let start = seek(&self.hashes, from, guess, |other| *other < hash);
        start..seek(&self.hashes, start, start, |other| *other <= hash)
    }

    /// Of the rows of a hash, those whose times are from `from` to `to`.
    pub fn within(&self, rows: Range<usize>, from: Micros, to: Micros) -> Range<usize> {
        let times = &self.times[rows.clone()];
        let start = seek(times, 0, 0, |time| *time < from);
        rows.start + start..rows.start + seek(times, start, start, |time| *time <= to)
    }
}

/// Rows by their numbers.
pub(super) fn take(rows: &DataFrame, order: Vec<IdxSize>) -> PolarsResult<DataFrame> {
    rows.take(&IdxCa::from_vec(PlSmallStr::EMPTY, order))
}

/// The first place at or behind `from` at which `is_before` doesn't hold, in a list in which it holds up to there. It is looked for
/// around `guess`, in ever longer steps.
fn seek<T>(list: &[T], from: usize, guess: usize, is_before: impl Fn(&T) -> bool) -> usize {
    let guess = guess.clamp(from, list.len());
    // It lies from `low` to `high`.
    let (mut low, mut high, mut step) = (from, list.len(), 1);
    let mut at = guess;
    if list.get(guess).is_some_and(&is_before) {
        while at < list.len() && is_before(&list[at]) {
            low = at + 1;
            at += step;
            step *= 2;
        }
        high = at.min(list.len());
    } else {
        while at > from && !is_before(&list[at - 1]) {
            high = at - 1;
            at = at.saturating_sub(step).max(from);
            step *= 2;
        }
        low = at;
    }
    low + list[low..high].partition_point(is_before)
}

/// Segments, the older first.
#[derive(Debug, Clone, Default)]
pub(super) struct Segments(pub Vec<Segment>);

impl Segments {
    /// Adds new rows.
    pub fn push(&mut self, segment: Segment) {
        if segment.len() > 0 {
            self.0.push(segment);
        }
    }

    /// Merges the last segments while they are alike in size. `clean` filters a segment that was made, as it needs less memory then.
    pub fn merge(&mut self, clean: impl Fn(Segment) -> PolarsResult<Segment>) -> PolarsResult<()> {
        while let [.., longer, last] = self.0.as_slice()
            && longer.len() < 2 * last.len()
        {
            let merged = clean(Segment::merge(longer, last)?)?;
            self.0.truncate(self.0.len() - 2);
            self.push(merged);
        }
        Ok(())
    }

    /// All segments in one, if there are any.
    pub fn sum(&self) -> PolarsResult<Option<Segment>> {
        let mut all: Option<Segment> = None;
        // The longest comes last.
        for segment in self.0.iter().rev() {
            all = Some(match all {
                None => segment.clone(),
                Some(sum) => Segment::merge(segment, &sum)?,
            });
        }
        Ok(all)
    }

    /// Forgets rows that are earlier than `least`, at least all of a segment that has no other.
    pub fn forget_before(&mut self, least: Micros) -> PolarsResult<()> {
        self.0.retain(|segment| segment.span.1 >= least);
        let is_kept = |segment: &Segment, row: usize| segment.times[row] >= least;
        for segment in &mut self.0 {
            // About half of it is too old.
            if least.saturating_sub(segment.span.0) > segment.span.1.saturating_sub(least) {
                *segment = segment.filter(is_kept)?;
            }
        }
        self.merge(|segment| segment.filter(is_kept))
    }

    /// The times of all rows.
    pub fn times(&self) -> impl Iterator<Item = Micros> {
        self.0.iter().flat_map(|segment| segment.times.iter().copied())
    }

    /// Forgets all rows that are earlier than `least`, whatever that costs.
    pub fn forget_all_before(&mut self, least: Micros) -> PolarsResult<()> {
        for segment in self.0.iter_mut().filter(|segment| segment.span.0 < least) {
            *segment = segment.filter(|segment, row| segment.times[row] >= least)?;
        }
        self.0.retain(|segment| segment.len() > 0);
        Ok(())
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(Segment::len).sum()
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Segment::bytes).sum()
    }

    /// All rows, which have these columns, without a copy.
    pub fn frame(&self, schema: &Schema) -> PolarsResult<DataFrame> {
        let mut all = DataFrame::empty_with_schema(schema);
        for segment in &self.0 {
            all.vstack_mut(&segment.rows)?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_found_from_wherever_it_is_looked_for(
            mut list in proptest::collection::vec(0_u64..50, 0..60), wanted in 0_u64..52, guess in 0_usize..80, from in 0_usize..60,
        ) {
            list.sort_unstable();
            let place = list.partition_point(|x| *x < wanted);
            let from = from.min(place);
            prop_assert_eq!(seek(&list, from, guess, |x| *x < wanted), place);
        }
    }
}
