//! Sessions: windows that are as long as their events make them, over days too.

use std::collections::BTreeSet;

use anabranch_engine::partial::{Part, whole_sessions};
use anabranch_exchange::version::Version;
use anabranch_plan::time::Micros;
use anabranch_store::table::DataFile;
use polars::prelude::{DataFrame, DataType, PolarsResult};

use super::{Recompute, output};
use crate::day::{DAY, day_of};
use crate::error::BatchError;

impl Recompute {
    /// The days of which rows may have changed: with `touched`, those on which a session begins or ends, or lies between, that
    /// has events of these days. New events may have made one session of two.
    pub(super) fn session_days(
        &self,
        version: &Version,
        touched: Option<&BTreeSet<i64>>,
    ) -> Result<BTreeSet<i64>, BatchError> {
        let all = version.published.panes.iter().map(|file| file.day);
        let Some(touched) = touched else { return Ok(all.collect()) };
        let mut days = BTreeSet::new();
        for &day in touched {
            let spans = self.overlapping(version, day).and_then(|rows| spans(&rows));
            for (start, end) in spans.map_err(self.failed("finding the sessions"))? {
                days.extend(day_of(start)..=day_of(end - 1));
            }
        }
        Ok(days)
    }

    /// Writes the rows of the sessions that begin on these days, a file for each day.
    pub(super) fn write_sessions(
        &self,
        version: &Version,
        stem: &str,
        days: &BTreeSet<i64>,
    ) -> Result<Vec<DataFile>, BatchError> {
        let mut files = Vec::new();
        for (done, &day) in days.iter().enumerate() {
            self.check(0.6 + 0.4 * done as f64 / days.len() as f64)?;
            let begun = || -> PolarsResult<DataFrame> {
                let rows = self.overlapping(version, day)?;
                let begins = spans(&rows)?.into_iter().map(|(start, _)| day_of(start) == day).collect();
                rows.filter(&begins)?.select(output::row_columns(&self.view))
            };
            let mut rows = begun().map_err(self.failed("computing the sessions"))?;
            if rows.height() > 0 {
                let now = self.clock.now();
                files.push(output::write_rows(&version.root, &self.view, stem, Some(day), &mut rows, now)?);
            }
        }
        Ok(files)
    }

    /// The sessions that have a part in a day.
    fn overlapping(&self, version: &Version, day: i64) -> PolarsResult<DataFrame> {
        let panes = &version.published.panes;
        let Some(window) = self.view.aggregation().window else { return Ok(DataFrame::empty()) };
        let first = panes.iter().map(|file| file.first).min().unwrap_or(0);
        let last = panes.iter().map(|file| window.pane_end(file.last)).max().unwrap_or(0);
        let load = |from: Micros, to: Micros| {
            let partials = version.partials(self.view.aggregation(), from, to)?.into_iter();
            Ok(partials.map(|partials| Part { partials, slack: None }).collect())
        };
        Ok(whole_sessions(self.view.aggregation(), (day * DAY, (day + 1) * DAY), (first, last), load)?.rows)
    }
}

/// When each session begins and ends.
fn spans(rows: &DataFrame) -> PolarsResult<Vec<(Micros, Micros)>> {
    let micros = |name: &str| rows.column(name)?.cast(&DataType::Int64)?.i64().cloned();
    let (starts, ends) = (micros("window_start")?, micros("window_end")?);
    Ok(starts.iter().flatten().zip(ends.iter().flatten()).collect())
}
