//! Rows that wait until the horizon has passed their time.

use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::times;
use super::run::take;

/// Rows that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    time: String,
    /// In order of time, each with the rows' times.
    parts: Vec<(DataFrame, Vec<Micros>)>,
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
        while let Some((last, _)) = self.parts.pop_if(|(last, _)| last.height() < 2 * part.0.height()) {
            part = self.sorted(&last.vstack(&part.0)?)?;
        }
        self.parts.push(part);
        Ok(())
    }

    fn sorted(&self, rows: &DataFrame) -> PolarsResult<(DataFrame, Vec<Micros>)> {
        let times = times(rows, &self.time)?;
        let mut order: Vec<IdxSize> = (0..times.len() as IdxSize).collect();
        order.sort_by_key(|&row| times[row as usize]);
        let mut rows = rows.clone();
        rows.rechunk_mut();
        let sorted = order.iter().map(|&row| times[row as usize]).collect();
        Ok((take(&rows, order)?, sorted))
    }

    /// Takes out the rows that are earlier than `least`, if there are any.
    pub fn settle(&mut self, least: Micros) -> PolarsResult<Option<DataFrame>> {
        let mut all: Option<DataFrame> = None;
        for (rows, times) in &mut self.parts {
            let settled = times.partition_point(|time| *time < least);
            if settled == 0 {
                continue;
            }
            let (gone, left) = rows.split_at(settled as i64);
            *rows = left;
            times.drain(..settled);
            match &mut all {
                None => all = Some(gone),
                Some(all) => drop(all.vstack_mut(&gone)?),
            }
        }
        self.parts.retain(|(_, times)| !times.is_empty());
        if let Some(all) = &mut all {
            all.rechunk_mut();
        }
        Ok(all)
    }

    /// All of them, beside other rows.
    pub fn with(&self, mut others: DataFrame) -> PolarsResult<DataFrame> {
        for (rows, _) in &self.parts {
            others.vstack_mut(rows)?;
        }
        others.rechunk_mut();
        Ok(others)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(rows, _)| rows.height()).sum()
    }
}
