//! Schedules: cron expressions in UTC that ask for batch runs.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anabranch_shared::clock::{Clock, Micros};
use anabranch_shared::job::{Job, JobKind, JobRequest, Jobs, Trigger};
use anabranch_shared::version::Versions;
use anabranch_shared::view::Catalog;
use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use tokio_util::sync::CancellationToken;

use crate::jobs::JobQueue;

fn parse(expression: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(expression).map_err(|error| {
        format!(
            "`{expression}` is no cron expression: {error}; five fields are wanted, minute hour day month weekday, \
             such as `*/15 * * * *`"
        )
    })
}

/// Whether an expression can be a view's schedule, or what is wrong with it.
pub fn validate(expression: &str) -> Result<(), String> {
    let cron = parse(expression)?;
    match next_after(&cron, 0) {
        Some(_) => Ok(()),
        None => Err(format!("`{expression}` never comes true")),
    }
}

/// The first time after an instant at which the expression is true.
fn next_after(cron: &Cron, after: Micros) -> Option<Micros> {
    let after: DateTime<Utc> = DateTime::from_timestamp_micros(after)?;
    cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp_micros())
}

struct Entry {
    view: String,
    cron: Cron,
    /// Times up to here have been dealt with.
    dealt: Micros,
}

/// Asks for a run of each view when its time has come. A view has one run at a time, and times that were missed, as
/// the process was down or the view's last run took long, are made up for by one run.
pub struct Schedule {
    entries: Vec<Entry>,
    jobs: Arc<JobQueue>,
    clock: Arc<dyn Clock>,
}

impl Schedule {
    /// The schedules of a catalog's views, or which of them can't be read. What was missed is counted from the view's
    /// last scheduled run or version, whichever is later.
    pub fn new(
        catalog: &Catalog,
        jobs: Arc<JobQueue>,
        versions: &Versions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let mut entries = Vec::new();
        for view in catalog.views.values() {
            let Some(expression) = &view.schedule else { continue };
            let cron = parse(expression).map_err(|error| format!("view `{}`: {error}", view.name))?;
            let published = versions.get(&view.name).map(|version| version.published.published);
            let last = jobs.last_scheduled(&view.name).max(published);
            entries.push(Entry { view: view.name.clone(), cron, dealt: last.unwrap_or_else(|| clock.now()) });
        }
        Ok(Self { entries, jobs, clock })
    }

    /// Asks for the runs that are due now.
    pub fn step(&mut self) -> Vec<Job> {
        let now = self.clock.now();
        let mut asked = Vec::new();
        for entry in &mut self.entries {
            let is_due = next_after(&entry.cron, entry.dealt).is_some_and(|next| next <= now);
            if !is_due || self.jobs.is_busy(&entry.view) {
                continue;
            }
            let views = vec![entry.view.clone()];
            let request = JobRequest { kind: JobKind::Batch, views, full: false, from: None, to: None };
            match self.jobs.submit(request, Trigger::Schedule) {
                Ok(job) => {
                    entry.dealt = now;
                    asked.push(job);
                }
                Err(error) => {
                    tracing::error!(view = entry.view, error = &error as &dyn std::error::Error, "no run asked for");
                }
            }
        }
        asked
    }

    /// Asks for runs until it is told to stop.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
            self.step();
        }
    }
}
