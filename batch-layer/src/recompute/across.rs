//! Rows that are made of several records, over whole archives.
//!
//! The operators get the events of all tables a day of event time after the other, and their horizon goes along. So nothing is late, and
//! they keep what a day needs, not what the archives hold. Behind the last day the horizon stays at the version's own, which is where
//! the watermark is at the frontier, less the allowed lateness. What settles by then is stored as panes, the partials of the rows that
//! wait as panes of their own, and what the operators keep as a state for the speed layer to go on from.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anabranch_engine::decode::DELETED;
use anabranch_engine::group::Keep;
use anabranch_engine::operator::{self, Operators, Records};
use anabranch_engine::partial::{Inputs, Partials, by_pane};
use anabranch_exchange::version::{PaneFile, StateFile, state};
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_store::table::write_digested;
use polars::prelude::*;

use super::Recompute;
use crate::archive::{OFFSET, PARTITION, check_files};
use crate::day::{DAY, day_of};
use crate::error::BatchError;
use crate::scan::scan;

/// A partition whose last record was taken so long before the newest of all is idle: the watermark doesn't wait for it.
const IDLE: Micros = 60_000_000;

impl Recompute {
    /// Computes the partials of all archived events and writes them, with what the operators keep.
    pub(super) fn across(
        &self,
        root: &Path,
        stem: &str,
        days: &BTreeSet<i64>,
    ) -> Result<(Vec<PaneFile>, StateFile), BatchError> {
        let (view, watermark) = (&self.view, self.watermark());
        let horizon = watermark.map_or(Micros::MIN, |it| it.saturating_sub(view.aggregation().allowed_lateness));
        let inputs = Inputs::new(view);
        let absorb =
            |partials: &mut Partials<'_>, rows: DataFrame| partials.absorb(inputs.of(rows.lazy(), false).collect()?);
        let mut settled = Partials::new(view.aggregation(), Keep::Everything);
        let mut operators =
            Operators::new(&view.rows, &|name| view.reads(name), None).map_err(self.failed("making the operators"))?;
        for (i, &day) in days.iter().enumerate() {
            self.check(0.5 * i as f64 / days.len() as f64)?;
            let mut records = Records::new();
            for (table, archive) in self.tables() {
                let files = archive.days.get(&day).map_or(&[][..], Vec::as_slice);
                check_files(&archive.root, table, files)?;
                let events = scan(archive, table, files).and_then(|events| read(view, table, events));
                records.insert(table.name.clone(), events.map_err(self.failed("reading the events"))?);
            }
            let step =
                operators.advance(&records, horizon.min((day + 1) * DAY), &mut |rows| absorb(&mut settled, rows));
            let unsure = step.map_err(self.failed("computing the rows"))?;
            if let Some((from, to)) = unsure.span {
                return Err(BatchError::Unordered { view: view.id.name.clone(), day, from, to });
            }
        }
        let settle = operators.advance(&Records::new(), horizon, &mut |rows| absorb(&mut settled, rows));
        settle.map_err(self.failed("computing the rows"))?;
        let mut pending = Partials::new(view.aggregation(), Keep::Everything);
        let waiting = operators.pending().and_then(|rows| absorb(&mut pending, rows));
        waiting.map_err(self.failed("computing the rows that wait"))?;
        let mut files = Vec::new();
        for (partials, is_pending) in [(settled, false), (pending, true)] {
            let partials = partials.into_frame().map_err(self.failed("computing the partials"))?;
            for (day, partials) in by_day(&partials).map_err(self.failed("splitting the partials by day"))? {
                files.push(self.write_panes(root, (stem, day), &partials, is_pending)?);
            }
        }
        let state = operators.state().and_then(|kept| state::encode(&kept));
        let state = state.map_err(self.failed("storing what the operators keep"))?;
        let path = format!("_state/{stem}.state");
        let written = write_digested(&root.join(&path), |file| file.write_all(&state));
        let failed = |source| BatchError::File { step: "writing", path: root.join(&path), source };
        let sha256 = written.map_err(failed)?.sha256;
        Ok((files, StateFile { path, sha256, watermark }))
    }

    /// The watermark at the frontier: the least of the partitions that have events and aren't idle.
    fn watermark(&self) -> Option<Micros> {
        let taken = self.archives.iter().flat_map(|archive| archive.archived.tails.values());
        let last = taken.map(|tail| tail.log_time).max();
        let each = self.tables().flat_map(|(table, archive)| {
            let awake = archive.archived.event_times.iter().filter(move |(partition, _)| {
                let tail = archive.archived.tails.get(partition);
                tail.zip(last).is_none_or(|(tail, last)| tail.log_time.saturating_add(IDLE) >= last)
            });
            awake.map(|(_, newest)| newest.saturating_sub(table.watermark_delay))
        });
        each.min()
    }
}

/// A table's records, with the columns that the view reads; the others are null.
fn read(view: &Kept, table: &Table, events: LazyFrame) -> PolarsResult<DataFrame> {
    let time = &table.event_time_column().name;
    let columns = table.columns.iter().map(|column| {
        let name = PlSmallStr::from(column.name.as_str());
        match column.name == *time || view.reads(&column.name) {
            true => Expr::Column(name),
            false => lit(NULL).alias(name),
        }
    });
    let deleted = table.is_changelog().then(|| Expr::Column(DELETED.into()));
    let places = [(PARTITION, operator::PARTITION), (OFFSET, operator::OFFSET)];
    let places = places.map(|(stored, name)| Expr::Column(stored.into()).alias(name));
    events.select(columns.chain(deleted).chain(places).collect::<Vec<Expr>>()).collect()
}

/// Partials that are in order of pane, by the day in which the pane starts.
fn by_day(partials: &DataFrame) -> PolarsResult<Vec<(i64, DataFrame)>> {
    let mut days: Vec<(i64, DataFrame)> = Vec::new();
    for (pane, partials) in by_pane(partials)? {
        match days.last_mut() {
            Some((day, all)) if *day == day_of(pane) => drop(all.vstack_mut(&partials)?),
            _ => days.push((day_of(pane), partials)),
        }
    }
    Ok(days)
}
