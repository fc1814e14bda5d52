//! Following the views' schedules: a run is asked for when its time has come, and again until one has succeeded.
//!
//! A view has one run at a time. How far its schedule has been dealt with stands in the history of runs, so times at which
//! the process was down, or a run failed, are found and made up for as the view's `catch_up` says.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::job::{Job, JobKind, JobRequest, Trigger};
use anabranch_log::clock::{Clock, has_passed};
use anabranch_plan::schedule::{CatchUp, Schedule};
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Catalog;
use tokio_util::sync::CancellationToken;

use crate::history::Standing;
use crate::jobs::JobQueue;

const SECOND: Micros = 1_000_000;

/// By how much the clock may be set back before anything is made of it, and how old a time may be before it counts as missed:
/// a cron expression knows nothing shorter.
const MINUTE: Micros = 60 * SECOND;

/// How long a view whose runs fail is left alone: twice as long after each failure, up to an hour.
fn pause(failures: u32) -> Micros {
    ((10 * SECOND) << failures.saturating_sub(1).min(16)).min(3_600 * SECOND)
}

struct Entry {
    view: String,
    schedule: Schedule,
    /// The first time after what has been dealt with, by that: looking for it each second would be much.
    next: Option<(Micros, Option<Micros>)>,
    /// How often asking for a run has failed in succession, and when it last did.
    refused: (u32, Micros),
}

/// Asks for runs.
pub struct Scheduler {
    entries: Vec<Entry>,
    jobs: Arc<JobQueue>,
    clock: Arc<dyn Clock>,
}

impl Scheduler {
    /// Follows the schedules of a catalog's views. One that is new, or has other times than before, begins now.
    pub fn new(catalog: &Catalog, jobs: Arc<JobQueue>, clock: Arc<dyn Clock>) -> Self {
        let mut entries = Vec::new();
        for view in catalog.kept() {
            let name = &view.id.name;
            let Some(schedule) = view.aggregation().schedule.clone() else { continue };
            let (standing, times) = (jobs.standing(name), schedule.to_string());
            match standing {
                Some(standing) if standing.times == times => {}
                // A build before this one has followed it.
                Some(standing) if standing.times.is_empty() => jobs.stand(Standing { times, ..standing }),
                _ => jobs.stand(Standing { view: name.clone(), times, dealt: clock.now(), ..Standing::default() }),
            }
            entries.push(Entry { view: name.clone(), schedule, next: None, refused: (0, 0) });
        }
        Self { entries, jobs, clock }
    }

    /// Asks for the runs that are due now.
    pub fn step(&mut self) -> Vec<Job> {
        let now = self.clock.now();
        self.entries.iter_mut().filter_map(|entry| entry.step(&self.jobs, now)).collect()
    }

    /// Asks for runs until it is told to stop.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
            self.step();
        }
    }
}

impl Entry {
    fn step(&mut self, jobs: &JobQueue, now: Micros) -> Option<Job> {
        // In this order: a run that ends after the first look is in the second.
        let is_busy = jobs.is_busy(&self.view);
        let mut standing = jobs.standing(&self.view)?;
        if standing.dealt > now + MINUTE {
            tracing::warn!(
                view = self.view,
                now = format_timestamp(now),
                dealt_with = format_timestamp(standing.dealt),
                "the clock was set back: the schedule is followed from now on, and not only once the clock has caught up"
            );
            jobs.note_set_back();
            standing = Standing { dealt: now, failures: 0, failed: 0, ..standing };
            jobs.stand(standing.clone());
        }
        let next = self.next_after(standing.dealt)?;
        if next > now || is_busy {
            return None;
        }
        let due = match self.schedule.catch_up {
            CatchUp::All => Some(next),
            CatchUp::Last => self.schedule.last_in(standing.dealt, now),
            CatchUp::None => self.schedule.last_in(standing.dealt.max(now - MINUTE), now),
        };
        let Some(due) = due else {
            tracing::info!(view = self.view, missed = format_timestamp(next), "times that were missed are passed over");
            jobs.stand(Standing { dealt: now - MINUTE, ..standing });
            return None;
        };
        let waits = |(failures, since): (u32, Micros)| failures > 0 && !has_passed(since, now, pause(failures));
        if waits((standing.failures, standing.failed)) || waits(self.refused) {
            return None;
        }
        let views = vec![self.view.clone()];
        let request = JobRequest { kind: JobKind::Batch, views, full: false, from: None, to: None };
        match jobs.queue(None, request, Trigger::Schedule, Some(due)) {
            Ok(job) => {
                self.refused = (0, 0);
                if self.schedule.catch_up == CatchUp::None {
                    jobs.stand(Standing { dealt: due, ..standing });
                }
                Some(job)
            }
            Err(error) => {
                self.refused = (self.refused.0 + 1, now);
                let pause_ms = pause(self.refused.0) / 1_000;
                let error = &error as &dyn std::error::Error;
                tracing::error!(view = self.view, error, pause_ms, "a run can't be asked for; trying again");
                None
            }
        }
    }

    /// The first time after what has been dealt with. If there is none, the log says so once.
    fn next_after(&mut self, dealt: Micros) -> Option<Micros> {
        if let Some((after, next)) = self.next
            && after == dealt
        {
            return next;
        }
        let next = self.schedule.next_after(dealt);
        if next.is_none() {
            let after = format_timestamp(dealt);
            tracing::error!(view = self.view, schedule = %self.schedule, after, "the schedule has no time any more");
        }
        self.next = Some((dealt, next));
        next
    }
}
