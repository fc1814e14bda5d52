//! Joins with a changelog as of each row's time: the row meets that version of its key which is the newest not after its own time.
//!
//! A row waits until the horizon has passed its time, as a version that concerns it may come until then. What it would meet as things
//! are is known meanwhile. A version behind the horizon concerns rows that may have gone on: it says between which times rows may be
//! wrong.

use anabranch_plan::rows::AsOfJoin;
use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::{given, hashes, times};
use super::newest::{Newest, gather};
use super::segment::take;
use super::wait::Waiting;
use super::{Emit, Unsure, either, equal_keys};
use crate::decode::DELETED;
use crate::transform::{column, lower};

/// The versions of a changelog that may be met yet, and the rows that wait for theirs.
#[derive(Debug)]
pub(super) struct AsOf {
    keys: Vec<String>,
    time: String,
    /// Versions are in time up to so much behind the horizon, and so are rows.
    delays: (Micros, Micros),
    waiting: Waiting,
    versions: Newest,
    version_time: String,
    version_schema: SchemaRef,
    condition: Expr,
    is_outer: bool,
    /// The times of the rows that have gone on, if any has.
    gone: Option<(Micros, Micros)>,
    /// By how much other times of a row may be later than the one that it is joined by.
    spread: (Micros, Micros),
}

impl AsOf {
    pub fn new(join: &AsOfJoin, version_schema: SchemaRef) -> Self {
        let (keys, version_keys): (Vec<String>, Vec<String>) = join.keys.iter().cloned().unzip();
        let is_there = equal_keys(&join.keys).and(column(DELETED).not());
        Self {
            keys,
            time: join.times.0.clone(),
            delays: (join.table.delay(&join.times.1), join.rows.delay(&join.times.0)),
            waiting: Waiting::new(join.times.0.clone()),
            versions: Newest::new(version_keys, join.times.1.clone(), 1),
            version_time: join.times.1.clone(),
            version_schema,
            condition: join.condition.iter().fold(is_there, |all, rest| all.and(lower(rest))),
            is_outer: join.is_outer,
            gone: None,
            spread: join.rows.spread(&join.times.0),
        }
    }

    /// Takes new rows and versions. `horizon` is the one that they meet.
    pub fn advance(&mut self, rows: &DataFrame, versions: &DataFrame, horizon: Micros) -> PolarsResult<Unsure> {
        let mut unsure = Unsure::default();
        let in_time = (horizon.saturating_sub(self.delays.0), horizon.saturating_sub(self.delays.1));
        for time in times(versions, &self.version_time)?.into_iter().filter(|time| *time < in_time.0) {
            // Only rows that have gone on could be wrong.
            if let Some((first, last)) = self.gone.filter(|(_, last)| time <= *last) {
                unsure = unsure.with(time.max(first), last);
            }
        }
        for time in times(rows, &self.time)?.into_iter().filter(|time| *time < in_time.1) {
            unsure = unsure.with(time, time);
        }
        self.versions.add(versions)?;
        self.waiting.add(rows)?;
        Ok(unsure.widened(self.spread))
    }

    /// Goes on to a horizon: whoever comes later and is in time isn't earlier. Gives the rows whose versions are known.
    pub fn settle(&mut self, horizon: Micros, emit: &mut Emit<'_>) -> PolarsResult<()> {
        let least = horizon.saturating_sub(self.delays.0);
        if let Some(rows) = self.waiting.settle(least)? {
            for time in times(&rows, &self.time)? {
                self.gone = either(self.gone, Some((time, time)));
            }
            emit(self.joined(&rows)?)?;
        }
        // No row that comes or waits is earlier.
        self.versions.forget(least.min(horizon.saturating_sub(self.delays.1)))
    }

    /// What the rows that wait make as things are, and other rows that may change yet.
    pub fn pending(&self, others: DataFrame) -> PolarsResult<DataFrame> {
        self.joined(&self.waiting.with(others)?)
    }

    /// Rows with the versions that they meet.
    fn joined(&self, rows: &DataFrame) -> PolarsResult<DataFrame> {
        let hashes = hashes(rows, &self.keys)?;
        let (times, keys, mut look) = (times(rows, &self.time)?, given(rows, &self.keys)?, self.versions.look()?);
        let mut order: Vec<usize> = (0..rows.height()).collect();
        order.sort_unstable_by_key(|&row| hashes[row]);
        let mut met = vec![None; rows.height()];
        for row in order {
            met[row] = look.find(&keys, row, hashes[row], times[row], 1).first().copied();
        }
        let versions = gather(&look.frames(), &self.version_schema, &met)?;
        let mut joined = rows.hstack(versions.columns())?;
        if !self.is_outer {
            joined = joined.lazy().filter(self.condition.clone()).collect()?;
            joined.drop_in_place(DELETED)?;
            return Ok(joined);
        }
        // A version that doesn't fit is as good as none.
        let holds = joined.lazy().select([self.condition.clone().alias("holds")]).collect()?;
        let holds = holds.column("holds")?.bool()?.iter().map(|holds| holds == Some(true));
        let order = holds.enumerate().map(|(row, holds)| if holds { row as IdxSize + 1 } else { 0 });
        let with_none = DataFrame::full_null(&self.version_schema, 1).vstack(&versions)?;
        let mut joined = rows.hstack(take(&with_none, order.collect())?.columns())?;
        joined.drop_in_place(DELETED)?;
        Ok(joined)
    }

    /// Behind which horizon each of the rows that wait goes on.
    pub fn until(&self, until: &mut Vec<Micros>) {
        until.extend(self.waiting.times().map(|time| time.saturating_add(self.delays.0)));
    }

    /// Gives back the memory of rows that have gone on.
    pub fn compact(&mut self) -> PolarsResult<()> {
        self.waiting.compact()
    }

    /// How many rows are kept.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.versions.segments.len()
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.waiting.bytes() + self.versions.segments.bytes()
    }

    /// The rows that wait, the versions, and from when to when rows have gone on.
    pub fn state(&self, rows: &Schema) -> PolarsResult<[DataFrame; 3]> {
        let waiting = self.waiting.frame(rows)?;
        let (first, last): (Vec<Micros>, Vec<Micros>) = self.gone.into_iter().unzip();
        let gone = [Column::new("first".into(), first), Column::new("last".into(), last)];
        let gone = DataFrame::new(gone[0].len(), gone.into())?;
        Ok([waiting, self.versions.segments.frame(&self.version_schema)?, gone])
    }

    /// Keeps what another one kept.
    pub fn resume(&mut self, [waiting, versions, gone]: [DataFrame; 3]) -> PolarsResult<()> {
        self.waiting.add(&waiting)?;
        self.versions.add(&versions)?;
        let time = |name: &str| PolarsResult::Ok(gone.column(name)?.i64()?.iter().next().flatten());
        self.gone = time("first")?.zip(time("last")?);
        Ok(())
    }
}
