//! Jobs: a queue of batch runs with one worker, and their history.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anabranch_shared::clock::{Clock, Micros, format_timestamp, parse_timestamp};
use anabranch_shared::job::{self, Job, JobError, JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_shared::view::Catalog;
use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::BatchError;
use crate::history::{History, KEPT_JOBS};
use crate::metrics::{JobMetrics, Runs};

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
        Self { attempts: 4, pause: Duration::from_secs(1) }
    }
}

/// One view's part of a job.
#[derive(Debug, Clone)]
pub struct ViewRun {
    /// The job's id.
    pub job: String,
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
    /// Brings the archive of the views' tables to the log's end as it is now.
    async fn archive(&self, views: &[String]) -> Result<(), BatchError>;

    /// Recomputes a view from the archive and publishes it; returns the version.
    async fn recompute(
        &self,
        run: ViewRun,
        progress: Arc<dyn Fn(f64) + Send + Sync>,
        cancel: CancellationToken,
    ) -> Result<u64, BatchError>;
}

struct Entry {
    job: Job,
    full: bool,
    times: Option<std::ops::Range<Micros>>,
    cancel: CancellationToken,
}

struct State {
    /// By id, which rises with time.
    jobs: BTreeMap<String, Entry>,
    waiting: VecDeque<String>,
    history: History,
}

/// The jobs of a platform, one at a time.
pub struct JobQueue {
    views: Vec<String>,
    clock: Arc<dyn Clock>,
    retry: Retry,
    state: Arc<Mutex<State>>,
    runs: Runs,
    arrived: Notify,
}

fn history(step: &'static str) -> impl FnOnce(std::io::Error) -> JobError {
    move |source| JobError::History { step, source }
}

impl JobQueue {
    /// Opens the queue with its history. Jobs that were at work when the process ended have failed; those that waited
    /// are cancelled.
    pub fn open(path: &Path, catalog: &Catalog, clock: Arc<dyn Clock>, retry: Retry) -> Result<Self, JobError> {
        let (mut file, jobs) = History::open(path).map_err(history("read"))?;
        let now = format_timestamp(clock.now());
        let mut entries = BTreeMap::new();
        for mut job in jobs {
            let ended = match job.state {
                JobState::Running => Some((JobState::Failed, Some("interrupted".to_owned()))),
                JobState::Queued => Some((JobState::Cancelled, None)),
                _ => None,
            };
            if let Some((state, error)) = ended {
                (job.state, job.error, job.ended) = (state, error, Some(now.clone()));
                file.record(&job, []).map_err(history("written"))?;
            }
            let entry = Entry { full: false, times: None, cancel: CancellationToken::new(), job };
            entries.insert(entry.job.id.clone(), entry);
        }
        let state = State { jobs: entries, waiting: VecDeque::new(), history: file };
        let views: Vec<String> = catalog.views.keys().cloned().collect();
        let (runs, state) = (Runs::new(&views), Arc::new(Mutex::new(state)));
        Ok(Self { views, clock, retry, state, runs, arrived: Notify::new() })
    }

    /// The jobs' numbers.
    pub fn metrics(&self) -> JobMetrics {
        let state = self.state.lock();
        let count = |wanted| state.jobs.values().filter(|entry| entry.job.state == wanted).count() as u64;
        let (queued, running) = (count(JobState::Queued), count(JobState::Running));
        JobMetrics { queued, running, runs: self.runs.read() }
    }

    /// Whether a job that recomputes the view waits or is at work.
    pub fn is_busy(&self, view: &str) -> bool {
        let is_open = |job: &Job| matches!(job.state, JobState::Queued | JobState::Running);
        self.state.lock().jobs.values().any(|entry| is_open(&entry.job) && entry.job.views.iter().any(|v| v == view))
    }

    /// Whether any job waits or is at work.
    #[cfg(test)]
    pub fn has_open(&self) -> bool {
        let is_open = |job: &Job| matches!(job.state, JobState::Queued | JobState::Running);
        self.state.lock().jobs.values().any(|entry| is_open(&entry.job))
    }

    /// When a job that recomputes the view was last asked for by its schedule.
    pub fn last_scheduled(&self, view: &str) -> Option<Micros> {
        let is_it = |job: &Job| job.trigger == Trigger::Schedule && job.views.iter().any(|v| v == view);
        let state = self.state.lock();
        state.jobs.values().rev().find(|entry| is_it(&entry.job)).and_then(|entry| parse_timestamp(&entry.job.queued))
    }

    /// Works through the queue until it is told to stop; the job at work is cancelled then.
    pub async fn run(&self, work: Arc<dyn Work>, shutdown: CancellationToken) {
        loop {
            let next = self.state.lock().waiting.pop_front();
            match next {
                Some(id) => self.execute(&id, work.as_ref(), &shutdown).await,
                None => {
                    if shutdown.run_until_cancelled(self.arrived.notified()).await.is_none() {
                        return;
                    }
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    async fn execute(&self, id: &str, work: &dyn Work, shutdown: &CancellationToken) {
        let started = format_timestamp(self.clock.now());
        let Some((job, full, times, cancel)) = self.change(id, |entry| {
            entry.job.state = JobState::Running;
            entry.job.started = Some(started);
            (entry.job.clone(), entry.full, entry.times.clone(), entry.cancel.clone())
        }) else {
            return;
        };
        let stop = {
            let (cancel, shutdown) = (cancel.clone(), shutdown.clone());
            tokio::spawn(async move {
                shutdown.cancelled().await;
                cancel.cancel();
            })
        };
        let outcome = self.views(&job, work, full, times, &cancel).await;
        stop.abort();
        let ended = format_timestamp(self.clock.now());
        self.change(id, |entry| {
            entry.job.ended = Some(ended);
            match outcome {
                Ok(()) => (entry.job.state, entry.job.progress) = (JobState::Succeeded, 1.0),
                Err(Failure::Cancelled) => entry.job.state = JobState::Cancelled,
                Err(Failure::Failed(why)) => {
                    tracing::error!(job = id, error = why, "a batch run failed");
                    (entry.job.state, entry.job.error) = (JobState::Failed, Some(why));
                }
            }
        });
    }

    async fn views(
        &self,
        job: &Job,
        work: &dyn Work,
        full: bool,
        times: Option<std::ops::Range<Micros>>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let begun = self.clock.now();
        let archived = self.persist(cancel, || work.archive(&job.views)).await;
        if archived.is_err() {
            let took = self.clock.now() - begun;
            job.views.iter().for_each(|view| self.runs.ended(view, &archived, took));
        }
        archived.map_err(|error| Failure::of(error, "archive"))?;
        let mut failures = Vec::new();
        for (i, view) in job.views.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            let run = ViewRun { job: job.id.clone(), view: view.clone(), full, times: times.clone() };
            let share = 1.0 / job.views.len() as f64;
            let done = |part: f64| (i as f64 + part) * share;
            let begun = self.clock.now();
            // What one view's run does to itself is no other's, and not the queue's.
            let recomputed = self.persist(cancel, || {
                work.recompute(run.clone(), self.progress(&job.id, done(0.0), share), cancel.clone())
            });
            let outcome = AssertUnwindSafe(recomputed).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|panic| Err(BatchError::panicked("recomputing", &*panic)));
            self.runs.ended(view, &outcome, self.clock.now() - begun);
            match outcome {
                Ok(version) => {
                    self.change(&job.id, |entry| {
                        entry.job.versions.insert(view.clone(), version);
                        entry.job.progress = done(1.0);
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
                entry.job.progress = from + part * share;
            }
        })
    }

    /// Tries a step again while its storage fails.
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

    /// Changes a job and writes it down.
    fn change<T>(&self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let State { jobs, history, .. } = &mut *state;
        let result = change(jobs.get_mut(id)?);
        if let Err(error) = history.record(&jobs[id].job, jobs.values().map(|entry| &entry.job)) {
            tracing::error!(job = id, %error, "the history of runs can't be written");
        }
        Some(result)
    }
}

enum Failure {
    Cancelled,
    Failed(String),
}

impl Failure {
    fn of(error: BatchError, step: &str) -> Self {
        match error {
            BatchError::Cancelled => Self::Cancelled,
            error => Self::Failed(format!("{step}: {}", error.chain())),
        }
    }
}

fn time(name: &str, text: Option<&String>) -> Result<Option<Micros>, JobError> {
    let read = |text: &String| {
        parse_timestamp(text).ok_or_else(|| {
            JobError::Invalid(format!("`{name}` is `{text}`, but a time such as 2024-01-15T10:30:00Z is wanted"))
        })
    };
    text.map(read).transpose()
}

impl Jobs for JobQueue {
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        self.submit_as(None, request, trigger)
    }

    fn submit_as(&self, id: Option<&str>, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        let JobRequest { kind: JobKind::Batch, views, full, from, to } = request;
        if let Some(name) = views.iter().find(|view| !self.views.contains(view)) {
            return Err(JobError::UnknownView { name: name.clone(), existing: self.views.clone() });
        }
        let mut wanted = if views.is_empty() { self.views.clone() } else { views };
        let mut seen = std::collections::BTreeSet::new();
        wanted.retain(|view| seen.insert(view.clone()));
        let times = match (time("from", from.as_ref())?, time("to", to.as_ref())?) {
            (None, None) => None,
            (from, to) => Some(from.unwrap_or(Micros::MIN)..to.unwrap_or(Micros::MAX)),
        };
        if let Some(times) = &times
            && times.end <= times.start
        {
            return Err(JobError::Invalid("`from` has to be earlier than `to`".into()));
        }
        let mut state = self.state.lock();
        let now = self.clock.now();
        let job = Job {
            id: id.map_or_else(|| next_id(&state.jobs, now), str::to_owned),
            kind: JobKind::Batch,
            views: wanted,
            state: JobState::Queued,
            trigger,
            progress: 0.0,
            queued: format_timestamp(now),
            started: None,
            ended: None,
            error: None,
            versions: BTreeMap::new(),
        };
        let State { jobs, waiting, history: file } = &mut *state;
        file.record(&job, jobs.values().map(|entry| &entry.job).chain([&job])).map_err(history("written"))?;
        waiting.push_back(job.id.clone());
        let entry = Entry { full, times, cancel: CancellationToken::new(), job: job.clone() };
        jobs.insert(job.id.clone(), entry);
        while jobs.len() > KEPT_JOBS {
            let Some(oldest) = jobs.values().find(|entry| entry.job.ended.is_some()).map(|entry| entry.job.id.clone())
            else {
                break;
            };
            jobs.remove(&oldest);
        }
        drop(state);
        self.arrived.notify_one();
        Ok(job)
    }

    fn list(&self) -> Result<Vec<Job>, JobError> {
        Ok(self.state.lock().jobs.values().rev().map(|entry| entry.job.clone()).collect())
    }

    fn get(&self, id: &str) -> Result<Job, JobError> {
        let state = self.state.lock();
        state.jobs.get(id).map(|entry| entry.job.clone()).ok_or_else(|| JobError::UnknownJob(id.to_owned()))
    }

    fn cancel(&self, id: &str) -> Result<Job, JobError> {
        let now = format_timestamp(self.clock.now());
        let job = self.get(id)?;
        match job.state {
            JobState::Queued => {
                self.state.lock().waiting.retain(|waiting| waiting != id);
                self.change(id, |entry| (entry.job.state, entry.job.ended) = (JobState::Cancelled, Some(now)));
            }
            JobState::Running => {
                if let Some(entry) = self.state.lock().jobs.get(id) {
                    entry.cancel.cancel();
                }
            }
            _ => return Err(JobError::Ended(id.to_owned())),
        }
        self.get(id)
    }
}

/// An id that sorts after all others: the time, then a number to tell jobs of the same instant apart.
fn next_id(jobs: &BTreeMap<String, Entry>, now: Micros) -> String {
    let newest = jobs.keys().next_back();
    let mut number = now.max(0) as u64;
    if let Some(newest) = newest.and_then(|id| u64::from_str_radix(id.rsplit('-').next()?, 16).ok()) {
        number = number.max(newest + 1);
    }
    job::id(number)
}
