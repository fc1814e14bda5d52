//! Exact recomputation: a new version of a view from the archive.
//!
//! The unit is a day of event time. Of each day that has other events than the previous version saw ([`difference`]), the
//! partials are computed anew and written to a file of panes; the files of all other days are carried over. Then the finished
//! windows that touch these days are computed from the panes, and one commit replaces their rows and names the panes.
//! So a version holds what a fold over all archived events gives, whichever days it had to look at. Where rows are made of several
//! records, all days are computed ([`across`]).

mod across;
mod anew;
mod check;
mod difference;
mod output;
mod redefined;
mod session;

#[cfg(test)]
mod difference_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_engine::group::Keep;
use anabranch_engine::partial::{self, PANE, Part, Partials, Scope};
use anabranch_exchange::audit::{AuditLog, Cause, Redefined};
use anabranch_exchange::version::{
    CommittedVersion, PaneFile, Published, StateFile, Version, committed_version, kept_versions, set_aside,
    view_app_id, view_root,
};
use anabranch_log::clock::Clock;
use anabranch_log::lineage::Marks;
use anabranch_log::position::{Coverage, Partition, TopicPartition, named};
use anabranch_plan::schema::{Layout, Table};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use anabranch_store::table::{Change, DataFile, DeltaTable, Sweeper, TableError};
use fail::fail_point;
use polars::prelude::{DataFrame, Engine, LazyFrame, PlanCallback, PolarsResult, SortMultipleOptions};
use tokio_util::sync::CancellationToken;

pub use self::anew::{anew, archives};
pub use self::check::check;
use self::difference::{Difference, archive_read};
use crate::archive::{ArchiveSnapshot, check_files, file_damage};
use crate::day::{DAY, day_name, day_of, parse_day};
use crate::error::{BatchError, blocking};
use crate::scan::scan;

/// Rows of partials, times the windows that each is in, that one query may go through: several days are finished
/// together as long as they stay below it.
const ROWS_AT_ONCE: u64 = 16_000_000;

/// How often it is tried again when another process publishes at the same time.
const ATTEMPTS: usize = 20;

/// What to recompute.
#[derive(Clone)]
pub struct Recompute {
    /// The view.
    pub view: Kept,
    /// The folder of all views' tables.
    pub views: PathBuf,
    /// Where it is recorded what a new definition, or an erasure, changed.
    pub audits: AuditLog,
    /// The archives of its tables, in their order.
    pub archives: Vec<ArchiveSnapshot>,
    /// Every day, not only those with new events.
    pub full: bool,
    /// These event times in any case.
    pub times: Option<Range<Micros>>,
    /// The run's name.
    pub run: String,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Stops it before it publishes.
    pub cancel: CancellationToken,
    /// Told how much is done, from 0 to 1.
    pub progress: Arc<dyn Fn(f64) + Send + Sync>,
}

/// What a version is computed from, beside the archive.
struct Base {
    /// The days to compute.
    touched: BTreeSet<i64>,
    /// The panes of the version before; none if it is of no use.
    carried: Option<Vec<PaneFile>>,
    /// The rows' files of the version before.
    existing: Vec<DataFile>,
    /// What of the archive differs from what the version before was computed from.
    difference: Difference,
    /// Why rows differ from those of the version before, of windows without new events.
    cause: Option<Cause>,
}

/// What is computed before it is committed.
struct Computed {
    panes: Vec<PaneFile>,
    state: Option<StateFile>,
    add: Vec<DataFile>,
    remove: Vec<DataFile>,
    redefined: Option<Redefined>,
}

impl Recompute {
    /// Computes and publishes a version of the view from the archive as it is now; again if another process publishes one, or
    /// rebuilds the archive, meanwhile.
    pub(crate) async fn run_from_newest(self) -> Result<Option<Published>, BatchError> {
        let mut attempts = 1;
        loop {
            let mut archives = Vec::new();
            for (table, known) in self.tables() {
                let archive = ArchiveSnapshot::open(&known.root, table).await?;
                archives.push(archive.unwrap_or_else(|| known.clone()));
            }
            match (Self { archives, ..self.clone() }).run().await {
                Err(BatchError::Table(TableError::Superseded { .. }) | BatchError::Rebuilt { .. })
                    if attempts < ATTEMPTS =>
                {
                    attempts += 1;
                }
                published => return published,
            }
        }
    }

    /// The tables, each with its archive.
    fn tables(&self) -> impl Iterator<Item = (&Arc<Table>, &ArchiveSnapshot)> {
        self.view.tables().into_iter().zip(&self.archives)
    }

    /// How often the archives have been rebuilt, in sum.
    fn rebuilds(&self) -> u64 {
        self.archives.iter().map(|archive| archive.archived.rebuilds).sum()
    }

    /// The offsets of the events that the archives hold.
    fn coverage(&self) -> Coverage<TopicPartition> {
        let each = self.tables().flat_map(|(table, archive)| {
            let partition = |&p: &Partition| TopicPartition::new(table.topic.as_str(), p);
            archive.archived.coverage.iter().map(move |(p, range)| (partition(p), range.clone()))
        });
        each.collect()
    }

    /// What of the archives differs from what a version was computed from.
    async fn difference(&self, version: &CommittedVersion) -> Result<Difference, BatchError> {
        let mut all = Difference::default();
        for (table, archive) in self.tables() {
            all.add(Difference::of(version, archive, (&table.topic, self.rebuilds())).await?);
        }
        Ok(all)
    }

    /// Computes and publishes a version of the view; `None` if the newest version covers the same already.
    pub async fn run(self) -> Result<Option<Published>, BatchError> {
        let root = view_root(&self.views, &self.view.id.name);
        let layout = output::layout(&self.view);
        let (mut table, newest, last) = open(&root, &layout, self.clock.now()).await?;
        // The transaction outlives the commits of versions, which log clean-up deletes.
        let committed = table.transaction(&view_app_id(&self.view.id.name)).await?;
        let version = last.max(committed.and_then(|last| u64::try_from(last).ok()).unwrap_or(0)) + 1;
        let newest = newest.map(|newest| newest.named(&self.view.table().topic));
        let difference = match &newest {
            Some(newest) => self.difference(newest).await?,
            None => Difference::default(),
        };
        let same_definition = |newest: &CommittedVersion| newest.of(&self.view).is_some();
        let cause = newest.as_ref().and_then(|newest| match same_definition(newest) {
            true => (!difference.erased.is_empty()).then_some(Cause::Erased),
            false => Some(Cause::Redefined),
        });
        let is_start = |newest: &CommittedVersion| !self.full && !difference.is_other && same_definition(newest);
        let previous = newest.filter(is_start).map(|newest| newest.published().clone());
        // Which rows new events change isn't known where rows are made of several records: all is computed, or nothing.
        let is_same = |previous: &Published| {
            difference.days.is_empty() && previous.coverage == self.coverage() && previous.state.is_some()
        };
        let previous =
            previous.filter(|previous| !self.view.rows.looks_across() || (self.times.is_none() && is_same(previous)));
        let mut damaged = Vec::new();
        if let Some(previous) = &previous {
            let known = Version::new(root.clone(), previous.clone(), false);
            damaged = blocking("checking the panes", move || Ok(damaged_days(&known))).await?;
        }
        // Which sessions there were on a day that can't be read isn't known.
        let is_session = self.view.aggregation().window.is_some_and(Window::is_session);
        let is_whole = !is_session && !self.view.rows.looks_across();
        let previous = previous.filter(|_| is_whole || damaged.is_empty());
        let mut touched = self.touched(previous.is_some().then_some(&difference));
        touched.extend(damaged);
        let erased = if cause == Some(Cause::Erased) { difference.erased.clone() } else { BTreeSet::new() };
        if let Some(previous) = &previous
            && touched.is_empty()
            && previous.coverage == self.coverage()
        {
            return Ok(None);
        }
        let carried = previous.map(|previous| previous.panes);
        let base = Base { touched, carried, existing: table.files(), difference, cause };
        let stem = format!("{}-{version}", self.run);
        let this = self.clone();
        let compute_root = root.clone();
        let computed = blocking("recomputing", move || this.compute(&compute_root, &stem, base)).await?;
        fail_point!("batch::before_publish", |_| Err(BatchError::Failpoint("batch::before_publish")));
        if self.cancel.is_cancelled() {
            return Err(BatchError::Cancelled);
        }
        for archive in &self.archives {
            archive.check().await?;
        }
        let (mut event_times, mut log, mut read) = (BTreeMap::new(), Marks::new(), BTreeMap::new());
        for (table, archive) in self.tables() {
            event_times.extend(named(&table.topic, archive.archived.event_times.clone()));
            log.extend(archive.archived.log.clone().map(|mark| (table.topic.clone(), mark)));
            read.insert(table.topic.clone(), archive_read(archive));
        }
        let published = Published {
            version,
            coverage: self.coverage(),
            event_times,
            published: self.clock.now(),
            erased,
            state: computed.state,
            log,
            ..self.draft(computed.panes)
        };
        let note = CommittedVersion::note(&published, &read).map_err(|source| TableError::Note {
            table: root.display().to_string(),
            version: table.version() + 1,
            source,
        })?;
        let transactions = vec![(view_app_id(&self.view.id.name), i64::try_from(version).unwrap_or(i64::MAX))];
        let layout = (table.layout().ok().as_ref() != Some(&layout)).then_some(layout);
        let change =
            Change { add: computed.add, remove: computed.remove, transactions, note, layout, ..Change::default() };
        table.commit(change).await?;
        if let Some(redefined) = &computed.redefined
            && let Err(error) = self.audits.record_redefined(&self.view.id.name, version, redefined)
        {
            tracing::warn!(view = self.view.id.name, version, %error, "corrections can't be stored");
        }
        fail_point!("batch::after_publish", |_| Err(BatchError::Failpoint("batch::after_publish")));
        (self.progress)(1.0);
        Ok(Some(published))
    }

    /// The days to compute: all of them, or those that differ from what the previous version saw, also if they are gone.
    fn touched(&self, difference: Option<&Difference>) -> BTreeSet<i64> {
        let asked =
            |day: i64| self.times.as_ref().is_some_and(|times| day * DAY < times.end && times.start < (day + 1) * DAY);
        let days = self.archives.iter().flat_map(|archive| archive.days.keys().copied());
        match difference {
            None => days.collect(),
            Some(difference) => days.filter(|&day| asked(day)).chain(difference.days.iter().copied()).collect(),
        }
    }

    fn check(&self, done: f64) -> Result<(), BatchError> {
        if self.cancel.is_cancelled() {
            return Err(BatchError::Cancelled);
        }
        (self.progress)(done);
        Ok(())
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(polars::prelude::PolarsError) -> BatchError + '_ {
        move |source| BatchError::Query { step, view: self.view.id.name.clone(), source }
    }

    fn compute(&self, root: &std::path::Path, stem: &str, base: Base) -> Result<Computed, BatchError> {
        let Base { touched, carried, existing, difference, cause } = base;
        let is_partial = carried.is_some();
        let before = Version::new(root.to_owned(), self.draft(carried.unwrap_or_default()), false);
        let mut panes = before.published.panes.clone();
        panes.retain(|file| !touched.contains(&file.day));
        let mut state = None;
        if self.view.rows.looks_across() {
            let (written, kept) = self.across(root, stem, &touched)?;
            panes.extend(written);
            state = Some(kept);
        } else {
            for (i, &day) in touched.iter().enumerate() {
                self.check(0.6 * i as f64 / touched.len() as f64)?;
                panes.extend(self.panes_of(root, stem, day)?);
            }
        }
        panes.sort_by_key(|file| file.day);
        fail_point!("batch::panes_written", |_| Err(BatchError::Failpoint("batch::panes_written")));
        let version = Version::new(root.to_owned(), self.draft(panes), false);
        let (add, remove) = if let Some(window) = self.view.aggregation().window {
            let touched = is_partial.then_some(&touched);
            // Also the windows that there were before, and maybe aren't any more.
            let mut days = BTreeSet::new();
            for version in [&before, &version] {
                days.extend(match window {
                    Window::Session { .. } => self.session_days(version, touched)?,
                    _ => self.window_days(&version.published.panes, touched),
                });
            }
            let day = |file: &DataFile| file.partition.values().next().and_then(|day| parse_day(day.as_deref()?));
            let is_replaced = |file: &DataFile| !is_partial || day(file).is_none_or(|day| days.contains(&day));
            let remove = existing.into_iter().filter(is_replaced).collect();
            let written = match window {
                Window::Session { .. } => self.write_sessions(&version, stem, &days)?,
                _ => self.write_windows(&version, stem, &days)?,
            };
            (written, remove)
        } else {
            (self.write_totals(&version, stem)?, existing)
        };
        fail_point!("batch::windows_written", |_| Err(BatchError::Failpoint("batch::windows_written")));
        let redefined = cause.and_then(|cause| self.redefined(root, (&difference, cause), &remove, &add));
        Ok(Computed { panes: version.published.panes, state, add, remove, redefined })
    }

    /// What a new definition, or an erasure, changes of the rows of the version before. That it isn't known is no reason to fail.
    fn redefined(
        &self,
        root: &std::path::Path,
        (difference, cause): (&Difference, Cause),
        old: &[DataFile],
        new: &[DataFile],
    ) -> Option<Redefined> {
        let is_compared = |days| match cause {
            Cause::Erased => difference.is_erased(days),
            _ => difference.is_same(days),
        };
        if self.view.aggregation().window.is_none() && !is_compared(i64::MIN..=i64::MAX) {
            return None;
        }
        if old.iter().any(|file| file_damage(root, file).is_ok_and(|found| found.is_some())) {
            tracing::warn!(view = self.view.id.name, "corrections aren't known: the old rows are damaged");
            return None;
        }
        let redefined = redefined::redefined(&self.view, root, (old, new), (&is_compared, cause));
        redefined.inspect_err(|error| tracing::warn!(view = self.view.id.name, %error, "corrections aren't known")).ok()
    }

    fn draft(&self, panes: Vec<PaneFile>) -> Published {
        Published {
            version: 0,
            definition: self.view.id.definition.clone(),
            coverage: Coverage::new(),
            event_times: BTreeMap::new(),
            published: 0,
            run: self.run.clone(),
            rebuilds: self.rebuilds(),
            erased: BTreeSet::new(),
            panes,
            state: None,
            log: Marks::new(),
        }
    }

    /// Computes the partials of a day's events and writes them.
    fn panes_of(&self, root: &std::path::Path, stem: &str, day: i64) -> Result<Option<PaneFile>, BatchError> {
        let Some((table, archive)) = self.tables().next() else { return Ok(None) };
        let files = archive.days.get(&day).map_or(&[][..], Vec::as_slice);
        check_files(&archive.root, table, files)?;
        let partials = scan(archive, table, files)
            .and_then(|events| partials(&self.view, events))
            .map_err(self.failed("computing the partials"))?;
        if partials.height() == 0 {
            return Ok(None);
        }
        self.write_panes(root, (stem, day), &partials, false).map(Some)
    }

    /// Writes partials of a day, of which there are some.
    fn write_panes(
        &self,
        root: &std::path::Path,
        (stem, day): (&str, i64),
        partials: &DataFrame,
        pending: bool,
    ) -> Result<PaneFile, BatchError> {
        let mut by = vec![PANE.to_owned()];
        by.extend((0..self.view.aggregation().keys.len()).map(partial::key));
        let mut sorted = partials
            .select(output::pane_columns(&self.view))
            .and_then(|partials| partials.sort(by, SortMultipleOptions::default().with_nulls_last(true)))
            .map_err(self.failed("sorting the partials"))?;
        let path = format!("_panes/{stem}-{}{}.parquet", day_name(day), if pending { "-pending" } else { "" });
        let sha256 = Some(output::write_frame(&root.join(&path), &mut sorted)?.sha256);
        let starts = sorted.column(PANE).and_then(|column| Ok(column.i64()?.clone()));
        let starts = starts.map_err(self.failed("reading the panes"))?;
        let (first, last) = (starts.first().unwrap_or(0), starts.last().unwrap_or(0));
        Ok(PaneFile { path, day, first, last, rows: sorted.height() as u64, sha256, pending })
    }

    /// The days in which a window starts that holds a pane; with `touched`, a pane of these days. The panes of files
    /// are taken for all between their first and last: a day too many costs time only.
    fn window_days(&self, panes: &[PaneFile], touched: Option<&BTreeSet<i64>>) -> BTreeSet<i64> {
        let Some(window) = self.view.aggregation().window else { return BTreeSet::new() };
        let mut days = BTreeSet::new();
        for file in panes.iter().filter(|file| touched.is_none_or(|touched| touched.contains(&file.day))) {
            days.extend(day_of(window.first_start(file.first))..=day_of(window.last_start(file.last)));
        }
        days
    }

    /// Finishes the windows that start on these days and writes their rows, a file for each day.
    fn write_windows(&self, version: &Version, stem: &str, days: &BTreeSet<i64>) -> Result<Vec<DataFile>, BatchError> {
        let Some(window) = self.view.aggregation().window else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        let mut done = 0;
        for group in self.groups(&version.published.panes, days) {
            self.check(0.6 + 0.4 * done as f64 / days.len() as f64)?;
            let (from, to) = (group.start * DAY, group.end * DAY);
            let scope = Scope::Range(from, to - 1);
            let rows = self
                .finished(version, from..window.end_of(window.last_start(to - 1)), scope)
                .map_err(self.failed("computing the windows"))?;
            done += group.end - group.start;
            for (day, mut rows) in output::split_days(&rows, &group).map_err(self.failed("splitting the windows"))? {
                files.push(output::write_rows(
                    &version.root,
                    &self.view,
                    stem,
                    Some(day),
                    &mut rows,
                    self.clock.now(),
                )?);
            }
        }
        Ok(files)
    }

    /// The rows of the windows asked for, by panes that start in a range.
    fn finished(&self, version: &Version, panes: Range<Micros>, scope: Scope) -> PolarsResult<DataFrame> {
        let partials = version.partials(self.view.aggregation(), panes.start, panes.end)?.into_iter();
        let parts: Vec<Part> = partials.map(|partials| Part { partials, slack: None }).collect();
        partial::windows(self.view.aggregation(), &parts, scope)?.rows.select(output::row_columns(&self.view))
    }

    /// Neighbouring days that are finished together.
    fn groups(&self, panes: &[PaneFile], days: &BTreeSet<i64>) -> Vec<Range<i64>> {
        let overlap = self.view.aggregation().window.map_or(1, |window| window.overlap().unsigned_abs());
        let mut groups: Vec<(Range<i64>, u64)> = Vec::new();
        for &day in days {
            let rows = panes.iter().filter(|file| file.day == day).map(|file| file.rows * overlap).sum::<u64>();
            match groups.last_mut() {
                Some((group, sum)) if group.end == day && *sum + rows <= ROWS_AT_ONCE => {
                    group.end = day + 1;
                    *sum += rows;
                }
                _ => groups.push((day..day + 1, rows)),
            }
        }
        groups.into_iter().map(|(group, _)| group).collect()
    }

    /// Finishes a view without windows and writes its rows.
    fn write_totals(&self, version: &Version, stem: &str) -> Result<Vec<DataFile>, BatchError> {
        self.check(0.6)?;
        let mut rows = self.finished(version, 0..1, Scope::All).map_err(self.failed("computing the totals"))?;
        if rows.height() == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![output::write_rows(&version.root, &self.view, stem, None, &mut rows, self.clock.now())?])
    }
}

/// A view's table, with its newest version and that version's number. A table that can't be read is set aside and begun anew: all
/// that it holds comes from the archive.
async fn open(
    root: &std::path::Path,
    layout: &Layout,
    now: Micros,
) -> Result<(DeltaTable, Option<CommittedVersion>, u64), BatchError> {
    let read = || async {
        let table = DeltaTable::open_or_create(root, layout).await?;
        let newest = committed_version(&table).await?;
        Ok((table, newest))
    };
    match read().await {
        Ok((table, newest)) => {
            let last = newest.as_ref().map_or(0, |newest| newest.published().version);
            Ok((table, newest, last))
        }
        Err(error) if TableError::is_damage(&error) => {
            tracing::error!(error = BatchError::from(error).chain(), "the view is computed anew from its archive");
            let last = set_aside(root, now)?;
            let (table, newest) = read().await?;
            Ok((table, newest, last))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a view has a version, be it one that can't be read.
pub async fn has_version(views: &std::path::Path, view: &str) -> bool {
    match DeltaTable::open(&view_root(views, view)).await {
        Ok(None) => false,
        Ok(Some(table)) => !matches!(committed_version(&table).await, Ok(None)),
        Err(_) => true,
    }
}

/// The days of which the partials aren't what was published; one more if what operators keep isn't.
fn damaged_days(version: &Version) -> Vec<i64> {
    let damaged = version.published.panes.iter().filter_map(|file| {
        let damage = version.damage(file)?;
        tracing::warn!(table = %version.root.display(), damage, "a day is computed anew");
        Some(file.day)
    });
    let state = version.state().err().map(|damage| {
        tracing::warn!(%damage, "a view is computed anew");
        0
    });
    damaged.chain(state).collect()
}

/// The partials of events, of which Polars evaluates a part while the part before it is added up.
fn partials(view: &Kept, events: LazyFrame) -> PolarsResult<DataFrame> {
    let (sender, evaluated) = std::sync::mpsc::sync_channel(2);
    let rows = partial::inputs(view, events, false);
    let rows = rows.sink_batches(PlanCallback::new(move |rows| Ok(sender.send(rows).is_err())), true, None)?;
    std::thread::scope(|scope| {
        let query = scope.spawn(move || rows.collect_with_engine(Engine::Streaming));
        let mut partials = Partials::new(view.aggregation(), Keep::Everything);
        evaluated.into_iter().try_for_each(|rows| partials.absorb(rows))?;
        query.join().map_err(|_| polars::prelude::polars_err!(ComputeError: "the query's thread has failed"))??;
        partials.into_frame()
    })
}

/// Deletes files that none of a view's newest `keep` versions names, once they have been so for the grace period.
pub async fn sweep(
    views: &std::path::Path,
    view: &Kept,
    sweeper: &mut Sweeper,
    keep: usize,
    now: Micros,
    grace: Micros,
) -> Result<usize, BatchError> {
    let root = view_root(views, &view.id.name);
    let Some(table) = DeltaTable::open(&root).await? else { return Ok(0) };
    let mut referenced: BTreeSet<String> = table.files().into_iter().map(|file| file.path).collect();
    let kept = kept_versions(&table, keep.max(1)).await?;
    if kept.is_empty() {
        // Their commits may have been cleaned up, and processes may serve them still.
        return Ok(0);
    }
    for (table, committed) in kept {
        referenced.extend(table.files().into_iter().map(|file| file.path));
        let published = committed.published();
        referenced.extend(published.panes.iter().map(|file| file.path.clone()));
        referenced.extend(published.state.iter().map(|file| file.path.clone()));
    }
    Ok(sweeper.sweep(&root, &referenced, now, grace)?)
}

/// The layout of a view's table.
pub fn table_layout(view: &Kept) -> Layout {
    output::layout(view)
}
