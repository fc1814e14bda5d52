//! Jobs: a queue of batch runs with one worker, and their history.

mod state;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::job::{self, Job, JobError, JobRequest, JobState, Jobs, Trigger};
use anabranch_log::clock::Clock;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Catalog;
use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::state::{Entry, State};
use crate::error::BatchError;
use crate::history::{Recorded, Standing};
use crate::metrics::{JobMetrics, Runs, ScheduleMetrics};

/// How often jobs are looked for whose process has ended.
const LOOK: Duration = Duration::from_secs(5);

/// How often files are tended.
const TEND: Duration = Duration::from_secs(600);

/// How often and after what pause a step that failed for its storage is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// How often it is tried in all.
    pub attempts: u32,
    /// The pause before the second attempt; each further pause is twice as long.
    pub pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 6, pause: Duration::from_secs(1) }
    }
}

/// One view's part of a job.
#[derive(Debug, Clone)]
pub struct ViewRun {
    /// Names the attempt: no two write files of one name, also if the earlier one isn't quite over.
    pub run: String,
    /// The view.
    pub view: String,
    /// Everything, not only what new events touch.
    pub full: bool,
    /// These event times in any case.
    pub times: Option<std::ops::Range<Micros>>,
}

/// What the worker of the queue does.
#[async_trait]
pub trait Work: Send + Sync {
    /// Brings the archive of the views' tables to the log's end as it is now, or as far as it has come when it is cancelled.
    async fn archive(&self, views: &[String], cancel: &CancellationToken) -> Result<(), BatchError>;

    /// Recomputes a view from the archive and publishes it; returns the version.
    async fn recompute(
        &self,
        run: ViewRun,
        progress: Arc<dyn Fn(f64) + Send + Sync>,
        cancel: CancellationToken,
    ) -> Result<u64, BatchError>;

    /// What is to be done now and then, while no job is at work.
    async fn tend(&self) {}
}

/// The jobs of a platform, one at a time.
pub struct JobQueue {
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    retry: Retry,
    timeout: Option<Duration>,
    /// How long a job that takes too long may take to notice that it is stopped, before it is left alone.
    notice: Duration,
    state: Arc<Mutex<State>>,
    runs: Runs,
    arrived: Notify,
}

/// Why a job's work ended without success.
enum Failure {
    Cancelled,
    Failed(String),
}

impl JobQueue {
    /// Opens the queue with its history below the data folder. Jobs that an ended process has left, waiting or at work, wait.
    pub fn open(data: &Path, catalog: &Catalog, clock: Arc<dyn Clock>, retry: Retry) -> Result<Self, JobError> {
        let schedules =
            catalog.kept().filter_map(|view| Some((view.id.name.clone(), view.aggregation().schedule.clone()?)));
        let state = State::open(data, schedules.collect(), clock.now());
        let state = state.map_err(|source| JobError::History { step: "opened", source })?;
        let runs = Runs::new(catalog.kept_names());
        let (catalog, state) = (catalog.clone(), Arc::new(Mutex::new(state)));
        let (timeout, notice, arrived) = (None, Duration::from_secs(60), Notify::new());
        Ok(Self { catalog, clock, retry, timeout, notice, state, runs, arrived })
    }

    /// Stops a job that takes longer, which then has failed.
    pub fn with_timeout(self, timeout: Option<Duration>) -> Self {
        Self { timeout, ..self }
    }

    /// The jobs' numbers.
    pub fn metrics(&self) -> JobMetrics {
        let state = self.state.lock();
        let count = |wanted| state.jobs.values().filter(|entry| entry.recorded.job.state == wanted).count() as u64;
        let schedules = state.standings.values().filter_map(|standing| {
            let view = self.catalog.kept_view(&standing.view)?;
            let schedule = view.aggregation().schedule.as_ref()?;
            let (view, failures) = (standing.view.clone(), standing.failures);
            Some(ScheduleMetrics { view, due: schedule.next_after(standing.dealt), failures })
        });
        let schedules = schedules.collect();
        let (queued, running) = (count(JobState::Queued), count(JobState::Running));
        JobMetrics { queued, running, runs: self.runs.read(), schedules, set_back: self.runs.set_back() }
    }

    /// Why the history can't be written, if it can't.
    pub fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Whether a job that recomputes the view waits or is at work.
    pub fn is_busy(&self, view: &str) -> bool {
        let state = self.state.lock();
        let mut open = state.jobs.values().map(|entry| &entry.recorded.job).filter(|job| job.is_open());
        open.any(|job| job.views.iter().any(|name| name == view))
    }

    /// Whether any job waits or is at work.
    #[cfg(test)]
    pub fn has_open(&self) -> bool {
        self.state.lock().jobs.values().any(|entry| entry.recorded.job.is_open())
    }

    /// Has every job that waits begin, and end so.
    #[cfg(test)]
    pub fn end_all(&self, outcome: JobState, now: Micros) {
        while let Some((job, _)) = self.begin(&CancellationToken::new()) {
            self.finish(&job, outcome, now);
        }
    }

    /// Has a job end so.
    #[cfg(test)]
    pub fn finish(&self, job: &Job, outcome: JobState, now: Micros) {
        let mut state = self.state.lock();
        if outcome == JobState::Succeeded {
            state.change(&job.id, |entry| {
                entry.recorded.job.versions = job.views.iter().map(|view| (view.clone(), 1)).collect();
            });
        }
        state.end(&job.id, outcome, None, now);
    }

    /// Fills the disk.
    #[cfg(test)]
    pub fn fill(&self) {
        self.state.lock().fill();
    }

    /// Frees room on it.
    #[cfg(test)]
    pub fn free(&self) {
        self.state.lock().free();
    }

    /// How a view's schedule stands.
    pub(crate) fn standing(&self, view: &str) -> Option<Standing> {
        self.state.lock().standings.get(view).cloned()
    }

    /// Notes how a view's schedule stands.
    pub(crate) fn stand(&self, standing: Standing) {
        self.state.lock().stand(standing);
    }

    /// Counts that the clock was found to be set back.
    pub(crate) fn note_set_back(&self) {
        self.runs.note_set_back();
    }

    /// Works through the queue until it is told to stop. The job at work is cut off then, and waits as the others do.
    pub async fn run(&self, work: Arc<dyn Work>, shutdown: CancellationToken) {
        let (mut looked, mut tended) = (Instant::now(), None::<Instant>);
        while !shutdown.is_cancelled() {
            if tended.is_none_or(|at| at.elapsed() >= TEND) {
                tended = Some(Instant::now());
                work.tend().await;
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Err(error) = self.state.lock().adopt(self.clock.now()) {
                    tracing::warn!(%error, "jobs whose process has ended can't be taken over; trying again");
                }
            }
            match self.begin(&shutdown) {
                Some((job, cancel)) => self.execute(job, work.as_ref(), cancel).await,
                None => {
                    let waits = tokio::time::timeout(LOOK, self.arrived.notified());
                    shutdown.run_until_cancelled(waits).await;
                }
            }
        }
    }

    /// Has the job that waits longest begin, and returns it with what will stop it.
    pub(crate) fn begin(&self, shutdown: &CancellationToken) -> Option<(Job, CancellationToken)> {
        let mut state = self.state.lock();
        let waiting = |job: &Job| job.state == JobState::Queued;
        let id = state.jobs.values().map(|entry| &entry.recorded.job).find(|job| waiting(job))?.id.clone();
        let started = format_timestamp(self.clock.now());
        state.change(&id, |entry| {
            let job = &mut entry.recorded.job;
            (job.state, job.started, job.attempts) = (JobState::Running, Some(started), job.attempts + 1);
            entry.cancel = shutdown.child_token();
            (entry.recorded.job.clone(), entry.cancel.clone())
        })
    }

    async fn execute(&self, job: Job, work: &dyn Work, cancel: CancellationToken) {
        let mut views = pin!(self.views(&job, work, &cancel));
        let outcome = match self.timeout {
            None => views.await,
            Some(timeout) => match tokio::time::timeout(timeout, &mut views).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    cancel.cancel();
                    let has_ended = tokio::time::timeout(self.notice, views).await.is_ok();
                    let left =
                        if has_ended { "" } else { ", and doesn't stop: it is left alone, and publishes nothing" };
                    Err(Failure::Failed(format!("it took longer than `timeout` under [batch] allows{left}")))
                }
            },
        };
        let now = self.clock.now();
        let mut state = self.state.lock();
        match outcome {
            Ok(()) => state.end(&job.id, JobState::Succeeded, None, now),
            Err(Failure::Failed(why)) => {
                tracing::error!(job = job.id, error = why, "a batch run failed");
                state.end(&job.id, JobState::Failed, Some(why), now);
            }
            Err(Failure::Cancelled) if state.jobs.get(&job.id).is_some_and(|entry| entry.recorded.cancelling) => {
                state.end(&job.id, JobState::Cancelled, None, now);
            }
            Err(Failure::Cancelled) => {
                tracing::info!(
                    job = job.id,
                    "a batch run is cut off by the process's end, and begins again with the next"
                );
                state.change(&job.id, |Entry { recorded: Recorded { job, .. }, .. }| {
                    (job.state, job.started, job.progress) = (JobState::Queued, None, 0.0);
                });
            }
        }
    }

    async fn views(&self, job: &Job, work: &dyn Work, cancel: &CancellationToken) -> Result<(), Failure> {
        let begun = Instant::now();
        let times = job.times().map_err(|error| Failure::Failed(error.to_string()))?;
        let archived = caught("archiving", self.persist(cancel, || work.archive(&job.views, cancel))).await;
        if let Err(error) = archived {
            job.views.iter().for_each(|view| self.runs.ended(view, Some(&error), begun.elapsed()));
            return Err(match error {
                BatchError::Cancelled => Failure::Cancelled,
                error => Failure::Failed(format!("archive: {}", error.chain())),
            });
        }
        let mut failures = Vec::new();
        for (i, view) in job.views.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            let run = format!("{}-{}", job.id, job.attempts);
            let run = ViewRun { run, view: view.clone(), full: job.full, times: times.clone() };
            let share = 1.0 / job.views.len() as f64;
            let done = |part: f64| (i as f64 + part) * share;
            let begun = Instant::now();
            let recomputed = self.persist(cancel, || {
                work.recompute(run.clone(), self.progress(&job.id, done(0.0), share), cancel.clone())
            });
            let outcome = caught("recomputing", recomputed).await;
            self.runs.ended(view, outcome.as_ref().err(), begun.elapsed());
            match outcome {
                Ok(version) => {
                    self.state.lock().change(&job.id, |entry| {
                        entry.recorded.job.versions.insert(view.clone(), version);
                        entry.recorded.job.progress = done(1.0);
                    });
                }
                Err(BatchError::Cancelled) => return Err(Failure::Cancelled),
                Err(error) => failures.push(format!("{view}: {}", error.chain())),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("; "))) }
    }

    /// Sets a job's progress as told, without writing it down.
    fn progress(&self, id: &str, from: f64, share: f64) -> Arc<dyn Fn(f64) + Send + Sync> {
        let (state, id) = (self.state.clone(), id.to_owned());
        Arc::new(move |part| {
            if let Some(entry) = state.lock().jobs.get_mut(&id) {
                entry.recorded.job.progress = from + part * share;
            }
        })
    }

    /// Tries a step again while its storage fails, or another writer was faster.
    async fn persist<T, F: Future<Output = Result<T, BatchError>>>(
        &self,
        cancel: &CancellationToken,
        step: impl Fn() -> F,
    ) -> Result<T, BatchError> {
        let mut pause = self.retry.pause;
        for _ in 1..self.retry.attempts {
            match step().await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(error = error.chain(), pause_ms = pause.as_millis() as u64, "will try again");
                    if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return Err(BatchError::Cancelled);
                    }
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
        step().await
    }

    /// Queues a job: one that has an id already, or one for a time of a schedule.
    pub(crate) fn queue(
        &self,
        id: Option<&str>,
        request: JobRequest,
        trigger: Trigger,
        scheduled: Option<Micros>,
    ) -> Result<Job, JobError> {
        let request = request.check(self.catalog.kept_names())?;
        let mut state = self.state.lock();
        let now = self.clock.now();
        let id = id.map_or_else(|| job::id_after(state.jobs.keys().next_back(), now), str::to_owned);
        let scheduled = scheduled.map(format_timestamp);
        let job = Job { scheduled, ..Job::queued(id, request, trigger, now) };
        state.add(job.clone()).map_err(|source| JobError::History { step: "written", source })?;
        drop(state);
        self.arrived.notify_one();
        Ok(job)
    }
}

/// What one step does to itself is no other's, and not the queue's.
async fn caught<T>(what: &'static str, step: impl Future<Output = Result<T, BatchError>>) -> Result<T, BatchError> {
    let outcome = AssertUnwindSafe(step).catch_unwind().await;
    outcome.unwrap_or_else(|panic| Err(BatchError::panicked(what, &*panic)))
}

impl Jobs for JobQueue {
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        self.queue(None, request, trigger, None)
    }

    fn submit_as(&self, id: &str, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        self.queue(Some(id), request, trigger, None)
    }

    fn list(&self) -> Result<Vec<Job>, JobError> {
        Ok(self.state.lock().jobs.values().rev().map(|entry| entry.recorded.job.clone()).collect())
    }

    fn get(&self, id: &str) -> Result<Job, JobError> {
        let state = self.state.lock();
        let found = state.jobs.get(id).map(|entry| entry.recorded.job.clone());
        found.ok_or_else(|| JobError::UnknownJob(id.to_owned()))
    }

    fn cancel(&self, id: &str) -> Result<Job, JobError> {
        // One lock from the look at its state to what comes of it.
        let mut state = self.state.lock();
        let entry = state.jobs.get(id).ok_or_else(|| JobError::UnknownJob(id.to_owned()))?;
        match entry.recorded.job.state {
            JobState::Queued => state.end(id, JobState::Cancelled, None, self.clock.now()),
            JobState::Running => {
                state.change(id, |entry| {
                    entry.recorded.cancelling = true;
                    entry.cancel.cancel();
                });
            }
            _ => return Err(JobError::Ended(id.to_owned())),
        }
        Ok(state.jobs[id].recorded.job.clone())
    }
}
