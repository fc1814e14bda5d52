//! Interval joins: pairs of rows with equal keys, whose times differ by no more than they may.
//!
//! A pair is made when the later of its rows comes, in whatever order they do. So the pairs of a stretch of the log are those of which
//! at least one row is in it and the other in it or before it, and stretches add up.
//!
//! Rows are kept until the horizon has passed all times at which a partner could come that is in time. A row behind the horizon may
//! have missed partners: it says between which times pairs may be lacking. Of an outer join, a left row without a partner comes once
//! it can't find one any more. One that came behind the horizon never does, as its partner may have gone before.

use anabranch_plan::rows::IntervalJoin;
use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::{hashes, have_key, no_key, times};
use super::segment::{Segment, Segments, take};
use super::{Emit, Unsure, equal_keys};
use crate::transform::lower;

/// At most so many pairs are looked at in one frame, but for those of one row.
const PAIRS: usize = 1 << 18;

/// In a frame of pairs, the left row's place in its segment.
const LEFT: &str = "__left";

/// In a frame of left rows that are kept, whether each needs to be given without a partner no more.
const FINISHED: &str = "__finished";

/// The rows of an interval join that may find partners yet.
#[derive(Debug)]
pub(super) struct Interval {
    left: Side,
    right: Side,
    /// By how much the right row may be later than the left one: from, to.
    within: (Micros, Micros),
    /// By how much the times of a pair may be later than its left row's, and than its right row's.
    spreads: ((Micros, Micros), (Micros, Micros)),
    /// What holds of a pair besides: the keys are equal, not their hashes alone, and so does the rest of the condition.
    condition: Expr,
    /// The columns of right rows, if left rows come without one too.
    outer: Option<SchemaRef>,
}

#[derive(Debug)]
struct Side {
    keys: Vec<String>,
    time: String,
    /// Rows are in time up to so much behind the horizon.
    delay: Micros,
    segments: Segments,
}

impl Side {
    /// New rows. Those without a key find no partner; they are left out, unless all are wanted.
    fn segment(&self, rows: &DataFrame, all: bool) -> PolarsResult<Segment> {
        let have = have_key(rows, &self.keys)?;
        if !all {
            let rows = rows.filter(&have)?;
            return Segment::new(&rows, &hashes(&rows, &self.keys)?, &times(&rows, &self.time)?);
        }
        let found = hashes(rows, &self.keys)?.into_iter().zip(have.iter()).enumerate();
        let found: Vec<u64> =
            found.map(|(row, (hash, have))| if have == Some(true) { hash } else { no_key(row) }).collect();
        Segment::new(rows, &found, &times(rows, &self.time)?)
    }
}

impl Interval {
    pub fn new(join: &IntervalJoin, right: SchemaRef) -> Self {
        let side = |keys: Vec<String>, time: &String, delay: Micros| Side {
            keys,
            time: time.clone(),
            delay,
            segments: Segments::default(),
        };
        let (left_keys, right_keys) = join.keys.iter().cloned().unzip();
        let (from, to) = join.within;
        let (left_times, right_times) = (join.left.spread(&join.times.0), join.right.spread(&join.times.1));
        let of_left =
            (left_times.0.min(from.saturating_add(right_times.0)), left_times.1.max(to.saturating_add(right_times.1)));
        let of_right =
            (right_times.0.min(left_times.0.saturating_sub(to)), right_times.1.max(left_times.1.saturating_sub(from)));
        Self {
            spreads: (of_left, of_right),
            left: side(left_keys, &join.times.0, join.left.delay(&join.times.0)),
            right: side(right_keys, &join.times.1, join.right.delay(&join.times.1)),
            within: join.within,
            condition: join.condition.iter().fold(equal_keys(&join.keys), |all, rest| all.and(lower(rest))),
            outer: join.is_outer.then_some(right),
        }
    }

    /// Takes new rows and gives the pairs that they make. `horizon` is the one that they meet.
    pub fn advance(
        &mut self,
        left: &DataFrame,
        right: &DataFrame,
        horizon: Micros,
        emit: &mut Emit<'_>,
    ) -> PolarsResult<Unsure> {
        if left.height() == 0 && right.height() == 0 {
            return Ok(Unsure::default());
        }
        let mut new_left = self.left.segment(left, self.outer.is_some())?;
        let new_right = self.right.segment(right, false)?;
        let is_late = |side: &Side, time: Micros| time < horizon.saturating_sub(side.delay);
        let late = |side: &Side, segment: &Segment| {
            let times = segment.times.iter().filter(|&&time| is_late(side, time));
            times.fold(Unsure::default(), |unsure, &time| unsure.with(time, time))
        };
        let (late_left, late_right) = (late(&self.left, &new_left), late(&self.right, &new_right));
        let unsure = self.without_left(late_left).and(self.without_right(late_right));
        if self.outer.is_some() {
            let late = new_left.times.iter().map(|&time| is_late(&self.left, time)).collect();
            new_left.watch(late);
        }
        let mut pairs = Pairs { within: self.within, condition: &self.condition, emit };
        for kept in self.right.segments.0.iter().chain([&new_right]) {
            for row in pairs.find(&new_left, kept, true)? {
                new_left.done[row as usize] = true;
            }
        }
        for kept in &mut self.left.segments.0 {
            for row in pairs.find(kept, &new_right, false)? {
                kept.done[row as usize] = true;
            }
        }
        self.left.segments.push(new_left);
        self.right.segments.push(new_right);
        Ok(unsure)
    }

    /// Goes on to a horizon: whoever comes later and is in time isn't earlier. Gives the left rows that stay without a partner.
    pub fn settle(&mut self, horizon: Micros, emit: &mut Emit<'_>) -> PolarsResult<()> {
        let (left, right) = self.least(horizon);
        if let Some(schema) = &self.outer {
            for segment in &mut self.left.segments.0 {
                if let Some(alone) = segment.settle(left)? {
                    let nulls = DataFrame::full_null(schema, alone.height());
                    emit(alone.hstack(nulls.columns())?)?;
                }
            }
        }
        self.left.segments.forget_before(left)?;
        self.right.segments.forget_before(right)
    }

    /// Behind which horizon each of the rows can find no partner any more.
    pub fn until(&self, until: &mut Vec<Micros>) {
        let (from, to) = self.within;
        let (left, right) = (self.right.delay.saturating_add(to), self.left.delay.saturating_sub(from));
        until.extend(self.left.segments.times().map(|time| time.saturating_add(left)));
        until.extend(self.right.segments.times().map(|time| time.saturating_add(right)));
    }

    /// Gives back the memory of rows that can find no partner behind a horizon.
    pub fn compact(&mut self, horizon: Micros) -> PolarsResult<()> {
        let (left, right) = self.least(horizon);
        self.left.segments.forget_all_before(left)?;
        self.right.segments.forget_all_before(right)
    }

    /// The least times of rows that may find a partner yet, of either side.
    fn least(&self, horizon: Micros) -> (Micros, Micros) {
        let (from, to) = self.within;
        let behind = |side: &Side| horizon.saturating_sub(side.delay);
        (behind(&self.right).saturating_sub(to), behind(&self.left).saturating_add(from))
    }

    /// The pairs that rows make which may change yet.
    pub fn pending(&self, left: &DataFrame, right: &DataFrame, schema: &Schema) -> PolarsResult<DataFrame> {
        let mut all = DataFrame::empty_with_schema(schema);
        if left.height() == 0 && right.height() == 0 {
            return Ok(all);
        }
        let (left, right) = (self.left.segment(left, false)?, self.right.segment(right, false)?);
        let mut emit = |rows: DataFrame| all.vstack_mut(&rows).map(|_| ());
        let mut pairs = Pairs { within: self.within, condition: &self.condition, emit: &mut emit };
        for kept in self.right.segments.0.iter().chain([&right]) {
            pairs.find(&left, kept, true)?;
        }
        for kept in &self.left.segments.0 {
            pairs.find(kept, &right, false)?;
        }
        Ok(all)
    }

    /// What lacks if left rows of some times do.
    pub fn without_left(&self, left: Unsure) -> Unsure {
        left.widened(self.spreads.0)
    }

    /// What lacks, or is without a partner, if right rows of some times lack.
    pub fn without_right(&self, right: Unsure) -> Unsure {
        right.widened(self.spreads.1)
    }

    /// How many rows are kept.
    pub fn len(&self) -> usize {
        self.left.segments.len() + self.right.segments.len()
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.left.segments.bytes() + self.right.segments.bytes()
    }

    /// The rows that are kept.
    pub fn state(&self, left: &Schema, right: &Schema) -> PolarsResult<[DataFrame; 2]> {
        let mut lefts = self.left.segments.frame(left)?;
        if self.outer.is_some() {
            let finished: Vec<bool> = self.left.segments.0.iter().flat_map(Segment::finished).collect();
            lefts.with_column(Column::new(FINISHED.into(), finished))?;
        }
        Ok([lefts, self.right.segments.frame(right)?])
    }

    /// Keeps the rows that another one kept.
    pub fn resume(&mut self, [left, right]: [DataFrame; 2]) -> PolarsResult<()> {
        let mut left = self.left.segment(&left, self.outer.is_some())?;
        if self.outer.is_some() {
            let finished = left.rows.drop_in_place(FINISHED)?;
            left.watch(finished.bool()?.iter().map(|finished| finished == Some(true)).collect());
        }
        self.left.segments.push(left);
        self.right.segments.push(self.right.segment(&right, false)?);
        Ok(())
    }
}

/// What is looked for in two segments.
struct Pairs<'a, 'b> {
    within: (Micros, Micros),
    condition: &'a Expr,
    emit: &'a mut Emit<'b>,
}

impl Pairs<'_, '_> {
    /// Finds the pairs of two segments, by looking for each row of the left one in the right one, or the other way round. The left rows
    /// that have a partner, if that matters.
    fn find(&mut self, left: &Segment, right: &Segment, by_left: bool) -> PolarsResult<Vec<IdxSize>> {
        let (from, to) = self.within;
        let (mut lefts, mut rights, mut matched) = (Vec::new(), Vec::new(), Vec::new());
        let (rows, from, to) = if by_left { (left.len(), from, to) } else { (right.len(), -to, -from) };
        let (probe, kept) = if by_left { (left, right) } else { (right, left) };
        let (mut group, mut hash) = (0..0, None);
        for row in 0..rows {
            if hash != Some(probe.hashes[row]) {
                hash = Some(probe.hashes[row]);
                // The rows of a hash that is greater lie behind.
                group = kept.of_hash(probe.hashes[row], group.end);
            }
            let time = probe.times[row];
            let found = kept.within(group.clone(), time.saturating_add(from), time.saturating_add(to));
            // The next row of this hash isn't earlier, so its partners aren't either.
            group.start = found.start;
            let (ones, others) = if by_left { (&mut lefts, &mut rights) } else { (&mut rights, &mut lefts) };
            ones.resize(ones.len() + found.len(), row as IdxSize);
            others.extend(found.map(|row| row as IdxSize));
            if lefts.len() >= PAIRS {
                matched.extend(self.check(left, right, &mut lefts, &mut rights)?);
            }
        }
        matched.extend(self.check(left, right, &mut lefts, &mut rights)?);
        Ok(matched)
    }

    /// Gives those of the pairs for which the condition holds. The left rows that are among them, if it matters.
    fn check(
        &mut self,
        left: &Segment,
        right: &Segment,
        lefts: &mut Vec<IdxSize>,
        rights: &mut Vec<IdxSize>,
    ) -> PolarsResult<Vec<IdxSize>> {
        if lefts.is_empty() {
            return Ok(Vec::new());
        }
        let is_watched = !left.done.is_empty();
        let numbers = is_watched.then(|| Column::new(LEFT.into(), lefts.as_slice()));
        let mut pairs = take(&left.rows, std::mem::take(lefts))?;
        pairs.hstack_mut(take(&right.rows, std::mem::take(rights))?.columns())?;
        pairs.hstack_mut(numbers.as_slice())?;
        let mut pairs = pairs.lazy().filter(self.condition.clone()).collect()?;
        let matched = match is_watched {
            true => pairs.drop_in_place(LEFT)?.idx()?.iter().flatten().collect(),
            false => Vec::new(),
        };
        if pairs.height() > 0 {
            (self.emit)(pairs)?;
        }
        Ok(matched)
    }
}
