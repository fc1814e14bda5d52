//! `LAG`: what stood some rows before a row, among the rows of its key, in order of time and of position.
//!
//! A row waits until the horizon has passed its time, as one that belongs before it may come until then. What it would get as things
//! are is known meanwhile. A row behind the horizon that belongs before rows which have gone on comes too late to be made: the times
//! between which rows may be wrong or lacking are those from its own to that of the last of its key. The rows to come see it.

use std::collections::BTreeSet;
use std::ops::Range;

use anabranch_plan::rows::Lag as Plan;
use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::{Position, given, hashes, is_position, times};
use super::newest::{Newest, Place, gather};
use super::segment::Segment;
use super::wait::Waiting;
use super::{Emit, Unsure};
use crate::aggregate::keys::Given;
use crate::transform::lower;

/// The rows that wait, and those that stood last before them.
#[derive(Debug)]
pub(super) struct Lag {
    keys: Vec<String>,
    time: String,
    /// Rows are in time up to so much behind the horizon.
    delay: Micros,
    /// By how much other times of a row may be later than the one that it is ordered by.
    spread: (Micros, Micros),
    waiting: Waiting,
    last: Newest,
    lagged: Vec<Lagged>,
    /// The columns of a row that rows behind it may ask for.
    needed: Vec<PlSmallStr>,
}

/// A column that is looked up.
#[derive(Debug)]
struct Lagged {
    name: PlSmallStr,
    /// Which column, and its type.
    of: Schema,
    back: usize,
    default: Option<Expr>,
}

impl Lag {
    pub fn new(plan: &Plan, rows: &Schema) -> PolarsResult<Self> {
        let lagged = plan.columns.iter().map(|column| {
            let of: PlSmallStr = column.of.as_str().into();
            let data_type = rows.try_get(&of)?.clone();
            Ok(Lagged {
                name: column.name.as_str().into(),
                of: Schema::from_iter([(of, data_type)]),
                back: column.back,
                default: column.default.as_ref().map(lower),
            })
        });
        let most = plan.columns.iter().map(|column| column.back).max().unwrap_or(1);
        let asked = plan.columns.iter().map(|column| &column.of).chain(&plan.keys).chain([&plan.time]);
        let asked: BTreeSet<&str> = asked.map(String::as_str).collect();
        let is_needed = |name: &&PlSmallStr| is_position(name) || asked.contains(name.as_str());
        Ok(Self {
            keys: plan.keys.clone(),
            time: plan.time.clone(),
            delay: plan.rows.delay(&plan.time),
            spread: plan.rows.spread(&plan.time),
            waiting: Waiting::new(plan.time.clone()),
            last: Newest::new(plan.keys.clone(), plan.time.clone(), most),
            lagged: lagged.collect::<PolarsResult<_>>()?,
            needed: rows.iter_names().filter(is_needed).cloned().collect(),
        })
    }

    /// Takes new rows. `horizon` is the one that they meet.
    pub fn advance(&mut self, rows: &DataFrame, horizon: Micros) -> PolarsResult<Unsure> {
        let (in_time, times, mut unsure) =
            (horizon.saturating_sub(self.delay), times(rows, &self.time)?, Unsure::default());
        if times.iter().all(|time| *time >= in_time) {
            return self.waiting.add(rows).map(|()| unsure);
        }
        let (hashes, given, mut look) = (hashes(rows, &self.keys)?, given(rows, &self.keys)?, self.last.look()?);
        let position = Position::of(rows)?;
        let mut order: Vec<usize> = (0..rows.height()).filter(|&row| times[row] < in_time).collect();
        order.sort_unstable_by_key(|&row| hashes[row]);
        let mut fits = vec![true; rows.height()];
        for row in order {
            if let Some(&last) = look.find(&given, row, hashes[row], Micros::MAX, 1).first()
                && look.is_before(times[row], &position, row, last)
            {
                fits[row] = false;
                unsure = unsure.with(times[row], look.time(last));
            }
        }
        let fits: BooleanChunked = fits.into_iter().collect();
        self.keep(self.sorted(&rows.filter(&!&fits)?)?)?;
        self.waiting.add(&rows.filter(&fits)?)?;
        Ok(unsure.widened(self.spread))
    }

    /// Goes on to a horizon: whoever comes later and is in time isn't earlier. Gives the rows before which nothing can come any more.
    pub fn settle(&mut self, horizon: Micros, emit: &mut Emit<'_>) -> PolarsResult<()> {
        let Some(rows) = self.waiting.settle(horizon.saturating_sub(self.delay))? else { return Ok(()) };
        let segment = self.sorted(&rows)?;
        emit(self.of(&segment)?)?;
        self.keep(segment)
    }

    /// Keeps rows for those to come.
    fn keep(&mut self, mut segment: Segment) -> PolarsResult<()> {
        segment.rows = segment.rows.select(self.needed.iter().cloned())?;
        self.last.segments.push(segment);
        self.last.forget(Micros::MAX)
    }

    /// What the rows that wait make as things are, and other rows that may change yet.
    pub fn pending(&self, others: DataFrame) -> PolarsResult<DataFrame> {
        self.of(&self.sorted(&self.waiting.with(others)?)?)
    }

    fn sorted(&self, rows: &DataFrame) -> PolarsResult<Segment> {
        Segment::new(rows, &hashes(rows, &self.keys)?, &times(rows, &self.time)?)
    }

    /// Rows with what stood before them: rows of the same segment, or those that went before.
    fn of(&self, segment: &Segment) -> PolarsResult<DataFrame> {
        let (given, mut look) = (segment.keys(&self.keys)?, self.last.look()?);
        let most = self.lagged.iter().map(|lagged| lagged.back).max().unwrap_or(0);
        let mut places: Vec<Vec<Option<Place>>> = self.lagged.iter().map(|_| vec![None; segment.len()]).collect();
        let mut begin = 0;
        while begin < segment.len() {
            let end = begin + segment.hashes[begin..].partition_point(|hash| *hash == segment.hashes[begin]);
            for group in groups(&given, begin..end) {
                // The frame of this segment is the first, those of the others follow.
                let first = group[0];
                let before = look.find(&given, first, segment.hashes[first], Micros::MAX, most);
                for (i, &row) in group.iter().enumerate() {
                    for (lagged, places) in self.lagged.iter().zip(&mut places) {
                        places[row] = match i.checked_sub(lagged.back) {
                            Some(other) => Some((0, group[other])),
                            None => before.get(lagged.back - i - 1).map(|&(segment, row)| (segment + 1, row)),
                        };
                    }
                }
            }
            begin = end;
        }
        let frames: Vec<&DataFrame> = [&segment.rows].into_iter().chain(look.frames()).collect();
        let mut rows = segment.rows.clone();
        for (lagged, places) in self.lagged.iter().zip(places) {
            let found = gather(&frames, &lagged.of, &places)?;
            let column = found.columns()[0].clone().with_name(lagged.name.clone());
            rows.with_column(column)?;
            if let Some(default) = &lagged.default {
                let is_first: BooleanChunked = places.iter().map(Option::is_none).collect();
                let with = rows.clone().lazy().select([default.clone().alias(lagged.name.clone())]).collect()?;
                let with = with.columns()[0].new_from_index(0, rows.height());
                let column = rows.column(&lagged.name)?.zip_with(&!is_first, &with)?;
                rows.with_column(column)?;
            }
        }
        Ok(rows)
    }

    /// Behind which horizon each of the rows that wait goes on.
    pub fn until(&self, until: &mut Vec<Micros>) {
        until.extend(self.waiting.times().map(|time| time.saturating_add(self.delay)));
    }

    /// Gives back the memory of rows that have gone on.
    pub fn compact(&mut self) -> PolarsResult<()> {
        self.waiting.compact()
    }

    /// How many rows are kept.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.last.segments.len()
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.waiting.bytes() + self.last.segments.bytes()
    }

    /// The rows that wait, and those that stood last before them.
    pub fn state(&self, rows: &Schema) -> PolarsResult<[DataFrame; 2]> {
        let needed = rows.try_project(&self.needed)?;
        Ok([self.waiting.frame(rows)?, self.last.segments.frame(&needed)?])
    }

    /// Keeps the rows that another one kept.
    pub fn resume(&mut self, [waiting, last]: [DataFrame; 2]) -> PolarsResult<()> {
        self.waiting.add(&waiting)?;
        self.last.add(&last)
    }
}

/// The rows of one hash by their keys, each key's in their order. Nearly always it is one key.
fn groups(given: &[Given], rows: Range<usize>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| Given::are_same(given, row, given, group[0])) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}
