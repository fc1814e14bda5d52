//! Rows that wait until the horizon has passed their time.

use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::times;
use super::segment::take;
use crate::columnar::compact;

/// Rows that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    time: String,
    parts: Vec<Part>,
}

/// Rows in order of time.
#[derive(Debug)]
struct Part {
    rows: DataFrame,
    /// The times of these rows, behind those of rows that have gone on.
    times: Vec<Micros>,
    gone: usize,
}

impl Waiting {
    pub fn new(time: String) -> Self {
        Self { time, parts: Vec::new() }
    }

    /// Adds rows.
    pub fn add(&mut self, rows: &DataFrame) -> PolarsResult<()> {
        if rows.height() == 0 {
            return Ok(());
        }
        let mut part = self.sorted(rows)?;
        // Few parts: each row is moved a logarithmic number of times.
        while let Some(last) = self.parts.pop_if(|last| last.rows.height() < 2 * part.rows.height()) {
            part = self.sorted(&last.rows.vstack(&part.rows)?)?;
        }
        self.parts.push(part);
        Ok(())
    }

    fn sorted(&self, rows: &DataFrame) -> PolarsResult<Part> {
        let times = times(rows, &self.time)?;
        let mut order: Vec<IdxSize> = (0..times.len() as IdxSize).collect();
        order.sort_by_key(|&row| times[row as usize]);
        let mut rows = rows.clone();
        rows.rechunk_mut();
        let times = order.iter().map(|&row| times[row as usize]).collect();
        Ok(Part { rows: compact(take(&rows, order)?)?, times, gone: 0 })
    }

    /// Takes out the rows that are earlier than `least`, if there are any.
    pub fn settle(&mut self, least: Micros) -> PolarsResult<Option<DataFrame>> {
        let mut all: Option<DataFrame> = None;
        for part in &mut self.parts {
            let settled = part.times[part.gone..].partition_point(|time| *time < least);
            if settled == 0 {
                continue;
            }
            let (gone, left) = part.rows.split_at(settled as i64);
            part.rows = left;
            part.gone += settled;
            match &mut all {
                None => all = Some(gone),
                Some(all) => drop(all.vstack_mut(&gone)?),
            }
        }
        self.parts.retain(|part| part.rows.height() > 0);
        if let Some(all) = &mut all {
            all.rechunk_mut();
        }
        Ok(all)
    }

    /// All of them, beside other rows.
    pub fn with(&self, others: DataFrame) -> PolarsResult<DataFrame> {
        let mut all = self.beside(others)?;
        all.rechunk_mut();
        Ok(all)
    }

    /// All of them, which have these columns, without a copy.
    pub fn frame(&self, schema: &Schema) -> PolarsResult<DataFrame> {
        self.beside(DataFrame::empty_with_schema(schema))
    }

    fn beside(&self, mut others: DataFrame) -> PolarsResult<DataFrame> {
        for part in &self.parts {
            others.vstack_mut(&part.rows)?;
        }
        Ok(others)
    }

    /// The times of all rows.
    pub fn times(&self) -> impl Iterator<Item = Micros> {
        self.parts.iter().flat_map(|part| part.times[part.gone..].iter().copied())
    }

    /// Gives back the memory of rows that have gone on.
    pub fn compact(&mut self) -> PolarsResult<()> {
        for part in &mut self.parts {
            part.rows = compact(part.rows.clone())?;
            part.times.drain(..std::mem::take(&mut part.gone));
        }
        Ok(())
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.rows.estimated_size() + 8 * part.times.len()).sum()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.rows.height()).sum()
    }
}
